//! Making a checkpoint of a volume's map: changed leaves, their directories and a new root into new map objects.
//!
//! Leaves are written in ascending order, each directory behind its leaves, the root last; objects have up to 8 MiB. Nothing that
//! the old root reaches is touched, so a crash or a failure leaves the old map whole; objects of a failed attempt are given up as
//! dead with the next success, and their numbers are never used again.
//!
//! The root also keeps each object's live bytes. Objects without any are reported dead; a few that are less than a quarter live are
//! emptied by writing their live pages anew, which bounds the space of the map to about four times its pages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use lamina_contract::{Epoch, Fingerprint, Location, VolumeId};
use lamina_formats::map::{
    FANOUT, MapObject, MapRoot, ObjectUse, Page, PageId, PageKind, PageRef, RootPage, append_page, directory_body, leaf_body,
};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};

use crate::delta::{Chunk, Delta, LEAF_BLOCKS, LeafChunk, LeafNumber};
use crate::map::{CheckpointedMap, MapError, Mapped, RootState, directory_of, index_of_leaf, seen_from};
use crate::page_store::ObjectKey;

/// Objects are put when they have grown to this.
const OBJECT_BYTES: usize = 8 << 20;
/// Objects on their way to the store at once: 24 MiB of memory.
const PUTS: usize = 3;
/// Objects emptied per checkpoint: at most 8 MiB of live pages.
const COMPACT_OBJECTS: usize = 4;
/// When the local page store lacks a leaf, so much is fetched: leaves lie in order.
const WINDOW_BYTES: u64 = 1 << 20;
/// Windows kept: leaves in order come from as many checkpoints at a time.
const WINDOWS: usize = 8;
/// Leaves after which other tasks get a turn: about 0.5 ms.
const TURN: usize = 64;

/// What a checkpoint did.
#[derive(Debug, Clone)]
pub struct CheckpointOutcome {
    /// For the next manifest, and then for [`CheckpointedMap::install`].
    pub root: MapRoot,
    /// The first object number that no checkpoint has used.
    pub next_object: u64,
    /// Objects written.
    pub written: Vec<(Epoch, u64)>,
    /// Objects that nothing reaches from `root`: to be deleted once the manifest that names `root` is decided.
    pub dead: Vec<(Epoch, u64)>,
    /// Bytes written.
    pub bytes: u64,
}

type Key<'a> = &'a (dyn Fn(Epoch, u64) -> Path + Send + Sync);

/// A directory while it is changed.
#[derive(Default)]
struct Directory {
    number: u64,
    leaves: BTreeMap<u16, PageRef>,
}

/// The changes of a whole checkpoint.
struct Making<'a> {
    map: &'a CheckpointedMap,
    old: Arc<RootState>,
    output: Output<'a>,
    directories: BTreeMap<u64, PageRef>,
    objects: BTreeMap<MapObject, (u64, u64)>,
    /// Leaves and directories to write anew because their object is to be emptied.
    moving: BTreeSet<MapObject>,
    moving_leaves: BTreeSet<u64>,
    moving_directories: BTreeSet<u64>,
    windows: Vec<((VolumeId, MapObject), u64, Bytes)>,
    /// Scratch.
    blocks: Vec<(u16, Location, Fingerprint)>,
    since_turn: usize,
}

impl CheckpointedMap {
    /// Writes the map with `delta` laid over it. Lookups go on with the old root until [`CheckpointedMap::install`].
    ///
    /// One checkpoint at a time is made over all volumes of a page cache: it takes up to 48 MiB beside the cache.
    ///
    /// Objects are numbered from `next_object` on, or above what this process has used already; `key` names them and must agree with
    /// [`CheckpointedMap::object_key`].
    ///
    /// # Errors
    /// [`MapError`] when a page cannot be had or an object cannot be put. Nothing has changed then; it may be tried again.
    pub async fn checkpoint(
        &self,
        delta: &Delta<Mapped>,
        epoch: Epoch,
        next_object: u64,
        key: Key<'_>,
    ) -> Result<CheckpointOutcome, MapError> {
        let (outcome, state) = self.make(self.state(), delta, epoch, next_object, key).await?;
        *self.prepared.lock() = Some(Arc::new(state));
        Ok(outcome)
    }

    /// Writes the map under `old` with `delta` laid over it, for a snapshot: lookups go on as they were.
    ///
    /// # Errors
    /// As [`CheckpointedMap::checkpoint`].
    pub(crate) async fn branch(
        &self,
        old: Arc<RootState>,
        delta: &Delta<Mapped>,
        epoch: Epoch,
        next_object: u64,
        key: Key<'_>,
    ) -> Result<CheckpointOutcome, MapError> {
        Ok(self.make(old, delta, epoch, next_object, key).await?.0)
    }

    async fn make(
        &self,
        old: Arc<RootState>,
        delta: &Delta<Mapped>,
        epoch: Epoch,
        next_object: u64,
        key: Key<'_>,
    ) -> Result<(CheckpointOutcome, RootState), MapError> {
        let _one = self.cache.checkpointing().lock().await;
        let first = {
            let mut attempts = self.attempts.lock();
            attempts.next = attempts.next.max(next_object);
            attempts.next
        };
        *self.prepared.lock() = None;
        let mut making = Making {
            map: self,
            output: Output::new(self, epoch, first, key),
            directories: self.own_directories(&old)?,
            objects: old.objects.clone(),
            old,
            moving: BTreeSet::new(),
            moving_leaves: BTreeSet::new(),
            moving_directories: BTreeSet::new(),
            windows: Vec::new(),
            blocks: Vec::new(),
            since_turn: 0,
        };
        let made = making.run(delta).await;
        let Making { output, objects, old, .. } = making;
        let mut attempts = self.attempts.lock();
        // Also a put that failed may have happened.
        attempts.next = output.next;
        match made {
            Ok((root, state)) => {
                let name = |object: &MapObject| (object.epoch, object.number);
                let unreached = old.objects.keys().filter(|object| !objects.contains_key(object));
                let dead = unreached.map(name).chain(attempts.abandoned.drain(..).map(|object| name(&object))).collect();
                let written = output.used.iter().map(name).collect();
                Ok((CheckpointOutcome { root, next_object: output.next, written, dead, bytes: output.bytes }, state))
            }
            Err(error) => {
                attempts.abandoned.extend(output.used);
                Err(error)
            }
        }
    }
}

impl CheckpointedMap {
    /// All directories under `state`, as this volume sees them.
    fn own_directories(&self, state: &RootState) -> Result<BTreeMap<u64, PageRef>, MapError> {
        let seen = |number: u64| Ok((number, state.directory(number, 0).flatten().ok_or_else(|| self.too_far())?));
        state.directories.iter().map(|(number, _)| seen(*number)).collect()
    }
}

impl Making<'_> {
    async fn run(&mut self, delta: &Delta<Mapped>) -> Result<(MapRoot, RootState), MapError> {
        self.choose_moving().await;
        let mut open: Option<Directory> = None;
        for chunk in delta.chunks() {
            let first = match &chunk {
                Chunk::Leaves { first, .. } => *first,
                Chunk::Leaf(leaf) => leaf.number(),
            };
            self.move_before(&mut open, first).await?;
            match chunk {
                Chunk::Leaf(leaf) => {
                    let directory = self.turn_to(&mut open, directory_of(first)).await?;
                    self.change_leaf(directory, &leaf).await?;
                }
                Chunk::Leaves { first, count, value } => self.change_leaves(&mut open, first, count, value).await?,
            }
        }
        self.move_before(&mut open, LeafNumber(u64::MAX)).await?;
        self.finish_directory(&mut open).await?;
        self.finish().await
    }

    /// Objects that are mostly dead, and which of their pages must move.
    async fn choose_moving(&mut self) {
        let mut thin: Vec<(u64, MapObject)> = self
            .objects
            .iter()
            .filter(|(_, (live, total))| *live > 0 && live * 4 < *total)
            .map(|(object, (live, _))| (*live, *object))
            .collect();
        thin.sort_unstable();
        for (_, object) in thin.into_iter().take(COMPACT_OBJECTS) {
            let key = self.map.object_key(object.epoch, object.number);
            let read = match self.map.store.get(&key).await {
                Ok(got) => got.bytes().await,
                Err(error) => Err(error),
            };
            match read {
                Ok(bytes) => self.note_pages(object, &bytes),
                // It stays as it is; whoever needs its pages will say so.
                Err(error) => tracing::warn!(object = %key, %error, "a thin map object cannot be read"),
            }
        }
    }

    fn note_pages(&mut self, object: MapObject, bytes: &[u8]) {
        self.moving.insert(object);
        let mut rest = bytes;
        while let Ok(page) = Page::first(rest) {
            match page.id.kind {
                PageKind::Leaf => drop(self.moving_leaves.insert(page.id.number)),
                PageKind::Directory => drop(self.moving_directories.insert(page.id.number)),
                PageKind::Root => {}
            }
            rest = rest.get(page.at.length as usize..).unwrap_or(&[]);
        }
    }

    /// Moves what must move and lies below `end`.
    async fn move_before(&mut self, open: &mut Option<Directory>, end: LeafNumber) -> Result<(), MapError> {
        loop {
            let leaf = self.moving_leaves.first().copied().filter(|&leaf| leaf < end.0);
            let directory = self.moving_directories.first().copied().filter(|&number| number < directory_of(end));
            // A directory comes before its leaves, so that it is open when they come.
            match (leaf, directory) {
                (None, None) => return Ok(()),
                (leaf, Some(number)) if leaf.is_none_or(|leaf| number <= directory_of(LeafNumber(leaf))) => {
                    self.moving_directories.pop_first();
                    let moves = self.directories.get(&number).is_some_and(|page| self.moves(page));
                    if moves {
                        self.turn_to(open, number).await?;
                    }
                }
                (Some(leaf), _) => {
                    self.moving_leaves.pop_first();
                    self.move_leaf(open, LeafNumber(leaf)).await?;
                }
                (None, Some(_)) => return Ok(()),
            }
        }
    }

    async fn move_leaf(&mut self, open: &mut Option<Directory>, leaf: LeafNumber) -> Result<(), MapError> {
        // Looking does not change the directory: only a page that is in the object itself makes it be written again.
        let number = directory_of(leaf);
        let is_open = open.as_ref().is_some_and(|directory| directory.number == number);
        let at = if is_open {
            open.as_ref().and_then(|directory| directory.leaves.get(&index_of_leaf(leaf)).copied())
        } else if let Some(page) = self.directories.get(&number).copied() {
            let id = self.map.id(PageKind::Directory, number, &page)?;
            let bytes = self.map.load(id, &page).await?;
            let at = self.map.known(&bytes, id, &page)?.leaf(index_of_leaf(leaf));
            at.map(|at| at.seen_from(page.ancestor).ok_or_else(|| self.map.too_far())).transpose()?
        } else {
            None
        };
        let Some(at) = at.filter(|at| self.moves(at)) else { return Ok(()) };
        let id = self.map.id(PageKind::Leaf, leaf.0, &at)?;
        let bytes = self.load_leaf(id, &at).await?;
        let page = self.map.known(&bytes, id, &at)?;
        self.blocks.clear();
        self.blocks.extend(page.blocks());
        let directory = self.turn_to(open, number).await?;
        self.write_leaf(directory, leaf, Some(at)).await
    }

    /// Whether a page is in an object that is to be emptied.
    fn moves(&self, page: &PageRef) -> bool {
        page.ancestor == 0 && self.moving.contains(&page.object)
    }

    /// The directory `number`, open for changes; the one open before is written.
    async fn turn_to<'d>(&mut self, open: &'d mut Option<Directory>, number: u64) -> Result<&'d mut Directory, MapError> {
        if open.as_ref().is_none_or(|directory| directory.number != number) {
            self.finish_directory(open).await?;
            let mut directory = Directory { number, leaves: BTreeMap::new() };
            if let Some(at) = self.directories.get(&number).copied() {
                let id = self.map.id(PageKind::Directory, number, &at)?;
                let bytes = self.map.load(id, &at).await?;
                for (index, leaf) in self.map.known(&bytes, id, &at)?.leaves() {
                    directory.leaves.insert(index, leaf.seen_from(at.ancestor).ok_or_else(|| self.map.too_far())?);
                }
            }
            *open = Some(directory);
        }
        Ok(open.get_or_insert_default())
    }

    async fn finish_directory(&mut self, open: &mut Option<Directory>) -> Result<(), MapError> {
        let Some(directory) = open.take() else { return Ok(()) };
        if let Some(at) = self.directories.remove(&directory.number) {
            self.give_up(&at);
        }
        if !directory.leaves.is_empty() {
            let id = self.map.own_id(PageKind::Directory, directory.number);
            let (at, page) = self.output.append(id, |out| directory_body(out, directory.leaves.iter())).await?;
            self.take_in(&at);
            self.directories.insert(directory.number, at);
            // Directories are few and always wanted.
            self.map.cache.keep(id, &at, &page);
        }
        Ok(())
    }

    /// Sets whole leaves to one value.
    async fn change_leaves(
        &mut self,
        open: &mut Option<Directory>,
        first: LeafNumber,
        count: u64,
        value: Mapped,
    ) -> Result<(), MapError> {
        let end = first.0.saturating_add(count);
        if let Mapped::At { location, fingerprint } = value {
            for leaf in (first.0..end).map(LeafNumber) {
                let directory = self.turn_to(open, directory_of(leaf)).await?;
                self.blocks.clear();
                self.blocks.extend((0..LEAF_BLOCKS).map(|index| (index, location, fingerprint)));
                let before = directory.leaves.remove(&index_of_leaf(leaf));
                self.write_leaf(directory, leaf, before).await?;
            }
            return Ok(());
        }
        // Zeros: only directories that exist have anything to lose.
        let numbers = directory_of(first)..=directory_of(LeafNumber(end - 1));
        let mut present: BTreeSet<u64> = self.directories.range(numbers.clone()).map(|(number, _)| *number).collect();
        present.extend(open.as_ref().map(|directory| directory.number).filter(|number| numbers.contains(number)));
        for number in present {
            let directory = self.turn_to(open, number).await?;
            let start = number * u64::from(FANOUT);
            let gone: Vec<u16> =
                directory.leaves.keys().copied().filter(|&index| (first.0..end).contains(&(start + u64::from(index)))).collect();
            for index in gone {
                if let Some(at) = directory.leaves.remove(&index) {
                    self.give_up(&at);
                }
            }
        }
        // What would have moved is gone.
        let kept = self.moving_leaves.split_off(&first.0);
        let above = kept.range(end..).copied().collect::<Vec<u64>>();
        self.moving_leaves.extend(above);
        Ok(())
    }

    /// Lays the changes of one leaf over it.
    async fn change_leaf(&mut self, directory: &mut Directory, change: &LeafChunk<'_, Mapped>) -> Result<(), MapError> {
        let leaf = change.number();
        self.moving_leaves.remove(&leaf.0);
        let at = directory.leaves.get(&index_of_leaf(leaf)).copied();
        let bytes = match &at {
            Some(at) => {
                let id = self.map.id(PageKind::Leaf, leaf.0, at)?;
                Some((id, at, self.load_leaf(id, at).await?))
            }
            None => None,
        };
        let page = bytes.as_ref().map(|(id, at, bytes)| self.map.known(bytes, *id, at)).transpose()?;
        self.merge(page.as_ref(), change);
        self.write_leaf(directory, leaf, at).await
    }

    /// Fills `blocks` with the page's and lays the changes over them.
    fn merge(&mut self, page: Option<&Page<'_>>, change: &LeafChunk<'_, Mapped>) {
        self.blocks.clear();
        let generations = page.map_or(0, |page| page.at.ancestor);
        let as_own = |(index, location, print)| (index, seen_from(location, generations), print);
        let mut old = page.into_iter().flat_map(Page::blocks).map(as_own).peekable();
        for (start, count, value) in change.runs() {
            while let Some(block) = old.next_if(|block| block.0 < start) {
                self.blocks.push(block);
            }
            while old.next_if(|block| block.0 < start + count).is_some() {}
            if let Mapped::At { location, fingerprint } = value {
                self.blocks.extend((start..start + count).map(|index| (index, location, fingerprint)));
            }
        }
        self.blocks.extend(old);
    }

    /// Writes `blocks` as the leaf's page in place of `before`.
    async fn write_leaf(&mut self, directory: &mut Directory, leaf: LeafNumber, before: Option<PageRef>) -> Result<(), MapError> {
        let id = self.map.own_id(PageKind::Leaf, leaf.0);
        if let Some(before) = &before {
            self.give_up(before);
        }
        if self.blocks.is_empty() {
            directory.leaves.remove(&index_of_leaf(leaf));
            return Ok(());
        }
        let blocks = std::mem::take(&mut self.blocks);
        let (at, page) = self.output.append(id, |out| leaf_body(out, &blocks)).await?;
        self.blocks = blocks;
        // Who was in memory is wanted; others must not push those out.
        if before.is_some_and(|before| self.map.id(PageKind::Leaf, leaf.0, &before).is_ok_and(|id| self.map.cache.has(id, &before)))
        {
            self.map.cache.keep(id, &at, &page);
        }
        self.take_in(&at);
        directory.leaves.insert(index_of_leaf(leaf), at);
        self.since_turn += 1;
        if self.since_turn >= TURN {
            self.since_turn = 0;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// A leaf as it was, without pushing anything out of memory.
    async fn load_leaf(&mut self, id: PageId, at: &PageRef) -> Result<Arc<[u8]>, MapError> {
        if let Some(page) = self.map.cache.get(id, at) {
            return Ok(page);
        }
        if let Some(bytes) = self.map.cache.local(id, at) {
            return Ok(bytes.into());
        }
        let range = at.range();
        let holds = |(object, start, bytes): &((VolumeId, MapObject), u64, Bytes)| {
            *object == (id.volume, at.object) && *start <= range.start && range.end <= start + bytes.len() as u64
        };
        let place = match self.windows.iter().position(holds) {
            Some(place) => place,
            None => {
                // Only of its own objects does it know how long they are.
                let own = self.old.objects.get(&at.object).filter(|_| at.ancestor == 0);
                let end = range.end.max((range.start + WINDOW_BYTES).min(own.map_or(0, |(_, total)| *total)));
                let key = self.map.key_of(at);
                let got = self.map.store.get_range(&key, range.start..end).await;
                let bytes = got.map_err(|source| MapError::Store { doing: "reading", object: key, source })?;
                self.map.cache.count_fetch();
                // One window per object, the newest last.
                self.windows.retain(|(object, ..)| *object != (id.volume, at.object));
                if self.windows.len() >= WINDOWS {
                    self.windows.remove(0);
                }
                self.windows.push(((id.volume, at.object), range.start, bytes));
                self.windows.len() - 1
            }
        };
        let (_, start, bytes) = &self.windows[place];
        let from = (range.start - start) as usize;
        let page = &bytes[from.min(bytes.len())..(from + at.length as usize).min(bytes.len())];
        Page::read(page, id, at).map_err(|source| self.map.damaged(at, source))?;
        Ok(page.into())
    }

    /// The old root reached this page, the new one does not. What belongs to an ancestor is not this volume's to count.
    fn give_up(&mut self, at: &PageRef) {
        if at.ancestor == 0
            && let Some((live, _)) = self.objects.get_mut(&at.object)
        {
            *live = live.saturating_sub(u64::from(at.length));
        }
    }

    fn take_in(&mut self, at: &PageRef) {
        let (live, total) = self.objects.entry(at.object).or_insert((0, 0));
        *live += u64::from(at.length);
        *total = u64::from(at.offset) + u64::from(at.length);
    }

    /// Writes the root and waits for all puts.
    async fn finish(&mut self) -> Result<(MapRoot, RootState), MapError> {
        if let Some(root) = self.old.root {
            self.give_up(&root.0);
        }
        let room = RootPage::page_bytes(self.directories.len(), self.objects.len() + 1);
        let object = self.output.object_for(room).await?;
        self.objects.retain(|_, (live, _)| *live > 0);
        self.objects.entry(object).or_insert((0, 0));
        // The root counts itself, and its length depends only on how many entries there are.
        let length = RootPage::page_bytes(self.directories.len(), self.objects.len()) as u64;
        let start = self.output.bytes_in_object();
        self.objects.entry(object).and_modify(|(live, total)| {
            *live += length;
            *total = start + length;
        });
        let page = RootPage {
            directories: self.directories.iter().map(|(number, at)| (*number, *at)).collect(),
            objects: self.objects.iter().map(|(object, &(live, total))| ObjectUse { object: *object, live, total }).collect(),
        };
        let id = self.map.own_id(PageKind::Root, 0);
        let at = self.output.append_here(id, |out| page.body(out));
        debug_assert_eq!(u64::from(at.length), length);
        self.output.finish().await?;
        let root = MapRoot(at);
        Ok((root, RootState { root: Some(root), directories: page.directories.into(), objects: self.objects.clone() }))
    }
}

type Put<'a> = futures::future::BoxFuture<'a, Result<(), MapError>>;

/// The objects being written.
struct Output<'a> {
    map: &'a CheckpointedMap,
    epoch: Epoch,
    key: Key<'a>,
    /// The first number not used.
    next: u64,
    used: Vec<MapObject>,
    object: Vec<u8>,
    pages: Vec<(usize, usize)>,
    puts: FuturesUnordered<Put<'a>>,
    bytes: u64,
}

impl<'a> Output<'a> {
    fn new(map: &'a CheckpointedMap, epoch: Epoch, next: u64, key: Key<'a>) -> Self {
        Self {
            map,
            epoch,
            key,
            next,
            used: Vec::new(),
            object: Vec::new(),
            pages: Vec::new(),
            puts: FuturesUnordered::new(),
            bytes: 0,
        }
    }

    /// The object that the next page of up to `room` bytes goes to.
    async fn object_for(&mut self, room: usize) -> Result<MapObject, MapError> {
        if !self.object.is_empty() && self.object.len() + room > OBJECT_BYTES {
            self.put().await?;
        }
        if self.object.is_empty() {
            self.used.push(MapObject { epoch: self.epoch, number: self.next });
            self.next += 1;
        }
        Ok(self.current())
    }

    fn current(&self) -> MapObject {
        MapObject { epoch: self.epoch, number: self.next.saturating_sub(1) }
    }

    fn bytes_in_object(&self) -> u64 {
        self.object.len() as u64
    }

    async fn append(&mut self, id: PageId, body: impl FnOnce(&mut Vec<u8>) -> usize) -> Result<(PageRef, Arc<[u8]>), MapError> {
        // Leaves and directories have at most 43 KiB.
        self.object_for(44 << 10).await?;
        let at = self.append_here(id, body);
        let page = self.object[at.offset as usize..].into();
        Ok((at, page))
    }

    fn append_here(&mut self, id: PageId, body: impl FnOnce(&mut Vec<u8>) -> usize) -> PageRef {
        let object = self.current();
        let at = append_page(&mut self.object, object, id, body);
        self.pages.push((at.offset as usize, at.length as usize));
        at
    }

    async fn put(&mut self) -> Result<(), MapError> {
        if self.object.is_empty() {
            return Ok(());
        }
        while self.puts.len() >= PUTS {
            self.puts.next().await.transpose()?;
        }
        self.object.shrink_to_fit();
        let bytes = Bytes::from(std::mem::take(&mut self.object));
        let pages = std::mem::take(&mut self.pages);
        self.bytes += bytes.len() as u64;
        let (map, object) = (self.map, self.current());
        let key = (self.key)(object.epoch, object.number);
        assert_eq!(key, map.object_key(object.epoch, object.number), "one name per map object");
        self.puts.push(Box::pin(async move {
            let put = map.store.put(&key, PutPayload::from_bytes(bytes.clone())).await;
            put.map_err(|source| MapError::Store { doing: "writing", object: key, source })?;
            map.keep_locally(ObjectKey { volume: map.volume(), object }, 0, bytes, pages).await;
            Ok(())
        }));
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), MapError> {
        self.put().await?;
        while let Some(put) = self.puts.next().await {
            put?;
        }
        Ok(())
    }
}
