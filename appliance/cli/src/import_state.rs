//! What an import that has not ended leaves behind, so that it can go on: a small file under the user's state directory.
//!
//! Everything in front of `done` is durable in the volume. That counts only for the same image, unchanged with all files that it consists
//! of, and for the same volume while nothing was done with it since ([`Mark`]); otherwise going on means comparing. That an import of this
//! image into this volume was begun at all counts too: what the volume held was given up then, and what it holds is ours while the mark is
//! the same. A kill leaves no mark. Written beside itself and renamed: a crash leaves the old one or the new one.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lamina_api::volume::{Volume, VolumeState};
use serde::{Deserialize, Serialize};

use crate::image::{Image, ImageFile};

/// For how long a record counts: nobody goes on with an import after a month, and remembers what it was.
const MAX_AGE_SECONDS: u64 = 30 * 86_400;

/// What moves when something is done with a volume. Counters begin anew with the daemon, and its ownership term moves then. A rollback
/// leaves a snapshot; when that was deleted again, the manifest still tells, unless the store did not have everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mark {
    size_bytes: u64,
    epoch: u64,
    reads: u64,
    writes: u64,
    written_bytes: u64,
    flushes: u64,
    snapshots: u32,
    /// The manifest, where nothing was on its way to the store.
    generation: Option<u64>,
}

impl Mark {
    /// Of a volume that no guest can be writing to; nothing of others.
    pub(crate) fn of(volume: &Volume) -> Option<Self> {
        let counters = &volume.counters;
        (volume.state == VolumeState::Detached && !volume.connected).then_some(Self {
            size_bytes: volume.size_bytes,
            epoch: volume.epoch,
            reads: counters.reads,
            writes: counters.writes,
            written_bytes: counters.written_bytes,
            flushes: counters.flushes,
            snapshots: volume.snapshots,
            generation: (counters.pending_bytes == 0).then_some(volume.generation),
        })
    }

    /// Whether `volume` is as it was.
    fn is_of(&self, volume: &Volume) -> bool {
        let settled = Self { generation: None, ..*self };
        let moved = self.generation.is_some_and(|generation| generation != volume.generation);
        !moved && Self::of(volume).is_some_and(|now| Self { generation: None, ..now } == settled)
    }
}

/// How far an import came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportState {
    image: PathBuf,
    disk_bytes: u64,
    files: Vec<ImageFile>,
    volume: String,
    /// Whether the volume shall be attached in the end.
    attach: bool,
    /// Bytes of the disk that need not be looked at again, where that is known.
    done: Option<u64>,
    /// How the volume was left, where that is known.
    mark: Option<Mark>,
    /// When this was written, in seconds since 1970.
    kept: u64,
}

/// What is known of an import that did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Bytes of the disk that need not be looked at again; without it all must be compared.
    pub(crate) done: Option<u64>,
    /// How the volume was left, if it is still so: then nobody else's data is in it.
    pub(crate) mark: Option<Mark>,
    /// Whether the volume shall be attached in the end.
    pub(crate) attach: bool,
}

/// Where it is kept; nowhere without a home.
#[derive(Debug, Clone)]
pub(crate) struct ImportRecord {
    path: Option<PathBuf>,
    state: ImportState,
}

impl ImportRecord {
    /// Of importing `image` into the volume with the identity `volume`.
    pub(crate) fn new(image: &Image, volume: &str) -> Self {
        Self::within(state_dir().as_deref(), image, volume)
    }

    fn within(dir: Option<&Path>, image: &Image, volume: &str) -> Self {
        // The identity comes from a daemon: only what identities are made of becomes part of a path.
        let plain = !volume.is_empty() && volume.bytes().all(|b| b.is_ascii_hexdigit());
        let path = dir.filter(|_| plain).map(|dir| dir.join("lamina").join("imports").join(format!("{volume}.json")));
        let state = ImportState {
            image: image.file.clone(),
            disk_bytes: image.disk_bytes,
            files: image.files.clone(),
            volume: volume.to_owned(),
            attach: true,
            done: None,
            mark: None,
            kept: 0,
        };
        Self { path, state }
    }

    /// How far an import of this image into `volume` came before.
    pub(crate) fn found(&self, volume: &Volume) -> Option<Found> {
        let text = fs::read(self.path.as_ref()?).ok()?;
        let found: ImportState = serde_json::from_slice(&text).ok()?;
        let own = &self.state;
        // A clock that went back makes none younger.
        let old = now().abs_diff(found.kept) > MAX_AGE_SECONDS;
        if (&found.image, &found.volume) != (&own.image, &own.volume) || old {
            return None;
        }
        // A file that could not be looked at may be another one now.
        let same = (found.disk_bytes, &found.files) == (own.disk_bytes, &own.files) && own.files.iter().all(ImageFile::is_known);
        let mark = found.mark.filter(|mark| mark.is_of(volume));
        Some(Found { done: found.done.filter(|_| same && mark.is_some()), mark, attach: found.attach })
    }

    /// Says whether the volume shall be attached in the end.
    pub(crate) fn attach(&mut self, attach: bool) {
        self.state.attach = attach;
    }

    /// Keeps that it was begun, and that everything in front of `done` is in the volume while that is as `mark` says.
    pub(crate) fn keep(&mut self, done: Option<u64>, mark: Option<Mark>) -> io::Result<()> {
        (self.state.done, self.state.mark, self.state.kept) = (done, mark, now());
        let Some(path) = &self.path else { return Ok(()) };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let unready = path.with_extension("new");
        fs::write(&unready, serde_json::to_vec(&self.state)?)?;
        fs::rename(unready, path)
    }

    /// It is over.
    pub(crate) fn forget(&self) {
        if let Some(path) = &self.path {
            // One that stays counts for nothing: a finished import leaves nothing to go on with.
            let _ = fs::remove_file(path);
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn state_dir() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local").join("state")))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use lamina_api::volume::Volume;
    use serde_json::json;

    use super::{Found, ImportRecord, MAX_AGE_SECONDS, Mark};
    use crate::image::{Format, Image, ImageFile};

    fn image(files: &[ImageFile]) -> Image {
        Image { file: "/img".into(), format: Format::Raw, disk_bytes: 9, files: files.to_vec(), behind: Vec::new() }
    }

    fn file(path: &Path) -> ImageFile {
        ImageFile::look(path)
    }

    fn volume(changes: serde_json::Value) -> Volume {
        let counters = json!({"reads": 0, "writes": 5, "written_bytes": 5, "flushes": 0, "pending_bytes": 0});
        let mut volume = json!({"name": "web", "id": "aa", "size_bytes": 9, "block_size": 4096, "sco_size": 1, "read_only": false,
            "created": "", "state": "detached", "socket": null, "connected": false, "epoch": 3, "generation": 4, "counters": counters});
        for (pointer, value) in changes.as_object().into_iter().flatten() {
            match volume.pointer_mut(pointer) {
                Some(field) => *field = value.clone(),
                None => volume[pointer.trim_start_matches('/')] = value.clone(),
            }
        }
        serde_json::from_value(volume).expect("a volume")
    }

    #[test]
    fn what_was_done_counts_for_the_same_image_and_volume_only() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        std::fs::write(&one, "1").expect("written");
        std::fs::write(&two, "22").expect("written");
        let (whole, changed) = (image(&[file(&one)]), image(&[file(&two)]));
        let record = |image: &Image, volume: &str| ImportRecord::within(Some(dir.path()), image, volume);
        let same = volume(json!({}));
        let mark = Mark::of(&same);
        let mut first = record(&whole, "aa");
        assert_eq!(first.found(&same), None);
        first.attach(false);
        first.keep(Some(7), mark).expect("kept");
        assert_eq!(record(&whole, "aa").found(&same), Some(Found { done: Some(7), mark, attach: false }));
        // It was begun, but what was read is not what is there now.
        assert_eq!(record(&changed, "aa").found(&same), Some(Found { done: None, mark, attach: false }));
        assert_eq!(record(&whole, "ab").found(&same), None);
        assert_eq!(record(&Image { file: "/other".into(), ..whole.clone() }, "aa").found(&same), None);
        record(&whole, "aa").forget();
        assert_eq!(record(&whole, "aa").found(&same), None);
        // An identity is no path.
        let mut outside = record(&whole, "../../x");
        outside.keep(Some(1), mark).expect("kept nowhere");
        assert_eq!((outside.found(&same), dir.path().join("x.json").exists()), (None, false));
    }

    #[test]
    fn what_was_done_counts_only_while_nothing_was_done_with_the_volume_since() {
        let dir = tempfile::tempdir().expect("tempdir");
        let one = dir.path().join("one");
        std::fs::write(&one, "1").expect("written");
        let record = || ImportRecord::within(Some(dir.path()), &image(&[file(&one)]), "aa");
        let left = volume(json!({}));
        record().keep(Some(7), Mark::of(&left)).expect("kept");
        assert!(record().found(&left).is_some_and(|found| found.done == Some(7)));
        for change in [
            json!({"/counters/writes": 6}),
            json!({"/counters/written_bytes": 6}),
            json!({"/counters/reads": 1}),
            json!({"/counters/flushes": 1}),
            json!({"/state": "attached"}),
            json!({"/connected": true}),
            json!({"/epoch": 4}),
            json!({"/generation": 5}),
            json!({"/snapshots": 1}),
            json!({"/size_bytes": 10}),
        ] {
            let expected = Some(Found { done: None, mark: None, attach: true });
            assert_eq!(record().found(&volume(change.clone())), expected, "{change}");
        }
        // What was on its way to the store arrives there, and moves the manifest.
        record().keep(Some(7), Mark::of(&volume(json!({"/counters/pending_bytes": 1})))).expect("kept");
        assert!(record().found(&volume(json!({"/generation": 5}))).is_some_and(|found| found.done == Some(7)));
        record().keep(Some(7), None).expect("kept by an import that was killed afterwards");
        assert_eq!(record().found(&left), Some(Found { done: None, mark: None, attach: true }));
    }

    #[test]
    fn a_record_of_long_ago_counts_for_none() {
        let dir = tempfile::tempdir().expect("tempdir");
        let one = dir.path().join("one");
        std::fs::write(&one, "1").expect("written");
        let mut record = ImportRecord::within(Some(dir.path()), &image(&[file(&one)]), "aa");
        let left = volume(json!({}));
        record.keep(Some(7), Mark::of(&left)).expect("kept");
        let path = record.path.clone().expect("a path");
        for age in [MAX_AGE_SECONDS - 60, MAX_AGE_SECONDS + 60] {
            let mut state = record.state.clone();
            state.kept -= age;
            std::fs::write(&path, serde_json::to_vec(&state).expect("json")).expect("written");
            assert_eq!(record.found(&left).is_some(), age < MAX_AGE_SECONDS, "{age}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_looked_at_is_never_known_to_be_the_same() {
        let dir = tempfile::tempdir().expect("tempdir");
        let elsewhere = image(&[file(Path::new("nbd://elsewhere/x"))]);
        let mut record = ImportRecord::within(Some(dir.path()), &elsewhere, "aa");
        let left = volume(json!({}));
        record.keep(Some(7), Mark::of(&left)).expect("kept");
        assert_eq!(record.found(&left), Some(Found { done: None, mark: Mark::of(&left), attach: true }));
    }
}
