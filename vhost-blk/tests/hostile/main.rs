//! Front ends that lie: each case does one wrong thing; after it the server must serve an honest front end, and a neighbour on
//! another socket must have gone on all the while. Descriptors and memory of the process stay flat over repetitions.

mod chains;
mod channel;
mod memory;
mod messages;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lamina_contract::{BlockDevice, DeviceGeometry, Lba, Op, Request, SectorCount};
use lamina_vhost_blk::driver::{FrontEnd, Setup, SharedMemory};
use lamina_vhost_blk::driver_queue::{DriverQueue, IN, OUT};
use lamina_vhost_blk::{RamDisk, Server, ServerOptions};
use parking_lot::Mutex;

/// Sectors of the disk under attack.
pub const SECTORS: u64 = 8192;
/// Reads from here on are held until [`Lab::release`].
pub const HELD_FROM: Lba = Lba(8000);
/// Long enough for anything that works.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A RAM disk that keeps reads of its last sectors to itself.
pub struct HoldingDisk {
    inner: RamDisk,
    held: Mutex<Vec<Request>>,
}

impl HoldingDisk {
    /// Changes its size.
    pub fn resize(&self, sectors: SectorCount) {
        self.inner.resize(sectors);
    }
}

impl BlockDevice for HoldingDisk {
    fn geometry(&self) -> DeviceGeometry {
        self.inner.geometry()
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        let (held, mut now): (Vec<_>, Vec<_>) =
            batch.drain(..).partition(|r| r.op == Op::Read && r.start >= HELD_FROM && r.start < Lba(HELD_FROM.0 + 100));
        self.held.lock().extend(held);
        self.inner.submit(&mut now);
    }
}

/// What is wrong, and how it is done.
pub type Case = (&'static str, fn(&Lab));

/// The server under attack.
pub struct Lab {
    /// Where it listens.
    pub path: PathBuf,
    /// Itself.
    pub server: Server,
    /// What it serves.
    pub device: Arc<HoldingDisk>,
}

impl Lab {
    /// A connection that has said nothing.
    pub fn connect(&self) -> FrontEnd {
        FrontEnd::connect(&self.path).expect("connect")
    }

    /// A connection with features negotiated, and memory to share.
    pub fn negotiated(&self) -> (FrontEnd, Arc<SharedMemory>) {
        let mut front = self.connect();
        front.negotiate(u64::MAX).expect("negotiate");
        (front, SharedMemory::new(4 << 20, true).expect("memory"))
    }

    /// A well-behaved connection with running queues.
    pub fn started(&self, setup: Setup) -> (FrontEnd, Arc<SharedMemory>, Vec<DriverQueue>) {
        FrontEnd::start(&self.path, setup).expect("start")
    }

    /// Answers what the device held, and tells how many that were.
    pub fn release(&self) -> usize {
        let mut held = std::mem::take(&mut *self.device.held.lock());
        let count = held.len();
        self.device.inner.submit(&mut held);
        count
    }

    /// Waits until the device holds `count` requests.
    pub fn wait_held(&self, count: usize) {
        let start = Instant::now();
        while self.device.held.lock().len() < count {
            assert!(start.elapsed() < PATIENCE, "the device never got the request");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// An honest front end writes and reads.
    fn serves(&self) -> bool {
        let Ok((_front, _, mut queues)) = FrontEnd::start(&self.path, Setup { queues: 2, ..Setup::default() }) else {
            return false;
        };
        let mut data = [0x5a; 4096];
        let mut back = [0; 4096];
        queues[0].run(OUT, 8, &mut data) == 0 && queues[1].run(IN, 8, &mut back) == 0 && back == data
    }
}

/// Fails unless the server closes the connection.
pub fn expect_closed(front: &FrontEnd) {
    assert!(front.is_closed_within(PATIENCE), "the server must close the connection");
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("fds").count()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|l| l.starts_with("VmRSS")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|w| w.parse().ok()).expect("KiB")
}

fn wait_idle(lab: &Lab) {
    let start = Instant::now();
    while lab.server.counters().connected {
        assert!(start.elapsed() < PATIENCE, "the server must notice that the front end is gone");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(5));
}

#[test]
fn no_hostile_front_end_stops_the_server_or_slows_its_neighbour_or_grows_the_process() {
    let dir = tempfile::tempdir().expect("dir");
    let inner = RamDisk::new(SectorCount(SECTORS));
    let device = Arc::new(HoldingDisk { inner, held: Mutex::new(Vec::new()) });
    let path = dir.path().join("victim.sock");
    let options = ServerOptions {
        max_guest_memory: 1 << 40,
        read_patience: Duration::from_millis(300),
        drain_timeout: Duration::from_secs(2),
        ..ServerOptions::default()
    };
    let server = Server::bind(&path, device.clone(), options.clone()).expect("server");
    let lab = Lab { path, server, device };
    let neighbour_path = dir.path().join("neighbour.sock");
    let neighbour = Server::bind(&neighbour_path, Arc::new(RamDisk::new(SectorCount(SECTORS))), options).expect("server");
    let cases: Vec<Case> = [messages::CASES, channel::CASES, memory::CASES, chains::CASES].concat();
    let names: std::collections::HashSet<_> = cases.iter().map(|(name, _)| *name).collect();
    assert!(names.len() == cases.len() && cases.len() >= 60, "{} cases, {} names", cases.len(), names.len());
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (_front, _, mut queues) = FrontEnd::start(&neighbour_path, Setup::default()).expect("neighbour");
            let mut data = [0; 4096];
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(queues[0].run(IN, 16, &mut data), 0);
                done.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let stop_neighbour = StopOnDrop(&stop);
        let mut flat = None;
        for round in 0..4 {
            for (name, case) in &cases {
                let before = done.load(Ordering::Relaxed);
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&lab)));
                assert!(outcome.is_ok(), "case failed: {name}");
                lab.release();
                assert!(lab.serves(), "no service after: {name}");
                let start = Instant::now();
                while done.load(Ordering::Relaxed) < before + 2 {
                    assert!(start.elapsed() < PATIENCE, "the neighbour stands still after: {name}");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            wait_idle(&lab);
            let now = (descriptors(), resident_kib());
            // The first round warms allocators and thread stacks up.
            match flat {
                None if round == 1 => flat = Some(now),
                Some((fds, kib)) => {
                    assert_eq!(now.0, fds, "descriptors leak");
                    assert!(now.1 < kib + 8 * 1024, "memory grows: {kib} KiB, then {} KiB", now.1);
                }
                None => {}
            }
        }
        drop(stop_neighbour);
    });
    assert_eq!(neighbour.counters().read.errors, 0);
    assert_eq!(lab.server.counters().panics, 0);
    eprintln!("{} cases, neighbour did {} reads", cases.len(), done.load(Ordering::Relaxed));
}

/// Sets the flag when it goes, by a panic too.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
