//! The registry in sled: one key per volume and a head that names the sequence, the count and a digest of all of them.
//!
//! A decision is one sled transaction that demands the head it was made on and writes the changed volume and the new head,
//! followed by a flush. Because sled may lose keys after damage without saying so, what it returns is believed only when count and
//! digest match the head. Because it may panic on damaged files, every call is fenced by `catch_unwind`.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use lamina_contract::VolumeRecord;
use serde::{Deserialize, Serialize};
use sled::transaction::{ConflictableTransactionError, TransactionError};

use lamina_formats::crc32c;

use crate::embedded::CopyError;
use crate::registry::{Change, Registry};
use crate::row::Row;
use crate::sealed;
use crate::second_copy::sync_dir;

const HEAD_FORMAT: &str = "lamina-registry-head";
const VOLUME_FORMAT: &str = "lamina-registry-volume";
const HEAD_KEY: &[u8] = b"head";
const VOLUME_PREFIX: &[u8] = b"volume/";

/// Some hundred bytes per volume: the least that sled accepts is plenty.
const CACHE_BYTES: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    sequence: u64,
    volumes: u64,
    digest: u64,
}

/// sled's own threads hold its lock for a moment after the last handle is dropped: a database that was just closed, or whose process
/// was just killed, opens after a few tries. Another daemon on the same state was told so before anything is opened.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Whether somebody holds the database; sled says it in words only.
fn is_locked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.to_string().starts_with("could not acquire lock")
}

/// An open database.
pub(crate) struct SledCopy {
    db: sled::Db,
}

impl SledCopy {
    /// Opens the database at `path`, or makes an empty one.
    pub(crate) fn open(path: &Path) -> Result<Self, CopyError> {
        let until = Instant::now() + LOCK_PATIENCE;
        let db = loop {
            let opened = fenced(|| {
                Ok(sled::Config::default()
                    .path(path)
                    .cache_capacity(CACHE_BYTES)
                    .mode(sled::Mode::LowSpace)
                    // Each decision flushes for itself; a timer would only wake an idle daemon.
                    .flush_every_ms(None)
                    .open()?)
            });
            match opened {
                Err(CopyError::Sled(sled::Error::Io(error))) if is_locked(&error) && Instant::now() < until => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                opened => break opened?,
            }
        };
        // sled makes its own files durable, not their names.
        sync_dir(path)?;
        Ok(Self { db })
    }

    /// What it says; `None` when nothing was ever decided here.
    pub(crate) fn read(&self) -> Result<Option<Registry>, CopyError> {
        fenced(|| {
            let Some(head) = self.db.get(HEAD_KEY)? else {
                return if self.db.is_empty() { Ok(None) } else { Err(CopyError::Incomplete) };
            };
            let head: Head = sealed::unseal(HEAD_FORMAT, &head)?;
            let mut records = Vec::new();
            for entry in self.db.scan_prefix(VOLUME_PREFIX) {
                let (key, value) = entry?;
                let record = VolumeRecord::try_from(sealed::unseal::<Row>(VOLUME_FORMAT, &value)?)?;
                if *key != volume_key(&record) {
                    return Err(CopyError::Incomplete);
                }
                records.push(record);
            }
            let registry = Registry::from_records(head.sequence, records).map_err(CopyError::rules)?;
            let found = head_of(&registry)?;
            if found.volumes != head.volumes || found.digest != head.digest {
                return Err(CopyError::Incomplete);
            }
            Ok(Some(registry))
        })
    }

    /// Replaces everything by `registry`: a first start, or a rebuild from the second copy.
    pub(crate) fn fill(&self, registry: &Registry) -> Result<(), CopyError> {
        fenced(|| {
            let mut batch = sled::Batch::default();
            for key in self.db.iter().keys() {
                batch.remove(key?);
            }
            for record in registry.records() {
                batch.insert(volume_key(record), sealed::seal(VOLUME_FORMAT, &Row::from(record))?);
            }
            batch.insert(HEAD_KEY, sealed::seal(HEAD_FORMAT, &head_of(registry)?)?);
            self.db.apply_batch(batch)?;
            self.db.flush()?;
            Ok(())
        })
    }

    /// Makes `change`, which leads from `before` to `after`, durable; refuses when the head is not `before`'s.
    pub(crate) fn decide(&self, before: &Registry, change: &Change, after: &Registry) -> Result<(), CopyError> {
        let expected = sealed::seal(HEAD_FORMAT, &head_of(before)?)?;
        let head = sealed::seal(HEAD_FORMAT, &head_of(after)?)?;
        let mut batch = sled::Batch::default();
        match change {
            Change::Put(records) => {
                for record in records {
                    batch.insert(volume_key(record), sealed::seal(VOLUME_FORMAT, &Row::from(record))?);
                }
            }
            Change::Remove(volume) => batch.remove(key_of(&volume.to_string())),
        }
        batch.insert(HEAD_KEY, head);
        fenced(|| {
            let outcome = self.db.transaction(|tx| {
                if tx.get(HEAD_KEY)?.as_deref() != Some(expected.as_slice()) {
                    return Err(ConflictableTransactionError::Abort(()));
                }
                tx.apply_batch(&batch)?;
                Ok(())
            });
            match outcome {
                Ok(()) => {}
                Err(TransactionError::Abort(())) => return Err(CopyError::Moved),
                Err(TransactionError::Storage(error)) => return Err(error.into()),
            }
            self.db.flush()?;
            Ok(())
        })
    }
}

/// Moves a database that cannot be read out of the way, to a name that says so. Nothing is ever removed.
pub(crate) fn set_aside(path: &Path, parent: &Path) -> Result<std::path::PathBuf, CopyError> {
    for number in 1_u32.. {
        let aside = path.with_extension(format!("damaged-{number}"));
        if !aside.try_exists()? {
            fs::rename(path, &aside)?;
            sync_dir(parent)?;
            return Ok(aside);
        }
    }
    Err(CopyError::Incomplete)
}

fn head_of(registry: &Registry) -> Result<Head, CopyError> {
    let mut head = Head { sequence: registry.sequence(), volumes: 0, digest: 0 };
    for record in registry.records() {
        let sealed = sealed::seal(VOLUME_FORMAT, &Row::from(record))?;
        head.volumes += 1;
        // A sum, so that the order does not matter; each term is bound to its volume by the identity inside.
        head.digest = head.digest.wrapping_add(u64::from(crc32c(&sealed)));
    }
    Ok(head)
}

fn volume_key(record: &VolumeRecord) -> Vec<u8> {
    key_of(&record.id.to_string())
}

fn key_of(id: &str) -> Vec<u8> {
    [VOLUME_PREFIX, id.as_bytes()].concat()
}

fn fenced<T>(call: impl FnOnce() -> Result<T, CopyError>) -> Result<T, CopyError> {
    // After a panic the database is not used again: the caller fails it or sets it aside.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(CopyError::Panicked))
}
