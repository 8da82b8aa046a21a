//! `registry.json`: the whole registry in one file, replaced at each decision.
//!
//! A replacement is prepared beside it (written, fsynced) *before* the decision is made in sled, and published (renamed, directory
//! fsynced) after it. A full disk therefore stops a decision before it is made. A crash leaves the old file or the new one, whole,
//! and perhaps a prepared one, which is ignored and overwritten by the next.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use lamina_contract::VolumeRecord;
use serde::{Deserialize, Serialize};

use crate::embedded::CopyError;
use crate::registry::Registry;
use crate::row::Row;
use crate::sealed;

const NAME: &str = "registry.json";
const PREPARED: &str = "registry.json.new";
const FORMAT: &str = "lamina-registry";

/// A bound on what is read back: a record is about 300 bytes, so this is 200,000 volumes.
const MAX_BYTES: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    sequence: u64,
    volumes: Vec<Row>,
}

/// The directory that holds the file.
#[derive(Debug)]
pub(crate) struct SecondCopy {
    dir: PathBuf,
}

impl SecondCopy {
    /// The copy kept in `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// What it says; `None` when there is no file.
    pub(crate) fn read(&self) -> Result<Option<Registry>, CopyError> {
        let file = match File::open(self.dir.join(NAME)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(CopyError::TooLarge { limit: MAX_BYTES });
        }
        let body: Body = sealed::unseal(FORMAT, &bytes)?;
        let records: Result<Vec<_>, _> = body.volumes.into_iter().map(VolumeRecord::try_from).collect();
        Ok(Some(Registry::from_records(body.sequence, records?).map_err(CopyError::rules)?))
    }

    /// Writes the replacement beside the file; nothing is decided yet.
    pub(crate) fn prepare(&self, registry: &Registry) -> Result<(), CopyError> {
        let body = Body { sequence: registry.sequence(), volumes: registry.records().map(Row::from).collect() };
        let bytes = sealed::seal(FORMAT, &body)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(CopyError::TooLarge { limit: MAX_BYTES });
        }
        let mut file = File::create(self.dir.join(PREPARED))?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        Ok(())
    }

    /// Makes the prepared replacement the file.
    pub(crate) fn publish(&self) -> Result<(), CopyError> {
        fs::rename(self.dir.join(PREPARED), self.dir.join(NAME))?;
        sync_dir(&self.dir)?;
        Ok(())
    }
}

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
