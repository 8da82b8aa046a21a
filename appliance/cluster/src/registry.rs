//! The rules: what each transaction demands of the registry and what it changes. Pure, so every implementation shares them.
//!
//! Invariants: identities are unique; names are unique among volumes that are not being deleted; epochs and generations only
//! grow, except that [`Registry::adopt`] sets a generation by the word of the current owner. Each change raises `sequence` by one.

use std::collections::{BTreeMap, HashSet};

use lamina_contract::{CoordinationError, Epoch, Generation, Ownership, RecordChange, VolumeId, VolumeRecord};

/// All volumes of a node, and how many changes led here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Registry {
    sequence: u64,
    volumes: BTreeMap<VolumeId, VolumeRecord>,
}

/// What a transaction does to records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// These records are now so.
    Put(Vec<VolumeRecord>),
    /// The record is gone.
    Remove(VolumeId),
}

/// Why a set of records cannot be a registry, or a transaction cannot be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RuleError {
    /// The same identity twice.
    #[error("volume {volume} is registered twice")]
    IdentityTwice {
        /// Which.
        volume: VolumeId,
    },
    /// Two live volumes with one name.
    #[error("volume {volume} has the name of another volume")]
    NameTwice {
        /// The second of them.
        volume: VolumeId,
    },
    /// A counter would pass 2^64, which only a damaged or hostile store can suggest.
    #[error("a counter of volume {volume} is exhausted")]
    Exhausted {
        /// Which.
        volume: VolumeId,
    },
}

impl Registry {
    /// A registry as it was kept.
    pub(crate) fn from_records(sequence: u64, records: Vec<VolumeRecord>) -> Result<Self, RuleError> {
        let mut names = HashSet::new();
        let mut volumes = BTreeMap::new();
        for record in records {
            let volume = record.id;
            if !record.deleting && !names.insert(record.spec.name.clone()) {
                return Err(RuleError::NameTwice { volume });
            }
            if volumes.insert(volume, record).is_some() {
                return Err(RuleError::IdentityTwice { volume });
            }
        }
        Ok(Self { sequence, volumes })
    }

    /// How many changes led to this state; the higher of two copies is the newer.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Every record, by identity.
    pub(crate) fn records(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.values()
    }

    /// One record.
    pub(crate) fn get(&self, volume: VolumeId) -> Result<&VolumeRecord, CoordinationError> {
        self.volumes.get(&volume).ok_or(CoordinationError::Unknown { volume })
    }

    /// The state after `change`.
    #[must_use]
    pub(crate) fn after(&self, change: &Change) -> Self {
        let mut next = self.clone();
        next.sequence += 1;
        match change {
            Change::Put(records) => next.volumes.extend(records.iter().map(|record| (record.id, record.clone()))),
            Change::Remove(volume) => drop(next.volumes.remove(volume)),
        }
        next
    }

    /// New volumes: names and identities must be free, parents there.
    pub(crate) fn create_all(&self, records: &[VolumeRecord]) -> Result<Change, CoordinationError> {
        let mut names: HashSet<_> = self.volumes.values().filter(|other| !other.deleting).map(|other| &other.spec.name).collect();
        for record in records {
            let name = &record.spec.name;
            if !record.deleting && !names.insert(name) {
                return Err(CoordinationError::NameTaken { name: name.clone() });
            }
            if self.volumes.contains_key(&record.id) {
                return Err(refused("registering a volume", RuleError::IdentityTwice { volume: record.id }));
            }
            if let Some(parent) = record.parent
                && self.get(parent.volume)?.deleting
            {
                return Err(CoordinationError::Unknown { volume: parent.volume });
            }
        }
        Ok(Change::Put(records.to_vec()))
    }

    /// New terms, each higher than the current one and than `at_least`.
    pub(crate) fn take_all(&self, volumes: &[(VolumeId, Epoch)]) -> Result<(Vec<Ownership>, Change), CoordinationError> {
        let (mut owners, mut records) = (Vec::with_capacity(volumes.len()), Vec::with_capacity(volumes.len()));
        for (volume, at_least) in volumes.iter().copied() {
            let mut record = self.get(volume)?.clone();
            let highest = record.epoch.max(at_least);
            let epoch = highest.0.checked_add(1).map(Epoch).ok_or_else(|| exhausted("taking a volume", volume))?;
            record.epoch = epoch;
            owners.push(Ownership { volume, epoch });
            records.push(record);
        }
        Ok((owners, Change::Put(records)))
    }

    /// The owner's next manifest: exactly one more than the current.
    pub(crate) fn advance(&self, owner: Ownership, next: Generation) -> Result<Change, CoordinationError> {
        let mut record = self.owned(owner)?.clone();
        let expected = record.generation.0.checked_add(1).ok_or_else(|| exhausted("advancing a volume", owner.volume))?;
        if next != Generation(expected) {
            return Err(fenced(owner, &record));
        }
        record.generation = next;
        record.manifest_epoch = owner.epoch;
        Ok(Change::Put(vec![record]))
    }

    /// The chain that verified, by the word of the owner.
    pub(crate) fn adopt(&self, owner: Ownership, generation: Generation, manifest: Epoch) -> Result<Change, CoordinationError> {
        let mut record = self.owned(owner)?.clone();
        record.generation = generation;
        record.manifest_epoch = manifest;
        Ok(Change::Put(vec![record]))
    }

    /// What owners say of their volumes.
    pub(crate) fn change(&self, changes: &[(Ownership, RecordChange)]) -> Result<Change, CoordinationError> {
        let mut records: Vec<VolumeRecord> = Vec::with_capacity(changes.len());
        for (owner, change) in changes {
            let known = self.owned(*owner)?;
            let at = records.iter().position(|record| record.id == owner.volume).unwrap_or_else(|| {
                records.push(known.clone());
                records.len() - 1
            });
            let record = &mut records[at];
            match change {
                RecordChange::AddCut(cut) => record.cuts.push(cut.clone()),
                RecordChange::DropCuts(gone) => record.cuts.retain(|cut| !gone.contains(&cut.note.id)),
                RecordChange::SetCuts(cuts) => record.cuts.clone_from(cuts),
                RecordChange::Size { bytes, after } => {
                    record.spec.size_bytes = *bytes;
                    record.size_after = Some(*after);
                }
                RecordChange::Settings(settings) => record.settings = (**settings).clone(),
                RecordChange::Flattened => record.parent = None,
            }
        }
        Ok(Change::Put(records))
    }

    /// Frees the name, unless clones depend on the volume. Nothing to do when that happened before.
    pub(crate) fn begin_delete(&self, volume: VolumeId) -> Result<Option<Change>, CoordinationError> {
        let record = self.get(volume)?;
        let is_clone = |other: &&VolumeRecord| !other.deleting && other.parent.is_some_and(|parent| parent.volume == volume);
        let clones: Vec<_> = self.volumes.values().filter(is_clone).map(|clone| clone.spec.name.clone()).collect();
        if !clones.is_empty() {
            return Err(CoordinationError::HasClones { volume, clones });
        }
        Ok((!record.deleting).then(|| Change::Put(vec![VolumeRecord { deleting: true, ..record.clone() }])))
    }

    /// Drops the record. Nothing to do when it is gone.
    pub(crate) fn forget(&self, volume: VolumeId) -> Option<Change> {
        self.volumes.contains_key(&volume).then_some(Change::Remove(volume))
    }

    fn owned(&self, owner: Ownership) -> Result<&VolumeRecord, CoordinationError> {
        let record = self.get(owner.volume)?;
        if record.epoch == owner.epoch { Ok(record) } else { Err(fenced(owner, record)) }
    }
}

fn fenced(owner: Ownership, record: &VolumeRecord) -> CoordinationError {
    CoordinationError::Fenced { volume: owner.volume, epoch: owner.epoch, current: record.epoch }
}

fn exhausted(doing: &'static str, volume: VolumeId) -> CoordinationError {
    refused(doing, RuleError::Exhausted { volume })
}

fn refused(doing: &'static str, cause: RuleError) -> CoordinationError {
    CoordinationError::Unavailable { doing, cause: Box::new(cause) }
}
