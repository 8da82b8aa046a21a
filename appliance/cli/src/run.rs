//! Runs of bytes: what holds data, aligned, cut and compared.

use lamina_api::data::{Extent, MAX_DATA_BYTES};

/// Zeros between two runs that are not worth a request of their own.
const SMALL_GAP: u64 = 64 << 10;

/// Some bytes that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first.
    pub(crate) offset: u64,
    /// How many.
    pub(crate) length: u64,
}

impl Run {
    /// `length` bytes from `offset`.
    pub(crate) const fn new(offset: u64, length: u64) -> Self {
        Self { offset, length }
    }

    /// The byte behind it.
    pub(crate) const fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

impl From<Extent> for Run {
    fn from(extent: Extent) -> Self {
        Self::new(extent.offset, extent.length)
    }
}

/// Runs in ascending order that neither touch nor overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Runs(Vec<Run>);

impl Runs {
    /// `runs` with both ends moved outwards to multiples of `unit`, within `limit`.
    pub(crate) fn aligned(runs: impl IntoIterator<Item = Run>, unit: u64, limit: u64) -> Self {
        let mut all: Vec<Run> = runs
            .into_iter()
            .map(|run| {
                let begin = run.offset / unit * unit;
                let end = run.end().checked_next_multiple_of(unit).unwrap_or(limit).min(limit);
                Run::new(begin, end.saturating_sub(begin))
            })
            .filter(|run| run.length > 0)
            .collect();
        all.sort_by_key(|run| run.offset);
        let mut joined: Vec<Run> = Vec::with_capacity(all.len());
        for run in all {
            match joined.last_mut() {
                Some(last) if last.end() >= run.offset => last.length = last.end().max(run.end()) - last.offset,
                _ => joined.push(run),
            }
        }
        Self(joined)
    }

    /// One after the other.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Run> {
        self.0.iter().copied()
    }

    /// Bytes in all.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|run| run.length).sum()
    }

    /// Whether any of them has a byte of `run`.
    pub(crate) fn touch(&self, run: Run) -> bool {
        let at = self.0.partition_point(|own| own.end() <= run.offset);
        self.0.get(at).is_some_and(|own| own.offset < run.end())
    }

    /// What is here or in `other`, from byte `from` on.
    pub(crate) fn joined(&self, other: &Self, from: u64) -> Self {
        let behind = |run: Run| {
            let begin = run.offset.max(from);
            Run::new(begin, run.end().saturating_sub(begin))
        };
        Self::aligned(self.iter().chain(other.iter()).map(behind), 1, u64::MAX)
    }

    /// Pieces of one request each, cut at multiples of a request's bytes.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Run> {
        self.0.iter().flat_map(|run| {
            let mut at = run.offset;
            std::iter::from_fn(move || {
                if at >= run.end() {
                    return None;
                }
                let end = ((at / MAX_DATA_BYTES + 1) * MAX_DATA_BYTES).min(run.end());
                let piece = Run::new(at, end - at);
                at = end;
                Some(piece)
            })
        })
    }
}

/// The parts of `bytes` that are not zero, in units of `unit`, by their offsets in it. Parts with little between them are one.
pub(crate) fn nonzero(bytes: &[u8], unit: usize) -> Vec<Run> {
    let mut parts: Vec<Run> = Vec::new();
    for (number, block) in bytes.chunks(unit.max(1)).enumerate() {
        if is_zero(block) {
            continue;
        }
        let (offset, length) = ((number * unit) as u64, block.len() as u64);
        match parts.last_mut() {
            Some(last) if offset - last.end() < SMALL_GAP => last.length = offset + length - last.offset,
            _ => parts.push(Run::new(offset, length)),
        }
    }
    parts
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Compared as the system compares memory: far quicker than byte by byte.
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|block| ZEROS.get(..block.len()) == Some(block))
}

#[cfg(test)]
mod tests {
    use super::{Run, Runs, nonzero};

    #[test]
    fn runs_are_aligned_joined_and_cut_into_requests() {
        let runs =
            Runs::aligned([Run::new(5000, 10), Run::new(0, 1), Run::new(8000, 500), Run::new(1 << 20, 1 << 20)], 4096, 3 << 20);
        let expected = [Run::new(0, 12288), Run::new(1 << 20, 1 << 20)];
        assert_eq!(runs.iter().collect::<Vec<_>>(), expected);
        assert_eq!(runs.bytes(), 12288 + (1 << 20));
        assert!(runs.touch(Run::new(12287, 1)) && !runs.touch(Run::new(12288, 4096)) && !runs.touch(Run::new(2 << 20, 9)));
        let whole = Runs::aligned([Run::new(4096, (2 << 20) + 1)], 4096, 1 << 40);
        let pieces: Vec<_> = whole.pieces().collect();
        assert_eq!(pieces, [Run::new(4096, (1 << 20) - 4096), Run::new(1 << 20, 1 << 20), Run::new(2 << 20, 8192)]);
        assert_eq!(runs.joined(&whole, 1 << 20).iter().collect::<Vec<_>>(), [Run::new(1 << 20, (1 << 20) + 8192)]);
        assert_eq!(Runs::aligned([Run::new(4096, u64::MAX)], 4096, 8192).bytes(), 4096);
    }

    #[test]
    fn zero_blocks_are_left_out_and_small_gaps_are_not_worth_a_request() {
        let mut bytes = vec![0; 1 << 20];
        for at in [0, 8192, 200_000] {
            *bytes.get_mut(at).expect("inside") = 1;
        }
        assert_eq!(nonzero(&bytes, 4096), [Run::new(0, 12288), Run::new(196_608, 4096)]);
        assert!(nonzero(&[0; 10000], 4096).is_empty());
    }
}
