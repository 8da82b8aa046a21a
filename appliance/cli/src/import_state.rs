//! What an import that has not ended leaves behind, so that it can go on: a small file under the user's state directory.
//!
//! Everything in front of `done` is durable in the volume. That counts only for the same image, unchanged with all files that it consists
//! of, and the same volume; otherwise going on means comparing. That an import of this image into this volume was begun at all counts
//! longer: what the volume holds was given up then. Written beside itself and renamed: a crash leaves the old one or the new one.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::image::{Image, ImageFile};

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
}

/// What is known of an import that did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Bytes of the disk that need not be looked at again; without it all must be compared.
    pub(crate) done: Option<u64>,
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
        };
        Self { path, state }
    }

    /// How far an import of this image into this volume came before.
    pub(crate) fn found(&self) -> Option<Found> {
        let text = fs::read(self.path.as_ref()?).ok()?;
        let found: ImportState = serde_json::from_slice(&text).ok()?;
        let own = &self.state;
        if (&found.image, &found.volume) != (&own.image, &own.volume) {
            return None;
        }
        // A file that could not be looked at may be another one now.
        let same = (found.disk_bytes, &found.files) == (own.disk_bytes, &own.files) && own.files.iter().all(ImageFile::is_known);
        Some(Found { done: found.done.filter(|_| same), attach: found.attach })
    }

    /// Says whether the volume shall be attached in the end.
    pub(crate) fn attach(&mut self, attach: bool) {
        self.state.attach = attach;
    }

    /// Keeps that it was begun, and that everything in front of `done` is in the volume.
    pub(crate) fn keep(&mut self, done: Option<u64>) -> io::Result<()> {
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
    use std::path::Path;

    use super::{Found, ImportRecord};
    use crate::image::{Format, Image, ImageFile};

    fn image(files: &[ImageFile]) -> Image {
        Image { file: "/img".into(), format: Format::Raw, disk_bytes: 9, files: files.to_vec(), behind: Vec::new() }
    }

    fn file(path: &Path) -> ImageFile {
        ImageFile::look(path)
    }

    #[test]
    fn what_was_done_counts_for_the_same_image_and_volume_only() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        std::fs::write(&one, "1").expect("written");
        std::fs::write(&two, "22").expect("written");
        let (whole, changed) = (image(&[file(&one)]), image(&[file(&two)]));
        let record = |image: &Image, volume: &str| ImportRecord::within(Some(dir.path()), image, volume);
        let mut first = record(&whole, "aa");
        assert_eq!(first.found(), None);
        first.attach(false);
        first.keep(Some(7)).expect("kept");
        assert_eq!(record(&whole, "aa").found(), Some(Found { done: Some(7), attach: false }));
        // It was begun, but what was read is not what is there now.
        assert_eq!(record(&changed, "aa").found(), Some(Found { done: None, attach: false }));
        assert_eq!(record(&whole, "ab").found(), None);
        assert_eq!(record(&Image { file: "/other".into(), ..whole.clone() }, "aa").found(), None);
        record(&whole, "aa").forget();
        assert_eq!(record(&whole, "aa").found(), None);
        // An identity is no path.
        let mut outside = record(&whole, "../../x");
        outside.keep(Some(1)).expect("kept nowhere");
        assert_eq!((outside.found(), dir.path().join("x.json").exists()), (None, false));
    }

    #[test]
    fn a_file_that_cannot_be_looked_at_is_never_known_to_be_the_same() {
        let dir = tempfile::tempdir().expect("tempdir");
        let elsewhere = image(&[file(Path::new("nbd://elsewhere/x"))]);
        let mut record = ImportRecord::within(Some(dir.path()), &elsewhere, "aa");
        record.keep(Some(7)).expect("kept");
        assert_eq!(record.found(), Some(Found { done: None, attach: true }));
    }
}
