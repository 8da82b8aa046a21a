//! Invariant 8 (Verified): one changed byte anywhere, in any object of the store, in the journal or in the cache, never reaches a guest. What
//! is read is right, or an error; and an error only where the byte was needed.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use lamina_simulation::dice::Dice;
use lamina_simulation::disk_image::Fate;
use lamina_simulation::history::{Step, play};
use lamina_simulation::life::{End, Life, Past, Shape, World};
use lamina_simulation::moment::Moment;
use lamina_simulation::oracle::{Bounds, Model, Violation};
use lamina_simulation::stamp::SECTOR;
use object_store::path::Path;
use support::{in_parallel, named, small_volume};

const BLOCKS: usize = 6;

struct Scene {
    shape: Shape,
    world: World,
    past: Past,
    bounds: Vec<Bounds>,
}

/// A volume with blocks in two containers, in map pages, in TLogs, in the cache and in the journal; the last write is not flushed.
fn scene(cache: bool) -> Scene {
    let mut shape = Shape::of(&[small_volume(BLOCKS)]);
    shape.checkpoint_after = Some(3);
    shape.cache_bytes = if cache { 4 << 20 } else { 0 };
    let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
    let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
    let write = |block| Step::Write { volume: 0, block };
    let (sub, trim) = (Step::SubBlock { volume: 0, block: 1 }, Step::Trim { volume: 0, block: 2 });
    let stored = [write(0), write(1), write(2), sub, trim, Step::Store, write(3), write(0), Step::Store];
    let journalled = [write(4), sub, Step::Flush { volume: 0 }, Step::Restart(End::Clean), Step::Flush { volume: 0 }, write(4)];
    let flushed = [Step::Flush { volume: 0 }, write(5)];
    for step in stored.iter().chain(&journalled).chain(&flushed) {
        play(&mut life, &shape, *step).unwrap_or_else(|v| panic!("{step:?}: {v}"));
    }
    life.end(End::Clean);
    let (models, next_op) = (life.models().clone(), life.next_op());
    let mut moment = Moment::at_start(&world, &past, &models);
    life.into_log().iter().for_each(|event| moment.apply(event));
    let bounds = moment.after_kill();
    let stored = moment.after_wipe().iter().map(|b| b.lower).collect();
    // As after a long while: everything that was written is on the disks.
    for disk in [&mut moment.world.journal, &mut moment.world.cache] {
        *disk = disk.settle(&[Fate::Whole], |_| true);
    }
    Scene { shape, world: moment.world, past: Past { models, durable: vec![0], stored, next_op }, bounds }
}

/// What a guest finds block by block: right in some admissible state, or unreadable. Gives the state and how many blocks are
/// unreadable; None when the volume or the node does not open at all, which is an error that everybody sees.
fn look(scene: &Scene, world: &World, lower: usize) -> Option<(usize, usize, bool)> {
    let model: &Model = &scene.past.models[0];
    let life = match Life::begin(&scene.shape, world, &scene.past) {
        Ok(life) => life,
        Err(Violation::NoNode { .. } | Violation::NotOpened { .. }) => return None,
        Err(other) => panic!("{other}"),
    };
    let per_block = model.per_block;
    let mut bytes = vec![None; BLOCKS];
    for (block, bytes) in bytes.iter_mut().enumerate() {
        *bytes = life.read_sectors(0, block * per_block..(block + 1) * per_block).ok();
    }
    let unreadable = bytes.iter().filter(|b| b.is_none()).count();
    let bounds = Bounds { lower, ..scene.bounds[0] };
    // An unreadable block counts as right in whatever state the others are.
    let fits = (bounds.lower..=bounds.upper).rev().find(|k| {
        let mut all = Vec::with_capacity(BLOCKS * per_block * SECTOR);
        for (block, bytes) in bytes.iter().enumerate() {
            match bytes {
                Some(bytes) => all.extend_from_slice(bytes),
                None => all.extend(model.bytes_of(*k, block)),
            }
        }
        let seen = model.read(&all).unwrap_or_else(|v| panic!("{v}"));
        model.judge(&seen, Bounds { lower: *k, upper: *k, parts: 0 }).is_ok()
    });
    let damaged = life.node().is_some_and(|n| n.status().journal_damaged);
    let Some(k) = fits else { panic!("no state from {} to {} fits what can be read", bounds.lower, bounds.upper) };
    Some((k, unreadable, damaged))
}

fn flipped(world: &World, key: &Path, at: usize, bits: u8) -> World {
    let mut objects = (*world.store).clone();
    let mut bytes = objects[key].to_vec();
    bytes[at] ^= bits;
    objects.insert(key.clone(), Bytes::from(bytes));
    World { store: Arc::new(objects), ..world.clone() }
}

/// Every byte of small objects, every 97th of blocks.
fn places(scene: &Scene) -> Vec<(Path, usize)> {
    let mut places = Vec::new();
    for (key, bytes) in scene.world.store.iter() {
        let blocks = if key.as_ref().contains("/sco/") { bytes.len() / 4096 * 4096 } else { 0 };
        places.extend((0..bytes.len()).filter(|at| *at >= blocks || at % 97 == 0).map(|at| (key.clone(), at)));
    }
    places
}

#[test]
fn no_changed_byte_in_the_store_reaches_a_guest() {
    let scene = scene(false);
    let kinds = ["/sco/", "/tlog/", "/manifest/", "/map/", "/volume"];
    for kind in kinds {
        assert!(scene.world.store.keys().any(|key| key.as_ref().contains(kind)), "the scene has no object of kind {kind}");
    }
    let places = places(&scene);
    let full = scene.bounds[0].lower;
    let errors = AtomicUsize::new(0);
    in_parallel(places.len(), |n| {
        let (key, at) = &places[n];
        named(&format!("byte {at} of {key}"), || {
            let bits = 1 << Dice::new(n as u64).below(8);
            let world = flipped(&scene.world, key, *at, bits);
            match look(&scene, &world, full) {
                Some((_, unreadable, _)) => {
                    assert!(unreadable <= 3, "{unreadable} of {BLOCKS} blocks are unreadable for one byte");
                    errors.fetch_add(usize::from(unreadable > 0), Ordering::Relaxed);
                }
                None => drop(errors.fetch_add(1, Ordering::Relaxed)),
            }
            true
        })
    });
    let errors = errors.into_inner();
    println!("{} bytes changed, {errors} of them noticed as an error", places.len());
    assert!(errors > 100, "only {errors} changes mattered: the scene has lost its point");
}

#[test]
fn no_changed_byte_in_a_store_that_is_all_that_is_left_reaches_a_guest() {
    let mut scene = scene(false);
    (scene.world.journal, scene.world.cache, scene.world.registry) = Default::default();
    let places = places(&scene);
    let opened = AtomicUsize::new(0);
    in_parallel(places.len(), |n| {
        let (key, at) = &places[n];
        let world = flipped(&scene.world, key, *at, 0x10);
        let seen = named(&format!("byte {at} of {key}"), || look(&scene, &world, 0));
        opened.fetch_add(usize::from(seen.is_some()), Ordering::Relaxed);
        true
    });
    // A manifest that does not verify gives way to the one before it.
    let opened = opened.into_inner();
    assert!(opened * 2 > places.len(), "the volume came back from only {opened} of {} damaged stores", places.len());
}

#[test]
fn no_changed_byte_in_the_journal_reaches_a_guest_and_none_is_lost_in_silence() {
    let scene = scene(false);
    let full = scene.bounds[0].lower;
    let mut places = Vec::new();
    for (name, pages) in scene.world.journal.written_pages() {
        for page in pages {
            // Headers stand at the front of a page; of the rest a sample.
            places.extend((0..4096).filter(|at| *at < 240 || at % 61 == 0).map(|at| (name.clone(), page * 4096 + at)));
        }
    }
    in_parallel(places.len(), |n| {
        let (name, at) = &places[n];
        let mut world = scene.world.clone();
        if world.journal.flip(name, *at, 1 << (n % 8)) {
            named(&format!("byte {at} of {name}"), || {
                if let Some((k, unreadable, damaged)) = look(&scene, &world, scene.past.stored[0]) {
                    assert!(unreadable <= 1, "{unreadable} blocks are unreadable for one byte");
                    // The last write was never flushed: a batch that is torn there is what a power cut leaves.
                    assert!(
                        k + 1 >= full || damaged,
                        "only {k} of {full} operations are there, and the journal calls itself whole"
                    );
                }
            });
        }
        true
    });
    assert!(places.len() > 1000, "{} places", places.len());
}

#[test]
fn no_changed_byte_in_the_cache_is_even_noticed() {
    let scene = scene(true);
    let full = scene.bounds[0].lower;
    let mut places = Vec::new();
    for (name, pages) in scene.world.cache.written_pages() {
        for page in pages {
            places.extend((0..4096).filter(|at| *at < 128 || at % 41 == 0).map(|at| (name.clone(), page * 4096 + at)));
        }
    }
    assert!(places.len() > 500, "{} places: the scene's cache is empty", places.len());
    in_parallel(places.len(), |n| {
        let (name, at) = &places[n];
        let mut world = scene.world.clone();
        if world.cache.flip(name, *at, 1 << (n % 8)) {
            let seen = named(&format!("byte {at} of {name}"), || look(&scene, &world, full));
            assert!(matches!(seen, Some((_, 0, _))), "byte {at} of {name}: {seen:?}");
        }
        true
    });
}
