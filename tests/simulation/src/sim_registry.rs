//! A running node's Coordination: the real rules in memory, each decision noted in the log as durable when it is made.

use std::sync::Arc;

use lamina_cluster::MemoryCoordination;
use lamina_contract::{Coordination, CoordinationError, Epoch, Generation, Ownership, RecordChange, VolumeId, VolumeRecord};

use crate::log::{Event, Log};

/// See the module's header.
pub struct SimRegistry {
    rules: MemoryCoordination,
    log: Log,
}

impl SimRegistry {
    /// A registry that holds `records`.
    #[must_use]
    pub fn over(records: &[VolumeRecord], log: Log) -> Self {
        let rules = MemoryCoordination::new();
        rules.restore(records);
        Self { rules, log }
    }

    /// The rules, for faults on demand.
    #[must_use]
    pub fn rules(&self) -> &MemoryCoordination {
        &self.rules
    }

    fn noted<T>(&self, result: Result<T, CoordinationError>) -> Result<T, CoordinationError> {
        if let Ok(records) = self.rules.list() {
            self.log.push(Event::Registry(Arc::new(records)));
        }
        result
    }
}

impl Coordination for SimRegistry {
    fn create_all(&self, records: &[VolumeRecord]) -> Result<(), CoordinationError> {
        self.noted(self.rules.create_all(records))
    }

    fn list(&self) -> Result<Vec<VolumeRecord>, CoordinationError> {
        self.rules.list()
    }

    fn get(&self, volume: VolumeId) -> Result<VolumeRecord, CoordinationError> {
        self.rules.get(volume)
    }

    fn take_all(&self, volumes: &[(VolumeId, Epoch)]) -> Result<Vec<Ownership>, CoordinationError> {
        self.noted(self.rules.take_all(volumes))
    }

    fn advance(&self, owner: Ownership, next: Generation) -> Result<(), CoordinationError> {
        self.noted(self.rules.advance(owner, next))
    }

    fn adopt(&self, owner: Ownership, generation: Generation, manifest_epoch: Epoch) -> Result<(), CoordinationError> {
        self.noted(self.rules.adopt(owner, generation, manifest_epoch))
    }

    fn change(&self, changes: &[(Ownership, RecordChange)]) -> Result<(), CoordinationError> {
        self.noted(self.rules.change(changes))
    }

    fn begin_delete(&self, volume: VolumeId) -> Result<(), CoordinationError> {
        self.noted(self.rules.begin_delete(volume))
    }

    fn forget(&self, volume: VolumeId) -> Result<(), CoordinationError> {
        self.noted(self.rules.forget(volume))
    }
}
