//! One request's buffer and the duty to answer it: what a device sees of the guest.

use std::sync::Arc;
use std::time::Instant;

use lamina_contract::{IoError, Transferable};

use crate::completion::{Completions, Done};
use crate::counters::OpKind;
use crate::memory::{GuestMemory, Segment};
use crate::request::{Buffer, Status};

/// A request in flight. Holds the memory table it was made under, so that its segments stay mapped whatever the front end does.
#[derive(Debug)]
pub(crate) struct GuestTransfer {
    pub(crate) ring: Arc<Completions>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) data: Buffer,
    pub(crate) len: u32,
    /// Where the status byte goes.
    pub(crate) status: Segment,
    pub(crate) head: u16,
    pub(crate) kind: OpKind,
    /// Length of the used entry on success.
    pub(crate) written: u32,
    pub(crate) taken: Instant,
}

impl GuestTransfer {
    /// Calls `each` for the pieces of `offset..offset + len`: segment, offset in it, range of the caller's bytes.
    fn pieces(
        &self,
        offset: usize,
        len: usize,
        mut each: impl FnMut(&Segment, usize, std::ops::Range<usize>) -> Result<(), IoError>,
    ) -> Result<(), IoError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len as usize) {
            return Err(IoError::GuestMemory);
        }
        let (mut skip, mut done) = (offset, 0);
        for segment in self.data.segments() {
            if done == len {
                break;
            }
            let size = segment.len as usize;
            if skip >= size {
                skip -= size;
                continue;
            }
            let take = (size - skip).min(len - done);
            each(segment, skip, done..done + take)?;
            done += take;
            skip = 0;
        }
        if done == len { Ok(()) } else { Err(IoError::GuestMemory) }
    }
}

impl Transferable for GuestTransfer {
    fn len(&self) -> usize {
        self.len as usize
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), IoError> {
        self.pieces(offset, to.len(), |segment, at, range| {
            let part = to.get_mut(range).ok_or(IoError::GuestMemory)?;
            self.memory.read(segment, at, part)
        })
    }

    fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), IoError> {
        if self.kind != OpKind::Read {
            return Err(IoError::GuestMemory);
        }
        self.ring.copying(|| {
            self.pieces(offset, from.len(), |segment, at, range| {
                let part = from.get(range).ok_or(IoError::GuestMemory)?;
                self.memory.write(segment, at, part)
            })
        })
    }

    fn fill_zero(&self, offset: usize, len: usize) -> Result<(), IoError> {
        if self.kind != OpKind::Read {
            return Err(IoError::GuestMemory);
        }
        self.ring.copying(|| self.pieces(offset, len, |segment, at, range| self.memory.zero(segment, at, range.len())))
    }

    fn answer(self: Box<Self>, result: Result<(), IoError>) {
        let status = Status::of(result);
        let ok = status == Status::OK;
        let done = Done {
            head: self.head,
            // A failed read says nothing about its buffer.
            written: if ok { self.written } else { 1 },
            kind: self.kind,
            bytes: self.len,
            ok,
            taken: self.taken,
        };
        self.ring.answer(done, || {
            // Fails only if the front end took the page away; then nobody waits for the byte.
            let _ = self.memory.write(&self.status, 0, &[status.0]);
        });
    }
}
