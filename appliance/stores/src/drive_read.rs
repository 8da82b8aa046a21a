//! The reading half of a drive: opening, ranges, listing. Blocking, like the writing half.

use std::collections::BTreeSet;
use std::ffi::CStr;
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
use crate::drive_names::{file_of, key_of, prefix_of, straight_below, within};
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
        let name = file_of(key).ok_or(Refusal::NotFound)?;
        let file = rustix::fs::openat(&self.objects, &name, flags, Mode::empty()).map_err(|errno| match errno {
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
        let prefix = prefix.map_or("", Path::as_ref);
        let mut pending = vec![prefix.to_owned()];
        if !prefix.is_empty() {
            for object in self.straight_below(prefix)? {
                if !found(object) {
                    return Ok(());
                }
            }
        }
        while let Some(directory) = pending.pop() {
            let mut go_on = true;
            self.entries(&directory, &mut |entry| {
                match entry {
                    Entry::Directory(name) => pending.push(within(&directory, name)),
                    Entry::File(name, look) => {
                        if let Some(key) = key_of(&directory, name)
                            && let Some(stat) = look()?
                        {
                            go_on = found(object_meta(key, &stat));
                        }
                    }
                }
                Ok(go_on)
            })?;
            if !go_on {
                break;
            }
        }
        Ok(())
    }

    /// Objects straight below `prefix`, and the prefixes that have others, or had before a crash.
    pub(crate) fn children(&self, prefix: Option<&Path>) -> Result<(Vec<Path>, Vec<ObjectMeta>), StoreFault> {
        self.alive("listing objects")?;
        let prefix = prefix.map_or("", Path::as_ref);
        let objects = self.straight_below(prefix)?;
        let mut prefixes = BTreeSet::new();
        self.entries(prefix, &mut |entry| {
            prefixes.extend(match entry {
                Entry::Directory(name) => Path::parse(within(prefix, name)).ok(),
                Entry::File(name, _) => key_of(prefix, name).and_then(|_| prefix_of(prefix, name)),
            });
            Ok(true)
        })?;
        Ok((prefixes.into_iter().collect(), objects))
    }

    fn straight_below(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreFault> {
        let (directory, beginning) = straight_below(prefix);
        let mut objects = Vec::new();
        self.entries(directory, &mut |entry| {
            // Only what is asked for is looked at: its siblings are other objects' fragments.
            if let Entry::File(name, look) = entry
                && name.starts_with(&beginning)
                && let Some(key) = key_of(directory, name)
                && let Some(stat) = look()?
            {
                objects.push(object_meta(key, &stat));
            }
            Ok(true)
        })?;
        Ok(objects)
    }

    /// Calls `found` for each entry of `directory` (relative to `objects/`), until it answers false.
    fn entries(&self, directory: &str, found: &mut dyn FnMut(Entry<'_>) -> Result<bool, StoreFault>) -> Result<(), StoreFault> {
        const DOING: &str = "listing objects";
        let name = if directory.is_empty() { "." } else { directory };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.objects, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => return self.alive(DOING),
            Err(errno) => return Err(StoreFault::new(DOING, errno.into())),
        };
        let look = |name: &CStr| match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(StoreFault::new(DOING, errno.into())),
        };
        for entry in Dir::read_from(&fd).map_err(fault(DOING))? {
            let entry = entry.map_err(fault(DOING))?;
            // A name that is no key was not put by us.
            let Some(name) = entry.file_name().to_str().ok().filter(|name| !matches!(*name, "." | "..")) else { continue };
            // A file system need not say in a listing what an entry is.
            let kind = match entry.file_type() {
                FileType::Unknown => look(entry.file_name())?.map(|stat| FileType::from_raw_mode(stat.st_mode)),
                known => Some(known),
            };
            let go_on = match kind {
                Some(FileType::Directory) => found(Entry::Directory(name))?,
                Some(FileType::RegularFile) => found(Entry::File(name, &|| look(entry.file_name())))?,
                _ => true,
            };
            if !go_on {
                break;
            }
        }
        Ok(())
    }
}

/// What a directory has; a file is only looked at when somebody wants to know. `None`: it is gone by now.
enum Entry<'a> {
    Directory(&'a str),
    File(&'a str, &'a dyn Fn() -> Result<Option<Stat>, StoreFault>),
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
