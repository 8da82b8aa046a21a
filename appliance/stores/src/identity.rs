//! Whether a directory is a drive of ours, and the only way to make it one.
//!
//! A drive's root holds `lamina-drive` (who it is), `lamina-pool` (which drives its pool has), `objects/` and `temporary/`.
//! A claim cut short leaves at most empty `objects/` and `temporary/`: that still counts as blank.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use lamina_formats::FormatError;
use lamina_formats::drive::{DriveIdentity, PoolId, PoolRoster};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::vectored::{read_vec_at, write_all_at};

pub(crate) const IDENTITY: &str = "lamina-drive";
pub(crate) const ROSTER: &str = "lamina-pool";
pub(crate) const OBJECTS: &str = "objects";
pub(crate) const TEMPORARY: &str = "temporary";

/// No identity or roster is longer: 48 bytes and 4096 members of 16.
const FILE_MAX: u64 = 128 << 10;

/// What a directory turned out to be.
#[derive(Debug)]
pub enum DriveState {
    /// There is no such directory.
    Missing,
    /// Nothing is in it (but perhaps `lost+found`): may be claimed.
    Blank,
    /// Somebody's files and no identity: must not be touched.
    Foreign,
    /// There is an identity that does not verify.
    Damaged {
        /// Why.
        cause: FormatError,
    },
    /// A drive that was claimed.
    Ours {
        /// Who it is.
        identity: DriveIdentity,
    },
}

/// Why a drive cannot be opened or claimed.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// No such directory.
    #[error("the directory does not exist: is the drive plugged in and mounted?")]
    Missing,
    /// An empty directory: a new drive, or a mount point whose drive is not mounted.
    #[error("the directory is empty: a new drive must be claimed first (or its file system is not mounted)")]
    Blank,
    /// It holds something else.
    #[error("the directory holds files that are not Lamina's: refusing to touch it")]
    Foreign,
    /// Its identity does not verify.
    #[error("the drive's identity file is damaged")]
    Damaged {
        /// Why.
        #[source]
        cause: FormatError,
    },
    /// Claimed already.
    #[error("the drive is claimed already (drive {}, pool {})", identity.drive, identity.pool)]
    Claimed {
        /// Who it is.
        identity: DriveIdentity,
    },
    /// It belongs to another pool.
    #[error("the drive belongs to another pool ({found}, expected {expected})")]
    OtherPool {
        /// Whose it is.
        found: PoolId,
        /// Whose it should be.
        expected: PoolId,
    },
    /// Another process serves it.
    #[error("the drive is in use by another process")]
    InUse,
    /// The system's error.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
}

pub(crate) fn io_error<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> DriveError {
    move |cause| DriveError::Io { doing, cause: cause.into() }
}

pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Looks at `path` without changing anything.
///
/// # Errors
/// [`DriveError::Io`] when even looking fails (EIO, no permission).
pub fn inspect(path: &Path) -> Result<DriveState, DriveError> {
    let root = match open_directory(path) {
        Ok(root) => root,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(DriveState::Missing),
        Err(errno) => return Err(io_error("opening the drive's directory")(errno)),
    };
    inspect_root(&root)
}

fn inspect_root(root: &OwnedFd) -> Result<DriveState, DriveError> {
    match read_small(root, IDENTITY)? {
        Some(bytes) => Ok(match DriveIdentity::decode(&bytes) {
            Ok(identity) => DriveState::Ours { identity },
            Err(cause) => DriveState::Damaged { cause },
        }),
        None if holds_nothing(root)? => Ok(DriveState::Blank),
        None => Ok(DriveState::Foreign),
    }
}

/// Makes a blank directory a drive, durably: after this returned it is one whatever happens.
///
/// # Errors
/// What the directory is instead of blank, or the system's error (then it is still blank or already claimed).
pub fn claim(path: &Path, identity: &DriveIdentity) -> Result<(), DriveError> {
    let root = match open_directory(path) {
        Ok(root) => root,
        Err(Errno::NOENT | Errno::NOTDIR) => return Err(DriveError::Missing),
        Err(errno) => return Err(io_error("opening the drive's directory")(errno)),
    };
    // Two claims at once: the second waits here no longer than it takes to say so.
    match rustix::fs::flock(&root, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(DriveError::InUse),
        Err(errno) => return Err(io_error("locking the drive")(errno)),
    }
    match inspect_root(&root)? {
        DriveState::Blank => {}
        DriveState::Missing => return Err(DriveError::Missing),
        DriveState::Foreign => return Err(DriveError::Foreign),
        DriveState::Damaged { cause } => return Err(DriveError::Damaged { cause }),
        DriveState::Ours { identity } => return Err(DriveError::Claimed { identity }),
    }
    make_directories(&root)?;
    write_durably(&root, IDENTITY, &identity.encode())
}

/// `objects/` and `temporary/`, durably.
pub(crate) fn make_directories(root: &OwnedFd) -> Result<(), DriveError> {
    for name in [OBJECTS, TEMPORARY] {
        match rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(io_error("making the drive's directories")(errno)),
        }
    }
    rustix::fs::fsync(root).map_err(io_error("syncing the drive's directory"))
}

/// Writes a small file aside, syncs it, renames it into place, syncs the directory: whole or absent (or the old one) after a crash.
pub(crate) fn write_durably(directory: impl AsFd, name: &str, bytes: &[u8]) -> Result<(), DriveError> {
    let aside = format!(".{name}.new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory, aside.as_str(), flags, Mode::from_raw_mode(0o640))
        .map_err(io_error("creating an identity file"))?;
    write_all_at(&file, 0, &[io::IoSlice::new(bytes)]).map_err(io_error("writing an identity file"))?;
    rustix::fs::fdatasync(&file).map_err(io_error("syncing an identity file"))?;
    rustix::fs::renameat(&directory, aside.as_str(), &directory, name).map_err(io_error("naming an identity file"))?;
    rustix::fs::fsync(&directory).map_err(io_error("syncing a directory"))
}

/// A small file's bytes; `None` when it is not there.
pub(crate) fn read_small(directory: impl AsFd, name: &str) -> Result<Option<Vec<u8>>, DriveError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&directory, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(io_error("opening an identity file")(errno)),
    };
    let len = rustix::fs::fstat(&file).map_err(io_error("reading an identity file"))?.st_size as u64;
    // A longer one is none of ours; its beginning will not verify.
    read_vec_at(&file, 0, len.min(FILE_MAX) as usize).map(Some).map_err(io_error("reading an identity file"))
}

/// The roster that the drive at `root` carries; a damaged one counts as none, for its copies will do.
pub(crate) fn read_roster(root: impl AsFd) -> Result<Option<PoolRoster>, DriveError> {
    Ok(read_small(root, ROSTER)?.and_then(|bytes| match PoolRoster::decode(&bytes) {
        Ok(roster) => Some(roster),
        Err(cause) => {
            tracing::warn!(%cause, "a pool roster does not verify: another copy must do");
            None
        }
    }))
}

/// Blank, or what a claim that was cut short leaves.
fn holds_nothing(root: &OwnedFd) -> Result<bool, DriveError> {
    let unfinished = format!(".{IDENTITY}.new");
    for entry in Dir::read_from(root).map_err(io_error("listing the drive"))? {
        let entry = entry.map_err(io_error("listing the drive"))?;
        match entry.file_name().to_bytes() {
            b"." | b".." | b"lost+found" => {}
            name if name == unfinished.as_bytes() => {}
            name if name == OBJECTS.as_bytes() || name == TEMPORARY.as_bytes() => {
                let stat = rustix::fs::statat(root, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(io_error("listing the drive"))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory || !is_empty(root, entry.file_name())? {
                    return Ok(false);
                }
            }
            _ => return Ok(false),
        }
    }
    Ok(true)
}

fn is_empty(root: &OwnedFd, name: &std::ffi::CStr) -> Result<bool, DriveError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(root, name, flags, Mode::empty()).map_err(io_error("listing the drive"))?;
    for entry in Dir::read_from(&directory).map_err(io_error("listing the drive"))? {
        let entry = entry.map_err(io_error("listing the drive"))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Opens the identity file and takes the drive for this process; dropping the file gives it back.
pub(crate) fn lock(root: &OwnedFd) -> Result<File, DriveError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(root, IDENTITY, flags, Mode::empty()).map_err(io_error("opening the drive's identity"))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(File::from(file)),
        Err(Errno::WOULDBLOCK) => Err(DriveError::InUse),
        Err(errno) => Err(io_error("locking the drive")(errno)),
    }
}
