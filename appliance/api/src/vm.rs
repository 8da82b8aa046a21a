//! VMs: named groups of volumes that are snapshotted, cloned and taken back together, with the shape of the machine.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::label::Labels;
use crate::snapshot::SnapshotState;

/// Disks of a VM.
pub const MAX_DISKS: usize = 64;
/// Network cards of a VM.
pub const MAX_NICS: usize = 16;

/// What a VM boots with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// SeaBIOS and its like.
    #[default]
    Bios,
    /// OVMF and its like.
    Uefi,
}

/// How a disk is seen by the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBus {
    /// virtio-blk over vhost-user.
    #[default]
    Virtio,
}

/// What a network card is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NicModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel's, for guests without virtio.
    E1000e,
}

/// A disk of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmDisk {
    /// The volume's name. A volume is a disk of one VM at most.
    #[schema(pattern = "^[a-z0-9-]{1,63}$")]
    pub volume: String,
    /// Its place in the order of booting, from 1; the firmware decides when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 64)]
    pub boot_order: Option<u32>,
    /// How the guest sees it.
    #[serde(default)]
    pub bus: DiskBus,
}

/// A network card of a VM: on a bridge or on a network of libvirt, one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmNic {
    /// `52:54:00:12:34:56`; the hypervisor chooses when absent. A clone of the VM never has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]
    pub mac: Option<String>,
    /// The bridge it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[A-Za-z0-9_.-]{1,15}$")]
    pub bridge: Option<String>,
    /// The network it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[A-Za-z0-9_.-]{1,63}$")]
    pub network: Option<String>,
    /// What it is.
    #[serde(default)]
    pub model: NicModel,
}

/// The shape of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Virtual CPUs, 1 to 1024.
    #[schema(minimum = 1, maximum = 1024)]
    pub cpus: u32,
    /// Memory in bytes, 1 MiB to 64 TiB.
    #[schema(minimum = 1_048_576, maximum = 70_368_744_177_664i64)]
    pub memory_bytes: u64,
    /// What it boots with.
    #[serde(default)]
    pub firmware: Firmware,
    /// Its disks, 1 to 64, in their order.
    #[schema(min_items = 1, max_items = 64)]
    pub disks: Vec<VmDisk>,
    /// Its network cards, up to 16, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 16)]
    pub nics: Vec<VmNic>,
}

/// A VM to be made of volumes that are there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// `[a-z0-9-]{1,63}`.
    #[schema(pattern = "^[a-z0-9-]{1,63}$")]
    pub name: String,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Its shape.
    pub machine: Machine,
    /// Path of the QEMU guest agent's socket, so that snapshots can freeze the guest's file systems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^/[^\\u0000]{1,106}$")]
    pub guest_agent: Option<String>,
}

/// What shall change of a VM; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeVm {
    /// All its labels from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// Its whole shape from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// Path of the guest agent's socket; empty for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^(/[^\\u0000]{1,106})?$")]
    pub guest_agent: Option<String>,
}

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// Words to find it by.
    pub labels: Labels,
    /// Whether it is a template: its volumes are read-only and made to be cloned.
    pub template: bool,
    /// Its shape.
    pub machine: Machine,
    /// Path of the guest agent's socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_agent: Option<String>,
    /// When it was made.
    #[schema(format = DateTime)]
    pub created: String,
}

/// All VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmList {
    /// By name.
    pub vms: Vec<Vm>,
    /// Cursor of the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A snapshot to be taken of all disks of a VM at one barrier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVmSnapshot {
    /// `[a-z0-9-]{1,63}`; each disk's snapshot has this name.
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
    /// Have the guest agent freeze file systems meanwhile; refused without an agent.
    #[serde(default)]
    pub freeze: bool,
}

/// A disk's part of a VM's snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmSnapshotDisk {
    /// The volume.
    pub volume: String,
    /// Its snapshot.
    pub snapshot: String,
}

/// A snapshot of all disks of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmSnapshot {
    /// Its name within the VM.
    pub name: String,
    /// The VM.
    pub vm: String,
    /// When it was taken.
    #[schema(format = DateTime)]
    pub created: String,
    /// Words to find it by.
    pub labels: Labels,
    /// What it is for.
    pub description: String,
    /// Deleting it is refused until it is unpinned.
    pub pinned: bool,
    /// It was made by a rollback or a schedule, not by hand.
    pub automatic: bool,
    /// The guest's file systems were frozen meanwhile; else it is what a power cut would leave.
    pub frozen: bool,
    /// All parts are there. One is missing when its volume or its snapshot was deleted by itself, or is not open.
    pub complete: bool,
    /// Where its data is: stored when all disks are.
    pub state: SnapshotState,
    /// The disks' parts, in the order of the disks then.
    pub disks: Vec<VmSnapshotDisk>,
}

/// Snapshots of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmSnapshotList {
    /// By name.
    pub snapshots: Vec<VmSnapshot>,
    /// Cursor of the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A VM that went back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolledBackVm {
    /// The VM as it is now.
    pub vm: Vm,
    /// The automatic snapshot that keeps what it was before.
    pub discarded: String,
}

/// Whether a VM is a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetTemplate {
    /// Whether it shall be one from now on.
    pub template: bool,
}
