//! Identities that follow from names, so that a machine rendered twice is the same machine to its guest.

use sha2::{Digest, Sha256};

/// The UUID of the VM `name`: version 8 of RFC 9562, made of a SHA-256.
pub(crate) fn uuid(name: &str) -> String {
    let mut bytes: [u8; 16] = first(&digest(&["uuid", name]));
    // Version and variant (RFC 9562, 5.8).
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let (a, rest) = hex.split_at(8);
    let (b, rest) = rest.split_at(4);
    let (c, rest) = rest.split_at(4);
    let (d, e) = rest.split_at(4);
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// The MAC address of network card `index` of the VM `name`. It begins with 52, which makes it one card's and locally administered
/// (IEEE 802, 8.4); the other 40 bits are of a SHA-256: two of ten thousand cards are the same once in twenty thousand sites.
pub(crate) fn mac(name: &str, index: usize) -> String {
    let [a, b, c, d, e] = first(&digest(&["mac", name, &index.to_string()]));
    format!("52:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}

/// The tap device of network card `index`: a name of 14 bytes, of the 15 that Linux takes.
pub(crate) fn tap(name: &str, index: usize) -> String {
    let [a, b, c, d, e] = first(&digest(&["tap", name, &index.to_string()]));
    format!("lam-{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}")
}

/// Parts are separated by a byte that names cannot hold.
fn digest(parts: &[&str]) -> [u8; 32] {
    Sha256::digest(format!("lamina\0{}", parts.join("\0")).as_bytes()).into()
}

fn first<const N: usize>(bytes: &[u8; 32]) -> [u8; N] {
    const { assert!(N <= 32, "no more than there are") };
    std::array::from_fn(|at| bytes[at])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{mac, tap, uuid};

    #[test]
    fn identities_follow_from_names_and_never_change() {
        // Guests keep these: a change would give every machine a new one.
        assert_eq!(uuid("web"), "7897ec0b-f0ea-8998-a49a-75d1a4b5024f");
        assert_eq!(mac("web", 0), "52:d6:1f:3e:cf:2e");
        assert_eq!(tap("web", 0), "lam-02bb0285d7");
    }

    #[test]
    fn addresses_are_local_ones_of_one_card_each() {
        let all: BTreeSet<String> = (0..200).flat_map(|vm| (0..4).map(move |index| mac(&format!("vm{vm}"), index))).collect();
        assert_eq!(all.len(), 800);
        for address in all {
            let first = u8::from_str_radix(&address[..2], 16).expect("hexadecimal");
            assert_eq!(first & 0b11, 0b10, "locally administered, not a group: {address}");
        }
        assert!(tap(&"x".repeat(63), 15).len() <= 15);
    }
}
