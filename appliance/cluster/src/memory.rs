//! Coordination that lives as long as the process: for simulations and tests, with the faults a real one can have.

use std::sync::Arc;

use lamina_contract::{Coordination, CoordinationError, Epoch, Generation, Ownership, RecordChange, VolumeId, VolumeRecord};
use parking_lot::Mutex;

use crate::registry::{Change, Registry};

/// What a lying or broken Coordination does with the next decisions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    /// Nothing is decided and nobody is answered.
    Away,
    /// The next decision is made but its answer is lost.
    AnswerLost,
}

#[derive(Debug, Default)]
struct Live {
    registry: Registry,
    fault: Fault,
}

/// A fault that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("made unavailable by the test")]
struct Asked;

/// A registry in memory; clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryCoordination {
    live: Arc<Mutex<Live>>,
}

impl MemoryCoordination {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Holds exactly `records` from now on, which came from a registry.
    ///
    /// # Panics
    /// When no registry can hold them.
    #[expect(clippy::expect_used, reason = "a simulation's own mistake")]
    pub fn restore(&self, records: &[VolumeRecord]) {
        self.live.lock().registry = Registry::from_records(0, records.to_vec()).expect("records of a registry");
    }

    /// Another owner takes `volume`: whoever had it is fenced at its next decision.
    ///
    /// # Errors
    /// [`CoordinationError::Unknown`].
    pub fn steal(&self, volume: VolumeId) -> Result<Ownership, CoordinationError> {
        let mut live = self.live.lock();
        let (owners, change) = live.registry.take_all(&[(volume, Epoch(0))])?;
        live.registry = live.registry.after(&change);
        owners.into_iter().next().ok_or(CoordinationError::Unknown { volume })
    }

    /// While `away`, every call fails and changes nothing.
    pub fn set_away(&self, away: bool) {
        self.live.lock().fault = if away { Fault::Away } else { Fault::None };
    }

    /// The next decision is made, but its caller is told that the outcome is unknown.
    pub fn lose_next_answer(&self) {
        self.live.lock().fault = Fault::AnswerLost;
    }

    fn decide<T>(
        &self,
        doing: &'static str,
        rule: impl FnOnce(&Registry) -> Result<(T, Option<Change>), CoordinationError>,
    ) -> Result<T, CoordinationError> {
        let mut live = self.live.lock();
        if live.fault == Fault::Away {
            return Err(unavailable(doing));
        }
        let (answer, change) = rule(&live.registry)?;
        if let Some(change) = change {
            live.registry = live.registry.after(&change);
        }
        match std::mem::take(&mut live.fault) {
            Fault::AnswerLost => Err(unavailable(doing)),
            Fault::None | Fault::Away => Ok(answer),
        }
    }
}

impl Coordination for MemoryCoordination {
    fn create_all(&self, records: &[VolumeRecord]) -> Result<(), CoordinationError> {
        self.decide("registering volumes", |registry| Ok(((), Some(registry.create_all(records)?))))
    }

    fn list(&self) -> Result<Vec<VolumeRecord>, CoordinationError> {
        let live = self.live.lock();
        if live.fault == Fault::Away {
            return Err(unavailable("listing volumes"));
        }
        Ok(live.registry.records().cloned().collect())
    }

    fn get(&self, volume: VolumeId) -> Result<VolumeRecord, CoordinationError> {
        let live = self.live.lock();
        if live.fault == Fault::Away {
            return Err(unavailable("reading a volume's record"));
        }
        live.registry.get(volume).cloned()
    }

    fn take_all(&self, volumes: &[(VolumeId, Epoch)]) -> Result<Vec<Ownership>, CoordinationError> {
        self.decide("taking volumes", |registry| registry.take_all(volumes).map(|(owners, change)| (owners, Some(change))))
    }

    fn advance(&self, owner: Ownership, next: Generation) -> Result<(), CoordinationError> {
        self.decide("advancing a volume", |registry| Ok(((), Some(registry.advance(owner, next)?))))
    }

    fn adopt(&self, owner: Ownership, generation: Generation, manifest_epoch: Epoch) -> Result<(), CoordinationError> {
        self.decide("adopting a manifest", |registry| Ok(((), Some(registry.adopt(owner, generation, manifest_epoch)?))))
    }

    fn change(&self, changes: &[(Ownership, RecordChange)]) -> Result<(), CoordinationError> {
        self.decide("changing records", |registry| Ok(((), Some(registry.change(changes)?))))
    }

    fn begin_delete(&self, volume: VolumeId) -> Result<(), CoordinationError> {
        self.decide("deleting a volume", |registry| Ok(((), registry.begin_delete(volume)?)))
    }

    fn forget(&self, volume: VolumeId) -> Result<(), CoordinationError> {
        self.decide("forgetting a volume", |registry| Ok(((), registry.forget(volume))))
    }
}

fn unavailable(doing: &'static str) -> CoordinationError {
    CoordinationError::Unavailable { doing, cause: Box::new(Asked) }
}

#[cfg(test)]
mod tests {
    use lamina_contract::{Coordination, CoordinationError, Epoch, Generation};

    use super::MemoryCoordination;
    use crate::conformance::{self, record};

    #[test]
    fn memory_passes_the_suite() {
        conformance::all(&|| Box::new(MemoryCoordination::new()));
    }

    #[test]
    fn a_stolen_volume_fences_its_old_owner() {
        let memory = MemoryCoordination::new();
        let volume = record(1, "a");
        memory.create(&volume).expect("free");
        let owner = memory.take(volume.id, Epoch(0)).expect("taken");
        let thief = memory.steal(volume.id).expect("stolen");
        assert!(thief.epoch > owner.epoch);
        let lost = memory.advance(owner, Generation(1));
        assert!(matches!(lost, Err(CoordinationError::Fenced { current, .. }) if current == thief.epoch));
    }

    #[test]
    fn a_lost_answer_still_decides_and_absence_does_not() {
        let memory = MemoryCoordination::new();
        let volume = record(1, "a");
        memory.lose_next_answer();
        assert!(matches!(memory.create(&volume), Err(CoordinationError::Unavailable { .. })));
        assert_eq!(memory.list().expect("back").len(), 1);
        memory.set_away(true);
        assert!(memory.list().is_err() && memory.take(volume.id, Epoch(0)).is_err());
        memory.set_away(false);
        assert_eq!(memory.get(volume.id).expect("back").epoch, Epoch(0));
    }
}
