//! The node's SSD: a [`Disk`] over a real, flat directory.
//!
//! Space is allocated when a file is made, so that a full disk is said then and never in the middle of a write. A new file is made
//! aside and renamed, so a crash leaves the old one, the new one or (removed at the next open) an unfinished one under a hidden name.
//! For a file of [`Space::Written`] the space is zeroed as well: to ext4 and XFS allocated space is *unwritten*, and making it written is a
//! transaction of their own journals at the first sync of each place. That doubles what the sync costs, and on ext4 it is not safe: when its
//! journal has stopped, `fdatasync` returns success all the same (`docs/decisions/2026-11-22-journal-space-is-written.md`).
//! A file whose sync failed once refuses every later sync, also through another handle, until the process ends: what the page cache
//! says of it is no longer what the device has.
//!
//! Reads: [`DiskFile::read_cached`] never waits for the device; [`DiskFile::read_later`] hands over to one thread per disk
//! ([`crate::ring`]).

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use lamina_contract::{Disk, DiskFile, ReadDone, Space};
use parking_lot::Mutex;
use rustix::fs::{Advice, AtFlags, CWD, Dir, FallocateFlags, FileType, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use crate::ring::Reader;
use crate::vectored::{read_exact_at, write_all_at};

const UNFINISHED: &str = ".unfinished-";

/// A directory on a local file system.
#[derive(Debug)]
pub struct LocalDisk {
    directory: OwnedFd,
    shared: Arc<Shared>,
}

/// What all files of one disk share.
#[derive(Debug)]
struct Shared {
    reader: Reader,
    /// Inode numbers of files whose sync failed. Grows only with failures of the device; an entry is 8 bytes.
    failed: Mutex<HashSet<u64>>,
}

impl LocalDisk {
    /// Opens `directory`, making it if its parent exists, and removes files that were never finished.
    ///
    /// # Errors
    /// The system's error.
    pub fn open(directory: impl AsRef<Path>) -> io::Result<Self> {
        let path = directory.as_ref();
        match rustix::fs::mkdir(path, Mode::from_raw_mode(0o750)) {
            Ok(()) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                rustix::fs::fsync(rustix::fs::openat(CWD, parent, directory_flags(), Mode::empty())?)?;
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let directory = rustix::fs::openat(CWD, path, directory_flags(), Mode::empty())?;
        let disk = Self { directory, shared: Arc::new(Shared { reader: Reader::start()?, failed: Mutex::default() }) };
        for name in disk.names()? {
            if name.starts_with(UNFINISHED) {
                disk.remove_name(&name)?;
            }
        }
        Ok(disk)
    }

    /// Whether background reads go through io_uring (otherwise through a few threads).
    #[must_use]
    pub fn uses_io_uring(&self) -> bool {
        self.shared.reader.uses_io_uring()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.directory)? {
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") || entry.file_type() == FileType::Directory {
                continue;
            }
            // Names are ours and ASCII; another's file with another name is not ours to see.
            if let Ok(name) = entry.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn remove_name(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn file(&self, fd: OwnedFd) -> io::Result<LocalFile> {
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // A regular file's size is never negative.
        Ok(LocalFile { fd: Arc::new(fd), len: stat.st_size as u64, inode: stat.st_ino, shared: Arc::clone(&self.shared) })
    }

    fn open_file(&self, name: &str) -> io::Result<LocalFile> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        self.file(rustix::fs::openat(&self.directory, name, flags, Mode::empty())?)
    }
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

/// A flat name: nothing that leads elsewhere, nothing that is hidden.
fn check_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(())
}

/// Bytes of zeros written at once.
const ZEROS: usize = 1 << 20;

/// Gives the whole file its space. Where the file system cannot allocate, zeros are written instead.
fn allocate(fd: &OwnedFd, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    loop {
        match rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    // Only what is not there yet: an existing file keeps its bytes.
    write_zeros(fd, rustix::fs::fstat(fd)?.st_size as u64, len)
}

fn write_zeros(fd: &OwnedFd, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; ZEROS.min(usize::try_from(to.saturating_sub(from)).unwrap_or(ZEROS))];
    let mut at = from;
    while at < to {
        let step = (to - at).min(zeros.len() as u64);
        write_all_at(fd, at, &[IoSlice::new(&zeros[..step as usize])])?;
        at += step;
    }
    Ok(())
}

/// Space for a new file. Durable before the file has its name: by the name nobody could tell whether it was written.
fn provide(fd: &OwnedFd, len: u64, space: Space) -> io::Result<()> {
    allocate(fd, len)?;
    let Some(bytes) = NonZeroU64::new(len).filter(|_| space == Space::Written) else { return Ok(()) };
    write_zeros(fd, 0, len)?;
    rustix::fs::fsync(fd)?;
    // Nobody reads these zeros. That the system keeps them all the same harms nobody.
    let _ = rustix::fs::fadvise(fd, 0, Some(bytes), Advice::DontNeed);
    Ok(())
}

impl Disk for LocalDisk {
    fn create(&self, name: &str, len: u64, space: Space) -> io::Result<Arc<dyn DiskFile>> {
        check_name(name)?;
        match self.open_file(name) {
            Ok(file) if file.len == len => {
                allocate(&file.fd, len)?;
                return Ok(Arc::new(file));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let aside = format!("{UNFINISHED}{name}");
        self.remove_name(&aside)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.directory, aside.as_str(), flags, Mode::from_raw_mode(0o640))?;
        let made = provide(&fd, len, space)
            .and_then(|()| rustix::fs::renameat(&self.directory, aside.as_str(), &self.directory, name).map_err(io::Error::from))
            .and_then(|()| self.file(fd));
        match made {
            Ok(file) => Ok(Arc::new(file)),
            Err(error) => {
                self.remove_name(&aside)?;
                Err(error)
            }
        }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        check_name(name)?;
        Ok(Arc::new(self.open_file(name)?))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = self.names()?;
        names.retain(|name| !name.starts_with('.'));
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        self.remove_name(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        Ok(rustix::fs::renameat(&self.directory, from, &self.directory, to)?)
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.directory)?)
    }
}

/// A file of a [`LocalDisk`]; its length does not change.
#[derive(Debug)]
struct LocalFile {
    fd: Arc<OwnedFd>,
    len: u64,
    inode: u64,
    shared: Arc<Shared>,
}

impl LocalFile {
    fn check(&self, offset: u64, len: usize) -> io::Result<()> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl LocalFile {
    fn advise(&self, offset: u64, len: u64, advice: Advice) {
        let Some(len) = NonZeroU64::new(len) else { return };
        if let Err(errno) = rustix::fs::fadvise(&self.fd, offset, Some(len), advice) {
            tracing::debug!(%errno, inode = self.inode, "the system takes no advice about its page cache");
        }
    }
}

impl DiskFile for LocalFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        self.check(offset, len)?;
        write_all_at(&self.fd, offset, bufs)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len())?;
        read_exact_at(&self.fd, offset, buf)
    }

    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        self.check(offset, buf.len())?;
        let want = buf.len();
        loop {
            match rustix::io::preadv2(&self.fd, &mut [io::IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
                Ok(read) => return Ok(read == want),
                Err(Errno::INTR) => {}
                // Not in the page cache, or a file system that cannot tell.
                Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn read_later(&self, offset: u64, buf: Vec<u8>, done: ReadDone) {
        match self.check(offset, buf.len()) {
            Ok(()) => self.shared.reader.read(Arc::clone(&self.fd), offset, buf, done),
            Err(error) => done(Err(error)),
        }
    }

    fn read_ahead(&self, offset: u64, len: u64) {
        self.advise(offset, len, Advice::WillNeed);
    }

    fn drop_cached(&self, offset: u64, len: u64) {
        self.advise(offset, len, Advice::DontNeed);
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.shared.failed.lock().contains(&self.inode) {
            return Err(Errno::IO.into());
        }
        rustix::fs::fdatasync(&self.fd).map_err(|errno| {
            self.shared.failed.lock().insert(self.inode);
            tracing::error!(%errno, inode = self.inode, "sync failed: the file is set to failed");
            io::Error::from(errno)
        })?;
        // A sync that overlapped one that failed may have been told nothing of the lost pages.
        if self.shared.failed.lock().contains(&self.inode) { Err(Errno::IO.into()) } else { Ok(()) }
    }
}
