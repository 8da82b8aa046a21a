//! Snapshots of a volume, going back to one, and clones that begin as one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::label::Labels;
use crate::volume::Volume;

/// Characters of a description.
pub const MAX_DESCRIPTION: usize = 256;
/// Clones of one call.
pub const MAX_CLONES: u32 = 1000;

/// Where a snapshot's data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// Part of it is still in the journal only: it survives a kill and a power loss, not the loss of the SSD.
    Settling,
    /// The store has all of it.
    Stored,
}

impl SnapshotState {
    /// As the interface writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Settling => "settling",
            Self::Stored => "stored",
        }
    }
}

/// A named cut of a volume's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Its name within the volume.
    #[schema(pattern = "^[a-z0-9-]{1,63}$")]
    pub name: String,
    /// Its identity; never used again, unlike the name.
    pub id: String,
    /// The volume it was taken of.
    pub volume: String,
    /// When, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    pub created: String,
    /// Capacity of the volume then, in bytes.
    pub size_bytes: u64,
    /// Words to find it by.
    pub labels: Labels,
    /// What it is for.
    pub description: String,
    /// Deleting it is refused until it is unpinned.
    pub pinned: bool,
    /// It was made by a rollback or a schedule, not by hand.
    pub automatic: bool,
    /// Where its data is.
    pub state: SnapshotState,
    /// Volumes that began as it and need it.
    pub clones: u32,
}

/// A snapshot to be taken, now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// `[a-z0-9-]{1,63}`, free within the volume.
    #[schema(pattern = "^[a-z0-9-]{1,63}$")]
    pub name: String,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// What it is for, up to 256 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(max_length = 256)]
    pub description: String,
    /// Refuse to delete it until it is unpinned.
    #[serde(default)]
    pub pinned: bool,
}

/// What shall change of a snapshot; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeSnapshot {
    /// All its labels from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// What it is for, up to 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 256)]
    pub description: Option<String>,
    /// Whether deleting it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<bool>,
}

/// Snapshots of a volume or of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// By name.
    pub snapshots: Vec<Snapshot>,
    /// Cursor of the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What to go back to: a snapshot or a moment, one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// A snapshot's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-z0-9-]{1,63}$")]
    pub snapshot: Option<String>,
    /// A moment within the volume's CDP window, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub at: Option<String>,
}

/// A volume that went back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolledBack {
    /// The volume as it is now.
    pub volume: Volume,
    /// The automatic snapshot that keeps what it was before.
    pub discarded: String,
}

/// Clones to be made. Either `names`, or `name` with `count`, in which `{n}` stands for 1 to `count`. They begin as a snapshot, as a
/// moment, or, with neither, as the source is now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateClones {
    /// The clones' names, up to 1000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 1000)]
    pub names: Vec<String>,
    /// A name with `{n}` in it, or one clone's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 66)]
    pub name: Option<String>,
    /// How many, 1 to 1000; more than 1 needs `{n}` in the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000)]
    pub count: Option<u32>,
    /// A snapshot's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-z0-9-]{1,63}$")]
    pub snapshot: Option<String>,
    /// A moment within the CDP window, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub at: Option<String>,
    /// The clones' labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Whether they are attached at once; they are when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach: Option<bool>,
}
