//! Keeps the store whole: takes drives back that return, repairs what is short of fragments, and opens volumes that were out of reach.
//!
//! A repair looks at all objects, so it runs only when there is reason to: once after each start, when a read or write found an object
//! short, when a drive came back. It needs as many drives as the policy spreads over; what it cannot mend is tried again with growing
//! pauses. It gives way while guests are being slowed. A crash leaves objects as they were, plus fragments that are right.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lamina_distributor::{RepairProgress, RepairReport, RepairStatus};
use lamina_engine::Node;
use object_store::ObjectStore;

use crate::degraded::{Condition, condition};
use crate::served::Served;

/// How often reasons are looked for.
const TICK: Duration = Duration::from_secs(5);

/// Pause before volumes that could not be opened are tried again; doubles to the longest.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Pause after a repair that left something; doubles to the longest.
const PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);

/// What repairs left.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    unreadable: AtomicU64,
}

impl Repairs {
    /// Objects that the last repair found unreadable.
    pub(crate) fn unreadable(&self) -> u64 {
        self.unreadable.load(Ordering::Relaxed)
    }
}

/// Gives way to guests.
struct Polite<'a>(&'a Node);

impl RepairProgress for Polite<'_> {
    fn report(&self, _: RepairStatus) -> ControlFlow<()> {
        if self.0.status().throttled { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// When the next repair is due.
struct Schedule {
    due: bool,
    not_before: Instant,
    pause: Duration,
    drives_up: usize,
}

/// Opens and serves what could not be opened at the start, until nothing is missing.
pub(crate) async fn reopen(served: Arc<Served>) {
    let mut pause = FIRST_RETRY;
    while served.node.lacks_volumes() {
        tokio::time::sleep(pause).await;
        let back = served.node.reopen().await;
        pause = if back.is_empty() { (pause * 2).min(LONGEST_RETRY) } else { FIRST_RETRY };
        if !back.is_empty() {
            let served = Arc::clone(&served);
            // Making sockets blocks. What is lost by a panic is said by it.
            let _ = tokio::task::spawn_blocking(move || served.attach_all()).await;
        }
    }
}

/// Works until it is dropped.
pub(crate) async fn run(served: Arc<Served>) {
    let mut schedule = Schedule { due: true, not_before: Instant::now() + TICK, pause: PAUSE, drives_up: 0 };
    loop {
        tokio::time::sleep(TICK).await;
        take_back(&served).await;
        let drives_up = drives_up(&served);
        if drives_up > schedule.drives_up {
            schedule = Schedule { due: true, not_before: Instant::now(), pause: PAUSE, drives_up };
        }
        schedule.drives_up = drives_up;
        schedule.due |= served.store.stats().awaiting_repair > 0;
        let possible = drives_up >= served.settings.policy.total();
        if !schedule.due || !possible || Instant::now() < schedule.not_before {
            continue;
        }
        let settled = match served.store.repair(&Polite(&served.node)).await {
            Ok(report) => tell(&served, &report),
            Err(error) => {
                tracing::warn!(%error, "repair was not possible");
                false
            }
        };
        if settled {
            schedule.due = false;
            schedule.pause = PAUSE;
        } else {
            schedule.not_before = Instant::now() + schedule.pause;
            schedule.pause = (schedule.pause * 2).min(LONGEST_PAUSE);
        }
    }
}

async fn take_back(served: &Arc<Served>) {
    let looking = Arc::clone(served);
    // A drive that does not answer holds up a thread of its own, and this task, nobody else.
    let Ok(returned) = tokio::task::spawn_blocking(move || looking.watch.returned()).await else { return };
    for (id, drive) in returned {
        served.store.set_target(lamina_distributor::TargetId(id), Some(Arc::new(drive) as Arc<dyn ObjectStore>));
    }
}

fn drives_up(served: &Served) -> usize {
    let health = served.store.health();
    let members = served.watch.members().iter();
    members.filter(|member| condition(member, health.iter().find(|target| target.id.0 == member.id)) == Condition::Up).count()
}

/// Logs what was done; whether nothing is left to do.
fn tell(served: &Served, report: &RepairReport) -> bool {
    served.repairs.unreadable.store(report.unreadable_count, Ordering::Relaxed);
    if report.short > 0 {
        tracing::info!(
            objects = report.objects,
            short = report.short,
            repaired = report.repaired_objects,
            fragments = report.repaired_fragments,
            still_short = report.still_short,
            "repair"
        );
    }
    for key in &report.unreadable {
        tracing::error!(%key, "too many fragments are lost: this object cannot be read");
    }
    !report.stopped && report.still_short == 0 && report.unknown_targets == 0
}
