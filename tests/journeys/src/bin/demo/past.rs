//! The chapters on snapshots: a guest's disk is cut while the guest runs, broken, taken back, and cloned.

use std::hash::{DefaultHasher, Hasher};
use std::time::{Duration, Instant};

use lamina_harness::{Daemon, GuestImage, HarnessError, VolumeInfo};
use lamina_journeys::{drain, wait_attached, wait_unconnected};

use crate::guests::{boot, expect, files_right, start, wrong};
use crate::story::{self, Story};

const SNAPSHOT: &str = "before";
const COPY: &str = "copy";

/// What the summary tells of it.
pub(crate) struct Past {
    /// The clone.
    pub(crate) copy: VolumeInfo,
    /// How long each call took.
    pub(crate) snapshot: Duration,
    pub(crate) rollback: Duration,
    pub(crate) clone: Duration,
}

pub(crate) fn tell(story: &Story, image: &GuestImage, daemon: &Daemon, volume: &VolumeInfo) -> Result<Past, HarnessError> {
    let name = volume.name.as_str();
    story.section("A snapshot of a disk in use, and then a bad day");
    let mut guest = start(story, image, &[volume], "phase=work")?;
    story.guest(&guest.wait_result("synced")?);
    let begin = Instant::now();
    story.command(&format!("lamina snapshot create {name}@{SNAPSHOT}"));
    daemon.take_snapshot(name, SNAPSHOT)?;
    let snapshot = begin.elapsed();
    story.say(&format!("snapshot {name}@{SNAPSHOT} after {}, the guest did not stop", story::time(snapshot)));
    guest.type_line("go on")?;
    let left = guest.wait_result("files_left")?;
    story.guest(&format!("rm -rf /mnt/*: {left} files left"));
    story.guest(&format!("16 MiB of noise over the superblock: {}", guest.wait_result("refused")?.trim()));
    let report = guest.wait_done()?;
    expect(&report, "files_left", 0)?;
    wait_unconnected(daemon, name)?;

    story.section("Back to the snapshot");
    let rollback = roll_back(story, daemon, name)?;
    let report = boot(story, image, &[volume], "phase=recover")?;
    let right = files_right(&report, "files_right_vda")?;
    story.say(&format!("all {right} files are back"));
    wait_unconnected(daemon, name)?;

    story.section("A clone of the disk, for another guest");
    let before = checksum(daemon, name)?;
    let (copy, clone) = make_clone(story, daemon, name)?;
    let report = boot(story, image, &[&copy], "phase=copy")?;
    files_right(&report, "files_right_vda")?;
    expect(&report, "left_there_vda", 1)?;
    if checksum(daemon, name)? != before {
        return wrong("an unchanged original", "its bytes are others");
    }
    story.say(&format!("every byte of {name} is what it was, so the file is on {COPY} only"));
    wait_unconnected(daemon, COPY)?;
    // Two drives fewer would not take it.
    drain(daemon, &[name, COPY], Duration::from_secs(60))?;
    Ok(Past { copy, snapshot, rollback, clone })
}

fn roll_back(story: &Story, daemon: &Daemon, name: &str) -> Result<Duration, HarnessError> {
    story.command(&format!("lamina volume rollback {name}@{SNAPSHOT} --yes"));
    let begin = Instant::now();
    let discarded = daemon.roll_back(name, SNAPSHOT)?;
    let took = begin.elapsed();
    story.say(&format!("{name} is what it was, after {}; its snapshots now:", story::time(took)));
    let mut kept = false;
    for snapshot in daemon.snapshots(name)? {
        let (of, automatic) = (snapshot["name"].as_str().unwrap_or("?"), snapshot["automatic"] == true);
        kept |= automatic && of == discarded;
        let what = if automatic { "automatic: what the rollback discarded" } else { "made by hand" };
        story.say(&format!("  {name}@{of}  {what}"));
    }
    if kept { Ok(took) } else { wrong("an automatic snapshot of what was discarded", &discarded) }
}

fn make_clone(story: &Story, daemon: &Daemon, name: &str) -> Result<(VolumeInfo, Duration), HarnessError> {
    story.command(&format!("lamina volume clone {name}@{SNAPSHOT} --name {COPY}"));
    let begin = Instant::now();
    let made = daemon.clone_volume(name, SNAPSHOT, COPY, 1)?;
    let took = begin.elapsed();
    let Some(copy) = made.into_iter().next() else { return wrong("a clone", "none") };
    wait_attached(&copy.socket)?;
    story.say(&format!("a disk of {} that begins as {name}@{SNAPSHOT}, served after {}", copy.size, story::time(took)));
    Ok((copy, took))
}

/// Of every byte of a volume, through the management interface.
fn checksum(daemon: &Daemon, name: &str) -> Result<u64, HarnessError> {
    let mut sum = DefaultHasher::new();
    daemon.read_data(name, |piece| sum.write(piece))?;
    Ok(sum.finish())
}
