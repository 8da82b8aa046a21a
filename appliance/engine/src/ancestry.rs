//! What a clone's map may name beside the volume itself: its parent, the parent's parent, and so on, nearest first.

use std::sync::Arc;

use lamina_contract::{Epoch, ScoNumber, VolumeId};
use lamina_formats::manifest::Term;
use parking_lot::RwLock;

use crate::namespace::epoch_of;

/// The most generations: a location counts them in 8 bits, of which two values mean something else.
pub(crate) const MOST_GENERATIONS: usize = 250;

/// The terms of a volume's containers; shared, since they grow as it is written.
pub(crate) type Terms = Arc<RwLock<Vec<Term>>>;

/// One of them.
#[derive(Clone)]
struct Ancestor {
    volume: VolumeId,
    terms: Terms,
}

/// See the file's header. Shared by all clones of one volume.
#[derive(Clone, Default)]
pub(crate) struct Ancestry(Arc<[Ancestor]>);

impl Ancestry {
    /// That of a clone of `volume`, whose own this is.
    pub(crate) fn of_clone(&self, volume: VolumeId, terms: Terms) -> Self {
        Self(std::iter::once(Ancestor { volume, terms }).chain(self.0.iter().cloned()).collect())
    }

    /// How many generations there are above the volume.
    pub(crate) fn generations(&self) -> usize {
        self.0.len()
    }

    /// `volume`, and whose pages and containers it may name.
    pub(crate) fn owners(&self, volume: VolumeId) -> Arc<[VolumeId]> {
        std::iter::once(volume).chain(self.0.iter().map(|ancestor| ancestor.volume)).collect()
    }

    /// The volume so many generations up, which is at least one.
    pub(crate) fn volume(&self, generations: u8) -> Option<VolumeId> {
        self.0.get(usize::from(generations).checked_sub(1)?).map(|ancestor| ancestor.volume)
    }

    /// The epoch in the key of a container of that volume.
    pub(crate) fn sco_epoch(&self, generations: u8, sco: ScoNumber) -> Option<Epoch> {
        let ancestor = self.0.get(usize::from(generations).checked_sub(1)?)?;
        epoch_of(&ancestor.terms.read(), sco.0)
    }
}
