//! The checkpointed map of a volume: block address → zero, or location and fingerprint, in copy-on-write pages.
//!
//! ```text
//! manifest ─→ root page ─→ directory (1024 leaves) ─→ leaf (1024 blocks)       each page in a map object, by reference
//! lookup: memory (`pages`) → local page store (`page_store`) → object store, checked against the reference at each step
//! ```
//! Invariants: a page is believed only when volume, kind, number, place, length and CRC are those the reference to it says; a page
//! that cannot be had is an error, never zeros. What the root does not reach is zero.
//!
//! Pages of a clone's map may be those of the volume that it was made from, and of that one's parent: references and locations count
//! generations from the page that holds them, and lookups add them up on their way down.
//!
//! Opening reads the root page only. A crash at any moment leaves the root that the manifest names, with every page it reaches:
//! a checkpoint writes new objects under numbers never used before, and what it makes dead is deleted by its caller after the next
//! manifest is decided. The making of a checkpoint is in `checkpoint.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lamina_contract::{BlockAddress, Epoch, Fingerprint, Location, VolumeId};
use lamina_formats::FormatError;
use lamina_formats::map::{FANOUT, MapObject, MapRoot, Page, PageId, PageKind, PageRef, RootPage};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::{Mutex, RwLock};

use crate::delta::{LEAF_BLOCKS, LeafNumber};
use crate::namespace::Namespace;
use crate::page_store::ObjectKey;
use crate::pages::PageCache;

/// With a local page store, so much is fetched with a page: its neighbours are likely to be wanted.
const FETCH_BYTES: u64 = 256 << 10;

/// What a block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapped {
    /// Zeros: never written, or discarded.
    Zero,
    /// Data.
    At {
        /// Where its bytes are.
        location: Location,
        /// Of its bytes.
        fingerprint: Fingerprint,
    },
}

/// Why the map could not be read or checkpointed.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The object store failed, or lacks an object.
    #[error("{doing} map object {object}")]
    Store {
        /// What was being done.
        doing: &'static str,
        /// Which object.
        object: Path,
        /// Why.
        #[source]
        source: object_store::Error,
    },
    /// The store answered with other bytes than were written.
    #[error("map object {object} is damaged at {offset}")]
    Damaged {
        /// Which object.
        object: Path,
        /// The page's place.
        offset: u32,
        /// How.
        #[source]
        source: FormatError,
    },
}

/// What the root page says, ready for use.
#[derive(Debug, Default)]
pub(crate) struct RootState {
    pub(crate) root: Option<MapRoot>,
    /// Ascending; as the root's own volume counts generations.
    pub(crate) directories: Arc<[(u64, PageRef)]>,
    /// The volume's own objects that the root reaches: live and total bytes.
    pub(crate) objects: BTreeMap<MapObject, (u64, u64)>,
}

/// Numbers of objects that were or may have been put.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    /// The first number not used in this process.
    pub(crate) next: u64,
    /// Objects of checkpoints that failed: nothing will ever refer to them.
    pub(crate) abandoned: Vec<MapObject>,
}

/// See the file's header.
pub struct CheckpointedMap {
    /// The volume, what it is a clone of, and so on.
    owners: Arc<[VolumeId]>,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) cache: Arc<PageCache>,
    state: RwLock<Arc<RootState>>,
    /// What the last checkpoint made, until it is installed.
    pub(crate) prepared: Mutex<Option<Arc<RootState>>>,
    pub(crate) attempts: Mutex<Attempts>,
}

impl std::fmt::Debug for CheckpointedMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CheckpointedMap({:?}, {:?})", self.owners, self.state().root)
    }
}

impl CheckpointedMap {
    /// Opens the map that `root` names; `None` is the map of a new volume, all zeros. `owners` are the volume, what it is a clone of,
    /// and so on.
    ///
    /// # Errors
    /// [`MapError`] when the root page cannot be had.
    ///
    /// # Panics
    /// Without owners: a caller's bug.
    pub async fn open(
        owners: Arc<[VolumeId]>,
        store: Arc<dyn ObjectStore>,
        root: Option<MapRoot>,
        cache: Arc<PageCache>,
    ) -> Result<Self, MapError> {
        assert!(!owners.is_empty(), "a map without a volume");
        let map = Self { owners, store, cache, state: RwLock::default(), prepared: Mutex::default(), attempts: Mutex::default() };
        let state = map.load_root(root).await?;
        *map.state.write() = state;
        Ok(map)
    }

    /// What any root says that this volume can reach.
    pub(crate) async fn load_root(&self, root: Option<MapRoot>) -> Result<Arc<RootState>, MapError> {
        let Some(root) = root else { return Ok(Arc::default()) };
        let id = self.id(PageKind::Root, 0, &root.0)?;
        let bytes = self.load(id, &root.0).await?;
        let parsed = Page::known(&bytes, id, &root.0).and_then(|page| RootPage::parse(&page));
        let parsed = parsed.map_err(|source| self.damaged(&root.0, source))?;
        let own = parsed.objects.iter().filter(|_| root.0.ancestor == 0);
        let objects = own.map(|entry| (entry.object, (entry.live, entry.total))).collect();
        Ok(Arc::new(RootState { root: Some(root), directories: parsed.directories.into(), objects }))
    }

    /// Lookups use another root from now on: what the volume was rolled back to, or what a clone stands on.
    pub(crate) fn switch(&self, state: Arc<RootState>) {
        *self.prepared.lock() = None;
        *self.state.write() = state;
    }

    /// The root that lookups use.
    #[must_use]
    pub fn root(&self) -> Option<MapRoot> {
        self.state().root
    }

    /// What a block has, if that can be told without waiting; `None` asks for [`CheckpointedMap::lookup`].
    #[must_use]
    pub fn lookup_cached(&self, block: BlockAddress) -> Option<Mapped> {
        self.lookup_cached_in(&self.state(), 0, block)
    }

    /// As [`CheckpointedMap::lookup_cached`], under a root of a volume so many `generations` up.
    pub(crate) fn lookup_cached_in(&self, state: &RootState, generations: u8, block: BlockAddress) -> Option<Mapped> {
        let leaf = LeafNumber::of(block);
        let Some(directory) = state.directory(directory_of(leaf), generations)? else { return Some(Mapped::Zero) };
        let id = self.id(PageKind::Directory, directory_of(leaf), &directory).ok()?;
        let bytes = self.cache.get(id, &directory)?;
        let Some(at) = Page::known(&bytes, id, &directory).ok()?.leaf(index_of_leaf(leaf)) else { return Some(Mapped::Zero) };
        let at = at.seen_from(directory.ancestor)?;
        let id = self.id(PageKind::Leaf, leaf.0, &at).ok()?;
        let bytes = self.cache.get(id, &at)?;
        let page = Page::known(&bytes, id, &at).ok()?;
        Some(mapped(page.block(index_of(block)), at.ancestor))
    }

    /// What a block has.
    ///
    /// # Errors
    /// [`MapError`] when a page cannot be had.
    pub async fn lookup(&self, block: BlockAddress) -> Result<Mapped, MapError> {
        let mut out = Vec::with_capacity(1);
        self.lookup_range(block, 1, &mut out).await?;
        Ok(out.first().copied().unwrap_or(Mapped::Zero))
    }

    /// Appends what `count` blocks from `first` on have.
    ///
    /// # Errors
    /// [`MapError`] when a page cannot be had; `out` is as it was then.
    pub async fn lookup_range(&self, first: BlockAddress, count: u64, out: &mut Vec<Mapped>) -> Result<(), MapError> {
        let before = out.len();
        loop {
            let state = self.state();
            match self.lookup_in(&state, 0, first, count, out).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    out.truncate(before);
                    // A new root was installed meanwhile, and what only the old one reached may be deleted.
                    if Arc::ptr_eq(&state, &self.state()) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// As [`CheckpointedMap::lookup_range`], under a root of a volume so many `generations` up.
    pub(crate) async fn lookup_in(
        &self,
        state: &RootState,
        generations: u8,
        first: BlockAddress,
        count: u64,
        out: &mut Vec<Mapped>,
    ) -> Result<(), MapError> {
        let end = first.0.saturating_add(count);
        let mut at = first.0;
        while at < end {
            let leaf = LeafNumber::of(BlockAddress(at));
            let stop = LeafNumber(leaf.0 + 1).first_block().0.min(end);
            match self.leaf(state, generations, leaf).await? {
                None => out.extend((at..stop).map(|_| Mapped::Zero)),
                Some((place, bytes)) => {
                    let page = self.known(&bytes, self.id(PageKind::Leaf, leaf.0, &place)?, &place)?;
                    let blocks = (at..stop).map(|block| page.block(index_of(BlockAddress(block))));
                    out.extend(blocks.map(|block| mapped(block, place.ancestor)));
                }
            }
            at = stop;
        }
        Ok(())
    }

    /// The first leaf from `from` on, and below `end`, that the root reaches.
    pub(crate) async fn next_leaf(
        &self,
        state: &RootState,
        generations: u8,
        from: LeafNumber,
        end: LeafNumber,
    ) -> Result<Option<LeafNumber>, MapError> {
        let first = state.directories.partition_point(|(number, _)| *number < directory_of(from));
        for (number, _) in state.directories.iter().skip(first).take_while(|(number, _)| number * u64::from(FANOUT) < end.0) {
            let Some(directory) = state.directory(*number, generations).ok_or_else(|| self.too_far())? else { continue };
            let id = self.id(PageKind::Directory, *number, &directory)?;
            let bytes = self.load(id, &directory).await?;
            let leaves = self.known(&bytes, id, &directory)?;
            let found =
                leaves.leaves().map(|(index, _)| number * u64::from(FANOUT) + u64::from(index)).find(|leaf| *leaf >= from.0);
            if let Some(leaf) = found {
                return Ok((leaf < end.0).then_some(LeafNumber(leaf)));
            }
        }
        Ok(None)
    }

    /// Makes the last checkpoint's root the one that lookups use: call it when a manifest that names it is decided.
    ///
    /// # Panics
    /// When `root` is not the last checkpoint's: a caller's bug.
    pub fn install(&self, root: MapRoot) {
        let prepared = self.prepared.lock().take();
        let next = prepared.filter(|state| state.root == Some(root));
        #[expect(clippy::expect_used, reason = "installing a root that was not prepared would lose the map")]
        let next = next.expect("the root of the last checkpoint");
        let before = std::mem::replace(&mut *self.state.write(), next.clone());
        for object in before.objects.keys().filter(|object| !next.objects.contains_key(object)) {
            self.cache.forget(&ObjectKey { volume: self.volume(), object: *object });
        }
    }

    pub(crate) fn state(&self) -> Arc<RootState> {
        self.state.read().clone()
    }

    /// Whose map it is.
    pub(crate) fn volume(&self) -> VolumeId {
        // Checked when it was opened.
        self.owners.first().copied().unwrap_or(VolumeId(0))
    }

    /// Which page `at` must be.
    pub(crate) fn id(&self, kind: PageKind, number: u64, at: &PageRef) -> Result<PageId, MapError> {
        let volume = *self.owners.get(usize::from(at.ancestor)).ok_or_else(|| self.too_far())?;
        Ok(PageId { volume, kind, number })
    }

    /// The identity of a page of its own.
    pub(crate) fn own_id(&self, kind: PageKind, number: u64) -> PageId {
        PageId { volume: self.volume(), kind, number }
    }

    /// An object's key.
    #[must_use]
    pub fn object_key(&self, epoch: Epoch, number: u64) -> Path {
        Namespace(self.volume()).map(epoch, number)
    }

    /// The key of the object that `at` refers to.
    pub(crate) fn key_of(&self, at: &PageRef) -> Path {
        let owner = self.owners.get(usize::from(at.ancestor)).copied().unwrap_or(VolumeId(0));
        Namespace(owner).map(at.object.epoch, at.object.number)
    }

    /// A reference names more generations than there are.
    pub(crate) fn too_far(&self) -> MapError {
        let source = FormatError::Field { format: "map page", field: "ancestor" };
        MapError::Damaged { object: Namespace(self.volume()).prefix(), offset: 0, source }
    }

    pub(crate) fn damaged(&self, at: &PageRef, source: FormatError) -> MapError {
        MapError::Damaged { object: self.key_of(at), offset: at.offset, source }
    }

    pub(crate) fn known<'a>(&self, bytes: &'a [u8], id: PageId, at: &PageRef) -> Result<Page<'a>, MapError> {
        Page::known(bytes, id, at).map_err(|source| self.damaged(at, source))
    }

    /// A leaf's page; `None` when the root does not reach one.
    async fn leaf(&self, state: &RootState, generations: u8, leaf: LeafNumber) -> Result<Option<(PageRef, Arc<[u8]>)>, MapError> {
        let number = directory_of(leaf);
        let Some(directory) = state.directory(number, generations).ok_or_else(|| self.too_far())? else { return Ok(None) };
        let id = self.id(PageKind::Directory, number, &directory)?;
        let bytes = self.load(id, &directory).await?;
        let Some(at) = self.known(&bytes, id, &directory)?.leaf(index_of_leaf(leaf)) else { return Ok(None) };
        let at = at.seen_from(directory.ancestor).ok_or_else(|| self.too_far())?;
        let bytes = self.load(self.id(PageKind::Leaf, leaf.0, &at)?, &at).await?;
        Ok(Some((at, bytes)))
    }

    /// A page, checked, by way of memory and the local page store.
    pub(crate) async fn load(&self, id: PageId, at: &PageRef) -> Result<Arc<[u8]>, MapError> {
        if let Some(page) = self.cache.get(id, at) {
            return Ok(page);
        }
        let bytes = match self.cache.local(id, at) {
            Some(bytes) => bytes,
            None => self.fetch(id, at).await?,
        };
        let page: Arc<[u8]> = bytes.into();
        self.cache.keep(id, at, &page);
        Ok(page)
    }

    /// A page from the object store, checked; it and its neighbours go to the local page store.
    async fn fetch(&self, id: PageId, at: &PageRef) -> Result<Vec<u8>, MapError> {
        let key = self.key_of(at);
        let mut range = at.range();
        // Only of its own objects does it know how long they are.
        if self.cache.local_store().is_some()
            && at.ancestor == 0
            && let Some((_, total)) = self.state().objects.get(&at.object)
        {
            range.end = range.end.max((range.start + FETCH_BYTES).min(*total));
        }
        let got = self.store.get_range(&key, range).await;
        let all = got.map_err(|source| MapError::Store { doing: "reading", object: key, source })?;
        self.cache.count_fetch();
        let own = all.slice(..all.len().min(at.length as usize));
        let bytes = all.slice(own.len()..);
        Page::read(&own, id, at).map_err(|source| self.damaged(at, source))?;
        if self.cache.local_store().is_some() {
            // Neighbours are checked when they are used; a page that was cut ends the list.
            let mut pages = vec![(0, own.len())];
            let mut end = 0;
            while let Some(rest) = bytes.get(end..)
                && let Ok(page) = Page::first(rest)
                && page.at.object == at.object
                && u64::from(page.at.offset) == at.range().end + end as u64
            {
                pages.push((own.len() + end, page.at.length as usize));
                end += page.at.length as usize;
            }
            self.keep_locally(ObjectKey { volume: id.volume, object: at.object }, u64::from(at.offset), all, pages).await;
        }
        Ok(own.to_vec())
    }

    /// Gives pages of an object to the local page store, in a thread that may wait for the disk. `bytes` are the object's from
    /// `start` on; `pages` are places and lengths within them.
    pub(crate) async fn keep_locally(&self, key: ObjectKey, start: u64, bytes: Bytes, pages: Vec<(usize, usize)>) {
        let Some(local) = self.cache.local_store().cloned() else { return };
        let keep = move || {
            // Objects are shorter than 4 GiB.
            let slices = pages.iter().map(|&(at, len)| ((start + at as u64) as u32, &bytes[at..at + len]));
            local.put_batch(&key, &slices.collect::<Vec<_>>());
        };
        match tokio::runtime::Handle::try_current() {
            // Pages that could not be kept are fetched again.
            Ok(runtime) => drop(runtime.spawn_blocking(keep).await),
            Err(_) => keep(),
        }
    }
}

impl RootState {
    /// A directory's page as a volume sees it that is so many `generations` of clones below the root's; the outer `None` is one that is
    /// too many.
    #[expect(clippy::option_option, reason = "two different absences")]
    pub(crate) fn directory(&self, number: u64, generations: u8) -> Option<Option<PageRef>> {
        let Ok(place) = self.directories.binary_search_by_key(&number, |entry| entry.0) else { return Some(None) };
        let Some((_, page)) = self.directories.get(place) else { return Some(None) };
        let depth = self.root.map_or(0, |root| root.0.ancestor).checked_add(generations)?;
        page.seen_from(depth).map(Some)
    }

    /// The same root as a clone of its volume has it.
    pub(crate) fn for_clone(&self) -> Option<Self> {
        let root = match self.root {
            Some(root) => Some(MapRoot(root.0.seen_from(1)?)),
            None => None,
        };
        Some(Self { root, directories: self.directories.clone(), objects: BTreeMap::new() })
    }
}

pub(crate) const fn directory_of(leaf: LeafNumber) -> u64 {
    leaf.0 / FANOUT as u64
}

pub(crate) const fn index_of_leaf(leaf: LeafNumber) -> u16 {
    (leaf.0 % FANOUT as u64) as u16
}

const fn index_of(block: BlockAddress) -> u16 {
    (block.0 % LEAF_BLOCKS as u64) as u16
}

fn mapped(block: Option<(Location, Fingerprint)>, generations: u8) -> Mapped {
    block.map_or(Mapped::Zero, |(location, fingerprint)| Mapped::At { location: seen_from(location, generations), fingerprint })
}

/// A location as a clone sees it, so many `generations` below. Past the 254th it is lost rather than another block's.
pub(crate) fn seen_from(location: Location, generations: u8) -> Location {
    match location.ancestor.checked_add(generations) {
        Some(ancestor) if ancestor < u8::MAX => Location { ancestor, ..location },
        _ => Location::LOST,
    }
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
