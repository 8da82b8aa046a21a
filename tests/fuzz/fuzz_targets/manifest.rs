//! Any manifest.
#![no_main]

use lamina_formats::manifest::Manifest;
use lamina_fuzz::{seal, stamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Manifest::decode(data);
    let mut bytes = data.to_vec();
    stamp(&mut bytes, 0, b"LAMMANI\0\x01\0");
    let end = bytes.len();
    seal(&mut bytes, 0..end, 12);
    let _ = Manifest::decode(&bytes);
    if bytes.len() >= 128 {
        // Counts that fit: a root of what is left when every 16 bytes from a place on are terms.
        let body = bytes.len() - 128;
        let root = usize::from(bytes[127]).min(body) + (body - usize::from(bytes[127]).min(body)) % 16;
        let terms = (body - root) / 16;
        stamp(&mut bytes, 10, &(root as u16).to_le_bytes());
        stamp(&mut bytes, 104, &((terms / 2) as u32).to_le_bytes());
        stamp(&mut bytes, 108, &((terms - terms / 2) as u32).to_le_bytes());
        seal(&mut bytes, 0..end, 12);
        if let Ok(manifest) = Manifest::decode(&bytes) {
            assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        }
    }
});
