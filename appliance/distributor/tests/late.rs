//! Fragments that come after their put was acknowledged: what they may hold, and what a target that hangs gets.

mod pool;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lamina_distributor::TargetState;
use lamina_stores::conformance::sample;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use pool::{Pool, read};
use tokio::time::Instant;

const OBJECT: usize = 1 << 20;
const LATE: usize = 8 << 20;
const STALL: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);

/// Bytes that count how many of their kind are alive.
struct Counted {
    bytes: Bytes,
    alive: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.bytes.len(), Ordering::SeqCst);
    }
}

fn counted(seed: u64, alive: &Arc<AtomicUsize>) -> Bytes {
    alive.fetch_add(OBJECT, Ordering::SeqCst);
    Bytes::from_owner(Counted { bytes: sample(seed, OBJECT), alive: Arc::clone(alive) })
}

fn pool() -> Pool {
    Pool::with("4+2", 6, |options| {
        options.late_bytes = LATE;
        options.stall_timeout = STALL;
    })
}

fn key(n: u64) -> Path {
    Path::from(format!("v/sco/{n}"))
}

#[tokio::test(start_paused = true)]
async fn a_target_that_hangs_holds_a_bounded_number_of_bytes_and_puts_go_on() {
    let pool = pool();
    pool.stores[2].set_slow_changes(Some(HOUR));
    let alive = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let mut most = 0;
    for n in 0..200 {
        pool.distributor.put(&key(n), counted(n, &alive).into()).await.expect("five of six are enough");
        most = most.max(alive.load(Ordering::SeqCst));
    }
    let took = begun.elapsed();
    assert!(most <= LATE + 2 * OBJECT, "{} MiB are held for a target that hangs", most >> 20);
    assert!(took >= STALL && took < 3 * STALL, "200 puts took {took:?}");
    let health = pool.distributor.health();
    assert_eq!(health[2].state, TargetState::SetAside, "{:?}", health[2]);
    assert!(health.iter().enumerate().all(|(at, health)| at == 2 || health.state == TargetState::Active));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_hangs_for_ever_does_not_gather_probes() {
    let pool = pool();
    pool.stores[2].set_slow_changes(Some(1000 * HOUR));
    let alive = Arc::new(AtomicUsize::new(0));
    for n in 0..500 {
        pool.distributor.put(&key(n), counted(n, &alive).into()).await.expect("put");
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    let held = alive.load(Ordering::SeqCst);
    assert!(held <= LATE + 2 * OBJECT, "{} MiB after eight hours", held >> 20);
    // It comes back: what hung ends, and it is used again.
    pool.stores[2].set_slow_changes(None);
    tokio::time::sleep(1000 * HOUR).await;
    for n in 1000..1010 {
        pool.distributor.put(&key(n), sample(n, OBJECT).into()).await.expect("put");
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(pool.distributor.health()[2].state, TargetState::Active);
    assert_eq!(alive.load(Ordering::SeqCst), 0, "nothing is held any more");
}

#[tokio::test(start_paused = true)]
async fn a_slow_target_slows_puts_down_and_is_not_given_up() {
    let pool = pool();
    // Slower than the grace, quicker than the stall: every put of this writer would leave another megabyte behind.
    pool.stores[2].set_slow_changes(Some(Duration::from_secs(4)));
    let alive = Arc::new(AtomicUsize::new(0));
    let mut most = 0;
    for n in 0..100 {
        pool.distributor.put(&key(n), counted(n, &alive).into()).await.expect("put");
        most = most.max(alive.load(Ordering::SeqCst));
    }
    assert!(most <= LATE + 2 * OBJECT, "{} MiB are held for a slow target", most >> 20);
    assert_eq!(pool.distributor.health()[2].state, TargetState::Active, "slow is not failed");
    pool.distributor.quiesce().await;
    assert_eq!(pool.distributor.stats().degraded_writes, 0, "all six fragments were written");
    for n in 0..100 {
        assert_eq!(read(&pool.restarted(), &key(n)).await.expect("reads"), sample(n, OBJECT));
    }
}

#[tokio::test(start_paused = true)]
async fn reads_that_work_do_not_take_back_a_target_whose_writes_hang() {
    let pool = Arc::new(pool());
    let alive = Arc::new(AtomicUsize::new(0));
    let seen = key(10_000);
    pool.distributor.put(&seen, sample(1, OBJECT).into()).await.expect("put");
    // Two others lost theirs: what is on the target is needed, and asked for as the last resort.
    for at in [0, 1] {
        let name = pool.names_on(at).await.into_iter().find(|name| name.prefix_matches(&seen)).expect("a fragment");
        pool.stores[at].inner().delete(&name).await.expect("deleted");
    }
    pool.stores[2].set_slow_changes(Some(HOUR));
    let reader = tokio::spawn({
        let (pool, seen) = (Arc::clone(&pool), seen.clone());
        async move {
            loop {
                read(&pool.distributor, &seen).await.expect("reads");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    let begun = Instant::now();
    let mut most = 0;
    let pause = Duration::from_millis(50);
    for n in 0..400 {
        pool.distributor.put(&key(n), counted(n, &alive).into()).await.expect("put");
        most = most.max(alive.load(Ordering::SeqCst));
        tokio::time::sleep(pause).await;
    }
    assert!(!reader.is_finished(), "it reads on");
    reader.abort();
    assert!(most <= LATE + 2 * OBJECT, "{} MiB are held for a target that hangs", most >> 20);
    assert!(begun.elapsed() < 400 * pause + 3 * STALL, "400 puts took {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn when_everything_stalls_nobody_is_blamed() {
    let pool = pool();
    let alive = Arc::new(AtomicUsize::new(0));
    let put = |n: u64| {
        let (distributor, bytes) = (pool.distributor.clone(), counted(n, &alive));
        tokio::spawn(async move { distributor.put(&key(n), bytes.into()).await })
    };
    // One is late when the others stop, for less than the time after which a write has failed.
    pool.stores[5].set_slow_changes(Some(Duration::from_secs(24)));
    let mut puts: Vec<_> = (0..16).map(put).collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    pool.stores[..5].iter().for_each(|store| store.set_slow_changes(Some(Duration::from_secs(20))));
    puts.extend((16..24).map(put));
    for put in puts {
        put.await.expect("no panic").expect("put");
    }
    assert!(pool.distributor.health().iter().all(|health| health.state == TargetState::Active), "{:?}", pool.distributor.health());
    pool.distributor.quiesce().await;
    assert_eq!(pool.distributor.stats().degraded_writes, 0);
}
