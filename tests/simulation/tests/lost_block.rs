//! One block rots in the journal before it is stored. It must not hold up its volume, let alone its neighbours: after some tries it is
//! recorded as lost, reading it is an error (never other bytes, never what stood there before), and writing it mends it.

mod support;

use lamina_contract::IoError;
use lamina_engine::EngineError;
use lamina_simulation::disk_image::Fate;
use lamina_simulation::history::{Step, play};
use lamina_simulation::life::{Life, Past, Shape, World};
use lamina_simulation::moment::Moment;
use support::small_volume;

const SECTORS: usize = 8;

fn read(life: &Life, block: usize) -> Result<Vec<u8>, IoError> {
    life.read_sectors(0, block * SECTORS..(block + 1) * SECTORS)
}

fn is_lost(life: &Life, block: usize, when: &str) {
    assert_eq!(read(life, block).err(), Some(IoError::Io), "{when}: neither other bytes nor what stood there before");
}

fn is(life: &Life, block: usize) {
    let model = &life.models()[0];
    assert!(read(life, block) == Ok(model.bytes_of(model.ops(), block)), "block {block}");
}

fn left_of(life: Life, world: &World, past: &Past) -> (World, Past) {
    let (models, next_op) = (life.models().clone(), life.next_op());
    let mut moment = Moment::at_start(world, past, &models);
    life.into_log().iter().for_each(|event| moment.apply(event));
    (moment.world, Past { models, durable: vec![0, 0], stored: vec![0, 0], next_op })
}

#[test]
fn a_rotten_block_is_lost_alone_and_until_it_is_written_again() {
    let mut shape = Shape::of(&[small_volume(4), small_volume(4)]);
    shape.checkpoint_after = Some(4);
    let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    let write = |volume, block| Step::Write { volume, block };
    // An older content of the block is stored; the newer one stands in the journal, synced, and the batch behind it says so.
    for step in [write(0, 1), Step::Store, write(0, 0), write(1, 2), write(0, 1), Step::Flush { volume: 0 }, write(1, 3)] {
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
    // A batch of one block is a page of header and a page of data.
    assert!(world.journal.flip(&name, (page - 2) * 4096 + 100, 1), "a byte of the last block but one");

    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    is_lost(&life, 1, "at the start");
    let mut tries = 0;
    while let Err(error) = life.step() {
        assert!(matches!(error, EngineError::JournalDamage { .. }), "{error}");
        tries += 1;
        assert!(tries < 20, "the volume is held up for ever");
    }
    assert!(tries >= 3, "given up after {tries} tries");
    is_lost(&life, 1, "given up");
    is(&life, 0);
    let seen = life.read(1).unwrap_or_else(|v| panic!("{v}"));
    assert!(seen == **life.models()[1].now(), "the neighbour");

    // The same after a restart, after a checkpoint, and when only the store is left.
    let (mut world, past) = left_of(life, &world, &past);
    (world.journal, world.cache, world.registry) = Default::default();
    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    is_lost(&life, 1, "from the store alone");
    is(&life, 0);
    for block in [2, 3, 2, 3, 2] {
        play(&mut life, &shape, write(0, block)).unwrap_or_else(|v| panic!("{v}"));
        play(&mut life, &shape, Step::Store).unwrap_or_else(|v| panic!("{v}"));
    }
    assert!(life.node().expect("a node").volumes().iter().any(|volume| volume.status().checkpoints > 0));
    is_lost(&life, 1, "after checkpoints");
    assert!(play(&mut life, &shape, Step::SubBlock { volume: 0, block: 1 }).is_err(), "half of it cannot be changed");
    play(&mut life, &shape, write(0, 1)).unwrap_or_else(|v| panic!("{v}"));
    is(&life, 1);
}
