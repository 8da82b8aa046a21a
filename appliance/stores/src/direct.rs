//! Large writes past the page cache.
//!
//! A fragment is written once and read back seldom and in parts, so a copy of it in the page cache mostly pushes something useful out; and
//! writing through the cache costs several times the processor time (measured by `put_rate`). Direct writes need aligned memory: a large
//! payload usually is ([`PageBuffers`]) and is written from where it stands; what is not passes through a buffer.
//!
//! What is written this way is durable no sooner: `fdatasync` follows as for any other. Where the file system does not do it, and for the
//! odd bytes at the end, the cache is used.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::LazyLock;

use bytes::Bytes;
use lamina_contract::{PAGE_ALIGN, PageBuffer, PageBuffers};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::vectored::write_all_at;

/// From here on a write goes past the cache.
pub(crate) const DIRECT_FROM: usize = 128 << 10;

/// A buffer holds a 1 MiB fragment with its header, so that one write does.
const BUFFER: usize = (1 << 20) + 16 * PAGE_ALIGN;

/// Buffers kept for the next write of memory that is not aligned. More writes at once make their own, so that a drive that hangs holds up
/// no other.
static BUFFERS: LazyLock<PageBuffers> = LazyLock::new(|| PageBuffers::keeping(8 << 20));

/// Writes `chunks`, one behind the other, to a new file: past the cache where that is possible and worth it.
pub(crate) fn write_new(fd: impl AsFd, chunks: &[Bytes]) -> io::Result<()> {
    let total: usize = chunks.iter().map(Bytes::len).sum();
    if total < DIRECT_FROM || set_direct(&fd, true).is_err() {
        let slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
        return write_all_at(&fd, 0, &slices);
    }
    let mut writer = Writer { fd, gathered: BUFFERS.take(head_len(chunks)), filled: 0, written: 0 };
    for chunk in chunks {
        let mut rest = chunk.as_ref();
        if writer.filled.is_multiple_of(PAGE_ALIGN) && rest.as_ptr().align_offset(PAGE_ALIGN) == 0 {
            let (pages, odd) = rest.split_at(rest.len() / PAGE_ALIGN * PAGE_ALIGN);
            if !pages.is_empty() {
                writer.write(pages)?;
            }
            rest = odd;
        }
        writer.gather(rest)?;
    }
    writer.finish()
}

/// How much of the payload has to be gathered at once: short when all that is large is aligned.
fn head_len(chunks: &[Bytes]) -> usize {
    let scattered = chunks.iter().filter(|chunk| chunk.as_ptr().align_offset(PAGE_ALIGN) != 0 || chunk.len() < PAGE_ALIGN);
    let bytes: usize = scattered.map(Bytes::len).sum();
    bytes.next_multiple_of(PAGE_ALIGN).clamp(PAGE_ALIGN, BUFFER)
}

/// Writes a file from its start: what was gathered first, then memory that is aligned already.
struct Writer<Fd> {
    fd: Fd,
    gathered: PageBuffer,
    filled: usize,
    written: u64,
}

impl<Fd: AsFd> Writer<Fd> {
    /// Copies bytes that cannot be written from where they stand.
    fn gather(&mut self, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            // Not as soon as it is full: what comes next may be aligned, and one write takes both.
            if self.filled == self.gathered.len() {
                self.write(&[])?;
            }
            let space = self.gathered.get_mut(self.filled..).unwrap_or_default();
            let (now, later) = rest.split_at(rest.len().min(space.len()));
            if let Some(space) = space.get_mut(..now.len()) {
                space.copy_from_slice(now);
            }
            self.filled += now.len();
            rest = later;
        }
        Ok(())
    }

    /// Writes whole gathered pages and then `pages`, which are aligned and whole.
    fn write(&mut self, pages: &[u8]) -> io::Result<()> {
        let gathered = self.gathered.get(..self.filled).unwrap_or_default();
        let parts = [IoSlice::new(gathered), IoSlice::new(pages)];
        // An empty slice points anywhere, and the system asks alignment of it too.
        let parts: Vec<IoSlice<'_>> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        write_aligned(&self.fd, self.written, parts)?;
        self.written += (self.filled + pages.len()) as u64;
        self.filled = 0;
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        let aligned = self.filled / PAGE_ALIGN * PAGE_ALIGN;
        let odd = self.gathered.get(aligned..self.filled).unwrap_or_default().to_vec();
        self.filled = aligned;
        if aligned > 0 {
            self.write(&[])?;
        }
        if odd.is_empty() {
            return Ok(());
        }
        set_direct(&self.fd, false)?;
        write_all_at(&self.fd, self.written, &[IoSlice::new(&odd)])
    }
}

fn set_direct(fd: impl AsFd, direct: bool) -> Result<(), Errno> {
    let mut flags = rustix::fs::fcntl_getfl(&fd)?;
    flags.set(OFlags::DIRECT, direct);
    rustix::fs::fcntl_setfl(&fd, flags)
}

/// Writes whole pages; finishes through the cache when the device stops in their middle or refuses.
fn write_aligned(fd: impl AsFd, offset: u64, mut pages: Vec<IoSlice<'_>>) -> io::Result<()> {
    let total: usize = pages.iter().map(|part| part.len()).sum();
    let done = loop {
        match rustix::io::pwritev(&fd, &pages, offset) {
            Ok(written) if written == total => return Ok(()),
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => break written,
            Err(Errno::INTR) => {}
            Err(Errno::INVAL) => break 0,
            Err(errno) => return Err(errno.into()),
        }
    };
    set_direct(&fd, false)?;
    let mut rest = pages.as_mut_slice();
    IoSlice::advance_slices(&mut rest, done);
    write_all_at(&fd, offset + done as u64, rest)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use lamina_contract::PageBuffers;

    use super::{DIRECT_FROM, write_new};
    use crate::conformance::sample;

    fn written(chunks: &[Bytes]) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        write_new(file.as_file(), chunks).expect("written");
        std::fs::read(file.path()).expect("read")
    }

    #[test]
    fn every_length_in_any_pieces_arrives() {
        let sizes =
            [0, 1, 4095, 4096, DIRECT_FROM - 1, DIRECT_FROM, DIRECT_FROM + 1, 1_052_672, 2 << 20, (2 << 20) + 4096, 5_000_003];
        for len in sizes {
            for piece in [4096, 10_007, 3 << 20] {
                let bytes = sample(len as u64, len);
                let chunks: Vec<Bytes> = (0..len).step_by(piece).map(|at| bytes.slice(at..len.min(at + piece))).collect();
                assert!(written(&chunks) == bytes, "{len} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn aligned_and_odd_memory_in_any_order_arrives() {
        let pool = PageBuffers::keeping(0);
        let aligned = |len: usize| {
            let mut buffer = pool.take(len);
            buffer.copy_from_slice(&sample(len as u64, len));
            buffer.share()
        };
        let odd = |len: usize| Bytes::from([&[0][..], &sample(len as u64, len)].concat()).slice(1..);
        let orders = [
            vec![odd(4096), aligned(1 << 20)],
            vec![aligned(1 << 20), odd(4096), aligned(1 << 20)],
            vec![odd(5000), aligned(1 << 20), odd(3), aligned(8192)],
            vec![aligned((1 << 20) + 100), aligned(1 << 20)],
            vec![odd(8192), aligned((1 << 20) + 1), odd(1)],
            vec![aligned(200), aligned(1 << 20), odd(2 << 20), aligned(4096), odd(1 << 20)],
        ];
        for chunks in orders {
            let lens: Vec<usize> = chunks.iter().map(Bytes::len).collect();
            assert!(written(&chunks) == chunks.concat(), "{lens:?}");
        }
    }
}
