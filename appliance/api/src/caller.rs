//! Who asks: found out once, at the beginning of a request.

use crate::job::{Job, JobKind};
use crate::problem::{Problem, ProblemKind};
use crate::role::Role;

/// Somebody who is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// How, and who: `token:<name>`, `certificate:<name>`, `uid:<number>`.
    pub who: String,
    /// What they may do.
    pub role: Role,
    /// Only volumes whose names begin so.
    pub scope: Option<String>,
}

impl Caller {
    /// Somebody without a scope.
    #[must_use]
    pub fn new(who: impl Into<String>, role: Role) -> Self {
        Self { who: who.into(), role, scope: None }
    }

    /// Whether the caller's scope has a volume of this name.
    #[must_use]
    pub fn reaches(&self, volume: &str) -> bool {
        self.scope.as_ref().is_none_or(|scope| volume.starts_with(scope))
    }

    /// Whether it reaches a job: those about VMs are as the VMs, for callers without a scope.
    #[must_use]
    pub fn reaches_job(&self, job: &Job) -> bool {
        match job.kind {
            JobKind::CloneVolume | JobKind::RollbackVolume | JobKind::FlattenVolume => self.reaches(&job.subject),
            JobKind::CloneVm | JobKind::RollbackVm => self.scope.is_none(),
        }
    }

    /// Refuses a volume outside the caller's scope.
    ///
    /// # Errors
    /// `Forbidden`.
    pub fn check_reach(&self, volume: &str) -> Result<(), Problem> {
        if self.reaches(volume) {
            return Ok(());
        }
        let scope = self.scope.as_deref().unwrap_or_default();
        Err(Problem::new(ProblemKind::Forbidden, format!("this token reaches volumes whose names begin with '{scope}'")))
    }
}
