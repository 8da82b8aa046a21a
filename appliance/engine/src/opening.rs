//! Opening a node's volumes: their state from the store, what the journal holds over it, and what is kept of those that cannot be opened.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::stream::StreamExt;
use lamina_contract::snapshot::MOST_LABELS;
use lamina_contract::{
    Clock, Coordination, Cut, Disk, Epoch, Location, Ownership, RecordChange, ScoNumber, SnapshotId, Timestamp, VolumeId,
    VolumeRecord,
};
use lamina_formats::journal::{JournalEntry, JournalOp};

use crate::error::EngineError;
use crate::journal::{Journal, JournalConfig, Recovered, SegmentUse};
use crate::layers::Layers;
use crate::node::Unopened;
use crate::restart::Sources;
use crate::snapshots::Origin;
use crate::view::View;
use crate::volume::Opened;
use crate::write::charge;

/// An entry of the journal, with where its bytes are. Holds its segment.
struct Kept {
    entry: JournalEntry,
    segment: Arc<SegmentUse>,
    page: u32,
    time: Timestamp,
}

/// What the journal holds of a volume that is not open: at most about 70 bytes of memory per block in the journal.
#[derive(Default)]
pub(crate) struct Stranded {
    entries: Vec<Kept>,
    /// What was laid over a state that it does not continue: kept for its segments alone, no second try would do better.
    gap: Option<Layers>,
}

impl Stranded {
    /// Whether the journal does not continue what is stored.
    pub(crate) fn is_gap(&self) -> bool {
        self.gap.is_some()
    }

    /// Replays everything over a volume that could be opened after all.
    pub(crate) fn lay_over(&self, opened: &mut Opened, now_ms: u64) -> Result<(), EngineError> {
        self.entries.iter().try_for_each(|kept| opened.lay(kept, now_ms))
    }
}

impl Opened {
    /// Where a clone of one of its snapshots begins.
    async fn origin(&self, snapshot: SnapshotId) -> Result<Origin, EngineError> {
        self.snapshots.origin(snapshot, &self.pages, &self.ancestry, self.behind.terms()).await
    }

    /// Lays the journal's next entry over what is stored, unless it is stored itself.
    fn lay(&mut self, kept: &Kept, now_ms: u64) -> Result<(), EngineError> {
        self.cross_cuts(kept.entry.location.sco)?;
        self.refuse_gap(kept.entry.op, kept.entry.location)?;
        if kept.entry.location.sco > self.behind.stored_sco() {
            self.layers.publish(&kept.entry, &kept.segment, kept.page, kept.time, now_ms);
            self.layers.open.journal_bytes += charge(&kept.entry);
            if self.layers.open.is_full(self.spec.sco_size.blocks(self.spec.block_size)) {
                self.layers.close_open();
            }
        }
        Ok(())
    }

    /// Ends levels at the cuts that stand before container `next`.
    fn cross_cuts(&mut self, next: ScoNumber) -> Result<(), EngineError> {
        while self.cuts.front().is_some_and(|(cut, _)| cut.after < next) {
            let Some((cut, view)) = self.cuts.pop_front() else { break };
            self.layers.close_open();
            let target = cut.rollback.map(|target| self.target(target)).transpose()?;
            self.layers.cut(cut, view, target);
        }
        Ok(())
    }

    /// What a cut goes back to: a snapshot that is stored, or another that waits.
    fn target(&self, id: SnapshotId) -> Result<Arc<View>, EngineError> {
        let stored = self.targets.iter().find(|view| view.id == id).cloned();
        let view = stored.or_else(|| self.snapshots.waiting_view(id));
        view.ok_or(EngineError::NoSnapshot { volume: self.id, snapshot: id })
    }

    /// After the last entry of the journal. A container that an earlier owner may have sealed gets no further entry: if its manifest
    /// turns up, it says the same. Cuts that reach further than what there is lost a part of their blocks with the journal.
    pub(crate) fn seal_off(&mut self, coordination: &dyn Coordination) -> Result<(), EngineError> {
        let last = self.layers.close_for_cut();
        if self.cuts.iter().any(|(cut, _)| cut.after > last) {
            for (cut, _) in self.cuts.iter_mut().filter(|(cut, _)| cut.after > last) {
                tracing::error!(volume = %self.id, snapshot = %cut.note.name,
                    "the journal lost blocks that the snapshot held: it shows the volume as it came back");
                let mut short = Cut { after: last, ..(**cut).clone() };
                if short.note.labels.len() >= MOST_LABELS {
                    short.note.labels.pop_last();
                }
                short.note.labels.insert(CUT_SHORT.to_owned(), "the journal was lost".to_owned());
                *cut = Arc::new(short);
                self.snapshots.replace(cut.clone());
            }
            let all = self.snapshots.waiting().iter().map(|cut| (**cut).clone()).collect();
            coordination.change(&[(self.ownership, RecordChange::SetCuts(all))])?;
        }
        self.cross_cuts(last.next())
    }

    /// Blocks are found in a container by counting its entries, so a journal that does not continue what is stored, entry by entry,
    /// must not be replayed: the volume is left unopened and its entries are kept.
    fn refuse_gap(&self, op: JournalOp, at: Location) -> Result<(), EngineError> {
        let (stored, open) = (self.behind.stored_sco(), &self.layers.open);
        let index = |first: usize| matches!(op, JournalOp::Data { .. }).then_some(first);
        let continues = |first: Option<usize>| first.is_none_or(|first| usize::from(at.index) == first);
        let fits = at.sco <= stored
            || (at.sco == open.number && continues(index(open.block_count())))
            || (at.sco == open.number.next() && !open.is_empty() && continues(index(0)));
        if fits { Ok(()) } else { Err(EngineError::JournalGap { volume: self.id, found: at.sco.0, stored: stored.0 }) }
    }
}

/// Volumes opened at once: each reads a few objects, one after the other.
const OPENING: usize = 16;

/// The label of a snapshot that does not hold all that it held when it was taken.
const CUT_SHORT: &str = "lamina/cut-short";

/// Volumes while their journal is being replayed.
pub(crate) struct Opening {
    pub(crate) opened: HashMap<VolumeId, Opened>,
    pub(crate) unopened: Vec<Unopened>,
    pub(crate) deleting: Vec<VolumeRecord>,
    pub(crate) stranded: HashMap<VolumeId, Stranded>,
    records: HashMap<VolumeId, VolumeRecord>,
    /// The store could be listed: what neither it nor the registry knows was deleted.
    pub(crate) complete: bool,
}

impl Opening {
    pub(crate) async fn of(sources: &Sources) -> Result<Self, EngineError> {
        let known: HashSet<VolumeId> = sources.coordination.list()?.iter().map(|r| r.id).collect();
        let complete = match sources.adopt_strangers(&known).await {
            Ok(all) => all,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the store cannot be listed");
                false
            }
        };
        let mut opening = Self {
            opened: HashMap::new(),
            unopened: Vec::new(),
            deleting: Vec::new(),
            stranded: HashMap::new(),
            records: HashMap::new(),
            complete,
        };
        let mut waiting = Vec::new();
        for record in sources.coordination.list()? {
            if record.deleting { opening.deleting.push(record) } else { waiting.push(record) }
        }
        // In one decision: each costs the registry as much as all do. A volume whose turn does not come is taken again by who opens it.
        let all: Vec<_> = waiting.iter().map(|record| (record.id, Epoch(0))).collect();
        let owners = match sources.coordination.take_all(&all) {
            Ok(owners) => owners,
            // One that cannot be taken keeps no others from opening.
            Err(_) => all.iter().filter_map(|(id, at_least)| sources.coordination.take(*id, *at_least).ok()).collect(),
        };
        let owners: HashMap<VolumeId, Ownership> = owners.into_iter().map(|owner| (owner.volume, owner)).collect();
        // Parents before their clones.
        while !waiting.is_empty() {
            let ids: HashSet<VolumeId> = waiting.iter().map(|record| record.id).collect();
            let waits = |record: &VolumeRecord| record.parent.is_some_and(|parent| ids.contains(&parent.volume));
            let (later, now): (Vec<_>, Vec<_>) = std::mem::take(&mut waiting).into_iter().partition(waits);
            // A circle cannot come about; if it is there nevertheless, none of it opens.
            let stuck = now.is_empty();
            waiting = if stuck { Vec::new() } else { later.clone() };
            let now = if stuck { later } else { now };
            let opened = futures::stream::iter(now).map(|record| {
                let owner = owners.get(&record.id).copied();
                opening.open(sources, record, owner)
            });
            let opened: Vec<_> = opened.buffer_unordered(OPENING).collect().await;
            opened.into_iter().for_each(|(record, opened)| opening.keep(record, opened));
        }
        Ok(opening)
    }

    async fn open(
        &self,
        sources: &Sources,
        record: VolumeRecord,
        owner: Option<Ownership>,
    ) -> (VolumeRecord, Result<Opened, EngineError>) {
        let origin = match record.parent {
            None => Ok(None),
            Some(parent) => match self.opened.get(&parent.volume) {
                Some(opened) => opened.origin(parent.snapshot).await.map(Some),
                None => Err(EngineError::ParentNotOpen { parent: parent.volume }),
            },
        };
        let opened = match (origin, owner) {
            (Ok(origin), Some(owner)) => sources.open_owned(owner, origin).await,
            // Said by the registry once more.
            (Ok(_), None) => match sources.coordination.take(record.id, Epoch(0)) {
                Ok(_) => Err(EngineError::Unknown { volume: record.id }),
                Err(error) => Err(error.into()),
            },
            (Err(error), _) => Err(error),
        };
        (record, opened)
    }

    fn keep(&mut self, record: VolumeRecord, opened: Result<Opened, EngineError>) {
        match opened {
            Ok(opened) => {
                self.opened.insert(record.id, opened);
                self.records.insert(record.id, record);
            }
            Err(error) => {
                tracing::error!(volume = %record.id, name = %record.spec.name, error = &error as &dyn std::error::Error,
                    "volume cannot be opened; what the journal holds of it is kept");
                self.unopened.push(Unopened { record, error: Arc::new(error) });
            }
        }
    }

    pub(crate) fn replay(
        mut self,
        config: JournalConfig,
        disk: Arc<dyn Disk>,
        clock: &dyn Clock,
        coordination: &dyn Coordination,
    ) -> Result<(Journal, Self), EngineError> {
        let now = clock.monotonic_ms();
        let deleted: HashSet<VolumeId> = self.deleting.iter().map(|r| r.id).collect();
        let (mut entries, mut dropped) = (0_u64, 0_u64);
        let journal = Journal::open(disk, config, rand::random(), |batch: &Recovered<'_>| {
            let mut page = batch.first_page;
            for entry in batch.entries {
                let kept = Kept { entry: *entry, segment: batch.segment.clone(), page, time: batch.header.time };
                if let JournalOp::Data { pages, .. } = entry.op {
                    page += u32::from(pages);
                }
                if self.take(kept, &deleted, now) {
                    entries += 1;
                } else {
                    dropped += 1;
                }
            }
        })?;
        if entries > 0 || dropped > 0 {
            tracing::info!(entries, dropped, "journal replayed; dropped entries are of deleted volumes");
        }
        let mut left = Vec::new();
        for (id, opened) in &mut self.opened {
            if let Err(error) = opened.seal_off(coordination) {
                left.push((*id, error));
            }
        }
        for (id, error) in left {
            self.leave(id, error);
        }
        Ok((journal, self))
    }

    /// Takes the journal's next entry; false when it is a deleted volume's.
    fn take(&mut self, kept: Kept, deleted: &HashSet<VolumeId>, now_ms: u64) -> bool {
        let id = kept.entry.volume;
        if let Some(opened) = self.opened.get_mut(&id) {
            let Err(error) = opened.lay(&kept, now_ms) else { return true };
            tracing::error!(volume = %id, error = &error as &dyn std::error::Error, "volume is not opened");
            self.leave(id, error);
        }
        let keep = !self.complete || self.unopened.iter().any(|unopened| unopened.record.id == id);
        let keep = keep && !deleted.contains(&id);
        if keep {
            self.stranded.entry(id).or_default().entries.push(kept);
        }
        keep
    }

    /// A volume's journal does not fit what is stored of it: it is not opened, and what was laid over it stays in the journal.
    fn leave(&mut self, id: VolumeId, error: EngineError) {
        if let (Some(opened), Some(record)) = (self.opened.remove(&id), self.records.remove(&id)) {
            self.stranded.entry(id).or_default().gap = Some(opened.layers);
            self.unopened.push(Unopened { record, error: Arc::new(error) });
        }
    }
}
