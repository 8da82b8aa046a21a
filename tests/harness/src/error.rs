//! Why a test could not go on, with what somebody needs who reads it in a log: what was being done, to what, and the cause.

use std::path::PathBuf;
use std::time::Duration;

use crate::client::ClientError;

/// A failure of the bed, or of what is under test as far as the bed sees it.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// Something that must be there is not.
    #[error("{what} is missing: {path}\n  {advice}")]
    Missing {
        /// What.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What to do about it.
        advice: &'static str,
    },
    /// A file operation failed.
    #[error("cannot {doing} {path}: {cause}")]
    File {
        /// The operation.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// A disk is too full for what is to be done.
    #[error("{path} has {free_gib} GiB free and this needs {need_gib} GiB\n  free some, or point TMPDIR at a larger disk", path = path.display())]
    Space {
        /// Where.
        path: PathBuf,
        /// GiB that may be written.
        need_gib: u64,
        /// GiB that are free.
        free_gib: u64,
    },
    /// A program could not be started or waited for.
    #[error("cannot {doing} {program}: {cause}")]
    Program {
        /// The operation.
        doing: &'static str,
        /// Which program.
        program: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// A program ended although it was needed, or not the way it had to.
    #[error("{program} ended ({status}) while waiting for {waiting_for}; its last words:\n{log}")]
    Ended {
        /// Which program.
        program: String,
        /// How it ended.
        status: String,
        /// What it was needed for.
        waiting_for: String,
        /// The end of its output.
        log: String,
    },
    /// Something did not happen in time.
    #[error("{program}: no {waiting_for} within {limit:?}; its last words:\n{log}")]
    Late {
        /// Which program.
        program: String,
        /// What did not happen.
        waiting_for: String,
        /// How long it was waited for.
        limit: Duration,
        /// The end of its output.
        log: String,
    },
    /// A command answered with an error.
    #[error("`{command}` failed with exit code {code}: {message}")]
    Refused {
        /// The command line.
        command: String,
        /// Its exit code; -1 when a signal ended it.
        code: i32,
        /// What it wrote to standard error.
        message: String,
    },
    /// An answer that is not of the promised form.
    #[error("`{source_of}` answered without {expected}: {answer}")]
    Answer {
        /// Who answered.
        source_of: String,
        /// What is missing.
        expected: &'static str,
        /// The answer.
        answer: String,
    },
    /// The vhost-user client failed.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl HarnessError {
    /// For `map_err` on file operations.
    pub fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |cause| Self::File { doing, path, cause }
    }
}
