//! A client that never stops writing stamped sectors, tells the oracle what it did, and checks what it reads on the way.
//!
//! One queue, so that the order in which acknowledgements are seen is the order in which the server gave them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lamina_contract::units::{Lba, SectorCount};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::client::{Action, Client, ClientError, ClientOptions, Queue, Slot};
use crate::oracle::{Crash, Moment, OpId, Oracle, Paint, Verdict, Violation};
use crate::stamp::{SECTOR, TemplateId, paint};

/// Bytes of the largest request.
const LARGEST: usize = 128 << 10;

/// What share of the requests is what, in percent; the rest are writes of unique stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriterMix {
    /// Requests in flight.
    pub depth: u16,
    /// Flushes.
    pub flush: u32,
    /// Checked reads.
    pub read: u32,
    /// Discards and write-zeroes.
    pub zero: u32,
    /// Writes of template blocks (duplicates).
    pub template: u32,
    /// Of the writes: those that begin or end inside a block.
    pub unaligned: u32,
    /// Rest after each round of answers, for a writer that is slower than the disk.
    pub rest: Duration,
}

impl Default for WriterMix {
    fn default() -> Self {
        Self { depth: 16, flush: 4, read: 8, zero: 6, template: 12, unaligned: 20, rest: Duration::ZERO }
    }
}

/// Why the writer stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriterEnd {
    /// It was told to, and everything in flight was answered.
    Told,
    /// The server does not answer any more, as expected.
    ServerGone,
}

/// What is in flight in a slot.
#[derive(Debug, Clone, Copy)]
enum Flying {
    Change(OpId),
    Flush(Moment),
    Read { start: Lba, sectors: SectorCount, issued: Moment },
}

/// A stamped client of one volume.
pub struct StampedWriter {
    oracle: Oracle,
    random: StdRng,
    mix: WriterMix,
    /// Writes acknowledged so far.
    acknowledged: u64,
    /// I/O errors that the disk answered.
    errors: u64,
    violations: Vec<Violation>,
    /// Moments of the oracle by time, every 20 ms while running.
    marks: Vec<(Instant, Moment)>,
}

impl StampedWriter {
    /// A writer over the first `sectors` (a multiple of 8) of a volume that is all zeros. `volume` is its stamp identity.
    #[must_use]
    pub fn new(volume: u64, sectors: SectorCount, mix: WriterMix, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self {
            oracle: Oracle::new(volume, sectors),
            random,
            mix,
            acknowledged: 0,
            errors: 0,
            violations: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// The last noted moment that is not after `time`: everything acknowledged before it was acknowledged before `time`.
    #[must_use]
    pub fn moment_at(&self, time: Instant) -> Moment {
        self.marks.iter().rev().find(|(at, _)| *at <= time).map_or(Moment(0), |(_, moment)| *moment)
    }

    /// Changes acknowledged over its whole life.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Requests that the disk answered with an error.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// Wrong reads seen while running.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// The oracle.
    pub fn oracle(&mut self) -> &mut Oracle {
        &mut self.oracle
    }

    fn options(&self) -> ClientOptions {
        ClientOptions { depth: self.mix.depth, buffer: LARGEST, ..ClientOptions::default() }
    }

    /// Writes until `stop` is set (then waits for what is in flight), or until the server is gone: `gone` tells that it was
    /// killed, so that silence is expected and only what it had completed is still taken.
    ///
    /// # Errors
    /// [`ClientError`] when the server is silent for `patience` although nobody killed it.
    pub fn run(
        &mut self,
        socket: &Path,
        stop: &AtomicBool,
        gone: &AtomicBool,
        patience: Duration,
    ) -> Result<WriterEnd, ClientError> {
        let mut client = match Client::connect_within(socket, self.options(), patience) {
            Err(_) if gone.load(Ordering::SeqCst) => return Ok(WriterEnd::ServerGone),
            connected => connected?,
        };
        let queue = client.queue();
        let mut flying: Vec<Option<Flying>> = vec![None; usize::from(self.mix.depth)];
        let mut heard = Instant::now();
        loop {
            let told = stop.load(Ordering::SeqCst);
            if self.marks.last().is_none_or(|(at, _)| at.elapsed() > Duration::from_millis(20)) {
                let mark = (Instant::now(), self.oracle.moment());
                self.marks.push(mark);
            }
            while !told && let Some(slot) = queue.acquire() {
                let (action, what) = self.next(queue, slot);
                flying[usize::from(slot.0)] = Some(what);
                queue.submit(slot, action);
            }
            if queue.in_flight() == 0 {
                return Ok(WriterEnd::Told);
            }
            // Looked at before the ring: what is in the ring after the server's death was acknowledged by it.
            let dead = gone.load(Ordering::SeqCst);
            let done = match queue.reap(usize::from(!dead), Duration::from_millis(20)) {
                Ok(done) => done.to_vec(),
                Err(ClientError::Late { .. }) if heard.elapsed() < patience => Vec::new(),
                Err(error) => return Err(error),
            };
            if dead && done.is_empty() {
                return Ok(WriterEnd::ServerGone);
            }
            if !done.is_empty() {
                heard = Instant::now();
            }
            for one in done {
                let what = flying[usize::from(one.slot.0)].take();
                self.finished(queue, one.slot, what, one.outcome.is_ok());
                queue.release(one.slot);
            }
            if !self.mix.rest.is_zero() {
                std::thread::sleep(self.mix.rest);
            }
        }
    }

    fn finished(&mut self, queue: &mut Queue, slot: Slot, what: Option<Flying>, good: bool) {
        if !good {
            // As if never answered: it may have been done or not.
            self.errors += 1;
            return;
        }
        match what {
            Some(Flying::Change(op)) => {
                self.acknowledged += 1;
                self.oracle.acknowledge(op);
            }
            Some(Flying::Flush(issued)) => self.oracle.flushed(issued),
            Some(Flying::Read { start, sectors, issued }) => {
                let bytes = sectors.bytes() as usize;
                let found = self.oracle.check_read(start, &queue.buffer(slot)[..bytes], issued);
                self.violations.extend(found.into_iter().map(|violation| Violation::Running(Box::new(violation))));
                self.violations.truncate(100);
            }
            None => {}
        }
    }

    /// Half of the addresses fall into a sixteenth of the region, so that blocks are overwritten while they are young.
    fn place(&mut self, sectors: u64, align: u64) -> Lba {
        let all = self.oracle.sectors().0;
        let within = if self.random.random_bool(0.5) { (all / 16).max(sectors) } else { all };
        let last = (within - sectors) / align;
        Lba(self.random.random_range(0..=last) * align)
    }

    fn next(&mut self, queue: &mut Queue, slot: Slot) -> (Action, Flying) {
        let mix = self.mix;
        let draw = self.random.random_range(0..100_u32);
        if draw < mix.flush {
            return (Action::Flush, Flying::Flush(self.oracle.moment()));
        }
        let blocks = [1, 1, 1, 1, 2, 4, 16, 32][self.random.random_range(0..8_usize)];
        if draw < mix.flush + mix.read {
            let (start, sectors) = (self.place(blocks * 8, 1), SectorCount(blocks * 8));
            return (Action::Read { start, sectors }, Flying::Read { start, sectors, issued: self.oracle.moment() });
        }
        if draw < mix.flush + mix.read + mix.zero {
            // Guests align discards as the disk advertises; only whole blocks are sure to read as zeros. Write-zeroes promises more.
            let discard = self.random.random_bool(0.5);
            let align = if !discard && self.random.random_bool(0.3) { 1 } else { 8 };
            let (start, sectors) = (self.place(blocks * 8, align), SectorCount(blocks * 8));
            let op = self.oracle.issue(start, sectors, Paint::Zero);
            let unmap = self.random.random_bool(0.5);
            let action = if discard { Action::Discard { start, sectors } } else { Action::WriteZeroes { start, sectors, unmap } };
            return (action, Flying::Change(op));
        }
        let template = draw < mix.flush + mix.read + mix.zero + mix.template;
        let unaligned = !template && self.random.random_ratio(mix.unaligned, 100);
        let sectors = if unaligned { self.random.random_range(1..=40) } else { blocks * 8 };
        let start = self.place(sectors, if unaligned { 1 } else { 8 });
        let kind = if template { Paint::Template(TemplateId(self.random.random_range(1..=64))) } else { Paint::Unique };
        let op = self.oracle.issue(start, SectorCount(sectors), kind);
        let volume = self.oracle.volume();
        for (at, sector) in queue.buffer(slot).chunks_mut(SECTOR).take(sectors as usize).enumerate() {
            let lba = Lba(start.0 + at as u64);
            paint(volume, lba, self.oracle.content(op, lba), sector);
        }
        (Action::Write { start, sectors: SectorCount(sectors) }, Flying::Change(op))
    }

    /// Reads the whole region and checks it against what `crash` may have left.
    ///
    /// # Errors
    /// [`ClientError`] when the region cannot be read.
    pub fn verify(&mut self, socket: &Path, crash: Crash, patience: Duration) -> Result<Verdict, ClientError> {
        let image = read_image(socket, self.oracle.sectors(), patience)?;
        let mut verdict = self.oracle.check(crash, &image);
        self.marks.clear();
        verdict.violations.append(&mut self.violations);
        Ok(verdict)
    }
}

/// The first `sectors` of a disk.
///
/// # Errors
/// [`ClientError`] when they cannot be read.
pub fn read_image(socket: &Path, sectors: SectorCount, patience: Duration) -> Result<Vec<u8>, ClientError> {
    let options = ClientOptions { depth: 8, buffer: 256 << 10, limit: patience, ..ClientOptions::default() };
    let mut client = Client::connect_within(socket, options, patience)?;
    let mut image = vec![0; sectors.bytes() as usize];
    read_all(client.queue(), &mut image, patience)?;
    Ok(image)
}

/// Fills `image` from sector 0 on with all slots in flight.
fn read_all(queue: &mut Queue, image: &mut [u8], patience: Duration) -> Result<(), ClientError> {
    let piece = queue.acquire().map_or(4096, |slot| {
        let bytes = queue.buffer(slot).len();
        queue.release(slot);
        bytes
    });
    let mut pieces = image.chunks_mut(piece).enumerate();
    let mut flying: Vec<Option<&mut [u8]>> = Vec::new();
    loop {
        while let Some(slot) = queue.acquire() {
            let Some((index, target)) = pieces.next() else {
                queue.release(slot);
                break;
            };
            let (start, sectors) = (Lba((index * piece / SECTOR) as u64), SectorCount((target.len() / SECTOR) as u64));
            let at = usize::from(slot.0);
            flying.resize_with(flying.len().max(at + 1), || None);
            flying[at] = Some(target);
            queue.submit(slot, Action::Read { start, sectors });
        }
        if queue.in_flight() == 0 {
            return Ok(());
        }
        for done in queue.reap(1, patience)?.to_vec() {
            if let Err(errno) = done.outcome {
                return Err(ClientError::Disk { errno });
            }
            if let Some(target) = flying[usize::from(done.slot.0)].take() {
                let length = target.len();
                target.copy_from_slice(&queue.buffer(done.slot)[..length]);
            }
            queue.release(done.slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use lamina_contract::units::{ByteSize, SectorCount};

    use super::{StampedWriter, WriterEnd, WriterMix};
    use crate::oracle::{Crash, Violation};
    use crate::place::Place;
    use crate::storage_daemon::{Backing, Cache, StorageDaemon};

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn a_server_killed_under_the_writer_keeps_what_it_acknowledged() {
        let place = Place::new().expect("a directory");
        let size = ByteSize(8 << 20);
        let mut writer = StampedWriter::new(1, SectorCount(size.0 / 512), WriterMix::default(), 42);
        for cycle in 0..3 {
            let mut server =
                StorageDaemon::start(place.path(), "disk", size, Backing::Raw(Cache::Cached)).expect("qemu-storage-daemon");
            let socket = server.socket().to_owned();
            let (stop, gone) = (AtomicBool::new(false), AtomicBool::new(false));
            let end = std::thread::scope(|scope| {
                let running = scope.spawn(|| writer.run(&socket, &stop, &gone, PATIENCE));
                std::thread::sleep(Duration::from_millis(150 + 40 * cycle));
                server.process().kill();
                gone.store(true, Ordering::SeqCst);
                running.join().expect("no panic")
            });
            assert_eq!(end.expect("no failure"), WriterEnd::ServerGone);
            std::fs::remove_file(&socket).expect("its socket");
            let server =
                StorageDaemon::start(place.path(), "disk", size, Backing::Raw(Cache::Cached)).expect("qemu-storage-daemon");
            let verdict = writer.verify(server.socket(), Crash::Kill, PATIENCE).expect("an image");
            // It is a raw file: a block may be torn by the kill, and a read beside a write may see half of a sector. An acknowledged
            // write may not be lost.
            let raw = |broken: &&Violation| matches!(broken, Violation::Torn { .. } | Violation::Running(_));
            let lost: Vec<_> = verdict.violations.iter().filter(|broken| !raw(broken)).collect();
            assert!(lost.is_empty(), "{lost:?}");
            assert!(verdict.acknowledged > 50, "only {} acknowledged", verdict.acknowledged);
            drop(server);
            let _ = std::fs::remove_file(&socket);
        }
    }

    #[test]
    fn a_server_that_forgets_is_found_out() {
        let place = Place::new().expect("a directory");
        let size = ByteSize(8 << 20);
        let server = StorageDaemon::start(place.path(), "null", size, Backing::Null).expect("qemu-storage-daemon");
        let mut writer = StampedWriter::new(1, SectorCount(size.0 / 512), WriterMix { zero: 0, ..WriterMix::default() }, 7);
        let (stop, gone) = (AtomicBool::new(false), AtomicBool::new(false));
        let socket = server.socket().to_owned();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| writer.run(&socket, &stop, &gone, PATIENCE));
            std::thread::sleep(Duration::from_millis(100));
            stop.store(true, Ordering::SeqCst);
            assert_eq!(running.join().expect("no panic").expect("no failure"), WriterEnd::Told);
        });
        assert!(!writer.violations().is_empty(), "reads of zeros went unnoticed");
        let verdict = writer.verify(server.socket(), Crash::Kill, PATIENCE).expect("an image");
        assert!(verdict.taken > 50 && !verdict.violations.is_empty());
    }
}
