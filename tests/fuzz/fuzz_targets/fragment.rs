//! Any header of a fragment.
#![no_main]

use lamina_formats::fragment::{UnverifiedHeader, header_len};
use lamina_fuzz::{number, seal, stamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = UnverifiedHeader::new(data).verify();
    let mut bytes = data.to_vec();
    stamp(&mut bytes, 0, b"LAMFRAG\0\x01\0");
    // Few pages, so that the header need not be long: what is missing is zeros.
    let pages = number(&bytes, 76, 4) as u32 % 1100;
    stamp(&mut bytes, 76, &pages.to_le_bytes());
    stamp(&mut bytes, 16, &(header_len(pages) as u32).to_le_bytes());
    if bytes.len() >= 80 {
        bytes.resize(header_len(pages), 0);
    }
    let end = bytes.len();
    seal(&mut bytes, 0..end, 20);
    if let Ok(header) = UnverifiedHeader::new(&bytes).verify() {
        assert_eq!(UnverifiedHeader::new(&header.encode()).verify(), Ok(header.clone()));
        let _ = (header.verify_pages(0, data), header.verify_all(data), header.data_len(), header.footprint());
    }
});
