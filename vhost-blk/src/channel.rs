//! The channel on which the back end speaks first: a socket that the front end hands over with SET_BACKEND_REQ_FD.
//!
//! One message goes out on it: "the configuration changed", a header without a body. No reply is asked for, so none comes even
//! where REPLY_ACK was negotiated, and nothing is ever read. The socket is the front end's: it may be full, closed, shared or in
//! any mode. Therefore each send says itself that it must not block, and is tried again only when the socket can be written.
//!
//! The `vhost` crate's own type for this channel cannot send that message and keeps the descriptor to itself; so the message that brings
//! the channel is taken off the stream here.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::{Errno, IoSliceMut};
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketType, recvmsg, send,
};
use vhost::vhost_user::message::MAX_ATTACHED_FD_ENTRIES;
use vhost::vhost_user::{Error, Result};

use crate::connection::HEADER_BYTES;

/// Number of the message that brings the channel.
pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
/// Number of the message that goes out: VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;

/// Header flags: the version's bits, and the only version.
const VERSION_MASK: u32 = 3;
const VERSION: u32 = 1;
const IS_REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What came of telling the front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// The message is on its way.
    Yes,
    /// The front end does not read; there is no room now.
    Full,
    /// It closed the channel, or the channel never was one.
    Gone,
}

/// The channel.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Checks what a front end handed over; `None` unless it is a Unix stream socket.
    pub(crate) fn new(socket: OwnedFd) -> Option<Self> {
        let right = socket_domain(&socket) == Ok(AddressFamily::UNIX) && socket_type(&socket) == Ok(SocketType::STREAM);
        right.then_some(Self(socket))
    }

    /// Says that the configuration changed. Never blocks.
    pub(crate) fn tell_config_changed(&self) -> Told {
        let message = header(CONFIG_CHANGE, VERSION, 0);
        match send(&self.0, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) if sent == message.len() => Told::Yes,
            Err(Errno::AGAIN) => Told::Full,
            // Part of a header cannot be taken back: whoever reads it next makes no sense of it.
            Ok(_) | Err(_) => Told::Gone,
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A SET_BACKEND_REQ_FD as it came.
pub(crate) struct Offer {
    needs_reply: bool,
    /// What came with it; more than one is a mistake of the front end's.
    descriptors: Vec<OwnedFd>,
}

impl Offer {
    /// Takes the message off the stream, on which its whole header is there to be read.
    pub(crate) fn receive(stream: &UnixStream) -> Result<Self> {
        let mut bytes = [0u8; HEADER_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let message = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)
            .map_err(|errno| Error::SocketBroken(errno.into()))?;
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                descriptors.extend(files);
            }
        }
        if message.bytes < HEADER_BYTES || message.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Error::PartialMessage);
        }
        let [_, _, _, _, f0, f1, f2, f3, s0, s1, s2, s3] = bytes;
        let (flags, size) = (u32::from_le_bytes([f0, f1, f2, f3]), u32::from_le_bytes([s0, s1, s2, s3]));
        if flags & (VERSION_MASK | IS_REPLY) != VERSION || size != 0 {
            return Err(Error::InvalidMessage);
        }
        Ok(Self { needs_reply: flags & NEED_REPLY != 0, descriptors })
    }

    /// Whether the front end waits to hear what came of it, given that such replies were negotiated.
    pub(crate) fn needs_reply(&self) -> bool {
        self.needs_reply
    }

    /// The channel in it.
    pub(crate) fn channel(self) -> Result<Channel> {
        let Ok([socket]) = <[OwnedFd; 1]>::try_from(self.descriptors) else { return Err(Error::IncorrectFds) };
        Channel::new(socket).ok_or(Error::InvalidOperation("the channel for the back end's messages is not a Unix stream socket"))
    }
}

/// Tells on the connection itself what came of an [`Offer`].
pub(crate) fn reply(stream: &UnixStream, accepted: bool) -> Result<()> {
    let mut message = header(SET_BACKEND_REQ_FD, VERSION | IS_REPLY, 8).to_vec();
    message.extend_from_slice(&u64::from(!accepted).to_le_bytes());
    // The stream's own time-out bounds this; a front end that leaves no room for 20 bytes is cut off.
    match send(stream, &message, SendFlags::NOSIGNAL) {
        Ok(sent) if sent == message.len() => Ok(()),
        Ok(_) => Err(Error::PartialMessage),
        Err(errno) => Err(Error::SocketBroken(errno.into())),
    }
}

fn header(code: u32, flags: u32, size: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    for (to, from) in bytes.iter_mut().zip([code, flags, size].into_iter().flat_map(u32::to_le_bytes)) {
        *to = from;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::{Channel, Told};

    #[test]
    fn what_goes_out_is_the_header_that_the_protocol_names_and_asks_for_no_reply() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let channel = Channel::new(ours.into()).expect("a channel");
        assert_eq!(channel.tell_config_changed(), Told::Yes);
        let mut message = [0xff; 12];
        theirs.read_exact(&mut message).expect("a message");
        assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_full_channel_never_blocks_in_whatever_mode_the_front_end_left_it() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        ours.set_nonblocking(false).expect("blocking");
        let channel = Channel::new(ours.into()).expect("a channel");
        let sent = (0..1_000_000).take_while(|_| channel.tell_config_changed() == Told::Yes).count();
        assert!(sent > 10 && sent < 1_000_000, "{sent} messages");
        assert_eq!(channel.tell_config_changed(), Told::Full);
        drop(theirs);
        assert_eq!(channel.tell_config_changed(), Told::Gone);
    }

    #[test]
    fn only_a_unix_stream_socket_is_a_channel_and_one_that_is_not_connected_is_gone() {
        let (datagram, _other) = UnixDatagram::pair().expect("pair");
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
        let file = std::fs::File::open("/proc/self/status").expect("file");
        let (_read, write) = std::io::pipe().expect("pipe");
        let wrong: [OwnedFd; 4] = [datagram.into(), tcp.into(), file.into(), write.into()];
        for socket in wrong {
            assert!(Channel::new(socket).is_none());
        }
        let dir = tempfile::tempdir().expect("dir");
        let listening = UnixListener::bind(dir.path().join("listening")).expect("listener");
        assert_eq!(Channel::new(listening.into()).map(|channel| channel.tell_config_changed()), Some(Told::Gone));
    }
}
