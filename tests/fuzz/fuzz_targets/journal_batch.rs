//! Any batch of the journal.
#![no_main]

use lamina_formats::journal::{claimed_header_pages, decode_batch, encode_batch};
use lamina_fuzz::{number, seal, stamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = (claimed_header_pages(data), decode_batch(data));
    let mut bytes = data.to_vec();
    stamp(&mut bytes, 0, b"LAMJBAT\0\x01\0");
    let end = 64 + 40 * number(&bytes, 10, 2);
    seal(&mut bytes, 0..end, 12);
    if let Ok((header, entries)) = decode_batch(&bytes) {
        let mut again = Vec::new();
        encode_batch(&header, &entries, &mut again);
        assert_eq!(decode_batch(&again), Ok((header, entries)));
    }
});
