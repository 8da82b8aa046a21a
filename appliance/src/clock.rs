//! The system's clocks.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use lamina_contract::{Clock, Timestamp};

/// Wall time and time since the daemon began.
#[derive(Debug)]
pub(crate) struct SystemClock {
    began: Instant,
}

impl SystemClock {
    /// Starts counting.
    pub(crate) fn new() -> Self {
        Self { began: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        // A clock before 1970 is not set yet; times are for people only.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(since.as_millis() as u64)
    }

    fn monotonic_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn monotonic_ns(&self) -> u64 {
        // 584 years.
        self.began.elapsed().as_nanos() as u64
    }
}
