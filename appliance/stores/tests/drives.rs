//! One drive and pools of them: identity, faults, what a crash leaves.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path as FsPath, PathBuf};

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::TryStreamExt;
use lamina_contract::Timestamp;
use lamina_formats::drive::{DriveId, DriveIdentity, PoolId};
use lamina_stores::conformance::sample;
use lamina_stores::{
    DriveError, DriveState, DriveStore, MemberState, Pool, PoolError, is_device_error, is_full, is_gone, open_pool,
};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tempfile::TempDir;

const POOL: PoolId = PoolId(7);

fn identity(drive: u128) -> DriveIdentity {
    DriveIdentity { drive: DriveId(drive), pool: POOL, slot: 0, created: Timestamp(1) }
}

fn drive() -> (TempDir, DriveStore) {
    let directory = tempfile::tempdir().expect("a directory");
    DriveStore::claim(directory.path(), &identity(1)).expect("claimed");
    let store = DriveStore::open(directory.path(), POOL).expect("opened");
    (directory, store)
}

#[test]
fn what_a_directory_is_is_told_apart() {
    let top = tempfile::tempdir().expect("a directory");
    let at = top.path().join("drive");
    assert!(matches!(DriveStore::inspect(&at), Ok(DriveState::Missing)));
    assert!(matches!(DriveStore::claim(&at, &identity(1)), Err(DriveError::Missing)));
    fs::write(&at, "a file").expect("written");
    assert!(matches!(DriveStore::inspect(&at), Ok(DriveState::Missing)));
    fs::remove_file(&at).expect("removed");
    fs::create_dir(&at).expect("made");
    assert!(matches!(DriveStore::inspect(&at), Ok(DriveState::Blank)));
    assert!(matches!(DriveStore::open(&at, POOL), Err(DriveError::Blank)));
    // A fresh ext4 has lost+found; a claim cut short leaves empty directories and a file aside.
    for name in ["lost+found", "objects", "temporary"] {
        fs::create_dir(at.join(name)).expect("made");
    }
    fs::write(at.join(".lamina-drive.new"), "half").expect("written");
    assert!(matches!(DriveStore::inspect(&at), Ok(DriveState::Blank)));
    fs::write(at.join("objects/precious"), "data").expect("written");
    assert!(matches!(DriveStore::inspect(&at), Ok(DriveState::Foreign)));
    assert!(matches!(DriveStore::claim(&at, &identity(1)), Err(DriveError::Foreign)));
    fs::remove_file(at.join("objects/precious")).expect("removed");
    fs::write(at.join("holiday.jpg"), "data").expect("written");
    assert!(matches!(DriveStore::inspect(&at), Ok(DriveState::Foreign)));
    fs::remove_file(at.join("holiday.jpg")).expect("removed");
    DriveStore::claim(&at, &identity(1)).expect("claimed");
    assert!(matches!(DriveStore::inspect(&at), Ok(DriveState::Ours { identity: found }) if found == identity(1)));
    assert!(matches!(DriveStore::claim(&at, &identity(2)), Err(DriveError::Claimed { .. })));
    assert!(matches!(DriveStore::open(&at, PoolId(8)), Err(DriveError::OtherPool { found: POOL, .. })));
    let mut bytes = fs::read(at.join("lamina-drive")).expect("read");
    bytes[20] ^= 1;
    fs::write(at.join("lamina-drive"), bytes).expect("written");
    assert!(matches!(DriveStore::inspect(&at), Ok(DriveState::Damaged { .. })));
    assert!(matches!(DriveStore::open(&at, POOL), Err(DriveError::Damaged { .. })));
}

#[test]
fn a_drive_has_one_user() {
    let (directory, store) = drive();
    assert!(matches!(DriveStore::open(directory.path(), POOL), Err(DriveError::InUse)));
    let clone = store.clone();
    drop(store);
    assert!(matches!(DriveStore::open(directory.path(), POOL), Err(DriveError::InUse)));
    drop(clone);
    DriveStore::open(directory.path(), POOL).expect("given back");
}

#[tokio::test]
async fn leftovers_of_unfinished_puts_are_invisible_and_go_at_the_next_open() {
    let (directory, store) = drive();
    store.put(&"kept".into(), sample(1, 10).into()).await.expect("put");
    drop(store);
    let leftover = directory.path().join("temporary/00000000000000ff");
    fs::write(&leftover, "half an object").expect("written");
    let store = DriveStore::open(directory.path(), POOL).expect("opened");
    assert!(!leftover.exists());
    let listed: Vec<_> = store.list(None).try_collect().await.expect("listed");
    assert_eq!(listed.len(), 1);
}

#[tokio::test]
async fn a_drive_that_vanishes_gives_errors_and_is_not_made_again() {
    type Vanish = fn(&FsPath);
    let ways: [(&str, Vanish); 6] = [
        ("removed", |at| fs::remove_dir_all(at).expect("removed")),
        ("renamed", |at| fs::rename(at, at.with_extension("away")).expect("renamed")),
        ("exchanged for another drive", |at| {
            fs::rename(at, at.with_extension("away")).expect("renamed");
            fs::create_dir(at).expect("made");
            DriveStore::claim(at, &identity(9)).expect("claimed");
        }),
        ("emptied", |at| {
            fs::remove_file(at.join("lamina-drive")).expect("removed");
            fs::remove_dir_all(at.join("objects")).expect("removed");
            fs::remove_dir_all(at.join("temporary")).expect("removed");
        }),
        ("replaced by a blank one", |at| {
            fs::remove_dir_all(at).expect("removed");
            fs::create_dir(at).expect("made");
        }),
        ("replaced by another drive", |at| {
            fs::remove_dir_all(at).expect("removed");
            fs::create_dir(at).expect("made");
            DriveStore::claim(at, &identity(9)).expect("claimed");
        }),
    ];
    for (way, vanish) in ways {
        let top = tempfile::tempdir().expect("a directory");
        let at = top.path().join("drive");
        fs::create_dir(&at).expect("made");
        DriveStore::claim(&at, &identity(1)).expect("claimed");
        let store = DriveStore::open(&at, POOL).expect("opened");
        let key = Path::from("ns/sco/1");
        store.put(&key, sample(1, 5000).into()).await.expect("put");
        vanish(&at);
        let before = count(top.path());
        let errors = [
            store.put(&key, sample(1, 5000).into()).await.err(),
            store.put(&"new/key".into(), sample(1, 5000).into()).await.err(),
            store.get(&key).await.err(),
            store.get_range(&key, 0..10).await.err(),
            store.delete(&key).await.err(),
            store.copy(&key, &"copy".into()).await.err(),
            store.list(None).try_collect::<Vec<_>>().await.err(),
            store.list_with_delimiter(None).await.err(),
        ];
        for error in errors {
            let error = error.unwrap_or_else(|| panic!("a drive that was {way} answers"));
            assert!(is_gone(&error) && is_device_error(&error), "{way}: {error:?}");
        }
        assert!(store.space().is_err());
        assert_eq!(count(top.path()), before, "{way}: nothing was made again");
    }
}

fn count(at: &FsPath) -> usize {
    let Ok(entries) = fs::read_dir(at) else { return 0 };
    entries.map(|entry| 1 + count(&entry.expect("an entry").path())).sum()
}

#[tokio::test]
async fn a_drive_that_comes_back_answers_again() {
    let top = tempfile::tempdir().expect("a directory");
    let (at, away) = (top.path().join("drive"), top.path().join("away"));
    fs::create_dir(&at).expect("made");
    DriveStore::claim(&at, &identity(1)).expect("claimed");
    let store = DriveStore::open(&at, POOL).expect("opened");
    store.put(&"k".into(), sample(1, 100).into()).await.expect("put");
    fs::rename(&at, &away).expect("renamed");
    assert!(store.get(&"k".into()).await.is_err());
    fs::rename(&away, &at).expect("renamed");
    assert_eq!(store.get(&"k".into()).await.expect("there").bytes().await.expect("reads"), sample(1, 100));
    store.put(&"k2".into(), sample(1, 100).into()).await.expect("put");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_and_deletes_in_one_directory_do_not_trip_over_each_other() {
    let (directory, store) = drive();
    let work = (0..32_u64).map(|n| {
        let store = store.clone();
        tokio::spawn(async move {
            let key = Path::from(format!("a/b/c{}/{n}", n % 2));
            for round in 0..20 {
                store.put(&key, sample(n + round, 100).into()).await.expect("put");
                let got = store.get(&key).await.expect("there").bytes().await.expect("reads");
                assert_eq!(got, sample(n + round, 100));
                store.delete(&key).await.expect("deleted");
            }
        })
    });
    for done in join_all(work).await {
        done.expect("no task failed");
    }
    assert_eq!(count(&directory.path().join("objects")), 0, "no directory stays");
}

#[tokio::test]
async fn keys_that_are_no_file_names_are_errors_and_not_elsewhere() {
    let (directory, store) = drive();
    let long = Path::from(format!("a/{}", "x".repeat(300)));
    assert!(store.put(&long, sample(1, 1).into()).await.is_err());
    assert!(matches!(store.get(&long).await, Err(object_store::Error::NotFound { .. })));
    store.delete(&long).await.expect("nothing to delete");
    let odd = Path::from("a/../../b\0c/ü%");
    store.put(&odd, sample(1, 10).into()).await.expect("put");
    assert_eq!(store.get(&odd).await.expect("there").bytes().await.expect("reads"), sample(1, 10));
    let listed: Vec<_> = store.list(None).map_ok(|meta| meta.location).try_collect().await.expect("listed");
    assert_eq!(listed.as_slice(), std::slice::from_ref(&odd));
    // A symbolic link that somebody planted is not followed.
    std::os::unix::fs::symlink("/etc/passwd", directory.path().join("objects/link")).expect("linked");
    assert!(store.get(&"link".into()).await.is_err());
    // What stands between the parts of a file's name is in no key.
    for tilde in ["a~b/c", "~", "a/b~c"].map(|key| Path::parse(key).expect("a key")) {
        assert!(matches!(store.put(&tilde, sample(1, 1).into()).await, Err(object_store::Error::NotSupported { .. })));
        assert!(matches!(store.copy(&odd, &tilde).await, Err(object_store::Error::NotSupported { .. })));
        assert!(matches!(store.get(&tilde).await, Err(object_store::Error::NotFound { .. })));
        store.delete(&tilde).await.expect("nothing to delete");
        let listed = store.list_with_delimiter(Some(&tilde)).await.expect("listed");
        assert!(listed.objects.is_empty() && listed.common_prefixes.is_empty());
    }
}

#[tokio::test]
async fn what_lies_below_one_key_needs_no_directory_of_its_own() {
    let (directory, store) = drive();
    let keys = ["v", "v/a", "v/a/1", "v/a/2", "v/a/b/1", "v/a/b/1/x", "v/ab/1"].map(Path::from);
    for (n, key) in (0..).zip(&keys) {
        store.put(key, sample(n, 100).into()).await.expect("an object may lie below another one's key");
    }
    let objects = directory.path().join("objects");
    let mut files: BTreeSet<String> = BTreeSet::new();
    let mut pending = vec![objects.clone()];
    while let Some(at) = pending.pop() {
        for entry in fs::read_dir(at).expect("there").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                pending.push(entry);
            } else {
                files.insert(entry.strip_prefix(&objects).expect("below").display().to_string());
            }
        }
    }
    let expected = ["~v", "v~a", "v/a~1", "v/a~2", "v/a/b~1", "v/a/b/1~x", "v/ab~1"];
    assert_eq!(files, expected.into_iter().map(str::to_owned).collect::<BTreeSet<_>>());
    for (n, key) in (0..).zip(&keys) {
        assert_eq!(store.get(key).await.expect("there").bytes().await.expect("reads"), sample(n, 100), "{key}");
        let below: Vec<&Path> = keys.iter().filter(|other| *other != key && other.prefix_matches(key)).collect();
        let mut listed: Vec<Path> = store.list(Some(key)).map_ok(|meta| meta.location).try_collect().await.expect("listed");
        listed.sort();
        assert_eq!(listed.iter().collect::<Vec<_>>(), below, "below {key}");
        let shallow = store.list_with_delimiter(Some(key)).await.expect("listed");
        let parts = key.parts().count() + 1;
        let mut names: Vec<&Path> = shallow.objects.iter().map(|meta| &meta.location).collect();
        names.sort();
        assert_eq!(
            names,
            below.iter().copied().filter(|key| key.parts().count() == parts).collect::<Vec<_>>(),
            "straight below {key}"
        );
        for prefix in &shallow.common_prefixes {
            let further = |other: &&Path| other.prefix_matches(prefix) && other.parts().count() > parts;
            assert!(prefix.parts().count() == parts && keys.iter().any(|key| further(&key)), "{prefix} below {key}");
        }
    }
    for key in &keys {
        store.delete(key).await.expect("deleted");
    }
    assert_eq!(count(&objects), 0, "no directory stays");
}

/// What somebody else put there is neither listed nor in the way of what is.
#[tokio::test]
async fn strange_entries_are_no_objects_and_spoil_no_listing() {
    use std::os::unix::ffi::OsStrExt;
    let (directory, store) = drive();
    let key = Path::from("v/g/a/1");
    store.put(&key, sample(1, 10).into()).await.expect("put");
    let objects = directory.path().join("objects");
    let strange: [&[u8]; 7] = [b"v/g/plain", b"v/g/a~", b"v/g/~1", b"v/g/a~1~2", b"v/g/\xff~1", b"v/g/.~x", b"v/plain"];
    for name in strange {
        fs::write(objects.join(std::ffi::OsStr::from_bytes(name)), "x").expect("written");
    }
    fs::create_dir(objects.join("v/g/dir~1")).expect("made");
    fs::write(objects.join("v/g/dir~1/b~1"), "x").expect("written");
    std::os::unix::fs::symlink("/etc", objects.join("v/g/away")).expect("linked");
    std::os::unix::fs::symlink("/etc/passwd", objects.join("v/g/b~1")).expect("linked");
    let status = std::process::Command::new("mkfifo").arg(objects.join("v/g/c~1")).status().expect("made");
    assert!(status.success());
    for prefix in [None, Some(Path::from("v")), Some(Path::from("v/g")), Some(Path::from("v/g/a"))] {
        let listed: Vec<_> = store.list(prefix.as_ref()).map_ok(|meta| meta.location).try_collect().await.expect("listed");
        assert_eq!(listed.as_slice(), std::slice::from_ref(&key), "below {prefix:?}");
    }
    let shallow = store.list_with_delimiter(Some(&"v/g/a".into())).await.expect("listed");
    assert_eq!(shallow.objects.len(), 1);
    assert!(store.list(Some(&"v/g/plain".into())).try_collect::<Vec<_>>().await.expect("a file is no directory").is_empty());
    for name in ["v/g/b/1", "v/g/c/1", "v/g/dir/1"] {
        assert!(store.get(&name.into()).await.is_err(), "{name}");
    }
    assert!(store.put(&"v/plain/x/1".into(), sample(1, 1).into()).await.is_err(), "a file stands in a directory's place");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_change_is_in_every_listing_of_a_busy_directory() {
    let (_directory, store) = drive();
    let key = Path::from("v/g/kept");
    let fragment = Path::from("v/g/kept/1");
    store.put(&fragment, sample(1, 10).into()).await.expect("put");
    let busy = (0..4_u64).map(|n| {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..100 {
                let key = Path::from(format!("v/g/other{n}-{}/1", round % 16));
                store.put(&key, sample(n, 10).into()).await.expect("put");
                if round % 3 > 0 {
                    store.delete(&key).await.expect("deleted");
                }
            }
        })
    });
    let busy: Vec<_> = busy.collect();
    let mut looks = 0;
    while looks < 50 || busy.iter().any(|task| !task.is_finished()) {
        let listed = store.list_with_delimiter(Some(&key)).await.expect("listed");
        assert_eq!(listed.objects.iter().map(|meta| &meta.location).collect::<Vec<_>>(), [&fragment]);
        looks += 1;
    }
    for task in busy {
        task.await.expect("no task failed");
    }
}

/// Mounts something for the length of a test; `None` when that is not permitted here.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &FsPath, size: &str) -> Option<Self> {
        let options = format!("size={size}");
        let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status();
        mounted.ok().filter(std::process::ExitStatus::success).map(|_| Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_drive_says_so_and_keeps_what_it_has() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some(_mount) = Mount::tmpfs(directory.path(), "1M") else {
        eprintln!("skipped: mounting is not permitted here");
        return;
    };
    DriveStore::claim(directory.path(), &identity(1)).expect("claimed");
    let store = DriveStore::open(directory.path(), POOL).expect("opened");
    store.put(&"first".into(), sample(1, 300_000).into()).await.expect("put");
    let error = store.put(&"second".into(), sample(2, 2_000_000).into()).await.expect_err("no space");
    assert!(is_full(&error) && !is_device_error(&error), "{error:?}");
    assert_eq!(store.get(&"first".into()).await.expect("there").bytes().await.expect("reads"), sample(1, 300_000));
    assert_eq!(count(&directory.path().join("temporary")), 0, "the half that was written is gone");
    store.put(&"third".into(), sample(3, 300_000).into()).await.expect("a smaller one fits");
    store.delete(&"first".into()).await.expect("space is freed");
    store.put(&"fourth".into(), sample(4, 300_000).into()).await.expect("and used");
}

fn directories(top: &TempDir, count: usize) -> Vec<PathBuf> {
    (0..count)
        .map(|n| {
            let at = top.path().join(format!("d{n}"));
            if !at.exists() {
                fs::create_dir(&at).expect("made");
            }
            at
        })
        .collect()
}

fn ready(pool: &Pool) -> Vec<Option<PathBuf>> {
    let path = |state: &MemberState| match state {
        MemberState::Ready { store } => Some(store.path().to_owned()),
        MemberState::Missing => None,
    };
    pool.members.iter().map(|member| path(&member.state)).collect()
}

#[test]
fn a_pool_is_founded_once_and_found_by_identity() {
    let top = tempfile::tempdir().expect("a directory");
    let state = top.path().join("pool");
    let paths = directories(&top, 6);
    let first = open_pool(&paths, &state, Timestamp(1)).expect("founded");
    let ids: Vec<DriveId> = first.members.iter().map(|member| member.drive).collect();
    assert_eq!(ready(&first), paths.iter().cloned().map(Some).collect::<Vec<_>>());
    assert!(matches!(open_pool(&paths, &state, Timestamp(1)), Err(PoolError::Drive { cause: DriveError::InUse, .. })));
    let id = first.id;
    drop(first);
    // Swapped: the first two directories exchanged their drives.
    fs::rename(&paths[0], top.path().join("x")).expect("renamed");
    fs::rename(&paths[1], &paths[0]).expect("renamed");
    fs::rename(top.path().join("x"), &paths[1]).expect("renamed");
    let swapped = open_pool(&paths, &state, Timestamp(1)).expect("opened");
    assert_eq!(swapped.id, id);
    assert_eq!(swapped.members.iter().map(|member| member.drive).collect::<Vec<_>>(), ids, "slots are the drives'");
    assert_eq!(ready(&swapped)[..2], [Some(paths[1].clone()), Some(paths[0].clone())]);
    drop(swapped);
    // The state directory lost: the drives know.
    fs::remove_file(&state).expect("removed");
    let recovered = open_pool(&paths, &state, Timestamp(1)).expect("opened");
    assert_eq!((recovered.id, recovered.members.iter().map(|member| member.drive).collect::<Vec<_>>()), (id, ids.clone()));
    assert!(state.exists(), "and the roster is written again");
    drop(recovered);
    // Damaged, the same.
    fs::write(&state, "rubbish").expect("written");
    let recovered = open_pool(&paths, &state, Timestamp(1)).expect("opened");
    assert_eq!(recovered.id, id);
}

#[test]
fn a_missing_blank_or_damaged_drive_leaves_the_pool_degraded_and_is_said() {
    let top = tempfile::tempdir().expect("a directory");
    let state = top.path().join("pool");
    let paths = directories(&top, 6);
    drop(open_pool(&paths, &state, Timestamp(1)).expect("founded"));
    fs::remove_dir_all(&paths[0]).expect("removed");
    fs::remove_dir_all(&paths[1]).expect("removed");
    fs::create_dir(&paths[1]).expect("a blank one");
    fs::write(paths[2].join("lamina-drive"), "rotten").expect("damaged");
    let pool = open_pool(&paths, &state, Timestamp(1)).expect("opened");
    assert_eq!(ready(&pool).iter().filter(|path| path.is_none()).count(), 3);
    let why: Vec<&DriveError> = pool.strangers.iter().map(|stranger| &stranger.why).collect();
    assert!(matches!(why[..], [DriveError::Missing, DriveError::Blank, DriveError::Damaged { .. }]), "{why:?}");
    assert!(!paths[0].exists(), "a missing one is not made");
    assert!(matches!(DriveStore::inspect(&paths[1]), Ok(DriveState::Blank)), "a blank one is not claimed unasked");
}

#[test]
fn a_replacement_takes_the_missing_ones_slot() {
    let top = tempfile::tempdir().expect("a directory");
    let state = top.path().join("pool");
    let paths = directories(&top, 3);
    let first = open_pool(&paths, &state, Timestamp(1)).expect("founded");
    let old = first.members[1].drive;
    drop(first);
    let kept = top.path().join("kept");
    fs::rename(&paths[1], &kept).expect("taken out");
    fs::create_dir(&paths[1]).expect("a blank one");
    let mut pool = open_pool(&paths, &state, Timestamp(2)).expect("opened");
    assert!(matches!(pool.replace(0, &paths[1], Timestamp(2)), Err(PoolError::Slot { slot: 0 })), "that one is there");
    assert!(matches!(pool.replace(9, &paths[1], Timestamp(2)), Err(PoolError::Slot { slot: 9 })));
    let store = pool.replace(1, &paths[1], Timestamp(2)).expect("claimed");
    assert_ne!(store.identity().drive, old);
    assert!(pool.strangers.is_empty());
    drop((store, pool));
    let pool = open_pool(&paths, &state, Timestamp(3)).expect("opened");
    assert!(ready(&pool).iter().all(Option::is_some));
    drop(pool);
    // The old one put back in its place is told apart: it is no member any more.
    fs::remove_dir_all(&paths[1]).expect("removed");
    fs::rename(&kept, &paths[1]).expect("put back");
    let pool = open_pool(&paths, &state, Timestamp(4)).expect("opened");
    assert!(matches!(pool.strangers[..], [ref stranger] if matches!(stranger.why, DriveError::Claimed { .. })));
    assert_eq!(ready(&pool)[1], None);
}

#[test]
fn what_must_not_be_guessed_at_is_refused() {
    let top = tempfile::tempdir().expect("a directory");
    let state = top.path().join("pool");
    let paths = directories(&top, 3);
    assert!(matches!(open_pool(&[], &state, Timestamp(1)), Err(PoolError::Count { count: 0 })));
    // Somebody's files, before and after founding.
    fs::write(paths[1].join("thesis.tex"), "years of work").expect("written");
    let refused = |result: Result<Pool, PoolError>| matches!(result, Err(PoolError::Drive { cause: DriveError::Foreign, .. }));
    assert!(refused(open_pool(&paths, &state, Timestamp(1))));
    assert!(!state.exists() && matches!(DriveStore::inspect(&paths[0]), Ok(DriveState::Blank)), "nothing was begun");
    fs::remove_file(paths[1].join("thesis.tex")).expect("removed");
    drop(open_pool(&paths, &state, Timestamp(1)).expect("founded"));
    // The same drive twice: one path named twice, or copied.
    let twice = vec![paths[0].clone(), paths[0].clone(), paths[2].clone()];
    assert!(matches!(open_pool(&twice, &state, Timestamp(1)), Err(PoolError::Twice { .. })));
    let copy = top.path().join("copy");
    fs::create_dir(&copy).expect("made");
    fs::copy(paths[0].join("lamina-drive"), copy.join("lamina-drive")).expect("copied");
    let copied = vec![paths[0].clone(), copy, paths[2].clone()];
    assert!(matches!(open_pool(&copied, &state, Timestamp(1)), Err(PoolError::Twice { .. })));
    // A drive of another pool.
    let elsewhere = tempfile::tempdir().expect("a directory");
    let others = directories(&elsewhere, 3);
    drop(open_pool(&others, &elsewhere.path().join("pool"), Timestamp(1)).expect("founded"));
    let mixed = vec![paths[0].clone(), others[1].clone(), paths[2].clone()];
    let error = open_pool(&mixed, &state, Timestamp(1)).expect_err("another pool's");
    assert!(matches!(error, PoolError::Drive { cause: DriveError::OtherPool { .. }, .. }));
    assert!(error.to_string().contains("another pool"), "{error}");
    // A damaged roster and no drive to ask.
    fs::write(&state, "rubbish").expect("written");
    let blank = tempfile::tempdir().expect("a directory");
    let missing = directories(&blank, 3);
    assert!(matches!(open_pool(&missing, &state, Timestamp(1)), Err(PoolError::Roster { .. })));
}

/// A founding that was cut after any of its steps goes on at the next start.
#[test]
fn a_founding_that_was_cut_short_goes_on() {
    for claimed in 0..=3 {
        for state_survives in [true, false] {
            let top = tempfile::tempdir().expect("a directory");
            let state = top.path().join("pool");
            let paths = directories(&top, 3);
            let pool = open_pool(&paths, &state, Timestamp(1)).expect("founded");
            let id = pool.id;
            let ids: Vec<DriveId> = pool.members.iter().map(|member| member.drive).collect();
            drop(pool);
            // Wind back to the moment when `claimed` drives had been claimed.
            for (n, path) in paths.iter().enumerate() {
                fs::remove_file(path.join("lamina-pool")).expect("removed");
                if n >= claimed {
                    fs::remove_file(path.join("lamina-drive")).expect("removed");
                }
            }
            let begun = lamina_formats::drive::PoolRoster { pool: id, number: 0, members: ids.clone() };
            if state_survives {
                fs::write(&state, begun.encode()).expect("written");
            } else {
                fs::remove_file(&state).expect("removed");
            }
            let pool = open_pool(&paths, &state, Timestamp(2)).expect("goes on");
            assert!(ready(&pool).iter().all(Option::is_some));
            assert!(pool.id == id || (claimed == 0 && !state_survives));
            let kept: Vec<DriveId> = pool.members.iter().map(|member| member.drive).take(claimed).collect();
            assert_eq!(kept, ids[..claimed], "drives claimed by then are members");
        }
    }
}

#[test]
fn directories_that_do_not_exist_are_made_only_for_a_new_pool() {
    let top = tempfile::tempdir().expect("a directory");
    let state = top.path().join("pool");
    let paths: Vec<PathBuf> = (0..3).map(|n| top.path().join(format!("new{n}"))).collect();
    drop(open_pool(&paths, &state, Timestamp(1)).expect("founded"));
    let nowhere = vec![top.path().join("no/such/parent")];
    let error = open_pool(&nowhere, &top.path().join("other"), Timestamp(1)).expect_err("no parent");
    assert!(matches!(error, PoolError::Drive { cause: DriveError::Missing, .. }));
}

#[tokio::test]
async fn a_large_object_is_streamed_whole() {
    let (_directory, store) = drive();
    let bytes = sample(5, 40 << 20);
    store.put(&"large".into(), bytes.clone().into()).await.expect("put");
    let chunks: Vec<Bytes> = store.get(&"large".into()).await.expect("there").into_stream().try_collect().await.expect("reads");
    assert!(chunks.len() > 1 && chunks.iter().all(|chunk| chunk.len() <= 16 << 20), "in windows");
    assert_eq!(chunks.concat(), bytes);
}
