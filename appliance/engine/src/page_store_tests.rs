//! Where map pages are kept on the SSD: what survives, what is refused.

use std::fs;
use std::path::Path;

use lamina_contract::{Epoch, VolumeId};
use lamina_formats::map::MapObject;

use super::{FilePages, ObjectKey, PageKey, PageStore, SledPages};

const PAGE: usize = 2000;

fn object(number: u64) -> ObjectKey {
    ObjectKey { volume: VolumeId(5), object: MapObject { epoch: Epoch(2), number } }
}

fn page(number: u64, n: u32) -> Vec<u8> {
    (0..PAGE).map(|i| (i as u64 + number * 3 + u64::from(n) * 7) as u8).collect()
}

/// Forty pages, with a gap after every fourth.
fn put(store: &dyn PageStore, number: u64) {
    let pages: Vec<(u32, Vec<u8>)> = (0..50).filter(|n| n % 5 != 4).map(|n| (n * PAGE as u32, page(number, n))).collect();
    let slices: Vec<(u32, &[u8])> = pages.iter().map(|(offset, page)| (*offset, &page[..])).collect();
    store.put_batch(&object(number), &slices);
}

fn get(store: &dyn PageStore, number: u64, n: u32) -> Option<Vec<u8>> {
    store.get(&PageKey { object: object(number), offset: n * PAGE as u32 }, PAGE as u32)
}

fn what_was_put_is_got_until_it_is_removed(open: impl Fn(&Path) -> Box<dyn PageStore>) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("pages");
    let store = open(&path);
    for number in 1..4 {
        put(&*store, number);
    }
    assert_eq!(get(&*store, 2, 3), Some(page(2, 3)));
    assert_ne!(get(&*store, 2, 4), Some(page(2, 4)), "never put");
    assert_eq!(get(&*store, 9, 3), None);
    store.remove(&object(2));
    store.remove(&object(7));
    assert_eq!(get(&*store, 2, 3), None);
    drop(store);
    let store = open(&path);
    assert_eq!(get(&*store, 1, 0), Some(page(1, 0)));
    assert_eq!(get(&*store, 3, 48), Some(page(3, 48)));
    assert_eq!(get(&*store, 2, 3), None);
    store.clear();
    assert_eq!(get(&*store, 1, 0), None);
    put(&*store, 1);
    assert_eq!(get(&*store, 1, 0), Some(page(1, 0)));
}

fn the_oldest_goes_when_there_is_no_room(open: impl Fn(&Path, u64) -> Box<dyn PageStore>) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("pages");
    // Room for three objects of 40 pages.
    let store = open(&path, 3 * 40 * PAGE as u64 + 70_000);
    for number in 1..6 {
        put(&*store, number);
    }
    assert_eq!(get(&*store, 1, 0), None);
    assert_eq!(get(&*store, 2, 0), None);
    assert_eq!(get(&*store, 5, 0), Some(page(5, 0)));
    drop(store);
    let store = open(&path, 50 * PAGE as u64);
    let left = (1..6).filter(|&number| get(&*store, number, 0).is_some()).count();
    assert!(left <= 1, "{left} objects after the bound was lowered");
}

fn files(path: &Path, most: u64) -> Box<dyn PageStore> {
    Box::new(FilePages::open(path, most).expect("opens"))
}

fn sled(path: &Path, most: u64) -> Box<dyn PageStore> {
    Box::new(SledPages::open(path, most, 1 << 20).expect("opens"))
}

#[test]
fn files_keep_pages_over_a_restart_until_they_are_removed() {
    what_was_put_is_got_until_it_is_removed(|path| files(path, 1 << 30));
}

#[test]
fn sled_keeps_pages_over_a_restart_until_they_are_removed() {
    what_was_put_is_got_until_it_is_removed(|path| sled(path, 1 << 30));
}

#[test]
fn files_drop_the_oldest_objects_first() {
    the_oldest_goes_when_there_is_no_room(files);
}

#[test]
fn sled_drops_the_oldest_objects_first() {
    the_oldest_goes_when_there_is_no_room(sled);
}

#[test]
fn more_objects_than_open_files_are_served() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = files(directory.path(), 1 << 30);
    let count = 300;
    (0..count).for_each(|number| put(&*store, number));
    assert!((0..count).all(|number| get(&*store, number, 1) == Some(page(number, 1))));
    let open = fs::read_dir("/proc/self/fd").expect("lists").count();
    assert!(open < 250, "{open} files are open");
}

#[test]
fn files_of_others_are_left_alone_and_missing_ones_forgotten() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("notes.txt"), "mine").expect("writes");
    fs::write(directory.path().join("+00000000000000f-0000000000000001-0000000000000001.pages"), "?").expect("writes");
    let store = files(directory.path(), 1 << 30);
    put(&*store, 1);
    drop(store);
    let store = files(directory.path(), 1 << 30);
    for entry in fs::read_dir(directory.path()).expect("lists") {
        let path = entry.expect("an entry").path();
        if path.to_string_lossy().ends_with("1.pages") {
            fs::remove_file(path).expect("removes");
        }
    }
    assert_eq!(get(&*store, 1, 0), None);
    store.clear();
    assert!(directory.path().join("notes.txt").exists());
}

/// sled's threads print their panics; what counts is that the store works afterwards.
#[test]
fn a_damaged_sled_is_begun_anew_or_answers_nothing_wrong_with_length() {
    for damage in 0..12usize {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pages");
        let store = sled(&path, 1 << 30);
        (1..10).for_each(|number| put(&*store, number));
        drop(store);
        let db = path.join("db");
        let mut bytes = fs::read(&db).expect("reads");
        let at = bytes.len() * damage / 12;
        let end = (at + 512).min(bytes.len());
        bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0xa5);
        fs::write(&db, bytes).expect("writes");
        let store = sled(&path, 1 << 30);
        for number in 1..10 {
            for n in 0..50 {
                if let Some(page) = get(&*store, number, n) {
                    assert_eq!(page.len(), PAGE);
                }
            }
        }
        put(&*store, 20);
        assert_eq!(get(&*store, 20, 1), Some(page(20, 1)), "damage at {at}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("pages");
    fs::create_dir(&path).expect("made");
    fs::write(path.join("conf"), "nonsense").expect("writes");
    fs::write(path.join("db"), vec![0xff; 100_000]).expect("writes");
    let store = sled(&path, 1 << 30);
    put(&*store, 1);
    assert_eq!(get(&*store, 1, 1), Some(page(1, 1)));
}

#[test]
fn a_sled_that_another_holds_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("pages");
    let store = sled(&path, 1 << 30);
    put(&*store, 1);
    assert!(SledPages::open(&path, 1 << 30, 1 << 20).is_err());
    assert_eq!(get(&*store, 1, 1), Some(page(1, 1)));
    drop(store);
    assert_eq!(get(&*sled(&path, 1 << 30), 1, 1), Some(page(1, 1)));
}
