//! Any catalog.
#![no_main]

use lamina_formats::catalog::Catalog;
use lamina_fuzz::{number, seal, stamp};
use libfuzzer_sys::fuzz_target;

const HEADER: usize = 64;
const SNAPSHOT: usize = 96;
const MOMENT: usize = 64;

/// Puts a snapshot at `at` right, as far as its own bytes say how: a name that may be, texts that are text and fit. Where it ends.
fn mend_snapshot(bytes: &mut [u8], at: usize) -> Option<usize> {
    let name = 1 + number(bytes, at + 73, 1) % 20;
    let description = number(bytes, at + 76, 2) % 1100;
    let labels = number(bytes, at + 74, 2) % 72;
    let mut end = at + SNAPSHOT + name;
    bytes.get_mut(at + SNAPSHOT..end)?.iter_mut().for_each(|byte| *byte = b'a' + *byte % 26);
    bytes.get_mut(end..end + description)?.iter_mut().for_each(|byte| *byte &= 0x7f);
    end += description;
    for _ in 0..labels {
        let (key, value) = (number(bytes, end, 1) % 8, number(bytes, end + 1, 1) % 8);
        bytes.get_mut(end + 2..end + 2 + key + value)?.iter_mut().for_each(|byte| *byte &= 0x7f);
        stamp(bytes, end, &[key as u8, value as u8]);
        end += 2 + key + value;
    }
    stamp(bytes, at + 73, &[name as u8]);
    stamp(bytes, at + 74, &(labels as u16).to_le_bytes());
    stamp(bytes, at + 76, &(description as u16).to_le_bytes());
    Some(end)
}

fuzz_target!(|data: &[u8]| {
    let _ = Catalog::decode(data);
    let mut bytes = data.to_vec();
    stamp(&mut bytes, 0, b"LAMCATL\0\x01\0");
    let end = bytes.len();
    seal(&mut bytes, 0..end, 12);
    let _ = Catalog::decode(&bytes);
    if bytes.len() >= HEADER {
        // As many snapshots as it claims and fit, moments in the rest.
        let (wanted, mut snapshots, mut at) = (number(&bytes, 40, 4) % 8, 0, HEADER);
        while snapshots < wanted
            && let Some(next) = mend_snapshot(&mut bytes, at)
        {
            (snapshots, at) = (snapshots + 1, next);
        }
        let moments = (bytes.len() - at) / MOMENT;
        bytes.truncate(at + moments * MOMENT);
        stamp(&mut bytes, 40, &(snapshots as u32).to_le_bytes());
        stamp(&mut bytes, 44, &(moments as u32).to_le_bytes());
        let end = bytes.len();
        seal(&mut bytes, 0..end, 12);
        if let Ok((catalog, crc)) = Catalog::decode(&bytes) {
            let (again, sum) = catalog.encode();
            assert_eq!(Catalog::decode(&again), Ok((catalog, sum)));
            assert_eq!(crc, number(&bytes, 12, 4) as u32);
        }
    }
});
