//! What an honest guest may rely on: its requests are served, out of order if need be, through reboots, restarts and stops.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lamina_contract::{BlockDevice, DeviceGeometry, Op, Request, SectorCount};
use lamina_vhost_blk::driver::{CONFIG_WCE, EVENT_IDX, FLUSH as F_FLUSH, FrontEnd, Setup, VERSION, message};
use lamina_vhost_blk::driver_queue::{DISCARD, DriverQueue, FLUSH, GET_ID, IN, OUT, WRITE_ZEROES, range};
use lamina_vhost_blk::{Drained, RamDisk, Server, ServerError, ServerOptions};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SECTORS: u64 = 16384;
const PATIENCE: Duration = Duration::from_secs(10);

struct Bench {
    _dir: tempfile::TempDir,
    path: PathBuf,
    server: Server,
}

impl Bench {
    fn new(device: Arc<dyn BlockDevice>, options: ServerOptions) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("disk.sock");
        let server = Server::bind(&path, device, options).expect("server");
        Self { _dir: dir, path, server }
    }

    fn start(&self, setup: Setup) -> (FrontEnd, Vec<DriverQueue>) {
        let (front, _, queues) = FrontEnd::start(&self.path, setup).expect("start");
        (front, queues)
    }
}

fn ram() -> Arc<RamDisk> {
    Arc::new(RamDisk::new(SectorCount(SECTORS)))
}

/// A disk that keeps the requests it is told to keep.
struct Holding {
    inner: RamDisk,
    hold: fn(&Request) -> bool,
    held: Mutex<Vec<Request>>,
}

impl Holding {
    fn new(hold: fn(&Request) -> bool) -> Arc<Self> {
        Arc::new(Self { inner: RamDisk::new(SectorCount(SECTORS)), hold, held: Mutex::new(Vec::new()) })
    }

    fn wait(&self, count: usize) {
        let start = Instant::now();
        while self.held.lock().len() < count {
            assert!(start.elapsed() < PATIENCE, "the device never got the request");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn release(&self) {
        let mut held = std::mem::take(&mut *self.held.lock());
        self.inner.submit(&mut held);
    }
}

impl BlockDevice for Holding {
    fn geometry(&self) -> DeviceGeometry {
        self.inner.geometry()
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        let (held, mut now): (Vec<_>, Vec<_>) = batch.drain(..).partition(self.hold);
        self.held.lock().extend(held);
        self.inner.submit(&mut now);
    }
}

/// A disk that answers from threads of its own, in no particular order.
struct Scattered {
    inner: Arc<RamDisk>,
    threads: Vec<std::sync::mpsc::Sender<Request>>,
    next: AtomicU64,
}

impl Scattered {
    fn new(inner: Arc<RamDisk>) -> Self {
        let threads = (0..3)
            .map(|_| {
                let (send, receive) = std::sync::mpsc::channel::<Request>();
                let disk = inner.clone();
                std::thread::spawn(move || {
                    while let Ok(request) = receive.recv() {
                        disk.submit(&mut vec![request]);
                    }
                });
                send
            })
            .collect();
        Self { inner, threads, next: AtomicU64::new(0) }
    }
}

impl BlockDevice for Scattered {
    fn geometry(&self) -> DeviceGeometry {
        self.inner.geometry()
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        for request in batch.drain(..) {
            let thread = self.next.fetch_add(7, Ordering::Relaxed) / 3 % 4;
            match self.threads.get(thread as usize) {
                Some(thread) => thread.send(request).expect("thread"),
                None => self.inner.submit(&mut vec![request]),
            }
        }
    }
}

#[test]
fn a_read_that_takes_a_second_holds_up_nothing_on_its_queue() {
    let device = Holding::new(|r| r.op == Op::Read && r.start.0 == 4096);
    let bench = Bench::new(device.clone(), ServerOptions::default());
    let (_front, mut queues) = bench.start(Setup::default());
    let queue = &mut queues[0];
    queue.request(1, IN, 4096, &[1; 4096]);
    device.wait(1);
    let (start, mut others) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(1) {
        assert_eq!(queue.run(if others % 2 == 0 { OUT } else { IN }, 0, &mut [2; 4096]), 0);
        others += 1;
    }
    assert!(others > 1000, "only {others} requests in a second");
    device.release();
    let finished = queue.finished(PATIENCE).expect("the slow read");
    assert_eq!((finished.slot, finished.status, finished.len), (1, 0, 4097));
    assert_eq!(queue.data(1, 4096), [0; 4096]);
}

#[test]
fn a_guest_that_reboots_sets_its_rings_up_again_and_finds_its_data() {
    let bench = Bench::new(ram(), ServerOptions::default());
    let (front, memory, mut queues) = FrontEnd::start(&bench.path, Setup { queues: 2, ..Setup::default() }).expect("start");
    for boot in 1..=10u8 {
        for queue in &mut queues {
            assert_eq!(queue.run(OUT, 64, &mut [boot; 4096]), 0);
        }
        for queue in &queues {
            assert_eq!(front.stop_queue(queue.index()).expect("base"), queue.offered());
        }
        for index in 0..2 {
            memory.put(usize::from(index) * (2 << 20), &[0; 64 << 10]);
            queues[usize::from(index)] = DriverQueue::new(index, 128, memory.clone(), true).expect("queue");
            front.start_queue(&queues[usize::from(index)], 0).expect("start");
            let mut back = [0; 4096];
            assert_eq!(queues[usize::from(index)].run(IN, 64, &mut back), 0);
            assert_eq!(back, [boot; 4096]);
        }
    }
}

#[test]
fn a_paused_ring_goes_on_where_it_stood() {
    let bench = Bench::new(ram(), ServerOptions::default());
    let (front, mut queues) = bench.start(Setup { queue_size: 8, ..Setup::default() });
    for round in 1..=40u16 {
        assert_eq!(queues[0].run(OUT, 0, &mut [1; 512]), 0);
        let base = front.stop_queue(0).expect("base");
        assert_eq!(base, 2 * round - 1);
        // Offered and kicked while nobody serves it.
        queues[0].request(0, IN, 0, &[0; 512]);
        front.start_queue(&queues[0], base).expect("start");
        assert_eq!(queues[0].finished(PATIENCE).expect("served after the pause").status, 0);
    }
}

#[test]
fn guests_with_and_without_event_indexes_miss_no_interrupt() {
    let bench = Bench::new(Arc::new(Scattered::new(ram())), ServerOptions::default());
    for features in [u64::MAX, !EVENT_IDX] {
        let (front, mut queues) = bench.start(Setup { queue_size: 64, features, ..Setup::default() });
        assert_eq!(front.features & EVENT_IDX, features & EVENT_IDX & (1 << 29));
        let queue = &mut queues[0];
        let mut random = StdRng::seed_from_u64(5);
        // 70,000 requests: the free-running indexes wrap. `finished` sleeps on the interrupt alone.
        let mut left = 70_000u32;
        while left > 0 {
            let burst = random.random_range(1..=queue.slots()).min(left.min(1000) as u16);
            for slot in 0..burst {
                queue.prepare(slot, IN, u64::from(slot), &[0; 512]);
                queue.offer(3 * slot);
            }
            queue.publish_all();
            for _ in 0..burst {
                assert_eq!(queue.finished(PATIENCE).expect("an interrupt").status, 0);
            }
            left -= u32::from(burst);
        }
    }
}

#[test]
fn a_guest_that_offers_the_next_request_at_once_is_never_left_waiting_for_a_kick() {
    let bench = Bench::new(ram(), ServerOptions::default());
    for features in [u64::MAX, !EVENT_IDX] {
        let (_front, mut queues) = bench.start(Setup { features, ..Setup::default() });
        let (queue, start, mut done) = (&mut queues[0], Instant::now(), 0u64);
        // The answer is seen by spinning: the next request arrives while the server is on its way to sleep.
        while start.elapsed() < Duration::from_secs(1) {
            queue.request(0, GET_ID, 0, &[0; 20]);
            let asked = Instant::now();
            while queue.pop().is_none() {
                assert!(asked.elapsed() < PATIENCE, "request {done} was forgotten");
                std::hint::spin_loop();
            }
            (0..done % 61).for_each(|_| std::hint::spin_loop());
            done += 1;
        }
        assert!(done > 1000, "only {done} requests");
    }
}

#[test]
fn by_default_the_guest_sees_write_back_and_each_flush_arrives_while_no_write_is_forced() {
    let disk = ram();
    let bench = Bench::new(disk.clone(), ServerOptions::default());
    let (front, mut queues) = bench.start(Setup::default());
    assert_eq!(front.config(32, 1).expect("config"), [1]);
    for _ in 0..7 {
        assert_eq!(queues[0].run(OUT, 0, &mut [1; 512]), 0);
        assert_eq!(queues[0].run(FLUSH, 0, &mut []), 0);
    }
    assert_eq!((disk.flushes(), disk.forced_writes()), (7, 0));
    assert_eq!(bench.server.counters().flush.requests, 7);
}

#[test]
fn a_guest_that_chooses_write_through_has_every_write_forced_until_it_chooses_back() {
    let disk = ram();
    let bench = Bench::new(disk.clone(), ServerOptions::default());
    let (front, mut queues) = bench.start(Setup::default());
    front.set_config(32, &[0]).expect("write through");
    assert_eq!(queues[0].run(OUT, 0, &mut [1; 512]), 0);
    assert_eq!((disk.forced_writes(), front.config(32, 1).expect("config")), (1, vec![0]));
    drop((front, queues));
    // A front end that comes back (its guest still believes in write-through) finds it so.
    let (front, mut queues) = bench.start(Setup::default());
    assert_eq!(front.config(0x120, 1).expect("config"), [0]);
    assert_eq!(queues[0].run(OUT, 0, &mut [1; 512]), 0);
    assert_eq!(disk.forced_writes(), 2);
    front.set_config(0x120, &[1]).expect("write back");
    assert_eq!(queues[0].run(OUT, 0, &mut [1; 512]), 0);
    assert_eq!(disk.forced_writes(), 2);
    assert!(bench.server.counters().write_back);
}

#[test]
fn a_guest_that_cannot_flush_has_every_write_forced() {
    let disk = ram();
    let bench = Bench::new(disk.clone(), ServerOptions::default());
    for features in [!F_FLUSH, !(F_FLUSH | CONFIG_WCE)] {
        let (_front, mut queues) = bench.start(Setup { features, ..Setup::default() });
        assert_eq!(queues[0].run(OUT, 0, &mut [1; 512]), 0);
    }
    assert_eq!(disk.forced_writes(), 2);
    let (_front, mut queues) = bench.start(Setup { features: !CONFIG_WCE, ..Setup::default() });
    assert_eq!(queues[0].run(OUT, 0, &mut [1; 512]), 0);
    assert_eq!(disk.forced_writes(), 2, "it can flush");
}

#[test]
fn without_a_write_cache_every_write_is_forced() {
    let disk = ram();
    let bench = Bench::new(disk.clone(), ServerOptions { write_cache: false, ..ServerOptions::default() });
    for features in [u64::MAX, !CONFIG_WCE] {
        let (front, mut queues) = bench.start(Setup { features, ..Setup::default() });
        assert_eq!(front.config(32, 1).expect("config"), [0]);
        assert_eq!(queues[0].run(OUT, 0, &mut [1; 512]), 0);
    }
    assert_eq!(disk.forced_writes(), 2);
}

#[test]
fn a_front_end_without_protocol_features_is_served_too() {
    let bench = Bench::new(ram(), ServerOptions::default());
    let (_front, mut queues) = bench.start(Setup { features: !(1 << 30), ..Setup::default() });
    assert_eq!(queues[0].run(OUT, 0, &mut [1; 512]), 0);
}

#[test]
fn a_read_only_disk_refuses_every_change_and_tells_its_serial() {
    let serial = "serial-0123456789-and-more".to_owned();
    let geometry = DeviceGeometry { sectors: SectorCount(64), physical_block: 4096, optimal_io: 4096, read_only: true, serial };
    let bench = Bench::new(Arc::new(RamDisk::with_geometry(geometry)), ServerOptions::default());
    let (front, mut queues) = bench.start(Setup::default());
    assert_ne!(front.features & (1 << 5), 0);
    assert_eq!(queues[0].run(IN, 0, &mut [0; 512]), 0);
    assert_eq!(queues[0].run(OUT, 0, &mut [0; 512]), 1);
    assert_eq!(queues[0].run(DISCARD, 0, &mut range(0, 8, 0)), 1);
    assert_eq!(queues[0].run(WRITE_ZEROES, 0, &mut range(0, 8, 0)), 1);
    let mut id = [0xff; 20];
    assert_eq!(queues[0].run(GET_ID, 0, &mut id), 0);
    assert_eq!(&id, b"serial-0123456789-an");
}

#[test]
fn several_queues_agree_with_a_model_whoever_answers() {
    for scattered in [false, true] {
        let disk = ram();
        let device: Arc<dyn BlockDevice> = if scattered { Arc::new(Scattered::new(disk)) } else { disk };
        let bench = Bench::new(device, ServerOptions::default());
        let (_front, mut queues) = bench.start(Setup { queues: 4, ..Setup::default() });
        let mut random = StdRng::seed_from_u64(1);
        let mut model = vec![0u8; (SECTORS * 512) as usize];
        let slots = queues[0].slots().min(16);
        // Each slot works in a part of the disk of its own, so that requests in flight never overlap.
        let part = SECTORS / (4 * u64::from(slots));
        for _ in 0..400 {
            let mut expected = Vec::new();
            for queue in &mut queues {
                for slot in 0..slots {
                    let first = (u64::from(queue.index()) * u64::from(slots) + u64::from(slot)) * part;
                    let sectors = random.random_range(1..=(part).min(64));
                    let sector = first + random.random_range(0..=part - sectors);
                    let bytes = (sector * 512) as usize..((sector + sectors) * 512) as usize;
                    let (kind, data) = match random.random_range(0..10) {
                        0..4 => (IN, vec![0xcc; bytes.len()]),
                        4..8 => {
                            let mut data = vec![0; bytes.len()];
                            random.fill(&mut data[..]);
                            model[bytes.clone()].copy_from_slice(&data);
                            (OUT, data)
                        }
                        kind => {
                            model[bytes.clone()].fill(0);
                            let kind = if kind == 8 { DISCARD } else { WRITE_ZEROES };
                            (kind, range(sector, sectors as u32, 0).to_vec())
                        }
                    };
                    if random.random_bool(0.5) {
                        queue.prepare(slot, kind, sector, &data);
                    } else {
                        queue.prepare_indirect(slot, kind, sector, &data, random.random_range(1..9));
                    }
                    queue.offer(3 * slot);
                    expected.push((kind, bytes));
                }
                queue.publish_all();
            }
            for (number, queue) in queues.iter_mut().enumerate() {
                for _ in 0..slots {
                    let finished = queue.finished(PATIENCE).expect("answer");
                    assert_eq!(finished.status, 0);
                    let (kind, bytes) = &expected[number * usize::from(slots) + usize::from(finished.slot)];
                    if *kind == IN {
                        assert!(queue.data(finished.slot, bytes.len()) == model[bytes.clone()], "wrong bytes at {bytes:?}");
                        assert_eq!(finished.len as usize, bytes.len() + 1);
                    }
                }
            }
        }
    }
}

#[test]
fn a_stop_waits_for_writes_in_flight_and_removes_the_socket() {
    let device = Holding::new(|r| matches!(r.op, Op::Write { .. }));
    let bench = Bench::new(device.clone(), ServerOptions::default());
    let (_front, mut queues) = bench.start(Setup::default());
    queues[0].request(0, OUT, 0, &[5; 512]);
    device.wait(1);
    let releaser = std::thread::spawn({
        let device = device.clone();
        move || {
            std::thread::sleep(Duration::from_millis(100));
            device.release();
        }
    });
    assert_eq!(bench.server.stop(), Drained::Clean);
    assert_eq!(queues[0].pop(), Some((0, 1)), "the answer reached the guest before the connection closed");
    assert!(!bench.path.exists());
    releaser.join().expect("releaser");
}

#[test]
fn a_stop_gives_up_at_its_deadline_and_late_reads_no_longer_reach_the_guest() {
    let device = Holding::new(|r| r.op == Op::Read);
    let options = ServerOptions { drain_timeout: Duration::from_millis(200), ..ServerOptions::default() };
    let bench = Bench::new(device.clone(), options);
    let (_front, mut queues) = bench.start(Setup::default());
    queues[0].request(0, IN, 0, &[5; 512]);
    device.wait(1);
    let start = Instant::now();
    assert_eq!(bench.server.stop(), Drained::Unanswered(1));
    assert!(start.elapsed() < Duration::from_secs(2));
    device.release();
    assert_eq!((queues[0].data(0, 512), queues[0].pop()), (vec![5; 512], None));
}

#[test]
fn the_next_front_end_waits_until_the_writes_of_the_last_one_are_answered() {
    let device = Holding::new(|r| matches!(r.op, Op::Write { .. }) && r.start.0 == 0);
    let bench = Bench::new(device.clone(), ServerOptions::default());
    let (front, mut queues) = bench.start(Setup::default());
    queues[0].request(0, OUT, 0, &[1; 512]);
    device.wait(1);
    drop((front, queues));
    let served = Arc::new(AtomicBool::new(false));
    let next = std::thread::spawn({
        let (path, served) = (bench.path.clone(), served.clone());
        move || {
            let (_front, _, mut queues) = FrontEnd::start(path, Setup::default()).expect("start");
            served.store(true, Ordering::SeqCst);
            let mut data = [0; 512];
            assert_eq!(queues[0].run(IN, 0, &mut data), 0);
            data
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    assert!(!served.load(Ordering::SeqCst), "the old write could still land on top of a new one");
    device.release();
    assert_eq!(next.join().expect("next"), [1; 512]);
    assert_eq!(bench.server.counters().refused, 0);
}

#[test]
fn a_second_front_end_is_refused_and_a_third_one_served_after_the_first_has_gone() {
    let bench = Bench::new(ram(), ServerOptions::default());
    let (first, queues) = bench.start(Setup::default());
    let second = FrontEnd::connect(&bench.path).expect("connect");
    assert!(second.is_closed_within(PATIENCE));
    assert_eq!(bench.server.counters().refused, 1);
    drop((first, queues));
    let (_third, mut queues) = bench.start(Setup::default());
    assert_eq!(queues[0].run(IN, 0, &mut [0; 512]), 0);
}

struct Panicking {
    inner: RamDisk,
}

impl BlockDevice for Panicking {
    fn geometry(&self) -> DeviceGeometry {
        self.inner.geometry()
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        assert!(batch.iter().all(|r| r.op != Op::Flush), "a planted panic");
        self.inner.submit(batch);
    }
}

#[test]
fn a_device_that_panics_loses_its_connection_and_nothing_else() {
    let bench = Bench::new(Arc::new(Panicking { inner: RamDisk::new(SectorCount(64)) }), ServerOptions::default());
    for panics in 1..=3 {
        let (front, mut queues) = bench.start(Setup::default());
        assert_eq!(queues[0].run(IN, 0, &mut [0; 512]), 0);
        queues[0].request(0, FLUSH, 0, &[]);
        assert_eq!(queues[0].finished(PATIENCE).expect("the dropped request is answered").status, 1);
        assert!(front.is_closed_within(PATIENCE));
        assert_eq!(bench.server.counters().panics, panics);
    }
}

struct Growing {
    inner: RamDisk,
    grown: AtomicBool,
}

impl BlockDevice for Growing {
    fn geometry(&self) -> DeviceGeometry {
        let sectors = SectorCount(if self.grown.load(Ordering::Relaxed) { 128 } else { 64 });
        DeviceGeometry { sectors, ..self.inner.geometry() }
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        self.inner.submit(batch);
    }
}

#[test]
fn a_disk_that_grew_serves_its_new_sectors() {
    let device = Arc::new(Growing { inner: RamDisk::new(SectorCount(128)), grown: AtomicBool::new(false) });
    let bench = Bench::new(device.clone(), ServerOptions::default());
    let (front, mut queues) = bench.start(Setup::default());
    assert_eq!(queues[0].run(IN, 64, &mut [0; 512]), 1);
    device.grown.store(true, Ordering::Relaxed);
    assert_eq!(queues[0].run(IN, 64, &mut [0; 512]), 0);
    assert_eq!(front.config(0, 8).expect("config"), 128u64.to_le_bytes());
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("made/by/us/disk.sock");
    let bind = || Server::bind(&path, ram(), ServerOptions::default());
    std::fs::create_dir(dir.path().join("made")).expect("dir");
    let server = bind().expect("server");
    let mode = |p: &std::path::Path| std::fs::metadata(p).expect("metadata").permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().expect("parent"))), (0o660, 0o750));
    assert!(matches!(bind(), Err(ServerError::InUse { .. })), "a live socket");
    assert!(UnixStream::connect(&path).is_ok());
    server.stop();
    assert!(!path.exists());
    drop(UnixListener::bind(&path).expect("a socket nobody listens on"));
    assert!(std::fs::symlink_metadata(&path).expect("left behind").file_type().is_socket());
    let server = bind().expect("stale socket replaced");
    std::fs::remove_file(&path).expect("remove");
    std::fs::write(&path, "precious").expect("somebody else's file");
    server.stop();
    assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
    assert!(matches!(bind(), Err(ServerError::InUse { .. })));
}

#[test]
fn only_allowed_users_are_served() {
    let stranger = 54_321;
    let try_as = |path: PathBuf| {
        std::thread::spawn(move || {
            // SAFETY: the raw call changes the effective user of this thread only, which ends here.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1i64, i64::from(stranger), -1i64) };
            assert_eq!(changed, 0, "this test needs root");
            FrontEnd::start(path, Setup::default()).is_ok()
        })
        .join()
        .expect("thread")
    };
    for allowed in [false, true] {
        let uids = if allowed { vec![7, stranger as u32] } else { vec![7] };
        let bench = Bench::new(ram(), ServerOptions { allowed_uids: uids, ..ServerOptions::default() });
        std::fs::set_permissions(bench.path.parent().expect("dir"), PermissionsExt::from_mode(0o755)).expect("open");
        std::fs::set_permissions(&bench.path, PermissionsExt::from_mode(0o666)).expect("open");
        assert_eq!(try_as(bench.path.clone()), allowed);
        assert_eq!(bench.server.counters().refused, u64::from(!allowed));
    }
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

#[test]
fn an_idle_connection_uses_no_cpu_even_when_it_polls() {
    let dir = tempfile::tempdir().expect("dir");
    let options = ServerOptions { poll: Duration::from_millis(1), ..ServerOptions::default() };
    let server = Server::bind(dir.path().join("idle.sock"), ram(), options).expect("server");
    let (_front, _, mut queues) = FrontEnd::start(server.path(), Setup { queues: 4, ..Setup::default() }).expect("start");
    for _ in 0..1000 {
        for queue in &mut queues {
            assert_eq!(queue.run(IN, 0, &mut [0; 512]), 0);
        }
    }
    std::thread::sleep(Duration::from_millis(20));
    let before = cpu_time("vblk-idle");
    assert!(before > Duration::from_millis(1), "the threads that worked are the ones measured");
    std::thread::sleep(Duration::from_millis(500));
    assert!(cpu_time("vblk-idle") - before < Duration::from_millis(1));
}

#[test]
fn a_front_end_that_stops_in_the_middle_of_a_message_is_cut_off_and_hinders_nobody() {
    let dir = tempfile::tempdir().expect("dir");
    let bind = |name: &str| Server::bind(dir.path().join(name), ram(), ServerOptions::default()).expect("server");
    let (slow_header, slow_body, honest, stopped) = (bind("a"), bind("b"), bind("c"), bind("d"));
    let header = FrontEnd::connect(slow_header.path()).expect("connect");
    header.send_bytes(&[1, 0, 0, 0, 1], &[]).expect("half a header");
    let body = FrontEnd::connect(slow_body.path()).expect("connect");
    body.send_claiming(message::SET_FEATURES, VERSION, 8, &[], &[]).expect("no body");
    let waiting = FrontEnd::connect(stopped.path()).expect("connect");
    waiting.send_bytes(&[1, 0, 0, 0, 1], &[]).expect("half a header");
    std::thread::sleep(Duration::from_millis(20));
    let (_front, _, mut queues) = FrontEnd::start(honest.path(), Setup::default()).expect("start");
    assert_eq!(queues[0].run(IN, 0, &mut [0; 512]), 0);
    let start = Instant::now();
    stopped.stop();
    assert!(start.elapsed() < Duration::from_secs(1), "half a message must not hold up a stop");
    assert!(header.is_closed_within(PATIENCE) && body.is_closed_within(PATIENCE));
    assert_eq!((slow_header.counters().protocol_errors, slow_body.counters().protocol_errors), (1, 1));
}
