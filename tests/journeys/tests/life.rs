//! The daemon's everyday: many volumes, standing idle, ending in good order, leaving nothing behind.

use std::time::Duration;

use lamina_contract::units::{ByteSize, Lba};
use lamina_harness::{Client, ClientOptions, Crash, HarnessError, WriterMix, process_use};
use lamina_journeys::{Bed, Storm, StormReport, counter, drain};

#[test]
fn one_daemon_serves_many_volumes_and_keeps_them_apart() {
    const VOLUMES: usize = 24;
    let mut bed = Bed::new().expect("a daemon");
    let mix = WriterMix { depth: 4, ..WriterMix::default() };
    let mut storm = Storm::new(&bed.daemon, VOLUMES, ByteSize(4 << 20), mix, 3).expect("volumes");
    let mut report = StormReport::default();
    storm
        .blow(|| {
            std::thread::sleep(Duration::from_millis(1500));
            Ok(false)
        })
        .expect("a storm");
    storm.check("many volumes", Crash::Kill, &mut report).expect("images");
    bed.daemon.kill();
    bed.daemon.start_again().expect("ready again");
    storm.check("many volumes, restarted", Crash::Kill, &mut report).expect("images");
    let status = bed.daemon.status().expect("a status");
    assert_eq!(counter(&status, &["volumes"]), VOLUMES as u64, "{status}");
    assert_eq!(counter(&status, &["volumes_attached"]), VOLUMES as u64, "{status}");
}

#[test]
fn an_idle_daemon_with_attached_volumes_uses_at_most_one_percent_of_a_cpu() {
    let bed = Bed::new().expect("a daemon");
    let mut clients = Vec::new();
    for number in 0..8 {
        let volume = bed.volume(&format!("idle-{number}"), ByteSize(64 << 20)).expect("a volume");
        let mut client =
            Client::connect(&volume.socket, ClientOptions { queues: 2, ..ClientOptions::default() }).expect("connected");
        client.queue().write(Lba(0), &[7; 4096]).expect("written");
        clients.push(client);
    }
    // What was written goes behind first.
    let names: Vec<String> = (0..8).map(|number| format!("idle-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    drain(&bed.daemon, &names, Duration::from_secs(60)).expect("stored behind");
    std::thread::sleep(Duration::from_secs(2));
    let before = process_use(bed.daemon.pid()).expect("running").cpu();
    std::thread::sleep(Duration::from_secs(10));
    let used = process_use(bed.daemon.pid()).expect("running").cpu() - before;
    println!("{used:?} of CPU time in 10 s");
    assert!(used <= Duration::from_millis(100), "{used:?} in 10 s");
    drop(clients);
}

#[test]
fn sigterm_under_load_drains_exits_0_and_loses_nothing() {
    let mut bed = Bed::new().expect("a daemon");
    let mut storm = Storm::new(&bed.daemon, 2, ByteSize(32 << 20), WriterMix::default(), 9).expect("volumes");
    let mut report = StormReport::default();
    for _ in 0..3 {
        let daemon = &mut bed.daemon;
        storm
            .blow(|| {
                std::thread::sleep(Duration::from_millis(300));
                let status = daemon.terminate(Duration::from_secs(60))?;
                assert!(status.success(), "{status}");
                Ok(true)
            })
            .expect("a storm");
        Storm::restart(&mut bed.daemon, &mut report).expect("ready again");
        storm.check("SIGTERM", Crash::Kill, &mut report).expect("images");
    }
}

#[test]
fn a_daemon_that_ended_leaves_no_process_and_no_socket() {
    let mut bed = Bed::new().expect("a daemon");
    let volume = bed.volume("one", ByteSize(64 << 20)).expect("a volume");
    let group = bed.daemon.pid();
    assert!(bed.daemon.terminate(Duration::from_secs(60)).expect("ended").success());
    assert!(!volume.socket.exists(), "{} is left", volume.socket.display());
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // Field 5, the process group, is the third behind the name.
        let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        if behind_name.split_whitespace().nth(2) == Some(group.to_string().as_str()) {
            left.push(stat);
        }
    }
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn files_stay_under_the_state_directory_and_the_drives() {
    let bed = Bed::new().expect("a daemon");
    bed.volume("one", ByteSize(64 << 20)).expect("a volume");
    let own = bed.place.path();
    let mut outside = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fd", bed.daemon.pid())).expect("its descriptors").flatten() {
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        let system = ["/dev/", "/proc/", "/sys/"].iter().any(|start| target.starts_with(start));
        if target.is_absolute() && !target.starts_with(own) && !system && !target.to_string_lossy().contains("memfd:") {
            outside.push(target);
        }
    }
    assert!(outside.is_empty(), "{outside:?}");
}

#[test]
fn volumes_are_created_listed_shown_detached_and_deleted() {
    let bed = Bed::new().expect("a daemon");
    let volume = bed.volume("data-1", ByteSize(10 << 30)).expect("a volume");
    assert_eq!((volume.name.as_str(), volume.size), ("data-1", ByteSize(10 << 30)));
    let again = bed.daemon.create_volume("data-1", ByteSize(1 << 30));
    assert!(
        matches!(again, Err(HarnessError::Refused { code, ref message, .. }) if code > 0 && message.contains("data-1")),
        "{again:?}"
    );
    for (name, size) in [("Data", "1GiB"), ("x", "banana"), ("x", "0"), ("../x", "1GiB")] {
        let refused = bed.daemon.cli(&["volume", "create", name, "--size", size]);
        assert!(matches!(refused, Err(HarnessError::Refused { code, .. }) if code > 0), "{name} {size}: {refused:?}");
    }
    let listed = bed.daemon.cli(&["volume", "list"]).expect("a list");
    assert!(listed.to_string().contains("data-1"), "{listed}");
    let targets = bed.daemon.cli(&["target", "list"]).expect("targets");
    assert!(targets.to_string().matches("\"up\"").count() == 6, "{targets}");
    bed.daemon.cli(&["volume", "detach", "data-1"]).expect("detached");
    assert!(!volume.socket.exists());
    bed.daemon.cli(&["volume", "attach", "data-1"]).expect("attached");
    lamina_journeys::wait_attached(&volume.socket).expect("served");
    bed.daemon.cli(&["volume", "delete", "data-1", "--yes"]).expect("deleted");
    assert!(!volume.socket.exists());
    let gone = bed.daemon.volume("data-1");
    assert!(matches!(gone, Err(HarnessError::Refused { code: 3, .. })), "{gone:?}");
}

#[test]
fn a_guest_that_comes_back_after_a_restart_finds_its_disk_as_it_was() {
    let mut bed = Bed::with(|options, _| {
        options.reconnect_wait = Some("5s".to_owned());
        Ok(())
    })
    .expect("a daemon");
    let volume = bed.volume("web", ByteSize(64 << 20)).expect("a volume");
    let mut guest = Client::connect(&volume.socket, ClientOptions::default()).expect("connected");
    bed.daemon.take_snapshot("web", "empty").expect("a snapshot");
    guest.queue().write(Lba(0), &[7; 4096]).expect("written");
    bed.daemon.kill();
    drop(guest);
    bed.daemon.start_again().expect("ready again");
    let mut refusals = Vec::new();
    let mut guest = std::thread::scope(|scope| {
        let attempts: [&[&str]; 4] = [
            &["volume", "rollback", "web@empty", "--yes"],
            &["volume", "delete", "web", "--snapshots", "--yes"],
            &["volume", "resize", "web", "32MiB", "--shrink", "--yes"],
            &["volume", "template", "web"],
        ];
        let daemon = &bed.daemon;
        let asking = attempts.map(|attempt| scope.spawn(move || daemon.cli(attempt)));
        // As a hypervisor does that looks for its socket each second.
        std::thread::sleep(Duration::from_secs(1));
        let guest = Client::connect_within(&volume.socket, ClientOptions::default(), Duration::from_secs(20)).expect("it is back");
        refusals.extend(asking.map(|asked| asked.join().expect("an answer")));
        guest
    });
    for refusal in refusals {
        let Err(HarnessError::Refused { message, .. }) = refusal else { panic!("done under a guest's hands: {refusal:?}") };
        assert!(message.contains("a guest uses volume 'web'"), "{message}");
    }
    let mut seen = [0; 4096];
    let detached = bed.daemon.call("POST", "/api/v1/volumes/web/detach", &serde_json::Value::Null);
    assert!(matches!(detached, Err(HarnessError::Refused { code: 409, .. })), "{detached:?}");
    guest.queue().read(Lba(0), &mut seen).expect("read");
    assert_eq!(seen, [7; 4096]);

    // Nobody comes: after the wait it is done.
    drop(guest);
    bed.daemon.kill();
    bed.daemon.start_again().expect("ready again");
    bed.daemon.roll_back("web", "empty").expect("nobody has it");
    let mut guest = Client::connect_within(&volume.socket, ClientOptions::default(), Duration::from_secs(5)).expect("served again");
    guest.queue().read(Lba(0), &mut seen).expect("read");
    assert_eq!(seen, [0; 4096]);
}
