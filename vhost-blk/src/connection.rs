//! One front end's connection: receives messages, one after the other, until it ends, then shuts its rings down.
//!
//! The `vhost` crate reads a message with blocking calls, so nothing is handed to it before a whole header is there; a front end
//! that sends half a header or half a body is cut off after [`MESSAGE_TIMEOUT`]. Any error ends the connection: a front end
//! that is refused something gets its negative reply, if it asked for replies, and the end of the stream.

use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lamina_contract::BlockDevice;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::io::IoSliceMut;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use vhost::vhost_user::message::MAX_ATTACHED_FD_ENTRIES;
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::counters::Counters;
use crate::frontend::{Frontend, has_hung_up};
use crate::options::ServerOptions;
use crate::stopping::Stopping;
use crate::worker::{Alarm, Disk};

/// How long a front end may take from the first byte of a message to its last.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pace of looking for the rest of a header.
const HEADER_TICK: Duration = Duration::from_millis(5);
const HEADER_BYTES: usize = 12;
/// `SCM_MAX_FD`.
const KERNEL_MAX_DESCRIPTORS: usize = 253;

/// Closes the stream under the connection's thread.
struct CloseStream(UnixStream);

impl Alarm for CloseStream {
    fn fail(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// What came of waiting for a message.
enum Awaited {
    Message,
    HungUp,
    Stop,
    Incomplete,
    TooManyDescriptors,
}

/// Serves `stream` until either side ends it. Answers how many requests were left unanswered.
pub(crate) fn serve(
    name: &str,
    stream: UnixStream,
    device: Arc<dyn BlockDevice>,
    options: Arc<ServerOptions>,
    counters: Arc<Counters>,
    stopping: Arc<Stopping>,
) -> io::Result<u32> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
    stream.set_write_timeout(Some(MESSAGE_TIMEOUT))?;
    let alarm = Arc::new(CloseStream(stream.try_clone()?));
    let control = stream.try_clone()?;
    let disk = Disk::new(device);
    let frontend = Frontend::new(name.to_owned(), control.try_clone()?, disk, alarm, options, counters.clone(), stopping.clone());
    let frontend = Arc::new(Mutex::new(frontend));
    let mut handler = BackendReqHandler::from_stream(stream, frontend.clone());
    let messages = catch_unwind(AssertUnwindSafe(|| receive(&mut handler, &control, &stopping)));
    if let Err(error) = messages.unwrap_or(Err(Error::BackendInternalError)) {
        let hung_up = matches!(error, Error::Disconnected | Error::SocketBroken(_));
        if !hung_up {
            counters.protocol_errors.fetch_add(1, Ordering::Relaxed);
            if counters.may_complain() {
                tracing::warn!(socket = name, %error, "front end cut off");
            }
        }
    }
    let left = frontend.lock().unwrap_or_else(PoisonError::into_inner).shut_down();
    let _ = control.shutdown(Shutdown::Both);
    Ok(left)
}

fn receive(handler: &mut BackendReqHandler<Mutex<Frontend>>, stream: &UnixStream, stopping: &Stopping) -> Result<(), Error> {
    loop {
        match await_header(stream, stopping).map_err(|error| Error::SocketBroken(error.into()))? {
            Awaited::Message => handler.handle_request()?,
            Awaited::HungUp | Awaited::Stop => return Ok(()),
            Awaited::Incomplete => return Err(Error::PartialMessage),
            Awaited::TooManyDescriptors => return Err(Error::IncorrectFds),
        }
    }
}

/// Waits until a whole header can be read without blocking.
fn await_header(stream: &UnixStream, stopping: &Stopping) -> Result<Awaited, Errno> {
    let mut begun: Option<Instant> = None;
    loop {
        let mut fds = [PollFd::new(stream, PollFlags::IN), PollFd::new(stopping, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
            return Ok(Awaited::Stop);
        }
        match peek_header(stream) {
            Ok(Peeked { descriptors_fit: false, .. }) => return Ok(Awaited::TooManyDescriptors),
            Ok(Peeked { bytes: 0, .. }) => return Ok(if begun.is_some() { Awaited::Incomplete } else { Awaited::HungUp }),
            Ok(Peeked { bytes: HEADER_BYTES.., .. }) => return Ok(Awaited::Message),
            Ok(_) if has_hung_up(stream) => return Ok(Awaited::Incomplete),
            Ok(_) => {
                if begun.get_or_insert_with(Instant::now).elapsed() >= MESSAGE_TIMEOUT {
                    return Ok(Awaited::Incomplete);
                }
                std::thread::sleep(HEADER_TICK);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

struct Peeked {
    bytes: usize,
    descriptors_fit: bool,
}

/// Looks at a header and the descriptors that come with it without taking them. The `vhost` crate takes too many descriptors
/// for a passing failure and would wait for the header again, for ever.
fn peek_header(stream: &UnixStream) -> Result<Peeked, Errno> {
    let mut header = [0u8; HEADER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KERNEL_MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(stream, &mut [IoSliceMut::new(&mut header)], &mut control, flags)?;
    // Peeking makes copies of the descriptors; dropping the messages closes them.
    let count: usize = control.drain().map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { fds.count() } else { 0 }).sum();
    let descriptors_fit = count <= MAX_ATTACHED_FD_ENTRIES && !message.flags.contains(ReturnFlags::CTRUNC);
    Ok(Peeked { bytes: message.bytes, descriptors_fit })
}
