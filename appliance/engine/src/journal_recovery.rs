//! What the journal holds when it is opened: segments by the order of their use, batches to the first that does not verify.
//!
//! Headers are walked first, of all segments; then the batches are replayed, with the data checked of those that no sync is known to cover.
//! What cannot be read is an error, never the end: taken for that, it would cost everything behind it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lamina_contract::Disk;
use lamina_formats::journal::{
    BatchHeader, JournalEntry, JournalOp, PAGE, SegmentHeader, block_sum, claimed_header_pages, decode_batch, header_pages,
};

use super::{FreeSegment, Journal, JournalError, MIN_SEGMENT_BYTES, SegmentUse, data_pages, failed};

/// What recovery reads at once: headers stand closely under small writes, and single pages would cost a device's latency each.
const RECOVERY_READ: usize = 512 << 10;

/// What recovery was doing when the SSD refused.
const READING: &str = "reading the journal back";

/// A batch that recovery accepted.
pub(crate) struct Recovered<'a> {
    pub(crate) header: BatchHeader,
    pub(crate) entries: &'a [JournalEntry],
    pub(crate) segment: &'a Arc<SegmentUse>,
    pub(crate) first_page: u32,
}

impl Journal {
    /// Walks the used segments, replays what verifies, and makes durable what was replayed and what said where to begin.
    pub(super) fn recover(&self, used: Vec<SegmentUse>, replay: &mut impl FnMut(&Recovered<'_>)) -> Result<(), JournalError> {
        let used: Vec<Arc<SegmentUse>> = used.into_iter().map(Arc::new).collect();
        // `truth[i]`: batches from here on belong to a later segment, whatever segment i holds.
        let mut truth = vec![u64::MAX; used.len()];
        for i in (0..used.len().saturating_sub(1)).rev() {
            let known = Some(used[i + 1].first_batch).filter(|first| *first > 0);
            truth[i] = truth[i + 1].min(known.unwrap_or(u64::MAX));
        }
        let mut batches: Vec<Found> = Vec::new();
        let mut seen = Seen { durable: 0, lowest: u64::MAX };
        // The batch that must come next; the oldest use that was found says which is the first. One whose batches are all lost is a
        // break too: what stands in later segments must not pass for the beginning.
        let (mut next, mut first) = (None, None);
        for (i, segment) in used.iter().enumerate() {
            if let Some(next) = used.get(i + 1) {
                next.file.read_ahead(0, self.segment_bytes);
            }
            let mut reader = SegmentReader::new(segment);
            if segment.first_batch == 0 {
                // Prepared, and without its first batch: never begun, or power or rot took that. What follows shows which: in the middle of
                // the run it follows what came before or not. At the front nothing may follow, for had this one never been begun, whoever
                // came after would have said that nothing that old is needed.
                self.walk_segment(&mut reader, i, 0..0, &mut batches, &mut seen)?;
                next = next.or(Some(0));
                continue;
            }
            let expected = next.unwrap_or(segment.first_batch);
            if segment.first_batch != expected || segment.first_batch >= truth[i] {
                // A left-over of a tail that an earlier recovery gave up; or the run is broken, and what follows shows whether
                // durable batches are missing.
                if segment.first_batch < truth[i] {
                    self.walk_segment(&mut reader, i, 0..0, &mut batches, &mut seen)?;
                }
                continue;
            }
            self.walk_segment(&mut reader, i, expected..truth[i], &mut batches, &mut seen)?;
            first = first.or(Some(expected));
            next = Some(batches.last().map_or(expected, |b| b.header.sequence + 1));
            // Its headers are known now, and its data is asked for much later.
            segment.file.drop_cached(0, self.segment_bytes);
        }
        let durable = seen.durable;
        // What came before the beginning is not missing. Where nobody knows the first batch, it was the one before the lowest that is there,
        // or an earlier one.
        let guessed = if seen.lowest == u64::MAX { 1 } else { seen.lowest.saturating_sub(1) };
        let first = first.unwrap_or(guessed).max(1);
        let (mut intact, mut keep) = (first - 1, 0);
        let mut data = Vec::new();
        for Found { segment: number, page, header, entries } in batches {
            let segment = &used[number];
            let first_page = page + header_pages(entries.len()) as u32;
            // Data below the watermark was under an fdatasync; its blocks are checked when they are read.
            if header.sequence > durable && !data_is_intact(self.id, segment, first_page, &entries, &mut data)? {
                break;
            }
            (intact, keep) = (header.sequence, number + 1);
            replay(&Recovered { header, entries: &entries, segment, first_page });
        }
        if intact < durable {
            tracing::error!(intact, durable, "journal is damaged: batches that were durable do not verify; later writes are lost");
            self.damaged.store(true, Ordering::Relaxed);
        }
        let mut append = self.append.lock();
        for (i, segment) in used.into_iter().enumerate() {
            // Those that hold nothing too: the newest header says which segments are dead, and a power cut must not take that back.
            segment.file.sync_data().map_err(failed("making the recovered journal durable"))?;
            let free = FreeSegment { slot: segment.slot, sequence: 0, file: segment.file.clone() };
            if i < keep && segment.first_batch > 0 {
                append.live.push_back(segment);
                continue;
            }
            if segment.first_batch == 0 {
                append.unbegun.push(free.clone());
            }
            append.free.push_back(free);
        }
        append.next_batch = intact + 1;
        self.accepted.store(append.next_batch - 1, Ordering::Release);
        self.durable.store(append.next_batch - 1, Ordering::Release);
        self.account(&append);
        Ok(())
    }

    fn walk_segment(
        &self,
        reader: &mut SegmentReader<'_>,
        index: usize,
        range: std::ops::Range<u64>,
        batches: &mut Vec<Found>,
        seen: &mut Seen,
    ) -> Result<(), JournalError> {
        let mut page = 1;
        let mut expected = range.start;
        while expected < range.end {
            let Some((header, entries)) = self.read_batch(reader, page)? else { break };
            if header.sequence != expected {
                break;
            }
            seen.note(&header);
            let pages = (header_pages(entries.len()) + data_pages(&entries)) as u32;
            batches.push(Found { segment: index, page, header, entries });
            page += pages;
            expected += 1;
        }
        // Nothing behind the first bad batch is used, but what it says was durable tells damage from the end of the journal.
        for page in page..(self.segment_bytes / PAGE as u64) as u32 {
            if let Some((header, _)) = self.read_batch(reader, page)? {
                seen.note(&header);
            }
        }
        Ok(())
    }

    /// The verified header and entries at `page`, if they are of this journal and this use of the segment. What cannot be read is an
    /// error: taken for the journal's end, it would cost everything behind it.
    fn read_batch(
        &self,
        reader: &mut SegmentReader<'_>,
        page: u32,
    ) -> Result<Option<(BatchHeader, Vec<JournalEntry>)>, JournalError> {
        let at = u64::from(page) * PAGE as u64;
        if at + PAGE as u64 > self.segment_bytes {
            return Ok(None);
        }
        let Ok(pages) = claimed_header_pages(reader.bytes(at, PAGE)?) else { return Ok(None) };
        if at + (pages * PAGE) as u64 > self.segment_bytes {
            return Ok(None);
        }
        let Ok((header, entries)) = decode_batch(reader.bytes(at, pages * PAGE)?) else { return Ok(None) };
        let end = at + ((pages + data_pages(&entries)) * PAGE) as u64;
        let ours = header.journal == self.id && header.segment == reader.segment.sequence;
        Ok((ours && end <= self.segment_bytes).then_some((header, entries)))
    }
}

/// What headers say that recovery comes by, whether their batches are used or not.
struct Seen {
    /// The newest batch that was durable.
    durable: u64,
    /// The lowest number of one that is there.
    lowest: u64,
}

impl Seen {
    fn note(&mut self, header: &BatchHeader) {
        self.durable = self.durable.max(header.durable_through);
        self.lowest = self.lowest.min(header.sequence);
    }
}

/// A batch whose header verifies and follows the one before.
struct Found {
    segment: usize,
    page: u32,
    header: BatchHeader,
    entries: Vec<JournalEntry>,
}

/// Reads a segment from its start to its end, in large pieces.
struct SegmentReader<'a> {
    segment: &'a SegmentUse,
    piece: Vec<u8>,
    at: u64,
}

impl<'a> SegmentReader<'a> {
    fn new(segment: &'a SegmentUse) -> Self {
        Self { segment, piece: Vec::new(), at: 0 }
    }

    /// `len` bytes at `at`, which lie within the segment.
    fn bytes(&mut self, at: u64, len: usize) -> Result<&[u8], JournalError> {
        let held = at.checked_sub(self.at).map(|skip| skip as usize).filter(|skip| skip + len <= self.piece.len());
        let skip = match held {
            Some(skip) => skip,
            None => {
                let rest = usize::try_from(self.segment.file.len().saturating_sub(at)).unwrap_or(usize::MAX);
                self.at = at;
                self.piece.resize(rest.min(RECOVERY_READ).max(len), 0);
                if self.segment.file.read_at(at, &mut self.piece).is_err() {
                    // Perhaps it is a block's data that cannot be read: that is for whoever wants the block.
                    self.piece.resize(len, 0);
                    let read = self.segment.file.read_at(at, &mut self.piece);
                    if read.is_err() {
                        self.piece.clear();
                    }
                    read.map_err(failed(READING))?;
                }
                0
            }
        };
        Ok(&self.piece[skip..skip + len])
    }
}

/// Segments sorted into used ones, by the order of their use, and free ones.
pub(super) struct Walk {
    pub(super) id: u64,
    pub(super) used: Vec<SegmentUse>,
    pub(super) free: VecDeque<FreeSegment>,
    pub(super) next_segment: u64,
}

impl Walk {
    pub(super) fn over(present: Vec<FreeSegment>, fresh_id: u64) -> Result<Self, JournalError> {
        let mut headers = Vec::new();
        let mut free = VecDeque::new();
        for segment in present {
            let mut page = vec![0; PAGE];
            segment.file.read_at(0, &mut page).map_err(failed("reading a segment header"))?;
            let header = match SegmentHeader::decode(&page) {
                Ok(header) => Some(header),
                // Zeros are a segment that was never used, or wiped on purpose.
                Err(_) if page.iter().all(|byte| *byte == 0) => None,
                Err(_) => header_from_batch(&segment)?,
            };
            match header {
                Some(header) => headers.push((header, segment)),
                None => free.push_back(segment),
            }
        }
        headers.sort_by_key(|(header, _)| header.sequence);
        // The journal is what its newest segment says it is; segments of another one are left-overs.
        let id = headers.last().map_or(fresh_id, |(header, _)| header.journal);
        let next_segment = headers.last().map_or(1, |(header, _)| header.sequence + 1);
        let ours = headers.iter().filter(|(header, _)| header.journal == id);
        let oldest = ours.map(|(header, _)| header.oldest).max().unwrap_or(0);
        let mut used = Vec::new();
        for (header, segment) in headers {
            if header.journal != id || header.sequence < oldest {
                free.push_back(segment);
                continue;
            }
            let first_batch = if header.first_batch == 0 { first_batch_in(&segment, &header)? } else { header.first_batch };
            used.push(SegmentUse { slot: segment.slot, sequence: header.sequence, first_batch, file: segment.file });
        }
        Ok(Self { id, used, free, next_segment })
    }
}

/// The first batch of a use whose header was prepared and does not say; 0 when there is none.
fn first_batch_in(segment: &FreeSegment, header: &SegmentHeader) -> Result<u64, JournalError> {
    let batch = first_batch(segment)?.filter(|batch| batch.journal == header.journal && batch.segment == header.sequence);
    Ok(batch.map_or(0, |batch| batch.sequence))
}

/// What the header of a use must have said, by its first batch: a rotten header page must not pass for a free segment.
fn header_from_batch(segment: &FreeSegment) -> Result<Option<SegmentHeader>, JournalError> {
    let Some(batch) = first_batch(segment)? else { return Ok(None) };
    tracing::warn!(slot = segment.slot, sequence = batch.segment, "a segment's header is damaged; its first batch says what it is");
    let bytes = segment.file.len();
    Ok(Some(SegmentHeader { journal: batch.journal, sequence: batch.segment, first_batch: batch.sequence, bytes, oldest: 0 }))
}

fn first_batch(segment: &FreeSegment) -> Result<Option<BatchHeader>, JournalError> {
    let read = |bytes: &mut Vec<u8>| segment.file.read_at(PAGE as u64, bytes).map_err(failed(READING));
    let mut page = vec![0; PAGE];
    read(&mut page)?;
    let Ok(pages) = claimed_header_pages(&page) else { return Ok(None) };
    page.resize(pages * PAGE, 0);
    read(&mut page)?;
    Ok(decode_batch(&page).ok().map(|(batch, _)| batch))
}

pub(super) fn present_segments(disk: &Arc<dyn Disk>) -> Result<Vec<FreeSegment>, JournalError> {
    let mut present = Vec::new();
    for name in disk.list().map_err(failed("listing segments"))? {
        let Some(slot) = name.strip_prefix("journal-").and_then(|n| n.strip_suffix(".seg")) else { continue };
        let Ok(slot) = slot.parse() else { continue };
        let file = disk.open(&name).map_err(failed("opening a segment"))?;
        if file.len() >= MIN_SEGMENT_BYTES && file.len().is_multiple_of(PAGE as u64) {
            present.push(FreeSegment { slot, sequence: 0, file });
        }
    }
    present.sort_by_key(|s| s.slot);
    Ok(present)
}

fn data_is_intact(
    journal: u64,
    segment: &SegmentUse,
    first_page: u32,
    entries: &[JournalEntry],
    data: &mut Vec<u8>,
) -> Result<bool, JournalError> {
    data.resize(data_pages(entries) * PAGE, 0);
    segment.file.read_at(u64::from(first_page) * PAGE as u64, data).map_err(failed(READING))?;
    let mut rest = data.as_slice();
    let intact = entries.iter().all(|entry| match entry.op {
        JournalOp::Data { sum, pages } => {
            let (block, behind) = rest.split_at(usize::from(pages) * PAGE);
            rest = behind;
            block_sum(journal, block) == sum
        }
        JournalOp::Zero { .. } | JournalOp::Trim { .. } => true,
    });
    Ok(intact)
}
