//! How blocks get into the dedupe cache: regions being filled in memory, and the queue of what goes to the disk.
//!
//! A region is filled with blocks of one size and queue. Its data is handed on in pieces of 256 KiB, its table when it is full. What
//! is in memory only can be read there. Bounds: ten regions being filled (five sizes, two queues) with a piece and a table each,
//! and 8 MiB that wait to be written. A crash loses both.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lamina_contract::{BlockSize, Fingerprint, VolumeId};
use lamina_formats::cache::{HEADER_BYTES, Queue, RegionHeader, SlotEntry, layout};

use crate::cache::{Inner, RESERVE, Slot};
use crate::cache_index::{NewSlot, tag_of};
use crate::cache_regions::Regions;

/// Data is handed to the disk in pieces of this size.
const CHUNK_BYTES: usize = 256 << 10;
/// Data that waits to be written; inserts beyond are left out.
const QUEUE_BYTES: usize = 8 << 20;
/// Sizes of blocks: 4 to 64 KiB.
const SIZES: usize = 5;

/// Bytes on their way to a region.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) region: u32,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    /// Slots within: first and how many; none for headers and tables.
    slots: (u32, u32),
}

/// A region being filled.
#[derive(Debug)]
struct Open {
    region: u32,
    generation: u64,
    slot_bytes: BlockSize,
    queue: Queue,
    /// Slots that fit, and where the first begins.
    layout: (u32, u64),
    /// Entries of all slots so far.
    table: Vec<u8>,
    used: u32,
    /// Data not yet handed on, and its first slot.
    chunk: Vec<u8>,
    chunk_first: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// By slot size and queue.
    open: [[Option<Open>; 2]; SIZES],
    /// In the order they must reach the disk. The first may be under way.
    pub(crate) queue: VecDeque<Arc<Piece>>,
    queued_bytes: usize,
    pub(crate) free: VecDeque<u32>,
    /// Full regions, oldest first.
    pub(crate) probation: VecDeque<u32>,
    pub(crate) main: VecDeque<u32>,
    next_generation: u64,
    /// Tables to read after a restart: newest last.
    pub(crate) to_load: Vec<(u32, u64)>,
    pub(crate) stop: bool,
}

/// A block on its way in.
pub(crate) struct Incoming<'a> {
    pub(crate) volume: VolumeId,
    pub(crate) fingerprint: &'a Fingerprint,
    pub(crate) data: &'a [u8],
    pub(crate) crc: u32,
    pub(crate) slot_bytes: BlockSize,
    pub(crate) queue: Queue,
    pub(crate) hits: u8,
    /// Moves within the cache: may use the reserve and takes the place of the copy it is made from.
    pub(crate) moves: bool,
}

impl Buffers {
    /// Bytes of memory held.
    pub(crate) fn memory_bytes(&self) -> usize {
        let open = self.open.iter().flatten().flatten().map(|open| open.chunk.capacity() + open.table.capacity());
        open.chain(self.queue.iter().map(|piece| piece.bytes.capacity())).sum()
    }

    /// Where generations go on after a restart.
    pub(crate) fn go_on_after(&mut self, generation: u64) {
        self.next_generation = self.next_generation.max(generation);
    }
}

impl Inner {
    /// Copies a block that is still in memory.
    pub(crate) fn read_pending(&self, slot: &Slot, buf: &mut [u8]) -> bool {
        if self.pending.get(slot.region as usize).is_none_or(|pending| pending.load(Ordering::Acquire) == 0) {
            return false;
        }
        let buffers = self.buffers.lock();
        let copy = |bytes: &[u8], first: u32, buf: &mut [u8]| {
            let at = (slot.index - first) as usize * slot.len();
            bytes.get(at..at + slot.len()).map(|block| buf.copy_from_slice(block)).is_some()
        };
        let is_open = |open: &&Open| open.generation == slot.generation && slot.index >= open.chunk_first;
        if let Some(open) = buffers.open.iter().flatten().flatten().find(is_open) {
            return copy(&open.chunk, open.chunk_first, buf);
        }
        let holds = |piece: &&Arc<Piece>| {
            let (first, count) = piece.slots;
            piece.region == slot.region && (first..first + count).contains(&slot.index)
        };
        let piece = buffers.queue.iter().find(holds).cloned();
        drop(buffers);
        piece.is_some_and(|piece| copy(&piece.bytes, piece.slots.0, buf))
    }

    /// Puts a block into the region being filled for its size and queue; false when there is no room.
    pub(crate) fn place(&self, block: &Incoming<'_>) -> bool {
        let size = size_class(block.slot_bytes);
        let queue = usize::from(block.queue == Queue::Main);
        let mut buffers = self.buffers.lock();
        if !block.moves && buffers.queued_bytes >= QUEUE_BYTES {
            return false;
        }
        if buffers.open[size][queue].is_none() {
            let reserve = if block.moves { 0 } else { RESERVE };
            if !self.start(&mut buffers, block, size, queue, reserve) {
                self.work.notify_one();
                return false;
            }
        }
        let Some(open) = &mut buffers.open[size][queue] else { return false };
        let entry =
            SlotEntry { fingerprint: *block.fingerprint, volume: block.volume, crc: block.crc, length: block.slot_bytes.get() };
        entry.encode(&mut open.table);
        open.chunk.extend_from_slice(block.data);
        open.used += 1;
        let region = open.region;
        let (full, chunk_full) = (open.used == open.layout.0, open.chunk.len() + block.data.len() > CHUNK_BYTES);
        if let Some(pending) = self.pending.get(region as usize) {
            pending.fetch_add(1, Ordering::AcqRel);
        }
        let new = NewSlot { tag: tag_of(block.fingerprint), crc: block.crc, volume: block.volume, doubt: false, hits: block.hits };
        self.index.lock().add(region, new, block.moves);
        if full {
            self.seal(&mut buffers, size, queue);
        } else if chunk_full {
            self.hand_on(&mut buffers, size, queue);
        }
        true
    }

    fn start(&self, buffers: &mut Buffers, block: &Incoming<'_>, size: usize, queue: usize, reserve: usize) -> bool {
        let layout = layout_of(&self.regions, block.slot_bytes);
        if layout.0 == 0 || buffers.free.len() <= reserve {
            return false;
        }
        let Some(region) = buffers.free.pop_front() else { return false };
        // Whoever evicts in advance looks at how many are free.
        self.work.notify_one();
        buffers.next_generation += 1;
        let generation = buffers.next_generation;
        self.index.lock().begin(region, generation, block.slot_bytes, layout.0);
        if let Some(current) = self.generations.get(region as usize) {
            current.store(generation, Ordering::Release);
        }
        buffers.open[size][queue] = Some(Open {
            region,
            generation,
            slot_bytes: block.slot_bytes,
            queue: block.queue,
            layout,
            table: Vec::new(),
            used: 0,
            chunk: Vec::with_capacity(CHUNK_BYTES),
            chunk_first: 0,
        });
        true
    }

    /// Hands the data gathered so far to the disk's queue.
    fn hand_on(&self, buffers: &mut Buffers, size: usize, queue: usize) {
        let Some(open) = &mut buffers.open[size][queue] else { return };
        if open.chunk.is_empty() {
            return;
        }
        let first = std::mem::replace(&mut open.chunk_first, open.used);
        let piece = Piece {
            region: open.region,
            offset: open.layout.1 + u64::from(first) * open.slot_bytes.bytes() as u64,
            bytes: std::mem::replace(&mut open.chunk, Vec::with_capacity(CHUNK_BYTES)),
            slots: (first, open.used - first),
        };
        self.enqueue(buffers, piece);
    }

    /// Ends the filling of a region: the rest of its data, then its table.
    fn seal(&self, buffers: &mut Buffers, size: usize, queue: usize) {
        self.hand_on(buffers, size, queue);
        let Some(open) = buffers.open[size][queue].take() else { return };
        let header = RegionHeader {
            region: open.region,
            generation: open.generation,
            region_bytes: self.regions.region_bytes(),
            slot_bytes: open.slot_bytes,
            slots: open.used,
            queue: open.queue,
        };
        self.enqueue(buffers, Piece { region: open.region, offset: 0, bytes: header.encode(&open.table), slots: (0, 0) });
        match open.queue {
            Queue::Probation => buffers.probation.push_back(open.region),
            Queue::Main => buffers.main.push_back(open.region),
        }
    }

    /// Ends the filling of every region.
    pub(crate) fn seal_all(&self, buffers: &mut Buffers) {
        for size in 0..SIZES {
            for queue in 0..2 {
                self.seal(buffers, size, queue);
            }
        }
    }

    /// A free region's header is wiped before anything else is written there.
    pub(crate) fn enqueue_wipe(&self, buffers: &mut Buffers, region: u32) {
        let bytes = vec![0; HEADER_BYTES];
        self.enqueue(buffers, Piece { region, offset: 0, bytes, slots: (0, 0) });
    }

    fn enqueue(&self, buffers: &mut Buffers, piece: Piece) {
        buffers.queued_bytes += piece.bytes.len();
        buffers.queue.push_back(Arc::new(piece));
        self.work.notify_one();
    }

    /// The first of the queue is written.
    pub(crate) fn written(&self, buffers: &mut Buffers) {
        if let Some(piece) = buffers.queue.pop_front() {
            buffers.queued_bytes -= piece.bytes.len();
            self.counters.written.fetch_add(piece.bytes.len() as u64, Ordering::Relaxed);
            if let Some(pending) = self.pending.get(piece.region as usize) {
                pending.fetch_sub(piece.slots.1, Ordering::AcqRel);
            }
        }
    }
}

/// Slots that fit a region and where the first begins.
pub(crate) const fn layout_of(regions: &Regions, slot_bytes: BlockSize) -> (u32, u64) {
    layout(regions.region_bytes(), slot_bytes)
}

fn size_class(size: BlockSize) -> usize {
    // 4096 is 2^12, 65536 is 2^16: five sizes.
    (size.get().trailing_zeros() as usize - 12).min(SIZES - 1)
}
