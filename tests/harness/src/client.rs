//! A guest's disk driver without a guest: the `blkio` crate over a vhost-user-blk socket, one connection per disk.
//!
//! A [`Queue`] has a fixed number of [`Slot`]s, each with a buffer in memory shared with the server (a memfd sealed against
//! shrinking, as QEMU's is). A slot is acquired, submitted with an [`Action`], reaped and released. The client never waits without a
//! limit: a server that died or hangs shows as [`ClientError::Late`]. What the server completed before it died is still in the
//! shared ring and is reaped afterwards, since it was acknowledged.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use blkio::{Blkio, Blkioq, Completion, Errno, MemoryRegion, ReqFlags};
use lamina_contract::units::{Lba, SectorCount};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Why the client gave up.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection, or the server refused a step of the set-up.
    #[error("cannot {doing} at {socket}: {cause}")]
    Connect {
        /// The step.
        doing: &'static str,
        /// The server's socket.
        socket: PathBuf,
        /// Why.
        cause: blkio::Error,
    },
    /// The client's own memory could not be made.
    #[error("cannot make memory to share: {cause}")]
    Memory {
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The server did not answer in time.
    #[error("no answer from {socket} within {limit:?}")]
    Late {
        /// The server's socket.
        socket: PathBuf,
        /// The limit.
        limit: Duration,
    },
    /// The queue failed.
    #[error("queue of {socket} failed: {cause}")]
    Queue {
        /// The server's socket.
        socket: PathBuf,
        /// Why.
        cause: blkio::Error,
    },
    /// The disk answered a request with an error.
    #[error("the disk answered {errno}")]
    Disk {
        /// What the status byte was turned into.
        errno: Errno,
    },
}

/// How to connect.
#[derive(Debug, Clone, Copy)]
pub struct ClientOptions {
    /// Virtqueues.
    pub queues: u16,
    /// Slots of each queue: the most requests in flight.
    pub depth: u16,
    /// Bytes of each slot's buffer, a multiple of 4096.
    pub buffer: usize,
    /// Spin on the used ring instead of sleeping on the call eventfd.
    pub poll: bool,
    /// Longest wait for the set-up, and for the synchronous calls.
    pub limit: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { queues: 1, depth: 32, buffer: 64 << 10, poll: false, limit: Duration::from_secs(60) }
    }
}

/// The index of a slot in its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot(pub u16);

/// What to do with a slot. Reads and writes move the first `sectors` of its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Fill the buffer.
    Read {
        /// From here.
        start: Lba,
        /// This much.
        sectors: SectorCount,
    },
    /// Store the buffer.
    Write {
        /// From here.
        start: Lba,
        /// This much.
        sectors: SectorCount,
    },
    /// Make acknowledged writes durable.
    Flush,
    /// The range reads as zeros afterwards.
    Discard {
        /// From here.
        start: Lba,
        /// This much.
        sectors: SectorCount,
    },
    /// The range reads as zeros afterwards.
    WriteZeroes {
        /// From here.
        start: Lba,
        /// This much.
        sectors: SectorCount,
        /// Whether the device may give the space back.
        unmap: bool,
    },
}

/// A request that was answered. Its slot stays acquired (for its buffer) until it is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Which slot.
    pub slot: Slot,
    /// The answer.
    pub outcome: Result<(), Errno>,
    /// From submission to when it was reaped.
    pub latency: Duration,
}

/// Memory that both sides map.
struct Shared {
    fd: OwnedFd,
    base: *mut c_void,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone and lives as long as it; who touches which bytes is ruled by `Queue`.
unsafe impl Send for Shared {}
// SAFETY: as above; `&Shared` gives no access to the bytes.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(bytes: usize) -> Result<Self, ClientError> {
        let failed = |cause: rustix::io::Errno| ClientError::Memory { cause: cause.into() };
        let fd = memfd_create("lamina-client", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(failed)?;
        ftruncate(&fd, bytes as u64).map_err(failed)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(failed)?;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE, &fd, 0)
        };
        Ok(Self { fd, base: base.map_err(failed)?, bytes })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: made by mmap with these arguments, and no buffer outlives the `Arc` that holds this.
        let _ = unsafe { munmap(self.base, self.bytes) };
    }
}

/// Keeps the connection and its memory as long as any queue lives. Field order is drop order.
struct Connection {
    _blkio: Blkio,
    shared: Shared,
    socket: PathBuf,
    limit: Duration,
}

/// A connected disk.
pub struct Client {
    queues: Vec<Queue>,
    capacity: SectorCount,
}

impl Client {
    /// Connects, negotiates and starts the queues.
    ///
    /// # Errors
    /// [`ClientError`]; a server that accepts but does not speak shows as [`ClientError::Late`].
    pub fn connect(socket: &Path, options: ClientOptions) -> Result<Self, ClientError> {
        let (answer, answered) = mpsc::channel();
        let path = socket.to_owned();
        // blkio's set-up blocks without a limit of its own; a thread whose server never answers is given up.
        std::thread::spawn(move || answer.send(Self::set_up(&path, options)));
        match answered.recv_timeout(options.limit) {
            Ok(result) => result,
            Err(_) => Err(ClientError::Late { socket: socket.to_owned(), limit: options.limit }),
        }
    }

    /// Connects again and again until it works: for a server that is starting.
    ///
    /// # Errors
    /// The last attempt's.
    pub fn connect_within(socket: &Path, options: ClientOptions, limit: Duration) -> Result<Self, ClientError> {
        let until = Instant::now() + limit;
        loop {
            match Self::connect(socket, options) {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() >= until => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn set_up(socket: &Path, options: ClientOptions) -> Result<Self, ClientError> {
        let failed = |doing| move |cause| ClientError::Connect { doing, socket: socket.to_owned(), cause };
        let mut blkio = Blkio::new("virtio-blk-vhost-user").map_err(failed("load the driver"))?;
        blkio.set_str("path", &socket.to_string_lossy()).map_err(failed("set the path"))?;
        blkio.connect().map_err(failed("connect"))?;
        let queues = i32::from(options.queues);
        let (interrupt, poll) = if options.poll { (0, queues) } else { (queues, 0) };
        blkio.set_i32("num-queues", interrupt).map_err(failed("set the number of queues"))?;
        blkio.set_i32("num-poll-queues", poll).map_err(failed("set the number of queues"))?;
        // Header, data and status take a descriptor each; requests that do not fit wait in a backlog and cost time.
        let ring = (i32::from(options.depth) * 4).max(64).cast_unsigned().next_power_of_two().cast_signed();
        blkio.set_i32("queue-size", ring).map_err(failed("set the queue size"))?;
        let capacity = SectorCount(blkio.get_u64("capacity").map_err(failed("read the capacity"))? / 512);
        let started = blkio.start().map_err(failed("start the queues"))?;
        let shared = Shared::new(options.buffer * usize::from(options.depth) * usize::from(options.queues))?;
        let region = MemoryRegion {
            addr: shared.base as usize,
            iova: 0,
            len: shared.bytes,
            fd: shared.fd.as_raw_fd(),
            fd_offset: 0,
            flags: 0,
        };
        blkio.map_mem_region(&region).map_err(failed("share memory"))?;
        let connection = Arc::new(Connection { _blkio: blkio, shared, socket: socket.to_owned(), limit: options.limit });
        let rings = started.queues.into_iter().chain(started.poll_queues);
        let queues = rings.enumerate().map(|(index, ring)| Queue::new(index, ring, options, Arc::clone(&connection))).collect();
        Ok(Self { queues, capacity })
    }

    /// The disk's size.
    #[must_use]
    pub fn capacity(&self) -> SectorCount {
        self.capacity
    }

    /// Its queues, to be spread over threads.
    #[must_use]
    pub fn into_queues(self) -> Vec<Queue> {
        self.queues
    }

    /// The first queue.
    ///
    /// # Panics
    /// Never: a client has at least one.
    pub fn queue(&mut self) -> &mut Queue {
        self.queues.first_mut().expect("at least one queue")
    }
}

/// One virtqueue with its slots.
pub struct Queue {
    ring: Blkioq,
    free: Vec<Slot>,
    submitted: Vec<Option<Instant>>,
    in_flight: usize,
    completions: Vec<MaybeUninit<Completion>>,
    done: Vec<Done>,
    /// Offset of this queue's first buffer in the shared memory.
    offset: usize,
    buffer: usize,
    connection: Arc<Connection>,
}

impl Queue {
    fn new(index: usize, ring: Blkioq, options: ClientOptions, connection: Arc<Connection>) -> Self {
        let depth = usize::from(options.depth);
        Self {
            ring,
            free: (0..options.depth).rev().map(Slot).collect(),
            submitted: vec![None; depth],
            in_flight: 0,
            completions: (0..depth).map(|_| MaybeUninit::uninit()).collect(),
            done: Vec::with_capacity(depth),
            offset: index * depth * options.buffer,
            buffer: options.buffer,
            connection,
        }
    }

    /// Takes a free slot.
    pub fn acquire(&mut self) -> Option<Slot> {
        self.free.pop()
    }

    /// Gives a slot back.
    pub fn release(&mut self, slot: Slot) {
        debug_assert!(!self.free.contains(&slot), "released twice");
        self.free.push(slot);
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The buffer of a slot that is not in flight.
    ///
    /// # Panics
    /// When it is in flight, or not a slot of this queue.
    pub fn buffer(&mut self, slot: Slot) -> &mut [u8] {
        assert!(self.submitted.get(usize::from(slot.0)).is_some_and(Option::is_none), "slot {} is in flight", slot.0);
        let at = self.address(slot);
        // SAFETY: the range lies in the shared memory by construction, is this slot's alone, and no request is in flight on it; a
        // server that writes there all the same is what the caller's stamps find, and the bytes are only compared.
        unsafe { std::slice::from_raw_parts_mut(at, self.buffer) }
    }

    fn address(&self, slot: Slot) -> *mut u8 {
        let offset = self.offset + usize::from(slot.0) * self.buffer;
        // SAFETY: offset + buffer is within the mapping: slots are numbered below the depth, queues below their count.
        unsafe { self.connection.shared.base.cast::<u8>().add(offset) }
    }

    /// Queues a request; it is handed to the server by the next [`Queue::reap`].
    ///
    /// # Panics
    /// When the slot is in flight or its buffer is too small.
    pub fn submit(&mut self, slot: Slot, action: Action) {
        let tag = usize::from(slot.0);
        let at = self.address(slot);
        let length = |sectors: SectorCount| {
            let bytes = usize::try_from(sectors.bytes()).unwrap_or(usize::MAX);
            assert!(bytes <= self.buffer, "{bytes} bytes do not fit a buffer of {}", self.buffer);
            bytes
        };
        let state = &mut self.submitted[tag];
        assert!(state.is_none(), "slot {tag} is in flight");
        *state = Some(Instant::now());
        self.in_flight += 1;
        let none = ReqFlags::empty();
        match action {
            Action::Read { start, sectors } => self.ring.read(start.0 * 512, at, length(sectors), tag, none),
            Action::Write { start, sectors } => self.ring.write(start.0 * 512, at, length(sectors), tag, none),
            Action::Flush => self.ring.flush(tag, none),
            Action::Discard { start, sectors } => self.ring.discard(start.0 * 512, sectors.bytes(), tag, none),
            Action::WriteZeroes { start, sectors, unmap } => {
                self.ring.write_zeroes(start.0 * 512, sectors.bytes(), tag, if unmap { none } else { ReqFlags::NO_UNMAP });
            }
        }
    }

    /// Hands queued requests to the server and waits until at least `least` are answered (or all in flight, when those are fewer).
    ///
    /// # Errors
    /// [`ClientError::Late`] after `limit`; what was answered until then is returned by the next call.
    pub fn reap(&mut self, least: usize, limit: Duration) -> Result<&[Done], ClientError> {
        self.done.clear();
        let mut left = limit;
        let count = match self.ring.do_io(&mut self.completions, least.min(self.in_flight), Some(&mut left), None) {
            Ok(count) => count,
            Err(error) if error.errno() == Errno::TIME => {
                return Err(ClientError::Late { socket: self.connection.socket.clone(), limit });
            }
            Err(cause) => return Err(ClientError::Queue { socket: self.connection.socket.clone(), cause }),
        };
        let now = Instant::now();
        for completion in self.completions.iter().take(count) {
            // SAFETY: do_io wrote the first `count` entries.
            let completion = unsafe { completion.assume_init_ref() };
            let Some(Some(since)) = self.submitted.get_mut(completion.user_data).map(Option::take) else { continue };
            self.in_flight -= 1;
            let outcome = if completion.ret == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(completion.ret.saturating_neg())) };
            self.done.push(Done {
                slot: Slot(completion.user_data as u16),
                outcome,
                latency: now.saturating_duration_since(since),
            });
        }
        Ok(&self.done)
    }

    /// One request, alone in the queue; answers its slot, still acquired.
    fn alone(&mut self, action: Action, fill: &[u8]) -> Result<Slot, ClientError> {
        assert_eq!(self.in_flight, 0, "synchronous calls need an idle queue");
        let slot = self.acquire().expect("an idle queue has a free slot");
        self.buffer(slot)[..fill.len()].copy_from_slice(fill);
        self.submit(slot, action);
        let limit = self.connection.limit;
        let outcome = self.reap(1, limit)?.first().map_or(Ok(()), |done| done.outcome);
        if let Err(errno) = outcome {
            self.release(slot);
            return Err(ClientError::Disk { errno });
        }
        Ok(slot)
    }

    /// Does one request and waits for it.
    ///
    /// # Errors
    /// [`ClientError`], an error status as [`ClientError::Disk`].
    pub fn run(&mut self, action: Action) -> Result<(), ClientError> {
        let slot = self.alone(action, &[])?;
        self.release(slot);
        Ok(())
    }

    /// Reads `into.len()` bytes (a multiple of 512), in pieces of the buffer's size.
    ///
    /// # Errors
    /// As [`Queue::run`].
    pub fn read(&mut self, start: Lba, into: &mut [u8]) -> Result<(), ClientError> {
        let mut at = start;
        for piece in into.chunks_mut(self.buffer) {
            let sectors = SectorCount(piece.len() as u64 / 512);
            let slot = self.alone(Action::Read { start: at, sectors }, &[])?;
            piece.copy_from_slice(&self.buffer(slot)[..piece.len()]);
            self.release(slot);
            at.0 += sectors.0;
        }
        Ok(())
    }

    /// Writes `from` (a multiple of 512 bytes), in pieces of the buffer's size.
    ///
    /// # Errors
    /// As [`Queue::run`].
    pub fn write(&mut self, start: Lba, from: &[u8]) -> Result<(), ClientError> {
        let mut at = start;
        for piece in from.chunks(self.buffer) {
            let sectors = SectorCount(piece.len() as u64 / 512);
            let slot = self.alone(Action::Write { start: at, sectors }, piece)?;
            self.release(slot);
            at.0 += sectors.0;
        }
        Ok(())
    }

    /// Flushes and waits.
    ///
    /// # Errors
    /// As [`Queue::run`].
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.run(Action::Flush)
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
