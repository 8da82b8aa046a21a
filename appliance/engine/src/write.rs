//! The write path: guest memory → staging (the one copy) → journal batch → map layers → answer.
//!
//! ```text
//! stage: copy out, checksum, zero check        (no lock)
//! accept: ranges free? room? → assign locations → journal write → publish      (append lock)
//! answer, or for FUA: wait for a sync
//! ```
//! Crash points: before the journal write returned nothing was promised; after it, recovery finds the batch. The answer goes
//! out after both the write and the publication, so an acknowledged write is in the journal and every later read sees it.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use lamina_contract::answers::together;
use lamina_contract::{BlockAddress, IoError, Location, Op, Request};
use lamina_formats::journal::{JournalEntry, JournalOp, PAGE, block_sum, header_pages};

use crate::failpoint;
use crate::journal::{Append, JournalError};
use crate::mutant::{self, Mutant};
use crate::volume::Volume;

/// Data that one batch gathers at most: large enough that headers cost 2 %, small enough to bound the time under the lock.
const BATCH_BYTES: usize = 1 << 20;
/// Entries that one batch gathers at most; fewer than a header holds.
const BATCH_ENTRIES: usize = 512;
/// The most blocks that one journal entry without data covers.
const ENTRY_BLOCKS: u64 = u32::MAX as u64;

#[derive(Clone, Copy)]
pub(crate) struct Staged {
    block: BlockAddress,
    op: JournalOp,
}

impl Staged {
    fn range(&self) -> RangeInclusive<BlockAddress> {
        let count = match self.op {
            JournalOp::Data { .. } => 1,
            JournalOp::Zero { count } | JournalOp::Trim { count } => u64::from(count),
        };
        self.block..=BlockAddress(self.block.0 + count.saturating_sub(1))
    }
}

/// Changes gathered for one batch, and the requests that they answer.
#[derive(Default)]
pub(crate) struct Staging {
    data: Vec<u8>,
    ops: Vec<Staged>,
    requests: Vec<Request>,
}

/// How an attempt to accept a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// In the journal and published, as this batch (0 when there was nothing to do).
    Yes(u64),
    /// The journal has no room now.
    Full,
    /// A sub-block write holds a block of it.
    Held,
    /// The journal has failed.
    Failed,
}

thread_local! {
    static STAGING: RefCell<Staging> = RefCell::default();
}

impl Staging {
    /// Whether it holds what one batch gathers at most.
    pub(crate) fn is_full(&self) -> bool {
        self.data.len() >= BATCH_BYTES || self.ops.len() >= BATCH_ENTRIES
    }

    fn clear(&mut self) {
        self.data.clear();
        self.ops.clear();
    }

    /// Adds a block whose bytes `fill` writes, for the journal with this identity.
    pub(crate) fn add_block(
        &mut self,
        journal: u64,
        block: BlockAddress,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), IoError>,
    ) -> Result<(), IoError> {
        let at = self.data.len();
        self.data.resize(at + bytes, 0);
        if let Err(error) = fill(&mut self.data[at..]) {
            self.data.truncate(at);
            return Err(error);
        }
        if is_zero(&self.data[at..]) {
            self.data.truncate(at);
            self.add_zeros(block, 1, true);
        } else {
            // A block has 1 to 16 pages.
            let op = JournalOp::Data { sum: block_sum(journal, &self.data[at..]), pages: (bytes / PAGE) as u16 };
            self.ops.push(Staged { block, op });
        }
        Ok(())
    }

    /// Adds a range that reads as zeros from now on; `keep` tells a zero from a trim.
    pub(crate) fn add_zeros(&mut self, first: BlockAddress, count: u64, keep: bool) {
        if let Some(last) = self.ops.last_mut()
            && let (JournalOp::Zero { count: so_far }, true) | (JournalOp::Trim { count: so_far }, false) = (&mut last.op, keep)
            && last.block.0 + u64::from(*so_far) == first.0
            && u64::from(*so_far) + count <= ENTRY_BLOCKS
        {
            *so_far += count as u32;
            return;
        }
        let mut at = first.0;
        let end = first.0 + count;
        while at < end {
            let count = (end - at).min(ENTRY_BLOCKS) as u32;
            let op = if keep { JournalOp::Zero { count } } else { JournalOp::Trim { count } };
            self.ops.push(Staged { block: BlockAddress(at), op });
            at += u64::from(count);
        }
    }
}

/// What an entry counts for in the throttle: its data, or what an entry without data costs in memory and recovery, generously.
pub(crate) fn charge(entry: &JournalEntry) -> u64 {
    match entry.op {
        JournalOp::Data { pages, .. } => u64::from(pages) * PAGE as u64,
        JournalOp::Zero { .. } | JournalOp::Trim { .. } => 1024,
    }
}

/// Whether all bytes are zero; most blocks show that they are not in their first words.
fn is_zero(bytes: &[u8]) -> bool {
    let (head, rest) = bytes.split_at(bytes.len().min(64));
    head.iter().all(|b| *b == 0) && rest.chunks(64).all(|chunk| chunk.iter().fold(0, |sum, b| sum | *b) == 0)
}

impl Volume {
    /// Takes over the changing requests of a batch that lie on block boundaries; `batch` is left empty.
    pub(crate) fn write_batch(&self, batch: &mut Vec<Request>) {
        // A device below might call back into this thread's staging only through answers, which must not submit.
        let mut staging = STAGING.take();
        for request in batch.drain(..) {
            if staging.is_full() {
                self.accept_or_defer(&mut staging);
            }
            self.stage(&mut staging, request);
        }
        self.accept_or_defer(&mut staging);
        STAGING.set(staging);
    }

    fn stage(&self, staging: &mut Staging, request: Request) {
        let size = self.block_size();
        let (first, count) = (request.start.block(size), request.sectors.0 / size.sectors());
        match request.op {
            Op::Write { .. } if request.sectors.bytes() > BATCH_BYTES as u64 => self.write_large(staging, request),
            Op::Write { .. } => {
                let (data, ops) = (staging.data.len(), staging.ops.len());
                for n in 0..count {
                    let at = n as usize * size.bytes();
                    let fill = |to: &mut [u8]| request.transfer.copy_out(at, to);
                    if let Err(error) = staging.add_block(self.core.journal.id(), BlockAddress(first.0 + n), size.bytes(), fill) {
                        // What was staged of it may have merged with a zero range before it: forget the whole tail.
                        staging.data.truncate(data);
                        staging.ops.truncate(ops);
                        return request.transfer.answer(Err(error));
                    }
                }
                staging.requests.push(request);
            }
            Op::Discard => {
                staging.add_zeros(first, count, false);
                staging.requests.push(request);
            }
            Op::WriteZeroes { unmap } => {
                staging.add_zeros(first, count, !unmap);
                staging.requests.push(request);
            }
            Op::Read | Op::Flush => request.transfer.answer(Err(IoError::Unsupported)),
        }
    }

    /// A write too large for one batch goes in several; it is answered after the last. When it must wait in between it is
    /// done again from its start, which changes nothing that was promised.
    fn write_large(&self, staging: &mut Staging, request: Request) {
        self.accept_or_defer(staging);
        let size = self.block_size();
        let (first, count) = (request.start.block(size), request.sectors.0 / size.sectors());
        for n in 0..count {
            let at = n as usize * size.bytes();
            let fill = |to: &mut [u8]| request.transfer.copy_out(at, to);
            if let Err(error) = staging.add_block(self.core.journal.id(), BlockAddress(first.0 + n), size.bytes(), fill) {
                staging.clear();
                return request.transfer.answer(Err(error));
            }
            if staging.is_full() && n + 1 < count {
                let accepted = self.accept(staging);
                staging.clear();
                if !matches!(accepted, Accepted::Yes(_)) {
                    return self.defer(accepted, request);
                }
            }
        }
        staging.requests.push(request);
    }

    /// Accepts what is staged and answers its requests, or puts them where they are tried again.
    fn accept_or_defer(&self, staging: &mut Staging) {
        if mutant::is(Mutant::AckBeforeWrite) {
            for request in staging.requests.drain(..) {
                request.transfer.answer(Ok(()));
            }
        }
        let accepted = self.accept(staging);
        staging.clear();
        together(|| {
            for request in staging.requests.drain(..) {
                match accepted {
                    Accepted::Yes(sequence) => self.acknowledge(request, sequence),
                    other => self.defer(other, request),
                }
            }
        });
    }

    /// A change that is accepted as part of batch `sequence` is answered: at once, or with FUA once that is durable.
    pub(crate) fn acknowledge(&self, request: Request, sequence: u64) {
        failpoint::hit(failpoint::WRITE_BEFORE_ACK);
        self.counters.count(&request);
        if matches!(request.op, Op::Write { fua: true }) {
            self.core.syncer.when_durable(sequence, request.transfer, None);
        } else {
            request.transfer.answer(Ok(()));
        }
    }

    pub(crate) fn defer(&self, why: Accepted, request: Request) {
        match why {
            Accepted::Full => self.park(request),
            Accepted::Held => self.wait_for_range(request),
            Accepted::Yes(_) | Accepted::Failed => request.transfer.answer(Err(IoError::Halted)),
        }
    }

    fn wait_for_range(&self, request: Request) {
        let range = self.blocks_of(&request);
        let append = self.core.journal.lock();
        let mut ranges = self.ranges.lock();
        if ranges.blocks(&range) {
            ranges.wait(range, request);
        } else {
            // The holder was quicker than we.
            drop((append, ranges));
            self.write_again(request);
        }
    }

    fn write_again(&self, request: Request) {
        // From the runtime, not from here: this thread's staging is in use.
        let volume = self.handle();
        self.core.runtime.spawn(async move {
            if let Some(volume) = volume.upgrade() {
                volume.write_batch(&mut vec![request]);
            }
        });
    }

    /// Puts what is staged into the journal and publishes it. Does not touch `staging.requests`.
    pub(crate) fn accept(&self, staging: &Staging) -> Accepted {
        let mut append = self.core.journal.lock();
        if self.is_held(staging) {
            return Accepted::Held;
        }
        self.accept_locked(&mut append, staging)
    }

    fn is_held(&self, staging: &Staging) -> bool {
        let ranges = self.ranges.lock();
        staging.ops.iter().any(|op| ranges.blocks(&op.range()))
    }

    /// As [`Volume::accept`], by the holder of the ranges and of the append lock.
    pub(crate) fn accept_locked(&self, append: &mut Append, staging: &Staging) -> Accepted {
        if self.is_paused() && !staging.ops.is_empty() {
            // Parked like what finds no room, and tried again when it goes on.
            return if self.refuses_changes() { Accepted::Failed } else { Accepted::Full };
        }
        self.accept_anyway(append, staging)
    }

    /// As [`Volume::accept_locked`], also while the changes of guests wait.
    pub(crate) fn accept_anyway(&self, append: &mut Append, staging: &Staging) -> Accepted {
        if staging.ops.is_empty() {
            return Accepted::Yes(0);
        }
        if self.is_halted() {
            return Accepted::Failed;
        }
        let journal = &self.core.journal;
        match journal.reserve(append, staging.ops.len(), staging.data.len()) {
            Ok(()) => {}
            Err(JournalError::Full) => return Accepted::Full,
            Err(error) => return self.journal_failed(&error),
        }
        let entries = self.assign_locations(&staging.ops);
        let (time, now_ms) = (self.core.clock.wall(), self.core.clock.monotonic_ms());
        let written = match journal.write(append, time, &entries, &staging.data) {
            Ok(written) => written,
            Err(error) => return self.journal_failed(&error),
        };
        let mut page = written.first_page;
        let mut layers = self.layers.write();
        let closed = layers.closed.len();
        for entry in &entries {
            layers.publish(entry, &written.segment, page, time, now_ms);
            if let JournalOp::Data { pages, .. } = entry.op {
                page += u32::from(pages);
            }
        }
        let bytes = entries.iter().map(charge).sum::<u64>() + (header_pages(entries.len()) * PAGE) as u64;
        layers.open.journal_bytes += bytes;
        if layers.open.is_full(self.sco_blocks()) {
            layers.close_open();
        }
        let closed = layers.closed.len() > closed;
        drop(layers);
        self.core.throttle.accepted(bytes);
        if closed {
            self.core.work.notify_one();
        }
        self.core.see_to_journal();
        Accepted::Yes(written.sequence)
    }

    /// Gives every change its location: the next index of the open container, or of the one after it.
    fn assign_locations(&self, ops: &[Staged]) -> Vec<JournalEntry> {
        let layers = self.layers.read();
        let (mut sco, mut blocks, mut in_sco) = (layers.open.number, layers.open.block_count(), layers.open.entries.len());
        drop(layers);
        let mut after_sync = self.synced.swap(false, Ordering::AcqRel);
        ops.iter()
            .map(|staged| {
                if blocks >= usize::from(self.sco_blocks()) || in_sco >= crate::inflight::MAX_ENTRIES {
                    (sco, blocks, in_sco) = (sco.next(), 0, 0);
                }
                // At most 4096 blocks.
                let location = Location { ancestor: 0, sco, index: blocks as u16 };
                in_sco += 1;
                blocks += usize::from(matches!(staged.op, JournalOp::Data { .. }));
                let after_sync = std::mem::take(&mut after_sync);
                JournalEntry { volume: self.id(), block: staged.block, location, op: staged.op, after_sync }
            })
            .collect()
    }

    fn journal_failed(&self, error: &JournalError) -> Accepted {
        tracing::error!(error = error as &dyn std::error::Error, "the journal's SSD failed; writes are refused from now on");
        Accepted::Failed
    }

    /// First and last block that a request touches.
    pub(crate) fn blocks_of(&self, request: &Request) -> RangeInclusive<BlockAddress> {
        let size = self.block_size();
        let last = lamina_contract::Lba(request.start.0 + request.sectors.0.saturating_sub(1));
        request.start.block(size)..=last.block(size)
    }
}

#[cfg(test)]
mod tests {
    use lamina_contract::{BlockAddress, IoError};
    use lamina_formats::journal::JournalOp;

    use super::{Staging, is_zero};

    #[test]
    fn a_block_of_zeros_takes_no_data_and_merges_with_its_neighbour() {
        let mut staging = Staging::default();
        for block in [5, 6, 8] {
            staging
                .add_block(7, BlockAddress(block), 4096, |to| {
                    to.fill(0);
                    Ok(())
                })
                .expect("fill");
        }
        assert!(staging.data.is_empty());
        let counts: Vec<_> = staging.ops.iter().map(|op| (op.block.0, op.op)).collect();
        assert_eq!(counts, [(5, JournalOp::Zero { count: 2 }), (8, JournalOp::Zero { count: 1 })]);
    }

    #[test]
    fn a_block_whose_memory_faults_leaves_nothing_staged() {
        let mut staging = Staging::default();
        assert_eq!(staging.add_block(7, BlockAddress(1), 4096, |_| Err(IoError::GuestMemory)), Err(IoError::GuestMemory));
        assert!(staging.data.is_empty() && staging.ops.is_empty());
    }

    #[test]
    fn one_byte_anywhere_makes_a_block_not_zero() {
        for at in [0, 63, 64, 4095] {
            let mut block = vec![0; 4096];
            block[at] = 1;
            assert!(!is_zero(&block), "byte {at}");
        }
        assert!(is_zero(&[0; 4096]));
    }
}
