//! What operators and guests do to a family of disks.

use crate::dice::Dice;
use crate::life::End;

/// One thing that an operator or a guest does. Disks are named by numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// A disk of zeros appears.
    Create {
        /// Its blocks.
        blocks: usize,
    },
    /// Some blocks get new content.
    Write {
        /// Which disk.
        disk: usize,
        /// First block.
        block: usize,
        /// How many.
        count: usize,
    },
    /// A part of a block gets new content.
    SubBlock {
        /// Which disk.
        disk: usize,
        /// Which block.
        block: usize,
    },
    /// Some blocks become zero.
    Discard {
        /// Which disk.
        disk: usize,
        /// First block.
        block: usize,
        /// How many.
        count: usize,
    },
    /// A snapshot of one disk.
    Snapshot {
        /// Which disk.
        disk: usize,
    },
    /// A block gets new content that is not flushed, and then a snapshot is taken.
    WriteAndSnapshot {
        /// Which disk.
        disk: usize,
        /// Which block.
        block: usize,
    },
    /// Snapshots of two disks at one moment.
    SnapshotTwo {
        /// One disk.
        disk: usize,
        /// Another.
        other: usize,
    },
    /// A disk goes back to its snapshot with this number.
    Rollback {
        /// Which disk.
        disk: usize,
        /// Which of its snapshots.
        snapshot: usize,
    },
    /// Clones of a snapshot.
    Clone {
        /// Which disk.
        disk: usize,
        /// Which of its snapshots.
        snapshot: usize,
        /// How many clones.
        count: usize,
    },
    /// A snapshot is deleted.
    DeleteSnapshot {
        /// Which disk.
        disk: usize,
        /// Which of its snapshots.
        snapshot: usize,
    },
    /// A disk is deleted with its snapshots.
    Delete {
        /// Which disk.
        disk: usize,
    },
    /// A disk becomes larger or smaller.
    Resize {
        /// Which disk.
        disk: usize,
        /// Its blocks then.
        blocks: usize,
        /// Data may be cut off.
        force: bool,
    },
    /// A clone takes over its ancestors' blocks.
    Flatten {
        /// Which disk.
        disk: usize,
    },
    /// Everything goes to the store.
    Store,
    /// The process ends, and another begins.
    Restart(End),
}

impl Act {
    /// One by chance, for a family of `disks` disks that is to have `most` at most: mostly writes and snapshots, all kinds in any
    /// history of some length.
    #[must_use]
    pub fn by_chance(dice: &mut Dice, disks: usize, most: usize) -> Self {
        if disks == 0 {
            return Self::Create { blocks: 1 + dice.index(12) };
        }
        let (disk, block, snapshot) = (dice.index(64), dice.index(64), dice.index(64));
        match dice.below(100) {
            0..=1 if disks < most => Self::Create { blocks: 1 + dice.index(12) },
            0..=27 => Self::Write { disk, block, count: 1 + dice.index(4) },
            28..=31 => Self::SubBlock { disk, block },
            32..=37 => Self::Discard { disk, block, count: 1 + dice.index(3) },
            38..=49 => Self::Snapshot { disk },
            50..=52 => Self::SnapshotTwo { disk, other: dice.index(64) },
            53..=60 => Self::Rollback { disk, snapshot },
            61..=69 if disks < most => Self::Clone { disk, snapshot, count: 1 + dice.index(2) },
            61..=73 => Self::DeleteSnapshot { disk, snapshot },
            74..=76 => Self::Delete { disk },
            77..=80 => Self::Resize { disk, blocks: 1 + dice.index(14), force: dice.chance(50) },
            81..=84 => Self::Flatten { disk },
            85..=92 => Self::Store,
            93..=96 => Self::Restart(End::Killed),
            _ => Self::Restart(End::Clean),
        }
    }
}
