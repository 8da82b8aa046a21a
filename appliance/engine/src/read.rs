//! The read path: map layers → journal / dedupe cache / store → verify → guest memory.
//!
//! What is in memory or in the system's page cache is answered in the queue's thread; a read that must wait for the SSD is finished by
//! the thread that completes it; one that must wait for the store, or for a map page, goes on in a task of its own.
//! Nothing reaches the guest before its check: checksum of the journal's entry, or the cache's CRC over fingerprint and data, or the
//! fingerprint itself.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use lamina_contract::{BlockAddress, Fingerprint, IoError, Location, Request, VolumeId};
use tokio::sync::oneshot;

use crate::cache::{CacheRead, Slot};
use crate::error::EngineError;
use crate::fetch::{Container, cached};
use crate::inflight::JournalBlock;
use crate::layers::Source;
use crate::map::Mapped;
use crate::namespace::Namespace;
use crate::seal::follows;
use crate::view::{Looked, View};
use crate::volume::Volume;

/// Bytes that one look into the page cache asks for at most.
const RUN_BYTES: usize = 256 << 10;

/// Blocks whose places are looked up together.
const TOGETHER: usize = 64;

/// Pauses before a read of the store is tried again.
const RETRIES: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(200), Duration::from_secs(1)];

/// Buffers of a queue's thread.
#[derive(Default)]
struct Scratch {
    requests: Vec<Request>,
    /// The blocks of all requests, one behind the other.
    sources: Vec<Source>,
    /// For each stored block of a request of one block: its place in the cache, if it has one.
    slots: Vec<Option<Slot>>,
    bytes: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Volume {
    /// Answers reads, now or later; `requests` is left empty.
    pub(crate) fn read(self: &Arc<Self>, requests: &mut Vec<Request>) {
        let mut scratch = SCRATCH.take();
        let mut blocks = 0;
        for request in requests.drain(..) {
            blocks += self.block_count(&request);
            scratch.requests.push(request);
            if blocks >= TOGETHER {
                self.read_together(&mut scratch);
                blocks = 0;
            }
        }
        self.read_together(&mut scratch);
        SCRATCH.set(scratch);
    }

    /// Where the blocks of several requests are is looked up before any is read: each look waits for memory several times, and looks that
    /// follow each other closely wait at the same time.
    fn read_together(self: &Arc<Self>, scratch: &mut Scratch) {
        let Scratch { requests, sources, slots, bytes } = scratch;
        self.resolve(requests, sources);
        let mut from = 0;
        let single = requests.iter().filter_map(|request| {
            let count = self.block_count(request);
            from += count;
            match sources.get(from - count) {
                Some(Source::Stored { fingerprint, .. }) if count == 1 => Some(fingerprint),
                _ => None,
            }
        });
        self.core.cache.find_all(single, slots);
        let mut slots = slots.drain(..);
        let mut from = 0;
        for request in requests.drain(..) {
            self.counters.count(&request);
            let count = self.block_count(&request);
            let sources = &sources[from..from + count];
            from += count;
            let looked_up = match sources {
                [Source::Stored { .. }] => slots.next(),
                _ => None,
            };
            match self.read_now(&request, sources, looked_up, bytes) {
                Ok(None) => request.transfer.answer(Ok(())),
                Ok(Some(_)) if count == 1 => self.read_one_later(request, sources[0].clone()),
                Ok(Some(at)) => {
                    self.core.runtime.spawn(self.clone().read_rest(request, sources.to_vec(), at));
                }
                Err(error) => self.finish(request, Err(error)),
            }
        }
        drop(slots);
        sources.clear();
    }

    fn block_count(&self, request: &Request) -> usize {
        let range = self.blocks_of(request);
        (range.end().0 - range.start().0 + 1) as usize
    }

    fn finish(&self, request: Request, result: Result<(), IoError>) {
        if result.is_err() {
            self.counters.read_errors.fetch_add(1, Ordering::Relaxed);
        }
        request.transfer.answer(result);
    }

    /// Where each block of the requests is, as one moment sees it.
    fn resolve(&self, requests: &[Request], sources: &mut Vec<Source>) {
        let layers = self.layers.read();
        for request in requests {
            let range = self.blocks_of(request);
            sources.extend((range.start().0..=range.end().0).map(|block| layers.resolve(BlockAddress(block))));
        }
        drop(layers);
        let blocks = requests.iter().flat_map(|request| {
            let range = self.blocks_of(request);
            range.start().0..=range.end().0
        });
        for (block, source) in blocks.zip(sources.iter_mut()) {
            match source {
                Source::Pages => {
                    if let Some(mapped) = self.pages.lookup_cached(BlockAddress(block)) {
                        *source = Source::from(mapped);
                    }
                }
                Source::View { view, generations } => {
                    if let Some(found) = self.look_cached(view, *generations, BlockAddress(block)) {
                        *source = found;
                    }
                }
                Source::Zero | Source::Journal(_) | Source::Stored { .. } | Source::Lost => {}
            }
        }
    }

    /// What a view says of a block, if that can be told without waiting.
    fn look_cached(&self, view: &View, generations: u8, block: BlockAddress) -> Option<Source> {
        match view.look(block) {
            Looked::Found(source) => Some(source.seen_from(generations)),
            Looked::Pages { root, generations: more } => {
                self.pages.lookup_cached_in(&root, generations + more, block).map(Source::from)
            }
            Looked::Gone => None,
        }
    }

    /// Copies blocks in order until one needs waiting; tells which. `looked_up` is what the cache said of the first one, if it was asked.
    fn read_now(
        &self,
        request: &Request,
        sources: &[Source],
        mut looked_up: Option<Option<Slot>>,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<usize>, IoError> {
        let size = self.block_size().bytes();
        let mut at = 0;
        while let Some(source) = sources.get(at) {
            match source {
                Source::Zero => {
                    let (offset, inside) = self.part(request, at);
                    request.transfer.fill_zero(offset, inside.len())?;
                    at += 1;
                }
                Source::Journal(first) => {
                    let run = journal_run(&sources[at..], size);
                    buffer.resize(run * size, 0);
                    match first.segment.file().read_cached(first.offset(), buffer) {
                        Ok(true) => {}
                        Ok(false) => return Ok(Some(at)),
                        Err(error) => return Err(self.journal_unreadable(&error)),
                    }
                    for n in 0..run {
                        let bytes = &buffer[n * size..(n + 1) * size];
                        let Some(Source::Journal(block)) = sources.get(at + n) else { break };
                        self.check_journal(block, bytes)?;
                        self.give(request, at + n, bytes)?;
                    }
                    self.counters.journal_hits.fetch_add(run as u64, Ordering::Relaxed);
                    at += run;
                }
                Source::Stored { fingerprint, .. } => {
                    let found = looked_up.take().unwrap_or_else(|| self.core.cache.find(fingerprint));
                    let Some(slot) = found.filter(|slot| slot.len() == size) else { return Ok(Some(at)) };
                    buffer.resize(size, 0);
                    if self.core.cache.read(slot, buffer) != CacheRead::Hit {
                        return Ok(Some(at));
                    }
                    self.counters.cache_hits.fetch_add(1, Ordering::Relaxed);
                    self.give(request, at, buffer)?;
                    at += 1;
                }
                Source::Lost => return Err(self.lost()),
                Source::Pages | Source::View { .. } => return Ok(Some(at)),
            }
        }
        Ok(None)
    }

    /// Where block number `n` of the request lies in the guest's buffer, and which part of the block is wanted.
    fn part(&self, request: &Request, n: usize) -> (usize, std::ops::Range<usize>) {
        let size = self.block_size();
        let first = request.start.0 / size.sectors();
        let block_start = (first + n as u64) * size.sectors();
        let from = request.start.0.max(block_start);
        let to = (request.start.0 + request.sectors.0).min(block_start + size.sectors());
        let inside = ((from - block_start) * 512) as usize..((to - block_start) * 512) as usize;
        (((from - request.start.0) * 512) as usize, inside)
    }

    fn give(&self, request: &Request, n: usize, block: &[u8]) -> Result<(), IoError> {
        let (offset, inside) = self.part(request, n);
        request.transfer.copy_in(offset, &block[inside])
    }

    fn check_journal(&self, block: &JournalBlock, bytes: &[u8]) -> Result<(), IoError> {
        if self.core.journal.block_sum(bytes) == block.sum {
            return Ok(());
        }
        tracing::error!(volume = %self.id(), page = block.page, "a block in the journal does not match its checksum");
        Err(IoError::Io)
    }

    fn lost(&self) -> IoError {
        tracing::warn!(volume = %self.id(), "a block is read whose bytes the journal lost");
        IoError::Io
    }

    fn journal_unreadable(&self, error: &std::io::Error) -> IoError {
        tracing::error!(volume = %self.id(), error = error as &dyn std::error::Error, "the journal cannot be read");
        IoError::Io
    }

    /// A read of one block that must wait: for the SSD without a task, else with one.
    fn read_one_later(self: &Arc<Self>, request: Request, source: Source) {
        let volume = self.clone();
        match source {
            Source::Journal(block) => {
                let buffer = vec![0; self.block_size().bytes()];
                let file = block.segment.file().clone();
                file.read_later(
                    block.offset(),
                    buffer,
                    Box::new(move |read| {
                        let result = match read {
                            Ok(bytes) => volume.check_journal(&block, &bytes).and_then(|()| volume.give(&request, 0, &bytes)),
                            Err(error) => Err(volume.journal_unreadable(&error)),
                        };
                        volume.counters.journal_hits.fetch_add(1, Ordering::Relaxed);
                        volume.finish(request, result);
                    }),
                );
            }
            Source::Stored { fingerprint, .. } => {
                let size = self.block_size().bytes();
                if let Some(slot) = self.core.cache.find(&fingerprint).filter(|slot| slot.len() == size) {
                    self.core.cache.read_later(slot, move |read, bytes| {
                        if read == CacheRead::Hit {
                            volume.counters.cache_hits.fetch_add(1, Ordering::Relaxed);
                            let result = volume.give(&request, 0, &bytes);
                            volume.finish(request, result);
                        } else {
                            volume.spawn_read(request, source);
                        }
                    });
                } else {
                    self.spawn_read(request, source);
                }
            }
            Source::Zero | Source::Lost | Source::Pages | Source::View { .. } => self.spawn_read(request, source),
        }
    }

    fn spawn_read(self: &Arc<Self>, request: Request, source: Source) {
        self.core.runtime.spawn(self.clone().read_rest(request, vec![source], 0));
    }

    /// Finishes a request from block number `from` on.
    async fn read_rest(self: Arc<Self>, request: Request, mut sources: Vec<Source>, from: usize) {
        let first = self.blocks_of(&request).start().0;
        for (n, source) in sources.iter_mut().enumerate().skip(from) {
            match self.looked_up(source, BlockAddress(first + n as u64)).await {
                Ok(Some(found)) => *source = found,
                Ok(None) => {}
                Err(error) => return self.finish(request, Err(error)),
            }
        }
        let mut at = from;
        while at < sources.len() {
            let run = stored_run(&sources[at..]);
            let loaded = self.load_run(&sources[at..at + run]).await;
            let given =
                loaded.and_then(|blocks| blocks.iter().enumerate().try_for_each(|(n, bytes)| self.give(&request, at + n, bytes)));
            if let Err(error) = given {
                return self.finish(request, Err(error));
            }
            at += run;
        }
        self.finish(request, Ok(()));
    }

    /// Where a block is that the layers say nothing about; None when they do.
    async fn looked_up(&self, source: &Source, block: BlockAddress) -> Result<Option<Source>, IoError> {
        let found = match source {
            Source::Pages => self.pages.lookup(block).await,
            Source::View { view, generations } => match view.look(block) {
                Looked::Found(source) => return Ok(Some(source.seen_from(*generations))),
                Looked::Pages { root, generations: more } => {
                    let mut found = Vec::with_capacity(1);
                    let looked = self.pages.lookup_in(&root, generations + more, block, 1, &mut found).await;
                    looked.map(|()| found.first().copied().unwrap_or(Mapped::Zero))
                }
                Looked::Gone => {
                    tracing::error!(volume = %self.id(), snapshot = %view.id, "what the volume stands on is not open");
                    return Err(IoError::Io);
                }
            },
            Source::Zero | Source::Journal(_) | Source::Stored { .. } | Source::Lost => return Ok(None),
        };
        found.map(|mapped| Some(Source::from(mapped))).map_err(|error| {
            tracing::error!(volume = %self.id(), block = block.0, error = &error as &dyn std::error::Error, "the map cannot be read");
            IoError::Io
        })
    }

    /// Where a block is now: in no case the pages.
    pub(crate) async fn located(&self, block: BlockAddress) -> Result<Source, IoError> {
        let source = self.layers.read().resolve(block);
        Ok(self.looked_up(&source, block).await?.unwrap_or(source))
    }

    /// The bytes of a run: one block of any kind, or several of one stored container.
    async fn load_run(self: &Arc<Self>, run: &[Source]) -> Result<Vec<Bytes>, IoError> {
        match run.first() {
            None => Ok(Vec::new()),
            Some(Source::Zero) => Ok(vec![Bytes::from(vec![0; self.block_size().bytes()])]),
            Some(Source::Lost | Source::Pages | Source::View { .. }) => Err(self.lost()),
            Some(Source::Journal(block)) => Ok(vec![self.load_journal(block).await?]),
            Some(Source::Stored { .. }) => self.load_stored(run).await,
        }
    }

    async fn load_journal(&self, block: &JournalBlock) -> Result<Bytes, IoError> {
        let (done, wait) = oneshot::channel();
        let buffer = vec![0; self.block_size().bytes()];
        // Nobody waits any more when the request is gone: then the bytes are not wanted either.
        let done = Box::new(move |read| drop(done.send(read)));
        block.segment.file().read_later(block.offset(), buffer, done);
        let bytes = wait.await.map_err(|_| IoError::Io)?.map_err(|error| self.journal_unreadable(&error))?;
        self.check_journal(block, &bytes)?;
        Ok(Bytes::from(bytes))
    }

    async fn load_cached(&self, fingerprint: &Fingerprint) -> Option<Bytes> {
        let bytes = cached(&self.core.cache, fingerprint, self.block_size().bytes()).await?;
        self.counters.cache_hits.fetch_add(1, Ordering::Relaxed);
        Some(bytes)
    }

    async fn load_stored(self: &Arc<Self>, run: &[Source]) -> Result<Vec<Bytes>, IoError> {
        let mut blocks: Vec<Option<Bytes>> = Vec::with_capacity(run.len());
        let mut wanted = Vec::new();
        let mut container: Option<Location> = None;
        let fingerprints = run.iter().filter_map(|source| match source {
            Source::Stored { fingerprint, .. } => Some(fingerprint),
            _ => None,
        });
        let cached = join_all(fingerprints.map(|fingerprint| self.load_cached(fingerprint))).await;
        for (source, cached) in run.iter().zip(cached) {
            let Source::Stored { location, fingerprint } = source else { return Err(IoError::Io) };
            if cached.is_none() {
                wanted.push((location.index, *fingerprint));
                container = Some(*location);
            }
            blocks.push(cached);
        }
        if let Some(location) = container {
            let fetched = self.fetch(location, &wanted).await?;
            let mut fetched = fetched.into_iter();
            for block in blocks.iter_mut().filter(|block| block.is_none()) {
                *block = fetched.next();
            }
        }
        blocks.into_iter().collect::<Option<Vec<_>>>().ok_or(IoError::Io)
    }

    /// The container at `at`, as the store has it.
    fn container(&self, at: Location) -> Option<Container> {
        let (volume, epoch) = match at.ancestor {
            0 => (self.id(), self.behind.sco_epoch(at.sco)?),
            generations => (self.ancestry.volume(generations)?, self.ancestry.sco_epoch(generations, at.sco)?),
        };
        let key = Namespace(volume).sco(epoch, at.sco);
        // A clone has blocks and containers of its parent's size.
        Some(Container { volume, sco: at.sco, key, block_size: self.block_size(), capacity: self.sco_blocks() })
    }

    async fn fetch(self: &Arc<Self>, at: Location, wanted: &[(u16, Fingerprint)]) -> Result<Vec<Bytes>, IoError> {
        let Some(container) = self.container(at) else {
            tracing::error!(volume = %self.id(), ancestor = at.ancestor, sco = at.sco.0, "no term covers a container that the map names");
            return Err(IoError::Io);
        };
        self.counters.store_reads.fetch_add(1, Ordering::Relaxed);
        let fetcher = &self.core.fetcher;
        for pause in RETRIES {
            match fetcher.blocks_together(&container, wanted, &self.core.cache, self.id()).await {
                Ok(blocks) => return Ok(blocks),
                Err(error) if error.is_final() => return Err(report(self.id(), &error)),
                // A store that stumbles is no reason to tell a guest that its disk is broken.
                Err(error) => {
                    tracing::debug!(volume = %self.id(), error = &error as &dyn std::error::Error, "a read is tried again");
                }
            }
            tokio::time::sleep(pause).await;
        }
        // What the guest is told in the end is what it found itself, not what others did.
        let blocks = fetcher.blocks(&container, wanted).await.map_err(|error| report(self.id(), &error))?;
        for (bytes, (_, fingerprint)) in blocks.iter().zip(wanted) {
            self.core.cache.insert(self.id(), fingerprint, bytes);
        }
        Ok(blocks)
    }

    /// The whole of one block, for a change of a part of it.
    pub(crate) async fn block_bytes(self: &Arc<Self>, block: BlockAddress) -> Result<Bytes, IoError> {
        let source = self.located(block).await?;
        self.bytes_of(source).await
    }

    /// The bytes of a block that is there.
    pub(crate) async fn bytes_of(self: &Arc<Self>, source: Source) -> Result<Bytes, IoError> {
        let blocks = self.load_run(&[source]).await?;
        blocks.into_iter().next().ok_or(IoError::Io)
    }
}

fn report(volume: VolumeId, error: &EngineError) -> IoError {
    tracing::error!(%volume, error = error as &dyn std::error::Error, "blocks cannot be read from the store");
    IoError::Io
}

/// How many blocks from the first on stand behind each other in one segment of the journal.
fn journal_run(sources: &[Source], size: usize) -> usize {
    let Some(Source::Journal(first)) = sources.first() else { return 1 };
    let limit = (RUN_BYTES / size).max(1);
    let behind = |n: usize, source: &Source| matches!(source, Source::Journal(next) if follows(first, next, n * size));
    sources.iter().take(limit).enumerate().take_while(|(n, source)| *n == 0 || behind(*n, source)).count()
}

/// How many blocks from the first on are in the same container, in rising order.
fn stored_run(sources: &[Source]) -> usize {
    let Some(Source::Stored { location: first, .. }) = sources.first() else { return 1 };
    let mut last = first.index;
    let mut run = 1;
    for source in &sources[1..] {
        let Source::Stored { location, .. } = source else { break };
        if location.sco != first.sco || location.ancestor != first.ancestor || location.index <= last {
            break;
        }
        last = location.index;
        run += 1;
    }
    run
}
