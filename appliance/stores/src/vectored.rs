//! Positioned reads and writes that finish: short transfers, EINTR and the system's iovec limit are dealt with here, once.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use rustix::io::Errno;

/// Linux takes at most UIO_MAXIOV buffers a call.
const IOVECS: usize = 1024;

/// Writes all of `bufs`, one behind the other, at `offset`.
pub(crate) fn write_all_at(fd: impl AsFd, mut offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
    let mut rest: Vec<IoSlice<'_>> = bufs.iter().copied().filter(|buf| !buf.is_empty()).collect();
    let mut rest = rest.as_mut_slice();
    while !rest.is_empty() {
        let batch = rest.get(..IOVECS).unwrap_or(rest);
        match rustix::io::pwritev(&fd, batch, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Fills `buf` from `offset`; `UnexpectedEof` past the end.
pub(crate) fn read_exact_at(fd: impl AsFd, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match rustix::io::pread(&fd, &mut *buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                offset += read as u64;
                buf = buf.get_mut(read..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Reads `len` bytes from `offset` into a new buffer, without zeroing it first; `UnexpectedEof` past the end.
pub(crate) fn read_vec_at(fd: impl AsFd, mut offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buf = Vec::new();
    buf.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    while buf.len() < len {
        let missing = len - buf.len();
        let target = buf.spare_capacity_mut();
        let target = target.get_mut(..missing).ok_or(io::ErrorKind::OutOfMemory)?;
        match rustix::io::pread(&fd, target, offset) {
            Ok(([], _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((filled, _)) => {
                let read = filled.len();
                offset += read as u64;
                // SAFETY: `pread` says it initialised the first `read` bytes behind the current length, which lie within capacity.
                unsafe { buf.set_len(buf.len() + read) };
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(buf)
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::{read_exact_at, read_vec_at, write_all_at};

    #[test]
    fn more_buffers_than_the_system_takes_are_written_in_order() {
        let file = tempfile::tempfile().expect("a file");
        let bytes: Vec<u8> = (0..5000_u32).map(|n| n as u8).collect();
        let slices: Vec<IoSlice<'_>> = bytes.chunks(1).map(IoSlice::new).collect();
        write_all_at(&file, 3, &slices).expect("written");
        assert_eq!(read_vec_at(&file, 3, 5000).expect("read"), bytes);
        let mut past = [0; 8];
        assert_eq!(read_exact_at(&file, 4999, &mut past).map_err(|e| e.kind()), Err(std::io::ErrorKind::UnexpectedEof));
    }
}
