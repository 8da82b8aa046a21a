//! Where things are: the binaries under test, the guest's kernel, and directories for one test each.
//!
//! `LAMINA_BIN_DIR` names the directory of `laminad` and `lamina`; without it they are looked for beside the running test or
//! program. `LAMINA_TEST_DIR` names where test directories are made; without it the system's temporary directory. Names are
//! kept short because a Unix socket's path holds 107 bytes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use rustix::fs::{FlockOperation, flock};

use crate::cleanup::{self, Ticket};
use crate::error::HarnessError;

/// The path of a binary of this workspace.
///
/// # Errors
/// [`HarnessError::Missing`] with the command that builds it.
pub fn binary(name: &str) -> Result<PathBuf, HarnessError> {
    let directory = match std::env::var_os("LAMINA_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let exe = std::env::current_exe().map_err(HarnessError::file("find", "the running program"))?;
            let beside = exe.parent().unwrap_or(Path::new("/"));
            // Tests live in `deps`, one below the binaries.
            if beside.file_name().is_some_and(|name| name == "deps") { beside.parent().unwrap_or(beside) } else { beside }
                .to_owned()
        }
    };
    let path = directory.join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(HarnessError::Missing {
            what: "a binary under test",
            path,
            advice: "build it with `cargo build -p laminad -p lamina-cli` (add --release if this program was), or set LAMINA_BIN_DIR",
        })
    }
}

/// The directory that `tests/install-packages.sh` fills: `LAMINA_ASSETS` or `.assets` at the workspace's root.
#[must_use]
pub fn assets() -> PathBuf {
    std::env::var_os("LAMINA_ASSETS").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.assets"), PathBuf::from)
}

/// Where test directories are made.
#[must_use]
pub fn test_root() -> PathBuf {
    std::env::var_os("LAMINA_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// What test directories' names begin with.
const PREFIX: &str = "lam";
/// The file in a test directory that its owner holds locked.
const OWNED: &str = ".place";

/// A directory of one test's own, removed when dropped, also on interruption. What a test left that was killed is removed when
/// the next one makes its own: the lock on it is gone.
#[derive(Debug)]
pub struct Place {
    directory: Option<tempfile::TempDir>,
    path: PathBuf,
    _lock: File,
    _ticket: Ticket,
}

impl Place {
    /// Makes an empty directory under [`test_root`].
    ///
    /// # Errors
    /// [`HarnessError::File`].
    pub fn new() -> Result<Self, HarnessError> {
        static SWEPT: Once = Once::new();
        let root = test_root();
        SWEPT.call_once(|| sweep(&root));
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .rand_bytes(6)
            .tempdir_in(&root)
            .map_err(HarnessError::file("make a directory in", &root))?;
        let path = directory.path().to_owned();
        let lock = own(&path).map_err(HarnessError::file("lock", &path))?;
        let ticket = cleanup::directory(&path);
        Ok(Self { directory: Some(directory), path, _lock: lock, _ticket: ticket })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes (or finds) a directory in it.
    ///
    /// # Errors
    /// [`HarnessError::File`].
    pub fn subdirectory(&self, name: &str) -> Result<PathBuf, HarnessError> {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path).map_err(HarnessError::file("make", &path))?;
        Ok(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // `LAMINA_KEEP` leaves the directory for somebody who wants to look at what a failed test left.
        if std::env::var_os("LAMINA_KEEP").is_some()
            && std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            let _ = std::fs::remove_file(self.path.join(OWNED));
            eprintln!("kept {}", directory.keep().display());
        }
    }
}

/// Locks a file in the directory; it gets its name when it is locked already.
fn own(directory: &Path) -> std::io::Result<File> {
    let making = directory.join(".making");
    let file = File::create(&making)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    std::fs::rename(making, directory.join(OWNED))?;
    Ok(file)
}

/// Removes directories whose owners are gone. What cannot be removed stays.
fn sweep(root: &Path) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(file) = File::open(path.join(OWNED)) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            unmount_below(&path);
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

fn unmount_below(directory: &Path) {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    // The one mounted last comes off first.
    for at in mounts.lines().rev().filter_map(|line| line.split_whitespace().nth(1)) {
        if Path::new(at).starts_with(directory) {
            let _ = Command::new("umount").args(["-l", "-d", at]).status();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{OWNED, Place, own, sweep};

    #[test]
    fn what_a_killed_test_left_is_removed_and_what_is_in_use_is_not() {
        let root = Place::new().expect("a directory");
        let (left, used, other) = (root.path().join("lamleft"), root.path().join("lamused"), root.path().join("lambda"));
        for directory in [&left, &used, &other] {
            std::fs::create_dir(directory).expect("made");
        }
        drop(own(&left).expect("locked, then gone"));
        let held = own(&used).expect("locked");
        sweep(root.path());
        assert!(!left.exists() && used.join(OWNED).exists() && other.exists());
        drop(held);
    }
}
