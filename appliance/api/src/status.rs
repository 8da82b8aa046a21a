//! The appliance as a whole.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Release and interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The release.
    pub version: String,
    /// The interface under `/api/`.
    pub api: String,
}

/// Whether everything that should protect the data does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It does.
    Healthy,
    /// Something required is missing; [`Status::degraded`] says what.
    Degraded,
}

impl Health {
    /// As the interface writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
        }
    }
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Degradation {
    /// What: `target-missing`, `journal-failed`, `volume-halted`, …
    pub what: String,
    /// In words.
    pub detail: String,
    /// What a further loss would cost now.
    pub risk: String,
}

/// A space with a bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Space {
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes there are.
    pub capacity_bytes: u64,
}

/// What the dedupe cache did since the daemon started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct CacheStatus {
    /// Its space.
    pub space: Space,
    /// Reads that it served.
    pub hits: u64,
    /// Reads that it could not serve.
    pub misses: u64,
}

/// What the distributed store did since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct StoreStatus {
    /// `X+P`.
    pub policy: String,
    /// Fragments that a write needs before it counts.
    pub write_min: u32,
    /// Targets in the pool.
    pub targets: u32,
    /// Targets that take and give fragments.
    pub targets_up: u32,
    /// Reads that had to be decoded from other fragments.
    pub degraded_reads: u64,
    /// Writes that left fragments to be repaired.
    pub degraded_writes: u64,
    /// Fragments made again.
    pub repaired_fragments: u64,
    /// Bytes written to targets, parity included.
    pub written_bytes: u64,
}

/// Everything at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The release.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// Whether everything that should protect the data does.
    pub health: Health,
    /// What does not.
    pub degraded: Vec<Degradation>,
    /// Since the daemon was ready.
    pub uptime_seconds: u64,
    /// How long the start took until the daemon was ready, in milliseconds.
    pub recovery_ms: u64,
    /// Volumes there are.
    pub volumes: u32,
    /// Volumes with a socket.
    pub volumes_attached: u32,
    /// Bytes that guests wrote since the daemon started.
    pub written_bytes: u64,
    /// Bytes of those that needed no new data.
    pub deduplicated_bytes: u64,
    /// Bytes of containers and logs that the store has taken.
    pub stored_bytes: u64,
    /// The journal.
    pub journal: Space,
    /// The dedupe cache.
    pub cache: CacheStatus,
    /// The store.
    pub store: StoreStatus,
}
