//! I/O errors on purpose: the n-th call of a disk or store fails, or all of them from then on.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

/// What an operation on a disk or store does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The device fails (EIO): nothing was done.
    Io,
    /// No space (ENOSPC): nothing was done.
    Full,
    /// A write that reached half its way before it failed; any other call just fails.
    Half,
    /// A put that is done and called failed; any other call just fails.
    Lie,
}

impl Fault {
    /// The system's error.
    #[must_use]
    pub fn error(self) -> io::Error {
        match self {
            // EIO, as the kernel says it.
            Self::Io | Self::Half | Self::Lie => io::Error::from_raw_os_error(5),
            // ENOSPC.
            Self::Full => io::Error::from_raw_os_error(28),
        }
    }
}

/// Which calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The n-th call from now, counted from 0.
    Once(u64),
    /// Every call from the n-th on.
    From(u64),
}

#[derive(Debug, Default)]
struct State {
    calls: u64,
    plan: Option<(When, Fault)>,
    fired: u64,
}

/// A plan of faults that several disks and stores may share.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

impl Faults {
    /// Makes calls fail from now on as `when` says.
    pub fn plan(&self, when: When, fault: Fault) {
        *self.0.lock() = State { calls: 0, plan: Some((when, fault)), fired: 0 };
    }

    /// All is well from now on.
    pub fn clear(&self) {
        self.0.lock().plan = None;
    }

    /// How many calls failed since the plan was made.
    #[must_use]
    pub fn fired(&self) -> u64 {
        self.0.lock().fired
    }

    /// Counts a call; the fault that it meets, if any.
    #[must_use]
    pub fn next(&self) -> Option<Fault> {
        let mut state = self.0.lock();
        let call = state.calls;
        state.calls += 1;
        let (when, fault) = state.plan?;
        let meets = match when {
            When::Once(n) => call == n,
            When::From(n) => call >= n,
        };
        state.fired += u64::from(meets);
        meets.then_some(fault)
    }
}
