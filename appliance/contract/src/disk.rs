//! The seam between the engine and the node's SSD: a flat directory of files.
//!
//! What a crash leaves, and what implementations must honour (the simulation's disk enumerates exactly this):
//! - `write_at` that returned survives the process, not power; after power loss each 512-byte sector of it may be old, new or,
//!   where the write was still under way, garbage.
//! - `sync_data` that returned makes every earlier `write_at` on that file survive power. After it fails once the file is not
//!   to be trusted: an fsync is never retried.
//! - Names made, renamed or removed survive power once `sync_names` returned.

use std::io;
use std::io::IoSlice;
use std::sync::Arc;

/// What happens when a [`DiskFile::read_later`] is done: the buffer comes back, filled, or the error.
pub type ReadDone = Box<dyn FnOnce(io::Result<Vec<u8>>) + Send>;

/// What a new file's space is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Set aside. The first write of a place also changes what the file system knows of it.
    Allocated,
    /// Written with zeros, durably: a write and its sync change bytes and nothing else, as in any place written before.
    Written,
}

/// A flat directory of files on the node's SSD.
pub trait Disk: Send + Sync {
    /// Makes `name` with `len` bytes that read as zeros, or opens it when it exists with that length, as it was made.
    /// Replaces one of another length.
    ///
    /// # Errors
    /// The system's error; `StorageFull` when there is no space.
    fn create(&self, name: &str, len: u64, space: Space) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing file.
    ///
    /// # Errors
    /// `NotFound`, or the system's error.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Names present, in no order.
    ///
    /// # Errors
    /// The system's error.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Removes a file; a missing one is fine.
    ///
    /// # Errors
    /// The system's error.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Renames over `to`.
    ///
    /// # Errors
    /// The system's error.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes names durable.
    ///
    /// # Errors
    /// The system's error; the disk is failed then.
    fn sync_names(&self) -> io::Result<()>;
}

/// A file of a [`Disk`]. All methods may be called from many threads at once.
pub trait DiskFile: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes all of `bufs`, one behind the other, at `offset`. Returns once the system has accepted every byte.
    ///
    /// # Errors
    /// The system's error; any part may have been written.
    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()>;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end, or the system's error.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Like [`DiskFile::read_at`] if that needs no waiting for the device; otherwise `Ok(false)`, and `buf` holds nothing of use.
    ///
    /// # Errors
    /// As [`DiskFile::read_at`].
    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        self.read_at(offset, buf).map(|()| true)
    }

    /// Reads in the background into `buf` and calls `done` from some thread.
    fn read_later(&self, offset: u64, mut buf: Vec<u8>, done: ReadDone) {
        done(self.read_at(offset, &mut buf).map(|()| buf));
    }

    /// A hint: these bytes will be read soon.
    fn read_ahead(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// A hint: these bytes are durable and will hardly be read soon, so the system need not keep them in memory.
    fn drop_cached(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Makes every write that returned before this call durable.
    ///
    /// # Errors
    /// The system's error; the file is failed then.
    fn sync_data(&self) -> io::Result<()>;
}
