//! Two volumes of four blocks on a node whose journal has rotted in one place.

use lamina_engine::EngineError;
use lamina_simulation::disk_image::Fate;
use lamina_simulation::history::{Step, play};
use lamina_simulation::life::{Life, Past, Shape, World};

use super::small_volume;

const PAGE: u64 = 4096;

/// See the file's header: block 1 of volume 0, written and synced last but one and not stored, cannot be read back.
pub struct RottenBlock {
    pub shape: Shape,
    pub world: World,
    pub past: Past,
}

impl RottenBlock {
    /// It rots after `before`, and in the hands of a node that checkpoints its maps after so many entries.
    pub fn after(before: &[Step], checkpoint_after: u64) -> Self {
        let mut shape = Shape::of(&[small_volume(4), small_volume(4)]);
        shape.checkpoint_after = Some(checkpoint_after);
        let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
        let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
        let write = |volume, block| Step::Write { volume, block };
        // The batch behind it says that it was synced.
        for step in before.iter().copied().chain([write(1, 2), write(0, 1), Step::Flush { volume: 0 }, write(1, 3)]) {
            play(&mut life, &shape, step).unwrap_or_else(|v| panic!("{v}"));
        }
        let (mut world, past) = life.killed(&world, &past);
        world.journal = world.journal.settle(&[Fate::Whole], |_| true);
        let (name, page) = world
            .journal
            .written_pages()
            .into_iter()
            .filter_map(|(name, pages)| pages.last().map(|page| (name, *page)))
            .max_by_key(|(_, page)| *page)
            .expect("a journal");
        // A batch of one block is a page of header and a page of data.
        assert!(world.journal.flip(&name, (page - 2) * PAGE + 100, 1), "a byte of the last block but one");
        Self { shape, world, past }
    }
}

/// Stores what can be stored, and gives how often that failed before the block was given up.
pub fn tries_until_given_up(life: &mut Life) -> usize {
    let mut tries = 0;
    while let Err(error) = life.step() {
        assert!(matches!(error, EngineError::JournalDamage { .. }), "{error}");
        tries += 1;
        assert!(tries < 20, "the volume is held up for ever");
    }
    tries
}
