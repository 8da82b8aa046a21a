//! States of the parts as the interface's types.

use std::path::Path;

use lamina_api::instant::{rfc3339, rfc3339_not_before};
use lamina_api::status::{CacheStatus, Degradation, Health, Space, Status, StoreStatus};
use lamina_api::target::{Target, TargetList, TargetState};
use lamina_api::volume::{Qos, Volume, VolumeCounters, VolumeSettings, VolumeState};
use lamina_contract::VolumeRecord;
use lamina_engine::VolumeStatus;
use lamina_vhost_blk::CounterSnapshot;

use crate::degraded::{Condition, condition};
use crate::relations::Relations;
use crate::served::{Served, labels_of};
use crate::watch::Sight;

/// A volume: what is registered, what the engine says if it is open, what its front end says if it is attached.
pub(crate) fn volume(
    record: &VolumeRecord,
    open: Option<&lamina_engine::Volume>,
    relations: &Relations,
    socket: Option<&Path>,
    front: Option<&CounterSnapshot>,
) -> Volume {
    let status = open.map(lamina_engine::Volume::status);
    let status = status.as_ref();
    let halted = status.is_none_or(|status| status.state == lamina_engine::VolumeState::Halted);
    let state = match (record.deleting, halted, socket) {
        (true, _, _) => VolumeState::Deleting,
        (_, true, _) => VolumeState::Halted,
        (_, _, Some(_)) => VolumeState::Attached,
        (_, _, None) => VolumeState::Detached,
    };
    Volume {
        name: record.spec.name.to_string(),
        id: record.id.to_string(),
        size_bytes: record.spec.size_bytes,
        block_size: u64::from(record.spec.block_size.get()),
        sco_size: u64::from(record.spec.sco_size.get()),
        read_only: record.spec.read_only || record.settings.template,
        created: rfc3339(record.created),
        state,
        socket: socket.map(|path| path.display().to_string()),
        connected: front.is_some_and(|front| front.connected),
        epoch: record.epoch.0,
        generation: record.generation.0,
        labels: labels_of(&record.settings.labels),
        template: record.settings.template,
        parent: record.parent.map(|parent| relations.parent(parent)),
        clones: relations.clones_of_volume(record.id),
        snapshots: open.map_or(0, |volume| volume.snapshot_count() as u32),
        settings: settings_of(&record.settings),
        cdp_start: open.and_then(lamina_engine::Volume::past_begins).map(rfc3339_not_before),
        counters: status.map(|status| counters(status, front)).unwrap_or_default(),
    }
}

/// What an operator set, as the interface says it: 0 is no limit.
pub(crate) fn settings_of(settings: &lamina_contract::VolumeSettings) -> VolumeSettings {
    VolumeSettings {
        qos: Qos {
            iops: settings.iops.unwrap_or(0),
            bandwidth_bytes: settings.bandwidth.unwrap_or(0),
            burst_seconds: settings.burst_ms / 1000,
        },
        cdp_seconds: settings.cdp_ms / 1000,
        cache_quota_bytes: settings.cache_quota.unwrap_or(0),
    }
}

fn counters(status: &VolumeStatus, front: Option<&CounterSnapshot>) -> VolumeCounters {
    let errors = front.map(|front| {
        [&front.read, &front.write, &front.flush, &front.discard, &front.write_zeroes].iter().map(|op| op.errors).sum()
    });
    VolumeCounters {
        reads: status.reads,
        read_bytes: status.read_bytes,
        writes: status.writes,
        written_bytes: status.written_bytes,
        flushes: status.flushes,
        errors: errors.unwrap_or(status.read_errors),
        deduplicated_bytes: deduplicated(status),
        stored_bytes: status.sco_bytes,
        pending_bytes: status.unstored_bytes,
    }
}

fn deduplicated(status: &VolumeStatus) -> u64 {
    status.reference_blocks * u64::from(status.spec.block_size.get())
}

/// Everything at a glance.
pub(crate) fn status(served: &Served, degraded: Vec<Degradation>) -> Status {
    let node = served.node.status();
    let volumes = served.statuses();
    let sum = |count: fn(&VolumeStatus) -> u64| volumes.iter().map(count).sum();
    let store = served.store.stats();
    let members = served.watch.members();
    let targets = targets(served).targets;
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        health: if degraded.is_empty() { Health::Healthy } else { Health::Degraded },
        degraded,
        uptime_seconds: served.uptime().as_secs(),
        recovery_ms: served.recovery().as_millis() as u64,
        volumes: (volumes.len() + served.node.unopened().len()) as u32,
        volumes_attached: served.fronts().len() as u32,
        written_bytes: sum(|volume| volume.written_bytes),
        deduplicated_bytes: sum(deduplicated),
        stored_bytes: sum(|volume| volume.sco_bytes),
        journal: Space { used_bytes: node.journal_used_bytes, capacity_bytes: node.journal_bytes },
        cache: CacheStatus {
            space: Space { used_bytes: node.cache.bytes, capacity_bytes: node.cache.capacity },
            hits: node.cache.hits,
            misses: node.cache.misses,
        },
        store: StoreStatus {
            policy: served.settings.policy.to_string(),
            write_min: served.settings.write_min as u32,
            targets: members.len() as u32,
            targets_up: targets.iter().filter(|target| target.state == TargetState::Up).count() as u32,
            degraded_reads: store.degraded_reads,
            degraded_writes: store.degraded_writes,
            repaired_fragments: store.repaired_fragments,
            written_bytes: store.fragment_bytes_written,
        },
    }
}

/// The members of the store.
pub(crate) fn targets(served: &Served) -> TargetList {
    let health = served.store.health();
    let targets = served.watch.members().iter().map(|member| {
        let health = health.iter().find(|target| target.id.0 == member.id);
        let space = match member.sight() {
            Sight::There(space) => (space.total, space.free),
            Sight::Gone(_) | Sight::Silent | Sight::Missing => (0, 0),
        };
        Target {
            index: member.slot,
            id: format!("{:032x}", member.id),
            path: member.path().map(|path| path.display().to_string()),
            state: match condition(member, health) {
                Condition::Up => TargetState::Up,
                Condition::Full => TargetState::Full,
                Condition::Suspect(_) => TargetState::Suspect,
                Condition::Missing(_) => TargetState::Missing,
            },
            capacity_bytes: space.0,
            free_bytes: space.1,
            read_bytes: health.map_or(0, |target| target.bytes_read),
            written_bytes: health.map_or(0, |target| target.bytes_written),
            errors: health.map_or(0, |target| target.errors),
            last_error: health.and_then(|target| target.last_error.as_deref().map(str::to_owned)),
        }
    });
    TargetList { policy: served.settings.policy.to_string(), targets: targets.collect() }
}
