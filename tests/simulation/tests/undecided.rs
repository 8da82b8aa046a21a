//! A manifest that was stored and never decided stays in the store when its writer crashes. It must not come to life later, when guests
//! have long seen a state without it. Invariants 4 (Store only), 7 (One writer).

mod support;

use lamina_simulation::disk_image::Fate;
use lamina_simulation::history::{Step, play};
use lamina_simulation::life::{Life, Past, Shape};
use lamina_simulation::log::Event;
use lamina_simulation::moment::Moment;
use lamina_simulation::oracle::Bounds;
use support::small_volume;

#[test]
fn what_power_took_does_not_come_back_when_only_the_store_is_left() {
    let shape = Shape::of(&[small_volume(4)]);
    let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    let (write, flush) = (|block| Step::Write { volume: 0, block }, Step::Flush { volume: 0 });
    for step in [write(0), flush, write(0), Step::Store] {
        play(&mut life, &shape, step).unwrap_or_else(|v| panic!("{v}"));
    }
    let (models, next_op) = (life.models().clone(), life.next_op());
    let events = life.into_log();
    // Power is cut when the manifest is stored and not decided; of the journal, the unflushed write is lost.
    let decided = events.iter().rposition(|e| matches!(e, Event::Registry(_))).expect("a decision");
    let mut moment = Moment::at_start(&world, &past, &models);
    events[..decided].iter().for_each(|event| moment.apply(event));
    let mut world = moment.world;
    assert!(world.store.keys().any(|key| key.as_ref().contains("/manifest/")), "a manifest is stored");
    world.journal = world.journal.settle(&[Fate::Lost], |_| true);

    // The guest finds one of the two states, and goes on from there.
    let past = Past { models, durable: vec![0], stored: vec![0], next_op };
    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    let seen = life.read(0).unwrap_or_else(|v| panic!("{v}"));
    let mut now = past.models[0].clone();
    let state = now.settle(&seen, Bounds { lower: 1, upper: 2, parts: 0 }).unwrap_or_else(|v| panic!("{v}"));
    play(&mut life, &shape, write(1)).unwrap_or_else(|v| panic!("{v}"));
    let mut moment = Moment::at_start(&world, &past, life.models());
    life.into_log().iter().for_each(|event| moment.apply(event));

    // Now everything but the store is lost: what comes back is a state that led to what the guest saw.
    let mut world = moment.world;
    (world.journal, world.cache, world.registry) = Default::default();
    let past = Past { models: vec![now.truncated(state)].into(), durable: vec![0], stored: vec![0], next_op };
    let life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    let seen = life.read(0).unwrap_or_else(|v| panic!("{v}"));
    let judged = past.models[0].judge(&seen, Bounds { lower: 0, upper: state, parts: 0 });
    assert!(judged.is_ok(), "the guest saw state {state}, and the store gives: {judged:?}");
}
