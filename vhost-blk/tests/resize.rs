//! A disk that changes its size while a guest uses it: what the guest sees, hears and may touch.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lamina_contract::SectorCount;
use lamina_vhost_blk::driver::{BACKEND_REQ, FrontEnd, SharedMemory};
use lamina_vhost_blk::driver_queue::{DISCARD, DriverQueue, IN, OUT, WRITE_ZEROES, range};
use lamina_vhost_blk::{RamDisk, Server, ServerOptions};

const SECTORS: u64 = 1024;
const PATIENCE: Duration = Duration::from_secs(10);
/// CONFIG_CHANGE_MSG: number 2, version 1, no reply asked for, no body.
const CONFIG_CHANGE: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

struct Bench {
    _dir: tempfile::TempDir,
    path: PathBuf,
    disk: Arc<RamDisk>,
    server: Server,
}

impl Bench {
    fn new() -> Self {
        Self::named("disk")
    }

    /// Its threads have the name in theirs.
    fn named(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join(format!("{name}.sock"));
        let disk = Arc::new(RamDisk::new(SectorCount(SECTORS)));
        let server = Server::bind(&path, disk.clone(), ServerOptions::default()).expect("server");
        Self { _dir: dir, path, disk, server }
    }

    /// What QEMU does: channel, configuration, rings.
    fn guest(&self) -> (FrontEnd, UnixStream, DriverQueue) {
        let mut front = FrontEnd::connect(&self.path).expect("connect");
        front.negotiate(u64::MAX).expect("negotiate");
        let channel = front.open_channel().expect("channel");
        assert_eq!(front.config(0, 60).expect("config")[..8], (capacity(&front)).to_le_bytes());
        let queue = ring(&front);
        (front, channel, queue)
    }

    fn resize(&self, sectors: u64) {
        self.disk.resize(SectorCount(sectors));
        assert_eq!(self.server.resized(), SectorCount(sectors));
    }

    /// Waits until the server has told front ends `count` times.
    fn wait_told(&self, count: u64) {
        let start = Instant::now();
        while self.server.counters().config_changes < count {
            assert!(start.elapsed() < PATIENCE, "the front end was not told");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn ring(front: &FrontEnd) -> DriverQueue {
    let memory = SharedMemory::new(4 << 20, true).expect("memory");
    front.share(&memory).expect("share");
    let queue = DriverQueue::new(0, 128, memory, true).expect("queue");
    front.start_queue(&queue, 0).expect("start");
    queue
}

fn capacity(front: &FrontEnd) -> u64 {
    u64::from_le_bytes(front.config(0, 8).expect("config").try_into().expect("8 bytes"))
}

/// The next message on the channel.
fn message(channel: &mut UnixStream) -> [u8; 12] {
    let mut bytes = [0; 12];
    channel.read_exact(&mut bytes).expect("a message");
    bytes
}

/// Whether nothing is on the channel, after the connection's thread had the time for it.
fn is_silent(channel: &mut UnixStream) -> bool {
    channel.set_read_timeout(Some(Duration::from_millis(100))).expect("time-out");
    let read = channel.read(&mut [0; 12]);
    channel.set_read_timeout(Some(PATIENCE)).expect("time-out");
    matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn a_front_end_is_told_once_of_a_disk_that_grew_and_its_new_end_can_be_used() {
    let bench = Bench::new();
    let (front, mut channel, mut queue) = bench.guest();
    assert_eq!(queue.run(OUT, SECTORS, &mut [1; 512]), 1, "behind the end");
    bench.resize(2 * SECTORS);
    assert_eq!(message(&mut channel), CONFIG_CHANGE);
    assert_eq!(capacity(&front), 2 * SECTORS);
    assert_eq!(queue.run(OUT, 2 * SECTORS - 8, &mut [7; 4096]), 0);
    let mut back = [0; 4096];
    assert_eq!((queue.run(IN, 2 * SECTORS - 8, &mut back), back), (0, [7; 4096]));
    assert_eq!(queue.run(OUT, 2 * SECTORS - 7, &mut [7; 4096]), 1, "behind the new end");
    assert!(is_silent(&mut channel));
    assert_eq!(bench.server.counters().config_changes, 1);
}

#[test]
fn a_disk_that_shrank_refuses_everything_behind_its_new_end() {
    let bench = Bench::new();
    let (front, mut channel, mut queue) = bench.guest();
    assert_eq!(queue.run(OUT, SECTORS - 8, &mut [7; 4096]), 0);
    bench.resize(SECTORS / 2);
    for (kind, data) in [(IN, vec![0; 512]), (OUT, vec![0; 512])] {
        assert_eq!(queue.run(kind, SECTORS / 2, &mut data.clone()), 1, "type {kind}");
        assert_eq!(queue.run(kind, SECTORS / 2 - 1, &mut data.clone()), 0, "type {kind}");
    }
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(queue.run(kind, 0, &mut range(SECTORS / 2 - 1, 2, 0)), 1, "type {kind}");
        assert_eq!(queue.run(kind, 0, &mut range(SECTORS / 2 - 2, 2, 0)), 0, "type {kind}");
    }
    assert_eq!((message(&mut channel), capacity(&front)), (CONFIG_CHANGE, SECTORS / 2));
    // What was there does not come back.
    bench.resize(SECTORS);
    let mut back = [1; 4096];
    assert_eq!((queue.run(IN, SECTORS - 8, &mut back), back), (0, [0; 4096]));
}

#[test]
fn a_front_end_without_a_channel_sees_the_new_size_when_it_asks_next() {
    let bench = Bench::new();
    for protocol in [u64::MAX, !BACKEND_REQ] {
        let mut front = FrontEnd::connect(&bench.path).expect("connect");
        front.negotiate_protocol(u64::MAX, protocol).expect("negotiate");
        let old = capacity(&front);
        let mut queue = ring(&front);
        bench.resize(old + SECTORS);
        assert_eq!(capacity(&front), old + SECTORS);
        assert_eq!(queue.run(OUT, old, &mut [7; 512]), 0);
    }
    assert_eq!(bench.server.counters().config_changes, 0);
}

#[test]
fn a_front_end_that_comes_back_and_does_not_ask_is_told_to_look() {
    let bench = Bench::new();
    drop(bench.guest());
    bench.resize(2 * SECTORS);
    let mut front = FrontEnd::connect(&bench.path).expect("connect");
    front.negotiate(u64::MAX).expect("negotiate");
    let mut channel = front.open_channel().expect("channel");
    assert!(is_silent(&mut channel), "not before its rings run");
    let _queue = ring(&front);
    assert_eq!(message(&mut channel), CONFIG_CHANGE);
    // One that asked needs no telling.
    drop((front, channel));
    let (_front, mut channel, mut queue) = bench.guest();
    assert_eq!(queue.run(IN, 0, &mut [0; 512]), 0);
    assert!(is_silent(&mut channel));
}

#[test]
fn a_channel_that_nobody_reads_stops_no_request_and_is_told_when_it_is_read() {
    let bench = Bench::named("full");
    let (front, mut channel, mut queue) = bench.guest();
    let (mut sectors, mut told) = (SECTORS, 0);
    loop {
        sectors += 8;
        bench.resize(sectors);
        assert_eq!(queue.run(OUT, sectors - 8, &mut [7; 4096]), 0);
        let start = Instant::now();
        while bench.server.counters().config_changes == told && start.elapsed() < Duration::from_millis(300) {
            std::thread::sleep(Duration::from_micros(50));
        }
        if bench.server.counters().config_changes == told {
            break;
        }
        told += 1;
        assert!(told < 100_000, "the socket's buffer must fill some day");
        assert_eq!(capacity(&front), sectors);
    }
    assert_eq!(queue.run(OUT, 0, &mut [7; 4096]), 0);
    let before = cpu_time("vctl-full");
    assert!(before > Duration::ZERO, "the thread that worked is the one measured");
    std::thread::sleep(Duration::from_millis(300));
    assert!(cpu_time("vctl-full") - before < Duration::from_millis(5), "waiting for room must not use the CPU");
    assert_eq!(front.config(32, 1).expect("the connection's thread is not stuck"), [1]);
    for _ in 0..told {
        assert_eq!(message(&mut channel), CONFIG_CHANGE);
    }
    assert_eq!(message(&mut channel), CONFIG_CHANGE, "the one that found no room");
    assert_eq!(bench.server.counters().config_changes, told + 1);
}

#[test]
fn a_closed_channel_stops_no_request_and_another_one_takes_its_place() {
    let bench = Bench::new();
    let (front, channel, mut queue) = bench.guest();
    drop(channel);
    bench.resize(2 * SECTORS);
    assert_eq!(queue.run(OUT, 2 * SECTORS - 8, &mut [7; 4096]), 0);
    let mut channel = front.open_channel().expect("another channel");
    assert_eq!(message(&mut channel), CONFIG_CHANGE, "it has still not been told");
    bench.wait_told(1);
    assert_eq!(capacity(&front), 2 * SECTORS);
    bench.resize(3 * SECTORS);
    assert_eq!(message(&mut channel), CONFIG_CHANGE);
}

#[test]
fn requests_under_way_notice_nothing_of_a_disk_that_changes_its_size_all_the_time() {
    let bench = Bench::new();
    let (front, mut channel, mut queue) = bench.guest();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let mut changes = 0u64;
            while !stop.load(Ordering::Relaxed) {
                bench.resize(SECTORS + changes % 512);
                changes += 1;
            }
            changes
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert!(channel.read(&mut [0; 4096]).is_ok());
            }
        });
        let start = Instant::now();
        let mut answered = 0u64;
        while start.elapsed() < Duration::from_secs(1) {
            let byte = answered as u8;
            assert_eq!(queue.run(OUT, SECTORS - 8, &mut [byte; 4096]), 0);
            let mut back = [0; 4096];
            assert_eq!((queue.run(IN, SECTORS - 8, &mut back), back), (0, [byte; 4096]));
            answered += 1;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(answered > 100, "only {answered} pairs in a second");
        assert!(changes.join().expect("changes") > 100);
        bench.wait_told(1);
        // The server closes its end of the channel, which wakes the reader.
        drop(front);
    });
}

/// CPU time of this process's threads whose name begins with `name`.
fn cpu_time(name: &str) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("tasks").filter_map(Result::ok);
    let named = tasks.filter(|t| std::fs::read_to_string(t.path().join("comm")).is_ok_and(|n| n.starts_with(name)));
    let nanos = named.filter_map(|t| {
        let stat = std::fs::read_to_string(t.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}
