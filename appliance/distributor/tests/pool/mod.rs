//! A pool of flaky targets in memory, and what tests do with it.

#![allow(dead_code, reason = "each test binary uses another part")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::TryStreamExt;
use lamina_contract::ManualClock;
use lamina_distributor::{Distributor, DistributorOptions, FailureDomain, Target, TargetId};
use lamina_formats::drive::PoolId;
use lamina_stores::{FlakyStore, Fuse, MemoryStore};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload};

/// Targets that can be spoilt, and a distributor over them.
pub struct Pool {
    pub stores: Vec<FlakyStore>,
    pub fuse: Arc<Fuse>,
    pub clock: Arc<ManualClock>,
    pub distributor: Distributor,
}

pub fn options(policy: &str, clock: &Arc<ManualClock>) -> DistributorOptions {
    let clock: Arc<ManualClock> = Arc::clone(clock);
    DistributorOptions::new(PoolId(0xabc), policy.parse().expect("a policy"), clock)
}

impl Pool {
    pub fn new(policy: &str, targets: usize) -> Self {
        Self::with(policy, targets, |_| {})
    }

    pub fn with(policy: &str, targets: usize, change: impl FnOnce(&mut DistributorOptions)) -> Self {
        Self::seeded(policy, targets, 0, change)
    }

    /// The seed decides what chance does on each target.
    pub fn seeded(policy: &str, targets: usize, seed: u64, change: impl FnOnce(&mut DistributorOptions)) -> Self {
        let fuse = Arc::new(Fuse::default());
        let stores: Vec<FlakyStore> = (0..targets)
            .map(|n| FlakyStore::with_fuse(Arc::new(MemoryStore::new()), seed * 1000 + n as u64, Arc::clone(&fuse)))
            .collect();
        let clock = Arc::new(ManualClock::default());
        let mut options = options(policy, &clock);
        change(&mut options);
        let distributor = over(&stores, options);
        Self { stores, fuse, clock, distributor }
    }

    /// Another distributor over the same targets, as after a restart: it knows nothing.
    pub fn restarted(&self) -> Distributor {
        over(&self.stores, self.distributor.options().clone())
    }

    /// What lies on target `at`, past all faults.
    pub async fn names_on(&self, at: usize) -> Vec<Path> {
        let metas: Vec<ObjectMeta> = self.stores[at].inner().list(None).try_collect().await.expect("a listing");
        metas.into_iter().map(|meta| meta.location).collect()
    }

    pub async fn fragment_count(&self) -> usize {
        let mut count = 0;
        for at in 0..self.stores.len() {
            count += self.names_on(at).await.len();
        }
        count
    }

    /// Changes an object of a target behind everybody's back.
    pub async fn tamper(&self, at: usize, name: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let store = self.stores[at].inner();
        let mut bytes = store.get(name).await.expect("there").bytes().await.expect("reads").to_vec();
        change(&mut bytes);
        store.put(name, PutPayload::from(bytes)).await.expect("put");
    }

    pub fn heal(&self) {
        self.fuse.set(None);
        for (n, store) in self.stores.iter().enumerate() {
            store.set_down(false);
            store.set_full(false);
            store.set_slow(None);
            store.set_toxics(lamina_stores::Toxics::default());
            // Whatever was set aside is taken back at once.
            self.distributor.set_target(TargetId(n as u128 + 1), Some(Arc::new(store.clone())));
        }
    }
}

pub fn over(stores: &[FlakyStore], options: DistributorOptions) -> Distributor {
    let targets = stores
        .iter()
        .enumerate()
        .map(|(n, store)| Target {
            id: TargetId(n as u128 + 1),
            store: Some(Arc::new(store.clone())),
            domain: FailureDomain { node: "node".into(), rack: String::new() },
            weight: 1000,
        })
        .collect();
    Distributor::new(options, targets).expect("a distributor")
}

pub async fn read(store: &dyn ObjectStore, key: &Path) -> object_store::Result<Bytes> {
    store.get(key).await?.bytes().await
}

/// Every set of at most `size` of `0..of`, as bits.
pub fn small_sets(of: usize, size: u32) -> impl Iterator<Item = Vec<usize>> {
    (0_u32..1 << of)
        .filter(move |bits| bits.count_ones() <= size)
        .map(move |bits| (0..of).filter(|at| bits >> at & 1 == 1).collect())
}

/// Short patience, for tests on real time.
pub fn hasty(options: &mut DistributorOptions) {
    options.grace = Duration::from_millis(20);
    options.hedge_after = Duration::from_millis(20);
    options.read_timeout = Duration::from_millis(500);
    options.write_timeout = Duration::from_millis(500);
}
