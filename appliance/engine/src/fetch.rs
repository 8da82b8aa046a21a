//! Blocks from stored containers: a range read of just the blocks wanted, verified by their fingerprints before anyone sees them.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use lamina_contract::{BlockSize, Fingerprint, ScoNumber, VolumeId};
use lamina_formats::FormatError;
use lamina_formats::sco;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;

use crate::error::EngineError;
use crate::fingerprint::fingerprint;

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

/// Reads blocks of containers; remembers the containers' indexes.
pub(crate) struct Fetcher {
    store: Arc<dyn ObjectStore>,
    indexes: Mutex<HashMap<(VolumeId, ScoNumber), Arc<ScoIndex>>>,
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
        Self { store, indexes: Mutex::default() }
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
        if let Some(index) = self.indexes.lock().get(&id) {
            return Ok(index.clone());
        }
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
        indexes.insert(id, index.clone());
        Ok(index)
    }

    pub(crate) fn forget(&self, volume: VolumeId) {
        self.indexes.lock().retain(|(owner, _), _| *owner != volume);
    }
}

fn store_error(object: &Path, source: object_store::Error) -> EngineError {
    EngineError::Store { doing: "reading", object: object.clone(), source }
}
