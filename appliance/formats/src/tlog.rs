//! A TLog object: the volume's ordered entries of a run of SCOs.
//!
//! ```text
//! header (64 B) │ entry (64 B) │ entry │ …
//! ```
//! One CRC covers header and entries. The map of a volume is what replaying its TLogs in order yields.

use lamina_contract::{BlockAddress, Epoch, Fingerprint, Location, ScoNumber, Timestamp, TlogNumber, VolumeId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::integrity::{FormatError, crc32c};

const FORMAT: &str = "TLog";
const MAGIC: u64 = u64::from_le_bytes(*b"LAMTLOG\0");
const VERSION: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U64,
    version: U16,
    _pad: [u8; 2],
    entries: U32,
    volume: U64,
    number: U64,
    epoch: U64,
    first_sco: U64,
    last_sco: U64,
    crc: U32,
    _pad2: [u8; 4],
}
const _: () = assert!(size_of::<RawHeader>() == 64);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntry {
    kind: u8,
    flags: u8,
    _pad: [u8; 2],
    count: U32,
    block: U64,
    location: U64,
    time_ms: U64,
    fingerprint: [u8; 32],
}
const _: () = assert!(size_of::<RawEntry>() == 64);

/// What an entry does to the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlogOp {
    /// The block's bytes stand at this location, first written by this entry.
    Data {
        /// Where.
        location: Location,
        /// SHA-256 of the bytes.
        fingerprint: Fingerprint,
    },
    /// The block equals bytes that stand at this location already.
    Reference {
        /// Where.
        location: Location,
        /// SHA-256 of the bytes.
        fingerprint: Fingerprint,
    },
    /// `count` blocks read as zeros.
    Zero {
        /// How many blocks.
        count: u32,
    },
    /// `count` blocks are not needed; they read as zeros.
    Trim {
        /// How many blocks.
        count: u32,
    },
}

/// One ordered entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlogEntry {
    /// The (first) block.
    pub block: BlockAddress,
    /// What happened.
    pub op: TlogOp,
    /// When it was accepted.
    pub time: Timestamp,
    /// A flush was acknowledged between the previous entry and this one.
    pub after_sync: bool,
}

/// Which part of a volume's history an object holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlogIdentity {
    /// Whose.
    pub volume: VolumeId,
    /// Its number; TLogs apply in the order of their numbers.
    pub number: TlogNumber,
    /// The term in which it was written; part of its key.
    pub epoch: Epoch,
    /// First SCO whose entries are here.
    pub first_sco: ScoNumber,
    /// Last SCO whose entries are here.
    pub last_sco: ScoNumber,
}

/// The object's bytes.
#[must_use]
pub fn encode(identity: &TlogIdentity, entries: &[TlogEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + entries.len() * 64);
    let mut header = RawHeader {
        magic: MAGIC.into(),
        version: VERSION.into(),
        _pad: [0; 2],
        // Bounded by the SCOs of one commit: far below 2^32.
        entries: (entries.len() as u32).into(),
        volume: identity.volume.0.into(),
        number: identity.number.0.into(),
        epoch: identity.epoch.0.into(),
        first_sco: identity.first_sco.0.into(),
        last_sco: identity.last_sco.0.into(),
        crc: 0.into(),
        _pad2: [0; 4],
    };
    out.extend_from_slice(header.as_bytes());
    for entry in entries {
        let (kind, count, location, fingerprint) = match entry.op {
            TlogOp::Data { location, fingerprint } => (1, 1, location.to_bits(), fingerprint.0),
            TlogOp::Reference { location, fingerprint } => (2, 1, location.to_bits(), fingerprint.0),
            TlogOp::Zero { count } => (3, count, 0, [0; 32]),
            TlogOp::Trim { count } => (4, count, 0, [0; 32]),
        };
        let raw = RawEntry {
            kind,
            flags: u8::from(entry.after_sync),
            _pad: [0; 2],
            count: count.into(),
            block: entry.block.0.into(),
            location: location.into(),
            time_ms: entry.time.0.into(),
            fingerprint,
        };
        out.extend_from_slice(raw.as_bytes());
    }
    header.crc = crc32c(&out).into();
    out[..64].copy_from_slice(header.as_bytes());
    out
}

/// Verifies and reads an object.
///
/// # Errors
/// [`FormatError`] for anything that [`encode`] did not write.
pub fn decode(bytes: &[u8]) -> Result<(TlogIdentity, Vec<TlogEntry>), FormatError> {
    let short = |need| FormatError::Short { format: FORMAT, need, have: bytes.len() };
    let field = |field| FormatError::Field { format: FORMAT, field };
    let (header, body) = RawHeader::read_from_prefix(bytes).map_err(|_| short(64))?;
    if header.magic.get() != MAGIC {
        return Err(FormatError::Magic { format: FORMAT, found: header.magic.get() });
    }
    if header.version.get() != VERSION {
        return Err(FormatError::Version { format: FORMAT, found: header.version.get() });
    }
    let count = header.entries.get() as usize;
    if body.len() != count * 64 {
        return Err(short(64 + count * 64));
    }
    let mut zeroed = header;
    zeroed.crc = 0.into();
    let mut covered = bytes.to_vec();
    covered[..64].copy_from_slice(zeroed.as_bytes());
    if crc32c(&covered) != header.crc.get() {
        return Err(FormatError::Checksum { format: FORMAT, part: "header and entries" });
    }
    let mut entries = Vec::with_capacity(count);
    for chunk in body.chunks_exact(64) {
        let raw = RawEntry::read_from_bytes(chunk).map_err(|_| field("entry"))?;
        let location = Location::from_bits(raw.location.get());
        let fingerprint = Fingerprint(raw.fingerprint);
        let count = raw.count.get();
        let op = match raw.kind {
            1 => TlogOp::Data { location, fingerprint },
            2 => TlogOp::Reference { location, fingerprint },
            3 => TlogOp::Zero { count },
            4 => TlogOp::Trim { count },
            _ => return Err(field("kind")),
        };
        entries.push(TlogEntry {
            block: BlockAddress(raw.block.get()),
            op,
            time: Timestamp(raw.time_ms.get()),
            after_sync: raw.flags & 1 != 0,
        });
    }
    let identity = TlogIdentity {
        volume: VolumeId(header.volume.get()),
        number: TlogNumber(header.number.get()),
        epoch: Epoch(header.epoch.get()),
        first_sco: ScoNumber(header.first_sco.get()),
        last_sco: ScoNumber(header.last_sco.get()),
    };
    Ok((identity, entries))
}
