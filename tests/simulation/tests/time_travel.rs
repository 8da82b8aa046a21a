//! Continuous data protection: a volume that keeps its past goes back to any second of its window, whatever happened since.

mod support;

use lamina_contract::{Timestamp, VolumeSettings};
use lamina_simulation::act::Act;
use lamina_simulation::dice::Dice;
use lamina_simulation::family::{Disks, Family, shape};
use lamina_simulation::life::{End, World};
use lamina_simulation::stamp::Content;

const SECONDS: u64 = 60;
const BLOCKS: usize = 8;

/// What a disk held at the end of each second.
struct Second {
    ends: Timestamp,
    blocks: Vec<Content>,
}

/// Writes stamped blocks over a minute of simulated time; in between the store gets its turns, maps are checkpointed, the process ends.
fn record(family: &mut Family, dice: &mut Dice, restarts: bool) -> Vec<Second> {
    let must = |done: Result<(), lamina_simulation::family::Difference>| done.unwrap_or_else(|d| panic!("{d}"));
    must(family.act(Act::Create { blocks: BLOCKS }));
    must(family.set("d0", VolumeSettings { cdp_ms: 24 * 3_600_000, ..VolumeSettings::default() }));
    let mut seconds = Vec::new();
    for _ in 0..SECONDS {
        let began = family.now().0;
        for _ in 0..1 + dice.index(4) {
            family.pass(20 + dice.below(100));
            must(family.act(match dice.below(10) {
                0 => Act::Discard { disk: 0, block: dice.index(BLOCKS), count: 1 },
                _ => Act::Write { disk: 0, block: dice.index(BLOCKS), count: 1 + dice.index(2) },
            }));
        }
        if dice.chance(30) {
            must(family.act(Act::Store));
        }
        if dice.chance(10) {
            must(family.act(Act::Snapshot { disk: 0 }));
        }
        if restarts && dice.chance(10) {
            must(family.act(Act::Restart(if dice.chance(50) { End::Killed } else { End::Clean })));
        }
        seconds.push(Second { ends: family.now(), blocks: (*family.disks.0["d0"].blocks).clone() });
        family.pass(1000 - (family.now().0 - began).min(999));
    }
    seconds
}

#[test]
fn a_rollback_to_each_second_shows_exactly_that_second() {
    for seed in 1..=4 {
        let mut dice = Dice::new(seed);
        let shape = shape(Some(dice.below(30)), 0);
        let mut family = Family::begin(&shape, &World::default(), Disks::default()).unwrap_or_else(|d| panic!("{d}"));
        let seconds = record(&mut family, &mut dice, seed % 2 == 0);
        // In any order, and each from where the one before led to.
        let mut order: Vec<usize> = (0..seconds.len()).collect();
        for n in (1..order.len()).rev() {
            order.swap(n, dice.index(n + 1));
        }
        for n in order {
            let second = &seconds[n];
            let seen = family.go_back("d0", second.ends).unwrap_or_else(|d| panic!("seed {seed}, second {n}: {d}"));
            assert_eq!(seen, second.blocks, "seed {seed}, second {n}");
            if dice.chance(20) {
                family.act(Act::Restart(End::Killed)).unwrap_or_else(|d| panic!("{d}"));
                let volume = family.volume("d0").unwrap_or_else(|d| panic!("{d}"));
                let seen = family.read(&volume).unwrap_or_else(|d| panic!("{d}"));
                assert_eq!(seen, second.blocks, "seed {seed}, second {n}, after a kill");
            }
            family.pass(1000);
        }
    }
}

#[test]
fn a_moment_outside_of_the_window_is_refused_and_the_window_moves_on() {
    let shape = shape(Some(0), 0);
    let mut family = Family::begin(&shape, &World::default(), Disks::default()).unwrap_or_else(|d| panic!("{d}"));
    let must = |done: Result<(), lamina_simulation::family::Difference>| done.unwrap_or_else(|d| panic!("{d}"));
    family.pass(10_000);
    let before = family.now();
    must(family.act(Act::Create { blocks: 2 }));
    let refused = |family: &mut Family, at| {
        let gone = family.go_back("d0", at).expect_err("outside of the window");
        assert!(gone.to_string().contains("NotInWindow"), "{gone}");
    };
    let now = family.now();
    refused(&mut family, now);
    family.pass(1000);
    must(family.set("d0", VolumeSettings { cdp_ms: 5_000, ..VolumeSettings::default() }));
    refused(&mut family, before);
    let future = Timestamp(family.now().0 + 1);
    refused(&mut family, future);
    // A window of five seconds, and no more of the past than it needs.
    for _ in 0..20 {
        family.pass(1000);
        must(family.act(Act::Write { disk: 0, block: 0, count: 1 }));
        must(family.act(Act::Store));
    }
    let long_ago = Timestamp(family.now().0 - 12_000);
    refused(&mut family, long_ago);
    let lately = Timestamp(family.now().0 - 4_000);
    family.go_back("d0", lately).unwrap_or_else(|d| panic!("{d}"));
    must(family.set("d0", VolumeSettings::default()));
    let now = family.now();
    refused(&mut family, now);
}
