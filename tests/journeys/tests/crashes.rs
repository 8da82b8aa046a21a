//! The real daemon dies, in every way, under clients that stamp every sector, and while snapshots and clones come and go; an oracle looks
//! at what is left.
//!
//! `LAMINA_KILL_CYCLES` (25) and `LAMINA_POWER_CYCLES` (10) set how long it goes on, `LAMINA_SOAK` makes both forty times as long; `LAMINA_SEED` repeats a run.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use lamina_contract::units::ByteSize;
use lamina_harness::{Crash, HarnessError, LoopFs, Place, Sign, WriterMix, binary};
use lamina_journeys::{Bed, LifeCycles, Storm, StormReport, cycles_from_environment, drain};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const REGION: ByteSize = ByteSize(32 << 20);

/// A new one each run, printed so that a failure can be repeated.
fn seed() -> u64 {
    let given = std::env::var("LAMINA_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| rand::rng().random_range(0..u64::from(u32::MAX)));
    println!("LAMINA_SEED={seed}");
    seed
}

/// A journal so small that it is recycled often.
fn small_journal_bed() -> Bed {
    Bed::with(|options, _| {
        options.journal = Some(ByteSize(64 << 20));
        options.cache = Some(ByteSize(64 << 20));
        Ok(())
    })
    .expect("a daemon")
}

#[test]
fn kill_an_acknowledged_write_survives_kill_9_at_any_moment() {
    let cycles = cycles_from_environment("LAMINA_KILL_CYCLES", 25);
    let mut random = StdRng::seed_from_u64(seed());
    let mut bed = small_journal_bed();
    let mut storm = Storm::new(&bed.daemon, 2, REGION, WriterMix::default(), random.random()).expect("volumes");
    let mut lives = LifeCycles::new(&bed.daemon, &mut storm, random.random());
    let mut report = StormReport::default();
    for cycle in 0..cycles {
        let moment = Duration::from_millis(random.random_range(5..400));
        let style = random.random_range(0..10_u32);
        let daemon = &mut bed.daemon;
        let die = || {
            std::thread::sleep(moment);
            match style {
                // A pause of the whole process first: late answers, no lost ones.
                0 => {
                    daemon.process().signal(Sign::Stop);
                    std::thread::sleep(Duration::from_millis(150));
                    daemon.process().signal(Sign::Continue);
                    std::thread::sleep(moment);
                    daemon.kill();
                }
                1 => {
                    let status = daemon.terminate(Duration::from_secs(60))?;
                    assert!(status.success(), "SIGTERM: {status}");
                }
                _ => daemon.kill(),
            }
            Ok(true)
        };
        lives.meanwhile(|| storm.blow(die)).expect("a storm");
        // Sometimes recovery itself is killed, more than once.
        while random.random_bool(0.25) {
            let mut short =
                lamina_harness::Process::spawn("laminad", bed.daemon.options().command().expect("built")).expect("started");
            std::thread::sleep(Duration::from_millis(random.random_range(0..150)));
            short.kill();
        }
        Storm::restart(&mut bed.daemon, &mut report).expect("ready again");
        lives.check(&format!("cycle {cycle}"), &mut storm).expect("snapshots and clones");
        storm.check(&format!("cycle {cycle}"), Crash::Kill, &mut report).expect("an image");
    }
    // A flattened clone shows what it showed, also to a daemon that has nothing in memory.
    lives.flatten().expect("flattened");
    bed.daemon.kill();
    Storm::restart(&mut bed.daemon, &mut report).expect("ready again");
    lives.check("flattened", &mut storm).expect("snapshots and clones");
    println!("{cycles} kills: {report:?}, {:?}", lives.report());
    assert!(report.acknowledged > cycles * 20, "the storm was a breeze: {report:?}");
    let lived = lives.report();
    assert!(lived.checked > cycles / 2 && lived.durable > cycles * 5, "hardly a snapshot was looked at: {lived:?}");
    assert!(lived.flattened > 0 && lived.compared > 0, "no clone was looked at again: {lived:?}");
}

/// What `laminad --list-failpoints` answers.
fn failpoints() -> Vec<String> {
    let output = Command::new(binary("laminad").expect("built")).arg("--list-failpoints").output().expect("run");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

#[test]
fn kill_an_acknowledged_write_survives_an_abort_at_each_named_failpoint() {
    let mut random = StdRng::seed_from_u64(seed());
    let names = failpoints();
    assert!(names.len() >= 10, "{names:?}");
    let mut bed = Bed::with(|options, _| {
        options.journal = Some(ByteSize(64 << 20));
        options.cache = Some(ByteSize(64 << 20));
        // Near the least it takes, and divided among many volumes: so the map is checkpointed after a few megabytes.
        options.memory = Some(ByteSize(180 << 20));
        Ok(())
    })
    .expect("a daemon");
    for number in 0..24 {
        bed.volume(&format!("bystander-{number}"), ByteSize(8 << 20)).expect("a volume");
    }
    let mut storm = Storm::new(&bed.daemon, 2, REGION, WriterMix::default(), random.random()).expect("volumes");
    let mut lives = LifeCycles::new(&bed.daemon, &mut storm, random.random());
    let mut report = StormReport::default();
    let mut silent: BTreeSet<String> = BTreeSet::new();
    for name in &names {
        bed.daemon.kill();
        let count = if name.starts_with("journal-") && !name.contains("segment") || name.starts_with("write-") {
            random.random_range(1..200)
        } else {
            1
        };
        bed.daemon.options().environment = vec![("LAMINA_FAILPOINT".to_owned(), format!("{name}:{count}"))];
        // It may be reached before the daemon is ready: then it dies in recovery, and recovery must stand that.
        let mut fired = matches!(bed.daemon.start_again(), Err(HarnessError::Ended { .. }));
        if !fired {
            let daemon = &mut bed.daemon;
            let die = || {
                // Names of volumes that come and go, for the failpoints of creation and deletion.
                if name.starts_with("create-") || name.starts_with("delete-") {
                    let _ = daemon.create_volume("passing", ByteSize(8 << 20));
                    let _ = daemon.cli(&["volume", "delete", "passing", "--yes"]);
                }
                // A checkpoint comes after so many changes: a busy machine takes its time for them.
                fired = daemon.process().wait(Duration::from_secs(90)).is_ok();
                daemon.kill();
                Ok(true)
            };
            lives.meanwhile(|| storm.blow(die)).expect("a storm");
        }
        if !fired {
            silent.insert(name.clone());
        }
        bed.daemon.options().environment.clear();
        Storm::restart(&mut bed.daemon, &mut report).expect("ready again");
        lives.check(&format!("failpoint {name}:{count}"), &mut storm).expect("snapshots and clones");
        storm.check(&format!("failpoint {name}:{count}"), Crash::Kill, &mut report).expect("an image");
        // A volume that was being made or deleted is there as a whole or not at all, and its name can be used.
        if bed.daemon.volume("passing").is_ok() {
            bed.daemon.cli(&["volume", "delete", "passing", "--yes"]).expect("deleted");
        }
    }
    println!("{} failpoints: {report:?}, {:?}; not reached: {silent:?}", names.len(), lives.report());
    assert!(silent.is_empty(), "not reached, so not tested: {silent:?}");
}

#[test]
fn power_every_flushed_write_survives_power_loss_and_the_rest_is_a_prefix() {
    let cycles = cycles_from_environment("LAMINA_POWER_CYCLES", 10);
    let mut random = StdRng::seed_from_u64(seed());
    let place = Place::new().expect("a directory");
    let mut fs = LoopFs::new(place.path(), "fs", ByteSize(3 << 30)).expect("a file system (needs root)");
    let mut options = lamina_harness::DaemonOptions::six_drives(fs.path()).expect("drives");
    options.journal = Some(ByteSize(64 << 20));
    options.cache = Some(ByteSize(64 << 20));
    let mut daemon = lamina_harness::Daemon::start(options).expect("a daemon");
    let mix = WriterMix { flush: 8, ..WriterMix::default() };
    let mut storm = Storm::new(&daemon, 2, REGION, mix, random.random()).expect("volumes");
    let mut report = StormReport::default();
    for cycle in 0..cycles {
        let moment = Duration::from_millis(random.random_range(20..600));
        storm
            .blow(|| {
                std::thread::sleep(moment);
                fs.cut_power()?;
                // It goes on for a moment on a dead disk: what it acknowledges now must not be called flushed.
                std::thread::sleep(Duration::from_millis(30));
                daemon.kill();
                Ok(true)
            })
            .expect("a storm");
        fs.restore().expect("power is back");
        Storm::restart(&mut daemon, &mut report).expect("ready again");
        storm.check(&format!("cycle {cycle}"), Crash::Power, &mut report).expect("an image");
    }
    println!("{cycles} power losses: {report:?}");
    assert!(report.durable > cycles * 5, "hardly anything was flushed: {report:?}");
}

#[test]
fn store_only_a_wiped_ssd_leaves_a_prefix_no_older_than_the_bound() {
    const LAG: Duration = Duration::from_secs(2);
    /// Beyond the lag: for a store that takes its time on a loaded machine.
    const SLACK: Duration = Duration::from_secs(6);
    let mut random = StdRng::seed_from_u64(seed());
    let mut bed = Bed::with(|options, _| {
        options.store_lag = Some("2s".to_owned());
        Ok(())
    })
    .expect("a daemon");
    // Slow enough for the store to follow, so that the bound is one of time.
    let mix = WriterMix { depth: 4, rest: Duration::from_millis(10), ..WriterMix::default() };
    let mut storm = Storm::new(&bed.daemon, 2, REGION, mix, random.random()).expect("volumes");
    let mut report = StormReport::default();
    let daemon = &mut bed.daemon;
    storm
        .blow(|| {
            std::thread::sleep(LAG + SLACK + Duration::from_secs(4));
            daemon.kill();
            Ok(true)
        })
        .expect("a storm");
    let bound = Instant::now() - LAG - SLACK;
    std::fs::remove_dir_all(bed.daemon.state()).expect("the SSD is gone");
    Storm::restart(&mut bed.daemon, &mut report).expect("ready from the drives alone");
    storm.check_each("bound", |writer| Crash::StoreOnly { stored: writer.moment_at(bound) }, &mut report).expect("an image");
    assert!(report.durable > 50, "nothing was old enough to be tested: {report:?}");

    // Everything stored, then lost again: nothing at all may be missing.
    let daemon = &mut bed.daemon;
    storm
        .blow(|| {
            std::thread::sleep(Duration::from_secs(1));
            Ok(false)
        })
        .expect("a storm");
    let names: Vec<String> = storm.names().into_iter().map(str::to_owned).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    drain(daemon, &names, Duration::from_secs(60)).expect("stored behind");
    daemon.kill();
    std::fs::remove_dir_all(daemon.state()).expect("the SSD is gone again");
    Storm::restart(&mut bed.daemon, &mut report).expect("ready from the drives alone");
    storm.check("drained", Crash::Kill, &mut report).expect("an image");
    println!("{report:?}");
}
