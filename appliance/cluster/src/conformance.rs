//! What every Coordination must do; each implementation runs all of it.

use std::sync::Arc;
use std::thread;

use lamina_contract::{
    BlockSize, Coordination, CoordinationError, Cut, Epoch, Generation, Labels, Parent, RecordChange, ScoNumber, ScoSize,
    SnapshotId, SnapshotName, SnapshotNote, Timestamp, VolumeId, VolumeName, VolumeRecord, VolumeSettings, VolumeSpec,
};

/// A record as `create` is given it.
pub(crate) fn record(id: u64, name: &str) -> VolumeRecord {
    let spec = VolumeSpec {
        name: VolumeName::new(name).expect("a name"),
        size_bytes: 10 << 30,
        block_size: BlockSize::DEFAULT,
        sco_size: ScoSize::DEFAULT,
        read_only: false,
    };
    VolumeRecord::new(VolumeId(id), spec, Timestamp(1_767_225_600_000))
}

/// Runs the suite, each part on a fresh registry.
pub(crate) fn all(fresh: &dyn Fn() -> Box<dyn Coordination>) {
    names_are_unique_and_freed_by_deletion(&*fresh());
    each_take_is_a_higher_term(&*fresh());
    only_the_owner_advances_and_by_one(&*fresh());
    adoption_sets_the_chain_of_the_owner(&*fresh());
    unknown_volumes_are_said_to_be_unknown(&*fresh());
    a_clone_holds_its_parent(&*fresh());
    volumes_are_registered_all_or_none(&*fresh());
    the_owner_changes_its_record(&*fresh());
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

fn a_clone_holds_its_parent(registry: &dyn Coordination) {
    let clone =
        |id, name| VolumeRecord { parent: Some(Parent { volume: VolumeId(1), snapshot: SnapshotId(7) }), ..record(id, name) };
    assert!(matches!(registry.create(&clone(2, "two")), Err(CoordinationError::Unknown { .. })), "its parent is not there");
    registry.create(&record(1, "one")).expect("free");
    registry.create_all(&[clone(2, "two"), clone(3, "three")]).expect("free");
    let refused = registry.begin_delete(VolumeId(1));
    assert!(matches!(&refused, Err(CoordinationError::HasClones { clones, .. }) if clones.len() == 2));
    assert!(refused.is_err_and(|error| error.to_string().ends_with("has 2 clone(s): two, three")));
    registry.begin_delete(VolumeId(2)).expect("nothing depends on it");
    let owner = registry.take(VolumeId(3), Epoch(0)).expect("taken");
    registry.change(&[(owner, RecordChange::Flattened)]).expect("owned");
    registry.begin_delete(VolumeId(1)).expect("nothing depends on it any more");
    assert!(matches!(registry.create(&clone(4, "four")), Err(CoordinationError::Unknown { .. })), "its parent is going");
}

fn volumes_are_registered_all_or_none(registry: &dyn Coordination) {
    let twice = registry.create_all(&[record(1, "one"), record(2, "two"), record(3, "one")]);
    assert!(matches!(twice, Err(CoordinationError::NameTaken { name }) if name.as_str() == "one"));
    assert_eq!(registry.list().expect("list"), []);
    registry.create_all(&[record(1, "one"), record(2, "two")]).expect("free");
    assert_eq!(registry.list().expect("list"), [record(1, "one"), record(2, "two")]);
}

fn the_owner_changes_its_record(registry: &dyn Coordination) {
    registry.create(&record(1, "a")).expect("free");
    let old = registry.take(VolumeId(1), Epoch(0)).expect("taken");
    let cut = |id| Cut {
        after: ScoNumber(3),
        note: SnapshotNote {
            id: SnapshotId(id),
            name: SnapshotName::new("daily").expect("a name"),
            created: Timestamp(5),
            size_bytes: 10 << 30,
            labels: Labels::from([("tier".to_owned(), "gold \"1\"".to_owned())]),
            description: "before the upgrade".to_owned(),
            pinned: true,
            automatic: false,
        },
        rollback: Some(SnapshotId(1)),
    };
    let settings = VolumeSettings { iops: Some(100), cdp_ms: 60_000, template: true, ..VolumeSettings::default() };
    let changes = [
        (old, RecordChange::AddCut(cut(8))),
        (old, RecordChange::AddCut(cut(9))),
        (old, RecordChange::Size { bytes: 20 << 30, after: ScoNumber(7) }),
        (old, RecordChange::Settings(Box::new(settings.clone()))),
    ];
    registry.change(&changes).expect("owned");
    let now = registry.get(VolumeId(1)).expect("record");
    assert_eq!((now.cuts, now.spec.size_bytes, now.settings), (vec![cut(8), cut(9)], 20 << 30, settings));
    assert_eq!(now.size_after, Some(ScoNumber(7)));
    registry.change(&[(old, RecordChange::DropCuts(vec![SnapshotId(8)]))]).expect("owned");
    assert_eq!(registry.get(VolumeId(1)).expect("record").cuts, [cut(9)]);
    let _new = registry.take(VolumeId(1), Epoch(0)).expect("taken");
    registry.create(&record(2, "b")).expect("free");
    let other = registry.take(VolumeId(2), Epoch(0)).expect("taken");
    let both = registry.change(&[
        (other, RecordChange::Size { bytes: 1, after: ScoNumber(7) }),
        (old, RecordChange::Size { bytes: 1, after: ScoNumber(7) }),
    ]);
    assert!(matches!(both, Err(CoordinationError::Fenced { .. })));
    assert_eq!(registry.get(VolumeId(1)).expect("record").spec.size_bytes, 20 << 30);
    assert_eq!(registry.get(VolumeId(2)).expect("record").spec.size_bytes, 10 << 30, "all or none");
}

fn each_take_is_a_higher_term(registry: &dyn Coordination) {
    registry.create(&record(1, "a")).expect("free");
    assert_eq!(registry.take(VolumeId(1), Epoch(0)).expect("taken").epoch, Epoch(1));
    assert_eq!(registry.take(VolumeId(1), Epoch(0)).expect("taken").epoch, Epoch(2));
    assert_eq!(registry.take(VolumeId(1), Epoch(40)).expect("taken").epoch, Epoch(41));
    assert!(matches!(registry.take(VolumeId(1), Epoch(u64::MAX)), Err(CoordinationError::Unavailable { .. })));
    assert_eq!(registry.get(VolumeId(1)).expect("record").epoch, Epoch(41));
    registry.create(&record(2, "b")).expect("free");
    let wanted = [(VolumeId(2), Epoch(0)), (VolumeId(1), Epoch(0))];
    let taken: Vec<_> = registry.take_all(&wanted).expect("taken").iter().map(|owner| (owner.volume, owner.epoch)).collect();
    assert_eq!(taken, [(VolumeId(2), Epoch(1)), (VolumeId(1), Epoch(42))]);
    assert!(registry.take_all(&[(VolumeId(2), Epoch(0)), (VolumeId(3), Epoch(0))]).is_err());
    assert_eq!(registry.get(VolumeId(2)).expect("record").epoch, Epoch(1), "all or none");
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
