//! Real power loss: an ext4 on a loop device is shut down in the middle of puts and deletes, without its journal being flushed, and
//! mounted again. Skipped, saying so, where loop devices and mounts are not permitted.

use std::collections::HashMap;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::path::{Path as FsPath, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::TryStreamExt;
use lamina_contract::{Disk, Space, Timestamp};
use lamina_formats::drive::{DriveId, DriveIdentity, PoolId};
use lamina_stores::conformance::sample;
use lamina_stores::{DriveStore, LocalDisk, is_device_error};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

/// `EXT4_IOC_SHUTDOWN`, and its flag for losing what the journal has not committed.
const SHUTDOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;
static NO_LOG_FLUSH: u32 = 2;

struct Volume {
    _directory: tempfile::TempDir,
    image: PathBuf,
    at: PathBuf,
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

impl Volume {
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().ok()?;
        let (image, at) = (directory.path().join("image"), directory.path().join("at"));
        std::fs::create_dir(&at).ok()?;
        std::fs::File::create(&image).and_then(|file| file.set_len(96 << 20)).ok()?;
        let volume = Self { image, at, _directory: directory };
        (run("mkfs.ext4", &["-q", volume.image.to_str()?]) && volume.mount()).then_some(volume)
    }

    fn mount(&self) -> bool {
        let paths = (self.image.to_str().unwrap_or_default(), self.at.to_str().unwrap_or_default());
        run("mount", &["-o", "loop", paths.0, paths.1])
    }

    fn unmount(&self) -> bool {
        run("umount", &[self.at.to_str().unwrap_or_default()])
    }

    fn pull_the_plug(&self) {
        let root = std::fs::File::open(&self.at).expect("opened");
        // SAFETY: the request takes a pointer to a u32 that it only reads, and `NO_LOG_FLUSH` outlives the call.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &raw const NO_LOG_FLUSH) };
        assert_eq!(result, 0, "shut down: {}", std::io::Error::last_os_error());
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if !self.unmount() {
            let _ = run("umount", &["-l", self.at.to_str().unwrap_or_default()]);
        }
    }
}

fn open(at: &FsPath) -> DriveStore {
    DriveStore::open(at, PoolId(7)).expect("opened")
}

/// What each key may hold: the last acknowledged state, and whatever was tried since.
type Model = HashMap<Path, Vec<Option<Bytes>>>;

/// Puts and deletes until the plug is pulled.
async fn writer(store: DriveStore, number: u64, round: u64) -> Model {
    let mut model = Model::new();
    for step in 0.. {
        // Directories that come and go, and some that stay.
        let key = Path::from(format!("ns{}/w{number}-{}/object", step % 2, step % 5));
        let possible = model.entry(key.clone()).or_insert_with(|| vec![None]);
        let bytes = sample(round * 1_000_000 + number * 10_000 + step, 1000 + (step as usize * 7919) % 120_000);
        let (told, next) = if step % 4 == 3 {
            (store.delete(&key).await.map(|_| ()), None)
        } else {
            (store.put(&key, bytes.clone().into()).await.map(|_| ()), Some(bytes))
        };
        match told {
            Ok(()) => *possible = vec![next],
            Err(error) => {
                assert!(is_device_error(&error), "{error:?}");
                possible.push(next);
                break;
            }
        }
    }
    model
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_put_or_delete_is_lost_with_the_power() {
    let Some(volume) = Volume::new() else {
        eprintln!("skipped: loop devices or mounts are not permitted here");
        return;
    };
    let identity = DriveIdentity { drive: DriveId(1), pool: PoolId(7), slot: 0, created: Timestamp(1) };
    let drive = volume.at.clone();
    DriveStore::claim(&drive, &identity).expect("claimed");
    let mut acknowledged = 0;
    for round in 0..6_u64 {
        let store = open(&drive);
        let writers: Vec<_> = (0..6).map(|number| tokio::spawn(writer(store.clone(), number, round))).collect();
        tokio::time::sleep(Duration::from_millis(120 + 35 * round)).await;
        volume.pull_the_plug();
        let models: Vec<Model> = join_all(writers).await.into_iter().map(|model| model.expect("a writer")).collect();
        assert!(store.put(&"after".into(), sample(1, 10).into()).await.is_err(), "nothing is taken after that");
        drop(store);
        assert!(volume.unmount() && volume.mount(), "the file system comes back");
        let store = open(&drive);
        let mut listed: HashMap<Path, ObjectMeta> =
            store.list(None).map_ok(|meta| (meta.location.clone(), meta)).try_collect().await.expect("listed");
        for (key, possible) in models.into_iter().flatten() {
            let found = match store.get(&key).await {
                Ok(got) => Some(got.bytes().await.expect("reads")),
                Err(object_store::Error::NotFound { .. }) => None,
                Err(error) => panic!("round {round}: {key}: {error}"),
            };
            assert!(possible.contains(&found), "round {round}: {key} is neither what was acknowledged nor what was tried after");
            assert_eq!(listed.remove(&key).is_some(), found.is_some());
            acknowledged += 1;
            store.delete(&key).await.expect("deleted");
        }
        assert!(listed.is_empty(), "round {round}: objects that nobody put: {listed:?}");
        drop(store);
    }
    assert!(acknowledged > 30, "something was written: {acknowledged}");
}

#[test]
fn a_file_whose_sync_failed_stays_failed() {
    let Some(volume) = Volume::new() else {
        eprintln!("skipped: loop devices or mounts are not permitted here");
        return;
    };
    let disk = LocalDisk::open(volume.at.join("cache")).expect("opened");
    let file = disk.create("segment", 1 << 20, Space::Allocated).expect("created");
    file.write_at(0, &[IoSlice::new(&[7; 4096])]).expect("written");
    file.sync_data().expect("synced");
    file.write_at(4096, &[IoSlice::new(&[8; 4096])]).expect("written");
    disk.sync_names().expect("synced");
    volume.pull_the_plug();
    assert!(file.sync_data().is_err(), "the device is gone");
    assert!(file.sync_data().is_err(), "and an fsync is never believed again");
    let again: Arc<dyn lamina_contract::DiskFile> = match disk.open("segment") {
        Ok(again) => again,
        // Shut down, some kernels do not even open.
        Err(_) => return,
    };
    assert!(again.sync_data().is_err(), "not through another handle either");
}

/// On space that is only allocated ext4 says yes to one sync in seven that the plug interrupts, and the bytes are gone.
#[test]
fn what_a_sync_called_durable_is_there_even_when_the_power_went_in_the_middle_of_it() {
    const LEN: u64 = 32 << 20;
    const PAGE: usize = 4096;
    let Some(volume) = Volume::new() else {
        eprintln!("skipped: loop devices or mounts are not permitted here");
        return;
    };
    for round in 0..30_u64 {
        let disk = LocalDisk::open(volume.at.join("journal")).expect("opened");
        disk.remove("segment").expect("removed");
        let file = disk.create("segment", LEN, Space::Written).expect("created");
        disk.sync_names().expect("synced");
        let (begun, begins) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            (0..LEN / PAGE as u64)
                .take_while(|page| {
                    let stamp = [(*page % 251) as u8 + 1; PAGE];
                    let durable = file.write_at(page * PAGE as u64, &[IoSlice::new(&stamp)]).and_then(|()| file.sync_data());
                    // Nobody listens any more after the first.
                    let _ = begun.send(());
                    durable.is_ok()
                })
                .count()
        });
        begins.recv().expect("a first page");
        std::thread::sleep(Duration::from_micros(5_000 + 1_377 * round));
        volume.pull_the_plug();
        let durable = writer.join().expect("no panic");
        assert!(durable > 0, "nothing was written before the plug was pulled");
        drop(disk);
        assert!(volume.unmount() && volume.mount(), "the file system comes back");
        let bytes = std::fs::read(volume.at.join("journal/segment")).expect("there");
        let lost = bytes
            .chunks(PAGE)
            .take(durable)
            .enumerate()
            .find(|(page, found)| found.iter().any(|byte| *byte != (*page % 251) as u8 + 1));
        assert!(lost.is_none(), "round {round}: page {:?} of {durable} is lost", lost.map(|(page, _)| page));
    }
}

#[test]
fn written_space_is_written_when_it_has_its_name() {
    const LEN: u64 = 8 << 20;
    let Some(volume) = Volume::new() else {
        eprintln!("skipped: loop devices or mounts are not permitted here");
        return;
    };
    let disk = LocalDisk::open(volume.at.join("journal")).expect("opened");
    for (name, space) in [("written", Space::Written), ("allocated", Space::Allocated)] {
        disk.create(name, LEN, space).expect("created");
    }
    disk.sync_names().expect("synced");
    volume.pull_the_plug();
    drop(disk);
    assert!(volume.unmount() && volume.mount(), "the file system comes back");
    // Nothing is in the page cache now: what is no hole was on the device.
    let hole = |name| {
        let file = std::fs::File::open(volume.at.join("journal").join(name)).expect("there");
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).expect("sought")
    };
    assert_eq!(hole("written"), LEN);
    assert_eq!(hole("allocated"), 0, "else this test could not fail");
}
