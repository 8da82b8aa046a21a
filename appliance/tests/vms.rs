//! VMs on a real daemon: made, snapshotted, taken back, cloned and deleted, with kills between; their guests held still.

mod place;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lamina_api::client::ClientError;
use lamina_api::job::{Job, JobState, Outcome};
use lamina_api::name::Name;
use lamina_api::paths;
use lamina_api::problem::ProblemKind::{Conflict, InvalidRequest, NotFound, Unavailable};
use lamina_api::snapshot::{CreateClones, CreateSnapshot, Rollback, Snapshot, SnapshotList};
use lamina_api::status::Health;
use lamina_api::vm::{
    ChangeVm, CreateVm, CreateVmSnapshot, Machine, RolledBackVm, SetTemplate, Vm, VmDisk, VmList, VmNic, VmSnapshot, VmSnapshotList,
};
use lamina_api::volume::{ChangeSettings, ChangeVolume, Volume};
use place::{Daemon, Place, kind, name};
use serde_json::{Value, json};

/// Bytes that each write has.
const PIECE: usize = 4096;

fn vm_name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn machine(volumes: &[&str]) -> Machine {
    let disk = |volume: &&str| VmDisk { volume: (*volume).to_owned(), ..VmDisk::default() };
    let mac = Some("52:54:00:12:34:56".to_owned());
    let nics = vec![VmNic { mac, bridge: Some("br0".to_owned()), ..VmNic::default() }];
    Machine { cpus: 2, memory_bytes: 1 << 30, disks: volumes.iter().map(disk).collect(), nics, ..Machine::default() }
}

fn vm(daemon: &Daemon, of: &str, volumes: &[&str]) -> Result<Vm, ClientError> {
    let request = CreateVm { name: of.to_owned(), machine: machine(volumes), ..CreateVm::default() };
    daemon.ask(async |client| client.post(paths::VMS, &request).await)
}

fn show(daemon: &Daemon, vm: &str) -> Result<Vm, ClientError> {
    daemon.ask(async |client| client.get(&paths::vm(&vm_name(vm))).await)
}

fn change(daemon: &Daemon, vm: &str, change: &ChangeVm) -> Result<Vm, ClientError> {
    daemon.ask(async |client| client.patch(&paths::vm(&vm_name(vm)), change).await)
}

fn snapshot(daemon: &Daemon, vm: &str, request: &CreateVmSnapshot) -> Result<VmSnapshot, ClientError> {
    daemon.ask(async |client| client.post(&paths::of_vm(&vm_name(vm), "snapshots"), request).await)
}

fn named(text: &str) -> CreateVmSnapshot {
    CreateVmSnapshot { name: text.to_owned(), ..CreateVmSnapshot::default() }
}

fn snapshots(daemon: &Daemon, vm: &str) -> Vec<VmSnapshot> {
    let list = daemon.ask(async |client| client.get::<VmSnapshotList>(&paths::of_vm(&vm_name(vm), "snapshots")).await);
    list.expect("answers").snapshots
}

fn delete_snapshot(daemon: &Daemon, vm: &str, of: &str) -> Result<(), ClientError> {
    daemon.ask(async |client| client.remove(&paths::vm_snapshot(&vm_name(vm), &vm_name(of))).await)
}

fn back_to(daemon: &Daemon, vm: &str, request: &Rollback) -> Result<Outcome<RolledBackVm>, ClientError> {
    daemon.ask(async |client| client.rollback(&paths::of_vm(&vm_name(vm), "rollback"), request).await)
}

fn back(daemon: &Daemon, vm: &str, snapshot: &str) -> Result<RolledBackVm, ClientError> {
    match back_to(daemon, vm, &Rollback { snapshot: Some(snapshot.to_owned()), at: None })? {
        Outcome::Done(done) => Ok(done),
        Outcome::Job(job) => panic!("{job:?}"),
    }
}

fn clones(daemon: &Daemon, vm: &str, request: &CreateClones) -> Result<Job, ClientError> {
    let job: Job = daemon.ask(async |client| client.post(&paths::of_vm(&vm_name(vm), "clones"), request).await)?;
    Ok(ended(daemon, &job))
}

fn ended(daemon: &Daemon, job: &Job) -> Job {
    let id = job.id.parse().expect("a number");
    let job = daemon.ask(async |client| client.job(id, Duration::from_secs(30)).await).expect("answers");
    assert!(job.state.is_final(), "{job:?}");
    job
}

fn many(text: &str, count: u32) -> CreateClones {
    CreateClones { name: Some(text.to_owned()), count: Some(count), ..CreateClones::default() }
}

fn template(daemon: &Daemon, vm: &str, template: bool) -> Result<Vm, ClientError> {
    daemon.ask(async |client| client.post(&paths::of_vm(&vm_name(vm), "template"), &SetTemplate { template }).await)
}

fn delete(daemon: &Daemon, vm: &str, volumes: bool) -> Result<(), ClientError> {
    daemon.ask(async |client| client.remove(&format!("{}?volumes={volumes}", paths::vm(&vm_name(vm)))).await)
}

fn volume(daemon: &Daemon, of: &str) -> Result<Volume, ClientError> {
    daemon.ask(async |client| client.volume(&name(of)).await)
}

fn volumes(daemon: &Daemon) -> Vec<String> {
    let list = daemon.ask(async |client| client.volumes().await).expect("answers").volumes;
    list.into_iter().filter(|volume| volume.state.as_str() != "deleting").map(|volume| volume.name).collect()
}

fn write(daemon: &Daemon, volume: &str, byte: u8) -> Result<(), ClientError> {
    let bytes = vec![byte; PIECE].into();
    daemon.ask(async |client| client.write_data(&name(volume), 0, bytes).await)
}

/// The byte that all of the first piece has.
fn read(daemon: &Daemon, volume: &str) -> u8 {
    let bytes = daemon.ask(async |client| client.read_data(&name(volume), 0, PIECE as u64).await).expect("read");
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{volume} holds a mixture");
    bytes[0]
}

fn place_with(volumes: &[&str]) -> (Place, Daemon) {
    let place = Place::new();
    let daemon = place.start();
    volumes.iter().for_each(|volume| drop(daemon.create(volume).expect("made")));
    (place, daemon)
}

#[test]
fn a_vm_goes_back_with_all_its_disks_and_everything_survives_kills() {
    let (place, daemon) = place_with(&["web-system", "web-data"]);
    let made = vm(&daemon, "web", &["web-system", "web-data"]).expect("made");
    assert_eq!((made.template, made.machine.disks.len()), (false, 2));
    for volume in ["web-system", "web-data"] {
        write(&daemon, volume, 1).expect("written");
    }
    daemon.kill();

    let daemon = place.start();
    assert_eq!(show(&daemon, "web").expect("kept"), made);
    let taken = snapshot(&daemon, "web", &named("before")).expect("taken");
    let disks: Vec<_> = taken.disks.iter().map(|disk| (disk.volume.as_str(), disk.snapshot.as_str())).collect();
    assert_eq!(disks, [("web-system", "before"), ("web-data", "before")]);
    assert!(taken.complete && !taken.frozen && !taken.automatic);
    for volume in ["web-system", "web-data"] {
        write(&daemon, volume, 2).expect("written");
    }
    daemon.kill();

    let daemon = place.start();
    assert_eq!(snapshots(&daemon, "web").len(), 1);
    let went = back(&daemon, "web", "before").expect("went back");
    assert_eq!((read(&daemon, "web-system"), read(&daemon, "web-data")), (1, 1));
    daemon.kill();

    let daemon = place.start();
    assert_eq!((read(&daemon, "web-system"), read(&daemon, "web-data")), (1, 1));
    let kept = snapshots(&daemon, "web");
    let names: Vec<_> = kept.iter().map(|one| (one.name.as_str(), one.automatic, one.complete)).collect();
    assert_eq!(names, [("before", false, true), (went.discarded.as_str(), true, true)]);
    // What was discarded is a snapshot of the VM like any other.
    back(&daemon, "web", &went.discarded).expect("went forward again");
    assert_eq!((read(&daemon, "web-system"), read(&daemon, "web-data")), (2, 2));
    assert!(volume(&daemon, "web-data").expect("there").socket.is_some_and(|socket| Path::new(&socket).exists()));
    assert_eq!(daemon.status().health, Health::Healthy, "{:?}", daemon.status().degraded);
}

#[test]
fn clones_have_disks_and_a_machine_of_their_own() {
    let (place, daemon) = place_with(&["golden-system", "data"]);
    vm(&daemon, "golden", &["golden-system", "data"]).expect("made");
    write(&daemon, "golden-system", 7).expect("written");
    write(&daemon, "data", 8).expect("written");
    let job = clones(&daemon, "golden", &many("desk-{n}", 3)).expect("begun");
    assert_eq!((job.state, job.done, job.total), (JobState::Succeeded, 3, 3), "{job:?}");
    let result = job.result.expect("a result");
    assert_eq!(result.vms, ["desk-1", "desk-2", "desk-3"]);
    assert_eq!(result.volumes.len(), 6);
    let clone = show(&daemon, "desk-2").expect("there");
    let disks: Vec<_> = clone.machine.disks.iter().map(|disk| disk.volume.as_str()).collect();
    assert_eq!(disks, ["desk-2-system", "desk-2-data"]);
    assert_eq!((clone.machine.nics[0].mac.as_ref(), clone.machine.nics[0].bridge.as_deref()), (None, Some("br0")));
    write(&daemon, "desk-2-system", 9).expect("written");
    daemon.kill();

    let daemon = place.start();
    let list = daemon.ask(async |client| client.get::<VmList>(paths::VMS).await).expect("answers").vms;
    assert_eq!(list.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["desk-1", "desk-2", "desk-3", "golden"]);
    let bytes = ["golden-system", "desk-1-system", "desk-2-system", "desk-3-data"].map(|volume| read(&daemon, volume));
    assert_eq!(bytes, [7, 7, 9, 8]);
    let shown = volume(&daemon, "desk-3-data").expect("there");
    assert!(shown.socket.is_some_and(|socket| Path::new(&socket).exists()));
    assert_eq!(shown.parent.map(|parent| parent.volume).as_deref(), Some("data"));
    assert_eq!(daemon.status().health, Health::Healthy, "{:?}", daemon.status().degraded);

    // Names that are taken, of VMs or of volumes, are found before anything is made.
    daemon.create("x-data").expect("made");
    let before = volumes(&daemon);
    for (request, expected) in [
        (many("desk-{n}", 4), Conflict),
        (many("x", 1), Conflict),
        (many(&"n".repeat(58), 1), InvalidRequest),
        (CreateClones { snapshot: Some("none".to_owned()), ..many("y", 1) }, NotFound),
        (CreateClones { at: Some("2020-01-01T00:00:00Z".to_owned()), ..many("y", 1) }, Conflict),
    ] {
        assert_eq!(kind(clones(&daemon, "golden", &request)), expected, "{request:?}");
    }
    assert_eq!(volumes(&daemon), before);
    // Not attached, from a snapshot with a name.
    snapshot(&daemon, "golden", &named("release-1")).expect("taken");
    write(&daemon, "data", 1).expect("written");
    let request = CreateClones { snapshot: Some("release-1".to_owned()), attach: Some(false), ..many("quiet", 1) };
    assert_eq!(clones(&daemon, "golden", &request).expect("begun").state, JobState::Succeeded);
    assert_eq!(read(&daemon, "quiet-data"), 8);
    assert_eq!(volume(&daemon, "quiet-data").expect("there").socket, None);
    daemon.kill();
    let daemon = place.start();
    assert_eq!(volume(&daemon, "quiet-data").expect("there").socket, None);
    assert_eq!(kind(delete_snapshot(&daemon, "golden", "release-1")), Conflict, "it has clones");
}

#[test]
fn a_template_refuses_writes_is_cloned_and_becomes_a_machine_again() {
    let (place, daemon) = place_with(&["golden-a", "golden-b"]);
    vm(&daemon, "golden", &["golden-a", "golden-b"]).expect("made");
    write(&daemon, "golden-a", 5).expect("written");
    snapshot(&daemon, "golden", &named("s")).expect("taken");
    assert!(template(&daemon, "golden", true).expect("done").template);
    daemon.kill();

    let daemon = place.start();
    assert!(show(&daemon, "golden").expect("there").template);
    assert_eq!(kind(write(&daemon, "golden-b", 6)), Conflict);
    assert_eq!(kind(back(&daemon, "golden", "s")), Conflict);
    assert_eq!(clones(&daemon, "golden", &many("desk", 1)).expect("begun").state, JobState::Succeeded);
    assert!(!show(&daemon, "desk").expect("there").template);
    write(&daemon, "desk-a", 6).expect("clones take writes");
    assert_eq!((read(&daemon, "golden-a"), read(&daemon, "desk-a")), (5, 6));
    assert!(!template(&daemon, "golden", false).expect("done").template);
    write(&daemon, "golden-b", 6).expect("written");
}

#[test]
fn what_a_vm_needs_is_not_deleted_and_nothing_is_half_deleted() {
    let (place, daemon) = place_with(&["a", "b", "c"]);
    for (volumes, expected) in [(vec!["a", "none"], InvalidRequest), (vec!["a", "a"], InvalidRequest)] {
        assert_eq!(kind(vm(&daemon, "web", &volumes)), expected, "{volumes:?}");
    }
    vm(&daemon, "web", &["a", "b"]).expect("made");
    assert_eq!(kind(vm(&daemon, "web", &["c"])), Conflict);
    assert_eq!(kind(vm(&daemon, "db", &["c", "b"])), Conflict, "b is a disk of web");
    let swap = ChangeVm { machine: Some(machine(&["b", "c"])), ..ChangeVm::default() };
    vm(&daemon, "db", &["c"]).expect("made");
    assert_eq!(kind(change(&daemon, "web", &swap)), Conflict);
    delete(&daemon, "db", false).expect("deleted");
    change(&daemon, "web", &swap).expect("changed");
    let outcome = daemon.ask(async |client| client.delete(&name("b"), true).await);
    assert_eq!(kind(outcome), Conflict, "b is a disk");
    daemon.ask(async |client| client.delete(&name("a"), true).await).expect("a is no disk any more");

    // A pinned snapshot of one disk, a clone of the other: neither disk goes.
    let pinned = CreateSnapshot { name: "keep".to_owned(), pinned: true, ..CreateSnapshot::default() };
    let path = paths::of_volume(&name("c"), "snapshots");
    let _: Snapshot = daemon.ask(async |client| client.post(&path, &pinned).await).expect("taken");
    assert_eq!(kind(delete(&daemon, "web", true)), Conflict);
    assert_eq!(volumes(&daemon), ["b", "c"]);
    let path = paths::snapshot(&name("c"), &vm_name("keep"));
    let unpinned: Snapshot = daemon.ask(async |client| client.patch(&path, &json!({"pinned": false})).await).expect("unpinned");
    assert!(!unpinned.pinned);
    let path = paths::of_volume(&name("b"), "clones");
    let job: Job = daemon.ask(async |client| client.post(&path, &many("copy", 1)).await).expect("begun");
    assert_eq!(ended(&daemon, &job).state, JobState::Succeeded);
    assert_eq!(kind(delete(&daemon, "web", true)), Conflict);
    assert_eq!(volumes(&daemon), ["b", "c", "copy"]);
    daemon.kill();

    // A clone that is a disk of the same VM does not hold it up.
    let daemon = place.start();
    change(&daemon, "web", &ChangeVm { machine: Some(machine(&["b", "copy", "c"])), ..ChangeVm::default() }).expect("changed");
    delete(&daemon, "web", true).expect("deleted");
    assert_eq!(volumes(&daemon), Vec::<String>::new());
    assert_eq!(kind(show(&daemon, "web")), NotFound);
    daemon.kill();
    let daemon = place.start();
    assert_eq!(kind(show(&daemon, "web")), NotFound);
    assert_eq!(volumes(&daemon), Vec::<String>::new());
}

#[test]
fn a_vms_snapshots_are_what_its_disks_say() {
    let (_place, daemon) = place_with(&["a", "b", "c"]);
    vm(&daemon, "web", &["a", "b"]).expect("made");
    let mut request = named("one");
    request.labels.add("tier=gold").expect("a label");
    snapshot(&daemon, "web", &request).expect("taken");
    assert_eq!(kind(snapshot(&daemon, "web", &named("one"))), Conflict);
    request.labels.add("lamina/vm=db").expect("a label");
    assert_eq!(kind(snapshot(&daemon, "web", &CreateVmSnapshot { name: "two".to_owned(), ..request })), InvalidRequest);
    let shown = snapshots(&daemon, "web").remove(0);
    assert_eq!(shown.labels.iter().collect::<Vec<_>>(), [("tier", "gold")]);

    // The disks' labels are shown, and a change by hand does not lose those of the set.
    let path = paths::snapshot(&name("a"), &vm_name("one"));
    let part: Snapshot = daemon.ask(async |client| client.get(&path).await).expect("there");
    assert_eq!((part.labels.get("lamina/vm"), part.labels.get("lamina/vm-part")), (Some("web"), Some("1/2")));
    let changed: Snapshot = daemon.ask(async |client| client.patch(&path, &json!({"labels": {"x": "y"}})).await).expect("changed");
    assert_eq!((changed.labels.get("x"), changed.labels.get("lamina/vm")), (Some("y"), Some("web")));
    let forged = daemon.ask(async |client| client.patch::<Snapshot>(&path, &json!({"labels": {"lamina/vm": "db"}})).await);
    assert_eq!(kind(forged), InvalidRequest);

    // A disk that is no part of it stops going back; a part that is lost is seen.
    change(&daemon, "web", &ChangeVm { machine: Some(machine(&["a", "c"])), ..ChangeVm::default() }).expect("changed");
    assert!(snapshots(&daemon, "web")[0].complete, "b still has its part");
    assert_eq!(kind(back(&daemon, "web", "one")), Conflict);
    daemon.ask(async |client| client.delete(&name("b"), true).await).expect("deleted");
    assert!(!snapshots(&daemon, "web")[0].complete);
    // A name that one disk has already is refused as a whole.
    let path = paths::of_volume(&name("c"), "snapshots");
    let by_hand = CreateSnapshot { name: "mine".to_owned(), ..CreateSnapshot::default() };
    let _: Snapshot = daemon.ask(async |client| client.post(&path, &by_hand).await).expect("taken");
    assert_eq!(kind(snapshot(&daemon, "web", &named("mine"))), Conflict);
    let of_a: SnapshotList = daemon.ask(async |client| client.get(&paths::of_volume(&name("a"), "snapshots")).await).expect("list");
    assert_eq!(of_a.snapshots.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["one"]);
    delete_snapshot(&daemon, "web", "one").expect("deleted");
    assert_eq!(snapshots(&daemon, "web"), []);
    assert_eq!(kind(delete_snapshot(&daemon, "web", "one")), NotFound);
}

#[test]
fn a_vm_goes_back_to_a_moment_by_a_job() {
    let (_place, daemon) = place_with(&["a", "b"]);
    vm(&daemon, "web", &["a", "b"]).expect("made");
    let settings = ChangeSettings { cdp_seconds: Some(3600), ..ChangeSettings::default() };
    let window = ChangeVolume { settings: Some(settings), ..ChangeVolume::default() };
    for volume in ["a", "b"] {
        daemon.ask(async |client| client.change(&name(volume), &window).await).expect("changed");
        write(&daemon, volume, 1).expect("written");
    }
    // Moments are told by the second: the writes are before this one, and those that follow behind it.
    std::thread::sleep(Duration::from_millis(1100));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let at = lamina_api::instant::rfc3339(lamina_contract::Timestamp(now.as_millis() as u64));
    std::thread::sleep(Duration::from_millis(1100));
    write(&daemon, "a", 2).expect("written");
    write(&daemon, "b", 2).expect("written");
    let request = Rollback { snapshot: None, at: Some(at) };
    let Outcome::Job(job) = back_to(&daemon, "web", &request).expect("begun") else { panic!("no job") };
    let job = ended(&daemon, &job);
    assert_eq!(job.state, JobState::Succeeded, "{job:?}");
    assert_eq!((read(&daemon, "a"), read(&daemon, "b")), (1, 1));
    back(&daemon, "web", &job.result.and_then(|result| result.discarded).expect("a name")).expect("went forward");
    assert_eq!((read(&daemon, "a"), read(&daemon, "b")), (2, 2));
    let outside = Rollback { snapshot: None, at: Some("2020-01-01T00:00:00Z".to_owned()) };
    assert_eq!(kind(back_to(&daemon, "web", &outside)), Conflict);
}

/// A guest agent: what it was told, without synchronizing. It is thawed when it begins unless `frozen`.
fn agent(socket: &Path, frozen: bool) -> Arc<Mutex<Vec<String>>> {
    let listener = UnixListener::bind(socket).expect("bound");
    let told = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&told);
    std::thread::spawn(move || {
        let mut frozen = frozen;
        while let Ok((stream, _)) = listener.accept() {
            let (mut from, mut to) = (BufReader::new(&stream), &stream);
            let mut line = Vec::new();
            while from.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let request: Value = serde_json::from_slice(line.strip_prefix(&[0xff]).unwrap_or(&line)).expect("JSON");
                line.clear();
                let command = request["execute"].as_str().expect("a command").to_owned();
                let answer = match command.as_str() {
                    "guest-sync-delimited" => request["arguments"]["id"].clone(),
                    "guest-fsfreeze-freeze" => {
                        frozen = true;
                        json!(1)
                    }
                    "guest-fsfreeze-thaw" => json!(i32::from(std::mem::take(&mut frozen))),
                    _ => json!(if frozen { "frozen" } else { "thawed" }),
                };
                if command == "guest-sync-delimited" {
                    let _ = to.write_all(&[0xff]);
                } else {
                    shared.lock().expect("no panic").push(command);
                }
                let _ = to.write_all(format!("{}\n", json!({"return": answer})).as_bytes());
            }
        }
    });
    told
}

#[test]
fn a_guest_is_held_still_for_a_snapshot_and_thawed_after_a_kill() {
    let (place, daemon) = place_with(&["a"]);
    vm(&daemon, "web", &["a"]).expect("made");
    let freeze = |of: &str| CreateVmSnapshot { freeze: true, ..named(of) };
    assert_eq!(kind(snapshot(&daemon, "web", &freeze("one"))), Conflict, "it has no agent");
    let socket = place.dir.path().join("agent.sock");
    let with = ChangeVm { guest_agent: Some(socket.display().to_string()), ..ChangeVm::default() };
    change(&daemon, "web", &with).expect("changed");
    assert_eq!(kind(snapshot(&daemon, "web", &freeze("one"))), Unavailable, "nobody listens");
    assert_eq!(snapshots(&daemon, "web"), [], "none was taken");
    let told = agent(&socket, false);
    let taken = snapshot(&daemon, "web", &freeze("one")).expect("taken");
    assert!(taken.frozen && snapshots(&daemon, "web")[0].frozen);
    let commands = told.lock().expect("no panic").clone();
    let of = |command: &str| commands.iter().position(|told| told == command);
    assert!(of("guest-fsfreeze-freeze").expect("frozen") < of("guest-fsfreeze-thaw").expect("thawed"), "{commands:?}");
    assert!(!snapshot(&daemon, "web", &named("two")).expect("taken").frozen);
    daemon.kill();

    std::fs::remove_file(&socket).expect("removed");
    let told = agent(&socket, true);
    let _daemon = place.start();
    let until = Instant::now() + Duration::from_secs(20);
    while !told.lock().expect("no panic").contains(&"guest-fsfreeze-thaw".to_owned()) {
        assert!(Instant::now() < until, "still frozen");
        std::thread::sleep(Duration::from_millis(20));
    }
}
