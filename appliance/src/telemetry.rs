//! Once a second: looks at the drives, compares what is degraded with a second ago, logs and counts what changed, feeds the watchdog.
//!
//! The watchdog is fed only after the engine's own state was read, so that a daemon that is stuck there is restarted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lamina_api::status::Degradation;
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use crate::notify::Notifier;
use crate::served::Served;

const TICK: Duration = Duration::from_secs(1);

/// What was degraded a moment ago, and how often things became so.
#[derive(Debug, Default)]
pub(crate) struct Transitions {
    last: Mutex<BTreeMap<String, Degradation>>,
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Transitions {
    /// How often something became degraded.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// How often something was well again.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Logs and counts what is different now.
    pub(crate) fn compare(&self, now: &[Degradation]) {
        let now: BTreeMap<String, Degradation> = now.iter().map(|one| (key(one), one.clone())).collect();
        let mut last = self.last.lock();
        for (_, one) in now.iter().filter(|(key, _)| !last.contains_key(*key)) {
            self.begun.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(what = one.what, risk = one.risk, "degraded: {}", one.detail);
        }
        for (_, one) in last.iter().filter(|(key, _)| !now.contains_key(*key)) {
            self.ended.fetch_add(1, Ordering::Relaxed);
            tracing::info!(what = one.what, "no longer degraded: {}", one.detail);
        }
        *last = now;
    }
}

/// What makes two of them the same: the kind and its object, without what varies from second to second.
fn key(one: &Degradation) -> String {
    let object = one.detail.split(':').next().unwrap_or_default();
    let steady: String = object.chars().filter(|_| !matches!(one.what.as_str(), "repair-pending" | "objects-unreadable")).collect();
    format!("{} {steady}", one.what)
}

/// Ticks until it is dropped.
pub(crate) async fn run(served: Arc<Served>, notifier: Arc<Notifier>) {
    let period = notifier.watchdog_interval().map_or(TICK, |interval| interval.min(TICK));
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let runtime = tokio::runtime::Handle::current();
    let mut said = String::new();
    loop {
        ticks.tick().await;
        served.watch.look(&runtime);
        let looked = Arc::clone(&served);
        // On a thread of its own: the state is behind locks that a slow SSD may hold.
        let Ok(degraded) = tokio::task::spawn_blocking(move || looked.degradations()).await else {
            tracing::error!("reading the state failed");
            continue;
        };
        served.transitions.compare(&degraded);
        if notifier.watchdog_interval().is_some() {
            notifier.alive();
        }
        let status = match degraded.as_slice() {
            [] => "serving".to_owned(),
            [first, ..] => format!("degraded ({}): {}", degraded.len(), first.detail),
        };
        if status != said {
            notifier.status(&status);
            said = status;
        }
    }
}

#[cfg(test)]
mod tests {
    use lamina_api::status::Degradation;

    use super::Transitions;

    fn one(what: &str, detail: &str) -> Degradation {
        Degradation { what: what.to_owned(), detail: detail.to_owned(), risk: String::new() }
    }

    #[test]
    fn each_change_is_counted_once_however_its_words_vary() {
        let transitions = Transitions::default();
        transitions.compare(&[one("target-missing", "drive 1 (/a) is missing: EIO")]);
        transitions.compare(&[one("target-missing", "drive 1 (/a) is missing: ENOENT"), one("repair-pending", "3 objects")]);
        transitions.compare(&[one("repair-pending", "2 objects")]);
        assert_eq!((transitions.begun(), transitions.ended()), (2, 1));
        transitions.compare(&[]);
        assert_eq!((transitions.begun(), transitions.ended()), (2, 2));
    }
}
