//! The pacer on a clock that the tests move: what goes through at once, what waits and for how long, and that nothing waits for ever.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lamina_contract::clock::ManualClock;
use lamina_contract::{
    BlockDevice, Clock, DeviceGeometry, IoError, Lba, Op, Request, SectorCount, Timestamp, Transfer, Transferable,
};
use parking_lot::Mutex;
use proptest::prelude::{Strategy, any, prop_assert, proptest};
use proptest::prop_oneof;

use crate::{HeldCounters, Limits, Paced, Pacer};

const READ: Op = Op::Read;
const WRITE: Op = Op::Write { fua: false };
/// Sectors of 4 KiB.
const SMALL: u64 = 8;

/// Answers by request, as they came.
type Answers = Arc<Mutex<Vec<(u64, Result<(), IoError>)>>>;

struct Guest {
    id: u64,
    answers: Answers,
}

impl Transferable for Guest {
    fn len(&self) -> usize {
        0
    }

    fn copy_out(&self, _: usize, _: &mut [u8]) -> Result<(), IoError> {
        Err(IoError::GuestMemory)
    }

    fn copy_in(&self, _: usize, _: &[u8]) -> Result<(), IoError> {
        Err(IoError::GuestMemory)
    }

    fn fill_zero(&self, _: usize, _: usize) -> Result<(), IoError> {
        Err(IoError::GuestMemory)
    }

    fn answer(self: Box<Self>, result: Result<(), IoError>) {
        self.answers.lock().push((self.id, result));
    }
}

/// What arrived at the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Arrival {
    ms: u64,
    id: u64,
    bytes: u64,
}

/// Notes what arrives and answers it.
struct Recorder {
    clock: Arc<dyn Clock>,
    arrivals: Mutex<Vec<Arrival>>,
    last_batch: AtomicUsize,
    panics: AtomicBool,
    /// How long it goes on with a batch that it has answered.
    delay_us: AtomicU64,
}

impl BlockDevice for Recorder {
    fn geometry(&self) -> DeviceGeometry {
        let serial = "recorder".to_owned();
        DeviceGeometry { sectors: SectorCount(1 << 30), physical_block: 4096, optimal_io: 4096, read_only: false, serial }
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        assert!(!self.panics.load(Ordering::Relaxed), "a planted panic");
        self.last_batch.store(std::ptr::from_ref(batch).addr(), Ordering::Relaxed);
        for request in batch.drain(..) {
            let arrival = Arrival { ms: self.clock.monotonic_ms(), id: request.start.0, bytes: request.sectors.bytes() };
            self.arrivals.lock().push(arrival);
            request.transfer.answer(Ok(()));
        }
        std::thread::sleep(Duration::from_micros(self.delay_us.load(Ordering::Relaxed)));
    }
}

struct Bench {
    clock: Arc<ManualClock>,
    device: Arc<Recorder>,
    pacer: Pacer,
    paced: Arc<Paced>,
    answers: Answers,
    next: AtomicU64,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let clock = Arc::new(ManualClock::default());
        let device = recorder(clock.clone());
        let pacer = Pacer::new(clock.clone());
        let paced = pacer.pace(device.clone());
        paced.set_limits(limits);
        Self { clock, device, pacer, paced, answers: Answers::default(), next: AtomicU64::new(0) }
    }

    fn request(&self, op: Op, sectors: u64) -> Request {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        request(&self.answers, id, op, sectors)
    }

    fn submit(&self, count: usize, sectors: u64) {
        let mut batch = (0..count).map(|number| self.request(if number % 2 == 0 { READ } else { WRITE }, sectors)).collect();
        self.paced.submit(&mut batch);
        assert!(batch.is_empty());
    }

    fn arrived(&self) -> usize {
        self.device.arrivals.lock().len()
    }

    fn ids(&self) -> Vec<u64> {
        self.device.arrivals.lock().iter().map(|arrival| arrival.id).collect()
    }

    /// Lets time pass, looking after every `step`.
    fn pass(&self, ms: u64, step: u64) {
        for _ in 0..ms / step {
            self.clock.advance(step);
            self.pacer.release();
        }
    }

    /// A guest that keeps `depth` requests in flight for a minute; what arrived after the first second.
    fn a_minute(&self, depth: usize, step: u64, sectors: impl Fn(u64) -> u64) -> Vec<Arrival> {
        for _ in 0..61_000 / step {
            while self.next.load(Ordering::Relaxed) - (self.answers.lock().len() as u64) < depth as u64 {
                let next = self.next.load(Ordering::Relaxed);
                self.paced.submit(&mut vec![self.request(READ, sectors(next))]);
            }
            self.pass(step, step);
        }
        self.device.arrivals.lock().iter().filter(|arrival| arrival.ms > 1000).copied().collect()
    }
}

fn recorder(clock: Arc<dyn Clock>) -> Arc<Recorder> {
    let (arrivals, last_batch, panics) = (Mutex::default(), AtomicUsize::new(0), AtomicBool::new(false));
    Arc::new(Recorder { clock, arrivals, last_batch, panics, delay_us: AtomicU64::new(0) })
}

fn request(answers: &Answers, id: u64, op: Op, sectors: u64) -> Request {
    let transfer = Transfer::new(Box::new(Guest { id, answers: answers.clone() }));
    Request { op, start: Lba(id), sectors: SectorCount(sectors), transfer }
}

fn limits(iops: u64, bandwidth: u64, burst_ms: u64) -> Limits {
    let burst = Some(Duration::from_millis(burst_ms));
    Limits { iops: NonZeroU64::new(iops), bandwidth: NonZeroU64::new(bandwidth), burst }
}

fn assert_within_2_percent(what: &str, got: u64, wanted: u64) {
    assert!(got * 100 >= wanted * 98 && got * 100 <= wanted * 102, "{what}: {got}, not {wanted}");
}

#[test]
fn requests_per_second_hold_over_a_minute() {
    for (iops, step) in [(7, 1), (100, 2), (1_000, 3), (33_333, 2)] {
        let bench = Bench::new(limits(iops, 0, 100));
        let arrivals = bench.a_minute(256, step, |_| SMALL);
        assert_within_2_percent("requests", arrivals.len() as u64, 60 * iops);
    }
}

#[test]
fn bytes_per_second_hold_over_a_minute_for_sizes_below_and_above_the_bucket() {
    for (bandwidth, sectors) in [(1_000_000, SMALL), (1 << 20, 256), (100 << 20, 128), (10_000_000, 8192)] {
        let bench = Bench::new(limits(0, bandwidth, 100));
        let bytes = bench.a_minute(64, 2, |_| sectors).iter().map(|arrival| arrival.bytes).sum();
        assert_within_2_percent("bytes", bytes, 60 * bandwidth);
    }
}

#[test]
fn of_two_limits_the_tighter_one_holds_whatever_the_sizes() {
    let mixed = |next: u64| [1, 8, 8, 64, 2048][(next % 5) as usize];
    // 2129 sectors in five requests: 218 KB each on average.
    for (iops, bandwidth, tight) in [(50, 1 << 30, "iops"), (100_000, 10_000_000, "bandwidth")] {
        let bench = Bench::new(limits(iops, bandwidth, 200));
        let arrivals = bench.a_minute(64, 2, mixed);
        let bytes: u64 = arrivals.iter().map(|arrival| arrival.bytes).sum();
        match tight {
            "iops" => assert_within_2_percent(tight, arrivals.len() as u64, 60 * iops),
            _ => assert_within_2_percent(tight, bytes, 60 * bandwidth),
        }
        assert!(arrivals.len() as u64 <= 61 * iops && bytes <= 61 * bandwidth);
    }
}

#[test]
fn a_burst_is_what_was_configured_and_no_more() {
    let bench = Bench::new(limits(1000, 0, 500));
    bench.submit(800, SMALL);
    assert_eq!(bench.arrived(), 500);
    bench.pass(100, 1);
    assert_eq!(bench.arrived(), 600);
    // Long after everything went, it is whole again, once.
    bench.pass(10_000, 1);
    assert_eq!(bench.arrived(), 800);
    bench.submit(800, SMALL);
    assert_eq!(bench.arrived(), 800 + 500);
    assert_eq!(bench.paced.counters().waiting, 300);
}

#[test]
fn without_a_word_about_it_a_burst_is_a_tenth_of_a_second() {
    let bench = Bench::new(Limits { burst: None, ..limits(1000, 0, 1) });
    bench.submit(300, SMALL);
    assert_eq!(bench.arrived(), 100);
}

#[test]
fn other_limits_hold_at_once_for_what_waits() {
    let bench = Bench::new(limits(10, 0, 100));
    bench.submit(401, SMALL);
    assert_eq!(bench.arrived(), 1);
    assert_eq!(bench.pacer.release(), Some(100));
    bench.paced.set_limits(limits(1000, 0, 100));
    assert_eq!(bench.pacer.release(), Some(1), "the bucket is as empty as it was");
    bench.pass(200, 1);
    assert_eq!(bench.arrived(), 201);
    bench.paced.set_limits(limits(5, 0, 100));
    bench.pass(1000, 1);
    assert_eq!(bench.arrived(), 206);
    bench.paced.set_limits(Limits::default());
    assert_eq!(bench.ids(), (0..401).collect::<Vec<_>>());
    assert_eq!((bench.pacer.release(), bench.paced.limits()), (None, Limits::default()));
}

#[test]
fn requests_go_in_the_order_they_came_and_a_large_one_is_not_starved_by_small_ones() {
    let bench = Bench::new(limits(0, 1_000_000, 10));
    bench.submit(10, SMALL);
    bench.submit(1, 8192);
    let mut waited = 0;
    while !bench.ids().contains(&10) {
        bench.submit(3, SMALL);
        bench.pass(1, 1);
        waited += 1;
        assert!(waited < 60, "10 small ones and a full bucket take 51 ms");
    }
    bench.paced.set_limits(Limits::default());
    let ids = bench.ids();
    assert_eq!(ids, (0..ids.len() as u64).collect::<Vec<_>>());
}

#[test]
fn a_flush_is_never_held_and_costs_nothing() {
    let bench = Bench::new(limits(10, 1, 100));
    bench.submit(20, SMALL);
    let before = bench.arrived();
    for _ in 0..100 {
        bench.paced.submit(&mut vec![bench.request(Op::Flush, 0)]);
    }
    assert_eq!(bench.arrived(), before + 100);
    assert_eq!(bench.paced.counters().held, 20 - before as u64);
    // A batch keeps its order around them.
    let bench = Bench::new(limits(20, 0, 100));
    let mut batch: Vec<_> = [WRITE, Op::Flush, WRITE, Op::Flush, WRITE].into_iter().map(|op| bench.request(op, SMALL)).collect();
    bench.paced.submit(&mut batch);
    assert_eq!(bench.ids(), [0, 1, 2, 3]);
}

#[test]
fn discards_and_write_zeroes_count_as_requests_and_not_as_bytes() {
    let bench = Bench::new(limits(0, 4096, 1000));
    for op in [Op::Discard, Op::WriteZeroes { unmap: true }] {
        bench.paced.submit(&mut vec![bench.request(op, 1 << 20)]);
    }
    bench.submit(2, SMALL);
    assert_eq!(bench.arrived(), 3);
    let bench = Bench::new(limits(10, 0, 200));
    bench.paced.submit(&mut (0..5).map(|_| bench.request(Op::Discard, 1 << 20)).collect());
    assert_eq!(bench.arrived(), 2);
}

#[test]
fn what_was_held_is_counted_with_how_long() {
    let bench = Bench::new(limits(100, 0, 10));
    bench.submit(4, SMALL);
    assert_eq!(bench.paced.counters(), HeldCounters { held: 3, held_us: 0, waiting: 3 });
    bench.pass(100, 1);
    assert_eq!(bench.paced.counters(), HeldCounters { held: 3, held_us: 10_000 + 20_000 + 30_000, waiting: 0 });
}

#[test]
fn without_limits_a_batch_is_handed_through_as_it_is() {
    let bench = Bench::new(Limits::default());
    let hands_through = |bench: &Bench| {
        let mut batch = vec![bench.request(READ, SMALL)];
        bench.paced.submit(&mut batch);
        bench.device.last_batch.load(Ordering::Relaxed) == std::ptr::from_ref(&batch).addr()
    };
    assert!(hands_through(&bench));
    bench.paced.set_limits(limits(10, 0, 100));
    assert!(!hands_through(&bench));
    bench.submit(10, SMALL);
    bench.paced.set_limits(Limits::default());
    assert!(hands_through(&bench), "again, once nothing is left of them");
}

#[test]
fn halting_dropping_and_stopping_answer_everything_that_waits() {
    let bench = Bench::new(limits(10, 0, 100));
    bench.submit(20, SMALL);
    bench.paced.halt();
    let count = |bench: &Bench, wanted| bench.answers.lock().iter().filter(|(_, result)| *result == wanted).count();
    assert_eq!((count(&bench, Ok(())), count(&bench, Err(IoError::Halted))), (1, 19));
    bench.submit(5, SMALL);
    assert_eq!(bench.arrived(), 6, "from now on the device itself refuses");

    let Bench { paced, answers, pacer, .. } = Bench::new(limits(10, 0, 100));
    paced.submit(&mut (0..20).map(|id| request(&answers, id, WRITE, SMALL)).collect());
    drop(paced);
    assert_eq!(answers.lock().iter().filter(|(_, result)| *result == Err(IoError::Io)).count(), 19);
    assert_eq!(pacer.release(), None);

    let bench = Bench::new(limits(10, 0, 100));
    bench.submit(20, SMALL);
    bench.pacer.stop();
    assert_eq!((count(&bench, Ok(())), bench.ids()), (20, (0..20).collect()));
    bench.paced.set_limits(limits(10, 0, 100));
    bench.submit(20, SMALL);
    assert_eq!(count(&bench, Ok(())), 40, "nobody would let them go");
}

#[test]
fn a_device_that_panics_answers_with_errors_and_holds_up_no_other() {
    let bench = Bench::new(limits(10, 0, 100));
    let other = recorder(bench.clock.clone());
    let neighbour = bench.pacer.pace(other.clone());
    neighbour.set_limits(limits(10, 0, 100));
    bench.submit(20, SMALL);
    neighbour.submit(&mut (0..20).map(|id| request(&bench.answers, 1000 + id, READ, SMALL)).collect());
    bench.device.panics.store(true, Ordering::Relaxed);
    bench.pass(500, 100);
    let failed = bench.answers.lock().iter().filter(|(id, result)| *id < 20 && *result == Err(IoError::Io)).count();
    assert_eq!((failed, other.arrivals.lock().len()), (19, 6));
    // It is still under its limits, and may work again.
    bench.device.panics.store(false, Ordering::Relaxed);
    bench.pass(1000, 100);
    bench.submit(3, SMALL);
    assert_eq!(bench.paced.counters().waiting, 2);
    bench.pass(200, 100);
    assert_eq!(bench.paced.counters().waiting, 0);
}

/// Runs by itself.
struct RealClock(Instant);

impl Clock for RealClock {
    fn wall(&self) -> Timestamp {
        Timestamp(0)
    }

    fn monotonic_ms(&self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }
}

#[test]
fn each_queue_keeps_its_order_and_gets_every_answer_while_limits_come_and_go() {
    const QUEUES: u64 = 4;
    const DEPTH: u64 = 8;
    let clock = Arc::new(RealClock(Instant::now()));
    let device = recorder(clock.clone());
    let pacer = Pacer::new(clock);
    pacer.start().expect("a thread");
    let paced = pacer.pace(device.clone());
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let queues: Vec<_> = (0..QUEUES)
            .map(|queue| {
                let (paced, stop) = (&paced, &stop);
                scope.spawn(move || {
                    let (answers, mut sent) = (Answers::default(), 0);
                    while !stop.load(Ordering::Relaxed) {
                        let room = DEPTH - (sent - answers.lock().len() as u64);
                        let mut batch = (0..room).map(|more| request(&answers, queue << 32 | (sent + more), WRITE, 1)).collect();
                        sent += room;
                        paced.submit(&mut batch);
                    }
                    (answers, sent)
                })
            })
            .collect();
        let steps =
            [limits(2000, 0, 10), Limits::default(), limits(50_000, 1 << 24, 10), limits(100_000, 0, 20), Limits::default()];
        for step in 0..200 {
            paced.set_limits(steps[step % steps.len()]);
            std::thread::sleep(Duration::from_millis(3));
        }
        stop.store(true, Ordering::Relaxed);
        queues.into_iter().map(|queue| queue.join().expect("a queue")).collect::<Vec<_>>()
    });
    pacer.stop();
    let mut next: HashMap<u64, u64> = HashMap::new();
    for arrival in device.arrivals.lock().iter() {
        let expected = next.entry(arrival.id >> 32).or_default();
        assert_eq!(arrival.id & 0xffff_ffff, *expected, "queue {}", arrival.id >> 32);
        *expected += 1;
    }
    for (queue, (answers, sent)) in sent.iter().enumerate() {
        assert!(*sent > 100 && answers.lock().len() as u64 == *sent && next.get(&(queue as u64)) == Some(sent));
    }
    assert!(paced.counters().held > 0);
}

#[test]
fn a_busy_guest_whose_limits_are_lifted_is_soon_held_by_nothing() {
    let clock = Arc::new(RealClock(Instant::now()));
    let device = recorder(clock.clone());
    // While one batch is being accepted, those who have their answers already send the next requests.
    device.delay_us.store(2000, Ordering::Relaxed);
    let pacer = Pacer::new(clock);
    pacer.start().expect("a thread");
    let paced = pacer.pace(device);
    paced.set_limits(limits(1000, 0, 10));
    let (stop, lifted) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (answers, mut sent) = (Answers::default(), 0);
                while !stop.load(Ordering::Relaxed) {
                    if sent - (answers.lock().len() as u64) < 8 {
                        paced.submit(&mut vec![request(&answers, sent, READ, SMALL)]);
                        sent += 1;
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_millis(50));
        let before = paced.counters();
        scope.spawn(|| {
            paced.set_limits(Limits::default());
            lifted.store(true, Ordering::Relaxed);
        });
        std::thread::sleep(Duration::from_millis(300));
        let (in_time, then) = (lifted.load(Ordering::Relaxed), paced.counters());
        std::thread::sleep(Duration::from_millis(50));
        let later = paced.counters();
        stop.store(true, Ordering::Relaxed);
        assert!(in_time, "the line must come to an end although the guest goes on");
        assert!(before.waiting > 0 && then.waiting == 0 && later == then, "{before:?} {then:?} {later:?}");
    });
}

/// Some requests and the pause before each.
fn arrivals() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let pause = prop_oneof![8 => 0..3_u64, 2 => 0..50_u64, 1 => 0..2000_u64];
    let sectors = prop_oneof![6 => 1..16_u64, 2 => 16..256_u64, 1 => 256..8192_u64];
    proptest::collection::vec((pause, sectors), 1..200)
}

proptest! {
    #[test]
    fn in_any_window_no_more_is_admitted_than_its_rate_allows_and_one_burst(
        iops in 0..5000_u64,
        bandwidth in prop_oneof![0..100_000_u64, 0..50_000_000_u64],
        burst_ms in 10..2000_u64,
        step in 1..5_u64,
        arrivals in arrivals(),
        half in any::<bool>(),
    ) {
        let bench = Bench::new(limits(iops, bandwidth, burst_ms));
        for (pause, sectors) in &arrivals {
            bench.pass(*pause, if half { 1 } else { *pause + 1 });
            bench.clock.advance(if half { 0 } else { *pause });
            bench.submit(1, *sectors);
        }
        // What is left goes in time: nobody is forgotten.
        while let Some(ms) = bench.pacer.release() {
            prop_assert!(ms > 0, "it would have gone");
            bench.clock.advance(ms.min(step.max(ms / 2)));
        }
        let went = bench.device.arrivals.lock().clone();
        prop_assert!(went.len() == arrivals.len() && went.is_sorted_by_key(|arrival| arrival.id));
        let largest = went.iter().map(|arrival| arrival.bytes).max().unwrap_or(0);
        for (from, first) in went.iter().enumerate() {
            let (mut requests, mut bytes) = (0, 0);
            for last in &went[from..] {
                requests += 1;
                bytes += last.bytes;
                // Thousandths on both sides, so that the comparison is exact.
                let t = last.ms - first.ms;
                if iops > 0 {
                    let burst = (iops * burst_ms).max(1000);
                    prop_assert!(requests * 1000 <= iops * t + burst, "{requests} requests in {t} ms");
                }
                if bandwidth > 0 {
                    let burst = (bandwidth * burst_ms).max(largest * 1000);
                    prop_assert!(bytes * 1000 <= bandwidth * t + burst, "{bytes} bytes in {t} ms");
                }
            }
        }
    }
}
