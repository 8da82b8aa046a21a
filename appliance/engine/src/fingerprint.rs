//! SHA-256 of blocks: one at a time, and many side by side.
//!
//! One hash is a chain that no CPU can hurry; hashes of different blocks are not, and in the lanes of the vector unit many run in
//! lockstep: 0.9 µs for 4 KiB with AVX-512, where one at a time takes 2.1 µs with SHA-NI. It is the largest single use of the CPU here.
//!
//! A wrong fingerprint would make two blocks one. The kernel that runs is chosen by the CPU, and perhaps no test of ours ever ran on
//! such a one: so before its first use a process compares it with the other implementation, and does without it where they differ.

use std::sync::OnceLock;

use lamina_contract::{BlockSize, Fingerprint};
use sha2::{Digest, Sha256};

/// SHA-256 of a block.
#[must_use]
pub fn fingerprint(block: &[u8]) -> Fingerprint {
    Fingerprint(Sha256::digest(block).into())
}

/// SHA-256 of each of many blocks; best by the dozen.
#[must_use]
pub fn fingerprints(blocks: &[&[u8]]) -> Vec<Fingerprint> {
    static TRUSTED: OnceLock<bool> = OnceLock::new();
    if !*TRUSTED.get_or_init(|| agrees(side_by_side)) {
        return one_by_one(blocks);
    }
    let found = side_by_side(blocks);
    // A processor that was right when the process began may be wrong later: one in a container costs 2 µs and shows it soon.
    let sample = rand::random_range(0..blocks.len().max(1));
    if found.len() == blocks.len() && blocks.get(sample).map(|block| fingerprint(block)) == found.get(sample).copied() {
        return found;
    }
    tracing::error!(kernel = tape_sha256::backend(), "hashing side by side went wrong; these blocks are hashed one by one");
    one_by_one(blocks)
}

fn one_by_one(blocks: &[&[u8]]) -> Vec<Fingerprint> {
    blocks.iter().map(|block| fingerprint(block)).collect()
}

fn side_by_side(blocks: &[&[u8]]) -> Vec<Fingerprint> {
    let mut digests = vec![[0; 32]; blocks.len()];
    tape_sha256::hash_many(blocks, &mut digests);
    digests.into_iter().map(Fingerprint).collect()
}

/// Whether `many` gives what SHA-256 gives: for every number of blocks up to more than the lanes of any kernel, twice, and as many of
/// each size. 10 ms.
fn agrees(many: impl Fn(&[&[u8]]) -> Vec<Fingerprint>) -> bool {
    const MOST: usize = 70;
    const LONGEST: usize = 64 << 10;
    // No two blocks are alike, so that no lane can pass for another.
    let bytes: Vec<u8> =
        (0..MOST * LONGEST / 8).flat_map(|at| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let smallest: Vec<&[u8]> = bytes.chunks(BlockSize::DEFAULT.bytes()).take(MOST).collect();
    let known = one_by_one(&smallest);
    let every_number = (0..=MOST).all(|number| many(&smallest[..number]) == known[..number]);
    let right = every_number
        && [2, 4, 8, 16].into_iter().all(|factor| {
            let blocks: Vec<&[u8]> = bytes.chunks(BlockSize::DEFAULT.bytes() * factor).take(MOST).collect();
            many(&blocks) == one_by_one(&blocks)
        });
    if !right {
        tracing::error!(kernel = tape_sha256::backend(), "hashing side by side is wrong on this CPU and is not used");
    }
    right
}

#[cfg(test)]
mod tests {
    use lamina_contract::Fingerprint;
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::{agrees, fingerprint, fingerprints, one_by_one, side_by_side};

    #[test]
    fn a_fingerprint_is_sha_256() {
        // FIPS 180-4, "abc".
        let expected = [
            0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3,
            0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad,
        ];
        assert_eq!(fingerprint(b"abc").0, expected);
        assert_eq!(side_by_side(&[b"abc"])[0].0, expected);
    }

    #[test]
    fn a_kernel_that_is_wrong_anywhere_is_found_out() {
        assert!(agrees(side_by_side), "this CPU's kernel");
        assert!(!agrees(|_| Vec::new()));
        for lane in [0, 15, 16, 31, 32, 69] {
            let off = |blocks: &[&[u8]]| {
                let mut found = one_by_one(blocks);
                if let Some(Fingerprint(bytes)) = found.get_mut(lane) {
                    bytes[31] ^= 1;
                }
                found
            };
            assert!(!agrees(off), "lane {lane}");
        }
        // Right for short blocks only.
        let short = |blocks: &[&[u8]]| if blocks.iter().all(|block| block.len() == 4096) { one_by_one(blocks) } else { Vec::new() };
        assert!(!agrees(short));
    }

    proptest! {
        #[test]
        fn many_give_what_each_gives(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..80)) {
            let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(fingerprints(&blocks), one_by_one(&blocks));
        }
    }
}
