//! Quality of service: a device that holds another one to [`Limits`], and the one thread that lets held requests of a whole node go.
//!
//! ```text
//! front end ══submit══▶ Paced ──(within its limits, and nobody waits)──▶ device
//!                         └─ waits in line ──▶ Pacer, when the first in line may go ──▶ device
//! ```
//!
//! Invariants:
//! - A device's requests go in the order in which they came, whatever they cost: nobody is overtaken, nobody starves. Only a flush goes
//!   past the line: it promises nothing about requests that are not answered yet.
//! - Each request that waits is answered: by the device when its time comes, when the limits are lifted or the pacer stops; by
//!   [`Paced::halt`]; with an I/O error when the [`Paced`] is dropped.
//! - What waits is bounded by what front ends have in flight: rings of bounded size. A held request takes some 60 bytes here.
//! - Without limits a batch is handed through as it is, for the price of one atomic load. When nothing waits, the thread sleeps.
//!
//! It knows no volumes. Time comes from the [`Clock`]: where that does not run by itself, [`Pacer::release`] is called instead of
//! [`Pacer::start`].

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use lamina_contract::answers::together;
use lamina_contract::{BlockDevice, Clock, DeviceGeometry, IoError, Op, Request};
use parking_lot::{Condvar, Mutex};

use crate::limits::{Buckets, Cost, Limits};

/// The shortest sleep while requests wait: at high rates they go in groups. Well below the shortest burst, so that no bucket runs over.
const TICK_MS: u64 = 2;

/// What was held so far, and what is held now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldCounters {
    /// Requests that had to wait.
    pub held: u64,
    /// How long they waited together, in microseconds (to the clock's millisecond). Of those that went.
    pub held_us: u64,
    /// Requests that wait now.
    pub waiting: u64,
}

/// Lets held requests of all devices of a node go; see the module's header. Dropping it stops it.
#[derive(Debug)]
pub struct Pacer {
    lines: Arc<Lines>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The devices at which somebody waits.
struct Lines {
    clock: Arc<dyn Clock>,
    open: Mutex<Open>,
    changed: Condvar,
}

#[derive(Default)]
struct Open {
    waiting: Vec<Weak<Paced>>,
    /// Something changed since the thread looked.
    news: bool,
    stopped: bool,
}

impl Open {
    fn add(&mut self, device: Weak<Paced>) {
        if !self.waiting.iter().any(|known| known.ptr_eq(&device)) {
            self.waiting.push(device);
        }
    }
}

impl Pacer {
    /// One that nobody drives yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let lines = Lines { clock, open: Mutex::default(), changed: Condvar::new() };
        Self { lines: Arc::new(lines), thread: Mutex::default() }
    }

    /// Starts the thread that lets requests go. A second call finds nothing to do.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(&self) -> io::Result<()> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let lines = self.lines.clone();
            *thread = Some(std::thread::Builder::new().name("pacer".to_owned()).spawn(move || lines.run())?);
        }
        Ok(())
    }

    /// Puts `device` under limits, which are none until they are set.
    #[must_use]
    pub fn pace(&self, device: Arc<dyn BlockDevice>) -> Arc<Paced> {
        Arc::new_cyclic(|this| Paced {
            device,
            lines: self.lines.clone(),
            limited: AtomicBool::new(false),
            line: Mutex::default(),
            handed_over: Condvar::new(),
            held: AtomicU64::new(0),
            held_us: AtomicU64::new(0),
            this: this.clone(),
        })
    }

    /// Lets everything go that may go now. Answers in how many milliseconds the next one may, `None` when nobody waits.
    pub fn release(&self) -> Option<u64> {
        self.lines.release()
    }

    /// Ends the thread. Whatever waits goes to its device now, and nothing is held from then on.
    pub fn stop(&self) {
        {
            let mut open = self.lines.open.lock();
            open.stopped = true;
            open.news = true;
            self.lines.changed.notify_all();
        }
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the pacing thread ended abnormally");
        }
        let waiting = std::mem::take(&mut self.lines.open.lock().waiting);
        for device in waiting.iter().filter_map(Weak::upgrade) {
            device.set_limits(Limits::default());
        }
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Lines {
    fn run(&self) {
        loop {
            let next = self.release();
            let mut open = self.open.lock();
            if open.stopped {
                return;
            }
            if !std::mem::take(&mut open.news) {
                match next {
                    None => self.changed.wait(&mut open),
                    Some(ms) => _ = self.changed.wait_for(&mut open, Duration::from_millis(ms.max(TICK_MS))),
                }
            }
        }
    }

    fn release(&self) -> Option<u64> {
        let devices = std::mem::take(&mut self.open.lock().waiting);
        let mut next: Option<u64> = None;
        for weak in devices {
            let Some(device) = weak.upgrade() else { continue };
            let Ok(due) = catch_unwind(AssertUnwindSafe(|| device.release())) else {
                tracing::error!("the device panicked: what waited for it is answered with errors");
                device.answer_waiting(&mut device.line.lock(), IoError::Io);
                continue;
            };
            if let Some(ms) = due {
                next = Some(next.map_or(ms, |next| next.min(ms)));
                self.open.lock().add(weak);
            }
        }
        next
    }

    /// Somebody waits at `device` now. False when nobody would let it go any more.
    fn add(&self, device: Weak<Paced>) -> bool {
        let mut open = self.open.lock();
        if open.stopped {
            return false;
        }
        open.add(device);
        open.news = true;
        self.changed.notify_one();
        true
    }

    /// Somebody who waits may have to go sooner.
    fn look_again(&self) {
        self.open.lock().news = true;
        self.changed.notify_one();
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lines({} open)", self.open.lock().waiting.len())
    }
}

/// A device that is held to limits. Made by [`Pacer::pace`].
pub struct Paced {
    device: Arc<dyn BlockDevice>,
    lines: Arc<Lines>,
    /// There are limits, or some still wait that came while there were.
    limited: AtomicBool,
    line: Mutex<Line>,
    /// [`Line::handing_over`] ended.
    handed_over: Condvar,
    held: AtomicU64,
    held_us: AtomicU64,
    this: Weak<Self>,
}

/// Who waits, and for what.
#[derive(Default)]
struct Line {
    buckets: Buckets,
    waiting: VecDeque<Held>,
    /// Somebody hands requests to the device that came before those in line: nobody may overtake them.
    handing_over: bool,
    /// The pacer knows that somebody waits.
    known: bool,
}

struct Held {
    request: Request,
    since_ms: u64,
}

/// What a request takes out of the buckets.
fn cost(request: &Request) -> Cost {
    let bytes = match request.op {
        Op::Read | Op::Write { .. } => request.sectors.0.saturating_mul(lamina_contract::SECTOR_BYTES),
        Op::Flush | Op::Discard | Op::WriteZeroes { .. } => 0,
    };
    Cost { bytes }
}

impl Paced {
    /// Other limits from now on, also for what already waits; without any, everything goes at once, in its order.
    pub fn set_limits(&self, limits: Limits) {
        self.line.lock().buckets.change(limits, self.lines.clock.monotonic_ms());
        if limits.is_none() {
            self.let_all_go();
        } else {
            // Not before the buckets know: who comes from now on looks at them.
            self.settle(&self.line.lock());
            self.release();
        }
        self.lines.look_again();
    }

    /// After the limits were lifted. Ends: from the moment that the line is being emptied, who comes waits for that and goes by itself.
    fn let_all_go(&self) {
        loop {
            {
                let mut line = self.line.lock();
                self.handed_over.wait_while(&mut line, |line| line.handing_over);
            }
            if self.release().is_none() || !self.limits().is_none() {
                return;
            }
        }
    }

    /// Its limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.line.lock().buckets.limits()
    }

    /// What it held back.
    #[must_use]
    pub fn counters(&self) -> HeldCounters {
        HeldCounters {
            held: self.held.load(Ordering::Relaxed),
            held_us: self.held_us.load(Ordering::Relaxed),
            waiting: self.line.lock().waiting.len() as u64,
        }
    }

    /// Answers everything that waits with [`IoError::Halted`], and holds nothing any more: for a device that was halted and says so itself
    /// to whoever comes.
    pub fn halt(&self) {
        let mut line = self.line.lock();
        line.buckets.change(Limits::default(), self.lines.clock.monotonic_ms());
        self.answer_waiting(&mut line, IoError::Halted);
    }

    fn answer_waiting(&self, line: &mut Line, error: IoError) {
        // An answer does not call back into the device, so it may be given under the lock.
        together(|| {
            for held in line.waiting.drain(..) {
                held.request.transfer.answer(Err(error));
            }
        });
        line.known = false;
        self.settle(line);
    }

    /// Lets those go that may. Answers in how many milliseconds the next one may, `None` when nobody waits.
    fn release(&self) -> Option<u64> {
        let now = self.lines.clock.monotonic_ms();
        let mut due = Vec::new();
        {
            let mut line = self.line.lock();
            if line.handing_over {
                return Some(0);
            }
            let Line { buckets, waiting, .. } = &mut *line;
            while waiting.front().is_some_and(|first| buckets.take(cost(&first.request), now)) {
                let Some(held) = waiting.pop_front() else { break };
                self.held_us.fetch_add(now.saturating_sub(held.since_ms).saturating_mul(1000), Ordering::Relaxed);
                due.push(held.request);
            }
            line.handing_over = !due.is_empty();
        }
        if !due.is_empty() {
            let _handing_over = HandingOver(self);
            together(|| self.device.submit(&mut due));
        }
        let mut line = self.line.lock();
        let Line { buckets, waiting, known, .. } = &mut *line;
        let next = waiting.front().map(|first| buckets.ms_until(cost(&first.request), now));
        *known = next.is_some() && *known;
        self.settle(&line);
        next
    }

    /// Notes whether who comes must look at the line.
    fn settle(&self, line: &Line) {
        let limited = !line.buckets.limits().is_none() || !line.waiting.is_empty() || line.handing_over;
        // Release: who sees that nothing is held any more comes after what was handed over before.
        self.limited.store(limited, Ordering::Release);
    }

    fn hold(&self, batch: &mut Vec<Request>) {
        let mut go = Vec::with_capacity(batch.len());
        let mut line = self.line.lock();
        // The limits were lifted and the line is being emptied: if who comes now lined up again, a busy guest's line would never end. It
        // waits as long as the device takes to accept what it is given.
        self.handed_over
            .wait_while(&mut line, |line| line.handing_over && line.waiting.is_empty() && line.buckets.limits().is_none());
        let now = self.lines.clock.monotonic_ms();
        let Line { buckets, waiting, handing_over, known } = &mut *line;
        for request in batch.drain(..) {
            let first = waiting.is_empty() && !*handing_over;
            if request.op == Op::Flush || first && buckets.take(cost(&request), now) {
                go.push(request);
            } else {
                waiting.push_back(Held { request, since_ms: now });
                self.held.fetch_add(1, Ordering::Relaxed);
            }
        }
        // What goes came before what stays, so nobody may let that go meanwhile. (If somebody hands over already, these are flushes.)
        let before_others = !go.is_empty() && !waiting.is_empty() && !*handing_over;
        *handing_over |= before_others;
        let tell = !waiting.is_empty() && !*known;
        *known |= tell;
        drop(line);
        let handing_over = before_others.then(|| HandingOver(self));
        let comes_back = !tell || self.lines.add(self.this.clone());
        if !go.is_empty() {
            self.device.submit(&mut go);
        }
        drop(handing_over);
        if !comes_back {
            self.set_limits(Limits::default());
        }
    }
}

/// While it lives, nobody else hands anything over.
struct HandingOver<'a>(&'a Paced);

impl Drop for HandingOver<'_> {
    fn drop(&mut self) {
        let mut line = self.0.line.lock();
        line.handing_over = false;
        // What waited, or the limits, may have gone meanwhile.
        self.0.settle(&line);
        drop(line);
        self.0.handed_over.notify_all();
    }
}

impl BlockDevice for Paced {
    fn geometry(&self) -> DeviceGeometry {
        self.device.geometry()
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        if self.limited.load(Ordering::Acquire) {
            self.hold(batch);
        } else {
            self.device.submit(batch);
        }
    }
}

impl fmt::Debug for Paced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Paced({:?})", self.limits())
    }
}
