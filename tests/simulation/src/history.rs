//! Histories: what guests do with a world's volumes, by list or by chance.

use std::sync::Arc;

use lamina_contract::Op;

use crate::dice::Dice;
use crate::explore::Ended;
use crate::life::{End, Life, Past, Shape, World};
use crate::oracle::{Part, Violation};
use crate::stamp::Content;

/// One thing that happens in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A whole block is written.
    Write {
        /// Which volume.
        volume: usize,
        /// Which block.
        block: usize,
    },
    /// One sector within a block is written.
    SubBlock {
        /// Which volume.
        volume: usize,
        /// Which block.
        block: usize,
    },
    /// A block is discarded.
    Trim {
        /// Which volume.
        volume: usize,
        /// Which block.
        block: usize,
    },
    /// A flush.
    Flush {
        /// Which volume.
        volume: usize,
    },
    /// Everything accepted goes to the store.
    Store,
    /// The process ends, and another begins.
    Restart(End),
}

/// Lets `step` happen.
///
/// # Errors
/// A violation when a healthy node refuses, or does not come back.
pub fn play(life: &mut Life, shape: &Shape, step: Step) -> Result<(), Violation> {
    let refused = |volume| move |error| Violation::Unreadable { volume, error };
    match step {
        Step::Write { volume, block } => {
            let per_block = shape.volumes[volume].per_block();
            let contents = vec![life.fresh(); per_block];
            life.write(volume, &[Part { sector: block * per_block, contents }], false).map_err(refused(volume))
        }
        Step::SubBlock { volume, block } => {
            let sector = block * shape.volumes[volume].per_block() + 3;
            let contents = vec![life.fresh()];
            life.write(volume, &[Part { sector, contents }], false).map_err(refused(volume))
        }
        Step::Trim { volume, block } => {
            let per_block = shape.volumes[volume].per_block();
            life.zero(volume, Op::Discard, block * per_block..(block + 1) * per_block).map_err(refused(volume))
        }
        Step::Flush { volume } => life.flush(volume).map_err(refused(volume)),
        Step::Store => life.step().map_err(|error| Violation::NoNode { why: error.to_string().into() }),
        Step::Restart(end) => {
            life.end(end);
            life.open()
        }
    }
}

/// Everything reads as it was written.
///
/// # Errors
/// What does not.
pub fn check_reads(life: &Life) -> Result<(), Violation> {
    for model in life.models().iter() {
        let now = crate::oracle::Bounds { lower: model.ops(), upper: model.ops(), parts: 0 };
        model.judge(&life.read(model.volume)?, now)?;
    }
    Ok(())
}

/// Ends `life`, which was begun on `world`, for its crashes to be looked at.
#[must_use]
pub fn ended<'a>(life: Life, shape: &'a Shape, world: &'a World, past: &'a Past) -> Ended<'a> {
    let (models, next_op, now_ms) = (Arc::clone(life.models()), life.next_op(), life.now_ms());
    Ended { shape, world, past, models, events: life.into_log(), next_op, now_ms }
}

/// Throws what guests do.
#[derive(Debug)]
pub struct Guests {
    dice: Dice,
    /// Of 100 writes, how many cover much of a volume: they turn the journal's segments.
    pub large: u64,
}

impl Guests {
    /// With chance from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let large = if dice.chance(40) { 60 } else { 2 };
        Self { dice, large }
    }

    /// Does one thing to a volume of `life`.
    ///
    /// # Errors
    /// A violation when a healthy node refuses.
    pub fn act(&mut self, life: &mut Life, shape: &Shape) -> Result<(), Violation> {
        let volume = self.dice.index(shape.volumes.len());
        life.pass(self.dice.below(200));
        match self.dice.below(100) {
            0..=54 => self.write(life, shape, volume),
            55..=64 => self.zero(life, shape, volume),
            65..=79 => play(life, shape, Step::Flush { volume }),
            80..=93 => play(life, shape, Step::Store),
            94 | 95 => play(life, shape, Step::Restart(End::Clean)),
            96 | 97 => play(life, shape, Step::Restart(End::Killed)),
            _ => check_reads(life),
        }
    }

    fn write(&mut self, life: &mut Life, shape: &Shape, volume: usize) -> Result<(), Violation> {
        let size = shape.volumes[volume];
        let (sectors, per_block) = (size.sectors(), size.per_block());
        let fua = self.dice.chance(5);
        let parts = if self.dice.chance(self.large) {
            let start = self.dice.index(size.blocks / 4 + 1) * per_block;
            vec![self.part(life, start, sectors - start, per_block)]
        } else if self.dice.chance(30) {
            let start = self.dice.index(sectors);
            let len = 1 + self.dice.index((sectors - start).min(3 * per_block));
            vec![self.part(life, start, len, per_block)]
        } else {
            // Different blocks in one batch: every second from some block on.
            let first = self.dice.index(size.blocks);
            let count = 1 + self.dice.index(4);
            let blocks = (0..count).map(|n| first + 2 * n).filter(|b| *b < size.blocks).collect::<Vec<_>>();
            blocks.into_iter().map(|b| self.part(life, b * per_block, per_block, per_block)).collect()
        };
        life.write(volume, &parts, fua).map_err(|error| Violation::Unreadable { volume, error })
    }

    fn part(&mut self, life: &mut Life, sector: usize, len: usize, per_block: usize) -> Part {
        // Whole blocks may be templates, so that there is something to refer to.
        let whole = sector.is_multiple_of(per_block) && len.is_multiple_of(per_block);
        let content = if whole && self.dice.chance(25) {
            Content::template(1 + self.dice.below(4) as u32)
        } else if self.dice.chance(3) {
            Content::ZERO
        } else {
            life.fresh()
        };
        Part { sector, contents: vec![content; len] }
    }

    fn zero(&mut self, life: &mut Life, shape: &Shape, volume: usize) -> Result<(), Violation> {
        let size = shape.volumes[volume];
        let per_block = size.per_block();
        let first = self.dice.index(size.blocks);
        let count = 1 + self.dice.index((size.blocks - first).min(8));
        let mut range = first * per_block..(first + count) * per_block;
        let op = match self.dice.below(3) {
            0 => Op::Discard,
            n => {
                // Zeros may be written to parts of blocks; a discard of a part promises nothing.
                range.start += self.dice.index(per_block);
                Op::WriteZeroes { unmap: n == 1 }
            }
        };
        life.zero(volume, op, range).map_err(|error| Violation::Unreadable { volume, error })
    }
}
