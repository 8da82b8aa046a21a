//! The map over pages and layers against a plain ordered map.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::executor::block_on;
use futures::stream::{BoxStream, StreamExt};
use lamina_contract::{BlockAddress, Epoch, Fingerprint, Location, ScoNumber, VolumeId};
use lamina_formats::map::{MapRoot, PageKind};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use parking_lot::Mutex;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::{collection, prop_assert_eq};

use super::{CheckpointedMap, MapError, Mapped};
use crate::checkpoint::CheckpointOutcome;
use crate::delta::Delta;
use crate::namespace::Namespace;
use crate::page_store::{FilePages, PageStore, SledPages};
use crate::pages::PageCache;

const VOLUME: VolumeId = VolumeId(0xabc);
const EPOCH: Epoch = Epoch(3);

/// Memory, counting gets, failing the put that it is told to.
#[derive(Debug)]
struct TestStore {
    inner: InMemory,
    puts_left: AtomicI64,
    gets: AtomicU64,
    before_get: Mutex<Option<Hook>>,
}

/// Something that happens just before a read.
struct Hook(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

impl TestStore {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: InMemory::new(),
            puts_left: AtomicI64::new(i64::MAX),
            gets: AtomicU64::new(0),
            before_get: Mutex::default(),
        })
    }

    fn keys(&self) -> Vec<Path> {
        let listed: Vec<_> = block_on(self.inner.list(None).collect());
        listed.into_iter().map(|meta| meta.expect("listed").location).collect()
    }

    fn bytes(&self, key: &Path) -> Bytes {
        block_on(async { self.inner.get(key).await.expect("present").bytes().await.expect("read") })
    }

    fn replace(&self, key: &Path, bytes: Vec<u8>) {
        block_on(self.inner.put(key, PutPayload::from(bytes))).expect("put");
    }
}

impl fmt::Display for TestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestStore")
    }
}

#[async_trait::async_trait]
impl ObjectStore for TestStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> StoreResult<PutResult> {
        if self.puts_left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            // Half of the refused puts have happened all the same.
            if location.as_ref().len() % 2 == 0 {
                self.inner.put_opts(location, payload, opts).await?;
            }
            return Err(object_store::Error::Generic { store: "test", source: "refused".into() });
        }
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, at: &Path, opts: PutMultipartOptions) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        let hook = self.before_get.lock().take();
        if let Some(Hook(hook)) = hook {
            hook();
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn at(n: u64) -> Mapped {
    let mut print = [7; 32];
    print[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    Mapped::At {
        location: Location { ancestor: 0, sco: ScoNumber((n >> 10) & ScoNumber::MAX.0), index: (n & 1023) as u16 },
        fingerprint: Fingerprint(print),
    }
}

fn open(store: &Arc<TestStore>, root: Option<MapRoot>, cache: &Arc<PageCache>) -> Result<CheckpointedMap, MapError> {
    block_on(CheckpointedMap::open([VOLUME].into(), store.clone(), root, cache.clone()))
}

fn key(epoch: Epoch, number: u64) -> Path {
    Namespace(VOLUME).map(epoch, number)
}

fn checkpoint(map: &CheckpointedMap, delta: &Delta<Mapped>, next: u64) -> Result<CheckpointOutcome, MapError> {
    block_on(map.checkpoint(delta, EPOCH, next, &key))
}

fn memory(bytes: usize) -> Arc<PageCache> {
    Arc::new(PageCache::new(bytes, None))
}

/// Everything from a fresh process: the blocks of `range`.
fn cold(store: &Arc<TestStore>, root: MapRoot, range: Range<u64>) -> Result<Vec<Mapped>, MapError> {
    let map = open(store, Some(root), &memory(0))?;
    let mut out = Vec::new();
    block_on(map.lookup_range(BlockAddress(range.start), range.end - range.start, &mut out))?;
    Ok(out)
}

#[derive(Debug, Clone)]
enum Step {
    Set(u64, u64),
    Fill(u64, u64),
    Zero(u64, u64),
    Same(u64, u64),
    Checkpoint { refused_after: Option<u8> },
    Reopen,
    LoseLocal,
}

const DIRECTORY: u64 = 1 << 20;

/// A few leaves of three directories, so that steps meet.
fn block() -> impl Strategy<Value = u64> {
    (prop_oneof![Just(0), Just(DIRECTORY), Just(DIRECTORY - 2048), Just(5 * DIRECTORY)], 0..4096u64).prop_map(|(base, n)| base + n)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (block(), any::<u64>()).prop_map(|(b, n)| Step::Set(b, n)),
        3 => (block(), 1..3000u64).prop_map(|(b, n)| Step::Fill(b, n)),
        3 => (block(), 1..5000u64).prop_map(|(b, n)| Step::Zero(b, n)),
        1 => (block(), 1..3000u64).prop_map(|(b, n)| Step::Same(b, n)),
        1 => Just(Step::Zero(1024, 6 * DIRECTORY)),
        4 => Just(Step::Checkpoint { refused_after: None }),
        2 => (0..3u8).prop_map(|n| Step::Checkpoint { refused_after: Some(n) }),
        2 => Just(Step::Reopen),
        1 => Just(Step::LoseLocal),
    ]
}

struct World {
    store: Arc<TestStore>,
    cache: Arc<PageCache>,
    map: CheckpointedMap,
    delta: Delta<Mapped>,
    model: BTreeMap<u64, Mapped>,
    /// What the installed root must answer.
    stored: BTreeMap<u64, Mapped>,
    next: u64,
    serial: u64,
}

impl World {
    fn new(local: Option<Box<dyn PageStore>>, memory: usize) -> Self {
        let (store, cache) = (TestStore::new(), Arc::new(PageCache::new(memory, local)));
        let map = open(&store, None, &cache).expect("opens");
        Self { store, cache, map, delta: Delta::new(), model: BTreeMap::new(), stored: BTreeMap::new(), next: 1, serial: 0 }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Set(block, n) => {
                self.delta.set(BlockAddress(block), at(n));
                self.model.insert(block, at(n));
            }
            Step::Fill(first, count) => {
                for block in first..first + count {
                    self.serial += 1;
                    self.delta.set(BlockAddress(block), at(self.serial));
                    self.model.insert(block, at(self.serial));
                }
            }
            Step::Zero(first, count) => {
                self.delta.set_range(BlockAddress(first), count, Mapped::Zero);
                self.model.retain(|block, _| !(first..first + count).contains(block));
            }
            Step::Same(first, count) => {
                self.delta.set_range(BlockAddress(first), count, at(first));
                self.model.extend((first..first + count).map(|block| (block, at(first))));
            }
            Step::Checkpoint { refused_after } => self.checkpoint(refused_after),
            Step::Reopen => {
                let root = self.map.root();
                self.cache = Arc::new(PageCache::new(64 << 10, None));
                self.map = open(&self.store, root, &self.cache).expect("reopens");
                self.check();
            }
            Step::LoseLocal => {
                if let Some(local) = self.cache.local_store() {
                    local.clear();
                }
                self.check();
            }
        }
    }

    fn checkpoint(&mut self, refused_after: Option<u8>) {
        self.store.puts_left.store(refused_after.map_or(i64::MAX, i64::from), Ordering::SeqCst);
        let tried = checkpoint(&self.map, &self.delta, self.next);
        self.store.puts_left.store(i64::MAX, Ordering::SeqCst);
        let outcome = tried.or_else(|_| {
            self.check();
            checkpoint(&self.map, &self.delta, self.next)
        });
        let outcome = outcome.expect("a checkpoint");
        // Until it is installed nothing changes.
        self.check();
        self.map.install(outcome.root);
        self.delta = Delta::new();
        self.stored.clone_from(&self.model);
        self.next = outcome.next_object;
        for (epoch, number) in outcome.dead {
            // An object whose put was refused may be missing.
            let _ = block_on(self.store.delete(&key(epoch, number)));
        }
        self.check();
        self.check_use();
    }

    /// The installed root answers what was checkpointed.
    fn check(&self) {
        for start in [0, DIRECTORY - 2048, DIRECTORY + 2048, 5 * DIRECTORY] {
            let range = start..start + 4100;
            let mut out = Vec::new();
            block_on(self.map.lookup_range(BlockAddress(range.start), range.end - range.start, &mut out)).expect("looked up");
            for (block, mapped) in range.zip(out) {
                let wanted = self.stored.get(&block).copied().unwrap_or(Mapped::Zero);
                assert_eq!(mapped, wanted, "block {block}");
                if let Some(cached) = self.map.lookup_cached(BlockAddress(block)) {
                    assert_eq!(cached, wanted, "block {block} in memory");
                }
            }
        }
        assert!(self.cache.memory_bytes() <= 1 << 20);
    }

    /// The use that the root keeps is the one that a walk finds, and the store holds exactly the objects in use.
    fn check_use(&self) {
        let state = self.map.state();
        let mut live: BTreeMap<_, u64> = BTreeMap::new();
        let mut count = |at: &lamina_formats::map::PageRef| *live.entry(at.object).or_default() += u64::from(at.length);
        count(&state.root.expect("a root").0);
        for (number, at) in state.directories.iter() {
            count(at);
            let id = self.map.own_id(PageKind::Directory, *number);
            let bytes = block_on(self.map.load(id, at)).expect("a directory");
            self.map.known(&bytes, id, at).expect("known").leaves().for_each(|(_, leaf)| count(&leaf));
        }
        let kept: BTreeMap<_, u64> = state.objects.iter().map(|(object, (live, _))| (*object, *live)).collect();
        assert_eq!(kept, live);
        let mut keys = self.store.keys();
        keys.sort();
        let mut used: Vec<Path> = state.objects.keys().map(|object| key(object.epoch, object.number)).collect();
        used.sort();
        assert_eq!(keys, used);
        for (object, (_, total)) in &state.objects {
            assert_eq!(self.store.bytes(&key(object.epoch, object.number)).len() as u64, *total);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_map_answers_as_its_model_over_checkpoints_failures_and_restarts(
        steps in collection::vec(step(), 1..25), local in any::<bool>(), memory in prop_oneof![Just(0), Just(1 << 20)],
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let pages: Option<Box<dyn PageStore>> =
            if local { Some(Box::new(FilePages::open(directory.path(), 1 << 20).expect("opens"))) } else { None };
        let mut world = World::new(pages, memory);
        for step in &steps {
            world.apply(step);
        }
        world.checkpoint(None);
        world.apply(&Step::Reopen);
        prop_assert_eq!(world.stored, world.model);
    }
}

#[test]
fn sled_serves_as_local_pages_and_may_be_lost() {
    let directory = tempfile::tempdir().expect("a directory");
    let pages = SledPages::open(&directory.path().join("db"), 4 << 20, 1 << 20).expect("opens");
    let mut world = World::new(Some(Box::new(pages)), 64 << 10);
    for round in 0..4 {
        world.apply(&Step::Fill(round * 700, 2500));
        world.apply(&Step::Checkpoint { refused_after: None });
        let gets = world.store.gets.load(Ordering::SeqCst);
        world.check();
        assert_eq!(world.store.gets.load(Ordering::SeqCst), gets, "nothing is fetched that is here");
    }
    world.apply(&Step::LoseLocal);
    assert!(world.cache.stats().fetched > 0);
}

#[test]
fn a_failure_at_each_put_leaves_the_old_root_and_may_be_retried() {
    let mut base = World::new(None, 1 << 20);
    // 700,000 blocks are 29 MB of leaves: four objects.
    let load = |world: &mut World, salt: u64| {
        for block in 0..700_000 {
            world.delta.set(BlockAddress(block), at(block + salt));
        }
    };
    load(&mut base, 0);
    let first = checkpoint(&base.map, &base.delta, 1).expect("a checkpoint");
    assert!(first.written.len() >= 4, "{:?}", first.written);
    base.map.install(first.root);
    base.delta = Delta::new();
    load(&mut base, 1 << 30);
    let old = cold(&base.store, first.root, 0..2048).expect("reads");
    assert_eq!(old[5], at(5));
    for puts in 0.. {
        base.store.puts_left.store(puts, Ordering::SeqCst);
        let tried = checkpoint(&base.map, &base.delta, first.next_object);
        base.store.puts_left.store(i64::MAX, Ordering::SeqCst);
        assert_eq!(cold(&base.store, first.root, 0..2048).expect("the old root"), old);
        assert_eq!(base.map.root(), Some(first.root));
        if let Ok(outcome) = tried {
            assert!(puts >= 4);
            base.map.install(outcome.root);
            assert_eq!(block_on(base.map.lookup(BlockAddress(5))).expect("found"), at(5 + (1 << 30)));
            // The failed attempts' objects and the first checkpoint's are given up, and none that is in use.
            assert!(first.written.iter().all(|object| outcome.dead.contains(object)));
            assert!(outcome.dead.len() > first.written.len() + 4);
            assert!(outcome.written.iter().all(|object| !outcome.dead.contains(object)));
            return;
        }
    }
}

#[test]
fn a_damaged_missing_or_misplaced_page_is_an_error_and_never_zeros() {
    let mut world = World::new(None, 1 << 20);
    world.apply(&Step::Fill(0, 3000));
    world.apply(&Step::Fill(DIRECTORY, 40));
    let outcome = checkpoint(&world.map, &world.delta, 1).expect("a checkpoint");
    let (epoch, number) = outcome.written[0];
    let key = key(epoch, number);
    let healthy = world.store.bytes(&key).to_vec();
    let right = cold(&world.store, outcome.root, 0..3000).expect("reads");
    let all = |context: &str| {
        // A process that has nothing: every block is right or an error.
        let Ok(map) = open(&world.store, Some(outcome.root), &memory(1 << 20)) else { return 3000 };
        let mut errors = 0;
        for (block, wanted) in right.iter().enumerate().step_by(7) {
            match block_on(map.lookup(BlockAddress(block as u64))) {
                Ok(found) => assert_eq!(found, *wanted, "{context}, block {block}"),
                Err(_) => errors += 1,
            }
        }
        errors
    };
    let mut noticed = 0;
    for place in (0..healthy.len()).step_by(healthy.len() / 300) {
        let mut flipped = healthy.clone();
        flipped[place] ^= 0x10;
        world.store.replace(&key, flipped);
        noticed += usize::from(all(&format!("byte {place} flipped")) > 0);
    }
    // All but what lies in the other directory's pages.
    assert!(noticed > 290, "{noticed}");
    for len in [0, 10, 64, healthy.len() / 2, healthy.len() - 1] {
        world.store.replace(&key, healthy[..len].to_vec());
        assert!(all("cut short") > 0);
    }
    world.store.replace(&key, vec![0; healthy.len()]);
    assert_eq!(all("zeros"), 3000);
    block_on(world.store.delete(&key)).expect("deleted");
    assert_eq!(all("missing"), 3000);
    // A healthy object of an earlier time, in this one's place.
    world.delta.set(BlockAddress(3), at(99));
    let later = checkpoint(&world.map, &world.delta, 1).expect("another");
    let other = super::tests::key(later.written[0].0, later.written[0].1);
    let wrong = world.store.bytes(&other).to_vec();
    world.store.replace(&key, wrong);
    assert_eq!(all("misplaced"), 3000);
}

#[test]
fn a_damaged_local_page_is_fetched_again_and_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let pages = FilePages::open(directory.path(), 64 << 20).expect("opens");
    let mut world = World::new(Some(Box::new(pages)), 0);
    world.apply(&Step::Fill(0, 2000));
    world.apply(&Step::Checkpoint { refused_after: None });
    for entry in std::fs::read_dir(directory.path()).expect("lists") {
        let path = entry.expect("an entry").path();
        let mut bytes = std::fs::read(&path).expect("reads");
        bytes.iter_mut().step_by(100).for_each(|byte| *byte ^= 1);
        std::fs::write(&path, bytes).expect("writes");
    }
    world.check();
    assert!(world.cache.stats().bad_local > 0);
    let fetched = world.cache.stats().fetched;
    assert!(fetched > 0);
    world.check();
    assert_eq!(world.cache.stats().fetched, fetched, "now they are here again");
}

#[test]
fn after_the_local_pages_are_lost_neighbours_come_with_what_is_fetched() {
    let directory = tempfile::tempdir().expect("a directory");
    let pages = FilePages::open(directory.path(), 64 << 20).expect("opens");
    let mut world = World::new(Some(Box::new(pages)), 0);
    // A hundred leaves of some 200 bytes.
    (0..100).for_each(|leaf| (0..3).for_each(|n| world.apply(&Step::Set(leaf * 1024 + n, leaf + n))));
    world.apply(&Step::Checkpoint { refused_after: None });
    world.apply(&Step::LoseLocal);
    let before = world.store.gets.load(Ordering::SeqCst);
    for leaf in 0..100 {
        assert_eq!(block_on(world.map.lookup(BlockAddress(leaf * 1024 + 2))).expect("found"), at(leaf + 2));
    }
    let gets = world.store.gets.load(Ordering::SeqCst) - before;
    assert!(gets <= 2, "{gets} reads of the store");
}

#[test]
fn opening_reads_the_root_only_and_a_range_each_page_once() {
    let mut world = World::new(None, 1 << 20);
    world.apply(&Step::Fill(0, 4096));
    world.apply(&Step::Checkpoint { refused_after: None });
    let gets = || world.store.gets.load(Ordering::SeqCst);
    let before = gets();
    let map = open(&world.store, world.map.root(), &memory(1 << 20)).expect("opens");
    assert_eq!(gets() - before, 1);
    assert_eq!(map.lookup_cached(BlockAddress(7)), None, "not in memory");
    assert_eq!(map.lookup_cached(BlockAddress(9 * DIRECTORY)), Some(Mapped::Zero), "the root tells");
    let mut out = Vec::new();
    block_on(map.lookup_range(BlockAddress(1000), 256, &mut out)).expect("looked up");
    assert_eq!(gets() - before, 4, "root, directory, two leaves");
    assert_eq!(out.len(), 256);
    assert!(map.lookup_cached(BlockAddress(1000)).is_some());
}

#[test]
fn space_stays_bounded_when_the_same_blocks_change_for_ever() {
    let mut world = World::new(None, 1 << 20);
    let mut seed = 1u64;
    for _ in 0..60 {
        for _ in 0..300 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // A third of the leaves never changes again, so their objects stay partly live.
            let block = if seed & (7 << 40) == 0 { (seed >> 33) % 100_000 } else { (seed >> 33) % 10_000 };
            world.apply(&Step::Set(block, seed >> 20));
        }
        world.apply(&Step::Checkpoint { refused_after: None });
    }
    let state = world.map.state();
    let (live, total) = state.objects.values().fold((0, 0), |sum, (live, total)| (sum.0 + live, sum.1 + total));
    assert!(total <= live * 5, "{total} bytes for {live} live ones");
    assert!(state.objects.len() < 40, "{} objects", state.objects.len());
}

#[test]
fn a_discard_of_everything_leaves_a_root_alone() {
    let mut world = World::new(None, 1 << 20);
    world.apply(&Step::Fill(0, 5000));
    world.apply(&Step::Fill(5 * DIRECTORY, 100));
    world.apply(&Step::Checkpoint { refused_after: None });
    world.delta.set_range(BlockAddress(0), 1 << 34, Mapped::Zero);
    world.model.clear();
    world.apply(&Step::Checkpoint { refused_after: None });
    assert!(world.map.state().directories.is_empty());
    assert_eq!(world.store.keys().len(), 1);
}

#[test]
fn a_lookup_goes_on_with_the_new_root_when_the_old_ones_objects_are_gone() {
    let mut world = World::new(None, 0);
    world.apply(&Step::Fill(0, 100));
    let first = checkpoint(&world.map, &world.delta, 1).expect("a checkpoint");
    world.map.install(first.root);
    let second = checkpoint(&world.map, &world.delta, 1).expect("a checkpoint");
    let (map, store) = (Arc::new(world.map), world.store);
    let (installs, deletes) = (map.clone(), store.clone());
    *store.before_get.lock() = Some(Hook(Box::new(move || {
        installs.install(second.root);
        for (epoch, number) in second.dead {
            // Memory never waits; an executor within another would be refused.
            deletes.inner.delete(&key(epoch, number)).now_or_never().expect("ready").expect("deleted");
        }
    })));
    assert_eq!(block_on(map.lookup(BlockAddress(7))).expect("found"), world.model[&7]);
    assert_eq!(map.root(), Some(second.root));
    // Without a new root the error is told.
    for key in store.keys() {
        block_on(store.delete(&key)).expect("deleted");
    }
    assert!(block_on(map.lookup(BlockAddress(7))).is_err());
}

/// A figure of `/proc/self/status`, in MiB.
fn status_mib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

/// Nanoseconds that this thread has had a CPU: other work on the machine does not count.
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("proc");
    stat.split_whitespace().next().and_then(|ns| ns.parse().ok()).expect("a number")
}

/// Ten checkpoints of a million scattered blocks over 1 TiB, with the local pages that `LAMINA_PAGES` names (none, files, sled);
/// run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_ten_million_scattered_blocks() {
    let directory = tempfile::tempdir().expect("a directory");
    let kind = std::env::var("LAMINA_PAGES").unwrap_or_else(|_| "files".to_owned());
    let local = || -> Option<Box<dyn PageStore>> {
        match kind.as_str() {
            "none" => None,
            "sled" => Some(Box::new(SledPages::open(&directory.path().join("sled"), 4 << 30, 32 << 20).expect("opens"))),
            _ => Some(Box::new(FilePages::open(&directory.path().join("files"), 4 << 30).expect("opens"))),
        }
    };
    let objects = directory.path().join("objects");
    std::fs::create_dir(&objects).expect("made");
    let store: Arc<dyn ObjectStore> = Arc::new(object_store::local::LocalFileSystem::new_with_prefix(&objects).expect("a store"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let open = |root, cache: &Arc<PageCache>| {
        runtime.block_on(CheckpointedMap::open([VOLUME].into(), store.clone(), root, cache.clone())).expect("opens")
    };
    let span = (1u64 << 40) / 4096;
    let block = |n: u64| BlockAddress(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % span);
    println!("{kind}: before {} MiB", status_mib("VmRSS"));
    let cache = Arc::new(PageCache::new(64 << 20, local()));
    let map = open(None, &cache);
    let mut next = 1;
    for round in 0..10u64 {
        let mut delta = Delta::new();
        for n in round * 1_000_000..(round + 1) * 1_000_000 {
            delta.set(block(n), at(n));
        }
        let delta_mib = delta.memory_bytes() >> 20;
        let begun = std::time::Instant::now();
        let outcome = runtime.block_on(map.checkpoint(&delta, EPOCH, next, &key)).expect("a checkpoint");
        let took = begun.elapsed();
        drop(delta);
        map.install(outcome.root);
        next = outcome.next_object;
        for (epoch, number) in &outcome.dead {
            runtime.block_on(store.delete(&key(*epoch, *number))).expect("deleted");
        }
        println!(
            "  checkpoint {round}: {took:.2?}, {} MiB in {} objects, {} dead; delta {delta_mib} MiB, RSS {} MiB, most {} MiB",
            outcome.bytes >> 20,
            outcome.written.len(),
            outcome.dead.len(),
            status_mib("VmRSS"),
            status_mib("VmHWM"),
        );
    }
    let root = map.root();
    drop((map, cache));
    let begun = std::time::Instant::now();
    let cache = Arc::new(PageCache::new(64 << 20, local()));
    let map = open(root, &cache);
    let opened = begun.elapsed();
    assert_eq!(runtime.block_on(map.lookup(block(5))).expect("found"), at(5));
    println!("  reopened in {opened:.2?}, first lookup after {:.2?}", begun.elapsed());
    for pass in 0..2 {
        let begun = std::time::Instant::now();
        for n in (0..10_000_000u64).step_by(200) {
            assert_eq!(runtime.block_on(map.lookup(block(n))).expect("found"), at(n));
        }
        println!(
            "  pass {pass}: 50,000 random lookups in {:.2?}, {:?}, pages {} MiB, RSS {} MiB",
            begun.elapsed(),
            cache.stats(),
            cache.memory_bytes() >> 20,
            status_mib("VmRSS")
        );
    }
    let begun = cpu_ns();
    let hits = (0..2_000_000u64).filter(|n| map.lookup_cached(block(n % 2000 * 200)).is_some()).count();
    println!("  {hits} of 2,000,000 lookups in memory, {} ns each", (cpu_ns() - begun) / 2_000_000);
}
