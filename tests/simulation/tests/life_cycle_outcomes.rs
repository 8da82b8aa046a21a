//! Life-cycle operations on volumes that are not as they should be: strange keys, lost blocks.

mod support;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lamina_contract::{SnapshotName, VolumeName, VolumeSettings};
use lamina_engine::{CloneSpec, EngineError, SnapshotSpec};
use lamina_simulation::act::Act;
use lamina_simulation::family::Disks;
use lamina_simulation::life::{End, Life};
use support::rotten_block::{RottenBlock, tries_until_given_up};
use support::{family, family_on, must};

/// One stray key in the namespace of a volume that the registry does not know: its epoch is the highest there is.
#[test]
fn a_stray_key_of_one_volume_keeps_no_other_from_opening() {
    let mut family = family();
    must(family.act(Act::Create { blocks: 4 }));
    must(family.act(Act::Create { blocks: 4 }));
    must(family.act(Act::Write { disk: 0, block: 0, count: 2 }));
    must(family.act(Act::Write { disk: 1, block: 0, count: 2 }));
    must(family.act(Act::Store));
    let stranger = must(family.volume("d1")).id();
    let mut world = family.killed();
    Arc::make_mut(&mut world.registry).retain(|record| record.id != stranger);
    let key = format!("{stranger}/manifest/000000000/0000000001-ffffffffffffffff");
    Arc::make_mut(&mut world.store).insert(key.into(), vec![1, 2, 3].into());
    let mut family = family_on(&world, Disks::default());
    must(family.volume("d0"));
    must(family.act(Act::Restart(End::Killed)));
    must(family.volume("d0"));
}

/// It cannot be copied; who writes or discards the block can flatten then.
#[test]
fn flattening_a_clone_with_a_lost_block_is_refused_for_that() {
    let RottenBlock { shape, world, past } = RottenBlock::after(&[], 0);
    let mut life = must(Life::begin(&shape, &world, &past));
    assert!(tries_until_given_up(&mut life) > 0, "nothing was lost: the test shows nothing");
    let node = life.node().expect("a process").clone();
    let parent = node.volumes().into_iter().find(|v| v.spec().name.as_str() == "v0").expect("v0").id();
    let spec = SnapshotSpec::named(SnapshotName::new("golden").expect("a name"));
    let taken = life.run(node.snapshot(&[(parent, spec)])).expect("taken").remove(0);
    life.step().expect("stored");
    let clone = CloneSpec { name: VolumeName::new("c").expect("a name"), settings: VolumeSettings::default() };
    let clone = life.run(node.clone_volume(parent, taken.note.id, &[clone])).expect("cloned").remove(0);
    life.step().expect("stored");
    let flattened = life.run(node.flatten(clone.id(), &|_, _| {}, &AtomicBool::new(false)));
    assert!(matches!(flattened, Err(EngineError::Unreadable { .. })), "{flattened:?}");
}
