//! The journal on SSD: the one sequential stream of all volumes' accepted changes.
//!
//! ```text
//! append (one at a time) ──write_at──▶ segment ──▶ segment ──▶ …        live, oldest first
//!                 sync: fdatasync of every segment touched since the last one, oldest first
//! ```
//! - A batch counts as accepted once its `write_at` returned (survives the process); it is durable once a sync that began
//!   afterwards returned. Appends are serialised, so batches are accepted in the order of their sequence.
//! - A segment is held by the SCOs whose blocks it carries ([`SegmentUse`] is shared with them). It is put to new use when
//!   nobody holds it any more; the oldest is let go first, so live segments are always one unbroken run.
//! - The headers of the next segments are made durable beforehand, in the background ([`Journal::prepare`]): an append that turns to one seldom
//!   waits. It is not written again when the first batch is known: power lost in the middle of that could take what it says.
//! - Recovery (`journal_recovery.rs`) walks batches in order to the first that does not verify. It appends to a fresh segment whose header
//!   says from which batch on it holds the truth: left-overs of the same or higher sequence in older segments are dead from then on.
//! - A failed write or sync fails the journal for good: nothing is retried, nothing more is accepted.
//! - Memory: a sync is due after [`SYNC_BYTES`], so that the page cache holds few dirty pages and no flush waits for many; of what is
//!   durable the newest [`CACHED_BYTES`] stay in the page cache, and segments let go lately are used before others. Pages thus come
//!   round again, instead of the journal streaming its whole length through the system's memory.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lamina_contract::{Disk, DiskFile, Space};
use lamina_formats::journal::{BatchHeader, JournalEntry, JournalOp, PAGE, SegmentHeader, block_sum, encode_batch, header_pages};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::failpoint;

pub(crate) use recovery::Recovered;

/// Shape of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalConfig {
    /// Space on the SSD in bytes, written when the journal is made.
    pub bytes: u64,
    /// Length of a segment in bytes: a multiple of 4 KiB, at least 4 MiB.
    pub segment_bytes: u64,
}

/// Fewest segments that can turn: one being written, one being freed, two between them.
const MIN_SEGMENTS: u64 = 4;
/// Shortest segment: the largest batch (1 MiB of data and its header) must leave little waste.
const MIN_SEGMENT_BYTES: u64 = 4 << 20;

/// Segments whose headers are durable ahead, in a journal of many: on a busy SSD a sync takes longer than a guest needs to fill one.
const PREPARED: u64 = 3;

/// Accepted bytes after which a sync is due although nobody flushes.
const SYNC_BYTES: u64 = 16 << 20;
/// Durable bytes that stay in the page cache: containers are sealed from there, and what had to be read back from the SSD would cost it as
/// much as the journal's own writes. The system takes these pages when it needs them.
const CACHED_BYTES: u64 = 512 << 20;
/// Up to this length neighbouring ranges of the page cache are one: a guest that flushes every block must not make a list of blocks.
const CACHED_RANGE: u64 = 1 << 20;

/// Why the journal could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The configured shape makes no sense.
    #[error(
        "a journal needs at least {MIN_SEGMENTS} segments of at least {MIN_SEGMENT_BYTES} bytes in multiples of 4096; {bytes} bytes in segments of {segment_bytes} were asked for"
    )]
    Shape {
        /// Asked for.
        bytes: u64,
        /// Asked for.
        segment_bytes: u64,
    },
    /// The SSD refused.
    #[error("journal: {doing} failed")]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// No segment is free: SCOs must be stored first.
    #[error("journal is full")]
    Full,
    /// An earlier write or sync failed; the SSD is not trusted any more.
    #[error("journal has failed: its SSD lost a write")]
    Failed,
}

/// One use of a segment; whoever still needs bytes in it holds it.
pub(crate) struct SegmentUse {
    slot: u32,
    sequence: u64,
    first_batch: u64,
    file: Arc<dyn DiskFile>,
}

impl SegmentUse {
    /// Which use this is; counts up over the journal's life.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The file, for reads of blocks at their page.
    pub(crate) fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }
}

/// Where a batch was put.
pub(crate) struct Written {
    pub(crate) segment: Arc<SegmentUse>,
    /// Page of the first data byte within the segment.
    pub(crate) first_page: u32,
    /// The batch.
    pub(crate) sequence: u64,
}

/// The journal; see the module's header.
pub(crate) struct Journal {
    id: u64,
    segment_bytes: u64,
    segments: u64,
    append: Mutex<Append>,
    /// Serialises syncs.
    syncing: Mutex<Syncing>,
    /// Bytes written since the last sync began.
    unsynced: AtomicU64,
    accepted: AtomicU64,
    durable: AtomicU64,
    used_bytes: AtomicU64,
    written_bytes: AtomicU64,
    syncs: AtomicU64,
    /// A segment is free and too few are prepared.
    unprepared: AtomicBool,
    failed: AtomicBool,
    damaged: AtomicBool,
}

/// How far syncs have come.
#[derive(Default)]
struct Syncing {
    /// The oldest use that may be dirty, and the first page of it that may be.
    dirty_from: (u64, u32),
    cached: PageCacheTail,
}

/// Durable ranges that the page cache still holds, oldest first.
#[derive(Default)]
struct PageCacheTail {
    ranges: VecDeque<(Arc<dyn DiskFile>, u64, u64)>,
    bytes: u64,
}

impl PageCacheTail {
    /// These bytes are durable now. What is not among the newest any more is dropped.
    fn push(&mut self, file: Arc<dyn DiskFile>, offset: u64, len: u64) {
        // A segment that came round again: what is queued of its last use must not drop pages of this one.
        let stale = |(other, at, bytes): &(Arc<dyn DiskFile>, u64, u64)| {
            Arc::ptr_eq(other, &file) && *at < offset + len && offset < at + bytes
        };
        self.bytes -= self.ranges.iter().filter(|range| stale(range)).map(|(_, _, bytes)| bytes).sum::<u64>();
        self.ranges.retain(|range| !stale(range));
        self.bytes += len;
        match self.ranges.back_mut() {
            Some((last, at, bytes)) if Arc::ptr_eq(last, &file) && *at + *bytes == offset && *bytes + len <= CACHED_RANGE => {
                *bytes += len
            }
            _ => self.ranges.push_back((file, offset, len)),
        }
        while self.bytes > CACHED_BYTES
            && let Some((file, offset, len)) = self.ranges.pop_front()
        {
            self.bytes -= len;
            file.drop_cached(offset, len);
        }
    }
}

#[derive(Clone)]
struct FreeSegment {
    slot: u32,
    /// Its last use, which may still be dirty; 0 when there was none.
    sequence: u64,
    file: Arc<dyn DiskFile>,
}

/// One of the next segments, while its header is made durable and after.
struct Prepared {
    /// With the number of its last use.
    next: FreeSegment,
    /// The number of the use to come.
    sequence: u64,
    /// Whether the header is durable, once that is known.
    outcome: Mutex<Option<bool>>,
    known: Condvar,
}

/// Says that it failed when nobody says otherwise: an append may be waiting.
struct Settling<'a>(&'a Prepared);

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        self.0.settle(false);
    }
}

impl Prepared {
    /// The first word counts.
    fn settle(&self, durable: bool) {
        self.outcome.lock().get_or_insert(durable);
        self.known.notify_all();
    }

    fn wait(&self) -> bool {
        let mut outcome = self.outcome.lock();
        while outcome.is_none() {
            self.known.wait(&mut outcome);
        }
        *outcome == Some(true)
    }
}

/// The right to append; there is one.
pub(crate) struct Append {
    live: VecDeque<Arc<SegmentUse>>,
    /// In the order of their next use.
    free: VecDeque<FreeSegment>,
    /// In the order in which they will be begun; they follow the last live one.
    prepared: VecDeque<Arc<Prepared>>,
    /// Free ones that recovery found prepared; wiped once the first header of this life is durable, so that any that a later recovery finds
    /// was prepared in the life that it ends.
    unbegun: Vec<FreeSegment>,
    /// How many of `free`, from its front on, were let go in this life, oldest first.
    freed_since: usize,
    /// Next page to write in `live.back()`; `u32::MAX` when there is none.
    page: u32,
    next_batch: u64,
    next_segment: u64,
    header: Vec<u8>,
}

impl Append {
    /// The segment to use next, and the number of that use.
    fn take_free(&mut self) -> Option<(FreeSegment, u64)> {
        let next = self.free.pop_front()?;
        // Those let go before stay before those that will be: what is left of old uses must end where the live ones begin.
        self.freed_since = self.freed_since.saturating_sub(1);
        self.next_segment += 1;
        Some((next, self.next_segment - 1))
    }
}

impl Journal {
    /// Opens or makes the journal and hands every batch that verifies to `replay`, in order. What was replayed is durable
    /// when this returns.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        config: JournalConfig,
        fresh_id: u64,
        mut replay: impl FnMut(&Recovered<'_>),
    ) -> Result<Self, JournalError> {
        let shape = JournalError::Shape { bytes: config.bytes, segment_bytes: config.segment_bytes };
        let page = PAGE as u64;
        if !config.segment_bytes.is_multiple_of(page)
            || config.segment_bytes < MIN_SEGMENT_BYTES
            || config.segment_bytes / page > u64::from(u32::MAX)
            || config.bytes / config.segment_bytes < MIN_SEGMENTS
        {
            return Err(shape);
        }
        let mut present = recovery::present_segments(&disk)?;
        // Existing segments keep their length: their content may be needed. A new length takes effect on an empty directory.
        let segment_bytes = present.first().map_or(config.segment_bytes, |s| s.file.len());
        let wanted = (config.bytes / segment_bytes).max(MIN_SEGMENTS);
        present.retain(|s| s.file.len() == segment_bytes || u64::from(s.slot) >= wanted);
        let missing: Vec<u32> = (0..wanted as u32).filter(|slot| !present.iter().any(|s| s.slot == *slot)).collect();
        if !missing.is_empty() {
            tracing::info!(segments = missing.len(), bytes = missing.len() as u64 * segment_bytes, "journal: writing its space");
        }
        for slot in missing {
            let file = disk.create(&segment_name(slot), segment_bytes, Space::Written).map_err(failed("making a segment"))?;
            present.push(FreeSegment { slot, sequence: 0, file });
        }
        disk.sync_names().map_err(failed("making segment names durable"))?;
        let segments = present.len() as u64;

        let walk = recovery::Walk::over(present, fresh_id)?;
        let journal = Self {
            id: walk.id,
            segment_bytes,
            segments,
            append: Mutex::new(Append {
                live: VecDeque::new(),
                free: walk.free,
                prepared: VecDeque::new(),
                unbegun: Vec::new(),
                freed_since: 0,
                page: u32::MAX,
                next_batch: 1,
                next_segment: walk.next_segment,
                header: Vec::new(),
            }),
            syncing: Mutex::default(),
            unsynced: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            used_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            unprepared: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
        };
        journal.recover(walk.used, &mut replay)?;
        Ok(journal)
    }

    /// Its identity, random when it was made.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The checksum that an entry of this journal gives a block.
    pub(crate) fn block_sum(&self, block: &[u8]) -> u32 {
        block_sum(self.id, block)
    }

    /// Takes the right to append.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Append> {
        self.append.lock()
    }

    /// Makes sure that a batch of `entries` entries and `data` bytes fits the current segment, turning to the next one if
    /// not. Fails with [`JournalError::Full`] while every segment is still needed.
    pub(crate) fn reserve(&self, append: &mut Append, entries: usize, data: usize) -> Result<(), JournalError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(JournalError::Failed);
        }
        let pages = (header_pages(entries) + data.div_ceil(PAGE)) as u64;
        let fits = append.page != u32::MAX && u64::from(append.page) + pages <= self.segment_bytes / PAGE as u64;
        if fits {
            return Ok(());
        }
        failpoint::hit(failpoint::JOURNAL_SEGMENT);
        let (next, sequence) = match append.prepared.pop_front() {
            Some(prepared) => {
                if !prepared.wait() {
                    // Whatever the reason: the place of this use stays empty, and nothing may follow it.
                    self.failed.store(true, Ordering::Release);
                    return Err(JournalError::Failed);
                }
                (prepared.next.clone(), prepared.sequence)
            }
            None => {
                self.reclaim(append);
                let (next, sequence) = append.take_free().ok_or(JournalError::Full)?;
                self.write_header(append, &next, sequence, append.next_batch)?;
                self.sync_header(&next)?;
                self.wipe_unbegun(append, next.slot)?;
                (next, sequence)
            }
        };
        append.live.push_back(Arc::new(SegmentUse { slot: next.slot, sequence, first_batch: append.next_batch, file: next.file }));
        append.page = 1;
        self.account(append);
        Ok(())
    }

    /// Makes the header of one more of the next segments durable unless enough are, so that no append has to wait for it.
    pub(crate) fn prepare(&self) -> Result<(), JournalError> {
        let prepared = {
            let mut append = self.append.lock();
            self.reclaim(&mut append);
            if !self.wants_prepared(&append) || self.is_failed() {
                return Ok(());
            }
            let Some((next, sequence)) = append.take_free() else { return Ok(()) };
            let prepared = Arc::new(Prepared { next, sequence, outcome: Mutex::new(None), known: Condvar::new() });
            let written = self.write_header(&append, &prepared.next, sequence, 0);
            append.prepared.push_back(prepared.clone());
            self.account(&append);
            if let Err(error) = written {
                prepared.settle(false);
                return Err(error);
            }
            prepared
        };
        let settled = Settling(&prepared);
        failpoint::hit(failpoint::JOURNAL_PREPARE);
        let synced = self.sync_header(&prepared.next);
        prepared.settle(synced.is_ok());
        drop(settled);
        synced
    }

    fn wants_prepared(&self, append: &Append) -> bool {
        // The first segment after recovery says durably from which batch on it holds the truth: that is for `reserve`.
        let begun = append.page != u32::MAX;
        let enough = (self.segments / 8).clamp(1, PREPARED);
        begun && !append.free.is_empty() && (append.prepared.len() as u64) < enough
    }

    /// Whether a segment should be prepared: says yes to one caller, who then does it.
    pub(crate) fn claim_preparing(&self) -> bool {
        self.unprepared.load(Ordering::Relaxed) && self.unprepared.swap(false, Ordering::Relaxed)
    }

    fn wipe_unbegun(&self, append: &mut Append, taken: u32) -> Result<(), JournalError> {
        for segment in append.unbegun.drain(..).filter(|segment| segment.slot != taken) {
            let wiped = segment.file.write_at(0, &[IoSlice::new(&[0; PAGE])]).and_then(|()| segment.file.sync_data());
            wiped.map_err(|cause| self.header_failed(cause))?;
        }
        Ok(())
    }

    fn write_header(&self, append: &Append, to: &FreeSegment, sequence: u64, first_batch: u64) -> Result<(), JournalError> {
        let header = SegmentHeader {
            journal: self.id,
            sequence,
            first_batch,
            bytes: self.segment_bytes,
            // What nobody holds any more is stored and decided: its rot must not end a recovery's walk.
            oldest: append.live.front().map_or(sequence, |segment| segment.sequence),
        };
        to.file.write_at(0, &[IoSlice::new(&header.encode()[..])]).map_err(|cause| self.header_failed(cause))
    }

    /// Durable before any batch: else power loss may leave the old header over batches of both uses, a hole in the middle of
    /// the oldest use found, and recovery would stop there, before everything that is live.
    fn sync_header(&self, of: &FreeSegment) -> Result<(), JournalError> {
        of.file.sync_data().map_err(|cause| self.header_failed(cause))
    }

    fn header_failed(&self, cause: io::Error) -> JournalError {
        self.failed.store(true, Ordering::Release);
        JournalError::Disk { doing: "writing a segment header", cause }
    }

    /// Appends one batch; `data` holds the blocks of the data entries in their order. [`Journal::reserve`] came before.
    pub(crate) fn write(
        &self,
        append: &mut Append,
        time: lamina_contract::Timestamp,
        entries: &[JournalEntry],
        data: &[u8],
    ) -> Result<Written, JournalError> {
        let segment = append.live.back().cloned().ok_or(JournalError::Full)?;
        let header = BatchHeader {
            journal: self.id,
            segment: segment.sequence,
            sequence: append.next_batch,
            time,
            durable_through: self.durable.load(Ordering::Acquire),
        };
        append.header.clear();
        encode_batch(&header, entries, &mut append.header);
        let first_page = append.page + (append.header.len() / PAGE) as u32;
        let at = u64::from(append.page) * PAGE as u64;
        failpoint::hit(failpoint::JOURNAL_BEFORE_WRITE);
        let result = segment.file.write_at(at, &[IoSlice::new(&append.header), IoSlice::new(data)]);
        if let Err(cause) = result {
            // What reached the SSD is unknown, and so is whether it can take the next one.
            self.failed.store(true, Ordering::Release);
            return Err(JournalError::Disk { doing: "writing a batch", cause });
        }
        failpoint::hit(failpoint::JOURNAL_AFTER_WRITE);
        let bytes = append.header.len() + data.len();
        append.page += (bytes / PAGE) as u32;
        append.next_batch += 1;
        self.accepted.store(header.sequence, Ordering::Release);
        self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.unsynced.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(Written { segment, first_page, sequence: header.sequence })
    }

    /// Makes every batch accepted before this call durable and returns the newest that is.
    pub(crate) fn sync(&self) -> Result<u64, JournalError> {
        let mut syncing = self.syncing.lock();
        if self.failed.load(Ordering::Acquire) {
            return Err(JournalError::Failed);
        }
        let (dirty_from, dirty_page) = syncing.dirty_from;
        let (segments, through, page) = {
            let append = self.append.lock();
            // Freed ones too: recovery walks from the oldest use that it finds, and a hole would end its walk before what is live.
            let freed = append.free.iter().filter(|s| s.sequence > 0).map(|s| (s.sequence, &s.file));
            let prepared = append.prepared.iter().map(|p| &p.next).filter(|s| s.sequence > 0).map(|s| (s.sequence, &s.file));
            let live = append.live.iter().map(|s| (s.sequence, &s.file));
            let mut dirty: Vec<_> =
                freed.chain(prepared).chain(live).filter(|(n, _)| *n >= dirty_from).map(|(n, f)| (n, f.clone())).collect();
            // Oldest first: a durable batch never stands behind one that is not.
            dirty.sort_unstable_by_key(|(sequence, _)| *sequence);
            self.unsynced.store(0, Ordering::Relaxed);
            (dirty, append.next_batch - 1, append.page)
        };
        if through <= self.durable.load(Ordering::Acquire) {
            return Ok(through);
        }
        failpoint::hit(failpoint::JOURNAL_BEFORE_SYNC);
        for (_, file) in &segments {
            if let Err(cause) = file.sync_data() {
                self.failed.store(true, Ordering::Release);
                return Err(JournalError::Disk { doing: "fdatasync", cause });
            }
        }
        let newest = segments.last().map(|(sequence, _)| *sequence);
        for (sequence, file) in segments {
            let first = if sequence == dirty_from { u64::from(dirty_page) * PAGE as u64 } else { 0 };
            let end = if Some(sequence) == newest { u64::from(page) * PAGE as u64 } else { self.segment_bytes };
            syncing.cached.push(file, first, end.saturating_sub(first));
        }
        if let Some(newest) = newest {
            syncing.dirty_from = (newest, page);
        }
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.durable.fetch_max(through, Ordering::AcqRel);
        failpoint::hit(failpoint::JOURNAL_AFTER_SYNC);
        Ok(through)
    }

    /// Whether a sync is due although nobody flushes.
    pub(crate) fn wants_sync(&self) -> bool {
        self.unsynced.load(Ordering::Relaxed) >= SYNC_BYTES && !self.is_failed()
    }

    /// Puts segments that nobody holds back to use.
    pub(crate) fn reclaim(&self, append: &mut Append) {
        while append.live.len() > 1 {
            let held = append.live.front().is_none_or(|s| Arc::strong_count(s) > 1);
            if held {
                break;
            }
            if let Some(Ok(segment)) = append.live.pop_front().map(Arc::try_unwrap) {
                // The oldest of them first: were the header begun next to rot, what is left of the older uses is an unbroken run still.
                let place = append.freed_since;
                append.free.insert(place, FreeSegment { slot: segment.slot, sequence: segment.sequence, file: segment.file });
                append.freed_since += 1;
            }
        }
        self.account(append);
    }

    fn account(&self, append: &Append) {
        let used = append.live.len() as u64 * self.segment_bytes;
        self.used_bytes.store(used, Ordering::Release);
        self.unprepared.store(self.wants_prepared(append), Ordering::Relaxed);
    }

    /// The newest batch accepted.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Acquire)
    }

    /// The newest batch known durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// How full it is: bytes of segments in use, and in all.
    pub(crate) fn usage(&self) -> (u64, u64) {
        (self.used_bytes.load(Ordering::Acquire), self.segments * self.segment_bytes)
    }

    /// Bytes written since the start, headers included.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// fdatasync calls that covered something.
    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Whether a write or sync has failed.
    pub(crate) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Whether recovery found batches that had been durable and did not verify.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// The oldest use that somebody may still need; 0 when there is none.
    pub(crate) fn oldest_use(&self) -> u64 {
        self.append.lock().live.front().map_or(0, |segment| segment.sequence)
    }

    /// Length of a segment in bytes.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }
}

fn segment_name(slot: u32) -> String {
    format!("journal-{slot:05}.seg")
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> JournalError {
    move |cause| JournalError::Disk { doing, cause }
}

fn data_pages(entries: &[JournalEntry]) -> usize {
    entries
        .iter()
        .map(|e| match e.op {
            JournalOp::Data { pages, .. } => usize::from(pages),
            JournalOp::Zero { .. } | JournalOp::Trim { .. } => 0,
        })
        .sum()
}

#[path = "journal_recovery.rs"]
mod recovery;

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
