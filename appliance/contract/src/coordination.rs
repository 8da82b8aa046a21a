//! Who owns a volume and which manifest is its root: the one place where that is decided, by transactions.
//!
//! Embedded (one node) and etcd (many) implement this. Calls block and are made from background threads only.

use crate::clock::Timestamp;
use crate::snapshot::{Cut, Parent, SnapshotId, VolumeSettings};
use crate::units::{BlockSize, Epoch, Generation, ScoNumber, ScoSize, VolumeId, VolumeName};

/// What a volume is made with. Only its size changes afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its name for people.
    pub name: VolumeName,
    /// Capacity in bytes; a multiple of the block size.
    pub size_bytes: u64,
    /// Unit of mapping.
    pub block_size: BlockSize,
    /// Size of its containers.
    pub sco_size: ScoSize,
    /// Refuses writes.
    pub read_only: bool,
}

/// What Coordination keeps of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Its identity and namespace.
    pub id: VolumeId,
    /// How it was made.
    pub spec: VolumeSpec,
    /// When.
    pub created: Timestamp,
    /// The current term; 0 before the first owner.
    pub epoch: Epoch,
    /// The current manifest; 0 before the first.
    pub generation: Generation,
    /// The epoch whose key the current manifest carries (`manifest/<generation>-<epoch>`).
    pub manifest_epoch: Epoch,
    /// Deletion was asked for: objects are being removed, the name is free.
    pub deleting: bool,
    /// What it is a clone of, until it is flattened.
    pub parent: Option<Parent>,
    /// What operators set.
    pub settings: VolumeSettings,
    /// Cuts that no manifest holds yet, oldest first.
    pub cuts: Vec<Cut>,
    /// The size came to be behind this container: a manifest has it once it holds that. None since the volume was made.
    pub size_after: Option<ScoNumber>,
}

impl VolumeRecord {
    /// A volume that never had an owner.
    #[must_use]
    pub fn new(id: VolumeId, spec: VolumeSpec, created: Timestamp) -> Self {
        Self {
            id,
            spec,
            created,
            epoch: Epoch(0),
            generation: Generation(0),
            manifest_epoch: Epoch(0),
            deleting: false,
            parent: None,
            settings: VolumeSettings::default(),
            cuts: Vec::new(),
            size_after: None,
        }
    }
}

/// What the owner of a volume changes in its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordChange {
    /// A cut is promised.
    AddCut(Cut),
    /// A manifest holds these cuts, or they are given up.
    DropCuts(Vec<SnapshotId>),
    /// All cuts that wait: after a journal was lost they reach less far.
    SetCuts(Vec<Cut>),
    /// Its size.
    Size {
        /// The capacity in bytes.
        bytes: u64,
        /// The last container of before.
        after: ScoNumber,
    },
    /// What operators set.
    Settings(Box<VolumeSettings>),
    /// It holds all its blocks itself now.
    Flattened,
}

/// The proof of having taken a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Which volume.
    pub volume: VolumeId,
    /// The new term, higher than any before.
    pub epoch: Epoch,
}

/// Why a transaction did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CoordinationError {
    /// Another volume has this name.
    #[error("a volume named '{name}' exists already")]
    NameTaken {
        /// The name.
        name: VolumeName,
    },
    /// Clones depend on it.
    #[error("volume {volume} has {} clone(s): {}", clones.len(), few(clones))]
    HasClones {
        /// Which.
        volume: VolumeId,
        /// Their names.
        clones: Vec<VolumeName>,
    },
    /// No such volume.
    #[error("no volume {volume}")]
    Unknown {
        /// Which.
        volume: VolumeId,
    },
    /// Somebody else took the volume or a generation: this writer must halt.
    #[error("volume {volume}: term {epoch:?} is over, term {current:?} has it", epoch = epoch.0, current = current.0)]
    Fenced {
        /// Which.
        volume: VolumeId,
        /// The term that asked.
        epoch: Epoch,
        /// The term that holds.
        current: Epoch,
    },
    /// The transaction's outcome is unknown, or its state cannot be read.
    #[error("coordination cannot be reached: {doing}")]
    Unavailable {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The first few names, for a message.
fn few(names: &[VolumeName]) -> String {
    const SHOWN: usize = 5;
    let mut text = names.iter().take(SHOWN).map(VolumeName::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

/// Decides ownership and generations. Every decision is durable before the call returns.
pub trait Coordination: Send + Sync {
    /// Registers a volume; its name must be free.
    ///
    /// # Errors
    /// [`CoordinationError::NameTaken`], [`CoordinationError::Unavailable`].
    fn create(&self, record: &VolumeRecord) -> Result<(), CoordinationError> {
        self.create_all(std::slice::from_ref(record))
    }

    /// Registers volumes, all or none; their names must be free, and the parents of clones must be there.
    ///
    /// # Errors
    /// [`CoordinationError::NameTaken`], [`CoordinationError::Unknown`], [`CoordinationError::Unavailable`].
    fn create_all(&self, records: &[VolumeRecord]) -> Result<(), CoordinationError>;

    /// All volumes, those being deleted too.
    ///
    /// # Errors
    /// [`CoordinationError::Unavailable`].
    fn list(&self) -> Result<Vec<VolumeRecord>, CoordinationError>;

    /// One volume.
    ///
    /// # Errors
    /// [`CoordinationError::Unknown`], [`CoordinationError::Unavailable`].
    fn get(&self, volume: VolumeId) -> Result<VolumeRecord, CoordinationError>;

    /// Takes the volume: the next epoch, which is also higher than `at_least` (the highest that the store has shown).
    ///
    /// # Errors
    /// [`CoordinationError::Unknown`], [`CoordinationError::Unavailable`].
    fn take(&self, volume: VolumeId, at_least: Epoch) -> Result<Ownership, CoordinationError> {
        let taken = self.take_all(&[(volume, at_least)])?;
        taken.into_iter().next().ok_or(CoordinationError::Unknown { volume })
    }

    /// Takes volumes, all or none, each as [`Coordination::take`] does.
    ///
    /// # Errors
    /// [`CoordinationError::Unknown`], [`CoordinationError::Unavailable`].
    fn take_all(&self, volumes: &[(VolumeId, Epoch)]) -> Result<Vec<Ownership>, CoordinationError>;

    /// Makes `next` the current manifest, if `owner` still owns the volume and `next` is the current generation plus one.
    ///
    /// # Errors
    /// [`CoordinationError::Fenced`] when it lost either; the volume must halt.
    fn advance(&self, owner: Ownership, next: Generation) -> Result<(), CoordinationError>;

    /// Sets the record's generation when a volume is recovered from a store alone: the chain that verified.
    ///
    /// # Errors
    /// [`CoordinationError::Fenced`], [`CoordinationError::Unavailable`].
    fn adopt(&self, owner: Ownership, generation: Generation, manifest_epoch: Epoch) -> Result<(), CoordinationError>;

    /// Changes records, all or none, if their owners still own the volumes.
    ///
    /// # Errors
    /// [`CoordinationError::Fenced`], [`CoordinationError::Unknown`], [`CoordinationError::Unavailable`].
    fn change(&self, changes: &[(Ownership, RecordChange)]) -> Result<(), CoordinationError>;

    /// Marks for deletion and frees the name. Idempotent.
    ///
    /// # Errors
    /// [`CoordinationError::HasClones`], [`CoordinationError::Unknown`], [`CoordinationError::Unavailable`].
    fn begin_delete(&self, volume: VolumeId) -> Result<(), CoordinationError>;

    /// Forgets a volume whose namespace is gone. Idempotent.
    ///
    /// # Errors
    /// [`CoordinationError::Unavailable`].
    fn forget(&self, volume: VolumeId) -> Result<(), CoordinationError>;
}
