//! Pressure: how full the journal is decides when the store is fed and when guests are slowed. Overload slows, it never errors.
//!
//! ```text
//! 0 ───────── low ───────────── high ──────── full
//!   feed when   feed at full      admit writes at the rate    admit none
//!   idle or old speed             that the store drains,
//!                                 less as it fills
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

/// Share of the journal above which the store is fed at full speed even while guests write.
const LOW: f64 = 0.40;
/// Share of the journal above which guests are slowed.
const HIGH: f64 = 0.70;

/// Accounts what is accepted and not stored.
pub(crate) struct Throttle {
    capacity: u64,
    unstored: AtomicU64,
    drained: AtomicU64,
    /// Bytes that may be admitted above the high-water mark.
    budget: AtomicU64,
    /// Smoothed drain rate in bytes per second.
    drain_rate: AtomicU64,
    last_drained: AtomicU64,
    held_back: AtomicU64,
}

impl Throttle {
    /// For a journal of `bytes` in segments of `segment_bytes`: one segment is being written and one being freed.
    pub(crate) fn new(bytes: u64, segment_bytes: u64) -> Self {
        Self {
            capacity: bytes.saturating_sub(2 * segment_bytes).max(segment_bytes),
            unstored: AtomicU64::new(0),
            drained: AtomicU64::new(0),
            budget: AtomicU64::new(0),
            drain_rate: AtomicU64::new(0),
            last_drained: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
        }
    }

    /// `bytes` went into the journal.
    pub(crate) fn accepted(&self, bytes: u64) {
        self.unstored.fetch_add(bytes, Ordering::AcqRel);
    }

    /// `bytes` of the journal are not needed any more.
    pub(crate) fn stored(&self, bytes: u64) {
        // Never fails: the closure always answers.
        let _ = self.unstored.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| Some(left.saturating_sub(bytes)));
        self.drained.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Share of the journal that waits for the store.
    pub(crate) fn fill(&self) -> f64 {
        self.unstored.load(Ordering::Acquire) as f64 / self.capacity as f64
    }

    /// Bytes that wait for the store.
    pub(crate) fn unstored(&self) -> u64 {
        self.unstored.load(Ordering::Acquire)
    }

    /// Whether the store must be fed at full speed.
    pub(crate) fn presses(&self) -> bool {
        is_low(self.fill())
    }

    /// Whether guests are being slowed.
    pub(crate) fn slows(&self) -> bool {
        self.fill() >= HIGH
    }

    /// Whether a write of `bytes` may go on now.
    pub(crate) fn admit(&self, bytes: u64) -> bool {
        if !self.slows() {
            return true;
        }
        let taken =
            self.budget.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| (left > 0).then(|| left.saturating_sub(bytes)));
        if taken.is_err() {
            self.held_back.fetch_add(1, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    /// Requests that had to wait.
    pub(crate) fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Relaxed)
    }

    /// Renews the budget for the `elapsed_ms` that passed: what the store drained, twice that at the high-water mark, down to
    /// nothing when full.
    pub(crate) fn tick(&self, elapsed_ms: u64) {
        let drained = self.drained.load(Ordering::Acquire);
        let fresh = drained - self.last_drained.swap(drained, Ordering::AcqRel).min(drained);
        let elapsed_ms = elapsed_ms.max(1);
        let now = fresh * 1000 / elapsed_ms;
        let old = self.drain_rate.load(Ordering::Acquire);
        // Commits come in lumps: smooth over about a second, whatever the tick.
        let weight = elapsed_ms.min(1000);
        let rate = (old * (1000 - weight) + now * weight) / 1000;
        self.drain_rate.store(rate, Ordering::Release);
        let room = ((1.0 - self.fill()) / (1.0 - HIGH)).clamp(0.0, 1.0);
        // A store that has not drained yet must not hold guests for ever below full: 8 MiB/s until it shows its rate.
        let floor = if room > 0.05 { 8_u64 << 20 } else { 0 };
        let budget = (rate as f64 * 2.0 * room) as u64;
        self.budget.store(budget.max(floor) * elapsed_ms / 1000, Ordering::Release);
    }
}

/// Whether a share of the journal is above the low-water mark.
pub(crate) fn is_low(share: f64) -> bool {
    share >= LOW
}

#[cfg(test)]
mod tests {
    use super::Throttle;

    #[test]
    fn below_the_high_water_mark_everything_is_admitted() {
        let throttle = Throttle::new(100 << 20, 4 << 20);
        throttle.accepted(60 << 20);
        assert!(throttle.presses() && throttle.admit(1 << 20));
    }

    #[test]
    fn above_it_the_budget_follows_the_drain_rate_and_ends_when_full() {
        let throttle = Throttle::new(108 << 20, 4 << 20);
        throttle.accepted(80 << 20);
        assert!(!throttle.admit(4096), "no budget before a tick");
        throttle.stored(2 << 20);
        throttle.tick(1000);
        assert!(throttle.admit(4096));
        throttle.accepted(30 << 20);
        throttle.tick(10);
        assert!(!throttle.admit(4096), "full: nothing is admitted");
        assert_eq!(throttle.held_back(), 2);
    }
}
