//! Many readers of the same blocks at once, over a store that is slow, fails, or lies. Time is the test's own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use lamina_contract::{BlockAddress, BlockSize, Epoch, Fingerprint, ScoNumber, VolumeId};
use lamina_formats::sco::{ScoBlock, ScoIdentity, encode_tail};
use lamina_stores::{FlakyStore, MemoryDisk, Toxics};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::task::JoinHandle;

use super::{Brought, Container, Fetcher};
use crate::cache::{CacheConfig, DedupeCache, Upkeep};
use crate::error::EngineError;
use crate::fingerprint::fingerprint;

const OWNER: VolumeId = VolumeId(7);
const BLOCKS: u16 = 16;

struct World {
    store: FlakyStore,
    fetcher: Fetcher,
    cache: DedupeCache,
    container: Container,
    blocks: Vec<(u16, Fingerprint)>,
}

fn bytes_of(index: u16) -> Vec<u8> {
    (0..BlockSize::DEFAULT.bytes()).map(|at| (at as u16 ^ index.wrapping_mul(257)) as u8).collect()
}

impl World {
    /// A container in a store whose operations take a second each.
    async fn new(cache_bytes: u64) -> Arc<Self> {
        let store = FlakyStore::new(Arc::new(InMemory::new()), 1);
        let key = Path::from("container");
        let block = |index: u16| ScoBlock {
            index,
            block: BlockAddress(u64::from(index)),
            fingerprint: fingerprint(&bytes_of(index)),
            crc: 0,
        };
        let index: Vec<ScoBlock> = (0..BLOCKS).map(block).collect();
        let identity =
            ScoIdentity { volume: OWNER, sco: ScoNumber(1), epoch: Epoch(1), block_size: BlockSize::DEFAULT, rewrite: 0 };
        let mut object: Vec<u8> = (0..BLOCKS).flat_map(bytes_of).collect();
        object.extend(encode_tail(&identity, &index));
        store.inner().put(&key, object.into()).await.expect("put");
        store.set_slow(Some(Duration::from_secs(1)));
        let config = CacheConfig { bytes: cache_bytes, region_bytes: 128 << 10, upkeep: Upkeep::Inline, hash_keys: [1, 2] };
        let cache = DedupeCache::open(Arc::new(MemoryDisk::default()), config).expect("a cache");
        let shared: Arc<dyn ObjectStore> = Arc::new(store.clone());
        let container = Container { volume: OWNER, sco: ScoNumber(1), key, block_size: BlockSize::DEFAULT, capacity: BLOCKS };
        let blocks = index.iter().map(|block| (block.index, block.fingerprint)).collect();
        Arc::new(Self { store, fetcher: Fetcher::new(shared), cache, container, blocks })
    }

    async fn read(&self, range: std::ops::Range<usize>) -> Result<Vec<Bytes>, EngineError> {
        self.fetcher.blocks_together(&self.container, &self.blocks[range], &self.cache, OWNER).await
    }

    fn reader(self: &Arc<Self>, range: std::ops::Range<usize>) -> JoinHandle<Result<Vec<Bytes>, EngineError>> {
        let world = self.clone();
        tokio::spawn(async move { world.read(range).await })
    }

    fn is_right(&self, range: std::ops::Range<usize>, blocks: &[Bytes]) {
        let expected: Vec<Vec<u8>> = self.blocks[range].iter().map(|(index, _)| bytes_of(*index)).collect();
        assert_eq!(blocks, expected);
    }

    fn nothing_is_under_way(&self) {
        assert_eq!((self.fetcher.blocks_under_way.len(), self.fetcher.indexes_under_way.len()), (0, 0));
    }
}

/// Lets every task that can go on do so.
async fn let_run() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_readers_of_the_same_blocks_read_the_store_once() {
    let world = World::new(0).await;
    let readers: Vec<_> = (0..100).map(|_| world.reader(2..9)).collect();
    for outcome in join_all(readers).await {
        world.is_right(2..9, &outcome.expect("no panic").expect("read"));
    }
    assert_eq!(world.store.operations(), 2, "the index and one range");
    world.nothing_is_under_way();
}

#[tokio::test(start_paused = true)]
async fn a_reader_waits_for_what_others_fetch_and_fetches_the_rest() {
    let world = World::new(0).await;
    let (first, second) = (world.reader(0..4), world.reader(8..12));
    let_run().await;
    let (both, more) = (world.reader(0..12), world.reader(3..5));
    world.is_right(0..12, &both.await.expect("no panic").expect("read"));
    world.is_right(3..5, &more.await.expect("no panic").expect("read"));
    world.is_right(0..4, &first.await.expect("no panic").expect("read"));
    world.is_right(8..12, &second.await.expect("no panic").expect("read"));
    assert_eq!(world.store.operations(), 4, "the index, and 0..4, 8..12, 4..8 once each");
    world.nothing_is_under_way();
}

#[tokio::test(start_paused = true)]
async fn who_missed_the_cache_before_a_lead_ended_finds_the_block_there() {
    let world = World::new(2 << 20).await;
    world.read(0..4).await.expect("read");
    let before = world.store.operations();
    // As a reader that looked into the cache before the lead ended, and joins behind it.
    world.is_right(0..4, &world.read(0..4).await.expect("read"));
    assert_eq!(world.store.operations(), before);
    world.is_right(0..6, &world.read(0..6).await.expect("read"));
    assert_eq!(world.store.operations(), before + 1, "only 4..6");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_goes_away_does_not_strand_those_who_wait_for_it() {
    let world = World::new(0).await;
    world.read(15..16).await.expect("the index is known from now on");
    let gone = world.reader(0..4);
    let_run().await;
    let waiting = world.reader(0..4);
    let_run().await;
    gone.abort();
    let told = tokio::time::timeout(Duration::from_millis(1), waiting).await.expect("told at once").expect("no panic");
    assert!(matches!(told, Err(EngineError::LeftAlone { .. })), "{told:?}");
    world.is_right(0..4, &world.read(0..4).await.expect("the next try leads"));
    world.nothing_is_under_way();
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_the_index_that_goes_away_does_not_strand_others() {
    let world = World::new(0).await;
    let gone = world.reader(0..4);
    let_run().await;
    let waiting = world.reader(8..12);
    let_run().await;
    gone.abort();
    let told = tokio::time::timeout(Duration::from_millis(1), waiting).await.expect("told at once").expect("no panic");
    assert!(matches!(told, Err(EngineError::LeftAlone { .. })), "{told:?}");
    world.is_right(0..12, &world.read(0..12).await.expect("read"));
    world.nothing_is_under_way();
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_the_store_reaches_all_in_one_round_and_is_over_when_it_is() {
    let world = World::new(0).await;
    world.store.set_down(true);
    let begin = tokio::time::Instant::now();
    let readers: Vec<_> = (0..50).map(|_| world.reader(0..8)).collect();
    for outcome in join_all(readers).await {
        let error = outcome.expect("no panic").expect_err("the store is down");
        assert!(!error.is_final(), "{error}");
    }
    assert_eq!(world.store.operations(), 1, "only the lead asked");
    assert_eq!(begin.elapsed().as_secs(), 1, "nobody waited longer than the lead");
    world.nothing_is_under_way();
    world.store.set_down(false);
    world.is_right(0..8, &world.read(0..8).await.expect("read"));
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_not_the_block_reach_nobody() {
    let world = World::new(2 << 20).await;
    world.read(15..16).await.expect("the index is known from now on");
    world.store.set_toxics(Toxics { wrong: 1.0, ..Toxics::default() });
    let readers: Vec<_> = (0..5).map(|_| world.reader(0..8)).collect();
    for outcome in join_all(readers).await {
        outcome.expect("no panic").expect_err("a bit is wrong");
    }
    assert!(!world.cache.contains(&world.blocks[0].1));
    let mut spoilt = Brought::new(&world.blocks[0].1, bytes_of(0).into());
    spoilt.bytes = bytes_of(1).into();
    assert_eq!(spoilt.verified(&world.blocks[0].1), None);
}
