//! A split virtqueue driver for tests: whole requests for those who behave, single descriptors for those who do not.
//!
//! Memory of one queue, from `index` × 2 MiB: descriptors, available and used ring in the first 64 KiB; then one slot of
//! [`SLOT_BYTES`] per request in flight (header, status, data, room for an indirect table). Slot `i` uses descriptors
//! 3·i to 3·i + 2.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::driver::{GUEST_BASE, SharedMemory, USER_BASE};

/// Room of one request: 32 KiB of data behind a page for its header, status and indirect table.
pub const SLOT_BYTES: usize = DATA_OFFSET + MAX_DATA;
/// Data of one request.
pub const MAX_DATA: usize = 32 << 10;
/// Where a slot's data begins; before it lie the header (0), the status byte (16) and the indirect table (64).
pub const DATA_OFFSET: usize = 4096;
const QUEUE_BYTES: usize = 2 << 20;
const RINGS_BYTES: usize = 64 << 10;

/// Descriptor flag: another one follows.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes it.
pub const WRITE: u16 = 2;
/// Descriptor flag: it holds a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Request type: read.
pub const IN: u32 = 0;
/// Request type: write.
pub const OUT: u32 = 1;
/// Request type: flush.
pub const FLUSH: u32 = 4;
/// Request type: identity.
pub const GET_ID: u32 = 8;
/// Request type: discard.
pub const DISCARD: u32 = 11;
/// Request type: write zeroes.
pub const WRITE_ZEROES: u32 = 13;

/// Status that no device writes.
pub const UNTOUCHED: u8 = 0xee;

/// A request that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Which one.
    pub slot: u16,
    /// Its status byte.
    pub status: u8,
    /// What the used entry said.
    pub len: u32,
}

/// A queue's driver.
#[derive(Debug)]
pub struct DriverQueue {
    index: u16,
    size: u16,
    memory: Arc<SharedMemory>,
    event_idx: bool,
    kick: OwnedFd,
    call: OwnedFd,
    next_available: u16,
    kicked: u16,
    next_used: u16,
}

impl DriverQueue {
    /// A driver for queue `index` with rings of `size` entries, in its own part of `memory`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(index: u16, size: u16, memory: Arc<SharedMemory>, event_idx: bool) -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let (kick, call) = (eventfd(0, flags)?, eventfd(0, flags)?);
        Ok(Self { index, size, memory, event_idx, kick, call, next_available: 0, kicked: 0, next_used: 0 })
    }

    /// Its number.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Entries of its rings.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The memory that it lives in.
    #[must_use]
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    /// Requests that can be in flight through [`DriverQueue::request`].
    #[must_use]
    pub fn slots(&self) -> u16 {
        (self.size / 3).min(((QUEUE_BYTES - RINGS_BYTES) / SLOT_BYTES) as u16)
    }

    /// The descriptor that wakes the device.
    #[must_use]
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// The descriptor that wakes the driver.
    #[must_use]
    pub fn call(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    fn base(&self) -> usize {
        usize::from(self.index) * QUEUE_BYTES
    }

    fn available(&self) -> usize {
        self.base() + 16 * usize::from(self.size)
    }

    fn used(&self) -> usize {
        (self.available() + 6 + 2 * usize::from(self.size)).next_multiple_of(64)
    }

    /// Where a slot begins in the memory.
    #[must_use]
    pub fn slot(&self, slot: u16) -> usize {
        self.base() + RINGS_BYTES + usize::from(slot) * SLOT_BYTES
    }

    /// Guest address of an offset in the memory.
    #[must_use]
    pub fn guest(offset: usize) -> u64 {
        GUEST_BASE + offset as u64
    }

    /// The body of SET_VRING_ADDR.
    #[must_use]
    pub fn addresses(&self) -> Vec<u8> {
        let user = |offset: usize| USER_BASE + offset as u64;
        let mut body = u64::from(self.index).to_le_bytes().to_vec();
        for word in [user(self.base()), user(self.used()), user(self.available()), 0] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        body
    }

    fn field(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: two bytes inside the memory, even offset; shared, hence atomic.
        unsafe { AtomicU16::from_ptr(self.memory.at(offset, 2).as_ptr().cast()) }
    }

    /// Writes one descriptor of the ring's table.
    pub fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.memory.put(self.base() + 16 * usize::from(index), &descriptor(address, len, flags, next));
    }

    /// Puts a head into the available ring without telling the device.
    pub fn offer(&mut self, head: u16) {
        self.field(self.available() + 4 + 2 * usize::from(self.next_available % self.size)).store(head, Ordering::Relaxed);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Sets the available index, honest or not, and kicks if the device wants it.
    pub fn publish(&mut self, index: u16) {
        self.field(self.available() + 2).store(index, Ordering::Release);
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.field(self.used() + 4 + 8 * usize::from(self.size)).load(Ordering::Relaxed);
            index.wrapping_sub(event).wrapping_sub(1) < index.wrapping_sub(self.kicked)
        } else {
            self.field(self.used()).load(Ordering::Relaxed) & 1 == 0
        };
        self.kicked = index;
        if wanted {
            self.kick();
        }
    }

    /// Makes everything offered visible.
    pub fn publish_all(&mut self) {
        self.publish(self.next_available);
    }

    /// Wakes the device, wanted or not.
    pub fn kick(&self) {
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }

    /// Chains offered so far.
    #[must_use]
    pub fn offered(&self) -> u16 {
        self.next_available
    }

    /// The device's used index.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.field(self.used() + 2).load(Ordering::Acquire)
    }

    /// The next used entry, as (head, length).
    pub fn pop(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.next_used {
            return None;
        }
        let entry = self.memory.get(self.used() + 4 + 8 * usize::from(self.next_used % self.size), 8);
        self.next_used = self.next_used.wrapping_add(1);
        let word = |i: usize| u32::from_le_bytes([entry[i], entry[i + 1], entry[i + 2], entry[i + 3]]);
        Some((word(0), word(4)))
    }

    /// Waits for a used entry by the call descriptor alone, so that a missing interrupt shows.
    pub fn wait(&mut self, patience: Duration) -> Option<(u32, u32)> {
        let end = Instant::now() + patience;
        loop {
            if let Some(entry) = self.pop() {
                return Some(entry);
            }
            if self.event_idx {
                self.field(self.available() + 4 + 2 * usize::from(self.size)).store(self.next_used, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                if let Some(entry) = self.pop() {
                    return Some(entry);
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let _ = poll(&mut [PollFd::new(&self.call, PollFlags::IN)], Some(&timeout));
            let _ = rustix::io::read(&self.call, &mut [0u8; 8]);
        }
    }

    /// Builds a request in `slot` with direct descriptors, without offering it. For reads and writes `data` gives the length; writes
    /// and ranges take its bytes.
    pub fn prepare(&self, slot: u16, kind: u32, sector: u64, data: &[u8]) {
        let at = self.fill(slot, kind, sector, data);
        let first = 3 * slot;
        let status = DriverQueue::guest(at + 16);
        if data.is_empty() {
            self.describe(first, DriverQueue::guest(at), 16, NEXT, first + 2);
        } else {
            let direction = if matches!(kind, IN | GET_ID) { WRITE } else { 0 };
            self.describe(first, DriverQueue::guest(at), 16, NEXT, first + 1);
            self.describe(first + 1, DriverQueue::guest(at + DATA_OFFSET), data.len() as u32, NEXT | direction, first + 2);
        }
        self.describe(first + 2, status, 1, WRITE, 0);
    }

    /// Like [`DriverQueue::prepare`] with an indirect table that cuts the data into `pieces`.
    pub fn prepare_indirect(&self, slot: u16, kind: u32, sector: u64, data: &[u8], pieces: u16) {
        let at = self.fill(slot, kind, sector, data);
        let direction = if matches!(kind, IN | GET_ID) { WRITE } else { 0 };
        let mut table = descriptor(DriverQueue::guest(at), 16, NEXT, 1).to_vec();
        let piece = data.len().div_ceil(usize::from(pieces).max(1)).max(1);
        let mut number = 1;
        for start in (0..data.len()).step_by(piece) {
            let len = piece.min(data.len() - start) as u32;
            number += 1;
            table.extend(descriptor(DriverQueue::guest(at + DATA_OFFSET + start), len, NEXT | direction, number));
        }
        table.extend(descriptor(DriverQueue::guest(at + 16), 1, WRITE, 0));
        self.memory.put(at + 64, &table);
        self.describe(3 * slot, DriverQueue::guest(at + 64), table.len() as u32, INDIRECT, 0);
    }

    fn fill(&self, slot: u16, kind: u32, sector: u64, data: &[u8]) -> usize {
        assert!(data.len() <= MAX_DATA && slot < self.slots());
        let at = self.slot(slot);
        let mut header = kind.to_le_bytes().to_vec();
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&sector.to_le_bytes());
        header.push(UNTOUCHED);
        self.memory.put(at, &header);
        self.memory.put(at + DATA_OFFSET, data);
        at
    }

    /// Offers one request and tells the device.
    pub fn request(&mut self, slot: u16, kind: u32, sector: u64, data: &[u8]) {
        self.prepare(slot, kind, sector, data);
        self.offer(3 * slot);
        self.publish_all();
    }

    /// The next request to come back.
    pub fn finished(&mut self, patience: Duration) -> Option<Finished> {
        let (head, len) = self.wait(patience)?;
        let slot = (head / 3) as u16;
        let status = self.status(slot);
        Some(Finished { slot, status, len })
    }

    /// A slot's status byte.
    #[must_use]
    pub fn status(&self, slot: u16) -> u8 {
        self.memory.get(self.slot(slot) + 16, 1)[0]
    }

    /// A slot's data.
    #[must_use]
    pub fn data(&self, slot: u16, len: usize) -> Vec<u8> {
        self.memory.get(self.slot(slot) + DATA_OFFSET, len)
    }

    /// One request from start to end in slot 0: its status, and for reads its data in `data`.
    ///
    /// # Panics
    /// When no answer comes within 20 s, or not the expected one.
    pub fn run(&mut self, kind: u32, sector: u64, data: &mut [u8]) -> u8 {
        self.request(0, kind, sector, data);
        let finished = self.finished(Duration::from_secs(20));
        let finished = finished.expect("an answer within 20 s");
        assert_eq!(finished.slot, 0, "the answer belongs to the request");
        data.copy_from_slice(&self.data(0, data.len()));
        finished.status
    }
}

/// One descriptor's bytes.
#[must_use]
pub fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// The data of a discard or write-zeroes.
#[must_use]
pub fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}
