//! Volumes as the interface shows them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::label::Labels;

/// Bytes of a volume at most: 1 PiB.
pub const MAX_SIZE_BYTES: u64 = 1 << 50;
/// Requests a second of a limit at most.
pub const MAX_IOPS: u64 = 1_000_000_000;
/// Seconds of burst at most: an hour.
pub const MAX_BURST_SECONDS: u64 = 3600;
/// Seconds of a CDP window at most: 366 days.
pub const MAX_CDP_SECONDS: u64 = 366 * 86_400;

/// A volume to be made. It is attached at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// `[a-z0-9-]{1,63}`.
    #[schema(pattern = "^[a-z0-9-]{1,63}$")]
    pub name: String,
    /// Capacity; a multiple of the block size, up to 1 PiB.
    #[schema(minimum = 4096, maximum = 1_125_899_906_842_624i64)]
    pub size_bytes: u64,
    /// Unit of mapping in bytes, a power of two from 4096 to 65536; 4096 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 4096, maximum = 65_536)]
    pub block_size: Option<u64>,
    /// Size of containers in bytes, a power of two from 1 MiB to 16 MiB; 4 MiB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1_048_576, maximum = 16_777_216)]
    pub sco_size: Option<u64>,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// How it is treated.
    #[serde(default)]
    pub settings: VolumeSettings,
}

/// How a volume is treated. 0 is no limit, no window, no quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeSettings {
    /// How fast its guest may be.
    pub qos: Qos,
    /// Length of the window in which it can be cloned or rolled back to any second.
    #[schema(maximum = 31_622_400)]
    pub cdp_seconds: u64,
    /// Bytes of the dedupe cache that it may have.
    #[schema(maximum = 1_125_899_906_842_624i64)]
    pub cache_quota_bytes: u64,
}

/// How fast a volume's guest may be. 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Qos {
    /// Requests a second.
    #[schema(maximum = 1_000_000_000)]
    pub iops: u64,
    /// Bytes a second.
    #[schema(maximum = 1_125_899_906_842_624i64)]
    pub bandwidth_bytes: u64,
    /// How many seconds' worth a guest that was idle may use at once.
    #[schema(maximum = 3600)]
    pub burst_seconds: u64,
}

/// What shall change of a volume; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeVolume {
    /// Its capacity: more, also while a guest uses it; less needs `force` and no guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 4096, maximum = 1_125_899_906_842_624i64)]
    pub size_bytes: Option<u64>,
    /// Cut off what is behind the new end. Only admins.
    #[serde(default)]
    pub force: bool,
    /// All its labels from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// How it is treated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<ChangeSettings>,
    /// Whether it is a template: read-only, and made to be cloned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<bool>,
}

/// What shall change of how a volume is treated; what is absent stays, 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeSettings {
    /// How fast its guest may be; replaced as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<Qos>,
    /// Length of its CDP window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 31_622_400)]
    pub cdp_seconds: Option<u64>,
    /// Bytes of the dedupe cache that it may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 1_125_899_906_842_624i64)]
    pub cache_quota_bytes: Option<u64>,
}

impl ChangeSettings {
    /// `settings` with these changes.
    #[must_use]
    pub fn applied_to(self, settings: VolumeSettings) -> VolumeSettings {
        VolumeSettings {
            qos: self.qos.unwrap_or(settings.qos),
            cdp_seconds: self.cdp_seconds.unwrap_or(settings.cdp_seconds),
            cache_quota_bytes: self.cache_quota_bytes.unwrap_or(settings.cache_quota_bytes),
        }
    }
}

/// What a volume began as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Parent {
    /// The volume it is a clone of.
    pub volume: String,
    /// That volume's snapshot.
    pub snapshot: String,
}

/// Which volumes a list shall have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeFilter {
    /// Those with all these labels.
    pub labels: Labels,
    /// Those that are templates, or those that are not.
    pub template: Option<bool>,
    /// Those whose names begin so: a token's scope.
    pub prefix: Option<String>,
}

impl VolumeFilter {
    /// Whether `volume` belongs into the list.
    #[must_use]
    pub fn holds(&self, volume: &Volume) -> bool {
        self.template.is_none_or(|template| volume.template == template)
            && volume.labels.contain(&self.labels)
            && self.prefix.as_ref().is_none_or(|prefix| volume.name.starts_with(prefix))
    }
}

/// What a volume is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
    #[schema(format = DateTime)]
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
    /// Words to find it by.
    #[serde(default)]
    pub labels: Labels,
    /// Whether it is a template: read-only, and made to be cloned.
    #[serde(default)]
    pub template: bool,
    /// What it began as, while it needs that; absent for a volume of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Volumes that began as one of its snapshots and need it.
    #[serde(default)]
    pub clones: u32,
    /// Its snapshots.
    #[serde(default)]
    pub snapshots: u32,
    /// How it is treated.
    #[serde(default)]
    pub settings: VolumeSettings,
    /// The earliest moment that it can be cloned or rolled back to; absent without a CDP window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub cdp_start: Option<String>,
    /// What it did since the daemon started.
    pub counters: VolumeCounters,
}

/// What a volume did since the daemon started, and what it has waiting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeList {
    /// By name.
    pub volumes: Vec<Volume>,
    /// Cursor of the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
