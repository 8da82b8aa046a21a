//! Real Linux guests in QEMU on disks that the real daemon serves.

use std::sync::Arc;
use std::time::Duration;

use lamina_contract::units::{ByteSize, SectorCount};
use lamina_harness::{Backing, Cache, Guest, GuestImage, GuestOptions, Place, StorageDaemon};
use lamina_journeys::{Bed, COUNT_FLUSHES, FILES, FOLLOW_SIZE, LIVE_THROUGH, counter, wait_attached};
use lamina_vhost_blk::{RamDisk, Server, ServerOptions};

const SIZE: ByteSize = ByteSize(256 << 20);

fn phase(socket: &std::path::Path, words: &str) -> GuestOptions {
    GuestOptions { words: words.to_owned(), ..GuestOptions::with_disk(socket) }
}

/// The control: what fails here is the bed's fault, not the daemon's.
#[test]
fn the_scripts_work_on_a_server_that_is_not_ours() {
    let place = Place::new().expect("a directory");
    let server = StorageDaemon::start(place.path(), "disk", SIZE, Backing::Raw(Cache::Cached)).expect("a server");
    let image = GuestImage::new(FILES).expect("an image");
    let report = image.run(&phase(server.socket(), "phase=write files=4")).expect("the guest wrote and checked");
    assert_eq!(report.number("files_right").expect("a number"), 4);
    assert!(report.number("written").expect("a number") > 3 << 20);
}

#[test]
fn a_guest_writes_a_second_one_checks_every_byte_and_a_daemon_killed_between_changes_nothing() {
    let mut bed = Bed::new().expect("a daemon");
    let volume = bed.volume("root", SIZE).expect("a volume");
    let image = GuestImage::new(FILES).expect("an image");
    let first = image.run(&phase(&volume.socket, "phase=write files=16")).expect("the first guest");
    assert_eq!(first.number("files_right").expect("a number"), 16);
    // The VMM has ended; the same daemon serves the next one.
    let second = image.run(&phase(&volume.socket, "phase=append files=8")).expect("the second guest");
    assert_eq!(second.number("files_right").expect("a number"), 24);
    let shown = bed.daemon.volume("root").expect("shown").json;
    assert!(counter(&shown, &["counters", "deduplicated_bytes"]) >= 4 << 20, "copies of files are found: {shown}");
    assert_eq!(counter(&shown, &["counters", "errors"]), 0, "{shown}");
    bed.daemon.kill();
    bed.daemon.start_again().expect("ready again");
    wait_attached(&volume.socket).expect("served again");
    let third = image.run(&phase(&volume.socket, "phase=check")).expect("the third guest");
    assert_eq!(third.number("files_right").expect("a number"), 24);
}

#[test]
fn a_guest_reboots_and_lives_through_a_daemon_that_is_killed_while_its_disk_is_idle() {
    let mut bed = Bed::new().expect("a daemon");
    let volume = bed.volume("root", SIZE).expect("a volume");
    let image = GuestImage::new(LIVE_THROUGH).expect("an image");
    let options = GuestOptions { reboots: true, ..GuestOptions::with_disk(&volume.socket) };
    let mut guest: Guest = image.boot(&options).expect("a machine");
    guest.wait_booted().expect("booted");
    guest.wait_result("first_boot").expect("wrote and rebooted");
    guest.wait_result("idle").expect("came back and found its file");
    // What the guest sent is answered: it is idle. Give its kernel a moment to be done with housekeeping too.
    std::thread::sleep(Duration::from_millis(500));
    bed.daemon.kill();
    bed.daemon.start_again().expect("ready again");
    wait_attached(&volume.socket).expect("served again");
    // QEMU tries to connect every 500 ms.
    bed.daemon
        .wait_status("the guest's connection", Duration::from_secs(60), |_| {
            let shown = bed.daemon.volume("root").ok()?;
            (shown.json["connected"] == true).then_some(())
        })
        .expect("connected again");
    guest.type_line("go").expect("typed");
    let report = guest.wait_done().expect("it went on");
    assert_eq!(report.text("told").expect("an answer").trim(), "go");
    assert_eq!(report.number("right").expect("a number"), 1);
}

#[test]
fn each_fsync_of_a_guest_with_default_config_wce_arrives_as_a_flush() {
    let bed = Bed::new().expect("a daemon");
    let volume = bed.volume("root", SIZE).expect("a volume");
    let image = GuestImage::new(COUNT_FLUSHES).expect("an image");
    let report = image.run(&GuestOptions::with_disk(&volume.socket)).expect("a report");
    let number = |key| report.number(key).expect("a number");
    assert_eq!(report.text("cache").expect("an answer"), "write back", "the guest must see a write cache");
    assert_eq!(number("bare") - number("before"), 20, "the guest's kernel sends one flush for each fsync of the bare disk");
    assert!(number("files") - number("mounted") >= 20, "and at least one for each fsync of a file");
    let shown = bed.daemon.volume("root").expect("shown").json;
    assert_eq!(counter(&shown, &["counters", "flushes"]), number("after"), "as many arrived as the guest's kernel sent");
}

/// A server of this process, so that the disk can be resized under the guest.
#[test]
fn a_running_guest_follows_its_disk_that_grows_and_shrinks_also_while_the_server_is_away() {
    const MIB: u64 = 1 << 11;
    let place = Place::new().expect("a directory");
    let socket = place.path().join("disk.sock");
    let disk = Arc::new(RamDisk::new(SectorCount(64 * MIB)));
    let bind = || Server::bind(&socket, disk.clone(), ServerOptions::default()).expect("a server");
    let server = bind();
    let image = GuestImage::new(FOLLOW_SIZE).expect("an image");
    let mut guest = image.boot(&GuestOptions::with_disk(&socket)).expect("a machine");
    let follows = |guest: &mut Guest, mib: u64| {
        guest.type_line(&(mib * MIB).to_string()).expect("typed");
        assert_eq!(guest.wait_result("seen").expect("the guest follows").trim(), (mib * MIB).to_string());
    };
    guest.wait_booted().expect("booted");
    assert_eq!(guest.wait_result("seen").expect("its size").trim(), (64 * MIB).to_string());
    for mib in [96, 32, 4096] {
        guest.forget_output();
        disk.resize(SectorCount(mib * MIB));
        server.resized();
        follows(&mut guest, mib);
    }
    assert_eq!(server.counters().config_changes, 3);
    drop(server);
    disk.resize(SectorCount(128 * MIB));
    guest.forget_output();
    // QEMU comes back every 500 ms and does not ask how large the disk is: the server says that it should.
    let server = bind();
    follows(&mut guest, 128);
    assert_eq!(server.counters().config_changes, 1);
    guest.type_line("end").expect("typed");
    guest.wait_done().expect("it went on to the end");
}
