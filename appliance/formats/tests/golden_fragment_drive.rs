//! Golden bytes of fragments, drive identities and pool rosters: healthy ones read for ever, damaged ones are refused.

use lamina_contract::Timestamp;
use lamina_formats::drive::{DriveId, DriveIdentity, PoolId, PoolRoster};
use lamina_formats::fragment::{
    FragmentHeader, MatrixId, PAGE, StripeDescription, StripeId, SumBuilder, UnverifiedHeader, fragment_pages, header_len,
};
use lamina_formats::{FormatError, crc32c};
use proptest::prelude::{any, prop, proptest};

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex")).collect()
}

/// Data of fragment 1 of the golden stripe: two pages.
fn golden_data() -> Vec<u8> {
    [vec![0x5a; PAGE], (0..PAGE).map(|n| n as u8).collect()].concat()
}

fn golden_header() -> FragmentHeader {
    let stripe = StripeDescription {
        key: "0123456789abcdef/sco/00000001-0000000001.v0".into(),
        stripe: StripeId::new(0x0006_4c5d_0102_0304, 0xfeed_face_cafe_f00d),
        pool: PoolId(0x1111_2222_3333_4444_5555_6666_7777_8888),
        policy: "4+2".parse().expect("a policy"),
        matrix: MatrixId::VandermondeSystematic,
        object_len: 30_000,
    };
    let mut sums = SumBuilder::default();
    sums.update(&golden_data());
    FragmentHeader::new(&stripe, 1, sums.finish()).expect("a header")
}

fn golden_header_bytes() -> Vec<u8> {
    let fixed = "
        4c414d4652414700 0100 0100 04 02 01 2b 00100000 0c25087a
        0020000000000000 3075000000000000
        0df0fecacefaedfe 040302015d4c0600 8888777766665555 4444333322221111
        21383241 02000000";
    let mut bytes = unhex(fixed);
    assert_eq!(bytes.len(), 80);
    bytes.resize(256, 0);
    bytes.extend_from_slice(b"0123456789abcdef/sco/00000001-0000000001.v0");
    bytes.resize(512, 0);
    bytes.extend(unhex("498cf137 32fe719c"));
    bytes.resize(PAGE, 0);
    bytes
}

#[test]
fn a_golden_fragment_is_written_and_read_for_ever() {
    let golden = golden_header_bytes();
    let written = golden_header().encode();
    let different: Vec<usize> = (0..PAGE).filter(|&at| written[at] != golden[at]).collect();
    assert!(different.is_empty(), "bytes {different:?} changed: {:02x?} {:02x?}", &written[..80], &written[512..520]);
    let header = UnverifiedHeader::new(&golden).verify().expect("the golden header holds");
    assert_eq!(header, golden_header());
    assert_eq!((header.header_len(), header.data_len(), header.object_len()), (PAGE, 2 * PAGE as u64, 30_000));
    header.verify_all(&golden_data()).expect("the golden data hold");
    header.verify_pages(PAGE as u64, &golden_data()[PAGE..]).expect("a page holds alone");
}

#[test]
fn every_flipped_bit_of_a_header_is_refused() {
    let golden = golden_header_bytes();
    for at in 0..golden.len() {
        for bit in 0..8 {
            let mut damaged = golden.clone();
            damaged[at] ^= 1 << bit;
            assert!(UnverifiedHeader::new(&damaged).verify().is_err(), "byte {at} bit {bit}");
        }
    }
    for len in 0..golden.len() {
        assert!(UnverifiedHeader::new(&golden[..len]).verify().is_err(), "cut to {len}");
    }
}

#[test]
fn every_flipped_byte_of_the_data_is_noticed() {
    let (header, data) = (golden_header(), golden_data());
    for at in 0..data.len() {
        let mut damaged = data.clone();
        damaged[at] ^= 0x10;
        assert_eq!(
            header.verify_pages(0, &damaged),
            Err(FormatError::Checksum { format: "fragment", part: "a data page" }),
            "byte {at}"
        );
        assert_eq!(header.verify_pages((1 - at / PAGE) as u64 * PAGE as u64, &data[(1 - at / PAGE) * PAGE..][..PAGE]), Ok(()));
    }
    assert!(header.verify_all(&data[..PAGE]).is_err(), "short data");
    // Pages out of place, misaligned or outside.
    assert!(header.verify_pages(0, &data[PAGE..]).is_err());
    assert!(header.verify_pages(1, &data[..PAGE]).is_err());
    assert!(header.verify_pages(0, &data[..100]).is_err());
    assert!(header.verify_pages(2 * PAGE as u64, &data[..PAGE]).is_err());
    assert!(header.verify_pages(u64::MAX - 4095, &data[..PAGE]).is_err());
}

/// Fields that make no sense are refused even when the checksum holds.
#[test]
fn nonsense_with_a_right_checksum_is_refused() {
    let reseal = |mut bytes: Vec<u8>| {
        bytes[20..24].fill(0);
        let crc = crc32c(&bytes);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    assert!(UnverifiedHeader::new(&reseal(golden_header_bytes())).verify().is_ok());
    let cases: [(&str, usize, &[u8]); 12] = [
        ("another version", 8, &[2]),
        ("an unknown matrix", 10, &[9]),
        ("copies with X > 1", 10, &[0]),
        ("no data fragments", 12, &[0]),
        ("too many fragments", 12, &[255]),
        ("an index outside the stripe", 14, &[6]),
        ("no key", 15, &[0]),
        ("another header length", 16, &[0, 0x20]),
        ("another data length", 24, &[0, 0x30]),
        ("an object that does not fit", 32, &[0, 0, 1]),
        ("a key that is no text", 256, &[0xff]),
        ("more pages than there are", 76, &[3]),
    ];
    for (what, at, value) in cases {
        let mut bytes = golden_header_bytes();
        bytes[at..at + value.len()].copy_from_slice(value);
        assert!(UnverifiedHeader::new(&reseal(bytes)).verify().is_err(), "{what}");
    }
    // A table of 16 TiB is refused before anything is allocated.
    let mut bytes = golden_header_bytes();
    bytes[76..80].fill(0xff);
    assert!(UnverifiedHeader::new(&reseal(bytes)).verify().is_err());
}

#[test]
fn lengths_follow_the_rule() {
    assert_eq!(fragment_pages(0, 4), 1);
    assert_eq!(fragment_pages(4 * 4096, 4), 1);
    assert_eq!(fragment_pages(4 * 4096 + 1, 4), 2);
    assert_eq!(fragment_pages(11 << 20, 11), 256);
    assert_eq!((header_len(256), header_len(896), header_len(897)), (4096, 4096, 8192));
}

const GOLDEN_DRIVE: &str = "
    4c414d4452495600 0100 0000 d8094ac8
    100f0e0d0c0b0a09 0807060504030201 8888777766665555 4444333322221111
    00a8da769b010000 03000000 00000000";

fn golden_drive() -> DriveIdentity {
    DriveIdentity {
        drive: DriveId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        pool: PoolId(0x1111_2222_3333_4444_5555_6666_7777_8888),
        slot: 3,
        created: Timestamp(1_767_225_600_000),
    }
}

#[test]
fn a_golden_drive_identity_is_written_and_read_for_ever() {
    let golden = unhex(GOLDEN_DRIVE);
    assert_eq!(golden_drive().encode(), golden, "{:02x?}", golden_drive().encode());
    assert_eq!(DriveIdentity::decode(&golden), Ok(golden_drive()));
    for at in 0..golden.len() {
        for bit in 0..8 {
            let mut damaged = golden.clone();
            damaged[at] ^= 1 << bit;
            assert!(DriveIdentity::decode(&damaged).is_err(), "byte {at} bit {bit}");
        }
        assert!(DriveIdentity::decode(&golden[..at]).is_err(), "cut to {at}");
    }
    assert!(DriveIdentity::decode(&[golden.as_slice(), &[0]].concat()).is_err(), "longer");
}

const GOLDEN_ROSTER: &str = "
    4c414d504f4f4c00 0100 0000 59259660
    8888777766665555 4444333322221111 0200000000000000 02000000 00000000
    0100000000000000 0000000000000000 0000000000000000 0200000000000000";

#[test]
fn a_golden_roster_is_written_and_read_for_ever() {
    let golden = unhex(GOLDEN_ROSTER);
    let roster = PoolRoster { pool: golden_drive().pool, number: 2, members: vec![DriveId(1), DriveId(2 << 64)] };
    assert_eq!(roster.encode(), golden, "{:02x?}", roster.encode());
    assert_eq!(PoolRoster::decode(&golden), Ok(roster.clone()));
    for at in 0..golden.len() {
        for bit in 0..8 {
            let mut damaged = golden.clone();
            damaged[at] ^= 1 << bit;
            assert!(PoolRoster::decode(&damaged).is_err(), "byte {at} bit {bit}");
        }
        assert!(PoolRoster::decode(&golden[..at]).is_err(), "cut to {at}");
    }
    let twice = PoolRoster { members: vec![DriveId(1), DriveId(1)], ..roster };
    assert!(PoolRoster::decode(&twice.encode()).is_err(), "a drive listed twice");
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..6000), magic in 0_usize..4) {
        let mut bytes = bytes;
        let magics: [&[u8]; 4] = [b"LAMFRAG\0\x01\0", b"LAMDRIV\0\x01\0", b"LAMPOOL\0\x01\0", b""];
        let head = magics[magic];
        if bytes.len() >= head.len() {
            bytes[..head.len()].copy_from_slice(head);
        }
        let _ = UnverifiedHeader::new(&bytes).verify();
        let _ = DriveIdentity::decode(&bytes);
        let _ = PoolRoster::decode(&bytes);
    }

    #[test]
    fn what_is_written_is_read(
        key in "[a-z0-9/.-]{1,255}", order: u64, nonce: u64, pool: u128, x in 1_usize..20, p in 0_usize..10, len in 0_u64..3_000_000, pick: usize,
    ) {
        let policy = lamina_contract::Policy::new(x, p).expect("a policy");
        let matrix = if x == 1 { MatrixId::Copies } else { MatrixId::VandermondeSystematic };
        let stripe = StripeDescription { key, stripe: StripeId::new(order, nonce), pool: PoolId(pool), policy, matrix, object_len: len };
        let mut sums = SumBuilder::default();
        sums.update(&vec![order as u8; fragment_pages(len, x) as usize * PAGE]);
        let header = FragmentHeader::new(&stripe, (pick % (x + p)) as u8, sums.finish()).expect("a header");
        let mut bytes = header.encode();
        assert_eq!(bytes.len(), header.header_len());
        // What follows the header is of no concern to it.
        bytes.extend_from_slice(&[1, 2, 3]);
        assert_eq!(UnverifiedHeader::new(&bytes).verify(), Ok(header));
    }
}
