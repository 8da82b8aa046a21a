//! Whether a change has begun: decided once, so that a caller who is told that it has not can rely on it.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::problem::{Problem, ProblemKind};

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const DROPPED: u8 = 2;

/// Shared by who makes a change and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Start(AtomicU8);

impl Start {
    /// Begins; refused when the caller was told that it would not be.
    pub(crate) fn begin(&self) -> Result<(), Problem> {
        match self.0.compare_exchange(WAITING, BEGUN, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(_) => Err(not_begun()),
        }
    }

    /// What a caller is told who has waited for long enough. A change that has not begun never will.
    pub(crate) fn overdue(&self) -> Problem {
        match self.0.compare_exchange(WAITING, DROPPED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(DROPPED) => not_begun(),
            Err(_) => too_long(),
        }
    }
}

fn not_begun() -> Problem {
    Problem::new(ProblemKind::Unavailable, "other changes of the same thing take too long: this one was not begun, and will not be")
        .advise("see what they wait for (`lamina status`), and ask again")
}

/// It has begun.
pub(crate) fn too_long() -> Problem {
    Problem::new(ProblemKind::Unavailable, "the call takes longer than a minute and goes on without you")
        .advise("look at the state before asking again")
}

#[cfg(test)]
mod tests {
    use super::Start;

    #[test]
    fn what_its_caller_was_told_holds() {
        let begun = Start::default();
        begun.begin().expect("nobody waits in vain");
        assert!(begun.overdue().detail.contains("goes on"));
        let dropped = Start::default();
        for _ in 0..2 {
            assert!(dropped.overdue().detail.contains("not begun"));
        }
        assert!(dropped.begin().expect_err("too late").detail.contains("not begun"));
    }
}
