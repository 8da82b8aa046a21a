//! A real Linux guest lives on a clone: its root file system is there, and nowhere else.

use lamina_contract::units::ByteSize;
use lamina_harness::{GuestImage, GuestOptions, GuestReport, VolumeInfo};
use lamina_journeys::{Bed, ENTER_ROOT, drain, root_disk, wait_attached, wait_unconnected};

const SIZE: ByteSize = ByteSize(24 << 20);

fn boot(image: &GuestImage, clone: &VolumeInfo, name: &str) -> GuestReport {
    let options = GuestOptions { words: format!("as={name}"), ..GuestOptions::with_disk(&clone.socket) };
    let report = image.run(&options).expect("a guest whose userspace is the clone's");
    assert_eq!(report.text("pid").expect("answered"), "1");
    assert_eq!(report.text("machine").expect("answered"), "golden");
    assert_eq!(report.text("root").expect("answered"), "/dev/vda ext4");
    report
}

#[test]
fn a_guest_boots_to_userspace_from_a_clone_and_changes_neither_its_template_nor_another_clone() {
    let bed = Bed::new().expect("a daemon");
    let daemon = &bed.daemon;
    let disk = root_disk("golden", SIZE).expect("a root disk");
    bed.volume("golden", SIZE).expect("a volume");
    daemon.write_data("golden", 0, &disk).expect("imported");
    daemon.take_snapshot("golden", "first").expect("a snapshot");
    daemon.make_template("golden").expect("a template");
    // The clones stand on what the store has.
    drain(daemon, &["golden"], std::time::Duration::from_secs(60)).expect("stored behind");
    let clones = daemon.clone_volume("golden", "first", "desk-{n}", 2).expect("clones");
    for clone in &clones {
        wait_attached(&clone.socket).expect("served");
    }
    let image = GuestImage::new(ENTER_ROOT).expect("an image");
    let first = boot(&image, &clones[0], "one");
    assert_eq!(first.text("marks").expect("answered"), "");
    let second = boot(&image, &clones[1], "two");
    assert_eq!(second.text("marks").expect("answered"), "", "the first guest's mark is on its own disk only");
    wait_unconnected(daemon, "desk-1").expect("QEMU has ended");
    let again = boot(&image, &clones[0], "three");
    assert_eq!(again.text("marks").expect("answered"), "one", "and stays there");
    let mut golden = Vec::new();
    daemon.read_data("golden", |piece| golden.extend_from_slice(piece)).expect("read");
    assert!(golden == disk, "the template changed");
}
