//! A guest image made of this system's files, and what a boot reads of it: runs of a few requests each, of 4 to 64 KiB, over the parts
//! of the image that hold data. The same seed gives the same boot.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lamina_contract::units::{Lba, SectorCount};
use lamina_harness::{Action, Client, ClientOptions, HarnessError, Queue};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::fs::{SeekFrom, seek};

/// Whose files the image is made of.
const SOURCE: &str = "/usr/lib";
const BLOCK: u64 = 4096;
/// Requests in flight of one guest that boots.
const DEPTH: u16 = 4;
const LARGEST: usize = 64 << 10;
/// Sizes of requests; most of a boot is small.
const SIZES: [u64; 8] = [4 << 10, 4 << 10, 4 << 10, 8 << 10, 16 << 10, 16 << 10, 32 << 10, 64 << 10];
const PATIENCE: Duration = Duration::from_secs(120);

/// One request.
#[derive(Debug, Clone, Copy)]
struct Piece {
    offset: u64,
    bytes: u64,
}

/// An image, and what a boot reads of it.
pub(crate) struct BootSet {
    pub(crate) path: PathBuf,
    pub(crate) image: Arc<[u8]>,
    pieces: Vec<Piece>,
}

impl BootSet {
    /// Makes an ext4 image of about `bytes` of files, and chooses what to read until that is `set` bytes.
    pub(crate) fn make(directory: &Path, bytes: u64, set: u64) -> Result<Self, HarnessError> {
        let files = directory.join("files");
        std::fs::create_dir_all(&files).map_err(HarnessError::file("make", &files))?;
        let mut left = bytes;
        gather(Path::new(SOURCE), &files, &mut left)?;
        let path = directory.join("golden.raw");
        let file = File::create(&path).map_err(HarnessError::file("make", &path))?;
        // Room for the file system's own structures.
        file.set_len((bytes + bytes / 4).next_multiple_of(1 << 20)).map_err(HarnessError::file("size", &path))?;
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-t", "ext4", "-E", "lazy_itable_init=0", "-d"]).arg(&files).arg(&path);
        let made = command.output().map_err(|cause| HarnessError::Program { doing: "run", program: "mke2fs".to_owned(), cause })?;
        if !made.status.success() {
            let message = String::from_utf8_lossy(&made.stderr).into_owned();
            return Err(HarnessError::Refused { command: format!("{command:?}"), code: made.status.code().unwrap_or(-1), message });
        }
        std::fs::remove_dir_all(&files).map_err(HarnessError::file("remove", &files))?;
        let image = std::fs::read(&path).map_err(HarnessError::file("read", &path))?;
        let pieces = choose(&data_runs(&path)?, set);
        Ok(Self { path, image: image.into(), pieces })
    }

    /// Requests of one boot.
    pub(crate) fn requests(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes that a boot asks for.
    pub(crate) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }

    /// Bytes of the image that a boot touches.
    pub(crate) fn unique_bytes(&self) -> u64 {
        let blocks = self.pieces.iter().flat_map(|piece| piece.offset / BLOCK..(piece.offset + piece.bytes) / BLOCK);
        blocks.collect::<BTreeSet<u64>>().len() as u64 * BLOCK
    }

    /// Boots one guest at each of `sockets`, all at once, and compares every byte that they read with the image. From the moment when
    /// all are connected to the end of the last.
    pub(crate) fn boot_all(&self, sockets: &[PathBuf]) -> Result<Duration, HarnessError> {
        let mut clients = Vec::new();
        for socket in sockets {
            let options = ClientOptions { queues: 1, depth: DEPTH, buffer: LARGEST, poll: false, limit: PATIENCE };
            clients.push(Client::connect_within(socket, options, PATIENCE)?);
        }
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let guests: Vec<_> =
                clients.iter_mut().zip(sockets).map(|(client, socket)| scope.spawn(|| self.boot(client.queue(), socket))).collect();
            guests.into_iter().try_for_each(|guest| match guest.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        Ok(begin.elapsed())
    }

    fn boot(&self, queue: &mut Queue, socket: &Path) -> Result<(), HarnessError> {
        let mut todo = self.pieces.iter();
        let mut under_way: Vec<Option<Piece>> = vec![None; usize::from(DEPTH)];
        let mut done = Vec::with_capacity(usize::from(DEPTH));
        loop {
            while let Some(slot) = queue.acquire() {
                let Some(piece) = todo.next() else {
                    queue.release(slot);
                    break;
                };
                under_way[usize::from(slot.0)] = Some(*piece);
                queue.submit(slot, Action::Read { start: Lba(piece.offset / 512), sectors: SectorCount(piece.bytes / 512) });
            }
            if queue.in_flight() == 0 {
                return Ok(());
            }
            done.extend_from_slice(queue.reap(1, PATIENCE)?);
            for one in done.drain(..) {
                let piece = under_way[usize::from(one.slot.0)].take();
                let right = piece.and_then(|piece| self.image.get(piece.offset as usize..(piece.offset + piece.bytes) as usize));
                let bytes = right.map_or(0, <[u8]>::len);
                if one.outcome.is_err() || right != Some(&queue.buffer(one.slot)[..bytes]) {
                    return Err(HarnessError::Answer {
                        source_of: format!("a read at {}", socket.display()),
                        expected: "the image's bytes",
                        answer: format!("{:?} of {piece:?}", one.outcome),
                    });
                }
                queue.release(one.slot);
            }
        }
    }
}

/// Copies files below `from` until nothing is left of `left`, in the order of their names.
fn gather(from: &Path, to: &Path, left: &mut u64) -> Result<(), HarnessError> {
    let entries = std::fs::read_dir(from).map_err(HarnessError::file("list", from))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let (Some(name), Ok(meta)) = (path.file_name(), path.symlink_metadata()) else { continue };
        let target = to.join(name);
        if meta.is_dir() && *left > 0 {
            std::fs::create_dir_all(&target).map_err(HarnessError::file("make", &target))?;
            gather(&path, &target, left)?;
        } else if meta.is_file() && meta.len() <= *left {
            std::fs::copy(&path, &target).map_err(HarnessError::file("copy", &path))?;
            // What a small file takes of the image, too.
            *left = left.saturating_sub(meta.len().next_multiple_of(BLOCK) + 512);
        }
    }
    Ok(())
}

/// Where the image has data.
fn data_runs(path: &Path) -> Result<Vec<(u64, u64)>, HarnessError> {
    let file = File::open(path).map_err(HarnessError::file("open", path))?;
    let mut runs = Vec::new();
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        let end = seek(&file, SeekFrom::Hole(start)).map_err(|errno| HarnessError::file("look into", path)(errno.into()))?;
        runs.push((start, end));
        at = end;
    }
    Ok(runs)
}

fn choose(runs: &[(u64, u64)], set: u64) -> Vec<Piece> {
    let mut random = SmallRng::seed_from_u64(20);
    let mut pieces = Vec::new();
    let mut chosen = 0;
    while chosen < set {
        // Long runs of data get as many starts as their length deserves.
        let Ok(&(from, to)) = runs.choose_weighted(&mut random, |(from, to)| to - from) else { return pieces };
        let mut offset = random.random_range(from..to) / BLOCK * BLOCK;
        for _ in 0..random.random_range(1..=16) {
            let bytes = SIZES.choose(&mut random).copied().unwrap_or(BLOCK);
            if offset + bytes > to {
                break;
            }
            pieces.push(Piece { offset, bytes });
            chosen += bytes;
            offset += bytes;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, choose};

    #[test]
    fn a_boot_is_the_same_each_time_and_stays_within_the_data() {
        let runs = [(0, 8 << 20), (32 << 20, 64 << 20)];
        let pieces = choose(&runs, 4 << 20);
        let again = choose(&runs, 4 << 20);
        assert!(pieces.iter().zip(&again).all(|(one, other)| (one.offset, one.bytes) == (other.offset, other.bytes)));
        assert!(pieces.iter().map(|piece| piece.bytes).sum::<u64>() >= 4 << 20);
        let inside = |at: u64, end: u64| runs.iter().any(|(from, to)| *from <= at && end <= *to);
        assert!(pieces.iter().all(|piece| piece.offset % BLOCK == 0 && inside(piece.offset, piece.offset + piece.bytes)));
    }
}
