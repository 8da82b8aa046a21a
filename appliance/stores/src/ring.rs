//! Background reads of a disk: one thread with an io_uring, or a few threads where that is not permitted.
//!
//! A read owns its buffer and its file until it is done, so neither can go away under the kernel. Submitters put reads into a queue and
//! wake the thread through an eventfd, which the ring itself waits on. Callbacks run on the reading threads; one that panics
//! is caught and said, the thread goes on. When the last handle is gone the threads finish what is queued and end.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};

use io_uring::{IoUring, opcode, squeue, types};
use lamina_contract::ReadDone;
use lamina_contract::answers::together;
use parking_lot::{Condvar, Mutex};
use rustix::event::EventfdFlags;

use crate::vectored::read_exact_at;

/// Reads in flight in the ring. More wait in the queue.
const DEPTH: u32 = 256;

/// Threads where there is no ring.
const THREADS: usize = 4;

/// Marks the read of the eventfd; slots count from 0 to [`DEPTH`].
const WAKE: u64 = u64::MAX;

struct Read {
    fd: Arc<OwnedFd>,
    offset: u64,
    buf: Vec<u8>,
    filled: usize,
    done: ReadDone,
}

impl Read {
    fn finish(self, result: io::Result<()>) {
        answer(self.done, result.map(|()| self.buf));
    }

    /// Answers while the kernel may still write into the buffer: buffer and file are never freed.
    fn abandon(self) {
        std::mem::forget(self.buf);
        std::mem::forget(self.fd);
        answer(self.done, Err(io::ErrorKind::Other.into()));
    }
}

fn answer(done: ReadDone, result: io::Result<Vec<u8>>) {
    if catch_unwind(AssertUnwindSafe(move || done(result))).is_err() {
        tracing::error!("the receiver of a background read panicked");
    }
}

#[derive(Default)]
struct Queue {
    reads: VecDeque<Read>,
    /// The ring's thread found nothing and goes to sleep: the next read must wake it.
    asleep: bool,
    closed: bool,
    /// The ring's thread ended by itself, or never was: reads are made by whoever asks.
    dead: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    /// Only with a ring.
    wake: Option<OwnedFd>,
}

impl Shared {
    fn notify(&self) {
        match &self.wake {
            // Cannot fail but for a counter at 2^64 - 2, which is a wake-up too.
            Some(wake) => drop(rustix::io::write(wake, &1_u64.to_ne_bytes())),
            None => {
                self.filled.notify_one();
            }
        }
    }
}

/// The handle; dropping it ends the threads once they are done.
pub(crate) struct Reader {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("io_uring", &self.uses_io_uring()).finish_non_exhaustive()
    }
}

impl Reader {
    /// Starts the ring, or the threads.
    pub(crate) fn start() -> io::Result<Self> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { queue: Mutex::default(), filled: Condvar::new(), wake: Some(wake) });
        let own = Arc::clone(&shared);
        let (send, made) = mpsc::sync_channel(1);
        std::thread::Builder::new().name("disk-ring".into()).spawn(move || match make_ring() {
            Ok(ring) => {
                let _ = send.send(Ok(()));
                run_ring(ring, &own);
            }
            Err(error) => drop(send.send(Err(error))),
        })?;
        match made.recv() {
            Ok(Ok(())) => Ok(Self { shared }),
            Ok(Err(error)) => {
                tracing::info!(%error, "io_uring is not available: background reads use {THREADS} threads");
                Self::with_threads()
            }
            Err(_) => Err(io::ErrorKind::Other.into()),
        }
    }

    pub(crate) fn with_threads() -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), filled: Condvar::new(), wake: None });
        for number in 0..THREADS {
            let own = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("disk-read-{number}")).spawn(move || run_thread(&own))?;
        }
        Ok(Self { shared })
    }

    pub(crate) fn uses_io_uring(&self) -> bool {
        self.shared.wake.is_some()
    }

    pub(crate) fn read(&self, fd: Arc<OwnedFd>, offset: u64, buf: Vec<u8>, done: ReadDone) {
        let read = Read { fd, offset, buf, filled: 0, done };
        let asleep = {
            let mut queue = self.shared.queue.lock();
            if queue.dead {
                drop(queue);
                return read_now(read);
            }
            queue.reads.push_back(read);
            std::mem::take(&mut queue.asleep)
        };
        if asleep || !self.uses_io_uring() {
            self.shared.notify();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        match self.shared.wake {
            Some(_) => self.shared.notify(),
            None => {
                self.shared.filled.notify_all();
            }
        }
    }
}

fn read_now(mut read: Read) {
    let offset = read.offset + read.filled as u64;
    let result = read_exact_at(&read.fd, offset, read.buf.get_mut(read.filled..).unwrap_or_default());
    read.finish(result);
}

fn run_thread(shared: &Shared) {
    loop {
        let mut queue = shared.queue.lock();
        let read = loop {
            if let Some(read) = queue.reads.pop_front() {
                break read;
            }
            if queue.closed {
                return;
            }
            shared.filled.wait(&mut queue);
        };
        drop(queue);
        read_now(read);
    }
}

/// The reads that the kernel works on, by slot.
struct Flight {
    slots: Vec<Option<Read>>,
    free: Vec<usize>,
}

impl Flight {
    fn new() -> Self {
        // One place of the submission queue stays for the wake-up.
        let count = DEPTH as usize - 1;
        Self { slots: (0..count).map(|_| None).collect(), free: (0..count).collect() }
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

/// A ring for the calling thread alone. Completions wait until it asks for them: nothing interrupts it for each one (Linux 6.1 and later).
fn make_ring() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    builder.build(DEPTH).or_else(|_| IoUring::new(DEPTH))
}

/// Time on a CPU that the ring's thread asks for at a time, in nanoseconds.
const SLICE: u64 = 100_000;

/// Asks for short turns on the CPU: the thread does little whenever it wakes, somebody waits for each answer, and a thread that asks for
/// less is let in sooner (Linux 6.12 and later; earlier ones do not listen). It gets no more of the CPU for it.
fn ask_for_short_turns() {
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the structure is all integers, for which zeros are values.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `size` bytes to the structure, of the calling thread (0) and with no flags (0).
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) };
    attr.sched_runtime = SLICE;
    // SAFETY: the kernel reads as many bytes as the structure says it has.
    if got != 0 || unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) } != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "the system does not take a wish for short turns");
    }
}

fn run_ring(mut ring: IoUring, shared: &Shared) {
    ask_for_short_turns();
    // Freed only when the kernel holds none of it any more: see the end.
    let mut flight = Flight::new();
    let mut wake_buf = Box::new([0_u8; 8]);
    let mut wake_armed = false;
    let failure = loop {
        let closed = {
            let mut queue = shared.queue.lock();
            while !flight.free.is_empty() {
                let Some(read) = queue.reads.pop_front() else { break };
                begin(&mut ring, &mut flight, read);
            }
            // While the kernel works on as many as there are slots, a completion brings the thread back.
            queue.asleep = queue.reads.is_empty();
            queue.closed && queue.reads.is_empty()
        };
        if closed && flight.is_empty() {
            break None;
        }
        if !wake_armed && let Some(wake) = &shared.wake {
            let entry = opcode::Read::new(types::Fd(wake.as_raw_fd()), wake_buf.as_mut_ptr(), 8).build().user_data(WAKE);
            wake_armed = push(&mut ring, &entry);
        }
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(error) => break Some(error),
        }
        let completed: Vec<(u64, i32)> = ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        let taken = catch_unwind(AssertUnwindSafe(|| {
            together(|| {
                for (slot, result) in completed {
                    if slot == WAKE {
                        wake_armed = false;
                    } else {
                        complete(&mut ring, &mut flight, slot as usize, result);
                    }
                }
            });
        }));
        // Unwinding out of here would free buffers that the kernel still writes to.
        if taken.is_err() {
            tracing::error!("the announcement of background reads panicked");
        }
    };
    if let Some(error) = failure {
        tracing::error!(%error, "the read ring failed: reads are made one at a time from now on");
        let waiting = {
            let mut queue = shared.queue.lock();
            queue.dead = true;
            std::mem::take(&mut queue.reads)
        };
        flight.slots.iter_mut().filter_map(Option::take).for_each(Read::abandon);
        std::mem::forget(wake_buf);
        waiting.into_iter().for_each(read_now);
    } else if wake_armed {
        // The kernel may still write eight bytes there until the ring is torn down.
        drop(ring);
        std::mem::forget(wake_buf);
    }
}

/// Gives a read a slot and the kernel its first request.
fn begin(ring: &mut IoUring, flight: &mut Flight, read: Read) {
    let Some(slot) = flight.free.pop() else { return read_now(read) };
    let Some(place) = flight.slots.get_mut(slot) else { return read_now(read) };
    request(ring, place.insert(read), slot);
}

/// Asks the kernel for what is missing of the read in `slot`.
fn request(ring: &mut IoUring, read: &mut Read, slot: usize) {
    let offset = read.offset + read.filled as u64;
    let rest = read.buf.get_mut(read.filled..).unwrap_or_default();
    // One request takes at most 1 GiB; a longer read goes round again.
    let len = rest.len().min(1 << 30) as u32;
    let entry =
        opcode::Read::new(types::Fd(read.fd.as_raw_fd()), rest.as_mut_ptr(), len).offset(offset).build().user_data(slot as u64);
    // Each slot has at most one request and the wake-up has one: they fit the queue.
    let pushed = push(ring, &entry);
    debug_assert!(pushed, "the submission queue is as long as there are slots");
}

fn push(ring: &mut IoUring, entry: &squeue::Entry) -> bool {
    // SAFETY: the buffer and descriptor that the entry names belong to a `Read` in `Flight` (or are the wake-up's), which is kept in
    // place until its completion was taken; a buffer's heap block does not move with its `Vec`.
    unsafe { ring.submission().push(entry).is_ok() }
}

/// Takes the kernel's answer for `slot`: done, failed, or to be asked for the rest.
fn complete(ring: &mut IoUring, flight: &mut Flight, slot: usize, result: i32) {
    let Some(place) = flight.slots.get_mut(slot) else { return };
    let Some(read) = place.as_mut() else { return };
    let outcome = match result {
        0 if read.filled < read.buf.len() => Err(io::ErrorKind::UnexpectedEof.into()),
        got if got >= 0 => {
            read.filled += got as usize;
            if read.filled < read.buf.len() {
                return request(ring, read, slot);
            }
            Ok(())
        }
        errno if matches!(-errno, libc::EINTR | libc::EAGAIN) => return request(ring, read, slot),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    };
    if let Some(read) = place.take() {
        flight.free.push(slot);
        read.finish(outcome);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::FileExt;
    use std::sync::{Arc, mpsc};

    use super::Reader;

    fn reads_and_errors(reader: &Reader) {
        let file = tempfile::tempfile().expect("a file");
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| ((n * 31) >> 3) as u8).collect();
        file.write_all_at(&bytes, 0).expect("written");
        let fd = Arc::new(OwnedFd::from(file));
        let (send, receive) = mpsc::channel();
        for n in 0..1000_u64 {
            let (send, offset) = (send.clone(), n * 997);
            reader.read(Arc::clone(&fd), offset, vec![0; 2000], Box::new(move |read| send.send((offset, read)).expect("awaited")));
        }
        for _ in 0..1000 {
            let (offset, read) = receive.recv().expect("answered");
            assert_eq!(read.expect("read"), bytes[offset as usize..offset as usize + 2000]);
        }
        // The file ends inside the read; a descriptor that cannot be read at all.
        let (send, receive) = mpsc::channel();
        let other = send.clone();
        reader.read(Arc::clone(&fd), 999_000, vec![0; 2000], Box::new(move |read| other.send(read).expect("awaited")));
        let eof = receive.recv().expect("answered").expect_err("past the end");
        assert_eq!(eof.kind(), std::io::ErrorKind::UnexpectedEof);
        let directory = Arc::new(OwnedFd::from(File::open("/").expect("opened")));
        reader.read(directory, 0, vec![0; 10], Box::new(move |read| send.send(read).expect("awaited")));
        assert!(receive.recv().expect("answered").is_err());
    }

    #[test]
    fn threads_read_where_there_is_no_ring() {
        let reader = Reader::with_threads().expect("started");
        assert!(!reader.uses_io_uring());
        reads_and_errors(&reader);
    }

    #[test]
    fn whatever_this_kernel_permits_reads() {
        reads_and_errors(&Reader::start().expect("started"));
    }
}
