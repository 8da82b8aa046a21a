//! What goes on after a crash: snapshots are deleted, disks written, and the next crash finds all that was promised since.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};

use lamina_simulation::act::Act;
use lamina_simulation::dice::Dice;
use lamina_simulation::disk_image::{DiskImage, Fate};
use lamina_simulation::family::{Disks, Family, shape};
use lamina_simulation::life::{End, Shape, World};
use lamina_simulation::log::Event;
use support::{first_seed, in_parallel, must, named};

/// Histories, unless `LAMINA_SIM_LIVES` says otherwise.
const HISTORIES: usize = 400;
const MOST_DISKS: usize = 6;

fn histories() -> usize {
    std::env::var("LAMINA_SIM_LIVES").ok().and_then(|text| text.parse().ok()).unwrap_or(HISTORIES)
}

/// A new family, whose shape is chance.
fn family(dice: &mut Dice) -> Family {
    let shape = shape(dice.chance(70).then(|| dice.below(20)), 0);
    must(Family::begin(&shape, &World::default(), Disks::default()))
}

/// An act by chance that is none of those `left_out`; None when it would be one.
fn act(dice: &mut Dice, family: &Family, left_out: fn(&Act) -> bool) -> Option<Act> {
    Some(Act::by_chance(dice, family.disks.0.len(), MOST_DISKS)).filter(|act| !left_out(act))
}

#[test]
fn when_all_is_stored_the_store_alone_gives_all_of_it_back() {
    in_parallel(histories(), |n| {
        let seed = first_seed() + 90_000 + n as u64;
        named(&format!("seed {seed}"), || {
            let mut dice = Dice::new(seed);
            let mut family = family(&mut dice);
            let shape = family.shape().clone();
            for _ in 0..10 + dice.index(30) {
                let Some(act) = act(&mut dice, &family, |act| matches!(act, Act::Delete { .. })) else { continue };
                let asks = matches!(act, Act::Snapshot { .. } | Act::Rollback { .. } | Act::Store | Act::DeleteSnapshot { .. });
                if asks && dice.chance(20) {
                    family.life().registry().rules().lose_next_answer();
                }
                family.act(act).unwrap_or_else(|d| panic!("{act:?}: {d}"));
                family.life().registry().rules().set_away(false);
            }
            for _ in 0..3 {
                must(family.act(Act::Store));
            }
            let disks = family.disks.clone();
            let world = family.killed().store_alone();
            must(must(Family::begin(&shape, &world, disks)).check());
        });
        true
    });
}

#[test]
fn life_after_a_crash_at_any_moment_goes_on_truly() {
    let crashes = AtomicU64::new(0);
    in_parallel(histories(), |n| {
        let seed = first_seed() + 70_000 + n as u64;
        named(&format!("seed {seed}"), || {
            let mut dice = Dice::new(seed);
            let mut family = family(&mut dice);
            let shape = family.shape().clone();
            for _ in 0..10 + dice.index(25) {
                if let Some(act) = act(&mut dice, &family, |act| matches!(act, Act::SubBlock { .. })) {
                    family.act(act).unwrap_or_else(|d| panic!("{act:?}: {d}"));
                }
            }
            let now_ms = family.life().now_ms();
            let (_, events) = family.into_history();
            for _ in 0..3 {
                let at = dice.index(events.len());
                named(&format!("a crash at event {at} of {}", events.len()), || {
                    go_on(&shape, &crashed(&events[..at], now_ms, &mut dice), &mut dice);
                });
                crashes.fetch_add(1, Ordering::Relaxed);
            }
        });
        true
    });
    assert!(crashes.into_inner() >= 3 * histories() as u64);
}

/// What `events` left: of the journal all, what power had, or nothing.
fn crashed(events: &[Event], now_ms: u64, dice: &mut Dice) -> World {
    let mut world = World::after(events, now_ms);
    if dice.chance(40) {
        let fates = vec![if dice.chance(50) { Fate::Whole } else { Fate::Lost }; world.journal.unsynced().len()];
        world.journal = world.journal.settle(&fates, |_| true);
    } else if dice.chance(20) {
        world.journal = DiskImage::default();
    }
    world
}

/// Whatever is found on `world` is the truth from now on.
fn go_on(shape: &Shape, world: &World, dice: &mut Dice) {
    let mut family = must(Family::begin(shape, world, Disks::default()));
    family.disks = must(family.look());
    family.go_on_from(1000);
    let mut acts = Vec::new();
    for _ in 0..4 + dice.index(10) {
        let act = Act::by_chance(dice, family.disks.0.len(), MOST_DISKS);
        acts.push(act);
        family.act(act).unwrap_or_else(|d| panic!("{acts:?}: {d}"));
        if matches!(act, Act::Restart(_)) {
            family.check().unwrap_or_else(|d| panic!("{acts:?}: {d}"));
        }
    }
    for act in [Act::Store, Act::Store, Act::Restart(End::Killed)] {
        family.act(act).unwrap_or_else(|d| panic!("{acts:?}, at the end: {d}"));
        family.check().unwrap_or_else(|d| panic!("{acts:?}, at the end: {d}"));
    }
}
