//! The embedded registry on a real directory: copies, damage, what a crash leaves.

use std::fs;
use std::path::Path;

use lamina_contract::{Coordination, CoordinationError, Epoch, Generation, VolumeId};
use tempfile::TempDir;

use super::{EmbeddedCoordination, RegistryError};
use crate::conformance::{self, record};

fn open(dir: &Path) -> EmbeddedCoordination {
    EmbeddedCoordination::open(dir).expect("opens")
}

/// A registry with a history: one volume at generation 5, one deleted.
fn with_history(dir: &Path) {
    let registry = open(dir);
    registry.create(&record(1, "web")).expect("free");
    let owner = registry.take(VolumeId(1), Epoch(0)).expect("taken");
    for generation in 1..=5 {
        registry.advance(owner, Generation(generation)).expect("owner");
    }
    registry.create(&record(2, "gone")).expect("free");
    registry.begin_delete(VolumeId(2)).expect("marked");
}

fn assert_history(registry: &EmbeddedCoordination) {
    let web = registry.get(VolumeId(1)).expect("kept");
    assert_eq!((web.epoch, web.generation, web.manifest_epoch), (Epoch(1), Generation(5), Epoch(1)));
    assert!(registry.get(VolumeId(2)).expect("kept").deleting);
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("mkdir");
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy");
        }
    }
}

#[test]
fn embedded_passes_the_suite() {
    let dirs = parking_lot::Mutex::new(Vec::new());
    conformance::all(&|| {
        let dir = TempDir::new().expect("tempdir");
        let registry = open(dir.path());
        dirs.lock().push(dir);
        Box::new(registry)
    });
}

#[test]
fn a_restart_keeps_everything() {
    let dir = TempDir::new().expect("tempdir");
    with_history(dir.path());
    for _ in 0..3 {
        let registry = open(dir.path());
        assert_history(&registry);
        registry.create(&record(9, "x")).expect("free");
        registry.begin_delete(VolumeId(9)).expect("marked");
        registry.forget(VolumeId(9)).expect("forgotten");
    }
}

#[test]
fn every_answered_decision_is_in_the_files_without_a_clean_close() {
    let dir = TempDir::new().expect("tempdir");
    let registry = open(dir.path());
    registry.create(&record(1, "web")).expect("free");
    let owner = registry.take(VolumeId(1), Epoch(0)).expect("taken");
    for generation in 1..=20 {
        registry.advance(owner, Generation(generation)).expect("owner");
        // What `kill -9` would leave now: the files as they are, while the database is still open.
        for lost in ["nothing", "registry.json", "registry.sled"] {
            let killed = TempDir::new().expect("tempdir");
            copy_tree(dir.path(), killed.path());
            if lost == "registry.json" {
                fs::write(killed.path().join(lost), b"{").expect("damage");
            } else if lost == "registry.sled" {
                fs::remove_dir_all(killed.path().join(lost)).expect("damage");
            }
            let after = open(killed.path());
            assert_eq!(after.get(VolumeId(1)).expect("kept").generation, Generation(generation), "without {lost}");
        }
    }
}

#[test]
fn a_damaged_second_copy_is_written_again() {
    let dir = TempDir::new().expect("tempdir");
    with_history(dir.path());
    let json = dir.path().join("registry.json");
    let healthy = fs::read(&json).expect("read");
    let mut flipped = healthy.clone();
    let digit = flipped.iter().position(|b| *b == b'5').expect("a digit");
    flipped[digit] = b'4';
    for damage in [Vec::new(), healthy[..healthy.len() / 2].to_vec(), flipped] {
        fs::write(&json, damage).expect("damage");
        assert_history(&open(dir.path()));
        assert_eq!(fs::read(&json).expect("read"), healthy);
    }
    fs::remove_file(&json).expect("remove");
    assert_history(&open(dir.path()));
    assert_eq!(fs::read(&json).expect("read"), healthy);
}

#[test]
fn a_damaged_database_is_set_aside_and_made_again() {
    let healthy = TempDir::new().expect("tempdir");
    with_history(healthy.path());
    let size = fs::metadata(healthy.path().join("registry.sled/db")).expect("db").len() as usize;
    let mut rebuilt = 0;
    // Every kind of place: the log's head, its records, its end.
    for at in (0..size.min(6000)).step_by(97) {
        let dir = TempDir::new().expect("tempdir");
        copy_tree(healthy.path(), dir.path());
        let db = dir.path().join("registry.sled/db");
        let mut bytes = fs::read(&db).expect("read");
        for byte in &mut bytes[at..(at + 64).min(size)] {
            *byte ^= 0xa5;
        }
        fs::write(&db, bytes).expect("damage");
        let registry = open(dir.path());
        assert_history(&registry);
        registry.take(VolumeId(1), Epoch(0)).expect("decisions go on");
        drop(registry);
        assert_eq!(open(dir.path()).get(VolumeId(1)).expect("kept").epoch, Epoch(2));
        rebuilt += usize::from(dir.path().join("registry.damaged-1").exists());
    }
    assert!(rebuilt > 10, "damage was noticed only {rebuilt} times");
}

#[test]
fn a_database_that_went_back_in_time_does_not_count() {
    let dir = TempDir::new().expect("tempdir");
    with_history(dir.path());
    let old = TempDir::new().expect("tempdir");
    copy_tree(&dir.path().join("registry.sled"), old.path());
    open(dir.path()).take(VolumeId(1), Epoch(7)).expect("taken");
    fs::remove_dir_all(dir.path().join("registry.sled")).expect("remove");
    copy_tree(old.path(), &dir.path().join("registry.sled"));
    assert_eq!(open(dir.path()).get(VolumeId(1)).expect("kept").epoch, Epoch(8));
}

#[test]
fn with_both_copies_damaged_nothing_is_guessed_and_nothing_wiped() {
    let dir = TempDir::new().expect("tempdir");
    with_history(dir.path());
    fs::write(dir.path().join("registry.json"), b"not json").expect("damage");
    let db = dir.path().join("registry.sled/db");
    let zeros = vec![0_u8; fs::metadata(&db).expect("db").len() as usize];
    fs::write(&db, &zeros).expect("damage");
    for _ in 0..2 {
        let Err(CoordinationError::Unavailable { cause, .. }) = EmbeddedCoordination::open(dir.path()) else {
            panic!("opened a registry that cannot be known");
        };
        let text = cause.to_string();
        assert!(matches!(cause.downcast_ref(), Some(RegistryError::BothDamaged { .. })), "{text}");
        assert!(text.contains("recover the volumes from the store"), "{text}");
        assert_eq!(fs::read(dir.path().join("registry.json")).expect("still there"), b"not json");
    }
}

#[test]
fn a_crash_during_the_first_start_is_a_first_start() {
    let dir = TempDir::new().expect("tempdir");
    // Prepared, not yet published.
    fs::write(dir.path().join("registry.json.new"), b"{\"form").expect("write");
    assert!(open(dir.path()).list().expect("list").is_empty());
    // Published, database not yet made or made without a head.
    fs::remove_dir_all(dir.path().join("registry.sled")).expect("remove");
    assert!(open(dir.path()).list().expect("list").is_empty());
    fs::remove_dir_all(dir.path().join("registry.sled")).expect("remove");
    drop(sled::open(dir.path().join("registry.sled")).expect("empty database"));
    assert!(open(dir.path()).list().expect("list").is_empty());
}

#[test]
fn a_decision_that_cannot_be_prepared_changes_nothing_and_may_be_tried_again() {
    let dir = TempDir::new().expect("tempdir");
    let registry = open(dir.path());
    // A directory in its place: as good as a full disk, and root cannot write through it either.
    fs::create_dir(dir.path().join("registry.json.new")).expect("mkdir");
    assert!(matches!(registry.create(&record(1, "a")), Err(CoordinationError::Unavailable { .. })));
    assert!(registry.list().expect("list").is_empty());
    fs::remove_dir(dir.path().join("registry.json.new")).expect("rmdir");
    registry.create(&record(1, "a")).expect("goes on by itself");
}

#[test]
fn after_an_unknown_outcome_nothing_more_is_decided_until_it_is_opened_again() {
    let dir = TempDir::new().expect("tempdir");
    let registry = open(dir.path());
    registry.create(&record(1, "a")).expect("free");
    // The rename fails after the database has decided.
    fs::remove_file(dir.path().join("registry.json")).expect("remove");
    fs::create_dir_all(dir.path().join("registry.json/x")).expect("mkdir");
    assert!(registry.take(VolumeId(1), Epoch(0)).is_err());
    fs::remove_dir_all(dir.path().join("registry.json")).expect("rmdir");
    assert!(registry.take(VolumeId(1), Epoch(0)).is_err() && registry.list().is_err());
    drop(registry);
    assert_eq!(open(dir.path()).get(VolumeId(1)).expect("kept").epoch, Epoch(1));
}

#[test]
fn a_registry_that_another_process_has_is_refused() {
    let dir = TempDir::new().expect("tempdir");
    let _first = open(dir.path());
    assert!(EmbeddedCoordination::open(dir.path()).is_err());
    assert!(!dir.path().join("registry.damaged-1").exists(), "a lock is not damage");
}

#[test]
fn a_registry_opens_however_shortly_it_was_closed_before() {
    // A busy machine is what makes a closed database linger.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..60 {
                    let dir = tempfile::tempdir().expect("a directory");
                    let opened = EmbeddedCoordination::open(dir.path());
                    assert!(opened.is_ok(), "round {round}: {:?}", opened.err());
                }
            });
        }
    });
}
