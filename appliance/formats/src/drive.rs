//! Who a drive is (`lamina-drive` in its root, written once when it is claimed), and which drives a pool has (`lamina-pool`).
//!
//! Invariants: a drive's identity never changes; identity, never the path, says which member it is. The roster has a number that
//! counts up by one; of two that verify, the higher is true. Both are whole or absent after a crash (written aside, synced, renamed).

use std::fmt;

use lamina_contract::Timestamp;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::integrity::{FormatError, crc32c};

const DRIVE_FORMAT: &str = "drive identity";
const DRIVE_MAGIC: u64 = u64::from_le_bytes(*b"LAMDRIV\0");
const POOL_FORMAT: &str = "pool roster";
const POOL_MAGIC: u64 = u64::from_le_bytes(*b"LAMPOOL\0");
const VERSION: u16 = 1;

/// Most drives of one pool; a bound for decoders.
pub const MEMBERS_MAX: usize = 4096;

/// A drive: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriveId(pub u128);

/// A pool of targets: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub u128);

impl fmt::Display for DriveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for DriveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawDrive {
    magic: U64,
    version: U16,
    _reserved: [u8; 2],
    crc: U32,
    drive: U128,
    pool: U128,
    created_ms: U64,
    slot: U32,
    _reserved2: [u8; 4],
}
const _: () = assert!(size_of::<RawDrive>() == 64);
const _: () = assert!(std::mem::offset_of!(RawDrive, drive) == 16);

/// What a drive says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriveIdentity {
    /// This drive.
    pub drive: DriveId,
    /// The pool that claimed it.
    pub pool: PoolId,
    /// Its number within the pool when it was claimed; a hint for people.
    pub slot: u32,
    /// When it was claimed.
    pub created: Timestamp,
}

impl DriveIdentity {
    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = RawDrive {
            magic: DRIVE_MAGIC.into(),
            version: VERSION.into(),
            _reserved: [0; 2],
            crc: 0.into(),
            drive: self.drive.0.into(),
            pool: self.pool.0.into(),
            created_ms: self.created.0.into(),
            slot: self.slot.into(),
            _reserved2: [0; 4],
        };
        raw.crc = crc32c(raw.as_bytes()).into();
        raw.as_bytes().to_vec()
    }

    /// Verifies and reads the file.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`DriveIdentity::encode`] did not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let raw = RawDrive::read_from_bytes(bytes).map_err(|_| FormatError::Short {
            format: DRIVE_FORMAT,
            need: size_of::<RawDrive>(),
            have: bytes.len(),
        })?;
        if raw.magic.get() != DRIVE_MAGIC {
            return Err(FormatError::Magic { format: DRIVE_FORMAT, found: raw.magic.get() });
        }
        let mut zeroed = raw;
        zeroed.crc = 0.into();
        if crc32c(zeroed.as_bytes()) != raw.crc.get() {
            return Err(FormatError::Checksum { format: DRIVE_FORMAT, part: "everything" });
        }
        if raw.version.get() != VERSION {
            return Err(FormatError::Version { format: DRIVE_FORMAT, found: raw.version.get() });
        }
        Ok(Self {
            drive: DriveId(raw.drive.get()),
            pool: PoolId(raw.pool.get()),
            slot: raw.slot.get(),
            created: Timestamp(raw.created_ms.get()),
        })
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRoster {
    magic: U64,
    version: U16,
    _reserved: [u8; 2],
    crc: U32,
    pool: U128,
    number: U64,
    members: U32,
    _reserved2: [u8; 4],
}
const ROSTER_HEAD: usize = 48;
const MEMBER: usize = 16;
const _: () = assert!(size_of::<RawRoster>() == ROSTER_HEAD);
const _: () = assert!(std::mem::offset_of!(RawRoster, crc) == 12);

/// The drives of a pool, by slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRoster {
    /// The pool.
    pub pool: PoolId,
    /// Counts up with every change.
    pub number: u64,
    /// Its drives in order of their slots; at most [`MEMBERS_MAX`].
    pub members: Vec<DriveId>,
}

impl PoolRoster {
    /// The file's bytes. Members beyond [`MEMBERS_MAX`] make a file that [`PoolRoster::decode`] refuses.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawRoster {
            magic: POOL_MAGIC.into(),
            version: VERSION.into(),
            _reserved: [0; 2],
            crc: 0.into(),
            pool: self.pool.0.into(),
            number: self.number.into(),
            members: (self.members.len() as u32).into(),
            _reserved2: [0; 4],
        };
        let mut bytes = raw.as_bytes().to_vec();
        for member in &self.members {
            bytes.extend_from_slice(&member.0.to_le_bytes());
        }
        let crc = crc32c(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Verifies and reads the file.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`PoolRoster::encode`] did not write, and for a drive that is listed twice.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let field = |field| FormatError::Field { format: POOL_FORMAT, field };
        let short = |need| FormatError::Short { format: POOL_FORMAT, need, have: bytes.len() };
        let (raw, table) = RawRoster::read_from_prefix(bytes).map_err(|_| short(ROSTER_HEAD))?;
        if raw.magic.get() != POOL_MAGIC {
            return Err(FormatError::Magic { format: POOL_FORMAT, found: raw.magic.get() });
        }
        let count = raw.members.get() as usize;
        if count > MEMBERS_MAX {
            return Err(field("members"));
        }
        if table.len() != count * MEMBER {
            return Err(short(ROSTER_HEAD + count * MEMBER));
        }
        let mut zeroed = bytes.to_vec();
        if let Some(crc) = zeroed.get_mut(12..16) {
            crc.fill(0);
        }
        if crc32c(&zeroed) != raw.crc.get() {
            return Err(FormatError::Checksum { format: POOL_FORMAT, part: "everything" });
        }
        if raw.version.get() != VERSION {
            return Err(FormatError::Version { format: POOL_FORMAT, found: raw.version.get() });
        }
        let (entries, _) = table.as_chunks::<MEMBER>();
        let members: Vec<DriveId> = entries.iter().map(|entry| DriveId(u128::from_le_bytes(*entry))).collect();
        let mut sorted = members.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair.first() == pair.get(1)) {
            return Err(field("members"));
        }
        Ok(Self { pool: PoolId(raw.pool.get()), number: raw.number.get(), members })
    }
}
