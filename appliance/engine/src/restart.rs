//! Restart: which manifest is a volume's root, what its TLogs say since the last checkpoint, and, when the registry is gone, which
//! volumes a store holds.
//!
//! Nothing here depends on the SSD: with journal and registry wiped, a volume comes back as the prefix that its newest verifying
//! manifest names (invariant 4). Recovery changes nothing that a second recovery would need, so it may be cut off anywhere.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use lamina_contract::{
    Coordination, CoordinationError, Epoch, Generation, Ownership, ScoNumber, Timestamp, TlogNumber, VolumeId, VolumeName,
    VolumeRecord, VolumeSpec,
};
use lamina_formats::FormatError;
use lamina_formats::manifest::Manifest;
use lamina_formats::map::MapRoot;
use lamina_formats::tlog::{self, TlogEntry, TlogOp};
use lamina_formats::volume::VolumeIdentity;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use crate::behind::Behind;
use crate::error::EngineError;
use crate::layers::Layers;
use crate::lineage::Lineage;
use crate::map::CheckpointedMap;
use crate::namespace::{Namespace, epoch_of, parse_manifest_key};
use crate::pages::PageCache;
use crate::volume::Opened;

/// TLogs fetched at once.
const FETCHES: usize = 8;

/// What restart reads from and decides with.
pub(crate) struct Sources {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) coordination: Arc<dyn Coordination>,
    pub(crate) pages: Arc<PageCache>,
    pub(crate) lineage: Arc<Lineage>,
}

/// A manifest that verifies, with what hangs on it.
struct Root {
    manifest: Manifest,
    tlogs: Vec<Vec<TlogEntry>>,
}

impl Sources {
    /// Takes ownership of a registered volume and rebuilds its state up to its newest manifest.
    pub(crate) async fn open(&self, record: &VolumeRecord) -> Result<Opened, EngineError> {
        let namespace = Namespace(record.id);
        // Taken before anything is looked at, so that an earlier owner decides nothing more.
        let mut owner = self.coordination.take(record.id, Epoch(0))?;
        let mut keys = self.manifest_keys(namespace).await?;
        let seen = keys.iter().map(|(_, epoch)| *epoch).max().unwrap_or(Epoch(0));
        let record = &self.coordination.get(record.id)?;
        let mut undecided = false;
        if seen >= owner.epoch {
            // A registry restored from a backup is behind the store: the newest that verifies counts.
            owner = self.coordination.take(record.id, seen)?;
            keys.retain(|(generation, epoch)| (*epoch, *generation) >= (record.manifest_epoch, record.generation));
        } else {
            // What was decided counts, and only that: a manifest put by an earlier owner may become visible at any time.
            undecided = keys.iter().any(|(generation, epoch)| (*epoch, *generation) > (record.manifest_epoch, record.generation));
            keys.retain(|key| *key == (record.generation, record.manifest_epoch));
        }
        let root = self.newest_root(namespace, &keys).await?;
        let mut root = match root {
            Some(root) => {
                self.adopt(record, owner, &root.manifest)?;
                root
            }
            None if record.generation == Generation(0) => {
                self.put_identity(record).await?;
                Root { manifest: first_manifest(record), tlogs: Vec::new() }
            }
            None => return Err(EngineError::NoRoot { volume: record.id }),
        };
        if undecided {
            self.outrank(namespace, owner, &mut root.manifest).await?;
        }
        let mut layers = Layers::new(root.manifest.last_sco.next());
        let mut replayed = 0;
        for entries in &root.tlogs {
            layers.replay(entries);
            replayed += entries.len() as u64;
            for entry in entries {
                if let TlogOp::Data { location, fingerprint } = entry.op {
                    self.lineage.insert_all(record.id, std::iter::once((&fingerprint, location)));
                }
            }
        }
        let pages = self.open_pages(namespace, &root.manifest).await?;
        let old = old_manifests(namespace, &self.manifest_keys(namespace).await?, &root.manifest);
        let behind = Behind::new(root.manifest, replayed, old);
        Ok(Opened { id: record.id, spec: record.spec.clone(), ownership: owner, layers, pages, behind })
    }

    /// Stores and decides the same root once more under this owner's epoch. An earlier owner's manifest that was never decided stays in
    /// the store: if that were all that is left one day, it must not be the highest.
    async fn outrank(&self, namespace: Namespace, owner: Ownership, manifest: &mut Manifest) -> Result<(), EngineError> {
        manifest.generation = Generation(manifest.generation.0 + 1);
        manifest.epoch = owner.epoch;
        let key = namespace.manifest(manifest.generation, manifest.epoch);
        let put = self.store.put(&key, PutPayload::from(manifest.encode())).await;
        put.map_err(|source| EngineError::Store { doing: "writing", object: key, source })?;
        Ok(self.coordination.advance(owner, manifest.generation)?)
    }

    fn adopt(&self, record: &VolumeRecord, owner: Ownership, manifest: &Manifest) -> Result<(), EngineError> {
        if (manifest.generation, manifest.epoch) != (record.generation, record.manifest_epoch) {
            tracing::warn!(volume = %record.id, registered = record.generation.0, stored = manifest.generation.0,
                "the registry is behind the store; the stored manifest counts");
            self.coordination.adopt(owner, manifest.generation, manifest.epoch)?;
        }
        Ok(())
    }

    async fn open_pages(&self, namespace: Namespace, manifest: &Manifest) -> Result<CheckpointedMap, EngineError> {
        let root = map_root(namespace, manifest)?;
        Ok(CheckpointedMap::open(namespace.0, self.store.clone(), root, self.pages.clone()).await?)
    }

    /// Generations and epochs of all manifests of a namespace.
    async fn manifest_keys(&self, namespace: Namespace) -> Result<Vec<(Generation, Epoch)>, EngineError> {
        let prefix = namespace.manifests();
        let listed: Result<Vec<_>, _> = self.store.list(Some(&prefix)).try_collect().await;
        let listed = listed.map_err(|source| EngineError::Store { doing: "listing", object: prefix, source })?;
        Ok(listed.iter().filter_map(|meta| parse_manifest_key(&meta.location)).collect())
    }

    /// The highest (epoch, generation) whose chain verifies: manifest, map root, and every TLog since the checkpoint.
    async fn newest_root(&self, namespace: Namespace, keys: &[(Generation, Epoch)]) -> Result<Option<Root>, EngineError> {
        let mut keys = keys.to_vec();
        keys.sort_by_key(|(generation, epoch)| std::cmp::Reverse((*epoch, *generation)));
        let mut trouble = None;
        for (generation, epoch) in keys {
            match self.verify(namespace, generation, epoch).await {
                Ok(root) => return Ok(Some(root)),
                // A store that does not answer now is no reason to go back in time.
                Err(error) if !error.is_final() => return Err(error),
                Err(error) => {
                    tracing::warn!(volume = %namespace.0, generation = generation.0, epoch = epoch.0,
                        error = &error as &dyn std::error::Error, "a manifest's chain does not verify");
                    trouble = Some(error);
                }
            }
        }
        // A store that cannot be read must not pass for one that holds nothing.
        trouble.map_or(Ok(None), Err)
    }

    async fn verify(&self, namespace: Namespace, generation: Generation, epoch: Epoch) -> Result<Root, EngineError> {
        let key = namespace.manifest(generation, epoch);
        let bytes = self.get(&key).await?;
        let manifest = Manifest::decode(&bytes).map_err(|source| EngineError::Format { object: key.clone(), source })?;
        if manifest.volume != namespace.0 || manifest.generation != generation || manifest.epoch != epoch {
            let source = FormatError::Field { format: "manifest", field: "identity" };
            return Err(EngineError::Format { object: key, source });
        }
        self.open_pages(namespace, &manifest).await?;
        let numbers = manifest.checkpoint_tlog.0 + 1..=manifest.last_tlog.0;
        let fetches = numbers.map(|number| self.tlog(namespace, &manifest, TlogNumber(number)));
        let tlogs = stream::iter(fetches).buffered(FETCHES).try_collect().await?;
        Ok(Root { manifest, tlogs })
    }

    async fn tlog(&self, namespace: Namespace, manifest: &Manifest, number: TlogNumber) -> Result<Vec<TlogEntry>, EngineError> {
        let field = |object: &Path, field| EngineError::Format {
            object: object.clone(),
            source: FormatError::Field { format: "TLog", field },
        };
        let no_term = || field(&namespace.prefix(), "term");
        let epoch = epoch_of(&manifest.tlog_terms, number.0).ok_or_else(no_term)?;
        let key = namespace.tlog(epoch, number);
        let bytes = self.get(&key).await?;
        let (identity, entries) = tlog::decode(&bytes).map_err(|source| EngineError::Format { object: key.clone(), source })?;
        if identity.volume != namespace.0 || identity.number != number || identity.epoch != epoch {
            return Err(field(&key, "identity"));
        }
        Ok(entries)
    }

    async fn get(&self, key: &Path) -> Result<bytes::Bytes, EngineError> {
        let fetched = async { self.store.get(key).await?.bytes().await };
        fetched.await.map_err(|source| EngineError::Store { doing: "reading", object: key.clone(), source })
    }

    /// Writes the identity of a volume that never had a manifest; the same bytes each time.
    pub(crate) async fn put_identity(&self, record: &VolumeRecord) -> Result<(), EngineError> {
        let key = Namespace(record.id).volume();
        let identity = VolumeIdentity { id: record.id, spec: record.spec.clone(), created: record.created };
        let put = self.store.put(&key, PutPayload::from(identity.encode())).await;
        put.map(|_| ()).map_err(|source| EngineError::Store { doing: "writing", object: key, source })
    }

    /// Registers every volume that the store holds and the registry does not know. Tells whether all could be.
    pub(crate) async fn adopt_strangers(&self, known: &HashSet<VolumeId>) -> Result<bool, EngineError> {
        let listed = self.store.list_with_delimiter(None).await;
        let listed = listed.map_err(|source| EngineError::Store { doing: "listing", object: Path::default(), source })?;
        let mut all = true;
        for prefix in listed.common_prefixes {
            let id = prefix.filename().and_then(|name| name.parse::<VolumeId>().ok());
            let Some(id) = id.filter(|id| !known.contains(id)) else { continue };
            match self.adopt_stranger(id).await {
                Ok(()) => {}
                Err(error) => {
                    all = false;
                    tracing::error!(volume = %id, error = &error as &dyn std::error::Error, "a volume in the store cannot be recovered");
                }
            }
        }
        Ok(all)
    }

    async fn adopt_stranger(&self, id: VolumeId) -> Result<(), EngineError> {
        let namespace = Namespace(id);
        let key = namespace.volume();
        let bytes = match self.get(&key).await {
            Ok(bytes) => bytes,
            // Its identity goes first when a volume is deleted: the rest is left over.
            Err(EngineError::Store { source: object_store::Error::NotFound { .. }, .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let identity = VolumeIdentity::decode(&bytes).map_err(|source| EngineError::Format { object: key, source })?;
        let keys = self.manifest_keys(namespace).await?;
        let root = self.newest_root(namespace, &keys).await?;
        let (generation, manifest_epoch) = root.map_or((Generation(0), Epoch(0)), |r| (r.manifest.generation, r.manifest.epoch));
        let epoch = keys.iter().map(|(_, epoch)| *epoch).max().unwrap_or(Epoch(0));
        let mut record =
            VolumeRecord { id, spec: identity.spec, created: identity.created, epoch, generation, manifest_epoch, deleting: false };
        match self.coordination.create(&record) {
            Err(CoordinationError::NameTaken { .. }) => {
                // Its name went to another volume meanwhile.
                record.spec = VolumeSpec { name: recovered_name(id), ..record.spec };
                self.coordination.create(&record)?;
            }
            created => created?,
        }
        tracing::warn!(volume = %id, name = %record.spec.name, generation = generation.0, "volume recovered from the store alone");
        Ok(())
    }
}

fn recovered_name(id: VolumeId) -> VolumeName {
    let name = VolumeName::new(&format!("recovered-{id}"));
    #[expect(clippy::expect_used, reason = "26 characters of a-z, 0-9 and '-'")]
    name.expect("a valid name")
}

fn map_root(namespace: Namespace, manifest: &Manifest) -> Result<Option<MapRoot>, EngineError> {
    if manifest.map_root.is_empty() {
        return Ok(None);
    }
    let root = MapRoot::from_bytes(&manifest.map_root);
    root.map(Some).map_err(|source| EngineError::Format { object: namespace.manifest(manifest.generation, manifest.epoch), source })
}

/// The state of a volume that was just made.
pub(crate) fn first_manifest(record: &VolumeRecord) -> Manifest {
    Manifest {
        volume: record.id,
        generation: Generation(0),
        epoch: Epoch(0),
        time: Timestamp(0),
        size_bytes: record.spec.size_bytes,
        last_sco: ScoNumber(0),
        last_tlog: TlogNumber(0),
        checkpoint_tlog: TlogNumber(0),
        next_map_object: 1,
        data_blocks: 0,
        reference_blocks: 0,
        map_root: Vec::new(),
        sco_terms: Vec::new(),
        tlog_terms: Vec::new(),
    }
}

/// Keys of manifests that `current` has replaced, oldest first, and its own.
fn old_manifests(namespace: Namespace, keys: &[(Generation, Epoch)], current: &Manifest) -> VecDeque<Path> {
    let newest = (current.generation, current.epoch);
    let mut old: Vec<_> = keys.iter().filter(|key| **key <= newest).copied().collect();
    old.sort_unstable();
    old.into_iter().map(|(generation, epoch)| namespace.manifest(generation, epoch)).collect()
}
