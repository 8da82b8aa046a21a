//! Changes that do not lie on block boundaries: read the blocks at the edges, change them, write whole blocks.
//!
//! The range of blocks is held from before the read until the append, both under the append lock (`ranges.rs`), so a write that
//! is accepted in between can only be to other blocks.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::FutureExt;
use lamina_contract::{BlockAddress, IoError, Op, Request, SECTOR_BYTES};

use crate::ranges::RangeId;
use crate::volume::Volume;
use crate::write::{Accepted, Staging};

/// How long to wait before the journal is asked for room again.
const ROOM_POLL: Duration = Duration::from_millis(2);

/// Gives a held range back, whatever happens to its holder.
pub(crate) struct Held {
    volume: Arc<Volume>,
    id: RangeId,
}

impl Drop for Held {
    fn drop(&mut self) {
        let waiters = {
            let _append = self.volume.core.journal.lock();
            self.volume.ranges.lock().release(self.id)
        };
        if !waiters.is_empty() {
            let volume = self.volume.clone();
            let mut waiters = waiters;
            // Not from here: the thread that drops may be inside a batch of its own.
            self.volume.core.runtime.spawn(async move { volume.change(&mut waiters) });
        }
    }
}

impl Volume {
    /// Takes over a change with edges inside blocks.
    pub(crate) fn change_partially(self: &Arc<Self>, request: Request) {
        let range = self.blocks_of(&request);
        let held = {
            let append = self.core.journal.lock();
            if self.is_paused() {
                // What it would read now may be gone back from before it writes.
                drop(append);
                let why = if self.refuses_changes() { Accepted::Failed } else { Accepted::Full };
                return self.defer(why, request);
            }
            let mut ranges = self.ranges.lock();
            if ranges.blocks(&range) {
                ranges.wait(range, request);
                return;
            }
            Held { volume: self.clone(), id: ranges.hold(range.clone()) }
        };
        let mut change = Box::pin(self.clone().read_modify_write(request, range, held));
        // Edges in memory or in the page cache are the rule; only the others are worth a task. Timers and stores need the runtime.
        let _runtime = self.core.runtime.enter();
        if change.as_mut().now_or_never().is_none() {
            self.core.runtime.spawn(change);
        }
    }

    /// Keeps guests' writes from a range for as long as the result lives; None when somebody does so already, or changes wait.
    pub(crate) fn try_hold(self: &Arc<Self>, range: RangeInclusive<BlockAddress>) -> Option<Held> {
        let _append = self.core.journal.lock();
        if self.is_paused() {
            return None;
        }
        let mut ranges = self.ranges.lock();
        (!ranges.blocks(&range)).then(|| Held { volume: self.clone(), id: ranges.hold(range) })
    }

    async fn read_modify_write(self: Arc<Self>, request: Request, range: RangeInclusive<BlockAddress>, held: Held) {
        let edges = match self.edges(request.op, request.start.0, request.sectors.0).await {
            Ok(edges) => edges,
            Err(error) => return request.transfer.answer(Err(error)),
        };
        let batches = match self.modified_blocks(&request, range, &edges) {
            Ok(batches) => batches,
            Err(error) => return request.transfer.answer(Err(error)),
        };
        let mut last = 0;
        for staging in batches {
            last = loop {
                let accepted = {
                    let mut append = self.core.journal.lock();
                    self.accept_locked(&mut append, &staging)
                };
                match accepted {
                    Accepted::Yes(sequence) => break sequence,
                    Accepted::Full => tokio::time::sleep(ROOM_POLL).await,
                    Accepted::Held | Accepted::Failed => return request.transfer.answer(Err(IoError::Halted)),
                }
            };
        }
        drop(held);
        self.acknowledge(request, last);
    }

    /// The blocks that a change of `sectors` from `start` on touches in part: the first, the last, or both.
    async fn edges(self: &Arc<Self>, op: Op, start: u64, sectors: u64) -> Result<HashMap<u64, Bytes>, IoError> {
        let per_block = self.block_size().sectors();
        let mut edges = HashMap::new();
        // A part of a block cannot be given back, and a discard promises nothing.
        if op == Op::Discard {
            return Ok(edges);
        }
        for (sector, on_boundary) in
            [(start, start.is_multiple_of(per_block)), (start + sectors - 1, (start + sectors).is_multiple_of(per_block))]
        {
            let block = sector / per_block;
            if !on_boundary && !edges.contains_key(&block) {
                edges.insert(block, self.block_bytes(BlockAddress(block)).await?);
            }
        }
        Ok(edges)
    }

    /// The whole blocks of `range` as they will be, in batches that the journal takes.
    fn modified_blocks(
        &self,
        request: &Request,
        range: RangeInclusive<BlockAddress>,
        edges: &HashMap<u64, Bytes>,
    ) -> Result<Vec<Staging>, IoError> {
        let size = self.block_size();
        let (start, end) = (request.start.0, request.start.0 + request.sectors.0);
        let whole = start.div_ceil(size.sectors())..end / size.sectors();
        let mut batches = Vec::new();
        let mut staging = Staging::default();
        let mut block = range.start().0;
        while block <= range.end().0 {
            if staging.is_full() {
                batches.push(std::mem::take(&mut staging));
            }
            let keep = match request.op {
                Op::Discard => Some(false),
                Op::WriteZeroes { unmap } => Some(!unmap),
                Op::Read | Op::Write { .. } | Op::Flush => None,
            };
            if let Some(keep) = keep
                && whole.contains(&block)
            {
                staging.add_zeros(BlockAddress(block), whole.end - block, keep);
                block = whole.end;
                continue;
            }
            if request.op != Op::Discard {
                let block_start = block * size.sectors();
                let (from, to) = (start.max(block_start), end.min(block_start + size.sectors()));
                let inside = ((from - block_start) * SECTOR_BYTES) as usize..((to - block_start) * SECTOR_BYTES) as usize;
                let at = ((from - start) * SECTOR_BYTES) as usize;
                staging.add_block(self.core.journal.id(), BlockAddress(block), size.bytes(), |new| {
                    if let Some(old) = edges.get(&block) {
                        new.copy_from_slice(old);
                    }
                    if matches!(request.op, Op::WriteZeroes { .. }) {
                        new[inside].fill(0);
                        return Ok(());
                    }
                    request.transfer.copy_out(at, &mut new[inside])
                })?;
            }
            block += 1;
        }
        batches.push(staging);
        Ok(batches)
    }
}
