//! JSON that knows whether it is whole: `{"format", "version", "checksum", "body"}`.
//!
//! The checksum is CRC-32C over the format's name and the body written compactly, so that white space may change and meaning may not.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use lamina_formats::crc32c;

/// The only version there is.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Written<'a, T> {
    format: &'static str,
    version: u32,
    checksum: String,
    body: &'a T,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read<T> {
    format: String,
    version: u32,
    checksum: String,
    body: T,
}

/// Why sealed JSON was refused.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Not JSON of this shape.
    #[error("it is not the JSON that is expected there")]
    Json(#[from] serde_json::Error),
    /// JSON of another kind.
    #[error("it is not a {expected}")]
    Format {
        /// The kind that was looked for.
        expected: &'static str,
    },
    /// Written by a newer release.
    #[error("its version {found} is newer than this release reads")]
    Version {
        /// The version found.
        found: u32,
    },
    /// Changed since it was written.
    #[error("its checksum does not match its content")]
    Checksum,
}

/// The bytes to keep of `body`.
pub(crate) fn seal<T: Serialize>(format: &'static str, body: &T) -> Result<Vec<u8>, SealError> {
    let checksum = checksum(format, &serde_json::to_vec(body)?);
    Ok(serde_json::to_vec(&Written { format, version: VERSION, checksum, body })?)
}

/// The body, if the bytes are as they were sealed.
pub(crate) fn unseal<T: Serialize + DeserializeOwned>(format: &'static str, bytes: &[u8]) -> Result<T, SealError> {
    let read: Read<T> = serde_json::from_slice(bytes)?;
    if read.format != format {
        return Err(SealError::Format { expected: format });
    }
    if read.version != VERSION {
        return Err(SealError::Version { found: read.version });
    }
    if read.checksum != checksum(format, &serde_json::to_vec(&read.body)?) {
        return Err(SealError::Checksum);
    }
    Ok(read.body)
}

fn checksum(format: &str, body: &[u8]) -> String {
    let mut covered = format.as_bytes().to_vec();
    covered.push(0);
    covered.extend_from_slice(body);
    format!("{:08x}", crc32c(&covered))
}

#[cfg(test)]
mod tests {
    use super::{SealError, seal, unseal};

    #[test]
    fn every_flipped_bit_is_refused_or_changes_nothing() {
        let body = vec![("web-01".to_owned(), 42_u64)];
        let sealed = seal("test", &body).expect("sealed");
        assert_eq!(unseal::<Vec<(String, u64)>>("test", &sealed).expect("whole"), body);
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = unseal::<Vec<(String, u64)>>("test", &bad) {
                assert_eq!(read, body, "bit {bit} changed the meaning unnoticed");
            }
        }
    }

    #[test]
    fn another_format_is_refused_even_when_its_body_fits() {
        let sealed = seal("one", &1_u64).expect("sealed");
        assert!(matches!(unseal::<u64>("two", &sealed), Err(SealError::Format { expected: "two" })));
    }
}
