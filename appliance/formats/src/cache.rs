//! A region of the dedupe cache on the node's SSD: a header, a table of its slots, then the slots.
//!
//! ```text
//! header (64 B) │ entry (48 B) × slots … │ (to the next 4 KiB for the most slots that fit) │ slot 0 │ slot 1 │ …
//! ```
//! Header and table are written when the region is full, so a region that was being filled in a crash has none. The header's CRC
//! covers the header, the table's the entries; a slot's CRC covers its fingerprint, then its data. What a stale or torn region
//! holds therefore never passes for something else.

use lamina_contract::{BlockSize, Fingerprint, VolumeId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::integrity::{FormatError, crc32c};

const FORMAT: &str = "cache region";
const MAGIC: u64 = u64::from_le_bytes(*b"LAMDEDU\0");
const VERSION: u16 = 1;

/// Alignment of slots, and what is read to see a header.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a table entry.
pub const ENTRY_BYTES: usize = 48;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U64,
    version: U16,
    queue: u8,
    _reserved: u8,
    crc: U32,
    region: U32,
    slot_bytes: U32,
    generation: U64,
    region_bytes: U64,
    slots: U32,
    table_crc: U32,
    _reserved2: [u8; 16],
}
const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntry {
    fingerprint: [u8; 32],
    volume: U64,
    crc: U32,
    length: U32,
}
const _: () = assert!(size_of::<RawEntry>() == ENTRY_BYTES);

/// Which of the cache's two queues a region belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Blocks that were seen once.
    Probation,
    /// Blocks that were wanted again.
    Main,
}

/// What a region's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionHeader {
    /// Its place in the cache.
    pub region: u32,
    /// Counts up over all regions with each filling; never 0.
    pub generation: u64,
    /// Bytes of the whole region.
    pub region_bytes: u64,
    /// Bytes of a slot.
    pub slot_bytes: BlockSize,
    /// Slots in use.
    pub slots: u32,
    /// Its queue.
    pub queue: Queue,
}

/// What a region's table says of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotEntry {
    /// Of the data.
    pub fingerprint: Fingerprint,
    /// Who brought it in.
    pub volume: VolumeId,
    /// [`slot_checksum`].
    pub crc: u32,
    /// Bytes of data.
    pub length: u32,
}

/// The CRC of a slot: over the fingerprint, then the data.
#[must_use]
pub fn slot_checksum(fingerprint: &Fingerprint, data: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&fingerprint.0);
    digest.update(data);
    // CRC-32C's value fits 32 bits by definition.
    digest.finalize() as u32
}

/// How many slots fit a region, and where the first begins.
#[must_use]
pub const fn layout(region_bytes: u64, slot_bytes: BlockSize) -> (u32, u64) {
    let slot = slot_bytes.get() as u64;
    let mut slots = region_bytes / slot;
    while slots > 0 {
        let start = (HEADER_BYTES as u64 + slots * ENTRY_BYTES as u64).next_multiple_of(PAGE_BYTES as u64);
        if start + slots * slot <= region_bytes {
            return (slots as u32, start);
        }
        slots -= 1;
    }
    (0, 0)
}

impl SlotEntry {
    /// Appends the entry to a table.
    pub fn encode(&self, table: &mut Vec<u8>) {
        let raw = RawEntry {
            fingerprint: self.fingerprint.0,
            volume: self.volume.0.into(),
            crc: self.crc.into(),
            length: self.length.into(),
        };
        table.extend_from_slice(raw.as_bytes());
    }
}

impl RegionHeader {
    /// Header and table in one piece, to be written at the region's start. `table` holds `slots` encoded entries.
    #[must_use]
    pub fn encode(&self, table: &[u8]) -> Vec<u8> {
        debug_assert_eq!(table.len(), self.slots as usize * ENTRY_BYTES);
        let mut raw = RawHeader {
            magic: MAGIC.into(),
            version: VERSION.into(),
            queue: match self.queue {
                Queue::Probation => 0,
                Queue::Main => 1,
            },
            _reserved: 0,
            crc: 0.into(),
            region: self.region.into(),
            slot_bytes: self.slot_bytes.get().into(),
            generation: self.generation.into(),
            region_bytes: self.region_bytes.into(),
            slots: self.slots.into(),
            table_crc: crc32c(table).into(),
            _reserved2: [0; 16],
        };
        raw.crc = crc32c(raw.as_bytes()).into();
        let mut out = Vec::with_capacity(HEADER_BYTES + table.len());
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(table);
        out
    }

    /// Verifies and reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`RegionHeader::encode`] did not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        raw_header(bytes).map(|(header, _)| header)
    }

    /// Verifies and reads the table: `bytes` begins with the header.
    ///
    /// # Errors
    /// [`FormatError`] when header or table is damaged or cut short.
    pub fn decode_table(bytes: &[u8]) -> Result<(Self, Vec<SlotEntry>), FormatError> {
        let (header, table_crc) = raw_header(bytes)?;
        let need = HEADER_BYTES + header.slots as usize * ENTRY_BYTES;
        let table = bytes.get(HEADER_BYTES..need).ok_or(FormatError::Short { format: FORMAT, need, have: bytes.len() })?;
        if crc32c(table) != table_crc {
            return Err(FormatError::Checksum { format: FORMAT, part: "table" });
        }
        let raw = <[RawEntry]>::ref_from_bytes(table).map_err(|_| FormatError::Field { format: FORMAT, field: "slots" })?;
        let entries = raw.iter().map(|entry| {
            if entry.length.get() > header.slot_bytes.get() {
                return Err(FormatError::Field { format: FORMAT, field: "length" });
            }
            Ok(SlotEntry {
                fingerprint: Fingerprint(entry.fingerprint),
                volume: VolumeId(entry.volume.get()),
                crc: entry.crc.get(),
                length: entry.length.get(),
            })
        });
        Ok((header, entries.collect::<Result<_, _>>()?))
    }
}

fn raw_header(bytes: &[u8]) -> Result<(RegionHeader, u32), FormatError> {
    let (mut raw, _) = RawHeader::read_from_prefix(bytes).map_err(|_| FormatError::Short {
        format: FORMAT,
        need: HEADER_BYTES,
        have: bytes.len(),
    })?;
    if raw.magic.get() != MAGIC {
        return Err(FormatError::Magic { format: FORMAT, found: raw.magic.get() });
    }
    if raw.version.get() != VERSION {
        return Err(FormatError::Version { format: FORMAT, found: raw.version.get() });
    }
    let crc = raw.crc.get();
    raw.crc = 0.into();
    if crc32c(raw.as_bytes()) != crc {
        return Err(FormatError::Checksum { format: FORMAT, part: "header" });
    }
    let field = |field| FormatError::Field { format: FORMAT, field };
    let slot_bytes = BlockSize::new(u64::from(raw.slot_bytes.get())).map_err(|_| field("slot_bytes"))?;
    let queue = match raw.queue {
        0 => Queue::Probation,
        1 => Queue::Main,
        _ => return Err(field("queue")),
    };
    // 4 GiB: no cache has larger regions, and the sums below cannot overflow.
    if raw.region_bytes.get() > 1 << 32 {
        return Err(field("region_bytes"));
    }
    if raw.slots.get() > layout(raw.region_bytes.get(), slot_bytes).0 {
        return Err(field("slots"));
    }
    if raw.generation.get() == 0 {
        return Err(field("generation"));
    }
    let header = RegionHeader {
        region: raw.region.get(),
        generation: raw.generation.get(),
        region_bytes: raw.region_bytes.get(),
        slot_bytes,
        slots: raw.slots.get(),
        queue,
    };
    Ok((header, raw.table_crc.get()))
}
