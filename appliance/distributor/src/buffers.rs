//! Fragment-sized memory that is used again: what a put computes is large, short-lived and always of a few sizes, and taking it fresh
//! from the system costs more in page faults than the code itself.
//!
//! Bounded: at most so many bytes wait here; buffers in use belong to the puts and reads that hold them.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Bytes that wait to be used: the parity of sixteen 4 MiB objects under 4+2.
const KEPT_BYTES: usize = 32 << 20;

/// Smaller ones are cheap from the allocator.
const WORTH_KEEPING: usize = 64 << 10;

/// Buffers waiting. Cheap to clone; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffers {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// Goes back when the last [`Bytes`] over it is dropped.
struct Lent {
    bytes: Vec<u8>,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut kept = self.home.kept.lock();
        if kept.bytes + bytes.capacity() <= KEPT_BYTES {
            kept.bytes += bytes.capacity();
            kept.buffers.push(bytes);
        }
    }
}

impl Buffers {
    /// A buffer of `len` bytes to be overwritten: what stands in it is of no meaning.
    pub(crate) fn take(&self, len: usize) -> Vec<u8> {
        if len >= WORTH_KEEPING {
            let mut kept = self.kept.lock();
            let fits = |buffer: &Vec<u8>| (len..=2 * len).contains(&buffer.capacity());
            if let Some(at) = kept.buffers.iter().rposition(fits) {
                let mut buffer = kept.buffers.swap_remove(at);
                kept.bytes -= buffer.capacity();
                drop(kept);
                buffer.resize(len, 0);
                return buffer;
            }
        }
        vec![0; len]
    }

    /// A buffer that was filled, to be shared.
    pub(crate) fn lend(&self, bytes: Vec<u8>) -> Bytes {
        if bytes.capacity() < WORTH_KEEPING {
            return bytes.into();
        }
        Bytes::from_owner(Lent { bytes, home: self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffers, KEPT_BYTES};

    #[test]
    fn a_buffer_comes_back_when_its_last_reader_is_done() {
        let buffers = Buffers::default();
        let mut first = buffers.take(1 << 20);
        first.fill(7);
        let at = first.as_ptr();
        let shared = buffers.lend(first);
        let part = shared.slice(100..200);
        drop(shared);
        let other = buffers.take(1 << 20);
        assert_ne!(other.as_ptr(), at, "it is still read");
        assert_eq!(part[..], [7; 100]);
        drop(part);
        let again = buffers.take((1 << 20) - 4096);
        assert_eq!((again.as_ptr(), again.len()), (at, (1 << 20) - 4096));
        let small = buffers.take(1000);
        assert_ne!(small.as_ptr(), again.as_ptr());
    }

    #[test]
    fn no_more_waits_than_the_bound() {
        let buffers = Buffers::default();
        let lent: Vec<_> = (0..100).map(|_| buffers.lend(buffers.take(1 << 20))).collect();
        drop(lent);
        assert!(buffers.kept.lock().bytes <= KEPT_BYTES);
        assert!(buffers.kept.lock().buffers.len() >= 30);
    }
}
