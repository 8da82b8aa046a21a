//! Devices without storage: a disk in memory for tests, demonstrations and measurements, and one that holds nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use lamina_contract::{BlockDevice, DeviceGeometry, IoError, Op, Request, SectorCount};
use parking_lot::RwLock;

/// Bytes allocated at a time.
const CHUNK: u64 = 64 << 10;
/// Locks that chunks are spread over.
const SHARDS: usize = 64;

type Shard = RwLock<HashMap<u64, Box<[u8]>>>;

/// A sparse disk in memory. Requests are answered inside `submit`; flush has nothing to do and is counted.
#[derive(Debug)]
pub struct RamDisk {
    /// All but its size.
    geometry: DeviceGeometry,
    sectors: AtomicU64,
    shards: Vec<Shard>,
    flushes: AtomicU64,
    forced: AtomicU64,
}

impl RamDisk {
    /// A disk of `sectors` sectors, all zeros.
    #[must_use]
    pub fn new(sectors: SectorCount) -> Self {
        let serial = "lamina-ram".to_owned();
        Self::with_geometry(DeviceGeometry { sectors, physical_block: 4096, optimal_io: 65536, read_only: false, serial })
    }

    /// A disk with this shape, all zeros.
    #[must_use]
    pub fn with_geometry(geometry: DeviceGeometry) -> Self {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        let sectors = AtomicU64::new(geometry.sectors.0);
        Self { geometry, sectors, shards, flushes: AtomicU64::new(0), forced: AtomicU64::new(0) }
    }

    /// Changes its size. What lies behind a new end is gone: it reads as zeros if the disk grows again.
    pub fn resize(&self, sectors: SectorCount) {
        let old = self.sectors.swap(sectors.0, Ordering::SeqCst);
        if sectors.0 >= old {
            return;
        }
        let end = sectors.0 * 512;
        for shard in &self.shards {
            // A write looks at the size again under this lock, so none comes behind us.
            let mut chunks = shard.write();
            chunks.retain(|chunk, _| chunk * CHUNK < end);
            if let Some(tail) = chunks.get_mut(&(end / CHUNK)).and_then(|bytes| bytes.get_mut((end % CHUNK) as usize..)) {
                tail.fill(0);
            }
        }
    }

    fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::SeqCst)
    }

    /// How many flushes arrived.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// How many writes with `fua` arrived.
    #[must_use]
    pub fn forced_writes(&self) -> u64 {
        self.forced.load(Ordering::Relaxed)
    }

    fn shard(&self, chunk: u64) -> Result<&Shard, IoError> {
        self.shards.get((chunk % SHARDS as u64) as usize).ok_or(IoError::Io)
    }

    fn serve(&self, request: &Request) -> Result<(), IoError> {
        match request.op {
            Op::Flush => {
                self.flushes.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Op::Write { fua: true } => _ = self.forced.fetch_add(1, Ordering::Relaxed),
            Op::Write { fua: false } | Op::Read | Op::Discard | Op::WriteZeroes { .. } => {}
        }
        let end = request.start.0.checked_add(request.sectors.0).ok_or(IoError::OutOfRange)?;
        if end > self.sectors() {
            return Err(IoError::OutOfRange);
        }
        if self.geometry.read_only && request.op != Op::Read {
            return Err(IoError::ReadOnly);
        }
        let mut at = request.start.0 * 512;
        let (start, end) = (at, end * 512);
        while at < end {
            let (chunk, within) = (at / CHUNK, at % CHUNK);
            let take = (CHUNK - within).min(end - at);
            self.piece(request, chunk, within as usize..(within + take) as usize, (at - start) as usize)?;
            at += take;
        }
        Ok(())
    }

    fn piece(&self, request: &Request, chunk: u64, range: std::ops::Range<usize>, offset: usize) -> Result<(), IoError> {
        let shard = self.shard(chunk)?;
        match request.op {
            Op::Read => match shard.read().get(&chunk).and_then(|bytes| bytes.get(range.clone())) {
                Some(bytes) => request.transfer.copy_in(offset, bytes),
                None => request.transfer.fill_zero(offset, range.len()),
            },
            Op::Write { .. } => {
                let mut chunks = shard.write();
                if chunk * CHUNK + range.end as u64 > self.sectors() * 512 {
                    return Err(IoError::OutOfRange);
                }
                let bytes = chunks.entry(chunk).or_insert_with(|| vec![0; CHUNK as usize].into_boxed_slice());
                request.transfer.copy_out(offset, bytes.get_mut(range).ok_or(IoError::Io)?)
            }
            Op::Discard | Op::WriteZeroes { .. } => {
                let mut chunks = shard.write();
                if range.len() == CHUNK as usize {
                    chunks.remove(&chunk);
                } else if let Some(bytes) = chunks.get_mut(&chunk).and_then(|bytes| bytes.get_mut(range)) {
                    bytes.fill(0);
                }
                Ok(())
            }
            Op::Flush => Ok(()),
        }
    }
}

impl BlockDevice for RamDisk {
    fn geometry(&self) -> DeviceGeometry {
        DeviceGeometry { sectors: SectorCount(self.sectors()), ..self.geometry.clone() }
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        for request in batch.drain(..) {
            let result = self.serve(&request);
            request.transfer.answer(result);
        }
    }
}

/// A disk that forgets every write and reads as zeros without touching the guest's buffer: what a server alone costs.
#[derive(Debug)]
pub struct NullDisk {
    sectors: SectorCount,
}

impl NullDisk {
    /// A disk of `sectors` sectors.
    #[must_use]
    pub fn new(sectors: SectorCount) -> Self {
        Self { sectors }
    }
}

impl BlockDevice for NullDisk {
    fn geometry(&self) -> DeviceGeometry {
        let serial = "lamina-null".to_owned();
        DeviceGeometry { sectors: self.sectors, physical_block: 4096, optimal_io: 4096, read_only: false, serial }
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        for request in batch.drain(..) {
            request.transfer.answer(Ok(()));
        }
    }
}
