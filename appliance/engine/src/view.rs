//! What a snapshot shows, from the moment it is taken: the levels of its volume until they are in map pages, its own root afterwards.
//!
//! Clones and a volume that was rolled back read through it. Lock order: a view's own state is copied out before any volume's layers
//! are locked.

use std::sync::{Arc, Weak};

use lamina_contract::{BlockAddress, SnapshotId};
use parking_lot::RwLock;

use crate::layers::Source;
use crate::map::RootState;
use crate::volume::Volume;

/// Where a snapshot's blocks are to be looked for.
#[derive(Clone)]
enum Place {
    /// In the levels of its volume, which is this one once it is open.
    Levels(Weak<Volume>),
    /// In map pages, as its volume counts generations.
    Pages(Arc<RootState>),
}

/// See the file's header.
pub(crate) struct View {
    pub(crate) id: SnapshotId,
    place: RwLock<Place>,
}

/// What a view knows of a block.
pub(crate) enum Looked {
    /// This, as the view's volume counts generations.
    Found(Source),
    /// What pages under a root say, so many generations up from the view's volume.
    Pages { root: Arc<RootState>, generations: u8 },
    /// Its volume is not open any more.
    Gone,
}

impl View {
    /// Of a cut that waits; [`View::belongs_to`] says whose.
    pub(crate) fn of_levels(id: SnapshotId) -> Self {
        Self { id, place: RwLock::new(Place::Levels(Weak::new())) }
    }

    /// Of a snapshot in map pages.
    pub(crate) fn of_pages(id: SnapshotId, root: Arc<RootState>) -> Self {
        Self { id, place: RwLock::new(Place::Pages(root)) }
    }

    /// Whose levels show it.
    pub(crate) fn belongs_to(&self, volume: Weak<Volume>) {
        let mut place = self.place.write();
        if let Place::Levels(owner) = &mut *place {
            *owner = volume;
        }
    }

    /// All of it is in pages from now on. Called under the lock of its volume's layers.
    pub(crate) fn settle(&self, root: Arc<RootState>) {
        *self.place.write() = Place::Pages(root);
    }

    /// Its root, when all of it is in pages.
    pub(crate) fn root(&self) -> Option<Arc<RootState>> {
        match &*self.place.read() {
            Place::Pages(root) => Some(root.clone()),
            Place::Levels(_) => None,
        }
    }

    /// Whose levels show it, until it is in pages.
    pub(crate) fn volume(&self) -> Option<Arc<Volume>> {
        match &*self.place.read() {
            Place::Levels(volume) => volume.upgrade(),
            Place::Pages(_) => None,
        }
    }

    /// What `block` was.
    pub(crate) fn look(&self, block: BlockAddress) -> Looked {
        loop {
            let volume = match self.place.read().clone() {
                Place::Pages(root) => return Looked::Pages { root, generations: 0 },
                Place::Levels(volume) => volume,
            };
            let Some(volume) = volume.upgrade() else { return Looked::Gone };
            let layers = volume.layers.read();
            match layers.resolve_at(self.id, block) {
                // The root of this moment: later ones may know what came after the cut.
                Some(Source::Pages) => return Looked::Pages { root: volume.pages.state(), generations: 0 },
                Some(Source::View { view, generations }) => {
                    drop(layers);
                    return match view.look(block) {
                        Looked::Found(source) => Looked::Found(source.seen_from(generations)),
                        Looked::Pages { root, generations: more } => Looked::Pages { root, generations: generations + more },
                        Looked::Gone => Looked::Gone,
                    };
                }
                Some(found) => return Looked::Found(found),
                // Its level went: it is in pages now, or the volume gave everything up.
                None if self.root().is_none() => return Looked::Gone,
                None => {}
            }
        }
    }
}
