//! `lamina status`.

use lamina_api::paths;
use lamina_api::status::{Health, Space, Status};

use crate::failure::Failure;
use crate::printer::{Property, size};
use crate::rate::duration;
use crate::session::Session;
use crate::table::Cell;
use crate::tone::Tone;

/// Asks and prints.
pub(crate) async fn run(session: &Session) -> Result<(), Failure> {
    let status: Status = session.client.get(paths::STATUS).await?;
    session.printer.one(&status, status.health.as_str(), properties)
}

/// Whether all is well.
pub(crate) fn health(health: Health) -> Cell {
    Cell::new(health.as_str(), if health == Health::Healthy { Tone::Good } else { Tone::Bad })
}

fn properties(status: &Status) -> Vec<Property> {
    let store = &status.store;
    let mut rows = vec![("health", health(status.health))];
    for degradation in &status.degraded {
        let words = format!("{}: {}; {}", degradation.what, degradation.detail, degradation.risk);
        rows.push(("  degraded", Cell::new(words, Tone::Warn)));
    }
    rows.extend([
        (
            "daemon",
            format!(
                "{}, process {}, up {}, ready after {} ms",
                status.version,
                status.pid,
                duration(status.uptime_seconds),
                status.recovery_ms
            )
            .into(),
        ),
        ("volumes", format!("{}, {} attached", status.volumes, status.volumes_attached).into()),
        ("written", format!("{}, of that deduplicated {}", size(status.written_bytes), size(status.deduplicated_bytes)).into()),
        ("stored", format!("{} as {} on targets", size(status.stored_bytes), size(store.written_bytes)).into()),
        ("journal", space(status.journal).into()),
        ("cache", format!("{}, {} hits, {} misses", space(status.cache.space), status.cache.hits, status.cache.misses).into()),
        (
            "store",
            format!(
                "policy {}, {} of {} targets up, a write needs {}",
                store.policy, store.targets_up, store.targets, store.write_min
            )
            .into(),
        ),
        (
            "repairs",
            format!(
                "{} degraded reads, {} degraded writes, {} fragments repaired",
                store.degraded_reads, store.degraded_writes, store.repaired_fragments
            )
            .into(),
        ),
    ]);
    rows
}

/// `1 GiB of 2 GiB used`.
fn space(space: Space) -> String {
    format!("{} of {} used", size(space.used_bytes), size(space.capacity_bytes))
}
