//! Any volume identity.
#![no_main]

use lamina_formats::volume::VolumeIdentity;
use lamina_fuzz::{seal, stamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = VolumeIdentity::decode(data);
    let mut bytes = data.to_vec();
    bytes.resize(128, 0);
    stamp(&mut bytes, 0, b"LAMVOLU\0\x01\0");
    seal(&mut bytes, 0..128, 12);
    if let Ok(identity) = VolumeIdentity::decode(&bytes) {
        assert_eq!(VolumeIdentity::decode(&identity.encode()), Ok(identity));
    }
});
