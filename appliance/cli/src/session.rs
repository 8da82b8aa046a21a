//! What each verb works with: the daemon, the printer, and how long to wait for jobs.

use std::time::Duration;

use crate::client::Client;
use crate::printer::Printer;

/// One run of the command.
#[derive(Debug)]
pub(crate) struct Session {
    /// The daemon.
    pub(crate) client: Client,
    /// Results and notices.
    pub(crate) printer: Printer,
    /// The options that say which daemon, as they were typed, each with a space before it: for commands that are told to people.
    pub(crate) daemon: String,
    /// What to do about jobs.
    pub(crate) patience: Patience,
}

/// How long to wait for what was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    /// Whether to wait for the end of jobs.
    pub(crate) wait: bool,
    /// How long at most.
    pub(crate) limit: Option<Duration>,
}
