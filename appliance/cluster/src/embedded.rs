//! Coordination for one node: the registry in sled and, because sled's files are one fragile set, a second copy in `registry.json`.
//!
//! A decision: prepare the second copy → transaction and flush in sled → publish the second copy → answer. So an answered decision is
//! in both copies, and a crash leaves the second copy at most one decision behind the first. When they are opened the newer
//! valid copy counts and repairs the other; a damaged database is set aside, never wiped. When neither can be read nothing is
//! guessed: opening fails, since volumes must not start on an invented registry.
//!
//! After a decision whose outcome is unknown (sled or the rename failed) every later one is refused until the registry is opened again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lamina_contract::{
    Coordination, CoordinationError, Epoch, Generation, Ownership, RecordChange, UnitError, VolumeId, VolumeRecord,
};
use parking_lot::Mutex;

use crate::registry::{Change, Registry, RuleError};
use crate::sealed::SealError;
use crate::second_copy::{SecondCopy, sync_dir};
use crate::sled_copy::{SledCopy, set_aside};

/// Why one copy of the registry could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The system's error.
    #[error("the system refused")]
    Io(#[from] io::Error),
    /// sled's error.
    #[error("its database failed")]
    Sled(#[from] sled::Error),
    /// sled panicked, as it does on damaged files.
    #[error("its database is damaged (it panicked)")]
    Panicked,
    /// An older state than the other copy's: it lost decisions that were durable.
    #[error("it went back in time")]
    Behind,
    /// Keys are missing or foreign.
    #[error("its records are incomplete")]
    Incomplete,
    /// Somebody else decided in between: two processes on one registry.
    #[error("another process changed it")]
    Moved,
    /// More bytes than a registry can have.
    #[error("it is larger than {limit} bytes")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
    /// A record's bytes.
    #[error("a record is damaged: {0}")]
    Seal(#[from] SealError),
    /// A record's values.
    #[error("a record is damaged: {0}")]
    Unit(#[from] UnitError),
    /// Records that contradict each other.
    #[error("its records contradict each other")]
    Rules(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl CopyError {
    pub(crate) fn rules(error: RuleError) -> Self {
        Self::Rules(Box::new(error))
    }
}

/// Why the registry as a whole cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The directory or a copy cannot be read or written.
    #[error("registry in {}", dir.display())]
    Copy {
        /// Where.
        dir: PathBuf,
        /// Why.
        #[source]
        cause: CopyError,
    },
    /// Neither copy can be believed.
    #[error(
        "both copies of the registry in {} are damaged or missing (database: {database}; registry.json: {json}). No data of volumes is kept \
         there: restore the directory from a backup, or move it aside and recover the volumes from the store",
        dir.display()
    )]
    BothDamaged {
        /// Where.
        dir: PathBuf,
        /// What is wrong with the database.
        database: CopyError,
        /// What is wrong with the second copy.
        json: CopyError,
    },
    /// An earlier decision may or may not have been kept.
    #[error("an earlier decision failed half way; restart the daemon, which reads what was kept")]
    Failed,
}

struct Live {
    registry: Registry,
    /// Set once a decision's outcome is unknown.
    failed: bool,
}

/// The registry of a single node.
pub struct EmbeddedCoordination {
    dir: PathBuf,
    sled: SledCopy,
    json: SecondCopy,
    live: Mutex<Live>,
}

impl EmbeddedCoordination {
    /// Opens the registry in `dir`, making both when they are not there.
    ///
    /// # Errors
    /// [`CoordinationError::Unavailable`], caused by a [`RegistryError`].
    pub fn open(dir: &Path) -> Result<Self, CoordinationError> {
        Self::open_copies(dir).map_err(|cause| unavailable("opening the registry", cause))
    }

    fn open_copies(dir: &Path) -> Result<Self, RegistryError> {
        let in_dir = |cause: CopyError| RegistryError::Copy { dir: dir.to_owned(), cause };
        make_dir(dir).map_err(|error| in_dir(error.into()))?;
        let path = dir.join("registry.sled");
        let known = path.try_exists().map_err(|error| in_dir(error.into()))?;
        let json = SecondCopy::new(dir);
        // The very first thing made is the second copy, so a database without one has lost it.
        let second = match json.read() {
            Ok(None) if known => Err(CopyError::Incomplete),
            Ok(None) => {
                let empty = Registry::default();
                json.prepare(&empty).and_then(|()| json.publish()).map_err(in_dir)?;
                Ok(empty)
            }
            Ok(Some(registry)) => Ok(registry),
            Err(cause) => Err(cause),
        };
        let first = SledCopy::open(&path).and_then(|sled| match sled.read()? {
            Some(registry) => Ok((sled, registry)),
            None => Err(CopyError::Incomplete),
        });
        let (sled, registry) = match (first, second) {
            (Ok((sled, one)), Ok(two)) if one.sequence() >= two.sequence() => {
                if one != two {
                    tracing::warn!(database = one.sequence(), json = two.sequence(), "registry.json is behind; written again");
                    json.prepare(&one).and_then(|()| json.publish()).map_err(in_dir)?;
                }
                (sled, one)
            }
            (Ok((sled, one)), Err(cause)) => {
                tracing::warn!(sequence = one.sequence(), %cause, "registry.json cannot be read; written again from the database");
                json.prepare(&one).and_then(|()| json.publish()).map_err(in_dir)?;
                (sled, one)
            }
            (first, Ok(two)) => {
                let cause = match first {
                    // Newer second copy: the database went back in time, which is damage too.
                    Ok((sled, _)) => {
                        drop(sled);
                        CopyError::Behind
                    }
                    Err(cause) => cause,
                };
                if let CopyError::Io(_) | CopyError::Sled(sled::Error::Io(_)) = cause {
                    // Not damage: no permission, no space, or another process has it.
                    return Err(in_dir(cause));
                }
                (rebuild(dir, &path, known, &two, &cause).map_err(in_dir)?, two)
            }
            (Err(database), Err(json)) => return Err(RegistryError::BothDamaged { dir: dir.to_owned(), database, json }),
        };
        Ok(Self { dir: dir.to_owned(), sled, json, live: Mutex::new(Live { registry, failed: false }) })
    }

    /// Where it is kept.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn decide<T>(
        &self,
        doing: &'static str,
        rule: impl FnOnce(&Registry) -> Result<(T, Option<Change>), CoordinationError>,
    ) -> Result<T, CoordinationError> {
        let mut live = self.live.lock();
        if live.failed {
            return Err(unavailable(doing, RegistryError::Failed));
        }
        let (answer, change) = rule(&live.registry)?;
        let Some(change) = change else { return Ok(answer) };
        let after = live.registry.after(&change);
        let fail = |cause| unavailable(doing, RegistryError::Copy { dir: self.dir.clone(), cause });
        // Nothing is decided yet: a full disk is reported here and may be tried again.
        self.json.prepare(&after).map_err(fail)?;
        if let Err(cause) = self.sled.decide(&live.registry, &change, &after).and_then(|()| self.json.publish()) {
            live.failed = true;
            tracing::error!(doing, %cause, "the registry failed: no ownership or manifest changes until the daemon is restarted");
            return Err(fail(cause));
        }
        live.registry = after;
        Ok(answer)
    }

    fn look<T>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Registry) -> Result<T, CoordinationError>,
    ) -> Result<T, CoordinationError> {
        let live = self.live.lock();
        if live.failed {
            return Err(unavailable(doing, RegistryError::Failed));
        }
        read(&live.registry)
    }
}

impl Coordination for EmbeddedCoordination {
    fn create_all(&self, records: &[VolumeRecord]) -> Result<(), CoordinationError> {
        self.decide("registering volumes", |registry| Ok(((), Some(registry.create_all(records)?))))
    }

    fn list(&self) -> Result<Vec<VolumeRecord>, CoordinationError> {
        self.look("listing volumes", |registry| Ok(registry.records().cloned().collect()))
    }

    fn get(&self, volume: VolumeId) -> Result<VolumeRecord, CoordinationError> {
        self.look("reading a volume's record", |registry| registry.get(volume).cloned())
    }

    fn take_all(&self, volumes: &[(VolumeId, Epoch)]) -> Result<Vec<Ownership>, CoordinationError> {
        self.decide("taking volumes", |registry| registry.take_all(volumes).map(|(owners, change)| (owners, Some(change))))
    }

    fn advance(&self, owner: Ownership, next: Generation) -> Result<(), CoordinationError> {
        self.decide("advancing a volume", |registry| Ok(((), Some(registry.advance(owner, next)?))))
    }

    fn adopt(&self, owner: Ownership, generation: Generation, manifest_epoch: Epoch) -> Result<(), CoordinationError> {
        self.decide("adopting a manifest", |registry| Ok(((), Some(registry.adopt(owner, generation, manifest_epoch)?))))
    }

    fn change(&self, changes: &[(Ownership, RecordChange)]) -> Result<(), CoordinationError> {
        self.decide("changing records", |registry| Ok(((), Some(registry.change(changes)?))))
    }

    fn begin_delete(&self, volume: VolumeId) -> Result<(), CoordinationError> {
        self.decide("deleting a volume", |registry| Ok(((), registry.begin_delete(volume)?)))
    }

    fn forget(&self, volume: VolumeId) -> Result<(), CoordinationError> {
        self.decide("forgetting a volume", |registry| Ok(((), registry.forget(volume))))
    }
}

/// Makes the database again from the second copy; what is left of the old one stays beside it.
fn rebuild(dir: &Path, path: &Path, known: bool, registry: &Registry, cause: &CopyError) -> Result<SledCopy, CopyError> {
    if known {
        let aside = set_aside(path, dir)?;
        tracing::warn!(%cause, sequence = registry.sequence(), kept = %aside.display(), "the registry's database is damaged; made again from registry.json");
    }
    let sled = SledCopy::open(path)?;
    sled.fill(registry)?;
    sync_dir(dir)?;
    Ok(sled)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_dir(parent)?;
    }
    Ok(())
}

fn unavailable(doing: &'static str, cause: RegistryError) -> CoordinationError {
    CoordinationError::Unavailable { doing, cause: Box::new(cause) }
}

#[cfg(test)]
#[path = "embedded_tests.rs"]
mod tests;
