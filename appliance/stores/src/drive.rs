//! One drive as an object store: a directory with an identity, in which every put is durable when it returns.
//!
//! ```text
//! <root>/lamina-drive   who it is (locked while open)      <root>/objects/<file>   one per object, named in `drive_names.rs`
//! <root>/lamina-pool    its pool's roster                  <root>/temporary/<n>    puts under way
//! ```
//!
//! Order of a put: write `temporary/<n>`, `fdatasync` it, rename it to the object's file, `fsync` that one's directory (one sync for
//! all who came into it meanwhile, `drive_sync.rs`) and every parent not known to be durable. A crash leaves the old object or the new
//! one, and at most a temporary file that the next open removes.
//! There is no lock around puts: many at once share the file system's group commit. Large ones go past the page cache (`direct.rs`).
//!
//! Everything goes through descriptors taken at open, and each operation first checks that the path still leads to that directory
//! and that the identity is still in it. A drive that was removed, unmounted or swapped gives [`FaultKind::Gone`]; nothing is
//! ever re-created behind its back. After a failed fsync nothing more is written (an fsync is never retried).

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use lamina_formats::drive::{DriveIdentity, PoolId};
use object_store::PutMode;
use object_store::path::Path;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use tokio::sync::Semaphore;

use crate::direct::write_new;
use crate::drive_names::{file_of, parents};
use crate::drive_read::e_tag;
use crate::drive_sync::SharedSyncs;
use crate::fault::{FaultKind, StoreFault};
use crate::identity::{self, DriveError, DriveState, IDENTITY, OBJECTS, TEMPORARY, io_error};

pub(crate) const STORE: &str = "drive";

/// Directories remembered as durable: a bound, not a limit; a forgotten one costs an extra fsync.
const DURABLE_MAX: usize = 4096;

/// Operations of one drive that may be under way at once: each takes a thread, which a drive that hangs does not give back.
pub const OPERATIONS: usize = 64;

/// A put and a delete may race for a directory: one makes it, the other removes it as empty.
const PLACE_ATTEMPTS: usize = 64;

/// One drive. Cheap to clone; the drive is given back when the last clone and the last operation are gone.
#[derive(Clone)]
pub struct DriveStore {
    pub(crate) drive: Arc<Drive>,
}

impl DriveStore {
    /// Looks at a directory without changing anything.
    ///
    /// # Errors
    /// [`DriveError::Io`] when even looking fails.
    pub fn inspect(path: &FsPath) -> Result<DriveState, DriveError> {
        identity::inspect(path)
    }

    /// Makes a blank directory a drive, durably.
    ///
    /// # Errors
    /// What it is instead of blank, or the system's error.
    pub fn claim(path: &FsPath, identity: &DriveIdentity) -> Result<(), DriveError> {
        identity::claim(path, identity)
    }

    /// Opens a drive of `pool`, takes it for this process, removes what puts that were cut short left.
    ///
    /// # Errors
    /// [`DriveError`] says what it is instead.
    pub fn open(path: &FsPath, pool: PoolId) -> Result<Self, DriveError> {
        Drive::open(path, pool).map(|drive| Self { drive: Arc::new(drive) })
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> DriveIdentity {
        self.drive.identity
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &FsPath {
        &self.drive.path
    }

    /// Bytes free and in all, as its file system says. Makes one system call.
    ///
    /// # Errors
    /// The system's error, or [`FaultKind::Gone`].
    pub fn space(&self) -> Result<DriveSpace, StoreFault> {
        self.drive.alive("asking for free space")?;
        let stat = rustix::fs::fstatvfs(&self.drive.objects).map_err(|e| StoreFault::new("asking for free space", e.into()))?;
        Ok(DriveSpace { free: stat.f_bavail.saturating_mul(stat.f_frsize), total: stat.f_blocks.saturating_mul(stat.f_frsize) })
    }
}

/// Space of a drive, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriveSpace {
    /// What may still be written.
    pub free: u64,
    /// Its size.
    pub total: u64,
}

impl fmt::Debug for DriveStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriveStore").field("path", &self.drive.path).field("drive", &self.drive.identity.drive).finish()
    }
}

impl fmt::Display for DriveStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "drive({})", self.drive.path.display())
    }
}

/// Why an operation did not happen, before it becomes the trait's error.
#[derive(Debug)]
pub(crate) enum Refusal {
    NotFound,
    Exists,
    Fault(StoreFault),
    Store(object_store::Error),
}

impl From<StoreFault> for Refusal {
    fn from(fault: StoreFault) -> Self {
        Self::Fault(fault)
    }
}

impl Refusal {
    pub(crate) fn into_store_error(self, key: &Path) -> object_store::Error {
        match self {
            Self::NotFound => {
                object_store::Error::NotFound { path: key.to_string(), source: Box::new(io::Error::from(Errno::NOENT)) }
            }
            Self::Exists => {
                object_store::Error::AlreadyExists { path: key.to_string(), source: Box::new(io::Error::from(Errno::EXIST)) }
            }
            Self::Fault(fault) => fault.into_store_error(STORE),
            Self::Store(error) => error,
        }
    }
}

pub(crate) fn fault(doing: &'static str) -> impl Fn(Errno) -> StoreFault {
    move |errno| StoreFault::new(doing, errno.into())
}

/// The blocking half: every method makes system calls and belongs on a blocking thread.
#[derive(Debug)]
pub(crate) struct Drive {
    path: PathBuf,
    identity: DriveIdentity,
    root: OwnedFd,
    root_place: (u64, u64),
    identity_place: (u64, u64),
    pub(crate) objects: OwnedFd,
    temporary: OwnedFd,
    /// Holds the lock.
    _lock: File,
    /// An fsync failed: nothing more is written.
    failed: AtomicBool,
    next_temporary: AtomicU64,
    durable: Mutex<Durable>,
    syncs: SharedSyncs<SyncError>,
    pub(crate) operations: Arc<Semaphore>,
}

/// What of syncing a directory failed.
#[derive(Debug, Clone, Copy)]
enum SyncError {
    Open(Errno),
    Sync(Errno),
}

/// Directories below `objects/` whose names, and whose parents' names, are durable.
///
/// One is taken out before it is removed, and none is put in while directories are being removed or after one was since the put
/// began: a name found here has not been replaced by a younger directory whose maker has not synced it yet.
#[derive(Debug, Default)]
struct Durable {
    names: HashSet<String>,
    /// Deletes that are removing directories now.
    removing: u32,
    /// Deletes that ever did.
    removals: u64,
}

fn place_of(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

impl Drive {
    fn open(path: &FsPath, pool: PoolId) -> Result<Self, DriveError> {
        let identity = match identity::inspect(path)? {
            DriveState::Ours { identity } => identity,
            DriveState::Missing => return Err(DriveError::Missing),
            DriveState::Blank => return Err(DriveError::Blank),
            DriveState::Foreign => return Err(DriveError::Foreign),
            DriveState::Damaged { cause } => return Err(DriveError::Damaged { cause }),
        };
        if identity.pool != pool {
            return Err(DriveError::OtherPool { found: identity.pool, expected: pool });
        }
        let root = identity::open_directory(path).map_err(io_error("opening the drive's directory"))?;
        let lock = identity::lock(&root)?;
        // Looked at by path before, locked by descriptor now: the same drive?
        match identity::read_small(&root, IDENTITY)?.map(|bytes| DriveIdentity::decode(&bytes)) {
            Some(Ok(again)) if again == identity => {}
            _ => return Err(DriveError::Missing),
        }
        identity::make_directories(&root)?;
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open_in = |name| rustix::fs::openat(&root, name, directory, Mode::empty()).map_err(io_error("opening the drive"));
        let objects = open_in(OBJECTS)?;
        let temporary = open_in(TEMPORARY)?;
        remove_leftovers(&temporary)?;
        let root_place = place_of(&rustix::fs::fstat(&root).map_err(io_error("looking at the drive"))?);
        let identity_place = place_of(&rustix::fs::fstat(&lock).map_err(io_error("looking at the drive"))?);
        Ok(Self {
            path: path.to_owned(),
            identity,
            root,
            root_place,
            identity_place,
            objects,
            temporary,
            _lock: lock,
            failed: AtomicBool::new(false),
            next_temporary: AtomicU64::new(1),
            durable: Mutex::default(),
            syncs: SharedSyncs::default(),
            operations: Arc::new(Semaphore::new(OPERATIONS)),
        })
    }

    /// The path still leads to the directory that was opened, and the identity is still in it: about 2 µs.
    pub(crate) fn alive(&self, doing: &'static str) -> Result<(), StoreFault> {
        let gone = |errno: Errno| match StoreFault::new(doing, errno.into()) {
            fault if fault.kind() == FaultKind::Device => fault,
            fault => StoreFault::of_kind(FaultKind::Gone, doing, io::Error::new(io::ErrorKind::NotConnected, fault)),
        };
        let at_path = rustix::fs::stat(&self.path).map_err(gone)?;
        let identity = rustix::fs::statat(&self.root, IDENTITY, AtFlags::SYMLINK_NOFOLLOW).map_err(gone)?;
        if place_of(&at_path) == self.root_place && place_of(&identity) == self.identity_place {
            Ok(())
        } else {
            Err(gone(Errno::NOENT))
        }
    }

    fn writable(&self, doing: &'static str) -> Result<(), StoreFault> {
        self.alive(doing)?;
        if self.failed.load(Ordering::Acquire) {
            let cause = io::Error::other("an earlier sync failed: the drive is not written to any more");
            return Err(StoreFault::of_kind(FaultKind::Device, doing, cause));
        }
        Ok(())
    }

    /// A failed sync fails the drive, unless it only lacks space: then nothing that matters was lost, for the put fails.
    fn synced(&self, doing: &'static str, result: Result<(), Errno>) -> Result<(), StoreFault> {
        result.map_err(|errno| {
            let found = sync_fault(doing, errno);
            if found.kind() != FaultKind::Full && !self.failed.swap(true, Ordering::AcqRel) {
                tracing::error!(drive = %self.identity.drive, path = %self.path.display(), %errno, "sync failed: the drive is set to failed");
            }
            found
        })
    }

    pub(crate) fn put(&self, key: &Path, chunks: &[Bytes], mode: &PutMode) -> Result<String, Refusal> {
        const DOING: &str = "writing an object";
        self.writable(DOING)?;
        let target = new_file_of(key)?;
        let (name, file) = self.temporary(DOING)?;
        let written = (|| {
            write_new(&file, chunks).map_err(|cause| StoreFault::new(DOING, cause))?;
            self.synced("syncing an object", rustix::fs::fdatasync(&file))?;
            let tag = e_tag(&rustix::fs::fstat(&file).map_err(fault(DOING))?);
            let removals = self.durable.lock().removals;
            self.place(&name, &target, matches!(mode, PutMode::Create))?;
            self.sync_name(&target, removals)?;
            Ok(tag)
        })();
        if written.is_err() {
            self.drop_temporary(&name);
        }
        written
    }

    pub(crate) fn copy(&self, from: &Path, to: &Path, create: bool) -> Result<(), Refusal> {
        const DOING: &str = "copying an object";
        self.writable(DOING)?;
        let (from, to) = (file_of(from).ok_or(Refusal::NotFound)?, new_file_of(to)?);
        // Objects are immutable files: a second name is a copy.
        let name = self.temporary_name();
        rustix::fs::linkat(&self.objects, &from, &self.temporary, name.as_str(), AtFlags::empty()).map_err(
            |errno| match errno {
                Errno::NOENT | Errno::NOTDIR | Errno::PERM => Refusal::NotFound,
                errno => Refusal::Fault(StoreFault::new(DOING, errno.into())),
            },
        )?;
        let removals = self.durable.lock().removals;
        let done = self.place(&name, &to, create).and_then(|()| Ok(self.sync_name(&to, removals)?));
        // Renaming one name of a file over another of the same file does nothing: the aside name stays.
        self.drop_temporary(&name);
        done
    }

    fn temporary_name(&self) -> String {
        format!("{:016x}", self.next_temporary.fetch_add(1, Ordering::Relaxed))
    }

    fn temporary(&self, doing: &'static str) -> Result<(String, OwnedFd), StoreFault> {
        let name = self.temporary_name();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(&self.temporary, name.as_str(), flags, Mode::from_raw_mode(0o640)).map_err(|errno| match errno {
                // `temporary/` itself was removed under us.
                Errno::NOENT => StoreFault::of_kind(FaultKind::Gone, doing, errno.into()),
                errno => StoreFault::new(doing, errno.into()),
            })?;
        Ok((name, file))
    }

    fn drop_temporary(&self, name: &str) {
        match rustix::fs::unlinkat(&self.temporary, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => tracing::warn!(%errno, name, "a temporary file stays until the drive is opened again"),
        }
    }

    /// Renames a temporary file to an object's, making directories on the way.
    fn place(&self, name: &str, file: &str, create: bool) -> Result<(), Refusal> {
        const DOING: &str = "naming an object";
        for _ in 0..PLACE_ATTEMPTS {
            self.make_parents(file)?;
            let renamed = if create {
                self.rename_if_absent(name, file)
            } else {
                rustix::fs::renameat(&self.temporary, name, &self.objects, file)
            };
            match renamed {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) if create => return Err(Refusal::Exists),
                // A delete removed the empty directory between the two calls, or the drive went.
                Err(Errno::NOENT) => self.alive(DOING)?,
                Err(errno) => return Err(StoreFault::new(DOING, errno.into()).into()),
            }
        }
        Err(StoreFault::new(DOING, io::ErrorKind::ResourceBusy.into()).into())
    }

    fn rename_if_absent(&self, name: &str, file: &str) -> Result<(), Errno> {
        match rustix::fs::renameat_with(&self.temporary, name, &self.objects, file, RenameFlags::NOREPLACE) {
            // File systems without it: a link never replaces either.
            Err(Errno::INVAL | Errno::NOSYS) => {
                rustix::fs::linkat(&self.temporary, name, &self.objects, file, AtFlags::empty())?;
                self.drop_temporary(name);
                Ok(())
            }
            other => other,
        }
    }

    fn make_parents(&self, file: &str) -> Result<(), StoreFault> {
        const DOING: &str = "making a directory";
        for directory in parents(file) {
            match rustix::fs::mkdirat(&self.objects, directory, Mode::from_raw_mode(0o750)) {
                Ok(()) => {
                    self.durable.lock().names.remove(directory);
                }
                Err(Errno::EXIST) => {}
                // A parent was removed as empty: the rename fails and makes another round; or `objects/` went.
                Err(Errno::NOENT) => return self.alive(DOING),
                Err(errno) => return Err(StoreFault::new(DOING, errno.into())),
            }
        }
        Ok(())
    }

    /// Makes the name durable: its directory, and each directory above that is not known to be.
    ///
    /// Runs after the rename, so that whatever directory the name is in now is the one that is synced. `removals` was read before.
    fn sync_name(&self, file: &str, removals: u64) -> Result<(), StoreFault> {
        let chain: Vec<&str> = parents(file).collect();
        let mut there = self.sync_directory(chain.last().copied())?;
        let mut fresh = Vec::new();
        for (depth, directory) in chain.iter().enumerate().rev() {
            if self.durable.lock().names.contains(*directory) {
                break;
            }
            there &= self.sync_directory(depth.checked_sub(1).and_then(|above| chain.get(above).copied()))?;
            fresh.push((*directory).to_owned());
        }
        if !there {
            return Ok(());
        }
        let mut durable = self.durable.lock();
        if durable.removing == 0 && durable.removals == removals {
            if durable.names.len() + fresh.len() > DURABLE_MAX {
                durable.names.clear();
            }
            durable.names.extend(fresh);
        }
        Ok(())
    }

    /// False when there is no such directory.
    fn sync_directory(&self, directory: Option<&str>) -> Result<bool, StoreFault> {
        const DOING: &str = "syncing a directory";
        let synced = self.syncs.sync(directory.unwrap_or_default(), || {
            // Those who waited for a sync that failed must not try again: the second one may be told nothing of what was lost.
            if self.failed.load(Ordering::Acquire) {
                return Err(SyncError::Sync(Errno::IO));
            }
            let opened = match directory {
                Some(directory) => Some(self.open_directory(directory).map_err(SyncError::Open)?),
                None => None,
            };
            rustix::fs::fsync(opened.as_ref().unwrap_or(&self.objects)).map_err(|errno| {
                // Said here, before anybody else may begin.
                let _ = self.synced(DOING, Err(errno));
                SyncError::Sync(errno)
            })
        });
        match synced {
            Ok(()) => Ok(true),
            // A delete that came after us took the object and its directory: there is nothing left to make durable.
            Err(SyncError::Open(Errno::NOENT)) => self.alive(DOING).map(|()| false),
            Err(SyncError::Open(errno)) => Err(StoreFault::new(DOING, errno.into())),
            Err(SyncError::Sync(errno)) => Err(sync_fault(DOING, errno)),
        }
    }

    fn open_directory(&self, directory: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.objects, directory, flags, Mode::empty())
    }

    /// Removes an object durably, and the directories that are empty then. A missing object is fine.
    pub(crate) fn delete(&self, key: &Path) -> Result<(), StoreFault> {
        const DOING: &str = "removing an object";
        self.writable(DOING)?;
        let Some(file) = file_of(key) else { return Ok(()) };
        let chain: Vec<&str> = parents(&file).collect();
        // By descriptor: by name a younger directory may be found later, and its sync says nothing about this one.
        let opened = self.open_chain(&chain).map_err(fault(DOING))?;
        let alone = {
            let mut durable = self.durable.lock();
            durable.removing += 1;
            durable.removals += 1;
            (durable.removing == 1).then_some(durable.removals)
        };
        let removed = match rustix::fs::unlinkat(&self.objects, &file, AtFlags::empty()) {
            // That a file is missing must be durable too: an earlier delete may have been cut short.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR | Errno::NAMETOOLONG) => self.remove_empty(&chain, alone),
            Err(errno) => Err(StoreFault::new(DOING, errno.into())),
        };
        self.durable.lock().removing -= 1;
        removed?;
        self.sync_lowest(&opened)
    }

    /// The directories of `chain` from the top, as far as they exist.
    fn open_chain(&self, chain: &[&str]) -> Result<Vec<OwnedFd>, Errno> {
        let mut opened = Vec::with_capacity(chain.len());
        for directory in chain {
            match self.open_directory(directory) {
                Ok(fd) => opened.push(fd),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(opened)
    }

    /// Makes it durable that names are gone from the lowest of the directories: it is synced, or, when it has been removed itself, by
    /// whomever, the lowest one above that is still there.
    fn sync_lowest(&self, opened: &[OwnedFd]) -> Result<(), StoreFault> {
        const DOING: &str = "syncing a directory";
        for directory in opened.iter().rev() {
            self.writable(DOING)?;
            self.synced(DOING, rustix::fs::fsync(directory))?;
            // Looked at after the sync: that of a directory which was removed meanwhile may have done nothing.
            if rustix::fs::fstat(directory).map_err(fault(DOING))?.st_nlink > 0 {
                return Ok(());
            }
        }
        self.alive(DOING)?;
        self.sync_directory(None).map(drop)
    }

    /// Removes the directories of `chain` from the bottom up while they are empty. `alone` is the number of this removal when no other
    /// one was under way as it began.
    fn remove_empty(&self, chain: &[&str], alone: Option<u64>) -> Result<(), StoreFault> {
        for directory in chain.iter().rev() {
            let known = self.durable.lock().names.remove(*directory);
            match rustix::fs::unlinkat(&self.objects, *directory, AtFlags::REMOVEDIR) {
                Ok(()) => {}
                // It was never there, or another delete was quicker.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => {
                    let mut durable = self.durable.lock();
                    // Nobody else can have removed it meanwhile, so it is still the one that was durable.
                    if known && alone == Some(durable.removals) {
                        durable.names.insert((*directory).to_owned());
                    }
                    return Ok(());
                }
                Err(errno) => return Err(StoreFault::new("removing an empty directory", errno.into())),
            }
        }
        Ok(())
    }
}

/// What a sync that failed means to whoever asked for it.
fn sync_fault(doing: &'static str, errno: Errno) -> StoreFault {
    let found = StoreFault::new(doing, errno.into());
    if found.kind() == FaultKind::Full { found } else { StoreFault::of_kind(FaultKind::Device, doing, errno.into()) }
}

/// The file that a put is to make.
fn new_file_of(key: &Path) -> Result<String, Refusal> {
    let refused =
        || Refusal::Store(object_store::Error::NotSupported { source: format!("no object of a drive is called {key:?}").into() });
    file_of(key).ok_or_else(refused)
}

fn remove_leftovers(temporary: &OwnedFd) -> Result<(), DriveError> {
    const DOING: &str = "removing what unfinished puts left";
    let mut removed = 0_u64;
    for entry in Dir::read_from(temporary).map_err(io_error(DOING))? {
        let entry = entry.map_err(io_error(DOING))?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::unlinkat(temporary, entry.file_name(), AtFlags::empty()) {
            Ok(()) => removed += 1,
            Err(Errno::NOENT | Errno::ISDIR) => {}
            Err(errno) => return Err(io_error(DOING)(errno)),
        }
    }
    if removed > 0 {
        tracing::info!(removed, "removed what unfinished puts left");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use bytes::Bytes;
    use lamina_contract::Timestamp;
    use lamina_formats::drive::{DriveId, DriveIdentity, PoolId};
    use object_store::PutMode;
    use tempfile::TempDir;

    use super::{DriveStore, OBJECTS};
    use crate::fault::FaultKind;

    fn claimed() -> (TempDir, DriveStore) {
        let top = tempfile::tempdir().expect("a directory");
        let identity = DriveIdentity { drive: DriveId(1), pool: PoolId(7), slot: 0, created: Timestamp(1) };
        DriveStore::claim(top.path(), &identity).expect("claimed");
        let store = DriveStore::open(top.path(), PoolId(7)).expect("opened");
        (top, store)
    }

    fn is_durable(store: &DriveStore, directory: &str) -> bool {
        store.drive.durable.lock().names.contains(directory)
    }

    fn put(store: &DriveStore, key: &str) {
        store.drive.put(&key.into(), &[Bytes::from_static(b"x")], &PutMode::Overwrite).expect("put");
    }

    #[test]
    fn a_delete_whose_directory_went_and_came_back_syncs_the_one_above() {
        let (top, store) = claimed();
        let objects = top.path().join(OBJECTS);
        std::fs::create_dir_all(objects.join("a/b/c")).expect("made");
        let opened = store.drive.open_chain(&["a", "a/b", "a/b/c", "a/b/c/d"]).expect("opened");
        assert_eq!(opened.len(), 3);
        // Another delete removes two of them, another put makes one again: that one is younger than the delete.
        std::fs::remove_dir(objects.join("a/b/c")).expect("removed");
        std::fs::remove_dir(objects.join("a/b")).expect("removed");
        std::fs::create_dir(objects.join("a/b")).expect("made");
        let links: Vec<_> = opened.iter().map(|fd| rustix::fs::fstat(fd).expect("looked at").st_nlink > 0).collect();
        assert_eq!(links, [true, false, false], "the lowest that is still there is `a`");
        store.drive.sync_lowest(&opened).expect("synced");
        // The drive itself gone is no success.
        std::fs::remove_dir_all(top.path()).expect("removed");
        assert!(store.drive.sync_lowest(&opened).is_err());
    }

    #[test]
    fn a_directory_stays_known_as_durable_while_only_its_files_go() {
        let (_top, store) = claimed();
        put(&store, "v/g/a/1");
        put(&store, "v/g/b/1");
        assert!(is_durable(&store, "v/g") && is_durable(&store, "v"));
        store.drive.delete(&"v/g/a/1".into()).expect("deleted");
        assert!(is_durable(&store, "v/g"), "or each delete would cost the next put two syncs");
        // Another delete under way may have removed it, and a put made it again.
        store.drive.durable.lock().removing += 1;
        put(&store, "v/g/c/1");
        store.drive.delete(&"v/g/c/1".into()).expect("deleted");
        assert!(!is_durable(&store, "v/g"));
        store.drive.durable.lock().removing -= 1;
        put(&store, "v/g/c/1");
        assert!(is_durable(&store, "v/g"));
        // Another one that began meanwhile, as it is found not empty.
        let before = store.drive.durable.lock().removals;
        store.drive.durable.lock().removals += 1;
        store.drive.remove_empty(&["v", "v/g"], Some(before)).expect("not empty");
        assert!(!is_durable(&store, "v/g"));
        for key in ["v/g/b/1", "v/g/c/1"] {
            store.drive.delete(&key.into()).expect("deleted");
        }
        assert!(!is_durable(&store, "v/g") && !is_durable(&store, "v"), "they are gone");
    }

    #[test]
    fn after_a_failed_sync_nobody_tries_another_one() {
        let (_top, store) = claimed();
        put(&store, "v/g/a/1");
        store.drive.failed.store(true, Ordering::SeqCst);
        let error = store.drive.sync_directory(Some("v/g")).expect_err("one that waited while the first one failed");
        assert_eq!(error.kind(), FaultKind::Device);
        assert!(store.drive.put(&"v/g/b/1".into(), &[Bytes::from_static(b"x")], &PutMode::Overwrite).is_err());
    }
}
