//! What can be typed after `laminad`. Flags win over the configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use lamina_contract::{ByteSize, Policy};

use crate::config::{LogFormat, parse_duration};

/// The Lamina daemon: serves volumes to virtual machines over vhost-user sockets.
#[derive(Debug, Clone, Default, Parser)]
#[command(
    name = "laminad",
    version,
    // The last one counts, so that a wrapper's defaults can be overridden. Drives add up.
    args_override_self = true,
    after_long_help = "\
Examples:
  laminad --state-dir ./state --drive d1 --drive d2 --drive d3 --drive d4 --drive d5 --drive d6 --policy 4+2
  laminad --state-dir ./state --drive ./only --policy 1+0
  laminad --config /etc/lamina/lamina.yaml --check
  laminad --config /etc/lamina/lamina.yaml

When it is ready it prints one line on stdout and notifies systemd. SIGTERM and SIGINT drain and end it.

Files: with --state-dir everything but the drives is under DIR: sockets in DIR/run, journal in DIR/journal, cache in DIR/cache, the rest
in DIR/meta. With --config alone the state is under /var/lib/lamina and the sockets under /run/lamina.

Exit codes:
  0  ended as asked, or the configuration is right (--check)
  1  it failed while starting or running; the log says why
  2  something must be changed first: command line, configuration, drives, or another daemon has the state"
)]
pub(crate) struct Arguments {
    /// Configuration in YAML; `appliance/docs/OPERATIONS.md` lists the keys.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["state_dir", "list_failpoints"])]
    pub(crate) config: Option<PathBuf>,

    /// Only check the configuration: exit 0 when it is right, 2 with the place and the reason when it is not.
    #[arg(long)]
    pub(crate) check: bool,

    /// Keep all state and sockets under this directory; it is made if needed.
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// A directory on a drive of the store; once for each drive.
    #[arg(long = "drive", value_name = "DIR")]
    pub(crate) drives: Vec<PathBuf>,

    /// X data + P parity fragments; needs at least X+P drives. 1+0 keeps everything in a single directory.
    #[arg(long, value_name = "X+P")]
    pub(crate) policy: Option<Policy>,

    /// Fragments that must be durable before a write to the store counts [default: X+1, or X without parity].
    #[arg(long, value_name = "N")]
    pub(crate) write_min: Option<usize>,

    /// Directory of the dedupe cache, when it shall not be under the state directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) cache_dir: Option<PathBuf>,

    /// Space of the journal [default: 2GiB].
    #[arg(long, value_name = "SIZE")]
    pub(crate) journal_size: Option<ByteSize>,

    /// Space of the dedupe cache [default: 4GiB].
    #[arg(long, value_name = "SIZE")]
    pub(crate) cache_size: Option<ByteSize>,

    /// Bound on the daemon's memory [default: 1GiB].
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_cap: Option<ByteSize>,

    /// How long an acknowledged write may wait before it is sent to the store: 500ms, 30s, 2m [default: 10s].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) store_lag: Option<Duration>,

    /// How long after a start guests may take to come back, before their volumes are taken back, shrunk or deleted [default: 3s].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) reconnect_wait: Option<Duration>,

    /// Loopback address for Prometheus, as 127.0.0.1:9603; serves /metrics only.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics_listen: Option<SocketAddr>,

    /// What to log: error, warn, info, debug, trace, or directives as in RUST_LOG [default: info].
    #[arg(long, value_name = "LEVEL", env = "RUST_LOG")]
    pub(crate) log: Option<String>,

    /// How to log, on stderr [default: text].
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,

    /// Print the names for LAMINA_FAILPOINT and exit.
    #[arg(long, hide = true)]
    pub(crate) list_failpoints: bool,
}
