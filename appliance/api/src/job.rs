//! Jobs: work that takes longer than a call, with progress, and what became of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::Problem;

/// Seconds that a call waits for a job's end at most.
pub const MAX_WAIT_SECONDS: u64 = 30;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Makes clones of a volume.
    CloneVolume,
    /// Takes a volume back to a moment.
    RollbackVolume,
    /// Makes a clone independent of its parent.
    FlattenVolume,
    /// Makes clones of a VM.
    CloneVm,
    /// Takes a VM back.
    RollbackVm,
}

impl JobKind {
    /// As the interface writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CloneVolume => "clone-volume",
            Self::RollbackVolume => "rollback-volume",
            Self::FlattenVolume => "flatten-volume",
            Self::CloneVm => "clone-vm",
            Self::RollbackVm => "rollback-vm",
        }
    }
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Waits for its turn.
    Queued,
    /// At work.
    Running,
    /// Done; [`Job::result`] says what came of it.
    Succeeded,
    /// Ended early; [`Job::problem`] says why.
    Failed,
    /// Ended early because somebody asked for it.
    Cancelled,
}

impl JobState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// All of them as the interface writes them.
    pub const WORDS: [&'static str; 5] = {
        let [a, b, c, d, e] = Self::ALL;
        [a.as_str(), b.as_str(), c.as_str(), d.as_str(), e.as_str()]
    };

    /// Whether nothing will change any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// As the interface writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a job's progress is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobUnit {
    /// Bytes.
    Bytes,
    /// Blocks of the volume.
    Blocks,
    /// Entries of TLogs.
    Entries,
    /// Volumes.
    Volumes,
    /// VMs.
    Vms,
}

impl JobUnit {
    /// As the interface writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Blocks => "blocks",
            Self::Entries => "entries",
            Self::Volumes => "volumes",
            Self::Vms => "vms",
        }
    }
}

/// What came of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct JobResult {
    /// Names of the volumes that it made or changed, the first 1000.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// How many more volumes there are than are named.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_volumes: u64,
    /// Names of the VMs that it made or changed, the first 1000.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vms: Vec<String>,
    /// How many more VMs there are than are named.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_vms: u64,
    /// The automatic snapshot that keeps what a rollback discarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discarded: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// 16 hexadecimal digits; later jobs have higher ones.
    #[schema(pattern = "^[0-9a-f]{16}$")]
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// To which volume or VM.
    pub subject: String,
    /// What it is at, in a word or two.
    pub phase: String,
    /// How far it is.
    pub state: JobState,
    /// From 0 to 1.
    #[schema(minimum = 0, maximum = 1)]
    pub progress: f64,
    /// Units done.
    pub done: u64,
    /// Units in all; 0 while unknown.
    pub total: u64,
    /// What is counted.
    pub unit: JobUnit,
    /// Seconds left at the present rate, when that can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created: String,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub started: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub ended: Option<String>,
    /// What came of it; a job that failed or was cancelled may have done part of its work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<JobResult>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// What came of a call that may take long.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome<T> {
    /// It is done.
    Done(T),
    /// A job does it.
    Job(Box<Job>),
}

/// Jobs, the newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobList {
    /// The newest first.
    pub jobs: Vec<Job>,
    /// Cursor of the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
