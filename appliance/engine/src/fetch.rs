//! Blocks from stored containers: a range read of just the blocks wanted, verified by their fingerprints before anyone sees them.
//!
//! A hundred clones that boot at once miss the same blocks at once. They share one read of the store: the first reads, verifies, puts the
//! blocks into the dedupe cache and only then ends its lead, so that whoever comes later finds them there. Each follower verifies its own
//! copy (checksum over fingerprint and data). A follower whose lead failed has failed as well, and tries again as if it were the first.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use lamina_contract::{BlockSize, Fingerprint, ScoNumber, VolumeId};
use lamina_formats::FormatError;
use lamina_formats::cache::slot_checksum;
use lamina_formats::sco;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::cache::{CacheRead, DedupeCache};
use crate::error::EngineError;
use crate::fingerprint::fingerprint;
use crate::flights::{Flights, Follow, Lead, Seat};

/// Indexes of containers kept in memory: 2 KiB each for containers of 1024 blocks, so about 8 MiB.
const KEPT_INDEXES: usize = 4096;

/// Which position each block index of a container has: `positions[n]` is the index of the n-th block stored.
struct ScoIndex {
    positions: Vec<u16>,
}

impl ScoIndex {
    fn position(&self, index: u16) -> Option<u64> {
        self.positions.binary_search(&index).ok().map(|at| at as u64)
    }
}

/// One block of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct BlockKey {
    volume: VolumeId,
    sco: ScoNumber,
    index: u16,
    fingerprint: Fingerprint,
}

/// A verified block on its way to more than one reader.
#[derive(Debug, Clone)]
struct Brought {
    bytes: Bytes,
    /// Over fingerprint and data, made by the reader that hashed them.
    sum: u32,
}

impl Brought {
    fn new(fingerprint: &Fingerprint, bytes: Bytes) -> Self {
        Self { sum: slot_checksum(fingerprint, &bytes), bytes }
    }

    fn verified(self, fingerprint: &Fingerprint) -> Option<Bytes> {
        (slot_checksum(fingerprint, &self.bytes) == self.sum).then_some(self.bytes)
    }
}

/// Reads blocks of containers; remembers the containers' indexes.
pub(crate) struct Fetcher {
    store: Arc<dyn ObjectStore>,
    indexes: Mutex<HashMap<(VolumeId, ScoNumber), Arc<ScoIndex>>>,
    indexes_under_way: Flights<(VolumeId, ScoNumber), Arc<ScoIndex>>,
    blocks_under_way: Flights<BlockKey, Brought>,
}

/// A container to read from.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) volume: VolumeId,
    pub(crate) sco: ScoNumber,
    pub(crate) key: Path,
    pub(crate) block_size: BlockSize,
    /// Blocks that it may hold at most.
    pub(crate) capacity: u16,
}

impl Fetcher {
    pub(crate) fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, indexes: Mutex::default(), indexes_under_way: Flights::new(), blocks_under_way: Flights::new() }
    }

    /// As [`Fetcher::blocks`], for a reader that did not find them in the cache: what another fetches already is waited for, the rest is
    /// fetched and kept in the cache on behalf of volume `reader`.
    pub(crate) async fn blocks_together(
        &self,
        container: &Container,
        wanted: &[(u16, Fingerprint)],
        cache: &DedupeCache,
        reader: VolumeId,
    ) -> Result<Vec<Bytes>, EngineError> {
        let mut blocks: Vec<Option<Bytes>> = vec![None; wanted.len()];
        let mut led: Vec<(usize, Lead<'_, _, _>)> = Vec::new();
        let mut followed: Vec<(usize, Follow<Brought>)> = Vec::new();
        for (n, (index, fingerprint)) in wanted.iter().enumerate() {
            let key = BlockKey { volume: container.volume, sco: container.sco, index: *index, fingerprint: *fingerprint };
            match self.blocks_under_way.join(&key) {
                Seat::Lead(lead) => led.push((n, lead)),
                Seat::Follow(follow) => followed.push((n, follow)),
            }
        }
        // Its own first, since others wait for them; who leads never waits for who follows, so nobody waits in a circle.
        let mut missing = Vec::with_capacity(led.len());
        for (n, lead) in led {
            let (index, fingerprint) = wanted[n];
            // Another lead may have ended between this reader's look into the cache and its own lead.
            let size = container.block_size.bytes();
            match if cache.contains(&fingerprint) { cached(cache, &fingerprint, size).await } else { None } {
                Some(bytes) => {
                    blocks[n] = Some(bytes.clone());
                    lead.land(Brought::new(&fingerprint, bytes));
                }
                None => missing.push((n, lead, (index, fingerprint))),
            }
        }
        if !missing.is_empty() {
            let places: Vec<(u16, Fingerprint)> = missing.iter().map(|(_, _, place)| *place).collect();
            let fetched = self.blocks(container, &places).await?;
            for ((n, lead, (_, fingerprint)), bytes) in missing.into_iter().zip(fetched) {
                cache.insert(reader, &fingerprint, &bytes);
                blocks[n] = Some(bytes.clone());
                lead.land(Brought::new(&fingerprint, bytes));
            }
        }
        for (n, follow) in followed {
            let brought = follow.landed().await;
            blocks[n] = brought.and_then(|brought| brought.verified(&wanted[n].1));
        }
        blocks.into_iter().collect::<Option<_>>().ok_or_else(|| left_alone(container))
    }

    /// The blocks `wanted`, in that order, each verified against its fingerprint.
    pub(crate) async fn blocks(&self, container: &Container, wanted: &[(u16, Fingerprint)]) -> Result<Vec<Bytes>, EngineError> {
        let index = self.index(container).await?;
        let size = container.block_size.bytes() as u64;
        let missing = || EngineError::BlockMissing { object: container.key.clone() };
        let positions: Option<Vec<u64>> = wanted.iter().map(|(index_no, _)| index.position(*index_no)).collect();
        let positions = positions.ok_or_else(missing)?;
        let mut out = Vec::with_capacity(wanted.len());
        let mut start = 0;
        while start < positions.len() {
            let mut end = start + 1;
            while end < positions.len() && positions[end] == positions[end - 1] + 1 {
                end += 1;
            }
            let range = positions[start] * size..(positions[end - 1] + 1) * size;
            let bytes = self.store.get_range(&container.key, range).await.map_err(|source| store_error(&container.key, source))?;
            if bytes.len() as u64 != (end - start) as u64 * size {
                return Err(missing());
            }
            out.extend((0..end - start).map(|n| bytes.slice(n * size as usize..(n + 1) * size as usize)));
            start = end;
        }
        // What enters the node from a store is hashed again, whatever checks it passed on the way.
        for (bytes, (_, expected)) in out.iter().zip(wanted) {
            if fingerprint(bytes) != *expected {
                return Err(EngineError::WrongBlock { object: container.key.clone() });
            }
        }
        Ok(out)
    }

    async fn index(&self, container: &Container) -> Result<Arc<ScoIndex>, EngineError> {
        let id = (container.volume, container.sco);
        let known = || self.indexes.lock().get(&id).cloned();
        if let Some(index) = known() {
            return Ok(index);
        }
        let lead = match self.indexes_under_way.join(&id) {
            Seat::Lead(lead) => lead,
            Seat::Follow(follow) => return follow.landed().await.ok_or_else(|| left_alone(container)),
        };
        // Another lead may have ended since it was looked for.
        let index = match known() {
            Some(index) => index,
            None => self.fetch_index(container).await?,
        };
        lead.land(index.clone());
        Ok(index)
    }

    async fn fetch_index(&self, container: &Container) -> Result<Arc<ScoIndex>, EngineError> {
        let most = sco::tail_bytes(usize::from(container.capacity)) as u64;
        let options = GetOptions { range: Some(GetRange::Suffix(most)), ..GetOptions::default() };
        let fetched = async { self.store.get_opts(&container.key, options).await?.bytes().await };
        let tail = fetched.await.map_err(|source| store_error(&container.key, source))?;
        let damaged = |source: FormatError| EngineError::Format { object: container.key.clone(), source };
        let (identity, blocks) = sco::decode_tail(&tail).map_err(damaged)?;
        if identity.volume != container.volume || identity.sco != container.sco || identity.block_size != container.block_size {
            return Err(damaged(FormatError::Field { format: "SCO", field: "identity" }));
        }
        let positions: Vec<u16> = blocks.iter().map(|b| b.index).collect();
        if !positions.is_sorted() {
            return Err(damaged(FormatError::Field { format: "SCO", field: "order of the index" }));
        }
        let index = Arc::new(ScoIndex { positions });
        let mut indexes = self.indexes.lock();
        if indexes.len() >= KEPT_INDEXES {
            // Any will do: a forgotten index costs one small read.
            let victims: Vec<_> = indexes.keys().take(KEPT_INDEXES / 8).copied().collect();
            for victim in victims {
                indexes.remove(&victim);
            }
        }
        indexes.insert((container.volume, container.sco), index.clone());
        Ok(index)
    }

    pub(crate) fn forget(&self, volume: VolumeId) {
        self.indexes.lock().retain(|(owner, _), _| *owner != volume);
    }
}

/// The block from the cache, if it is there and right.
pub(crate) async fn cached(cache: &DedupeCache, fingerprint: &Fingerprint, size: usize) -> Option<Bytes> {
    let slot = cache.find(fingerprint).filter(|slot| slot.len() == size)?;
    let (done, wait) = oneshot::channel();
    cache.read_later(slot, move |read, bytes| drop(done.send((read, bytes))));
    let (read, bytes) = wait.await.ok()?;
    (read == CacheRead::Hit).then(|| Bytes::from(bytes))
}

fn left_alone(container: &Container) -> EngineError {
    EngineError::LeftAlone { object: container.key.clone() }
}

fn store_error(object: &Path, source: object_store::Error) -> EngineError {
    EngineError::Store { doing: "reading", object: object.clone(), source }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
