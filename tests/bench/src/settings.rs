//! What was asked for on the command line, and what follows from it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::contender::Sizes;

/// Compares Lamina with qemu-storage-daemon and checks its bounds. Build the binaries first, in release: see `make bench`.
#[derive(Debug, Clone, Parser)]
#[command(name = "lamina-bench")]
pub(crate) struct Settings {
    /// Short runs and small sets: shows that everything works, its figures say little.
    #[arg(long)]
    pub(crate) quick: bool,

    /// Only these groups: limits, writes, reads, sequential, sixteen, storm, sustained, idle, bounds, volumes, clients, and
    /// control (a file against itself, only when asked for). May be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,

    /// Rounds of each comparison [default: 5; quick: 1].
    #[arg(long, value_name = "N")]
    pub(crate) rounds: Option<usize>,

    /// Write everything as JSON too.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// The client spins on the ring instead of sleeping (takes a whole core).
    #[arg(long)]
    pub(crate) poll: bool,

    /// The child's side of `bounds`.
    #[arg(long, hide = true, requires = "bounds_directory")]
    pub(crate) bounds_part: Option<String>,

    /// Where the child keeps its node.
    #[arg(long, hide = true)]
    pub(crate) bounds_directory: Option<PathBuf>,

    /// How many blocks it writes.
    #[arg(long, hide = true, default_value_t = 0)]
    pub(crate) bounds_writes: u64,
}

impl Settings {
    pub(crate) fn wants(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == group)
    }

    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 })
    }

    pub(crate) fn burst(&self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { 5 })
    }

    pub(crate) fn warm_up(&self) -> Duration {
        Duration::from_millis(if self.quick { 100 } else { 300 })
    }

    /// A burst of 5 s at 200,000 writes of 4 KiB is 4 GiB: the journal holds that below its high-water mark.
    pub(crate) fn sizes(&self) -> Sizes {
        if self.quick {
            Sizes { disk: 512 << 20, set: 256 << 20, journal: 2 << 30, cache: 1 << 30, memory: 1 << 30 }
        } else {
            Sizes { disk: 4 << 30, set: 1 << 30, journal: 8 << 30, cache: 4 << 30, memory: 2 << 30 }
        }
    }
}
