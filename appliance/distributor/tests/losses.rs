//! What a pool bears: targets lost, fragments damaged, swapped and stale; and what it says when it is too much.

mod pool;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::TryStreamExt;
use lamina_distributor::{DistributorError, TargetFault, TargetId, TargetState};
use lamina_stores::conformance::{conformance, sample};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use pool::{Pool, hasty, read, small_sets};

async fn keys(store: &dyn ObjectStore) -> Vec<String> {
    let mut keys: Vec<String> = store.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.expect("a listing");
    keys.sort();
    keys
}

fn is_not_found<T>(result: &object_store::Result<T>) -> bool {
    matches!(result, Err(Error::NotFound { .. }))
}

fn cause(error: &Error) -> &DistributorError {
    match error {
        Error::Generic { source, .. } => source.downcast_ref().expect("a distributor's error"),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn the_distributor_conforms() {
    for (policy, targets) in [("4+2", 6), ("4+2", 9), ("2+0", 3), ("1+2", 3), ("11+7", 18)] {
        let pool = Pool::new(policy, targets);
        conformance(&pool.distributor).await;
        pool.distributor.quiesce().await;
        assert_eq!(pool.fragment_count().await, 0, "{policy}: nothing stays on the targets");
    }
}

#[tokio::test(start_paused = true)]
async fn the_distributor_conforms_without_p_of_its_targets() {
    let pool = Pool::new("4+2", 6);
    // With write_min X + 1 one of six may be away for writes.
    pool.stores[3].set_down(true);
    conformance(&pool.distributor).await;
    assert!(pool.distributor.stats().degraded_reads > 0 && pool.distributor.stats().degraded_writes > 0);
}

#[tokio::test(start_paused = true)]
async fn any_p_targets_may_fail_under_every_operation() {
    let (small, large) = (sample(1, 5000), sample(2, 300_000));
    for lost in small_sets(6, 2) {
        let pool = Pool::new("4+2", 6);
        let store = &pool.distributor;
        for (key, bytes) in [("a/small", &small), ("a/large", &large), ("a/gone-small", &small), ("a/gone-large", &large)] {
            store.put(&Path::from(key), bytes.clone().into()).await.expect("put");
        }
        store.quiesce().await;
        for fresh in [false, true] {
            let store = &if fresh { pool.restarted() } else { store.clone() };
            lost.iter().for_each(|&at| pool.stores[at].set_down(true));
            assert_eq!(read(store, &"a/small".into()).await.expect("reads"), small, "{lost:?}");
            assert_eq!(read(store, &"a/large".into()).await.expect("reads"), large, "{lost:?}");
            assert_eq!(store.get_range(&"a/large".into(), 70_000..220_000).await.expect("reads"), large.slice(70_000..220_000));
            assert!(is_not_found(&store.get(&"a/never".into()).await), "{lost:?}: what never was is not found");
            let expected: &[&str] =
                if fresh { &["a/large", "a/small"] } else { &["a/gone-large", "a/gone-small", "a/large", "a/small"] };
            assert_eq!(keys(store).await, expected, "{lost:?}");
            for key in ["a/gone-small", "a/gone-large"] {
                store.delete(&key.into()).await.expect("deleted");
                assert!(is_not_found(&store.get(&key.into()).await), "{lost:?}: {key}");
            }
        }
        // A put needs X + 1.
        let put = store.put(&"a/new".into(), large.clone().into()).await;
        assert_eq!(put.is_ok(), lost.len() <= 1, "{lost:?}: {put:?}");
        store.put(&"a/new-small".into(), small.clone().into()).await.expect("copies find three others");
        store.quiesce().await;
        // The lost ones come back with everything they had: what was deleted stays so.
        pool.heal();
        let after = pool.restarted();
        let mut expected = vec!["a/large", "a/new-small", "a/small"];
        if put.is_ok() {
            expected.insert(1, "a/new");
        }
        assert_eq!(keys(&after).await, expected, "{lost:?}");
        for key in ["a/gone-small", "a/gone-large"] {
            assert!(is_not_found(&after.get(&key.into()).await), "{lost:?}: {key} came back");
        }
        // And repair clears up: six fragments each, three copies, no marks.
        let report = after.repair(&()).await.expect("repaired");
        assert_eq!((report.still_short, report.unreadable_count), (0, 0), "{lost:?}: {report:?}");
        let again = after.repair(&()).await.expect("repaired");
        assert_eq!((again.short, again.repaired_fragments), (0, 0), "{lost:?}: nothing is left to do: {again:?}");
        let fragments = 6 + 3 + 3 + if put.is_ok() { 6 } else { 0 };
        assert_eq!(pool.fragment_count().await, fragments, "{lost:?}");
    }
}

#[tokio::test]
async fn more_than_p_lost_is_an_error_that_names_them() {
    let pool = Pool::new("4+2", 6);
    let key = Path::from("k");
    pool.distributor.put(&key, sample(1, 300_000).into()).await.expect("put");
    for at in 0..3 {
        let name = pool.names_on(at).await.remove(0);
        pool.stores[at].inner().delete(&name).await.expect("deleted");
    }
    for store in [pool.distributor.clone(), pool.restarted()] {
        let error = read(&store, &key).await.expect_err("three of six are gone");
        match cause(&error) {
            DistributorError::Unreadable { have: 3, need: 4, lost, .. } => assert_eq!(lost.len(), 3),
            other => panic!("{other}"),
        }
        assert!(store.head(&key).await.is_err(), "not \"not found\" either");
    }
    let report = pool.restarted().repair(&()).await.expect("runs");
    assert_eq!((report.unreadable_count, report.unreadable), (1, vec![key]));
}

#[tokio::test]
async fn too_many_targets_away_is_not_called_not_found() {
    let pool = Pool::new("4+2", 6);
    (0..3).for_each(|at| pool.stores[at].set_down(true));
    let error = pool.distributor.get(&"k".into()).await.expect_err("unknown");
    assert!(matches!(cause(&error), DistributorError::Unknown { unknown: 3 }), "{error}");
    assert!(pool.distributor.list(None).try_collect::<Vec<_>>().await.is_err(), "nor is a listing whole");
}

/// Flips every byte of one fragment in turn; every read still gives the right bytes.
#[tokio::test]
async fn no_flipped_byte_of_a_small_object_reaches_the_reader() {
    let pool = Pool::new("4+2", 6);
    let key = Path::from("small");
    let bytes = sample(1, 3000);
    pool.distributor.put(&key, bytes.clone().into()).await.expect("put");
    let at = holder_of(&pool, 0).await;
    let name = pool.names_on(at).await.remove(0);
    let whole = pool.stores[at].inner().get(&name).await.expect("there").bytes().await.expect("reads");
    assert_eq!(whole.len(), 8192, "a header and a page");
    for position in 0..whole.len() {
        let mut changed = whole.to_vec();
        changed[position] ^= 1 << (position % 8);
        pool.stores[at].inner().put(&name, changed.into()).await.expect("put");
        let store = pool.restarted();
        assert_eq!(read(&store, &key).await.expect("reads"), bytes, "byte {position}");
        assert_eq!(store.stats().degraded_reads, 1, "byte {position} was noticed");
    }
}

/// The position of the target that holds fragment `index` of the only object.
async fn holder_of(pool: &Pool, index: usize) -> usize {
    for at in 0..pool.stores.len() {
        let names = pool.names_on(at).await;
        if names.iter().any(|name| name.as_ref().split('.').nth(3) == Some(&format!("{index:x}"))) {
            return at;
        }
    }
    panic!("fragment {index} is nowhere");
}

#[tokio::test]
async fn no_flipped_byte_of_a_large_object_reaches_the_reader() {
    let pool = Pool::new("4+2", 6);
    let key = Path::from("large");
    let bytes = sample(2, 1 << 20);
    pool.distributor.put(&key, bytes.clone().into()).await.expect("put");
    // Two fragments damaged at once, data and parity in turn.
    for round in 0..60_usize {
        let pair = [round % 6, (round + 1 + round / 6 % 5) % 6];
        let mut before = Vec::new();
        for at in pair {
            let name = pool.names_on(at).await.remove(0);
            before.push((at, name.clone(), pool.stores[at].inner().get(&name).await.expect("there").bytes().await.expect("reads")));
            pool.tamper(at, &name, |fragment| {
                let position = (round * 7919 + at * 104_729) * 31 % fragment.len();
                fragment[position] ^= 0x40;
            })
            .await;
        }
        let store = pool.restarted();
        assert_eq!(read(&store, &key).await.expect("reads"), bytes, "round {round}");
        let from = (round as u64 * 17_389) % 900_000;
        let range = store.get_range(&key, from..from + 100_000).await.expect("reads");
        assert_eq!(range, bytes.slice(from as usize..from as usize + 100_000), "round {round}");
        for (at, name, whole) in before {
            pool.stores[at].inner().put(&name, whole.into()).await.expect("put");
        }
    }
}

#[tokio::test]
async fn fragments_of_others_cut_short_or_swapped_are_never_used() {
    let pool = Pool::new("4+2", 6);
    let (key, other) = (Path::from("one"), Path::from("two"));
    let (bytes, others) = (sample(1, 200_000), sample(2, 200_000));
    pool.distributor.put(&key, bytes.clone().into()).await.expect("put");
    pool.distributor.put(&other, others.clone().into()).await.expect("put");
    let inner = |at: usize| pool.stores[at].inner();
    let name_of = async |at: usize, key: &Path| {
        pool.names_on(at).await.into_iter().find(|name| name.as_ref().starts_with(key.as_ref())).expect("a fragment")
    };
    // Another object's fragment under this one's name; the fragment of another index under this name.
    let (mine, theirs) = (name_of(0, &key).await, name_of(0, &other).await);
    let foreign = inner(0).get(&theirs).await.expect("there").bytes().await.expect("reads");
    inner(0).put(&mine, foreign.into()).await.expect("put");
    let misplaced = inner(2).get(&name_of(2, &key).await).await.expect("there").bytes().await.expect("reads");
    inner(1).put(&name_of(1, &key).await, misplaced.into()).await.expect("put");
    assert_eq!(read(&pool.restarted(), &key).await.expect("reads"), bytes);
    // Cut at any place, empty too.
    for len in [0, 1, 4095, 4096, 5000, 20_000] {
        pool.tamper(3, &name_of(3, &other).await, |fragment| fragment.truncate(len)).await;
        assert_eq!(read(&pool.restarted(), &other).await.expect("reads"), others, "cut to {len}");
    }
}

#[tokio::test]
async fn a_healthy_range_read_touches_one_fragment() {
    let pool = Pool::new("4+2", 6);
    let key = Path::from("k");
    let bytes = sample(1, 4 << 20);
    pool.distributor.put(&key, bytes.clone().into()).await.expect("put");
    let before: Vec<u64> = pool.stores.iter().map(|store| store.operations()).collect();
    let got = pool.distributor.get_range(&key, 1_500_000..1_504_096).await.expect("reads");
    assert_eq!(got, bytes.slice(1_500_000..1_504_096));
    let asked: u64 = pool.stores.iter().zip(&before).map(|(store, before)| store.operations() - before).sum();
    assert_eq!(asked, 1, "one request to one target");
    let read: u64 = pool.distributor.health().iter().map(|target| target.bytes_read).sum();
    assert_eq!(read, 8192, "two pages, for the range crosses one boundary");
}

#[tokio::test]
async fn audit_finds_what_rots_and_repair_makes_it_again() {
    let pool = Pool::new("4+2", 6);
    let objects: Vec<(Path, Bytes)> =
        (0..6_u64).map(|n| (Path::from(format!("o/{n}")), sample(n, 20_000 + 60_000 * n as usize))).collect();
    for (key, bytes) in &objects {
        pool.distributor.put(key, bytes.clone().into()).await.expect("put");
    }
    let before = pool.fragment_count().await;
    let clean = pool.distributor.audit(&()).await.expect("audited");
    assert_eq!((clean.objects, clean.good_fragments, clean.damaged_count, clean.missing_fragments), (6, before as u64, 0, 0));
    let (rotten, missing) = (pool.names_on(0).await, pool.names_on(1).await);
    for name in &rotten {
        pool.tamper(0, name, |fragment| *fragment.last_mut().expect("bytes") ^= 1).await;
    }
    for name in &missing {
        pool.stores[1].inner().delete(name).await.expect("deleted");
    }
    let store = pool.restarted();
    let found = store.audit(&()).await.expect("audited");
    assert_eq!((found.damaged_count, found.missing_fragments), (rotten.len() as u64, missing.len() as u64));
    assert!(found.damaged.iter().all(|damaged| damaged.target == TargetId(1)));
    let report = store.repair(&()).await.expect("repaired");
    assert_eq!(report.repaired_fragments, (rotten.len() + missing.len()) as u64, "{report:?}");
    let clean = store.audit(&()).await.expect("audited");
    assert_eq!((clean.good_fragments, clean.damaged_count, clean.missing_fragments), (before as u64, 0, 0));
    assert_eq!(store.stats().awaiting_repair, 0);
    for (key, bytes) in &objects {
        assert_eq!(read(&store, key).await.expect("reads"), *bytes);
    }
}

#[tokio::test]
async fn repair_takes_the_objects_nearest_to_loss_first() {
    use std::ops::ControlFlow;

    struct StopAtOnce;
    impl lamina_distributor::RepairProgress for StopAtOnce {
        fn report(&self, status: lamina_distributor::RepairStatus) -> ControlFlow<()> {
            assert_eq!((status.done, status.total), (1, 2));
            ControlFlow::Break(())
        }
    }
    let pool = Pool::new("4+2", 6);
    for key in ["a-hurt", "b-dying"] {
        pool.distributor.put(&key.into(), sample(1, 100_000).into()).await.expect("put");
    }
    for (key, losses) in [("a-hurt", 1), ("b-dying", 2)] {
        for at in 0..losses {
            let name = pool.names_on(at).await.into_iter().find(|name| name.as_ref().starts_with(key)).expect("a fragment");
            pool.stores[at].inner().delete(&name).await.expect("deleted");
        }
    }
    let store = pool.restarted();
    let report = store.repair(&StopAtOnce).await.expect("repaired");
    assert!(report.stopped);
    assert_eq!((report.short, report.repaired_fragments), (1, 2), "the one with two losses went first");
    let rest = store.repair(&()).await.expect("repaired");
    assert_eq!((rest.short, rest.repaired_fragments), (1, 1));
}

#[tokio::test]
async fn with_spare_targets_a_lost_one_is_made_up_for() {
    let pool = Pool::new("4+2", 8);
    pool.stores[0].set_down(true);
    pool.stores[1].set_down(true);
    for n in 0..20_u64 {
        pool.distributor.put(&Path::from(format!("k{n}")), sample(n, 100_000).into()).await.expect("put");
    }
    pool.distributor.quiesce().await;
    assert_eq!(pool.fragment_count().await, 120, "six of eight take every fragment");
    assert_eq!(pool.distributor.stats().degraded_writes, 0);
}

#[tokio::test]
async fn a_lost_target_is_rebuilt_onto_a_blank_one() {
    let pool = Pool::new("4+2", 6);
    for n in 0..10_u64 {
        pool.distributor.put(&Path::from(format!("k{n}")), sample(n, 100_000 * (n as usize % 2 + 1)).into()).await.expect("put");
    }
    let lost = pool.names_on(2).await;
    for name in &lost {
        pool.stores[2].inner().delete(name).await.expect("deleted");
    }
    let store = pool.restarted();
    let report = store.repair(&()).await.expect("repaired");
    assert_eq!((report.repaired_fragments, report.still_short), (10, 0));
    let mut rebuilt = pool.names_on(2).await;
    let mut lost = lost;
    rebuilt.sort();
    lost.sort();
    assert_eq!(rebuilt, lost, "the same fragments are there again");
}

#[tokio::test(start_paused = true)]
async fn a_full_target_is_read_but_not_written() {
    let pool = Pool::new("4+2", 6);
    let key = Path::from("k");
    let bytes = sample(1, 100_000);
    pool.distributor.put(&key, bytes.clone().into()).await.expect("put");
    pool.stores[4].set_full(true);
    pool.distributor.put(&"new".into(), bytes.clone().into()).await.expect("put on five");
    pool.distributor.quiesce().await;
    let state = || pool.distributor.health()[4].state;
    assert_eq!(state(), TargetState::Full);
    assert_eq!(read(&pool.distributor, &key).await.expect("reads"), bytes);
    assert_eq!(pool.distributor.stats().degraded_reads, 0, "full is not dead");
    pool.stores[4].set_full(false);
    tokio::time::sleep(Duration::from_secs(6)).await;
    pool.distributor.put(&"newer".into(), bytes.clone().into()).await.expect("put");
    pool.distributor.quiesce().await;
    assert_eq!(state(), TargetState::Active);
    pool.distributor.repair(&()).await.expect("repaired");
    assert_eq!(pool.fragment_count().await, 18);
}

#[tokio::test(start_paused = true)]
async fn a_failed_target_is_left_alone_probed_and_taken_back() {
    let pool = Pool::new("4+2", 6);
    let key = Path::from("k");
    pool.distributor.put(&key, sample(1, 100_000).into()).await.expect("put");
    pool.stores[2].set_down(true);
    let state = || pool.distributor.health()[2].state;
    pool.distributor.put(&"other".into(), sample(1, 100_000).into()).await.expect("put");
    assert_eq!(state(), TargetState::SetAside);
    let before = pool.stores[2].operations();
    for _ in 0..50 {
        read(&pool.distributor, &key).await.expect("reads");
    }
    assert_eq!(pool.stores[2].operations(), before, "it is left alone");
    pool.stores[2].set_down(false);
    tokio::time::sleep(Duration::from_secs(5)).await;
    pool.distributor.repair(&()).await.expect("repaired");
    assert_eq!(state(), TargetState::Active);
    assert_eq!(pool.names_on(2).await.len(), 2);
    let health = &pool.distributor.health()[2];
    assert!(health.errors > 0 && health.last_error.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_slow_target_delays_nobody_for_long() {
    let pool = Pool::new("4+2", 6);
    let key = Path::from("k");
    let bytes = sample(1, 1 << 20);
    pool.distributor.put(&key, bytes.clone().into()).await.expect("put");
    pool.stores[1].set_slow(Some(Duration::from_secs(5)));
    for store in [pool.distributor.clone(), pool.restarted()] {
        let begun = tokio::time::Instant::now();
        assert_eq!(read(&store, &key).await.expect("reads"), bytes);
        assert!(begun.elapsed() <= Duration::from_millis(900), "a read took {:?}", begun.elapsed());
    }
    assert_eq!(pool.distributor.health()[1].state, TargetState::Active, "slow is not failed");
}

#[tokio::test(start_paused = true)]
async fn a_put_waits_for_write_min_and_finishes_behind() {
    let pool = Pool::new("4+2", 6);
    // Only its writes are slow: the lookup before the put is answered.
    let key = Path::from("k");
    pool.distributor.put(&key, sample(1, 100_000).into()).await.expect("put");
    pool.stores[1].set_slow(Some(Duration::from_secs(3)));
    let begun = tokio::time::Instant::now();
    pool.distributor.put(&key, sample(2, 100_000).into()).await.expect("put");
    // The lookup (3 s) asks everybody, the write only waits its grace; the replaced stripe's removal is 3 s again.
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
    pool.distributor.quiesce().await;
    assert_eq!(pool.names_on(1).await.len(), 1, "the slow one got its fragment in the end");
    assert_eq!(pool.distributor.stats().degraded_writes, 0);
    assert_eq!(read(&pool.distributor, &key).await.expect("reads"), sample(2, 100_000));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_ends_after_the_delete_brings_nothing_back() {
    let pool = Pool::with("4+2", 6, hasty);
    let key = Path::from("small");
    // Copies: a single late one would be the whole object again.
    pool.stores.iter().for_each(|store| store.set_slow(Some(Duration::from_millis(100))));
    let slow = 3;
    pool.stores[slow].set_slow(Some(Duration::from_secs(60)));
    for n in 0..8_u64 {
        let key = Path::from(format!("small/{n}"));
        pool.distributor.put(&key, sample(n, 1000).into()).await.expect("put");
        pool.distributor.delete(&key).await.expect("deleted");
    }
    let _ = key;
    pool.stores.iter().for_each(|store| store.set_slow(None));
    tokio::time::sleep(Duration::from_secs(300)).await;
    pool.heal();
    let after = pool.restarted();
    assert!(keys(&after).await.is_empty(), "nothing came back");
    after.repair(&()).await.expect("repaired");
    assert_eq!(pool.fragment_count().await, 0, "and repair leaves nothing, no marks either");
}

#[tokio::test(start_paused = true)]
async fn a_delete_beside_a_write_that_is_still_under_way_leaves_a_mark() {
    // Every target takes a copy, so the slow one does.
    let pool = Pool::with("1+2", 3, |options| options.write_timeout = Duration::from_secs(2));
    let key = Path::from("small");
    pool.distributor.put(&"warm".into(), sample(1, 10).into()).await.expect("put");
    let put = {
        let (store, key) = (pool.distributor.clone(), key.clone());
        tokio::spawn(async move { store.put(&key, sample(1, 1000).into()).await })
    };
    // The lookup is answered at once; the write of the last target gets stuck.
    pool.stores[2].set_slow(Some(Duration::from_secs(1)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    pool.stores[2].set_slow(Some(Duration::from_secs(600)));
    put.await.expect("no panic").expect("two of three took it");
    pool.distributor.quiesce().await;
    // It is asked again and answers, though the write is still under way.
    pool.heal();
    pool.distributor.delete(&key).await.expect("deleted");
    let mut marks = 0;
    for at in 0..3 {
        marks += pool.names_on(at).await.iter().filter(|name| name.as_ref().ends_with(".gone")).count();
    }
    assert_eq!(marks, 3, "a crash now, and the late copy would be the object again");
    tokio::time::sleep(Duration::from_secs(700)).await;
    assert!(is_not_found(&pool.restarted().get(&key).await));
    pool.distributor.repair(&()).await.expect("repaired");
    assert_eq!(pool.fragment_count().await, 3, "only the other object's copies");
}

#[tokio::test]
async fn below_write_min_a_put_fails_and_leaves_nothing() {
    let pool = Pool::with("4+2", 6, hasty);
    let key = Path::from("k");
    // Found out only while writing: the lookup sees everybody.
    pool.stores[0].set_full(true);
    pool.stores[5].set_full(true);
    let error = pool.distributor.put(&key, sample(1, 100_000).into()).await.expect_err("four of six");
    match cause(&error) {
        DistributorError::NotWritten { written: 4, need: 5, lost, .. } => {
            assert!(lost.iter().all(|lost| matches!(lost.fault, TargetFault::Full)));
        }
        other => panic!("{other}"),
    }
    pool.distributor.quiesce().await;
    assert!(is_not_found(&pool.distributor.get(&key).await));
    assert_eq!(pool.fragment_count().await, 0);
    assert_eq!(pool.distributor.stats().failed_writes, 1);
    // And with two known to be full nothing is even tried.
    let changes: u64 = pool.stores.iter().map(|store| store.changes()).sum();
    assert!(pool.distributor.put(&key, sample(1, 100_000).into()).await.is_err());
    assert_eq!(pool.stores.iter().map(|store| store.changes()).sum::<u64>(), changes);
}

#[tokio::test]
async fn a_member_that_is_missing_at_the_start_can_come_later() {
    let pool = Pool::new("4+2", 6);
    let id = TargetId(3);
    assert!(pool.distributor.set_target(id, None));
    assert_eq!(pool.distributor.health()[2].state, TargetState::Missing);
    let bytes = sample(1, 200_000);
    pool.distributor.put(&"k".into(), bytes.clone().into()).await.expect("put on five");
    assert_eq!(read(&pool.distributor, &"k".into()).await.expect("reads"), bytes);
    assert!(pool.distributor.set_target(id, Some(Arc::new(pool.stores[2].clone()))));
    pool.distributor.repair(&()).await.expect("repaired");
    assert_eq!(pool.names_on(2).await.len(), 1);
    assert!(!pool.distributor.set_target(TargetId(99), None));
}

#[tokio::test(start_paused = true)]
async fn a_small_object_is_acknowledged_with_all_its_copies_and_shows_without_any_p_targets() {
    for (slow, down) in [(true, false), (false, true)] {
        let pool = Pool::new("4+2", 6);
        let key = Path::from("small");
        let bytes = sample(1, 1000);
        pool.distributor.put(&key, bytes.clone().into()).await.expect("put");
        let holder = holder_of(&pool, 1).await;
        pool.distributor.delete(&key).await.expect("deleted");
        // One of the three is slow or fails: the put waits for it, or another target takes its copy.
        pool.stores[holder].set_slow(slow.then_some(Duration::from_secs(5)));
        pool.stores[holder].set_down(down);
        pool.distributor.put(&key, bytes.clone().into()).await.expect("put");
        // No quiesce: this is what a crash right after the answer leaves.
        assert_eq!(pool.fragment_count().await, 3, "slow {slow}, down {down}");
        pool.heal();
        for lost in small_sets(6, 2) {
            lost.iter().for_each(|&at| pool.stores[at].set_down(true));
            let store = pool.restarted();
            assert_eq!(read(&store, &key).await.expect("reads"), bytes, "{lost:?}");
            assert_eq!(keys(&store).await, ["small"], "{lost:?}");
            pool.heal();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn copies_on_as_many_targets_as_are_away_are_never_called_absent() {
    let pool = Pool::new("1+2", 3);
    let key = Path::from("small");
    let bytes = sample(1, 1000);
    pool.stores[2].set_down(true);
    pool.distributor.put(&key, bytes.clone().into()).await.expect("two of three");
    pool.distributor.quiesce().await;
    assert_eq!(pool.distributor.stats().degraded_writes, 1);
    pool.heal();
    pool.stores[0].set_down(true);
    pool.stores[1].set_down(true);
    let store = pool.restarted();
    let error = store.get(&key).await.expect_err("both copies are away");
    assert!(matches!(cause(&error), DistributorError::Unknown { unknown: 2 }), "{error}");
    assert!(store.list(None).try_collect::<Vec<_>>().await.is_err(), "nor is it left out");
    assert!(store.delete(&key).await.is_err(), "nor \"deleted\" without a mark");
    assert!(pool.names_on(2).await.is_empty(), "nor marked where that does not suffice");
    let create = store.put_opts(&key, sample(2, 10).into(), object_store::PutMode::Create.into()).await;
    assert!(matches!(create, Err(Error::Generic { .. })), "nor made anew: {create:?}");
    pool.heal();
    assert_eq!(read(&pool.restarted(), &key).await.expect("reads"), bytes);
}

#[tokio::test(start_paused = true)]
async fn a_large_object_that_is_short_while_targets_are_away_is_not_left_out() {
    let pool = Pool::new("4+2", 6);
    let key = Path::from("ns/large");
    pool.distributor.put(&key, sample(1, 300_000).into()).await.expect("put");
    pool.distributor.put(&"other/large".into(), sample(2, 300_000).into()).await.expect("put");
    let name = pool.names_on(0).await.into_iter().find(|name| name.prefix_matches(&key)).expect("a fragment");
    pool.stores[0].inner().delete(&name).await.expect("deleted");
    pool.stores[1].set_down(true);
    pool.stores[2].set_down(true);
    let store = pool.restarted();
    assert!(store.list(None).try_collect::<Vec<_>>().await.is_err(), "three of six are seen, two are away");
    let other = store.list(Some(&"other".into())).try_collect::<Vec<_>>().await.expect("not concerned");
    assert_eq!(other.len(), 1);
    let error = store.get(&key).await.expect_err("short");
    assert!(matches!(error, Error::Generic { .. }), "{error}");
    let create = store.put_opts(&key, sample(2, 10).into(), object_store::PutMode::Create.into()).await;
    assert!(matches!(create, Err(Error::Generic { .. })), "{create:?}");
    pool.heal();
    assert_eq!(keys(&pool.restarted()).await, ["ns/large", "other/large"]);
}

#[tokio::test(start_paused = true)]
async fn an_older_stripe_is_not_read_while_the_rest_of_a_newer_one_may_be_away() {
    // X = 2: what two targets that were away kept of the old object is readable by itself.
    let pool = Pool::new("2+3", 6);
    let key = Path::from("k");
    let (old, new) = (sample(1, 200_000), sample(2, 200_000));
    pool.distributor.put(&key, old.into()).await.expect("put");
    pool.distributor.quiesce().await;
    let mut old_holders = Vec::new();
    for at in 0..6 {
        if !pool.names_on(at).await.is_empty() {
            old_holders.push(at);
        }
    }
    let away = [old_holders[0], old_holders[1]];
    away.iter().for_each(|&at| pool.stores[at].set_down(true));
    pool.distributor.put(&key, new.clone().into()).await.expect("put on four");
    pool.distributor.quiesce().await;
    pool.heal();
    // Three of the four go: one fragment of the new object and two of the old one are seen.
    (0..6).filter(|at| !away.contains(at)).take(3).for_each(|at| pool.stores[at].set_down(true));
    let store = pool.restarted();
    let error = read(&store, &key).await.expect_err("not the old bytes");
    assert!(matches!(cause(&error), DistributorError::Unknown { unknown: 3 }), "{error}");
    assert!(store.list(None).try_collect::<Vec<_>>().await.is_err());
    pool.heal();
    assert_eq!(read(&pool.restarted(), &key).await.expect("reads"), new);
}

#[tokio::test(start_paused = true)]
async fn a_listing_may_take_long_and_sets_no_target_aside() {
    let pool = Pool::new("1+1", 2);
    for n in 0..40_u64 {
        pool.distributor.put(&Path::from(format!("k{n}")), sample(n, 100).into()).await.expect("put");
    }
    pool.stores.iter().for_each(|store| store.set_slow_listing(Some(Duration::from_secs(5))));
    let begun = tokio::time::Instant::now();
    assert_eq!(keys(&pool.distributor).await.len(), 40);
    assert!(begun.elapsed() >= Duration::from_secs(200), "it was slow: {:?}", begun.elapsed());
    // One that stands still is not waited for, and is not said to have failed either.
    pool.stores.iter().for_each(|store| store.set_slow_listing(None));
    pool.stores[0].set_slow(Some(Duration::from_secs(600)));
    let begun = tokio::time::Instant::now();
    assert_eq!(keys(&pool.distributor).await.len(), 40);
    assert!(begun.elapsed() <= Duration::from_secs(60));
    assert!(pool.distributor.health().iter().all(|target| target.state == TargetState::Active));
}

#[tokio::test(start_paused = true)]
async fn a_late_fragment_of_an_object_stays_when_others_are_away_as_it_lands() {
    let pool = Pool::with("4+2", 6, |options| options.write_timeout = Duration::from_secs(2));
    let key = Path::from("large");
    let late = 3;
    pool.stores[late].set_slow(Some(Duration::from_secs(1)));
    let put = {
        let (store, key) = (pool.distributor.clone(), key.clone());
        tokio::spawn(async move { store.put(&key, sample(1, 300_000).into()).await })
    };
    // The lookup is answered after a second; the write then begun takes twenty.
    tokio::time::sleep(Duration::from_millis(500)).await;
    pool.stores[late].set_slow(Some(Duration::from_secs(20)));
    put.await.expect("no panic").expect("five of six");
    pool.distributor.quiesce().await;
    assert!(pool.names_on(late).await.is_empty(), "it is still under way");
    pool.stores[late].set_slow(None);
    [0, 1, 2].iter().for_each(|&at| pool.stores[at].set_down(true));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(pool.names_on(late).await.len(), 1, "with three away nobody can say that it is of no use");
    pool.heal();
    assert_eq!(read(&pool.restarted(), &key).await.expect("reads"), sample(1, 300_000));
}

#[tokio::test(start_paused = true)]
async fn a_full_target_takes_deletes_and_stays_full() {
    let pool = Pool::new("4+2", 6);
    let key = Path::from("old");
    pool.distributor.put(&key, sample(1, 100_000).into()).await.expect("put");
    pool.stores[4].set_full(true);
    pool.distributor.put(&"new".into(), sample(2, 100_000).into()).await.expect("five of six");
    pool.distributor.quiesce().await;
    assert_eq!(pool.distributor.health()[4].state, TargetState::Full);
    pool.distributor.delete(&key).await.expect("deleted");
    assert!(pool.names_on(4).await.is_empty(), "its fragment made room, no mark was needed");
    assert_eq!(pool.fragment_count().await, 5);
    assert_eq!(pool.distributor.health()[4].state, TargetState::Full, "one delete is not room for writes");
}
