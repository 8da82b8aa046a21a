//! The state directory: where what lies, and the lock that lets one daemon at a time have it.
//!
//! The lock is the kernel's, on a file that names the holder: it goes with the process, however that ends, and the file stays.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::settings::Settings;

/// Why the state cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// Another daemon has it.
    #[error("the state in {} is in use by another laminad{}: stop that one first, or choose another --state-dir", dir.display(), holder(*pid))]
    InUse {
        dir: PathBuf,
        /// Whose, if the file says.
        pid: Option<u32>,
    },
    /// The system's error.
    #[error("{} {}", doing, path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// The state, ours while this lives.
#[derive(Debug)]
pub(crate) struct StateDir {
    _lock: File,
    meta: PathBuf,
    audit: PathBuf,
    api_socket: PathBuf,
    vhost: PathBuf,
}

impl StateDir {
    /// Makes the directories that are missing, and takes the lock.
    pub(crate) fn take(settings: &Settings) -> Result<Self, StateError> {
        let state = &settings.state_dir;
        make(state, 0o755)?;
        let lock = lock(state)?;
        let meta = state.join("meta");
        make(&meta, 0o750)?;
        let audit = state.join("audit");
        make(&audit, 0o750)?;
        make(&settings.journal_dir, 0o750)?;
        make(&settings.cache_dir, 0o750)?;
        make(&settings.runtime_dir, 0o755)?;
        let vhost = settings.runtime_dir.join("vhost");
        make(&vhost, 0o750)?;
        Ok(Self { _lock: lock, meta, audit, api_socket: settings.runtime_dir.join("lamina.sock"), vhost })
    }

    /// Where the registry's two copies lie.
    pub(crate) fn registry(&self) -> PathBuf {
        self.meta.join("registry")
    }

    /// Local copies of map pages.
    pub(crate) fn pages(&self) -> PathBuf {
        self.meta.join("pages")
    }

    /// The pool's roster.
    pub(crate) fn pool_file(&self) -> PathBuf {
        self.meta.join("pool")
    }

    /// Where the audit log lies.
    pub(crate) fn audit(&self) -> &Path {
        &self.audit
    }

    /// Small things that must survive.
    pub(crate) fn documents(&self) -> PathBuf {
        self.meta.join("documents")
    }

    /// Volumes that shall not be attached.
    pub(crate) fn detached_file(&self) -> PathBuf {
        self.meta.join("detached.json")
    }

    /// The local socket of the interface.
    pub(crate) fn api_socket(&self) -> &Path {
        &self.api_socket
    }

    /// Where volumes' sockets are.
    pub(crate) fn vhost(&self) -> &Path {
        &self.vhost
    }
}

fn make(path: &Path, mode: u32) -> Result<(), StateError> {
    let failed = |doing| move |cause| StateError::Io { doing, path: path.to_owned(), cause };
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed("cannot make the directory"))?;
    // What lies in it is made durable by whoever writes it; its own name here.
    let parent = path.parent().unwrap_or(path);
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed("cannot make durable the name of"))
}

fn lock(dir: &Path) -> Result<File, StateError> {
    let path = dir.join("laminad.lock");
    let failed = |doing| {
        let path = path.clone();
        move |cause| StateError::Io { doing, path, cause }
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(&path)
        .map_err(failed("cannot open the lock"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // A holder that has not written its number yet is still a holder.
            let pid = (&mut file).take(32).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(StateError::InUse { dir: dir.to_owned(), pid });
        }
        Err(errno) => return Err(failed("cannot take the lock")(errno.into())),
    }
    let written = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
    written.and_then(|_| writeln!(file, "{}", std::process::id())).map_err(failed("cannot write the lock"))?;
    Ok(file)
}
