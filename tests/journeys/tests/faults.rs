//! Things that operators and hardware get wrong: each has a clear message, and nothing is lost.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lamina_contract::units::ByteSize;
use lamina_harness::{Crash, Daemon, DaemonOptions, HarnessError, LoopFs, Place, WriterMix};
use lamina_journeys::{Bed, Storm, StormReport, counter, degradations, drain, is_degraded, lose_drive};

const REGION: ByteSize = ByteSize(32 << 20);
/// A refusal is a matter of reading a few files.
const REFUSES_WITHIN: Duration = Duration::from_secs(30);

/// Stamped data on two volumes, stored behind.
fn written(bed: &Bed) -> Storm {
    let mut storm = Storm::new(&bed.daemon, 2, REGION, WriterMix::default(), 11).expect("volumes");
    blow(&mut storm, 600);
    drain(&bed.daemon, &storm.names(), Duration::from_secs(90)).expect("stored behind");
    storm
}

fn blow(storm: &mut Storm, milliseconds: u64) {
    let quiet = || {
        std::thread::sleep(Duration::from_millis(milliseconds));
        Ok(false)
    };
    storm.blow(quiet).expect("a storm");
}

fn nothing_lost(storm: &mut Storm, what: &str) {
    let mut report = StormReport::default();
    storm.check(what, Crash::Kill, &mut report).expect("an image");
    assert_eq!(storm.writers().map(|writer| writer.errors()).sum::<u64>(), 0, "{what}: the disk answered errors");
}

/// Starts it, expects it to refuse with an exit code that is neither success nor a signal, and returns what it said.
fn refused(options: &DaemonOptions) -> String {
    let (status, said) = Daemon::start_refused(options, REFUSES_WITHIN).expect("it ended");
    assert!(status.code().is_some_and(|code| code != 0 && code < 100), "{status}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn says(said: &str, any_of: &[&str]) {
    let low = said.to_lowercase();
    assert!(any_of.iter().any(|word| low.contains(word)), "expected one of {any_of:?} in:\n{said}");
}

fn rename(from: &Path, to: &Path) {
    std::fs::rename(from, to).expect("renamed");
}

#[test]
fn two_drives_vanish_under_load_and_every_byte_is_still_right() {
    let mut bed = Bed::with(|options, _| {
        // Without a cache, reads have to come from the drives.
        options.cache = Some(ByteSize(0));
        Ok(())
    })
    .expect("a daemon");
    let mut storm = written(&bed);
    let (daemon, drives) = (&bed.daemon, bed.daemon.drives().to_vec());
    let mut noticed = Duration::MAX;
    storm
        .blow(|| {
            lose_drive(&drives[1])?;
            lose_drive(&drives[4])?;
            let begin = Instant::now();
            daemon.wait_status("degraded", Duration::from_secs(20), |status| {
                (is_degraded(status) && degradations(status).len() >= 2).then_some(())
            })?;
            noticed = begin.elapsed();
            std::thread::sleep(Duration::from_millis(500));
            Ok(false)
        })
        .expect("a storm");
    println!("degraded after {noticed:?}");
    assert!(noticed < Duration::from_secs(3), "it took {noticed:?} to say so");
    assert!(!drives[1].exists() && !drives[4].exists(), "a lost drive must not be made again");
    nothing_lost(&mut storm, "two drives gone");
    // Four drives are too few to store anything new (a write needs five): what was written since is in the journal, and is
    // there again for a daemon that never saw the two drives.
    bed.daemon.kill();
    bed.daemon.start_again().expect("ready, degraded");
    nothing_lost(&mut storm, "two drives gone, restarted");
    let status = bed.daemon.status().expect("a status");
    assert!(is_degraded(&status), "{status}");
    assert!(counter(&status, &["store", "degraded_reads"]) > 0, "{status}");
}

#[test]
fn a_missing_drive_degrades_and_too_many_are_refused_by_name() {
    let mut bed = Bed::new().expect("a daemon");
    let mut storm = written(&bed);
    let drives = bed.daemon.drives().to_vec();
    assert!(bed.daemon.terminate(Duration::from_secs(60)).expect("ended").success());
    let away: Vec<PathBuf> = drives.iter().map(|drive| drive.with_extension("away")).collect();
    rename(&drives[2], &away[2]);
    bed.daemon.start_again().expect("ready with five drives");
    let missing =
        |status: &serde_json::Value| (is_degraded(status) && !degradations(status).is_empty()).then(|| degradations(status));
    let said = bed.daemon.wait_status("degraded", Duration::from_secs(5), missing).expect("degraded").join("\n");
    says(&said, &["drive3", "missing", "target"]);
    nothing_lost(&mut storm, "one drive missing");
    blow(&mut storm, 200);
    drain(&bed.daemon, &storm.names(), Duration::from_secs(90)).expect("stored behind, on five drives");
    assert!(bed.daemon.terminate(Duration::from_secs(60)).expect("ended").success());
    rename(&drives[0], &away[0]);
    rename(&drives[1], &away[1]);
    let said = refused(&bed.daemon.options().clone());
    says(&said, &["drive"]);
    for index in [0, 1, 2] {
        assert!(!drives[index].exists(), "a missing drive must not be made");
        rename(&away[index], &drives[index]);
    }
    bed.daemon.start_again().expect("ready with all");
    nothing_lost(&mut storm, "all drives back");
}

#[test]
fn a_blank_drive_is_not_claimed_silently() {
    let mut bed = Bed::new().expect("a daemon");
    let mut storm = written(&bed);
    let drive = bed.daemon.drives()[3].clone();
    bed.daemon.kill();
    let kept = drive.with_extension("kept");
    rename(&drive, &kept);
    std::fs::create_dir(&drive).expect("a blank one");
    match bed.daemon.start_again() {
        Ok(()) => {
            let status = bed.daemon.status().expect("a status");
            assert!(is_degraded(&status), "{status}");
            says(&degradations(&status).join("\n"), &["blank", "missing", "claim"]);
            nothing_lost(&mut storm, "one drive blank");
            blow(&mut storm, 300);
            drain(&bed.daemon, &storm.names(), Duration::from_secs(90)).expect("stored behind");
            let identity = std::fs::read_dir(&drive).expect("there").count();
            assert_eq!(identity, 0, "the blank drive was written to");
            bed.daemon.kill();
        }
        Err(HarnessError::Ended { log, .. }) => says(&log, &["blank", "empty", "claim"]),
        Err(other) => panic!("{other}"),
    }
    std::fs::remove_dir(&drive).expect("still blank");
    rename(&kept, &drive);
    bed.daemon.start_again().expect("ready");
    nothing_lost(&mut storm, "the drive is back");
}

#[test]
fn swapped_drives_are_known_by_their_identity() {
    let mut bed = Bed::new().expect("a daemon");
    let mut storm = written(&bed);
    let drives = bed.daemon.drives().to_vec();
    bed.daemon.kill();
    let aside = drives[0].with_extension("aside");
    rename(&drives[0], &aside);
    rename(&drives[5], &drives[0]);
    rename(&aside, &drives[5]);
    match bed.daemon.start_again() {
        Ok(()) => nothing_lost(&mut storm, "swapped"),
        Err(HarnessError::Ended { log, .. }) => {
            says(&log, &["swap", "identity", "other drive"]);
            rename(&drives[0], &aside);
            rename(&drives[5], &drives[0]);
            rename(&aside, &drives[5]);
            bed.daemon.start_again().expect("ready");
        }
        Err(other) => panic!("{other}"),
    }
    blow(&mut storm, 300);
    nothing_lost(&mut storm, "swapped, written");
}

#[test]
fn a_drive_of_another_pool_or_with_somebodys_files_is_left_alone() {
    let other = Bed::new().expect("another daemon");
    let mut bed = Bed::new().expect("a daemon");
    let mut storm = written(&bed);
    bed.daemon.kill();
    let place = other.place.path().join("drive1");
    let Bed { daemon, place: kept } = other;
    drop(daemon);
    let mut options = bed.daemon.options().clone();
    options.drives[0] = place;
    let said = match Daemon::start(options) {
        Ok(daemon) => degradations(&daemon.status().expect("a status")).join("\n"),
        Err(HarnessError::Ended { log, .. }) => log,
        Err(other) => panic!("{other}"),
    };
    says(&said, &["pool", "foreign", "belongs"]);
    drop(kept);

    let place = Place::new().expect("a directory");
    let mut options = DaemonOptions::six_drives(place.path()).expect("drives");
    let precious = options.drives[2].join("thesis.txt");
    std::fs::write(&precious, "precious").expect("written");
    let said = refused(&options);
    says(&said, &["drive3"]);
    assert_eq!(std::fs::read(&precious).expect("there"), b"precious");
    // With the file gone it works: the refusal left nothing half-made behind.
    std::fs::remove_file(&precious).expect("removed");
    options.ready_within = Duration::from_secs(60);
    drop(Daemon::start(options).expect("ready"));

    bed.daemon.start_again().expect("ready");
    nothing_lost(&mut storm, "after a foreign drive");
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused_and_the_first_goes_on() {
    let mut bed = Bed::new().expect("a daemon");
    let mut storm = written(&bed);
    let pid = bed.daemon.pid().to_string();
    let options = bed.daemon.options().clone();
    let mut said = String::new();
    storm
        .blow(|| {
            said = refused(&options);
            Ok(false)
        })
        .expect("a storm");
    says(&said, &[&pid]);
    // The same drives under another state directory are refused too.
    let place = Place::new().expect("a directory");
    let elsewhere = DaemonOptions { state: place.path().join("state"), ..options };
    let said = refused(&elsewhere);
    says(&said, &["drive", "in use", "lock"]);
    nothing_lost(&mut storm, "second daemon");
    assert!(bed.daemon.terminate(Duration::from_secs(60)).expect("ended").success());
}

#[test]
fn wrong_configuration_is_refused_whole_with_the_reason() {
    let place = Place::new().expect("a directory");
    let good = DaemonOptions::six_drives(place.path()).expect("drives");
    let with = |change: &dyn Fn(&mut DaemonOptions)| {
        let mut options = good.clone();
        change(&mut options);
        refused(&options)
    };
    says(&with(&|options| options.policy = "4-2".to_owned()), &["4+2", "x+p"]);
    says(&with(&|options| options.policy = "8+4".to_owned()), &["12", "drives", "targets"]);
    says(&with(&|options| options.drives[1] = options.drives[0].clone()), &["twice", "same", "duplicate"]);
    says(&with(&|options| options.drives[1] = place.path().join("nowhere")), &["nowhere"]);
    let banana = |options: &mut DaemonOptions| {
        options.journal = None;
        options.extra = vec!["--journal-size".to_owned(), "banana".to_owned()];
    };
    says(&with(&banana), &["banana"]);
    says(&with(&|options| options.extra = vec!["--no-such-flag".to_owned()]), &["no-such-flag"]);
    says(&with(&|options| options.journal = Some(ByteSize(4096))), &["journal"]);

    let yaml = place.path().join("lamina.yaml");
    std::fs::write(&yaml, "policy: 4+2\njurnal_size: 1GiB\n").expect("written");
    let mut command = std::process::Command::new(lamina_harness::binary("laminad").expect("built"));
    let output = command.arg("--config").arg(&yaml).arg("--check").output().expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    says(&said, &["jurnal_size"]);
    says(&said, &["line 2", ":2:"]);

    // After all these the good one works.
    drop(Daemon::start(good).expect("ready"));
}

#[test]
fn a_full_ssd_is_refused_at_start_and_survived_while_running() {
    let place = Place::new().expect("a directory");
    let fs = LoopFs::new(place.path(), "ssd", ByteSize(256 << 20)).expect("a file system (needs root)");
    let mut options = DaemonOptions::six_drives(place.path()).expect("drives");
    options.state = fs.path().join("state");
    options.journal = Some(ByteSize(1 << 30));
    let said = refused(&options);
    says(&said, &["space", "full", "enospc"]);
    says(&said, &["journal"]);

    options.journal = Some(ByteSize(64 << 20));
    options.cache = Some(ByteSize(32 << 20));
    let mut daemon = Daemon::start(options).expect("ready");
    let mut storm = Storm::new(&daemon, 2, REGION, WriterMix::default(), 5).expect("volumes");
    blow(&mut storm, 300);
    // Somebody fills the rest of the SSD.
    let hog = fs.path().join("hog");
    let file = std::fs::File::create(&hog).expect("made");
    let mut filled = 0_u64;
    while std::io::Write::write(&mut &file, &[0xaa; 1 << 16]).is_ok_and(|count| count > 0) {
        filled += 1;
    }
    assert!(filled > 0, "there was space to take");
    blow(&mut storm, 1500);
    nothing_lost(&mut storm, "full SSD");
    daemon.kill();
    daemon.start_again().expect("ready with a full SSD");
    nothing_lost(&mut storm, "full SSD, restarted");
    std::fs::remove_file(&hog).expect("space again");
    blow(&mut storm, 300);
    drain(&daemon, &storm.names(), Duration::from_secs(90)).expect("stored behind");
    nothing_lost(&mut storm, "space again");
}

#[test]
fn a_full_drive_is_not_a_dead_one_and_loses_nothing() {
    let place = Place::new().expect("a directory");
    let fs = LoopFs::new(place.path(), "small", ByteSize(48 << 20)).expect("a file system (needs root)");
    let mut options = DaemonOptions::six_drives(place.path()).expect("drives");
    options.drives[3] = fs.path().to_owned();
    options.cache = Some(ByteSize(0));
    options.journal = Some(ByteSize(128 << 20));
    let mut daemon = Daemon::start(options).expect("ready");
    let mut storm = Storm::new(&daemon, 2, REGION, WriterMix::default(), 5).expect("volumes");
    let until = Instant::now() + Duration::from_secs(90);
    while !is_degraded(&daemon.status().expect("a status")) {
        assert!(Instant::now() < until, "the drive never got full");
        blow(&mut storm, 500);
    }
    let status = daemon.status().expect("a status");
    says(&degradations(&status).join("\n"), &["full", "space"]);
    blow(&mut storm, 500);
    drain(&daemon, &storm.names(), Duration::from_secs(90)).expect("stored behind");
    nothing_lost(&mut storm, "full drive");
    daemon.kill();
    daemon.start_again().expect("ready");
    nothing_lost(&mut storm, "full drive, restarted");
}
