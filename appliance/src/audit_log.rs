//! The audit log: a line of JSON for each change that was asked for, in `audit/audit.log` of the state directory.
//!
//! A line is written with one `write` before its caller hears of the change, so a kill loses none; a power loss may lose those of the last
//! seconds, and a line that it tore is skipped. At [`MAX_BYTES`] the file becomes `audit.log.1`, that one `.2`, and so on to [`FILES`]: 64 MiB
//! at most. A log that cannot be written is said in the daemon's own log; changes go on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lamina_api::audit::AuditLine;
use parking_lot::Mutex;

/// Bytes of one file.
const MAX_BYTES: u64 = 8 << 20;
/// Files, the present one among them.
const FILES: u32 = 8;
/// Bytes that are looked at for the newest lines: 1000 of the longest.
const MAX_LOOK: u64 = 1 << 20;

/// The log.
#[derive(Debug)]
pub(crate) struct AuditLog {
    path: PathBuf,
    max_bytes: u64,
    present: Mutex<Present>,
}

#[derive(Debug)]
struct Present {
    file: File,
    bytes: u64,
}

impl AuditLog {
    /// Goes on with the log in `dir`.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        Self::with_bound(dir, MAX_BYTES)
    }

    fn with_bound(dir: &Path, max_bytes: u64) -> io::Result<Self> {
        let path = dir.join("audit.log");
        let mut present = append(&path)?;
        if present.bytes > 0 && !ends_a_line(&path)? {
            // Torn by a power loss: what comes next is a line of its own. Without space it is not, and guests are served all the same.
            if let Err(error) = present.file.write_all(b"\n") {
                tracing::warn!(%error, "the audit log cannot be written");
            }
            present.bytes += 1;
        }
        Ok(Self { path, max_bytes, present: Mutex::new(present) })
    }

    /// Adds a line.
    pub(crate) fn record(&self, line: &AuditLine) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let mut present = self.present.lock();
        if present.bytes + bytes.len() as u64 > self.max_bytes {
            self.rotate()?;
            *present = append(&self.path)?;
        }
        present.file.write_all(&bytes)?;
        present.bytes += bytes.len() as u64;
        Ok(())
    }

    /// The newest `limit` lines, the newest first.
    pub(crate) fn newest(&self, limit: usize) -> io::Result<Vec<AuditLine>> {
        let mut lines = Vec::new();
        for number in 0..FILES {
            if lines.len() >= limit {
                break;
            }
            match File::open(self.numbered(number)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
                Ok(file) => lines.extend(tail(file)?.into_iter().take(limit - lines.len())),
            }
        }
        Ok(lines)
    }

    /// A crash between two renames leaves a gap in the numbers, which the next rotation closes.
    fn rotate(&self) -> io::Result<()> {
        for number in (0..FILES - 1).rev() {
            match fs::rename(self.numbered(number), self.numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        if number == 0 { self.path.clone() } else { self.path.with_extension(format!("log.{number}")) }
    }
}

fn append(path: &Path) -> io::Result<Present> {
    let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
    let bytes = file.metadata()?.len();
    Ok(Present { file, bytes })
}

fn ends_a_line(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Lines at the end of `file`, the last first. The first one in reach may be half a line; it is skipped as any that is none.
fn tail(mut file: File) -> io::Result<Vec<AuditLine>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOOK)))?;
    let mut bytes = Vec::new();
    file.take(MAX_LOOK).read_to_end(&mut bytes)?;
    Ok(bytes.split(|byte| *byte == b'\n').rev().filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use lamina_api::audit::AuditLine;
    use lamina_api::role::Role;

    use super::{AuditLog, FILES};

    fn line(number: usize) -> AuditLine {
        AuditLine {
            time: "2026-01-01T00:00:00Z".to_owned(),
            who: "uid:0".to_owned(),
            role: Some(Role::Admin),
            from: "local".to_owned(),
            method: "POST".to_owned(),
            path: "/api/v1/volumes".to_owned(),
            status: 201,
            request_id: format!("{number:016x}"),
        }
    }

    fn numbers(log: &AuditLog, limit: usize) -> Vec<usize> {
        let parse = |line: &AuditLine| usize::from_str_radix(&line.request_id, 16).expect("a number");
        log.newest(limit).expect("read").iter().map(parse).collect()
    }

    #[test]
    fn the_newest_lines_come_first_also_over_a_rotation_and_a_restart() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let log = AuditLog::with_bound(dir.path(), 1000).expect("opens");
        (0..100).for_each(|number| log.record(&line(number)).expect("written"));
        assert_eq!(numbers(&log, 12), (88..100).rev().collect::<Vec<_>>());
        let files = std::fs::read_dir(dir.path()).expect("dir").count();
        assert_eq!(files, FILES as usize, "the rest is gone: bounded");
        drop(log);
        let log = AuditLog::with_bound(dir.path(), 1000).expect("opens");
        log.record(&line(100)).expect("written");
        assert_eq!(numbers(&log, 3), [100, 99, 98]);
    }

    #[test]
    fn a_torn_line_costs_itself_only() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let log = AuditLog::with_bound(dir.path(), 10_000).expect("opens");
        (0..3).for_each(|number| log.record(&line(number)).expect("written"));
        let path = dir.path().join("audit.log");
        let bytes = std::fs::read(&path).expect("file");
        std::fs::write(&path, &bytes[..bytes.len() - 20]).expect("torn");
        let log = AuditLog::with_bound(dir.path(), 10_000).expect("opens");
        log.record(&line(3)).expect("written");
        assert_eq!(numbers(&log, 10), [3, 1, 0]);
    }
}
