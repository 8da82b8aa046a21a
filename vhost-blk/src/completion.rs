//! The answering half of a running ring: from a device's answer to a used entry and an interrupt, from any thread.
//!
//! Invariants:
//! - Each chain taken off the ring is put on the used ring at most once: a head is marked when it is taken and unmarked under
//!   the lock before its used entry becomes visible; a head that is still marked is refused.
//! - Answers given inside `submit`, on the queue's own thread, are collected and published a few at a time, with an interrupt if the
//!   guest wants one ([`Collecting`]); answers from other threads are published at once and signalled at once or, of several given
//!   [`together`](lamina_contract::answers::together), behind the last.
//! - After [`Completions::revoke_reads`] returned, no device writes guest memory through this ring again: the guest may have
//!   been reset and use the memory for something else.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lamina_contract::IoError;
use lamina_contract::answers::{Announce, announce_later};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::counters::{Counters, OpKind, QueueCounters};
use crate::memory::Segment;
use crate::request::Status;
use crate::ring::RingLayout;

/// Answers collected inside `submit` before they are published and signalled: few enough that the guest works on the first ones
/// while the rest of the batch is still being served.
const COLLECT: usize = 16;

/// A chain that is answered, its status byte written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) head: u16,
    pub(crate) written: u32,
    pub(crate) kind: OpKind,
    pub(crate) bytes: u32,
    pub(crate) ok: bool,
    pub(crate) taken: Instant,
}

/// Not in flight.
const FREE: u8 = 0;
/// A device holds it and may write guest memory.
const READING: u8 = 1;
/// A device holds it and does not write guest memory.
const OTHER: u8 = 2;

#[derive(Debug)]
struct Head {
    state: AtomicU8,
    /// The status byte, valid while a transfer for this head exists (it holds the memory).
    status: AtomicPtr<u8>,
}

#[derive(Debug)]
struct UsedSide {
    layout: RingLayout,
    next: u16,
    /// Used entries before this were signalled or needed no signal; unknown before the first one.
    signalled: Option<u16>,
    call: Option<Arc<OwnedFd>>,
    /// Someone waits for the last answer.
    waiting: bool,
    /// Reads were taken away from their devices: their answers change nothing any more.
    revoked: bool,
}

/// How a wait for outstanding answers went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outstanding {
    None,
    Reads,
    Others,
}

/// The answering half of one ring, from its start to its stop.
#[derive(Debug)]
pub(crate) struct Completions {
    queue: u16,
    heads: Box<[Head]>,
    used: Mutex<UsedSide>,
    drained: Condvar,
    reads: AtomicU32,
    others: AtomicU32,
    revoked: AtomicBool,
    copying: AtomicU32,
    counters: Arc<Counters>,
}

thread_local! {
    /// The ring whose batch this thread is submitting, by address; null otherwise.
    static SUBMITTING: Cell<*const Completions> = const { Cell::new(std::ptr::null()) };
    static COLLECTED: RefCell<Vec<Done>> = const { RefCell::new(Vec::new()) };
}

/// While it lives, answers for one ring given on this thread are collected. Dropping it publishes the rest and signals.
pub(crate) struct Collecting<'a> {
    ring: &'a Completions,
}

impl<'a> Collecting<'a> {
    pub(crate) fn new(ring: &'a Completions) -> Self {
        SUBMITTING.set(ring);
        Self { ring }
    }

    /// Adds an answer that the front end itself gave.
    pub(crate) fn push(&self, done: Done) {
        self.ring.collect(done);
    }
}

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        SUBMITTING.set(std::ptr::null());
        COLLECTED.with_borrow_mut(|collected| self.ring.publish(collected));
    }
}

impl Announce for Completions {
    fn announce(&self) {
        let signal = Self::signal_due(&mut self.used.lock());
        self.signal(signal);
    }
}

impl Completions {
    pub(crate) fn new(queue: u16, layout: RingLayout, call: Option<Arc<OwnedFd>>, counters: Arc<Counters>) -> Self {
        let head = |_| Head { state: AtomicU8::new(FREE), status: AtomicPtr::new(std::ptr::null_mut()) };
        let next = layout.used_index();
        let heads = (0..layout.size().get()).map(head).collect();
        Self {
            queue,
            heads,
            used: Mutex::new(UsedSide { layout, next, signalled: None, call, waiting: false, revoked: false }),
            drained: Condvar::new(),
            reads: AtomicU32::new(0),
            others: AtomicU32::new(0),
            revoked: AtomicBool::new(false),
            copying: AtomicU32::new(0),
            counters,
        }
    }

    pub(crate) fn counters(&self) -> Option<&QueueCounters> {
        self.counters.queue(self.queue)
    }

    /// Whether `head` may be taken: it is inside the ring and not in flight.
    pub(crate) fn is_free(&self, head: u16) -> bool {
        self.heads.get(usize::from(head)).is_some_and(|h| h.state.load(Ordering::Acquire) == FREE)
    }

    /// Marks `head` as in flight, `for_device` unless the front end answers it itself. Only the ring's own thread calls this, after [`Completions::is_free`].
    pub(crate) fn take(&self, head: u16, for_device: Option<(OpKind, &Segment)>) {
        let Some(slot) = self.heads.get(usize::from(head)) else { return };
        let state = match for_device {
            Some((OpKind::Read, status)) => {
                slot.status.store(status.at.as_ptr(), Ordering::Relaxed);
                self.reads.fetch_add(1, Ordering::Relaxed);
                READING
            }
            _ => {
                self.others.fetch_add(1, Ordering::Relaxed);
                OTHER
            }
        };
        slot.state.store(state, Ordering::Release);
    }

    /// Runs `copy`, which writes guest memory, unless that was revoked.
    pub(crate) fn copying(&self, copy: impl FnOnce() -> Result<(), IoError>) -> Result<(), IoError> {
        // SeqCst on both sides: either we see the revocation or the revoker sees us copying.
        self.copying.fetch_add(1, Ordering::SeqCst);
        let result = if self.revoked.load(Ordering::SeqCst) { Err(IoError::GuestMemory) } else { copy() };
        self.copying.fetch_sub(1, Ordering::Release);
        result
    }

    /// Answers one request. `write_status` stores the status byte; it is not called when the answer comes too late.
    pub(crate) fn answer(self: &Arc<Self>, done: Done, write_status: impl FnOnce()) {
        if std::ptr::eq(SUBMITTING.get(), Arc::as_ptr(self)) {
            // Between submit and its end nobody revokes this ring with the queue's thread still working for it, except when
            // the connection is lost; then a status byte in memory that is still mapped harms no one.
            write_status();
            self.collect(done);
            return;
        }
        let mut used = self.used.lock();
        if used.revoked && self.state(done.head) != OTHER {
            return;
        }
        write_status();
        self.put(&mut used, &done, Instant::now());
        used.layout.publish_used(used.next);
        let signal = if announce_later(self) { None } else { Self::signal_due(&mut used) };
        self.wake_waiter(used);
        self.signal(signal);
    }

    fn state(&self, head: u16) -> u8 {
        self.heads.get(usize::from(head)).map_or(FREE, |h| h.state.load(Ordering::Acquire))
    }

    fn collect(&self, done: Done) {
        COLLECTED.with_borrow_mut(|collected| {
            collected.push(done);
            if collected.len() >= COLLECT {
                self.publish(collected);
            }
        });
    }

    fn publish(&self, collected: &mut Vec<Done>) {
        let mut used = self.used.lock();
        if !collected.is_empty() {
            let now = Instant::now();
            for done in collected.drain(..) {
                self.put(&mut used, &done, now);
            }
        }
        used.layout.publish_used(used.next);
        let signal = Self::signal_due(&mut used);
        self.wake_waiter(used);
        self.signal(signal);
    }

    fn put(&self, used: &mut UsedSide, done: &Done, now: Instant) {
        if let Some(head) = self.heads.get(usize::from(done.head)) {
            match head.state.swap(FREE, Ordering::AcqRel) {
                READING => _ = self.reads.fetch_sub(1, Ordering::Release),
                OTHER => _ = self.others.fetch_sub(1, Ordering::Release),
                _ => {}
            }
        }
        used.layout.put_used(used.next, done.head, done.written);
        used.next = used.next.wrapping_add(1);
        if let Some(counters) = self.counters() {
            counters.answered(done.kind, done.bytes, done.ok, now.saturating_duration_since(done.taken));
        }
    }

    /// The descriptor to signal, if the guest wants that for what was published since it was signalled last.
    fn signal_due(used: &mut UsedSide) -> Option<Arc<OwnedFd>> {
        if used.signalled == Some(used.next) {
            return None;
        }
        let wanted = used.signalled.is_none_or(|from| used.layout.wants_signal(from, used.next));
        used.signalled = Some(used.next);
        if wanted { used.call.clone() } else { None }
    }

    fn wake_waiter(&self, used: MutexGuard<'_, UsedSide>) {
        if used.waiting {
            self.drained.notify_all();
        }
    }

    fn signal(&self, call: Option<Arc<OwnedFd>>) {
        let Some(call) = call else { return };
        // The descriptor is an eventfd in non-blocking mode: the only error, EAGAIN, means that a signal is pending anyway.
        let _ = rustix::io::write(&*call, &1u64.to_ne_bytes());
        if let Some(counters) = self.counters() {
            counters.signalled();
        }
    }

    /// Replaces the interrupt descriptor. Signals once, since the guest may have missed one meanwhile.
    pub(crate) fn set_call(&self, call: Option<Arc<OwnedFd>>) {
        self.used.lock().call.clone_from(&call);
        self.signal(call);
    }

    /// Goes on in a new memory table.
    pub(crate) fn set_layout(&self, layout: RingLayout) {
        self.used.lock().layout = layout;
    }

    /// What is still unanswered.
    pub(crate) fn outstanding(&self) -> Outstanding {
        if self.others.load(Ordering::Acquire) > 0 {
            Outstanding::Others
        } else if self.reads.load(Ordering::Acquire) > 0 {
            Outstanding::Reads
        } else {
            Outstanding::None
        }
    }

    /// How many reads are unanswered.
    pub(crate) fn in_flight_reads(&self) -> u32 {
        self.reads.load(Ordering::Acquire)
    }

    /// How many requests are unanswered.
    pub(crate) fn in_flight(&self) -> u32 {
        self.reads.load(Ordering::Acquire) + self.others.load(Ordering::Acquire)
    }

    /// Waits a while for answers; call in a loop with [`Completions::outstanding`].
    pub(crate) fn wait(&self, at_most: Duration) {
        let mut used = self.used.lock();
        if self.outstanding() == Outstanding::None {
            return;
        }
        used.waiting = true;
        self.drained.wait_for(&mut used, at_most);
        used.waiting = false;
    }

    /// Takes guest memory away from every read in flight; with `answer` they are answered with an I/O error (the guest lives on),
    /// without, they vanish (the guest is gone).
    pub(crate) fn revoke_reads(&self, answer: bool) {
        self.revoked.store(true, Ordering::SeqCst);
        // A copy is at most one request's buffer: microseconds.
        while self.copying.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        let mut used = self.used.lock();
        used.revoked = true;
        for (number, head) in self.heads.iter().enumerate() {
            if head.state.compare_exchange(READING, FREE, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            self.reads.fetch_sub(1, Ordering::Release);
            if answer {
                let status = head.status.load(Ordering::Relaxed);
                // SAFETY: the head was in state READING under the lock, so its transfer has not passed `answer` and still holds the
                // memory that this byte lies in.
                unsafe { status.write_volatile(Status::IOERR.0) };
                let next = used.next;
                used.layout.put_used(next, number as u16, 1);
                used.next = next.wrapping_add(1);
            }
        }
        used.layout.publish_used(used.next);
        let signal = Self::signal_due(&mut used);
        drop(used);
        self.signal(signal);
    }
}
