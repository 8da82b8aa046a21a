//! How a distributor behaves: its policy, its patience, its bounds.

use std::sync::Arc;
use std::time::Duration;

use lamina_contract::{Clock, Policy};
use lamina_formats::drive::PoolId;

use crate::codec::Engine;

/// Everything that is decided when a distributor is made.
#[derive(Clone)]
pub struct DistributorOptions {
    /// The pool whose fragments it writes and reads.
    pub pool: PoolId,
    /// X + P for objects of 64 KiB and more.
    pub policy: Policy,
    /// Fragments that must be durable before a put succeeds: X + 1 to Y. `None` means X + 1 (X without parity).
    pub write_min: Option<usize>,
    /// How long a put that has `write_min` waits for its other fragments before they go on behind.
    pub grace: Duration,
    /// How long a read waits for one fragment before it asks others as well. Raised by itself while all targets are slow.
    pub hedge_after: Duration,
    /// When a target that does not answer a read or a listing has failed.
    pub read_timeout: Duration,
    /// When a target that does not answer a write has failed.
    pub write_timeout: Duration,
    /// Objects that were acknowledged while a fragment was still on its way, in bytes. Puts beyond that wait for their last fragment.
    pub late_bytes: usize,
    /// A target on which no write ends for so long while puts wait for it has failed.
    pub stall_timeout: Duration,
    /// Memory for fragment headers that were read or written lately.
    pub header_cache_bytes: usize,
    /// Which engine computes parity.
    pub engine: Engine,
    /// Orders stripes of one key, and dates states.
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for DistributorOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DistributorOptions").field("pool", &self.pool).field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// Why options were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Fewer targets than fragments.
    #[error("policy {policy} needs {need} targets, the pool has {have}", need = policy.total())]
    TooFewTargets {
        /// X + P.
        policy: Policy,
        /// Targets given, missing ones too.
        have: usize,
    },
    /// `write_min` outside X + 1 to Y.
    #[error("write_min {write_min} is outside {least} to {most} for policy {policy}")]
    WriteMin {
        /// X + P.
        policy: Policy,
        /// What was asked for.
        write_min: usize,
        /// X + 1, or X without parity.
        least: usize,
        /// Y.
        most: usize,
    },
    /// The same target twice.
    #[error("target {target} is named twice")]
    Twice {
        /// Which.
        target: crate::placement::TargetId,
    },
}

impl DistributorOptions {
    /// The usual patience for local drives.
    #[must_use]
    pub fn new(pool: PoolId, policy: Policy, clock: Arc<dyn Clock>) -> Self {
        Self {
            pool,
            policy,
            write_min: None,
            grace: Duration::from_millis(250),
            hedge_after: Duration::from_millis(200),
            read_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            late_bytes: 64 << 20,
            stall_timeout: Duration::from_secs(5),
            header_cache_bytes: 32 << 20,
            engine: Engine::Fastest,
            clock,
        }
    }

    /// Checks `write_min` and says what it is.
    pub(crate) fn checked_write_min(&self) -> Result<usize, OptionsError> {
        let policy = self.policy;
        let least = if policy.parity() == 0 { policy.data() } else { policy.data() + 1 };
        let write_min = self.write_min.unwrap_or(least);
        if (least..=policy.total()).contains(&write_min) {
            Ok(write_min)
        } else {
            Err(OptionsError::WriteMin { policy, write_min, least, most: policy.total() })
        }
    }
}

/// Copies that an acknowledged small object or mark of deletion has: all P + 1 of them as long as the pool could still take a large
/// object at all, that is with as many of its `targets` away as `pool_min` bears. Fewer would be hidden by P targets that do not
/// answer, and what is hidden cannot be told from what never was.
pub(crate) fn copies_min_of(pool: Policy, pool_min: usize, targets: usize) -> usize {
    if pool.data() == 1 {
        // Every object is copies then, and `pool_min` says how many.
        return pool_min;
    }
    (pool.parity() + 1).min(targets.saturating_sub(pool.total() - pool_min))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lamina_contract::ManualClock;
    use lamina_formats::drive::PoolId;

    use super::{DistributorOptions, OptionsError, copies_min_of};

    #[test]
    fn write_min_is_between_x_plus_1_and_y() {
        let mut options = DistributorOptions::new(PoolId(1), "4+2".parse().expect("a policy"), Arc::new(ManualClock::default()));
        assert_eq!(options.checked_write_min(), Ok(5));
        options.write_min = Some(6);
        assert_eq!(options.checked_write_min(), Ok(6));
        for bad in [0, 4, 7] {
            options.write_min = Some(bad);
            assert!(matches!(options.checked_write_min(), Err(OptionsError::WriteMin { .. })));
        }
    }

    #[test]
    fn copies_are_all_guaranteed_wherever_the_pool_has_room_for_them() {
        let policy = |text: &str| text.parse().expect("a policy");
        assert_eq!(copies_min_of(policy("4+2"), 5, 6), 3);
        assert_eq!(copies_min_of(policy("4+2"), 6, 9), 3);
        assert_eq!(copies_min_of(policy("11+7"), 12, 18), 8);
        assert_eq!(copies_min_of(policy("2+3"), 3, 5), 3, "two may be away, so three of four");
        assert_eq!(copies_min_of(policy("2+3"), 3, 6), 4);
        assert_eq!(copies_min_of(policy("1+2"), 2, 3), 2);
        assert_eq!(copies_min_of(policy("3+0"), 3, 3), 1);
    }
}
