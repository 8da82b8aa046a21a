//! Filled by the next commits.

mod leaf_runs;

pub mod delta;
