//! What an import that stopped leaves behind, so that it can go on: a small file under the user's state directory.
//!
//! Everything in front of `done` is durable in the volume. The file counts only for the same image, unchanged, and the same volume; without
//! one that counts, going on means comparing. Written beside itself and renamed: a crash leaves the old one or the new one.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::image::Image;

/// How far an import came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportState {
    image: PathBuf,
    disk_bytes: u64,
    changed_ns: i128,
    volume: String,
    /// Bytes of the disk that need not be looked at again.
    pub(crate) done: u64,
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
            changed_ns: image.changed_ns,
            volume: volume.to_owned(),
            done: 0,
        };
        Self { path, state }
    }

    /// How far the same import came before.
    pub(crate) fn found(&self) -> Option<u64> {
        let text = fs::read(self.path.as_ref()?).ok()?;
        let found: ImportState = serde_json::from_slice(&text).ok()?;
        let done = found.done;
        (ImportState { done: 0, ..found } == ImportState { done: 0, ..self.state.clone() }).then_some(done)
    }

    /// Keeps that everything in front of `done` is in the volume.
    pub(crate) fn keep(&mut self, done: u64) -> io::Result<()> {
        self.state.done = done;
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

fn state_dir() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local").join("state")))
}

#[cfg(test)]
mod tests {
    use super::ImportRecord;
    use crate::image::{Format, Image};

    #[test]
    fn what_was_done_counts_for_the_same_image_and_volume_only() {
        let dir = tempfile::tempdir().expect("tempdir");
        let image = Image { file: "/img".into(), format: Format::Raw, disk_bytes: 9, changed_ns: 1 };
        let record = |image: &Image, volume: &str| ImportRecord::within(Some(dir.path()), image, volume);
        record(&image, "aa").keep(7).expect("kept");
        assert_eq!(record(&image, "aa").found(), Some(7));
        assert_eq!(record(&Image { changed_ns: 2, ..image.clone() }, "aa").found(), None);
        assert_eq!(record(&image, "ab").found(), None);
        record(&image, "aa").forget();
        assert_eq!(record(&image, "aa").found(), None);
        // An identity is no path.
        let mut outside = record(&image, "../../x");
        outside.keep(1).expect("kept nowhere");
        assert_eq!((outside.found(), dir.path().join("x.json").exists()), (None, false));
    }
}
