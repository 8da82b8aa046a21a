//! Sectors that say who wrote them: volume, address, operation and a CRC, so that a lost, misdirected, torn or rotten sector
//! is told from a right one by its bytes alone.
//!
//! Layout of 512 bytes, little-endian: magic (8), volume (8), LBA (8), operation (8), filler (476) that follows from these
//! and cannot be compressed, CRC-32C of the 508 bytes before it (4). A *template* sector has another magic and carries
//! (template, index in its block) instead of (volume, LBA, operation): many addresses may hold the same one, so that
//! deduplication has something to find. A sector of zeros is content too.

use crc_fast::{CrcAlgorithm, checksum};
use lamina_contract::units::Lba;

use crate::oracle::OpId;

/// Bytes in a sector.
pub const SECTOR: usize = 512;
const CRC_AT: usize = SECTOR - 4;
const UNIQUE: u64 = u64::from_le_bytes(*b"LamStamp");
const TEMPLATE: u64 = u64::from_le_bytes(*b"LamTempl");

/// The identity of a template block of 8 sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TemplateId(pub u64);

/// What a sector holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Zeros: never written, discarded or zeroed.
    Zero,
    /// Written by this operation for this very address.
    Unique(OpId),
    /// The sector `index` (0 to 7) of a template block.
    Template {
        /// Which template.
        id: TemplateId,
        /// Which sector of it.
        index: u8,
    },
}

/// Why a sector is wrong whatever was written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Neither zeros nor a stamp with a right CRC.
    #[error("neither zeros nor a valid stamp")]
    Garbage,
    /// A valid stamp of another volume or another address.
    #[error("a sector of volume {volume:#x} at sector {} by operation {}", lba.0, op.0)]
    Misdirected {
        /// The volume it was written for.
        volume: u64,
        /// The address it was written for.
        lba: Lba,
        /// The operation that wrote it.
        op: OpId,
    },
}

fn word(sector: &[u8], at: usize) -> u64 {
    sector.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn crc(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Writes `content` for (`volume`, `lba`) into one sector.
///
/// # Panics
/// When `sector` is not 512 bytes.
pub fn paint(volume: u64, lba: Lba, content: Content, sector: &mut [u8]) {
    assert_eq!(sector.len(), SECTOR, "one sector");
    let head = match content {
        Content::Zero => {
            sector.fill(0);
            return;
        }
        Content::Unique(op) => [UNIQUE, volume, lba.0, op.0],
        Content::Template { id, index } => [TEMPLATE, id.0, u64::from(index), 0],
    };
    // splitmix64, seeded by the head: different for any two heads, the same for equal ones.
    let mut state = head
        .iter()
        .fold(0x9e37_79b9_7f4a_7c15_u64, |state, word| (state ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29));
    let (words, _) = sector.as_chunks_mut::<8>();
    for (at, target) in words.iter_mut().enumerate() {
        let value = head.get(at).copied().unwrap_or_else(|| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed ^ (mixed >> 27)
        });
        *target = value.to_le_bytes();
    }
    let sum = crc(&sector[..CRC_AT]);
    sector[CRC_AT..].copy_from_slice(&sum.to_le_bytes());
}

/// Reads what (`volume`, `lba`) holds.
///
/// # Errors
/// [`Damage`] when no write can have left these bytes here.
pub fn read_content(volume: u64, lba: Lba, sector: &[u8]) -> Result<Content, Damage> {
    if sector.len() != SECTOR {
        return Err(Damage::Garbage);
    }
    let magic = word(sector, 0);
    if magic == 0 && sector.iter().all(|byte| *byte == 0) {
        return Ok(Content::Zero);
    }
    let stored = sector[CRC_AT..].try_into().map_or(0, u32::from_le_bytes);
    if !(magic == UNIQUE || magic == TEMPLATE) || crc(&sector[..CRC_AT]) != stored {
        return Err(Damage::Garbage);
    }
    if magic == TEMPLATE {
        let index = u8::try_from(word(sector, 16)).map_err(|_| Damage::Garbage)?;
        return Ok(Content::Template { id: TemplateId(word(sector, 8)), index });
    }
    let (of, at, op) = (word(sector, 8), Lba(word(sector, 16)), OpId(word(sector, 24)));
    if of == volume && at == lba { Ok(Content::Unique(op)) } else { Err(Damage::Misdirected { volume: of, lba: at, op }) }
}

#[cfg(test)]
mod tests {
    use super::{Content, Damage, SECTOR, TemplateId, paint, read_content};
    use crate::oracle::OpId;
    use lamina_contract::units::Lba;

    #[test]
    fn a_stamp_is_read_back_where_it_was_written_and_nowhere_else() {
        let mut sector = [0; SECTOR];
        paint(7, Lba(100), Content::Unique(OpId(5)), &mut sector);
        assert_eq!(read_content(7, Lba(100), &sector), Ok(Content::Unique(OpId(5))));
        let elsewhere = Damage::Misdirected { volume: 7, lba: Lba(100), op: OpId(5) };
        assert_eq!(read_content(7, Lba(101), &sector), Err(elsewhere));
        assert_eq!(read_content(8, Lba(100), &sector), Err(elsewhere));
        let template = Content::Template { id: TemplateId(3), index: 6 };
        paint(7, Lba(9), template, &mut sector);
        assert_eq!(read_content(1, Lba(2), &sector), Ok(template));
        paint(7, Lba(9), Content::Zero, &mut sector);
        assert_eq!(read_content(7, Lba(9), &sector), Ok(Content::Zero));
    }

    #[test]
    fn any_flipped_byte_is_damage() {
        let mut sector = [0; SECTOR];
        paint(7, Lba(100), Content::Unique(OpId(5)), &mut sector);
        for at in 0..SECTOR {
            sector[at] ^= 0x40;
            assert!(read_content(7, Lba(100), &sector).is_err(), "byte {at}");
            sector[at] ^= 0x40;
        }
    }

    #[test]
    fn two_stamps_share_no_filler() {
        let (mut one, mut two) = ([0; SECTOR], [0; SECTOR]);
        paint(7, Lba(100), Content::Unique(OpId(5)), &mut one);
        paint(7, Lba(101), Content::Unique(OpId(5)), &mut two);
        let equal = one.iter().zip(&two).skip(32).filter(|(a, b)| a == b).count();
        assert!(equal < 20, "{equal} equal bytes");
    }
}
