//! Any end of a container.
#![no_main]

use lamina_formats::sco::{INDEX_ENTRY, TRAILER, decode_tail, encode_tail};
use lamina_fuzz::{number, seal, stamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = decode_tail(data);
    let mut bytes = data.to_vec();
    let Some(trailer) = bytes.len().checked_sub(TRAILER) else { return };
    stamp(&mut bytes, trailer + 56, b"LAMSCO\0\0");
    stamp(&mut bytes, trailer + 42, &[1, 0]);
    let blocks = number(&bytes, trailer + 28, 4);
    let Some(start) = trailer.checked_sub(blocks * INDEX_ENTRY) else { return };
    let end = bytes.len();
    seal(&mut bytes, start..end, trailer + 48);
    if let Ok((identity, blocks)) = decode_tail(&bytes)
        && blocks.len() < 64
    {
        assert_eq!(decode_tail(&encode_tail(&identity, &blocks)), Ok((identity, blocks)));
    }
});
