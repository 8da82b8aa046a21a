//! One question to the daemon of this machine, as plainly as can be: for when little else works.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A daemon that hangs must not hang us.
const PATIENCE: Duration = Duration::from_secs(30);

/// The metrics of a thousand volumes with the longest names are 14 MB.
const MAX_BYTES: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalCallError {
    /// Nobody there, or no answer in time.
    #[error("no answer")]
    Io(#[from] io::Error),
    /// Something else than 200.
    #[error("the daemon answers with status {status}")]
    Refused {
        /// HTTP's.
        status: u16,
    },
    /// No HTTP, or more than is taken.
    #[error("an answer that is not understood")]
    Strange,
}

/// What is at `path`.
pub(crate) fn get(socket: &Path, path: &str) -> Result<Vec<u8>, LocalCallError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // 1.0: the answer ends with the connection and comes in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: lamina\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES + 1).read_to_end(&mut answer)?;
    if answer.len() as u64 > MAX_BYTES {
        return Err(LocalCallError::Strange);
    }
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or(LocalCallError::Strange)?;
    let head = String::from_utf8_lossy(answer.get(..end).unwrap_or_default()).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(LocalCallError::Strange)?;
    if status != 200 {
        return Err(LocalCallError::Refused { status });
    }
    Ok(answer.split_off(end + 4))
}
