//! Any TLog object.
#![no_main]

use lamina_formats::tlog::{decode, encode};
use lamina_fuzz::{seal, stamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = decode(data);
    let mut bytes = data.to_vec();
    stamp(&mut bytes, 0, b"LAMTLOG\0\x01\0");
    if bytes.len() >= 64 {
        bytes.truncate(bytes.len() / 64 * 64);
        let entries = (bytes.len() / 64 - 1) as u32;
        stamp(&mut bytes, 12, &entries.to_le_bytes());
    }
    let end = bytes.len();
    seal(&mut bytes, 0..end, 56);
    if let Ok((identity, entries)) = decode(&bytes) {
        assert_eq!(decode(&encode(&identity, &entries)), Ok((identity, entries)));
    }
});
