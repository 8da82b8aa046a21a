//! A layer of map changes against a plain ordered map.

use std::collections::BTreeMap;
use std::time::Instant;

use lamina_contract::BlockAddress;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::{collection, prop_assert_eq};

use super::{Chunk, Delta, LEAF_BLOCKS};

const LEAF: u64 = LEAF_BLOCKS as u64;

#[derive(Debug, Clone)]
enum Step {
    Set(u64, u32),
    SetRange(u64, u64, u32),
    Remove(u64, u64, u32),
    RemoveExact(u64, u64, u32),
}

fn block() -> impl Strategy<Value = u64> {
    // Borders of leaves are where mistakes live.
    prop_oneof![0..6 * LEAF, (0..6u64, 0..4u64).prop_map(|(leaf, near)| (leaf * LEAF + near).saturating_sub(2))]
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1), 0..20u64, 900..1200u64, Just(LEAF), Just(2 * LEAF), 0..4 * LEAF]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (block(), any::<u32>()).prop_map(|(b, v)| Step::Set(b, v % 100)),
        2 => (block(), count(), any::<u32>()).prop_map(|(b, c, v)| Step::SetRange(b, c, v % 100)),
        2 => (block(), count(), 0..5u32).prop_map(|(b, c, m)| Step::Remove(b, c, m)),
        1 => (block(), count(), 0..100u32).prop_map(|(b, c, v)| Step::RemoveExact(b, c, v)),
    ]
}

fn apply(step: &Step, delta: &mut Delta<u32>, model: &mut BTreeMap<u64, u32>) {
    match *step {
        Step::Set(block, value) => {
            delta.set(BlockAddress(block), value);
            model.insert(block, value);
        }
        Step::SetRange(first, count, value) => {
            delta.set_range(BlockAddress(first), count, value);
            model.extend((first..first + count).map(|block| (block, value)));
        }
        Step::Remove(first, count, modulus) => {
            delta.remove_if(BlockAddress(first), count, |v| v % 5 == modulus);
            model.retain(|block, v| !((first..first + count).contains(block) && *v % 5 == modulus));
        }
        Step::RemoveExact(first, count, value) => {
            delta.remove_if(BlockAddress(first), count, |v| v == value);
            model.retain(|block, v| !((first..first + count).contains(block) && *v == value));
        }
    }
}

fn listed(delta: &Delta<u32>) -> BTreeMap<u64, u32> {
    let mut all = BTreeMap::new();
    let mut last = None;
    for leaf in delta.iter_leaves() {
        assert!(last < Some(leaf.leaf), "leaves ascend");
        last = Some(leaf.leaf);
        assert!(leaf.entries.is_sorted_by_key(|entry| entry.0));
        let first = leaf.leaf.first_block().0;
        all.extend(leaf.base.into_iter().flat_map(|v| (first..first + LEAF).map(move |block| (block, v))));
        all.extend(leaf.entries.iter().map(|&(index, v)| (first + u64::from(index), v)));
    }
    all
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(150))]
    #[test]
    fn a_delta_answers_as_a_btree_map_does(steps in collection::vec(step(), 1..60), dense in any::<bool>()) {
        let (mut delta, mut model) = (Delta::new(), BTreeMap::new());
        if dense {
            for i in 0..LEAF {
                let block = LEAF + (i * 389) % LEAF;
                apply(&Step::Set(block, (i % 100) as u32), &mut delta, &mut model);
            }
        }
        for step in &steps {
            apply(step, &mut delta, &mut model);
            prop_assert_eq!(delta.is_empty(), model.is_empty());
        }
        for block in 0..11 * LEAF {
            prop_assert_eq!(delta.get(BlockAddress(block)), model.get(&block).copied(), "block {}", block);
        }
        prop_assert_eq!(&listed(&delta), &model);
        let mut ranged = BTreeMap::new();
        delta.for_each_in(BlockAddress(500), 7 * LEAF, |first, count, v| {
            ranged.extend((first.0..first.0 + count).map(|block| (block, v)));
        });
        let wanted: BTreeMap<u64, u32> = model.range(500..500 + 7 * LEAF).map(|(b, v)| (*b, *v)).collect();
        prop_assert_eq!(&ranged, &wanted);
        // What is accounted is what is there.
        let heap: usize = delta.leaves.values().map(super::LeafRuns::heap_bytes).sum();
        let len: usize = delta.leaves.values().map(super::LeafRuns::len).sum();
        prop_assert_eq!((delta.leaf_heap, delta.leaf_len), (heap, len));
        // Everything can be removed again, and then nothing is held.
        delta.remove_if(BlockAddress(0), u64::MAX, |_| true);
        prop_assert_eq!((delta.is_empty(), delta.len(), delta.leaf_heap), (true, 0, 0));
    }
}

#[test]
fn a_discard_of_64_tib_is_one_entry() {
    let mut delta: Delta<u64> = Delta::new();
    for leaf in 0..1000 {
        delta.set(BlockAddress(leaf * 7919), leaf);
    }
    let blocks = (64u64 << 40) / 4096;
    let begun = Instant::now();
    delta.set_range(BlockAddress(0), blocks, 7);
    assert!(begun.elapsed().as_millis() < 100);
    assert_eq!(delta.len(), 1);
    assert!(delta.memory_bytes() < 8192, "{}", delta.memory_bytes());
    delta.set(BlockAddress(5_000_000_000), 8);
    let chunks: Vec<Chunk<'_, u64>> = delta.chunks().collect();
    assert!(matches!(chunks[..], [Chunk::Leaves { .. }, Chunk::Leaf(_), Chunk::Leaves { .. }]));
    // Removing what a write set must not take the range apart, nor show the range's value again.
    delta.remove_if(BlockAddress(5_000_000_000), 1, |v| v == 8);
    assert_eq!(delta.get(BlockAddress(5_000_000_000)), None);
    assert_eq!(delta.get(BlockAddress(5_000_000_001)), Some(7));
    delta.remove_if(BlockAddress(0), blocks, |v| v == 7);
    assert!(delta.is_empty());
}

#[test]
fn ranges_at_the_end_of_the_address_space_do_not_overflow() {
    let mut delta: Delta<u64> = Delta::new();
    delta.set_range(BlockAddress(u64::MAX - 10), u64::MAX, 1);
    assert_eq!(delta.get(BlockAddress(u64::MAX - 10)), Some(1));
    delta.remove_if(BlockAddress(0), u64::MAX, |_| true);
    assert!(delta.is_empty());
}

/// Prints the cost of a set; run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_sets() {
    #[derive(Clone, Copy)]
    #[allow(dead_code, reason = "stands for a mapped block: 48 bytes")]
    enum Mapped {
        Zero(u64),
        At(u64, [u8; 32]),
    }
    fn run<V: Copy>(name: &str, count: u64, order: impl Fn(u64) -> u64, value: V) {
        let mut delta = Delta::new();
        let begun = Instant::now();
        for i in 0..count {
            delta.set(BlockAddress(order(i)), value);
        }
        let set = begun.elapsed().as_nanos() as u64 / count;
        let begun = Instant::now();
        let mut hits = 0u64;
        for i in 0..count {
            hits += u64::from(delta.get(BlockAddress(order(i))).is_some());
        }
        let get = begun.elapsed().as_nanos() as u64 / count;
        assert_eq!(hits, count);
        let begun = Instant::now();
        let seen: u64 =
            delta.chunks().map(|chunk| if let Chunk::Leaf(leaf) = chunk { leaf.runs().count() as u64 } else { 0 }).sum();
        let iterate = begun.elapsed().as_nanos() as u64 / seen;
        let per = delta.memory_bytes() as u64 / seen;
        println!("{name}: set {set} ns, get {get} ns, iterate {iterate} ns, {per} B per entry of {}", size_of::<V>());
    }
    let span = (1u64 << 40) / 4096;
    let scattered = move |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % span;
    let shuffled = |i: u64| (i * 1_000_003) % (1 << 21);
    run("sequential u64", 2_000_000, |i| i, 1u64);
    run("sequential 48", 2_000_000, |i| i, Mapped::At(1, [1; 32]));
    run("scattered u64", 2_000_000, scattered, 1u64);
    run("scattered 48", 2_000_000, scattered, Mapped::At(1, [1; 32]));
    run("dense shuffled u64", 1 << 21, shuffled, 1u64);
    run("dense shuffled 48", 1 << 21, shuffled, Mapped::Zero(3));
}
