//! Long histories by chance: several volumes, block sizes and lives in one world; crashes anywhere; each life begins with what a
//! crash of the one before left. Invariants 1 (Kill), 2 (Power), 4 (Store only), 5 (Order).
//!
//! `LAMINA_SIM_STATES` says how many states to look at (20,000 in `make test`), `LAMINA_SIM_SEED` where to begin.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};

use lamina_contract::{BlockSize, ScoSize};
use lamina_simulation::dice::Dice;
use lamina_simulation::explore::{Count, Effort, Explorer};
use lamina_simulation::history::{Guests, check_reads, ended};
use lamina_simulation::life::{Life, Shape, VolumeShape};
use support::{first_seed, in_parallel, named, states_wanted};

const LIVES: usize = 4;

fn shape(dice: &mut Dice) -> Shape {
    let volume = |dice: &mut Dice| VolumeShape {
        blocks: [4, 16, 64][dice.index(3)],
        block_size: BlockSize::new([4096, 4096, 8192, 65536][dice.index(4)]).expect("a size"),
        sco_size: ScoSize::new(1 << 20).expect("a size"),
    };
    let volumes: Vec<_> = (0..1 + dice.index(3)).map(|_| volume(dice)).collect();
    let mut shape = Shape::of(&volumes);
    if dice.chance(30) {
        shape.cache_bytes = 4 << 20;
    }
    if dice.chance(30) {
        // Long enough for several segments to wait, prepared.
        shape.journal.bytes = 128 << 20;
    }
    if dice.chance(50) {
        shape.checkpoint_after = Some(dice.below(30));
    }
    shape
}

/// One world, from its making to its fourth crash. Panics with what it takes to do it again.
fn world(seed: u64) -> Count {
    let mut dice = Dice::new(seed);
    let shape = shape(&mut dice);
    let (mut world, mut past) = Life::create(&shape).unwrap_or_else(|v| panic!("seed {seed}: {v}"));
    let effort = Effort { exhaustive_writes: 0, random_images: 1, cut_recoveries: 2, moments: 30 };
    let mut explorer = Explorer::new(effort, dice.word());
    for number in 0..LIVES {
        let mut guests = Guests::new(dice.word());
        let actions = if guests.large > 10 { 60 } else { 20 + dice.index(40) };
        let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("seed {seed}, life {number}: {v}"));
        for action in 0..actions {
            guests.act(&mut life, &shape).unwrap_or_else(|v| panic!("seed {seed}, life {number}, action {action}: {v}"));
        }
        check_reads(&life).unwrap_or_else(|v| panic!("seed {seed}, life {number}: {v}"));
        let life = ended(life, &shape, &world, &past);
        explorer.explore(&life, 0).unwrap_or_else(|f| panic!("seed {seed}, life {number}, {shape:?}:\n{f}"));
        let next = explorer.crash_somewhere(&life).unwrap_or_else(|f| panic!("seed {seed}, life {number}, going on:\n{f}"));
        (world, past) = (next.world, next.past);
    }
    explorer.count
}

#[test]
fn no_crash_of_a_long_history_breaks_a_promise() {
    let (wanted, first) = (states_wanted(20_000), first_seed());
    let states = AtomicU64::new(0);
    let worlds = AtomicU64::new(0);
    let cuts = AtomicU64::new(0);
    let begun = std::time::Instant::now();
    in_parallel(usize::MAX, |n| {
        if states.load(Ordering::Relaxed) < wanted {
            let seed = first + n as u64;
            let count = named(&format!("seed {seed}"), || world(seed));
            states.fetch_add(count.states, Ordering::Relaxed);
            cuts.fetch_add(count.cut_recoveries, Ordering::Relaxed);
            worlds.fetch_add(1, Ordering::Relaxed);
            true
        } else {
            false
        }
    });
    println!("{worlds:?} worlds, {states:?} states, {cuts:?} of them of cut recoveries, {:?}", begun.elapsed());
    assert!(states.into_inner() >= wanted);
}
