//! Everything that happened to a node's disks, store and registry, and what its guests were told, in one order.

use std::sync::Arc;

use lamina_contract::VolumeRecord;
use parking_lot::Mutex;

use crate::disk_image::DiskEvent;
use crate::sim_store::Objects;

/// What a guest did or was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// An operation was handed to the volume.
    Submitted {
        /// Which volume of the world.
        volume: usize,
        /// Its operations handed over so far, this one included.
        count: usize,
    },
    /// A part of an operation was acknowledged.
    Acked {
        /// Which volume.
        volume: usize,
        /// Index of the operation.
        op: usize,
        /// Which of its requests.
        part: usize,
    },
    /// A flush (or a FUA write) was acknowledged: the first `through` operations are durable.
    Durable {
        /// Which volume.
        volume: usize,
        /// How many operations.
        through: usize,
    },
    /// Everything that was accepted of a volume when the round began is in the store.
    Stored {
        /// Which volume.
        volume: usize,
        /// How many operations.
        through: usize,
    },
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// To the journal's disk.
    Journal(DiskEvent),
    /// To the cache's disk.
    Cache(DiskEvent),
    /// The store holds this now.
    Store(Arc<Objects>),
    /// The registry holds this now.
    Registry(Arc<Vec<VolumeRecord>>),
    /// Between guest and volume.
    Mark(Mark),
}

#[derive(Debug, Default)]
struct State {
    events: Vec<Event>,
    closed: bool,
}

/// The log of one life; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<State>>);

impl Log {
    /// Notes an event, unless the life is over.
    pub fn push(&self, event: Event) {
        let mut state = self.0.lock();
        if !state.closed {
            state.events.push(event);
        }
    }

    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().events.len()
    }

    /// Whether nothing happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends the life: what a dying node does afterwards never happened. Gives the events.
    #[must_use]
    pub fn close(&self) -> Vec<Event> {
        let mut state = self.0.lock();
        state.closed = true;
        std::mem::take(&mut state.events)
    }
}
