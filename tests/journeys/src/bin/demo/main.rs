//! The demo: a Linux guest uses a disk that Lamina serves; its file system is broken and comes back from a snapshot, and is cloned; two of
//! six drives vanish, the daemon is killed, and every byte is still right. Nothing is staged: each figure comes from the daemon's own
//! counters or from the guest.
//!
//! Leaves nothing behind, neither when it ends nor when it is interrupted.

mod guests;
mod past;
mod script;
mod story;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use lamina_contract::units::ByteSize;
use lamina_harness::{Daemon, DaemonOptions, GuestImage, HarnessError, Place, VolumeInfo, cleanup};
use lamina_journeys::{counter, degradations, drain, is_degraded, lose_drive, wait_attached};

use guests::{boot, expect, files_right};
use past::Past;
use script::DEMO;
use story::Story;

/// Far less than the guest writes, so that the second guest's reads have to come from the drives.
const CACHE: ByteSize = ByteSize(16 << 20);

/// What the summary is made of.
#[derive(Default)]
struct Figures {
    written: u64,
    deduplicated: u64,
    stored: u64,
    on_drives: u64,
    degraded_reads: u64,
    recovery: Duration,
    noticed: Duration,
    checked: u64,
}

fn main() -> ExitCode {
    if let Err(error) = cleanup::on_interrupt() {
        eprintln!("cannot watch for signals: {error}");
        return ExitCode::FAILURE;
    }
    let story = Story::begin();
    match tell(&story) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo could not go on: {error}");
            ExitCode::FAILURE
        }
    }
}

fn tell(story: &Story) -> Result<(), HarnessError> {
    let place = Place::new()?;
    let mut figures = Figures::default();
    // Built first: it finds out whether everything that guests need is installed.
    let image = GuestImage::new(DEMO)?;

    story.section("An appliance: one daemon, an SSD directory, six drives, 4 data + 2 parity");
    let (mut daemon, volume) = start(story, &place)?;

    story.section("A guest: partitions the disk, makes a file system, writes and verifies");
    boot(story, &image, &[&volume], "phase=write")?;
    behind(story, &daemon, &volume, &mut figures)?;

    let past = past::tell(story, &image, &daemon, &volume)?;

    story.section("Two of six drives vanish while everything runs");
    lose_drives(story, &daemon, &mut figures)?;

    story.section("The daemon gets kill -9");
    kill(story, &mut daemon, &volume, &mut figures)?;

    story.section("A guest boots from nothing and checks every byte of both disks");
    let report = boot(story, &image, &[&volume, &past.copy], "phase=check")?;
    expect(&report, "left_there_vda", 0)?;
    expect(&report, "left_there_vdb", 1)?;
    figures.checked = files_right(&report, "files_right_vda")? + files_right(&report, "files_right_vdb")?;
    let status = daemon.status()?;
    figures.degraded_reads = counter(&status, &["store", "degraded_reads"]);
    story.say(&format!("all {} checksums are right, with four of six drives", figures.checked));

    let ended = daemon.terminate(Duration::from_secs(30))?;
    story.say(&format!("laminad was told to end, and did ({ended})"));
    summary(story, &figures, &past);
    Ok(())
}

fn start(story: &Story, place: &Place) -> Result<(Daemon, VolumeInfo), HarnessError> {
    let mut options = DaemonOptions::six_drives(place.path())?;
    options.cache = Some(CACHE);
    story.command("laminad --state-dir DIR --drive drive1 … --drive drive6 --policy 4+2");
    let daemon = Daemon::start(options)?;
    story.say(&format!("it says: {}", daemon.ready_line()));
    story.say(&format!("ready after {}", story::time(daemon.ready_after())));
    story.command("lamina volume create demo --size 1GiB");
    let volume = daemon.create_volume("demo", ByteSize(1 << 30))?;
    wait_attached(&volume.socket)?;
    story.say(&format!("a disk of {} is served over vhost-user", volume.size));
    Ok((daemon, volume))
}

fn behind(story: &Story, daemon: &Daemon, volume: &VolumeInfo, figures: &mut Figures) -> Result<(), HarnessError> {
    let begin = Instant::now();
    drain(daemon, &[&volume.name], Duration::from_secs(60))?;
    let counters = daemon.volume(&volume.name)?.json;
    let status = daemon.status()?;
    figures.written = counter(&counters, &["counters", "written_bytes"]);
    figures.deduplicated = counter(&counters, &["counters", "deduplicated_bytes"]);
    figures.stored = counter(&status, &["stored_bytes"]);
    figures.on_drives = counter(&status, &["store", "written_bytes"]);
    story.say(&format!(
        "{} after the guest ended, everything is stored behind: {} in containers, {} on six drives with parity",
        story::time(begin.elapsed()),
        ByteSize(figures.stored),
        ByteSize(figures.on_drives)
    ));
    Ok(())
}

fn lose_drives(story: &Story, daemon: &Daemon, figures: &mut Figures) -> Result<(), HarnessError> {
    story.command("rm -rf drive2 drive5");
    for index in [1, 4] {
        lose_drive(&daemon.drives()[index])?;
    }
    let begin = Instant::now();
    let both = |status: &serde_json::Value| {
        let missing = degradations(status);
        (is_degraded(status) && missing.len() >= 2).then_some(missing)
    };
    let missing = daemon.wait_status("two drives missed", Duration::from_secs(20), both)?;
    figures.noticed = begin.elapsed();
    story.say(&format!("`lamina status` says so after {}:", story::time(figures.noticed)));
    for line in missing {
        story.say(&format!("  {line}"));
    }
    Ok(())
}

fn kill(story: &Story, daemon: &mut Daemon, volume: &VolumeInfo, figures: &mut Figures) -> Result<(), HarnessError> {
    story.command(&format!("kill -9 {}", daemon.pid()));
    daemon.kill();
    let begin = Instant::now();
    daemon.start_again()?;
    wait_attached(&volume.socket)?;
    figures.recovery = begin.elapsed();
    story.say(&format!("started again, with four drives; recovered and serving after {}", story::time(figures.recovery)));
    Ok(())
}

fn summary(story: &Story, figures: &Figures, past: &Past) {
    let ratio = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    story.section("Summary");
    let bytes = |count: u64| ByteSize(count).to_string();
    story.row("written by the guest", &bytes(figures.written));
    let share = ratio(figures.deduplicated, figures.written) * 100.0;
    story.row("deduplicated (known blocks, zeros)", &format!("{} ({share:.0} %)", bytes(figures.deduplicated)));
    story.row("stored in containers and logs", &bytes(figures.stored));
    story.row("on the drives, parity included", &bytes(figures.on_drives));
    let amplification = ratio(figures.on_drives, figures.written);
    story.row("amplification (drives / guest; 4+2 alone is 1.50)", &format!("{amplification:.2}"));
    story.row("snapshot of the running guest's disk", &story::time(past.snapshot));
    story.row("rollback of the broken file system", &story::time(past.rollback));
    story.row("clone of the disk", &story::time(past.clone));
    story.row("drives lost", "2 of 6");
    story.row("the loss was shown after", &story::time(figures.noticed));
    story.row("degraded reads (decoded from what is left)", &figures.degraded_reads.to_string());
    story.row("recovery after kill -9", &story::time(figures.recovery));
    story.row("files checked by the last guest, all right", &figures.checked.to_string());
    story.end();
}
