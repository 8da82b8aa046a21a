//! Who is compared: Lamina with a store behind it, and `qemu-storage-daemon` with a file, on the same disk.
//!
//! A contender is settled before each measurement: Lamina has everything stored behind, and the page cache is written back for
//! all of them, so that nobody pays for the one before.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lamina_contract::units::ByteSize;
use lamina_harness::{Backing, Cache, Daemon, DaemonOptions, HarnessError, StorageDaemon, process_use};
use lamina_journeys::{counter, drain, wait_attached};

use crate::load::fill;

/// The store has to catch up with a burst of gigabytes on a disk that others use too.
const DRAIN_WITHIN: Duration = Duration::from_secs(300);

/// Which contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Lamina over six drives, 4+2.
    Lamina,
    /// Lamina over a single directory, 1+0.
    LaminaSingle,
    /// A raw file through the page cache.
    RawCached,
    /// A raw file, O_DIRECT.
    RawDirect,
    /// A qcow2 file, O_DIRECT.
    QcowDirect,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lamina => "lamina 4+2",
            Self::LaminaSingle => "lamina 1+0",
            Self::RawCached => "raw cached",
            Self::RawDirect => "raw direct",
            Self::QcowDirect => "qcow2 direct",
        }
    }
}

/// Sizes of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Each disk.
    pub(crate) disk: u64,
    /// The part of it that is written before and touched by the loads.
    pub(crate) set: u64,
    pub(crate) journal: u64,
    pub(crate) cache: u64,
    pub(crate) memory: u64,
}

/// Counters of a server at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Used {
    pub(crate) cpu: Duration,
    /// How full its journal is, 0 to 1.
    pub(crate) journal: f64,
    /// Bytes that its process wrote to files of any kind.
    pub(crate) written: u64,
    /// Of these, to the drives of the store.
    pub(crate) to_drives: u64,
}

enum Server {
    Lamina { daemon: Box<Daemon>, names: Vec<String>, generation: u32 },
    Qemu(StorageDaemon),
}

/// A running server with its disks.
pub(crate) struct Contender {
    pub(crate) kind: Kind,
    server: Server,
    sockets: Vec<PathBuf>,
    sizes: Sizes,
}

impl Contender {
    /// Starts it in a directory of its own with `disks` disks whose sets are written.
    pub(crate) fn start(root: &Path, kind: Kind, disks: usize, sizes: Sizes) -> Result<Self, HarnessError> {
        let directory = root.join(kind.name().replace([' ', '+'], "-"));
        std::fs::create_dir_all(&directory).map_err(HarnessError::file("make", &directory))?;
        let server = match kind {
            Kind::Lamina => Self::lamina(&directory, 6, "4+2", sizes, &[])?,
            Kind::LaminaSingle => Self::lamina(&directory, 1, "1+0", sizes, &[])?,
            Kind::RawCached => Self::qemu(&directory, disks, sizes, Backing::Raw(Cache::Cached))?,
            Kind::RawDirect => Self::qemu(&directory, disks, sizes, Backing::Raw(Cache::Direct))?,
            Kind::QcowDirect => Self::qemu(&directory, disks, sizes, Backing::Qcow2(Cache::Direct))?,
        };
        let mut new = Self { kind, server, sockets: Vec::new(), sizes };
        new.make_disks(disks)?;
        Ok(new)
    }

    /// Lamina over six drives with changed options and one disk whose set is written.
    pub(crate) fn lamina_with(root: &Path, sizes: Sizes, extra: &[&str]) -> Result<Self, HarnessError> {
        let server = Self::lamina(root, 6, "4+2", sizes, extra)?;
        let mut new = Self { kind: Kind::Lamina, server, sockets: Vec::new(), sizes };
        new.make_disks(1)?;
        Ok(new)
    }

    fn lamina(directory: &Path, drives: usize, policy: &str, sizes: Sizes, extra: &[&str]) -> Result<Server, HarnessError> {
        let mut options = DaemonOptions::with_drives(directory, drives, policy)?;
        options.journal = Some(ByteSize(sizes.journal));
        options.cache = Some(ByteSize(sizes.cache));
        options.memory = Some(ByteSize(sizes.memory));
        options.extra = extra.iter().map(|word| (*word).to_owned()).collect();
        Ok(Server::Lamina { daemon: Box::new(Daemon::start(options)?), names: Vec::new(), generation: 0 })
    }

    fn qemu(directory: &Path, disks: usize, sizes: Sizes, backing: Backing) -> Result<Server, HarnessError> {
        let names: Vec<String> = (0..disks).map(|number| format!("disk{number}")).collect();
        Ok(Server::Qemu(StorageDaemon::start_many(directory, &names, ByteSize(sizes.disk), backing)?))
    }

    fn make_disks(&mut self, disks: usize) -> Result<(), HarnessError> {
        self.sockets = match &mut self.server {
            Server::Qemu(server) => server.sockets().to_vec(),
            Server::Lamina { daemon, names, generation } => {
                *generation += 1;
                *names = (0..disks).map(|number| format!("bench-{generation}-{number}")).collect();
                let mut sockets = Vec::new();
                for name in names.iter() {
                    let volume = daemon.create_volume(name, ByteSize(self.sizes.disk))?;
                    wait_attached(&volume.socket)?;
                    sockets.push(volume.socket);
                }
                sockets
            }
        };
        for (index, socket) in self.sockets.iter().enumerate() {
            fill(socket, self.sizes.set, 77 + index as u64)?;
        }
        self.settle()
    }

    /// Replaces Lamina's volumes by new ones with their sets written: a store without a scrubber only grows, and a run must not
    /// fill the disk. A file stays as it is.
    pub(crate) fn renew(&mut self) -> Result<(), HarnessError> {
        if let Server::Lamina { daemon, names, .. } = &self.server {
            let count = names.len();
            for name in names {
                daemon.cli(&["volume", "delete", name, "--yes"])?;
            }
            self.make_disks(count)?;
        }
        Ok(())
    }

    /// Waits until nothing is left to be done for what was measured before.
    pub(crate) fn settle(&self) -> Result<(), HarnessError> {
        if let Server::Lamina { daemon, names, .. } = &self.server {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            drain(daemon, &names, DRAIN_WITHIN)?;
        }
        write_back();
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    }

    pub(crate) fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    pub(crate) fn pid(&self) -> i32 {
        match &self.server {
            Server::Lamina { daemon, .. } => daemon.pid(),
            Server::Qemu(server) => server.pid(),
        }
    }

    /// Its counters now.
    pub(crate) fn used(&self) -> Result<Used, HarnessError> {
        let now = process_use(self.pid())?;
        let mut used = Used { cpu: now.cpu(), written: now.written, ..Used::default() };
        if let Server::Lamina { daemon, .. } = &self.server {
            let status = daemon.status()?;
            used.to_drives = counter(&status, &["store", "written_bytes"]);
            let journal = |what| counter(&status, &["journal", what]) as f64;
            used.journal = journal("used_bytes") / journal("capacity_bytes").max(1.0);
        }
        Ok(used)
    }
}

/// Writes back every dirty page of the machine.
pub(crate) fn write_back() {
    // SAFETY: sync takes nothing and cannot fail.
    unsafe { libc::sync() };
}

/// Empties the page cache. False where that is not allowed.
pub(crate) fn drop_caches() -> bool {
    write_back();
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}
