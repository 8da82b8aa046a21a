//! The snapshots of one volume: those that its catalog in the store has, and those that were promised and wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use lamina_contract::{Cut, SnapshotId, SnapshotName, SnapshotNote, Timestamp, VolumeId};
use lamina_formats::catalog::{PastRoot, StoredSnapshot};
use parking_lot::RwLock;

use crate::ancestry::{Ancestry, Terms};
use crate::error::EngineError;
use crate::map::CheckpointedMap;
use crate::view::View;
use crate::volume::Volume;

/// A snapshot as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What is said of it.
    pub note: SnapshotNote,
    /// Its blocks and map are in the store; until then the journal has a part of them.
    pub stored: bool,
}

/// Where a clone begins.
pub(crate) struct Origin {
    pub(crate) view: Arc<View>,
    /// The clone's: its parent first.
    pub(crate) ancestry: Ancestry,
}

#[derive(Default)]
struct State {
    /// As the last decided catalog has them.
    stored: Vec<StoredSnapshot>,
    past: Vec<PastRoot>,
    /// Oldest first.
    waiting: Vec<(Arc<Cut>, Arc<View>)>,
    /// Those of them that the registry does not know for certain yet.
    being_recorded: Vec<SnapshotId>,
    /// Stored ones that are being deleted: nothing new may stand on them.
    going: Vec<SnapshotId>,
    /// Names of those that are being made of a moment of the past.
    coming: Vec<SnapshotName>,
    /// None may come: the volume is taking its ancestors' blocks over.
    flattening: bool,
    /// Of stored ones, while somebody reads through them.
    views: HashMap<SnapshotId, Weak<View>>,
}

/// See the file's header.
pub(crate) struct Snapshots {
    volume: VolumeId,
    state: RwLock<State>,
}

impl Snapshots {
    pub(crate) fn new(volume: VolumeId, stored: Vec<StoredSnapshot>, past: Vec<PastRoot>) -> Self {
        Self { volume, state: RwLock::new(State { stored, past, ..State::default() }) }
    }

    /// All, oldest first.
    pub(crate) fn list(&self) -> Vec<Snapshot> {
        let state = self.state.read();
        let stored = state.stored.iter().map(|snapshot| Snapshot { note: snapshot.note.clone(), stored: true });
        stored.chain(state.waiting.iter().map(|(cut, _)| Snapshot { note: cut.note.clone(), stored: false })).collect()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        let state = self.state.read();
        state.stored.len() + state.waiting.len()
    }

    /// How many of them are not in the store yet.
    pub(crate) fn waiting_count(&self) -> usize {
        self.state.read().waiting.len()
    }

    /// Whether any snapshot or moment of the past may reach map objects that the head does not.
    pub(crate) fn hold_pages(&self) -> bool {
        let state = self.state.read();
        !(state.stored.is_empty() && state.waiting.is_empty() && state.past.is_empty())
    }

    pub(crate) fn find(&self, name: &SnapshotName) -> Option<Snapshot> {
        self.list().into_iter().find(|snapshot| snapshot.note.name == *name)
    }

    pub(crate) fn name_of(&self, id: SnapshotId) -> Option<SnapshotName> {
        let state = self.state.read();
        let mut notes = state.stored.iter().map(|stored| &stored.note).chain(state.waiting.iter().map(|(cut, _)| &cut.note));
        notes.find(|note| note.id == id).map(|note| note.name.clone())
    }

    /// What the catalog has.
    pub(crate) fn stored(&self) -> Vec<StoredSnapshot> {
        self.state.read().stored.clone()
    }

    /// One that the catalog has.
    pub(crate) fn stored_one(&self, id: SnapshotId) -> Option<StoredSnapshot> {
        self.state.read().stored.iter().find(|snapshot| snapshot.note.id == id).cloned()
    }

    /// Roots of the past that the catalog has, oldest first.
    pub(crate) fn past(&self) -> Vec<PastRoot> {
        self.state.read().past.clone()
    }

    /// The earliest moment that can be gone back to.
    pub(crate) fn past_begins(&self) -> Option<Timestamp> {
        self.state.read().past.first().map(|moment| moment.time)
    }

    /// The names of waiting cuts that go back to `snapshot`.
    pub(crate) fn waits_for(&self, snapshot: SnapshotId) -> bool {
        self.state.read().waiting.iter().any(|(cut, _)| cut.rollback == Some(snapshot))
    }

    /// Whether a cut is promised and not in the catalog.
    pub(crate) fn is_waiting(&self, id: SnapshotId) -> bool {
        self.state.read().waiting.iter().any(|(cut, _)| cut.note.id == id)
    }

    /// What a waiting cut shows.
    pub(crate) fn waiting_view(&self, id: SnapshotId) -> Option<Arc<View>> {
        self.state.read().waiting.iter().find(|(cut, _)| cut.note.id == id).map(|(_, view)| view.clone())
    }

    pub(crate) fn waiting(&self) -> Vec<Arc<Cut>> {
        self.state.read().waiting.iter().map(|(cut, _)| cut.clone()).collect()
    }

    /// A snapshot is being deleted, or after all is not. Tells whether that is news.
    pub(crate) fn set_going(&self, id: SnapshotId, going: bool) -> bool {
        let mut state = self.state.write();
        let known = state.going.contains(&id);
        if going && !known {
            state.going.push(id);
        } else if !going {
            state.going.retain(|other| *other != id);
        }
        known != going
    }

    /// A snapshot of this name is being made, or after all is not, or is there. Tells whether that is news.
    pub(crate) fn set_coming(&self, name: &SnapshotName, coming: bool) -> bool {
        let mut state = self.state.write();
        let known = state.coming.contains(name);
        if coming && !known {
            state.coming.push(name.clone());
        } else if !coming {
            state.coming.retain(|other| other != name);
        }
        known != coming
    }

    pub(crate) fn is_coming(&self, name: &SnapshotName) -> bool {
        self.state.read().coming.contains(name)
    }

    /// Whether one of any name is being made of a moment of the past.
    pub(crate) fn are_coming(&self) -> bool {
        !self.state.read().coming.is_empty()
    }

    /// The volume is being flattened and none may come, or that is over. Tells whether it is news.
    pub(crate) fn set_flattening(&self, flattening: bool) -> bool {
        let mut state = self.state.write();
        std::mem::replace(&mut state.flattening, flattening) != flattening
    }

    pub(crate) fn is_flattening(&self) -> bool {
        self.state.read().flattening
    }

    /// A cut was made, and is about to be promised.
    pub(crate) fn begin(&self, cut: Arc<Cut>, view: Arc<View>) {
        let mut state = self.state.write();
        state.being_recorded.push(cut.note.id);
        state.waiting.push((cut, view));
    }

    /// It is promised.
    pub(crate) fn recorded(&self, id: SnapshotId) {
        self.state.write().being_recorded.retain(|other| *other != id);
    }

    pub(crate) fn is_being_recorded(&self, id: SnapshotId) -> bool {
        self.state.read().being_recorded.contains(&id)
    }

    /// A cut was promised.
    pub(crate) fn add(&self, cut: Arc<Cut>, view: Arc<View>) {
        self.state.write().waiting.push((cut, view));
    }

    /// A promise reaches less far than it did.
    pub(crate) fn replace(&self, cut: Arc<Cut>) {
        let mut state = self.state.write();
        state.waiting.iter_mut().filter(|(old, _)| old.note.id == cut.note.id).for_each(|(old, _)| *old = cut.clone());
    }

    /// A promise could not be recorded: there is no such snapshot.
    pub(crate) fn take_back(&self, id: SnapshotId) {
        let mut state = self.state.write();
        state.waiting.retain(|(cut, _)| cut.note.id != id);
        state.being_recorded.retain(|other| *other != id);
    }

    /// A manifest with this catalog is decided.
    pub(crate) fn decided(&self, stored: Vec<StoredSnapshot>, past: Vec<PastRoot>) {
        let mut state = self.state.write();
        let settled: Vec<_> = state.waiting.extract_if(.., |(cut, _)| stored.iter().any(|s| s.note.id == cut.note.id)).collect();
        state.views.extend(settled.iter().map(|(cut, view)| (cut.note.id, Arc::downgrade(view))));
        state.views.retain(|_, view| view.strong_count() > 0);
        (state.stored, state.past) = (stored, past);
    }

    /// Tells views of waiting cuts whose levels they show.
    pub(crate) fn belong_to(&self, volume: &Weak<Volume>) {
        self.state.read().waiting.iter().for_each(|(_, view)| view.belongs_to(volume.clone()));
    }

    /// What a snapshot shows.
    pub(crate) async fn view(&self, id: SnapshotId, pages: &CheckpointedMap) -> Result<Arc<View>, EngineError> {
        let root = {
            let state = self.state.read();
            if state.going.contains(&id) {
                return Err(EngineError::NoSnapshot { volume: self.volume, snapshot: id });
            }
            if let Some((_, view)) = state.waiting.iter().find(|(cut, _)| cut.note.id == id) {
                return Ok(view.clone());
            }
            if let Some(view) = state.views.get(&id).and_then(Weak::upgrade) {
                return Ok(view);
            }
            let stored = state.stored.iter().find(|snapshot| snapshot.note.id == id);
            stored.ok_or(EngineError::NoSnapshot { volume: self.volume, snapshot: id })?.map_root
        };
        let view = Arc::new(View::of_pages(id, pages.load_root(root).await?));
        let mut state = self.state.write();
        if let Some(other) = state.views.get(&id).and_then(Weak::upgrade) {
            return Ok(other);
        }
        state.views.insert(id, Arc::downgrade(&view));
        Ok(view)
    }

    /// Where a clone of `snapshot` begins; `ancestry` and `terms` are this volume's.
    pub(crate) async fn origin(
        &self,
        snapshot: SnapshotId,
        pages: &CheckpointedMap,
        ancestry: &Ancestry,
        terms: Terms,
    ) -> Result<Origin, EngineError> {
        let view = self.view(snapshot, pages).await?;
        Ok(Origin { view, ancestry: ancestry.of_clone(self.volume, terms) })
    }
}
