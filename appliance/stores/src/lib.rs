//! Things that keep objects, and the node's disk.
//!
//! [`DriveStore`] is one drive as an `object_store::ObjectStore`; [`open_pool`] finds a pool's drives by identity; [`LocalDisk`] is the
//! SSD. [`MemoryStore`], [`SparseStore`] and [`FlakyStore`] serve tests. Every store passes [`conformance::conformance`].

pub mod conformance;
mod direct;
pub mod drive;
mod drive_names;
mod drive_read;
mod drive_store;
mod drive_sync;
pub mod fault;
pub mod flaky;
pub mod identity;
pub mod local_disk;
pub mod memory;
pub mod memory_disk;
pub mod pool;
mod ring;
pub mod sparse;
pub mod upload;
mod vectored;

pub use drive::{DriveSpace, DriveStore};
pub use fault::{FaultKind, StoreFault, fault_kind, is_device_error, is_full, is_gone};
pub use flaky::{FlakyStore, Fuse, Toxics};
pub use identity::{DriveError, DriveState};
pub use local_disk::LocalDisk;
pub use memory::MemoryStore;
pub use memory_disk::MemoryDisk;
pub use pool::{MemberState, Pool, PoolError, PoolMember, Stranger, open_pool};
pub use sparse::SparseStore;
pub use upload::BufferedUpload;
