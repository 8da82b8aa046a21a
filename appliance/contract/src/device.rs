//! The seam between a guest's front end and a volume: requests that carry their own answer.
//!
//! A front end (vhost-user-blk, NBD) makes [`Request`]s and hands a batch of them to a [`BlockDevice`]. The device may
//! complete each before `submit` returns or later from any thread, in any order. A request is a duty: it is answered exactly
//! once, and one that is dropped answers with [`IoError::Io`].

use std::fmt;
use std::sync::Arc;

use crate::units::{Lba, SectorCount};

/// Why a request failed, as far as a guest can tell the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The bytes could not be read or made durable (`VIRTIO_BLK_S_IOERR`).
    #[error("I/O error")]
    Io,
    /// The request reaches past the end of the device (`VIRTIO_BLK_S_IOERR`).
    #[error("request outside the device")]
    OutOfRange,
    /// A write to a read-only device (`VIRTIO_BLK_S_IOERR`).
    #[error("device is read-only")]
    ReadOnly,
    /// The guest's memory could not be read or written (a hostile or dying front end).
    #[error("guest memory fault")]
    GuestMemory,
    /// Nothing can serve it (`VIRTIO_BLK_S_UNSUPP`).
    #[error("unsupported request")]
    Unsupported,
    /// The volume was halted: it lost its ownership or its journal.
    #[error("volume is halted")]
    Halted,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Fill the transfer from the device.
    Read,
    /// Store the transfer's bytes. With `fua` it is answered only once it is durable.
    Write {
        /// Force unit access: durable before the answer.
        fua: bool,
    },
    /// Make every write that was acknowledged before this request durable.
    Flush,
    /// The range's content is no longer needed; it reads as zeros afterwards.
    Discard,
    /// The range reads as zeros afterwards.
    WriteZeroes {
        /// Whether the device may give the space back.
        unmap: bool,
    },
}

/// The guest's side of a request: its buffer and the way to answer it. Implemented by front ends.
///
/// The buffer is guest memory: another CPU may change it at any moment, so each byte is copied out exactly once and only the
/// copy is looked at.
pub trait Transferable: Send {
    /// Length of the buffer in bytes (0 for requests without data).
    fn len(&self) -> usize;

    /// Whether there is no buffer.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `to.len()` bytes from the buffer at `offset` (a write's data).
    ///
    /// # Errors
    /// [`IoError::GuestMemory`] when the range is outside the buffer or the memory is gone.
    fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), IoError>;

    /// Copies `from` into the buffer at `offset` (a read's answer).
    ///
    /// # Errors
    /// [`IoError::GuestMemory`] when the range is outside the buffer or the memory is gone.
    fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), IoError>;

    /// Fills `len` bytes at `offset` with zeros.
    ///
    /// # Errors
    /// [`IoError::GuestMemory`] when the range is outside the buffer or the memory is gone.
    fn fill_zero(&self, offset: usize, len: usize) -> Result<(), IoError>;

    /// Tells the guest. Must be cheap and must not call back into the device.
    fn answer(self: Box<Self>, result: Result<(), IoError>);
}

/// A duty to answer: owns a [`Transferable`] and answers [`IoError::Io`] when dropped unanswered.
pub struct Transfer(Option<Box<dyn Transferable>>);

impl Transfer {
    /// Takes the duty on.
    #[must_use]
    pub fn new(inner: Box<dyn Transferable>) -> Self {
        Self(Some(inner))
    }

    /// Length of the buffer in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |t| t.len())
    }

    /// Whether there is no buffer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// See [`Transferable::copy_out`].
    ///
    /// # Errors
    /// [`IoError::GuestMemory`] as there.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), IoError> {
        self.0.as_ref().map_or(Err(IoError::Io), |t| t.copy_out(offset, to))
    }

    /// See [`Transferable::copy_in`].
    ///
    /// # Errors
    /// [`IoError::GuestMemory`] as there.
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), IoError> {
        self.0.as_ref().map_or(Err(IoError::Io), |t| t.copy_in(offset, from))
    }

    /// See [`Transferable::fill_zero`].
    ///
    /// # Errors
    /// [`IoError::GuestMemory`] as there.
    pub fn fill_zero(&self, offset: usize, len: usize) -> Result<(), IoError> {
        self.0.as_ref().map_or(Err(IoError::Io), |t| t.fill_zero(offset, len))
    }

    /// Fulfils the duty.
    pub fn answer(mut self, result: Result<(), IoError>) {
        if let Some(inner) = self.0.take() {
            inner.answer(result);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take() {
            inner.answer(Err(IoError::Io));
        }
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transfer({} B)", self.len())
    }
}

/// One request of a guest.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// First sector.
    pub start: Lba,
    /// How many sectors; for reads and writes `transfer.len()` is exactly `sectors.bytes()` (the front end checks), 0 for flush.
    pub sectors: SectorCount,
    /// Buffer and answer.
    pub transfer: Transfer,
}

/// What a front end tells the guest about the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceGeometry {
    /// Capacity in sectors of 512 bytes.
    pub sectors: SectorCount,
    /// The device's own block in bytes: what the guest should see as its physical block.
    pub physical_block: u32,
    /// Optimal I/O size in bytes.
    pub optimal_io: u32,
    /// Refuses writes.
    pub read_only: bool,
    /// Up to 20 ASCII bytes for `VIRTIO_BLK_T_GET_ID`.
    pub serial: String,
}

/// A disk, as front ends see it.
pub trait BlockDevice: Send + Sync {
    /// Size and shape. The size may change while front ends use it (whoever changes it tells them afterwards), nothing else.
    /// A request may be checked against an older size on its way, so the device checks it against its own.
    fn geometry(&self) -> DeviceGeometry;

    /// Takes over every request in `batch`, leaving it empty. Called from a queue's thread, so it must not wait for a store or a peer:
    /// what needs one is answered later. It may wait as long as the local SSD takes to accept a write, and when the volume is
    /// throttled it may hold *writes* back in a queue of its own (never blocking reads behind them). One that is held to limits holds both.
    fn submit(&self, batch: &mut Vec<Request>);
}

impl<D: BlockDevice + ?Sized> BlockDevice for Arc<D> {
    fn geometry(&self) -> DeviceGeometry {
        (**self).geometry()
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        (**self).submit(batch);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::{IoError, Transfer, Transferable};

    struct Probe(Arc<Mutex<Vec<Result<(), IoError>>>>);

    impl Transferable for Probe {
        fn len(&self) -> usize {
            0
        }

        fn copy_out(&self, _: usize, _: &mut [u8]) -> Result<(), IoError> {
            Err(IoError::GuestMemory)
        }

        fn copy_in(&self, _: usize, _: &[u8]) -> Result<(), IoError> {
            Err(IoError::GuestMemory)
        }

        fn fill_zero(&self, _: usize, _: usize) -> Result<(), IoError> {
            Err(IoError::GuestMemory)
        }

        fn answer(self: Box<Self>, result: Result<(), IoError>) {
            self.0.lock().push(result);
        }
    }

    #[test]
    fn a_dropped_transfer_answers_io_error_and_an_answered_one_answers_once() {
        let answers = Arc::new(Mutex::new(Vec::new()));
        drop(Transfer::new(Box::new(Probe(answers.clone()))));
        Transfer::new(Box::new(Probe(answers.clone()))).answer(Ok(()));
        assert_eq!(*answers.lock(), [Err(IoError::Io), Ok(())]);
    }
}
