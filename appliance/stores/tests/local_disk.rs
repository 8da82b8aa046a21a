//! The node's disk on a real directory: every promise of the seam that can be seen without pulling the plug.

use std::io::{ErrorKind, IoSlice};
use std::sync::mpsc;
use std::sync::{Arc, Barrier};

use lamina_contract::{Disk, DiskFile, Space};
use lamina_stores::conformance::sample;
use lamina_stores::{LocalDisk, MemoryDisk};

fn write(file: &dyn DiskFile, offset: u64, bytes: &[u8]) {
    file.write_at(offset, &[IoSlice::new(bytes)]).expect("written");
}

fn read(file: &dyn DiskFile, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_at(offset, &mut bytes).expect("read");
    bytes
}

/// What both implementations promise.
fn behaves(disk: &dyn Disk) {
    assert!(disk.list().expect("listed").is_empty());
    assert_eq!(disk.open("none").err().map(|error| error.kind()), Some(ErrorKind::NotFound));
    let file = disk.create("segment-1", 1 << 20, Space::Allocated).expect("created");
    assert_eq!((file.len(), file.is_empty()), (1 << 20, false));
    assert_eq!(read(&*file, 0, 1 << 20), vec![0; 1 << 20], "a new file reads as zeros");
    let bytes = sample(1, 300_000);
    let slices: Vec<IoSlice<'_>> = bytes.chunks(77).map(IoSlice::new).collect();
    file.write_at(4096, &slices).expect("thousands of buffers are written");
    assert_eq!(read(&*file, 4096, bytes.len()), bytes);
    write(&*file, (1 << 20) - 1, &[9]);
    assert_eq!(read(&*file, (1 << 20) - 1, 1), [9]);
    let mut past = [0; 2];
    assert_eq!(file.read_at((1 << 20) - 1, &mut past).map_err(|error| error.kind()), Err(ErrorKind::UnexpectedEof));
    assert_eq!(file.read_at(u64::MAX, &mut past).map_err(|error| error.kind()), Err(ErrorKind::UnexpectedEof));
    assert!(file.read_cached(1 << 20, &mut past).is_err());
    let outside = file.write_at((1 << 20) - 1, &[IoSlice::new(&[1, 2])]);
    assert!(outside.is_err(), "a file does not grow");
    file.sync_data().expect("synced");
    disk.sync_names().expect("synced");
    // The same length opens, another replaces.
    let again = disk.create("segment-1", 1 << 20, Space::Allocated).expect("opened");
    assert_eq!(read(&*again, 4096, 100), bytes[..100]);
    let shorter = disk.create("segment-1", 8192, Space::Allocated).expect("replaced");
    assert_eq!(read(&*shorter, 0, 8192), vec![0; 8192]);
    assert_eq!(read(&*file, 4096, 100), bytes[..100], "who had the old one still has it");
    disk.create("other", 0, Space::Allocated).expect("an empty one");
    disk.rename("segment-1", "other").expect("renamed over");
    assert_eq!(disk.list().expect("listed"), ["other"]);
    assert_eq!(disk.open("other").expect("opened").len(), 8192);
    disk.remove("other").expect("removed");
    disk.remove("other").expect("a missing one is fine");
    assert!(disk.rename("other", "x").is_err());
    assert!(disk.list().expect("listed").is_empty());
    // In the background: many at once, past the end too.
    let file = disk.create("data", 4 << 20, Space::Allocated).expect("created");
    let bytes = sample(2, 4 << 20);
    write(&*file, 0, &bytes);
    let (send, receive) = mpsc::channel();
    for n in 0..2000_u64 {
        let (send, offset) = (send.clone(), n * 7919 % ((4 << 20) - 4096));
        let len = 1 + (n * 31 % 4096) as usize;
        file.read_later(offset, vec![0; len], Box::new(move |read| send.send((offset, len, read)).expect("awaited")));
    }
    for _ in 0..2000 {
        let (offset, len, read) = receive.recv().expect("every read is answered");
        assert_eq!(read.expect("read"), bytes[offset as usize..offset as usize + len]);
    }
    let (send, receive) = mpsc::channel();
    file.read_later(4 << 20, vec![0; 1], Box::new(move |read| send.send(read).expect("awaited")));
    assert_eq!(receive.recv().expect("answered").map_err(|error| error.kind()), Err(ErrorKind::UnexpectedEof));
    let (send, receive) = mpsc::channel();
    file.read_later(0, Vec::new(), Box::new(move |read| send.send(read).expect("awaited")));
    assert!(receive.recv().expect("answered").expect("nothing is read").is_empty());
    disk.remove("data").expect("removed");
}

#[test]
fn the_local_disk_behaves() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = LocalDisk::open(directory.path().join("made")).expect("opened");
    behaves(&disk);
    assert_eq!(std::fs::read_dir(directory.path().join("made")).expect("listed").count(), 0, "nothing hidden stays");
}

#[test]
fn the_memory_disk_behaves() {
    behaves(&MemoryDisk::default());
}

#[test]
fn space_is_allocated_when_a_file_is_made() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().expect("a directory");
    let disk = LocalDisk::open(directory.path()).expect("opened");
    disk.create("segment", 8 << 20, Space::Allocated).expect("created");
    let blocks = std::fs::metadata(directory.path().join("segment")).expect("there").blocks();
    assert!(blocks * 512 >= 8 << 20, "{blocks} blocks");
    let error = disk.create("huge", 1 << 50, Space::Allocated).err().expect("no disk is that large");
    assert!(matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::FileTooLarge), "{error}");
    assert_eq!(disk.list().expect("listed"), ["segment"]);
    assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 1, "nothing of it stays");
}

#[test]
fn files_that_were_never_finished_go_at_the_next_open() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join(".unfinished-segment"), "half").expect("written");
    std::fs::write(directory.path().join("segment"), "whole").expect("written");
    let disk = LocalDisk::open(directory.path()).expect("opened");
    assert_eq!(disk.list().expect("listed"), ["segment"]);
    assert!(!directory.path().join(".unfinished-segment").exists());
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = LocalDisk::open(directory.path()).expect("opened");
    for name in ["", ".", "..", "../x", "a/b", ".hidden", "nul\0"] {
        assert!(
            disk.create(name, 1, Space::Allocated).is_err() && disk.open(name).is_err() && disk.remove(name).is_err(),
            "{name:?}"
        );
        assert!(disk.rename(name, "x").is_err() && disk.rename("x", name).is_err(), "{name:?}");
    }
    std::os::unix::fs::symlink("/etc/passwd", directory.path().join("link")).expect("linked");
    assert!(disk.open("link").is_err());
    std::fs::create_dir(directory.path().join("directory")).expect("made");
    assert!(disk.open("directory").is_err());
}

#[test]
fn what_was_just_written_is_cached_and_what_was_dropped_is_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = LocalDisk::open(directory.path()).expect("opened");
    let file = disk.create("data", 64 << 20, Space::Allocated).expect("created");
    let bytes = sample(1, 4096);
    write(&*file, 32 << 20, &bytes);
    let mut buf = vec![0; 4096];
    if file.read_cached(32 << 20, &mut buf).expect("read") {
        assert_eq!(buf, bytes);
    } else {
        eprintln!("this file system cannot tell what is cached");
        return;
    }
    file.sync_data().expect("synced");
    let raw = std::fs::File::open(directory.path().join("data")).expect("opened");
    rustix::fs::fadvise(&raw, 0, None, rustix::fs::Advice::DontNeed).expect("dropped");
    assert!(!file.read_cached(32 << 20, &mut buf).expect("asked"), "it would have to wait");
    assert_eq!(read(&*file, 32 << 20, 4096), bytes);
}

#[test]
fn a_receiver_that_panics_or_ends_the_disk_harms_nobody_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = LocalDisk::open(directory.path()).expect("opened");
    let file = disk.create("data", 4096, Space::Allocated).expect("created");
    let (send, receive) = mpsc::channel();
    file.read_later(0, vec![0; 4096], Box::new(|_| panic!("a receiver's bug")));
    let other = send.clone();
    file.read_later(0, vec![0; 4096], Box::new(move |read| other.send(read.is_ok()).expect("awaited")));
    assert!(receive.recv().expect("answered"));
    // The last handles go away inside a callback, with reads still queued.
    let barrier = Arc::new(Barrier::new(2));
    let (last, gate) = (Arc::clone(&file), Arc::clone(&barrier));
    file.read_later(
        0,
        vec![0; 4096],
        Box::new(move |_| {
            gate.wait();
            drop(last);
        }),
    );
    for _ in 0..600 {
        let send = send.clone();
        file.read_later(0, vec![0; 4096], Box::new(move |read| send.send(read.is_ok()).expect("awaited")));
    }
    drop((file, disk));
    barrier.wait();
    drop(send);
    assert_eq!(receive.iter().filter(|ok| *ok).count(), 600, "every read is answered");
}

#[test]
fn written_space_has_no_hole_and_allocated_space_is_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = LocalDisk::open(directory.path()).expect("opened");
    // Longer than what is zeroed at once, and no multiple of it.
    let len = (5 << 20) + 4096;
    for (space, hole) in [(Space::Written, len), (Space::Allocated, 0)] {
        disk.create("segment", len, space).expect("created");
        let file = std::fs::File::open(directory.path().join("segment")).expect("there");
        assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).expect("sought"), hole, "{space:?}");
        disk.remove("segment").expect("removed");
    }
}
