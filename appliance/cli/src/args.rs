//! What can be typed. Values are parsed here, so that the rest never sees text.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use lamina_contract::{BlockSize, ByteSize, ScoSize, VolumeName};

use crate::support_bundle::{Place, SupportBundle};

const SYSTEM_SOCKET: &str = "/run/lamina/lamina.sock";

/// Asks a Lamina appliance: volumes, targets, status.
#[derive(Debug, Parser)]
#[command(
    name = "lamina",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    after_long_help = "\
Examples:
  lamina volume create web --size 10GiB
  lamina volume attach web --hypervisor qemu
  lamina --state-dir ./state volume list -o json
  lamina status

Exit codes:
  0  done
  1  it failed; the last line on stderr says why and what to do
  2  the command line is wrong
  3  no such volume
  4  no daemon answers
  5  the present state forbids it (name taken, volume in use)"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) connection: Connection,

    /// How to print results.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,

    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// Which daemon to ask.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// The daemon's state directory, when it was started with --state-dir.
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "socket")]
    state_dir: Option<PathBuf>,

    /// The daemon's local socket [default: /run/lamina/lamina.sock].
    #[arg(long, global = true, value_name = "PATH", env = "LAMINA_SOCKET")]
    socket: Option<PathBuf>,
}

impl Connection {
    /// The socket that was meant.
    pub(crate) fn socket(&self) -> PathBuf {
        match (&self.state_dir, &self.socket) {
            (Some(dir), _) => dir.join("run").join("lamina.sock"),
            (None, Some(socket)) => socket.clone(),
            (None, None) => Path::new(SYSTEM_SOCKET).to_owned(),
        }
    }

    /// Where the daemon of this machine is.
    pub(crate) fn place(&self) -> Place {
        Place { socket: self.socket(), state: self.state_dir.clone() }
    }
}

/// How to print results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs: sizes in bytes.
    Json,
    /// The same as JSON, in YAML.
    Yaml,
}

/// What is asked about.
#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Virtual disks.
    #[command(after_long_help = "\
Examples:
  lamina volume create web --size 10GiB
  lamina volume list
  lamina volume show web -o yaml")]
    Volume {
        #[command(subcommand)]
        verb: VolumeVerb,
    },
    /// Virtual machines.
    #[command(after_long_help = "\
Examples:
  lamina vm render --from web.json --hypervisor libvirt | virsh define /dev/stdin")]
    Vm {
        #[command(subcommand)]
        verb: VmVerb,
    },
    /// The drives behind the store.
    #[command(after_long_help = "\
Examples:
  lamina target list")]
    Target {
        #[command(subcommand)]
        verb: TargetVerb,
    },
    /// The appliance at a glance: health, journal, cache, store.
    #[command(after_long_help = "\
Examples:
  lamina status
  lamina status -o json | jq .health")]
    Status,
    /// Collects what is needed to find out what is wrong, without secrets and without guests' data.
    #[command(after_long_help = "\
Examples:
  lamina support-bundle
  lamina support-bundle /tmp/for-support.tar.gz --anonymous
  lamina --state-dir ./state support-bundle --log ./laminad.log

It works without the daemon too, and says what is missing then. manifest.json in it lists what is there and what was left out.")]
    SupportBundle(SupportBundle),
    /// Prints a completion script for a shell.
    #[command(after_long_help = "\
Examples:
  lamina completions bash > /etc/bash_completion.d/lamina")]
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeVerb {
    /// Makes a volume and attaches it: its socket is there when this returns.
    #[command(after_long_help = "\
Examples:
  lamina volume create web --size 10GiB
  lamina volume create db --size 1TiB --block-size 16KiB --sco-size 8MiB
  lamina volume create web --size 10GiB -o json

With -o json the answer holds at least name, size_bytes and socket.")]
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
    },
    /// Lists all volumes.
    #[command(after_long_help = "\
Examples:
  lamina volume list
  lamina volume list -o json | jq -r '.[].socket'")]
    List,
    /// Shows one volume with its counters.
    #[command(after_long_help = "\
Examples:
  lamina volume show web")]
    Show {
        /// Its name.
        #[arg(value_parser = VolumeName::new)]
        name: VolumeName,
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
        #[arg(value_parser = VolumeName::new)]
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
    #[command(after_long_help = "\
Examples:
  lamina volume detach web")]
    Detach {
        /// Its name.
        #[arg(value_parser = VolumeName::new)]
        name: VolumeName,
    },
    /// Deletes a volume and all its data. No guest may be using it.
    #[command(after_long_help = "\
Examples:
  lamina volume delete web
  lamina volume delete web --yes

On a terminal the name must be typed again; in scripts say --yes.")]
    Delete {
        /// Its name.
        #[arg(value_parser = VolumeName::new)]
        name: VolumeName,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// What to do with virtual machines.
#[derive(Debug, Subcommand)]
pub(crate) enum VmVerb {
    /// Writes a whole machine in a hypervisor's words: XML for libvirt, a script for the others. Asks no daemon.
    #[command(after_long_help = "\
Examples:
  lamina vm render --from web.json --hypervisor qemu > web.sh && sh web.sh
  lamina vm render --from web.json --hypervisor libvirt > web.xml && virsh define web.xml

A machine is written as JSON:
  { \"name\": \"web\", \"cpus\": 2, \"memory_bytes\": 2147483648, \"firmware\": \"bios\",
    \"disks\": [ { \"volume\": \"web\", \"socket\": \"/run/lamina/vhost/web.sock\", \"boot_order\": 1 } ],
    \"nics\": [ { \"bridge\": \"br0\", \"model\": \"virtio\" } ], \"guest_agent\": \"/run/lamina/agent/web.sock\" }

UUID and MAC addresses follow from the name unless they are given, so a machine stays the same when it is rendered again. A card
is on a \"bridge\" or, with libvirt, on a \"network\"; its model is virtio or e1000e. With firmware \"uefi\", QEMU's script takes
OVMF from $OVMF and keeps the machine's variables in ./NAME-vars.fd, and Cloud Hypervisor's takes its firmware from $FIRMWARE.")]
    Render {
        /// The machine's description; '-' is standard input.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// For which hypervisor.
        #[arg(long, value_enum)]
        hypervisor: Hypervisor,
    },
}

/// What to do with targets.
#[derive(Debug, Subcommand)]
pub(crate) enum TargetVerb {
    /// Lists the members of the store and how they are.
    #[command(after_long_help = "\
Examples:
  lamina target list
  lamina target list -o json | jq '.targets[] | select(.state != \"up\")'")]
    List,
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

fn block_size(text: &str) -> Result<ByteSize, lamina_contract::UnitError> {
    let size: ByteSize = text.parse()?;
    BlockSize::new(size.0).map(|_| size)
}

fn sco_size(text: &str) -> Result<ByteSize, lamina_contract::UnitError> {
    let size: ByteSize = text.parse()?;
    ScoSize::new(size.0).map(|_| size)
}
