//! Any region of the dedupe cache.
#![no_main]

use lamina_formats::cache::{ENTRY_BYTES, HEADER_BYTES, RegionHeader};
use lamina_formats::crc32c;
use lamina_fuzz::{number, seal, stamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = (RegionHeader::decode(data), RegionHeader::decode_table(data));
    let mut bytes = data.to_vec();
    if bytes.len() < HEADER_BYTES {
        return;
    }
    stamp(&mut bytes, 0, b"LAMDEDU\0\x01\0");
    let slots = number(&bytes, 40, 4) % (1 + (bytes.len() - HEADER_BYTES) / ENTRY_BYTES);
    stamp(&mut bytes, 40, &(slots as u32).to_le_bytes());
    let table = crc32c(&bytes[HEADER_BYTES..HEADER_BYTES + slots * ENTRY_BYTES]);
    stamp(&mut bytes, 44, &table.to_le_bytes());
    seal(&mut bytes, 0..HEADER_BYTES, 12);
    if let Ok((header, entries)) = RegionHeader::decode_table(&bytes) {
        let mut table = Vec::new();
        entries.iter().for_each(|entry| entry.encode(&mut table));
        assert_eq!(RegionHeader::decode_table(&header.encode(&table)), Ok((header, entries)));
    }
});
