//! The audit log: a line of JSON for each change that was asked for, in `audit/audit.log` of the state directory.
//!
//! A line is written with one `write` before its caller hears of the change, so a kill loses none; a power loss may lose those of the last
//! seconds, and a line that it tore is skipped. What comes in crowds is summed up (`audit_sums.rs`). At [`MAX_BYTES`] the file becomes
//! `audit.log.1`, that one `.2`, and so on to [`FILES`]: 64 MiB at most. A log that cannot be written is a degradation, and is opened again
//! at the next line; changes go on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lamina_api::audit::AuditLine;
use parking_lot::Mutex;

use crate::audit_sums::Sums;

/// Bytes of one file.
const MAX_BYTES: u64 = 8 << 20;
/// Files, the present one among them.
const FILES: u32 = 8;
/// Characters of a line's longest texts, who and path. Escaped they may be longer; names are not.
const MAX_TEXT: usize = 256;
/// Bytes that are looked at for the newest lines: 1000 lines of two texts of 256, and 400 for the rest, fit.
const MAX_LOOK: u64 = 1 << 20;

/// The log.
#[derive(Debug)]
pub(crate) struct AuditLog {
    path: PathBuf,
    max_bytes: u64,
    state: Mutex<State>,
    /// Why it cannot be written, while it cannot. Never held across I/O.
    trouble: Mutex<Option<String>>,
}

#[derive(Debug)]
struct State {
    present: Option<Present>,
    sums: Sums,
}

#[derive(Debug)]
struct Present {
    file: File,
    bytes: u64,
}

impl AuditLog {
    /// Goes on with the log in `dir`, or with none until it can be written.
    pub(crate) fn open(dir: &Path) -> Self {
        Self::with_bound(dir, MAX_BYTES)
    }

    fn with_bound(dir: &Path, max_bytes: u64) -> Self {
        let path = dir.join("audit.log");
        let state = Mutex::new(State { present: None, sums: Sums::default() });
        let log = Self { path, max_bytes, state, trouble: Mutex::default() };
        let opened = go_on(&log.path).map(|present| log.state.lock().present = Some(present));
        // Nobody's guest waits for that.
        if let Err(error) = log.told(opened) {
            tracing::error!(%error, path = %log.path.display(), "the audit log cannot be written");
        }
        log
    }

    /// Why it cannot be written, if it cannot.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    fn told(&self, outcome: io::Result<()>) -> io::Result<()> {
        *self.trouble.lock() = outcome.as_ref().err().map(ToString::to_string);
        outcome
    }

    /// Adds a line, or counts it to those that are summed up.
    pub(crate) fn record(&self, line: &AuditLine, now: Instant) -> io::Result<()> {
        let mut state = self.state.lock();
        let lines = state.sums.add(&bounded(line), now);
        let written = self.write(&mut state, &lines);
        // The same whether nothing had to be written or all went well; after a failure only a line that was written says otherwise.
        if lines.is_empty() { Ok(()) } else { self.told(written) }
    }

    /// Writes the sums that are over by now.
    pub(crate) fn settle(&self, now: Instant) {
        let mut state = self.state.lock();
        let lines = state.sums.ended(now);
        self.write_sums(&mut state, &lines);
    }

    fn write_sums(&self, state: &mut State, lines: &[AuditLine]) {
        if !lines.is_empty()
            && let Err(error) = self.told(self.write(state, lines))
        {
            tracing::error!(%error, ?lines, "the audit log cannot be written");
        }
    }

    fn write(&self, state: &mut State, lines: &[AuditLine]) -> io::Result<()> {
        lines.iter().try_for_each(|line| {
            let mut bytes = serde_json::to_vec(line)?;
            bytes.push(b'\n');
            self.append(&mut state.present, &bytes)
        })
    }

    fn append(&self, place: &mut Option<Present>, bytes: &[u8]) -> io::Result<()> {
        let mut present = match place.take() {
            Some(present) => present,
            None => go_on(&self.path)?,
        };
        let length = bytes.len() as u64;
        let mut rotated = Ok(());
        if present.bytes + length > self.max_bytes {
            match self.rotate() {
                Ok(next) => present = next,
                // Rather too long a file than no line, up to a second length.
                Err(error) if present.bytes + length <= 2 * self.max_bytes => rotated = Err(error),
                Err(error) => {
                    *place = Some(present);
                    return Err(error);
                }
            }
        }
        // A file that took a part of a line is looked at anew before the next.
        present.file.write_all(bytes)?;
        present.bytes += length;
        *place = Some(present);
        rotated
    }

    /// The newest `limit` lines, the newest first.
    pub(crate) fn newest(&self, limit: usize) -> io::Result<Vec<AuditLine>> {
        let mut state = self.state.lock();
        let held = state.sums.held();
        self.write_sums(&mut state, &held);
        drop(state);
        let mut lines = Vec::new();
        for number in 0..FILES {
            if lines.len() >= limit {
                break;
            }
            match File::open(self.numbered(number)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(file) => lines.extend(tail(file)?.into_iter().take(limit - lines.len())),
            }
        }
        Ok(lines)
    }

    /// Begins a new file. It is made before any other is moved, and only files in front of a gap are: a rotation that fails or is cut off,
    /// however often, moves nothing out at the end.
    fn rotate(&self) -> io::Result<Present> {
        let new = self.path.with_extension("log.new");
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&new)?;
        file.set_len(0)?;
        if self.path.try_exists()? {
            let mut gap = 1;
            while gap < FILES - 1 && self.numbered(gap).try_exists()? {
                gap += 1;
            }
            for number in (0..gap).rev() {
                fs::rename(self.numbered(number), self.numbered(number + 1))?;
            }
        }
        fs::rename(&new, &self.path)?;
        Ok(Present { file, bytes: 0 })
    }

    fn numbered(&self, number: u32) -> PathBuf {
        if number == 0 { self.path.clone() } else { self.path.with_extension(format!("log.{number}")) }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let held = state.sums.held();
        let mut present = state.present.take();
        for line in held {
            // What cannot be written now was said before.
            let bytes = serde_json::to_vec(&line).map(|mut bytes| {
                bytes.push(b'\n');
                bytes
            });
            let _ = bytes.map_err(io::Error::from).and_then(|bytes| self.append(&mut present, &bytes));
        }
    }
}

fn bounded(line: &AuditLine) -> AuditLine {
    let cut = |text: &str| text.chars().take(MAX_TEXT).collect();
    AuditLine { who: cut(&line.who), path: cut(&line.path), ..line.clone() }
}

/// The file to go on with.
fn go_on(path: &Path) -> io::Result<Present> {
    let mut present = append(path)?;
    if present.bytes > 0 && !ends_a_line(path)? {
        // Torn by a power loss or a full disk: what comes next is a line of its own.
        present.file.write_all(b"\n")?;
        present.bytes += 1;
    }
    Ok(present)
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
    use std::time::{Duration, Instant};

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
            bytes: None,
            count: None,
        }
    }

    fn numbers(log: &AuditLog, limit: usize) -> Vec<usize> {
        let parse = |line: &AuditLine| usize::from_str_radix(&line.request_id, 16).expect("a number");
        log.newest(limit).expect("read").iter().map(parse).collect()
    }

    #[test]
    fn the_newest_lines_come_first_also_over_a_rotation_and_a_restart() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let log = AuditLog::with_bound(dir.path(), 1000);
        (0..100).for_each(|number| log.record(&line(number), Instant::now()).expect("written"));
        assert_eq!(numbers(&log, 12), (88..100).rev().collect::<Vec<_>>());
        let files = std::fs::read_dir(dir.path()).expect("dir").count();
        assert_eq!(files, FILES as usize, "the rest is gone: bounded");
        drop(log);
        let log = AuditLog::with_bound(dir.path(), 1000);
        log.record(&line(100), Instant::now()).expect("written");
        assert_eq!(numbers(&log, 3), [100, 99, 98]);
    }

    #[test]
    fn a_torn_line_costs_itself_only() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let log = AuditLog::with_bound(dir.path(), 10_000);
        (0..3).for_each(|number| log.record(&line(number), Instant::now()).expect("written"));
        let path = dir.path().join("audit.log");
        let bytes = std::fs::read(&path).expect("file");
        std::fs::write(&path, &bytes[..bytes.len() - 20]).expect("torn");
        let log = AuditLog::with_bound(dir.path(), 10_000);
        log.record(&line(3), Instant::now()).expect("written");
        assert_eq!(numbers(&log, 10), [3, 1, 0]);
    }

    #[test]
    fn a_rotation_that_fails_again_and_again_loses_no_line() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let log = AuditLog::with_bound(dir.path(), 2000);
        (0..200).for_each(|number| log.record(&line(number), Instant::now()).expect("written"));
        let before = numbers(&log, 1000);
        // A new file cannot be made where a directory is.
        let new = dir.path().join("audit.log.new");
        std::fs::create_dir(&new).expect("made");
        let failed = (200..260).filter(|number| log.record(&line(*number), Instant::now()).is_err()).count();
        assert!(failed > 0 && log.trouble().is_some());
        let during = numbers(&log, 1000);
        assert!(during.ends_with(&before), "all that was there still is");
        std::fs::remove_dir(&new).expect("removed");
        log.record(&line(260), Instant::now()).expect("written");
        assert_eq!((numbers(&log, 1)[0], log.trouble()), (260, None));
        // One that moves files and comes no further leaves a gap, and the next closes it.
        std::fs::remove_file(dir.path().join("audit.log.3")).expect("removed");
        let last = std::fs::read(dir.path().join("audit.log.7")).expect("the oldest");
        let closed = (261..300).find(|number| {
            log.record(&line(*number), Instant::now()).expect("written");
            dir.path().join("audit.log.3").exists()
        });
        assert!(closed.is_some(), "the next rotation closes it");
        assert_eq!(std::fs::read(dir.path().join("audit.log.7")).expect("still there"), last);
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_trouble_until_it_can() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let path = dir.path().join("audit.log");
        std::fs::create_dir(&path).expect("made");
        let log = AuditLog::with_bound(dir.path(), 10_000);
        assert!(log.trouble().is_some());
        assert!(log.record(&line(1), Instant::now()).is_err());
        std::fs::remove_dir(&path).expect("removed");
        log.record(&line(2), Instant::now()).expect("written");
        assert_eq!((numbers(&log, 10), log.trouble()), (vec![2], None));
    }

    #[test]
    fn sums_are_written_when_their_minute_is_over_when_somebody_looks_and_at_the_end() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let log = AuditLog::with_bound(dir.path(), 10_000);
        let now = Instant::now();
        let bytes = |number| AuditLine { bytes: Some(5), status: 204, ..line(number) };
        let count = || std::fs::read_to_string(dir.path().join("audit.log")).expect("file").lines().count();
        (0..10).for_each(|number| log.record(&bytes(number), now).expect("written"));
        assert_eq!(count(), 1);
        log.settle(now + Duration::from_secs(59));
        assert_eq!(count(), 1);
        log.settle(now + Duration::from_secs(60));
        assert_eq!(count(), 2);
        (10..13).for_each(|number| log.record(&bytes(number), now).expect("written"));
        let lines = log.newest(2).expect("read");
        assert_eq!((lines[0].count, lines[0].bytes, lines[1].count), (Some(2), Some(10), None));
        log.record(&bytes(13), now).expect("counted");
        drop(log);
        assert_eq!(numbers(&AuditLog::with_bound(dir.path(), 10_000), 1), [13]);
    }

    #[test]
    fn no_line_is_longer_than_is_looked_for() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let log = AuditLog::with_bound(dir.path(), 10_000_000);
        let long = |number| AuditLine { path: "p".repeat(20_000), who: "w".repeat(20_000), ..line(number) };
        (0..1001).for_each(|number| log.record(&long(number), Instant::now()).expect("written"));
        assert_eq!(numbers(&log, 1000), (1..1001).rev().collect::<Vec<_>>());
    }
}
