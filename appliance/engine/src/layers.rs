//! What a block address means now: the map's layers, newest first.
//!
//! ```text
//! level, one per cut that is not in map pages yet, and the one that guests change:
//!   recent  accepted, not stored      → bytes in the journal
//!   stored  in a committed TLog       → location + fingerprint, not in map pages yet
//! frozen    being checkpointed        → the same, immutable; of the oldest level
//! pages     checkpointed (`map.rs`)
//! ```
//! A snapshot ends a level: what is accepted later goes to a new one on top, which shows the one below, or, after a rollback, another
//! snapshot. Containers are committed in order, so only the oldest level has any that may be; once all of it is in pages it goes.
//!
//! A commit puts entries into `stored` before it takes them out of `recent`, which hides them until then: a reader sees a block in one state
//! or the other, never in neither.

use std::collections::VecDeque;
use std::sync::Arc;

use lamina_contract::{BlockAddress, Cut, Fingerprint, Location, ScoNumber, SnapshotId, Timestamp};
use lamina_formats::journal::{JournalEntry, JournalOp};
use lamina_formats::tlog::{TlogEntry, TlogOp};
use parking_lot::RwLock;

use crate::delta::{Delta, LeafNumber};
use crate::inflight::{EntryOp, Inflight, JournalBlock, ScoEntry};
use crate::journal::SegmentUse;
use crate::map::{Mapped, seen_from};
use crate::view::View;

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
    /// The layers say nothing: ask a snapshot of a volume so many generations up.
    View { view: Arc<View>, generations: u8 },
}

impl Source {
    /// The same as a volume sees it that is so many `generations` of clones below.
    pub(crate) fn seen_from(self, below: u8) -> Self {
        match self {
            Self::Stored { location, fingerprint } => match seen_from(location, below) {
                Location::LOST => Self::Lost,
                location => Self::Stored { location, fingerprint },
            },
            Self::View { view, generations } => Self::View { view, generations: generations.saturating_add(below) },
            same @ (Self::Zero | Self::Journal(_) | Self::Lost | Self::Pages) => same,
        }
    }
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

/// Applies one TLog entry to a map's changes.
pub(crate) fn replayed(changes: &mut Delta<Mapped>, entry: &TlogEntry) {
    match entry.op {
        TlogOp::Data { location, fingerprint } | TlogOp::Reference { location, fingerprint } => {
            changes.set(entry.block, Mapped::At { location, fingerprint });
        }
        TlogOp::Zero { count } | TlogOp::Trim { count } => changes.set_range(entry.block, u64::from(count), Mapped::Zero),
    }
}

/// What shows where a level says nothing.
#[derive(Clone)]
pub(crate) enum Base {
    /// The level below; under the oldest one the map's pages.
    Below,
    /// A snapshot of a volume so many generations up: where a clone or a rollback went on from, until the pages know it.
    View { view: Arc<View>, generations: u8 },
}

/// What was accepted between two cuts.
struct Level {
    recent: Delta<Recent>,
    stored: Delta<Mapped>,
    base: Base,
    /// Where it ends, and the snapshot that shows it; the newest level has no end yet.
    end: Option<(Arc<Cut>, Arc<View>)>,
}

impl Level {
    fn over(base: Base) -> Self {
        Self { recent: Delta::new(), stored: Delta::new(), base, end: None }
    }
}

/// The layers above the pages, and the containers whose blocks `recent` names.
pub(crate) struct Layers {
    /// Levels that ended with a cut, oldest first.
    ended: VecDeque<Level>,
    head: Level,
    frozen: Option<Arc<Delta<Mapped>>>,
    pub(crate) open: Inflight,
    /// Oldest first; numbers ascend.
    pub(crate) closed: VecDeque<Arc<Inflight>>,
}

impl Layers {
    /// Empty, with `next` as the first container to fill.
    pub(crate) fn new(next: ScoNumber) -> Self {
        Self::over(Base::Below, next)
    }

    /// Empty over `base`.
    pub(crate) fn over(base: Base, next: ScoNumber) -> Self {
        Self { ended: VecDeque::new(), head: Level::over(base), frozen: None, open: Inflight::new(next), closed: VecDeque::new() }
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
            JournalOp::Data { .. } => self.head.recent.set(entry.block, Recent::data(entry.location)),
            JournalOp::Zero { count } | JournalOp::Trim { count } => {
                self.head.recent.set_range(entry.block, u64::from(count), Recent::zero(entry.location.sco));
            }
        }
    }

    /// The last container that a cut made now would have before it: everything accepted so far.
    pub(crate) fn close_for_cut(&mut self) -> ScoNumber {
        self.close_open();
        ScoNumber(self.open.number.0 - 1)
    }

    /// The last container that has an entry.
    pub(crate) fn last_container(&self) -> ScoNumber {
        if self.open.is_empty() { ScoNumber(self.open.number.0 - 1) } else { self.open.number }
    }

    /// Ends the head's level with `cut`; what comes next goes on from there, or from `rollback`. The open container is empty.
    pub(crate) fn cut(&mut self, cut: Arc<Cut>, view: Arc<View>, rollback: Option<Arc<View>>) {
        debug_assert!(self.open.is_empty(), "a cut within a container");
        let base = rollback.map_or(Base::Below, |view| Base::View { view, generations: 0 });
        let mut level = std::mem::replace(&mut self.head, Level::over(base));
        level.end = Some((cut, view));
        self.ended.push_back(level);
    }

    /// The oldest cut that waits.
    pub(crate) fn first_cut(&self) -> Option<(Arc<Cut>, Arc<View>)> {
        self.ended.front()?.end.clone()
    }

    /// The youngest cut that waits.
    pub(crate) fn last_cut(&self) -> Option<SnapshotId> {
        self.ended.back()?.end.as_ref().map(|(cut, _)| cut.note.id)
    }

    /// How many cuts wait.
    pub(crate) fn cuts(&self) -> usize {
        self.ended.len()
    }

    /// Whether every container before the oldest cut is committed.
    pub(crate) fn is_cut_due(&self) -> bool {
        let Some((cut, _)) = self.first_cut() else { return false };
        self.closed.front().is_none_or(|container| container.number > cut.after)
    }

    /// Whether a container may be committed: it stands before the oldest cut, or nothing is cut.
    pub(crate) fn may_commit(&self, number: ScoNumber) -> bool {
        self.first_cut().is_none_or(|(cut, _)| number <= cut.after)
    }

    /// What the oldest level stands on.
    pub(crate) fn base(&self) -> &Base {
        &self.oldest().base
    }

    /// What all levels stand on.
    pub(crate) fn views(&self) -> Vec<Base> {
        let levels = self.ended.iter().chain(std::iter::once(&self.head));
        levels.map(|level| level.base.clone()).filter(|base| matches!(base, Base::View { .. })).collect()
    }

    /// The pages know what the oldest level stood on.
    pub(crate) fn stand_on_pages(&mut self) {
        self.oldest_mut().base = Base::Below;
    }

    /// The pages know all of the oldest level, and its cut is in a manifest: it goes. What the next one stands on, the pages know too.
    pub(crate) fn drop_oldest(&mut self) {
        self.frozen = None;
        drop(self.ended.pop_front());
        self.stand_on_pages();
    }

    fn oldest(&self) -> &Level {
        self.ended.front().unwrap_or(&self.head)
    }

    fn oldest_mut(&mut self) -> &mut Level {
        self.ended.front_mut().unwrap_or(&mut self.head)
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
        self.resolve_level(&self.head, block).unwrap_or_else(|| self.resolve_below(self.ended.len(), &self.head.base, block))
    }

    /// Where `block` was at the cut that is known as `snapshot`; None when no level ends with it.
    pub(crate) fn resolve_at(&self, snapshot: SnapshotId, block: BlockAddress) -> Option<Source> {
        let is_it = |level: &Level| level.end.as_ref().is_some_and(|(cut, _)| cut.note.id == snapshot);
        let at = self.ended.iter().position(is_it)?;
        Some(self.resolve_below(at + 1, &Base::Below, block))
    }

    /// What shows under the level with this number, which stands on `base`.
    fn resolve_below(&self, mut number: usize, base: &Base, block: BlockAddress) -> Source {
        let mut base = base;
        loop {
            match (base, number.checked_sub(1).and_then(|below| self.ended.get(below))) {
                (Base::View { view, generations }, below) => {
                    // Only the oldest level has frozen changes, and a level that stands on a view may be the oldest.
                    if below.is_none()
                        && let Some(frozen) = self.frozen.as_ref().and_then(|f| f.get(block))
                    {
                        return Source::from(frozen);
                    }
                    return Source::View { view: view.clone(), generations: *generations };
                }
                (Base::Below, None) => {
                    return self.frozen.as_ref().and_then(|f| f.get(block)).map_or(Source::Pages, Source::from);
                }
                (Base::Below, Some(level)) => {
                    if let Some(source) = self.resolve_level(level, block) {
                        return source;
                    }
                    base = &level.base;
                    number -= 1;
                }
            }
        }
    }

    fn resolve_level(&self, level: &Level, block: BlockAddress) -> Option<Source> {
        if let Some(recent) = level.recent.get(block) {
            return Some(recent.location().map_or(Source::Zero, |location| self.in_journal(location)));
        }
        level.stored.get(block).map(Source::from)
    }

    /// Calls `each` with every leaf below `end`, from `from` on, that any layer of the head says something about.
    pub(crate) fn for_each_leaf(&self, from: LeafNumber, end: LeafNumber, mut each: impl FnMut(LeafNumber)) {
        for level in self.ended.iter().chain(std::iter::once(&self.head)) {
            level.recent.for_each_leaf_in(from, end, &mut each);
            level.stored.for_each_leaf_in(from, end, &mut each);
        }
        if let Some(frozen) = &self.frozen {
            frozen.for_each_leaf_in(from, end, &mut each);
        }
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

    /// Whether `block` still means `location`, unstored, now or at a cut.
    pub(crate) fn is_current(&self, block: BlockAddress, location: Location) -> bool {
        let mut levels = self.ended.iter().chain(std::iter::once(&self.head));
        levels.any(|level| level.recent.get(block) == Some(Recent::data(location)))
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
            self.oldest_mut().recent.remove_if(entry.block(), count, |recent| recent.sco() <= through);
        }
    }

    fn drop_committed(&mut self, container: &Inflight) -> Option<Arc<Inflight>> {
        if self.closed.front().is_some_and(|front| front.number == container.number) { self.closed.pop_front() } else { None }
    }

    /// Applies committed TLog entries to the oldest level.
    pub(crate) fn replay(&mut self, tlog: &[TlogEntry]) {
        let stored = &mut self.oldest_mut().stored;
        tlog.iter().for_each(|entry| replayed(stored, entry));
    }

    /// Bytes that the oldest level's `stored` takes in memory: what a checkpoint would free.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.oldest().stored.memory_bytes()
    }

    /// Whether the pages know all that the oldest level has stored.
    pub(crate) fn is_checkpointed(&self) -> bool {
        self.frozen.is_none() && self.oldest().stored.is_empty()
    }

    /// Whether the pages know all there is.
    pub(crate) fn is_settled(&self) -> bool {
        let bare = self.ended.is_empty() && self.open.is_empty() && self.closed.is_empty();
        bare && self.is_checkpointed() && matches!(self.head.base, Base::Below)
    }

    /// Takes `stored` of the oldest level out for a checkpoint; it stays readable as `frozen`.
    pub(crate) fn freeze(&mut self) -> Arc<Delta<Mapped>> {
        if self.frozen.is_none() {
            let stored = std::mem::take(&mut self.oldest_mut().stored);
            self.frozen = Some(Arc::new(stored));
        }
        self.frozen.clone().unwrap_or_default()
    }

    /// The checkpoint is decided and the pages know what `frozen` knew.
    pub(crate) fn thaw(&mut self) {
        self.frozen = None;
    }

    /// Bytes of all layers and containers in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        let levels = self.ended.iter().chain(std::iter::once(&self.head));
        levels.map(|level| level.recent.memory_bytes() + level.stored.memory_bytes()).sum::<usize>()
            + self.frozen.as_ref().map_or(0, |f| f.memory_bytes())
            + self.open.memory_bytes()
            + self.closed.iter().map(|c| c.memory_bytes()).sum::<usize>()
    }
}
