//! The daemon's management interface as any HTTP client sees it: JSON and a volume's bytes over the local socket, a connection for each
//! call. For what must be quicker than a command, or wants the status.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::daemon::Daemon;
use crate::error::HarnessError;

/// Longer than the daemon lets any call take.
const LIMIT: Duration = Duration::from_secs(75);
/// How long jobs may take.
const JOB_LIMIT: Duration = Duration::from_secs(300);
/// The most that one call writes or reads.
const DATA_BYTES: usize = 1 << 20;
const JSON: &str = "application/json";

/// A call: what, where, with which bytes of which kind.
struct Call<'a> {
    method: &'a str,
    path: &'a str,
    media_type: &'a str,
    body: &'a [u8],
}

impl Daemon {
    /// Calls the interface; the answer, which may be empty, as JSON. `body` may be null.
    ///
    /// # Errors
    /// [`HarnessError::Refused`] with the daemon's status and reason, [`HarnessError::Answer`], [`HarnessError::File`].
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value, HarnessError> {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.exchange(&Call { method, path, media_type: JSON, body: text.as_bytes() })?;
        if answer.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer).map_err(|_| HarnessError::Answer {
            source_of: format!("{method} {path}"),
            expected: "JSON",
            answer: String::from_utf8_lossy(&answer).into_owned(),
        })
    }

    /// Waits until a job has succeeded; it as it is then.
    ///
    /// # Errors
    /// As [`Daemon::call`]; [`HarnessError::Answer`] with a job that did not succeed in 5 minutes.
    pub fn finished(&self, mut job: Value) -> Result<Value, HarnessError> {
        let until = Instant::now() + JOB_LIMIT;
        loop {
            match job["state"].as_str() {
                Some("succeeded") => return Ok(job),
                Some("queued" | "running") if Instant::now() < until => {}
                _ => {
                    return Err(HarnessError::Answer { source_of: "job".to_owned(), expected: "success", answer: job.to_string() });
                }
            }
            let path = format!("/api/v1/jobs/{}?wait=30", job["id"].as_str().unwrap_or_default());
            job = self.call("GET", &path, &Value::Null)?;
        }
    }

    /// Writes `bytes` (whole sectors) into a volume that no guest is connected to, from `offset` on.
    ///
    /// # Errors
    /// [`HarnessError::Refused`] with the daemon's reason, [`HarnessError::Answer`], [`HarnessError::File`].
    pub fn write_data(&self, volume: &str, offset: u64, bytes: &[u8]) -> Result<(), HarnessError> {
        for (n, piece) in bytes.chunks(DATA_BYTES).enumerate() {
            let path = format!("/api/v1/volumes/{volume}/data?offset={}", offset + (n * DATA_BYTES) as u64);
            self.exchange(&Call { method: "PUT", path: &path, media_type: "application/octet-stream", body: piece })?;
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
            piece(&self.exchange(&Call { method: "GET", path: &path, media_type: JSON, body: &[] })?);
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
                "{} {} HTTP/1.1\r\nHost: lamina\r\nConnection: close\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
                call.method,
                call.path,
                call.media_type,
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
