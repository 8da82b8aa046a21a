//! Any sequence of life-cycle operations against a model of plain copies: every disk and every snapshot shows what it must, over restarts,
//! kills and rounds of the store side; what must be refused is.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};

use lamina_simulation::act::Act;
use lamina_simulation::dice::Dice;
use lamina_simulation::family::{Disks, Family, shape};
use lamina_simulation::life::{End, World};
use support::{first_seed, in_parallel};

/// Histories, unless `LAMINA_SIM_HISTORIES` says otherwise.
const HISTORIES: u64 = 2_000;
const MOST_DISKS: usize = 8;

fn play(seed: u64) -> u64 {
    let mut dice = Dice::new(seed);
    let checkpoint_after = if dice.chance(70) { Some(dice.below(20)) } else { None };
    let cache = if dice.chance(30) { 4 << 20 } else { 0 };
    let shape = shape(checkpoint_after, cache);
    let mut family = Family::begin(&shape, &World::default(), Disks::default()).unwrap_or_else(|d| panic!("seed {seed}: {d}"));
    let length = 10 + dice.index(40);
    let mut acts = Vec::with_capacity(length);
    for _ in 0..length {
        let act = Act::by_chance(&mut dice, family.disks.0.len(), MOST_DISKS);
        acts.push(act);
        family.act(act).unwrap_or_else(|d| panic!("seed {seed}: {d}\n{acts:?}"));
        if matches!(act, Act::Restart(_)) || dice.chance(4) {
            family.check().unwrap_or_else(|d| panic!("seed {seed}: {d}\n{acts:?}"));
        }
    }
    // As it is, when all is stored, and when another process has read it back.
    for last in [None, Some(Act::Store), Some(Act::Restart(End::Killed))] {
        last.into_iter().for_each(|act| family.act(act).unwrap_or_else(|d| panic!("seed {seed}: {d}\n{acts:?}")));
        family.check().unwrap_or_else(|d| panic!("seed {seed}, {last:?}: {d}\n{acts:?}"));
    }
    length as u64
}

#[test]
fn every_disk_and_snapshot_shows_what_it_must() {
    let wanted = std::env::var("LAMINA_SIM_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(HISTORIES);
    let begun = std::time::Instant::now();
    let (first, acts) = (first_seed(), AtomicU64::new(0));
    in_parallel(wanted as usize, |n| {
        acts.fetch_add(play(first + n as u64), Ordering::Relaxed);
        true
    });
    println!("{wanted} histories, {} operations, {:?}", acts.into_inner(), begun.elapsed());
}

/// Far deeper than anybody clones: each generation changes something, is stored or not, and all of them still show what they must.
#[test]
fn clones_of_clones_show_what_each_generation_left() {
    const GENERATIONS: usize = 80;
    let shape = shape(Some(0), 0);
    let must = |done: Result<(), lamina_simulation::family::Difference>| done.unwrap_or_else(|d| panic!("{d}"));
    let mut family = Family::begin(&shape, &World::default(), Disks::default()).unwrap_or_else(|d| panic!("{d}"));
    must(family.act(Act::Create { blocks: 100 }));
    for generation in 0..GENERATIONS {
        // Disks sort by name, so the newest is not the last: it is found by its parent.
        let newest = family.newest();
        must(family.act(Act::Write { disk: newest, block: generation, count: 2 }));
        must(family.act(Act::Snapshot { disk: newest }));
        if generation % 3 == 0 {
            must(family.act(Act::Store));
        }
        must(family.act(Act::Clone { disk: newest, snapshot: 0, count: 1 }));
        if generation % 20 == 7 {
            must(family.act(Act::Restart(End::Killed)));
        }
    }
    must(family.check());
    must(family.act(Act::Store));
    must(family.act(Act::Restart(End::Clean)));
    must(family.check());
    let newest = family.newest();
    must(family.act(Act::Flatten { disk: newest }));
    must(family.act(Act::Restart(End::Killed)));
    must(family.check());
}
