//! A volume's bytes through the interface, for import and export while no guest is connected.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Bytes of one read or write at most.
pub const MAX_DATA_BYTES: u64 = crate::MAX_BODY_BYTES as u64;

/// A run of bytes that were written and not discarded. What is between runs reads as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Extent {
    /// Its first byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// A part of a volume's allocated runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExtentList {
    /// In order; runs that touch are one.
    pub extents: Vec<Extent>,
    /// What `from` is for the next part; absent at the end of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_from: Option<u64>,
}
