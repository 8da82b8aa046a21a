//! What a node and its volumes tell about themselves.

use std::sync::atomic::{AtomicU64, Ordering};

use lamina_contract::{Epoch, Generation, LatencyHistogram, Parent, Timestamp, VolumeId, VolumeSpec};

use crate::cache::CacheStats;
use crate::node::Node;
use crate::volume::{Volume, VolumeState};

/// A volume's condition; counters run from the daemon's start.
#[derive(Debug, Clone)]
pub struct VolumeStatus {
    /// Identity.
    pub id: VolumeId,
    /// How it was made.
    pub spec: VolumeSpec,
    /// Whether it serves.
    pub state: VolumeState,
    /// The term in which this node owns it.
    pub epoch: Epoch,
    /// Its current manifest.
    pub generation: Generation,
    /// Bytes in the journal that are not in the store: what losing the SSD now would cost.
    pub unstored_bytes: u64,
    /// Age in milliseconds of the oldest of them; 0 when there are none.
    pub unstored_age_ms: u64,
    /// Requests that the throttle holds back now.
    pub held_back: u64,
    /// Requests that it has held back, ever.
    pub held_back_ever: u64,
    /// How long in milliseconds those that went on had waited, together.
    pub held_back_ms: u64,
    /// Its snapshots.
    pub snapshots: u64,
    /// Those of them that are not in the store yet.
    pub snapshots_waiting: u64,
    /// What it is a clone of, until it is flattened.
    pub parent: Option<Parent>,
    /// The earliest moment that it can be taken back to; None when it keeps no past.
    pub past_begins: Option<Timestamp>,
    /// Memory of its map layers and containers, in bytes.
    pub memory_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Bytes read by the guest.
    pub read_bytes: u64,
    /// Write requests acknowledged.
    pub writes: u64,
    /// Bytes written by the guest.
    pub written_bytes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Discard and write-zeroes requests.
    pub discards: u64,
    /// Reads answered with an error.
    pub read_errors: u64,
    /// Blocks answered from the journal.
    pub journal_hits: u64,
    /// Blocks answered from the dedupe cache.
    pub cache_hits: u64,
    /// Fetches from the store.
    pub store_reads: u64,
    /// Bytes of containers sent to the store.
    pub sco_bytes: u64,
    /// Objects stored.
    pub stored_objects: u64,
    /// Blocks stored as data.
    pub data_blocks: u64,
    /// Blocks stored as references to equal ones.
    pub reference_blocks: u64,
    /// Zero and trim entries stored.
    pub zero_entries: u64,
    /// Blocks that the journal lost before they were stored, since the start.
    pub lost_blocks: u64,
    /// Map checkpoints.
    pub checkpoints: u64,
    /// Objects that the store refused, counting each try.
    pub store_failures: u64,
}

/// A node's condition.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// Bytes of journal segments in use.
    pub journal_used_bytes: u64,
    /// Bytes of all segments.
    pub journal_bytes: u64,
    /// Bytes written to the journal, headers included.
    pub journal_written_bytes: u64,
    /// fdatasync calls on the journal.
    pub journal_syncs: u64,
    /// How long those took that flushes and the syncing thread asked for.
    pub journal_sync_took: LatencyHistogram,
    /// Bytes in the journal that the store does not have.
    pub unstored_bytes: u64,
    /// The journal's SSD lost a write: nothing is accepted any more.
    pub journal_failed: bool,
    /// Recovery found durable batches that do not verify.
    pub journal_damaged: bool,
    /// Share of the journal that waits for the store, 0 to 1.
    pub journal_fill: f64,
    /// Guests are being slowed.
    pub throttled: bool,
    /// Requests that had to wait, ever.
    pub held_back: u64,
    /// The store refused the last object.
    pub store_down: bool,
    /// The dedupe cache is off because its SSD failed.
    pub cache_failed: bool,
    /// The dedupe cache.
    pub cache: CacheStats,
    /// Memory of layers, pages and cache index, in bytes.
    pub memory_bytes: u64,
}

impl Volume {
    /// Its condition.
    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        let (memory_bytes, oldest) = {
            let layers = self.layers.read();
            let open = (!layers.open.is_empty()).then_some(layers.open.opened_ms);
            (layers.memory_bytes() as u64, layers.closed.front().map(|c| c.opened_ms).or(open))
        };
        let now = self.core.clock.monotonic_ms();
        VolumeStatus {
            id: self.id(),
            spec: self.spec().clone(),
            state: self.state(),
            epoch: self.epoch(),
            generation: self.behind.generation(),
            unstored_bytes: self.unstored_bytes(),
            unstored_age_ms: oldest.map_or(0, |then| now.saturating_sub(then)),
            held_back: self.parked.lock().len() as u64,
            held_back_ever: get(&c.held_back),
            held_back_ms: get(&c.held_back_ms),
            snapshots: self.snapshot_count() as u64,
            snapshots_waiting: self.snapshots.waiting_count() as u64,
            parent: self.parent(),
            past_begins: self.past_begins(),
            memory_bytes,
            reads: get(&c.reads),
            read_bytes: get(&c.read_bytes),
            writes: get(&c.writes),
            written_bytes: get(&c.written_bytes),
            flushes: get(&c.flushes),
            discards: get(&c.discards),
            read_errors: get(&c.read_errors),
            journal_hits: get(&c.journal_hits),
            cache_hits: get(&c.cache_hits),
            store_reads: get(&c.store_reads),
            sco_bytes: get(&c.sco_bytes),
            stored_objects: get(&c.stored_objects),
            data_blocks: get(&c.data_blocks),
            reference_blocks: get(&c.reference_blocks),
            zero_entries: get(&c.zero_blocks),
            lost_blocks: get(&c.lost_blocks),
            checkpoints: get(&c.checkpoints),
            store_failures: get(&c.store_failures),
        }
    }
}

impl Node {
    /// Its condition.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let core = &self.core;
        let (used, all) = core.journal.usage();
        let layers: u64 = self.volumes().iter().map(|v| v.layers.read().memory_bytes() as u64).sum();
        NodeStatus {
            journal_used_bytes: used,
            journal_bytes: all,
            journal_written_bytes: core.journal.written_bytes(),
            journal_syncs: core.journal.syncs(),
            journal_sync_took: core.syncer.took(),
            unstored_bytes: core.throttle.unstored(),
            journal_failed: core.journal.is_failed(),
            journal_damaged: core.journal.is_damaged(),
            journal_fill: core.throttle.fill(),
            throttled: core.throttle.slows(),
            held_back: core.throttle.held_back(),
            store_down: core.is_store_down(),
            cache_failed: core.cache.is_failed(),
            cache: core.cache.stats(),
            memory_bytes: layers + (core.cache.memory_bytes() + core.pages.memory_bytes()) as u64,
        }
    }
}
