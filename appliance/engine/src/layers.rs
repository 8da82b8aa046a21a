//! What a block address means now: the map's layers, newest first.
//!
//! ```text
//! recent    accepted, not stored      → bytes in the journal
//! stored    in a committed TLog       → location + fingerprint, not in map pages yet
//! frozen    being checkpointed        → the same, immutable
//! pages     checkpointed (`map.rs`)
//! ```
//! A commit puts entries into `stored` before it takes them out of `recent`, which hides them until then: a reader sees a block in one state
//! or the other, never in neither.

use std::collections::VecDeque;
use std::sync::Arc;

use lamina_contract::{BlockAddress, Fingerprint, Location, ScoNumber, Timestamp};
use lamina_formats::journal::{JournalEntry, JournalOp};
use lamina_formats::tlog::{TlogEntry, TlogOp};
use parking_lot::RwLock;

use crate::delta::Delta;
use crate::inflight::{EntryOp, Inflight, JournalBlock, ScoEntry};
use crate::journal::SegmentUse;
use crate::map::Mapped;

/// Entries that a commit moves under one lock: some 30 µs.
const COMMIT_STEP: usize = 64;

/// What an unstored entry made of a block: its location, or zeros since a SCO. In 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recent(u64);

/// No location has this ancestor: clones nest at most 254 deep.
const ZERO_MARK: u8 = u8::MAX;

impl Recent {
    fn data(location: Location) -> Self {
        Self(location.to_bits())
    }

    fn zero(sco: ScoNumber) -> Self {
        Self(Location { ancestor: ZERO_MARK, sco, index: 0 }.to_bits())
    }

    fn sco(self) -> ScoNumber {
        Location::from_bits(self.0).sco
    }

    fn location(self) -> Option<Location> {
        let location = Location::from_bits(self.0);
        (location.ancestor != ZERO_MARK).then_some(location)
    }
}

/// Where a block's bytes are to be had.
#[derive(Clone)]
pub(crate) enum Source {
    /// Nothing was written, or zeros were.
    Zero,
    /// In the journal.
    Journal(JournalBlock),
    /// In a stored container, perhaps in the dedupe cache.
    Stored { location: Location, fingerprint: Fingerprint },
    /// Accepted, and lost before it was stored.
    Lost,
    /// The layers say nothing: ask the map's pages.
    Pages,
}

impl From<Mapped> for Source {
    fn from(mapped: Mapped) -> Self {
        match mapped {
            Mapped::Zero => Self::Zero,
            Mapped::At { location: Location::LOST, .. } => Self::Lost,
            Mapped::At { location, fingerprint } => Self::Stored { location, fingerprint },
        }
    }
}

/// The layers above the pages, and the containers whose blocks `recent` names.
pub(crate) struct Layers {
    recent: Delta<Recent>,
    stored: Delta<Mapped>,
    frozen: Option<Arc<Delta<Mapped>>>,
    pub(crate) open: Inflight,
    /// Oldest first; numbers ascend.
    pub(crate) closed: VecDeque<Arc<Inflight>>,
}

impl Layers {
    /// Empty, with `next` as the first container to fill.
    pub(crate) fn new(next: ScoNumber) -> Self {
        Self { recent: Delta::new(), stored: Delta::new(), frozen: None, open: Inflight::new(next), closed: VecDeque::new() }
    }

    /// Publishes an accepted entry. Entries come in the order of the journal.
    pub(crate) fn publish(&mut self, entry: &JournalEntry, segment: &Arc<SegmentUse>, page: u32, time: Timestamp, now_ms: u64) {
        if entry.location.sco > self.open.number {
            self.close_open();
            // Recovery may see numbers that were given up with a lost tail; accepted ones always follow each other.
            self.open.number = entry.location.sco;
        }
        self.open.push(entry, segment, page, time, now_ms);
        match entry.op {
            JournalOp::Data { .. } => self.recent.set(entry.block, Recent::data(entry.location)),
            JournalOp::Zero { count } | JournalOp::Trim { count } => {
                self.recent.set_range(entry.block, u64::from(count), Recent::zero(entry.location.sco));
            }
        }
    }

    /// Closes the open container if it holds anything; the next number is open then.
    pub(crate) fn close_open(&mut self) {
        if !self.open.is_empty() {
            let next = Inflight::new(self.open.number.next());
            let mut closed = std::mem::replace(&mut self.open, next);
            closed.shrink();
            self.closed.push_back(Arc::new(closed));
        }
    }

    /// Where `block` is.
    pub(crate) fn resolve(&self, block: BlockAddress) -> Source {
        if let Some(recent) = self.recent.get(block) {
            return recent.location().map_or(Source::Zero, |location| self.in_journal(location));
        }
        let stored = self.stored.get(block).or_else(|| self.frozen.as_ref().and_then(|f| f.get(block)));
        stored.map_or(Source::Pages, Source::from)
    }

    fn in_journal(&self, location: Location) -> Source {
        let holder = if location.sco == self.open.number { Some(&self.open) } else { self.closed(location.sco).map(|c| &**c) };
        let block = holder.and_then(|h| h.block(location.index));
        assert!(block.is_some(), "{location:?} is recent but no container holds it");
        block.map_or(Source::Zero, Source::Journal)
    }

    fn closed(&self, number: ScoNumber) -> Option<&Arc<Inflight>> {
        let at = self.closed.binary_search_by_key(&number, |c| c.number).ok()?;
        self.closed.get(at)
    }

    /// Whether `block` still means `location`, unstored.
    pub(crate) fn is_current(&self, block: BlockAddress, location: Location) -> bool {
        self.recent.get(block) == Some(Recent::data(location))
    }

    /// The oldest container is stored and its generation decided: its entries, as the TLog has them, move to `stored`.
    ///
    /// A little at a time, for guests wait for the lock. What is in `recent` hides what is in `stored`: so all is put there first.
    pub(crate) fn commit(layers: &RwLock<Self>, container: &Inflight, tlog: &[TlogEntry]) -> Option<Arc<Inflight>> {
        for part in tlog.chunks(COMMIT_STEP) {
            layers.write().replay(part);
        }
        for part in container.entries.chunks(COMMIT_STEP) {
            layers.write().forget(part, container.number);
        }
        layers.write().drop_committed(container)
    }

    fn forget(&mut self, entries: &[ScoEntry], through: ScoNumber) {
        for entry in entries {
            let count = match entry.op() {
                EntryOp::Data { .. } => 1,
                EntryOp::Zero { count } | EntryOp::Trim { count } => u64::from(count),
            };
            self.recent.remove_if(entry.block(), count, |recent| recent.sco() <= through);
        }
    }

    fn drop_committed(&mut self, container: &Inflight) -> Option<Arc<Inflight>> {
        if self.closed.front().is_some_and(|front| front.number == container.number) { self.closed.pop_front() } else { None }
    }

    /// Applies committed TLog entries.
    pub(crate) fn replay(&mut self, tlog: &[TlogEntry]) {
        for entry in tlog {
            match entry.op {
                TlogOp::Data { location, fingerprint } | TlogOp::Reference { location, fingerprint } => {
                    self.stored.set(entry.block, Mapped::At { location, fingerprint });
                }
                TlogOp::Zero { count } | TlogOp::Trim { count } => {
                    self.stored.set_range(entry.block, u64::from(count), Mapped::Zero);
                }
            }
        }
    }

    /// Bytes that `stored` takes in memory: what a checkpoint would free.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.stored.memory_bytes()
    }

    /// Takes `stored` out for a checkpoint; it stays readable as `frozen`.
    pub(crate) fn freeze(&mut self) -> Arc<Delta<Mapped>> {
        let frozen = self.frozen.get_or_insert_with(|| Arc::new(std::mem::take(&mut self.stored)));
        frozen.clone()
    }

    /// The checkpoint is decided and the pages know what `frozen` knew.
    pub(crate) fn thaw(&mut self) {
        self.frozen = None;
    }

    /// Bytes of all layers and containers in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.recent.memory_bytes()
            + self.stored.memory_bytes()
            + self.frozen.as_ref().map_or(0, |f| f.memory_bytes())
            + self.open.memory_bytes()
            + self.closed.iter().map(|c| c.memory_bytes()).sum::<usize>()
    }
}
