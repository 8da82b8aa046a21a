//! Checksums, and the one error of everything that decodes.

use crc_fast::{CrcAlgorithm, checksum};

/// CRC-32C (Castagnoli, RFC 3720 B.4) of `bytes`: 0.06 µs for 4 KiB with hardware help.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    // CRC-32/iSCSI is the catalogue's name for CRC-32C; its value fits 32 bits by definition.
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Why bytes were refused. The caller knows which object it was reading and adds that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than the format needs.
    #[error("{format}: {have} bytes, {need} needed")]
    Short {
        /// Which format.
        format: &'static str,
        /// Bytes needed.
        need: usize,
        /// Bytes given.
        have: usize,
    },
    /// Something else, or nothing, is written there.
    #[error("{format}: not one (magic {found:#018x})")]
    Magic {
        /// Which format.
        format: &'static str,
        /// What stood there, little-endian.
        found: u64,
    },
    /// Written by a newer (or very old) Lamina.
    #[error("{format}: version {found} is not one this release reads")]
    Version {
        /// Which format.
        format: &'static str,
        /// Version found.
        found: u16,
    },
    /// Bytes changed since they were written.
    #[error("{format}: checksum of {part} does not match")]
    Checksum {
        /// Which format.
        format: &'static str,
        /// Which part the checksum covers.
        part: &'static str,
    },
    /// Checksums hold but a field makes no sense.
    #[error("{format}: field {field} is out of range")]
    Field {
        /// Which format.
        format: &'static str,
        /// Which field.
        field: &'static str,
    },
}

#[cfg(test)]
mod tests {
    #[test]
    fn crc32c_is_castagnolis() {
        // RFC 3720 B.4 test vectors.
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(super::crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
