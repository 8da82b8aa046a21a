//! The volume: everything between a guest's block and a stored container.
//!
//! The way in: [`volume`] → `write` (staging, journal) → `layers` (what an address means now).
//! The way out: `seal` (fingerprints, references) → `behind` (SCO, TLog, manifest, in this order) → `map` (checkpoints).
//! The way back: `read` (journal, dedupe cache, store), `restart` (manifest, TLogs) → `opening` (journal).
//! The engine names no drive, bucket, socket or clock: those come through the seams of `lamina-contract` and `object_store`.

mod ancestry;
mod behind;
mod cache_fill;
mod cache_index;
mod cache_regions;
mod cache_upkeep;
mod checkpoint;
mod clone;
mod error;
mod extent;
mod fetch;
mod file_pages;
mod fingerprint;
mod flatten;
mod flights;
mod inflight;
mod journal;
mod layers;
mod leaf_runs;
mod limits;
mod lineage;
mod namespace;
mod node;
mod opening;
mod pacer;
#[cfg(test)]
mod pacer_tests;
mod past;
mod ranges;
mod read;
mod resize;
mod restart;
mod rmw;
mod seal;
mod settle;
mod sled_pages;
mod snapshot;
mod snapshots;
mod status;
mod syncer;
mod throttle;
mod view;
mod write;

pub mod cache;
pub mod delta;
pub mod failpoint;
pub mod map;
pub mod mutant;
pub mod page_store;
pub mod pages;
pub mod volume;

pub use checkpoint::CheckpointOutcome;
pub use clone::CloneSpec;
pub use error::EngineError;
pub use extent::Extent;
pub use file_pages::FilePages;
pub use fingerprint::{fingerprint, fingerprints};
pub use journal::{JournalConfig, JournalError};
pub use limits::{BURST, DEFAULT_BURST, Limits};
pub use namespace::Namespace;
pub use node::{Background, Node, NodeConfig, Seams, Unopened};
pub use pacer::{HeldCounters, Paced, Pacer};
pub use sled_pages::SledPages;
pub use snapshot::{SnapshotChange, SnapshotSpec};
pub use snapshots::Snapshot;
pub use status::{NodeStatus, VolumeStatus};
pub use volume::{Volume, VolumeState};
