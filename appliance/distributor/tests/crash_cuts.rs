//! Puts, overwrites and deletes cut short after every single change to any target: the object is old, new or (where it was new) nothing,
//! never a mixture, and what a caller was told stays true.

mod pool;

use bytes::Bytes;
use lamina_distributor::Distributor;
use lamina_stores::Toxics;
use lamina_stores::conformance::sample;
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt, PutPayload};
use pool::{Pool, hasty, read};
use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, proptest};
use proptest::test_runner::TestCaseError;

/// A pool whose operations take random times, so that each seed orders the changes of the targets in another way.
fn shuffled(seed: u64) -> Pool {
    let pool = Pool::seeded("4+2", 6, seed, |_| {});
    let delay = std::time::Duration::from_millis(1);
    pool.stores.iter().for_each(|store| store.set_toxics(Toxics { slow: 0.5, delay, ..Toxics::default() }));
    pool
}

/// What is there: `None` for nothing.
async fn look(store: &Distributor, key: &Path) -> Result<Option<Bytes>, Error> {
    match read(store, key).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[tokio::test(start_paused = true)]
async fn an_overwrite_cut_anywhere_leaves_the_old_or_the_new_object() {
    for (len, total) in [(3000, 6), (200_000, 12)] {
        let (old, new) = (sample(1, len), sample(2, len + 1000));
        let (mut kept, mut replaced) = (0, 0);
        // An overwrite makes one write and one delete for each fragment; with one change more it is whole.
        for changes in 0..=total {
            for seed in 0..12 {
                let pool = shuffled(seed);
                let key = Path::from("k");
                pool.distributor.put(&key, old.clone().into()).await.expect("put");
                pool.distributor.quiesce().await;
                pool.fuse.set(Some(changes));
                let told = pool.distributor.put(&key, new.clone().into()).await;
                pool.distributor.quiesce().await;
                assert_eq!(pool.fuse.is_blown(), changes < total, "{changes}: the cut was reached");
                pool.heal();
                let after = pool.restarted();
                let found = look(&after, &key).await.expect("readable").expect("never nothing");
                assert!(found == old || found == new, "{changes} changes: a mixture");
                assert!(told.is_err() || found == new, "{changes} changes: an acknowledged put is lost");
                kept += u32::from(found == old);
                replaced += u32::from(found == new);
                let report = after.repair(&()).await.expect("repaired");
                assert_eq!((report.still_short, report.unreadable_count), (0, 0), "{changes}: {report:?}");
                assert_eq!(look(&after, &key).await.expect("readable"), Some(found), "{changes}: repair changes nothing");
                let fragments = if len < 65_536 { 3 } else { 6 };
                assert_eq!(pool.fragment_count().await, fragments, "{changes}: one whole stripe and nothing else");
            }
        }
        assert!(kept >= 12 && replaced > 30, "both outcomes were seen: {kept} and {replaced}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_put_cut_anywhere_is_whole_or_no_object() {
    for (len, total) in [(3000, 3), (200_000, 6)] {
        let new = sample(2, len);
        for changes in 0..=total {
            for seed in 0..8 {
                let pool = shuffled(seed);
                let key = Path::from("k");
                pool.fuse.set(Some(changes));
                let told = pool.distributor.put(&key, new.clone().into()).await;
                pool.distributor.quiesce().await;
                pool.heal();
                let after = pool.restarted();
                match look(&after, &key).await {
                    Ok(Some(found)) => assert_eq!(found, new, "{changes}"),
                    // Nothing, or a remainder that is said to be one; either way it was not acknowledged.
                    Ok(None) | Err(_) => assert!(told.is_err(), "{changes}: an acknowledged put is lost"),
                }
                // The writer tries again.
                after.put(&key, new.clone().into()).await.expect("put");
                assert_eq!(look(&after, &key).await.expect("readable"), Some(new.clone()));
                after.quiesce().await;
                assert_eq!(pool.fragment_count().await, total as usize, "{changes}: the remainder is gone");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_cut_anywhere_leaves_the_object_or_nothing() {
    for len in [3000, 200_000] {
        for changes in 0..=7_u64 {
            for seed in 0..8 {
                let pool = shuffled(seed);
                let key = Path::from("k");
                let bytes = sample(1, len);
                pool.distributor.put(&key, bytes.clone().into()).await.expect("put");
                pool.distributor.quiesce().await;
                pool.fuse.set(Some(changes));
                let told = pool.distributor.delete(&key).await;
                pool.heal();
                let after = pool.restarted();
                match look(&after, &key).await {
                    Ok(Some(found)) => {
                        assert_eq!(found, bytes, "{changes}");
                        assert!(told.is_err(), "{changes}: a deleted object is back");
                    }
                    Ok(None) => {}
                    // Half of it deleted, and nobody was told that it is.
                    Err(error) => assert!(told.is_err(), "{changes}: {error}"),
                }
                after.delete(&key).await.expect("deleted");
                assert_eq!(look(&after, &key).await.expect("readable"), None);
                assert_eq!(pool.fragment_count().await, 0, "{changes}");
            }
        }
    }
}

#[tokio::test]
async fn readers_beside_an_overwrite_see_one_object_or_the_other() {
    let pool = Pool::new("4+2", 6);
    let key = Path::from("k");
    let versions: Vec<Bytes> = (0..4).map(|n| sample(n, 150_000 + n as usize * 70_001)).collect();
    pool.distributor.put(&key, versions[0].clone().into()).await.expect("put");
    let writer = async {
        for round in 1..40_usize {
            pool.distributor.put(&key, versions[round % 4].clone().into()).await.expect("put");
        }
    };
    let reader = async |store: Distributor| {
        for _ in 0..200 {
            let found = read(&store, &key).await.expect("never nothing");
            assert!(versions.contains(&found), "a mixture of {} bytes", found.len());
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(writer, reader(pool.distributor.clone()), reader(pool.distributor.clone()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_deletes_and_repair_at_once_lose_nothing() {
    let pool = Pool::with("4+2", 7, hasty);
    let key_of = |writer: u64, n: u64| Path::from(format!("w{writer}/{n}"));
    let writers = (0..4_u64).map(|writer| {
        let (store, key_of) = (pool.distributor.clone(), &key_of);
        async move {
            for round in 0..12_u64 {
                for n in 0..4 {
                    let bytes = sample(writer * 1000 + round * 10 + n, 1000 + 50_000 * n as usize);
                    store.put(&key_of(writer, n), bytes.clone().into()).await.expect("put");
                    assert_eq!(read(&store, &key_of(writer, n)).await.expect("reads"), bytes);
                }
                store.delete(&key_of(writer, round % 4)).await.expect("deleted");
                assert!(matches!(look(&store, &key_of(writer, round % 4)).await, Ok(None)));
            }
        }
    });
    let repairs = async {
        for _ in 0..30 {
            pool.distributor.repair(&()).await.expect("repaired");
        }
    };
    tokio::join!(futures::future::join_all(writers), repairs);
    pool.distributor.quiesce().await;
    pool.distributor.repair(&()).await.expect("repaired");
    let after = pool.restarted();
    for writer in 0..4 {
        for n in 0..4 {
            let expected = if n == 3 { None } else { Some(sample(writer * 1000 + 110 + n, 1000 + 50_000 * n as usize)) };
            assert_eq!(look(&after, &key_of(writer, n)).await.expect("readable"), expected, "w{writer}/{n}");
        }
    }
}

/// Random objects under random policies, random losses within P, random ranges: always the model's bytes.
fn scenario() -> impl Strategy<Value = Scenario> {
    (1_usize..8, 0_usize..4, 0_usize..400_000, any::<u64>()).prop_flat_map(|(x, p, len, seed)| {
        let losses = prop::collection::vec(0..x + p, 0..=p);
        let ranges = prop::collection::vec((0..=len, 0..=len), 1..8);
        (losses, ranges, any::<bool>()).prop_map(move |(losses, ranges, warm)| Scenario { x, p, len, seed, losses, ranges, warm })
    })
}

#[derive(Debug)]
struct Scenario {
    x: usize,
    p: usize,
    len: usize,
    seed: u64,
    losses: Vec<usize>,
    ranges: Vec<(usize, usize)>,
    warm: bool,
}

async fn play(scenario: Scenario) -> Result<(), TestCaseError> {
    let Scenario { x, p, len, seed, losses, ranges, warm } = scenario;
    let pool = Pool::with(&format!("{x}+{p}"), x + p, hasty);
    let key = Path::from("deep/er/key");
    let model = sample(seed, len);
    // In pieces, as an engine would give it.
    let payload: PutPayload = model.chunks(1 + seed as usize % 100_000).map(Bytes::copy_from_slice).collect();
    pool.distributor.put(&key, payload).await.expect("put");
    pool.distributor.quiesce().await;
    for (n, at) in losses.iter().enumerate() {
        // Gone, dead or damaged.
        match (seed as usize + n) % 3 {
            0 => pool.stores[*at].set_down(true),
            1 => pool.stores[*at].set_toxics(Toxics { wrong: 1.0, ..Toxics::default() }),
            _ => pool.stores[*at].set_toxics(Toxics { truncated: 1.0, ..Toxics::default() }),
        }
    }
    let store = if warm { pool.distributor.clone() } else { pool.restarted() };
    prop_assert_eq!(&read(&store, &key).await.expect("reads"), &model);
    prop_assert_eq!(store.head(&key).await.expect("a head").size, len as u64);
    let ranges: Vec<std::ops::Range<u64>> =
        ranges.into_iter().map(|(a, b)| a.min(b) as u64..a.max(b) as u64).filter(|range| range.start < range.end).collect();
    for range in &ranges {
        let expected = model.slice(range.start as usize..range.end as usize);
        prop_assert_eq!(&store.get_range(&key, range.clone()).await.expect("reads"), &expected, "{:?}", range);
    }
    let all = object_store::ObjectStore::get_ranges(&store, &key, &ranges).await.expect("reads");
    prop_assert!(all.iter().zip(&ranges).all(|(got, range)| *got == model.slice(range.start as usize..range.end as usize)));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_range_reads_as_the_model_whatever_is_lost(scenario in scenario()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(play(scenario))?;
    }
}

/// Targets that lie in every way at once, on one seeded history; then they stop lying and everything acknowledged must be right.
#[tokio::test(start_paused = true)]
async fn a_storm_of_lies_loses_no_acknowledged_object() {
    for seed in 0..12_u64 {
        let pool = Pool::new("4+2", 8);
        // Lies that lose or change bytes on two targets at most; the others only fail and dawdle.
        for (at, store) in pool.stores.iter().enumerate() {
            let lies = if at < 2 { 0.2 } else { 0.0 };
            store.set_toxics(Toxics {
                error: 0.05,
                error_after: 0.05,
                slow: 0.1,
                delay: std::time::Duration::from_millis(50 * (seed + 1)),
                truncated: lies,
                wrong: lies,
                lost: lies,
                stale: lies,
            });
        }
        let mut model: std::collections::BTreeMap<Path, Vec<Option<Bytes>>> = std::collections::BTreeMap::new();
        for step in 0..120_u64 {
            let random = (seed * 1_000_003 + step).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            let key = Path::from(format!("k{}", random % 9));
            let possible = model.entry(key.clone()).or_insert_with(|| vec![None]);
            match random / 9 % 5 {
                0..=2 => {
                    let bytes = sample(step + seed * 1000, 500 + (random / 64 % 4) as usize * 60_000);
                    match pool.distributor.put(&key, bytes.clone().into()).await {
                        Ok(_) => *possible = vec![Some(bytes)],
                        Err(_) => possible.push(Some(bytes)),
                    }
                }
                3 => match pool.distributor.delete(&key).await {
                    Ok(()) => *possible = vec![None],
                    Err(_) => possible.push(None),
                },
                _ => {
                    // What it says may be an error; bytes it gives must be right.
                    if let Ok(found) = look(&pool.distributor, &key).await {
                        assert!(possible.contains(&found), "seed {seed} step {step}: {key} has bytes that were never put");
                    }
                }
            }
        }
        pool.distributor.quiesce().await;
        pool.heal();
        let after = pool.restarted();
        after.audit(&()).await.expect("audited");
        after.repair(&()).await.expect("repaired");
        for (key, possible) in &model {
            match look(&after, key).await {
                Ok(found) => assert!(possible.contains(&found), "seed {seed}: {key}"),
                // Unreadable only where no outcome was ever told.
                Err(error) => assert!(possible.len() > 1, "seed {seed}: {key}: {error}"),
            }
        }
    }
}
