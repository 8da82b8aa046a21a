//! Which volumes shall not be attached: `meta/detached.json`, a list of identities.
//!
//! Volumes are attached unless they stand here, so that losing this file makes a disk appear and never one vanish. Replaced whole
//! (temporary file, fsync, rename, fsync of the directory) before the caller is answered.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use lamina_contract::VolumeId;

/// Above any real list: 19 bytes an identity.
const MAX_BYTES: u64 = 16 << 20;

/// The list and its file.
#[derive(Debug)]
pub(crate) struct Detached {
    path: PathBuf,
    volumes: BTreeSet<VolumeId>,
}

impl Detached {
    /// What the file says. One that is damaged or cannot be read counts as empty, and is kept beside the next if that can be.
    pub(crate) fn open(path: PathBuf) -> Self {
        let volumes = match read(&path) {
            Ok(volumes) => volumes,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the list of detached volumes cannot be read: all volumes are attached");
                let aside = path.with_extension("damaged");
                if let Err(error) = fs::rename(&path, &aside) {
                    tracing::warn!(path = %path.display(), %error, "it cannot be set aside either: the next change replaces it");
                }
                BTreeSet::new()
            }
        };
        Self { path, volumes }
    }

    /// Whether `volume` shall not be attached.
    pub(crate) fn contains(&self, volume: VolumeId) -> bool {
        self.volumes.contains(&volume)
    }

    /// Durably puts `volume` on the list.
    pub(crate) fn insert(&mut self, volume: VolumeId) -> io::Result<()> {
        let mut next = self.volumes.clone();
        if next.insert(volume) {
            write(&self.path, &next)?;
            self.volumes = next;
        }
        Ok(())
    }

    /// Durably takes `volume` off the list.
    pub(crate) fn remove(&mut self, volume: VolumeId) -> io::Result<()> {
        let mut next = self.volumes.clone();
        if next.remove(&volume) {
            write(&self.path, &next)?;
            self.volumes = next;
        }
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<BTreeSet<VolumeId>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        opened => opened?.take(MAX_BYTES).read_to_end(&mut bytes)?,
    };
    parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))
}

fn parse(bytes: &[u8]) -> Option<BTreeSet<VolumeId>> {
    let ids: Vec<String> = serde_json::from_slice(bytes).ok()?;
    ids.iter().map(|id| id.parse().ok()).collect()
}

fn write(path: &Path, volumes: &BTreeSet<VolumeId>) -> io::Result<()> {
    let ids: Vec<String> = volumes.iter().map(VolumeId::to_string).collect();
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(&ids)?)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use lamina_contract::VolumeId;

    use super::Detached;

    #[test]
    fn the_list_survives_a_restart_and_a_damaged_one_attaches_everything() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let path = dir.path().join("detached.json");
        let mut list = Detached::open(path.clone());
        list.insert(VolumeId(1)).expect("written");
        list.insert(VolumeId(2)).expect("written");
        list.remove(VolumeId(1)).expect("written");
        let again = Detached::open(path.clone());
        assert!(again.contains(VolumeId(2)) && !again.contains(VolumeId(1)));
        std::fs::write(&path, b"[\"00000000000").expect("damage");
        assert!(!Detached::open(path.clone()).contains(VolumeId(2)));
        assert!(path.with_extension("damaged").exists());
        // What cannot be read at all keeps no guest from its disk.
        std::fs::create_dir(&path).expect("a directory in its place");
        assert!(!Detached::open(path.clone()).contains(VolumeId(2)));
    }
}
