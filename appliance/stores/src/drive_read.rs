//! The reading half of a drive: opening, ranges, listing. Blocking, like the writing half.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::drive::{Drive, Refusal, STORE, fault};
use crate::fault::StoreFault;
use crate::vectored::read_vec_at;

/// An object opened for reading: what it is and which bytes were asked for.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: OwnedFd,
    pub(crate) meta: ObjectMeta,
    pub(crate) range: Range<u64>,
}

impl Drive {
    pub(crate) fn open_object(&self, key: &Path, options: &GetOptions) -> Result<Opened, Refusal> {
        const DOING: &str = "opening an object";
        self.alive(DOING)?;
        if options.version.is_some() {
            let source = "a drive keeps no versions".into();
            return Err(Refusal::Store(object_store::Error::NotSupported { source }));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.objects, key.as_ref(), flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => Refusal::NotFound,
            errno => Refusal::Fault(StoreFault::new(DOING, errno.into())),
        })?;
        let stat = rustix::fs::fstat(&file).map_err(fault(DOING))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Refusal::NotFound);
        }
        let meta = object_meta(key.clone(), &stat);
        options.check_preconditions(&meta).map_err(Refusal::Store)?;
        let range = match &options.range {
            Some(range) => resolve(range, meta.size)?,
            None => 0..meta.size,
        };
        Ok(Opened { file, meta, range })
    }

    pub(crate) fn get_ranges(&self, key: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, Refusal> {
        let opened = self.open_object(key, &GetOptions::default())?;
        let read =
            |range: &Range<u64>| Ok(read_bytes(&opened.file, &resolve(&GetRange::Bounded(range.clone()), opened.meta.size)?)?);
        ranges.iter().map(read).collect()
    }

    /// Calls `found` for each object below `prefix`, in no order, until it answers false.
    pub(crate) fn walk(&self, prefix: Option<&Path>, found: &mut dyn FnMut(ObjectMeta) -> bool) -> Result<(), StoreFault> {
        self.alive("listing objects")?;
        let mut pending = vec![prefix.cloned().unwrap_or_default()];
        while let Some(directory) = pending.pop() {
            for entry in self.entries(&directory)? {
                match entry {
                    Entry::Directory(path) => pending.push(path),
                    Entry::Object(meta) => {
                        if !found(meta) {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Objects and directories straight below `prefix`.
    pub(crate) fn children(&self, prefix: Option<&Path>) -> Result<(Vec<Path>, Vec<ObjectMeta>), StoreFault> {
        self.alive("listing objects")?;
        let (mut directories, mut objects) = (Vec::new(), Vec::new());
        for entry in self.entries(&prefix.cloned().unwrap_or_default())? {
            match entry {
                Entry::Directory(path) => directories.push(path),
                Entry::Object(meta) => objects.push(meta),
            }
        }
        Ok((directories, objects))
    }

    fn entries(&self, directory: &Path) -> Result<Vec<Entry>, StoreFault> {
        const DOING: &str = "listing objects";
        let name = if directory.as_ref().is_empty() { "." } else { directory.as_ref() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.objects, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => {
                self.alive(DOING)?;
                return Ok(Vec::new());
            }
            Err(errno) => return Err(StoreFault::new(DOING, errno.into())),
        };
        let mut entries = Vec::new();
        for entry in Dir::read_from(&fd).map_err(fault(DOING))? {
            let entry = entry.map_err(fault(DOING))?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            // A name that is no key was not put by us.
            let Some(path) = entry.file_name().to_str().ok().and_then(|name| child(directory, name)) else { continue };
            if entry.file_type() == FileType::Directory {
                entries.push(Entry::Directory(path));
                continue;
            }
            let stat = match rustix::fs::statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(StoreFault::new(DOING, errno.into())),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => entries.push(Entry::Object(object_meta(path, &stat))),
                FileType::Directory => entries.push(Entry::Directory(path)),
                _ => {}
            }
        }
        Ok(entries)
    }
}

enum Entry {
    Directory(Path),
    Object(ObjectMeta),
}

fn child(directory: &Path, name: &str) -> Option<Path> {
    if directory.as_ref().is_empty() { Path::parse(name).ok() } else { Path::parse(format!("{directory}/{name}")).ok() }
}

fn resolve(range: &GetRange, size: u64) -> Result<Range<u64>, Refusal> {
    range.as_range(size).map_err(|source| Refusal::Store(object_store::Error::Generic { store: STORE, source: Box::new(source) }))
}

/// Reads part of an opened object.
pub(crate) fn read_bytes(file: &OwnedFd, range: &Range<u64>) -> Result<Bytes, StoreFault> {
    const DOING: &str = "reading an object";
    let len = usize::try_from(range.end.saturating_sub(range.start))
        .map_err(|_| StoreFault::new(DOING, io::ErrorKind::OutOfMemory.into()))?;
    read_vec_at(file, range.start, len).map(Bytes::from).map_err(|cause| StoreFault::new(DOING, cause))
}

fn object_meta(location: Path, stat: &Stat) -> ObjectMeta {
    let seconds = stat.st_mtime;
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let last_modified: DateTime<Utc> = DateTime::from_timestamp(seconds, nanos).unwrap_or_default();
    // A regular file's size is never negative.
    ObjectMeta { location, last_modified, size: stat.st_size as u64, e_tag: Some(e_tag(stat)), version: None }
}

/// Changes whenever the object does: a put makes a new file.
pub(crate) fn e_tag(stat: &Stat) -> String {
    format!("{:x}-{:x}.{:x}-{:x}", stat.st_ino, stat.st_mtime, stat.st_mtime_nsec, stat.st_size)
}
