//! Why the engine could not do something: a kind to act on, what was being done, the cause.

use lamina_contract::{BlockAddress, CoordinationError, SnapshotId, SnapshotName, Timestamp, VolumeId, VolumeName};
use lamina_formats::FormatError;
use object_store::path::Path;

use crate::cache::CacheError;
use crate::journal::JournalError;
use crate::map::MapError;

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The journal's SSD.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The dedupe cache's SSD.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Ownership or registry.
    #[error(transparent)]
    Coordination(#[from] CoordinationError),
    /// The map's pages.
    #[error("map")]
    Map(#[from] MapError),
    /// A store did not do what was asked.
    #[error("{doing} {object} failed")]
    Store {
        /// What was being done.
        doing: &'static str,
        /// Which object.
        object: Path,
        /// Why.
        #[source]
        source: object_store::Error,
    },
    /// An object is not what it should be.
    #[error("{object} is damaged")]
    Format {
        /// Which object.
        object: Path,
        /// How.
        #[source]
        source: FormatError,
    },
    /// A container does not hold a block that the map names.
    #[error("{object} does not hold a block that the map names")]
    BlockMissing {
        /// The container.
        object: Path,
    },
    /// A block is not the one that the map's fingerprint names.
    #[error("{object} holds another block than the map names")]
    WrongBlock {
        /// The container.
        object: Path,
    },
    /// The reader that was already fetching what this one wanted did not bring it.
    #[error("another reader's read of {object}, which this one waited for, came to nothing")]
    LeftAlone {
        /// The container.
        object: Path,
    },
    /// A block in the journal does not verify, and nothing newer replaces it.
    #[error("volume {volume}: block {} in the journal is damaged; it cannot be stored", block.0)]
    JournalDamage {
        /// Whose.
        volume: VolumeId,
        /// Which.
        block: BlockAddress,
    },
    /// The size of a volume makes no sense.
    #[error(
        "a volume's size must be a multiple of its block size ({block_size}), at least one block and at most 256 TiB; {size_bytes} was asked for"
    )]
    VolumeSize {
        /// Asked for.
        size_bytes: u64,
        /// Asked for.
        block_size: u32,
    },
    /// The memory cap is too small for the rest of the configuration.
    #[error("a memory cap of {cap} bytes is too small: this journal and cache need at least {need}; raise the cap or shrink them")]
    MemoryCap {
        /// Configured.
        cap: u64,
        /// Needed.
        need: u64,
    },
    /// No such volume here.
    #[error("no volume {volume}")]
    Unknown {
        /// Which.
        volume: VolumeId,
    },
    /// A namespace of the store holds a volume but no chain of manifest, TLogs and map that verifies.
    #[error("volume {volume}: no manifest of its namespace verifies")]
    NoRoot {
        /// Which.
        volume: VolumeId,
    },
    /// The journal does not continue what the store holds of a volume: accepting it would show other blocks.
    #[error("volume {volume}: the journal continues at container {found}, the store ends with {stored}")]
    JournalGap {
        /// Which.
        volume: VolumeId,
        /// The container that the journal's first entry names.
        found: u64,
        /// The last container that is stored.
        stored: u64,
    },
    /// No such snapshot.
    #[error("volume {volume} has no snapshot {snapshot}")]
    NoSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// Which.
        snapshot: SnapshotId,
    },
    /// The volume has a snapshot of this name.
    #[error("a snapshot named '{name}' exists already")]
    SnapshotExists {
        /// The name.
        name: SnapshotName,
    },
    /// The snapshot must not be deleted.
    #[error("snapshot '{name}' is pinned")]
    Pinned {
        /// Its name.
        name: SnapshotName,
    },
    /// Clones depend on the snapshot.
    #[error("snapshot '{name}' has {} clone(s): {}", clones.len(), listed(clones))]
    SnapshotHasClones {
        /// Its name.
        name: SnapshotName,
        /// Theirs.
        clones: Vec<VolumeName>,
    },
    /// So many cuts of the volume wait for the store that no more are promised.
    #[error("{waiting} snapshots of volume {volume} wait for the store; it is too slow for more")]
    TooManyWaiting {
        /// Whose.
        volume: VolumeId,
        /// How many.
        waiting: usize,
    },
    /// Changes of a volume are under way that do not end.
    #[error("volume {volume} is busy")]
    Busy {
        /// Which.
        volume: VolumeId,
    },
    /// The store takes nothing now.
    #[error("the store takes no objects now")]
    StoreDown,
    /// The volume does not accept changes.
    #[error("volume {volume} is halted")]
    Halted {
        /// Which.
        volume: VolumeId,
    },
    /// A clone of a clone of a clone…
    #[error("volume {volume} stands on {generations} generations of clones already; flatten it first")]
    TooDeep {
        /// Which.
        volume: VolumeId,
        /// How many.
        generations: usize,
    },
    /// What a clone stands on is not open.
    #[error("its parent, volume {parent}, is not open")]
    ParentNotOpen {
        /// Which.
        parent: VolumeId,
    },
    /// The moment lies before the first that is kept, or in the future.
    #[error("volume {volume} cannot go back to that moment")]
    NotInWindow {
        /// Which.
        volume: VolumeId,
        /// The earliest that is kept; None when nothing is.
        begins: Option<Timestamp>,
    },
    /// Shrinking would cut blocks off that hold data.
    #[error("volume {volume} holds data behind its new end, at byte {at} and perhaps further on")]
    WouldCut {
        /// Which.
        volume: VolumeId,
        /// The first.
        at: u64,
    },
    /// The volume has snapshots that nobody said should go with it.
    #[error("volume {volume} has {snapshots} snapshot(s)")]
    HasSnapshots {
        /// Which.
        volume: VolumeId,
        /// How many.
        snapshots: usize,
    },
    /// The journal is full, and the store does not make room.
    #[error("the journal has no room for a change of volume {volume}: the store is away or too slow")]
    NoRoom {
        /// Which.
        volume: VolumeId,
    },
    /// The clone is being made independent; snapshots would hold blocks of its parent.
    #[error("volume {volume} is being flattened and takes no snapshots until that is done")]
    Flattening {
        /// Which.
        volume: VolumeId,
    },
    /// Snapshots of the clone hold blocks of its parent.
    #[error("volume {volume} has {snapshots} snapshots, which hold blocks of its parent; delete them before it is flattened")]
    SnapshotsHoldParent {
        /// Which.
        volume: VolumeId,
        /// How many.
        snapshots: usize,
    },
    /// It was asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// Blocks cannot be read, so they cannot be copied.
    #[error("volume {volume}: block {} cannot be read", block.0)]
    Unreadable {
        /// Whose.
        volume: VolumeId,
        /// Which.
        block: BlockAddress,
    },
    /// A description is too long.
    #[error("a description may have 1024 bytes, not {bytes}")]
    LongDescription {
        /// Asked for.
        bytes: usize,
    },
    /// A value from outside is not allowed.
    #[error(transparent)]
    Unit(#[from] lamina_contract::UnitError),
    /// The journal's thread could not be started.
    #[error("a thread could not be started")]
    Thread(#[source] std::io::Error),
    /// The runtime ended meanwhile.
    #[error("interrupted: the daemon is ending")]
    Interrupted,
}

/// The first few names, for a message.
fn listed(names: &[VolumeName]) -> String {
    const SHOWN: usize = 5;
    let mut text = names.iter().take(SHOWN).map(VolumeName::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

impl EngineError {
    /// Whether trying again cannot help: the object is damaged or proven to be missing.
    pub(crate) fn is_final(&self) -> bool {
        let missing = |source: &object_store::Error| matches!(source, object_store::Error::NotFound { .. });
        match self {
            Self::Format { .. } | Self::Map(MapError::Damaged { .. }) => true,
            Self::Store { source, .. } | Self::Map(MapError::Store { source, .. }) => missing(source),
            _ => false,
        }
    }
}
