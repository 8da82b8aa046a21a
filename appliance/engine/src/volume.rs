//! A virtual disk: the parts that the write path, the read path and the store side share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use lamina_contract::{
    BlockDevice, BlockSize, DeviceGeometry, Epoch, IoError, Op, Ownership, Request, SectorCount, VolumeId, VolumeSpec,
};
use parking_lot::{Mutex, RwLock};

use crate::behind::Behind;
use crate::layers::Layers;
use crate::map::CheckpointedMap;
use crate::namespace::Namespace;
use crate::node::Core;
use crate::ranges::Ranges;

/// Whether a volume accepts changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    /// Yes.
    Serving,
    /// No: another writer owns it, or it is being deleted. Reads are refused too.
    Halted,
}

const SERVING: u8 = 0;
const HALTED: u8 = 1;

/// What happened to a volume since the daemon started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) reads: AtomicU64,
    pub(crate) read_bytes: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) discards: AtomicU64,
    pub(crate) read_errors: AtomicU64,
    pub(crate) journal_hits: AtomicU64,
    pub(crate) cache_hits: AtomicU64,
    pub(crate) store_reads: AtomicU64,
    pub(crate) sco_bytes: AtomicU64,
    pub(crate) stored_objects: AtomicU64,
    pub(crate) data_blocks: AtomicU64,
    pub(crate) reference_blocks: AtomicU64,
    pub(crate) lost_blocks: AtomicU64,
    pub(crate) zero_blocks: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    pub(crate) store_failures: AtomicU64,
}

impl Counters {
    pub(crate) fn count(&self, request: &Request) {
        match request.op {
            Op::Write { .. } => {
                self.writes.fetch_add(1, Ordering::Relaxed);
                self.written_bytes.fetch_add(request.sectors.bytes(), Ordering::Relaxed);
            }
            Op::Discard | Op::WriteZeroes { .. } => {
                self.discards.fetch_add(1, Ordering::Relaxed);
            }
            Op::Flush => {
                self.flushes.fetch_add(1, Ordering::Relaxed);
            }
            Op::Read => {
                self.reads.fetch_add(1, Ordering::Relaxed);
                self.read_bytes.fetch_add(request.sectors.bytes(), Ordering::Relaxed);
            }
        }
    }
}

/// One virtual disk.
pub struct Volume {
    id: VolumeId,
    spec: VolumeSpec,
    ownership: Ownership,
    pub(crate) core: Arc<Core>,
    pub(crate) layers: RwLock<Layers>,
    pub(crate) pages: CheckpointedMap,
    pub(crate) ranges: Mutex<Ranges>,
    /// Writes that the throttle or a full journal holds back, in their order.
    pub(crate) parked: Mutex<VecDeque<Request>>,
    pub(crate) behind: Behind,
    pub(crate) counters: Counters,
    /// A flush was answered since the last entry.
    pub(crate) synced: Arc<AtomicBool>,
    state: AtomicU8,
    this: Weak<Self>,
}

/// What a volume is opened with.
pub(crate) struct Opened {
    pub(crate) id: VolumeId,
    pub(crate) spec: VolumeSpec,
    pub(crate) ownership: Ownership,
    pub(crate) layers: Layers,
    pub(crate) pages: CheckpointedMap,
    pub(crate) behind: Behind,
}

impl Volume {
    pub(crate) fn new(core: Arc<Core>, opened: Opened) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            id: opened.id,
            spec: opened.spec,
            ownership: opened.ownership,
            core,
            layers: RwLock::new(opened.layers),
            pages: opened.pages,
            ranges: Mutex::default(),
            parked: Mutex::default(),
            behind: opened.behind,
            counters: Counters::default(),
            synced: Arc::default(),
            state: AtomicU8::new(SERVING),
            this: this.clone(),
        })
    }

    /// One that brings entries of the journal with it: the throttle must know of them.
    pub(crate) fn recovered(core: Arc<Core>, opened: Opened) -> Arc<Self> {
        let volume = Self::new(core, opened);
        volume.core.throttle.accepted(volume.unstored_bytes());
        volume
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// How it was made.
    #[must_use]
    pub fn spec(&self) -> &VolumeSpec {
        &self.spec
    }

    /// The term in which this process owns it.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.ownership.epoch
    }

    /// Whether it accepts changes.
    #[must_use]
    pub fn state(&self) -> VolumeState {
        if self.state.load(Ordering::Acquire) == SERVING { VolumeState::Serving } else { VolumeState::Halted }
    }

    pub(crate) fn ownership(&self) -> Ownership {
        self.ownership
    }

    pub(crate) fn namespace(&self) -> Namespace {
        Namespace(self.id)
    }

    pub(crate) fn block_size(&self) -> BlockSize {
        self.spec.block_size
    }

    /// Blocks that a container holds.
    pub(crate) fn sco_blocks(&self) -> u16 {
        self.spec.sco_size.blocks(self.spec.block_size)
    }

    pub(crate) fn is_halted(&self) -> bool {
        self.state.load(Ordering::Acquire) != SERVING
    }

    /// Refuses everything from now on, and answers what was held back.
    pub(crate) fn halt(&self) {
        self.state.store(HALTED, Ordering::Release);
        for request in self.parked.lock().drain(..) {
            request.transfer.answer(Err(IoError::Halted));
        }
    }

    pub(crate) fn handle(&self) -> Weak<Self> {
        self.this.clone()
    }

    /// Holds a write back until the throttle lets it go on.
    pub(crate) fn park(&self, request: Request) {
        self.parked.lock().push_back(request);
        self.core.work.notify_one();
        self.core.parked.notify_one();
    }

    /// Lets held-back writes go on, as far as the throttle admits; tells whether any is left.
    pub(crate) fn unpark(&self) -> bool {
        let mut batch = Vec::new();
        {
            let mut parked = self.parked.lock();
            while let Some(front) = parked.front() {
                if !self.core.throttle.admit(weight(front)) {
                    break;
                }
                batch.extend(parked.pop_front());
            }
        }
        if let Some(this) = self.this.upgrade() {
            this.change(&mut batch);
        }
        !self.parked.lock().is_empty()
    }

    /// Sorts changes into whole-block ones, which go in one batch, and others.
    pub(crate) fn change(self: &Arc<Self>, requests: &mut Vec<Request>) {
        let sectors = self.block_size().sectors();
        let mut whole = Vec::with_capacity(requests.len());
        for request in requests.drain(..) {
            if request.start.0.is_multiple_of(sectors) && request.sectors.0.is_multiple_of(sectors) {
                whole.push(request);
            } else {
                self.change_partially(request);
            }
        }
        if !whole.is_empty() {
            self.write_batch(&mut whole);
        }
    }

    fn refusal(&self, request: &Request) -> Option<IoError> {
        let capacity = self.spec.size_bytes / lamina_contract::SECTOR_BYTES;
        let end = request.start.0.checked_add(request.sectors.0);
        let moves_data = matches!(request.op, Op::Read | Op::Write { .. });
        if self.is_halted() {
            Some(IoError::Halted)
        } else if request.op == Op::Flush {
            None
        } else if end.is_none_or(|end| end > capacity) {
            Some(IoError::OutOfRange)
        } else if moves_data && request.transfer.len() as u64 != request.sectors.bytes() {
            Some(IoError::Unsupported)
        } else if self.spec.read_only && request.op != Op::Read {
            Some(IoError::ReadOnly)
        } else {
            None
        }
    }

    fn flush(&self, request: Request) {
        self.counters.count(&request);
        let through = self.core.journal.accepted();
        self.core.syncer.when_durable(through, request.transfer, Some(self.synced.clone()));
    }
}

/// What a change takes out of the throttle's budget: its data, or a block's worth where there is none.
fn weight(request: &Request) -> u64 {
    if matches!(request.op, Op::Write { .. }) { request.sectors.bytes() } else { 4096 }
}

impl BlockDevice for Volume {
    fn geometry(&self) -> DeviceGeometry {
        DeviceGeometry {
            sectors: SectorCount(self.spec.size_bytes / lamina_contract::SECTOR_BYTES),
            physical_block: self.spec.block_size.get(),
            optimal_io: 64 << 10,
            read_only: self.spec.read_only,
            serial: self.id.to_string(),
        }
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        let Some(this) = self.this.upgrade() else { return batch.clear() };
        let (mut reads, mut changes) = (Vec::new(), Vec::new());
        for request in batch.drain(..) {
            if let Some(error) = self.refusal(&request) {
                request.transfer.answer(Err(error));
                continue;
            }
            match request.op {
                Op::Flush => self.flush(request),
                _ if request.sectors.0 == 0 => request.transfer.answer(Ok(())),
                Op::Read => reads.push(request),
                Op::Write { .. } | Op::Discard | Op::WriteZeroes { .. } => {
                    // Behind those that wait already, else one guest's queue would overtake itself for ever.
                    let waits = self.core.throttle.slows() && !self.parked.lock().is_empty();
                    if waits || !self.core.throttle.admit(weight(&request)) {
                        self.park(request);
                    } else {
                        changes.push(request);
                    }
                }
            }
        }
        if !reads.is_empty() {
            this.read(&mut reads);
        }
        if !changes.is_empty() {
            self.core.note_activity();
            this.change(&mut changes);
        }
    }
}
