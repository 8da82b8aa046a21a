//! Vocabulary and seams: the words every other crate shares, and the traits that keep them apart. No I/O lives here.
//!
//! Read in this order: [`units`] (what is counted), [`device`] (what a guest's front end asks of a volume) with [`answers`],
//! [`disk`] (what the engine asks of the node's SSD), [`coordination`] (who owns a volume) with [`snapshot`], [`clock`]; [`buffers`] is the memory in which
//! containers travel, [`latency`] how it is counted what things took.

pub mod answers;
pub mod buffers;
pub mod clock;
pub mod coordination;
pub mod device;
pub mod disk;
pub mod latency;
pub mod snapshot;
pub mod units;

pub use buffers::{PAGE_ALIGN, PageBuffer, PageBuffers};
pub use clock::{Clock, ManualClock, Timestamp};
pub use coordination::{Coordination, CoordinationError, Ownership, RecordChange, VolumeRecord, VolumeSpec};
pub use device::{BlockDevice, DeviceGeometry, IoError, Op, Request, Transfer, Transferable};
pub use disk::{Disk, DiskFile, ReadDone, Space};
pub use latency::{LATENCY_BUCKETS, Latencies, LatencyHistogram};
pub use snapshot::{Cut, Labels, Parent, SnapshotId, SnapshotName, SnapshotNote, VolumeSettings};
pub use units::{
    BlockAddress, BlockSize, ByteSize, Epoch, Fingerprint, Generation, Lba, Location, Policy, PolicyError, SECTOR_BYTES, ScoNumber,
    ScoSize, SectorCount, TlogNumber, UnitError, VolumeId, VolumeName,
};
