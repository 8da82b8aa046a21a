//! What a guest would do to its disk, and how long each request took. The same code for every contender.
//!
//! Written data cannot be compressed and no 4 KiB block is written twice: each slot's buffer is random, and every block of it
//! gets a number of its own before it is sent (which costs the client nothing that would hide the server).

use std::path::Path;
use std::time::{Duration, Instant};

use lamina_contract::units::{Lba, SectorCount};
use lamina_harness::{Action, Client, ClientError, ClientOptions, HarnessError, Histogram, Queue};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

/// Longest silence of a server under load before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;

/// Where the next request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Anywhere, evenly.
    Random,
    /// Anywhere, but nowhere twice (until all was visited).
    Once,
    /// One after the other.
    Sequential,
}

/// Which way the data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
    /// A write, and then a flush, before the next write.
    WriteFlush,
}

/// One kind of load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) way: Way,
    pub(crate) order: Order,
    /// Bytes of each request.
    pub(crate) bytes: usize,
    /// Requests in flight.
    pub(crate) depth: u16,
    /// The part of the disk that is touched, from its start.
    pub(crate) set: u64,
    /// How long is measured, after the warm-up.
    pub(crate) time: Duration,
    pub(crate) warm_up: Duration,
    /// Spin on the ring instead of sleeping.
    pub(crate) poll: bool,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    pub(crate) latency: Histogram,
}

impl Measured {
    pub(crate) fn per_second(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(crate) fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.latency.merge(&other.latency);
    }
}

/// Chooses addresses.
struct Places {
    order: Order,
    random: SmallRng,
    slots: u64,
    next: u64,
    step: u64,
}

impl Places {
    fn new(load: &Load, seed: u64) -> Self {
        let slots = (load.set / load.bytes as u64).max(1);
        let mut random = SmallRng::seed_from_u64(seed);
        // An odd step visits each of a power of two of places once; other counts are rounded down to one.
        let slots = if load.order == Order::Once { 1 << slots.ilog2() } else { slots };
        let step = (random.random_range(slots / 4..=slots / 2 + 1)) | 1;
        let next = random.random_range(0..slots);
        Self { order: load.order, random, slots, next, step }
    }

    fn next(&mut self, bytes: usize) -> Lba {
        let slot = match self.order {
            Order::Random => self.random.random_range(0..self.slots),
            Order::Once => {
                self.next = (self.next + self.step) % self.slots;
                self.next
            }
            Order::Sequential => {
                self.next = (self.next + 1) % self.slots;
                self.next
            }
        };
        Lba(slot * (bytes / 512) as u64)
    }
}

/// Numbers for blocks: never the same in one process.
fn freshen(buffer: &mut [u8], random: &mut SmallRng) {
    for block in buffer.chunks_mut(BLOCK) {
        block[..8].copy_from_slice(&random.next_u64().to_le_bytes());
        block[8..16].copy_from_slice(&random.next_u64().to_le_bytes());
    }
}

/// Runs `load` on the disk at `socket`.
pub(crate) fn run(socket: &Path, load: &Load, seed: u64) -> Result<Measured, HarnessError> {
    let options = ClientOptions { queues: 1, depth: load.depth, buffer: load.bytes, poll: load.poll, limit: PATIENCE };
    let mut client = Client::connect_within(socket, options, PATIENCE)?;
    Ok(drive(client.queue(), load, seed)?)
}

/// Runs `load` on all disks at once, a thread each.
pub(crate) fn run_all(sockets: &[std::path::PathBuf], load: &Load, seed: u64) -> Result<Measured, HarnessError> {
    std::thread::scope(|scope| {
        let running: Vec<_> =
            sockets.iter().enumerate().map(|(index, socket)| scope.spawn(move || run(socket, load, seed + index as u64))).collect();
        let mut all = Measured::default();
        for one in running {
            match one.join() {
                Ok(measured) => all.add(&measured?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    })
}

fn drive(queue: &mut Queue, load: &Load, seed: u64) -> Result<Measured, ClientError> {
    let mut places = Places::new(load, seed);
    let mut random = SmallRng::seed_from_u64(seed ^ 0x5bd1_e995);
    let sectors = SectorCount((load.bytes / 512) as u64);
    let mut idle = Vec::new();
    while let Some(slot) = queue.acquire() {
        random.fill_bytes(queue.buffer(slot));
        idle.push((slot, false));
    }
    // Slots whose write is done and whose flush comes next.
    let mut begin = Instant::now();
    let mut measuring = load.warm_up.is_zero();
    let mut measured = Measured::default();
    let mut flushing = vec![false; usize::from(load.depth)];
    let mut started = vec![begin; usize::from(load.depth)];
    let mut done = Vec::with_capacity(usize::from(load.depth));
    loop {
        let now = Instant::now();
        if !measuring && now - begin >= load.warm_up {
            measuring = true;
            measured = Measured::default();
            begin = now;
        }
        let over = measuring && now - begin >= load.time;
        if over {
            break;
        }
        for (slot, wrote) in idle.drain(..) {
            let index = usize::from(slot.0);
            flushing[index] = wrote;
            let action = if wrote {
                Action::Flush
            } else {
                started[index] = now;
                let start = places.next(load.bytes);
                if load.way == Way::Read {
                    Action::Read { start, sectors }
                } else {
                    freshen(queue.buffer(slot), &mut random);
                    Action::Write { start, sectors }
                }
            };
            queue.submit(slot, action);
        }
        done.extend_from_slice(queue.reap(1, PATIENCE)?);
        for one in done.drain(..) {
            if let Err(errno) = one.outcome {
                return Err(ClientError::Disk { errno });
            }
            let index = usize::from(one.slot.0);
            if load.way == Way::WriteFlush && !flushing[index] {
                idle.push((one.slot, true));
                continue;
            }
            measured.requests += 1;
            measured.bytes += load.bytes as u64;
            measured.latency.record(if load.way == Way::WriteFlush { started[index].elapsed() } else { one.latency });
            idle.push((one.slot, false));
        }
    }
    measured.elapsed = begin.elapsed();
    while queue.in_flight() > 0 {
        queue.reap(1, PATIENCE)?;
    }
    Ok(measured)
}

/// Reads the whole set once, in order.
pub(crate) fn scan(socket: &Path, set: u64) -> Result<(), HarnessError> {
    const PIECE: usize = 64 << 10;
    let options = ClientOptions { queues: 1, depth: 8, buffer: PIECE, poll: false, limit: PATIENCE };
    let mut client = Client::connect_within(socket, options, PATIENCE)?;
    let queue = client.queue();
    let mut at = 0;
    while at < set || queue.in_flight() > 0 {
        while at < set
            && let Some(slot) = queue.acquire()
        {
            queue.submit(slot, Action::Read { start: Lba(at / 512), sectors: SectorCount((PIECE / 512) as u64) });
            at += PIECE as u64;
        }
        for one in queue.reap(1, PATIENCE)?.to_vec() {
            if let Err(errno) = one.outcome {
                return Err(ClientError::Disk { errno }.into());
            }
            queue.release(one.slot);
        }
    }
    Ok(())
}

/// Writes the whole set once, in order, and flushes: what a disk in use looks like.
pub(crate) fn fill(socket: &Path, set: u64, seed: u64) -> Result<(), HarnessError> {
    const PIECE: usize = 256 << 10;
    let options = ClientOptions { queues: 1, depth: 8, buffer: PIECE, poll: false, limit: PATIENCE };
    let mut client = Client::connect_within(socket, options, PATIENCE)?;
    let queue = client.queue();
    let mut random = SmallRng::seed_from_u64(seed);
    let mut at = 0;
    while at < set || queue.in_flight() > 0 {
        while at < set
            && let Some(slot) = queue.acquire()
        {
            let buffer = queue.buffer(slot);
            if at < (PIECE * 8) as u64 {
                random.fill_bytes(buffer);
            }
            freshen(buffer, &mut random);
            queue.submit(slot, Action::Write { start: Lba(at / 512), sectors: SectorCount((PIECE / 512) as u64) });
            at += PIECE as u64;
        }
        for one in queue.reap(1, PATIENCE)?.to_vec() {
            if let Err(errno) = one.outcome {
                return Err(ClientError::Disk { errno }.into());
            }
            queue.release(one.slot);
        }
    }
    queue.flush()?;
    Ok(())
}
