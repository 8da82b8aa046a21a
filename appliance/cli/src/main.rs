//! `lamina`: the command that asks a running `laminad` over its local socket.
//!
//! It keeps no state. What a failure means is in its exit code (`failure.rs`), what to do in its last line on stderr.

mod args;
mod cloud_hypervisor;
mod confirm;
mod failure;
mod hypervisor;
mod identity;
mod libvirt;
mod local_call;
mod machine;
mod output;
mod qemu;
mod redaction;
mod render;
mod shell;
mod status;
mod support_bundle;
mod target;
mod vm;
mod volume;
mod xml;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use lamina_api::client::Client;

use crate::args::{Arguments, Noun};
use crate::failure::Failure;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            // With stderr gone too there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "{}", failure.text());
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if let Noun::Completions { shell } = arguments.noun {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "lamina", &mut script);
        out.write_all(&script)?;
        return Ok(());
    }
    // Needs no daemon.
    if let Noun::Vm { verb } = &arguments.noun {
        return vm::run(verb, arguments.output, &mut out);
    }
    // Works without one.
    if let Noun::SupportBundle(bundle) = &arguments.noun {
        return Ok(support_bundle::run(bundle, &arguments.connection.place(), &mut out)?);
    }
    let client = Client::new(&arguments.connection.socket());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match &arguments.noun {
            Noun::Volume { verb } => volume::run(verb, &client, arguments.output, &mut out).await,
            Noun::Target { verb } => target::run(verb, &client, arguments.output, &mut out).await,
            Noun::Status => status::run(&client, arguments.output, &mut out).await,
            Noun::Vm { .. } | Noun::SupportBundle(_) | Noun::Completions { .. } => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Arguments;

    #[test]
    fn the_arguments_are_consistent_and_each_command_explains_itself() {
        let mut command = Arguments::command();
        command.clone().debug_assert();
        check(&mut command);
    }

    fn check(command: &mut clap::Command) {
        let name = command.get_name().to_owned();
        let help = command.render_long_help().to_string();
        assert!(
            help.contains("Examples:") || name == "completions" && help.contains("bash"),
            "`{name} --help` has no examples:\n{help}"
        );
        for verb in command.get_subcommands_mut().filter(|verb| verb.get_name() != "help") {
            check(verb);
        }
    }
}
