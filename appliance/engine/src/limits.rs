//! What a volume may do per second, and the token buckets that keep it to that.
//!
//! A bucket fills at the limit's rate up to its burst. A request goes when the bucket holds what it costs and takes that out; one that
//! costs more than the bucket can ever hold goes when the bucket is full and leaves a debt. So in any window of `t` seconds no more
//! is admitted than `rate · t` and one burst (or one request, if that is larger).
//!
//! Amounts are counted in thousandths (of a request, of a byte): a rate per second is then a whole number per millisecond, and nothing
//! is ever lost to rounding.

use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::time::Duration;

/// The burst of limits that do not say.
pub const DEFAULT_BURST: Duration = Duration::from_millis(100);
/// What a burst is held within. Below it, a bucket would run over between two looks at what waits.
pub const BURST: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);

/// What a volume may do, reads and writes together. Without any limit it is not held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests per second. Discards and write-zeroes count; a flush does not.
    pub iops: Option<NonZeroU64>,
    /// Bytes of data per second.
    pub bandwidth: Option<NonZeroU64>,
    /// How many seconds' worth may be done at once after a quiet time; [`DEFAULT_BURST`] if not given, held within [`BURST`].
    pub burst: Option<Duration>,
}

impl Limits {
    /// Whether there is no limit.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.iops.is_none() && self.bandwidth.is_none()
    }

    fn burst_ms(&self) -> u64 {
        let burst = self.burst.unwrap_or(DEFAULT_BURST).clamp(*BURST.start(), *BURST.end());
        burst.as_millis() as u64
    }
}

/// What one request takes out of the buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Of data; a discard has none.
    pub(crate) bytes: u64,
}

/// One rate. Amounts are in thousandths.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Per millisecond.
    rate: i128,
    capacity: i128,
    /// At most `capacity`; below zero is a debt.
    level: i128,
}

impl Bucket {
    /// A full one.
    fn new(per_second: NonZeroU64, burst_ms: u64) -> Self {
        let rate = i128::from(per_second.get());
        let capacity = rate * i128::from(burst_ms);
        Self { rate, capacity, level: capacity }
    }

    /// The bucket of a changed limit: no fuller than its predecessor, and what was owed is still owed for as long as before.
    fn succeed(mut self, old: Self) -> Self {
        self.level = if old.level < 0 { old.level.saturating_mul(self.rate) / old.rate } else { old.level.min(self.capacity) };
        self
    }

    fn fill(&mut self, elapsed_ms: u64) {
        self.level = self.level.saturating_add(self.rate.saturating_mul(i128::from(elapsed_ms))).min(self.capacity);
    }

    /// What is missing before `amount` may be taken.
    fn lacks(&self, amount: i128) -> i128 {
        amount.min(self.capacity) - self.level
    }

    fn ms_until(&self, amount: i128) -> u64 {
        // The rate is not zero; the division rounds towards zero, and what is missing is at least one then.
        let lacks = self.lacks(amount).max(0);
        u64::try_from((lacks + self.rate - 1) / self.rate).unwrap_or(u64::MAX)
    }
}

/// The buckets of one volume.
#[derive(Debug, Default)]
pub(crate) struct Buckets {
    limits: Limits,
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
    filled_ms: u64,
}

impl Buckets {
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Other limits from now on.
    pub(crate) fn change(&mut self, limits: Limits, now_ms: u64) {
        self.fill(now_ms);
        let bucket = |rate: Option<NonZeroU64>, old: Option<Bucket>| {
            let new = Bucket::new(rate?, limits.burst_ms());
            Some(old.map_or(new, |old| new.succeed(old)))
        };
        self.requests = bucket(limits.iops, self.requests);
        self.bytes = bucket(limits.bandwidth, self.bytes);
        self.limits = limits;
    }

    /// Takes what a request costs, if it may go now.
    pub(crate) fn take(&mut self, cost: Cost, now_ms: u64) -> bool {
        if self.ms_until(cost, now_ms) > 0 {
            return false;
        }
        for (bucket, amount) in self.each(cost) {
            bucket.level -= amount;
        }
        true
    }

    /// How long until it may go.
    pub(crate) fn ms_until(&mut self, cost: Cost, now_ms: u64) -> u64 {
        self.fill(now_ms);
        self.each(cost).map(|(bucket, amount)| bucket.ms_until(amount)).max().unwrap_or(0)
    }

    fn each(&mut self, cost: Cost) -> impl Iterator<Item = (&mut Bucket, i128)> {
        let bytes = i128::from(cost.bytes) * 1000;
        let requests = self.requests.iter_mut().map(|bucket| (bucket, 1000));
        requests.chain(self.bytes.iter_mut().map(move |bucket| (bucket, bytes)))
    }

    fn fill(&mut self, now_ms: u64) {
        let elapsed = now_ms.saturating_sub(self.filled_ms);
        self.filled_ms = self.filled_ms.max(now_ms);
        if elapsed > 0 {
            for bucket in self.requests.iter_mut().chain(&mut self.bytes) {
                bucket.fill(elapsed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::{Buckets, Cost, Limits};

    fn limits(iops: u64, bandwidth: u64, burst_ms: u64) -> Limits {
        let burst = Some(Duration::from_millis(burst_ms));
        Limits { iops: NonZeroU64::new(iops), bandwidth: NonZeroU64::new(bandwidth), burst }
    }

    fn buckets(limits: Limits) -> Buckets {
        let mut buckets = Buckets::default();
        buckets.change(limits, 0);
        buckets
    }

    #[test]
    fn a_request_larger_than_the_bucket_waits_for_a_full_one_and_leaves_a_debt() {
        let mut buckets = buckets(limits(0, 1_000_000, 10));
        assert!(buckets.take(Cost { bytes: 5_000 }, 0));
        let large = Cost { bytes: 50_000 };
        assert_eq!(buckets.ms_until(large, 0), 5, "until it is full");
        assert!(!buckets.take(large, 4) && buckets.take(large, 5));
        // 40,000 bytes are owed.
        assert_eq!(buckets.ms_until(Cost { bytes: 1 }, 5), 41);
        assert_eq!(buckets.ms_until(Cost { bytes: 0 }, 5), 40, "what has no data waits for the debt too");
    }

    #[test]
    fn a_rate_below_one_request_in_a_burst_holds_all_the_same() {
        let mut buckets = buckets(limits(3, 0, 10));
        let went = (0..60_000).filter(|ms| buckets.take(Cost { bytes: 4096 }, *ms)).count();
        assert!((179..=181).contains(&went), "{went} in a minute");
    }

    #[test]
    fn a_lowered_limit_keeps_a_debt_no_longer_than_the_old_one_would_have() {
        let mut buckets = buckets(limits(0, 1_000_000, 10));
        assert!(buckets.take(Cost { bytes: 110_000 }, 0));
        assert_eq!(buckets.ms_until(Cost { bytes: 0 }, 0), 100);
        buckets.change(limits(0, 1_000, 10), 0);
        assert_eq!(buckets.ms_until(Cost { bytes: 0 }, 0), 100);
        buckets.change(limits(0, 0, 10), 0);
        assert_eq!(buckets.ms_until(Cost { bytes: 1 << 40 }, 0), 0);
    }

    #[test]
    fn the_largest_limits_do_not_overflow_and_a_clock_that_jumps_fills_no_more_than_a_burst() {
        let most = Limits { iops: Some(NonZeroU64::MAX), bandwidth: Some(NonZeroU64::MAX), burst: Some(Duration::MAX) };
        let mut buckets = buckets(most);
        assert!(buckets.take(Cost { bytes: u64::MAX }, u64::MAX));
        let mut buckets = Buckets::default();
        buckets.change(limits(1000, 0, 10), 0);
        let went = (0..100).filter(|_| buckets.take(Cost { bytes: 0 }, u64::MAX)).count();
        assert_eq!(went, 10);
    }
}
