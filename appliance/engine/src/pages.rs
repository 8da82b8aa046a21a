//! Map pages in memory, shared by all volumes and bounded in bytes; the local page store below.
//!
//! A page stays in its encoded form and is searched as it is. It gets in only after it was checked against its reference.
//! Second chance (CLOCK): a page that was used since the hand came by stays once more. Accounting is of heap bytes, so the bound is
//! one on resident memory; pages in use by lookups under way come on top, one per lookup.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use lamina_formats::map::{Page, PageId, PageRef};
use parking_lot::Mutex;

use crate::leaf_runs::heap_bytes;
use crate::page_store::{ObjectKey, PageKey, PageStore};

/// So that lookups of several queues seldom meet.
const SHARDS: usize = 16;
/// Per page beside its bytes: the entry, its place in the table at the table's worst fill, the count of the `Arc`.
const OVERHEAD: usize = size_of::<Entry>() * 2 + (size_of::<(PageKey, u32)>() + 1) * 16 / 7 + 16;

#[derive(Debug)]
struct Entry {
    key: PageKey,
    page: Arc<[u8]>,
    used: bool,
}

#[derive(Debug, Default)]
struct Shard {
    places: HashMap<PageKey, u32>,
    entries: Vec<Entry>,
    hand: usize,
    bytes: usize,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageStats {
    /// Pages found in memory.
    pub hits: u64,
    /// Pages read from the local page store.
    pub local: u64,
    /// Pages fetched from the object store.
    pub fetched: u64,
    /// Local copies that were damaged.
    pub bad_local: u64,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    local: AtomicU64,
    fetched: AtomicU64,
    bad_local: AtomicU64,
}

/// See the file's header.
pub struct PageCache {
    shards: Vec<Mutex<Shard>>,
    most_per_shard: usize,
    store: Option<Arc<dyn PageStore>>,
    counters: Counters,
    checkpointing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for PageCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageCache").field("memory_bytes", &self.memory_bytes()).field("stats", &self.stats()).finish()
    }
}

impl PageCache {
    /// Of at most `most_bytes` of memory, over `store` if there is one.
    #[must_use]
    pub fn new(most_bytes: usize, store: Option<Box<dyn PageStore>>) -> Self {
        // A leaf has up to 42 KiB: a shard must hold some.
        let shards = if most_bytes < 8 << 20 { 1 } else { SHARDS };
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            most_per_shard: most_bytes / shards,
            store: store.map(Arc::from),
            counters: Counters::default(),
            checkpointing: tokio::sync::Mutex::default(),
        }
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().bytes).sum()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> PageStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PageStats {
            hits: get(&self.counters.hits),
            local: get(&self.counters.local),
            fetched: get(&self.counters.fetched),
            bad_local: get(&self.counters.bad_local),
        }
    }

    /// The page, if it is in memory.
    pub(crate) fn get(&self, id: PageId, at: &PageRef) -> Option<Arc<[u8]>> {
        let key = key_of(id, at);
        let mut shard = self.shard(&key).lock();
        let place = *shard.places.get(&key)?;
        let entry = shard.entries.get_mut(place as usize)?;
        entry.used = true;
        let page = entry.page.clone();
        drop(shard);
        self.counters.hits.fetch_add(1, Ordering::Relaxed);
        Some(page)
    }

    /// Whether the page is in memory; does not count as a use.
    pub(crate) fn has(&self, id: PageId, at: &PageRef) -> bool {
        let key = key_of(id, at);
        self.shard(&key).lock().places.contains_key(&key)
    }

    /// Keeps a page that was checked.
    pub(crate) fn keep(&self, id: PageId, at: &PageRef, page: &Arc<[u8]>) {
        let key = key_of(id, at);
        let cost = cost(page);
        if cost > self.most_per_shard {
            return;
        }
        let mut shard = self.shard(&key).lock();
        if shard.places.contains_key(&key) {
            return;
        }
        while shard.bytes + cost > self.most_per_shard {
            shard.evict();
        }
        let place = shard.entries.len() as u32;
        shard.places.insert(key, place);
        shard.entries.push(Entry { key, page: page.clone(), used: false });
        shard.bytes += cost;
    }

    /// The page from the local page store, checked; a damaged one counts as absent.
    pub(crate) fn local(&self, id: PageId, at: &PageRef) -> Option<Vec<u8>> {
        let bytes = self.store.as_ref()?.get(&key_of(id, at), at.length)?;
        if Page::read(&bytes, id, at).is_err() {
            // A hole in a file is no damage.
            if bytes.iter().any(|&byte| byte != 0) {
                self.counters.bad_local.fetch_add(1, Ordering::Relaxed);
            }
            return None;
        }
        self.counters.local.fetch_add(1, Ordering::Relaxed);
        Some(bytes)
    }

    /// A page came from the object store.
    pub(crate) fn count_fetch(&self) {
        self.counters.fetched.fetch_add(1, Ordering::Relaxed);
    }

    /// Held by the checkpoint being made.
    pub(crate) const fn checkpointing(&self) -> &tokio::sync::Mutex<()> {
        &self.checkpointing
    }

    /// The local page store.
    pub(crate) const fn local_store(&self) -> Option<&Arc<dyn PageStore>> {
        self.store.as_ref()
    }

    /// Forgets an object that nothing refers to any more.
    pub(crate) fn forget(&self, object: &ObjectKey) {
        if let Some(store) = &self.store {
            store.remove(object);
        }
    }

    fn shard(&self, key: &PageKey) -> &Mutex<Shard> {
        // Offsets and numbers of neighbours differ in their low bits; the multiplication spreads them to the high ones.
        let mixed = (u64::from(key.offset) ^ key.object.object.number.rotate_left(32) ^ key.object.volume.0)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.shards[(mixed >> 32) as usize % self.shards.len()]
    }
}

impl Shard {
    /// Drops one page that was not used since the hand came by; there is one after two rounds.
    fn evict(&mut self) {
        loop {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let Some(entry) = self.entries.get_mut(self.hand) else {
                debug_assert!(false, "nothing to evict");
                self.bytes = 0;
                return;
            };
            if std::mem::replace(&mut entry.used, false) {
                self.hand += 1;
                continue;
            }
            let gone = self.entries.swap_remove(self.hand);
            self.places.remove(&gone.key);
            self.bytes -= cost(&gone.page);
            if let Some(moved) = self.entries.get(self.hand) {
                self.places.insert(moved.key, self.hand as u32);
            }
            return;
        }
    }
}

fn cost(page: &Arc<[u8]>) -> usize {
    heap_bytes(page.len() + 16) + OVERHEAD
}

const fn key_of(id: PageId, at: &PageRef) -> PageKey {
    PageKey { object: ObjectKey { volume: id.volume, object: at.object }, offset: at.offset }
}

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;
