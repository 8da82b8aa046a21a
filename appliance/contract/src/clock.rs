//! Time comes in by argument, so that a simulation can own it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

/// The only way the engine learns the time.
pub trait Clock: Send + Sync {
    /// Wall time, for entries that people will search by time. May jump; nothing about safety depends on it.
    fn wall(&self) -> Timestamp;

    /// Milliseconds since some fixed moment; never goes backwards. For ages, pacing and time-outs.
    fn monotonic_ms(&self) -> u64;

    /// The same in nanoseconds, for counting what things take; as fine as the clock is.
    fn monotonic_ns(&self) -> u64 {
        self.monotonic_ms().saturating_mul(1_000_000)
    }
}

/// A clock that stands still until it is told to go on.
#[derive(Debug, Default)]
pub struct ManualClock {
    ms: AtomicU64,
}

impl ManualClock {
    /// Lets `ms` milliseconds pass.
    pub fn advance(&self, ms: u64) {
        self.ms.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        // 2026-01-01T00:00:00Z, so that simulated times look like times.
        Timestamp(1_767_225_600_000 + self.monotonic_ms())
    }

    fn monotonic_ms(&self) -> u64 {
        self.ms.load(Ordering::SeqCst)
    }
}
