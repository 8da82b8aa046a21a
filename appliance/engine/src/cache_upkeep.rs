//! What the dedupe cache does behind its callers: writing what was inserted, evicting the oldest regions, loading tables.
//!
//! One at a time does this (`upkeep`). Pieces reach the disk in the order they were queued: a region's wiped header before its new
//! data, its data before its table. An eviction reads the region's table and the blocks that were wanted, moves those to main, and
//! only then ends the region's generation.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use lamina_contract::BlockSize;
use lamina_formats::cache::{Queue, slot_checksum};
use sha2::{Digest, Sha256};

use crate::cache::{Inner, LOW, RESERVE};
use crate::cache_fill::{Buffers, Incoming, layout_of};
use crate::cache_index::{NewSlot, tag_of};

/// Slots forgotten under one hold of the lock: about 25 µs.
const BATCH: u32 = 256;

impl Inner {
    /// The thread's life.
    pub(crate) fn keep_up(&self) {
        loop {
            {
                let mut buffers = self.buffers.lock();
                if buffers.stop {
                    return;
                }
                if self.failed.load(Ordering::Acquire)
                    || buffers.queue.is_empty() && buffers.to_load.is_empty() && (buffers.free.len() >= LOW || !can_evict(&buffers))
                {
                    self.work.wait(&mut buffers);
                    continue;
                }
            }
            let _upkeep = self.upkeep.lock();
            self.step();
        }
    }

    /// All that is due, in the caller's thread; whoever comes while another is at it leaves it to him.
    pub(crate) fn upkeep_now(&self) {
        let Some(_upkeep) = self.upkeep.try_lock() else { return };
        while !self.failed.load(Ordering::Acquire) {
            let due = {
                let buffers = self.buffers.lock();
                !buffers.queue.is_empty() || buffers.free.len() <= RESERVE && can_evict(&buffers)
            };
            if !due {
                return;
            }
            self.step();
        }
    }

    /// One piece of work: tables first, then whatever inserts wait for.
    fn step(&self) {
        let (load, free, queued) = {
            let mut buffers = self.buffers.lock();
            (buffers.to_load.pop(), buffers.free.len(), !buffers.queue.is_empty())
        };
        if let Some((region, generation)) = load {
            self.load_table(region, generation);
            self.write_first();
        } else if free <= RESERVE {
            self.evict();
        } else if queued {
            self.write_first();
        } else if free < LOW {
            self.evict();
        }
    }

    /// Writes everything queued.
    pub(crate) fn write_all(&self) {
        while self.write_first() {}
    }

    /// Writes the first piece of the queue; false when there is none or the disk failed.
    fn write_first(&self) -> bool {
        if self.failed.load(Ordering::Acquire) {
            return false;
        }
        let Some(piece) = self.buffers.lock().queue.front().map(Arc::clone) else { return false };
        match self.regions.write(piece.region, piece.offset, &piece.bytes) {
            Ok(()) => {
                self.written(&mut self.buffers.lock());
                true
            }
            Err(cause) => {
                self.fail("writing a region", &cause);
                false
            }
        }
    }

    /// Frees the oldest region of the queue that is over its share.
    fn evict(&self) {
        let victim = {
            let mut buffers = self.buffers.lock();
            // A tenth of the space is probation's share.
            let over = buffers.probation.len() * 10 > self.regions.count() as usize;
            let probation = over || buffers.main.is_empty();
            let from = if probation { &mut buffers.probation } else { &mut buffers.main };
            from.pop_front().map(|region| (region, if probation { Queue::Probation } else { Queue::Main }))
        };
        let Some((region, queue)) = victim else { return };
        // The victim's own data and table may still be queued.
        self.write_all();
        let wanted = self.index.lock().wanted(region);
        if !wanted.is_empty() {
            self.keep_wanted(region, queue, &wanted);
        }
        let (mut from, mut gone) = (0, 0);
        loop {
            let Some((next, count)) = self.index.lock().clear_some(region, from, BATCH, queue == Queue::Probation) else { break };
            (from, gone) = (next, gone + count);
        }
        self.counters.evictions.fetch_add(gone, Ordering::Relaxed);
        if let Some(generation) = self.generations.get(region as usize) {
            generation.store(0, Ordering::Release);
        }
        self.index.lock().end(region);
        let mut buffers = self.buffers.lock();
        self.enqueue_wipe(&mut buffers, region);
        buffers.free.push_back(region);
    }

    /// Moves the blocks of `region` that were wanted to main.
    fn keep_wanted(&self, region: u32, queue: Queue, wanted: &[(u32, u8)]) {
        let read = self.regions.header(region).and_then(|header| match header {
            Some(header) => {
                let (slots, start) = layout_of(&self.regions, header.slot_bytes);
                let table = self.regions.table(region, header.generation, start)?;
                Ok(table.map(|table| (header.slot_bytes, slots, start, table)))
            }
            None => Ok(None),
        });
        let (slot_bytes, slots, start, table) = match read {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(cause) => return self.fail("reading a table", &cause),
        };
        let mut wanted = wanted.to_vec();
        if queue == Queue::Main {
            // So that evicting from main always gains a quarter of a region, however hot everything is.
            wanted.sort_by_key(|&(_, hits)| std::cmp::Reverse(hits));
            wanted.truncate(slots as usize * 3 / 4);
        }
        let mut data = vec![0; slot_bytes.bytes()];
        for (index, hits) in wanted {
            let Some(entry) = table.get(index as usize) else { continue };
            let offset = start + u64::from(index) * slot_bytes.bytes() as u64;
            if let Err(cause) = self.regions.read(region, offset, &mut data) {
                return self.fail("reading a block", &cause);
            }
            let crc = slot_checksum(&entry.fingerprint, &data);
            // A new region's blocks are trusted, so what moves there is hashed.
            let right = crc == entry.crc && Sha256::digest(&data)[..] == entry.fingerprint.0;
            if !right || !self.index.lock().is_live(region, index) {
                continue;
            }
            let block = Incoming {
                volume: entry.volume,
                fingerprint: &entry.fingerprint,
                data: &data,
                crc,
                slot_bytes,
                queue: Queue::Main,
                // Main's blocks must be wanted again to stay again.
                hits: if queue == Queue::Main { hits - 1 } else { 0 },
                moves: true,
            };
            if !self.place(&block) {
                return;
            }
            self.counters.kept.fetch_add(1, Ordering::Relaxed);
            if self.buffers.lock().queue.len() > 4 {
                self.write_all();
            }
        }
    }

    /// Looks at every region's header: free, or full and to be loaded.
    pub(crate) fn see_regions(&self) -> std::io::Result<()> {
        let mut full = Vec::new();
        let mut free = std::collections::VecDeque::new();
        for region in 0..self.regions.count() {
            match self.regions.header(region)? {
                Some(header) => full.push(header),
                None => free.push_back(region),
            }
        }
        full.sort_unstable_by_key(|header| header.generation);
        let mut buffers = self.buffers.lock();
        buffers.free = free;
        for header in full {
            match header.queue {
                Queue::Probation => buffers.probation.push_back(header.region),
                Queue::Main => buffers.main.push_back(header.region),
            }
            buffers.to_load.push((header.region, header.generation));
            buffers.go_on_after(header.generation);
        }
        Ok(())
    }

    /// Loads every table.
    pub(crate) fn load_tables(&self) {
        let _upkeep = self.upkeep.lock();
        loop {
            let Some((region, generation)) = self.buffers.lock().to_load.pop() else { return };
            self.load_table(region, generation);
        }
    }

    fn load_table(&self, region: u32, generation: u64) {
        let read = self.regions.header(region).and_then(|header| match header {
            Some(header) => {
                let start = layout_of(&self.regions, header.slot_bytes).1;
                Ok(self.regions.table(region, generation, start)?.map(|table| (header.slot_bytes, table)))
            }
            None => Ok(None),
        });
        let (slot_bytes, table): (BlockSize, _) = match read {
            Ok(Some(found)) => found,
            // A damaged table: the region stays in its queue, empty, until its turn to be evicted comes.
            Ok(None) => return,
            Err(cause) => return self.fail("reading a table", &cause),
        };
        self.index.lock().begin(region, generation, slot_bytes, table.len() as u32);
        if let Some(current) = self.generations.get(region as usize) {
            current.store(generation, Ordering::Release);
        }
        for batch in table.chunks(BATCH as usize) {
            let mut index = self.index.lock();
            for entry in batch {
                let new = NewSlot { tag: tag_of(&entry.fingerprint), crc: entry.crc, volume: entry.volume, doubt: true, hits: 0 };
                index.add(region, new, false);
            }
        }
    }
}

fn can_evict(buffers: &Buffers) -> bool {
    !buffers.probation.is_empty() || !buffers.main.is_empty()
}
