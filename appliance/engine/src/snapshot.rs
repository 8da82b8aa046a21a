//! Taking, changing and deleting snapshots, and going back to one.
//!
//! ```text
//! taken:   append lock: close containers, end levels (all volumes at one barrier) → journal durable → promise in the registry → answer
//! later:   `settle.rs` makes a snapshot of the store of it
//! ```
//! A crash before the promise is recorded leaves nothing; behind it, the journal's replay ends the level at the same container again.

use std::sync::Arc;
use std::time::Duration;

use lamina_contract::snapshot::{MOST_DESCRIPTION, check_labels};
use lamina_contract::{Cut, Labels, Ownership, RecordChange, SnapshotId, SnapshotName, SnapshotNote, VolumeId, VolumeName};

use crate::error::EngineError;
use crate::failpoint;
use crate::namespace::parse_map_key;
use crate::node::Node;
use crate::snapshots::Snapshot;
use crate::view::View;
use crate::volume::{Pause, Volume};
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;
use std::collections::HashSet;
use tokio::sync::MutexGuard;

/// Cuts of one volume that may wait for the store: each is a level that reads look through, at some 50 ns. Enough for a few each
/// second while a checkpoint of the whole map is written.
const MOST_WAITING: usize = 64;
/// How long a cut waits for earlier ones to be stored before it is refused.
const WAITING_PATIENCE: Duration = Duration::from_secs(10);
/// How often what waits is looked at.
const POLL: Duration = Duration::from_millis(5);
/// How long the store may take to store a snapshot that is to be changed or deleted.
const STORE_PATIENCE: Duration = Duration::from_secs(60);
/// Map objects that the head gave up after which somebody looks which of them snapshots still reach.
const GIVEN_UP: usize = 64;

/// What a snapshot is to be known as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSpec {
    /// Its name, unique in the volume.
    pub name: SnapshotName,
    /// For people and schedules.
    pub labels: Labels,
    /// For people.
    pub description: String,
    /// Must not be deleted until that is taken back.
    pub pinned: bool,
    /// Made by the appliance itself.
    pub automatic: bool,
}

impl SnapshotSpec {
    /// A plain one.
    #[must_use]
    pub fn named(name: SnapshotName) -> Self {
        Self { name, labels: Labels::new(), description: String::new(), pinned: false, automatic: false }
    }
}

/// What to change on a snapshot; None leaves it as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotChange {
    /// All its labels.
    pub labels: Option<Labels>,
    /// Its description.
    pub description: Option<String>,
    /// Whether it must not be deleted.
    pub pinned: Option<bool>,
}

impl Volume {
    /// Its snapshots, oldest first.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.snapshots.list()
    }

    /// How many snapshots it has.
    #[must_use]
    pub fn snapshot_count(&self) -> usize {
        self.snapshots.count()
    }

    /// A snapshot by its name.
    #[must_use]
    pub fn snapshot(&self, name: &SnapshotName) -> Option<Snapshot> {
        self.snapshots.find(name)
    }

    /// The newest snapshot, if the volume still shows exactly that: nothing was accepted since, and it did not go back to another.
    #[must_use]
    pub fn unchanged_snapshot(&self) -> Option<Snapshot> {
        let newest = self.snapshots.stored().pop()?;
        let root = self.pages.state().root;
        (self.layers.read().is_settled() && root == newest.map_root).then_some(Snapshot { note: newest.note, stored: true })
    }

    /// What a snapshot is called.
    #[must_use]
    pub fn snapshot_name(&self, id: SnapshotId) -> Option<SnapshotName> {
        self.snapshots.name_of(id)
    }

    /// The earliest moment that it can be taken back to; None when it keeps no past.
    #[must_use]
    pub fn past_begins(&self) -> Option<lamina_contract::Timestamp> {
        // The oldest root may be older than the window: it is what the window's first moments are reached from.
        let begins = self.core.clock.wall().0.saturating_sub(self.settings().cdp_ms);
        self.snapshots.past_begins().map(|oldest| oldest.max(lamina_contract::Timestamp(begins)))
    }

    fn note(&self, spec: &SnapshotSpec) -> SnapshotNote {
        SnapshotNote {
            id: SnapshotId(rand::random()),
            name: spec.name.clone(),
            created: self.core.clock.wall(),
            size_bytes: self.size_bytes(),
            labels: spec.labels.clone(),
            description: spec.description.clone(),
            pinned: spec.pinned,
            automatic: spec.automatic,
        }
    }

    /// Ends the head's level. Under the append lock, so that nothing is accepted meanwhile.
    fn cut(&self, note: SnapshotNote, rollback: Option<Arc<View>>) -> Arc<Cut> {
        let mut layers = self.layers.write();
        let after = layers.close_for_cut();
        let cut = Arc::new(Cut { after, note, rollback: rollback.as_ref().map(|view| view.id) });
        let view = Arc::new(View::of_levels(cut.note.id));
        view.belongs_to(self.handle());
        self.snapshots.begin(cut.clone(), view.clone());
        layers.cut(cut.clone(), view, rollback);
        cut
    }
}

impl Node {
    /// Takes a snapshot of each volume, all at one moment: of two writes to any of them, the second of which began after the first was
    /// answered, no snapshot has the second without the other having the first. Durable when this returns.
    ///
    /// # Errors
    /// When a volume is not open or halted, a name is taken or a text too long, or the registry or the journal refuse. None is taken then.
    pub async fn snapshot(&self, wanted: &[(VolumeId, SnapshotSpec)]) -> Result<Vec<Snapshot>, EngineError> {
        let _change = self.changes_with_room(wanted.iter().map(|(id, _)| *id)).await?;
        let mut volumes = Vec::with_capacity(wanted.len());
        for (id, spec) in wanted {
            let volume = self.volume(*id).ok_or(EngineError::Unknown { volume: *id })?;
            check(&volume, spec)?;
            volumes.push((volume, spec));
        }
        let cuts: Vec<(Arc<Volume>, Arc<Cut>)> = {
            let _append = self.core.journal.lock();
            let cut = |(volume, spec): (Arc<Volume>, &SnapshotSpec)| {
                let cut = volume.cut(volume.note(spec), None);
                (volume, cut)
            };
            volumes.into_iter().map(cut).collect()
        };
        failpoint::hit(failpoint::CUT_BEFORE_RECORD);
        let begun = Begun(&cuts);
        self.record(&cuts, Vec::new()).await?;
        begun.are_recorded();
        self.core.work.notify_one();
        failpoint::hit(failpoint::CUT_RECORDED);
        Ok(cuts.iter().map(|(_, cut)| Snapshot { note: cut.note.clone(), stored: false }).collect())
    }

    /// Makes what stands before cuts durable, and then the promise of them. After an error there is no promise of any; where that cannot
    /// be made sure of, the volumes are halted, since a start would keep it.
    async fn record(
        &self,
        cuts: &[(Arc<Volume>, Arc<Cut>)],
        mut changes: Vec<(Ownership, RecordChange)>,
    ) -> Result<(), EngineError> {
        let core = self.core.clone();
        changes.extend(cuts.iter().map(|(volume, cut)| (volume.ownership(), RecordChange::AddCut((**cut).clone()))));
        let recorded = self.core.run_heavy(move || {
            core.journal.sync()?;
            Ok::<_, EngineError>(core.coordination.change(&changes)?)
        });
        let recorded = recorded.await.unwrap_or(Err(EngineError::Interrupted));
        self.core.work.notify_one();
        let Err(error) = recorded else { return Ok(()) };
        let mut promised = 0;
        let mut unknown = None;
        for (volume, cut) in cuts {
            match self.core.coordination.get(volume.id()) {
                Ok(record) => promised += usize::from(record.cuts.iter().any(|other| other.note.id == cut.note.id)),
                Err(error) => unknown = Some(error),
            }
        }
        if let Some(unknown) = &unknown
            && cuts.iter().any(|(_, cut)| cut.rollback.is_some())
        {
            // The next start may carry it out: until then nothing may be accepted that it would bury.
            for (volume, _) in cuts {
                tracing::error!(volume = %volume.id(), error = unknown as &dyn std::error::Error,
                    "whether the volume goes back cannot be found out; it is halted");
                volume.halt();
            }
        }
        // All or none. A snapshot that may or may not be promised is none; should the next start find it, it is one more.
        if unknown.is_none() && promised == cuts.len() { Ok(()) } else { Err(error) }
    }

    /// The lock on changes, as soon as each of the volumes has room for a cut. Who waits for that holds nobody else up.
    async fn changes_with_room(&self, ids: impl Iterator<Item = VolumeId> + Clone) -> Result<MutexGuard<'_, ()>, EngineError> {
        let until = self.core.clock.monotonic_ms() + WAITING_PATIENCE.as_millis() as u64;
        loop {
            let changes = self.changes.lock().await;
            let waiting = ids.clone().filter_map(|id| Some((id, self.volume(id)?.layers.read().cuts())));
            let Some((volume, waiting)) = waiting.max_by_key(|(_, cuts)| *cuts).filter(|(_, cuts)| *cuts >= MOST_WAITING) else {
                return Ok(changes);
            };
            drop(changes);
            if self.core.clock.monotonic_ms() >= until || self.is_manual() {
                return Err(EngineError::TooManyWaiting { volume, waiting });
            }
            self.core.work.notify_one();
            tokio::time::sleep(POLL).await;
        }
    }

    /// Takes a volume back to one of its snapshots. What it holds now stays as the automatic snapshot `discarded`. Whoever has the disk
    /// open sees it change under its hands: that is for the caller to prevent.
    ///
    /// # Errors
    /// As [`Node::snapshot`].
    pub async fn rollback(&self, id: VolumeId, to: SnapshotId, discarded: SnapshotSpec) -> Result<Snapshot, EngineError> {
        let _change = self.changes_with_room(std::iter::once(id)).await?;
        let discarded = SnapshotSpec { automatic: true, ..discarded };
        let mut all = self.rollback_locked(&[(id, to, discarded)]).await?;
        all.pop().ok_or(EngineError::Unknown { volume: id })
    }

    /// The same for several volumes, all at one moment.
    ///
    /// # Errors
    /// As [`Node::snapshot`].
    pub async fn rollback_all(&self, wanted: &[(VolumeId, SnapshotId, SnapshotSpec)]) -> Result<Vec<Snapshot>, EngineError> {
        let _change = self.changes_with_room(wanted.iter().map(|(id, ..)| *id)).await?;
        self.rollback_locked(wanted).await
    }

    pub(crate) async fn rollback_locked(
        &self,
        wanted: &[(VolumeId, SnapshotId, SnapshotSpec)],
    ) -> Result<Vec<Snapshot>, EngineError> {
        let mut targets = Vec::with_capacity(wanted.len());
        for (id, to, spec) in wanted {
            let volume = self.volume(*id).ok_or(EngineError::Unknown { volume: *id })?;
            check(&volume, spec)?;
            let view = volume.snapshots.view(*to, &volume.pages).await?;
            let size =
                volume.snapshots.list().into_iter().find(|s| s.note.id == *to).map_or(volume.size_bytes(), |s| s.note.size_bytes);
            targets.push((volume, spec, view, size));
        }
        // Until it is decided where they go on, nothing is accepted; what is accepted then belongs to the state gone back to.
        // What waits was meant for the state that is given up.
        let paused = Paused::for_rollback(targets.iter().map(|(volume, ..)| volume.clone()));
        for (volume, ..) in &targets {
            self.refuse_waiting(volume).await?;
        }
        let promised: Vec<(Arc<Volume>, Arc<Cut>)> = {
            let _append = self.core.journal.lock();
            let promise = |(volume, spec, view, _): &(Arc<Volume>, &SnapshotSpec, Arc<View>, u64)| {
                let after = volume.layers.write().close_for_cut();
                let note = SnapshotNote { automatic: true, ..volume.note(spec) };
                (volume.clone(), Arc::new(Cut { after, note, rollback: Some(view.id) }))
            };
            targets.iter().map(promise).collect()
        };
        failpoint::hit(failpoint::CUT_BEFORE_RECORD);
        let size = |((volume, cut), (.., size)): (&(Arc<Volume>, Arc<Cut>), &(_, _, _, u64))| {
            (volume.ownership(), RecordChange::Size { bytes: *size, after: cut.after })
        };
        self.record(&promised, promised.iter().zip(&targets).map(size).collect()).await?;
        failpoint::hit(failpoint::CUT_RECORDED);
        {
            let _append = self.core.journal.lock();
            for ((volume, cut), (_, _, target, size)) in promised.iter().zip(&targets) {
                let view = Arc::new(View::of_levels(cut.note.id));
                view.belongs_to(volume.handle());
                volume.snapshots.add(cut.clone(), view.clone());
                volume.layers.write().cut(cut.clone(), view, Some(target.clone()));
                volume.set_size(*size);
            }
        }
        drop(paused);
        self.core.work.notify_one();
        Ok(promised.iter().map(|(_, cut)| Snapshot { note: cut.note.clone(), stored: false }).collect())
    }

    /// Answers changes that wait with an error, until none is under way any more.
    async fn refuse_waiting(&self, volume: &Volume) -> Result<(), EngineError> {
        let until = self.core.clock.monotonic_ms() + WAITING_PATIENCE.as_millis() as u64;
        while !volume.refuse_waiting() {
            if self.core.clock.monotonic_ms() >= until || self.is_manual() {
                return Err(EngineError::Busy { volume: volume.id() });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Changes what is said of a snapshot.
    ///
    /// # Errors
    /// When it is not there, a text is too long, or the store does not take it in time.
    pub async fn change_snapshot(
        &self,
        id: VolumeId,
        snapshot: SnapshotId,
        change: &SnapshotChange,
    ) -> Result<Snapshot, EngineError> {
        let volume = self.volume(id).ok_or(EngineError::Unknown { volume: id })?;
        if let Some(labels) = &change.labels {
            check_labels(labels)?;
        }
        if let Some(description) = &change.description {
            check_description(description)?;
        }
        self.wait_until_stored(&volume, snapshot).await?;
        let changed = volume.change_catalog(|stored| {
            let note = stored.iter_mut().find(|s| s.note.id == snapshot).map(|s| &mut s.note);
            let note = note.ok_or(EngineError::NoSnapshot { volume: id, snapshot })?;
            note.labels = change.labels.clone().unwrap_or_else(|| std::mem::take(&mut note.labels));
            note.description = change.description.clone().unwrap_or_else(|| std::mem::take(&mut note.description));
            note.pinned = change.pinned.unwrap_or(note.pinned);
            Ok(())
        });
        changed.await?;
        let stored = volume.snapshots.stored_one(snapshot).ok_or(EngineError::NoSnapshot { volume: id, snapshot })?;
        Ok(Snapshot { note: stored.note, stored: true })
    }

    /// Deletes a snapshot. Its blocks that nothing else has are freed later.
    ///
    /// # Errors
    /// When it is not there, pinned or has clones, or the store does not take the new catalog in time.
    pub async fn delete_snapshot(&self, id: VolumeId, snapshot: SnapshotId) -> Result<(), EngineError> {
        let volume = self.volume(id).ok_or(EngineError::Unknown { volume: id })?;
        // From here on nothing new stands on it; the rest may wait for the store without keeping others waiting.
        let _going = {
            let _change = self.changes.lock().await;
            let found = volume.snapshots.list().into_iter().find(|s| s.note.id == snapshot);
            let found = found.ok_or(EngineError::NoSnapshot { volume: id, snapshot })?;
            if found.note.pinned {
                return Err(EngineError::Pinned { name: found.note.name });
            }
            let clones = self.clones_of(id, Some(snapshot))?;
            if !clones.is_empty() {
                return Err(EngineError::SnapshotHasClones { name: found.note.name, clones });
            }
            Going::mark(&volume, snapshot)?
        };
        self.wait_until_stored(&volume, snapshot).await?;
        // A promise that outlived its keeping would be kept again by the next start.
        let (coordination, owner) = (self.core.coordination.clone(), volume.ownership());
        let dropped = self.core.run_heavy(move || {
            let is_promised = coordination.get(owner.volume)?.cuts.iter().any(|cut| cut.note.id == snapshot);
            if is_promised { coordination.change(&[(owner, RecordChange::DropCuts(vec![snapshot]))]) } else { Ok(()) }
        });
        dropped.await.ok_or(EngineError::Interrupted)??;
        let removed = volume.change_catalog(|stored| {
            // It may have been pinned since it was looked at.
            if let Some(pinned) = stored.iter().find(|s| s.note.id == snapshot && s.note.pinned) {
                return Err(EngineError::Pinned { name: pinned.note.name.clone() });
            }
            stored.retain(|s| s.note.id != snapshot);
            Ok(())
        });
        removed.await?;
        let mut state = volume.behind.state.lock().await;
        if let Err(error) = volume.collect_pages(&mut state).await {
            // The snapshot is gone; its pages are only space.
            tracing::warn!(volume = %id, error = &error as &dyn std::error::Error, "pages of a deleted snapshot are left");
        }
        Ok(())
    }

    /// The names of clones of a volume, or of one of its snapshots.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub fn clones_of(&self, id: VolumeId, snapshot: Option<SnapshotId>) -> Result<Vec<VolumeName>, EngineError> {
        let is_clone = |parent: lamina_contract::Parent| parent.volume == id && snapshot.is_none_or(|s| s == parent.snapshot);
        let records = self.core.coordination.list()?;
        let clones = records.into_iter().filter(|record| !record.deleting && record.parent.is_some_and(is_clone));
        Ok(clones.map(|record| record.spec.name).collect())
    }

    /// Waits until a snapshot is in a catalog, and no cut that waits goes back to it.
    pub(crate) async fn wait_until_stored(&self, volume: &Arc<Volume>, snapshot: SnapshotId) -> Result<(), EngineError> {
        let until = self.core.clock.monotonic_ms() + STORE_PATIENCE.as_millis() as u64;
        loop {
            if volume.is_halted() {
                return Err(EngineError::Halted { volume: volume.id() });
            }
            if self.core.is_store_down() && !self.is_manual() {
                return Err(EngineError::StoreDown);
            }
            let stored = volume.snapshots.stored_one(snapshot).is_some();
            if stored && !volume.snapshots.waits_for(snapshot) {
                return Ok(());
            }
            if !volume.snapshots.list().iter().any(|s| s.note.id == snapshot) {
                return Err(EngineError::NoSnapshot { volume: volume.id(), snapshot });
            }
            if self.is_manual() {
                self.step(false).await?;
            } else if self.core.clock.monotonic_ms() >= until {
                return Err(EngineError::TooManyWaiting { volume: volume.id(), waiting: volume.layers.read().cuts() });
            } else {
                self.core.work.notify_one();
                tokio::time::sleep(POLL).await;
            }
        }
    }
}

impl Volume {
    /// Decides a manifest with a changed catalog.
    pub(crate) async fn change_catalog(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Vec<lamina_formats::catalog::StoredSnapshot>) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut state = self.behind.state.lock().await;
        let mut stored = self.snapshots.stored();
        change(&mut stored)?;
        let past = self.snapshots.past();
        let mut next = state.manifest.clone();
        let halted = |_| EngineError::Halted { volume: self.id() };
        self.put_catalog(&state, &mut next, &stored, &past).await.map_err(halted)?;
        self.decide(&mut state, next).await.map_err(halted)?;
        self.snapshots.decided(stored, past);
        Ok(())
    }

    /// Finds map objects that no root reaches any more, and catalogs that a daemon left which ended before it could delete them; has them
    /// deleted once no kept manifest names them either.
    pub(crate) async fn collect_pages(self: &Arc<Self>, state: &mut crate::behind::State) -> Result<(), EngineError> {
        let mut live: HashSet<(lamina_contract::Epoch, u64)> = HashSet::new();
        let mut reach = |objects: &std::collections::BTreeMap<lamina_formats::map::MapObject, (u64, u64)>| {
            live.extend(objects.keys().map(|object| (object.epoch, object.number)));
        };
        reach(&self.pages.state().objects);
        let stored = self.snapshots.stored();
        let past = self.snapshots.past();
        let clones = self.core.coordination.list()?.into_iter().filter_map(|record| record.parent);
        let known = |id: SnapshotId| self.snapshots.name_of(id).is_some();
        if clones.filter(|parent| parent.volume == self.id()).any(|parent| !known(parent.snapshot)) {
            // The catalog went back in time: what the clone needs is not known.
            state.given_up = 0;
            return Ok(());
        }
        for root in stored.iter().map(|s| s.map_root).chain(past.iter().map(|p| p.map_root)) {
            reach(&self.pages.load_root(root).await?.objects);
        }
        let namespace = self.namespace();
        let (maps, catalogs) = (self.objects_in(namespace.maps()).await?, self.objects_in(namespace.catalogs()).await?);
        let unreached = maps.into_iter().filter(|key| parse_map_key(key).is_some_and(|object| !live.contains(&object)));
        let named = state.manifest.catalog.map(|at| namespace.catalog(at.epoch, at.generation));
        let unnamed = catalogs.into_iter().filter(|key| Some(key) != named.as_ref());
        let since = state.manifest.generation;
        let waiting: HashSet<_> = state.dead.iter().map(|(_, key)| key.clone()).collect();
        state.dead.extend(unreached.chain(unnamed).filter(|key| !waiting.contains(key)).map(|key| (since, key)));
        state.given_up = 0;
        Ok(())
    }

    async fn objects_in(&self, prefix: Path) -> Result<Vec<Path>, EngineError> {
        let listed: Result<Vec<_>, _> = self.core.store.list(Some(&prefix)).try_collect().await;
        let listed = listed.map_err(|source| EngineError::Store { doing: "listing", object: prefix, source })?;
        Ok(listed.into_iter().map(|meta| meta.location).collect())
    }

    /// Looks for map objects to delete when the head gave up many that snapshots may have reached.
    pub(crate) async fn collect_if_due(self: &Arc<Self>, state: &mut crate::behind::State) {
        if state.given_up >= GIVEN_UP
            && let Err(error) = self.collect_pages(state).await
        {
            // Space only; another round looks again.
            state.given_up = 0;
            tracing::debug!(volume = %self.id(), error = &error as &dyn std::error::Error, "map objects were not looked through");
        }
    }
}

pub(crate) fn check(volume: &Volume, spec: &SnapshotSpec) -> Result<(), EngineError> {
    if volume.is_halted() {
        return Err(EngineError::Halted { volume: volume.id() });
    }
    check_labels(&spec.labels)?;
    check_description(&spec.description)?;
    if volume.snapshots.is_flattening() {
        return Err(EngineError::Flattening { volume: volume.id() });
    }
    if volume.snapshot(&spec.name).is_some() || volume.snapshots.is_coming(&spec.name) {
        return Err(EngineError::SnapshotExists { name: spec.name.clone() });
    }
    Ok(())
}

fn check_description(text: &str) -> Result<(), EngineError> {
    if text.len() <= MOST_DESCRIPTION { Ok(()) } else { Err(EngineError::LongDescription { bytes: text.len() }) }
}

/// The name of a snapshot that is being made while other changes go on, until this is dropped.
pub(crate) struct Coming {
    volume: Arc<Volume>,
    name: SnapshotName,
}

impl Coming {
    /// By the holder of the lock on changes, behind [`check`].
    pub(crate) fn mark(volume: &Arc<Volume>, name: &SnapshotName) -> Result<Self, EngineError> {
        if volume.snapshots.set_coming(name, true) {
            Ok(Self { volume: volume.clone(), name: name.clone() })
        } else {
            Err(EngineError::SnapshotExists { name: name.clone() })
        }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.volume.snapshots.set_coming(&self.name, false);
    }
}

/// Cuts that are about to be promised; when this is dropped, there are no such snapshots.
struct Begun<'a>(&'a [(Arc<Volume>, Arc<Cut>)]);

impl Begun<'_> {
    fn are_recorded(self) {
        self.0.iter().for_each(|(volume, cut)| volume.snapshots.recorded(cut.note.id));
        std::mem::forget(self);
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|(volume, cut)| volume.snapshots.take_back(cut.note.id));
    }
}

/// A snapshot that is being deleted, until this is dropped.
struct Going {
    volume: Arc<Volume>,
    snapshot: SnapshotId,
}

impl Going {
    fn mark(volume: &Arc<Volume>, snapshot: SnapshotId) -> Result<Self, EngineError> {
        if volume.snapshots.set_going(snapshot, true) {
            Ok(Self { volume: volume.clone(), snapshot })
        } else {
            Err(EngineError::Busy { volume: volume.id() })
        }
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        self.volume.snapshots.set_going(self.snapshot, false);
    }
}

/// Volumes whose changes wait, until this is dropped.
pub(crate) struct Paused(Vec<Arc<Volume>>);

impl Paused {
    pub(crate) fn all(volumes: impl Iterator<Item = Arc<Volume>>) -> Self {
        let volumes: Vec<_> = volumes.collect();
        volumes.iter().for_each(|volume| volume.pause(Pause::Wait));
        Self(volumes)
    }

    /// Volumes whose changes are refused meanwhile.
    pub(crate) fn for_rollback(volumes: impl Iterator<Item = Arc<Volume>>) -> Self {
        let volumes: Vec<_> = volumes.collect();
        volumes.iter().for_each(|volume| volume.pause(Pause::Refuse));
        Self(volumes)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.iter().for_each(|volume| volume.pause(Pause::No));
    }
}
