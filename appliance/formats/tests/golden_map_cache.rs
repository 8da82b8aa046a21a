//! Golden bytes of map pages and of the dedupe cache's regions, healthy and damaged; decoders take anything.
//!
//! A golden digest that changes means that released bytes would no longer be read: a new layout gets a new version number.

use std::collections::BTreeMap;

use lamina_contract::{BlockSize, Epoch, Fingerprint, Location, ScoNumber, VolumeId};
use lamina_formats::cache::{HEADER_BYTES, Queue, RegionHeader, SlotEntry, layout, slot_checksum};
use lamina_formats::map::{
    MapObject, MapRoot, ObjectUse, Page, PageId, PageKind, PageRef, RootPage, append_page, directory_body, leaf_body,
};
use lamina_formats::{FormatError, crc32c};
use proptest::prelude::{any, proptest};
use proptest::{collection, prop_assert, prop_assert_eq};

const OBJECT: MapObject = MapObject { epoch: Epoch(3), number: 17 };

fn id(kind: PageKind, number: u64) -> PageId {
    PageId { volume: VolumeId(0x1122_3344_5566_7788), kind, number }
}

fn block(index: u16) -> (u16, Location, Fingerprint) {
    let location = Location { ancestor: 1, sco: ScoNumber(u64::from(index) + 5), index };
    (index, location, Fingerprint([index as u8; 32]))
}

/// An object with a leaf, its directory, and a root.
fn object() -> (Vec<u8>, [PageRef; 3]) {
    let mut out = Vec::new();
    let blocks = [block(0), block(5), block(1023)];
    let leaf = append_page(&mut out, OBJECT, id(PageKind::Leaf, 2050), |out| leaf_body(out, &blocks));
    let leaves = BTreeMap::from([(2, leaf)]);
    let directory = append_page(&mut out, OBJECT, id(PageKind::Directory, 2), |out| directory_body(out, leaves.iter()));
    let root = RootPage { directories: vec![(2, directory)], objects: vec![ObjectUse { object: OBJECT, live: 460, total: 460 }] };
    let root = append_page(&mut out, OBJECT, id(PageKind::Root, 0), |out| root.body(out));
    (out, [leaf, directory, root])
}

fn region() -> Vec<u8> {
    let mut table = Vec::new();
    for n in 0..3u8 {
        let fingerprint = Fingerprint([n; 32]);
        let crc = slot_checksum(&fingerprint, &[n; 4096]);
        SlotEntry { fingerprint, volume: VolumeId(9), crc, length: 4096 }.encode(&mut table);
    }
    header().encode(&table)
}

fn header() -> RegionHeader {
    RegionHeader { region: 7, generation: 42, region_bytes: 16 << 20, slot_bytes: BlockSize::DEFAULT, slots: 3, queue: Queue::Main }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_bytes_of_a_map_object_are_the_golden_ones() {
    let (bytes, [leaf, directory, root]) = object();
    assert_eq!(hex(&bytes[..64]), GOLDEN_LEAF_HEADER);
    assert_eq!((bytes.len(), crc32c(&bytes)), GOLDEN_OBJECT);
    assert_eq!(hex(&MapRoot(root).to_bytes()), GOLDEN_ROOT);
    let page = Page::read(&bytes[leaf.range().start as usize..leaf.range().end as usize], id(PageKind::Leaf, 2050), &leaf);
    let page = page.expect("a leaf");
    assert_eq!(page.block(5), Some((block(5).1, block(5).2)));
    assert_eq!(page.block(6), None);
    assert_eq!(page.blocks().count(), 3);
    let at = directory.range();
    let page = Page::read(&bytes[at.start as usize..at.end as usize], id(PageKind::Directory, 2), &directory);
    assert_eq!(page.expect("a directory").leaf(2), Some(leaf));
    let at = root.range();
    let page = Page::read(&bytes[at.start as usize..at.end as usize], id(PageKind::Root, 0), &root).expect("a root");
    assert_eq!(RootPage::parse(&page).expect("parses").directories, [(2, directory)]);
    assert_eq!(page.at.length as usize, RootPage::page_bytes(1, 1));
    assert_eq!(MapRoot::from_bytes(&MapRoot(root).to_bytes()), Ok(MapRoot(root)));
}

const GOLDEN_LEAF_HEADER: &str = "4c414d4d4150500001000300dd944089887766554433221102080000000000000300000000000000110000000000000000000000be0000000300000000000000";
const GOLDEN_OBJECT: (usize, u32) = (432, 482484576);
const GOLDEN_ROOT: &str = "03000000000000001100000000000000200100009000000018fd420100000000";
const GOLDEN_REGION_HEADER: &str = "4c414d444544550001000100e3b6aca207000000001000002a00000000000000000000010000000003000000f9c39af200000000000000000000000000000000";
const GOLDEN_REGION: (usize, u32) = (208, 3439401910);

#[test]
fn the_bytes_of_a_cache_region_are_the_golden_ones() {
    let bytes = region();
    assert_eq!(hex(&bytes[..HEADER_BYTES]), GOLDEN_REGION_HEADER);
    assert_eq!((bytes.len(), crc32c(&bytes)), GOLDEN_REGION);
    let (read, entries) = RegionHeader::decode_table(&bytes).expect("reads");
    assert_eq!((read, entries.len()), (header(), 3));
    assert_eq!(entries[1].fingerprint, Fingerprint([1; 32]));
    assert_eq!(entries[1].crc, slot_checksum(&Fingerprint([1; 32]), &[1; 4096]));
    // The CRC of a slot is that of the fingerprint and the data in one.
    let mut both = vec![1; 32];
    both.extend_from_slice(&[1; 4096]);
    assert_eq!(entries[1].crc, crc32c(&both));
}

#[test]
fn a_page_that_is_not_the_one_referred_to_is_refused() {
    let (bytes, [leaf, ..]) = object();
    let bytes = &bytes[..leaf.length as usize];
    let wanted = id(PageKind::Leaf, 2050);
    assert!(Page::read(bytes, wanted, &leaf).is_ok());
    let refused = |id: PageId, at: PageRef| Page::read(bytes, id, &at).is_err();
    assert!(refused(PageId { volume: VolumeId(1), ..wanted }, leaf));
    assert!(refused(PageId { number: 2051, ..wanted }, leaf));
    assert!(refused(PageId { kind: PageKind::Directory, ..wanted }, leaf));
    assert!(refused(wanted, PageRef { object: MapObject { number: 18, ..OBJECT }, ..leaf }));
    assert!(refused(wanted, PageRef { object: MapObject { epoch: Epoch(2), ..OBJECT }, ..leaf }));
    assert!(refused(wanted, PageRef { offset: 64, ..leaf }));
    assert!(refused(wanted, PageRef { crc: leaf.crc ^ 1, ..leaf }));
    assert!(refused(wanted, PageRef { length: leaf.length + 1, ..leaf }));
}

#[test]
fn a_newer_version_is_named_as_such() {
    let (mut page, _) = object();
    page[8] = 2;
    assert!(matches!(Page::first(&page), Err(FormatError::Version { found: 2, .. })));
    let mut region = region();
    region[8] = 9;
    assert!(matches!(RegionHeader::decode(&region), Err(FormatError::Version { found: 9, .. })));
}

/// Rewrites the CRC, so that what is behind it is reached.
fn resealed(mut page: Vec<u8>) -> Vec<u8> {
    page[12..16].fill(0);
    let crc = crc32c(&page);
    page[12..16].copy_from_slice(&crc.to_le_bytes());
    page
}

#[test]
fn sealed_nonsense_is_refused() {
    let (bytes, [leaf, directory, root]) = object();
    let cut = |at: PageRef| bytes[at.range().start as usize..at.range().end as usize].to_vec();
    // Indexes out of order or range, counts that do not fit, a reference to nothing.
    for (at, place, value) in [
        (leaf, 64, 200),
        (leaf, 69, 200),
        (leaf, 56, 9),
        (directory, 56, 2),
        (directory, 64 + 2 + 20, 1),
        (directory, 64 + 1, 4),
        (root, 64, 9),
        (root, 68, 0),
        (root, 71, 255),
        (root, 10, 3),
        (root, 10, 9),
    ] {
        let mut page = cut(at);
        assert!(Page::first(&resealed(page.clone())).is_ok());
        page[place] = value;
        // The high byte of a reference's length makes it longer than any page.
        if place == 64 + 2 + 20 {
            page[place + 3] = 255;
        }
        assert!(Page::first(&resealed(page)).is_err(), "{place} = {value}");
    }
}

#[test]
fn slots_and_table_fit_every_region() {
    for shift in 17..=30 {
        for size in [4096, 8192, 16384, 32768, 65536] {
            let size = BlockSize::new(size).expect("a size");
            let (slots, start) = layout(1 << shift, size);
            assert!(slots > 0);
            assert!(start >= HEADER_BYTES as u64 + u64::from(slots) * 48 && start % 4096 == 0);
            assert!(start + u64::from(slots) * u64::from(size.get()) <= 1 << shift);
        }
    }
    assert_eq!(layout(4096, BlockSize::DEFAULT), (0, 0));
}

proptest! {
    #[test]
    fn a_flipped_bit_is_noticed(place in any::<usize>(), bit in 0..8u8) {
        let (mut page, [leaf, ..]) = object();
        page.truncate(leaf.length as usize);
        let at = place % page.len();
        page[at] ^= 1 << bit;
        prop_assert!(Page::read(&page, id(PageKind::Leaf, 2050), &leaf).is_err());
        let mut region = region();
        let at = place % region.len();
        region[at] ^= 1 << bit;
        prop_assert!(RegionHeader::decode_table(&region).is_err());
    }

    #[test]
    fn decoders_take_any_bytes(bytes in collection::vec(any::<u8>(), 0..300), head in any::<bool>(), seal in any::<bool>()) {
        let mut page = bytes.clone();
        let mut cached = bytes.clone();
        if head && bytes.len() >= 64 {
            // Past the first checks: magic, version, length, CRC.
            page[..10].copy_from_slice(&object().0[..10]);
            let length = (page.len() as u32).to_le_bytes();
            page[52..56].copy_from_slice(&length);
            page[10] %= 5;
            if seal {
                page = resealed(page);
            }
            cached[..10].copy_from_slice(&region()[..10]);
        }
        if let Ok(page) = Page::first(&page) {
            page.blocks().for_each(drop);
            page.leaves().for_each(drop);
            let _ = RootPage::parse(&page);
        }
        let _ = RegionHeader::decode(&cached);
        let _ = RegionHeader::decode_table(&cached);
        if let Ok(root) = MapRoot::from_bytes(&bytes[..bytes.len().min(32)]) {
            let again = root.to_bytes();
            prop_assert_eq!(&again[..28], &bytes[..28]);
        }
    }

    #[test]
    fn a_leaf_answers_what_was_put_in(indexes in collection::btree_set(0..1024u16, 0..200)) {
        let blocks: Vec<_> = indexes.iter().map(|&index| block(index)).collect();
        let mut out = vec![0xee; 13];
        let at = append_page(&mut out, OBJECT, id(PageKind::Leaf, 1), |out| leaf_body(out, &blocks));
        let page = Page::read(&out[13..], id(PageKind::Leaf, 1), &at).expect("a leaf");
        for index in 0..1024 {
            let wanted = indexes.contains(&index).then(|| (block(index).1, block(index).2));
            prop_assert_eq!(page.block(index), wanted);
        }
    }
}
