//! A volume's bytes through the management interface, as any HTTP client would move them: over the local socket, a connection for each
//! call.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::daemon::Daemon;
use crate::error::HarnessError;

/// Longer than the daemon lets any call take.
const LIMIT: Duration = Duration::from_secs(75);
/// The most that one call writes or reads.
const DATA_BYTES: usize = 1 << 20;

/// A call: what, where, with which bytes.
struct Call<'a> {
    method: &'a str,
    path: &'a str,
    body: &'a [u8],
}

impl Daemon {
    /// Writes `bytes` (whole sectors) into a volume that no guest is connected to, from `offset` on.
    ///
    /// # Errors
    /// [`HarnessError::Refused`] with the daemon's reason, [`HarnessError::Answer`], [`HarnessError::File`].
    pub fn write_data(&self, volume: &str, offset: u64, bytes: &[u8]) -> Result<(), HarnessError> {
        for (n, piece) in bytes.chunks(DATA_BYTES).enumerate() {
            let path = format!("/api/v1/volumes/{volume}/data?offset={}", offset + (n * DATA_BYTES) as u64);
            self.exchange(&Call { method: "PUT", path: &path, body: piece })?;
        }
        Ok(())
    }

    /// Reads all of a volume that no guest is connected to, a piece after the other.
    ///
    /// # Errors
    /// As [`Daemon::write_data`].
    pub fn read_data(&self, volume: &str, mut piece: impl FnMut(&[u8])) -> Result<(), HarnessError> {
        let size = self.volume(volume)?.size.0;
        for offset in (0..size).step_by(DATA_BYTES) {
            let length = (size - offset).min(DATA_BYTES as u64);
            let path = format!("/api/v1/volumes/{volume}/data?offset={offset}&length={length}");
            piece(&self.exchange(&Call { method: "GET", path: &path, body: &[] })?);
        }
        Ok(())
    }

    fn exchange(&self, call: &Call<'_>) -> Result<Vec<u8>, HarnessError> {
        let socket = self.state().join("run/lamina.sock");
        let until = Instant::now() + LIMIT;
        loop {
            let mut stream = UnixStream::connect(&socket).map_err(HarnessError::file("connect to", &socket))?;
            stream.set_read_timeout(Some(LIMIT)).map_err(HarnessError::file("set up", &socket))?;
            let head = format!(
                "{} {} HTTP/1.1\r\nHost: lamina\r\nConnection: close\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
                call.method,
                call.path,
                call.body.len()
            );
            let mut answer = Vec::new();
            stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(call.body))
                .and_then(|()| stream.read_to_end(&mut answer))
                .map_err(HarnessError::file("call", &socket))?;
            let line = format!("{} {}", call.method, call.path);
            let (status, body) = parts(&answer).ok_or_else(|| HarnessError::Answer {
                source_of: line.clone(),
                expected: "an HTTP status",
                answer: String::from_utf8_lossy(&answer).chars().take(400).collect(),
            })?;
            match status {
                200..=299 => return Ok(body.to_vec()),
                // It has too much to do, and has done nothing.
                429 if Instant::now() < until => std::thread::sleep(Duration::from_secs(1)),
                _ => {
                    let message = String::from_utf8_lossy(body).into_owned();
                    return Err(HarnessError::Refused { command: line, code: i32::from(status), message });
                }
            }
        }
    }
}

/// Status and body of an answer that ends with its connection.
fn parts(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(answer.get(..end)?).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, answer.get(end + 4..)?))
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn status_and_body_are_found_and_nonsense_is_not() {
        assert_eq!(parts(b"HTTP/1.1 201 Created\r\nA: b\r\n\r\n\r\n\r\nx"), Some((201, &b"\r\n\r\nx"[..])));
        assert_eq!(parts(b"HTTP/1.1 204 No Content\r\n\r\n"), Some((204, &b""[..])));
        assert_eq!(parts(b"HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(parts(b"SSH-2.0-x\r\n\r\n"), None);
    }
}
