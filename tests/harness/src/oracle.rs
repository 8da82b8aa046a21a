//! What a crash may leave: for each sector the contents that some allowed history explains.
//!
//! The writer reports when it issued each operation and when it saw its acknowledgement; an event counter orders these. `a`
//! is *strictly older* than `b` when `a` was acknowledged before `b` was issued; otherwise the two were in flight together and
//! either may have been applied last. After a crash [`Oracle::check`] compares a whole image:
//!
//! - **Explained.** Each sector's bytes are a valid stamp that some operation (or the state before) put there.
//! - **Kept.** An acknowledged operation is *absent* when one of its sectors can only be explained by something strictly older.
//!   None may be absent that was acknowledged before the crash's durable moment: the crash itself for [`Crash::Kill`], the
//!   issue of the last acknowledged flush for [`Crash::Power`], a given moment for [`Crash::StoreOnly`].
//! - **Prefix.** What survives of the others is a prefix: whoever survives, everything strictly older survives too. (The operation
//!   at the cut may be there in part, block by block.) Operations that were in flight together have no order that a guest could
//!   rely on; where their acknowledgements came in another order than they survive in, the verdict counts it as *swapped*.
//! - **Whole.** A 4 KiB block that one operation covers is old or new.
//!
//! Afterwards what was seen is the new state before: the check *settles*, and unacknowledged operations are over.
//!
//! [`Oracle::check_snapshot`] holds a snapshot that was taken since the last check to the same, as if its taking had been the crash:
//! everything is kept that was acknowledged before it was asked for, and moreover it is **not later**: nothing explains it that was issued
//! after it was answered. It does not settle.

use lamina_contract::units::{Lba, SectorCount};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::stamp::{Content, SECTOR, TemplateId, read_content};

/// The number of an operation, counted from 1 over the whole life of the oracle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// A moment of the event counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

/// The event counter of one volume, shared by its writer and whoever takes snapshots of it beside that.
#[derive(Debug, Clone)]
pub struct Moments(Arc<AtomicU64>);

impl Moments {
    /// Now: after all moments given out before, and before all later ones.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment(self.0.fetch_add(1, Ordering::SeqCst) + 1)
    }
}

/// When a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Before it was asked for.
    pub asked: Moment,
    /// After it was answered; none when that was never heard, and it is there all the same.
    pub answered: Option<Moment>,
}

/// What an operation writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// Sectors stamped with the operation.
    Unique,
    /// The same template block over and over (block-aligned).
    Template(TemplateId),
    /// Zeros, by write, discard or write-zeroes.
    Zero,
}

/// Which promise is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process died (or nothing did): every acknowledged write is there.
    Kill,
    /// The machine lost power.
    Power,
    /// SSD lost: everything acknowledged before the moment is there.
    StoreOnly {
        /// The bound.
        stored: Moment,
    },
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Bytes that nobody wrote there.
    #[error("sector {}: {damage}", lba.0)]
    Damaged {
        /// Where.
        lba: Lba,
        /// What it holds.
        damage: crate::stamp::Damage,
    },
    /// A valid stamp, but no write left it there.
    #[error("sector {}: holds {found:?}, which nothing explains", lba.0)]
    Unexplained {
        /// Where.
        lba: Lba,
        /// What it holds.
        found: Content,
    },
    /// An acknowledged write that had to survive did not.
    #[error("sector {}: operation {} is lost (acknowledged at {}, durable moment {}), found {found:?}", lba.0, op.0, acked.0, durable.0)]
    Lost {
        /// Where it is missing.
        lba: Lba,
        /// Which.
        op: OpId,
        /// When it was acknowledged.
        acked: Moment,
        /// Before which moment all had to survive.
        durable: Moment,
        /// What is there instead.
        found: Content,
    },
    /// A snapshot holds what was issued after it was answered.
    #[error("sector {}: holds {found:?}, issued after the snapshot was answered at {}", lba.0, answered.0)]
    Later {
        /// Where.
        lba: Lba,
        /// What it holds.
        found: Content,
        /// When the snapshot was there already.
        answered: Moment,
    },
    /// A write survived that was issued after an absent one was acknowledged.
    #[error("operation {} survived, operation {}, acknowledged before it was issued, did not: not a prefix", present.0, absent.0)]
    NotAPrefix {
        /// Which survived.
        present: OpId,
        /// Which did not.
        absent: OpId,
    },
    /// Seen by a read while the writer ran, before the crash.
    #[error("read while running, {0}")]
    Running(Box<Self>),
    /// A block is neither old nor new.
    #[error("block at sector {}: operation {} is there in part", block.0, op.0)]
    Torn {
        /// The block's first sector.
        block: Lba,
        /// The operation.
        op: OpId,
    },
}

/// The outcome of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What was broken (the first hundred).
    pub violations: Vec<Violation>,
    /// Acknowledged operations since the last check.
    pub acknowledged: usize,
    /// How many of them had to survive.
    pub durable: usize,
    /// Acknowledged ones that the crash took, as it was allowed to.
    pub taken: usize,
    /// Of these, those acknowledged before another that was in flight with them and survived.
    pub swapped: usize,
}

#[derive(Debug, Clone, Copy)]
struct Op {
    start: Lba,
    sectors: SectorCount,
    paint: Paint,
    issued: Moment,
    acked: Option<Moment>,
}

impl Op {
    fn content(&self, id: OpId, lba: Lba) -> Content {
        match self.paint {
            Paint::Unique => Content::Unique(id),
            Paint::Template(template) => Content::Template { id: template, index: ((lba.0 - self.start.0) % 8) as u8 },
            Paint::Zero => Content::Zero,
        }
    }
}

#[derive(Debug, Clone)]
struct Sector {
    before: Content,
    since: Vec<OpId>,
}

/// Something that may explain a sector: the state before (`None`) or an operation.
type Candidate = Option<OpId>;

/// The memory of one volume's region that starts at sector 0.
#[derive(Debug, Clone)]
pub struct Oracle {
    volume: u64,
    sectors: Vec<Sector>,
    ops: BTreeMap<OpId, Op>,
    next: OpId,
    moments: Moments,
    flushed: Moment,
}

impl Oracle {
    /// A region of `sectors` zeros of the volume with the stamp identity `volume`.
    #[must_use]
    pub fn new(volume: u64, sectors: SectorCount) -> Self {
        let blank = Sector { before: Content::Zero, since: Vec::new() };
        let sectors = vec![blank; usize::try_from(sectors.0).unwrap_or(0)];
        Self {
            volume,
            sectors,
            ops: BTreeMap::new(),
            next: OpId(1),
            moments: Moments(Arc::new(AtomicU64::new(1))),
            flushed: Moment(0),
        }
    }

    /// The stamp identity of the volume.
    #[must_use]
    pub fn volume(&self) -> u64 {
        self.volume
    }

    /// The region's length.
    #[must_use]
    pub fn sectors(&self) -> SectorCount {
        SectorCount(self.sectors.len() as u64)
    }

    /// Now. Every operation acknowledged so far was acknowledged before what this returns.
    pub fn moment(&mut self) -> Moment {
        self.moments.now()
    }

    /// Its event counter.
    #[must_use]
    pub fn moments(&self) -> Moments {
        self.moments.clone()
    }

    /// An operation is about to be submitted; what it writes is [`Oracle::content`].
    pub fn issue(&mut self, start: Lba, sectors: SectorCount, paint: Paint) -> OpId {
        let id = self.next;
        self.next.0 += 1;
        let issued = self.moment();
        self.ops.insert(id, Op { start, sectors, paint, issued, acked: None });
        let range = start.0 as usize..(start.0 + sectors.0) as usize;
        for sector in self.sectors.get_mut(range).unwrap_or_default() {
            sector.since.push(id);
        }
        id
    }

    /// What the operation puts at `lba`.
    #[must_use]
    pub fn content(&self, op: OpId, lba: Lba) -> Content {
        self.ops.get(&op).map_or(Content::Zero, |known| known.content(op, lba))
    }

    /// The operation was acknowledged as done.
    pub fn acknowledge(&mut self, op: OpId) {
        let now = self.moment();
        if let Some(known) = self.ops.get_mut(&op) {
            known.acked = Some(now);
        }
    }

    /// A flush that was issued at `issued` was acknowledged.
    pub fn flushed(&mut self, issued: Moment) {
        self.flushed = self.flushed.max(issued);
    }

    /// Whether `candidate` is strictly older than `op`.
    fn older(&self, candidate: Candidate, op: &Op) -> bool {
        let Some(id) = candidate else { return true };
        self.ops.get(&id).and_then(|known| known.acked).is_some_and(|acked| acked < op.issued)
    }

    /// What explains `found`, of what was issued before `until`.
    fn explain(&self, lba: Lba, sector: &Sector, found: Content, until: Moment) -> Vec<Candidate> {
        let early = |id: &OpId| self.ops.get(id).is_some_and(|op| op.issued < until);
        let ops = sector.since.iter().filter(|id| self.content(**id, lba) == found && early(id)).map(|id| Some(*id));
        (sector.before == found).then_some(None).into_iter().chain(ops).collect()
    }

    /// Checks a read issued at `issued` that returned `data` from `start` on: nothing older than what was acknowledged by then.
    #[must_use]
    pub fn check_read(&self, start: Lba, data: &[u8], issued: Moment) -> Vec<Violation> {
        let mut violations = Vec::new();
        for (at, bytes) in data.chunks(SECTOR).enumerate() {
            let lba = Lba(start.0 + at as u64);
            let Some(sector) = self.sectors.get(lba.0 as usize) else { break };
            let found = match read_content(self.volume, lba, bytes) {
                Ok(found) => found,
                Err(damage) => {
                    violations.push(Violation::Damaged { lba, damage });
                    continue;
                }
            };
            let candidates = self.explain(lba, sector, found, Moment(u64::MAX));
            if candidates.is_empty() {
                violations.push(Violation::Unexplained { lba, found });
            }
            for id in &sector.since {
                let Some(op) = self.ops.get(id) else { continue };
                let Some(acked) = op.acked.filter(|acked| *acked < issued) else { continue };
                if !candidates.is_empty()
                    && candidates.iter().all(|candidate| *candidate != Some(*id) && self.older(*candidate, op))
                {
                    violations.push(Violation::Lost { lba, op: *id, acked, durable: issued, found });
                }
            }
        }
        violations
    }

    /// Checks a whole image (all the region's bytes) after a crash, and settles.
    pub fn check(&mut self, crash: Crash, image: &[u8]) -> Verdict {
        let durable = match crash {
            Crash::Kill => Moment(u64::MAX),
            Crash::Power => self.flushed,
            Crash::StoreOnly { stored } => stored,
        };
        let (verdict, seen) = Evidence::new(self, durable, Moment(u64::MAX)).of(image);
        for (sector, found) in self.sectors.iter_mut().zip(seen) {
            sector.since.clear();
            // A damaged sector keeps its old state: it will be reported again.
            if let Some(found) = found {
                sector.before = found;
            }
        }
        self.ops.clear();
        self.flushed = self.moment();
        verdict
    }

    /// Checks a whole image of a snapshot that was taken since the last check. Its verdict counts as durable what had to be in it.
    #[must_use]
    pub fn check_snapshot(&self, taken: Taken, image: &[u8]) -> Verdict {
        let until = taken.answered.unwrap_or(Moment(u64::MAX));
        Evidence::new(self, taken.asked, until).of(image).0
    }
}

/// Collects what an image says about each operation.
struct Evidence<'a> {
    oracle: &'a Oracle,
    durable: Moment,
    /// What was issued from here on is not in the image.
    until: Moment,
    /// Acknowledged operations that are surely present.
    present: Vec<OpId>,
    /// Acknowledged operations that are absent, with one place each.
    absent: BTreeMap<(Moment, OpId), (Lba, Content)>,
    violations: Vec<Violation>,
}

impl<'a> Evidence<'a> {
    fn new(oracle: &'a Oracle, durable: Moment, until: Moment) -> Self {
        Self { oracle, durable, until, present: Vec::new(), absent: BTreeMap::new(), violations: Vec::new() }
    }

    /// The verdict on an image, and what each sector holds unless it is damaged.
    fn of(mut self, image: &[u8]) -> (Verdict, Vec<Option<Content>>) {
        let mut seen = Vec::with_capacity(self.oracle.sectors.len());
        for (block, bytes) in image.chunks(8 * SECTOR).enumerate() {
            self.block(Lba(block as u64 * 8), bytes, &mut seen);
        }
        (self.verdict(), seen)
    }

    fn block(&mut self, first: Lba, bytes: &[u8], seen: &mut Vec<Option<Content>>) {
        // For the torn check: operations surely here, and the candidates of each sector.
        let mut here: Vec<OpId> = Vec::new();
        let mut explained: Vec<(Lba, Vec<Candidate>)> = Vec::with_capacity(8);
        for (at, sector_bytes) in bytes.chunks(SECTOR).enumerate() {
            let lba = Lba(first.0 + at as u64);
            let oracle = self.oracle;
            let Some(sector) = oracle.sectors.get(lba.0 as usize) else { return };
            let found = match read_content(oracle.volume, lba, sector_bytes) {
                Ok(found) => found,
                Err(damage) => {
                    self.violations.push(Violation::Damaged { lba, damage });
                    seen.push(None);
                    continue;
                }
            };
            seen.push(Some(found));
            let candidates = oracle.explain(lba, sector, found, self.until);
            if candidates.is_empty() {
                let later = !oracle.explain(lba, sector, found, Moment(u64::MAX)).is_empty();
                let answered = self.until;
                let broken = if later { Violation::Later { lba, found, answered } } else { Violation::Unexplained { lba, found } };
                self.violations.push(broken);
                continue;
            }
            self.judge(lba, sector, &candidates, found);
            if let [Some(id)] = candidates.as_slice()
                && !here.contains(id)
            {
                here.push(*id);
            }
            explained.push((lba, candidates));
        }
        for id in here {
            self.torn(first, id, &explained);
        }
    }

    fn judge(&mut self, lba: Lba, sector: &Sector, candidates: &[Candidate], found: Content) {
        for id in &sector.since {
            let Some(op) = self.oracle.ops.get(id) else { continue };
            let Some(acked) = op.acked else { continue };
            if candidates == [Some(*id)] {
                if self.present.last() != Some(id) {
                    self.present.push(*id);
                }
            } else if candidates.iter().all(|candidate| *candidate != Some(*id) && self.oracle.older(*candidate, op)) {
                self.absent.entry((acked, *id)).or_insert((lba, found));
            }
        }
    }

    fn torn(&mut self, block: Lba, id: OpId, explained: &[(Lba, Vec<Candidate>)]) {
        let Some(op) = self.oracle.ops.get(&id) else { return };
        if op.start > block || op.start.0 + op.sectors.0 < block.0 + 8 {
            return;
        }
        if explained
            .iter()
            .any(|(_, candidates)| candidates.iter().all(|candidate| *candidate != Some(id) && self.oracle.older(*candidate, op)))
        {
            self.violations.push(Violation::Torn { block, op: id });
        }
    }

    fn verdict(mut self) -> Verdict {
        for ((acked, op), (lba, found)) in &self.absent {
            if *acked < self.durable {
                self.violations.push(Violation::Lost { lba: *lba, op: *op, acked: *acked, durable: self.durable, found: *found });
            }
        }
        let swapped = self.prefix();
        let acked = || self.oracle.ops.values().filter_map(|op| op.acked);
        self.violations.truncate(100);
        Verdict {
            violations: self.violations,
            acknowledged: acked().count(),
            durable: acked().filter(|acked| *acked < self.durable).count(),
            taken: self.absent.len(),
            swapped,
        }
    }

    /// Finds what survived although something strictly older did not; answers how many absent ones were merely swapped.
    fn prefix(&mut self) -> usize {
        let Some(((first, absent), _)) = self.absent.first_key_value() else { return 0 };
        let (first, absent) = (*first, *absent);
        let op = |id: &OpId| self.oracle.ops.get(id);
        // The first acknowledged of the absent is strictly older than whatever was issued after that.
        let broken = self.present.iter().find(|id| op(id).is_some_and(|op| op.issued > first)).copied();
        let last = self.present.iter().filter_map(|id| op(id)?.acked).max().unwrap_or(Moment(0));
        let swapped = self.absent.keys().filter(|(acked, id)| *acked < last && Some(*id) != self.present.last().copied()).count();
        if let Some(present) = broken.filter(|present| *present != absent) {
            self.violations.push(Violation::NotAPrefix { present, absent });
        }
        swapped
    }
}

#[cfg(test)]
#[path = "oracle_tests.rs"]
mod tests;
