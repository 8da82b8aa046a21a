//! Which blocks of a volume hold data.

use std::collections::BTreeSet;
use std::sync::Arc;

use lamina_contract::{BlockAddress, VolumeId};

use crate::delta::{LEAF_BLOCKS, LeafNumber};
use crate::error::EngineError;
use crate::layers::{Base, Source};
use crate::map::RootState;
use crate::view::View;
use crate::volume::Volume;

/// Leaves looked through at a time: those of one directory.
const WINDOW: u64 = 1024;

/// A run of blocks that hold data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first.
    pub first: BlockAddress,
    /// How many.
    pub count: u64,
}

/// Leaves that may hold something, and roots to ask for more.
#[derive(Default)]
struct Candidates {
    leaves: BTreeSet<u64>,
    roots: Vec<(Arc<RootState>, u8)>,
    /// Volumes that were asked: a volume may stand on a snapshot of its own.
    asked: Vec<VolumeId>,
}

impl Volume {
    /// Blocks of the volume.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.size_bytes() / self.block_size().bytes() as u64
    }

    /// Runs of blocks from `from` on and below `end` that hold data, ascending, at least `limit` of them or all. Blocks that change
    /// meanwhile may be in or not. The second value is where to go on; None at the end.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub async fn extents(
        &self,
        from: BlockAddress,
        end: BlockAddress,
        limit: usize,
    ) -> Result<(Vec<Extent>, Option<BlockAddress>), EngineError> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = from;
        while at < end {
            let first = LeafNumber::of(at);
            let stop = LeafNumber((first.0 / WINDOW + 1) * WINDOW);
            for leaf in self.leaves(first, stop).await? {
                self.add_extents(leaf, at, end, &mut extents).await?;
                if extents.len() >= limit {
                    let next = LeafNumber(leaf.0 + 1).first_block();
                    return Ok((extents, (next < end).then_some(next)));
                }
            }
            at = stop.first_block();
        }
        Ok((extents, None))
    }

    /// Leaves in the range that may hold something, ascending.
    async fn leaves(&self, first: LeafNumber, stop: LeafNumber) -> Result<Vec<LeafNumber>, EngineError> {
        let mut candidates = Candidates::default();
        candidates.add(self, 0, first, stop);
        for (root, generations) in &candidates.roots {
            let mut next = first;
            while let Some(leaf) = self.pages.next_leaf(root, *generations, next, stop).await? {
                candidates.leaves.insert(leaf.0);
                next = LeafNumber(leaf.0 + 1);
            }
        }
        Ok(candidates.leaves.into_iter().map(LeafNumber).collect())
    }

    async fn add_extents(
        &self,
        leaf: LeafNumber,
        from: BlockAddress,
        end: BlockAddress,
        extents: &mut Vec<Extent>,
    ) -> Result<(), EngineError> {
        let first = leaf.first_block().0;
        for block in first.max(from.0)..(first + u64::from(LEAF_BLOCKS)).min(end.0) {
            let block = BlockAddress(block);
            let source = self.located(block).await.map_err(|_| EngineError::Unreadable { volume: self.id(), block })?;
            if matches!(source, Source::Zero) {
                continue;
            }
            match extents.last_mut() {
                Some(last) if last.first.0 + last.count == block.0 => last.count += 1,
                _ => extents.push(Extent { first: block, count: 1 }),
            }
        }
        Ok(())
    }
}

impl Candidates {
    /// What `volume`, so many generations up, may hold something in.
    fn add(&mut self, volume: &Volume, generations: u8, first: LeafNumber, stop: LeafNumber) {
        if self.asked.contains(&volume.id()) {
            return;
        }
        self.asked.push(volume.id());
        let (views, root) = {
            let layers = volume.layers.read();
            layers.for_each_leaf(first, stop, |leaf| self.leaves.extend([leaf.0]));
            (layers.views(), volume.pages.state())
        };
        self.roots.push((root, generations));
        for base in views {
            if let Base::View { view, generations: more } = base {
                self.add_view(&view, generations + more, first, stop);
            }
        }
    }

    fn add_view(&mut self, view: &View, generations: u8, first: LeafNumber, stop: LeafNumber) {
        match (view.root(), view.volume()) {
            (Some(root), _) => self.roots.push((root, generations)),
            // All its levels, though only those up to the view count: each block is looked up anyway.
            (None, Some(volume)) => self.add(&volume, generations, first, stop),
            (None, None) => {}
        }
    }
}
