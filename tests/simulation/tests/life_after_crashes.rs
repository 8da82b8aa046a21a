//! What goes on after a crash: snapshots are deleted, disks written, and the next crash finds all that was promised since.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lamina_simulation::dice::Dice;
use lamina_simulation::disk_image::{DiskImage, Fate};
use lamina_simulation::family::{Act, Disks, Family, compare, shape};
use lamina_simulation::life::{End, World};
use lamina_simulation::log::Event;
use support::in_parallel;

const MOST_DISKS: usize = 6;

fn throw(dice: &mut Dice, disks: usize) -> Act {
    if disks == 0 {
        return Act::Create { blocks: 1 + dice.index(12) };
    }
    let (disk, block, snapshot) = (dice.index(64), dice.index(64), dice.index(64));
    match dice.below(100) {
        0..=1 if disks < MOST_DISKS => Act::Create { blocks: 1 + dice.index(12) },
        0..=27 => Act::Write { disk, block, count: 1 + dice.index(4) },
        28..=31 => Act::SubBlock { disk, block },
        32..=37 => Act::Discard { disk, block, count: 1 + dice.index(3) },
        38..=49 => Act::Snapshot { disk },
        50..=52 => Act::SnapshotTwo { disk, other: dice.index(64) },
        53..=60 => Act::Rollback { disk, snapshot },
        61..=69 if disks < MOST_DISKS => Act::Clone { disk, snapshot, count: 1 + dice.index(2) },
        61..=73 => Act::DeleteSnapshot { disk, snapshot },
        74..=76 => Act::Delete { disk },
        77..=80 => Act::Resize { disk, blocks: 1 + dice.index(14), force: dice.chance(50) },
        81..=84 => Act::Flatten { disk },
        85..=92 => Act::Store,
        93..=96 => Act::Restart(End::Killed),
        _ => Act::Restart(End::Clean),
    }
}

fn world_at(events: &[Event], now_ms: u64) -> World {
    let mut world = World::default();
    for event in events {
        match event {
            Event::Journal(event) => world.journal.apply(event),
            Event::Cache(event) => world.cache.apply(event),
            Event::Store(objects) => world.store = Arc::clone(objects),
            Event::Registry(records) => world.registry = Arc::clone(records),
            Event::Mark(_) => {}
        }
    }
    world.now_ms = now_ms;
    world
}

fn histories() -> usize {
    std::env::var("HUNT").ok().and_then(|t| t.parse().ok()).unwrap_or(400)
}

/// When all is stored, the store alone gives all of it back.
#[test]
fn store_only_gives_all_that_was_stored() {
    in_parallel(histories(), |n| {
        let seed = 90_000 + n as u64;
        let mut dice = Dice::new(seed);
        let shape = shape(dice.chance(70).then(|| dice.below(20)), 0);
        let mut family = Family::begin(&shape, &World::default(), Disks::default()).unwrap_or_else(|d| panic!("{d}"));
        let mut acts = Vec::new();
        for _ in 0..10 + dice.index(30) {
            let act = throw(&mut dice, family.disks.0.len());
            if matches!(act, Act::Delete { .. }) {
                continue;
            }
            acts.push(act);
            if dice.chance(20)
                && matches!(act, Act::Snapshot { .. } | Act::Rollback { .. } | Act::Store | Act::DeleteSnapshot { .. })
            {
                family.life().registry().rules().lose_next_answer();
            }
            family.act(act).unwrap_or_else(|d| panic!("seed {seed}: {d}\n{acts:?}"));
            family.life().registry().rules().set_away(false);
        }
        for _ in 0..3 {
            family.act(Act::Store).unwrap_or_else(|d| panic!("seed {seed}: {d}\n{acts:?}"));
        }
        let (disks, now_ms) = (family.disks.clone(), family.life().now_ms());
        let (_, events) = family.into_history();
        let mut world = world_at(&events, now_ms);
        world.journal = DiskImage::default();
        world.cache = DiskImage::default();
        world.registry = Arc::default();
        let mut family = Family::begin(&shape, &world, disks).unwrap_or_else(|d| panic!("seed {seed}: {d}\n{acts:?}"));
        family.check().unwrap_or_else(|d| panic!("seed {seed}, store only: {d}\n{acts:?}"));
        true
    });
}

/// After a crash at any moment life goes on, and all stays true.
#[test]
fn life_after_a_crash_goes_on_truly() {
    let crashes = AtomicU64::new(0);
    in_parallel(histories(), |n| {
        let seed = std::env::var("SEED").ok().and_then(|t| t.parse().ok()).unwrap_or(70_000u64) + n as u64;
        println!("BEGIN {seed}");
        let mut dice = Dice::new(seed);
        let shape = shape(dice.chance(70).then(|| dice.below(20)), 0);
        let mut family = Family::begin(&shape, &World::default(), Disks::default()).unwrap_or_else(|d| panic!("{d}"));
        let mut acts = Vec::new();
        for _ in 0..10 + dice.index(25) {
            let act = throw(&mut dice, family.disks.0.len());
            if matches!(act, Act::SubBlock { .. }) {
                continue;
            }
            acts.push(act);
            family.act(act).unwrap_or_else(|d| panic!("seed {seed}: {d}\n{acts:?}"));
        }
        let now_ms = family.life().now_ms();
        let (_, events) = family.into_history();
        for _ in 0..3 {
            let at = dice.index(events.len());
            let mut world = world_at(&events[..at], now_ms);
            if dice.chance(40) {
                let fates = vec![if dice.chance(50) { Fate::Whole } else { Fate::Lost }; world.journal.unsynced().len()];
                world.journal = world.journal.settle(&fates, |_| true);
            } else if dice.chance(20) {
                world.journal = DiskImage::default();
            }
            let what = format!("seed {seed}, event {at} of {}", events.len());
            let mut family = Family::begin(&shape, &world, Disks::default()).unwrap_or_else(|d| panic!("{what}: {d}\n{acts:?}"));
            let seen = match family.look() {
                Ok(seen) => seen,
                Err(d) => panic!("{what}, first look: {d}\n{acts:?}"),
            };
            family.disks = seen;
            family.go_on_from(1000);
            crashes.fetch_add(1, Ordering::Relaxed);
            let mut more = Vec::new();
            for _ in 0..4 + dice.index(10) {
                let act = throw(&mut dice, family.disks.0.len());
                more.push(act);
                if std::env::var("TRACE").is_ok() {
                    println!("{what} {act:?} of {acts:?} {more:?}");
                }
                family.act(act).unwrap_or_else(|d| panic!("{what}, later: {d}\n{acts:?}\n{more:?}"));
                if matches!(act, Act::Restart(_)) {
                    family.check().unwrap_or_else(|d| panic!("{what}, later: {d}\n{acts:?}\n{more:?}"));
                }
            }
            for act in [Act::Store, Act::Store, Act::Restart(End::Killed)] {
                family.act(act).unwrap_or_else(|d| panic!("{what}, at the end: {d}\n{acts:?}\n{more:?}"));
                family.check().unwrap_or_else(|d| panic!("{what}, at the end: {d}\n{acts:?}\n{more:?}"));
            }
            let _ = compare;
        }
        println!("END {seed}");
        true
    });
    println!("{} crashes", crashes.into_inner());
}
