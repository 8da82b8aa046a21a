//! Failures: what to print and which code to exit with. Codes are part of the contract and listed in `lamina --help`.

use std::io;
use std::path::PathBuf;

use lamina_api::client::ClientError;
use lamina_api::problem::ProblemKind;
use lamina_contract::{UnitError, VolumeName};

use crate::machine::MachineError;
use crate::render::RenderError;
use crate::support_bundle::BundleError;

/// Why the command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The daemon refused or could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
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
    /// Deleting needs a yes.
    #[error("deleting '{name}' removes all its data and nobody is there to confirm it")]
    Unconfirmed {
        /// The volume.
        name: VolumeName,
    },
    /// The typed name was another.
    #[error("that is not '{name}': nothing was deleted")]
    Denied {
        /// The volume.
        name: VolumeName,
    },
    /// It is attached but without a socket.
    #[error("volume '{name}' has no socket")]
    NoSocket {
        /// The volume.
        name: String,
    },
}

impl Failure {
    /// 1 failure, 2 usage, 3 not found, 4 daemon unreachable, 5 conflict.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Unconfirmed { .. } | Self::Read { .. } | Self::Description(_) | Self::Machine(_) | Self::Render(_) => 2,
            Self::Client(ClientError::Refused(problem)) => match problem.kind {
                ProblemKind::InvalidRequest => 2,
                ProblemKind::NotFound => 3,
                ProblemKind::Conflict => 5,
                _ => 1,
            },
            Self::Client(ClientError::Unreachable { .. }) => 4,
            _ => 1,
        }
    }

    /// Whether the reader of the output went away, which is no failure of ours (`lamina volume list | head -1`).
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What failed, why, and what to do.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("lamina: {}", chain(self));
        if let Some(advice) = self.advice() {
            text.push_str("\nadvice: ");
            text.push_str(&advice);
        }
        text
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Client(ClientError::Refused(problem)) => problem.advice.clone(),
            Self::Client(ClientError::Unreachable { cause, .. }) => Some(match cause.kind() {
                io::ErrorKind::NotFound => {
                    "start laminad, or say where it is with --state-dir DIR (as given to laminad) or --socket PATH".to_owned()
                }
                io::ErrorKind::PermissionDenied => "only root and the daemon's own user may ask it; try with sudo".to_owned(),
                io::ErrorKind::ConnectionRefused => {
                    "the daemon has ended without removing its socket; start it again and look into its log".to_owned()
                }
                _ => "look whether laminad runs".to_owned(),
            }),
            Self::Client(ClientError::Broken(_) | ClientError::Slow { .. }) => {
                Some("look into the daemon's log, then at the state, before asking again".to_owned())
            }
            Self::Unconfirmed { .. } => Some("add --yes".to_owned()),
            Self::Description(_) => Some("lamina vm render --help shows one".to_owned()),
            Self::NoSocket { .. } => Some("look into the daemon's log".to_owned()),
            _ => None,
        }
    }
}

/// The error and its causes in one line. A transparent error's text is its inner one's, so equal neighbours are said once.
fn chain(error: &dyn std::error::Error) -> String {
    // A problem's advice has a line of its own.
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
