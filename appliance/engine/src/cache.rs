//! The dedupe cache: blocks on the SSD by fingerprint, one copy for all volumes of the node; never the only copy.
//!
//! ```text
//! insert → 256 KiB in memory → region (slots of one size) → table, when full        find → slot → read → CRC → hit
//!            probation: seen once   │ full: the oldest goes; what was wanted moves to main, the rest to the ghost
//!            main: wanted again     │ full: the oldest goes; what was wanted since moves to its front
//! ```
//! Invariants: a hit is exactly what was inserted under that fingerprint (CRC over fingerprint and data; the first hit after a
//! restart is hashed too); a slot carries its region's generation, which ends before the region is written again; memory is
//! bounded (an insert that finds no room is left out). Any error of the disk turns the cache off and is nobody's I/O error.
//!
//! A crash leaves full regions with their tables, which come back; regions being filled are lost. Two queues after S3-FIFO (Yang
//! et al., SOSP 2023), with regions instead of objects: a scan passes through probation, a tenth of the space.
//!
//! Locks, in this order: `upkeep`, `buffers`, `index`. None is held over disk I/O but `upkeep`, which inserts never wait for.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;

use lamina_contract::{BlockSize, Disk, Fingerprint, VolumeId};
use lamina_formats::cache::{Queue, layout, slot_checksum};
use parking_lot::{Condvar, Mutex};
use sha2::{Digest, Sha256};

use crate::cache_fill::{Buffers, Incoming, layout_of};
use crate::cache_index::{Found, Index, tag_of};
use crate::cache_regions::Regions;

/// Free regions that only blocks which move to main may take: an eviction fills at most one before it frees one.
pub(crate) const RESERVE: usize = 2;
/// Below this many free regions the oldest are evicted in advance.
pub(crate) const LOW: usize = RESERVE + 2;
/// Slot numbers are 32 bits wide: with slots of 4 KiB that is 16 TiB.
const MOST_BYTES: u64 = 8 << 40;
const LEAST_REGION: u64 = 128 << 10;
const MOST_REGION: u64 = 1 << 30;

/// Who does the cache's writing and evicting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upkeep {
    /// A thread of its own: inserts never touch the disk.
    Thread,
    /// Whoever inserts, so that a simulation decides when it happens.
    Inline,
}

/// How large and how run.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// Space on the SSD; 0 turns the cache off.
    pub bytes: u64,
    /// Space of a region, the unit of eviction: a power of two from 128 KiB to 1 GiB. Made smaller when fewer than 16 would fit.
    pub region_bytes: u64,
    /// Who writes.
    pub upkeep: Upkeep,
    /// Random, so that nobody can aim blocks at one bucket of the index.
    pub hash_keys: [u64; 2],
}

impl CacheConfig {
    /// `bytes` in regions of 16 MiB, with a thread.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self { bytes, region_bytes: 16 << 20, upkeep: Upkeep::Thread, hash_keys: rand::random() }
    }
}

/// Why the cache could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Not a power of two from 128 KiB to 1 GiB.
    #[error("cache regions of {bytes} bytes: must be a power of two from 128 KiB to 1 GiB")]
    RegionBytes {
        /// The refused value.
        bytes: u64,
    },
    /// More than slots can be numbered.
    #[error("a dedupe cache of {bytes} bytes: at most 8 TiB are supported")]
    TooLarge {
        /// The refused value.
        bytes: u64,
    },
    /// The SSD failed.
    #[error("dedupe cache: {doing}")]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// Where a block is. It holds nothing in place: a read finds out whether it is still there.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    fingerprint: Fingerprint,
    pub(crate) generation: u64,
    pub(crate) region: u32,
    pub(crate) index: u32,
    crc: u32,
    slot_bytes: BlockSize,
    doubt: bool,
}

impl Slot {
    /// Bytes of the block: what a buffer for it must have.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.slot_bytes.bytes()
    }

    /// Blocks are never empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }
}

/// What became of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheRead {
    /// The buffer holds the block, checked.
    Hit,
    /// The device must be waited for: use [`DedupeCache::read_later`].
    WouldBlock,
    /// Evicted meanwhile, or the cache is off.
    Gone,
    /// The copy was damaged; it is forgotten now.
    Bad,
}

/// Counters since the cache was opened, and its fill.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Reads that were answered.
    pub hits: u64,
    /// Fingerprints asked for that were not there.
    pub misses: u64,
    /// Blocks taken in.
    pub inserts: u64,
    /// Blocks left out: no room in memory, no free region, or over quota.
    pub skipped: u64,
    /// Blocks evicted.
    pub evictions: u64,
    /// Blocks that moved to main, or to its front, instead.
    pub kept: u64,
    /// Damaged copies found.
    pub bad: u64,
    /// Bytes of blocks that can be found.
    pub bytes: u64,
    /// Bytes of space for regions.
    pub capacity: u64,
    /// Bytes written to the SSD.
    pub bytes_written: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    inserts: AtomicU64,
    skipped: AtomicU64,
    pub(crate) evictions: AtomicU64,
    pub(crate) kept: AtomicU64,
    bad: AtomicU64,
    pub(crate) written: AtomicU64,
}

pub(crate) struct Inner {
    pub(crate) regions: Regions,
    pub(crate) index: Mutex<Index>,
    pub(crate) buffers: Mutex<Buffers>,
    pub(crate) work: Condvar,
    /// Held by whoever writes and evicts.
    pub(crate) upkeep: Mutex<()>,
    /// The regions' generations as readers check them; 0 while a region is free.
    pub(crate) generations: Vec<AtomicU64>,
    /// Slots of each region that are in memory only.
    pub(crate) pending: Vec<AtomicU32>,
    pub(crate) failed: AtomicBool,
    pub(crate) counters: Counters,
    inline: bool,
}

/// See the file's header. Cheap to share behind an `Arc`; all methods may be called from many threads.
pub struct DedupeCache {
    inner: Arc<Inner>,
    worker: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for DedupeCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DedupeCache").field("stats", &self.stats()).field("failed", &self.is_failed()).finish()
    }
}

impl DedupeCache {
    /// Opens the cache in `disk`, with what the regions there hold. Reads one page per region; tables follow in the background.
    ///
    /// # Errors
    /// [`CacheError`] when the configuration is impossible or the disk fails.
    pub fn open(disk: Arc<dyn Disk>, config: CacheConfig) -> Result<Self, CacheError> {
        if !config.region_bytes.is_power_of_two() || !(LEAST_REGION..=MOST_REGION).contains(&config.region_bytes) {
            return Err(CacheError::RegionBytes { bytes: config.region_bytes });
        }
        if config.bytes > MOST_BYTES {
            return Err(CacheError::TooLarge { bytes: config.bytes });
        }
        let doing = |doing| move |cause| CacheError::Disk { doing, cause };
        let mut region_bytes = config.region_bytes;
        while region_bytes > LEAST_REGION && config.bytes / region_bytes < 16 {
            region_bytes /= 2;
        }
        // With fewer regions than this nothing could ever be evicted: reserve, one being filled in each queue, one full.
        let bytes = if config.bytes / region_bytes < RESERVE as u64 + 4 { 0 } else { config.bytes };
        let regions = Regions::open(&*disk, bytes, region_bytes).map_err(doing("opening its files"))?;
        let stride = layout(region_bytes, BlockSize::DEFAULT).0;
        let count = regions.count();
        let index = Index::new(count, stride.max(1), config.hash_keys);
        let inner = Arc::new(Inner {
            index: Mutex::new(index),
            buffers: Mutex::default(),
            work: Condvar::new(),
            upkeep: Mutex::new(()),
            generations: (0..count).map(|_| AtomicU64::new(0)).collect(),
            pending: (0..count).map(|_| AtomicU32::new(0)).collect(),
            failed: AtomicBool::new(false),
            counters: Counters::default(),
            inline: config.upkeep == Upkeep::Inline,
            regions,
        });
        inner.see_regions().map_err(doing("reading its regions"))?;
        let worker = match config.upkeep {
            Upkeep::Inline => {
                inner.load_tables();
                None
            }
            Upkeep::Thread if count == 0 => None,
            Upkeep::Thread => {
                let inner = inner.clone();
                let thread = std::thread::Builder::new().name("lamina-cache".to_owned());
                Some(thread.spawn(move || inner.keep_up()).map_err(doing("starting its thread"))?)
            }
        };
        Ok(Self { inner, worker })
    }

    /// Where the block with this fingerprint is; asking makes it stay longer.
    #[must_use]
    pub fn find(&self, fingerprint: &Fingerprint) -> Option<Slot> {
        if self.is_failed() {
            return None;
        }
        let found = self.inner.index.lock().find(tag_of(fingerprint));
        self.slot(fingerprint, found)
    }

    /// [`DedupeCache::find`] for many, appended to `slots`.
    pub fn find_all<'a>(&self, fingerprints: impl Iterator<Item = &'a Fingerprint>, slots: &mut Vec<Option<Slot>>) {
        if self.is_failed() {
            return slots.extend(fingerprints.map(|_| None));
        }
        let mut index = self.inner.index.lock();
        slots.extend(fingerprints.map(|fingerprint| self.slot(fingerprint, index.find(tag_of(fingerprint)))));
    }

    fn slot(&self, fingerprint: &Fingerprint, found: Option<Found>) -> Option<Slot> {
        if found.is_none() {
            self.inner.counters.misses.fetch_add(1, Ordering::Relaxed);
        }
        found.map(|found| Slot {
            fingerprint: *fingerprint,
            generation: found.generation,
            region: found.region,
            index: found.index,
            crc: found.crc,
            slot_bytes: found.slot_bytes,
            doubt: found.doubt,
        })
    }

    /// Whether the block is here; does not count as a use.
    #[must_use]
    pub fn contains(&self, fingerprint: &Fingerprint) -> bool {
        !self.is_failed() && self.inner.index.lock().contains(tag_of(fingerprint))
    }

    /// Reads a block if that needs no waiting. `buf` has [`Slot::len`] bytes and holds nothing of use unless this is a hit.
    #[must_use]
    pub fn read(&self, slot: Slot, buf: &mut [u8]) -> CacheRead {
        let inner = &self.inner;
        debug_assert_eq!(buf.len(), slot.len());
        if buf.len() != slot.len() || self.is_failed() {
            return CacheRead::Gone;
        }
        if inner.read_pending(&slot, buf) {
            return inner.verify(&slot, buf);
        }
        let read = inner.offset_of(&slot).and_then(|(offset, file)| file.read_cached(offset, buf));
        match read {
            Ok(true) => inner.verify(&slot, buf),
            Ok(false) => CacheRead::WouldBlock,
            Err(cause) => {
                inner.fail("reading a block", &cause);
                CacheRead::Gone
            }
        }
    }

    /// Reads a block in the background; `done` gets what became of it and, for a hit, the block; it is called from some
    /// thread, or at once.
    pub fn read_later(&self, slot: Slot, done: impl FnOnce(CacheRead, Vec<u8>) + Send + 'static) {
        let inner = self.inner.clone();
        let mut buf = vec![0; slot.len()];
        if self.is_failed() {
            return done(CacheRead::Gone, buf);
        }
        if inner.read_pending(&slot, &mut buf) {
            return done(inner.verify(&slot, &buf), buf);
        }
        match inner.offset_of(&slot).map(|(offset, file)| (offset, file.clone())) {
            Ok((offset, file)) => file.read_later(
                offset,
                buf,
                Box::new(move |read| match read {
                    Ok(buf) => done(inner.verify(&slot, &buf), buf),
                    Err(cause) => {
                        inner.fail("reading a block", &cause);
                        done(CacheRead::Gone, Vec::new());
                    }
                }),
            ),
            Err(_) => done(CacheRead::Gone, buf),
        }
    }

    /// Takes a block in, if it is not here and there is room. `data` is a block of 4 to 64 KiB that has this fingerprint: the caller
    /// has hashed or checked it.
    pub fn insert(&self, volume: VolumeId, fingerprint: &Fingerprint, data: &[u8]) {
        let inner = &self.inner;
        let Ok(slot_bytes) = BlockSize::new(data.len() as u64) else { return };
        if self.is_failed() || inner.regions.count() == 0 {
            return;
        }
        let tag = tag_of(fingerprint);
        let queue = {
            let index = inner.index.lock();
            if index.contains(tag) {
                return;
            }
            if !index.may_add(volume, data.len() as u64) {
                inner.counters.skipped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            if index.is_ghost(tag) { Queue::Main } else { Queue::Probation }
        };
        let crc = slot_checksum(fingerprint, data);
        let counter = match inner.place(&Incoming { volume, fingerprint, data, crc, slot_bytes, queue, hits: 0, moves: false }) {
            true => &inner.counters.inserts,
            false => &inner.counters.skipped,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if inner.inline {
            inner.upkeep_now();
        }
    }

    /// Forgets a block, as when its data proved wrong elsewhere.
    pub fn forget(&self, fingerprint: &Fingerprint) {
        self.inner.index.lock().forget(tag_of(fingerprint), None);
    }

    /// Bounds the bytes that blocks inserted by `volume` may take; what is above already stays until it is evicted.
    pub fn set_quota(&self, volume: VolumeId, bytes: Option<u64>) {
        self.inner.index.lock().set_quota(volume, bytes);
    }

    /// Bytes of blocks here that `volume` inserted.
    #[must_use]
    pub fn bytes_of(&self, volume: VolumeId) -> u64 {
        self.inner.index.lock().bytes_of(volume)
    }

    /// Whether the disk failed and the cache is off.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.inner.failed.load(Ordering::Acquire)
    }

    /// Counters and fill.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let counters = &self.inner.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            hits: get(&counters.hits),
            misses: get(&counters.misses),
            inserts: get(&counters.inserts),
            skipped: get(&counters.skipped),
            evictions: get(&counters.evictions),
            kept: get(&counters.kept),
            bad: get(&counters.bad),
            bytes: self.inner.index.lock().live_bytes(),
            capacity: u64::from(self.inner.regions.count()) * self.inner.regions.region_bytes(),
            bytes_written: get(&counters.written),
        }
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let buffers = self.inner.buffers.lock();
        buffers.memory_bytes() + self.inner.index.lock().memory_bytes() + self.inner.generations.len() * 12
    }

    /// Ends an orderly run: what is being filled is closed and written, so that a restart finds it. Waits for the disk.
    pub fn close(&self) {
        let inner = &self.inner;
        let upkeep = inner.upkeep.lock();
        inner.seal_all(&mut inner.buffers.lock());
        inner.write_all();
        drop(upkeep);
    }

    /// Waits until everything that was inserted is written and tables are loaded: for tests and measurements.
    #[cfg(test)]
    pub(crate) fn settle(&self) {
        loop {
            {
                let buffers = self.inner.buffers.lock();
                let idle = buffers.queue.is_empty() && buffers.to_load.is_empty() && buffers.free.len() >= LOW;
                if idle || self.is_failed() {
                    return;
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

impl Drop for DedupeCache {
    fn drop(&mut self) {
        self.inner.buffers.lock().stop = true;
        self.inner.work.notify_all();
        if let Some(worker) = self.worker.take() {
            // A worker that panicked has nothing to tell: the cache is only a cache.
            let _ = worker.join();
        }
    }
}

impl Inner {
    /// Turns the cache off.
    pub(crate) fn fail(&self, doing: &'static str, cause: &io::Error) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(doing, %cause, "dedupe cache: its disk failed, going on without");
        }
        self.work.notify_all();
    }

    fn offset_of(&self, slot: &Slot) -> io::Result<(u64, &Arc<dyn lamina_contract::DiskFile>)> {
        let (_, start) = layout_of(&self.regions, slot.slot_bytes);
        let (file, at) = self.regions.place(slot.region, start + u64::from(slot.index) * slot.len() as u64)?;
        Ok((at, file))
    }

    fn generation(&self, region: u32) -> u64 {
        self.generations.get(region as usize).map_or(0, |generation| generation.load(Ordering::Acquire))
    }

    fn verify(&self, slot: &Slot, data: &[u8]) -> CacheRead {
        if self.generation(slot.region) != slot.generation {
            return CacheRead::Gone;
        }
        let right = data.len() == slot.len()
            && slot_checksum(&slot.fingerprint, data) == slot.crc
            && (!slot.doubt || Sha256::digest(data)[..] == slot.fingerprint.0);
        let tag = tag_of(&slot.fingerprint);
        if !right {
            // A region that was written again meanwhile is no damage.
            if self.generation(slot.region) != slot.generation {
                return CacheRead::Gone;
            }
            self.index.lock().forget(tag, Some((slot.region, slot.generation)));
            self.counters.bad.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(region = slot.region, slot = slot.index, "dedupe cache: a damaged block was dropped");
            return CacheRead::Bad;
        }
        if slot.doubt {
            self.index.lock().trust(tag);
        }
        self.counters.hits.fetch_add(1, Ordering::Relaxed);
        CacheRead::Hit
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
