//! What can be typed. Values are parsed here and in the nouns' own files, so that the rest never sees text.

use clap::{Parser, Subcommand};

use crate::completions::Shell;
use crate::endpoint::Connection;
use crate::export::ExportArguments;
use crate::import::ImportArguments;
use crate::job::JobVerb;
use crate::printer::Output;
use crate::schedule::ScheduleVerb;
use crate::snapshot::SnapshotVerb;
use crate::span::Span;
use crate::support_bundle::SupportBundle;
use crate::target::TargetVerb;
use crate::template::TemplateVerb;
use crate::token::TokenVerb;
use crate::tone::When;
use crate::top::TopArguments;
use crate::vm_verbs::VmVerb;
use crate::volume_verbs::VolumeVerb;

/// Asks a Lamina appliance: volumes, snapshots, VMs, status.
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
  lamina snapshot create web@before-upgrade
  lamina volume clone golden --name 'desk-{n}' --count 100
  lamina --state-dir ./state volume list -o json
  lamina --server https://san-1.example:7443 --token-file ~/.lamina-token status

Results go to stdout, everything else to stderr. A snapshot is written VOLUME@SNAPSHOT.

Exit codes:
  0    done
  1    it failed; the last lines on stderr say why and what to do
  2    the command line is wrong, a file that it names cannot be used, the daemon
       refuses a value, or nobody confirmed
  3    no such volume, snapshot, VM, schedule, job or token
  4    no daemon answers
  5    the present state forbids it (name taken, volume in use, file there already)
  6    not authorised
  7    not in time: a job is still running after --timeout, or the daemon does not answer
  130  interrupted"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) connection: Connection,

    #[command(flatten)]
    pub(crate) manner: Manner,

    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// How results are printed, and how long is waited.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "How it answers")]
pub(crate) struct Manner {
    /// How to print results.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,

    /// Leave out the headings of tables.
    #[arg(long, global = true)]
    pub(crate) no_headers: bool,

    /// Print names only, and neither notices nor progress.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// When to colour.
    #[arg(long, global = true, value_enum, default_value_t = When::Auto)]
    pub(crate) color: When,

    /// Wait until jobs have ended; this is what happens anyway.
    #[arg(long, global = true, conflicts_with = "no_wait")]
    pub(crate) wait: bool,

    /// Do not wait for jobs: print them and end.
    #[arg(long, global = true)]
    pub(crate) no_wait: bool,

    /// Wait so long at most, as 10m; then exit with 7.
    #[arg(long, global = true, value_name = "TIME")]
    pub(crate) timeout: Option<Span>,
}

/// What is asked about.
#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Virtual disks.
    #[command(after_long_help = "\
Examples:
  lamina volume create web --size 10GiB
  lamina volume list
  lamina volume show web -o yaml
  lamina volume import debian-12.qcow2 web")]
    Volume {
        #[command(subcommand)]
        verb: VolumeVerb,
    },
    /// Named cuts of volumes, to go back to or to begin as.
    #[command(after_long_help = "\
Examples:
  lamina snapshot create web@before-upgrade
  lamina snapshot list web
  lamina volume rollback web@before-upgrade")]
    Snapshot {
        #[command(subcommand)]
        verb: SnapshotVerb,
    },
    /// What is made to be cloned.
    #[command(after_long_help = "\
Examples:
  lamina template list
  lamina volume template golden
  lamina volume clone golden --name 'desk-{n}' --count 100")]
    Template {
        #[command(subcommand)]
        verb: TemplateVerb,
    },
    /// Virtual machines: volumes that are treated as one.
    #[command(after_long_help = "\
Examples:
  lamina vm create shop --cpus 2 --memory 4GiB --disk shop-root,boot=1 --nic bridge=br0
  lamina vm snapshot shop@before-upgrade
  lamina vm render shop --for libvirt | virsh define /dev/stdin")]
    Vm {
        #[command(subcommand)]
        verb: VmVerb,
    },
    /// Snapshots by the clock.
    #[command(after_long_help = "\
Examples:
  lamina schedule create nightly --vm shop --every daily --at 02:30 --keep-daily 7
  lamina schedule list")]
    Schedule {
        #[command(subcommand)]
        verb: ScheduleVerb,
    },
    /// Work that takes long.
    #[command(after_long_help = "\
Examples:
  lamina job list --state running
  lamina job wait 2a")]
    Job {
        #[command(subcommand)]
        verb: JobVerb,
    },
    /// Who may ask from elsewhere.
    #[command(after_long_help = "\
Examples:
  lamina token create grafana --role viewer --expires 365d
  lamina token list")]
    Token {
        #[command(subcommand)]
        verb: TokenVerb,
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
    /// Who does what, live.
    #[command(
        long_about = "Shows who does what, live: each volume's requests, bytes, latency and what only the journal holds; health, journal, cache, \
store and jobs. Rates are those between two looks; P99 is the latency that 99 of 100 requests kept since the daemon started, the worse of \
reads and writes.\n\nKeys: q quits, s sorts by the next thing, space holds the view.",
        after_long_help = "\
Examples:
  lamina top
  lamina top --sort latency --interval 5s
  lamina top --once
  lamina top -o json | jq '.volumes[0]'"
    )]
    Top(TopArguments),
    /// Who changed what, the newest first.
    #[command(after_long_help = "\
Examples:
  lamina audit
  lamina audit --limit 1000 -o json | jq '.[] | select(.status >= 400)'")]
    Audit {
        /// Lines at most, 1 to 1000.
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Makes a volume of a disk image: short for lamina volume import.
    Import(ImportArguments),
    /// Makes a disk image of a volume: short for lamina volume export.
    Export(ExportArguments),
    /// Prints a completion script for a shell.
    #[command(
        long_about = "Prints a script with which a shell completes commands, options, and the names of volumes, snapshots, VMs, schedules, \
tokens and jobs, by asking the daemon. It belongs to this release: make it anew after an upgrade, or have the shell do so when it starts.",
        after_long_help = "\
Examples:
  lamina completions bash > /etc/bash_completion.d/lamina
  echo 'source <(lamina completions bash)' >> ~/.bashrc
  lamina completions fish > ~/.config/fish/completions/lamina.fish"
    )]
    Completions {
        /// Which shell.
        shell: Shell,
    },
}
