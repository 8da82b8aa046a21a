//! Golden bytes of the journal: healthy ones read for ever, damaged ones are refused.

use lamina_contract::{BlockAddress, Location, ScoNumber, Timestamp, VolumeId};
use lamina_formats::journal::{
    BatchHeader, JournalEntry, JournalOp, MAX_ENTRIES, PAGE, SegmentHeader, claimed_header_pages, decode_batch, encode_batch,
};
use proptest::prelude::{any, prop, proptest};

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex")).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn segment() -> SegmentHeader {
    SegmentHeader { journal: 0x0102_0304_0506_0708, sequence: 9, first_batch: 1000, bytes: 64 << 20, oldest: 8 }
}

const SEGMENT: &str = "
    4c414d4a534547000100000054d076b708070605040302010900000000000000e803000000000000000000040000000008000000000000000000000000000000";

fn batch() -> (BatchHeader, Vec<JournalEntry>) {
    let header = BatchHeader {
        journal: 0x0102_0304_0506_0708,
        segment: 9,
        sequence: 1001,
        time: Timestamp(1_767_225_600_000),
        durable_through: 998,
    };
    let entry = |block, index, op, after_sync| JournalEntry {
        volume: VolumeId(0xfeed_face_cafe_f00d),
        block: BlockAddress(block),
        location: Location { ancestor: 0, sco: ScoNumber(77), index },
        op,
        after_sync,
    };
    let entries = vec![
        entry(5, 3, JournalOp::Data { sum: 0xdead_beef, pages: 16 }, true),
        entry(1 << 40, 4, JournalOp::Zero { count: 9 }, false),
        entry(0, 4, JournalOp::Trim { count: u32::MAX }, false),
    ];
    (header, entries)
}

const BATCH: &str = "
    4c414d4a424154000100030016d869eb08070605040302010900000000000000e90300000000000000a8da769b0100001000000000000000e603000000000000
    0df0fecacefaedfe050000000000000003004d0000000000efbeadde0100000001011000000000000df0fecacefaedfe000000000001000004004d0000000000
    000000000900000002000000000000000df0fecacefaedfe000000000000000004004d000000000000000000ffffffff0300000000000000";

#[test]
fn a_golden_segment_header_is_written_and_read_for_ever() {
    let page = segment().encode();
    assert_eq!(hex(&page[..64]), hex(&unhex(SEGMENT)));
    assert!(page[64..].iter().all(|b| *b == 0));
    assert_eq!(SegmentHeader::decode(&unhex(SEGMENT)), Ok(segment()));
}

#[test]
fn a_golden_batch_is_written_and_read_for_ever() {
    let (header, entries) = batch();
    let mut bytes = Vec::new();
    encode_batch(&header, &entries, &mut bytes);
    assert_eq!(bytes.len(), PAGE);
    assert_eq!(hex(&bytes[..64 + 3 * 40]), hex(&unhex(BATCH)));
    let mut golden = unhex(BATCH);
    golden.resize(PAGE, 0);
    assert_eq!(claimed_header_pages(&golden), Ok(1));
    assert_eq!(decode_batch(&golden), Ok((header, entries)));
}

#[test]
fn every_flipped_bit_of_a_segment_header_is_refused() {
    for (at, bit) in (0..64).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut damaged = unhex(SEGMENT);
        damaged[at] ^= 1 << bit;
        assert!(SegmentHeader::decode(&damaged).is_err(), "byte {at} bit {bit}");
    }
    for len in 0..64 {
        assert!(SegmentHeader::decode(&unhex(SEGMENT)[..len]).is_err(), "cut to {len}");
    }
}

#[test]
fn every_flipped_bit_of_a_batch_is_refused_and_its_padding_means_nothing() {
    let mut golden = unhex(BATCH);
    let covered = golden.len();
    golden.resize(PAGE, 0);
    for (at, bit) in (0..covered).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut damaged = golden.clone();
        damaged[at] ^= 1 << bit;
        assert!(decode_batch(&damaged).is_err(), "byte {at} bit {bit}");
    }
    for len in 0..covered {
        assert!(decode_batch(&golden[..len]).is_err(), "cut to {len}");
    }
    for at in covered..PAGE {
        let mut padded = golden.clone();
        padded[at] ^= 0xff;
        assert_eq!(decode_batch(&padded), Ok(batch()), "padding at {at}");
    }
}

proptest! {
    #[test]
    fn whatever_is_encoded_is_read_back_and_any_flip_in_it_is_refused(
        blocks in prop::collection::vec((any::<u64>(), any::<u64>(), 0_u8..3, any::<u32>(), 1_u16..=16, any::<bool>()), 0..MAX_ENTRIES),
        numbers in any::<[u64; 5]>(),
        flip in any::<(prop::sample::Index, u8)>(),
    ) {
        let [journal, segment, sequence, time, durable_through] = numbers;
        let header = BatchHeader { journal, segment, sequence, time: Timestamp(time), durable_through };
        let entries: Vec<_> = blocks
            .iter()
            .map(|(volume, block, kind, number, pages, after_sync)| JournalEntry {
                volume: VolumeId(*volume),
                block: BlockAddress(*block),
                location: Location::from_bits(block.rotate_left(7)),
                op: match kind {
                    0 => JournalOp::Data { sum: *number, pages: *pages },
                    1 => JournalOp::Zero { count: *number },
                    _ => JournalOp::Trim { count: *number },
                },
                after_sync: *after_sync,
            })
            .collect();
        let mut bytes = Vec::new();
        encode_batch(&header, &entries, &mut bytes);
        assert_eq!(claimed_header_pages(&bytes), Ok(bytes.len() / PAGE));
        assert_eq!(decode_batch(&bytes), Ok((header, entries.clone())));
        let at = flip.0.index(64 + 40 * entries.len());
        bytes[at] ^= flip.1.max(1);
        assert!(decode_batch(&bytes).is_err(), "byte {at}");
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..3000), magic in 0..3) {
        if magic > 0 && bytes.len() >= 10 {
            bytes[..8].copy_from_slice(&unhex(if magic == 1 { BATCH } else { SEGMENT })[..8]);
            bytes[8..10].copy_from_slice(&[1, 0]);
        }
        // Answers are refusals: no generator guesses a CRC. What matters is that they come.
        let _ = (SegmentHeader::decode(&bytes), claimed_header_pages(&bytes), decode_batch(&bytes));
    }
}
