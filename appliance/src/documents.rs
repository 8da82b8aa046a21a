//! Small things that must survive: tokens, jobs, kept answers, VMs, schedules and what these have done. One file a document, under `meta/documents/<kind>/`.
//!
//! A file is a line of JSON (magic, format, kind, name, version, length, CRC-32C of all of it) and the body, JSON too. It is written whole:
//! `<name>.new`, fsync, rename to `<name>.json`, fsync of the directory; only then the caller hears of it. A crash leaves the old or the new
//! one, and perhaps a `.new`, which the next open removes. A file that does not verify is renamed to `<name>.damaged-<n>` and reported, never
//! dropped. All documents are kept in memory as well: at most [`MAX_COUNT`] of a kind, [`MAX_BYTES`] each.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamina_formats::integrity::crc32c;
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes of a body at most; a VM with all its disks and networks has 20 KiB.
const MAX_BYTES: usize = 1 << 20;
/// Documents of a kind at most.
const MAX_COUNT: usize = 10_000;
/// Bytes of the first line at most.
const MAX_HEADER: usize = 512;

const MAGIC: &str = "lamina-document";
const FORMAT: u32 = 1;

/// What a document is about; each kind has a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A bearer token, without its secret.
    Token,
    /// A kept answer of a request with an `Idempotency-Key`.
    Answer,
    /// A job.
    Job,
    /// A VM.
    Vm,
    /// A schedule.
    Schedule,
    /// What a schedule has done, by the schedule's name.
    ScheduleRuns,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Token, Self::Answer, Self::Job, Self::Vm, Self::Schedule, Self::ScheduleRuns];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Answer => "answer",
            Self::Job => "job",
            Self::Vm => "vm",
            Self::Schedule => "schedule",
            Self::ScheduleRuns => "schedule-runs",
        }
    }
}

/// What must be there for a change to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Whatever it is.
    Anything,
    /// No document of that name.
    Absent,
    /// This version.
    Version(u64),
}

/// A document as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored<T> {
    /// Its name within its kind.
    pub(crate) name: String,
    /// Counts up by one with each change.
    pub(crate) version: u64,
    /// What it says.
    pub(crate) body: T,
}

/// Why a document could not be had or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    /// The name is not `[a-z0-9-]{1,63}`.
    #[error("'{}' is no name of a document", name.chars().take(80).collect::<String>())]
    Name { name: String },
    /// Another version than the expected one is there.
    #[error("the {kind} '{name}' has changed meanwhile", kind = kind.as_str())]
    Changed { kind: Kind, name: String },
    /// Too large, or one too many.
    #[error("no room for another {kind}: {count} of {bytes} bytes are the most", kind = kind.as_str(), count = MAX_COUNT, bytes = MAX_BYTES)]
    Full { kind: Kind },
    /// The body is not what this release writes.
    #[error("the {kind} '{name}' is not understood", kind = kind.as_str())]
    Strange {
        kind: Kind,
        name: String,
        #[source]
        cause: serde_json::Error,
    },
    /// The system's error. Whether the change is durable is unknown; readers see what the file says.
    #[error("the {kind} '{name}' could not be kept", kind = kind.as_str())]
    Io {
        kind: Kind,
        name: String,
        #[source]
        cause: io::Error,
    },
}

/// The first line of a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    magic: String,
    format: u32,
    kind: String,
    name: String,
    version: u64,
    bytes: usize,
    /// Of kind, name, version and body; eight hexadecimal digits.
    crc32c: String,
}

#[derive(Debug, Clone)]
struct Entry {
    version: u64,
    body: Arc<[u8]>,
}

/// What a write has done when it goes on; a crash may come after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Begun,
    HalfWritten,
    Written,
    Synced,
    Renamed,
    Removed,
}

/// All documents and their directory.
#[derive(Debug)]
pub(crate) struct Documents {
    dir: PathBuf,
    entries: RwLock<BTreeMap<(Kind, String), Entry>>,
    /// Held during each change, so that they go one at a time and readers need not wait for the disk.
    changes: Mutex<()>,
    damaged: Vec<PathBuf>,
    #[cfg(test)]
    crash_after: Mutex<Option<Step>>,
}

impl Documents {
    /// Reads all documents under `dir`, which is made if needed. Nobody else has it open.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let (mut entries, mut damaged) = (BTreeMap::new(), Vec::new());
        for kind in Kind::ALL {
            let dir = dir.join(kind.as_str());
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            read_kind(kind, &dir, &mut entries, &mut damaged)?;
        }
        sync(dir)?;
        sync(dir.parent().unwrap_or(dir))?;
        Ok(Self {
            dir: dir.to_owned(),
            entries: RwLock::new(entries),
            changes: Mutex::default(),
            damaged,
            #[cfg(test)]
            crash_after: Mutex::default(),
        })
    }

    /// Files that did not verify at the open, under their new names.
    pub(crate) fn damaged(&self) -> &[PathBuf] {
        &self.damaged
    }

    /// One document.
    pub(crate) fn get<T: DeserializeOwned>(&self, kind: Kind, name: &str) -> Result<Option<Stored<T>>, DocumentError> {
        let entry = self.entries.read().get(&(kind, name.to_owned())).cloned();
        entry.map(|entry| understood(kind, name, &entry)).transpose()
    }

    /// All documents of a kind, by name. One that this release does not understand (a newer one wrote it) is said and left where it is.
    pub(crate) fn list<T: DeserializeOwned>(&self, kind: Kind) -> Vec<Stored<T>> {
        let entries = self.entries.read();
        let of_kind = entries.iter().filter(|((of, _), _)| *of == kind);
        let read = of_kind.map(|((_, name), entry)| understood(kind, name, entry));
        read.filter_map(|stored| stored.inspect_err(|error| tracing::error!(%error, "a document is left out")).ok()).collect()
    }

    /// Durably keeps `body` under `name` if what is there is what is expected; returns its version.
    pub(crate) fn put<T: Serialize>(&self, kind: Kind, name: &str, expected: Expected, body: &T) -> Result<u64, DocumentError> {
        check_name(name)?;
        let strange = |cause| DocumentError::Strange { kind, name: name.to_owned(), cause };
        let body = serde_json::to_vec(body).map_err(strange)?;
        let changes = self.changes.lock();
        let present = self.check(kind, name, expected)?;
        let count = self.entries.read().keys().filter(|(of, _)| *of == kind).count();
        if body.len() > MAX_BYTES || (present.is_none() && count >= MAX_COUNT) {
            return Err(DocumentError::Full { kind });
        }
        let version = present.map_or(1, |present| present + 1);
        let header = Header {
            magic: MAGIC.to_owned(),
            format: FORMAT,
            kind: kind.as_str().to_owned(),
            name: name.to_owned(),
            version,
            bytes: body.len(),
            crc32c: checksum(kind, name, version, &body),
        };
        let header = serde_json::to_vec(&header).map_err(strange)?;
        let entry = Entry { version, body: body.into() };
        let written = self.replace(kind, name, &header, &entry);
        drop(changes);
        written.map(|()| version).map_err(|cause| DocumentError::Io { kind, name: name.to_owned(), cause })
    }

    /// Durably deletes a document if what is there is what is expected. One that is not there is deleted already.
    pub(crate) fn delete(&self, kind: Kind, name: &str, expected: Expected) -> Result<(), DocumentError> {
        check_name(name)?;
        let changes = self.changes.lock();
        if self.check(kind, name, expected)?.is_none() {
            return Ok(());
        }
        let removed = self.remove(kind, name);
        drop(changes);
        removed.map_err(|cause| DocumentError::Io { kind, name: name.to_owned(), cause })
    }

    /// The present version, if it is the expected one.
    fn check(&self, kind: Kind, name: &str, expected: Expected) -> Result<Option<u64>, DocumentError> {
        let present = self.entries.read().get(&(kind, name.to_owned())).map(|entry| entry.version);
        let right = match expected {
            Expected::Anything => true,
            Expected::Absent => present.is_none(),
            Expected::Version(version) => present == Some(version),
        };
        if right { Ok(present) } else { Err(DocumentError::Changed { kind, name: name.to_owned() }) }
    }

    fn replace(&self, kind: Kind, name: &str, header: &[u8], entry: &Entry) -> io::Result<()> {
        let dir = self.dir.join(kind.as_str());
        let new = dir.join(format!("{name}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        self.after(Step::Begun)?;
        file.write_all(header)?;
        self.after(Step::HalfWritten)?;
        file.write_all(b"\n")?;
        file.write_all(&entry.body)?;
        self.after(Step::Written)?;
        file.sync_all()?;
        self.after(Step::Synced)?;
        fs::rename(&new, dir.join(format!("{name}.json")))?;
        // From here on the file says so: memory must, too, whatever becomes of the directory.
        self.entries.write().insert((kind, name.to_owned()), entry.clone());
        self.after(Step::Renamed)?;
        sync(&dir)
    }

    fn remove(&self, kind: Kind, name: &str) -> io::Result<()> {
        let dir = self.dir.join(kind.as_str());
        fs::remove_file(dir.join(format!("{name}.json")))?;
        self.entries.write().remove(&(kind, name.to_owned()));
        self.after(Step::Removed)?;
        sync(&dir)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests crash here")]
    fn after(&self, _: Step) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn after(&self, step: Step) -> io::Result<()> {
        if *self.crash_after.lock() == Some(step) { Err(io::Error::other("a crash")) } else { Ok(()) }
    }
}

fn understood<T: DeserializeOwned>(kind: Kind, name: &str, entry: &Entry) -> Result<Stored<T>, DocumentError> {
    let body = serde_json::from_slice(&entry.body);
    let body = body.map_err(|cause| DocumentError::Strange { kind, name: name.to_owned(), cause })?;
    Ok(Stored { name: name.to_owned(), version: entry.version, body })
}

fn check_name(name: &str) -> Result<(), DocumentError> {
    match lamina_contract::VolumeName::new(name) {
        Ok(_) => Ok(()),
        Err(_) => Err(DocumentError::Name { name: name.to_owned() }),
    }
}

fn checksum(kind: Kind, name: &str, version: u64, body: &[u8]) -> String {
    let mut covered = format!("{}\0{name}\0{version}\0", kind.as_str()).into_bytes();
    covered.extend_from_slice(body);
    format!("{:08x}", crc32c(&covered))
}

fn read_kind(kind: Kind, dir: &Path, entries: &mut BTreeMap<(Kind, String), Entry>, damaged: &mut Vec<PathBuf>) -> io::Result<()> {
    for found in fs::read_dir(dir)? {
        let path = found?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        match path.extension().and_then(|extension| extension.to_str()) {
            // Never renamed: its writer was not answered.
            Some("new") => fs::remove_file(&path)?,
            Some("json") => match parse(kind, &name, &read(&path)?) {
                Some(entry) => {
                    entries.insert((kind, name), entry);
                }
                None => {
                    let aside = free_name(dir, &name);
                    fs::rename(&path, &aside)?;
                    tracing::error!(kind = kind.as_str(), %name, kept = %aside.display(), "a document is damaged and set aside");
                    damaged.push(aside);
                }
            },
            _ => {}
        }
    }
    sync(dir)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take((MAX_HEADER + MAX_BYTES + 2) as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The document in `bytes`, if everything holds.
fn parse(kind: Kind, name: &str, bytes: &[u8]) -> Option<Entry> {
    let end = bytes.iter().take(MAX_HEADER).position(|byte| *byte == b'\n')?;
    let (header, body) = bytes.split_at_checked(end)?;
    let body = body.strip_prefix(b"\n")?;
    let header: Header = serde_json::from_slice(header).ok()?;
    let sound = header.magic == MAGIC
        && header.format == FORMAT
        && header.kind == kind.as_str()
        && header.name == name
        && header.bytes == body.len()
        && header.crc32c == checksum(kind, name, header.version, body);
    sound.then(|| Entry { version: header.version, body: body.into() })
}

fn free_name(dir: &Path, name: &str) -> PathBuf {
    let names = (1u64..).map(|number| dir.join(format!("{name}.damaged-{number}")));
    names.into_iter().find(|path| !path.exists()).unwrap_or_else(|| dir.join(format!("{name}.damaged")))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::{DocumentError, Documents, Expected, Kind, Step, Stored};

    fn open(dir: &TempDir) -> Documents {
        Documents::open(&dir.path().join("documents")).expect("opens")
    }

    fn body(documents: &Documents, name: &str) -> Option<String> {
        documents.get::<String>(Kind::Vm, name).expect("understood").map(|stored| stored.body)
    }

    #[test]
    fn documents_come_back_with_their_versions() {
        let dir = TempDir::new().expect("tempdir");
        let documents = open(&dir);
        assert_eq!(documents.put(Kind::Vm, "b", Expected::Absent, &"one").expect("kept"), 1);
        assert_eq!(documents.put(Kind::Vm, "b", Expected::Version(1), &"two").expect("kept"), 2);
        documents.put(Kind::Vm, "a", Expected::Anything, &"x").expect("kept");
        documents.put(Kind::Token, "a", Expected::Anything, &"other").expect("kept");
        let again = open(&dir);
        let stored = |name: &str, version, body: &str| Stored { name: name.to_owned(), version, body: body.to_owned() };
        assert_eq!(again.list::<String>(Kind::Vm), [stored("a", 1, "x"), stored("b", 2, "two")]);
        again.delete(Kind::Vm, "b", Expected::Version(2)).expect("deleted");
        again.delete(Kind::Vm, "never", Expected::Anything).expect("deleted already");
        assert_eq!(body(&open(&dir), "b"), None);
    }

    #[test]
    fn a_change_of_another_version_is_refused() {
        let dir = TempDir::new().expect("tempdir");
        let documents = open(&dir);
        documents.put(Kind::Vm, "a", Expected::Absent, &1).expect("kept");
        for expected in [Expected::Absent, Expected::Version(2)] {
            assert!(matches!(documents.put(Kind::Vm, "a", expected, &2), Err(DocumentError::Changed { .. })));
            assert!(matches!(documents.delete(Kind::Vm, "a", expected), Err(DocumentError::Changed { .. })));
        }
        assert!(matches!(documents.put(Kind::Vm, "../a", Expected::Anything, &2), Err(DocumentError::Name { .. })));
        let large = "x".repeat(2 << 20);
        assert!(matches!(documents.put(Kind::Vm, "large", Expected::Anything, &large), Err(DocumentError::Full { .. })));
        assert!(matches!(documents.get::<String>(Kind::Vm, "a"), Err(DocumentError::Strange { .. })));
        assert!(documents.list::<String>(Kind::Vm).is_empty());
        assert_eq!(documents.list::<u32>(Kind::Vm).len(), 1);
    }

    #[test]
    fn a_crash_at_any_step_leaves_the_old_or_the_new_document() {
        for (step, after) in [
            (Step::Begun, "old"),
            (Step::HalfWritten, "old"),
            (Step::Written, "old"),
            (Step::Synced, "old"),
            (Step::Renamed, "new"),
        ] {
            let dir = TempDir::new().expect("tempdir");
            let documents = open(&dir);
            documents.put(Kind::Vm, "a", Expected::Absent, &"old").expect("kept");
            *documents.crash_after.lock() = Some(step);
            assert!(documents.put(Kind::Vm, "a", Expected::Anything, &"new").is_err(), "{step:?}");
            // Whoever reads before the next start sees what that start will see.
            assert_eq!(body(&documents, "a").as_deref(), Some(after), "{step:?}");
            let again = open(&dir);
            assert_eq!(body(&again, "a").as_deref(), Some(after), "{step:?}");
            assert!(again.damaged().is_empty(), "{step:?}");
            let left: Vec<_> = std::fs::read_dir(dir.path().join("documents/vm")).expect("dir").collect();
            assert_eq!(left.len(), 1, "{step:?}: {left:?}");
        }
        let dir = TempDir::new().expect("tempdir");
        let documents = open(&dir);
        documents.put(Kind::Vm, "a", Expected::Absent, &"old").expect("kept");
        *documents.crash_after.lock() = Some(Step::Removed);
        assert!(documents.delete(Kind::Vm, "a", Expected::Anything).is_err());
        assert_eq!((body(&documents, "a"), body(&open(&dir), "a")), (None, None));
    }

    #[test]
    fn a_damaged_document_is_set_aside_and_reported() {
        let dir = TempDir::new().expect("tempdir");
        open(&dir).put(Kind::Vm, "a", Expected::Absent, &"precious").expect("kept");
        let path = dir.path().join("documents/vm/a.json");
        let sound = std::fs::read(&path).expect("file");
        let mut cases: Vec<Vec<u8>> = (0..sound.len())
            .map(|at| {
                let mut bytes = sound.clone();
                bytes[at] ^= 1;
                bytes
            })
            .collect();
        cases.extend([sound[..sound.len() - 1].to_vec(), Vec::new(), [&sound[..], b"x"].concat()]);
        for (number, bytes) in cases.iter().enumerate() {
            std::fs::write(&path, bytes).expect("write");
            let again = open(&dir);
            assert_eq!((again.damaged().len(), body(&again, "a")), (1, None), "case {number}");
            assert_eq!(&std::fs::read(&again.damaged()[0]).expect("kept"), bytes, "case {number}");
        }
        // In another document's place it is none.
        std::fs::write(dir.path().join("documents/vm/b.json"), &sound).expect("write");
        assert_eq!(open(&dir).damaged().len(), 1);
    }
}
