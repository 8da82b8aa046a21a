//! A node with its own threads and tasks, under guests on threads of their own: overlapping sub-block writes, and a store that is down.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lamina_contract::{BlockDevice, IoError, Lba, Op, Request, SectorCount};
use lamina_engine::{Node, Volume};
use lamina_simulation::dice::Dice;
use lamina_simulation::fault::{Fault, When};
use lamina_simulation::life::{VolumeShape, name_of, spec_of};
use lamina_simulation::stamp::{Content, Place, SECTOR, paint, read};
use lamina_simulation::transfer::{Pending, transfer};
use support::devices::{Devices, runtime};
use support::small_volume;
use tokio::runtime::Runtime;

fn create(runtime: &Runtime, node: &Node, shape: &VolumeShape) -> Arc<Volume> {
    runtime.block_on(node.create(spec_of(0, shape))).expect("a healthy node creates")
}

fn submit(volume: &Volume, op: Op, sector: usize, bytes: Vec<u8>) -> Pending {
    let sectors = SectorCount((bytes.len() / SECTOR) as u64);
    let (transfer, pending) = transfer(bytes, |_| {});
    volume.submit(&mut vec![Request { op, start: Lba(sector as u64), sectors, transfer }]);
    pending
}

fn wait(pending: &Pending) -> Result<(), IoError> {
    let begun = Instant::now();
    loop {
        if let Some(answer) = pending.answer() {
            return answer;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "a request is not answered for a minute");
        std::thread::sleep(Duration::from_micros(50));
    }
}

const PLACE: fn(usize) -> Place = |sector| Place { volume: 0, sector, per_block: 8 };

fn painted(content: Content, sector: usize) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR];
    paint(content, PLACE(sector), &mut bytes);
    bytes
}

fn read_one(volume: &Volume, sector: usize) -> Content {
    let pending = submit(volume, Op::Read, sector, vec![0xee; SECTOR]);
    wait(&pending).expect("a healthy node reads");
    read(PLACE(sector), &pending.take_bytes()).expect("a stamp")
}

/// Thread `t` of 4 owns every fourth sector, so each block is everybody's; what it wrote last to each of its sectors is there.
#[test]
fn sub_block_writes_from_many_threads_do_not_undo_each_other() {
    const THREADS: usize = 4;
    const ROUNDS: u32 = 400;
    let shape = small_volume(6);
    let (devices, runtime) = (Devices::fresh(), runtime());
    let node = devices.open(&runtime);
    let volume = create(&runtime, &node, &shape);
    let sectors = shape.sectors();
    let guest = |thread: usize| {
        let (volume, mut dice) = (volume.clone(), Dice::new(thread as u64));
        let mut mine: Vec<(usize, Content)> = (thread..sectors).step_by(THREADS).map(|s| (s, Content::ZERO)).collect();
        for round in 0..ROUNDS {
            let n = dice.index(mine.len());
            let sector = mine[n].0;
            match dice.below(10) {
                0 => {
                    wait(&submit(&volume, Op::WriteZeroes { unmap: true }, sector, painted(Content::ZERO, sector)))
                        .expect("zeroes");
                    mine[n].1 = Content::ZERO;
                }
                1 => wait(&submit(&volume, Op::Flush, 0, Vec::new())).expect("flush"),
                2 | 3 => assert_eq!(read_one(&volume, sector), mine[n].1, "thread {thread}, round {round}, sector {sector}"),
                _ => {
                    let content = Content::unique(1 + (thread as u32) * ROUNDS + round);
                    wait(&submit(&volume, Op::Write { fua: dice.chance(5) }, sector, painted(content, sector))).expect("write");
                    mine[n].1 = content;
                }
            }
        }
        mine
    };
    let owned: Vec<(usize, Content)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|t| scope.spawn(move || guest(t))).collect();
        threads.into_iter().flat_map(|t| t.join().expect("a guest")).collect()
    });
    for (sector, content) in &owned {
        assert_eq!(read_one(&volume, *sector), *content, "sector {sector}");
    }
    drop((volume, node));
    // As after a kill: nothing was shut down.
    drop(runtime);
    let runtime = self::runtime();
    let node = devices.open(&runtime);
    let volume = node.volumes().into_iter().find(|v| v.spec().name == name_of(0)).expect("the volume");
    for (sector, content) in &owned {
        assert_eq!(read_one(&volume, *sector), *content, "sector {sector} after a kill");
    }
    runtime.block_on(node.shutdown());
}

/// Invariant 10 (Bounded): overload slows guests; it never errors, and memory stays where it was.
#[test]
fn a_store_that_is_down_slows_guests_to_a_hold_and_they_go_on_by_themselves() {
    const WRITES: usize = 600;
    const BLOCKS: usize = 16;
    let shape = small_volume(BLOCKS * 16);
    let (devices, runtime) = (Devices::fresh(), runtime());
    let node = devices.open(&runtime);
    let volume = create(&runtime, &node, &shape);
    devices.store_faults.plan(When::From(0), Fault::Io);
    let answered = AtomicU64::new(0);
    // 600 writes of 64 KiB: 37 MiB through a journal of 16 MiB.
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..WRITES {
                let first = (n % BLOCKS) * 128;
                let content = Content::unique(1 + n as u32);
                let bytes: Vec<u8> = (first..first + 128).flat_map(|sector| painted(content, sector)).collect();
                wait_long(&submit(&volume, Op::Write { fua: false }, first, bytes)).expect("no write fails");
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
        let held = stands_still(&answered);
        assert!(held > 20 && held < WRITES as u64, "{held} writes went through while the store was down");
        let status = node.status();
        assert!(status.throttled && status.store_down, "a guest is held, and nobody is told: {status:?}");
        assert!(status.held_back > 0 && volume.status().held_back > 0);
        let memory = status.memory_bytes;
        // A read and a flush are not behind the held write.
        assert_eq!(read_one(&volume, 0), Content::unique(1 + (held as u32 - 1) / BLOCKS as u32 * BLOCKS as u32));
        wait(&submit(&volume, Op::Flush, 0, Vec::new())).expect("a flush while writes are held");
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(answered.load(Ordering::SeqCst), held, "held is held");
        assert!(node.status().memory_bytes <= memory + (64 << 10), "memory grows while guests wait");
        devices.store_faults.clear();
        writer.join().expect("the writer");
    });
    assert_eq!(answered.into_inner(), WRITES as u64);
    for n in WRITES - BLOCKS..WRITES {
        assert_eq!(read_one(&volume, (n % BLOCKS) * 128 + 77), Content::unique(1 + n as u32));
    }
    let drained = runtime.block_on(node.drain(Duration::from_secs(30)));
    assert!(drained && !node.status().store_down);
    runtime.block_on(node.shutdown());
}

fn wait_long(pending: &Pending) -> Result<(), IoError> {
    let begun = Instant::now();
    loop {
        match pending.answer() {
            Some(answer) => return answer,
            None if begun.elapsed() > Duration::from_secs(90) => panic!("a held write never goes on"),
            None => std::thread::sleep(Duration::from_micros(200)),
        }
    }
}

/// Waits until `count` has not moved for a second.
fn stands_still(count: &AtomicU64) -> u64 {
    let (mut last, mut since) = (u64::MAX, Instant::now());
    let begun = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        assert!(begun.elapsed() < Duration::from_secs(60), "guests are never held");
        let now = count.load(Ordering::SeqCst);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    last
}
