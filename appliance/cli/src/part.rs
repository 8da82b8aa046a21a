//! A file under another name until it is complete: `FILE.1a2b3c4d.part`, in the same directory.
//!
//! It is made anew, so that neither another export nor a file or link that is there under that name is touched. It gets its name only where
//! that is free, or where replacing was asked for, and then the name is durable too. Dropped before, it is removed; a kill leaves it. It is
//! its owner's only, whatever the umask says, since it may hold a guest's disk; what replaces a file may be read by whom that could be.

use std::fs::{self, File, FileType, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::image::ImageError;

/// What becomes of a file that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Present {
    /// It stays, and the export is refused.
    Keep,
    /// It is replaced, if it is a regular file.
    Replace,
}

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Part {
    file: File,
    unready: PathBuf,
    name: PathBuf,
    present: Present,
}

/// Whether `name` may become a new file.
pub(crate) fn check(name: &Path, present: Present) -> Result<(), ImageError> {
    // Links are not followed: what they point to would not be replaced, but they.
    let kind = match fs::symlink_metadata(name) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(ImageError::File { doing: "look at", file: name.to_owned(), cause }),
    };
    match present {
        _ if !kind.is_file() => Err(ImageError::Special { file: name.to_owned(), kind: of(kind) }),
        Present::Keep => Err(ImageError::Exists { file: name.to_owned() }),
        Present::Replace => Ok(()),
    }
}

fn of(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_block_device() => "a block device",
        kind if kind.is_char_device() => "a character device",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        _ => "something else",
    }
}

impl Part {
    /// Begins the file that shall be called `name`.
    pub(crate) fn new(name: &Path, present: Present) -> Result<Self, ImageError> {
        check(name, present)?;
        let mut unready = name.as_os_str().to_owned();
        unready.push(format!(".{:08x}.part", rand::random::<u32>()));
        let unready = PathBuf::from(unready);
        let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&unready);
        let file = made.map_err(|cause| ImageError::File { doing: "write", file: unready.clone(), cause })?;
        Ok(Self { file, unready, name: name.to_owned(), present })
    }

    /// The file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// What it is called until it is complete.
    pub(crate) fn unready(&self) -> &Path {
        &self.unready
    }

    /// Makes what was written durable, then gives it its name, durably.
    pub(crate) fn complete(self) -> Result<(), ImageError> {
        let failed = |cause| ImageError::File { doing: "write", file: self.name.clone(), cause };
        self.file.sync_all().map_err(failed)?;
        // Somebody may have taken the name meanwhile.
        check(&self.name, self.present)?;
        match self.present {
            Present::Replace => {
                self.like_the_replaced().map_err(failed)?;
                fs::rename(&self.unready, &self.name).map_err(failed)?;
            }
            Present::Keep => self.name_if_free().map_err(|cause| match cause.kind() {
                io::ErrorKind::AlreadyExists => ImageError::Exists { file: self.name.clone() },
                _ => failed(cause),
            })?,
        }
        let dir = self.name.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match File::open(dir).and_then(|dir| dir.sync_all()) {
            // A file system that has no such thing.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            other => other.map_err(failed),
        }
    }

    /// Takes owner and permissions of the file that goes, if there is one.
    fn like_the_replaced(&self) -> io::Result<()> {
        let (Ok(replaced), own) = (fs::symlink_metadata(&self.name), self.file.metadata()?) else { return Ok(()) };
        let mut mode = replaced.mode() & 0o777;
        let same = (own.uid(), own.gid()) == (replaced.uid(), replaced.gid());
        // Only root may give files away. Another group than that of before gets nothing.
        if !same && fchown(&self.file, Some(replaced.uid()), Some(replaced.gid())).is_err() {
            mode &= 0o707;
        }
        self.file.set_permissions(Permissions::from_mode(mode))
    }

    fn name_if_free(&self) -> io::Result<()> {
        match renameat_with(CWD, &self.unready, CWD, &self.name, RenameFlags::NOREPLACE) {
            // NFS and some others do not know this; they know links, which never replace anything.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match fs::hard_link(&self.unready, &self.name) {
                // Nor these: the look a moment ago must do.
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => fs::rename(&self.unready, &self.name),
                // The other name goes when this is dropped.
                other => other,
            },
            other => Ok(other?),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Under this name it is complete or of no use; a complete one has it no more.
        let _ = fs::remove_file(&self.unready);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
    use std::path::Path;

    use super::{Part, Present, check};
    use crate::image::ImageError;

    #[test]
    fn two_at_once_do_not_touch_each_other_nor_what_is_there() {
        let dir = tempfile::tempdir().expect("tempdir");
        let name = dir.path().join("x.raw");
        let own = dir.path().join("x.raw.part");
        fs::write(&own, "mine").expect("written");
        let (one, two) = (Part::new(&name, Present::Keep).expect("one"), Part::new(&name, Present::Keep).expect("two"));
        one.file().write_all(b"one").expect("written");
        two.file().write_all(b"two").expect("written");
        one.complete().expect("the first has the name");
        assert!(matches!(two.complete(), Err(ImageError::Exists { .. })));
        assert_eq!((fs::read(&name).expect("read"), fs::read(&own).expect("read")), (b"one".to_vec(), b"mine".to_vec()));
        let three = Part::new(&name, Present::Replace).expect("three");
        three.file().write_all(b"three").expect("written");
        three.complete().expect("replaced");
        drop(Part::new(&name, Present::Replace).expect("four"));
        assert_eq!(fs::read(&name).expect("read"), b"three");
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 2, "a part stayed");
    }

    #[test]
    fn what_is_no_regular_file_is_never_replaced() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "x").expect("written");
        symlink(&file, &link).expect("a link");
        for (name, kind) in
            [(link.as_path(), "a symbolic link"), (dir.path(), "a directory"), (Path::new("/dev/null"), "a character device")]
        {
            let error = check(name, Present::Replace).expect_err("refused");
            assert!(error.to_string().contains(kind), "{error}");
        }
        check(&file, Present::Replace).expect("a file may be");
        // Nor when it comes later.
        let late = dir.path().join("late");
        let part = Part::new(&late, Present::Replace).expect("begun");
        symlink(&file, &late).expect("a link");
        assert!(matches!(part.complete(), Err(ImageError::Special { .. })));
        assert_eq!(fs::read(&file).expect("read"), b"x");
    }

    #[test]
    fn what_replaces_a_file_is_read_by_whom_that_could_be_and_others_by_their_owner_only() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
        let name = dir.path().join("new.raw");
        let part = Part::new(&name, Present::Keep).expect("begun");
        assert_eq!(mode(part.unready()), 0o600);
        part.complete().expect("complete");
        assert_eq!(mode(&name), 0o600);
        for bits in [0o600, 0o400, 0o644] {
            fs::set_permissions(&name, fs::Permissions::from_mode(bits)).expect("set");
            let part = Part::new(&name, Present::Replace).expect("begun");
            assert_eq!(mode(part.unready()), 0o600, "until it is complete");
            part.complete().expect("complete");
            assert_eq!(mode(&name), bits, "{bits:o}");
        }
        // Only root can give a file away.
        if chown(&name, Some(12), Some(34)).is_ok() {
            Part::new(&name, Present::Replace).expect("begun").complete().expect("complete");
            let metadata = fs::metadata(&name).expect("metadata");
            assert_eq!((metadata.uid(), metadata.gid()), (12, 34));
        }
    }
}
