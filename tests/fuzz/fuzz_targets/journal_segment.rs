//! Any first page of a journal segment.
#![no_main]

use lamina_formats::journal::SegmentHeader;
use lamina_fuzz::{seal, stamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = SegmentHeader::decode(data);
    let mut bytes = data.to_vec();
    stamp(&mut bytes, 0, b"LAMJSEG\0\x01\0");
    let end = bytes.len().min(64);
    seal(&mut bytes, 0..end, 12);
    if let Ok(header) = SegmentHeader::decode(&bytes) {
        assert_eq!(SegmentHeader::decode(&header.encode()[..]), Ok(header));
    }
});
