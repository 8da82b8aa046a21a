//! What a volume may hold: every state that its operations led through, and which of them a crash may leave.
//!
//! Operations of a volume are ordered; state k is what the first k of them made. After a crash the volume must be in some state k
//! with lower ≤ k ≤ upper, where of operation k + 1 some whole blocks may have arrived, but no part of a block.

use std::sync::Arc;

use crate::stamp::{Content, Place, SECTOR, paint, read};

/// One request of an operation: sectors that get new content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// First sector.
    pub sector: usize,
    /// Content of each sector from there on.
    pub contents: Vec<Content>,
}

/// A volume's history, as its guest knows it.
#[derive(Debug, Clone)]
pub struct Model {
    /// Which volume of the world.
    pub volume: usize,
    /// Sectors of its blocks.
    pub per_block: usize,
    states: Vec<Arc<Vec<Content>>>,
    /// For each operation, its parts' sectors.
    parts: Vec<Vec<std::ops::Range<usize>>>,
}

/// What a crash at some moment may leave of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// Operations that must be there.
    pub lower: usize,
    /// Operations that may be there.
    pub upper: usize,
    /// Bit n: request n of operation `lower` must be there too.
    pub parts: u64,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A sector that nobody ever wrote there.
    #[error("volume {volume}: sector {sector} holds bytes that nobody wrote there: {head:08x?}…")]
    Foreign {
        /// Which volume.
        volume: usize,
        /// Which sector.
        sector: usize,
        /// Its first words: magic, volume, sector and operation in a stamp that is whole.
        head: [u32; 4],
    },
    /// No admissible state fits.
    #[error("volume {volume}: no state from {} to {} fits; closest is {closest} but for block {block}, where found and expected are {found:?}", bounds.lower, bounds.upper)]
    NoState {
        /// Which volume.
        volume: usize,
        /// What was admissible.
        bounds: Bounds,
        /// The state that fits longest.
        closest: usize,
        /// The first block that does not fit it.
        block: usize,
        /// What the block's first sectors hold, and what they hold in that state.
        found: Vec<(Content, Content)>,
    },
    /// A request that was acknowledged is not there.
    #[error("volume {volume}: request {part} of operation {op} was acknowledged and is lost")]
    PartLost {
        /// Which volume.
        volume: usize,
        /// Which operation.
        op: usize,
        /// Which of its requests.
        part: usize,
    },
    /// A volume is not served after recovery.
    #[error("volume {volume} does not come back: {why}")]
    NotOpened {
        /// Which volume.
        volume: usize,
        /// What the node said.
        why: Arc<str>,
    },
    /// The node does not open.
    #[error("the node does not open: {why}")]
    NoNode {
        /// What it said.
        why: Arc<str>,
    },
    /// A read failed.
    #[error("volume {volume} cannot be read: {error}")]
    Unreadable {
        /// Which volume.
        volume: usize,
        /// What the guest was told.
        error: lamina_contract::IoError,
    },
    /// A second recovery from the same bytes, or one that was cut off before, yields something else.
    #[error("volume {volume}: a recovery that was cut off at its event {event} and repeated yields another content")]
    NotIdempotent {
        /// Which volume.
        volume: usize,
        /// Where it was cut.
        event: usize,
    },
}

impl Model {
    /// A volume of `sectors` that holds `state`.
    #[must_use]
    pub fn of(volume: usize, per_block: usize, state: Vec<Content>) -> Self {
        Self { volume, per_block, states: vec![Arc::new(state)], parts: Vec::new() }
    }

    /// What it holds when every operation is there.
    #[must_use]
    pub fn now(&self) -> &Arc<Vec<Content>> {
        // There is a state 0 from the start.
        &self.states[self.states.len() - 1]
    }

    /// How many operations there were.
    #[must_use]
    pub fn ops(&self) -> usize {
        self.parts.len()
    }

    /// The history up to state `k`: what came later is gone for good.
    #[must_use]
    pub fn truncated(&self, k: usize) -> Self {
        Self { states: self.states[..=k].to_vec(), parts: self.parts[..k].to_vec(), ..*self }
    }

    /// How many requests each operation had.
    pub fn requests(&self) -> impl Iterator<Item = usize> + '_ {
        self.parts.iter().map(Vec::len)
    }

    /// Adds an operation; returns how many there are.
    pub fn push(&mut self, parts: &[Part]) -> usize {
        let mut state = (**self.now()).clone();
        for part in parts {
            state[part.sector..part.sector + part.contents.len()].copy_from_slice(&part.contents);
        }
        self.states.push(Arc::new(state));
        self.parts.push(parts.iter().map(|p| p.sector..p.sector + p.contents.len()).collect());
        self.parts.len()
    }

    /// What `bytes`, read from the volume's start, hold.
    ///
    /// # Errors
    /// [`Violation::Foreign`].
    pub fn read(&self, bytes: &[u8]) -> Result<Vec<Content>, Violation> {
        self.read_from(0, bytes)
    }

    /// What `bytes`, read from sector `first` on, hold.
    ///
    /// # Errors
    /// [`Violation::Foreign`].
    pub fn read_from(&self, first: usize, bytes: &[u8]) -> Result<Vec<Content>, Violation> {
        let place = |sector| Place { volume: self.volume, sector, per_block: self.per_block };
        let content = |(n, bytes)| {
            let sector = first + n;
            read(place(sector), bytes).ok_or_else(|| Violation::Foreign { volume: self.volume, sector, head: head(bytes) })
        };
        bytes.chunks_exact(SECTOR).enumerate().map(content).collect()
    }

    /// The bytes of a block in state `k`.
    #[must_use]
    pub fn bytes_of(&self, k: usize, block: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.per_block * SECTOR];
        for (n, chunk) in bytes.chunks_exact_mut(SECTOR).enumerate() {
            let sector = block * self.per_block + n;
            paint(self.states[k][sector], Place { volume: self.volume, sector, per_block: self.per_block }, chunk);
        }
        bytes
    }

    /// Which state the volume is in; the highest that fits.
    ///
    /// # Errors
    /// [`Violation::NoState`], [`Violation::PartLost`].
    pub fn judge(&self, seen: &[Content], bounds: Bounds) -> Result<usize, Violation> {
        let mut closest = (0, bounds.upper, Vec::new());
        for k in (bounds.lower..=bounds.upper).rev() {
            let after = (k < bounds.upper).then(|| &self.states[k + 1]);
            match self.misfit(seen, &self.states[k], after) {
                None => return self.judge_parts(seen, bounds, k),
                Some(block) if block >= closest.0 => {
                    let sectors = block * self.per_block..(block + 1) * self.per_block;
                    let mut found: Vec<_> = sectors.map(|s| (seen[s], self.states[k][s])).collect();
                    found.dedup();
                    closest = (block, k, found);
                }
                Some(_) => {}
            }
        }
        let (block, closest, found) = closest;
        Err(Violation::NoState { volume: self.volume, bounds, closest, block, found })
    }

    /// As [`Model::judge`]; where the volume is between two states, that becomes a state of its own, so that the history up to the
    /// result is exactly what is there.
    ///
    /// # Errors
    /// As [`Model::judge`].
    pub fn settle(&mut self, seen: &[Content], bounds: Bounds) -> Result<usize, Violation> {
        let k = self.judge(seen, bounds)?;
        if **self.states[k] == *seen {
            return Ok(k);
        }
        *self = self.truncated(k);
        self.states.push(Arc::new(seen.to_vec()));
        self.parts.push(std::iter::once(0..seen.len()).collect());
        Ok(k + 1)
    }

    fn judge_parts(&self, seen: &[Content], bounds: Bounds, k: usize) -> Result<usize, Violation> {
        if k > bounds.lower || bounds.parts == 0 {
            return Ok(k);
        }
        let Some(parts) = self.parts.get(bounds.lower) else { return Ok(k) };
        for (part, sectors) in parts.iter().enumerate().filter(|(n, _)| bounds.parts >> n & 1 == 1) {
            if seen[sectors.clone()] != self.states[bounds.lower + 1][sectors.clone()] {
                return Err(Violation::PartLost { volume: self.volume, op: bounds.lower, part });
            }
        }
        Ok(k)
    }

    /// The first block that is neither as in `state` nor as in `after`.
    fn misfit(&self, seen: &[Content], state: &[Content], after: Option<&Arc<Vec<Content>>>) -> Option<usize> {
        let blocks = seen.len() / self.per_block;
        (0..blocks).find(|block| {
            let sectors = block * self.per_block..(block + 1) * self.per_block;
            let fits = |state: &[Content]| seen[sectors.clone()] == state[sectors.clone()];
            !fits(state) && !after.is_some_and(|after| fits(after))
        })
    }
}

fn head(sector: &[u8]) -> [u32; 4] {
    let word = |n: usize| sector.get(4 * n..4 * n + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    [word(0), word(1), word(2), word(3)]
}

#[cfg(test)]
mod tests {
    use super::{Bounds, Model, Part, Violation};
    use crate::stamp::Content;

    fn model() -> Model {
        let mut model = Model::of(0, 2, vec![Content::ZERO; 4]);
        for (op, sector) in [(1, 0), (2, 2), (3, 0)] {
            model.push(&[Part { sector, contents: vec![Content::unique(op); 2] }]);
        }
        model
    }

    fn seen(ops: [u32; 4]) -> Vec<Content> {
        ops.iter().map(|op| Content::unique(*op)).collect()
    }

    #[test]
    fn a_prefix_is_accepted_and_a_gap_or_a_torn_block_is_not() {
        let model = model();
        let all = Bounds { lower: 0, upper: 3, parts: 0 };
        assert_eq!(model.judge(&seen([3, 3, 2, 2]), all), Ok(3));
        assert_eq!(model.judge(&seen([1, 1, 0, 0]), all), Ok(1));
        assert!(matches!(model.judge(&seen([3, 3, 0, 0]), all), Err(Violation::NoState { .. })), "op 2 is missing under op 3");
        assert!(matches!(model.judge(&seen([3, 1, 2, 2]), all), Err(Violation::NoState { .. })), "a torn block");
    }

    #[test]
    fn what_must_be_there_is_missed_when_it_is_not() {
        let model = model();
        let flushed = Bounds { lower: 2, upper: 3, parts: 0 };
        assert!(model.judge(&seen([1, 1, 0, 0]), flushed).is_err());
        let part = Bounds { lower: 2, upper: 3, parts: 1 };
        assert_eq!(model.judge(&seen([1, 1, 2, 2]), flushed), Ok(2));
        assert!(matches!(model.judge(&seen([1, 1, 2, 2]), part), Err(Violation::PartLost { op: 2, part: 0, .. })));
    }
}
