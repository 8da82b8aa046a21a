//! Where things are: the binaries under test, the guest's kernel, and directories for one test each.
//!
//! `LAMINA_BIN_DIR` names the directory of `laminad` and `lamina`; without it they are looked for beside the running test or
//! program. `LAMINA_TEST_DIR` names where test directories are made; without it the system's temporary directory. Names are
//! kept short because a Unix socket's path holds 107 bytes.

use std::path::{Path, PathBuf};

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
pub(crate) fn assets() -> PathBuf {
    std::env::var_os("LAMINA_ASSETS").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.assets"), PathBuf::from)
}

/// Where test directories are made.
#[must_use]
pub fn test_root() -> PathBuf {
    std::env::var_os("LAMINA_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// A directory of one test's own, removed when dropped, also on interruption.
#[derive(Debug)]
pub struct Place {
    directory: Option<tempfile::TempDir>,
    path: PathBuf,
    _ticket: Ticket,
}

impl Place {
    /// Makes an empty directory under [`test_root`].
    ///
    /// # Errors
    /// [`HarnessError::File`].
    pub fn new() -> Result<Self, HarnessError> {
        let root = test_root();
        let directory = tempfile::Builder::new()
            .prefix("lam")
            .rand_bytes(6)
            .tempdir_in(&root)
            .map_err(HarnessError::file("make a directory in", &root))?;
        let path = directory.path().to_owned();
        let ticket = cleanup::directory(&path);
        Ok(Self { directory: Some(directory), path, _ticket: ticket })
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
            eprintln!("kept {}", directory.keep().display());
        }
    }
}
