//! Closed → sealed: the blocks of a container are read back from the journal, checked, fingerprinted, and become an object.
//!
//! A block whose fingerprint already lives in the volume becomes a reference in the TLog and leaves a gap in the object: no data
//! leaves the node twice. Containers of a volume are sealed in order, so a reference only ever points backwards.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use lamina_contract::{BlockAddress, Fingerprint, Location, PageBuffer};
use lamina_formats::crc32c;
use lamina_formats::journal::PAGE;
use lamina_formats::sco::{self, ScoBlock, ScoIdentity};
use lamina_formats::tlog::{TlogEntry, TlogOp};
use object_store::PutPayload;

use crate::fingerprint::fingerprints;
use crate::inflight::{EntryOp, Inflight, JournalBlock};
use crate::volume::Volume;

/// The most bytes that one read of the journal asks for.
const READ_BYTES: usize = 1 << 20;

/// What the TLog says of a container.
pub(crate) struct Sealed {
    pub(crate) tlog: Vec<TlogEntry>,
    pub(crate) data_blocks: u64,
    pub(crate) reference_blocks: u64,
    /// Blocks given up: see [`Damage::Lose`].
    pub(crate) lost_blocks: u64,
}

/// A container's bytes: blocks, then index and trailer.
pub(crate) struct SealedObject {
    pub(crate) blocks: Bytes,
    tail: Bytes,
}

impl SealedObject {
    pub(crate) fn len(&self) -> u64 {
        (self.blocks.len() + self.tail.len()) as u64
    }

    pub(crate) fn payload(&self) -> PutPayload {
        [self.blocks.clone(), self.tail.clone()].into_iter().collect()
    }
}

/// What becomes of a block that does not verify and that nothing newer replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Sealing fails: reading it again may help.
    Refuse,
    /// It is recorded as lost, so that one block does not hold up its volume and, behind a full journal, every guest.
    Lose,
}

/// A block of the journal does not verify and nothing newer replaces it.
#[derive(Debug, thiserror::Error)]
#[error("block {} of the journal does not verify", block.0)]
pub(crate) struct JournalDamage {
    pub(crate) block: BlockAddress,
}

/// The blocks of a container as the journal has them.
pub(crate) struct ReadBack {
    /// Block by block in the order of their indices.
    bytes: PageBuffer,
    /// By index; None where the block cannot be read or does not verify.
    sums: Vec<Option<Sums>>,
}

#[derive(Clone, Copy)]
struct Sums {
    fingerprint: Fingerprint,
    crc: u32,
}

impl Volume {
    /// Reads a container's blocks back from the journal and checks and fingerprints them: 1 to 3 ms of CPU per 4 MiB, most of it
    /// SHA-256. Needs no order among containers.
    pub(crate) fn read_back(&self, container: &Inflight) -> ReadBack {
        let size = self.block_size().bytes();
        let count = container.block_count();
        let mut bytes = self.core.buffers.take(count * size);
        let readable = read_blocks(container, size, &mut bytes);
        let blocks: Vec<Option<&[u8]>> = bytes
            .chunks_exact(size)
            .zip(readable)
            .zip(0..)
            .map(|((block, readable), index)| {
                let expected = container.block(index).map(|block| block.sum);
                (readable && expected == Some(self.core.journal.block_sum(block))).then_some(block)
            })
            .collect();
        let intact: Vec<&[u8]> = blocks.iter().copied().flatten().collect();
        let fingerprints = fingerprints(&intact);
        assert_eq!(fingerprints.len(), intact.len(), "else intact blocks would pass for damaged ones");
        let mut found = intact.iter().zip(fingerprints).map(|(block, fingerprint)| Sums { fingerprint, crc: crc32c(block) });
        let sums = blocks.iter().map(|block| block.and_then(|_| found.next())).collect();
        ReadBack { bytes, sums }
    }

    /// Seals `container`, whose blocks are `read`, in the order of the volume's containers. There is no object when every entry is a
    /// reference or carries no data.
    pub(crate) fn seal(
        &self,
        container: &Inflight,
        read: ReadBack,
        damage: Damage,
    ) -> Result<(Sealed, Option<SealedObject>), JournalDamage> {
        let ReadBack { bytes: mut object, sums } = read;
        let size = self.block_size().bytes();
        // Strictly older: a container that is sealed twice must not find its own blocks and drop them.
        let older = |at: &Location| at.sco < container.number;
        let prints = sums.iter().map(|sums| sums.as_ref().map(|sums| &sums.fingerprint));
        let mut known: Vec<Option<Location>> = self.core.lineage.find_all(self.id(), prints);
        for found in &mut known {
            *found = found.filter(older);
        }
        let mut tlog = Vec::with_capacity(container.entries.len());
        let mut kept: Vec<ScoBlock> = Vec::with_capacity(sums.len());
        let mut own: HashMap<Fingerprint, Location> = HashMap::with_capacity(sums.len());
        let (mut references, mut lost) = (0, 0);
        for entry in &container.entries {
            let block = entry.block();
            let op = match entry.op() {
                EntryOp::Zero { count } => TlogOp::Zero { count },
                EntryOp::Trim { count } => TlogOp::Trim { count },
                EntryOp::Data { index } => {
                    let location = container.location(index);
                    let at = usize::from(index) * size;
                    let (sums, known) = (sums.get(usize::from(index)).copied().flatten(), known.get(usize::from(index)));
                    if let Some(Sums { fingerprint, crc }) = sums {
                        let known = own.get(&fingerprint).copied().or_else(|| known.copied().flatten());
                        if let Some(location) = known {
                            references += 1;
                            TlogOp::Reference { location, fingerprint }
                        } else {
                            own.insert(fingerprint, location);
                            let to = kept.len() * size;
                            if to != at {
                                object.copy_within(at..at + size, to);
                            }
                            kept.push(ScoBlock { index, block, fingerprint, crc });
                            TlogOp::Data { location, fingerprint }
                        }
                    } else {
                        lost += u64::from(self.give_up_block(block, location, damage)?);
                        // Overwritten or not: whoever goes back to this moment must not find what stood there before it.
                        TlogOp::Reference { location: Location::LOST, fingerprint: Fingerprint([0; 32]) }
                    }
                }
            };
            tlog.push(TlogEntry { block, op, time: entry.time(container.opened), after_sync: entry.after_sync() });
        }
        self.core.lineage.insert_all(self.id(), own.iter().map(|(fingerprint, location)| (fingerprint, *location)));
        let data_blocks = kept.len() as u64;
        object.truncate(kept.len() * size);
        let object = (!kept.is_empty()).then(|| {
            let identity = ScoIdentity {
                volume: self.id(),
                sco: container.number,
                epoch: self.epoch(),
                block_size: self.block_size(),
                rewrite: 0,
            };
            SealedObject { blocks: object.share(), tail: sco::encode_tail(&identity, &kept).into() }
        });
        Ok((Sealed { tlog, data_blocks, reference_blocks: references, lost_blocks: lost }, object))
    }

    /// A block does not verify: says whether the guest loses it, unless losing it is refused.
    fn give_up_block(&self, block: BlockAddress, location: Location, damage: Damage) -> Result<bool, JournalDamage> {
        let current = self.layers.read().is_current(block, location);
        match (current, damage) {
            (true, Damage::Refuse) => return Err(JournalDamage { block }),
            (true, Damage::Lose) => tracing::error!(volume = %self.id(), block = block.0,
                "a block of the journal is lost: reading it is an error until the guest writes it again"),
            (false, _) => tracing::warn!(volume = %self.id(), block = block.0, "a rotten journal block was overwritten since"),
        }
        Ok(current)
    }
}

/// Reads all blocks in as few reads as their places allow; says for each whether it could be read.
fn read_blocks(container: &Inflight, size: usize, into: &mut [u8]) -> Vec<bool> {
    let count = container.block_count();
    let mut readable = vec![true; count];
    let mut start = 0;
    while start < count {
        let Some(first) = container.block(start as u16) else { break };
        let mut end = start + 1;
        while end < count && (end - start) * size < READ_BYTES {
            let follows = container.block(end as u16).is_some_and(|next| follows(&first, &next, (end - start) * size));
            if !follows {
                break;
            }
            end += 1;
        }
        let bytes = &mut into[start * size..end * size];
        if let Err(error) = first.segment.file().read_at(first.offset(), bytes) {
            tracing::error!(error = &error as &dyn std::error::Error, "the journal cannot be read");
            readable[start..end].fill(false);
        }
        start = end;
    }
    readable
}

/// Whether `next` stands `distance` bytes behind `first` in the same segment.
pub(crate) fn follows(first: &JournalBlock, next: &JournalBlock, distance: usize) -> bool {
    Arc::ptr_eq(&first.segment, &next.segment) && next.page as usize == first.page as usize + distance / PAGE
}
