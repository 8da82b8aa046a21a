//! What can be typed behind `lamina vm`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use lamina_api::name::{Name, volume_name};
use lamina_api::problem::Problem;
use lamina_api::vm::{Firmware, NicModel, VmDisk, VmNic};
use lamina_contract::{ByteSize, VolumeName};

use crate::complete;
use crate::cut::{self, Cut};
use crate::labels::{self, Label};
use crate::volume_verbs::{Back, Clones, Hypervisor};

/// What to do with VMs.
#[derive(Debug, Subcommand)]
pub(crate) enum VmVerb {
    /// Lists VMs.
    #[command(after_long_help = "\
Examples:
  lamina vm list
  lamina vm list -o json | jq -r '.[].machine.disks[].volume'")]
    List,
    /// Shows one VM: its shape, disks and network cards.
    #[command(after_long_help = "\
Examples:
  lamina vm show shop
  lamina vm show shop -o yaml")]
    Show {
        /// Its name.
        #[arg(value_parser = |text: &str| Name::new(text), add = complete::vms())]
        name: Name,
    },
    /// Makes a VM of volumes that are there.
    #[command(
        long_about = "Makes a VM of volumes that are there: a name for volumes that are snapshotted, cloned and taken back together, with the \
shape of the machine. It starts nothing: lamina vm render writes what a hypervisor needs. A volume is a disk of one VM at most.",
        after_long_help = "\
Examples:
  lamina vm create shop --cpus 2 --memory 4GiB --disk shop-root,boot=1 --disk shop-data --nic bridge=br0
  lamina vm create win --cpus 4 --memory 8GiB --firmware uefi --disk win --nic network=default,model=e1000e
  lamina vm create db --cpus 8 --memory 64GiB --disk db --guest-agent /run/lamina/agent/db.sock"
    )]
    Create {
        /// Its name.
        #[arg(value_parser = |text: &str| Name::new(text))]
        name: Name,
        /// Virtual CPUs.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
        cpus: u32,
        /// Memory, as 4GiB.
        #[arg(long, value_name = "SIZE")]
        memory: ByteSize,
        /// What it boots with.
        #[arg(long, value_enum, default_value_t = FirmwareArgument::Bios)]
        firmware: FirmwareArgument,
        /// A disk; may stand several times, in their order. boot= is its place in the order of booting.
        #[arg(long = "disk", value_name = "VOLUME[,boot=N]", value_parser = disk, required = true, add = complete::volumes())]
        disks: Vec<VmDisk>,
        /// A network card; may stand several times. model= is virtio or e1000e.
        #[arg(long = "nic", value_name = "bridge=NAME|network=NAME[,mac=MAC][,model=MODEL]", value_parser = nic)]
        nics: Vec<VmNic>,
        /// Path of the guest agent's socket, so that snapshots can freeze the guest's file systems.
        #[arg(long, value_name = "PATH")]
        guest_agent: Option<String>,
        /// A label; may stand several times.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = labels::one)]
        labels: Vec<Label>,
    },
    /// Changes a VM's shape, disks, network cards, guest agent and labels.
    #[command(
        long_about = "Changes a VM's shape, disks, network cards, guest agent and labels. What is not named stays as it is. A machine that runs \
does not notice: the change counts for what is rendered next.",
        after_long_help = "\
Examples:
  lamina vm set shop --cpus 4 --memory 8GiB
  lamina vm set shop --add-disk shop-logs --remove-disk shop-old
  lamina vm set shop --nic bridge=br0 --nic bridge=br1
  lamina vm set shop --guest-agent none --label tier=gold --unlabel test"
    )]
    Set {
        /// Its name.
        #[arg(value_parser = |text: &str| Name::new(text), add = complete::vms())]
        name: Name,
        /// Virtual CPUs.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
        cpus: Option<u32>,
        /// Memory, as 4GiB.
        #[arg(long, value_name = "SIZE")]
        memory: Option<ByteSize>,
        /// What it boots with.
        #[arg(long, value_enum)]
        firmware: Option<FirmwareArgument>,
        /// A disk to add behind the others; may stand several times.
        #[arg(long = "add-disk", value_name = "VOLUME[,boot=N]", value_parser = disk, add = complete::volumes())]
        add_disks: Vec<VmDisk>,
        /// A disk to remove; may stand several times. The volume stays.
        #[arg(long = "remove-disk", value_name = "VOLUME", value_parser = VolumeName::new)]
        remove_disks: Vec<VolumeName>,
        /// A network card in place of all that it had; may stand several times.
        #[arg(long = "nic", value_name = "bridge=NAME|network=NAME[,mac=MAC][,model=MODEL]", value_parser = nic)]
        nics: Vec<VmNic>,
        /// Remove all network cards.
        #[arg(long, conflicts_with = "nics")]
        no_nics: bool,
        /// Path of the guest agent's socket; none for no agent.
        #[arg(long, value_name = "PATH|none")]
        guest_agent: Option<String>,
        /// A label to add or change; may stand several times.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = labels::one)]
        labels: Vec<Label>,
        /// A label to remove; may stand several times.
        #[arg(long = "unlabel", value_name = "KEY")]
        unlabel: Vec<String>,
    },
    /// Deletes a VM. Its volumes stay, unless --volumes.
    #[command(after_long_help = "\
Examples:
  lamina vm delete shop
  lamina vm delete shop --volumes --yes

On a terminal the name must be typed again; in scripts say --yes.")]
    Delete {
        /// Its name.
        #[arg(value_parser = |text: &str| Name::new(text), add = complete::vms())]
        name: Name,
        /// Delete its volumes and their snapshots too.
        #[arg(long)]
        volumes: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Takes a snapshot of all disks of a VM at one moment.
    #[command(
        long_about = "Takes a snapshot of all disks of a VM at one moment: what a power cut would leave, on all of them alike. With --freeze the \
guest agent has the guest's file systems written and held still meanwhile.",
        after_long_help = "\
Examples:
  lamina vm snapshot shop@before-upgrade
  lamina vm snapshot shop before-upgrade --freeze --pin --description 'release 7'"
    )]
    Snapshot {
        #[command(flatten)]
        one: One,
        /// Have the guest agent freeze file systems meanwhile.
        #[arg(long)]
        freeze: bool,
        /// What it is for, up to 256 characters.
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
        /// Refuse to delete it until it is unpinned.
        #[arg(long)]
        pin: bool,
        /// A label; may stand several times.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = labels::one)]
        labels: Vec<Label>,
    },
    /// Lists a VM's snapshots.
    #[command(after_long_help = "\
Examples:
  lamina vm snapshots shop
  lamina vm snapshots shop -o json | jq -r '.[].name'")]
    Snapshots {
        /// The VM.
        #[arg(value_parser = |text: &str| Name::new(text), add = complete::vms())]
        name: Name,
    },
    /// Deletes a snapshot of all disks of a VM.
    #[command(after_long_help = "\
Examples:
  lamina vm delete-snapshot shop@before-upgrade
  lamina vm delete-snapshot shop before-upgrade --yes")]
    DeleteSnapshot {
        #[command(flatten)]
        one: One,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Takes all disks of a VM back to a snapshot or a moment. No guest may be using them.
    #[command(
        long_about = "Takes all disks of a VM back to a snapshot, or to a moment that the CDP windows of all of them have. No guest may be using \
them. What they hold now is not lost: it stays as an automatic snapshot, whose name is printed.",
        after_long_help = "\
Examples:
  lamina vm rollback shop@before-upgrade
  lamina vm rollback shop --at \"2026-11-22 10:15:30\" --yes"
    )]
    Rollback {
        /// VM, or VM@SNAPSHOT.
        #[arg(value_name = "VM[@SNAPSHOT]", value_parser = cut::vm, add = complete::vm_snapshots())]
        vm: Cut<Name>,
        #[command(flatten)]
        back: Back,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Makes VMs that begin as a VM, a snapshot or a moment.
    #[command(
        long_about = "Makes VMs that begin as a VM is now, as a snapshot, or as a moment. Their volumes are clones with the new VM's name in \
front; network cards get other MAC addresses. With --count, {n} in the name stands for 1, 2, 3 and so on.",
        after_long_help = "\
Examples:
  lamina vm clone shop --name shop-test
  lamina vm clone shop@before-upgrade --name shop-old
  lamina vm clone golden --name 'desk-{n}' --count 100 --label pool=desks"
    )]
    Clone {
        /// VM, or VM@SNAPSHOT.
        #[arg(value_name = "VM[@SNAPSHOT]", value_parser = cut::vm, add = complete::vm_snapshots())]
        vm: Cut<Name>,
        #[command(flatten)]
        back: Back,
        #[command(flatten)]
        clones: Clones,
    },
    /// Makes a VM a template: its volumes are read-only, and made to be cloned.
    #[command(after_long_help = "\
Examples:
  lamina vm template golden
  lamina vm template golden --undo")]
    Template {
        /// Its name.
        #[arg(value_parser = |text: &str| Name::new(text), add = complete::vms())]
        name: Name,
        /// Make it a machine again.
        #[arg(long)]
        undo: bool,
    },
    /// Writes a whole machine in a hypervisor's words: XML for libvirt, a script for the others.
    #[command(
        long_about = "Writes a whole machine in a hypervisor's words: XML for libvirt, a script for the others. The machine is a VM that the \
daemon knows, whose volumes are attached, or a description in a file; with --from no daemon is asked.",
        after_long_help = "\
Examples:
  lamina vm render shop --for libvirt > shop.xml && virsh define shop.xml
  lamina vm render shop --for qemu > shop.sh && sh shop.sh
  lamina vm render --from web.json --for cloud-hypervisor > web.sh

A machine is written as JSON:
  { \"name\": \"web\", \"cpus\": 2, \"memory_bytes\": 2147483648, \"firmware\": \"bios\",
    \"disks\": [ { \"volume\": \"web\", \"socket\": \"/run/lamina/vhost/web.sock\", \"boot_order\": 1 } ],
    \"nics\": [ { \"bridge\": \"br0\", \"model\": \"virtio\" } ], \"guest_agent\": \"/run/lamina/agent/web.sock\" }

UUID and MAC addresses follow from the name unless they are given, so a machine stays the same when it is rendered again. A card
is on a \"bridge\" or, with libvirt, on a \"network\"; its model is virtio or e1000e. With firmware \"uefi\", QEMU's script takes
OVMF from $OVMF and keeps the machine's variables in ./NAME-vars.fd, and Cloud Hypervisor's takes its firmware from $FIRMWARE."
    )]
    Render {
        /// The VM.
        #[arg(value_parser = |text: &str| Name::new(text), add = complete::vms(), required_unless_present = "from")]
        name: Option<Name>,
        /// A machine's description instead; '-' is standard input.
        #[arg(long, value_name = "FILE", conflicts_with = "name", value_hint = clap::ValueHint::FilePath)]
        from: Option<PathBuf>,
        /// For which hypervisor.
        #[arg(long = "for", alias = "hypervisor", value_name = "HYPERVISOR", value_enum)]
        hypervisor: Hypervisor,
    },
}

/// A VM's snapshot, in either way of writing.
#[derive(Debug, Clone, Args)]
pub(crate) struct One {
    /// VM@SNAPSHOT, or VM.
    #[arg(value_name = "VM[@SNAPSHOT]", value_parser = cut::vm, add = complete::vm_snapshots())]
    pub(crate) vm: Cut<Name>,
    /// The snapshot, when it is not written with the VM.
    #[arg(value_parser = |text: &str| Name::new(text))]
    pub(crate) snapshot: Option<Name>,
}

/// What a VM boots with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FirmwareArgument {
    /// SeaBIOS and its like.
    Bios,
    /// OVMF and its like.
    Uefi,
}

impl From<FirmwareArgument> for Firmware {
    fn from(argument: FirmwareArgument) -> Self {
        match argument {
            FirmwareArgument::Bios => Self::Bios,
            FirmwareArgument::Uefi => Self::Uefi,
        }
    }
}

/// Text that is no part of a machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartError {
    /// A volume's name.
    #[error(transparent)]
    Volume(#[from] Problem),
    /// Behind a disk's name.
    #[error("'{0}' says nothing about a disk: write VOLUME or VOLUME,boot=1")]
    Disk(Box<str>),
    /// A word of a network card.
    #[error(
        "'{0}' says nothing about a network card: write bridge=br0 or network=default, then mac= and model=virtio or model=e1000e"
    )]
    Nic(Box<str>),
}

fn disk(text: &str) -> Result<VmDisk, PartError> {
    let mut words = text.split(',');
    let volume = volume_name(words.next().unwrap_or_default())?.to_string();
    let mut disk = VmDisk { volume, ..VmDisk::default() };
    for word in words {
        let order = word.strip_prefix("boot=").and_then(|order| order.parse().ok());
        disk.boot_order = Some(order.ok_or_else(|| PartError::Disk(word.into()))?);
    }
    Ok(disk)
}

fn nic(text: &str) -> Result<VmNic, PartError> {
    let mut nic = VmNic::default();
    for word in text.split(',') {
        let bad = || PartError::Nic(word.into());
        let (key, value) = word.split_once('=').ok_or_else(bad)?;
        let value = value.to_owned();
        match (key, value.as_str()) {
            ("bridge", _) => nic.bridge = Some(value),
            ("network", _) => nic.network = Some(value),
            ("mac", _) => nic.mac = Some(value.to_ascii_lowercase()),
            ("model", "virtio") => nic.model = NicModel::Virtio,
            ("model", "e1000e") => nic.model = NicModel::E1000e,
            _ => return Err(bad()),
        }
    }
    if nic.bridge.is_some() == nic.network.is_some() { Err(PartError::Nic(text.into())) } else { Ok(nic) }
}

#[cfg(test)]
mod tests {
    use lamina_api::vm::NicModel;

    use super::{disk, nic};

    #[test]
    fn disks_and_cards_are_words_with_commas() {
        let root = disk("root,boot=1").expect("a disk");
        assert_eq!((root.volume.as_str(), root.boot_order), ("root", Some(1)));
        let card = nic("bridge=br0,mac=52:54:00:AA:00:01,model=e1000e").expect("a card");
        assert_eq!(
            (card.bridge.as_deref(), card.mac.as_deref(), card.model),
            (Some("br0"), Some("52:54:00:aa:00:01"), NicModel::E1000e)
        );
        for bad in ["br0", "bridge=br0,network=x", "model=virtio", "bridge=br0,model=rtl8139", ""] {
            assert!(nic(bad).is_err(), "{bad}");
        }
        for bad in ["", "Root", "root,boot", "root,boot=x", "root,size=1"] {
            assert!(disk(bad).is_err(), "{bad}");
        }
    }
}
