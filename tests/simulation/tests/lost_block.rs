//! One block rots in the journal before it is stored. It must not hold up its volume, let alone its neighbours: after some tries it is
//! recorded as lost, reading it is an error (never other bytes, never what stood there before), and writing it mends it.

mod support;

use lamina_contract::IoError;
use lamina_simulation::history::{Step, play};
use lamina_simulation::life::Life;
use support::rotten_block::{RottenBlock, tries_until_given_up};

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

#[test]
fn a_rotten_block_is_lost_alone_and_until_it_is_written_again() {
    // An older content of the block is stored; the newer one stands in the journal, synced, and the batch behind it says so.
    let write = |volume, block| Step::Write { volume, block };
    let RottenBlock { shape, world, past } = RottenBlock::after(&[write(0, 1), Step::Store, write(0, 0)], 4);
    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    is_lost(&life, 1, "at the start");
    let tries = tries_until_given_up(&mut life);
    assert!(tries >= 3, "given up after {tries} tries");
    is_lost(&life, 1, "given up");
    is(&life, 0);
    let seen = life.read(1).unwrap_or_else(|v| panic!("{v}"));
    assert!(seen == **life.models()[1].now(), "the neighbour");

    // The same after a restart, after a checkpoint, and when only the store is left.
    let (world, past) = life.killed(&world, &past);
    let mut life = Life::begin(&shape, &world.store_alone(), &past).unwrap_or_else(|v| panic!("{v}"));
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
