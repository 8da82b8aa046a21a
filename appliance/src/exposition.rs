//! `/metrics`: counters and gauges in Prometheus' text form (version 0.0.4), rendered from the parts' own counters at each scrape.
//!
//! Names begin with `lamina_`; counters end in `_total` and run from the daemon's start. `appliance/docs/OPERATIONS.md` lists them.

use std::fmt::Display;
use std::fmt::Write;

use lamina_engine::{NodeStatus, VolumeState, VolumeStatus};
use lamina_vhost_blk::{CounterSnapshot, OpCounters};

use crate::degraded::{Condition, condition};
use crate::served::Served;
use crate::watch::Sight;

/// Quantiles told of each operation's latency.
const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];

/// The text.
pub(crate) fn text(served: &Served) -> String {
    let mut page = Page::default();
    daemon(&mut page, served);
    node(&mut page, &served.node.status());
    store(&mut page, served);
    targets(&mut page, served);
    volumes(&mut page, &served.statuses());
    fronts(&mut page, served);
    page.text
}

/// Lines, a family's samples together.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let text = text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
            let _ = write!(self.text, "{open}{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

fn daemon(page: &mut Page, served: &Served) {
    page.family("lamina_build_info", "gauge", "1, with the release as a label.");
    page.sample("lamina_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.single("lamina_uptime_seconds", "gauge", "Since the daemon was ready.", served.uptime().as_secs());
    page.single("lamina_recovery_seconds", "gauge", "How long its start took.", served.recovery().as_secs_f64());
    page.family("lamina_degraded", "gauge", "Things that are not as they should be, by kind.");
    let degraded = served.degradations();
    let mut kinds: Vec<&str> = degraded.iter().map(|one| one.what.as_str()).collect();
    kinds.sort_unstable();
    for kind in kinds.chunk_by(|a, b| a == b) {
        if let Some(name) = kind.first() {
            page.sample("lamina_degraded", &[("what", name)], kind.len());
        }
    }
    let (begun, ended) = (served.transitions.begun(), served.transitions.ended());
    page.single("lamina_degradations_total", "counter", "How often something became degraded.", begun);
    page.single("lamina_degradations_ended_total", "counter", "How often something was well again.", ended);
}

fn node(page: &mut Page, node: &NodeStatus) {
    let flag = u8::from;
    for (name, help, value) in [
        ("lamina_journal_capacity_bytes", "Space of the journal.", node.journal_bytes),
        ("lamina_journal_used_bytes", "Journal segments in use.", node.journal_used_bytes),
        ("lamina_cache_capacity_bytes", "Space of the dedupe cache.", node.cache.capacity),
        ("lamina_cache_used_bytes", "Blocks in the dedupe cache.", node.cache.bytes),
        ("lamina_memory_bytes", "Memory of map layers, pages and cache index.", node.memory_bytes),
        ("lamina_throttled", "1 while guests are being slowed.", u64::from(flag(node.throttled))),
        ("lamina_journal_failed", "1 when the journal's SSD failed.", u64::from(flag(node.journal_failed))),
        ("lamina_store_down", "1 while the store refuses objects.", u64::from(flag(node.store_down))),
        ("lamina_cache_failed", "1 when the dedupe cache is off.", u64::from(flag(node.cache_failed))),
    ] {
        page.single(name, "gauge", help, value);
    }
    page.single("lamina_journal_fill_ratio", "gauge", "Share of the journal that waits for the store.", node.journal_fill);
    for (name, help, value) in [
        ("lamina_journal_written_bytes_total", "Bytes written to the journal.", node.journal_written_bytes),
        ("lamina_journal_syncs_total", "fdatasync calls on the journal.", node.journal_syncs),
        ("lamina_held_back_total", "Requests that the throttle made wait.", node.held_back),
        ("lamina_cache_hits_total", "Blocks read from the dedupe cache.", node.cache.hits),
        ("lamina_cache_misses_total", "Blocks that the dedupe cache did not have.", node.cache.misses),
        ("lamina_cache_inserts_total", "Blocks taken into the dedupe cache.", node.cache.inserts),
        ("lamina_cache_evictions_total", "Blocks evicted from the dedupe cache.", node.cache.evictions),
        ("lamina_cache_bad_total", "Damaged copies found in the dedupe cache.", node.cache.bad),
        ("lamina_cache_written_bytes_total", "Bytes written to the dedupe cache.", node.cache.bytes_written),
    ] {
        page.single(name, "counter", help, value);
    }
}

fn store(page: &mut Page, served: &Served) {
    let stats = served.store.stats();
    for (name, help, value) in [
        ("lamina_store_puts_total", "Objects put.", stats.puts),
        ("lamina_store_put_bytes_total", "Bytes of objects put.", stats.bytes_in),
        ("lamina_store_gets_total", "Reads of objects or ranges.", stats.gets),
        ("lamina_store_get_bytes_total", "Bytes of objects read.", stats.bytes_out),
        ("lamina_store_deletes_total", "Objects deleted.", stats.deletes),
        ("lamina_store_written_bytes_total", "Bytes of fragments written, parity included.", stats.fragment_bytes_written),
        ("lamina_store_degraded_reads_total", "Reads that had to be decoded.", stats.degraded_reads),
        ("lamina_store_degraded_writes_total", "Writes that left fragments to be repaired.", stats.degraded_writes),
        ("lamina_store_failed_writes_total", "Writes with too few fragments.", stats.failed_writes),
        ("lamina_store_damaged_fragments_total", "Fragments that did not verify.", stats.damaged_fragments),
        ("lamina_store_repaired_fragments_total", "Fragments made again.", stats.repaired_fragments),
    ] {
        page.single(name, "counter", help, value);
    }
    page.single("lamina_store_awaiting_repair", "gauge", "Objects with too few fragments.", stats.awaiting_repair);
}

fn targets(page: &mut Page, served: &Served) {
    let health = served.store.health();
    let members = served.watch.members();
    let of = |id: u128| health.iter().find(|target| target.id.0 == id);
    let mut each = |name: &str, kind: &str, help: &str, value: &dyn Fn(usize) -> u64| {
        page.family(name, kind, help);
        for (index, member) in members.iter().enumerate() {
            page.sample(name, &[("target", &member.slot.to_string()), ("id", &format!("{:032x}", member.id))], value(index));
        }
    };
    let condition_of = |index: usize| members.get(index).map(|member| condition(member, of(member.id)));
    each("lamina_target_up", "gauge", "1 while the target takes and gives fragments.", &|index| {
        u64::from(matches!(condition_of(index), Some(Condition::Up)))
    });
    let space = |index: usize| match members.get(index).map(|member| member.sight()) {
        Some(Sight::There(space)) => (space.free, space.total),
        _ => (0, 0),
    };
    each("lamina_target_free_bytes", "gauge", "Free space, 0 when unknown.", &|index| space(index).0);
    each("lamina_target_capacity_bytes", "gauge", "Size of the file system, 0 when unknown.", &|index| space(index).1);
    let target = |index: usize| members.get(index).and_then(|member| of(member.id));
    each("lamina_target_read_bytes_total", "counter", "Bytes of fragments read.", &|index| {
        target(index).map_or(0, |t| t.bytes_read)
    });
    each("lamina_target_written_bytes_total", "counter", "Bytes of fragments written.", &|index| {
        target(index).map_or(0, |t| t.bytes_written)
    });
    each("lamina_target_errors_total", "counter", "Calls that failed.", &|index| target(index).map_or(0, |t| t.errors));
    each(
        "lamina_target_held_back_total",
        "counter",
        "Puts that waited for this target alone: the pool goes at its pace.",
        &|index| target(index).map_or(0, |t| t.held_back),
    );
}

/// Name, kind, help, and where the value is.
type Sample<T> = (&'static str, &'static str, &'static str, fn(&T) -> u64);

fn volumes(page: &mut Page, volumes: &[VolumeStatus]) {
    let samples: [Sample<VolumeStatus>; 14] = [
        ("lamina_volume_size_bytes", "gauge", "Capacity.", |v| v.spec.size_bytes),
        ("lamina_volume_halted", "gauge", "1 when it answers I/O errors.", |v| u64::from(v.state == VolumeState::Halted)),
        ("lamina_volume_unstored_bytes", "gauge", "Bytes that only the journal holds.", |v| v.unstored_bytes),
        ("lamina_volume_unstored_age_ms", "gauge", "Age of the oldest of them.", |v| v.unstored_age_ms),
        ("lamina_volume_held_back", "gauge", "Requests that the throttle holds back now.", |v| v.held_back),
        ("lamina_volume_generation", "gauge", "Its current manifest.", |v| v.generation.0),
        ("lamina_volume_journal_hits_total", "counter", "Blocks read from the journal.", |v| v.journal_hits),
        ("lamina_volume_cache_hits_total", "counter", "Blocks read from the dedupe cache.", |v| v.cache_hits),
        ("lamina_volume_store_reads_total", "counter", "Fetches from the store.", |v| v.store_reads),
        ("lamina_volume_store_failures_total", "counter", "Objects that the store refused.", |v| v.store_failures),
        ("lamina_volume_stored_bytes_total", "counter", "Bytes of containers stored.", |v| v.sco_bytes),
        ("lamina_volume_data_blocks_total", "counter", "Blocks stored as data.", |v| v.data_blocks),
        ("lamina_volume_reference_blocks_total", "counter", "Blocks stored as references.", |v| v.reference_blocks),
        ("lamina_volume_lost_blocks_total", "counter", "Blocks that the journal lost before they were stored.", |v| v.lost_blocks),
    ];
    for (name, kind, help, value) in samples {
        page.family(name, kind, help);
        for volume in volumes {
            page.sample(name, &[("volume", volume.spec.name.as_str())], value(volume));
        }
    }
}

fn operations(front: &CounterSnapshot) -> [(&'static str, &OpCounters); 5] {
    [
        ("read", &front.read),
        ("write", &front.write),
        ("flush", &front.flush),
        ("discard", &front.discard),
        ("write-zeroes", &front.write_zeroes),
    ]
}

fn fronts(page: &mut Page, served: &Served) {
    let counters = served.fronts();
    let volumes = served.statuses();
    let named: Vec<_> = volumes.iter().filter_map(|volume| Some((volume.spec.name.as_str(), counters.get(&volume.id)?))).collect();
    let per_operation: [Sample<OpCounters>; 3] = [
        ("lamina_requests_total", "counter", "Requests answered.", |op| op.requests),
        ("lamina_request_bytes_total", "counter", "Bytes of data in successful requests.", |op| op.bytes),
        ("lamina_request_errors_total", "counter", "Requests answered with an error.", |op| op.errors),
    ];
    for (name, kind, help, value) in per_operation {
        page.family(name, kind, help);
        for (volume, front) in &named {
            for (op, counters) in operations(front) {
                page.sample(name, &[("volume", volume), ("op", op)], value(counters));
            }
        }
    }
    page.family("lamina_request_seconds", "gauge", "Latency since the daemon's start, to a power of two.");
    for (volume, front) in &named {
        for (op, counters) in operations(front) {
            for quantile in QUANTILES {
                if let Some(latency) = counters.latency.quantile(quantile) {
                    let labels = [("volume", *volume), ("op", op), ("quantile", &quantile.to_string())];
                    page.sample("lamina_request_seconds", &labels, latency.as_secs_f64());
                }
            }
        }
    }
    let per_front: [Sample<CounterSnapshot>; 6] = [
        ("lamina_front_connected", "gauge", "1 while a hypervisor is connected.", |front| u64::from(front.connected)),
        ("lamina_front_connections_total", "counter", "Hypervisors that connected.", |front| front.connections),
        ("lamina_front_refused_total", "counter", "Connections that were not served.", |front| front.refused),
        ("lamina_front_protocol_errors_total", "counter", "Connections closed for what they sent.", |front| front.protocol_errors),
        ("lamina_front_broken_rings_total", "counter", "Rings stopped for what was in them.", |front| front.broken_rings),
        ("lamina_front_panics_total", "counter", "Panics that were caught.", |front| front.panics),
    ];
    for (name, kind, help, value) in per_front {
        page.family(name, kind, help);
        for (volume, front) in &named {
            page.sample(name, &[("volume", volume)], value(front));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Page;

    #[test]
    fn labels_are_escaped_as_prometheus_reads_them() {
        let mut page = Page::default();
        page.sample("lamina_x", &[("a", "q\"\\\n"), ("b", "2")], 7);
        page.single("lamina_y", "gauge", "Help.", 0.5);
        assert_eq!(
            page.text,
            "lamina_x{a=\"q\\\"\\\\\\n\",b=\"2\"} 7\n# HELP lamina_y Help.\n# TYPE lamina_y gauge\nlamina_y 0.5\n"
        );
    }
}
