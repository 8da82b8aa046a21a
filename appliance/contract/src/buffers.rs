//! Large page-aligned memory that is used again.
//!
//! What a container passes through on its way to the drives is large, short-lived and always of a few sizes: taken fresh from the system it
//! costs more in page faults than what is computed in it. Its alignment lets a drive write it past the page cache without a copy.
//!
//! Bounded: a pool keeps at most so many bytes waiting; buffers in use belong to whoever holds them.

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Alignment of a buffer: what direct I/O of every device takes.
pub const PAGE_ALIGN: usize = 4096;

/// Smaller ones are cheap from the allocator.
const WORTH_KEEPING: usize = 64 << 10;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_ALIGN]);
const _: () = assert!(size_of::<Page>() == PAGE_ALIGN && align_of::<Page>() == PAGE_ALIGN);

/// Buffers waiting. Cheap to clone; clones share them.
#[derive(Clone)]
pub struct PageBuffers {
    kept: Arc<Mutex<Kept>>,
}

struct Kept {
    /// The one that came back last stands last.
    buffers: VecDeque<Box<[Page]>>,
    bytes: usize,
    most: usize,
}

impl fmt::Debug for PageBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.kept.lock();
        f.debug_struct("PageBuffers").field("kept_bytes", &kept.bytes).field("most", &kept.most).finish()
    }
}

/// Memory of one owner, which can be given away as [`Bytes`]; it goes back to its pool when the last of those is dropped.
pub struct PageBuffer {
    pages: Box<[Page]>,
    len: usize,
    home: PageBuffers,
}

impl fmt::Debug for PageBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageBuffer").field("len", &self.len).finish_non_exhaustive()
    }
}

impl PageBuffers {
    /// A pool that keeps at most `bytes` waiting.
    #[must_use]
    pub fn keeping(bytes: usize) -> Self {
        Self { kept: Arc::new(Mutex::new(Kept { buffers: VecDeque::new(), bytes: 0, most: bytes })) }
    }

    /// A buffer of `len` bytes to be overwritten: what stands in it is of no meaning.
    ///
    /// # Panics
    /// When the system has no memory, as every allocation does.
    #[must_use]
    pub fn take(&self, len: usize) -> PageBuffer {
        let need = len.div_ceil(PAGE_ALIGN);
        let pages = self.kept_pages(need).unwrap_or_else(|| {
            <[Page]>::new_box_zeroed_with_elems(need).unwrap_or_else(|_| panic!("no memory for a buffer of {len} bytes"))
        });
        PageBuffer { pages, len, home: self.clone() }
    }

    /// The one that came back last and fits without waste: the processor's caches may still know it.
    fn kept_pages(&self, need: usize) -> Option<Box<[Page]>> {
        let mut kept = self.kept.lock();
        let at = kept.buffers.iter().rposition(|pages| (need..=2 * need).contains(&pages.len()))?;
        let pages = kept.buffers.remove(at)?;
        kept.bytes -= size_of_val(&*pages);
        Some(pages)
    }
}

impl PageBuffer {
    /// Keeps the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// To be read by many.
    #[must_use]
    pub fn share(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.len]
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[..self.len]
    }
}

impl AsRef<[u8]> for PageBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        let bytes = size_of_val(&*pages);
        let mut kept = self.home.kept.lock();
        if bytes < WORTH_KEEPING || bytes > kept.most {
            return;
        }
        // The oldest give way: sizes that nobody asks for any more must not fill the pool.
        while kept.bytes + bytes > kept.most
            && let Some(oldest) = kept.buffers.pop_front()
        {
            kept.bytes -= size_of_val(&*oldest);
        }
        kept.bytes += bytes;
        kept.buffers.push_back(pages);
    }
}

#[cfg(test)]
mod tests {
    use super::{PAGE_ALIGN, PageBuffers};

    const MIB: usize = 1 << 20;

    #[test]
    fn a_buffer_comes_back_when_its_last_reader_is_done() {
        let buffers = PageBuffers::keeping(32 * MIB);
        let mut first = buffers.take(MIB);
        first.fill(7);
        let at = first.as_ptr();
        let shared = first.share();
        let part = shared.slice(100..200);
        drop(shared);
        let other = buffers.take(MIB);
        assert_ne!(other.as_ptr(), at, "it is still read");
        assert_eq!(part[..], [7; 100]);
        drop(part);
        let again = buffers.take(MIB - 4096);
        assert_eq!((again.as_ptr(), again.len()), (at, MIB - 4096));
        let small = buffers.take(1000);
        assert_ne!(small.as_ptr(), again.as_ptr());
    }

    #[test]
    fn every_buffer_is_aligned_and_as_long_as_asked_for() {
        let buffers = PageBuffers::keeping(0);
        for len in [0, 1, 4095, 4096, 4097, MIB + 1] {
            let mut buffer = buffers.take(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.as_ptr().align_offset(PAGE_ALIGN) == 0, "{len}");
            buffer.truncate(len / 2);
            assert_eq!(buffer.share().len(), len / 2);
        }
    }

    #[test]
    fn no_more_waits_than_the_bound() {
        let buffers = PageBuffers::keeping(32 * MIB);
        let lent: Vec<_> = (0..100).map(|_| buffers.take(MIB).share()).collect();
        drop(lent);
        let kept = buffers.kept.lock();
        assert!(kept.bytes <= 32 * MIB);
        assert!(kept.buffers.len() >= 30);
    }

    #[test]
    fn sizes_that_nobody_asks_for_give_way() {
        let buffers = PageBuffers::keeping(8 * MIB);
        drop((0..100).map(|_| buffers.take(100 << 10)).collect::<Vec<_>>());
        let large = buffers.take(4 * MIB);
        let at = large.as_ptr();
        drop(large);
        assert_eq!(buffers.take(4 * MIB).as_ptr(), at);
        assert!(buffers.kept.lock().bytes <= 8 * MIB);
    }
}
