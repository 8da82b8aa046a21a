//! A process that dies between writing a segment's header and syncing it leaves a header that says, in the page cache alone, which older
//! segments are dead. Recovery believes it; a power cut then must not take it back, or the dead segments' lost batches would end the next
//! recovery before what is live. Invariants 1 (Kill), 2 (Power).

use lamina_contract::{BlockSize, ScoSize};
use lamina_simulation::disk_image::DiskEvent;
use lamina_simulation::explore::{Effort, Explorer};
use lamina_simulation::history::{Step, ended, play};
use lamina_simulation::life::{Life, Past, Shape, VolumeShape};
use lamina_simulation::log::Event;
use lamina_simulation::moment::Moment;
use lamina_simulation::oracle::Part;

const BLOCKS: usize = 32;

#[test]
fn a_header_that_recovery_believed_survives_power() {
    let volume = VolumeShape {
        blocks: BLOCKS,
        block_size: BlockSize::new(65536).expect("a size"),
        sco_size: ScoSize::new(1 << 20).expect("a size"),
    };
    let shape = Shape::of(&[volume]);
    let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    // Two such writes fill a segment. What is stored makes older segments dead, without a sync.
    for _ in 0..5 {
        let contents = vec![life.fresh(); volume.sectors()];
        life.write(0, &[Part { sector: 0, contents }], false).expect("a write");
        play(&mut life, &shape, Step::Store).unwrap_or_else(|v| panic!("{v}"));
        play(&mut life, &shape, Step::Write { volume: 0, block: 1 }).unwrap_or_else(|v| panic!("{v}"));
    }
    let life = ended(life, &shape, &world, &past);

    let mut moment = Moment::at_start(&world, &past, &life.models);
    let mut headers = 0;
    for event in &life.events {
        moment.apply(event);
        if !matches!(event, Event::Journal(DiskEvent::Write { offset: 0, .. })) {
            continue;
        }
        headers += 1;
        let durable = moment.after_power().iter().map(|b| b.lower).collect();
        let bounds = moment.after_kill()[0];
        let seen = {
            let past = Past { models: life.models.clone(), durable: vec![0], stored: vec![0], next_op: life.next_op };
            let life = Life::begin(&shape, &moment.world, &past).unwrap_or_else(|v| panic!("header {headers}: {v}"));
            life.read(0).unwrap_or_else(|v| panic!("header {headers}: {v}"))
        };
        let mut models = Vec::clone(&life.models);
        let found = models[0].settle(&seen, bounds).unwrap_or_else(|v| panic!("header {headers}: {v}"));
        let past = moment.past(&models, &[found], durable, life.next_op);
        let again = Life::begin(&shape, &moment.world, &past).unwrap_or_else(|v| panic!("header {headers}: {v}"));
        let again = ended(again, &shape, &moment.world, &past);
        let effort = Effort { exhaustive_writes: 0, random_images: 3, cut_recoveries: 10, moments: 100 };
        Explorer::new(effort, 7).explore(&again, 0).unwrap_or_else(|f| panic!("header {headers}:\n{f}"));
    }
    assert!(headers >= 3, "{headers} segments were begun");
}
