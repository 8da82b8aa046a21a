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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::io::IoSliceMut;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use vhost::vhost_user::message::MAX_ATTACHED_FD_ENTRIES;
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::capacity::Capacity;
use crate::channel::{self, Channel, Offer, SET_BACKEND_REQ_FD};
use crate::counters::Counters;
use crate::frontend::{Frontend, has_hung_up};
use crate::options::ServerOptions;
use crate::stopping::Stopping;
use crate::worker::{Alarm, Disk};

/// How long a front end may take from the first byte of a message to its last.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pace of looking for the rest of a header.
const HEADER_TICK: Duration = Duration::from_millis(5);
/// Request, flags and size, four bytes each.
pub(crate) const HEADER_BYTES: usize = 12;
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
    /// With its number.
    Message(u32),
    /// The disk has another size.
    Resized,
    /// The channel to the front end, which was full, can be written (or is gone).
    Writable,
    HungUp,
    Stop,
    Incomplete,
    TooManyDescriptors,
}

/// Serves `stream` until either side ends it. Answers how many requests were left unanswered.
pub(crate) fn serve(
    name: &str,
    stream: UnixStream,
    capacity: Arc<Capacity>,
    options: Arc<ServerOptions>,
    counters: Arc<Counters>,
    stopping: Arc<Stopping>,
) -> io::Result<u32> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
    stream.set_write_timeout(Some(MESSAGE_TIMEOUT))?;
    let alarm = Arc::new(CloseStream(stream.try_clone()?));
    let control = stream.try_clone()?;
    let disk = Disk::new(capacity.clone());
    let frontend = Frontend::new(name.to_owned(), control.try_clone()?, disk, alarm, options, counters.clone(), stopping.clone());
    let frontend = Arc::new(Mutex::new(frontend));
    let mut handler = BackendReqHandler::from_stream(stream, frontend.clone());
    let messages = catch_unwind(AssertUnwindSafe(|| receive(&mut handler, &frontend, &control, &stopping, &capacity)));
    if let Err(error) = messages.unwrap_or(Err(Error::BackendInternalError)) {
        let hung_up = matches!(error, Error::Disconnected | Error::SocketBroken(_));
        if !hung_up {
            counters.protocol_errors.fetch_add(1, Ordering::Relaxed);
            if counters.may_complain() {
                tracing::warn!(socket = name, %error, "front end cut off");
            }
        }
    }
    let left = lock(&frontend).shut_down();
    let _ = control.shutdown(Shutdown::Both);
    Ok(left)
}

fn lock(frontend: &Mutex<Frontend>) -> MutexGuard<'_, Frontend> {
    // After a panic there is still a connection to be shut down.
    frontend.lock().unwrap_or_else(PoisonError::into_inner)
}

fn receive(
    handler: &mut BackendReqHandler<Mutex<Frontend>>,
    frontend: &Mutex<Frontend>,
    stream: &UnixStream,
    stopping: &Stopping,
    capacity: &Capacity,
) -> Result<(), Error> {
    let mut begun = None;
    loop {
        let full = lock(frontend).tell_size();
        let events = Events { stream, stopping, capacity, full: full.as_deref() };
        match events.wait(&mut begun).map_err(|error| Error::SocketBroken(error.into()))? {
            Awaited::Message(SET_BACKEND_REQ_FD) => accept_channel(frontend, stream)?,
            Awaited::Message(_) => handler.handle_request()?,
            Awaited::Resized => {
                capacity.note();
                lock(frontend).size_changed();
            }
            Awaited::Writable => lock(frontend).tell_size_now(),
            Awaited::HungUp | Awaited::Stop => return Ok(()),
            Awaited::Incomplete => return Err(Error::PartialMessage),
            Awaited::TooManyDescriptors => return Err(Error::IncorrectFds),
        }
    }
}

fn accept_channel(frontend: &Mutex<Frontend>, stream: &UnixStream) -> Result<(), Error> {
    let offer = Offer::receive(stream)?;
    let mut frontend = lock(frontend);
    let replies = frontend.sends_replies() && offer.needs_reply();
    let result = frontend.set_channel(offer);
    if replies {
        channel::reply(stream, result.is_ok())?;
    }
    result
}

/// What a connection's thread waits for.
struct Events<'a> {
    stream: &'a UnixStream,
    stopping: &'a Stopping,
    capacity: &'a Capacity,
    /// A channel that had no room for a message.
    full: Option<&'a Channel>,
}

impl Events<'_> {
    /// Waits for one of them; for a message until its whole header can be read without blocking. `begun` is when its first byte was seen.
    fn wait(&self, begun: &mut Option<Instant>) -> Result<Awaited, Errno> {
        loop {
            let mut fds = vec![
                PollFd::new(self.stream, PollFlags::IN),
                PollFd::new(self.stopping, PollFlags::IN),
                PollFd::new(self.capacity, PollFlags::IN),
            ];
            fds.extend(self.full.map(|channel| PollFd::new(channel, PollFlags::OUT)));
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let is_ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
            if is_ready(1) {
                return Ok(Awaited::Stop);
            }
            if is_ready(2) {
                return Ok(Awaited::Resized);
            }
            if is_ready(3) {
                return Ok(Awaited::Writable);
            }
            match peek_header(self.stream) {
                Ok(Peeked { descriptors_fit: false, .. }) => return Ok(Awaited::TooManyDescriptors),
                Ok(Peeked { bytes: 0, .. }) => return Ok(if begun.is_some() { Awaited::Incomplete } else { Awaited::HungUp }),
                Ok(Peeked { bytes: HEADER_BYTES.., code, .. }) => {
                    *begun = None;
                    return Ok(Awaited::Message(code));
                }
                Ok(_) if has_hung_up(self.stream) => return Ok(Awaited::Incomplete),
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
}

struct Peeked {
    bytes: usize,
    /// The message's number, once its header is there.
    code: u32,
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
    let [c0, c1, c2, c3, ..] = header;
    Ok(Peeked { bytes: message.bytes, code: u32::from_le_bytes([c0, c1, c2, c3]), descriptors_fit })
}
