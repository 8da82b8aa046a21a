//! Closed → sealed: the blocks of a container are read back from the journal, checked, fingerprinted, and become an object.
//!
//! A block whose fingerprint already lives in the volume becomes a reference in the TLog and leaves a gap in the object: no data
//! leaves the node twice. Containers of a volume are sealed in order, so a reference only ever points backwards.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use lamina_contract::{BlockAddress, Fingerprint, Location};
use lamina_formats::crc32c;
use lamina_formats::journal::PAGE;
use lamina_formats::sco::{self, ScoBlock, ScoIdentity};
use lamina_formats::tlog::{TlogEntry, TlogOp};
use sha2::{Digest, Sha256};

use crate::inflight::{EntryOp, Inflight, JournalBlock};
use crate::volume::Volume;

/// The most bytes that one read of the journal asks for.
const READ_BYTES: usize = 1 << 20;

/// A container ready for the store.
pub(crate) struct Sealed {
    pub(crate) tlog: Vec<TlogEntry>,
    /// None when every entry is a reference or carries no data.
    pub(crate) object: Option<Bytes>,
    pub(crate) data_blocks: u64,
    pub(crate) reference_blocks: u64,
    /// Blocks given up: see [`Damage::Lose`].
    pub(crate) lost_blocks: u64,
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

/// SHA-256 of a block.
pub(crate) fn fingerprint(bytes: &[u8]) -> Fingerprint {
    Fingerprint(Sha256::digest(bytes).into())
}

impl Volume {
    /// Seals `container`. Takes about 3 ms of CPU per 4 MiB, nearly all of it SHA-256.
    pub(crate) fn seal(&self, container: &Inflight, damage: Damage) -> Result<Sealed, JournalDamage> {
        let size = self.block_size().bytes();
        let count = container.block_count();
        let mut object = Vec::with_capacity(count * size + sco::tail_bytes(count));
        object.resize(count * size, 0);
        let intact = read_blocks(container, size, &mut object);
        let mut tlog = Vec::with_capacity(container.entries.len());
        let mut kept: Vec<ScoBlock> = Vec::with_capacity(count);
        let mut own: HashMap<Fingerprint, Location> = HashMap::with_capacity(count);
        let (mut references, mut lost) = (0, 0);
        for entry in &container.entries {
            let block = entry.block();
            let op = match entry.op() {
                EntryOp::Zero { count } => TlogOp::Zero { count },
                EntryOp::Trim { count } => TlogOp::Trim { count },
                EntryOp::Data { index } => {
                    let location = container.location(index);
                    let at = usize::from(index) * size;
                    let found = self.core.journal.block_sum(&object[at..at + size]);
                    let expected = container.block(index).map(|b| b.sum);
                    if !intact.get(usize::from(index)).copied().unwrap_or(false) || expected != Some(found) {
                        let current = self.layers.read().is_current(block, location);
                        if current && damage == Damage::Refuse {
                            return Err(JournalDamage { block });
                        }
                        if current {
                            tracing::error!(volume = %self.id(), block = block.0,
                                "a block of the journal is lost: reading it is an error until the guest writes it again");
                            lost += 1;
                        } else {
                            tracing::warn!(volume = %self.id(), block = block.0, "a rotten journal block was overwritten since");
                        }
                        // Overwritten or not: whoever goes back to this moment must not find what stood there before it.
                        let op = TlogOp::Reference { location: Location::LOST, fingerprint: Fingerprint([0; 32]) };
                        tlog.push(TlogEntry { block, op, time: entry.time(container.opened), after_sync: entry.after_sync() });
                        continue;
                    }
                    let fingerprint = fingerprint(&object[at..at + size]);
                    // Strictly older: a container that is sealed twice must not find its own blocks and drop them.
                    let older = || self.core.lineage.find(self.id(), &fingerprint).filter(|at| at.sco < container.number);
                    let known = own.get(&fingerprint).copied().or_else(older);
                    if let Some(location) = known {
                        references += 1;
                        TlogOp::Reference { location, fingerprint }
                    } else {
                        own.insert(fingerprint, location);
                        let crc = crc32c(&object[at..at + size]);
                        let to = kept.len() * size;
                        if to != at {
                            object.copy_within(at..at + size, to);
                        }
                        kept.push(ScoBlock { index, block, fingerprint, crc });
                        TlogOp::Data { location, fingerprint }
                    }
                }
            };
            tlog.push(TlogEntry { block, op, time: entry.time(container.opened), after_sync: entry.after_sync() });
        }
        for (fingerprint, location) in &own {
            self.core.lineage.insert(self.id(), fingerprint, *location);
        }
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
            sco::seal(&identity, &kept, &mut object);
            Bytes::from(object)
        });
        Ok(Sealed { tlog, object, data_blocks, reference_blocks: references, lost_blocks: lost })
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
