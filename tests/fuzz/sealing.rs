//! What the fuzz targets share: mutated bytes get the right magic, version and checksum again, so that the fuzzer reaches what lies behind
//! them. Raw bytes would stall at the first comparison.

use lamina_formats::crc32c;

/// Where a format keeps its CRC, and what it covers: `covered` with the four bytes at `crc_at` taken as zeros.
///
/// Bytes too short for it stay as they are.
pub fn seal(bytes: &mut [u8], covered: std::ops::Range<usize>, crc_at: usize) {
    if crc_at + 4 > bytes.len() || covered.end > bytes.len() || covered.start > covered.end {
        return;
    }
    bytes[crc_at..crc_at + 4].fill(0);
    let crc = crc32c(&bytes[covered]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Puts `what` at `at`, if there is room.
pub fn stamp(bytes: &mut [u8], at: usize, what: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + what.len()) {
        place.copy_from_slice(what);
    }
}

/// A little-endian number of `width` bytes at `at`; 0 outside.
#[must_use]
pub fn number(bytes: &[u8], at: usize, width: usize) -> usize {
    bytes.get(at..at + width).map_or(0, |field| field.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}
