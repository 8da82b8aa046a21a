//! Targets: the members of the distributed store.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TargetState {
    /// Takes and gives fragments.
    Up,
    /// Gives fragments and has no space to take any.
    Full,
    /// Failing or slow; set aside and probed.
    Suspect,
    /// Not there.
    Missing,
}

impl TargetState {
    /// As the interface writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Full => "full",
            Self::Suspect => "suspect",
            Self::Missing => "missing",
        }
    }
}

/// One target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Target {
    /// Its number in the pool.
    pub index: u32,
    /// Its identity, as written on it.
    pub id: String,
    /// Where it is mounted; absent when it is missing.
    pub path: Option<String>,
    /// How it is.
    pub state: TargetState,
    /// Size of its file system in bytes, 0 when unknown.
    pub capacity_bytes: u64,
    /// Free bytes, 0 when unknown.
    pub free_bytes: u64,
    /// Bytes of fragments read from it since the daemon started.
    pub read_bytes: u64,
    /// Bytes of fragments written to it.
    pub written_bytes: u64,
    /// Calls that failed.
    pub errors: u64,
    /// The last failure in words.
    pub last_error: Option<String>,
}

/// All targets of the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TargetList {
    /// The policy of the pool, as `X+P`.
    pub policy: String,
    /// By number.
    pub targets: Vec<Target>,
}
