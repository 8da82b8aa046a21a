//! Clones: writable volumes that begin as a snapshot of another.
//!
//! ```text
//! registry: all of them, with their parent and first owner → identities in the store, many at once → open
//! ```
//! Nothing of the parent is copied or read but one root page. A crash behind the registration leaves clones that the next start
//! completes; an identity without a registration cannot come about.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::stream::{StreamExt, TryStreamExt};
use lamina_contract::snapshot::check_labels;
use lamina_contract::{Epoch, Ownership, Parent, SnapshotId, VolumeId, VolumeName, VolumeRecord, VolumeSettings, VolumeSpec};

use crate::ancestry::MOST_GENERATIONS;
use crate::behind::Behind;
use crate::error::EngineError;
use crate::failpoint;
use crate::layers::Layers;
use crate::map::CheckpointedMap;
use crate::node::Node;
use crate::restart::{begin_at, first_manifest, map_root};
use crate::snapshots::{Origin, Snapshots};
use crate::volume::{Opened, Volume};

/// Identities on their way to the store at once.
const PUTS: usize = 32;

/// What a clone is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneSpec {
    /// Its name.
    pub name: VolumeName,
    /// What operators set on it.
    pub settings: VolumeSettings,
}

impl Node {
    /// Makes clones of a snapshot; all or none. They can be written to when this returns.
    ///
    /// # Errors
    /// When the volume or snapshot is not there, a name is taken, there are too many generations, or the store or registry refuse.
    pub async fn clone_volume(
        self: &Arc<Self>,
        parent: VolumeId,
        snapshot: SnapshotId,
        clones: &[CloneSpec],
    ) -> Result<Vec<Arc<Volume>>, EngineError> {
        let _change = self.changes.lock().await;
        self.clone_locked(parent, snapshot, clones).await
    }

    pub(crate) async fn clone_locked(
        self: &Arc<Self>,
        parent: VolumeId,
        snapshot: SnapshotId,
        clones: &[CloneSpec],
    ) -> Result<Vec<Arc<Volume>>, EngineError> {
        let volume = self.volume(parent).ok_or(EngineError::Unknown { volume: parent })?;
        let generations = volume.ancestry.generations() + 1;
        if generations > MOST_GENERATIONS {
            return Err(EngineError::TooDeep { volume: parent, generations });
        }
        clones.iter().try_for_each(|clone| check_labels(&clone.settings.labels))?;
        let listed = volume.snapshots.list().into_iter().find(|s| s.note.id == snapshot);
        let note = listed.ok_or(EngineError::NoSnapshot { volume: parent, snapshot })?.note;
        let origin = volume.origin(snapshot).await?;
        let created = self.core.clock.wall();
        let records: Vec<VolumeRecord> = clones
            .iter()
            .map(|clone| {
                let spec = VolumeSpec { name: clone.name.clone(), size_bytes: note.size_bytes, read_only: false, ..volume.spec() };
                let mut record = VolumeRecord::new(VolumeId(rand::random()), spec, created);
                record.epoch = Epoch(1);
                record.parent = Some(Parent { volume: parent, snapshot });
                record.settings = clone.settings.clone();
                record
            })
            .collect();
        let (coordination, all) = (self.core.coordination.clone(), records.clone());
        let created = self.core.run_heavy(move || coordination.create_all(&all)).await.ok_or(EngineError::Interrupted)?;
        if let Err(error) = created {
            // All or none: an answer that was lost is found by any of them.
            let found = records.first().is_some_and(|record| self.core.coordination.get(record.id).is_ok());
            if !found {
                return Err(error.into());
            }
        }
        failpoint::hit(failpoint::CLONE_AFTER_REGISTER);
        let put = |record: VolumeRecord| async move { self.sources.put_identity(&record).await };
        let identities = futures::stream::iter(records.clone()).map(put);
        let made = match identities.buffer_unordered(PUTS).try_collect::<Vec<()>>().await {
            Ok(_) => self.begin_clones(&records, &origin).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(volumes) => {
                tracing::info!(%parent, %snapshot, clones = volumes.len(), "volumes cloned");
                Ok(volumes)
            }
            Err(error) => {
                // Nothing was promised yet: the names are free again, what was stored goes.
                for record in &records {
                    match self.core.coordination.begin_delete(record.id) {
                        Ok(()) => self.purge_later(record.id),
                        Err(left) => {
                            tracing::warn!(volume = %record.id, name = %record.spec.name, error = &left as &dyn std::error::Error,
                            "a clone that could not be made stays registered; the next start completes it")
                        }
                    }
                }
                Err(error)
            }
        }
    }

    async fn begin_clones(&self, records: &[VolumeRecord], origin: &Origin) -> Result<Vec<Arc<Volume>>, EngineError> {
        let mut begun = Vec::with_capacity(records.len());
        for record in records {
            let mut manifest = first_manifest(record);
            let base = begin_at(&origin.view, &mut manifest, record.id)?;
            let owners = origin.ancestry.owners(record.id);
            let root = map_root(&manifest)?;
            let pages = CheckpointedMap::open(owners, self.core.store.clone(), root, self.core.pages.clone()).await?;
            begun.push(Opened {
                id: record.id,
                spec: record.spec.clone(),
                size_after: record.size_after,
                settings: record.settings.clone(),
                parent: record.parent,
                ownership: Ownership { volume: record.id, epoch: record.epoch },
                ancestry: origin.ancestry.clone(),
                snapshots: Snapshots::new(record.id, Vec::new(), Vec::new()),
                layers: Layers::over(base, manifest.last_sco.next()),
                pages,
                behind: Behind::new(manifest, 0, std::collections::VecDeque::new(), record.created),
                cuts: std::collections::VecDeque::new(),
                targets: Vec::new(),
            });
        }
        let volumes: Vec<_> = begun.into_iter().map(|opened| Volume::new(self.core.clone(), opened)).collect();
        self.core.volumes.fetch_add(volumes.len() as u64, Ordering::Relaxed);
        self.volumes.write().extend(volumes.iter().map(|volume| (volume.id(), volume.clone())));
        Ok(volumes)
    }
}

impl Volume {
    /// Where a clone of one of its snapshots begins.
    pub(crate) async fn origin(&self, snapshot: SnapshotId) -> Result<Origin, EngineError> {
        self.snapshots.origin(snapshot, &self.pages, &self.ancestry, self.behind.terms()).await
    }
}
