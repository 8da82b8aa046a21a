//! Failures: what to print and which code to exit with. Codes are part of the contract and listed in `lamina --help`.

use std::io;
use std::path::PathBuf;

use lamina_api::job::{Job, JobState};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_contract::UnitError;

use crate::client::CallError;
use crate::endpoint::EndpointError;
use crate::image::ImageError;
use crate::machine::MachineError;
use crate::mistake::Mistake;
use crate::render::RenderError;
use crate::support_bundle::BundleError;
use crate::transfer::TransferError;

/// Why the command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The daemon refused or could not be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// There is no daemon to be asked.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// What was typed makes no sense as a whole.
    #[error(transparent)]
    Mistake(#[from] Mistake),
    /// A name in an answer that is none.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// Nothing could be printed, or the runtime not started.
    #[error("the system refused")]
    Io(#[from] io::Error),
    /// The answer could not be written as JSON.
    #[error("the answer cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// The answer could not be written as YAML.
    #[error("the answer cannot be written as YAML")]
    Yaml(#[from] serde_yaml::Error),
    /// The daemon's answer holds a value that makes no sense.
    #[error("the daemon's answer makes no sense")]
    Unit(#[from] UnitError),
    /// A file that was named cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It is not the JSON of a machine.
    #[error("that is no description of a machine")]
    Description(#[source] serde_json::Error),
    /// It makes no sense as one.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The hypervisor cannot be told of it.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// No bundle for support came about.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// An image that cannot be read or written.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Bytes that did not get where they should.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// What loses data needs a yes.
    #[error("{loses}, and nobody is there to confirm it")]
    Unconfirmed {
        /// What is lost by what.
        loses: String,
    },
    /// Another word was typed.
    #[error("that is not '{word}': nothing was done")]
    Denied {
        /// What was to be typed.
        word: String,
    },
    /// It is attached but without a socket.
    #[error("volume '{name}' has no socket")]
    NoSocket {
        /// The volume.
        name: String,
    },
    /// A job did not come to its end.
    #[error("{}", ended(.0))]
    Job(Box<Job>),
    /// A job has not ended in time.
    #[error("job {id} is still {}", state.as_str())]
    StillRunning {
        /// Which.
        id: String,
        /// How far it is.
        state: JobState,
    },
    /// Somebody pressed Ctrl-C; nothing is left behind but a job that goes on.
    #[error("interrupted{}", job.as_ref().map(|id| format!("; job {id} goes on")).unwrap_or_default())]
    Interrupted {
        /// What goes on.
        job: Option<String>,
    },
    /// Somebody pressed Ctrl-C twice: what was to be removed stays.
    #[error("interrupted; the temporary {what} may still be there")]
    Abandoned {
        /// Which.
        what: String,
        /// How to remove it.
        advice: String,
    },
    /// Some of what was asked for could not be had; it was said which.
    #[error("of {of} volumes, {lacking} could not be asked")]
    Partial {
        /// How many.
        lacking: usize,
        /// Of how many.
        of: usize,
    },
    /// A temporary clone or snapshot that could not be removed.
    #[error("the temporary {what} could not be removed")]
    LeftBehind {
        /// Which.
        what: String,
        /// How to remove it.
        advice: String,
        /// Why.
        #[source]
        cause: Box<CallError>,
    },
}

fn ended(job: &Job) -> String {
    let what = format!("job {} ({} of '{}')", job.id, job.kind.as_str(), job.subject);
    match &job.problem {
        Some(problem) => format!("{what} {}: {}", job.state.as_str(), problem.detail),
        None => format!("{what} was {}", job.state.as_str()),
    }
}

impl Failure {
    /// 1 failure, 2 usage, 3 not found, 4 unreachable, 5 conflict, 6 not authorised, 7 not in time, 130 interrupted.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Unconfirmed { .. } | Self::Mistake(_) | Self::Endpoint(_) => 2,
            Self::Read { .. } | Self::Description(_) | Self::Machine(_) | Self::Render(_) => 2,
            Self::Call(error) => of_call(error),
            Self::Problem(problem) => of_problem(problem.kind),
            Self::Transfer(error) => error.cause_of_call().map_or_else(|| error.exit_code(), of_call),
            Self::StillRunning { .. } => 7,
            Self::Interrupted { .. } | Self::Abandoned { .. } => 130,
            Self::Image(error) => error.exit_code(),
            Self::Bundle(error) => error.exit_code(),
            _ => 1,
        }
    }

    /// Whether the reader of the output went away, which is no failure of ours (`lamina volume list | head -1`). An image that nobody
    /// took whole is one: [`TransferError::Stdout`].
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The refusal that this is, with the path that was asked for.
    pub(crate) fn refusal(&self) -> Option<(&Problem, &str)> {
        match self {
            Self::Call(CallError::Refused { problem, path }) => Some((problem, path)),
            Self::Transfer(error) => match error.cause_of_call() {
                Some(CallError::Refused { problem, path }) => Some((problem, path)),
                _ => None,
            },
            _ => None,
        }
    }

    /// What failed and why, in a line.
    pub(crate) fn what(&self) -> String {
        chain(self)
    }

    /// What to do, in a line.
    pub(crate) fn advice(&self) -> Option<String> {
        match self {
            Self::Call(error) => of_error(error),
            Self::Problem(problem) => problem.advice.clone(),
            Self::Mistake(mistake) => Some(mistake.advice()),
            Self::Endpoint(EndpointError::Mistake(mistake)) => Some(mistake.advice()),
            Self::Endpoint(EndpointError::File { .. } | EndpointError::Empty { .. }) => {
                Some("look at --token-file, --ca-file, --cert and --key, and at LAMINA_… in the environment".to_owned())
            }
            Self::Image(error) => error.advice(),
            Self::Bundle(error) => error.advice(),
            Self::Transfer(error) => error.advice().or_else(|| error.cause_of_call().and_then(of_error)),
            Self::Unconfirmed { .. } => Some("add --yes".to_owned()),
            Self::Description(_) => Some("lamina vm render --help shows one".to_owned()),
            Self::NoSocket { .. } => Some("look into the daemon's log".to_owned()),
            Self::Job(job) => job.problem.as_ref().and_then(|problem| problem.advice.clone()),
            Self::StillRunning { id, .. } => Some(format!("lamina job wait {id}")),
            Self::Interrupted { job: Some(id) } => Some(format!("lamina job wait {id}, or lamina job cancel {id}")),
            Self::LeftBehind { advice, .. } | Self::Abandoned { advice, .. } => Some(advice.clone()),
            _ => None,
        }
    }
}

fn of_call(error: &CallError) -> u8 {
    match error {
        CallError::Refused { problem, .. } => of_problem(problem.kind),
        CallError::Unreachable { .. } => 4,
        CallError::Slow { .. } => 7,
        CallError::Broken(_) if wants_certificate(error) => 6,
        _ => 1,
    }
}

fn of_problem(kind: ProblemKind) -> u8 {
    match kind {
        ProblemKind::InvalidRequest => 2,
        ProblemKind::NotFound => 3,
        ProblemKind::Conflict | ProblemKind::PreconditionFailed | ProblemKind::KeyReused => 5,
        ProblemKind::Unauthorized | ProblemKind::Forbidden => 6,
        _ => 1,
    }
}

fn of_error(error: &CallError) -> Option<String> {
    let words = match error {
        CallError::Refused { problem, .. } => return problem.advice.clone().or_else(|| of_kind(problem.kind)),
        CallError::Unreachable { local: false, cause, .. } => match tls_error(cause) {
            Some(rustls::Error::InvalidCertificate(_)) => {
                "the server's certificate is not trusted; say who vouches for it with --ca-file"
            }
            _ => "look whether laminad runs there and listens on that port",
        },
        CallError::Unreachable { cause, .. } => match cause.kind() {
            io::ErrorKind::NotFound => {
                "start laminad, or say where it is with --state-dir DIR (as given to laminad), --socket PATH or --server"
            }
            io::ErrorKind::PermissionDenied => "only root and the daemon's own user may ask it; try with sudo",
            io::ErrorKind::ConnectionRefused => {
                "the daemon has ended without removing its socket; start it again and look into its log"
            }
            _ => "look whether laminad runs",
        },
        CallError::Broken(_) if wants_certificate(error) => "the server wants a certificate that it trusts: --cert and --key",
        CallError::Broken(_) | CallError::Slow { .. } => "look into the daemon's log, then at the state, before asking again",
        CallError::Strange { .. } => return None,
    };
    Some(words.to_owned())
}

fn of_kind(kind: ProblemKind) -> Option<String> {
    match kind {
        ProblemKind::Unauthorized => {
            Some("show a token that holds with --token-file, or a certificate with --cert and --key".to_owned())
        }
        ProblemKind::Forbidden => Some("an admin can make a token with a higher role: lamina token create".to_owned()),
        _ => None,
    }
}

/// With TLS 1.3 a client learns only when it reads that its certificate was missed or not liked.
fn wants_certificate(error: &CallError) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        tls_error(error),
        Some(rustls::Error::AlertReceived(
            Alert::CertificateRequired
                | Alert::UnknownCA
                | Alert::BadCertificate
                | Alert::DecryptError
                | Alert::CertificateExpired
                | Alert::CertificateRevoked
                | Alert::AccessDenied
        ))
    )
}

fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut at = Some(error);
    while let Some(error) = at {
        // An I/O error's source is its inner error's source: the inner one itself must be asked for.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| inner.downcast_ref()).or_else(|| error.downcast_ref()) {
            return Some(found);
        }
        at = error.source();
    }
    None
}

/// The error and its causes in one line. A transparent error's text is its inner one's, so equal neighbours are said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut parts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if parts.last() != Some(&text) {
            parts.push(text);
        }
        cause = next.source();
    }
    parts.join(": ")
}
