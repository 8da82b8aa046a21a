//! What every Coordination must do; each implementation runs all of it.

use std::sync::Arc;
use std::thread;

use lamina_contract::{
    BlockSize, Coordination, CoordinationError, Epoch, Generation, ScoSize, Timestamp, VolumeId, VolumeName, VolumeRecord,
    VolumeSpec,
};

/// A record as `create` is given it.
pub(crate) fn record(id: u64, name: &str) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(id),
        spec: VolumeSpec {
            name: VolumeName::new(name).expect("a name"),
            size_bytes: 10 << 30,
            block_size: BlockSize::DEFAULT,
            sco_size: ScoSize::DEFAULT,
            read_only: false,
        },
        created: Timestamp(1_767_225_600_000),
        epoch: Epoch(0),
        generation: Generation(0),
        manifest_epoch: Epoch(0),
        deleting: false,
    }
}

/// Runs the suite, each part on a fresh registry.
pub(crate) fn all(fresh: &dyn Fn() -> Box<dyn Coordination>) {
    names_are_unique_and_freed_by_deletion(&*fresh());
    each_take_is_a_higher_term(&*fresh());
    only_the_owner_advances_and_by_one(&*fresh());
    adoption_sets_the_chain_of_the_owner(&*fresh());
    unknown_volumes_are_said_to_be_unknown(&*fresh());
    of_two_writers_exactly_one_advances(Arc::from(fresh()));
    of_many_creators_of_a_name_one_succeeds(Arc::from(fresh()));
}

fn names_are_unique_and_freed_by_deletion(registry: &dyn Coordination) {
    registry.create(&record(1, "web")).expect("free");
    assert!(matches!(registry.create(&record(2, "web")), Err(CoordinationError::NameTaken { name }) if name.as_str() == "web"));
    assert!(matches!(registry.create(&record(1, "other")), Err(CoordinationError::Unavailable { .. })));
    registry.begin_delete(VolumeId(1)).expect("marked");
    registry.begin_delete(VolumeId(1)).expect("marking again is fine");
    registry.create(&record(2, "web")).expect("the name is free again");
    let mut deleting: Vec<_> = registry.list().expect("list").iter().map(|r| (r.id, r.deleting)).collect();
    deleting.sort();
    assert_eq!(deleting, [(VolumeId(1), true), (VolumeId(2), false)]);
    registry.forget(VolumeId(1)).expect("forgotten");
    registry.forget(VolumeId(1)).expect("forgetting again is fine");
    assert!(matches!(registry.get(VolumeId(1)), Err(CoordinationError::Unknown { .. })));
    assert_eq!(registry.list().expect("list"), [record(2, "web")]);
}

fn each_take_is_a_higher_term(registry: &dyn Coordination) {
    registry.create(&record(1, "a")).expect("free");
    assert_eq!(registry.take(VolumeId(1), Epoch(0)).expect("taken").epoch, Epoch(1));
    assert_eq!(registry.take(VolumeId(1), Epoch(0)).expect("taken").epoch, Epoch(2));
    assert_eq!(registry.take(VolumeId(1), Epoch(40)).expect("taken").epoch, Epoch(41));
    assert!(matches!(registry.take(VolumeId(1), Epoch(u64::MAX)), Err(CoordinationError::Unavailable { .. })));
    assert_eq!(registry.get(VolumeId(1)).expect("record").epoch, Epoch(41));
}

fn only_the_owner_advances_and_by_one(registry: &dyn Coordination) {
    registry.create(&record(1, "a")).expect("free");
    let old = registry.take(VolumeId(1), Epoch(0)).expect("taken");
    registry.advance(old, Generation(1)).expect("first manifest");
    assert!(matches!(registry.advance(old, Generation(1)), Err(CoordinationError::Fenced { .. })), "the same twice");
    assert!(matches!(registry.advance(old, Generation(3)), Err(CoordinationError::Fenced { .. })), "one skipped");
    let new = registry.take(VolumeId(1), Epoch(0)).expect("taken");
    let late = registry.advance(old, Generation(2));
    assert!(matches!(late, Err(CoordinationError::Fenced { epoch, current, .. }) if epoch == old.epoch && current == new.epoch));
    registry.advance(new, Generation(2)).expect("second manifest");
    let now = registry.get(VolumeId(1)).expect("record");
    assert_eq!((now.generation, now.manifest_epoch), (Generation(2), new.epoch));
}

fn adoption_sets_the_chain_of_the_owner(registry: &dyn Coordination) {
    registry.create(&record(1, "a")).expect("free");
    let old = registry.take(VolumeId(1), Epoch(0)).expect("taken");
    let new = registry.take(VolumeId(1), Epoch(6)).expect("taken");
    assert!(matches!(registry.adopt(old, Generation(9), Epoch(6)), Err(CoordinationError::Fenced { .. })));
    registry.adopt(new, Generation(9), Epoch(6)).expect("adopted");
    let now = registry.get(VolumeId(1)).expect("record");
    assert_eq!((now.generation, now.manifest_epoch), (Generation(9), Epoch(6)));
    registry.advance(new, Generation(10)).expect("goes on from there");
}

fn unknown_volumes_are_said_to_be_unknown(registry: &dyn Coordination) {
    registry.create(&record(1, "a")).expect("free");
    let owner = registry.take(VolumeId(1), Epoch(0)).expect("taken");
    registry.forget(VolumeId(1)).expect("forgotten");
    assert!(matches!(registry.get(VolumeId(1)), Err(CoordinationError::Unknown { .. })));
    assert!(matches!(registry.take(VolumeId(1), Epoch(0)), Err(CoordinationError::Unknown { .. })));
    assert!(matches!(registry.advance(owner, Generation(1)), Err(CoordinationError::Unknown { .. })));
    assert!(matches!(registry.begin_delete(VolumeId(1)), Err(CoordinationError::Unknown { .. })));
}

fn of_two_writers_exactly_one_advances(registry: Arc<dyn Coordination>) {
    registry.create(&record(1, "a")).expect("free");
    let owner = registry.take(VolumeId(1), Epoch(0)).expect("taken");
    for generation in 1..=8 {
        let racers: Vec<_> = (0..4)
            .map(|_| {
                let registry = Arc::clone(&registry);
                thread::spawn(move || registry.advance(owner, Generation(generation)).is_ok())
            })
            .collect();
        let winners = racers.into_iter().map(|racer| racer.join().expect("no panic")).filter(|won| *won).count();
        assert_eq!(winners, 1, "generation {generation}");
    }
    assert_eq!(registry.get(VolumeId(1)).expect("record").generation, Generation(8));
}

fn of_many_creators_of_a_name_one_succeeds(registry: Arc<dyn Coordination>) {
    let racers: Vec<_> = (1..=4)
        .map(|id| {
            let registry = Arc::clone(&registry);
            thread::spawn(move || registry.create(&record(id, "same")).is_ok())
        })
        .collect();
    let winners = racers.into_iter().map(|racer| racer.join().expect("no panic")).filter(|won| *won).count();
    assert_eq!((winners, registry.list().expect("list").len()), (1, 1));
}
