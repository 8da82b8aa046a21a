//! The journal on SSD: segments of 4 KiB pages that hold batches.
//!
//! ```text
//! segment:  page 0 = segment header │ batch │ batch │ …
//! batch:    header (64 B) + entries (40 B each), padded to whole pages │ data of the entries, page-aligned, in their order
//! ```
//! A batch names the journal, the use of the segment and its own sequence, so a batch of an earlier use never replays.
//! One CRC covers header and entries; each data entry carries the CRC of its own block. `durable_through` is the newest
//! batch that an fdatasync is known to cover: recovery re-reads the data of newer batches only.

use lamina_contract::{BlockAddress, Location, Timestamp, VolumeId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::integrity::{FormatError, crc32c};

/// Unit of alignment of everything in a segment.
pub const PAGE: usize = 4096;
/// Entries that one batch may hold: what fits 8 header pages (8 × 4096 − 64) / 40, rounded down.
pub const MAX_ENTRIES: usize = 800;
const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"LAMJSEG\0");
const BATCH_MAGIC: u64 = u64::from_le_bytes(*b"LAMJBAT\0");
const VERSION: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSegment {
    magic: U64,
    version: U16,
    _pad: [u8; 2],
    crc: U32,
    journal: U64,
    sequence: U64,
    first_batch: U64,
    bytes: U64,
    oldest: U64,
    _reserved: [u8; 8],
}
const _: () = assert!(size_of::<RawSegment>() == 64);

/// What stands in a segment's first page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The journal's own random identity.
    pub journal: u64,
    /// Counts uses of segments; rises by one each time any segment is put to use.
    pub sequence: u64,
    /// Sequence of the first batch written into this use; 0 in a segment that is prepared and waits for it. Batches count from 1.
    pub first_batch: u64,
    /// Length of the segment in bytes.
    pub bytes: u64,
    /// The oldest use that was still needed when this one began: recovery looks at none before it.
    pub oldest: u64,
}

impl SegmentHeader {
    /// The page to write.
    #[must_use]
    pub fn encode(&self) -> Box<[u8; PAGE]> {
        let mut raw = RawSegment {
            magic: SEGMENT_MAGIC.into(),
            version: VERSION.into(),
            _pad: [0; 2],
            crc: 0.into(),
            journal: self.journal.into(),
            sequence: self.sequence.into(),
            first_batch: self.first_batch.into(),
            bytes: self.bytes.into(),
            oldest: self.oldest.into(),
            _reserved: [0; 8],
        };
        raw.crc = crc32c(raw.as_bytes()).into();
        let mut page = Box::new([0; PAGE]);
        page[..64].copy_from_slice(raw.as_bytes());
        page
    }

    /// Checks and reads a segment's first page.
    ///
    /// # Errors
    /// [`FormatError`] for anything that `encode` did not write.
    pub fn decode(page: &[u8]) -> Result<Self, FormatError> {
        const FORMAT: &str = "journal segment";
        let short = FormatError::Short { format: FORMAT, need: 64, have: page.len() };
        let (raw, _) = RawSegment::read_from_prefix(page).map_err(|_| short)?;
        if raw.magic.get() != SEGMENT_MAGIC {
            return Err(FormatError::Magic { format: FORMAT, found: raw.magic.get() });
        }
        let mut zeroed = raw;
        zeroed.crc = 0.into();
        if crc32c(zeroed.as_bytes()) != raw.crc.get() {
            return Err(FormatError::Checksum { format: FORMAT, part: "header" });
        }
        if raw.version.get() != VERSION {
            return Err(FormatError::Version { format: FORMAT, found: raw.version.get() });
        }
        Ok(Self {
            journal: raw.journal.get(),
            sequence: raw.sequence.get(),
            first_batch: raw.first_batch.get(),
            bytes: raw.bytes.get(),
            oldest: raw.oldest.get(),
        })
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawBatch {
    magic: U64,
    version: U16,
    entries: U16,
    crc: U32,
    journal: U64,
    segment: U64,
    sequence: U64,
    time_ms: U64,
    data_pages: U32,
    _pad: [u8; 4],
    durable_through: U64,
}
const _: () = assert!(size_of::<RawBatch>() == 64);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntry {
    volume: U64,
    block: U64,
    location: U64,
    sum: U32,
    count: U32,
    kind: u8,
    flags: u8,
    pages: U16,
    _pad: [u8; 4],
}
const _: () = assert!(size_of::<RawEntry>() == 40);

/// The checksum of a block in the journal with the identity `journal`: XXH3-64 with that as its seed, the low 32 bits.
///
/// Not a CRC: segments are used again, so a torn batch leaves a guest's older block where a newer one should be, and data that ends in
/// its own CRC-32C, as file systems and databases write it, has one and the same CRC-32C whatever it says. The seed is random for each
/// journal: a guest cannot aim at a sum.
#[must_use]
pub fn block_sum(journal: u64, block: &[u8]) -> u32 {
    // The low half is as good as the whole.
    twox_hash::XxHash3_64::oneshot_with_seed(journal, block) as u32
}

/// What an entry does to its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalOp {
    /// A block's bytes follow in the batch.
    Data {
        /// [`block_sum`] of the block.
        sum: u32,
        /// Its length in pages of 4 KiB: 1 to 16.
        pages: u16,
    },
    /// `count` blocks now read as zeros.
    Zero {
        /// How many blocks from `block` on.
        count: u32,
    },
    /// `count` blocks are no longer needed; they read as zeros.
    Trim {
        /// How many blocks from `block` on.
        count: u32,
    },
}

/// One accepted change of one volume, with the location that it will have for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalEntry {
    /// Whose.
    pub volume: VolumeId,
    /// The (first) block.
    pub block: BlockAddress,
    /// For data: its location. Otherwise: the SCO during which it happened, index meaningless.
    pub location: Location,
    /// What.
    pub op: JournalOp,
    /// A flush of this volume was acknowledged since its previous entry.
    pub after_sync: bool,
}

const FLAG_AFTER_SYNC: u8 = 1;

/// The header of a batch whose CRC held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// The journal's identity.
    pub journal: u64,
    /// The segment use it belongs to.
    pub segment: u64,
    /// Rises by one with every batch of the journal.
    pub sequence: u64,
    /// When it was accepted.
    pub time: Timestamp,
    /// Newest batch known to be covered by an fdatasync when this one was written.
    pub durable_through: u64,
}

/// Pages that the header and `entries` entries take.
#[must_use]
pub const fn header_pages(entries: usize) -> usize {
    (size_of::<RawBatch>() + entries * size_of::<RawEntry>()).div_ceil(PAGE)
}

/// Encodes header and entries into whole pages appended to `out`; the data pages follow behind.
///
/// # Panics
/// With more than [`MAX_ENTRIES`] entries: the writer splits batches before.
pub fn encode_batch(header: &BatchHeader, entries: &[JournalEntry], out: &mut Vec<u8>) {
    assert!(entries.len() <= MAX_ENTRIES, "a batch of {} entries", entries.len());
    let start = out.len();
    let mut data_pages = 0_u32;
    out.resize(start + size_of::<RawBatch>(), 0);
    for entry in entries {
        let (kind, sum, count, pages) = match entry.op {
            JournalOp::Data { sum, pages } => (1, sum, 1, pages),
            JournalOp::Zero { count } => (2, 0, count, 0),
            JournalOp::Trim { count } => (3, 0, count, 0),
        };
        data_pages += u32::from(pages);
        let raw = RawEntry {
            volume: entry.volume.0.into(),
            block: entry.block.0.into(),
            location: entry.location.to_bits().into(),
            sum: sum.into(),
            count: count.into(),
            kind,
            flags: if entry.after_sync { FLAG_AFTER_SYNC } else { 0 },
            pages: pages.into(),
            _pad: [0; 4],
        };
        out.extend_from_slice(raw.as_bytes());
    }
    let mut raw = RawBatch {
        magic: BATCH_MAGIC.into(),
        version: VERSION.into(),
        // At most MAX_ENTRIES, asserted above.
        entries: (entries.len() as u16).into(),
        crc: 0.into(),
        journal: header.journal.into(),
        segment: header.segment.into(),
        sequence: header.sequence.into(),
        time_ms: header.time.0.into(),
        data_pages: data_pages.into(),
        _pad: [0; 4],
        durable_through: header.durable_through.into(),
    };
    out[start..start + size_of::<RawBatch>()].copy_from_slice(raw.as_bytes());
    raw.crc = crc32c(&out[start..]).into();
    out[start..start + size_of::<RawBatch>()].copy_from_slice(raw.as_bytes());
    out.resize(start + header_pages(entries.len()) * PAGE, 0);
}

/// How much of a batch must be read before it can be verified, as its unverified first page claims.
///
/// # Errors
/// [`FormatError`] when the page does not look like a batch at all (the usual end of a journal).
pub fn claimed_header_pages(first_page: &[u8]) -> Result<usize, FormatError> {
    let raw = peek(first_page)?;
    Ok(header_pages(usize::from(raw.entries.get())))
}

fn peek(page: &[u8]) -> Result<RawBatch, FormatError> {
    const FORMAT: &str = "journal batch";
    let short = FormatError::Short { format: FORMAT, need: 64, have: page.len() };
    let (raw, _) = RawBatch::read_from_prefix(page).map_err(|_| short)?;
    if raw.magic.get() != BATCH_MAGIC {
        return Err(FormatError::Magic { format: FORMAT, found: raw.magic.get() });
    }
    if raw.version.get() != VERSION {
        return Err(FormatError::Version { format: FORMAT, found: raw.version.get() });
    }
    if usize::from(raw.entries.get()) > MAX_ENTRIES {
        return Err(FormatError::Field { format: FORMAT, field: "entries" });
    }
    Ok(raw)
}

/// Verifies header and entries (not the blocks' data) in `pages`, which starts at the batch.
///
/// # Errors
/// [`FormatError`] for anything that [`encode_batch`] did not write.
pub fn decode_batch(pages: &[u8]) -> Result<(BatchHeader, Vec<JournalEntry>), FormatError> {
    const FORMAT: &str = "journal batch";
    let raw = peek(pages)?;
    let count = usize::from(raw.entries.get());
    let end = size_of::<RawBatch>() + count * size_of::<RawEntry>();
    let short = FormatError::Short { format: FORMAT, need: end, have: pages.len() };
    let body = pages.get(size_of::<RawBatch>()..end).ok_or(short)?;
    let mut zeroed = raw;
    zeroed.crc = 0.into();
    let mut covered = zeroed.as_bytes().to_vec();
    covered.extend_from_slice(body);
    if crc32c(&covered) != raw.crc.get() {
        return Err(FormatError::Checksum { format: FORMAT, part: "header and entries" });
    }
    let field = |field| FormatError::Field { format: FORMAT, field };
    let mut entries = Vec::with_capacity(count);
    let mut data_pages = 0_u32;
    for chunk in body.chunks_exact(size_of::<RawEntry>()) {
        let raw = RawEntry::read_from_bytes(chunk).map_err(|_| field("entry"))?;
        let (count, pages) = (raw.count.get(), raw.pages.get());
        let op = match raw.kind {
            1 if count == 1 && (1..=16).contains(&pages) => JournalOp::Data { sum: raw.sum.get(), pages },
            2 if pages == 0 => JournalOp::Zero { count },
            3 if pages == 0 => JournalOp::Trim { count },
            _ => return Err(field("kind")),
        };
        data_pages += u32::from(pages);
        entries.push(JournalEntry {
            volume: VolumeId(raw.volume.get()),
            block: BlockAddress(raw.block.get()),
            location: Location::from_bits(raw.location.get()),
            op,
            after_sync: raw.flags & FLAG_AFTER_SYNC != 0,
        });
    }
    if data_pages != raw.data_pages.get() {
        return Err(field("data_pages"));
    }
    let header = BatchHeader {
        journal: raw.journal.get(),
        segment: raw.segment.get(),
        sequence: raw.sequence.get(),
        time: Timestamp(raw.time_ms.get()),
        durable_through: raw.durable_through.get(),
    };
    Ok((header, entries))
}

#[cfg(test)]
mod tests {
    use lamina_contract::{BlockAddress, Location, ScoNumber, Timestamp, VolumeId};

    use super::{BatchHeader, JournalEntry, JournalOp, MAX_ENTRIES, PAGE, decode_batch, encode_batch, header_pages};

    #[test]
    fn a_batch_of_most_entries_survives_encoding() {
        let header = BatchHeader { journal: 1, segment: 2, sequence: 3, time: Timestamp(4), durable_through: 2 };
        let entries: Vec<_> = (0..MAX_ENTRIES)
            .map(|n| JournalEntry {
                volume: VolumeId(9),
                block: BlockAddress(n as u64),
                location: Location { ancestor: 0, sco: ScoNumber(5), index: n as u16 },
                op: if n % 3 == 0 { JournalOp::Trim { count: 7 } } else { JournalOp::Data { sum: 1, pages: 2 } },
                after_sync: n % 2 == 0,
            })
            .collect();
        let mut bytes = Vec::new();
        encode_batch(&header, &entries, &mut bytes);
        assert_eq!(bytes.len(), header_pages(MAX_ENTRIES) * PAGE);
        assert_eq!(decode_batch(&bytes), Ok((header, entries)));
    }
}
