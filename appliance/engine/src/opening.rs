//! Opening a node's volumes: their state from the store, what the journal holds over it, and what is kept of those that cannot be opened.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lamina_contract::{Clock, Disk, Location, Timestamp, VolumeId, VolumeRecord};
use lamina_formats::journal::{JournalEntry, JournalOp};

use crate::error::EngineError;
use crate::journal::{Journal, JournalConfig, Recovered, SegmentUse};
use crate::layers::Layers;
use crate::node::Unopened;
use crate::restart::Sources;
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
        self.entries.iter().try_for_each(|kept| opened.lay(kept, now_ms))?;
        opened.seal_off();
        Ok(())
    }
}

impl Opened {
    /// Lays the journal's next entry over what is stored, unless it is stored itself.
    fn lay(&mut self, kept: &Kept, now_ms: u64) -> Result<(), EngineError> {
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

    /// A container that an earlier owner may have sealed gets no further entry: if its manifest turns up, it says the same.
    fn seal_off(&mut self) {
        self.layers.close_open();
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
        for record in sources.coordination.list()? {
            if record.deleting {
                opening.deleting.push(record);
                continue;
            }
            match sources.open(&record).await {
                Ok(opened) => {
                    opening.opened.insert(record.id, opened);
                    opening.records.insert(record.id, record);
                }
                Err(error) => {
                    tracing::error!(volume = %record.id, name = %record.spec.name, error = &error as &dyn std::error::Error,
                        "volume cannot be opened; what the journal holds of it is kept");
                    opening.unopened.push(Unopened { record, error: Arc::new(error) });
                }
            }
        }
        Ok(opening)
    }

    pub(crate) fn replay(
        mut self,
        config: JournalConfig,
        disk: Arc<dyn Disk>,
        clock: &dyn Clock,
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
        self.opened.values_mut().for_each(Opened::seal_off);
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
