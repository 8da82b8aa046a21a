//! Map pages in plain files, one per map object, each page at its own offset: what was never put is a hole.
//!
//! Bounded in bytes: the object that was made or touched first goes first. Names are `<volume>-<epoch>-<number>.pages`; a restart
//! finds the files again and takes their age from the system's modification time. A crash leaves files whose pages may be holes
//! or garbage, which their readers tell.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamina_contract::{Epoch, VolumeId};
use lamina_formats::map::MapObject;
use parking_lot::Mutex;

use crate::page_store::{ObjectKey, PageKey, PageStore};

const SUFFIX: &str = ".pages";
/// Files kept open: a map of 1 TiB with 10 million blocks has about 60 objects.
const OPEN_FILES: usize = 128;

#[derive(Debug)]
struct Kept {
    bytes: u64,
    /// The end of the last page: an object has no more bytes than that, however often a page is put.
    end: u64,
    age: u64,
    file: Option<Arc<File>>,
}

#[derive(Debug, Default)]
struct Objects {
    by_key: HashMap<ObjectKey, Kept>,
    /// Oldest first.
    by_age: BTreeMap<u64, ObjectKey>,
    bytes: u64,
    next_age: u64,
    open: usize,
}

/// See the file's header.
#[derive(Debug)]
pub struct FilePages {
    directory: PathBuf,
    most_bytes: u64,
    objects: Mutex<Objects>,
}

impl FilePages {
    /// Opens a directory, making it when it is missing; it keeps at most `most_bytes`.
    ///
    /// # Errors
    /// The system's, when the directory cannot be made or read.
    pub fn open(directory: &Path, most_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let Some(key) = entry.file_name().to_str().and_then(parse_name) else { continue };
            let metadata = entry.metadata()?;
            found.push((metadata.modified()?, key, metadata.blocks() * 512));
        }
        found.sort_unstable_by_key(|(modified, key, _)| (*modified, *key));
        let mut objects = Objects::default();
        for (_, key, bytes) in found {
            objects.add(key, bytes);
        }
        let pages = Self { directory: directory.to_owned(), most_bytes, objects: Mutex::new(objects) };
        pages.trim(&mut pages.objects.lock());
        Ok(pages)
    }

    /// Bytes kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.objects.lock().bytes
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        let (epoch, number) = (key.object.epoch.0, key.object.number);
        self.directory.join(format!("{}-{epoch:016x}-{number:016x}{SUFFIX}", key.volume))
    }

    fn file(&self, key: &ObjectKey, make: bool) -> Option<Arc<File>> {
        let mut objects = self.objects.lock();
        if let Some(file) = objects.by_key.get(key).and_then(|kept| kept.file.clone()) {
            return Some(file);
        }
        if !make && !objects.by_key.contains_key(key) {
            return None;
        }
        let opened = OpenOptions::new().read(true).write(true).create(make).truncate(false).open(self.path(key));
        let file = match opened {
            Ok(file) => Arc::new(file),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %self.path(key).display(), %error, "local map pages cannot be opened");
                }
                objects.forget(key);
                return None;
            }
        };
        if !objects.by_key.contains_key(key) {
            objects.add(*key, 0);
        }
        if objects.open >= OPEN_FILES {
            objects.by_key.values_mut().for_each(|kept| kept.file = None);
            objects.open = 0;
        }
        if let Some(kept) = objects.by_key.get_mut(key) {
            kept.file = Some(file.clone());
            objects.open += 1;
        }
        Some(file)
    }

    /// Removes the oldest until the rest fits.
    fn trim(&self, objects: &mut Objects) {
        while objects.bytes > self.most_bytes {
            let Some(oldest) = objects.by_age.first_entry().map(|entry| *entry.get()) else { return };
            objects.forget(&oldest);
            self.unlink(&oldest);
        }
    }

    fn unlink(&self, key: &ObjectKey) {
        if let Err(error) = fs::remove_file(self.path(key))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path(key).display(), %error, "local map pages cannot be removed");
        }
    }
}

impl Objects {
    fn add(&mut self, key: ObjectKey, bytes: u64) {
        self.by_age.insert(self.next_age, key);
        self.by_key.insert(key, Kept { bytes, end: bytes, age: self.next_age, file: None });
        self.next_age += 1;
        self.bytes += bytes;
    }

    fn forget(&mut self, key: &ObjectKey) {
        if let Some(kept) = self.by_key.remove(key) {
            self.by_age.remove(&kept.age);
            self.bytes -= kept.bytes;
            self.open -= usize::from(kept.file.is_some());
        }
    }
}

impl PageStore for FilePages {
    fn get(&self, key: &PageKey, length: u32) -> Option<Vec<u8>> {
        let file = self.file(&key.object, false)?;
        let mut page = vec![0; length as usize];
        file.read_exact_at(&mut page, u64::from(key.offset)).ok()?;
        Some(page)
    }

    fn put_batch(&self, object: &ObjectKey, pages: &[(u32, &[u8])]) {
        let Some(file) = self.file(object, true) else { return };
        let (mut written, mut end) = (0, 0);
        let mut pages = pages.iter().peekable();
        let mut run = Vec::new();
        while let Some(&(offset, page)) = pages.next() {
            run.clear();
            run.extend_from_slice(page);
            // Neighbours go in one write.
            while let Some((_, next)) = pages.next_if(|(next, _)| *next as usize == offset as usize + run.len()) {
                run.extend_from_slice(next);
            }
            if let Err(error) = file.write_all_at(&run, u64::from(offset)) {
                tracing::warn!(path = %self.path(object).display(), %error, "local map pages cannot be written");
                break;
            }
            written += run.len() as u64;
            end = end.max(u64::from(offset) + run.len() as u64);
        }
        let mut objects = self.objects.lock();
        if let Some(kept) = objects.by_key.get_mut(object) {
            kept.end = kept.end.max(end);
            let before = kept.bytes;
            kept.bytes = (before + written).min(kept.end);
            let more = kept.bytes - before;
            objects.bytes += more;
        }
        self.trim(&mut objects);
    }

    fn remove(&self, object: &ObjectKey) {
        self.objects.lock().forget(object);
        self.unlink(object);
    }

    fn clear(&self) {
        let keys: Vec<ObjectKey> = self.objects.lock().by_key.keys().copied().collect();
        keys.iter().for_each(|key| self.remove(key));
    }
}

fn parse_name(name: &str) -> Option<ObjectKey> {
    let mut parts = name.strip_suffix(SUFFIX)?.split('-');
    let mut number = || {
        u64::from_str_radix(parts.next().filter(|part| part.len() == 16 && part.bytes().all(|b| b.is_ascii_hexdigit()))?, 16).ok()
    };
    let (volume, epoch, object) = (number()?, number()?, number()?);
    if parts.next().is_some() {
        return None;
    }
    Some(ObjectKey { volume: VolumeId(volume), object: MapObject { epoch: Epoch(epoch), number: object } })
}
