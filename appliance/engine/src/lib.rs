//! Filled by the next commits.

mod cache_index;
mod cache_regions;
mod cache_upkeep;
mod checkpoint;
mod file_pages;
mod leaf_runs;
mod sled_pages;

pub mod cache;
pub mod delta;
pub mod map;
pub mod page_store;
pub mod pages;

pub use checkpoint::CheckpointOutcome;
