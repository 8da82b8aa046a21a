//! `lamina status`.

use std::io::Write;

use comfy_table::Table;
use lamina_api::client::Client;
use lamina_api::status::{Space, Status};

use crate::args::Output;
use crate::failure::Failure;
use crate::output::{self, size};

/// Asks and prints.
pub(crate) async fn run(client: &Client, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    output::print(out, output, &client.status().await?, table)
}

fn table(status: &Status) -> Table {
    let store = &status.store;
    let mut rows = vec![("health", status.health.as_str().to_owned())];
    for degradation in &status.degraded {
        rows.push(("  degraded", format!("{}: {}; {}", degradation.what, degradation.detail, degradation.risk)));
    }
    rows.extend([
        (
            "daemon",
            format!(
                "{}, process {}, up {} s, ready after {} ms",
                status.version, status.pid, status.uptime_seconds, status.recovery_ms
            ),
        ),
        ("volumes", format!("{}, {} attached", status.volumes, status.volumes_attached)),
        ("written", format!("{}, of that deduplicated {}", size(status.written_bytes), size(status.deduplicated_bytes))),
        ("stored", format!("{} as {} on targets", size(status.stored_bytes), size(store.written_bytes))),
        ("journal", space(status.journal)),
        ("cache", format!("{}, {} hits, {} misses", space(status.cache.space), status.cache.hits, status.cache.misses)),
        (
            "store",
            format!(
                "policy {}, {} of {} targets up, a write needs {}",
                store.policy, store.targets_up, store.targets, store.write_min
            ),
        ),
        (
            "repairs",
            format!(
                "{} degraded reads, {} degraded writes, {} fragments repaired",
                store.degraded_reads, store.degraded_writes, store.repaired_fragments
            ),
        ),
    ]);
    output::properties(rows)
}

fn space(space: Space) -> String {
    format!("{} of {} used", size(space.used_bytes), size(space.capacity_bytes))
}
