//! What happened to a map since its last checkpoint: block address → value, sparse, in memory.
//!
//! Leaves of 1024 blocks hold what was set singly ([`crate::leaf_runs`]); ranges of whole leaves are kept as one entry however long
//! they are, so a discard of a whole device costs as much as a write. A leaf's own values lie over the range's.
//!
//! Units: block addresses and counts of blocks. Memory only: a crash leaves nothing, TLogs and journal bring it back.

use std::collections::{BTreeMap, btree_map};

use hashbrown::HashMap;
use lamina_contract::BlockAddress;

pub use crate::leaf_runs::LEAF_BLOCKS;
use crate::leaf_runs::{LeafRuns, Spot};

/// A leaf's place in the volume: its first block address divided by 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeafNumber(pub u64);

impl LeafNumber {
    /// The leaf that holds `block`.
    #[must_use]
    pub const fn of(block: BlockAddress) -> Self {
        Self(block.0 / LEAF_BLOCKS as u64)
    }

    /// Its first block.
    #[must_use]
    pub const fn first_block(self) -> BlockAddress {
        BlockAddress(self.0.saturating_mul(LEAF_BLOCKS as u64))
    }
}

/// `block`'s index within its leaf.
const fn index_of(block: u64) -> u16 {
    (block % LEAF_BLOCKS as u64) as u16
}

/// A sparse map from block address to `V`; see the file's header.
#[derive(Debug, Clone)]
pub struct Delta<V> {
    leaves: HashMap<u64, LeafRuns<V>>,
    /// First leaf → (number of leaves, value); disjoint.
    whole: BTreeMap<u64, (u64, V)>,
    /// Bytes on the heap that `leaves` point to.
    leaf_heap: usize,
    /// Sum of the leaves' [`LeafRuns::len`].
    leaf_len: usize,
}

impl<V> Default for Delta<V> {
    fn default() -> Self {
        Self { leaves: HashMap::new(), whole: BTreeMap::new(), leaf_heap: 0, leaf_len: 0 }
    }
}

/// One piece of a [`Delta`], as [`Delta::chunks`] yields them.
#[derive(Debug, Clone, Copy)]
pub enum Chunk<'a, V> {
    /// Every block of `count` leaves from `first` on has `value`.
    Leaves {
        /// The first leaf.
        first: LeafNumber,
        /// How many leaves, at least 1.
        count: u64,
        /// What their blocks have.
        value: V,
    },
    /// A leaf with values of its own.
    Leaf(LeafChunk<'a, V>),
}

/// A leaf with values of its own, over what the whole leaf has.
#[derive(Debug, Clone, Copy)]
pub struct LeafChunk<'a, V> {
    number: LeafNumber,
    base: Option<V>,
    runs: &'a LeafRuns<V>,
}

/// A leaf as [`Delta::iter_leaves`] yields it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafDelta<V> {
    /// Which.
    pub leaf: LeafNumber,
    /// What every block has that is not in `entries`.
    pub base: Option<V>,
    /// Index within the leaf and value, ascending.
    pub entries: Vec<(u16, V)>,
}

impl<V: Copy> LeafChunk<'_, V> {
    /// Which leaf.
    #[must_use]
    pub const fn number(&self) -> LeafNumber {
        self.number
    }

    /// The leaf's values in ascending order as (index, count, value); blocks without a value are left out.
    pub fn runs(&self) -> impl Iterator<Item = (u16, u16, V)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < LEAF_BLOCKS {
                let start = at;
                let (len, spot) = self.runs.segment(start, LEAF_BLOCKS);
                at += len;
                match (spot, self.base) {
                    (Spot::Value(value), _) | (Spot::Gap, Some(value)) => return Some((start, len, value)),
                    (Spot::Hole, _) | (Spot::Gap, None) => {}
                }
            }
            None
        })
    }
}

impl<V: Copy> Delta<V> {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no block has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty() && self.whole.is_empty()
    }

    /// How many values are kept: a range that was set at once counts as one in each leaf it covers partly and as one for all the
    /// leaves it covers wholly. A measure of work, not the number of blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leaf_len + self.whole.len()
    }

    /// Bytes of memory held, allocator's overhead included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        // A hash table has at most 8/7 slots per unit of capacity, each with a control byte. B-tree nodes hold up to 11 entries and
        // are two thirds full on average.
        let table = self.leaves.capacity() * 8 / 7 * (size_of::<(u64, LeafRuns<V>)>() + 1);
        let ranges = self.whole.len() * (size_of::<(u64, (u64, V))>() + 8) * 3 / 2;
        size_of::<Self>() + table + self.leaf_heap + ranges
    }

    /// The value of `block`.
    #[must_use]
    pub fn get(&self, block: BlockAddress) -> Option<V> {
        let leaf = LeafNumber::of(block).0;
        match self.leaves.get(&leaf).map_or(Spot::Gap, |runs| runs.get(index_of(block.0))) {
            Spot::Value(value) => Some(value),
            Spot::Hole => None,
            Spot::Gap => self.base(leaf),
        }
    }

    /// Calls `each` with every run of blocks in the range that have a value, ascending: first block, count, value.
    pub fn for_each_in(&self, first: BlockAddress, count: u64, mut each: impl FnMut(BlockAddress, u64, V)) {
        if self.is_empty() {
            return;
        }
        for_each_leaf(first.0, count, |leaf, start, end| {
            let base = self.base(leaf);
            let block = |index: u16| BlockAddress(LeafNumber(leaf).first_block().0 + u64::from(index));
            match (self.leaves.get(&leaf), base) {
                (None, None) => {}
                (None, Some(value)) => each(block(start), u64::from(end - start), value),
                (Some(runs), _) => {
                    let mut at = start;
                    while at < end {
                        let (len, spot) = runs.segment(at, end);
                        match (spot, base) {
                            (Spot::Value(value), _) | (Spot::Gap, Some(value)) => each(block(at), u64::from(len), value),
                            (Spot::Hole, _) | (Spot::Gap, None) => {}
                        }
                        at += len;
                    }
                }
            }
        });
    }

    /// Calls `each` with every leaf from `from` on and below `end` that has a value, in no order, some perhaps twice.
    pub fn for_each_leaf_in(&self, from: LeafNumber, end: LeafNumber, mut each: impl FnMut(LeafNumber)) {
        self.leaves.keys().filter(|leaf| (from.0..end.0).contains(leaf)).for_each(|leaf| each(LeafNumber(*leaf)));
        for (first, (count, _)) in self.whole.range(..end.0) {
            ((*first).max(from.0)..(first + count).min(end.0)).for_each(|leaf| each(LeafNumber(leaf)));
        }
    }

    /// Sets one block.
    pub fn set(&mut self, block: BlockAddress, value: V) {
        self.write_leaf(LeafNumber::of(block).0, index_of(block.0), 1, Spot::Value(value));
    }

    /// Sets `count` blocks from `first` on; whole leaves within cost nothing each (besides dropping what they held).
    pub fn set_range(&mut self, first: BlockAddress, count: u64, value: V) {
        let Some(parts) = Parts::of(first.0, count) else { return };
        for (leaf, start, end) in parts.partial.into_iter().flatten() {
            self.write_leaf(leaf, start, end - start, Spot::Value(value));
        }
        let (from, to) = parts.whole;
        if from < to {
            self.drop_leaves(from, to);
            self.cut_whole(from, to);
            self.whole.insert(from, (to - from, value));
        }
    }

    /// Removes the values in the range for which `predicate` holds.
    pub fn remove_if(&mut self, first: BlockAddress, count: u64, mut predicate: impl FnMut(V) -> bool) {
        let Some(parts) = Parts::of(first.0, count) else { return };
        for (leaf, start, end) in parts.partial.into_iter().flatten() {
            self.remove_in_leaf(leaf, start, end, &mut predicate);
        }
        let (from, to) = parts.whole;
        if from >= to {
            return;
        }
        let gone: Vec<(u64, u64)> = self
            .whole_in(from, to)
            .filter(|&(_, _, value)| predicate(value))
            .map(|(first, end, _)| (first.max(from), end.min(to)))
            .collect();
        for (first, end) in gone {
            self.cut_whole(first, end);
        }
        for leaf in self.leaves_in(from, to) {
            self.remove_in_leaf(leaf, 0, LEAF_BLOCKS, &mut predicate);
        }
    }

    /// All values in ascending order, long ranges of whole leaves as one piece.
    #[must_use]
    pub fn chunks(&self) -> Chunks<'_, V> {
        let mut keys: Vec<u64> = self.leaves.keys().copied().collect();
        keys.sort_unstable();
        Chunks { delta: self, keys: keys.into_iter().peekable(), whole: self.whole.iter(), current: None }
    }

    /// All leaves that have a value, ascending. Ranges are taken apart: for those who can use ranges there is [`Delta::chunks`].
    pub fn iter_leaves(&self) -> impl Iterator<Item = LeafDelta<V>> + '_ {
        self.chunks().flat_map(|chunk| {
            let (first, count) = match &chunk {
                Chunk::Leaves { first, count, .. } => (first.0, *count),
                Chunk::Leaf(leaf) => (leaf.number.0, 1),
            };
            (first..first + count).map(move |leaf| match &chunk {
                Chunk::Leaves { value, .. } => LeafDelta { leaf: LeafNumber(leaf), base: Some(*value), entries: Vec::new() },
                Chunk::Leaf(chunk) => chunk.to_entries(),
            })
        })
    }

    /// What the whole of `leaf` has.
    fn base(&self, leaf: u64) -> Option<V> {
        if self.whole.is_empty() {
            return None;
        }
        let (first, (count, value)) = self.whole.range(..=leaf).next_back()?;
        (leaf - first < *count).then_some(*value)
    }

    fn write_leaf(&mut self, leaf: u64, start: u16, len: u16, spot: Spot<V>) {
        let runs = self.leaves.entry(leaf).or_insert(const { LeafRuns::new() });
        let (heap, count) = (runs.heap_bytes(), runs.len());
        runs.write(start, len, spot);
        self.leaf_heap = self.leaf_heap + runs.heap_bytes() - heap;
        self.leaf_len = self.leaf_len + runs.len() - count;
    }

    fn remove_in_leaf(&mut self, leaf: u64, start: u16, end: u16, predicate: &mut impl FnMut(V) -> bool) {
        let base = self.base(leaf);
        let base_goes = base.is_some_and(&mut *predicate);
        if base.is_none() && !self.leaves.contains_key(&leaf) {
            return;
        }
        let runs = self.leaves.entry(leaf).or_insert(const { LeafRuns::new() });
        let (heap, count) = (runs.heap_bytes(), runs.len());
        let nothing = if base.is_some() { Spot::Hole } else { Spot::Gap };
        let mut at = start;
        while at < end {
            let (len, spot) = runs.segment(at, end);
            let goes = match spot {
                Spot::Value(value) => predicate(value),
                Spot::Gap => base_goes,
                Spot::Hole => false,
            };
            if goes {
                runs.write(at, len, nothing);
            }
            at += len;
        }
        let all_gone = base.is_some() && runs.is_all_holes();
        if base.is_none() || all_gone {
            runs.drop_holes();
        }
        runs.shrink();
        let empty = runs.is_empty();
        self.leaf_heap = self.leaf_heap + runs.heap_bytes() - heap;
        self.leaf_len = self.leaf_len + runs.len() - count;
        if empty {
            self.drop_leaf(leaf);
        }
        if all_gone {
            self.cut_whole(leaf, leaf + 1);
        }
    }

    fn drop_leaf(&mut self, leaf: u64) {
        if let Some(runs) = self.leaves.remove(&leaf) {
            self.leaf_heap -= runs.heap_bytes();
            self.leaf_len -= runs.len();
        }
        if self.leaves.len() * 8 < self.leaves.capacity() {
            self.leaves.shrink_to(self.leaves.len() * 2);
        }
    }

    fn drop_leaves(&mut self, from: u64, to: u64) {
        for leaf in self.leaves_in(from, to) {
            self.drop_leaf(leaf);
        }
    }

    /// Leaves with values of their own in `from..to`; costs the smaller of the range and what is there.
    fn leaves_in(&self, from: u64, to: u64) -> Vec<u64> {
        if to - from < self.leaves.len() as u64 {
            (from..to).filter(|leaf| self.leaves.contains_key(leaf)).collect()
        } else {
            self.leaves.keys().copied().filter(|leaf| (from..to).contains(leaf)).collect()
        }
    }

    /// Ranges that touch `from..to`: first leaf, end, value.
    fn whole_in(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u64, V)> + '_ {
        let before = self.whole.range(..from).next_back().filter(move |(first, (count, _))| *first + count > from);
        before.into_iter().chain(self.whole.range(from..to)).map(|(first, (count, value))| (*first, first + count, *value))
    }

    /// Takes `from..to` out of the ranges.
    fn cut_whole(&mut self, from: u64, to: u64) {
        let touched: Vec<(u64, u64, V)> = self.whole_in(from, to).collect();
        for (first, end, value) in touched {
            self.whole.remove(&first);
            if first < from {
                self.whole.insert(first, (from - first, value));
            }
            if end > to {
                self.whole.insert(to, (end - to, value));
            }
        }
    }
}

impl<V: Copy> LeafChunk<'_, V> {
    fn to_entries(self) -> LeafDelta<V> {
        // A hidden base cannot be told as base + entries: every block is listed then.
        let hidden = self.runs.runs().any(|(_, _, spot)| matches!(spot, Spot::Hole));
        let expand = |(start, len, value): (u16, u16, V)| (start..start + len).map(move |index| (index, value));
        if hidden {
            return LeafDelta { leaf: self.number, base: None, entries: self.runs().flat_map(expand).collect() };
        }
        let own = LeafChunk { base: None, ..self };
        LeafDelta { leaf: self.number, base: self.base, entries: own.runs().flat_map(expand).collect() }
    }
}

/// Iterator of [`Delta::chunks`].
#[derive(Debug)]
pub struct Chunks<'a, V> {
    delta: &'a Delta<V>,
    keys: std::iter::Peekable<std::vec::IntoIter<u64>>,
    whole: btree_map::Iter<'a, u64, (u64, V)>,
    /// What is left of a range: first leaf, end, value.
    current: Option<(u64, u64, V)>,
}

impl<'a, V: Copy> Chunks<'a, V> {
    fn leaf(&mut self, number: u64, base: Option<V>) -> Option<Chunk<'a, V>> {
        self.keys.next();
        let runs = self.delta.leaves.get(&number)?;
        Some(Chunk::Leaf(LeafChunk { number: LeafNumber(number), base, runs }))
    }
}

impl<'a, V: Copy> Iterator for Chunks<'a, V> {
    type Item = Chunk<'a, V>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.current.is_none() {
            self.current = self.whole.next().map(|(first, (count, value))| (*first, first + count, *value));
        }
        let key = self.keys.peek().copied();
        let Some((first, end, value)) = self.current else {
            return key.and_then(|key| self.leaf(key, None));
        };
        match key {
            Some(key) if key < first => self.leaf(key, None),
            Some(key) if key == first => {
                self.current = (first + 1 < end).then_some((first + 1, end, value));
                self.leaf(key, Some(value))
            }
            _ => {
                let stop = key.map_or(end, |key| key.min(end));
                self.current = (stop < end).then_some((stop, end, value));
                Some(Chunk::Leaves { first: LeafNumber(first), count: stop - first, value })
            }
        }
    }
}

/// A range of blocks as up to two partly covered leaves and the whole leaves between.
struct Parts {
    /// Leaf, first index, end index.
    partial: [Option<(u64, u16, u16)>; 2],
    /// First whole leaf and the end; empty when not below it.
    whole: (u64, u64),
}

impl Parts {
    /// `None` when empty. Blocks past the last address are left out.
    fn of(first: u64, count: u64) -> Option<Self> {
        let end = first.saturating_add(count);
        if first >= end {
            return None;
        }
        let size = u64::from(LEAF_BLOCKS);
        let (first_leaf, end_leaf) = (first / size, end / size);
        let (head, tail) = (index_of(first), index_of(end));
        if first_leaf == end_leaf {
            return Some(Self { partial: [Some((first_leaf, head, tail)), None], whole: (end_leaf, end_leaf) });
        }
        let (head, from) = if head == 0 { (None, first_leaf) } else { (Some((first_leaf, head, LEAF_BLOCKS)), first_leaf + 1) };
        let tail = (tail > 0).then_some((end_leaf, 0, tail));
        Some(Self { partial: [head, tail], whole: (from, end_leaf) })
    }
}

/// Calls `each` with every leaf that the range touches and the indexes it covers there.
fn for_each_leaf(first: u64, count: u64, mut each: impl FnMut(u64, u16, u16)) {
    let end = first.saturating_add(count);
    let mut at = first;
    while at < end {
        let leaf = at / u64::from(LEAF_BLOCKS);
        let stop = LeafNumber(leaf + 1).first_block().0.min(end);
        let start = index_of(at);
        each(leaf, start, start + (stop - at) as u16);
        at = stop;
    }
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
