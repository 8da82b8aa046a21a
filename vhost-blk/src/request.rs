//! What a chain asks for (virtio 1.2, 5.2.6): header, data, status byte; checked against the disk before a device sees it.
//!
//! The header and a range's descriptor are copied once and only the copy is looked at. Lengths are in bytes, addresses in
//! sectors of 512. Bounds: [`MAX_DATA_BYTES`] per read or write, [`MAX_RANGE_SECTORS`] per discard or write-zeroes.

use lamina_contract::{IoError, Lba, Op, SECTOR_BYTES, SectorCount};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::chain::{Chain, total};
use crate::counters::OpKind;
use crate::memory::{GuestMemory, Segment};

/// Data of one request: 4 MiB. 126 segments of 32 KiB, as the configuration space tells drivers, stay below it.
pub const MAX_DATA_BYTES: u32 = 4 << 20;
/// Sectors of one discard or write-zeroes: 1 GiB.
pub const MAX_RANGE_SECTORS: u32 = (1 << 30) / 512;
/// Bytes of the answer to GET_ID (`VIRTIO_BLK_ID_BYTES`).
pub(crate) const ID_BYTES: usize = 20;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

/// A status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u8);

impl Status {
    pub(crate) const OK: Self = Self(VIRTIO_BLK_S_OK as u8);
    pub(crate) const IOERR: Self = Self(VIRTIO_BLK_S_IOERR as u8);
    pub(crate) const UNSUPP: Self = Self(VIRTIO_BLK_S_UNSUPP as u8);

    pub(crate) fn of(result: Result<(), IoError>) -> Self {
        match result {
            Ok(()) => Self::OK,
            Err(IoError::Unsupported) => Self::UNSUPP,
            Err(IoError::Io | IoError::OutOfRange | IoError::ReadOnly | IoError::GuestMemory | IoError::Halted) => Self::IOERR,
        }
    }
}

/// What requests are checked against.
#[derive(Debug, Clone)]
pub(crate) struct DiskShape {
    pub(crate) sectors: u64,
    pub(crate) read_only: bool,
    pub(crate) serial: [u8; ID_BYTES],
    /// Every write must be durable before it is answered: the guest owes us no flush.
    pub(crate) write_through: bool,
}

/// A buffer in guest memory.
#[derive(Debug)]
pub(crate) enum Buffer {
    Empty,
    One(Segment),
    Many(Box<[Segment]>),
}

impl Buffer {
    /// Bytes `from..from + len` of `segments`.
    fn cut(segments: &[Segment], mut from: u32, mut len: u32) -> Self {
        let mut parts = Vec::new();
        let mut only = None;
        for segment in segments {
            if len == 0 {
                break;
            }
            if from >= segment.len {
                from -= segment.len;
                continue;
            }
            let take = (segment.len - from).min(len);
            // SAFETY: from < segment.len.
            let at = unsafe { segment.at.add(from as usize) };
            let part = Segment { at, len: take, region: segment.region };
            from = 0;
            len -= take;
            match only.take() {
                None if parts.is_empty() => only = Some(part),
                None => parts.push(part),
                Some(first) => {
                    parts.reserve(segments.len());
                    parts.extend([first, part]);
                }
            }
        }
        match only {
            Some(part) => Self::One(part),
            None if parts.is_empty() => Self::Empty,
            None => Self::Many(parts.into_boxed_slice()),
        }
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        match self {
            Self::Empty => &[],
            Self::One(segment) => std::slice::from_ref(segment),
            Self::Many(segments) => segments,
        }
    }
}

/// What to do with a chain.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// Hand it to the device. `written` is what the used entry says if it succeeds.
    Submit { kind: OpKind, op: Op, start: Lba, sectors: SectorCount, data: Buffer, written: u32 },
    /// Answer it at once: `written` bytes, the status byte included. Whoever answers writes the status.
    Answer { kind: OpKind, status: Status, written: u32 },
    /// There is no room for a status byte: give it back with length 0.
    NoStatus,
}

#[derive(Debug, Clone, Copy)]
struct Header {
    kind: u32,
    sector: u64,
}

/// Reads and checks a request. The chain was walked without fault.
pub(crate) fn parse(chain: &Chain, memory: &GuestMemory, disk: &DiskShape) -> Parsed {
    if chain.status().is_none() {
        return Parsed::NoStatus;
    }
    let Some(header) = header(chain, memory) else {
        return Parsed::Answer { kind: OpKind::Other, status: Status::IOERR, written: 1 };
    };
    // Without the header and without the status byte, both known to be there.
    let readable = total(chain.readable()) - HEADER_BYTES as u64;
    let writable = total(chain.writable()) - 1;
    match header.kind {
        VIRTIO_BLK_T_IN => match data_sectors(header.sector, writable, disk) {
            Ok(sectors) => submit_read(chain, header.sector, sectors),
            Err(status) => Parsed::Answer { kind: OpKind::Read, status, written: 1 },
        },
        VIRTIO_BLK_T_OUT => match data_sectors(header.sector, readable, disk) {
            Ok(_) if disk.read_only => Parsed::Answer { kind: OpKind::Write, status: Status::IOERR, written: 1 },
            Ok(sectors) => submit_write(chain, header.sector, sectors, disk.write_through),
            Err(status) => Parsed::Answer { kind: OpKind::Write, status, written: 1 },
        },
        VIRTIO_BLK_T_FLUSH => Parsed::Submit {
            kind: OpKind::Flush,
            op: Op::Flush,
            start: Lba(0),
            sectors: SectorCount(0),
            data: Buffer::Empty,
            written: 1,
        },
        VIRTIO_BLK_T_GET_ID => get_id(chain, memory, writable, disk),
        VIRTIO_BLK_T_DISCARD => range(chain, memory, readable, disk, OpKind::Discard),
        VIRTIO_BLK_T_WRITE_ZEROES => range(chain, memory, readable, disk, OpKind::WriteZeroes),
        _ => Parsed::Answer { kind: OpKind::Other, status: Status::UNSUPP, written: 1 },
    }
}

fn header(chain: &Chain, memory: &GuestMemory) -> Option<Header> {
    let mut bytes = [0; HEADER_BYTES];
    copy_from(chain.readable(), memory, 0, &mut bytes)?;
    let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = bytes;
    Some(Header { kind: u32::from_le_bytes([k0, k1, k2, k3]), sector: u64::from_le_bytes(sector) })
}

/// Copies `to.len()` bytes at `offset`, wherever descriptors were cut. `None` when there are not as many.
fn copy_from(segments: &[Segment], memory: &GuestMemory, offset: u32, to: &mut [u8]) -> Option<()> {
    let cut = Buffer::cut(segments, offset, to.len() as u32);
    let mut done = 0;
    for part in cut.segments() {
        let end = done + part.len as usize;
        memory.read(part, 0, to.get_mut(done..end)?).ok()?;
        done = end;
    }
    (done == to.len()).then_some(())
}

/// The sectors of a read or write of `bytes` at `sector`; or the status to answer at once, which is success for none.
fn data_sectors(sector: u64, bytes: u64, disk: &DiskShape) -> Result<SectorCount, Status> {
    let sectors = bytes / SECTOR_BYTES;
    if !bytes.is_multiple_of(SECTOR_BYTES) || bytes > u64::from(MAX_DATA_BYTES) || !fits(sector, sectors, disk) {
        return Err(Status::IOERR);
    }
    if bytes == 0 { Err(Status::OK) } else { Ok(SectorCount(sectors)) }
}

fn fits(sector: u64, sectors: u64, disk: &DiskShape) -> bool {
    sector.checked_add(sectors).is_some_and(|end| end <= disk.sectors)
}

fn submit_read(chain: &Chain, sector: u64, sectors: SectorCount) -> Parsed {
    let bytes = sectors.bytes() as u32;
    Parsed::Submit {
        kind: OpKind::Read,
        op: Op::Read,
        start: Lba(sector),
        sectors,
        data: Buffer::cut(chain.writable(), 0, bytes),
        written: bytes + 1,
    }
}

fn submit_write(chain: &Chain, sector: u64, sectors: SectorCount, fua: bool) -> Parsed {
    let data = Buffer::cut(chain.readable(), HEADER_BYTES as u32, sectors.bytes() as u32);
    Parsed::Submit { kind: OpKind::Write, op: Op::Write { fua }, start: Lba(sector), sectors, data, written: 1 }
}

fn get_id(chain: &Chain, memory: &GuestMemory, writable: u64, disk: &DiskShape) -> Parsed {
    let room = writable.min(ID_BYTES as u64) as usize;
    let mut done = 0;
    for part in Buffer::cut(chain.writable(), 0, room as u32).segments() {
        let end = done + part.len as usize;
        let Some(bytes) = disk.serial.get(done..end) else { break };
        if memory.write(part, 0, bytes).is_err() {
            return Parsed::Answer { kind: OpKind::Other, status: Status::IOERR, written: 1 };
        }
        done = end;
    }
    Parsed::Answer { kind: OpKind::Other, status: Status::OK, written: done as u32 + 1 }
}

/// A discard or write-zeroes with its one range (the configuration space says one).
fn range(chain: &Chain, memory: &GuestMemory, readable: u64, disk: &DiskShape, kind: OpKind) -> Parsed {
    let answer = |status| Parsed::Answer { kind, status, written: 1 };
    if disk.read_only || readable != RANGE_BYTES as u64 {
        return answer(Status::IOERR);
    }
    let mut bytes = [0; RANGE_BYTES];
    if copy_from(chain.readable(), memory, HEADER_BYTES as u32, &mut bytes).is_none() {
        return answer(Status::IOERR);
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    let op = match (kind, flags) {
        (OpKind::Discard, 0) => Op::Discard,
        (OpKind::WriteZeroes, 0) => Op::WriteZeroes { unmap: false },
        (OpKind::WriteZeroes, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) => Op::WriteZeroes { unmap: true },
        // 5.2.6.2: unknown flags, and unmap on a discard, are answered UNSUPP.
        _ => return answer(Status::UNSUPP),
    };
    if sectors > MAX_RANGE_SECTORS || !fits(sector, u64::from(sectors), disk) {
        return answer(Status::IOERR);
    }
    if sectors == 0 {
        return answer(Status::OK);
    }
    Parsed::Submit { kind, op, start: Lba(sector), sectors: SectorCount(u64::from(sectors)), data: Buffer::Empty, written: 1 }
}
