//! A virtual disk: the parts that the write path, the read path and the store side share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use lamina_contract::{
    BlockDevice, BlockSize, Cut, DeviceGeometry, Epoch, IoError, Op, Ownership, Parent, Request, SECTOR_BYTES, ScoNumber,
    SectorCount, SnapshotId, VolumeId, VolumeSettings, VolumeSpec,
};
use parking_lot::{Mutex, RwLock};

use crate::ancestry::Ancestry;
use crate::behind::Behind;
use crate::error::EngineError;
use crate::layers::Layers;
use crate::map::CheckpointedMap;
use crate::namespace::Namespace;
use crate::node::Core;
use crate::ranges::Ranges;
use crate::snapshots::Snapshots;
use crate::view::View;

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

/// What becomes of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Pause {
    /// They are accepted.
    No = 0,
    /// They wait.
    Wait = 1,
    /// They are refused: they were meant for a state that is given up.
    Refuse = 2,
}

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
    pub(crate) held_back: AtomicU64,
    pub(crate) held_back_ms: AtomicU64,
}

/// A write that is held back, and since when.
pub(crate) struct Parked {
    request: Request,
    since_ms: u64,
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
    size_bytes: AtomicU64,
    /// Sizes that the next manifests have.
    sizes: Mutex<VecDeque<NextSize>>,
    settings: RwLock<Arc<VolumeSettings>>,
    /// Its settings say that it is one; looked at for each request.
    template: AtomicBool,
    parent: Mutex<Option<Parent>>,
    ownership: Ownership,
    pub(crate) ancestry: Ancestry,
    pub(crate) snapshots: Snapshots,
    pub(crate) core: Arc<Core>,
    pub(crate) layers: RwLock<Layers>,
    pub(crate) pages: CheckpointedMap,
    pub(crate) ranges: Mutex<Ranges>,
    /// Writes that the throttle or a full journal holds back, in their order.
    pub(crate) parked: Mutex<VecDeque<Parked>>,
    pub(crate) behind: Behind,
    pub(crate) counters: Counters,
    /// A flush was answered since the last entry.
    pub(crate) synced: Arc<AtomicBool>,
    /// What becomes of changes while it is decided what the volume shows, or how large it is.
    paused: AtomicU8,
    state: AtomicU8,
    this: Weak<Self>,
}

/// A size that a manifest has once it holds what was accepted and cut before the size was.
struct NextSize {
    through: ScoNumber,
    cut: Option<SnapshotId>,
    bytes: u64,
}

impl NextSize {
    /// As the registry has it.
    fn at_start(opened: &Opened) -> Self {
        let bytes = opened.spec.size_bytes;
        // A cut that found another size was before this one.
        let cut = opened.snapshots.waiting().into_iter().rfind(|cut| cut.note.size_bytes != bytes).map(|cut| cut.note.id);
        // A journal that was lost may end earlier.
        let through = opened.size_after.unwrap_or(ScoNumber(0)).min(opened.layers.last_container());
        Self { through, cut, bytes }
    }

    /// Behind everything in `layers`.
    fn behind(layers: &Layers, bytes: u64) -> Self {
        Self { through: layers.last_container(), cut: layers.last_cut(), bytes }
    }
}

/// What a volume is opened with.
pub(crate) struct Opened {
    pub(crate) id: VolumeId,
    pub(crate) spec: VolumeSpec,
    /// See [`lamina_contract::VolumeRecord::size_after`].
    pub(crate) size_after: Option<ScoNumber>,
    pub(crate) settings: VolumeSettings,
    pub(crate) parent: Option<Parent>,
    pub(crate) ownership: Ownership,
    pub(crate) ancestry: Ancestry,
    pub(crate) snapshots: Snapshots,
    pub(crate) layers: Layers,
    pub(crate) pages: CheckpointedMap,
    pub(crate) behind: Behind,
    /// Cuts that were promised and that the journal has not come to yet, oldest first.
    pub(crate) cuts: VecDeque<(Arc<Cut>, Arc<View>)>,
    /// Stored snapshots that those go back to.
    pub(crate) targets: Vec<Arc<View>>,
}

impl Volume {
    pub(crate) fn new(core: Arc<Core>, opened: Opened) -> Arc<Self> {
        opened.settings.cache_quota.into_iter().for_each(|bytes| core.cache.set_quota(opened.id, Some(bytes)));
        let size = NextSize::at_start(&opened);
        let volume = Arc::new_cyclic(|this| Self {
            id: opened.id,
            size_bytes: AtomicU64::new(opened.spec.size_bytes),
            sizes: Mutex::new(VecDeque::from([size])),
            template: AtomicBool::new(opened.settings.template),
            settings: RwLock::new(Arc::new(opened.settings)),
            parent: Mutex::new(opened.parent),
            spec: opened.spec,
            ownership: opened.ownership,
            ancestry: opened.ancestry,
            snapshots: opened.snapshots,
            paused: AtomicU8::new(Pause::No as u8),
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
        });
        volume.snapshots.belong_to(&volume.this);
        volume
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

    /// How it was made, with the size that it has now.
    #[must_use]
    pub fn spec(&self) -> VolumeSpec {
        VolumeSpec { size_bytes: self.size_bytes(), ..self.spec.clone() }
    }

    /// Its capacity in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// Has this size from now on; a manifest has it once it holds all that was accepted and cut before. Under the journal's lock.
    pub(crate) fn set_size(&self, bytes: u64) {
        self.size_bytes.store(bytes, Ordering::Release);
        let next = NextSize::behind(&self.layers.read(), bytes);
        self.sizes.lock().push_back(next);
    }

    /// The size that belongs to entries up to container `last`; `before` is what a manifest had so far.
    pub(crate) fn size_at(&self, last: ScoNumber, before: u64) -> u64 {
        let mut sizes = self.sizes.lock();
        let mut size = before;
        let holds = |next: &NextSize| next.through <= last && next.cut.is_none_or(|cut| !self.snapshots.is_waiting(cut));
        while sizes.front().is_some_and(holds) {
            size = sizes.pop_front().map_or(size, |next| next.bytes);
        }
        size
    }

    /// What operators set.
    #[must_use]
    pub fn settings(&self) -> Arc<VolumeSettings> {
        self.settings.read().clone()
    }

    pub(crate) fn set_settings(&self, settings: VolumeSettings) {
        self.core.cache.set_quota(self.id, settings.cache_quota);
        self.template.store(settings.template, Ordering::Release);
        *self.settings.write() = Arc::new(settings);
    }

    /// What it is a clone of, until it is flattened.
    #[must_use]
    pub fn parent(&self) -> Option<Parent> {
        *self.parent.lock()
    }

    pub(crate) fn forget_parent(&self) {
        *self.parent.lock() = None;
    }

    /// Whether guests may change it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.spec.read_only || self.template.load(Ordering::Acquire)
    }

    /// Refuses to be deleted with snapshots that are to stay. By the holder of the lock on changes.
    pub(crate) fn refuse_deletion(&self, with_snapshots: bool) -> Result<(), EngineError> {
        let listed = self.snapshots.list();
        if let Some(pinned) = listed.iter().find(|snapshot| snapshot.note.pinned) {
            return Err(EngineError::Pinned { name: pinned.note.name.clone() });
        }
        if self.snapshots.are_coming() {
            return Err(EngineError::Busy { volume: self.id });
        }
        if !listed.is_empty() && !with_snapshots {
            return Err(EngineError::HasSnapshots { volume: self.id, snapshots: listed.len() });
        }
        Ok(())
    }

    /// Why a change of ours was not accepted.
    pub(crate) fn refused(&self) -> EngineError {
        if self.is_halted() { EngineError::Halted { volume: self.id } } else { EngineError::Busy { volume: self.id } }
    }

    /// Holds changes back, or lets them go on. Takes effect under the append lock: what was accepted before is in the journal.
    pub(crate) fn pause(&self, pause: Pause) {
        let _append = self.core.journal.lock();
        self.paused.store(pause as u8, Ordering::Release);
        drop(_append);
        self.core.parked.notify_one();
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire) != Pause::No as u8
    }

    /// Whether changes are refused for now.
    pub(crate) fn refuses_changes(&self) -> bool {
        self.paused.load(Ordering::Acquire) == Pause::Refuse as u8
    }

    /// Answers what waits with an error; false while a change is under way.
    pub(crate) fn refuse_waiting(&self) -> bool {
        let parked: Vec<Request> = self.parked.lock().drain(..).map(|parked| parked.request).collect();
        let (held, waiting) = {
            let _append = self.core.journal.lock();
            self.ranges.lock().refuse()
        };
        for request in parked.into_iter().chain(waiting) {
            request.transfer.answer(Err(IoError::Io));
        }
        !held
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
        for parked in self.parked.lock().drain(..) {
            parked.request.transfer.answer(Err(IoError::Halted));
        }
    }

    /// The last container that is closed.
    pub(crate) fn last_closed(&self) -> ScoNumber {
        let layers = self.layers.read();
        layers.closed.back().map_or_else(|| self.behind.stored_sco(), |container| container.number)
    }

    pub(crate) fn handle(&self) -> Weak<Self> {
        self.this.clone()
    }

    /// Holds a write back until the throttle lets it go on.
    pub(crate) fn park(&self, request: Request) {
        self.counters.held_back.fetch_add(1, Ordering::Relaxed);
        self.parked.lock().push_back(Parked { request, since_ms: self.core.clock.monotonic_ms() });
        self.core.work.notify_one();
        self.core.parked.notify_one();
    }

    /// Lets held-back writes go on, as far as the throttle admits; tells whether any is left.
    pub(crate) fn unpark(&self) -> bool {
        let mut batch = Vec::new();
        {
            let mut parked = self.parked.lock();
            if self.is_paused() {
                return !parked.is_empty();
            }
            while let Some(front) = parked.front() {
                if !self.core.throttle.admit(weight(&front.request)) {
                    break;
                }
                let Some(Parked { request, since_ms }) = parked.pop_front() else { break };
                let held_ms = self.core.clock.monotonic_ms().saturating_sub(since_ms);
                self.counters.held_back_ms.fetch_add(held_ms, Ordering::Relaxed);
                // It may have become smaller, or a template, meanwhile.
                match self.refusal(&request) {
                    Some(error) => request.transfer.answer(Err(error)),
                    None => batch.push(request),
                }
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
        let capacity = self.size_bytes() / SECTOR_BYTES;
        let end = request.start.0.checked_add(request.sectors.0);
        let moves_data = matches!(request.op, Op::Read | Op::Write { .. });
        if self.is_halted() {
            Some(IoError::Halted)
        } else if request.op == Op::Flush {
            None
        } else if request.op != Op::Read && self.refuses_changes() {
            Some(IoError::Io)
        } else if end.is_none_or(|end| end > capacity) {
            Some(IoError::OutOfRange)
        } else if moves_data && request.transfer.len() as u64 != request.sectors.bytes() {
            Some(IoError::Unsupported)
        } else if request.op != Op::Read && self.is_read_only() {
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
            sectors: SectorCount(self.size_bytes() / SECTOR_BYTES),
            physical_block: self.spec.block_size.get(),
            optimal_io: 64 << 10,
            read_only: self.is_read_only(),
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
                    let waits = (self.core.throttle.slows() || self.is_paused()) && !self.parked.lock().is_empty();
                    if waits || self.is_paused() || !self.core.throttle.admit(weight(&request)) {
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
