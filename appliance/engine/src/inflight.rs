//! Containers that are not stored yet: their entries in order, and where in the journal their blocks are.
//!
//! Open → Closed here; Closed → Stored is `behind.rs`. A container holds the journal segments that carry its blocks; dropping it is
//! what frees them.

use std::sync::Arc;

use lamina_contract::{BlockAddress, Location, ScoNumber, Timestamp};
use lamina_formats::journal::{JournalEntry, JournalOp, PAGE};

use crate::journal::SegmentUse;

/// Entries without data that one container may gather before it closes.
pub(crate) const MAX_ENTRIES: usize = 16_384;

const KIND_DATA: u32 = 0;
const KIND_ZERO: u32 = 1;
const KIND_TRIM: u32 = 2;
const KIND_MASK: u32 = 3;
const SYNC_FLAG: u32 = 4;
const TIME_SHIFT: u32 = 3;

/// One ordered entry in 16 bytes: 2 million of them are in memory when a full 8 GiB journal waits for its store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScoEntry {
    block: u64,
    /// Block index for data, number of blocks otherwise.
    number: u32,
    /// Kind (2 bits), after-sync (1 bit), milliseconds since the container opened (29 bits: 6 days).
    tag: u32,
}

/// What an entry did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryOp {
    Data { index: u16 },
    Zero { count: u32 },
    Trim { count: u32 },
}

impl ScoEntry {
    pub(crate) fn block(self) -> BlockAddress {
        BlockAddress(self.block)
    }

    pub(crate) fn op(self) -> EntryOp {
        match self.tag & KIND_MASK {
            // Only `push` makes entries, with an index that was a u16.
            KIND_DATA => EntryOp::Data { index: self.number as u16 },
            KIND_ZERO => EntryOp::Zero { count: self.number },
            _ => EntryOp::Trim { count: self.number },
        }
    }

    pub(crate) fn after_sync(self) -> bool {
        self.tag & SYNC_FLAG != 0
    }

    pub(crate) fn time(self, opened: Timestamp) -> Timestamp {
        Timestamp(opened.0 + u64::from(self.tag >> TIME_SHIFT))
    }
}

/// Where a block's bytes are in the journal, and their checksum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockPlace {
    segment: u16,
    pub(crate) page: u32,
    pub(crate) sum: u32,
}

/// A block in the journal, held there for as long as this lives.
#[derive(Clone)]
pub(crate) struct JournalBlock {
    pub(crate) segment: Arc<SegmentUse>,
    pub(crate) page: u32,
    pub(crate) sum: u32,
}

impl JournalBlock {
    pub(crate) fn offset(&self) -> u64 {
        u64::from(self.page) * PAGE as u64
    }
}

/// A container's content; open while it is in [`crate::layers::Layers`]' `open`, immutable behind an `Arc`.
pub(crate) struct Inflight {
    pub(crate) number: ScoNumber,
    pub(crate) entries: Vec<ScoEntry>,
    blocks: Vec<BlockPlace>,
    segments: Vec<Arc<SegmentUse>>,
    /// Wall time of the first entry; entries count from here.
    pub(crate) opened: Timestamp,
    /// Monotonic time of the first entry, for its age.
    pub(crate) opened_ms: u64,
    /// Bytes that its entries take in the journal, their share of headers included.
    pub(crate) journal_bytes: u64,
}

impl Inflight {
    pub(crate) fn new(number: ScoNumber) -> Self {
        Self {
            number,
            entries: Vec::new(),
            blocks: Vec::new(),
            segments: Vec::new(),
            opened: Timestamp(0),
            opened_ms: 0,
            journal_bytes: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Whether the next data entry, or any next entry, belongs to the next container.
    pub(crate) fn is_full(&self, capacity: u16) -> bool {
        self.blocks.len() >= usize::from(capacity) || self.entries.len() >= MAX_ENTRIES
    }

    /// Adds an entry that was accepted at `time`; a data entry's bytes are at `page` of `segment`.
    pub(crate) fn push(&mut self, entry: &JournalEntry, segment: &Arc<SegmentUse>, page: u32, time: Timestamp, now_ms: u64) {
        if self.entries.is_empty() {
            self.opened = time;
            self.opened_ms = now_ms;
        }
        if self.segments.last().is_none_or(|last| !Arc::ptr_eq(last, segment)) {
            self.segments.push(segment.clone());
        }
        let (kind, number) = match entry.op {
            JournalOp::Data { sum, .. } => {
                // A container spans at most as many segments as it has entries: 20,480.
                self.blocks.push(BlockPlace { segment: (self.segments.len() - 1) as u16, page, sum });
                (KIND_DATA, u32::from(entry.location.index))
            }
            JournalOp::Zero { count } => (KIND_ZERO, count),
            JournalOp::Trim { count } => (KIND_TRIM, count),
        };
        let since = time.0.saturating_sub(self.opened.0).min((1 << 29) - 1) as u32;
        let sync = if entry.after_sync { SYNC_FLAG } else { 0 };
        self.entries.push(ScoEntry { block: entry.block.0, number, tag: (since << TIME_SHIFT) | sync | kind });
    }

    /// The journal's copy of block `index`.
    pub(crate) fn block(&self, index: u16) -> Option<JournalBlock> {
        let place = self.blocks.get(usize::from(index))?;
        let segment = self.segments.get(usize::from(place.segment))?.clone();
        Some(JournalBlock { segment, page: place.page, sum: place.sum })
    }

    /// The oldest use of a segment that this holds.
    pub(crate) fn oldest_use(&self) -> Option<u64> {
        self.segments.first().map(|segment| segment.sequence())
    }

    /// The location of block `index`.
    pub(crate) fn location(&self, index: u16) -> Location {
        Location { ancestor: 0, sco: self.number, index }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<ScoEntry>()
            + self.blocks.capacity() * size_of::<BlockPlace>()
            + self.segments.capacity() * size_of::<usize>()
            + size_of::<Self>()
    }

    /// Gives back what growing left over.
    pub(crate) fn shrink(&mut self) {
        self.entries.shrink_to_fit();
        self.blocks.shrink_to_fit();
        self.segments.shrink_to_fit();
    }
}
