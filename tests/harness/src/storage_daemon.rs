//! `qemu-storage-daemon` as the other implementation: the baseline of the benchmark, and what proves the client itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lamina_contract::units::ByteSize;

use crate::error::HarnessError;
use crate::process::Process;

/// How the file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Through the page cache.
    Cached,
    /// `O_DIRECT`.
    Direct,
}

/// What keeps the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// A preallocated raw file, io_uring.
    Raw(Cache),
    /// A qcow2 file (metadata preallocated), io_uring.
    Qcow2(Cache),
    /// No medium at all: reads give zeros.
    Null,
}

/// A running server of one disk or several.
#[derive(Debug)]
pub struct StorageDaemon {
    process: Process,
    sockets: Vec<PathBuf>,
}

impl StorageDaemon {
    /// Makes the backing file `name` in `directory` unless it exists, and serves it at `directory/name.sock`.
    ///
    /// # Errors
    /// When QEMU's tools are missing or refuse.
    pub fn start(directory: &Path, name: &str, size: ByteSize, backing: Backing) -> Result<Self, HarnessError> {
        Self::start_many(directory, &[name.to_owned()], size, backing)
    }

    /// Like [`StorageDaemon::start`] with a disk for each name, all of one process.
    ///
    /// # Errors
    /// When QEMU's tools are missing or refuse.
    pub fn start_many(directory: &Path, names: &[String], size: ByteSize, backing: Backing) -> Result<Self, HarnessError> {
        let mut command = Command::new("qemu-storage-daemon");
        let mut sockets = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let socket = directory.join(format!("{name}.sock"));
            let node = node(&directory.join(name), index, size, backing)?;
            let address = format!("addr.type=unix,addr.path={}", socket.display());
            let export = format!("type=vhost-user-blk,id=e{index},{address},node-name=disk{index},writable=on,num-queues=4");
            command.arg("--blockdev").arg(node).arg("--export").arg(export);
            sockets.push(socket);
        }
        let mut daemon = Self { process: Process::spawn("qemu-storage-daemon", command)?, sockets };
        daemon.wait_for_sockets()?;
        Ok(daemon)
    }

    /// Serves `count` qcow2 overlays of one raw file, made anew in `directory`: `overlay0`, `overlay1`, … The file is opened once for all.
    ///
    /// # Errors
    /// When QEMU's tools are missing or refuse.
    pub fn start_overlays(directory: &Path, base: &Path, count: usize, cache: Cache) -> Result<Self, HarnessError> {
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--blockdev").arg(format!("driver=raw,node-name=base,read-only=on,{}", protocol(base, cache)));
        let mut sockets = Vec::new();
        for index in 0..count {
            let (file, socket) = (directory.join(format!("overlay{index}")), directory.join(format!("overlay{index}.sock")));
            overlay(&file, base)?;
            let node = format!("driver=qcow2,node-name=disk{index},discard=unmap,backing=base,{}", protocol(&file, cache));
            let address = format!("addr.type=unix,addr.path={}", socket.display());
            let export = format!("type=vhost-user-blk,id=e{index},{address},node-name=disk{index},writable=on,num-queues=1");
            command.arg("--blockdev").arg(node).arg("--export").arg(export);
            sockets.push(socket);
        }
        let mut daemon = Self { process: Process::spawn("qemu-storage-daemon", command)?, sockets };
        daemon.wait_for_sockets()?;
        Ok(daemon)
    }

    fn wait_for_sockets(&mut self) -> Result<(), HarnessError> {
        let limit = Duration::from_secs(30);
        let until = Instant::now() + limit;
        let (program, waiting_for) = ("qemu-storage-daemon".to_owned(), "socket".to_owned());
        while !self.sockets.iter().all(|socket| socket.exists()) {
            if let Some(status) = self.process.ended() {
                std::thread::sleep(Duration::from_millis(20));
                return Err(HarnessError::Ended { program, status: status.to_string(), waiting_for, log: self.process.log_tail() });
            }
            if Instant::now() > until {
                return Err(HarnessError::Late { program, waiting_for, limit, log: self.process.log_tail() });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Where the first disk is served.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.sockets[0]
    }

    /// Where the disks are served, in the order of their names.
    #[must_use]
    pub fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }
}

fn node(file: &Path, index: usize, size: ByteSize, backing: Backing) -> Result<String, HarnessError> {
    Ok(match backing {
        Backing::Null => format!("driver=null-co,node-name=disk{index},size={},read-zeroes=on", size.0),
        Backing::Raw(cache) => {
            preallocate(file, size)?;
            format!("driver=raw,node-name=disk{index},discard=unmap,{}", protocol(file, cache))
        }
        Backing::Qcow2(cache) => {
            if !file.exists() {
                image(file, size)?;
            }
            format!("driver=qcow2,node-name=disk{index},discard=unmap,{}", protocol(file, cache))
        }
    })
}

fn protocol(file: &Path, cache: Cache) -> String {
    let direct = if cache == Cache::Direct { "on" } else { "off" };
    format!("file.driver=file,file.filename={},file.aio=io_uring,file.cache.direct={direct},cache.direct={direct}", file.display())
}

fn preallocate(file: &Path, size: ByteSize) -> Result<(), HarnessError> {
    let open = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(file)
        .map_err(HarnessError::file("make", file))?;
    rustix::fs::fallocate(&open, rustix::fs::FallocateFlags::empty(), 0, size.0).map_err(|errno| HarnessError::File {
        doing: "preallocate",
        path: file.to_owned(),
        cause: errno.into(),
    })
}

fn image(file: &Path, size: ByteSize) -> Result<(), HarnessError> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"]).arg(file).arg(size.0.to_string());
    make(command)
}

fn overlay(file: &Path, base: &Path) -> Result<(), HarnessError> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(base).arg(file);
    make(command)
}

fn make(mut command: Command) -> Result<(), HarnessError> {
    let made = command.output().map_err(|cause| HarnessError::Program { doing: "run", program: "qemu-img".to_owned(), cause })?;
    if made.status.success() {
        Ok(())
    } else {
        let message = String::from_utf8_lossy(&made.stderr).into_owned();
        Err(HarnessError::Refused { command: format!("{command:?}"), code: made.status.code().unwrap_or(-1), message })
    }
}
