//! A small NBD client over a Unix socket: the fixed newstyle handshake with `NBD_OPT_GO`, and reads, writes and a flush one at a time
//! (the protocol document of the Network Block Device project, sections "Fixed newstyle negotiation" and "Simple reply message").
//!
//! The other side is a `qemu-nbd` of ours; still every length that it says is bounded before it is believed.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const FIXED_NEWSTYLE: u16 = 1;
const CLIENT_FIXED_NEWSTYLE: u32 = 1;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;

/// Bytes of an option's answer that are believed.
const MAX_REPLY: u32 = 64 << 10;
/// A drive that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why a block device over a socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NbdError {
    /// The socket failed.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The other side speaks something else.
    #[error("it does not speak NBD as expected: {what}")]
    Protocol {
        /// What was unexpected.
        what: &'static str,
    },
    /// The other side refuses to export anything.
    #[error("it refuses (NBD reply {code:#x})")]
    Refused {
        /// Its answer.
        code: u32,
    },
    /// A request failed.
    #[error("a {what} failed there (errno {errno})")]
    Failed {
        /// Which request.
        what: &'static str,
        /// Its answer.
        errno: u32,
    },
    /// The program behind it ended.
    #[error("qemu-nbd ended: {said}")]
    Ended {
        /// Its last line.
        said: String,
    },
}

/// A block device over a socket.
#[derive(Debug)]
pub(crate) struct Nbd {
    stream: UnixStream,
    size: u64,
    cookie: u64,
}

impl Nbd {
    /// Connects to whoever listens at `socket` and takes its default export.
    pub(crate) fn connect(socket: &Path) -> Result<Self, NbdError> {
        Self::shake(UnixStream::connect(socket)?)
    }

    fn shake(mut stream: UnixStream) -> Result<Self, NbdError> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        if u64::from_be_bytes(take(&mut stream)?) != INIT_MAGIC || u64::from_be_bytes(take(&mut stream)?) != OPTION_MAGIC {
            return Err(NbdError::Protocol { what: "no newstyle greeting" });
        }
        if u16::from_be_bytes(take(&mut stream)?) & FIXED_NEWSTYLE == 0 {
            return Err(NbdError::Protocol { what: "no fixed newstyle" });
        }
        // Our flags; then NBD_OPT_GO for the export without a name, without asking for more than is always said.
        let mut go = CLIENT_FIXED_NEWSTYLE.to_be_bytes().to_vec();
        go.extend(OPTION_MAGIC.to_be_bytes());
        go.extend(OPT_GO.to_be_bytes());
        go.extend(6u32.to_be_bytes());
        go.extend([0; 6]);
        stream.write_all(&go)?;
        let mut size = None;
        loop {
            if u64::from_be_bytes(take(&mut stream)?) != OPTION_REPLY_MAGIC || u32::from_be_bytes(take(&mut stream)?) != OPT_GO {
                return Err(NbdError::Protocol { what: "no answer to NBD_OPT_GO" });
            }
            let kind = u32::from_be_bytes(take(&mut stream)?);
            let length = u32::from_be_bytes(take(&mut stream)?);
            if length > MAX_REPLY {
                return Err(NbdError::Protocol { what: "an answer that is too long" });
            }
            let mut body = Vec::new();
            (&mut stream).take(length.into()).read_to_end(&mut body)?;
            match kind {
                REP_ACK => {
                    let size = size.ok_or(NbdError::Protocol { what: "no size" })?;
                    return Ok(Self { stream, size, cookie: 0 });
                }
                REP_INFO => size = size.or(export_size(&body)),
                error if error & REP_ERROR != 0 => return Err(NbdError::Refused { code: error }),
                _ => {}
            }
        }
    }

    /// Bytes of the device.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Reads at `offset`; behind the device's end are zeros.
    pub(crate) fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), NbdError> {
        let there = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(into.len());
        let (inside, behind) = into.split_at_mut(there);
        behind.fill(0);
        if inside.is_empty() {
            return Ok(());
        }
        self.request(CMD_READ, offset, inside.len())?;
        self.reply("read")?;
        Ok(self.stream.read_exact(inside)?)
    }

    /// Writes at `offset`.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), NbdError> {
        self.request(CMD_WRITE, offset, bytes.len())?;
        self.stream.write_all(bytes)?;
        self.reply("write")
    }

    /// Makes what was written durable, and says good-bye.
    pub(crate) fn finish(mut self) -> Result<(), NbdError> {
        self.request(CMD_FLUSH, 0, 0)?;
        self.reply("flush")?;
        self.request(CMD_DISC, 0, 0)
    }

    fn request(&mut self, kind: u16, offset: u64, length: usize) -> Result<(), NbdError> {
        let length = u32::try_from(length).map_err(|_| NbdError::Protocol { what: "a request that is too long" })?;
        self.cookie += 1;
        let mut request = REQUEST_MAGIC.to_be_bytes().to_vec();
        request.extend(0u16.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        Ok(self.stream.write_all(&request)?)
    }

    fn reply(&mut self, what: &'static str) -> Result<(), NbdError> {
        let magic = u32::from_be_bytes(take(&mut self.stream)?);
        let errno = u32::from_be_bytes(take(&mut self.stream)?);
        let cookie = u64::from_be_bytes(take(&mut self.stream)?);
        if magic != REPLY_MAGIC || cookie != self.cookie {
            return Err(NbdError::Protocol { what: "no simple reply" });
        }
        if errno == 0 { Ok(()) } else { Err(NbdError::Failed { what, errno }) }
    }
}

fn export_size(body: &[u8]) -> Option<u64> {
    let (kind, rest) = body.split_first_chunk::<2>()?;
    let (size, _) = rest.split_first_chunk::<8>()?;
    (u16::from_be_bytes(*kind) == INFO_EXPORT).then(|| u64::from_be_bytes(*size))
}

fn take<const N: usize>(stream: &mut UnixStream) -> Result<[u8; N], NbdError> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::{INIT_MAGIC, Nbd, NbdError, OPTION_MAGIC, OPTION_REPLY_MAGIC};

    fn says(bytes: &[&[u8]]) -> Result<Nbd, NbdError> {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        for part in bytes {
            theirs.write_all(part).expect("written");
        }
        theirs.shutdown(std::net::Shutdown::Write).expect("shut");
        Nbd::shake(ours)
    }

    #[test]
    fn whatever_is_not_nbd_is_refused_and_lengths_are_bounded() {
        let greeting = [INIT_MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes()].concat();
        let reply = |kind: u32, length: u32| {
            [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &7u32.to_be_bytes(), &kind.to_be_bytes(), &length.to_be_bytes()].concat()
        };
        assert!(matches!(says(&[b"HTTP/1.1 400 Bad Request\r\n"]), Err(NbdError::Protocol { .. })));
        assert!(matches!(says(&[&greeting, &[0, 0]]), Err(NbdError::Protocol { what: "no fixed newstyle" })));
        assert!(matches!(
            says(&[&greeting, &[0, 1], &reply(3, u32::MAX)]),
            Err(NbdError::Protocol { what: "an answer that is too long" })
        ));
        assert!(matches!(says(&[&greeting, &[0, 1], &reply(0x8000_0006, 0)]), Err(NbdError::Refused { code: 0x8000_0006 })));
        assert!(matches!(says(&[&greeting, &[0, 1], &reply(1, 0)]), Err(NbdError::Protocol { what: "no size" })));
        assert!(matches!(says(&[&greeting, &[0, 1], &reply(3, 12), &[0; 3]]), Err(NbdError::Io(_))));
        let whole = [&[0, 0][..], &(1u64 << 20).to_be_bytes(), &[0, 1]].concat();
        assert_eq!(says(&[&greeting, &[0, 1], &reply(3, 12), &whole, &reply(1, 0)]).expect("a device").size(), 1 << 20);
    }
}
