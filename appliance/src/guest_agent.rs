//! The QEMU guest agent's protocol, as far as freezing file systems needs it: lines of JSON over a Unix socket that QEMU connects to the
//! guest (QEMU's "Guest Agent Protocol Reference": `guest-sync-delimited`, `guest-fsfreeze-status`, `-freeze`, `-thaw`).
//!
//! The guest is hostile: what comes back is bounded in bytes and in time, is parsed into what is expected or an error, and never
//! waited for longer than the deadline, also when it comes a byte at a time. Two users of one socket never get answers at the same
//! time, since QEMU serves one connection: the second one hears nothing.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::Deserialize;
use serde_json::{Value, json};

/// Longest answer to one of our commands; real ones have less than a hundred bytes.
const MAX_LINE: usize = 64 << 10;
/// Most of what somebody else's conversation may have left in front of ours.
const MAX_STALE: usize = 1 << 20;
/// Longest text of the agent's own that is shown.
const SHOWN: usize = 200;
/// Begins what follows a flush of the agent's parser, both ways; never part of UTF-8.
const DELIMITER: u8 = 0xff;

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody listens, or nobody takes the connection.
    #[error("the guest agent's socket cannot be reached")]
    Unreachable {
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// No answer in time: no agent runs in the guest, it is busy, or another program has the socket.
    #[error("the guest agent did not answer in time: {doing}")]
    Silent {
        /// What we were doing.
        doing: &'static str,
    },
    /// The connection was closed.
    #[error("the guest agent's connection was closed: {doing}")]
    Closed {
        /// What we were doing.
        doing: &'static str,
    },
    /// The connection failed.
    #[error("the guest agent's connection failed: {doing}")]
    Broken {
        /// What we were doing.
        doing: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The answer is not of the protocol.
    #[error("the guest agent answered with something else than its protocol: {doing}")]
    Garbled {
        /// What we were doing.
        doing: &'static str,
    },
    /// The answer is longer than any real one.
    #[error("the guest agent's answer has no end: {doing}")]
    TooLong {
        /// What we were doing.
        doing: &'static str,
    },
    /// It answered that it cannot.
    #[error("the guest agent refused: {doing}: {why}")]
    Refused {
        /// What we were doing.
        doing: &'static str,
        /// In its own words, shortened and without control characters.
        why: String,
    },
    /// Somebody else has frozen the guest, and may thaw it at any time.
    #[error("the guest is frozen already, by somebody else")]
    AlreadyFrozen,
}

/// Whether a guest's file systems are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FreezeStatus {
    /// They take writes.
    Thawed,
    /// Those that can be are frozen.
    Frozen,
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    desc: String,
}

/// A conversation with an agent.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    /// Bytes that were read and not looked at.
    ahead: Vec<u8>,
}

impl Agent {
    /// Connects and makes sure that answers are to what we ask.
    ///
    /// # Errors
    /// [`AgentError`] when nobody answers in time.
    pub fn connect(socket: &Path, deadline: Instant) -> Result<Self, AgentError> {
        let stream = open(socket, deadline).map_err(|cause| AgentError::Unreachable { cause })?;
        let mut agent = Self { stream, ahead: Vec::new() };
        agent.synchronize(deadline)?;
        Ok(agent)
    }

    /// Skips answers that somebody else, or a question that timed out, has left.
    ///
    /// # Errors
    /// [`AgentError`] when no answer comes in time.
    pub fn synchronize(&mut self, deadline: Instant) -> Result<(), AgentError> {
        let doing = "synchronizing";
        // Any number that the answers before do not have.
        let id = RandomState::new().build_hasher().finish() >> 33;
        let mut request = vec![DELIMITER];
        request.extend_from_slice(json!({"execute": "guest-sync-delimited", "arguments": {"id": id}}).to_string().as_bytes());
        request.push(b'\n');
        self.write(&request, doing, deadline)?;
        let mut stale = 0;
        loop {
            stale += self.skip_past_delimiter(MAX_STALE - stale, doing, deadline)?;
            let line = self.line(MAX_LINE, doing, deadline)?;
            stale += line.len();
            if stale > MAX_STALE {
                return Err(AgentError::TooLong { doing });
            }
            // Another delimiter in the line: what stands before it was cut off.
            let last = line.rsplit(|byte| *byte == DELIMITER).next().unwrap_or_default();
            let answer: Option<Answer> = serde_json::from_slice(last).ok();
            if answer.and_then(|answer| answer.value) == Some(Value::from(id)) {
                return Ok(());
            }
        }
    }

    /// Whether file systems are frozen.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn status(&mut self, deadline: Instant) -> Result<FreezeStatus, AgentError> {
        let doing = "asking whether it is frozen";
        let value = self.ask("guest-fsfreeze-status", doing, deadline)?;
        serde_json::from_value(value).map_err(|_| AgentError::Garbled { doing })
    }

    /// Writes dirty data out and freezes all file systems that can be; how many.
    ///
    /// # Errors
    /// [`AgentError`]. After all but [`AgentError::Refused`] the guest may be frozen, or become frozen later.
    pub fn freeze(&mut self, deadline: Instant) -> Result<u64, AgentError> {
        let doing = "freezing";
        self.ask("guest-fsfreeze-freeze", doing, deadline)?.as_u64().ok_or(AgentError::Garbled { doing })
    }

    /// Thaws; how many file systems were frozen.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn thaw(&mut self, deadline: Instant) -> Result<u64, AgentError> {
        let doing = "thawing";
        self.ask("guest-fsfreeze-thaw", doing, deadline)?.as_u64().ok_or(AgentError::Garbled { doing })
    }

    fn ask(&mut self, command: &'static str, doing: &'static str, deadline: Instant) -> Result<Value, AgentError> {
        let request = format!("{}\n", json!({ "execute": command }));
        self.write(request.as_bytes(), doing, deadline)?;
        let line = self.line(MAX_LINE, doing, deadline)?;
        match serde_json::from_slice(&line) {
            Ok(Answer { error: Some(refusal), .. }) => Err(AgentError::Refused { doing, why: shown(&refusal.desc) }),
            Ok(Answer { value: Some(value), .. }) => Ok(value),
            _ => Err(AgentError::Garbled { doing }),
        }
    }

    fn write(&mut self, mut bytes: &[u8], doing: &'static str, deadline: Instant) -> Result<(), AgentError> {
        while !bytes.is_empty() {
            let left = left(deadline).ok_or(AgentError::Silent { doing })?;
            let written = self.stream.set_write_timeout(Some(left)).and_then(|()| self.stream.write(bytes));
            match written {
                Ok(0) => return Err(AgentError::Closed { doing }),
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(cause) => passing(cause, doing)?,
            }
        }
        Ok(())
    }

    /// More bytes into `ahead`.
    fn read(&mut self, doing: &'static str, deadline: Instant) -> Result<(), AgentError> {
        let mut bytes = [0; 4096];
        loop {
            let left = left(deadline).ok_or(AgentError::Silent { doing })?;
            let read = self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(&mut bytes));
            match read {
                Ok(0) => return Err(AgentError::Closed { doing }),
                Ok(read) => {
                    self.ahead.extend_from_slice(bytes.get(..read).unwrap_or_default());
                    return Ok(());
                }
                Err(cause) => passing(cause, doing)?,
            }
        }
    }

    fn skip_past_delimiter(&mut self, limit: usize, doing: &'static str, deadline: Instant) -> Result<usize, AgentError> {
        let mut skipped = 0;
        loop {
            if let Some(at) = self.ahead.iter().position(|byte| *byte == DELIMITER) {
                self.ahead.drain(..=at);
                return Ok(skipped + at + 1);
            }
            skipped += self.ahead.len();
            self.ahead.clear();
            if skipped > limit {
                return Err(AgentError::TooLong { doing });
            }
            self.read(doing, deadline)?;
        }
    }

    fn line(&mut self, limit: usize, doing: &'static str, deadline: Instant) -> Result<Vec<u8>, AgentError> {
        let mut looked_at = 0;
        loop {
            let fresh = self.ahead.get(looked_at..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                return Ok(self.ahead.drain(..=looked_at + at).collect());
            }
            looked_at = self.ahead.len();
            if looked_at > limit {
                return Err(AgentError::TooLong { doing });
            }
            self.read(doing, deadline)?;
        }
    }
}

/// Time left; `None` when there is none.
fn left(deadline: Instant) -> Option<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    // The kernel counts microseconds, and zero means for ever.
    (left >= Duration::from_micros(1)).then_some(left)
}

/// What is no end of the conversation: the deadline is looked at again.
fn passing(cause: io::Error, doing: &'static str) -> Result<(), AgentError> {
    match cause.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(()),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Err(AgentError::Closed { doing }),
        _ => Err(AgentError::Broken { doing, cause }),
    }
}

/// Connecting waits when the listener's queue is full, so that it too has a limit.
fn open(socket: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let left = left(deadline).ok_or(ErrorKind::TimedOut)?;
    let address = SocketAddrUnix::new(socket)?;
    let descriptor = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&descriptor, Timeout::Send, Some(left))?;
    connect(&descriptor, &address)?;
    Ok(UnixStream::from(descriptor))
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN).collect()
}
