//! Schedules on a real daemon: made, shown, changed, deleted; and a run that was due while the daemon was down.

mod place;

use std::path::Path;
use std::time::{Duration, Instant};

use lamina_api::client::ClientError;
use lamina_api::name::Name;
use lamina_api::paths;
use lamina_api::problem::ProblemKind::{Conflict, InvalidRequest, NotFound};
use lamina_api::schedule::{CreateSchedule, Every, Keep, Schedule, ScheduleList, ScheduleTargets};
use lamina_api::snapshot::{Snapshot, SnapshotList};
use lamina_api::vm::{CreateVm, Machine, Vm, VmDisk, VmSnapshotList};
use lamina_formats::integrity::crc32c;
use place::{Daemon, Place, kind, name};
use serde_json::{Value, json};

fn schedule_name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn create(daemon: &Daemon, request: &CreateSchedule) -> Result<Schedule, ClientError> {
    daemon.ask(async |client| client.post(paths::SCHEDULES, request).await)
}

fn show(daemon: &Daemon, schedule: &str) -> Result<Schedule, ClientError> {
    daemon.ask(async |client| client.get(&paths::schedule(&schedule_name(schedule))).await)
}

fn change(daemon: &Daemon, schedule: &str, change: &Value) -> Result<Schedule, ClientError> {
    daemon.ask(async |client| client.patch(&paths::schedule(&schedule_name(schedule)), change).await)
}

fn request(of: &str, every: Every) -> CreateSchedule {
    let targets = ScheduleTargets { volumes: vec!["lone".to_owned()], vms: vec!["web".to_owned()], ..ScheduleTargets::default() };
    CreateSchedule { name: of.to_owned(), targets, every, at: None, keep: Keep::default(), enabled: None }
}

fn snapshots(daemon: &Daemon, volume: &str) -> Vec<Snapshot> {
    let path = paths::of_volume(&name(volume), "snapshots");
    daemon.ask(async |client| client.get::<SnapshotList>(&path).await).expect("answers").snapshots
}

fn machines(daemon: &Daemon) {
    ["web-a", "web-b", "lone"].iter().for_each(|volume| drop(daemon.create(volume).expect("made")));
    let disks = ["web-a", "web-b"].map(|volume| VmDisk { volume: volume.to_owned(), ..VmDisk::default() }).to_vec();
    let machine = Machine { cpus: 1, memory_bytes: 1 << 30, disks, ..Machine::default() };
    let request = CreateVm { name: "web".to_owned(), machine, ..CreateVm::default() };
    let _: Vm = daemon.ask(async |client| client.post(paths::VMS, &request).await).expect("made");
}

#[test]
fn schedules_are_made_shown_changed_and_deleted_and_survive_kills() {
    let place = Place::new();
    let daemon = place.start();
    machines(&daemon);
    let weekly = CreateSchedule {
        at: Some("sun 04:30".to_owned()),
        keep: Keep { weekly: 4, ..Keep::default() },
        ..request("weekly", Every::Weekly)
    };
    let made = create(&daemon, &weekly).expect("made");
    assert_eq!((made.at.as_deref(), made.enabled, made.last_run.as_ref()), (Some("sun 04:30"), true, None));
    assert!(made.next_run.as_deref().is_some_and(|next| next.contains("T04:30:00Z")), "{made:?}");
    assert_eq!(kind(create(&daemon, &weekly)), Conflict);
    for wrong in [
        CreateSchedule { at: Some("01:15".to_owned()), ..request("x", Every::Hourly) },
        request("x", Every::Minutes(7)),
        request("x", Every::Minutes(44_640)),
        request(&"x".repeat(50), Every::Daily),
        CreateSchedule { targets: ScheduleTargets::default(), ..request("x", Every::Daily) },
    ] {
        assert_eq!(kind(create(&daemon, &wrong)), InvalidRequest, "{wrong:?}");
    }
    daemon.kill();

    let daemon = place.start();
    assert_eq!(show(&daemon, "weekly").expect("kept"), made);
    let changed = change(&daemon, "weekly", &json!({"every": "daily"})).expect("changed");
    assert_eq!((changed.every, changed.at.as_deref(), changed.keep.weekly), (Every::Daily, Some("00:00"), 4));
    let changed = change(&daemon, "weekly", &json!({"at": "02:30", "enabled": false})).expect("changed");
    assert_eq!((changed.at.as_deref(), changed.next_run.as_ref()), (Some("02:30"), None));
    assert_eq!(kind(change(&daemon, "weekly", &json!({"at": "mon 02:30"}))), InvalidRequest);
    assert_eq!(kind(change(&daemon, "none", &json!({"enabled": true}))), NotFound);
    daemon.kill();

    let daemon = place.start();
    let list: ScheduleList = daemon.ask(async |client| client.get(paths::SCHEDULES).await).expect("answers");
    assert_eq!(list.schedules, [changed]);
    daemon.ask(async |client| client.remove(&paths::schedule(&schedule_name("weekly"))).await).expect("deleted");
    daemon.kill();
    assert_eq!(kind(show(&place.start(), "weekly")), NotFound);
}

/// Writes a document as the daemon does, with another body.
fn rewrite(path: &Path, change: impl FnOnce(&mut Value)) {
    let bytes = std::fs::read(path).expect("a document");
    let end = bytes.iter().position(|byte| *byte == b'\n').expect("a first line");
    let mut header: Value = serde_json::from_slice(&bytes[..end]).expect("JSON");
    let mut body: Value = serde_json::from_slice(&bytes[end + 1..]).expect("JSON");
    change(&mut body);
    let body = serde_json::to_vec(&body).expect("text");
    let text = |key: &str| header[key].as_str().expect("text").to_owned();
    let mut covered = format!("{}\0{}\0{}\0", text("kind"), text("name"), header["version"]).into_bytes();
    covered.extend_from_slice(&body);
    header["bytes"] = body.len().into();
    header["crc32c"] = format!("{:08x}", crc32c(&covered)).into();
    std::fs::write(path, [&serde_json::to_vec(&header).expect("text"), &b"\n"[..], &body].concat()).expect("written");
}

#[test]
fn a_run_that_was_due_while_the_daemon_was_down_is_made_up() {
    let place = Place::new();
    let daemon = place.start();
    machines(&daemon);
    create(&daemon, &request("weekly", Every::Weekly)).expect("made");
    let runs = place.state().join("meta/documents/schedule-runs/weekly.json");
    let until = Instant::now() + Duration::from_secs(20);
    while !runs.exists() {
        assert!(Instant::now() < until, "nothing was written down");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(daemon.terminate().success());
    // As if all of it had been two weeks ago.
    rewrite(&runs, |records| {
        for record in records.as_array_mut().expect("a list") {
            record["done"] = (record["done"].as_u64().expect("minutes") - 14 * 1440).into();
        }
    });
    rewrite(&place.state().join("meta/documents/schedule/weekly.json"), |schedule| {
        schedule["since_ms"] = (schedule["since_ms"].as_u64().expect("milliseconds") - 14 * 86_400_000).into();
    });

    let daemon = place.start();
    let until = Instant::now() + Duration::from_secs(20);
    let shown = loop {
        let shown = show(&daemon, "weekly").expect("there");
        if shown.last_run.is_some() && ["web-a", "lone"].iter().all(|volume| !snapshots(&daemon, volume).is_empty()) {
            break shown;
        }
        assert!(Instant::now() < until, "not made up: {shown:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(shown.last_error, None);
    let taken = snapshots(&daemon, "lone");
    assert_eq!((taken.len(), taken[0].automatic, taken[0].labels.get("schedule")), (1, true, Some("weekly")));
    let path = paths::of_vm(&schedule_name("web"), "snapshots");
    let of_vm: VmSnapshotList = daemon.ask(async |client| client.get(&path).await).expect("answers");
    assert_eq!((of_vm.snapshots.len(), of_vm.snapshots[0].disks.len()), (1, 2));
    assert!(of_vm.snapshots[0].complete && of_vm.snapshots[0].name == taken[0].name);
    assert!(daemon.terminate().success());

    // It is done, and so it stays.
    let daemon = place.start();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(snapshots(&daemon, "lone").len(), 1);
}
