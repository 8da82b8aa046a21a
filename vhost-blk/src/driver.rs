//! A vhost-user front end for tests: well-behaved by default, and able to send anything at all.
//!
//! [`FrontEnd`] speaks the protocol over its own socket; [`SharedMemory`] is a memfd that plays the guest's memory;
//! `driver_queue` holds the virtqueue driver. Guest addresses, the front end's addresses and offsets in the file differ from
//! each other, so that mixing them up is noticed.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::IoSlice;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::driver_queue::DriverQueue;

/// Guest address of the memory's first byte.
pub const GUEST_BASE: u64 = 0x1_0000_0000;
/// The front end's own address of it.
pub const USER_BASE: u64 = 0x7f00_0000_0000;

/// Message numbers of the vhost-user protocol.
pub mod message {
    #![allow(missing_docs, reason = "the protocol's own names")]
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// Header flag: version 1.
pub const VERSION: u32 = 1;
/// Header flag: an answer, please.
pub const NEED_REPLY: u32 = 8;

/// `VHOST_USER_PROTOCOL_F_BACKEND_REQ` as a bit.
pub const BACKEND_REQ: u64 = 1 << 5;

/// `VIRTIO_RING_F_EVENT_IDX` as a bit.
pub const EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_BLK_F_FLUSH` as a bit.
pub const FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_F_CONFIG_WCE` as a bit.
pub const CONFIG_WCE: u64 = 1 << 11;

/// A memfd mapped here, playing the guest's memory.
#[derive(Debug)]
pub struct SharedMemory {
    file: OwnedFd,
    map: NonNull<u8>,
    len: usize,
}

// SAFETY: an address range valid until drop; it is shared memory anyway and tests order their accesses by the rings.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// `len` zero bytes; `sealed` against shrinking, or with sealing forbidden for ever.
    ///
    /// # Errors
    /// The system's.
    pub fn new(len: usize, sealed: bool) -> io::Result<Arc<Self>> {
        let flags = if sealed { MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING } else { MemfdFlags::CLOEXEC };
        let file = memfd_create("guest", flags)?;
        ftruncate(&file, len as u64)?;
        if sealed {
            fcntl_add_seals(&file, SealFlags::SHRINK)?;
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let map = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0)? };
        let map = NonNull::new(map.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Arc::new(Self { file, map, len }))
    }

    /// The memfd.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Its length when it was made.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Shrinks (or grows) the file under everyone's feet.
    ///
    /// # Errors
    /// The system's, for instance when it is sealed.
    pub fn resize(&self, len: u64) -> io::Result<()> {
        Ok(ftruncate(&self.file, len)?)
    }

    /// The address of `len` bytes at `offset`.
    ///
    /// # Panics
    /// Outside the memory: a mistake of the test.
    #[must_use]
    pub fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset + len <= self.len, "test touches memory it does not have");
        // SAFETY: inside the mapping.
        unsafe { self.map.add(offset) }
    }

    /// Stores bytes.
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: `at` checked the range; the source is ours.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(offset, bytes.len()).as_ptr(), bytes.len()) };
    }

    /// Loads bytes.
    #[must_use]
    pub fn get(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: `at` checked the range; the target is ours.
        unsafe { std::ptr::copy_nonoverlapping(self.at(offset, len).as_ptr(), bytes.as_mut_ptr(), len) };
        bytes
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and the last owner goes.
        let _ = unsafe { munmap(self.map.as_ptr().cast(), self.len) };
    }
}

/// What a well-behaved front end sets up.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Queues to set up.
    pub queues: u16,
    /// Entries of each ring.
    pub queue_size: u16,
    /// Virtio features to accept of those offered.
    pub features: u64,
    /// Bytes of guest memory.
    pub memory: usize,
    /// Whether the memfd is sealed against shrinking.
    pub sealed: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { queues: 1, queue_size: 128, features: u64::MAX, memory: 16 << 20, sealed: true }
    }
}

/// A connection to a server.
#[derive(Debug)]
pub struct FrontEnd {
    stream: UnixStream,
    /// Features accepted so far.
    pub features: u64,
}

impl FrontEnd {
    /// Connects and does nothing else. Reads time out after 20 s, so that a test fails rather than hangs.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self { stream, features: 0 })
    }

    /// Connects, negotiates, shares new memory and starts rings.
    ///
    /// # Errors
    /// The system's, or `InvalidData` when the server refuses.
    pub fn start(path: impl AsRef<Path>, setup: Setup) -> io::Result<(Self, Arc<SharedMemory>, Vec<DriverQueue>)> {
        let mut front = Self::connect(path)?;
        front.negotiate(setup.features)?;
        let memory = SharedMemory::new(setup.memory, setup.sealed)?;
        front.share(&memory)?;
        let queues = (0..setup.queues)
            .map(|index| {
                let queue = DriverQueue::new(index, setup.queue_size, memory.clone(), front.features & EVENT_IDX != 0)?;
                front.start_queue(&queue, 0)?;
                Ok(queue)
            })
            .collect::<io::Result<_>>()?;
        Ok((front, memory, queues))
    }

    /// The socket, for what only a socket can do wrong.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Owner, features and all protocol features that are offered.
    ///
    /// # Errors
    /// The system's, or `InvalidData` when the server refuses.
    pub fn negotiate(&mut self, wanted: u64) -> io::Result<()> {
        self.negotiate_protocol(wanted, u64::MAX)
    }

    /// As [`FrontEnd::negotiate`], with those protocol features of `protocol` that are offered.
    ///
    /// # Errors
    /// The system's, or `InvalidData` when the server refuses.
    pub fn negotiate_protocol(&mut self, wanted: u64, protocol: u64) -> io::Result<()> {
        self.send(message::SET_OWNER, VERSION, &[], &[])?;
        let offered = self.ask_u64(message::GET_FEATURES)?;
        self.features = offered & wanted;
        self.send(message::SET_FEATURES, VERSION, &self.features.to_le_bytes(), &[])?;
        if self.features & (1 << 30) != 0 {
            let protocol = protocol & self.ask_u64(message::GET_PROTOCOL_FEATURES)?;
            self.send(message::SET_PROTOCOL_FEATURES, VERSION, &protocol.to_le_bytes(), &[])?;
        }
        Ok(())
    }

    /// Shares the whole of `memory` as one region.
    ///
    /// # Errors
    /// The system's, or `InvalidData` when the server refuses.
    pub fn share(&self, memory: &SharedMemory) -> io::Result<()> {
        let regions = [(GUEST_BASE, memory.len() as u64, USER_BASE, 0)];
        self.ack(message::SET_MEM_TABLE, &mem_table(&regions), &[memory.file()])
    }

    /// Sets up and enables a ring that begins at chain number `base`.
    ///
    /// # Errors
    /// The system's, or `InvalidData` when the server refuses.
    pub fn start_queue(&self, queue: &DriverQueue, base: u16) -> io::Result<()> {
        let index = u32::from(queue.index());
        self.ack(message::SET_VRING_NUM, &pair(index, u32::from(queue.size())), &[])?;
        self.ack(message::SET_VRING_BASE, &pair(index, u32::from(base)), &[])?;
        self.ack(message::SET_VRING_ADDR, &queue.addresses(), &[])?;
        self.ack(message::SET_VRING_CALL, &u64::from(index).to_le_bytes(), &[queue.call()])?;
        self.ack(message::SET_VRING_KICK, &u64::from(index).to_le_bytes(), &[queue.kick_fd()])?;
        if self.features & (1 << 30) != 0 {
            self.ack(message::SET_VRING_ENABLE, &pair(index, 1), &[])?;
        }
        Ok(())
    }

    /// Stops a ring; answers where it stood.
    ///
    /// # Errors
    /// The system's, or `InvalidData` when the answer makes no sense.
    pub fn stop_queue(&self, index: u16) -> io::Result<u16> {
        self.send(message::GET_VRING_BASE, VERSION, &pair(u32::from(index), 0), &[])?;
        match *self.receive()? {
            [.., a, b, 0, 0] => Ok(u16::from_le_bytes([a, b])),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Gives the server a channel for messages of its own; answers our end of it. Reads time out as the connection's do.
    ///
    /// # Errors
    /// The system's, or `InvalidData` when the server refuses.
    pub fn open_channel(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(Duration::from_secs(20)))?;
        self.ack(message::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
        Ok(ours)
    }

    /// Reads the configuration space.
    ///
    /// # Errors
    /// The system's, or `InvalidData` when the server refuses.
    pub fn config(&self, offset: u32, size: u32) -> io::Result<Vec<u8>> {
        let mut body = config_head(offset, size);
        body.resize(12 + size as usize, 0);
        self.send(message::GET_CONFIG, VERSION, &body, &[])?;
        let answer = self.receive()?;
        if answer.len() != body.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(answer[12..].to_vec())
    }

    /// Writes the configuration space.
    ///
    /// # Errors
    /// The system's, or `InvalidData` when the server refuses.
    pub fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        let mut body = config_head(offset, bytes.len() as u32);
        body.extend_from_slice(bytes);
        self.ack(message::SET_CONFIG, &body, &[])
    }

    /// Sends one message, whatever it says.
    ///
    /// # Errors
    /// The system's.
    pub fn send(&self, code: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_claiming(code, flags, body.len() as u32, body, fds)
    }

    /// Sends one message whose header claims `size` bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn send_claiming(&self, code: u32, flags: u32, size: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(12 + body.len());
        for word in [code, flags, size] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(body);
        self.send_bytes(&bytes, fds)
    }

    /// Sends bytes with descriptors.
    ///
    /// # Errors
    /// The system's.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); 2048];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        while sent < bytes.len() {
            sent += rustix::net::send(&self.stream, &bytes[sent..], SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }

    /// Sends a message that asks for a reply; `InvalidData` when that says no.
    ///
    /// # Errors
    /// The system's, or `InvalidData`.
    pub fn ack(&self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let replies = self.features & (1 << 30) != 0;
        self.send(code, if replies { VERSION | NEED_REPLY } else { VERSION }, body, fds)?;
        if !replies || *self.receive()? == [0; 8] { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// Asks for a number.
    ///
    /// # Errors
    /// The system's, or `InvalidData` when the answer is none.
    pub fn ask_u64(&self, code: u32) -> io::Result<u64> {
        self.send(code, VERSION, &[], &[])?;
        let answer = self.receive()?;
        answer.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The body of the next answer.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` when the server closed the connection.
    pub fn receive(&self) -> io::Result<Vec<u8>> {
        use std::io::Read;
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header)?;
        let [.., a, b, c, d] = header;
        let mut body = vec![0; (u32::from_le_bytes([a, b, c, d]) as usize).min(1 << 16)];
        (&self.stream).read_exact(&mut body)?;
        Ok(body)
    }

    /// Whether the server closed the connection, waiting for it up to `patience`. Answers that are still under way are skipped.
    #[must_use]
    pub fn is_closed_within(&self, patience: Duration) -> bool {
        use std::io::Read;
        let start = std::time::Instant::now();
        let mut rest = [0; 4096];
        while start.elapsed() < patience {
            let left = patience.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
            if self.stream.set_read_timeout(Some(left)).is_err() {
                return false;
            }
            match (&self.stream).read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
        false
    }
}

/// The body of SET_MEM_TABLE: regions as (guest, length, user, offset).
#[must_use]
pub fn mem_table(regions: &[(u64, u64, u64, u64)]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&(regions.len() as u32).to_le_bytes());
    body.extend_from_slice(&[0; 4]);
    for (guest, len, user, offset) in regions {
        for word in [guest, len, user, offset] {
            body.extend_from_slice(&word.to_le_bytes());
        }
    }
    body
}

/// The body of ADD_MEM_REG and REM_MEM_REG.
#[must_use]
pub fn single_region(guest: u64, len: u64, user: u64, offset: u64) -> Vec<u8> {
    [0, guest, len, user, offset].into_iter().flat_map(u64::to_le_bytes).collect()
}

/// The body of messages about a ring's state.
#[must_use]
pub fn pair(index: u32, number: u32) -> [u8; 8] {
    (u64::from(index) | u64::from(number) << 32).to_le_bytes()
}

fn config_head(offset: u32, size: u32) -> Vec<u8> {
    [offset, size, 0].into_iter().flat_map(u32::to_le_bytes).collect()
}
