//! `lamina`: the command that asks a running `laminad`, over its local socket or TLS.
//!
//! It keeps no state but how far an import came. What a failure means is in its exit code (`failure.rs`), what to do in its last line on
//! stderr. A noun has a file for what it does, and one for its verbs where those are many.

mod args;
mod audit;
mod bundle_names;
mod client;
mod cloud_hypervisor;
mod complete;
mod completions;
mod confirm;
mod cut;
mod deleted;
mod endpoint;
mod ends;
mod export;
mod failure;
mod follow;
mod hypervisor;
mod identity;
mod image;
mod import;
mod import_state;
mod job;
mod labels;
mod libvirt;
mod load;
mod local_call;
mod machine;
mod missing;
mod mistake;
mod moment;
mod nbd;
mod part;
mod printer;
mod qemu;
mod qemu_nbd;
mod rate;
mod redaction;
mod render;
mod run;
mod schedule;
mod session;
mod shell;
mod snapshot;
mod span;
mod status;
mod suggestion;
mod support_bundle;
mod table;
mod target;
mod template;
mod terminal;
mod token;
mod tone;
mod top;
mod transfer;
mod vm;
mod vm_verbs;
mod volume;
mod volume_verbs;
mod volume_view;
mod xml;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;

use crate::args::{Arguments, Manner, Noun};
use crate::client::Client;
use crate::failure::Failure;
use crate::mistake::Mistake;
use crate::printer::Printer;
use crate::session::{Patience, Session};
use crate::tone::{Painter, Tone};
use crate::vm_verbs::VmVerb;

/// How long threads that read or write may take to see that nobody wants that any more. One that waits for a reader who stalls never does.
const LAST_BYTES: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    // A shell that completes asks so, and wants nothing else.
    CompleteEnv::with_factory(Arguments::command).var(completions::VARIABLE).complete();
    let arguments = Arguments::parse();
    let notices = Painter::new(arguments.manner.color, &std::io::stderr());
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(told) if told.failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(told) => {
            // With stderr gone too there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "{}", told.text(notices));
            ExitCode::from(told.failure.exit_code())
        }
    }
}

/// A failure, and what may have been meant.
struct Told {
    failure: Failure,
    suggestion: Option<String>,
}

impl From<Failure> for Box<Told> {
    fn from(failure: Failure) -> Self {
        Self::new(Told { failure, suggestion: None })
    }
}

impl Told {
    /// A line of what, a line of what to do.
    fn text(&self, painter: Painter) -> String {
        let mut text = format!("{} {}", painter.paint(Tone::Bad, "lamina:"), self.failure.what());
        if let Some(suggestion) = &self.suggestion {
            text.push_str(&format!("; {suggestion}"));
        }
        if let Some(advice) = self.failure.advice() {
            text.push_str(&format!("\n{} {advice}", painter.paint(Tone::Bold, "advice:")));
        }
        text
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<Told>> {
    let Manner { output, no_headers, quiet, color, wait, no_wait, timeout } = &arguments.manner;
    if *wait && *no_wait {
        return Err(Failure::from(Mistake::WaitAndNoWait).into());
    }
    let printer = Printer::new(*output, !no_headers, *quiet, *color);
    match &arguments.noun {
        // These need no daemon.
        Noun::Completions { shell } => return Ok(completions::run(*shell)?),
        Noun::Vm { verb: VmVerb::Render { from: Some(from), hypervisor, .. } } => {
            return Ok(vm::render_file(from, *hypervisor, &printer)?);
        }
        _ => {}
    }
    let limit = timeout.map(|span| Duration::from_secs(span.0));
    let endpoint = arguments.connection.endpoint().map_err(Failure::from)?;
    // About this machine, and needs no daemon either.
    if let Noun::SupportBundle(wanted) = &arguments.noun {
        return Ok(support_bundle::run(wanted, &arguments.connection, &endpoint, &printer)?);
    }
    let daemon = arguments.connection.words();
    let session = Session { client: Client::new(endpoint, limit), printer, daemon, patience: Patience { wait: !no_wait, limit } };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::from)?;
    let outcome = runtime.block_on(async {
        match answer(&arguments.noun, &session).await {
            Ok(()) => Ok(()),
            Err(failure) => Err(Box::new(Told { suggestion: missing::suggestion(&session.client, &failure).await, failure })),
        }
    });
    runtime.shutdown_timeout(LAST_BYTES);
    outcome
}

async fn answer(noun: &Noun, session: &Session) -> Result<(), Failure> {
    match noun {
        Noun::Volume { verb } => volume::run(verb, session).await,
        Noun::Snapshot { verb } => snapshot::run(verb, session).await,
        Noun::Template { verb } => template::run(verb, session).await,
        Noun::Vm { verb } => vm::run(verb, session).await,
        Noun::Schedule { verb } => schedule::run(verb, session).await,
        Noun::Job { verb } => job::run(verb, session).await,
        Noun::Token { verb } => token::run(verb, session).await,
        Noun::Target { verb } => target::run(verb, session).await,
        Noun::Status => status::run(session).await,
        Noun::Top(arguments) => top::run(arguments, session).await,
        Noun::Audit { limit } => audit::run(*limit, session).await,
        Noun::Import(arguments) => import::run(arguments, session).await,
        Noun::Export(arguments) => export::run(arguments, session).await,
        // Answered without a daemon.
        Noun::Completions { .. } | Noun::SupportBundle(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Arguments;

    #[test]
    fn the_arguments_are_consistent_and_each_command_explains_itself() {
        let mut command = Arguments::command();
        command.clone().debug_assert();
        check(&mut command, "");
    }

    fn check(command: &mut clap::Command, above: &str) {
        let name = format!("{above}{}", command.get_name());
        let help = command.render_long_help().to_string();
        let (_, examples) = help.split_once("Examples:\n").unwrap_or_else(|| panic!("`{name} --help` has no examples:\n{help}"));
        assert!(examples.trim_start().contains("lamina"), "`{name} --help` has no examples:\n{help}");
        assert!(command.get_about().is_some_and(|about| about.to_string().len() > 8), "`{name}` does not say what it is for");
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "`{name}` does not say what {} is for", argument.get_id());
        }
        let name = format!("{name} ");
        for verb in command.get_subcommands_mut().filter(|verb| verb.get_name() != "help") {
            check(verb, &name);
        }
    }
}
