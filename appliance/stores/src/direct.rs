//! Large writes past the page cache.
//!
//! A fragment is written once and read back seldom and in parts, so a copy of it in the page cache mostly pushes something useful out; and
//! writing through the cache costs several times the processor time (measured by `put_rate`). Direct writes need aligned memory, which a
//! payload is not: it passes through buffers that are kept and used again.
//!
//! What is written this way is durable no sooner: `fdatasync` follows as for any other. Where the file system does not do it, and for the
//! odd bytes at the end, the cache is used.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::vectored::write_all_at;

/// From here on a write goes past the cache.
pub(crate) const DIRECT_FROM: usize = 128 << 10;

/// Alignment of memory, offset and length that every device takes.
const ALIGN: usize = 4096;

/// A buffer holds a 1 MiB fragment with its header, so that one write does.
const BUFFER_PAGES: usize = (1 << 20) / ALIGN + 16;

/// Buffers kept for the next write: 26 MiB. More writes at once make their own, so that a drive that hangs holds up no other.
const BUFFERS_KEPT: usize = 24;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; ALIGN]);
const _: () = assert!(size_of::<Page>() == ALIGN && align_of::<Page>() == ALIGN);

static KEPT: Mutex<Vec<Box<[Page]>>> = Mutex::new(Vec::new());

struct Buffer(Option<Box<[Page]>>);

impl Buffer {
    fn take() -> io::Result<Self> {
        let kept = KEPT.lock().pop();
        match kept {
            Some(pages) => Ok(Self(Some(pages))),
            None => match <[Page]>::new_box_zeroed_with_elems(BUFFER_PAGES) {
                Ok(pages) => Ok(Self(Some(pages))),
                Err(_) => Err(io::ErrorKind::OutOfMemory.into()),
            },
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().map(<[Page]>::as_mut_bytes).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut kept = KEPT.lock();
        if let Some(pages) = self.0.take().filter(|_| kept.len() < BUFFERS_KEPT) {
            kept.push(pages);
        }
    }
}

/// Writes `chunks`, one behind the other, to a new file: past the cache where that is possible and worth it.
pub(crate) fn write_new(fd: impl AsFd, chunks: &[Bytes]) -> io::Result<()> {
    let total: usize = chunks.iter().map(Bytes::len).sum();
    if total < DIRECT_FROM || set_direct(&fd, true).is_err() {
        let slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
        return write_all_at(&fd, 0, &slices);
    }
    let mut buffer = Buffer::take()?;
    let (mut filled, mut written) = (0, 0_u64);
    for chunk in chunks {
        let mut rest = chunk.as_ref();
        while !rest.is_empty() {
            let space = buffer.bytes().get_mut(filled..).unwrap_or_default();
            let (now, later) = rest.split_at(rest.len().min(space.len()));
            if let Some(space) = space.get_mut(..now.len()) {
                space.copy_from_slice(now);
            }
            filled += now.len();
            rest = later;
            if filled == buffer.bytes().len() {
                write_aligned(&fd, written, buffer.bytes())?;
                written += filled as u64;
                filled = 0;
            }
        }
    }
    let (aligned, odd) = buffer.bytes().get(..filled).unwrap_or_default().split_at(filled / ALIGN * ALIGN);
    write_aligned(&fd, written, aligned)?;
    if !odd.is_empty() {
        set_direct(&fd, false)?;
        write_all_at(&fd, written + aligned.len() as u64, &[IoSlice::new(odd)])?;
    }
    Ok(())
}

fn set_direct(fd: impl AsFd, direct: bool) -> Result<(), Errno> {
    let mut flags = rustix::fs::fcntl_getfl(&fd)?;
    flags.set(OFlags::DIRECT, direct);
    rustix::fs::fcntl_setfl(&fd, flags)
}

/// Writes whole pages; finishes through the cache when the device stops at an odd place or refuses.
fn write_aligned(fd: impl AsFd, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&fd, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                bytes = bytes.get(written..).unwrap_or_default();
                if written.is_multiple_of(ALIGN) {
                    continue;
                }
            }
            Err(Errno::INTR) => continue,
            Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
        set_direct(&fd, false)?;
        return write_all_at(&fd, offset, &[IoSlice::new(bytes)]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{DIRECT_FROM, write_new};
    use crate::conformance::sample;

    #[test]
    fn every_length_in_any_pieces_arrives() {
        let sizes =
            [0, 1, 4095, 4096, DIRECT_FROM - 1, DIRECT_FROM, DIRECT_FROM + 1, 1_052_672, 2 << 20, (2 << 20) + 4096, 5_000_003];
        for len in sizes {
            for piece in [4096, 10_007, 3 << 20] {
                let file = tempfile::NamedTempFile::new().expect("a file");
                let bytes = sample(len as u64, len);
                let chunks: Vec<Bytes> = (0..len).step_by(piece).map(|at| bytes.slice(at..len.min(at + piece))).collect();
                write_new(file.as_file(), &chunks).expect("written");
                assert!(std::fs::read(file.path()).expect("read") == bytes, "{len} in pieces of {piece}");
            }
        }
    }
}
