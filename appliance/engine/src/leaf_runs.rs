//! The values of one leaf (1024 consecutive blocks) of a [`crate::delta::Delta`], kept as runs of blocks that share a value.
//!
//! Units: indexes and lengths count blocks within the leaf, 0 to 1024. Memory only; a crash leaves nothing.
//!
//! Two forms: few runs are a sorted vector (a set is a binary search and a short move), many runs are an index of 1024 slots into
//! cells (a set is O(1) in any order). A *hole* is a run that hides the value which the whole leaf has below it.

/// Blocks in a leaf: the unit of the map's pages.
pub const LEAF_BLOCKS: u16 = 1024;

/// More runs than this are kept as slots: 128 runs of 56 bytes are a move of 3.5 KiB on average, about 60 ns.
const SPARSE_RUNS: usize = 128;
/// Fewer runs than this go back to the sorted form; half of the above, so that a leaf at the border does not swing.
const DENSE_RUNS: usize = SPARSE_RUNS / 2;

const ABSENT: u16 = u16::MAX;
const HOLE: u16 = u16::MAX - 1;

/// What stands at an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spot<V> {
    /// Nothing: what the whole leaf has shows.
    Gap,
    /// Nothing, and what the whole leaf has is hidden.
    Hole,
    /// This value.
    Value(V),
}

#[derive(Debug, Clone, Copy)]
struct Run<V> {
    start: u16,
    len: u16,
    /// `None` is a hole. With a value type that has a niche this costs nothing; with `u64` eight bytes.
    value: Option<V>,
}

impl<V> Run<V> {
    const fn end(&self) -> u16 {
        self.start + self.len
    }
}

#[derive(Debug, Clone)]
struct Cell<V> {
    users: u16,
    value: V,
}

#[derive(Debug, Clone)]
struct Slots<V> {
    index: [u16; LEAF_BLOCKS as usize],
    cells: Vec<Cell<V>>,
    free: Vec<u16>,
}

#[derive(Debug, Clone)]
enum Form<V> {
    Sorted(Vec<Run<V>>),
    Slots(Box<Slots<V>>),
}

/// See the file's header.
#[derive(Debug, Clone)]
pub(crate) struct LeafRuns<V> {
    form: Form<V>,
}

/// What an allocation of `bytes` takes from the heap: an 8-byte header, rounded up to 16.
pub(crate) const fn heap_bytes(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes + 8).next_multiple_of(16) }
}

impl<V: Copy> LeafRuns<V> {
    pub(crate) const fn new() -> Self {
        Self { form: Form::Sorted(Vec::new()) }
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        match &self.form {
            Form::Sorted(runs) => heap_bytes(runs.capacity() * size_of::<Run<V>>()),
            Form::Slots(slots) => {
                heap_bytes(size_of::<Slots<V>>())
                    + heap_bytes(slots.cells.capacity() * size_of::<Cell<V>>())
                    + heap_bytes(slots.free.capacity() * size_of::<u16>())
            }
        }
    }

    /// How many values are kept apart; holes count too.
    pub(crate) fn len(&self) -> usize {
        match &self.form {
            Form::Sorted(runs) => runs.len(),
            Form::Slots(slots) => slots.cells.len() - slots.free.len(),
        }
    }

    /// Whether every index is a gap.
    pub(crate) fn is_empty(&self) -> bool {
        match &self.form {
            Form::Sorted(runs) => runs.is_empty(),
            Form::Slots(slots) => slots.index.iter().all(|&slot| slot == ABSENT),
        }
    }

    /// Whether every index is a hole.
    pub(crate) fn is_all_holes(&self) -> bool {
        match &self.form {
            Form::Sorted(runs) => {
                runs.iter().all(|run| run.value.is_none()) && runs.iter().map(|run| run.len).sum::<u16>() == LEAF_BLOCKS
            }
            Form::Slots(slots) => slots.index.iter().all(|&slot| slot == HOLE),
        }
    }

    pub(crate) fn get(&self, index: u16) -> Spot<V> {
        match &self.form {
            Form::Sorted(runs) => {
                let after = runs.partition_point(|run| run.start <= index);
                match after.checked_sub(1).and_then(|at| runs.get(at)) {
                    Some(run) if index < run.end() => run.value.map_or(Spot::Hole, Spot::Value),
                    _ => Spot::Gap,
                }
            }
            Form::Slots(slots) => slots.spot(slots.index[usize::from(index)]),
        }
    }

    /// What stands from `from` on, and how far (not past `end`) the same run or gap reaches. `from < end`.
    pub(crate) fn segment(&self, from: u16, end: u16) -> (u16, Spot<V>) {
        match &self.form {
            Form::Sorted(runs) => {
                let after = runs.partition_point(|run| run.start <= from);
                let next = runs.get(after).map_or(end, |run| run.start.min(end));
                match after.checked_sub(1).and_then(|at| runs.get(at)) {
                    Some(run) if from < run.end() => (run.end().min(end) - from, run.value.map_or(Spot::Hole, Spot::Value)),
                    _ => (next - from, Spot::Gap),
                }
            }
            Form::Slots(slots) => {
                let slot = slots.index[usize::from(from)];
                let same = slots.index[usize::from(from)..usize::from(end)].iter().take_while(|&&other| other == slot).count();
                (same as u16, slots.spot(slot))
            }
        }
    }

    /// Replaces `len` indexes from `start` on.
    pub(crate) fn write(&mut self, start: u16, len: u16, spot: Spot<V>) {
        debug_assert!(len > 0 && start + len <= LEAF_BLOCKS);
        match &mut self.form {
            Form::Sorted(runs) => {
                write_sorted(runs, start, len, spot);
                if runs.len() > SPARSE_RUNS {
                    self.form = Form::Slots(Box::new(Slots::from_runs(runs)));
                }
            }
            Form::Slots(slots) => slots.write(start, len, spot),
        }
    }

    /// Turns holes into gaps: the whole leaf has nothing below any more.
    pub(crate) fn drop_holes(&mut self) {
        match &mut self.form {
            Form::Sorted(runs) => runs.retain(|run| run.value.is_some()),
            Form::Slots(slots) => {
                for slot in &mut slots.index {
                    if *slot == HOLE {
                        *slot = ABSENT;
                    }
                }
            }
        }
    }

    /// Gives memory back after removals.
    pub(crate) fn shrink(&mut self) {
        match &mut self.form {
            Form::Sorted(runs) => {
                if runs.len() * 4 < runs.capacity() {
                    runs.shrink_to(runs.len() * 2);
                }
            }
            Form::Slots(slots) => {
                if slots.cells.len() - slots.free.len() > DENSE_RUNS {
                    return;
                }
                let runs: Vec<Run<V>> = self
                    .runs()
                    .map(|(start, len, spot)| Run { start, len, value: if let Spot::Value(v) = spot { Some(v) } else { None } })
                    .collect();
                if runs.len() <= DENSE_RUNS {
                    self.form = Form::Sorted(runs);
                }
            }
        }
    }

    /// Runs and holes in ascending order: start, length, what stands there.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u16, u16, Spot<V>)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < LEAF_BLOCKS {
                let start = at;
                let (len, spot) = self.segment(start, LEAF_BLOCKS);
                at += len;
                if !matches!(spot, Spot::Gap) {
                    return Some((start, len, spot));
                }
            }
            None
        })
    }
}

fn write_sorted<V: Copy>(runs: &mut Vec<Run<V>>, start: u16, len: u16, spot: Spot<V>) {
    let end = start + len;
    let new = match spot {
        Spot::Gap => None,
        Spot::Hole => Some(Run { start, len, value: None }),
        Spot::Value(value) => Some(Run { start, len, value: Some(value) }),
    };
    // Blocks written in order land behind the last run.
    if runs.last().is_none_or(|run| run.end() <= start) {
        runs.extend(new);
        return;
    }
    let low = runs.partition_point(|run| run.end() <= start);
    let high = low + runs[low..].partition_point(|run| run.start < end);
    if low == high {
        if let Some(new) = new {
            runs.insert(low, new);
        }
        return;
    }
    let (first, last) = (runs[low], runs[high - 1]);
    if let Some(new) = new
        && high - low == 1
        && first.start >= start
        && last.end() <= end
    {
        runs[low] = new;
        return;
    }
    let left = (first.start < start).then(|| Run { len: start - first.start, ..first });
    let right = (last.end() > end).then(|| Run { start: end, len: last.end() - end, ..last });
    runs.splice(low..high, [left, new, right].into_iter().flatten());
}

impl<V: Copy> Slots<V> {
    fn from_runs(runs: &[Run<V>]) -> Self {
        let mut slots = Self { index: [ABSENT; LEAF_BLOCKS as usize], cells: Vec::with_capacity(runs.len() * 2), free: Vec::new() };
        for run in runs {
            slots.write(run.start, run.len, run.value.map_or(Spot::Hole, Spot::Value));
        }
        slots
    }

    fn spot(&self, slot: u16) -> Spot<V> {
        match slot {
            ABSENT => Spot::Gap,
            HOLE => Spot::Hole,
            cell => self.cells.get(usize::from(cell)).map_or(Spot::Gap, |cell| Spot::Value(cell.value)),
        }
    }

    fn write(&mut self, start: u16, len: u16, spot: Spot<V>) {
        let range = usize::from(start)..usize::from(start + len);
        for at in range.clone() {
            let slot = self.index[at];
            if let Some(cell) = self.cells.get_mut(usize::from(slot)) {
                cell.users -= 1;
                if cell.users == 0 {
                    self.free.push(slot);
                }
            }
        }
        let slot = match spot {
            Spot::Gap => ABSENT,
            Spot::Hole => HOLE,
            Spot::Value(value) => {
                let cell = Cell { users: len, value };
                if let Some(free) = self.free.pop() {
                    self.cells[usize::from(free)] = cell;
                    free
                } else {
                    // At most 1024 cells are in use, so a slot number never reaches HOLE.
                    self.cells.push(cell);
                    (self.cells.len() - 1) as u16
                }
            }
        };
        self.index[range].fill(slot);
    }
}
