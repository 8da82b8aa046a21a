//! Latencies in buckets whose width is a 32nd of their value: percentiles within 3 %, in 15 KiB, whatever the count.

use std::time::Duration;

/// 2^5 sub-buckets for each power of two of nanoseconds.
const SUB: u32 = 5;
/// Up to 2^59 ns, 18 years.
const BUCKETS: usize = ((64 - SUB as usize) << SUB) + (1 << SUB);

/// Counted durations.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
    sum: u128,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0, sum: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(nanos)) {
            *count += 1;
        }
        self.total += 1;
        self.max = self.max.max(nanos);
        self.sum += u128::from(nanos);
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
        self.sum += other.sum;
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The longest.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The mean.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.sum / u128::from(self.total.max(1))).unwrap_or(u64::MAX))
    }

    /// The duration that `quantile` (0 to 1) of all are not longer than; zero when nothing was counted.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Duration {
        let wanted = (quantile.clamp(0.0, 1.0) * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(upper(index).min(self.max));
            }
        }
        Duration::from_nanos(self.max)
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < 1 << SUB {
        return nanos as usize;
    }
    let shift = 63 - nanos.leading_zeros() - SUB;
    // The top bit is implied by the shift; the next SUB bits choose within.
    (((shift as usize) + 1) << SUB) + ((nanos >> shift) as usize & ((1 << SUB) - 1))
}

/// The largest value of a bucket.
fn upper(index: usize) -> u64 {
    if index < 1 << SUB {
        return index as u64;
    }
    let shift = (index >> SUB) as u32 - 1;
    let first = ((1 << SUB) + (index as u64 & ((1 << SUB) - 1))) << shift;
    first + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::{Histogram, bucket, upper};
    use std::time::Duration;

    #[test]
    fn every_value_lies_in_its_bucket_within_a_32nd() {
        for nanos in (0..10_000_u64).chain((14..60).map(|bit| (1 << bit) + 12_345)) {
            let top = upper(bucket(nanos));
            assert!(top >= nanos && (top - nanos) * 32 <= nanos, "{nanos} {top}");
        }
    }

    #[test]
    fn quantiles_of_a_known_set_are_right() {
        let mut low = Histogram::default();
        let mut high = Histogram::default();
        (1..=500).for_each(|n| low.record(Duration::from_micros(n)));
        (501..=1000).for_each(|n| high.record(Duration::from_micros(n)));
        low.merge(&high);
        let near = |got: Duration, want: f64| (got.as_secs_f64() * 1e6 / want - 1.0).abs() < 0.035;
        assert!(near(low.quantile(0.5), 500.0) && near(low.quantile(0.99), 990.0) && near(low.quantile(1.0), 1000.0));
        assert!(near(low.mean(), 500.5));
        assert_eq!((low.count(), low.max()), (1000, Duration::from_millis(1)));
    }
}
