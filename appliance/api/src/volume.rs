//! Volumes as the interface shows them.

use serde::{Deserialize, Serialize};

/// A volume to be made. It is attached at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// `[a-z0-9-]{1,63}`.
    pub name: String,
    /// Capacity; a multiple of the block size.
    pub size_bytes: u64,
    /// Unit of mapping in bytes, 4096 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u64>,
    /// Size of containers in bytes, 4 MiB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sco_size: Option<u64>,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
}

/// What a volume is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Its socket is there; a hypervisor may connect.
    Attached,
    /// It has no socket.
    Detached,
    /// It lost its ownership or its journal and answers I/O errors.
    Halted,
    /// Its objects are being removed.
    Deleting,
}

impl VolumeState {
    /// As the interface writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::Halted => "halted",
            Self::Deleting => "deleting",
        }
    }
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its identity: 16 hexadecimal digits, also the prefix of its namespace in the store.
    pub id: String,
    /// Capacity in bytes.
    pub size_bytes: u64,
    /// Unit of mapping in bytes.
    pub block_size: u64,
    /// Size of containers in bytes.
    pub sco_size: u64,
    /// Refuses writes.
    pub read_only: bool,
    /// When it was made.
    pub created: String,
    /// What it is doing.
    pub state: VolumeState,
    /// Path of its vhost-user socket while it is attached.
    pub socket: Option<String>,
    /// Whether a hypervisor is connected.
    pub connected: bool,
    /// Its ownership term.
    pub epoch: u64,
    /// Its current manifest.
    pub generation: u64,
    /// What it did since the daemon started.
    pub counters: VolumeCounters,
}

/// What a volume did since the daemon started, and what it has waiting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeCounters {
    /// Read requests.
    pub reads: u64,
    /// Bytes read by the guest.
    pub read_bytes: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes written by the guest.
    pub written_bytes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Bytes that needed no new data: blocks that the volume had already.
    pub deduplicated_bytes: u64,
    /// Bytes of containers that the store has taken.
    pub stored_bytes: u64,
    /// Bytes that only the journal holds until the store has them.
    pub pending_bytes: u64,
}

/// All volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeList {
    /// By name.
    pub volumes: Vec<Volume>,
}
