//! Walks one descriptor chain into segments of guest memory (virtio 1.2, 2.7.5).
//!
//! Bounds: at most the ring's size of descriptors directly in the ring, at most [`MAX_INDIRECT`] in an indirect table; every
//! descriptor is read once; a loop runs into the bound. Zero-length descriptors carry nothing and are skipped.
//! A malformed chain still says where its status byte would be, if it got that far, so that it can be answered.

use virtio_queue::desc::split::Descriptor;

use crate::memory::{GuestMemory, Segment};
use crate::ring::{RingLayout, load_descriptor};

/// Entries of an indirect table: twice what `seg_max` lets an honest driver use. (A driver goes by `seg_max`, not by the ring's
/// size, so that a small ring must not lower this.)
pub(crate) const MAX_INDIRECT: u32 = 256;

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainFault {
    #[error("chain is longer than its table")]
    TooLong,
    #[error("next descriptor lies outside the table")]
    NextOutside,
    #[error("buffer lies outside guest memory")]
    BufferOutside,
    #[error("device-readable descriptor behind a device-writable one")]
    Order,
    #[error("indirect table inside an indirect table, or not at the end of the chain")]
    NestedIndirect,
    #[error("indirect table is empty, too large, not a multiple of 16 bytes or outside guest memory")]
    IndirectTable,
}

/// A chain's buffers; reused from chain to chain so that walking allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    segments: Vec<Segment>,
    /// Segments before this are device-readable, the others device-writable.
    readable: usize,
    table: Vec<Segment>,
}

impl Chain {
    pub(crate) fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }

    pub(crate) fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }

    /// Where the status byte goes: the last byte of the last device-writable segment.
    pub(crate) fn status(&self) -> Option<Segment> {
        let last = self.writable().last()?;
        // SAFETY: segments are never empty, so len - 1 is inside.
        let at = unsafe { last.at.add(last.len as usize - 1) };
        Some(Segment { at, len: 1, region: last.region })
    }

    /// Walks the chain that starts at `head` (below the ring's size).
    pub(crate) fn walk(&mut self, ring: &RingLayout, head: u16) -> Result<(), ChainFault> {
        self.segments.clear();
        self.readable = 0;
        let memory = ring.memory();
        let size = ring.size().get();
        let mut index = head;
        for _ in 0..size {
            let descriptor = ring.descriptor(index);
            if descriptor.refers_to_indirect_table() {
                return if descriptor.has_next() {
                    Err(ChainFault::NestedIndirect)
                } else {
                    self.walk_indirect(memory, &descriptor)
                };
            }
            self.take(memory, &descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
            if index >= size {
                return Err(ChainFault::NextOutside);
            }
        }
        Err(ChainFault::TooLong)
    }

    fn walk_indirect(&mut self, memory: &GuestMemory, table: &Descriptor) -> Result<(), ChainFault> {
        let entries = table.len() / 16;
        if !table.len().is_multiple_of(16) || entries == 0 || entries > MAX_INDIRECT {
            return Err(ChainFault::IndirectTable);
        }
        self.table.clear();
        if !memory.resolve(table.addr().0, table.len(), &mut self.table) {
            return Err(ChainFault::IndirectTable);
        }
        let [table] = self.table[..] else { return Err(ChainFault::IndirectTable) };
        let mut index = 0;
        for _ in 0..entries {
            let descriptor = load_descriptor(&table, index);
            if descriptor.refers_to_indirect_table() {
                return Err(ChainFault::NestedIndirect);
            }
            self.take(memory, &descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
            if u32::from(index) >= entries {
                return Err(ChainFault::NextOutside);
            }
        }
        Err(ChainFault::TooLong)
    }

    fn take(&mut self, memory: &GuestMemory, descriptor: &Descriptor) -> Result<(), ChainFault> {
        let before = self.segments.len();
        let writable = descriptor.is_write_only();
        if !writable && self.readable < before {
            return Err(ChainFault::Order);
        }
        if !memory.resolve(descriptor.addr().0, descriptor.len(), &mut self.segments) {
            self.segments.truncate(before);
            return Err(ChainFault::BufferOutside);
        }
        if !writable {
            self.readable = self.segments.len();
        }
        Ok(())
    }
}

/// Sum of the lengths. No overflow: at most 32768 descriptors of less than 4 GiB.
pub(crate) fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.len)).sum()
}
