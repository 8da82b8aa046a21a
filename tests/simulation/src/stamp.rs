//! Sectors that say what they are: volume, address and operation, or a template that many addresses may share, and a CRC.
//!
//! Each ends in the CRC-32C of what is before it, as sectors of file systems and databases do. All such sectors have the same CRC-32C: a
//! check of guests' data that were a CRC-32C would tell none of them from another.

use lamina_contract::SECTOR_BYTES;
use lamina_formats::crc32c;

/// Bytes in a sector, as a length.
pub const SECTOR: usize = SECTOR_BYTES as usize;
const MAGIC: u32 = u32::from_le_bytes(*b"Stmp");
const TEMPLATE: u32 = 1 << 31;
const CRC_AT: usize = SECTOR - 4;

/// What a sector holds, in 32 bits: nothing, an operation's number, or a template's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Content(u32);

impl Content {
    /// Zeros.
    pub const ZERO: Self = Self(0);

    /// What operation `number` (from 1) wrote for this very address.
    #[must_use]
    pub const fn unique(number: u32) -> Self {
        Self(number & !TEMPLATE)
    }

    /// A sector of template block `number`: the same bytes wherever that block is written.
    #[must_use]
    pub const fn template(number: u32) -> Self {
        Self(number | TEMPLATE)
    }

    const fn is_template(self) -> bool {
        self.0 & TEMPLATE != 0
    }
}

/// Where a sector is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which volume of the world.
    pub volume: usize,
    /// Sector of the volume.
    pub sector: usize,
    /// Sectors of its blocks.
    pub per_block: usize,
}

impl Place {
    fn words(self, content: Content) -> [u32; 3] {
        if content.is_template() {
            [u32::MAX, (self.sector % self.per_block) as u32, content.0]
        } else {
            [self.volume as u32, self.sector as u32, content.0]
        }
    }
}

/// Fills one sector.
pub fn paint(content: Content, place: Place, sector: &mut [u8]) {
    if content == Content::ZERO {
        return sector.fill(0);
    }
    let words = place.words(content);
    let mut filler = words.iter().fold(0x9e37_79b9_u32, |sum, word| (sum ^ word).wrapping_mul(0x85eb_ca6b).rotate_left(13));
    for (n, chunk) in sector.chunks_exact_mut(4).enumerate() {
        let word = match n {
            0 => MAGIC,
            1..=3 => words[n - 1],
            _ => {
                filler = filler.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
                filler
            }
        };
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let sum = crc32c(&sector[..CRC_AT]);
    sector[CRC_AT..].copy_from_slice(&sum.to_le_bytes());
}

/// What one sector holds; None when no write can have left these bytes at this place.
#[must_use]
pub fn read(place: Place, sector: &[u8]) -> Option<Content> {
    let word = |at: usize| sector.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    if word(0)? == 0 {
        return sector.iter().all(|b| *b == 0).then_some(Content::ZERO);
    }
    let content = Content(word(12)?);
    let expected = [MAGIC, place.words(content)[0], place.words(content)[1], content.0];
    let fits = (0..4).all(|n| word(4 * n) == Some(expected[n])) && word(CRC_AT)? == crc32c(&sector[..CRC_AT]);
    fits.then_some(content)
}

#[cfg(test)]
mod tests {
    use super::{Content, Place, SECTOR, paint, read};

    #[test]
    fn all_stamps_have_the_same_crc() {
        let crc = |op| {
            let mut sector = vec![0; SECTOR];
            paint(Content::unique(op), Place { volume: 0, sector: 0, per_block: 8 }, &mut sector);
            lamina_formats::crc32c(&sector)
        };
        assert_eq!(crc(1), crc(2));
    }

    #[test]
    fn a_sector_is_known_at_its_own_place_only_and_a_template_anywhere() {
        let place = |volume, sector| Place { volume, sector, per_block: 8 };
        let mut sector = vec![0; SECTOR];
        paint(Content::unique(9), place(1, 20), &mut sector);
        assert_eq!(read(place(1, 20), &sector), Some(Content::unique(9)));
        assert_eq!(read(place(1, 21), &sector), None);
        assert_eq!(read(place(0, 20), &sector), None);
        paint(Content::template(3), place(1, 20), &mut sector);
        assert_eq!(read(place(0, 12), &sector), Some(Content::template(3)));
        assert_eq!(read(place(0, 13), &sector), None);
        for at in 0..SECTOR {
            sector[at] ^= 1;
            assert_eq!(read(place(0, 12), &sector), None, "byte {at}");
            sector[at] ^= 1;
        }
    }
}
