//! A store that is away when a node starts: the others serve, what the journal holds of a volume that cannot be opened is kept, and the
//! volume comes back with every acknowledged write once the store answers. Invariants 1 (Kill), 8 (Errors lose nothing).

mod support;

use std::sync::Arc;

use lamina_simulation::fault::{Fault, When};
use lamina_simulation::history::{Step, play};
use lamina_simulation::life::{Life, Past, Shape, World, name_of};
use lamina_simulation::oracle::{Bounds, Model, Violation};
use support::small_volume;

/// A world in which `history` happened before the process was killed.
fn killed_after(shape: &Shape, history: &[Step]) -> (World, Past) {
    let (world, past) = Life::create(shape).unwrap_or_else(|v| panic!("{v}"));
    let mut life = Life::begin(shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    for step in history {
        play(&mut life, shape, *step).unwrap_or_else(|v| panic!("{step:?}: {v}"));
    }
    life.killed(&world, &past)
}

fn all_of(model: &Model) -> Bounds {
    Bounds { lower: model.ops(), upper: model.ops(), parts: 0 }
}

const HISTORY: [Step; 7] = [
    Step::Write { volume: 0, block: 0 },
    Step::Write { volume: 1, block: 1 },
    Step::Store,
    Step::Write { volume: 0, block: 0 },
    Step::Write { volume: 0, block: 2 },
    Step::Trim { volume: 1, block: 1 },
    Step::Write { volume: 1, block: 3 },
];

#[test]
fn volumes_come_back_with_the_store_and_nothing_is_missing() {
    let shape = Shape::of(&[small_volume(4), small_volume(4)]);
    let (world, past) = killed_after(&shape, &HISTORY);
    come_back(&shape, &world, &past);
}

#[test]
fn so_they_do_when_the_registry_is_lost_as_well() {
    let shape = Shape::of(&[small_volume(4), small_volume(4)]);
    let (mut world, past) = killed_after(&shape, &HISTORY);
    world.registry = Arc::default();
    come_back(&shape, &world, &past);
}

fn come_back(shape: &Shape, world: &World, past: &Past) {
    let mut late = 0;
    // The store answers the first `answered` calls of the start, then no more; 40 are more than a start needs.
    for answered in 0..40 {
        let mut life = Life::prepare(shape, world, past);
        life.faults().store.plan(When::From(answered), Fault::Io);
        match life.open() {
            Ok(()) => {}
            Err(Violation::NotOpened { .. }) => {
                late += 1;
                let node = Arc::clone(life.node().expect("a node whose volumes are missing"));
                assert!(node.lacks_volumes(), "store gone after {answered} calls");
                assert!(life.run(node.reopen()).is_empty(), "the store is still away");
                life.faults().store.clear();
                assert!(!life.run(node.reopen()).is_empty(), "store gone after {answered} calls, back now");
                assert!(!node.lacks_volumes() && node.unopened().is_empty());
                assert!(life.run(node.reopen()).is_empty(), "nothing is left to open");
                life.adopt().unwrap_or_else(|v| panic!("store gone after {answered} calls: {v}"));
            }
            Err(other) => panic!("store gone after {answered} calls: {other}"),
        }
        life.faults().store.clear();
        for model in past.models.iter() {
            let seen = life.read(model.volume).unwrap_or_else(|v| panic!("store gone after {answered} calls: {v}"));
            model.judge(&seen, all_of(model)).unwrap_or_else(|v| panic!("store gone after {answered} calls: {v}"));
        }
        // It is stored like any other, and a later start finds it.
        play(&mut life, shape, Step::Write { volume: 0, block: 3 }).unwrap_or_else(|v| panic!("{v}"));
        play(&mut life, shape, Step::Store).unwrap_or_else(|v| panic!("{v}"));
        let (left, again) = life.killed(world, past);
        // Of this, the store alone must be enough.
        let life = Life::begin(shape, &left.store_alone(), &again)
            .unwrap_or_else(|v| panic!("store gone after {answered} calls, then alone: {v}"));
        for model in again.models.iter() {
            let seen = life.read(model.volume).unwrap_or_else(|v| panic!("{v}"));
            model.judge(&seen, all_of(model)).unwrap_or_else(|v| panic!("store gone after {answered} calls, then alone: {v}"));
        }
    }
    assert!(late > 4, "the store was away too late to matter: {late}");
}

#[test]
fn a_volume_that_is_deleted_while_it_is_not_open_stays_deleted() {
    let shape = Shape::of(&[small_volume(4)]);
    let history = [Step::Write { volume: 0, block: 0 }, Step::Store, Step::Write { volume: 0, block: 1 }];
    let (world, past) = killed_after(&shape, &history);
    let mut life = Life::prepare(&shape, &world, &past);
    // Listing the store works, reading the manifest does not.
    life.faults().store.plan(When::From(2), Fault::Io);
    assert!(matches!(life.open(), Err(Violation::NotOpened { .. })));
    let node = Arc::clone(life.node().expect("a node"));
    let id = node.unopened().first().expect("one is not open").record.id;
    life.run(node.delete(id, true)).expect("deleted");
    life.faults().store.clear();
    assert!(life.run(node.reopen()).is_empty());
    assert!(!node.lacks_volumes() && node.volumes().iter().all(|volume| volume.spec().name != name_of(0)));
}
