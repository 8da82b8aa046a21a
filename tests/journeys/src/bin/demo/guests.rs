//! The demo's guests: how they are turned on, and what their answers must be.

use std::time::Instant;

use lamina_harness::{Guest, GuestDisk, GuestImage, GuestOptions, GuestReport, HarnessError, VolumeInfo};

use crate::story::{self, Story};

/// Files of 1 MiB that the first guest writes; every fourth is a copy of the one before.
pub(crate) const FILES: u64 = 64;
/// Files of 1 MiB that the second guest writes before the snapshot.
pub(crate) const MORE: u64 = 16;

/// Turns a guest on that has these disks.
pub(crate) fn start(story: &Story, image: &GuestImage, disks: &[&VolumeInfo], phase: &str) -> Result<Guest, HarnessError> {
    let disks = disks.iter().map(|volume| GuestDisk { socket: volume.socket.clone(), queues: 2 }).collect();
    let options = GuestOptions { disks, words: format!("{phase} files={FILES} more={MORE}"), ..GuestOptions::without_disks() };
    story.command("qemu-system-x86_64 … -device vhost-user-blk-pci,chardev=c0 (emulated CPU: it is slow, the disk is not)");
    let begin = Instant::now();
    let mut guest = image.boot(&options)?;
    guest.wait_booted()?;
    story.say(&format!("Linux is up after {}", story::time(begin.elapsed())));
    Ok(guest)
}

/// Turns a guest on, tells what it says, and waits for its end.
pub(crate) fn boot(story: &Story, image: &GuestImage, disks: &[&VolumeInfo], phase: &str) -> Result<GuestReport, HarnessError> {
    start(story, image, disks, phase)?.narrate(|said| story.guest(said))
}

/// How many files a guest found right: all that there must be, or an error.
pub(crate) fn files_right(report: &GuestReport, key: &'static str) -> Result<u64, HarnessError> {
    expect(report, key, FILES + MORE)
}

/// The guest's answer, which must be this number.
pub(crate) fn expect(report: &GuestReport, key: &'static str, wanted: u64) -> Result<u64, HarnessError> {
    match report.number(key)? {
        found if found == wanted => Ok(found),
        found => wrong(key, &format!("{found}, not {wanted}")),
    }
}

/// Something is not as it must be.
pub(crate) fn wrong<T>(expected: &'static str, answer: &str) -> Result<T, HarnessError> {
    Err(HarnessError::Answer { source_of: "demo".to_owned(), expected, answer: answer.to_owned() })
}
