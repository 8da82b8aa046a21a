//! Any drive identity and any pool roster.
#![no_main]

use lamina_formats::drive::{DriveIdentity, PoolRoster};
use lamina_fuzz::{seal, stamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = (DriveIdentity::decode(data), PoolRoster::decode(data));
    let drive = DriveIdentity {
        drive: lamina_formats::drive::DriveId(1),
        pool: lamina_formats::drive::PoolId(2),
        slot: 3,
        created: lamina_contract::Timestamp(4),
    };
    let mut bytes = data.to_vec();
    bytes.resize(64, 0);
    stamp(&mut bytes, 0, &drive.encode()[..10]);
    seal(&mut bytes, 0..64, 12);
    if let Ok(drive) = DriveIdentity::decode(&bytes) {
        assert_eq!(DriveIdentity::decode(&drive.encode()), Ok(drive));
    }
    let roster = PoolRoster { pool: lamina_formats::drive::PoolId(2), number: 1, members: Vec::new() };
    let mut bytes = data.to_vec();
    stamp(&mut bytes, 0, &roster.encode()[..10]);
    let members = (bytes.len().saturating_sub(48) / 16) as u32;
    bytes.truncate(48 + members as usize * 16);
    stamp(&mut bytes, 40, &members.to_le_bytes());
    let end = bytes.len();
    seal(&mut bytes, 0..end, 12);
    if let Ok(roster) = PoolRoster::decode(&bytes) {
        assert_eq!(PoolRoster::decode(&roster.encode()), Ok(roster));
    }
});
