//! Small things that must survive: tokens, jobs, kept answers, VMs, schedules and what these have done. One file a document, under `meta/documents/<kind>/`.
//!
//! A file is a line of JSON (magic, format, kind, name, version, length, CRC-32C of all of it) and the body, JSON too. It is written whole:
//! `<name>.new`, fsync, rename to `<name>.json`, fsync of the directory; only then the caller hears of it. A crash leaves the old or the new
//! one, and perhaps a `.new`, which the next open removes. All documents are kept in memory as well: at most [`MAX_COUNT`] of a kind,
//! [`MAX_BYTES`] each.
//!
//! What is wrong with one file never keeps the rest from being served ([`Trouble`]): a file that does not verify is renamed to
//! `<name>.damaged-<n>`; one that a newer release wrote, or that cannot be read, stays where it is, and its name is withheld: it is neither
//! read nor changed nor deleted, so that whoever understands it finds it as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lamina_formats::integrity::crc32c;
use parking_lot::{Mutex, RwLock};
use serde::de::{DeserializeOwned, IgnoredAny};
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

    pub(crate) const fn as_str(self) -> &'static str {
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
    /// A file of that name is there and left alone: a newer release wrote it, or it cannot be read.
    #[error("the {kind} '{name}' is there and cannot be used: its file is of a newer release, or unreadable", kind = kind.as_str())]
    Withheld { kind: Kind, name: String },
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

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrong {
    /// It did not verify, and is set aside.
    Damaged,
    /// It could not be read, set aside or removed: it is where it was.
    Unreadable,
    /// A newer release wrote it: it is where it was.
    Newer,
}

/// A file that something is wrong with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Trouble {
    pub(crate) wrong: Wrong,
    pub(crate) kind: Kind,
    /// Where it is now.
    pub(crate) path: PathBuf,
}

/// As much of the first line as any release has written and will.
#[derive(Debug, Deserialize)]
struct Preface {
    magic: String,
    format: u32,
}

/// The first line of a file.
#[derive(Debug, Serialize, Deserialize)]
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

/// Of [`Header`].
const HEADER_FIELDS: usize = 7;

#[derive(Debug, Clone)]
struct Entry {
    version: u64,
    body: Arc<[u8]>,
}

/// Documents that are there and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftOut {
    /// Their names, as far as they are known.
    pub(crate) names: BTreeSet<String>,
    /// There may be any others: the directory could not be read.
    pub(crate) any: bool,
}

impl LeftOut {
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.any
    }
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
    /// How often documents of a kind have changed, in the order of [`Kind::ALL`].
    changed: [AtomicU64; Kind::ALL.len()],
    found: Found,
    /// Those whose bodies nobody understood who asked.
    strange: Mutex<BTreeSet<(Kind, String)>>,
    #[cfg(test)]
    crash_after: Mutex<Option<Step>>,
}

/// What the open found beside sound documents.
#[derive(Debug, Default)]
struct Found {
    troubles: Vec<Trouble>,
    withheld: BTreeSet<(Kind, String)>,
    /// Kinds whose directories could not be read: nobody knows what is there.
    unlisted: BTreeSet<Kind>,
}

impl Found {
    fn note(&mut self, wrong: Wrong, kind: Kind, path: &Path, why: &str) {
        tracing::error!(kind = kind.as_str(), path = %path.display(), ?wrong, why, "a document is not as it should be");
        self.troubles.push(Trouble { wrong, kind, path: path.to_owned() });
    }

    fn withhold(&mut self, wrong: Wrong, kind: Kind, name: &str, path: &Path, why: &str) {
        self.note(wrong, kind, path, why);
        self.withheld.insert((kind, name.to_owned()));
    }
}

impl Documents {
    /// Reads all documents under `dir`, which is made if needed. Nobody else has it open. What cannot be read is [`Trouble`].
    pub(crate) fn open(dir: &Path) -> Self {
        let (mut entries, mut found) = (BTreeMap::new(), Found::default());
        for kind in Kind::ALL {
            let dir = dir.join(kind.as_str());
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            if let Err(error) = made.and_then(|()| read_kind(kind, &dir, &mut entries, &mut found)) {
                found.note(Wrong::Unreadable, kind, &dir, &error.to_string());
                found.unlisted.insert(kind);
            }
        }
        if let Err(error) = sync(dir).and_then(|()| sync(dir.parent().unwrap_or(dir))) {
            // What is there was read; a document is durable when its own write is.
            tracing::warn!(%error, "the documents' directories may not be durable");
        }
        Self {
            dir: dir.to_owned(),
            entries: RwLock::new(entries),
            changes: Mutex::default(),
            changed: Default::default(),
            found,
            strange: Mutex::default(),
            #[cfg(test)]
            crash_after: Mutex::default(),
        }
    }

    /// Everything that is wrong: what the open found, and what nobody has understood who asked since.
    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        let strange = self.strange.lock();
        let newer = strange.iter().map(|(kind, name)| Trouble { wrong: Wrong::Newer, kind: *kind, path: self.path(*kind, name) });
        self.found.troubles.iter().cloned().chain(newer).collect()
    }

    /// How often documents of a kind have changed since the open.
    pub(crate) fn changed(&self, kind: Kind) -> u64 {
        self.counter(kind).load(Ordering::Acquire)
    }

    fn counter(&self, kind: Kind) -> &AtomicU64 {
        let [token, answer, job, vm, schedule, runs] = &self.changed;
        match kind {
            Kind::Token => token,
            Kind::Answer => answer,
            Kind::Job => job,
            Kind::Vm => vm,
            Kind::Schedule => schedule,
            Kind::ScheduleRuns => runs,
        }
    }

    fn path(&self, kind: Kind, name: &str) -> PathBuf {
        self.dir.join(kind.as_str()).join(format!("{name}.json"))
    }

    /// One document.
    pub(crate) fn get<T: DeserializeOwned>(&self, kind: Kind, name: &str) -> Result<Option<Stored<T>>, DocumentError> {
        let entry = self.entries.read().get(&(kind, name.to_owned())).cloned();
        let Some(entry) = entry else { return self.check_withheld(kind, name).map(|()| None) };
        self.understood(kind, name, &entry).map(Some)
    }

    /// All documents of a kind, by name. One that this release does not understand (a newer one wrote it) is said and left where it is.
    pub(crate) fn list<T: DeserializeOwned>(&self, kind: Kind) -> Vec<Stored<T>> {
        let of_kind = self.of_kind(kind);
        of_kind.iter().filter_map(|(name, entry)| self.understood(kind, name, entry).ok()).collect()
    }

    /// What of a kind [`Self::list`] leaves out: the names of documents that are there and whose bodies cannot be had as `T`.
    pub(crate) fn left_out<T: DeserializeOwned>(&self, kind: Kind) -> LeftOut {
        let of_kind = self.of_kind(kind);
        let strange = of_kind.iter().filter(|(name, entry)| self.understood::<T>(kind, name, entry).is_err());
        let withheld = self.found.withheld.iter().filter(|(of, _)| *of == kind).map(|(_, name)| name.clone());
        LeftOut { names: strange.map(|(name, _)| name.clone()).chain(withheld).collect(), any: self.found.unlisted.contains(&kind) }
    }

    /// Bodies are shared: nobody waits while they are parsed.
    fn of_kind(&self, kind: Kind) -> Vec<(String, Entry)> {
        let entries = self.entries.read();
        entries.iter().filter(|((of, _), _)| *of == kind).map(|((_, name), entry)| (name.clone(), entry.clone())).collect()
    }

    fn understood<T: DeserializeOwned>(&self, kind: Kind, name: &str, entry: &Entry) -> Result<Stored<T>, DocumentError> {
        let stored = understood(kind, name, entry);
        if let Err(error) = &stored
            && self.strange.lock().insert((kind, name.to_owned()))
        {
            tracing::error!(error = error as &dyn std::error::Error, "a document is left out");
        }
        stored
    }

    /// Whether nothing of that name is there that was not read.
    fn check_withheld(&self, kind: Kind, name: &str) -> Result<(), DocumentError> {
        let found = &self.found;
        if found.unlisted.contains(&kind) || found.withheld.contains(&(kind, name.to_owned())) {
            return Err(DocumentError::Withheld { kind, name: name.to_owned() });
        }
        Ok(())
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
        self.check_withheld(kind, name)?;
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
        self.noted(kind, name);
        self.after(Step::Renamed)?;
        sync(&dir)
    }

    fn remove(&self, kind: Kind, name: &str) -> io::Result<()> {
        let dir = self.dir.join(kind.as_str());
        fs::remove_file(dir.join(format!("{name}.json")))?;
        self.entries.write().remove(&(kind, name.to_owned()));
        self.noted(kind, name);
        self.after(Step::Removed)?;
        sync(&dir)
    }

    /// What is in memory has changed.
    fn noted(&self, kind: Kind, name: &str) {
        self.counter(kind).fetch_add(1, Ordering::AcqRel);
        self.strange.lock().remove(&(kind, name.to_owned()));
    }

    /// Changes wait while this is held, as they do for a slow disk.
    #[cfg(test)]
    pub(crate) fn hold_changes(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.changes.lock()
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

/// An error is the directory's; what is wrong with a file is noted.
fn read_kind(kind: Kind, dir: &Path, entries: &mut BTreeMap<(Kind, String), Entry>, found: &mut Found) -> io::Result<()> {
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        match path.extension().and_then(|extension| extension.to_str()) {
            // Never renamed: its writer was not answered.
            Some("new") => {
                if let Err(error) = fs::remove_file(&path) {
                    found.note(Wrong::Unreadable, kind, &path, &error.to_string());
                }
            }
            Some("json") => match read(&path).map(|bytes| parse(kind, &name, &bytes)) {
                Ok(Parsed::Sound(entry)) => {
                    entries.insert((kind, name), entry);
                }
                Ok(Parsed::Newer) => found.withhold(Wrong::Newer, kind, &name, &path, "of a newer release"),
                Ok(Parsed::Damaged) => {
                    let aside = free_name(dir, &name);
                    match fs::rename(&path, &aside) {
                        Ok(()) => found.note(Wrong::Damaged, kind, &aside, "damaged, set aside"),
                        Err(error) => found.withhold(Wrong::Unreadable, kind, &name, &path, &error.to_string()),
                    }
                }
                Err(error) => found.withhold(Wrong::Unreadable, kind, &name, &path, &error.to_string()),
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

/// What a file holds.
enum Parsed {
    Sound(Entry),
    Damaged,
    Newer,
}

/// The document in `bytes`, if everything holds. One of a later format, or whose first line has more than this release knows of, is newer.
fn parse(kind: Kind, name: &str, bytes: &[u8]) -> Parsed {
    let end = bytes.iter().take(MAX_HEADER).position(|byte| *byte == b'\n');
    let Some((line, body)) = end.and_then(|end| bytes.split_at_checked(end)) else { return Parsed::Damaged };
    let known = serde_json::from_slice::<Preface>(line).ok().filter(|preface| preface.magic == MAGIC);
    if known.is_some_and(|preface| preface.format > FORMAT) {
        return Parsed::Newer;
    }
    let header = serde_json::from_slice::<Header>(line).ok();
    let Some((header, body)) = header.zip(body.strip_prefix(b"\n")) else { return Parsed::Damaged };
    let sound = header.magic == MAGIC
        && header.format == FORMAT
        && header.kind == kind.as_str()
        && header.name == name
        && header.bytes == body.len()
        && header.crc32c == checksum(kind, name, header.version, body);
    // What this release does not know of would be lost by its next change.
    let known = serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(line).is_ok_and(|fields| fields.len() == HEADER_FIELDS);
    match (sound, known) {
        (true, true) => Parsed::Sound(Entry { version: header.version, body: body.into() }),
        (true, false) => Parsed::Newer,
        (false, _) => Parsed::Damaged,
    }
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

    use super::{DocumentError, Documents, Expected, Kind, Step, Stored, Trouble, Wrong};

    fn open(dir: &TempDir) -> Documents {
        Documents::open(&dir.path().join("documents"))
    }

    fn wrong(documents: &Documents) -> Vec<(Wrong, String)> {
        let file = |trouble: Trouble| trouble.path.file_name().expect("a name").to_string_lossy().into_owned();
        documents.troubles().into_iter().map(|trouble| (trouble.wrong, file(trouble))).collect()
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
            assert!(again.troubles().is_empty(), "{step:?}");
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
            let troubles = again.troubles();
            assert_eq!((troubles.len(), body(&again, "a")), (1, None), "case {number}");
            assert_eq!(
                (troubles[0].wrong, &std::fs::read(&troubles[0].path).expect("kept")),
                (Wrong::Damaged, bytes),
                "case {number}"
            );
        }
        // In another document's place it is none.
        std::fs::write(dir.path().join("documents/vm/b.json"), &sound).expect("write");
        assert_eq!(wrong(&open(&dir)), [(Wrong::Damaged, "b.damaged-1".to_owned())]);
    }

    #[test]
    fn a_document_of_a_newer_release_is_left_as_it_is() {
        let dir = TempDir::new().expect("tempdir");
        open(&dir).put(Kind::Vm, "a", Expected::Absent, &"precious").expect("kept");
        let path = dir.path().join("documents/vm/a.json");
        let sound = std::fs::read_to_string(&path).expect("file");
        let newer = [
            sound.replace(r#""format":1"#, r#""format":2"#),
            "{\"format\":3,\"magic\":\"lamina-document\",\"sealed\":true}\n\u{1}".to_owned(),
            sound.replace(r#""format":1"#, r#""format":1,"colour":"red""#),
        ];
        for text in newer {
            std::fs::write(&path, &text).expect("write");
            let documents = open(&dir);
            assert_eq!(wrong(&documents), [(Wrong::Newer, "a.json".to_owned())], "{text}");
            assert_eq!(documents.left_out::<String>(Kind::Vm).names.into_iter().collect::<Vec<_>>(), ["a"]);
            assert!(matches!(documents.get::<String>(Kind::Vm, "a"), Err(DocumentError::Withheld { .. })));
            for expected in [Expected::Anything, Expected::Absent] {
                assert!(matches!(documents.put(Kind::Vm, "a", expected, &"x"), Err(DocumentError::Withheld { .. })));
            }
            assert!(matches!(documents.delete(Kind::Vm, "a", Expected::Anything), Err(DocumentError::Withheld { .. })));
            assert_eq!(std::fs::read_to_string(&path).expect("still there"), text);
        }
    }

    #[test]
    fn a_body_that_nobody_understands_is_in_the_list_of_troubles_until_it_is_replaced() {
        let dir = TempDir::new().expect("tempdir");
        let documents = open(&dir);
        documents.put(Kind::Vm, "a", Expected::Absent, &1).expect("kept");
        assert!(wrong(&documents).is_empty() && documents.left_out::<u32>(Kind::Vm).is_empty());
        assert!(documents.list::<String>(Kind::Vm).is_empty());
        assert_eq!(wrong(&documents), [(Wrong::Newer, "a.json".to_owned())]);
        assert!(documents.left_out::<String>(Kind::Vm).names.contains("a"));
        documents.put(Kind::Vm, "a", Expected::Anything, &"text").expect("kept");
        assert!(wrong(&documents).is_empty() && documents.left_out::<String>(Kind::Vm).is_empty());
    }

    #[test]
    fn files_that_cannot_be_read_removed_or_set_aside_cost_nobody_else_anything() {
        let dir = TempDir::new().expect("tempdir");
        open(&dir).put(Kind::Vm, "a", Expected::Absent, &"sound").expect("kept");
        let vms = dir.path().join("documents/vm");
        // A directory is neither read nor removed as a file; a name of 250 characters has no room for what a damaged one is called.
        std::fs::create_dir(vms.join("unread.json")).expect("made");
        std::fs::create_dir(vms.join("stuck.new")).expect("made");
        let long = format!("{}.json", "n".repeat(250));
        std::fs::write(vms.join(&long), b"damaged").expect("written");
        std::fs::remove_dir_all(dir.path().join("documents/job")).expect("removed");
        std::fs::write(dir.path().join("documents/job"), b"no directory").expect("written");
        let documents = open(&dir);
        assert_eq!(body(&documents, "a").as_deref(), Some("sound"));
        let mut found = wrong(&documents);
        found.sort();
        let all = ["job".to_owned(), long, "stuck.new".to_owned(), "unread.json".to_owned()];
        assert_eq!(found, all.map(|name| (Wrong::Unreadable, name)));
        let unread = documents.put(Kind::Vm, "unread", Expected::Anything, &"x");
        assert!(matches!(unread, Err(DocumentError::Withheld { .. })));
        assert!(documents.left_out::<String>(Kind::Job).any && !documents.left_out::<String>(Kind::Vm).any);
        assert!(matches!(documents.get::<String>(Kind::Job, "b"), Err(DocumentError::Withheld { .. })));
        documents.put(Kind::Vm, "b", Expected::Absent, &"new").expect("kept");
    }
}
