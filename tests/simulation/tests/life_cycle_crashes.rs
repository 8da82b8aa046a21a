//! Every crash point of life-cycle operations: after a kill or a power cut each disk, snapshot and clone is as it was before the operation
//! that was under way, or as it is behind it; nothing in between, nothing half. With only the store left, what comes back is true.
//!
//! As in `crash_exhaustive.rs`, a history's crashes before its last operation are those of a shorter history.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};

use lamina_simulation::act::Act;
use lamina_simulation::dice::Dice;
use lamina_simulation::disk_image::Fate;
use lamina_simulation::family::{Began, Difference, Disk, Disks, Family, compare, shape};
use lamina_simulation::life::{End, World};
use lamina_simulation::log::Event;
use support::{first_seed, in_parallel, states_wanted};

/// A disk with data of which a snapshot was taken, some of it stored and some not.
const PRELUDE: [Act; 5] = [
    Act::Create { blocks: 4 },
    Act::Write { disk: 0, block: 0, count: 2 },
    Act::Store,
    Act::Write { disk: 0, block: 1, count: 1 },
    Act::Snapshot { disk: 0 },
];

const CHOICES: [Act; 14] = [
    Act::WriteAndSnapshot { disk: 0, block: 2 },
    Act::Write { disk: 0, block: 0, count: 1 },
    Act::Write { disk: 1, block: 1, count: 1 },
    Act::Snapshot { disk: 0 },
    Act::SnapshotTwo { disk: 0, other: 1 },
    Act::Rollback { disk: 0, snapshot: 0 },
    Act::Clone { disk: 0, snapshot: 0, count: 2 },
    Act::DeleteSnapshot { disk: 0, snapshot: 0 },
    Act::Delete { disk: 1 },
    Act::Resize { disk: 0, blocks: 6, force: false },
    Act::Resize { disk: 0, blocks: 1, force: true },
    Act::Flatten { disk: 1 },
    Act::Store,
    Act::Restart(End::Killed),
];

/// What a crash leaves of `world`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crash {
    Kill,
    PowerKeepsAll,
    PowerTakesAll,
    PowerByChance,
    StoreOnly,
}

const CRASHES: [Crash; 5] = [Crash::Kill, Crash::PowerKeepsAll, Crash::PowerTakesAll, Crash::PowerByChance, Crash::StoreOnly];

fn left(world: &World, crash: Crash, dice: &mut Dice) -> World {
    let mut left = world.clone();
    let count = world.journal.unsynced().len();
    let fates = match crash {
        Crash::Kill => return left,
        Crash::StoreOnly => return world.store_alone(),
        Crash::PowerKeepsAll => vec![Fate::Whole; count],
        Crash::PowerTakesAll => vec![Fate::Lost; count],
        Crash::PowerByChance => (0..count).map(|_| if dice.chance(50) { Fate::Whole } else { Fate::Torn(dice.word()) }).collect(),
    };
    left.journal = world.journal.settle(&fates, |_| crash != Crash::PowerTakesAll);
    left
}

fn middles<'a>(history: &'a [Began], name: &'a str) -> impl Iterator<Item = &'a Disk> + Clone {
    history.iter().flat_map(|began| &began.middles).filter_map(move |disks| disks.0.get(name))
}

/// With only the store left, all that comes back is something that once was.
fn true_to(seen: &Disks, history: &[Began]) -> Result<(), Difference> {
    let wrong = |text: String| Err(Difference(text));
    for (name, disk) in &seen.0 {
        let mut once = history.iter().filter_map(|began| began.disks.0.get(name)).chain(middles(history, name));
        if !once.clone().any(|then| then.blocks == disk.blocks) {
            return wrong(format!("{name} holds {:?}, which it never held", disk.blocks));
        }
        for (snapshot, blocks) in &disk.snapshots {
            if !once.clone().any(|then| then.snapshots.get(snapshot) == Some(blocks)) {
                return wrong(format!("{name}@{snapshot} shows {blocks:?}, which it never showed"));
            }
        }
        if let Some(parent) = &disk.parent
            && !once.any(|then| then.parent.as_ref() == Some(parent))
        {
            return wrong(format!("{name} is a clone of {parent:?}, which it never was"));
        }
    }
    Ok(())
}

struct Looker {
    dice: Dice,
    states: u64,
    /// Of 100 crashes, how many are looked at.
    share: u64,
}

impl Looker {
    /// Looks at the crashes of a family's history from its operation number `from` on.
    fn look(&mut self, family: Family, from: usize) -> Result<(), String> {
        let shape = family.shape().clone();
        let now_ms = family.life().now_ms();
        let (history, events) = family.into_history();
        let mut world = World::default();
        let mut at_op = 0;
        for at in 0..=events.len() {
            while history.get(at_op + 1).is_some_and(|next| next.at <= at && next.at != usize::MAX) {
                at_op += 1;
            }
            world.now_ms = now_ms;
            let changed = at == events.len() || !matches!(events[at], Event::Mark(_));
            if at_op >= from && changed {
                for crash in CRASHES {
                    if self.dice.chance(self.share) {
                        let what = |difference| format!("after event {at} of operation {at_op} by {crash:?}: {difference}");
                        let left = left(&world, crash, &mut self.dice);
                        self.recover(&shape, &left, crash, &history, at_op).map_err(what)?;
                    }
                }
            }
            if let Some(event) = events.get(at) {
                world.apply(event);
            }
        }
        Ok(())
    }

    fn recover(
        &mut self,
        shape: &lamina_simulation::life::Shape,
        world: &World,
        crash: Crash,
        history: &[Began],
        at_op: usize,
    ) -> Result<(), Difference> {
        self.states += 1;
        let mut family = Family::begin(shape, world, Disks::default())?;
        let seen = family.look()?;
        if crash == Crash::StoreOnly {
            true_to(&seen, history)?;
        } else {
            let began = &history[at_op];
            let (before, after) = (&began.disks, history.get(at_op + 1).map_or(&began.disks, |next| &next.disks));
            if let (Err(one), Err(other)) = (compare(&seen, before), compare(&seen, after))
                && !began.middles.iter().any(|middle| compare(&seen, middle).is_ok())
            {
                return Err(Difference(format!("neither as before ({one}) nor as behind it ({other})")));
            }
        }
        if self.dice.chance(25) {
            // What came back stays, when all of it is stored and when it is read back once more.
            family.disks = seen;
            family.act(Act::Store)?;
            family.check()?;
            family.act(Act::Restart(End::Killed))?;
            family.check()?;
        }
        Ok(())
    }
}

fn explore(history: &[Act], from: usize, share: u64, seed: u64) -> u64 {
    let mut dice = Dice::new(seed);
    let shape = shape(dice.chance(50).then_some(0), 0);
    let mut family = Family::begin(&shape, &World::default(), Disks::default()).unwrap_or_else(|d| panic!("{d}"));
    for act in history {
        family.act(*act).unwrap_or_else(|d| panic!("{history:?}: {d}"));
    }
    let mut looker = Looker { dice, states: 0, share };
    looker.look(family, from).unwrap_or_else(|what| panic!("{history:?}, seed {seed}: {what}"));
    looker.states
}

#[test]
fn every_crash_of_every_two_life_cycle_operations_leaves_before_or_behind() {
    let histories: Vec<Vec<Act>> =
        CHOICES.iter().flat_map(|one| CHOICES.iter().map(|two| [&PRELUDE[..], &[*one, *two]].concat())).collect();
    let begun = std::time::Instant::now();
    let states = AtomicU64::new(0);
    in_parallel(histories.len(), |n| {
        let from = histories[n].len() - 1;
        states.fetch_add(explore(&histories[n], from, 100, n as u64), Ordering::Relaxed);
        true
    });
    let states = states.into_inner();
    println!("{} histories, {states} states, {:?}", histories.len(), begun.elapsed());
    assert!(states > 2_500, "only {states} states: the enumeration has lost its point");
}

#[test]
fn crashes_of_longer_histories_leave_before_or_behind() {
    let wanted = states_wanted(10_000);
    let (states, seed) = (AtomicU64::new(0), first_seed());
    let begun = std::time::Instant::now();
    in_parallel(usize::MAX - 1, |n| {
        let mut dice = Dice::new(seed + n as u64);
        let more = (0..3 + dice.index(5)).map(|_| CHOICES[dice.index(CHOICES.len())]);
        let history: Vec<Act> = PRELUDE.into_iter().chain(more).collect();
        states.fetch_add(explore(&history, 0, 10, seed + n as u64), Ordering::Relaxed) < wanted
    });
    println!("{} states, {:?}", states.into_inner(), begun.elapsed());
}
