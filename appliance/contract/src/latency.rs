//! How long things took, as counts per power of two: cheap enough for every request, fine enough for a quantile.
//!
//! Counting is two relaxed additions without a lock. Nothing here reads a clock: whoever counts says how long it took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of a [`LatencyHistogram`]: the last one begins behind 2^34 ns, 17 s, and has no end.
pub const LATENCY_BUCKETS: usize = 36;

/// How often something took how long: bucket `i` counts what took at most 2^i ns, and more than half of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencyHistogram {
    /// Counts, of each bucket for itself.
    pub buckets: [u64; LATENCY_BUCKETS],
    /// All of it together, in nanoseconds.
    pub sum_nanos: u64,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self { buckets: [0; LATENCY_BUCKETS], sum_nanos: 0 }
    }
}

impl LatencyHistogram {
    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How many took at most 2^`exponent` ns; all of them when that is beyond the last bucket's beginning.
    #[must_use]
    pub fn at_most(&self, exponent: usize) -> u64 {
        if exponent + 1 >= LATENCY_BUCKETS { self.count() } else { self.buckets.iter().take(exponent + 1).sum() }
    }

    /// The upper end of the bucket in which the quantile `q` (0 to 1) lies; `None` when nothing was counted.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let wanted = (total as f64 * q.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(Duration::from_nanos(1 << bucket))
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        for (own, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += more;
        }
        self.sum_nanos = self.sum_nanos.wrapping_add(other.sum_nanos);
    }
}

/// Counts that many threads add to.
#[derive(Debug)]
pub struct Latencies {
    buckets: [AtomicU64; LATENCY_BUCKETS],
    sum_nanos: AtomicU64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

impl Latencies {
    /// None counted.
    #[must_use]
    pub const fn new() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; LATENCY_BUCKETS], sum_nanos: AtomicU64::new(0) }
    }

    /// Counts one that took so long.
    pub fn count(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // 2^i itself still belongs to bucket i, as in Prometheus' `le`.
        let bucket = (u64::BITS - nanos.saturating_sub(1).leading_zeros()) as usize;
        if let Some(count) = self.buckets.get(bucket.min(LATENCY_BUCKETS - 1)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What was counted so far. What is counted meanwhile may be in the counts and not yet in the sum.
    #[must_use]
    pub fn read(&self) -> LatencyHistogram {
        let mut now = LatencyHistogram { sum_nanos: self.sum_nanos.load(Ordering::Relaxed), ..LatencyHistogram::default() };
        for (own, count) in now.buckets.iter_mut().zip(&self.buckets) {
            *own = count.load(Ordering::Relaxed);
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{LATENCY_BUCKETS, Latencies};

    #[test]
    fn a_bucket_ends_with_its_power_of_two_and_quantiles_name_that_end() {
        let latencies = Latencies::new();
        assert_eq!(latencies.read().quantile(0.5), None);
        for nanos in [0, 1, 1023, 1024, 1025, 2048] {
            latencies.count(Duration::from_nanos(nanos));
        }
        let now = latencies.read();
        assert_eq!((now.at_most(0), now.at_most(9), now.at_most(10), now.at_most(11), now.count()), (2, 2, 4, 6, 6));
        assert_eq!(now.sum_nanos, 1023 + 1024 + 1025 + 2048 + 1);
        assert_eq!(now.quantile(0.5), Some(Duration::from_nanos(1024)));
        assert_eq!(now.quantile(1.0), Some(Duration::from_nanos(2048)));
    }

    #[test]
    fn what_takes_for_ever_is_in_the_last_bucket_and_in_every_larger_bound() {
        let latencies = Latencies::new();
        latencies.count(Duration::MAX);
        let mut now = latencies.read();
        assert_eq!((now.at_most(LATENCY_BUCKETS - 2), now.at_most(LATENCY_BUCKETS - 1), now.at_most(60)), (0, 1, 1));
        let other = Latencies::new();
        other.count(Duration::from_secs(1));
        now.merge(&other.read());
        assert_eq!((now.count(), now.at_most(30)), (2, 1), "a second is a little less than 2^30 ns");
    }
}
