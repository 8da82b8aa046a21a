//! A `qemu-nbd` of our own for one image: reads and writes formats that we do not know ourselves, without a copy of the disk in between.
//!
//! Why not `qemu-img convert`: it wants a file that it can seek in, so each import and export would need the space of the whole disk once
//! more, and nothing could be said about its progress. The socket lies in a directory that nobody else may enter. The program ends when our
//! connection does, so nothing of it stays behind a kill either.

use std::fs::{self, DirBuilder};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::image::{Format, Image, ImageError, last_line, options, options_within};
use crate::nbd::{Nbd, NbdError};

const TOOL: &str = "qemu-nbd";
/// How long it may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How an image of ours is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// As it comes.
    Write,
    /// In clusters that are compressed.
    WriteCompressed,
}

/// The program and the connection to it.
#[derive(Debug)]
pub(crate) struct Served {
    nbd: Option<Nbd>,
    child: Child,
    file: PathBuf,
    dir: PathBuf,
}

impl Served {
    /// Serves `image` to be read, with what is behind it as it was found.
    pub(crate) fn reading(image: &Image) -> Result<Self, ImageError> {
        Self::start(&image.file, image.disk_bytes, |command| command.arg("--read-only").arg(image.node()))
    }

    /// Serves `file` to be written, which must be an image of a disk of at least `disk_bytes`.
    pub(crate) fn writing(file: &Path, format: Format, access: Access, disk_bytes: u64) -> Result<Self, ImageError> {
        Self::start(file, disk_bytes, |command| match access {
            Access::Write => command.args(["--discard=unmap", "--detect-zeroes=unmap", "--image-opts"]).arg(options(format, file)),
            Access::WriteCompressed => {
                command.arg("--image-opts").arg(format!("driver=compress,{}", options_within("file.", format, file)))
            }
        })
    }

    fn start(file: &Path, disk_bytes: u64, say: impl FnOnce(&mut Command) -> &mut Command) -> Result<Self, ImageError> {
        let dir = std::env::temp_dir().join(format!("lamina-{:016x}", rand::random::<u64>()));
        DirBuilder::new().mode(0o700).create(&dir).map_err(|cause| ImageError::File { doing: "make", file: dir.clone(), cause })?;
        let socket = dir.join("nbd.sock");
        let mut command = Command::new(TOOL);
        say(command.arg("--socket").arg(&socket));
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child = started.map_err(|cause| {
            // Nothing is in it.
            let _ = fs::remove_dir(&dir);
            ImageError::NoTool { tool: TOOL, cause }
        })?;
        let mut served = Self { nbd: None, child, file: file.to_owned(), dir };
        let small = NbdError::Protocol { what: "a smaller disk than the image is of" };
        let found = served.connect(&socket).and_then(|nbd| if nbd.size() < disk_bytes { Err(small) } else { Ok(nbd) });
        served.nbd = Some(found.map_err(|cause| ImageError::Nbd { file: file.to_owned(), cause })?);
        Ok(served)
    }

    fn connect(&mut self, socket: &Path) -> Result<Nbd, NbdError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match Nbd::connect(socket) {
                Err(NbdError::Io(_)) if Instant::now() < until => {}
                other => return other,
            }
            if self.child.try_wait()?.is_some() {
                return Err(NbdError::Ended { said: self.said() });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn said(&mut self) -> String {
        let mut text = Vec::new();
        if let Some(stderr) = &mut self.child.stderr {
            // What cannot be read was not said.
            let _ = stderr.read_to_end(&mut text);
        }
        last_line(&text)
    }

    fn with<T>(&mut self, what: impl FnOnce(&mut Nbd) -> Result<T, NbdError>) -> Result<T, ImageError> {
        let gone = NbdError::Protocol { what: "used after its end" };
        self.nbd.as_mut().map_or(Err(gone), what).map_err(|cause| ImageError::Nbd { file: self.file.clone(), cause })
    }

    /// Reads at `offset`.
    pub(crate) fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), ImageError> {
        self.with(|nbd| nbd.read(offset, into))
    }

    /// Writes at `offset`.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ImageError> {
        self.with(|nbd| nbd.write(offset, bytes))
    }

    /// Makes what was written durable and waits until the program has ended.
    pub(crate) fn finish(mut self) -> Result<(), ImageError> {
        let file = self.file.clone();
        let failed = |cause| ImageError::Nbd { file: file.clone(), cause };
        if let Some(nbd) = self.nbd.take() {
            nbd.finish().map_err(failed)?;
        }
        let until = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(_)) => return Err(failed(NbdError::Ended { said: self.said() })),
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
                Ok(None) => return Err(failed(NbdError::Protocol { what: "it does not end" })),
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.nbd = None;
        // After a finish it has ended already; else nothing of it is wanted any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
