//! What the tests of this crate share.
#![allow(dead_code, reason = "each test program uses its part")]

pub mod devices;
pub mod rotten_block;

use std::sync::atomic::{AtomicUsize, Ordering};

use lamina_contract::{BlockSize, ScoSize};
use lamina_engine::mutant::{self, Mutant};
use lamina_simulation::explore::{Effort, Explorer};
use lamina_simulation::family::{Disks, Family, shape};
use lamina_simulation::history::{Step, ended, play};
use lamina_simulation::life::{Life, Shape, VolumeShape, World};

/// The smallest kind of volume.
pub fn small_volume(blocks: usize) -> VolumeShape {
    VolumeShape { blocks, block_size: BlockSize::DEFAULT, sco_size: ScoSize::new(1 << 20).expect("1 MiB") }
}

/// What was done; a panic that says why when it was not.
#[track_caller]
pub fn must<T, E: std::fmt::Display>(done: Result<T, E>) -> T {
    done.unwrap_or_else(|why| panic!("{why}"))
}

/// No disks yet, on a node that checkpoints each settlement and has no cache.
pub fn family() -> Family {
    family_on(&World::default(), Disks::default())
}

/// The same on `world`, where `disks` are.
pub fn family_on(world: &World, disks: Disks) -> Family {
    must(Family::begin(&shape(Some(0), 0), world, disks))
}

/// Does `count` pieces of work on all CPUs, or fewer when one says that it is enough; panics go through.
pub fn in_parallel(count: usize, work: impl Fn(usize) -> bool + Sync) {
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= count || !work(n) {
                            return;
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                next.store(count, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// Does `work`, and says what it was when it panics.
pub fn named<T>(what: &str, work: impl FnOnce() -> T) -> T {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        eprintln!("^ this was {what}");
        std::panic::resume_unwind(panic)
    })
}

/// How many states random tests look at: `LAMINA_SIM_STATES`, or `usual`.
pub fn states_wanted(usual: u64) -> u64 {
    std::env::var("LAMINA_SIM_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// The first seed of random tests: `LAMINA_SIM_SEED`, or 1.
pub fn first_seed() -> u64 {
    std::env::var("LAMINA_SIM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Plants `mutant` and demands that a few short histories show it, and that without it they show nothing.
pub fn assert_found(mutant: Mutant) {
    let histories: [&[Step]; 3] = [
        &[Step::Write { volume: 0, block: 0 }, Step::Flush { volume: 0 }],
        &[Step::Write { volume: 0, block: 0 }, Step::Write { volume: 0, block: 1 }],
        &[Step::Write { volume: 0, block: 0 }, Step::Store],
    ];
    let shape = Shape::of(&[small_volume(4)]);
    let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
    let effort = Effort { exhaustive_writes: 8, random_images: 3, cut_recoveries: 0, moments: 100 };
    let findings = || {
        let mut findings = Vec::new();
        for history in histories {
            let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
            for step in history {
                play(&mut life, &shape, *step).unwrap_or_else(|v| panic!("{history:?}: {v}"));
            }
            let found = Explorer::new(effort, 1).explore(&ended(life, &shape, &world, &past), 0);
            findings.extend(found.err());
        }
        findings
    };
    assert!(findings().is_empty(), "the healthy engine breaks a promise");
    mutant::plant(mutant);
    let found = findings();
    mutant::plant(Mutant::Healthy);
    assert!(!found.is_empty(), "{mutant:?} is not found");
    println!("{mutant:?}: {}", found[0]);
}
