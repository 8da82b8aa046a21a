//! Map pages in sled: one value per page under its immutable address, never a key per block.
//!
//! sled may panic on damage and may lose keys (CRATES: one flipped bit does): every call is caught, and a database that panicked or
//! failed is wiped and begun anew, which costs fetching pages again. Bounded in bytes: the object that came first goes first; after
//! a restart the order is that of the keys. A crash leaves any part.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lamina_contract::{Epoch, VolumeId};
use lamina_formats::map::MapObject;
use parking_lot::{Mutex, RwLock};

use crate::page_store::{ObjectKey, PageKey, PageStore};

const KEY_BYTES: usize = 28;
/// Two seconds in all.
const HELD_TRIES: u32 = 40;
const HELD_WAIT: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct Kept {
    bytes: HashMap<ObjectKey, u64>,
    /// Oldest first.
    order: VecDeque<ObjectKey>,
    total: u64,
}

/// See the file's header.
pub struct SledPages {
    directory: PathBuf,
    most_bytes: u64,
    cache_bytes: u64,
    /// `None` when not even an empty database can be opened.
    db: RwLock<Option<sled::Db>>,
    kept: Mutex<Kept>,
}

impl std::fmt::Debug for SledPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SledPages({})", self.directory.display())
    }
}

impl SledPages {
    /// Opens the database in `directory`; one that is damaged is begun anew. It keeps at most `most_bytes` of pages, and sled is
    /// told to use `cache_bytes` of memory (it takes several times that).
    ///
    /// # Errors
    /// The system's, when another process has the database, or not even an empty one can be made.
    pub fn open(directory: &Path, most_bytes: u64, cache_bytes: u64) -> io::Result<Self> {
        let opened = match open_unheld(directory, cache_bytes) {
            Opening::Open(db) => guarded(|| count(&db)).map(|kept| (db, kept)),
            Opening::Held(error) => return Err(error),
            Opening::Damaged => None,
        };
        let (db, kept) = match opened {
            Some(opened) => opened,
            None => {
                tracing::warn!(path = %directory.display(), "local map pages are damaged and begun anew");
                wipe(directory)?;
                match open_unheld(directory, cache_bytes) {
                    Opening::Open(db) => (db, Kept::default()),
                    Opening::Held(error) => return Err(error),
                    Opening::Damaged => return Err(io::Error::other("sled cannot make a database")),
                }
            }
        };
        let pages =
            Self { directory: directory.to_owned(), most_bytes, cache_bytes, db: RwLock::new(Some(db)), kept: Mutex::new(kept) };
        pages.trim();
        Ok(pages)
    }

    /// Bytes of pages kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.kept.lock().total
    }

    /// Runs `work` on the database; begins anew when it fails.
    fn with<T>(&self, work: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Option<T> {
        let done = {
            let db = self.db.read();
            let db = db.as_ref()?;
            guarded(|| work(db))
        };
        if done.is_none() {
            self.rebuild();
        }
        done
    }

    fn rebuild(&self) {
        tracing::warn!(path = %self.directory.display(), "local map pages failed and are begun anew");
        let mut db = self.db.write();
        // Dropping may panic as any call may.
        let old = db.take();
        let _ = catch_unwind(AssertUnwindSafe(move || drop(old)));
        *self.kept.lock() = Kept::default();
        if let Err(error) = wipe(&self.directory) {
            tracing::warn!(%error, "damaged map pages cannot be removed");
            return;
        }
        if let Opening::Open(new) = open_once(&self.directory, self.cache_bytes) {
            *db = Some(new);
        }
    }

    fn trim(&self) {
        loop {
            let oldest = {
                let kept = self.kept.lock();
                if kept.total <= self.most_bytes {
                    return;
                }
                kept.order.front().copied()
            };
            let Some(oldest) = oldest else { return };
            self.remove(&oldest);
        }
    }
}

impl PageStore for SledPages {
    fn get(&self, key: &PageKey, length: u32) -> Option<Vec<u8>> {
        let value = self.with(|db| db.get(key_bytes(key)))??;
        (value.len() == length as usize).then(|| value.to_vec())
    }

    fn put_batch(&self, object: &ObjectKey, pages: &[(u32, &[u8])]) {
        let mut written = 0;
        for group in pages.chunks(256) {
            let mut batch = sled::Batch::default();
            for (offset, page) in group {
                batch.insert(&key_bytes(&PageKey { object: *object, offset: *offset }), *page);
                written += page.len() as u64;
            }
            if self.with(|db| db.apply_batch(batch)).is_none() {
                return;
            }
        }
        {
            let mut kept = self.kept.lock();
            if !kept.bytes.contains_key(object) {
                kept.order.push_back(*object);
            }
            *kept.bytes.entry(*object).or_default() += written;
            kept.total += written;
        }
        self.trim();
    }

    fn remove(&self, object: &ObjectKey) {
        {
            let mut kept = self.kept.lock();
            let bytes = kept.bytes.remove(object).unwrap_or(0);
            kept.total -= bytes;
            kept.order.retain(|other| other != object);
        }
        let prefix = &key_bytes(&PageKey { object: *object, offset: 0 })[..KEY_BYTES - 4];
        self.with(|db| {
            for key in db.scan_prefix(prefix).keys() {
                db.remove(key?)?;
            }
            Ok(())
        });
    }

    fn clear(&self) {
        self.rebuild();
    }
}

/// `None` when it panicked or failed.
fn guarded<T>(work: impl FnOnce() -> sled::Result<T>) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Some(done),
        Ok(Err(error)) => {
            tracing::warn!(%error, "sled failed");
            None
        }
        Err(_) => None,
    }
}

enum Opening {
    Open(sled::Db),
    /// Somebody else has it.
    Held(io::Error),
    Damaged,
}

/// A database that was closed a moment ago is let go of by sled's threads a little later: that is waited for, so that it is not
/// taken for one that another process holds.
fn open_unheld(directory: &Path, cache_bytes: u64) -> Opening {
    let mut tries = HELD_TRIES;
    loop {
        let opened = open_once(directory, cache_bytes);
        tries -= 1;
        if tries == 0 || !matches!(opened, Opening::Held(_)) {
            return opened;
        }
        std::thread::sleep(HELD_WAIT);
    }
}

fn open_once(directory: &Path, cache_bytes: u64) -> Opening {
    let config = sled::Config::new()
        .path(directory)
        .cache_capacity(cache_bytes)
        .flush_every_ms(Some(5_000))
        .mode(sled::Mode::HighThroughput);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Opening::Open(db),
        // What sled says when its lock is taken has no kind of its own.
        Ok(Err(sled::Error::Io(error))) if error.kind() == io::ErrorKind::Other => Opening::Held(error),
        Ok(Err(error)) => {
            tracing::warn!(%error, "sled failed");
            Opening::Damaged
        }
        Err(_) => Opening::Damaged,
    }
}

fn wipe(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn count(db: &sled::Db) -> sled::Result<Kept> {
    let mut kept = Kept::default();
    for pair in db.iter() {
        let (key, value) = pair?;
        let Some(object) = parse_key(&key) else { continue };
        if !kept.bytes.contains_key(&object) {
            kept.order.push_back(object);
        }
        *kept.bytes.entry(object).or_default() += value.len() as u64;
        kept.total += value.len() as u64;
    }
    Ok(kept)
}

fn key_bytes(key: &PageKey) -> [u8; KEY_BYTES] {
    let mut out = [0; KEY_BYTES];
    out[..8].copy_from_slice(&key.object.volume.0.to_be_bytes());
    out[8..16].copy_from_slice(&key.object.object.epoch.0.to_be_bytes());
    out[16..24].copy_from_slice(&key.object.object.number.to_be_bytes());
    out[24..].copy_from_slice(&key.offset.to_be_bytes());
    out
}

fn parse_key(key: &[u8]) -> Option<ObjectKey> {
    if key.len() != KEY_BYTES {
        return None;
    }
    let number = |at: usize| key.get(at..)?.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes));
    let object = MapObject { epoch: Epoch(number(8)?), number: number(16)? };
    Some(ObjectKey { volume: VolumeId(number(0)?), object })
}
