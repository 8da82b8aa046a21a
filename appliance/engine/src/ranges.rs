//! Ranges of blocks that a read-modify-write holds, so that concurrent writes to them wait their turn.
//!
//! Only sub-block writes hold ranges. Whole-block writes look here under the journal's append lock, the same lock under which a
//! range is taken and given back; so between a sub-block write's read and its append no other write to its blocks is accepted.

use std::ops::RangeInclusive;

use lamina_contract::{BlockAddress, Request};

/// Identifies a held range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RangeId(u64);

/// The held ranges of one volume, and the requests that wait for them.
#[derive(Default)]
pub(crate) struct Ranges {
    held: Vec<(RangeId, RangeInclusive<BlockAddress>)>,
    waiting: Vec<(RangeInclusive<BlockAddress>, Request)>,
    next: u64,
}

impl Ranges {
    /// Whether a write to `range` must wait: for a holder, or (to be fair) for an earlier waiter.
    pub(crate) fn blocks(&self, range: &RangeInclusive<BlockAddress>) -> bool {
        let overlaps = |other: &RangeInclusive<BlockAddress>| other.start() <= range.end() && range.start() <= other.end();
        self.held.iter().any(|(_, held)| overlaps(held)) || self.waiting.iter().any(|(waiting, _)| overlaps(waiting))
    }

    /// Takes `range`; [`Ranges::blocks`] said that it is free.
    pub(crate) fn hold(&mut self, range: RangeInclusive<BlockAddress>) -> RangeId {
        self.next += 1;
        self.held.push((RangeId(self.next), range));
        RangeId(self.next)
    }

    /// Lets `request` wait.
    pub(crate) fn wait(&mut self, range: RangeInclusive<BlockAddress>, request: Request) {
        self.waiting.push((range, request));
    }

    /// Gives up what waits; says whether a range is held.
    pub(crate) fn refuse(&mut self) -> (bool, Vec<Request>) {
        (!self.held.is_empty(), self.waiting.drain(..).map(|(_, request)| request).collect())
    }

    /// Gives a range back; returns every waiting request, to be submitted again in their order.
    pub(crate) fn release(&mut self, id: RangeId) -> Vec<Request> {
        self.held.retain(|(held, _)| *held != id);
        self.waiting.drain(..).map(|(_, request)| request).collect()
    }
}
