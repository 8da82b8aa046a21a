//! The taking half of rings: a thread that empties available rings into batches for the device.
//!
//! One worker serves one or more rings of one connection. While there is work it asks the guest not to kick; when there is
//! none it looks at the rings for a short, adaptive while, then asks for kicks, looks once more, and sleeps. An idle worker
//! uses no CPU. Other threads steer it by [`Command`]s, which it carries out between two batches.
//!
//! A ring whose content makes no sense is broken: it is served no more until the front end stops and starts it; the others
//! go on. A panic of the device is caught: it ends the connection, not the process.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lamina_contract::{BlockDevice, Request, Transfer};
use parking_lot::Mutex;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

use crate::capacity::Capacity;
use crate::chain::{Chain, ChainFault};
use crate::completion::{Collecting, Completions, Done};
use crate::counters::{Counters, OpKind};
use crate::request::{DiskShape, ID_BYTES, Parsed, Status, parse};
use crate::ring::RingLayout;
use crate::transfer::GuestTransfer;

/// The first step of the adaptive look at the rings before sleeping.
const FIRST_POLL: Duration = Duration::from_micros(4);
const WAKE: u64 = u64::MAX;

/// The disk behind a connection, as far as requests are checked against it.
pub(crate) struct Disk {
    pub(crate) device: Arc<dyn BlockDevice>,
    capacity: Arc<Capacity>,
    read_only: bool,
    serial: [u8; ID_BYTES],
    /// See [`DiskShape::write_through`].
    pub(crate) write_through: AtomicBool,
}

impl Disk {
    pub(crate) fn new(capacity: Arc<Capacity>) -> Self {
        // It may have changed while nobody was connected.
        capacity.ask();
        let device = capacity.device().clone();
        let geometry = device.geometry();
        let mut serial = [0; ID_BYTES];
        for (to, from) in serial.iter_mut().zip(geometry.serial.bytes()) {
            *to = from;
        }
        Self { device, capacity, read_only: geometry.read_only, serial, write_through: AtomicBool::new(true) }
    }

    fn shape(&self) -> DiskShape {
        DiskShape {
            sectors: self.capacity.sectors(),
            read_only: self.read_only,
            serial: self.serial,
            write_through: self.write_through.load(Ordering::Relaxed),
        }
    }
}

/// What a worker reports to its connection.
pub(crate) trait Alarm: Send + Sync {
    /// The device panicked: the connection must end.
    fn fail(&self);
}

/// A ring to be served.
pub(crate) struct RingRun {
    pub(crate) number: u16,
    pub(crate) layout: RingLayout,
    pub(crate) completions: Arc<Completions>,
    /// Number of the next chain to take.
    pub(crate) next: u16,
    pub(crate) kick: OwnedFd,
    pub(crate) error: Option<Arc<OwnedFd>>,
}

/// What other threads ask of a worker.
pub(crate) enum Command {
    /// Serve this ring.
    Attach(Box<RingRun>),
    /// Stop serving it; answers with the number of the next chain.
    Detach(u16, Sender<u16>),
    /// Serve it no longer or again, keeping it.
    Enable(u16, bool),
    /// Go on in a new memory table; `None` when the ring is not in it.
    SetLayout(u16, Option<RingLayout>, Sender<()>),
    /// Listen to another descriptor.
    SetKick(u16, OwnedFd),
    /// End the thread.
    Exit,
}

struct Mailbox {
    commands: Mutex<VecDeque<Command>>,
    full: AtomicBool,
    wake: OwnedFd,
}

/// Handle of a worker's thread.
pub(crate) struct Worker {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker. `poll` bounds the look at the rings before sleeping.
    pub(crate) fn start(
        name: String,
        disk: Arc<Disk>,
        counters: Arc<Counters>,
        alarm: Arc<dyn Alarm>,
        poll: Duration,
    ) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mailbox = Arc::new(Mailbox { commands: Mutex::new(VecDeque::new()), full: AtomicBool::new(false), wake });
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &mailbox.wake, EventData::new_u64(WAKE), EventFlags::IN | EventFlags::ET)?;
        let mut served = Served {
            mailbox: mailbox.clone(),
            epoll,
            rings: Vec::new(),
            disk,
            counters,
            alarm,
            chain: Chain::default(),
            batch: Vec::new(),
            poll: Polling { now: Duration::ZERO, most: poll },
            exit: false,
        };
        let thread = std::thread::Builder::new().name(name).spawn(move || served.run())?;
        Ok(Self { mailbox, thread: Some(thread) })
    }

    /// Hands a command over.
    pub(crate) fn send(&self, command: Command) {
        self.mailbox.commands.lock().push_back(command);
        self.mailbox.full.store(true, Ordering::Release);
        // An eventfd of our own: a full counter means that a wake-up is pending.
        let _ = rustix::io::write(&self.mailbox.wake, &1u64.to_ne_bytes());
    }

    /// Whether the thread is still there.
    pub(crate) fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|t| !t.is_finished())
    }

    /// Waits for the thread to end after [`Command::Exit`].
    pub(crate) fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Served {
    mailbox: Arc<Mailbox>,
    epoll: OwnedFd,
    rings: Vec<Ring>,
    disk: Arc<Disk>,
    counters: Arc<Counters>,
    alarm: Arc<dyn Alarm>,
    chain: Chain,
    batch: Vec<Request>,
    poll: Polling,
    exit: bool,
}

struct Ring {
    run: Box<RingRun>,
    enabled: bool,
    broken: bool,
    muted: bool,
}

/// How long to look at the rings before sleeping: grows while sleeps turn out short, back to nothing when one was long.
struct Polling {
    now: Duration,
    most: Duration,
}

impl Polling {
    fn slept(&mut self, time: Duration) {
        self.now = if time > self.most { Duration::ZERO } else { (self.now * 2).max(FIRST_POLL).min(self.most) };
    }
}

/// Why a ring is served no more.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum RingFault {
    #[error("available index runs ahead of the ring's size")]
    IndexJump,
    #[error("head is outside the ring or already in flight")]
    Head,
    #[error("the ring's memory is gone")]
    Memory,
}

impl Served {
    fn run(&mut self) {
        while !self.exit {
            if catch_unwind(AssertUnwindSafe(|| self.turn())).is_err() {
                self.counters.panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!("the device panicked: connection closed");
                self.batch.clear();
                for ring in &mut self.rings {
                    ring.broken = true;
                }
                self.alarm.fail();
            }
        }
    }

    /// Works until there is nothing to do, then sleeps until there is.
    fn turn(&mut self) {
        loop {
            if self.mailbox.full.load(Ordering::Acquire) {
                self.obey();
                if self.exit {
                    return;
                }
            }
            let mut worked = false;
            for index in 0..self.rings.len() {
                worked |= self.serve(index);
            }
            if worked || self.look() {
                continue;
            }
            for ring in self.rings.iter_mut().filter(|r| r.is_served()) {
                ring.run.layout.ask_for_kick(ring.run.next);
                ring.muted = false;
            }
            if self.has_work() {
                continue;
            }
            self.sleep();
        }
    }

    fn has_work(&self) -> bool {
        self.mailbox.full.load(Ordering::Acquire) || self.rings.iter().any(Ring::has_work)
    }

    /// Looks at the rings for a while; whether there is work.
    fn look(&self) -> bool {
        if self.poll.now.is_zero() {
            return false;
        }
        let start = Instant::now();
        loop {
            if self.has_work() {
                return true;
            }
            if start.elapsed() >= self.poll.now {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    fn sleep(&mut self) {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 16];
        let start = Instant::now();
        // Edge-triggered: each write to an eventfd is an event, so the counters need no reading.
        let woken = epoll::wait(&self.epoll, &mut events, None).unwrap_or(0);
        self.poll.slept(start.elapsed());
        for event in events.iter().take(woken) {
            let number = event.data.u64();
            if let Some(counters) = u16::try_from(number).ok().and_then(|n| self.counters.queue(n)) {
                counters.kicked();
            }
        }
    }

    fn obey(&mut self) {
        self.mailbox.full.store(false, Ordering::Release);
        loop {
            let Some(command) = self.mailbox.commands.lock().pop_front() else { return };
            match command {
                Command::Attach(run) => {
                    if self.listen(&run.kick, run.number) {
                        self.rings.push(Ring { run, enabled: true, broken: false, muted: false });
                    } else {
                        self.alarm.fail();
                    }
                }
                Command::Detach(number, reply) => {
                    let position = self.rings.iter().position(|r| r.run.number == number);
                    if let Some(ring) = position.map(|p| self.rings.swap_remove(p)) {
                        let _ = epoll::delete(&self.epoll, &ring.run.kick);
                        let _ = reply.send(ring.run.next);
                    }
                }
                Command::Enable(number, enabled) => {
                    if let Some(ring) = self.ring(number) {
                        ring.enabled = enabled;
                    }
                }
                Command::SetLayout(number, layout, reply) => {
                    if let Some(ring) = self.ring(number) {
                        match layout {
                            Some(layout) => {
                                ring.run.completions.set_layout(layout.clone());
                                ring.run.layout = layout;
                                ring.muted = false;
                            }
                            None => self.fail_ring(number, RingFault::Memory),
                        }
                    }
                    let _ = reply.send(());
                }
                Command::SetKick(number, kick) => {
                    if !self.listen(&kick, number) {
                        self.alarm.fail();
                    } else if let Some(ring) = self.rings.iter_mut().find(|r| r.run.number == number) {
                        let old = std::mem::replace(&mut ring.run.kick, kick);
                        let _ = epoll::delete(&self.epoll, &old);
                    }
                }
                Command::Exit => self.exit = true,
            }
        }
    }

    fn listen(&self, kick: &OwnedFd, number: u16) -> bool {
        epoll::add(&self.epoll, kick, EventData::new_u64(u64::from(number)), EventFlags::IN | EventFlags::ET).is_ok()
    }

    fn ring(&mut self, number: u16) -> Option<&mut Ring> {
        self.rings.iter_mut().find(|r| r.run.number == number)
    }

    fn fail_ring(&mut self, number: u16, fault: RingFault) {
        let Some(ring) = self.ring(number) else { return };
        ring.broken = true;
        if let Some(error) = &ring.run.error {
            let _ = rustix::io::write(&**error, &1u64.to_ne_bytes());
        }
        self.counters.broken_rings.fetch_add(1, Ordering::Relaxed);
        if self.counters.may_complain() {
            tracing::warn!(ring = number, %fault, "ring stopped until the guest resets it");
        }
    }

    /// Takes what one ring offers and submits it; whether there was anything.
    fn serve(&mut self, index: usize) -> bool {
        let Self { rings, disk, chain, batch, counters, .. } = self;
        let Some(ring) = rings.get_mut(index).filter(|r| r.is_served()) else { return false };
        let RingRun { number, layout, completions, next, .. } = &mut *ring.run;
        let number = *number;
        let pending = layout.available_index().wrapping_sub(*next);
        if pending == 0 {
            return false;
        }
        if !ring.muted {
            layout.mute_kicks();
            ring.muted = true;
        }
        let mut fault = (pending > layout.size().get()).then_some(RingFault::IndexJump);
        if layout.is_broken() {
            fault = Some(RingFault::Memory);
        }
        let offered = if fault.is_none() { pending } else { 0 };
        let mut intake = Intake { disk, shape: disk.shape(), layout, completions, chain, batch, counters, taken: Instant::now() };
        let collecting = Collecting::new(completions);
        for _ in 0..offered {
            let head = layout.available_head(*next);
            if !completions.is_free(head) {
                fault = Some(RingFault::Head);
                break;
            }
            *next = next.wrapping_add(1);
            intake.take(head, &collecting);
        }
        if !batch.is_empty() {
            disk.device.submit(batch);
            batch.clear();
        }
        drop(collecting);
        if let Some(fault) = fault {
            self.fail_ring(number, fault);
        }
        true
    }
}

impl Ring {
    fn is_served(&self) -> bool {
        self.enabled && !self.broken
    }

    fn has_work(&self) -> bool {
        self.is_served() && self.run.layout.available_index() != self.run.next
    }
}

/// One batch being put together.
struct Intake<'a> {
    disk: &'a Disk,
    shape: DiskShape,
    layout: &'a RingLayout,
    completions: &'a Arc<Completions>,
    chain: &'a mut Chain,
    batch: &'a mut Vec<Request>,
    counters: &'a Counters,
    taken: Instant,
}

impl Intake<'_> {
    fn take(&mut self, head: u16, collecting: &Collecting<'_>) {
        if let Err(fault) = self.chain.walk(self.layout, head) {
            self.complain(head, fault);
            // Where the status byte would be is known as soon as one writable descriptor was seen.
            let written = u32::from(self.chain.status().is_some());
            self.answer(head, OpKind::Other, Status::IOERR, written, collecting);
            return;
        }
        let memory = self.layout.memory();
        let mut parsed = parse(self.chain, memory, &self.shape);
        let refused = matches!(parsed, Parsed::Answer { status: Status::IOERR, kind, .. } if kind != OpKind::Other);
        // Whoever resized it may not have said so yet, while the guest knows already.
        if refused && self.disk.capacity.ask() > self.shape.sectors {
            self.shape = self.disk.shape();
            parsed = parse(self.chain, memory, &self.shape);
        }
        match (parsed, self.chain.status()) {
            (Parsed::Submit { kind, op, start, sectors, data, written }, Some(status)) => {
                self.completions.take(head, Some((kind, &status)));
                let len = data.segments().iter().map(|s| s.len).sum();
                let (ring, memory, taken) = (self.completions.clone(), memory.clone(), self.taken);
                let transfer = GuestTransfer { ring, memory, data, len, status, head, kind, written, taken };
                self.batch.push(Request { op, start, sectors, transfer: Transfer::new(Box::new(transfer)) });
            }
            (Parsed::Answer { kind, status, written }, Some(_)) => self.answer(head, kind, status, written, collecting),
            (Parsed::NoStatus, _) | (_, None) => self.answer(head, OpKind::Other, Status::IOERR, 0, collecting),
        }
    }

    fn answer(&self, head: u16, kind: OpKind, status: Status, written: u32, collecting: &Collecting<'_>) {
        self.completions.take(head, None);
        if let Some(at) = self.chain.status() {
            // Fails only if the front end took the page away; then nobody waits for the byte.
            let _ = self.layout.memory().write(&at, 0, &[status.0]);
        }
        collecting.push(Done { head, written, kind, bytes: 0, ok: status == Status::OK, taken: self.taken });
    }

    fn complain(&self, head: u16, fault: ChainFault) {
        if self.counters.may_complain() {
            tracing::warn!(head, %fault, "malformed chain answered with an error");
        }
    }
}
