//! What `/metrics` says of each volume: what the engine counts, and what its front end counts.
//!
//! Bounds: some 50 lines a volume, and 13 for each operation that its guest has used. Pure: states in, lines out.

use std::collections::{BTreeMap, HashMap};

use lamina_contract::VolumeId;
use lamina_engine::{HeldCounters, VolumeState, VolumeStatus};
use lamina_vhost_blk::{CounterSnapshot, OpCounters};

use crate::metrics_page::{COARSE, Kind, Page};

/// Name, kind, help, and where the value is.
type Family<T> = (&'static str, Kind, &'static str, fn(&T) -> u64);

const VOLUME: [Family<VolumeStatus>; 26] = [
    ("lamina_volume_size_bytes", Kind::Gauge, "Capacity.", |v| v.spec.size_bytes),
    ("lamina_volume_halted", Kind::Gauge, "1 when it answers I/O errors.", |v| u64::from(v.state == VolumeState::Halted)),
    ("lamina_volume_unstored_bytes", Kind::Gauge, "Bytes that only the journal holds.", |v| v.unstored_bytes),
    ("lamina_volume_held_requests", Kind::Gauge, "Writes that a filling journal holds back now.", |v| v.held_back),
    ("lamina_volume_held_back_total", Kind::Counter, "Writes that a filling journal made wait.", |v| v.held_back_ever),
    ("lamina_volume_generation", Kind::Gauge, "Its current manifest.", |v| v.generation.0),
    ("lamina_volume_memory_bytes", Kind::Gauge, "Memory of its map layers and containers.", |v| v.memory_bytes),
    ("lamina_volume_snapshots", Kind::Gauge, "Its snapshots.", |v| v.snapshots),
    ("lamina_volume_snapshots_waiting", Kind::Gauge, "Snapshots that the store does not have yet.", |v| v.snapshots_waiting),
    ("lamina_volume_is_clone", Kind::Gauge, "1 while it shares blocks with its parent.", |v| u64::from(v.parent.is_some())),
    ("lamina_volume_read_bytes_total", Kind::Counter, "Bytes that were read.", |v| v.read_bytes),
    ("lamina_volume_written_bytes_total", Kind::Counter, "Bytes that were written.", |v| v.written_bytes),
    ("lamina_volume_read_errors_total", Kind::Counter, "Reads answered with an error.", |v| v.read_errors),
    ("lamina_volume_journal_hits_total", Kind::Counter, "Blocks read from the journal.", |v| v.journal_hits),
    ("lamina_volume_cache_hits_total", Kind::Counter, "Blocks read from the dedupe cache.", |v| v.cache_hits),
    ("lamina_volume_store_reads_total", Kind::Counter, "Fetches from the store.", |v| v.store_reads),
    ("lamina_volume_store_failures_total", Kind::Counter, "Objects that the store refused.", |v| v.store_failures),
    ("lamina_volume_stored_bytes_total", Kind::Counter, "Bytes of containers stored.", |v| v.sco_bytes),
    ("lamina_volume_stored_objects_total", Kind::Counter, "Objects stored.", |v| v.stored_objects),
    ("lamina_volume_data_blocks_total", Kind::Counter, "Blocks stored as data.", |v| v.data_blocks),
    ("lamina_volume_data_bytes_total", Kind::Counter, "The same in bytes.", |v| v.data_blocks * block_bytes(v)),
    ("lamina_volume_reference_blocks_total", Kind::Counter, "Blocks stored as references.", |v| v.reference_blocks),
    ("lamina_volume_deduplicated_bytes_total", Kind::Counter, "The same in bytes.", |v| v.reference_blocks * block_bytes(v)),
    ("lamina_volume_zero_entries_total", Kind::Counter, "Zero and trim entries stored.", |v| v.zero_entries),
    ("lamina_volume_lost_blocks_total", Kind::Counter, "Blocks that the journal lost before they were stored.", |v| v.lost_blocks),
    ("lamina_volume_checkpoints_total", Kind::Counter, "Checkpoints of the map.", |v| v.checkpoints),
];

const OPERATION: [Family<OpCounters>; 3] = [
    ("lamina_requests_total", Kind::Counter, "Requests answered.", |op| op.requests),
    ("lamina_request_bytes_total", Kind::Counter, "Bytes of data in successful requests.", |op| op.bytes),
    ("lamina_request_errors_total", Kind::Counter, "Requests answered with an error.", |op| op.errors),
];

const FRONT: [Family<CounterSnapshot>; 9] = [
    ("lamina_front_connected", Kind::Gauge, "1 while a hypervisor is connected.", |front| u64::from(front.connected)),
    ("lamina_front_connections_total", Kind::Counter, "Hypervisors that connected.", |front| front.connections),
    ("lamina_front_refused_total", Kind::Counter, "Connections that were not served.", |front| front.refused),
    ("lamina_front_protocol_errors_total", Kind::Counter, "Connections closed for what they sent.", |front| front.protocol_errors),
    ("lamina_front_broken_rings_total", Kind::Counter, "Rings stopped for what was in them.", |front| front.broken_rings),
    ("lamina_front_panics_total", Kind::Counter, "Panics that were caught.", |front| front.panics),
    ("lamina_front_config_changes_total", Kind::Counter, "Times that a guest was told of a size.", |front| front.config_changes),
    ("lamina_front_signals_total", Kind::Counter, "Interrupts sent to the guest.", |front| front.signals),
    ("lamina_front_kicks_total", Kind::Counter, "Wake-ups by the guest.", |front| front.kicks),
];

fn block_bytes(volume: &VolumeStatus) -> u64 {
    u64::from(volume.spec.block_size.get())
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

/// Of all open volumes, by name.
pub(crate) fn volumes(page: &mut Page, volumes: &[VolumeStatus]) {
    for (name, kind, help, value) in VOLUME {
        page.family(name, kind, help);
        for volume in volumes {
            page.sample(name, &[("volume", volume.spec.name.as_str())], value(volume));
        }
    }
    let mut each = |name: &str, kind: Kind, help: &str, value: &dyn Fn(&VolumeStatus) -> Option<f64>| {
        page.family(name, kind, help);
        for volume in volumes {
            if let Some(value) = value(volume) {
                page.sample(name, &[("volume", volume.spec.name.as_str())], value);
            }
        }
    };
    let age = |volume: &VolumeStatus| Some(seconds(volume.unstored_age_ms));
    each("lamina_volume_unstored_age_seconds", Kind::Gauge, "Age of the oldest bytes that only the journal holds.", &age);
    let held = |volume: &VolumeStatus| Some(seconds(volume.held_back_ms));
    each("lamina_volume_held_back_seconds_total", Kind::Counter, "How long held writes that went on had waited.", &held);
    let mut clones: HashMap<VolumeId, u32> = HashMap::new();
    volumes.iter().filter_map(|volume| volume.parent).for_each(|parent| *clones.entry(parent.volume).or_default() += 1);
    let clones = |volume: &VolumeStatus| Some(f64::from(clones.get(&volume.id).copied().unwrap_or_default()));
    each("lamina_volume_clones", Kind::Gauge, "Open volumes that share its blocks.", &clones);
    let past = |volume: &VolumeStatus| volume.past_begins.map(|begins| seconds(begins.0));
    each(
        "lamina_volume_past_begins_timestamp_seconds",
        Kind::Gauge,
        "The earliest moment that it can be taken back to, where a past is kept.",
        &past,
    );
}

/// What limits of volumes hold back, by name.
pub(crate) fn limits(page: &mut Page, volumes: &[VolumeStatus], held: &BTreeMap<VolumeId, HeldCounters>) {
    let mut each = |name: &str, kind: Kind, help: &str, value: fn(&HeldCounters) -> f64| {
        page.family(name, kind, help);
        for volume in volumes {
            if let Some(held) = held.get(&volume.id) {
                page.sample(name, &[("volume", volume.spec.name.as_str())], value(held));
            }
        }
    };
    each("lamina_volume_limit_waiting_requests", Kind::Gauge, "Requests that its limits hold now.", |held| held.waiting as f64);
    each("lamina_volume_limit_held_total", Kind::Counter, "Requests that its limits made wait.", |held| held.held as f64);
    each("lamina_volume_limit_held_seconds_total", Kind::Counter, "How long those that went had waited.", |held| {
        held.held_us as f64 / 1e6
    });
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

/// Of all attached volumes, by name.
pub(crate) fn fronts(page: &mut Page, volumes: &[VolumeStatus], fronts: &BTreeMap<VolumeId, CounterSnapshot>) {
    let named: Vec<_> = volumes.iter().filter_map(|volume| Some((volume.spec.name.as_str(), fronts.get(&volume.id)?))).collect();
    for (name, kind, help, value) in OPERATION {
        page.family(name, kind, help);
        for (volume, front) in &named {
            for (op, counters) in operations(front) {
                page.sample(name, &[("volume", volume), ("op", op)], value(counters));
            }
        }
    }
    let took = "lamina_request_duration_seconds";
    page.family(took, Kind::Histogram, "From the ring and back to it, of operations that were used.");
    for (volume, front) in &named {
        for (op, counters) in operations(front).iter().filter(|(_, counters)| counters.requests > 0) {
            page.histogram(took, &[("volume", volume), ("op", op)], &counters.latency, &COARSE);
        }
    }
    for (name, kind, help, value) in FRONT {
        page.family(name, kind, help);
        for (volume, front) in &named {
            page.sample(name, &[("volume", volume)], value(front));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use lamina_contract::{BlockSize, Epoch, Generation, Latencies, ScoSize, VolumeId, VolumeName, VolumeSpec};
    use lamina_engine::{HeldCounters, VolumeState, VolumeStatus};
    use lamina_vhost_blk::{CounterSnapshot, OpCounters};

    use super::{fronts, limits, volumes};
    use crate::metrics_page::Page;

    fn volume(number: u32) -> VolumeStatus {
        let spec = VolumeSpec {
            name: VolumeName::new(&format!("{number:0>63}")).expect("a name"),
            size_bytes: 1 << 40,
            block_size: BlockSize::DEFAULT,
            sco_size: ScoSize::DEFAULT,
            read_only: false,
        };
        VolumeStatus {
            id: VolumeId(u64::from(number)),
            spec,
            state: VolumeState::Serving,
            epoch: Epoch(1),
            generation: Generation(1 << 40),
            unstored_bytes: 1 << 40,
            unstored_age_ms: 12_345,
            held_back: 0,
            held_back_ever: 1 << 40,
            held_back_ms: 1 << 40,
            snapshots: 100,
            snapshots_waiting: 1,
            parent: None,
            past_begins: None,
            memory_bytes: 1 << 30,
            reads: 1 << 40,
            read_bytes: 1 << 50,
            writes: 1 << 40,
            written_bytes: 1 << 50,
            flushes: 1 << 40,
            discards: 1 << 40,
            read_errors: 0,
            journal_hits: 1 << 40,
            cache_hits: 1 << 40,
            store_reads: 1 << 40,
            sco_bytes: 1 << 50,
            stored_objects: 1 << 40,
            data_blocks: 1 << 40,
            reference_blocks: 1 << 40,
            zero_entries: 1 << 40,
            lost_blocks: 0,
            checkpoints: 1 << 30,
            store_failures: 0,
        }
    }

    fn front() -> CounterSnapshot {
        let latencies = Latencies::new();
        (0..40).for_each(|exponent| latencies.count(Duration::from_nanos(1 << exponent)));
        let op = OpCounters { requests: 40, bytes: 1 << 50, errors: 0, latency: latencies.read() };
        CounterSnapshot {
            connected: true,
            connections: 1,
            refused: 0,
            protocol_errors: 0,
            broken_rings: 0,
            panics: 0,
            config_changes: 0,
            write_back: true,
            signals: 1 << 40,
            kicks: 1 << 40,
            read: op,
            write: op,
            flush: op,
            discard: op,
            write_zeroes: op,
            other: op,
        }
    }

    #[test]
    fn a_thousand_busy_volumes_with_the_longest_names_are_a_page_of_bounded_size() {
        let all: Vec<_> = (0..1000).map(volume).collect();
        let counters: BTreeMap<_, _> = all.iter().map(|volume| (volume.id, front())).collect();
        let mut page = Page::default();
        let began = std::time::Instant::now();
        volumes(&mut page, &all);
        fronts(&mut page, &all, &counters);
        let held = all.iter().map(|volume| (volume.id, HeldCounters { held: 1 << 40, held_us: 1 << 50, waiting: 7 })).collect();
        limits(&mut page, &all, &held);
        let took = began.elapsed();
        let text = page.text();
        let lines = text.lines().filter(|line| !line.starts_with('#')).count();
        println!("{lines} lines, {} bytes, {took:?}", text.len());
        // 29 of the volume, 5 × 3 and 5 × 13 of its operations, 9 of its front end, 3 of its limits.
        assert_eq!(lines, 1000 * (29 + 15 + 65 + 9 + 3));
        assert!(text.len() < 24 << 20, "{} bytes: more than a client takes", text.len());
    }
}
