//! Bytes of a volume for the interface: requests as a guest would send them, while there is no guest.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use lamina_api::appliance::VolumeData;
use lamina_api::data::{Extent, ExtentList};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_contract::{
    BlockAddress, BlockDevice, IoError, Lba, Op, Request, SECTOR_BYTES, SectorCount, Transfer, Transferable, VolumeName,
};
use lamina_engine::Volume;
use parking_lot::Mutex;

use crate::served::{Served, of_engine};

/// How long the engine may take; a throttled write waits for the store.
const PATIENCE: Duration = Duration::from_secs(50);

/// A buffer that answers over a channel.
struct Buffer {
    bytes: Arc<Mutex<Vec<u8>>>,
    length: usize,
    done: SyncSender<Result<(), IoError>>,
}

/// The other end of a [`Buffer`].
struct Waiting {
    bytes: Arc<Mutex<Vec<u8>>>,
    answered: Receiver<Result<(), IoError>>,
}

impl Buffer {
    fn new(bytes: Vec<u8>) -> (Self, Waiting) {
        let (done, answered) = sync_channel(1);
        let length = bytes.len();
        let bytes = Arc::new(Mutex::new(bytes));
        (Self { bytes: Arc::clone(&bytes), length, done }, Waiting { bytes, answered })
    }
}

impl Transferable for Buffer {
    fn len(&self) -> usize {
        self.length
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), IoError> {
        let bytes = self.bytes.lock();
        let from = offset.checked_add(to.len()).and_then(|end| bytes.get(offset..end)).ok_or(IoError::GuestMemory)?;
        to.copy_from_slice(from);
        Ok(())
    }

    fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), IoError> {
        let mut bytes = self.bytes.lock();
        let end = offset.checked_add(from.len()).ok_or(IoError::GuestMemory)?;
        bytes.get_mut(offset..end).ok_or(IoError::GuestMemory)?.copy_from_slice(from);
        Ok(())
    }

    fn fill_zero(&self, offset: usize, len: usize) -> Result<(), IoError> {
        let mut bytes = self.bytes.lock();
        let end = offset.checked_add(len).ok_or(IoError::GuestMemory)?;
        bytes.get_mut(offset..end).ok_or(IoError::GuestMemory)?.fill(0);
        Ok(())
    }

    fn answer(self: Box<Self>, result: Result<(), IoError>) {
        // Nobody may be waiting any more.
        let _ = self.done.try_send(result);
    }
}

impl VolumeData for Served {
    fn extents(&self, volume: &VolumeName, from: u64, limit: usize) -> Result<ExtentList, Problem> {
        let device = self.idle(volume)?;
        let size = u64::from(device.spec().block_size.get());
        let found = self.block_on(device.extents(BlockAddress(from / size), BlockAddress(device.blocks()), limit));
        let (runs, next) = found.map_err(|error| of_engine(&error))?;
        let first_left_out = runs.get(limit).map(|run| run.first).or(next);
        // The first run may begin before what was asked for.
        let extent = |run: &lamina_engine::Extent| {
            let (begin, end) = ((run.first.0 * size).max(from), (run.first.0 + run.count) * size);
            (end > begin).then(|| Extent { offset: begin, length: end - begin })
        };
        let extents = runs.iter().take(limit).filter_map(extent).collect();
        Ok(ExtentList { extents, next_from: first_left_out.map(|block| block.0 * size) })
    }

    fn read_data(&self, volume: &VolumeName, offset: u64, length: u64) -> Result<Vec<u8>, Problem> {
        let device = self.idle(volume)?;
        let length = usize::try_from(length).map_err(|_| outside())?;
        submit(&device, Op::Read, offset, vec![0; length])
    }

    fn write_data(&self, volume: &VolumeName, offset: u64, bytes: &[u8]) -> Result<(), Problem> {
        let device = self.idle(volume)?;
        submit(&device, Op::Write { fua: true }, offset, bytes.to_vec()).map(|_| ())
    }
}

fn outside() -> Problem {
    Problem::new(ProblemKind::InvalidRequest, "that is outside the volume")
}

/// Does `op` with `bytes`, which are given back.
fn submit(device: &Volume, op: Op, offset: u64, bytes: Vec<u8>) -> Result<Vec<u8>, Problem> {
    let length = bytes.len() as u64;
    let end = offset.checked_add(length).ok_or_else(outside)?;
    if end > device.geometry().sectors.bytes() {
        return Err(outside());
    }
    // The interface takes whole sectors only.
    let (start, sectors) = (Lba(offset / SECTOR_BYTES), SectorCount(length / SECTOR_BYTES));
    let (buffer, waiting) = Buffer::new(bytes);
    device.submit(&mut vec![Request { op, start, sectors, transfer: Transfer::new(Box::new(buffer)) }]);
    match waiting.answered.recv_timeout(PATIENCE) {
        Ok(Ok(())) => Ok(std::mem::take(&mut *waiting.bytes.lock())),
        Ok(Err(IoError::OutOfRange)) => Err(outside()),
        Ok(Err(IoError::ReadOnly)) => Err(Problem::new(ProblemKind::Conflict, "this volume refuses writes")),
        Ok(Err(error)) => {
            Err(Problem::caused(ProblemKind::Unavailable, &error).advise("`lamina status` and the daemon's log say why"))
        }
        Err(_) => Err(Problem::new(ProblemKind::Unavailable, "the volume takes longer than 50 seconds").advise("try it again")),
    }
}
