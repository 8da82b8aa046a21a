//! A storage container object in a store: blocks first, then an index, then a trailer, so that a container describes itself.
//!
//! ```text
//! block │ block │ … │ index entry (48 B) per block │ trailer (64 B)
//! ```
//! Blocks stand at multiples of the block size from the object's start; the n-th index entry belongs to the n-th block. A
//! container need not hold every index that its journal entries assigned: a block that proved to live elsewhere already is
//! a reference in the TLog and leaves a gap here. One CRC covers index and trailer; each index entry carries its block's.

use lamina_contract::{BlockAddress, BlockSize, Epoch, Fingerprint, ScoNumber, VolumeId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::integrity::{FormatError, crc32c};

const FORMAT: &str = "SCO";
const MAGIC: u64 = u64::from_le_bytes(*b"LAMSCO\0\0");
const VERSION: u16 = 1;
/// Fingerprint algorithm ids on disk: 1 is SHA-256.
const SHA_256: u8 = 1;

/// Bytes of an index entry.
pub const INDEX_ENTRY: usize = 48;
/// Bytes of the trailer, the last of the object.
pub const TRAILER: usize = 64;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawIndex {
    block: U64,
    fingerprint: [u8; 32],
    crc: U32,
    index: U16,
    _pad: [u8; 2],
}
const _: () = assert!(size_of::<RawIndex>() == INDEX_ENTRY);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawTrailer {
    volume: U64,
    sco: U64,
    epoch: U64,
    block_size: U32,
    blocks: U32,
    rewrite: U32,
    algorithm: u8,
    _pad: [u8; 5],
    version: U16,
    _reserved: [u8; 4],
    crc: U32,
    _pad2: [u8; 4],
    magic: U64,
}
const _: () = assert!(size_of::<RawTrailer>() == TRAILER);

/// One block of a container, as its index describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoBlock {
    /// The index that its location names.
    pub index: u16,
    /// The block address it was written to.
    pub block: BlockAddress,
    /// SHA-256 of its bytes.
    pub fingerprint: Fingerprint,
    /// CRC-32C of its bytes.
    pub crc: u32,
}

/// What a container says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoIdentity {
    /// Whose.
    pub volume: VolumeId,
    /// Its number.
    pub sco: ScoNumber,
    /// The term in which it was written; part of its key.
    pub epoch: Epoch,
    /// The volume's block size.
    pub block_size: BlockSize,
    /// How often the scrubber has rewritten it.
    pub rewrite: u32,
}

/// Bytes of index and trailer of a container with `blocks` blocks: what a reader asks for from the end.
#[must_use]
pub const fn tail_bytes(blocks: usize) -> usize {
    blocks * INDEX_ENTRY + TRAILER
}

/// Index and trailer of a container: what follows its blocks, which stand in the order of `blocks`.
#[must_use]
pub fn encode_tail(identity: &ScoIdentity, blocks: &[ScoBlock]) -> Vec<u8> {
    let mut tail = Vec::with_capacity(tail_bytes(blocks.len()));
    for block in blocks {
        let raw = RawIndex {
            block: block.block.0.into(),
            fingerprint: block.fingerprint.0,
            crc: block.crc.into(),
            index: block.index.into(),
            _pad: [0; 2],
        };
        tail.extend_from_slice(raw.as_bytes());
    }
    let mut raw = RawTrailer {
        volume: identity.volume.0.into(),
        sco: identity.sco.0.into(),
        epoch: identity.epoch.0.into(),
        block_size: identity.block_size.get().into(),
        // At most 4096 blocks of 4 KiB make 16 MiB.
        blocks: (blocks.len() as u32).into(),
        rewrite: identity.rewrite.into(),
        algorithm: SHA_256,
        _pad: [0; 5],
        version: VERSION.into(),
        _reserved: [0; 4],
        crc: 0.into(),
        _pad2: [0; 4],
        magic: MAGIC.into(),
    };
    tail.extend_from_slice(raw.as_bytes());
    raw.crc = crc32c(&tail).into();
    let at = tail.len() - TRAILER;
    tail[at..].copy_from_slice(raw.as_bytes());
    tail
}

/// Verifies index and trailer; `tail` is the end of the object, at least [`tail_bytes`] of it.
///
/// # Errors
/// [`FormatError`] for anything that [`encode_tail`] did not write. `Short` tells how much of the end is needed.
pub fn decode_tail(tail: &[u8]) -> Result<(ScoIdentity, Vec<ScoBlock>), FormatError> {
    let short = |need| FormatError::Short { format: FORMAT, need, have: tail.len() };
    let field = |field| FormatError::Field { format: FORMAT, field };
    let at = tail.len().checked_sub(TRAILER).ok_or(short(TRAILER))?;
    let raw = RawTrailer::read_from_bytes(&tail[at..]).map_err(|_| short(TRAILER))?;
    if raw.magic.get() != MAGIC {
        return Err(FormatError::Magic { format: FORMAT, found: raw.magic.get() });
    }
    if raw.version.get() != VERSION {
        return Err(FormatError::Version { format: FORMAT, found: raw.version.get() });
    }
    let count = raw.blocks.get() as usize;
    if count > 4096 {
        return Err(field("blocks"));
    }
    let start = tail.len().checked_sub(tail_bytes(count)).ok_or(short(tail_bytes(count)))?;
    let mut covered = tail[start..].to_vec();
    let mut zeroed = raw;
    zeroed.crc = 0.into();
    covered[count * INDEX_ENTRY..].copy_from_slice(zeroed.as_bytes());
    if crc32c(&covered) != raw.crc.get() {
        return Err(FormatError::Checksum { format: FORMAT, part: "index and trailer" });
    }
    if raw.algorithm != SHA_256 {
        return Err(field("algorithm"));
    }
    let block_size = BlockSize::new(u64::from(raw.block_size.get())).map_err(|_| field("block_size"))?;
    let mut blocks = Vec::with_capacity(count);
    for chunk in tail[start..at].chunks_exact(INDEX_ENTRY) {
        let entry = RawIndex::read_from_bytes(chunk).map_err(|_| field("index"))?;
        blocks.push(ScoBlock {
            index: entry.index.get(),
            block: BlockAddress(entry.block.get()),
            fingerprint: Fingerprint(entry.fingerprint),
            crc: entry.crc.get(),
        });
    }
    let identity = ScoIdentity {
        volume: VolumeId(raw.volume.get()),
        sco: ScoNumber(raw.sco.get()),
        epoch: Epoch(raw.epoch.get()),
        block_size,
        rewrite: raw.rewrite.get(),
    };
    Ok((identity, blocks))
}
