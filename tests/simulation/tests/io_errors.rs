//! I/O errors, one at a time and for good: call 1, 2, 3 … of journal, cache and store fails until nothing is left to fail. No panic, no
//! wrong byte, the right error, and what was acknowledged is there after a restart on healthy devices.

mod support;

use std::sync::Arc;

use lamina_contract::{BlockSize, IoError, ScoSize};
use lamina_simulation::fault::{Fault, Faults, When};
use lamina_simulation::history::{Step, check_reads, play};
use lamina_simulation::life::{End, Life, LifeFaults, Past, Shape, VolumeShape, World};
use lamina_simulation::moment::Moment;
use lamina_simulation::oracle::{Bounds, Violation};
use lamina_simulation::stamp::Content;
use support::{named, small_volume};

fn shape() -> Shape {
    let large = VolumeShape { blocks: 8, block_size: BlockSize::new(8192).expect("a size"), sco_size: ScoSize::DEFAULT };
    let mut shape = Shape::of(&[small_volume(4), large]);
    shape.cache_bytes = 4 << 20;
    shape
}

/// A bit of everything: blocks in the store, blocks in the journal, zeros, references.
const HISTORY: [Step; 14] = [
    Step::Write { volume: 0, block: 0 },
    Step::Write { volume: 1, block: 5 },
    Step::Store,
    Step::SubBlock { volume: 0, block: 0 },
    Step::Write { volume: 0, block: 1 },
    Step::Flush { volume: 0 },
    Step::Trim { volume: 1, block: 5 },
    Step::SubBlock { volume: 1, block: 6 },
    Step::Store,
    Step::SubBlock { volume: 1, block: 6 },
    Step::Write { volume: 0, block: 2 },
    Step::Flush { volume: 1 },
    Step::Write { volume: 1, block: 7 },
    Step::Store,
];

/// What is left of `life` for the next process: the world as a kill leaves it, and what the guests were promised.
fn killed(life: Life, world: &World, past: &Past) -> (World, Past, Vec<Bounds>) {
    let (models, next_op) = (life.models().clone(), life.next_op());
    let mut moment = Moment::at_start(world, past, &models);
    life.into_log().iter().for_each(|event| moment.apply(event));
    let bounds = moment.after_kill();
    let lowest = |bounds: &[Bounds]| bounds.iter().map(|b| b.lower).collect();
    let (durable, stored) = (lowest(&moment.after_power()), lowest(&moment.after_wipe()));
    let past = Past { models, durable, stored, next_op };
    (moment.world, past, bounds)
}

/// Opens `world` with healthy devices and demands `bounds`.
fn assert_whole(shape: &Shape, world: &World, past: &Past, bounds: &[Bounds]) {
    let life = Life::begin(shape, world, past).unwrap_or_else(|v| panic!("{v}"));
    for (model, bounds) in past.models.iter().zip(bounds) {
        let seen = life.read(model.volume).unwrap_or_else(|v| panic!("{v}"));
        model.judge(&seen, *bounds).unwrap_or_else(|v| panic!("{v}"));
    }
}

/// No sector that can be read holds what nobody wrote there, or what was overwritten by an acknowledged write.
fn assert_no_wrong_reads(life: &Life) {
    for model in life.models().iter() {
        match life.read(model.volume) {
            Ok(_) | Err(Violation::Unreadable { .. }) => {}
            Err(wrong) => panic!("{wrong}"),
        }
    }
}

/// Plays the history with the fault in place. Guests whose volume refuses stop; the others go on.
fn play_on(life: &mut Life, shape: &Shape) {
    for step in HISTORY {
        match play(life, shape, step) {
            Ok(()) | Err(Violation::Unreadable { error: IoError::Io | IoError::Halted, .. } | Violation::NoNode { .. }) => {}
            Err(other) => panic!("{step:?}: {other}"),
        }
    }
}

/// Fails each call in turn until the history meets no fault any more; gives how many calls there were.
fn each_call_fails(device: impl Fn(&LifeFaults) -> Faults, when: impl Fn(u64) -> When, fault: Fault) -> u64 {
    let shape = shape();
    let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
    for call in 0.. {
        let fired = named(&format!("{fault:?} at {:?}", when(call)), || {
            let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
            let faults = device(life.faults());
            faults.plan(when(call), fault);
            play_on(&mut life, &shape);
            let fired = faults.fired();
            faults.clear();
            assert_no_wrong_reads(&life);
            let (world, past, bounds) = killed(life, &world, &past);
            assert_whole(&shape, &world, &past, &bounds);
            fired
        });
        if fired == 0 {
            return call;
        }
    }
    0
}

#[test]
fn no_error_of_the_journals_disk_loses_an_acknowledged_write() {
    for fault in [Fault::Io, Fault::Full, Fault::Half] {
        let calls = each_call_fails(|f| f.journal.clone(), When::Once, fault);
        assert!(calls > 15, "only {calls} calls: the history has lost its point");
        each_call_fails(|f| f.journal.clone(), When::From, fault);
    }
}

#[test]
fn no_error_of_the_caches_disk_is_a_guests_error() {
    let shape = shape();
    let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
    for call in 0..40 {
        for when in [When::Once(call), When::From(call)] {
            let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
            life.faults().cache.plan(when, Fault::Io);
            for step in HISTORY {
                play(&mut life, &shape, step).unwrap_or_else(|v| panic!("{when:?}, {step:?}: {v}"));
            }
            check_reads(&life).unwrap_or_else(|v| panic!("{when:?}: {v}"));
        }
    }
}

#[test]
fn a_store_that_fails_once_is_asked_again_and_nobody_notices_but_readers() {
    for fault in [Fault::Io, Fault::Full, Fault::Lie] {
        let calls = each_call_fails(|f| f.store.clone(), When::Once, fault);
        assert!(calls > 8, "only {calls} calls: the history has lost its point");
    }
}

/// What is gone before a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    Nothing,
    Registry,
    AllButStore,
}

/// Fails each call of an opening node in turn.
fn each_call_of_recovery_fails(device: impl Fn(&LifeFaults) -> Faults, fault: Fault, lost: Lost) -> u64 {
    let shape = shape();
    let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    HISTORY.iter().for_each(|step| play(&mut life, &shape, *step).unwrap_or_else(|v| panic!("{step:?}: {v}")));
    let late = [Step::Write { volume: 0, block: 3 }, Step::SubBlock { volume: 1, block: 5 }, Step::Trim { volume: 0, block: 0 }];
    late.iter().for_each(|step| play(&mut life, &shape, *step).unwrap_or_else(|v| panic!("{step:?}: {v}")));
    let (mut world, past, mut bounds) = killed(life, &world, &past);
    if lost != Lost::Nothing {
        world.registry = Arc::default();
    }
    if lost == Lost::AllButStore {
        (world.journal, world.cache) = Default::default();
        bounds = past.stored.iter().zip(past.models.iter()).map(|(s, m)| Bounds { lower: *s, upper: m.ops(), parts: 0 }).collect();
    }
    for call in 0.. {
        let fired = named(&format!("{fault:?} at call {call} of recovery"), || {
            let mut life = Life::prepare(&shape, &world, &past);
            let faults = device(life.faults());
            faults.plan(When::Once(call), fault);
            let opened = life.open();
            let fired = faults.fired();
            faults.clear();
            if opened.is_ok() {
                // It says that all is well: then all must be there.
                for (model, bounds) in past.models.iter().zip(&bounds) {
                    let seen = life.read(model.volume).unwrap_or_else(|v| panic!("{v}"));
                    model.judge(&seen, *bounds).unwrap_or_else(|v| panic!("{v}"));
                }
            }
            // Whatever it said, and whatever it wrote, the next start on healthy devices finds everything.
            life.end(End::Killed);
            let (world, _, _) = killed(life, &world, &past);
            assert_whole(&shape, &world, &past, &bounds);
            fired
        });
        if fired == 0 {
            return call;
        }
    }
    0
}

#[test]
fn no_error_of_the_journals_disk_in_a_recovery_loses_an_acknowledged_write() {
    for fault in [Fault::Io, Fault::Half] {
        let calls = each_call_of_recovery_fails(|f| f.journal.clone(), fault, Lost::Nothing);
        assert!(calls > 10, "only {calls} calls");
    }
}

#[test]
fn no_error_of_the_caches_disk_in_a_recovery_loses_an_acknowledged_write() {
    each_call_of_recovery_fails(|f| f.cache.clone(), Fault::Io, Lost::Nothing);
}

#[test]
fn no_error_of_the_store_in_a_recovery_loses_an_acknowledged_write() {
    let calls = each_call_of_recovery_fails(|f| f.store.clone(), Fault::Io, Lost::Nothing);
    assert!(calls > 4, "only {calls} calls");
}

#[test]
fn no_error_of_the_store_in_a_recovery_without_registry_loses_an_acknowledged_write() {
    each_call_of_recovery_fails(|f| f.store.clone(), Fault::Io, Lost::Registry);
}

#[test]
fn no_error_of_the_store_in_a_recovery_from_it_alone_makes_it_take_an_older_state() {
    each_call_of_recovery_fails(|f| f.store.clone(), Fault::Io, Lost::AllButStore);
}

#[test]
fn a_disk_without_room_is_an_error_and_not_a_smaller_journal() {
    let shape = shape();
    let mut life = Life::prepare(&shape, &World::default(), &Past::fresh(&shape));
    life.faults().journal.plan(When::Once(2), Fault::Full);
    assert!(matches!(life.open(), Err(Violation::NoNode { .. })));
}

#[test]
fn a_decision_whose_answer_is_lost_is_made_once() {
    let shape = shape();
    let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    for step in HISTORY {
        life.registry().rules().lose_next_answer();
        play(&mut life, &shape, step).unwrap_or_else(|v| panic!("{step:?}: {v}"));
    }
    check_reads(&life).unwrap_or_else(|v| panic!("{v}"));
    let (world, past, bounds) = killed(life, &world, &past);
    assert_whole(&shape, &world, &past, &bounds);
}

/// Invariant 7 (One writer).
#[test]
fn a_writer_that_lost_its_volume_halts_and_its_late_writes_are_never_seen() {
    let shape = shape();
    let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    for step in &HISTORY[..9] {
        play(&mut life, &shape, *step).unwrap_or_else(|v| panic!("{step:?}: {v}"));
    }
    let before: Vec<usize> = life.models().iter().map(|m| m.ops()).collect();
    let records = lamina_contract::Coordination::list(life.registry()).expect("the registry is there");
    for record in records {
        life.registry().rules().steal(record.id).expect("the volume is there");
    }
    // Accepted by a node that cannot know yet; it finds out when it wants to store.
    play(&mut life, &shape, Step::Write { volume: 0, block: 3 }).unwrap_or_else(|v| panic!("{v}"));
    assert!(play(&mut life, &shape, Step::Store).is_ok(), "the other volumes' work is not disturbed");
    let late = play(&mut life, &shape, Step::Write { volume: 0, block: 2 });
    assert_eq!(late, Err(Violation::Unreadable { volume: 0, error: IoError::Halted }));
    let mut world = killed(life, &world, &past).0;
    // The thief has its own journal.
    (world.journal, world.cache) = Default::default();
    let thief = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    let seen = thief.read(0).unwrap_or_else(|v| panic!("{v}"));
    let late = [20, 24].map(|sector| seen[sector]);
    assert!(late.iter().all(|content| *content == Content::ZERO), "late writes are seen: {late:?}");
    assert!(before[0] > 0 && seen.iter().any(|content| *content != Content::ZERO), "what was stored is there");
}
