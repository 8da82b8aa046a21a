//! What can be typed behind `lamina volume`.

use clap::{Args, Subcommand, ValueEnum};
use lamina_api::name::Name;
use lamina_api::volume::{ChangeSettings, Qos, VolumeSettings};
use lamina_contract::{BlockSize, ByteSize, ScoSize, UnitError, VolumeName};

use crate::complete;
use crate::cut::{self, Cut};
use crate::export::ExportArguments;
use crate::import::ImportArguments;
use crate::labels::{self, Label};
use crate::moment::Moment;
use crate::span::{number_or_off, size_or_off, span_or_off};

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeVerb {
    /// Lists all volumes.
    #[command(
        long_about = "Lists all volumes by name, or those that have all the labels given.",
        after_long_help = "\
Examples:
  lamina volume list
  lamina volume list --label tier=gold -o wide
  lamina volume list -o json | jq -r '.[].socket'"
    )]
    List {
        /// Only those with this label; may stand several times.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = labels::one)]
        labels: Vec<Label>,
    },
    /// Shows one volume with its settings and counters.
    #[command(after_long_help = "\
Examples:
  lamina volume show web
  lamina volume show web -o json | jq .counters")]
    Show {
        /// Its name.
        #[arg(value_parser = VolumeName::new, add = complete::volumes())]
        name: VolumeName,
    },
    /// Makes a volume and attaches it: its socket is there when this returns.
    #[command(
        long_about = "Makes a volume and attaches it: its socket is there when this returns.\n\n\
Size and limits can be changed later (lamina volume resize, lamina volume set); block size and SCO size cannot.",
        after_long_help = "\
Examples:
  lamina volume create web --size 10GiB
  lamina volume create db --size 1TiB --block-size 16KiB --sco-size 8MiB
  lamina volume create mail --size 50GiB --label tier=gold --iops 5000 --burst 10s --cdp 24h
  lamina volume create web --size 10GiB -o json

With -o json the answer holds at least name, size_bytes and socket."
    )]
    Create {
        /// Its name: 1 to 63 characters out of a-z, 0-9 and '-'.
        #[arg(value_parser = VolumeName::new)]
        name: VolumeName,
        /// Capacity: a number of bytes, or with KiB, MiB, GiB, TiB.
        #[arg(long)]
        size: ByteSize,
        /// Unit of mapping and deduplication, 4KiB to 64KiB; cannot be changed later [default: 4KiB].
        #[arg(long, value_name = "SIZE", value_parser = block_size)]
        block_size: Option<ByteSize>,
        /// Size of the containers sent to the store, 1MiB to 16MiB; cannot be changed later [default: 4MiB].
        #[arg(long, value_name = "SIZE", value_parser = sco_size)]
        sco_size: Option<ByteSize>,
        /// Refuse writes.
        #[arg(long)]
        read_only: bool,
        /// A label; may stand several times.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = labels::one)]
        labels: Vec<Label>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Deletes a volume and all its data. No guest may be using it.
    #[command(
        long_about = "Deletes a volume and all its data. It is refused while a guest uses it, while clones need it, and while it has \
snapshots, unless --snapshots deletes those too.",
        after_long_help = "\
Examples:
  lamina volume delete web
  lamina volume delete web --snapshots --yes

On a terminal the name must be typed again; in scripts say --yes."
    )]
    Delete {
        /// Its name.
        #[arg(value_parser = VolumeName::new, add = complete::volumes())]
        name: VolumeName,
        /// Delete its snapshots too.
        #[arg(long)]
        snapshots: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Serves a volume on its socket, now and after each restart of the daemon.
    #[command(after_long_help = "\
Examples:
  lamina volume attach web
  lamina volume attach web --hypervisor qemu --memory 4GiB
  lamina volume attach web --hypervisor libvirt > web-disk.xml && virsh attach-device guest web-disk.xml

With --hypervisor it prints what to give to the hypervisor, ready to paste. What the QEMU arguments mean:
  memory-backend-memfd,share=on   the guest's memory must be shared, since the appliance reads and writes it in place
  size=, -m                       both are the guest's memory; change them together (or with --memory)
  reconnect-ms=500                QEMU (9.2 or later) comes back by itself when the daemon restarts
  num-queues=                     one queue per virtual CPU is a good number (--queues)
  disable-legacy=on               keeps firmware from driving the disk in the old virtio mode

Cloud Hypervisor needs memory with shared=on; libvirt needs <memoryBacking> with memfd and shared access.")]
    Attach {
        /// Its name.
        #[arg(value_parser = VolumeName::new, add = complete::volumes())]
        name: VolumeName,
        /// Print what this hypervisor needs to use the volume.
        #[arg(long, value_enum)]
        hypervisor: Option<Hypervisor>,
        /// The guest's memory, for what is printed.
        #[arg(long, value_name = "SIZE", default_value = "2GiB", requires = "hypervisor")]
        memory: ByteSize,
        /// Queues between guest and appliance, for what is printed.
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16), requires = "hypervisor")]
        queues: u16,
    },
    /// Stops serving a volume and removes its socket. Its data stays.
    #[command(
        long_about = "Stops serving a volume, also after restarts, and removes its socket. Its data stays. A guest that uses it loses its \
disk, which needs a yes.",
        after_long_help = "\
Examples:
  lamina volume detach web"
    )]
    Detach {
        /// Its name.
        #[arg(value_parser = VolumeName::new, add = complete::volumes())]
        name: VolumeName,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Changes a volume's size, also while a guest uses it.
    #[command(
        long_about = "Changes a volume's size. Growing works while a guest uses the volume; the guest sees the new size at once. Shrinking \
cuts off what is behind the new end: it needs --shrink, no guest, and a yes.",
        after_long_help = "\
Examples:
  lamina volume resize web 20GiB
  lamina volume resize web +5GiB
  lamina volume resize web 5GiB --shrink --yes"
    )]
    Resize {
        /// Its name.
        #[arg(value_parser = VolumeName::new, add = complete::volumes())]
        name: VolumeName,
        /// The new size, or +SIZE for so much more.
        #[arg(value_parser = NewSize::parse)]
        size: NewSize,
        /// Allow less than it has now.
        #[arg(long)]
        shrink: bool,
        /// Do not ask before data is cut off.
        #[arg(long)]
        yes: bool,
    },
    /// Changes a volume's limits, CDP window, cache quota and labels.
    #[command(
        long_about = "Changes a volume's limits, CDP window, cache quota and labels. What is not named stays as it is; 'off' removes a limit, \
window or quota. Without its window, or with a shorter one, a volume cannot go back any more to moments that it could go back to: that must \
be confirmed.",
        after_long_help = "\
Examples:
  lamina volume set web --iops 5000 --bandwidth 200MiB --burst 10s
  lamina volume set web --iops off
  lamina volume set web --cdp 24h --cache-quota 10GiB
  lamina volume set web --label tier=gold --unlabel old"
    )]
    Set {
        /// Its name.
        #[arg(value_parser = VolumeName::new, add = complete::volumes())]
        name: VolumeName,
        #[command(flatten)]
        settings: Settings,
        /// A label to add or change; may stand several times.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = labels::one)]
        labels: Vec<Label>,
        /// A label to remove; may stand several times.
        #[arg(long = "unlabel", value_name = "KEY")]
        unlabel: Vec<String>,
        /// Do not ask before the past is given up.
        #[arg(long)]
        yes: bool,
    },
    /// Takes a volume back to a snapshot or a moment. No guest may be using it.
    #[command(
        long_about = "Takes a volume back to a snapshot, or to a moment in its CDP window. No guest may be using it. What it holds now is not \
lost: it stays as an automatic snapshot, whose name is printed.",
        after_long_help = "\
Examples:
  lamina volume rollback web@daily-1
  lamina volume rollback web --snapshot daily-1 --yes
  lamina volume rollback web --at \"2026-11-22 10:15:30\"
  lamina volume rollback web --at 2026-11-22T10:15:30Z

A time without Z or an offset is local time."
    )]
    Rollback {
        /// VOLUME, or VOLUME@SNAPSHOT.
        #[arg(value_name = "VOLUME[@SNAPSHOT]", value_parser = cut::volume, add = complete::snapshots())]
        volume: Cut<VolumeName>,
        #[command(flatten)]
        back: Back,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Makes writable volumes that begin as a volume, a snapshot or a moment.
    #[command(
        long_about = "Makes writable volumes that begin as a volume is now, as a snapshot, or as a moment in the CDP window. Clones share \
what they have in common with their source and are there at once, whatever its size; lamina volume flatten makes one independent.\n\n\
With --count, {n} in the name stands for 1, 2, 3 and so on.",
        after_long_help = "\
Examples:
  lamina volume clone web --name web-test
  lamina volume clone web@daily-1 --name web-yesterday
  lamina volume clone web --at \"2026-11-22 10:15:30\" --name web-before
  lamina volume clone golden --name 'desk-{n}' --count 100 --label pool=desks"
    )]
    Clone {
        /// VOLUME, or VOLUME@SNAPSHOT.
        #[arg(value_name = "VOLUME[@SNAPSHOT]", value_parser = cut::volume, add = complete::snapshots())]
        volume: Cut<VolumeName>,
        #[command(flatten)]
        back: Back,
        #[command(flatten)]
        clones: Clones,
    },
    /// Makes a clone independent of what it was cloned from.
    #[command(
        long_about = "Makes a clone independent of what it was cloned from, by copying what they share. A job does it; the clone can be used \
meanwhile, but no snapshots are taken of it. It must have no snapshots, and if it has a CDP window, the past in it is given up.",
        after_long_help = "\
Examples:
  lamina volume flatten web-test
  lamina volume flatten web-test --no-wait"
    )]
    Flatten {
        /// Its name.
        #[arg(value_parser = VolumeName::new, add = complete::volumes())]
        name: VolumeName,
    },
    /// Makes a volume a template: read-only, and made to be cloned.
    #[command(after_long_help = "\
Examples:
  lamina volume template golden
  lamina volume clone golden --name 'desk-{n}' --count 100
  lamina volume template golden --undo")]
    Template {
        /// Its name.
        #[arg(value_parser = VolumeName::new, add = complete::volumes())]
        name: VolumeName,
        /// Make it an ordinary volume again.
        #[arg(long)]
        undo: bool,
    },
    /// Makes a volume of a disk image.
    Import(ImportArguments),
    /// Makes a disk image of a volume or a snapshot.
    Export(ExportArguments),
}

/// How a volume is treated.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "How it is treated")]
pub(crate) struct Settings {
    /// Requests a second at most; off for no limit.
    #[arg(long, value_name = "N|off", value_parser = number_or_off)]
    iops: Option<u64>,
    /// Bytes a second at most, as 200MiB; off for no limit.
    #[arg(long, value_name = "SIZE|off", value_parser = size_or_off)]
    bandwidth: Option<u64>,
    /// How many seconds' worth of its limits a guest that was idle may use at once, as 10s; off for none.
    #[arg(long, value_name = "TIME|off", value_parser = span_or_off)]
    burst: Option<u64>,
    /// How far back it can be cloned or rolled back to any second, as 24h; off for no window.
    #[arg(long, value_name = "TIME|off", value_parser = span_or_off)]
    cdp: Option<u64>,
    /// Bytes of the dedupe cache that it may have; off for no quota.
    #[arg(long, value_name = "SIZE|off", value_parser = size_or_off)]
    cache_quota: Option<u64>,
}

impl Settings {
    /// The CDP window that is wanted, if one was named; 0 for none.
    pub(crate) fn cdp(self) -> Option<u64> {
        self.cdp
    }

    /// Those of a new volume.
    pub(crate) fn fresh(self) -> VolumeSettings {
        self.over(VolumeSettings::default())
            .map_or_else(VolumeSettings::default, |change| change.applied_to(VolumeSettings::default()))
    }

    /// The change of `settings` that these are; `None` when nothing was said.
    pub(crate) fn over(self, settings: VolumeSettings) -> Option<ChangeSettings> {
        let Self { iops, bandwidth, burst, cdp, cache_quota } = self;
        let qos = (iops.or(bandwidth).or(burst).is_some()).then(|| Qos {
            iops: iops.unwrap_or(settings.qos.iops),
            bandwidth_bytes: bandwidth.unwrap_or(settings.qos.bandwidth_bytes),
            burst_seconds: burst.unwrap_or(settings.qos.burst_seconds),
        });
        let change = ChangeSettings { qos, cdp_seconds: cdp, cache_quota_bytes: cache_quota };
        (change != ChangeSettings::default()).then_some(change)
    }
}

/// What to go back to, or to begin as.
#[derive(Debug, Clone, Args)]
pub(crate) struct Back {
    /// A snapshot's name.
    #[arg(long, value_name = "NAME", value_parser = |text: &str| Name::new(text), conflicts_with = "at")]
    pub(crate) snapshot: Option<Name>,
    /// A moment in the CDP window: local time, or RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    pub(crate) at: Option<Moment>,
}

/// Clones to be made.
#[derive(Debug, Clone, Args)]
pub(crate) struct Clones {
    /// The clone's name; {n} in it stands for its number.
    #[arg(long)]
    pub(crate) name: String,
    /// How many, 1 to 1000.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) count: u32,
    /// Leave them detached.
    #[arg(long)]
    pub(crate) detached: bool,
    /// A label of the clones; may stand several times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = labels::one)]
    pub(crate) labels: Vec<Label>,
}

/// A size, or so much more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewSize {
    /// All of it.
    To(u64),
    /// What is added.
    By(u64),
}

impl NewSize {
    fn parse(text: &str) -> Result<Self, UnitError> {
        match text.strip_prefix('+') {
            Some(more) => more.parse::<ByteSize>().map(|size| Self::By(size.0)),
            None => text.parse::<ByteSize>().map(|size| Self::To(size.0)),
        }
    }
}

/// Hypervisors whose arguments are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(clippy::enum_variant_names, reason = "its own name ends that way")]
pub(crate) enum Hypervisor {
    /// Arguments of qemu-system-*.
    Qemu,
    /// Arguments of cloud-hypervisor.
    CloudHypervisor,
    /// A disk element for a domain.
    Libvirt,
}

fn block_size(text: &str) -> Result<ByteSize, UnitError> {
    let size: ByteSize = text.parse()?;
    BlockSize::new(size.0).map(|_| size)
}

fn sco_size(text: &str) -> Result<ByteSize, UnitError> {
    let size: ByteSize = text.parse()?;
    ScoSize::new(size.0).map(|_| size)
}
