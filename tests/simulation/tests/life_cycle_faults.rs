//! Life-cycle operations while the registry, the store or the journal fail: what each of these once broke.

mod support;

use std::time::Duration;

use lamina_contract::{BlockDevice, Lba, Op, Request, SectorCount, SnapshotName, VolumeSettings};
use lamina_engine::{SnapshotSpec, Volume, VolumeState};
use lamina_simulation::act::Act;
use lamina_simulation::family::Family;
use lamina_simulation::fault::{Fault, When};
use lamina_simulation::life::{End, World};
use lamina_simulation::log::Event;
use lamina_simulation::transfer::{Pending, transfer};
use support::{family, family_on, must};

fn named(name: &str) -> SnapshotSpec {
    SnapshotSpec::named(SnapshotName::new(name).expect("a name"))
}

/// Kills a node when a cut of `history` is stored and its promise is still in the registry; the disk's snapshots of these numbers are
/// deleted then, one after the other. All stays true.
fn killed_before_its_promise_was_dropped(history: &[Act], deleted: &[usize]) {
    let mut family = family();
    for act in history {
        must(family.act(*act));
    }
    let disks = family.disks.clone();
    let now_ms = family.life().now_ms();
    let (_, events) = family.into_history();
    let promised =
        |event: &Event| matches!(event, Event::Registry(records) if records.iter().any(|record| !record.cuts.is_empty()));
    let last = events.iter().rposition(promised).expect("a promise");
    let mut family = family_on(&World::after(&events[..=last], now_ms), disks);
    must(family.act(Act::Store));
    must(family.check());
    for snapshot in deleted {
        must(family.act(Act::DeleteSnapshot { disk: 0, snapshot: *snapshot }));
    }
    for block in [0, 1, 2, 3, 0, 1, 2, 3] {
        must(family.act(Act::Write { disk: 0, block, count: 1 }));
    }
    must(family.act(Act::Store));
    must(family.check());
    must(family.act(Act::Restart(End::Clean)));
    must(family.check());
}

const ROLLED: [Act; 6] = [
    Act::Create { blocks: 4 },
    Act::Write { disk: 0, block: 0, count: 4 },
    Act::Snapshot { disk: 0 },
    Act::Write { disk: 0, block: 1, count: 2 },
    Act::Rollback { disk: 0, snapshot: 0 },
    Act::Store,
];

#[test]
fn a_rollback_that_was_stored_before_the_kill_is_not_done_again() {
    killed_before_its_promise_was_dropped(&ROLLED, &[1]);
}

#[test]
fn a_stored_rollback_whose_target_is_deleted_later_keeps_no_volume_shut() {
    killed_before_its_promise_was_dropped(&ROLLED, &[1, 0]);
}

#[test]
fn a_snapshot_that_was_stored_before_the_kill_does_not_come_back_once_it_is_deleted() {
    let history: Vec<_> = ROLLED[..4].iter().copied().chain([Act::Store]).collect();
    killed_before_its_promise_was_dropped(&history, &[0]);
}

/// A disk of `then` blocks with a snapshot that has `since` blocks now, all of it stored, on a node that was restarted and has decided
/// nothing since.
fn resized_since_its_snapshot(then: usize, since: usize) -> Family {
    let mut family = family();
    must(family.act(Act::Create { blocks: then }));
    must(family.act(Act::Write { disk: 0, block: 0, count: 3 }));
    must(family.act(Act::Snapshot { disk: 0 }));
    must(family.act(Act::Resize { disk: 0, blocks: since, force: false }));
    must(family.act(Act::Store));
    must(family.act(Act::Restart(End::Clean)));
    family
}

fn check_from_the_store_alone(mut family: Family) {
    must(family.act(Act::Store));
    let disks = family.disks.clone();
    must(family_on(&family.killed().store_alone(), disks).check());
}

#[test]
fn a_rollback_to_another_size_is_in_the_store_too() {
    for (then, since) in [(5, 8), (8, 5)] {
        for behind in [None, Some(Act::Write { disk: 0, block: 1, count: 1 }), Some(Act::Snapshot { disk: 0 })] {
            let mut family = resized_since_its_snapshot(then, since);
            must(family.act(Act::Rollback { disk: 0, snapshot: 0 }));
            behind.into_iter().for_each(|act| must(family.act(act)));
            check_from_the_store_alone(family);
        }
    }
}

#[test]
fn a_size_from_behind_a_rollback_that_a_kill_cut_short_is_in_the_store_too() {
    let resize = |blocks| Act::Resize { disk: 0, blocks, force: true };
    for end in [End::Killed, End::Clean] {
        for blocks in [4, 9] {
            let mut family = resized_since_its_snapshot(5, 8);
            let write = Act::Write { disk: 0, block: 6, count: 2 };
            for act in [write, Act::Rollback { disk: 0, snapshot: 0 }, resize(blocks), Act::Restart(end)] {
                must(family.act(act));
            }
            check_from_the_store_alone(family);
        }
    }
}

#[test]
fn a_clone_that_a_kill_left_with_blocks_behind_its_end_can_be_flattened() {
    let mut family = family();
    must(family.act(Act::Create { blocks: 4 }));
    must(family.act(Act::Write { disk: 0, block: 0, count: 4 }));
    must(family.act(Act::Snapshot { disk: 0 }));
    must(family.act(Act::Store));
    must(family.act(Act::Clone { disk: 0, snapshot: 0, count: 1 }));
    must(family.act(Act::Write { disk: 1, block: 0, count: 1 }));
    must(family.act(Act::Store));
    must(family.act(Act::Resize { disk: 1, blocks: 2, force: true }));
    let (disks, now_ms) = (family.disks.clone(), family.life().now_ms());
    let (_, events) = family.into_history();
    // The kill is between the decision and what is given back.
    let shrunk = |event: &Event| matches!(event, Event::Registry(records) if records.iter().any(|r| r.spec.size_bytes == 2 * 4096));
    let decided = events.iter().position(shrunk).expect("a decision");
    let mut family = family_on(&World::after(&events[..=decided], now_ms), disks);
    must(family.check());
    must(family.act(Act::Flatten { disk: 1 }));
    must(family.check());
}

#[test]
fn a_moment_before_a_resize_has_the_size_of_then() {
    let mut family = family();
    must(family.act(Act::Create { blocks: 4 }));
    must(family.set("d0", VolumeSettings { cdp_ms: 24 * 3_600_000, ..VolumeSettings::default() }));
    family.pass(1000);
    must(family.act(Act::Write { disk: 0, block: 0, count: 4 }));
    must(family.act(Act::Store));
    family.pass(10_000);
    let (then, held) = (family.now(), (*family.disks.0["d0"].blocks).clone());
    family.pass(10_000);
    must(family.act(Act::Resize { disk: 0, blocks: 2, force: true }));
    family.pass(1000);
    assert_eq!(must(family.go_back("d0", then)), held);
}

#[test]
fn a_resize_whose_answer_was_lost_cuts_nothing_off_later() {
    let mut family = family();
    must(family.act(Act::Create { blocks: 4 }));
    let volume = must(family.volume("d0"));
    family.life().registry().rules().lose_next_answer();
    let node = family.node();
    let resized = family.life().run(node.resize(volume.id(), 2 * 4096, true));
    // It finds out that it was done: else the guest would write behind an end that the next start sees.
    assert!(resized.is_ok(), "{resized:?}");
    assert_eq!(volume.size_bytes(), 2 * 4096);
    drop((volume, node));
    must(family.act(Act::Restart(End::Clean)));
    assert_eq!(must(family.volume("d0")).size_bytes(), 2 * 4096);
}

#[test]
fn a_rollback_waits_for_a_registry_that_is_away_when_it_is_to_be_stored() {
    let mut family = family();
    for act in &ROLLED[..5] {
        must(family.act(*act));
    }
    let node = family.node();
    let volume = must(family.volume("d0"));
    let rules = family.life().registry().rules();
    rules.set_away(true);
    let back = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let stored = volume.snapshots().iter().filter(|snapshot| snapshot.stored).count();
        rules.set_away(false);
        stored
    };
    let (stored, before) = family.life().run(async { tokio::join!(node.step(true), back) });
    stored.expect("stored once it is back");
    assert_eq!(before, 0, "the registry was not asked: the test shows nothing");
    drop((node, volume));
    must(family.check());
    must(family.act(Act::Restart(End::Killed)));
    must(family.check());
}

/// Submits a write of a whole block.
fn write(family: &Family, volume: &Volume, block: u64, byte: u8) -> Pending {
    let (transfer, wait) = transfer(vec![byte; 4096], |_| {});
    let mut batch = vec![Request { op: Op::Write { fua: false }, start: Lba(block * 8), sectors: SectorCount(8), transfer }];
    family.life().inside(|| volume.submit(&mut batch));
    wait
}

/// Writes other blocks than the first eight of 2,048 until the journal has no room for one; nobody runs the store side meanwhile.
fn write_until_one_waits(family: &Family, volume: &Volume) -> Pending {
    let mut waits = (0..40_000_u64).map(|n| write(family, volume, 8 + n % 2040, (n % 250) as u8 + 1));
    waits.find(|wait| wait.answer().is_none()).expect("a write that waits")
}

#[test]
fn a_write_that_waited_for_room_is_not_laid_over_what_was_gone_back_to() {
    let mut family = family();
    must(family.act(Act::Create { blocks: 2048 }));
    must(family.act(Act::Write { disk: 0, block: 0, count: 4 }));
    must(family.act(Act::Snapshot { disk: 0 }));
    must(family.act(Act::Store));
    let volume = must(family.volume("d0"));
    let at_snapshot = must(family.read(&volume));
    let wait = write_until_one_waits(&family, &volume);
    let to = volume.snapshots()[0].note.id;
    let node = family.node();
    family.life().run(node.rollback(volume.id(), to, named("discarded"))).expect("rolled back");
    for _ in 0..5 {
        family.life().run(node.step(true)).expect("stored");
    }
    assert!(wait.answer().is_some(), "a guest waits for ever");
    assert_eq!(must(family.read(&volume)), at_snapshot);
}

#[test]
fn a_part_of_a_block_that_waited_brings_nothing_back_of_what_was_discarded() {
    const BLOCK: u64 = 5;
    let mut family = family();
    must(family.act(Act::Create { blocks: 2048 }));
    let volume = must(family.volume("d0"));
    assert_eq!(write(&family, &volume, BLOCK, 0x11).answer(), Some(Ok(())));
    let node = family.node();
    let taken = family.life().run(node.snapshot(&[(volume.id(), named("s"))])).expect("taken").remove(0);
    family.life().run(node.step(true)).expect("stored");
    assert_eq!(write(&family, &volume, BLOCK, 0x22).answer(), Some(Ok(())));
    let _waits = write_until_one_waits(&family, &volume);
    let (part, wait) = transfer(vec![0x33; 512], |_| {});
    let request = |op, sectors, transfer| Request { op, start: Lba(BLOCK * 8), sectors: SectorCount(sectors), transfer };
    family.life().inside(|| volume.submit(&mut vec![request(Op::Write { fua: false }, 1, part)]));
    assert_eq!(wait.answer(), None, "the part did not wait: the test shows nothing");
    family.life().run(node.rollback(volume.id(), taken.note.id, named("d"))).expect("rolled back");
    for _ in 0..5 {
        family.life().run(node.step(true)).expect("stored");
    }
    let (whole, read) = transfer(vec![0xee; 4096], |_| {});
    family.life().inside(|| volume.submit(&mut vec![request(Op::Read, 8, whole)]));
    family.life().answer_of(&read).expect("read");
    assert_eq!(read.take_bytes(), vec![0x11; 4096], "a write from before the rollback is in what was gone back to");
}

#[test]
fn a_snapshot_with_all_labels_survives_being_cut_short() {
    let mut family = family();
    must(family.act(Act::Create { blocks: 4 }));
    must(family.act(Act::Write { disk: 0, block: 0, count: 2 }));
    must(family.act(Act::Store));
    must(family.act(Act::Write { disk: 0, block: 1, count: 2 }));
    let volume = must(family.volume("d0"));
    // As many as are allowed; that it was cut short would be one more.
    let labels = (0..64).map(|n| (format!("k{n}"), String::new())).collect();
    let node = family.node();
    family.life().run(node.snapshot(&[(volume.id(), SnapshotSpec { labels, ..named("full") })])).expect("taken");
    drop((volume, node));
    // The SSD is lost before it is stored.
    let mut world = family.killed();
    (world.journal, world.cache) = Default::default();
    let mut family = family_on(&world, Default::default());
    must(family.act(Act::Store));
    let seen = must(family.look());
    assert_eq!(seen.0["d0"].snapshots.keys().collect::<Vec<_>>(), ["full"]);
}

#[test]
fn a_snapshot_while_the_registry_is_away_breaks_no_guest() {
    let mut family = family();
    must(family.act(Act::Create { blocks: 4 }));
    must(family.act(Act::Write { disk: 0, block: 0, count: 2 }));
    let volume = must(family.volume("d0"));
    let node = family.node();
    family.life().registry().rules().set_away(true);
    let taken = family.life().run(node.snapshot(&[(volume.id(), named("hourly"))]));
    family.life().registry().rules().set_away(false);
    assert!(taken.is_err(), "nobody knows of {taken:?}");
    assert_eq!(volume.state(), VolumeState::Serving, "a scheduled snapshot halted the disk");
}

#[test]
fn a_store_that_is_away_while_a_snapshot_is_deleted_keeps_nobody_from_taking_one() {
    let mut family = family();
    must(family.act(Act::Create { blocks: 4 }));
    must(family.act(Act::Create { blocks: 4 }));
    must(family.act(Act::Write { disk: 0, block: 0, count: 2 }));
    must(family.act(Act::Snapshot { disk: 0 }));
    must(family.act(Act::Store));
    let (one, other) = (must(family.volume("d0")), must(family.volume("d1")));
    family.life().faults().store.plan(When::From(0), Fault::Io);
    let node = family.node();
    let gone = one.snapshots()[0].note.id;
    let taken = family.life().run(async {
        let deleting = node.delete_snapshot(one.id(), gone);
        let taking = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            tokio::time::timeout(Duration::from_secs(3600), node.snapshot(&[(other.id(), named("other"))])).await
        };
        tokio::select! {
            deleted = deleting => panic!("deleted: {deleted:?}"),
            taken = taking => taken,
        }
    });
    taken.expect("a snapshot of another volume waits for the store of the first").expect("taken");
}
