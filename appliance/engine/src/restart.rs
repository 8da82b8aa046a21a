//! Restart: which manifest is a volume's root, what its TLogs say since the last checkpoint, and, when the registry is gone, which
//! volumes a store holds.
//!
//! Nothing here depends on the SSD: with journal and registry wiped, a volume comes back as the prefix that its newest verifying
//! manifest names (invariant 4). Recovery changes nothing that a second recovery would need, so it may be cut off anywhere.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use lamina_contract::{
    Coordination, CoordinationError, Cut, Epoch, Generation, Ownership, Parent, RecordChange, ScoNumber, SnapshotId, Timestamp,
    TlogNumber, VolumeId, VolumeName, VolumeRecord, VolumeSpec,
};
use lamina_formats::FormatError;
use lamina_formats::catalog::{Catalog, PastRoot, StoredSnapshot};
use lamina_formats::manifest::Manifest;
use lamina_formats::map::MapRoot;
use lamina_formats::tlog::{self, TlogEntry, TlogOp};
use lamina_formats::volume::VolumeIdentity;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use crate::ancestry::MOST_GENERATIONS;
use crate::behind::Behind;
use crate::error::EngineError;
use crate::layers::{Base, Layers};
use crate::lineage::Lineage;
use crate::map::CheckpointedMap;
use crate::namespace::{Namespace, epoch_of, parse_manifest_key};
use crate::pages::PageCache;
use crate::snapshots::{Origin, Snapshots};
use crate::view::View;
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
    snapshots: Vec<StoredSnapshot>,
    past: Vec<PastRoot>,
}

impl Root {
    fn first(manifest: Manifest) -> Self {
        Self { manifest, tlogs: Vec::new(), snapshots: Vec::new(), past: Vec::new() }
    }
}

impl Sources {
    /// Takes ownership of a registered volume and rebuilds its state up to its newest manifest. `origin` is where a clone begins.
    pub(crate) async fn open(&self, record: &VolumeRecord, origin: Option<Origin>) -> Result<Opened, EngineError> {
        // Taken before anything is looked at, so that an earlier owner decides nothing more.
        let owner = self.coordination.take(record.id, Epoch(0))?;
        self.open_owned(owner, origin).await
    }

    /// The same by the owner of a term that may be new.
    pub(crate) async fn open_owned(&self, mut owner: Ownership, origin: Option<Origin>) -> Result<Opened, EngineError> {
        let record = &self.coordination.get(owner.volume)?;
        let ancestry = origin.as_ref().map(|origin| origin.ancestry.clone()).unwrap_or_default();
        let owners = ancestry.owners(record.id);
        let namespace = Namespace(record.id);
        let mut keys = self.manifest_keys(namespace).await?;
        let mut all_keys = keys.clone();
        let seen = keys.iter().map(|(_, epoch)| *epoch).max().unwrap_or(Epoch(0));
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
        let root = self.newest_root(&owners, &keys).await?;
        let mut base = Base::Below;
        let mut root = match root {
            Some(root) => {
                self.adopt(record, owner, &root.manifest)?;
                root
            }
            None if record.generation == Generation(0) => {
                self.see_to_identity(record).await?;
                let mut manifest = first_manifest(record);
                if let Some(Origin { view, .. }) = &origin {
                    base = begin_at(view, &mut manifest, record.id)?;
                }
                Root::first(manifest)
            }
            None => return Err(EngineError::NoRoot { volume: record.id }),
        };
        if undecided {
            self.outrank(namespace, owner, &mut root.manifest).await?;
            all_keys.push((root.manifest.generation, root.manifest.epoch));
        }
        let mut layers = Layers::over(base, root.manifest.last_sco.next());
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
        let pages = self.open_pages(&owners, &root.manifest).await?;
        let old = old_manifests(namespace, &all_keys, &root.manifest);
        // A cut that a manifest holds is not promised any more, even if the registry still says so.
        // Nothing behind a cut is committed before the catalog holds it, so one with something stored behind it is done, and perhaps deleted since.
        let held =
            |cut: &Cut| cut.after < root.manifest.last_sco || root.snapshots.iter().any(|snapshot| snapshot.note.id == cut.note.id);
        let kept: Vec<SnapshotId> = record.cuts.iter().filter(|cut| held(cut)).map(|cut| cut.note.id).collect();
        if !kept.is_empty() {
            // Now: once its snapshot is deleted, nothing would tell that it was kept.
            self.coordination.change(&[(owner, RecordChange::DropCuts(kept))])?;
        }
        let promised = record.cuts.iter().filter(|cut| !held(cut)).cloned();
        let cuts: VecDeque<_> = promised.map(|cut| (Arc::new(cut.clone()), Arc::new(View::of_levels(cut.note.id)))).collect();
        let last_time = root.tlogs.iter().flatten().map(|entry| entry.time).max().unwrap_or(root.manifest.time);
        let behind = Behind::new(root.manifest, replayed, old, last_time);
        let snapshots = Snapshots::new(record.id, root.snapshots, root.past);
        // Clones of them may open before the journal has come to them.
        cuts.iter().for_each(|(cut, view)| snapshots.add(cut.clone(), view.clone()));
        let mut targets = Vec::new();
        for target in cuts.iter().filter_map(|(cut, _)| cut.rollback) {
            if snapshots.stored_one(target).is_some() {
                targets.push(snapshots.view(target, &pages).await?);
            }
        }
        Ok(Opened {
            id: record.id,
            spec: record.spec.clone(),
            size_after: record.size_after,
            settings: record.settings.clone(),
            parent: record.parent,
            ownership: owner,
            ancestry,
            snapshots,
            layers,
            pages,
            behind,
            cuts,
            targets,
        })
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

    async fn open_pages(&self, owners: &Arc<[VolumeId]>, manifest: &Manifest) -> Result<CheckpointedMap, EngineError> {
        let root = map_root(manifest)?;
        Ok(CheckpointedMap::open(owners.clone(), self.store.clone(), root, self.pages.clone()).await?)
    }

    /// Snapshots and past that belong with `manifest`.
    async fn catalog(
        &self,
        namespace: Namespace,
        manifest: &Manifest,
    ) -> Result<(Vec<StoredSnapshot>, Vec<PastRoot>), EngineError> {
        let Some(at) = manifest.catalog else { return Ok((Vec::new(), Vec::new())) };
        let key = namespace.catalog(at.epoch, at.generation);
        let bytes = self.get(&key).await?;
        let damaged = |source| EngineError::Format { object: key.clone(), source };
        let (catalog, crc) = Catalog::decode(&bytes).map_err(damaged)?;
        let identity = (catalog.volume, catalog.generation, catalog.epoch, crc);
        if identity != (namespace.0, at.generation, at.epoch, at.crc) {
            return Err(damaged(FormatError::Field { format: "catalog", field: "identity" }));
        }
        Ok((catalog.snapshots, catalog.past))
    }

    /// Generations and epochs of all manifests of a namespace.
    async fn manifest_keys(&self, namespace: Namespace) -> Result<Vec<(Generation, Epoch)>, EngineError> {
        let prefix = namespace.manifests();
        let listed: Result<Vec<_>, _> = self.store.list(Some(&prefix)).try_collect().await;
        let listed = listed.map_err(|source| EngineError::Store { doing: "listing", object: prefix, source })?;
        Ok(listed.iter().filter_map(|meta| parse_manifest_key(&meta.location)).collect())
    }

    /// The highest (epoch, generation) whose chain verifies: manifest, catalog, map root, and every TLog since the checkpoint.
    async fn newest_root(&self, owners: &Arc<[VolumeId]>, keys: &[(Generation, Epoch)]) -> Result<Option<Root>, EngineError> {
        let Some(volume) = owners.first() else { return Ok(None) };
        let mut keys = keys.to_vec();
        keys.sort_by_key(|(generation, epoch)| std::cmp::Reverse((*epoch, *generation)));
        let mut trouble = None;
        for (generation, epoch) in keys {
            match self.verify(owners, Namespace(*volume), generation, epoch).await {
                Ok(root) => return Ok(Some(root)),
                // A store that does not answer now is no reason to go back in time.
                Err(error) if !error.is_final() => return Err(error),
                Err(error) => {
                    tracing::warn!(%volume, generation = generation.0, epoch = epoch.0,
                        error = &error as &dyn std::error::Error, "a manifest's chain does not verify");
                    trouble = Some(error);
                }
            }
        }
        // A store that cannot be read must not pass for one that holds nothing.
        trouble.map_or(Ok(None), Err)
    }

    async fn verify(
        &self,
        owners: &Arc<[VolumeId]>,
        namespace: Namespace,
        generation: Generation,
        epoch: Epoch,
    ) -> Result<Root, EngineError> {
        let key = namespace.manifest(generation, epoch);
        let bytes = self.get(&key).await?;
        let manifest = Manifest::decode(&bytes).map_err(|source| EngineError::Format { object: key.clone(), source })?;
        if manifest.volume != namespace.0 || manifest.generation != generation || manifest.epoch != epoch {
            let source = FormatError::Field { format: "manifest", field: "identity" };
            return Err(EngineError::Format { object: key, source });
        }
        self.open_pages(owners, &manifest).await?;
        let (snapshots, past) = self.catalog(namespace, &manifest).await?;
        let numbers = manifest.checkpoint_tlog.0 + 1..=manifest.last_tlog.0;
        let fetches = numbers.map(|number| self.tlog(namespace, &manifest, TlogNumber(number)));
        let tlogs = stream::iter(fetches).buffered(FETCHES).try_collect().await?;
        Ok(Root { manifest, tlogs, snapshots, past })
    }

    pub(crate) async fn tlog(
        &self,
        namespace: Namespace,
        manifest: &Manifest,
        number: TlogNumber,
    ) -> Result<Vec<TlogEntry>, EngineError> {
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

    /// Makes sure that the store has the identity of a volume that never had a manifest. Most have it: reading is cheaper than writing.
    async fn see_to_identity(&self, record: &VolumeRecord) -> Result<(), EngineError> {
        let wanted = identity_of(record);
        match self.identity(record.id).await {
            Ok(identity) if identity == wanted => Ok(()),
            _ => self.put_identity(record).await,
        }
    }

    /// Writes the identity of a volume: when it never had a manifest, and when it is a clone no more.
    pub(crate) async fn put_identity(&self, record: &VolumeRecord) -> Result<(), EngineError> {
        let key = Namespace(record.id).volume();
        let put = self.store.put(&key, PutPayload::from(identity_of(record).encode())).await;
        put.map(|_| ()).map_err(|source| EngineError::Store { doing: "writing", object: key, source })
    }

    /// Registers every volume that the store holds and the registry does not know. Tells whether all could be.
    pub(crate) async fn adopt_strangers(&self, known: &HashSet<VolumeId>) -> Result<bool, EngineError> {
        let listed = self.store.list_with_delimiter(None).await;
        let listed = listed.map_err(|source| EngineError::Store { doing: "listing", object: Path::default(), source })?;
        let ids = listed.common_prefixes.iter().filter_map(|prefix| prefix.filename()?.parse::<VolumeId>().ok());
        let mut left: Vec<VolumeId> = ids.filter(|id| !known.contains(id)).collect();
        let mut all = true;
        // Clones wait for what they were made from.
        loop {
            let before = left.len();
            for id in std::mem::take(&mut left) {
                match self.adopt_stranger(id).await {
                    Ok(()) => {}
                    Err(EngineError::ParentNotOpen { .. }) => left.push(id),
                    Err(error) => {
                        all = false;
                        tracing::error!(volume = %id, error = &error as &dyn std::error::Error, "a volume in the store cannot be recovered");
                    }
                }
            }
            if left.len() == before || left.is_empty() {
                break;
            }
        }
        for id in &left {
            tracing::error!(volume = %id, "a clone in the store cannot be recovered: what it was made from is not there");
        }
        Ok(all && left.is_empty())
    }

    async fn identity(&self, id: VolumeId) -> Result<VolumeIdentity, EngineError> {
        let key = Namespace(id).volume();
        let bytes = self.get(&key).await?;
        VolumeIdentity::decode(&bytes).map_err(|source| EngineError::Format { object: key, source })
    }

    /// The volume and all that it is a clone of, by the identities in the store.
    async fn owners_of(&self, identity: &VolumeIdentity) -> Result<Arc<[VolumeId]>, EngineError> {
        let mut owners = vec![identity.id];
        let mut parent = identity.parent;
        while let Some(Parent { volume, .. }) = parent {
            if owners.len() > MOST_GENERATIONS || owners.contains(&volume) {
                return Err(EngineError::TooDeep { volume: identity.id, generations: owners.len() });
            }
            owners.push(volume);
            parent = self.identity(volume).await?.parent;
        }
        Ok(owners.into())
    }

    /// Whether the store holds a snapshot of a volume that is registered.
    async fn has_snapshot(&self, parent: Parent) -> Result<bool, EngineError> {
        let record = self.coordination.get(parent.volume)?;
        if record.generation == Generation(0) {
            return Ok(false);
        }
        let owners = self.owners_of(&self.identity(parent.volume).await?).await?;
        let root = self.verify(&owners, Namespace(parent.volume), record.generation, record.manifest_epoch).await?;
        Ok(root.snapshots.iter().any(|snapshot| snapshot.note.id == parent.snapshot))
    }

    async fn adopt_stranger(&self, id: VolumeId) -> Result<(), EngineError> {
        let namespace = Namespace(id);
        let identity = match self.identity(id).await {
            Ok(identity) => identity,
            // Its identity goes first when a volume is deleted: the rest is left over.
            Err(EngineError::Store { source: object_store::Error::NotFound { .. }, .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if let Some(Parent { volume: parent, .. }) = identity.parent
            && !self.coordination.get(parent).is_ok_and(|parent| !parent.deleting)
        {
            return Err(EngineError::ParentNotOpen { parent });
        }
        let keys = self.manifest_keys(namespace).await?;
        let root = self.newest_root(&self.owners_of(&identity).await?, &keys).await?;
        let mut record = VolumeRecord::new(id, identity.spec, identity.created);
        record.parent = identity.parent;
        record.epoch = keys.iter().map(|(_, epoch)| *epoch).max().unwrap_or(Epoch(0));
        if let Some(Root { manifest, .. }) = root {
            record.spec.size_bytes = manifest.size_bytes;
            (record.generation, record.manifest_epoch) = (manifest.generation, manifest.epoch);
        }
        if record.generation == Generation(0)
            && let Some(parent) = record.parent
            && !self.has_snapshot(parent).await?
        {
            tracing::error!(volume = %id, name = %record.spec.name, parent = %parent.volume,
                "a clone had nothing stored, and what it was made from was lost with the journal: it is left out");
            return Ok(());
        }
        let generation = record.generation;
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

fn identity_of(record: &VolumeRecord) -> VolumeIdentity {
    VolumeIdentity { id: record.id, spec: record.spec.clone(), created: record.created, parent: record.parent }
}

fn recovered_name(id: VolumeId) -> VolumeName {
    let name = VolumeName::new(&format!("recovered-{id}"));
    #[expect(clippy::expect_used, reason = "26 characters of a-z, 0-9 and '-'")]
    name.expect("a valid name")
}

/// Has a volume that never had a manifest begin at `view`, in its pages if they are there already.
pub(crate) fn begin_at(view: &Arc<View>, manifest: &mut Manifest, volume: VolumeId) -> Result<Base, EngineError> {
    let Some(root) = view.root() else { return Ok(Base::View { view: view.clone(), generations: 1 }) };
    let too_deep = EngineError::TooDeep { volume, generations: MOST_GENERATIONS };
    let own = root.for_clone().ok_or(too_deep)?;
    manifest.map_root = own.root.map_or_else(Vec::new, |root| root.to_bytes().to_vec());
    Ok(Base::Below)
}

pub(crate) fn map_root(manifest: &Manifest) -> Result<Option<MapRoot>, EngineError> {
    if manifest.map_root.is_empty() {
        return Ok(None);
    }
    let root = MapRoot::from_bytes(&manifest.map_root);
    let namespace = Namespace(manifest.volume);
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
        catalog: None,
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
