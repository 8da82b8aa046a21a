//! Any map page, and any reference to a root.
#![no_main]

use lamina_formats::map::{HEADER_BYTES, MapRoot, Page, PageKind, RootPage};
use lamina_fuzz::{seal, stamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Page::first(data);
    if let Ok(root) = MapRoot::from_bytes(data) {
        assert_eq!(MapRoot::from_bytes(&root.to_bytes()), Ok(root));
    }
    let mut bytes = data.to_vec();
    if bytes.len() < HEADER_BYTES {
        return;
    }
    stamp(&mut bytes, 0, b"LAMMAPP\0\x01\0");
    let length = bytes.len() as u32;
    stamp(&mut bytes, 52, &length.to_le_bytes());
    // A count that fits, for the kind that it claims.
    let body = bytes.len() - HEADER_BYTES;
    let entry = [34, 42, 42][usize::from(bytes[11]) % 3];
    if bytes[10] < 8 {
        stamp(&mut bytes, 56, &((body / entry) as u32).to_le_bytes());
    }
    let end = bytes.len();
    seal(&mut bytes, 0..end, 12);
    if let Ok(page) = Page::first(&bytes) {
        assert!(Page::read(&bytes, page.id, &page.at).is_ok());
        match page.id.kind {
            PageKind::Leaf => assert!(page.blocks().all(|(index, location, print)| page.block(index) == Some((location, print)))),
            PageKind::Directory => assert!(page.leaves().all(|(index, leaf)| page.leaf(index) == Some(leaf))),
            PageKind::Root => assert!(RootPage::parse(&page).is_ok(), "a root that was checked"),
        }
    }
});
