//! Golden bytes of a volume's namespace (SCO, TLog, manifest, catalog, identity): healthy ones read for ever, damaged ones are refused.

use lamina_contract::{
    BlockAddress, BlockSize, Epoch, Fingerprint, Generation, Labels, Location, Parent, ScoNumber, ScoSize, SnapshotId,
    SnapshotName, SnapshotNote, Timestamp, TlogNumber, VolumeId, VolumeName, VolumeSpec,
};
use lamina_formats::catalog::{Catalog, PastRoot, StoredSnapshot};
use lamina_formats::manifest::{CatalogRef, Manifest, Term};
use lamina_formats::map::MapRoot;
use lamina_formats::sco::{self, ScoBlock, ScoIdentity};
use lamina_formats::tlog::{self, TlogEntry, TlogIdentity, TlogOp};
use lamina_formats::volume::VolumeIdentity;
use lamina_formats::{FormatError, crc32c};
use proptest::prelude::{any, prop, proptest};

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex")).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

const VOLUME: VolumeId = VolumeId(0xfeed_face_cafe_f00d);
const TIME: Timestamp = Timestamp(1_767_225_600_000);

/// Asserts that no single flipped bit and no cut of `golden` is read as anything.
fn assert_covered<T>(golden: &[u8], decode: impl Fn(&[u8]) -> Result<T, FormatError>) {
    for (at, bit) in (0..golden.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut damaged = golden.to_vec();
        damaged[at] ^= 1 << bit;
        assert!(decode(&damaged).is_err(), "byte {at} bit {bit}");
    }
    for len in 0..golden.len() {
        assert!(decode(&golden[..len]).is_err(), "cut to {len}");
    }
}

fn sco_identity() -> ScoIdentity {
    ScoIdentity { volume: VOLUME, sco: ScoNumber(77), epoch: Epoch(3), block_size: BlockSize::DEFAULT, rewrite: 0 }
}

/// Two blocks; index 1 between them became a reference.
fn sco_blocks() -> (Vec<u8>, Vec<ScoBlock>) {
    let data = [[0x11; 4096], [0x22; 4096]].concat();
    let block = |index: u16, byte| ScoBlock {
        index,
        block: BlockAddress(500 + u64::from(index)),
        fingerprint: Fingerprint([byte; 32]),
        crc: crc32c(&[byte; 4096]),
    };
    (data, vec![block(0, 0x11), block(2, 0x22)])
}

const SCO_TAIL: &str = "
    f4010000000000001111111111111111111111111111111111111111111111111111111111111111a2de34d100000000f6010000000000002222222222222222
    222222222222222222222222222222222222222222222222df7f620b020000000df0fecacefaedfe4d0000000000000003000000000000000010000002000000
    000000000100000000000100000000000b940632000000004c414d53434f0000";

#[test]
fn a_golden_sco_is_written_and_read_for_ever() {
    let (mut object, blocks) = sco_blocks();
    object.extend(sco::encode_tail(&sco_identity(), &blocks));
    assert_eq!(hex(&object[8192..]), hex(&unhex(SCO_TAIL)));
    assert_eq!(sco::decode_tail(&unhex(SCO_TAIL)), Ok((sco_identity(), blocks.clone())));
    assert_eq!(sco::decode_tail(&object), Ok((sco_identity(), blocks)), "more of the end than needed does no harm");
}

#[test]
fn every_flipped_bit_of_a_scos_index_and_trailer_is_refused() {
    assert_covered(&unhex(SCO_TAIL), sco::decode_tail);
}

#[test]
fn a_scos_blocks_are_covered_by_the_crcs_of_its_index() {
    let (mut object, blocks) = sco_blocks();
    object.extend(sco::encode_tail(&sco_identity(), &blocks));
    for at in (0..8192).step_by(7) {
        let mut damaged = object.clone();
        damaged[at] ^= 0x10;
        let (_, read) = sco::decode_tail(&damaged).expect("the index is whole");
        let position = at / 4096;
        assert_ne!(crc32c(&damaged[position * 4096..(position + 1) * 4096]), read[position].crc, "byte {at}");
    }
}

fn tlog_golden() -> (TlogIdentity, Vec<TlogEntry>) {
    let identity =
        TlogIdentity { volume: VOLUME, number: TlogNumber(8), epoch: Epoch(3), first_sco: ScoNumber(76), last_sco: ScoNumber(77) };
    let location = |index| Location { ancestor: 0, sco: ScoNumber(76), index };
    let entry = |block, op, after_sync| TlogEntry { block: BlockAddress(block), op, time: TIME, after_sync };
    let fingerprint = Fingerprint([0x33; 32]);
    let entries = vec![
        entry(1, TlogOp::Data { location: location(0), fingerprint }, false),
        entry(2, TlogOp::Reference { location: location(0), fingerprint }, true),
        entry(3, TlogOp::Zero { count: 4 }, false),
        entry(9, TlogOp::Trim { count: u32::MAX }, false),
    ];
    (identity, entries)
}

const TLOG: &str = "
    4c414d544c4f470001000000040000000df0fecacefaedfe080000000000000003000000000000004c000000000000004d000000000000000b1fffc700000000
    0100000001000000010000000000000000004c000000000000a8da769b0100003333333333333333333333333333333333333333333333333333333333333333
    0201000001000000020000000000000000004c000000000000a8da769b0100003333333333333333333333333333333333333333333333333333333333333333
    03000000040000000300000000000000000000000000000000a8da769b0100000000000000000000000000000000000000000000000000000000000000000000
    04000000ffffffff0900000000000000000000000000000000a8da769b0100000000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn a_golden_tlog_is_written_and_read_for_ever() {
    let (identity, entries) = tlog_golden();
    assert_eq!(hex(&tlog::encode(&identity, &entries)), hex(&unhex(TLOG)));
    assert_eq!(tlog::decode(&unhex(TLOG)), Ok((identity, entries)));
}

#[test]
fn every_flipped_bit_of_a_tlog_is_refused() {
    assert_covered(&unhex(TLOG), tlog::decode);
    let longer = [unhex(TLOG), vec![0; 64]].concat();
    assert!(tlog::decode(&longer).is_err(), "more than it says");
}

fn manifest() -> Manifest {
    Manifest {
        volume: VOLUME,
        generation: Generation(12),
        epoch: Epoch(3),
        time: TIME,
        size_bytes: 10 << 30,
        last_sco: ScoNumber(77),
        last_tlog: TlogNumber(8),
        checkpoint_tlog: TlogNumber(5),
        next_map_object: 4,
        data_blocks: 70_000,
        reference_blocks: 1234,
        map_root: (0..32).collect(),
        catalog: Some(CatalogRef { generation: Generation(11), epoch: Epoch(3), crc: 0x1234_5678, bytes: 555 }),
        sco_terms: vec![Term { epoch: Epoch(1), first: 1 }, Term { epoch: Epoch(3), first: 60 }],
        tlog_terms: vec![Term { epoch: Epoch(1), first: 1 }],
    }
}

const MANIFEST: &str = "
    4c414d4d414e490001002000f3a373bd0df0fecacefaedfe0c00000000000000030000000000000000a8da769b01000000000080020000004d00000000000000
    0800000000000000050000000000000004000000000000007011010000000000d20400000000000002000000010000000b000000000000000300000000000000
    785634122b0200000000000000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f01000000000000000100000000000000
    03000000000000003c0000000000000001000000000000000100000000000000";

#[test]
fn a_golden_manifest_is_written_and_read_for_ever() {
    assert_eq!(hex(&manifest().encode()), hex(&unhex(MANIFEST)));
    assert_eq!(Manifest::decode(&unhex(MANIFEST)), Ok(manifest()));
}

#[test]
fn every_flipped_bit_of_a_manifest_is_refused() {
    assert_covered(&unhex(MANIFEST), Manifest::decode);
}

fn identity() -> VolumeIdentity {
    VolumeIdentity {
        id: VOLUME,
        spec: VolumeSpec {
            name: VolumeName::new("web-01").expect("a name"),
            size_bytes: 10 << 30,
            block_size: BlockSize::new(8192).expect("a size"),
            sco_size: ScoSize::DEFAULT,
            read_only: true,
        },
        created: TIME,
        parent: Some(Parent { volume: VolumeId(0xabc), snapshot: SnapshotId(0xdef) }),
    }
}

const IDENTITY: &str = "
    4c414d564f4c550001000306e39a2d790df0fecacefaedfe000000800200000000a8da769b01000000200000000040007765622d303100000000000000000000
    000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000bc0a000000000000ef0d000000000000";

#[test]
fn a_golden_volume_identity_is_written_and_read_for_ever() {
    assert_eq!(hex(&identity().encode()), hex(&unhex(IDENTITY)));
    assert_eq!(VolumeIdentity::decode(&unhex(IDENTITY)), Ok(identity()));
}

#[test]
fn every_flipped_bit_of_a_volume_identity_is_refused() {
    assert_covered(&unhex(IDENTITY), VolumeIdentity::decode);
}

fn catalog() -> Catalog {
    let root = |byte: u8| {
        let mut raw = [0; 32];
        raw[0] = byte;
        raw[20] = 200;
        MapRoot::from_bytes(&raw).expect("a reference")
    };
    let note = SnapshotNote {
        id: SnapshotId(0x0123_4567_89ab_cdef),
        name: SnapshotName::new("daily-1").expect("a name"),
        created: TIME,
        size_bytes: 10 << 30,
        labels: Labels::from([("tier".to_owned(), "größer".to_owned()), ("x".to_owned(), String::new())]),
        description: "before the upgrade".to_owned(),
        pinned: true,
        automatic: false,
    };
    let empty = SnapshotNote {
        id: SnapshotId(2),
        name: SnapshotName::new("e").expect("a name"),
        labels: Labels::new(),
        description: String::new(),
        pinned: false,
        automatic: true,
        ..note.clone()
    };
    Catalog {
        volume: VOLUME,
        generation: Generation(11),
        epoch: Epoch(3),
        snapshots: vec![
            StoredSnapshot { note, last_sco: ScoNumber(70), last_tlog: TlogNumber(7), map_root: Some(root(9)) },
            StoredSnapshot { note: empty, last_sco: ScoNumber(71), last_tlog: TlogNumber(8), map_root: None },
        ],
        past: vec![PastRoot { time: TIME, tlog: TlogNumber(5), size_bytes: 8 << 30, map_root: Some(root(4)) }],
    }
}

const CATALOG: &str = "
    4c414d4341544c0001000000feea1d600df0fecacefaedfe0b000000000000000300000000000000020000000100000000000000000000000000000000000000
    efcdab896745230100a8da769b0100000000008002000000460000000000000007000000000000000900000000000000000000000000000000000000c8000000
    00000000000000000507020012000000000000000000000000000000000000006461696c792d316265666f726520746865207570677261646504087469657267
    72c3b6c39f6572010078020000000000000000a8da769b0100000000008002000000470000000000000008000000000000000000000000000000000000000000
    0000000000000000000000000000000000000201000000000000000000000000000000000000000000006500a8da769b01000005000000000000000000000002
    0000000400000000000000000000000000000000000000c800000000000000000000000400000000000000";

#[test]
fn a_golden_catalog_is_written_and_read_for_ever() {
    let (bytes, crc) = catalog().encode();
    assert_eq!(hex(&bytes), hex(&unhex(CATALOG)));
    assert_eq!(Catalog::decode(&unhex(CATALOG)), Ok((catalog(), crc)));
}

#[test]
fn every_flipped_bit_of_a_catalog_is_refused() {
    assert_covered(&unhex(CATALOG), Catalog::decode);
    assert!(Catalog::decode(&[unhex(CATALOG), vec![0; 64]].concat()).is_err(), "more than it says");
}

#[test]
fn a_catalog_that_claims_more_than_it_has_is_refused_without_memory_for_it() {
    for (at, what) in [(40, "snapshots"), (44, "moments")] {
        let mut bytes = unhex(CATALOG);
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        bytes[12..16].fill(0);
        let crc = crc32c(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(Catalog::decode(&bytes), Err(FormatError::Short { .. } | FormatError::Field { .. })), "{what}");
    }
}

/// Fields that make no sense are refused even when the checksum holds.
#[test]
fn nonsense_with_a_right_checksum_is_refused() {
    let sealed = |mut bytes: Vec<u8>, crc_at: usize| {
        bytes[crc_at..crc_at + 4].fill(0);
        let crc = crc32c(&bytes);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let with = |golden: &str, at: usize, value: &[u8], crc_at| {
        let mut bytes = unhex(golden);
        bytes[at..at + value.len()].copy_from_slice(value);
        sealed(bytes, crc_at)
    };
    // Offsets are those of the compile-time layouts: a change of layout needs a new version, and then new golden bytes.
    let identities: [(&str, usize, &[u8]); 5] = [
        ("another version", 8, &[2]),
        ("a name of 255 bytes", 11, &[255]),
        ("a name in capitals", 48, b"WEB"),
        ("blocks of 1 B", 40, &[1, 0, 0, 0]),
        ("containers of 3 MiB", 44, &[0, 0, 0x30, 0]),
    ];
    assert!(VolumeIdentity::decode(&with(IDENTITY, 8, &[1], 12)).is_ok(), "the control");
    for (what, at, value) in identities {
        assert!(VolumeIdentity::decode(&with(IDENTITY, at, value, 12)).is_err(), "{what}");
    }
    assert!(tlog::decode(&with(TLOG, 8, &[1], 56)).is_ok(), "the control");
    for (what, at, value) in [("another version", 8, [2]), ("an unknown kind", 64, [9]), ("kind 0", 64, [0])] {
        assert!(tlog::decode(&with(TLOG, at, &value, 56)).is_err(), "{what}");
    }
    let trailer = unhex(SCO_TAIL).len() - sco::TRAILER;
    assert!(sco::decode_tail(&with(SCO_TAIL, trailer, &[], trailer + 48)).is_ok(), "the control");
    for (what, at, value) in [("an unknown fingerprint", 36, [2]), ("another version", 42, [2]), ("blocks of 1 B", 24, [1])] {
        assert!(sco::decode_tail(&with(SCO_TAIL, trailer + at, &value, trailer + 48)).is_err(), "{what}");
    }
}

proptest! {
    #[test]
    fn any_manifest_is_read_back_and_any_flip_in_it_is_refused(
        numbers in any::<[u64; 11]>(),
        map_root in prop::collection::vec(any::<u8>(), 0..100),
        terms in prop::collection::vec(any::<(u64, u64)>(), 0..20),
        split in any::<prop::sample::Index>(),
        flip in any::<(prop::sample::Index, u8)>(),
    ) {
        let terms: Vec<_> = terms.into_iter().map(|(epoch, first)| Term { epoch: Epoch(epoch), first }).collect();
        let (scos, tlogs) = terms.split_at(split.index(terms.len() + 1));
        let [generation, epoch, time, size_bytes, last_sco, last_tlog, checkpoint, next_map_object, data_blocks, references, id] = numbers;
        let manifest = Manifest {
            volume: VolumeId(id),
            generation: Generation(generation),
            epoch: Epoch(epoch),
            time: Timestamp(time),
            size_bytes,
            last_sco: ScoNumber(last_sco),
            last_tlog: TlogNumber(last_tlog),
            checkpoint_tlog: TlogNumber(checkpoint),
            next_map_object,
            data_blocks,
            reference_blocks: references,
            map_root,
            catalog: (generation > 1).then_some(CatalogRef {
                generation: Generation(generation - 1),
                epoch: Epoch(epoch),
                crc: id as u32,
                bytes: time as u32,
            }),
            sco_terms: scos.to_vec(),
            tlog_terms: tlogs.to_vec(),
        };
        let mut bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest));
        let at = flip.0.index(bytes.len());
        bytes[at] ^= flip.1.max(1);
        assert!(Manifest::decode(&bytes).is_err(), "byte {at}");
    }

    #[test]
    fn any_tlog_is_read_back_and_any_flip_in_it_is_refused(
        entries in prop::collection::vec((any::<u64>(), 0_u8..4, any::<u64>(), any::<[u8; 32]>(), any::<bool>()), 0..50),
        flip in any::<(prop::sample::Index, u8)>(),
    ) {
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(block, kind, number, print, after_sync)| {
                let (location, fingerprint) = (Location::from_bits(number), Fingerprint(print));
                let op = match kind {
                    0 => TlogOp::Data { location, fingerprint },
                    1 => TlogOp::Reference { location, fingerprint },
                    2 => TlogOp::Zero { count: number as u32 },
                    _ => TlogOp::Trim { count: number as u32 },
                };
                TlogEntry { block: BlockAddress(block), op, time: Timestamp(number), after_sync }
            })
            .collect();
        let (identity, _) = tlog_golden();
        let mut bytes = tlog::encode(&identity, &entries);
        assert_eq!(tlog::decode(&bytes), Ok((identity, entries)));
        let at = flip.0.index(bytes.len());
        bytes[at] ^= flip.1.max(1);
        assert!(tlog::decode(&bytes).is_err(), "byte {at}");
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..1000), golden in 0..4) {
        let golden = unhex([SCO_TAIL, TLOG, MANIFEST, IDENTITY][golden as usize]);
        // Arbitrary bytes behind a true beginning, and before a true end.
        let head = [&golden[..golden.len().min(16)], &bytes].concat();
        let tail = [&bytes, &golden[golden.len().saturating_sub(24)..]].concat();
        for bytes in [&bytes, &head, &tail] {
            let _ = (sco::decode_tail(bytes), tlog::decode(bytes), Manifest::decode(bytes), VolumeIdentity::decode(bytes));
        }
    }
}
