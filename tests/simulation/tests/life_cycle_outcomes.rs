//! Life-cycle operations on volumes that are not as they should be: strange keys, lost blocks, a registry that is away.

mod support;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lamina_contract::{BlockDevice, Lba, Op, Request, SectorCount, SnapshotName, VolumeName, VolumeSettings};
use lamina_engine::{CloneSpec, EngineError, SnapshotSpec, VolumeState};
use lamina_simulation::disk_image::Fate;
use lamina_simulation::family::{Act, Difference, Disks, Family, shape};
use lamina_simulation::history::{Step, play};
use lamina_simulation::life::{End, Life, Past, Shape, World};
use lamina_simulation::log::Event;
use lamina_simulation::moment::Moment;
use lamina_simulation::transfer::transfer;
use support::small_volume;

fn must<T>(done: Result<T, Difference>) -> T {
    done.unwrap_or_else(|d| panic!("{d}"))
}

fn begin() -> Family {
    must(Family::begin(&shape(Some(0), 0), &World::default(), Disks::default()))
}

fn world_of(family: Family) -> World {
    let now_ms = family.life().now_ms();
    let (_, events) = family.into_history();
    let mut world = World::default();
    for event in &events {
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

/// One stray key in the namespace of a volume that the registry does not know: its epoch is the highest there is.
#[test]
fn a_stray_key_of_one_volume_keeps_no_other_from_opening() {
    let mut family = begin();
    must(family.act(Act::Create { blocks: 4 }));
    must(family.act(Act::Create { blocks: 4 }));
    must(family.act(Act::Write { disk: 0, block: 0, count: 2 }));
    must(family.act(Act::Write { disk: 1, block: 0, count: 2 }));
    must(family.act(Act::Store));
    let stranger = must(family.volume("d1")).id();
    let mut world = world_of(family);
    Arc::make_mut(&mut world.registry).retain(|record| record.id != stranger);
    let key = format!("{stranger}/manifest/000000000/0000000001-ffffffffffffffff");
    Arc::make_mut(&mut world.store).insert(key.into(), vec![1, 2, 3].into());
    match Family::begin(&shape(Some(0), 0), &world, Disks::default()) {
        Ok(mut family) => {
            must(family.volume("d0"));
            must(family.act(Act::Restart(End::Killed)));
            must(family.volume("d0"));
        }
        Err(error) => panic!("the node does not open: {error}"),
    }
}

/// A registry that does not answer for a moment: a guest whose disk is snapshotted just then must not be told that it is broken.
#[test]
fn a_snapshot_while_the_registry_is_away_breaks_no_guest() {
    let mut family = begin();
    must(family.act(Act::Create { blocks: 4 }));
    must(family.act(Act::Write { disk: 0, block: 0, count: 2 }));
    let volume = must(family.volume("d0"));
    let node = family.node();
    family.life().registry().rules().set_away(true);
    let spec = SnapshotSpec::named(SnapshotName::new("hourly").expect("works"));
    let taken = family.life().run(node.snapshot(&[(volume.id(), spec)]));
    family.life().registry().rules().set_away(false);
    println!("{taken:?}");
    assert_eq!(volume.state(), VolumeState::Serving, "a scheduled snapshot halted the disk");
}

/// A sub-block write that waits when a rollback begins: what it did not write must be what was gone back to.
#[test]
fn a_part_of_a_block_that_waited_brings_nothing_back_of_what_was_discarded() {
    let mut family = begin();
    must(family.act(Act::Create { blocks: 2048 }));
    let volume = must(family.volume("d0"));
    let whole = |block: u64, byte: u8| {
        let (t, wait) = transfer(vec![byte; 4096], |_| {});
        let mut batch = vec![Request { op: Op::Write { fua: false }, start: Lba(block * 8), sectors: SectorCount(8), transfer: t }];
        family.life().inside(|| volume.submit(&mut batch));
        wait
    };
    assert_eq!(whole(5, 0x11).answer(), Some(Ok(())));
    let node = family.node();
    let spec = |name: &str| SnapshotSpec::named(SnapshotName::new(name).expect("works"));
    let taken = family.life().run(node.snapshot(&[(volume.id(), spec("s"))])).expect("taken").remove(0);
    family.life().run(node.step(true)).expect("store");
    assert_eq!(whole(5, 0x22).answer(), Some(Ok(())));
    // A part of block 5 while the journal has no room: large writes of other blocks fill it past the throttle.
    let mut n = 6_u64;
    let mut held = Vec::new();
    loop {
        let wait = whole(6 + n % 2000, (n % 250) as u8 + 1);
        n += 1;
        if wait.answer().is_none() {
            held.push(wait);
            break;
        }
    }
    let (t, part) = transfer(vec![0x33; 512], |_| {});
    let mut batch = vec![Request { op: Op::Write { fua: false }, start: Lba(5 * 8), sectors: SectorCount(1), transfer: t }];
    family.life().inside(|| volume.submit(&mut batch));
    println!("after {n} writes; part answered: {:?}", part.answer());
    family.life().run(node.rollback(volume.id(), taken.note.id, spec("d"))).expect("rolled back");
    for _ in 0..5 {
        family.life().run(node.step(true)).expect("store");
    }
    let (t, read) = transfer(vec![0xee; 4096], |_| {});
    let mut batch = vec![Request { op: Op::Read, start: Lba(5 * 8), sectors: SectorCount(8), transfer: t }];
    family.life().inside(|| volume.submit(&mut batch));
    family.life().answer_of(&read).expect("read");
    let bytes = read.take_bytes();
    println!("part: {:?}; first sector {:x}, second {:x}", part.answer(), bytes[0], bytes[512]);
    assert_eq!(bytes[0], 0x11, "a write from before the rollback is in what was gone back to");
}

fn left_of(life: Life, world: &World, past: &Past) -> (World, Past) {
    let (models, next_op) = (life.models().clone(), life.next_op());
    let mut moment = Moment::at_start(world, past, &models);
    life.into_log().iter().for_each(|event| moment.apply(event));
    (moment.world, Past { models, durable: vec![0, 0], stored: vec![0, 0], next_op })
}

/// A clone whose parent lost a block, alone in its map page, can still be made independent, or is told why not.
#[test]
fn flattening_a_clone_with_a_lost_block_says_which() {
    let mut shape = Shape::of(&[small_volume(4), small_volume(4)]);
    shape.checkpoint_after = Some(0);
    let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    let write = |volume, block| Step::Write { volume, block };
    for step in [write(1, 2), write(0, 1), Step::Flush { volume: 0 }, write(1, 3)] {
        play(&mut life, &shape, step).unwrap_or_else(|v| panic!("{v}"));
    }
    let (mut world, past) = left_of(life, &world, &past);
    world.journal = world.journal.settle(&[Fate::Whole], |_| true);
    let (name, page) = world
        .journal
        .written_pages()
        .into_iter()
        .filter_map(|(name, pages)| pages.last().map(|page| (name, *page)))
        .max_by_key(|(_, page)| *page)
        .expect("a journal");
    assert!(world.journal.flip(&name, (page - 2) * 4096 + 100, 1), "a byte of the last block but one");
    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    let mut tries = 0;
    while let Err(error) = life.step() {
        assert!(matches!(error, EngineError::JournalDamage { .. }), "{error}");
        tries += 1;
        assert!(tries < 20, "the volume is held up for ever");
    }
    let node = life.node().expect("a process").clone();
    let parent = node.volumes().into_iter().find(|v| v.spec().name.as_str() == "v0").expect("v0").id();
    let spec = SnapshotSpec::named(SnapshotName::new("golden").expect("works"));
    let taken = life.run(node.snapshot(&[(parent, spec)])).expect("taken").remove(0);
    life.step().expect("stored");
    let clone = CloneSpec { name: VolumeName::new("c").expect("works"), settings: VolumeSettings::default() };
    let clone = life.run(node.clone_volume(parent, taken.note.id, &[clone])).expect("cloned").remove(0);
    life.step().expect("stored");
    let flattened = life.run(node.flatten(clone.id(), &|_, _| {}, &AtomicBool::new(false)));
    // It cannot be copied; who writes or discards it can flatten then.
    assert!(matches!(flattened, Err(EngineError::Unreadable { .. })), "{flattened:?}");
}
