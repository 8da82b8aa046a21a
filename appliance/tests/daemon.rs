//! The daemon as a process: how it starts, what it refuses and how it says so, what it keeps, how it ends.

mod place;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lamina_api::audit::AuditList;
use lamina_api::paths;
use lamina_api::problem::ProblemKind;
use lamina_api::role::Role;
use lamina_api::status::Health;
use lamina_api::target::TargetState;
use lamina_api::token::{CreateToken, NewToken};
use lamina_api::volume::{CreateVolume, VolumeState};
use place::{PATIENCE, Place, end_of, kind, name};
use tempfile::TempDir;

#[test]
fn it_becomes_ready_says_so_in_one_line_and_ends_with_0() {
    let place = Place::new();
    let daemon = place.start();
    let socket = place.state().join("run/lamina.sock");
    assert_eq!(daemon.ready, format!("lamina ready: api {}, 6 drives, policy 4+2\n", socket.display()));
    let volume = daemon.create("web").expect("made");
    assert_eq!(volume, place.state().join("run/vhost/web.sock"));
    assert!(volume.exists());
    assert_eq!(daemon.status().health, Health::Healthy, "{:?}", daemon.status().degraded);
    assert!(daemon.terminate().success());
    assert!(!socket.exists() && !volume.exists(), "sockets are left");
    for drive in &place.drives {
        assert!(drive.join("lamina-drive").exists());
    }
}

#[test]
fn a_single_local_directory_is_a_policy_of_1_plus_0() {
    let mut place = Place::new();
    place.drives.truncate(1);
    place.policy = "1+0";
    let daemon = place.start();
    assert!(daemon.ready.ends_with("1 drive, policy 1+0\n"), "{}", daemon.ready);
    daemon.create("web").expect("made");
    assert_eq!(daemon.status().health, Health::Healthy);
}

#[test]
fn volumes_and_their_attachment_survive_kill_and_restart() {
    let place = Place::new();
    let mut daemon = place.start();
    let (web, db) = (daemon.create("web").expect("made"), daemon.create("db").expect("made"));
    let detached = daemon.ask(async |client| client.detach(&name("db")).await).expect("detached");
    assert_eq!((detached.state, detached.socket, db.exists()), (VolumeState::Detached, None, false));
    daemon.child.kill().expect("killed");
    daemon.child.wait().expect("ended");
    assert!(web.exists(), "a kill leaves the socket's file");
    let daemon = place.start();
    let list = daemon.ask(async |client| client.volumes().await).expect("list").volumes;
    let states: Vec<_> = list.iter().map(|volume| (volume.name.as_str(), volume.state)).collect();
    assert_eq!(states, [("db", VolumeState::Detached), ("web", VolumeState::Attached)]);
    assert!(UnixStream::connect(&web).is_ok(), "somebody listens");
    let attached = daemon.ask(async |client| client.attach(&name("db")).await).expect("attached");
    assert_eq!(attached.socket.map(PathBuf::from), Some(db.clone()));
    assert!(daemon.terminate().success());
    let daemon = place.start();
    assert!(db.exists());
    assert_eq!(daemon.status().volumes_attached, 2);
}

#[test]
fn tokens_answers_and_the_audit_log_survive_a_kill() {
    let place = Place::new();
    let mut daemon = place.start();
    let token = CreateToken { name: "ci".to_owned(), role: Role::Viewer, expires_in_seconds: None, scope: None };
    let made: NewToken = daemon.ask(async |client| client.post(paths::TOKENS, &token).await).expect("made");
    let keyed = "idempotency-key: one";
    let body = r#"{"name":"web","size_bytes":1048576}"#;
    let first = daemon.raw("POST /api/v1/volumes", keyed, body);
    assert!(first.starts_with("HTTP/1.1 201"), "{first}");
    daemon.child.kill().expect("killed");
    daemon.child.wait().expect("ended");

    let daemon = place.start();
    let bearer = format!("authorization: Bearer {}", made.secret);
    assert!(daemon.raw("GET /api/v1/volumes", &bearer, "").starts_with("HTTP/1.1 200"));
    assert!(daemon.raw("DELETE /api/v1/volumes/web", &bearer, "").starts_with("HTTP/1.1 403"));
    let again = daemon.raw("POST /api/v1/volumes", keyed, body);
    assert!(again.starts_with("HTTP/1.1 201") && again.contains("idempotency-replayed: true"), "{again}");
    assert_eq!(again.lines().last(), first.lines().last());
    let audit: AuditList = daemon.ask(async |client| client.get(paths::AUDIT).await).expect("read");
    let lines: Vec<_> = audit.lines.iter().map(|line| (line.path.as_str(), line.status, line.who.starts_with("uid:"))).collect();
    let expected = [("/api/v1/volumes", 201, true), ("/api/v1/volumes/web", 403, false), ("/api/v1/volumes", 201, true)];
    assert_eq!(lines, [expected.as_slice(), &[("/api/v1/tokens", 201, true)]].concat());
    let kept = std::fs::read_to_string(place.state().join("audit/audit.log")).expect("the log");
    assert!(!kept.contains(&made.secret));
}

#[test]
fn a_volumes_bytes_go_in_and_out_through_the_interface() {
    let place = Place::new();
    let mut daemon = place.start();
    daemon.create("web").expect("made");
    let bytes: Vec<u8> = (0..64u32 << 10).map(|at| (at % 251) as u8).collect();
    let written = bytes.clone().into();
    daemon.ask(async |client| client.write_data(&name("web"), 512, written).await).expect("written");
    daemon.child.kill().expect("killed");
    daemon.child.wait().expect("ended");
    let daemon = place.start();
    let read = daemon.ask(async |client| client.read_data(&name("web"), 0, 66_048).await).expect("read");
    assert!(read[..512].iter().all(|byte| *byte == 0) && read[512..] == bytes);
    assert_eq!(kind(daemon.ask(async |client| client.read_data(&name("web"), 1 << 20, 512).await)), ProblemKind::InvalidRequest);
    assert_eq!(kind(daemon.ask(async |client| client.read_data(&name("web"), 1, 512).await)), ProblemKind::InvalidRequest);
}

#[test]
fn only_the_interfaces_own_threads_stand_back() {
    let place = Place::new();
    let daemon = place.start();
    daemon.create("web").expect("made");
    daemon.ask(async |client| client.detach(&name("web")).await).expect("detached");
    daemon.ask(async |client| client.attach(&name("web")).await).expect("attached");
    let tasks = PathBuf::from(format!("/proc/{}/task", daemon.child.id()));
    let thread = |id: &str| {
        let stat = std::fs::read_to_string(tasks.join(id).join("stat")).expect("stat");
        // proc(5): the name in parentheses, then from field 3; niceness is field 19.
        let (head, rest) = stat.rsplit_once(") ").expect("fields");
        let nice: i32 = rest.split(' ').nth(16).and_then(|text| text.parse().ok()).expect("a number");
        (head.split_once('(').expect("a name").1.to_owned(), nice)
    };
    // The tests' own may be another than 0.
    let (_, usual) = thread(&daemon.child.id().to_string());
    let mut niced = 0;
    for entry in std::fs::read_dir(&tasks).expect("threads") {
        let (name, nice) = thread(entry.expect("a thread").file_name().to_str().expect("a number"));
        let interface = name == "lamina-api";
        assert_eq!(nice, if interface { (usual + 10).min(19) } else { usual }, "{name}");
        niced += usize::from(interface);
    }
    assert!(niced > 0);
}

#[test]
fn on_the_network_it_speaks_tls_and_nothing_else() {
    let mut place = Place::new();
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let file = |name: &str| place.dir.path().join(name);
    std::fs::write(file("server.pem"), own.cert.pem()).expect("written");
    std::fs::write(file("server.key"), own.signing_key.serialize_pem()).expect("written");
    std::fs::set_permissions(file("server.key"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("mode");
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let text = format!(
        "api_listen: {free}\napi_certificate: {}\napi_key: {}\n",
        file("server.pem").display(),
        file("server.key").display()
    );
    std::fs::write(file("lamina.yaml"), text).expect("written");
    place.extra = vec!["--config".to_owned(), file("lamina.yaml").display().to_string()];
    let (code, said) = place.refused();
    assert!(code == Some(2) && said.contains("give it mode 0600"), "{code:?} {said}");
    let key = place.dir.path().join("server.key");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    let daemon = place.start();
    let mut stream = TcpStream::connect(free).expect("it listens");
    stream.write_all(b"GET /api/v1/version HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    // A TLS alert record, or nothing.
    assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
    assert!(daemon.terminate().success());
}

#[test]
fn a_damaged_document_is_a_degradation() {
    let place = Place::new();
    let daemon = place.start();
    let token = CreateToken { name: "ci".to_owned(), role: Role::Viewer, expires_in_seconds: None, scope: None };
    let _: NewToken = daemon.ask(async |client| client.post(paths::TOKENS, &token).await).expect("made");
    assert!(daemon.terminate().success());
    let path = place.state().join("meta/documents/token/ci.json");
    let text = std::fs::read_to_string(&path).expect("a document");
    std::fs::write(&path, text.replace("viewer", "adminn")).expect("damaged");
    let daemon = place.start();
    assert!(daemon.degraded("document-damaged").contains("ci.damaged-1"));
}

#[test]
fn a_vm_of_a_newer_release_is_left_alone_and_so_are_all_volumes() {
    let place = Place::new();
    let daemon = place.start();
    daemon.create("web").expect("made");
    assert!(daemon.terminate().success());
    let path = place.state().join("meta/documents/vm/web.json");
    let text = "{\"magic\":\"lamina-document\",\"format\":2,\"sealed\":true}\n{}";
    std::fs::write(&path, text).expect("written");
    // An audit log that is none is no reason either.
    let audit = place.state().join("audit/audit.log");
    std::fs::remove_file(&audit).expect("removed");
    std::fs::create_dir(&audit).expect("made");
    let daemon = place.start();
    assert!(daemon.degraded("document-newer").contains("vm/web.json"));
    assert!(daemon.degraded("audit-failed").contains("cannot be written"));
    assert_eq!(kind(daemon.ask(async |client| client.delete(&name("web"), false).await)), ProblemKind::Conflict);
    assert!(daemon.terminate().success());
    assert_eq!(std::fs::read_to_string(&path).expect("still there"), text);
}

#[test]
fn mistakes_with_volumes_are_told_apart() {
    let place = Place::new();
    let daemon = place.start();
    let socket = daemon.create("web").expect("made");
    assert_eq!(kind(daemon.create("web")), ProblemKind::Conflict);
    assert_eq!(kind(daemon.create("Web")), ProblemKind::InvalidRequest);
    assert_eq!(kind(daemon.ask(async |client| client.volume(&name("none")).await)), ProblemKind::NotFound);
    assert_eq!(kind(daemon.ask(async |client| client.attach(&name("none")).await)), ProblemKind::NotFound);
    assert_eq!(kind(daemon.ask(async |client| client.delete(&name("none"), false).await)), ProblemKind::NotFound);
    for (size_bytes, block_size, sco_size) in
        [(0, None, None), (1000, None, None), (1 << 20, Some(5000), None), (1 << 20, None, Some(1))]
    {
        let request = CreateVolume { name: "odd".to_owned(), size_bytes, block_size, sco_size, ..CreateVolume::default() };
        assert_eq!(kind(daemon.ask(async |client| client.create(&request).await)), ProblemKind::InvalidRequest, "{request:?}");
    }
    daemon.ask(async |client| client.delete(&name("web"), false).await).expect("deleted");
    assert!(!socket.exists());
    daemon.create("web").expect("the name is free");
}

#[test]
fn a_volume_whose_socket_would_not_fit_is_refused_and_not_made() {
    let mut place = Place::new();
    // Room for `/run/vhost/` and a short name, not for 63 characters.
    let room = 107 - "/state/run/vhost/short.sock".len() - place.dir.path().as_os_str().len();
    place.under = Some("d".repeat(room - 1));
    let daemon = place.start();
    assert_eq!(kind(daemon.create(&"n".repeat(63))), ProblemKind::InvalidRequest);
    assert!(daemon.create("short").expect("fits").exists());
    assert_eq!(daemon.ask(async |client| client.volumes().await).expect("answers").volumes.len(), 1);
}

#[test]
fn a_second_daemon_names_the_first_and_exits_2() {
    let place = Place::new();
    let daemon = place.start();
    let (code, said) = place.refused();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(&format!("process {}", daemon.child.id())) && said.contains("--state-dir"), "{said}");
    // The same drives under another state.
    let mut elsewhere = Place::new();
    elsewhere.drives.clone_from(&place.drives);
    let (code, said) = elsewhere.refused();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("drive1") && said.contains("in use"), "{said}");
    assert_eq!(daemon.status().health, Health::Healthy);
}

#[test]
fn a_first_start_wants_every_drive_and_touches_no_foreign_files() {
    let mut place = Place::new();
    let precious = place.drives[2].join("thesis.txt");
    std::fs::write(&precious, "precious").expect("write");
    let (code, said) = place.refused();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("drive3") && said.contains("not Lamina's"), "{said}");
    assert_eq!(std::fs::read(&precious).expect("there"), b"precious");
    std::fs::remove_file(&precious).expect("remove");
    place.drives[4] = place.dir.path().join("nowhere");
    let (code, said) = place.refused();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("nowhere") && said.contains("mount the drive"), "{said}");
    assert!(!place.drives[4].exists());
    std::fs::create_dir(&place.drives[4]).expect("mkdir");
    assert_eq!(place.start().status().health, Health::Healthy);
}

#[test]
fn a_missing_or_blank_drive_starts_degraded_and_too_many_refuse() {
    let place = Place::new();
    drop(place.start());
    let away: Vec<_> = place.drives.iter().map(|drive| drive.with_extension("away")).collect();
    let take = |index: usize| std::fs::rename(&place.drives[index], &away[index]).expect("renamed");
    take(0);
    take(1);
    std::fs::create_dir(&place.drives[1]).expect("a blank one");
    let daemon = place.start();
    let said = daemon.degraded("drive1");
    assert!(
        said.contains("drive2: the directory is empty") && said.contains("one more drive would make data unreadable"),
        "{said}"
    );
    let targets = daemon.ask(async |client| client.targets().await).expect("targets").targets;
    let states: Vec<_> = targets.iter().map(|target| target.state).collect();
    assert_eq!(states.iter().filter(|state| **state == TargetState::Missing).count(), 2);
    assert!(!place.drives[0].exists(), "a missing drive was made");
    assert_eq!(std::fs::read_dir(&place.drives[1]).expect("there").count(), 0, "a blank drive was written to");
    drop(daemon);
    take(2);
    let (code, said) = place.refused();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("3 of the pool's 6 drives are there") && said.contains("drive3"), "{said}");
    std::fs::remove_dir(&place.drives[1]).expect("still blank");
    for (away, drive) in away.iter().zip(&place.drives).take(3) {
        std::fs::rename(away, drive).expect("renamed");
    }
    assert_eq!(place.start().status().health, Health::Healthy);
}

#[test]
fn a_drive_that_comes_back_is_taken_back_without_a_restart() {
    let place = Place::new();
    drop(place.start());
    let away = place.drives[2].with_extension("away");
    std::fs::rename(&place.drives[2], &away).expect("renamed");
    let daemon = place.start();
    daemon.degraded("drive3");
    std::fs::rename(&away, &place.drives[2]).expect("renamed");
    let until = Instant::now() + Duration::from_secs(20);
    while daemon.status().health != Health::Healthy {
        assert!(Instant::now() < until, "{:?}", daemon.status().degraded);
        std::thread::sleep(Duration::from_millis(100));
    }
    let targets = daemon.ask(async |client| client.targets().await).expect("targets").targets;
    assert!(targets.iter().all(|target| target.state == TargetState::Up && target.path.is_some()));
}

#[test]
fn swapped_drives_are_known_and_those_of_another_pool_refused() {
    let mut place = Place::new();
    drop(place.start());
    place.drives.swap(0, 5);
    assert_eq!(place.start().status().health, Health::Healthy);
    let other = Place::new();
    drop(other.start());
    place.drives[3].clone_from(&other.drives[3]);
    let (code, said) = place.refused();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("belongs to another pool"), "{said}");
}

#[test]
fn a_drive_that_vanishes_is_missed_within_seconds_without_any_io() {
    let place = Place::new();
    let daemon = place.start();
    let began = Instant::now();
    std::fs::remove_dir_all(&place.drives[3]).expect("removed");
    let said = daemon.degraded("drive4");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(said.starts_with("target-missing: drive 3 (") && said.contains("one more drive may be lost"), "{said}");
    let metrics = daemon.ask(async |client| client.metrics().await).expect("metrics");
    assert!(metrics.contains("lamina_degraded{what=\"target-missing\"} 1"), "{metrics}");
}

#[test]
fn too_little_space_for_the_journal_is_said_before_anything_is_made() {
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_laminad"));
    command.arg("--state-dir").arg(place.state()).args(["--policy", "4+2", "--journal-size", "900TiB"]);
    for drive in &place.drives {
        command.arg("--drive").arg(drive);
    }
    let (code, said) = end_of(command);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("not enough space") && said.contains("journal") && said.contains("--journal-size"), "{said}");
    assert_eq!(std::fs::read_dir(&place.drives[0]).expect("there").count(), 0, "a drive was claimed");
}

#[test]
fn a_registry_damaged_in_both_copies_is_said_and_nothing_is_wiped() {
    let place = Place::new();
    let daemon = place.start();
    daemon.create("web").expect("made");
    assert!(daemon.terminate().success());
    let registry = place.state().join("meta/registry");
    std::fs::write(registry.join("registry.json"), "{").expect("damage");
    std::fs::write(registry.join("registry.sled/db"), vec![0; 1 << 20]).expect("damage");
    let (code, said) = place.refused();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("both copies of the registry") && said.contains("recover the volumes from the store"), "{said}");
    assert_eq!(std::fs::read(registry.join("registry.json")).expect("there"), b"{");
}

#[test]
fn check_says_what_is_wrong_and_where() {
    let dir = TempDir::new().expect("tempdir");
    let path = dir.path().join("lamina.yaml");
    let check = |text: &str| {
        std::fs::write(&path, text).expect("write");
        let mut command = Command::new(env!("CARGO_BIN_EXE_laminad"));
        command.arg("--config").arg(&path).arg("--check");
        end_of(command)
    };
    assert_eq!(check(include_str!("../packaging/lamina.yaml")).0, Some(0));
    let (code, said) = check("policy: 4+2\njurnal_size: 1GiB\n");
    assert_eq!(code, Some(2));
    assert!(said.contains("lamina.yaml:2:1: unknown field `jurnal_size`"), "{said}");
    let (code, said) = check("drives: [/a, /b]\npolicy: 4+2\n");
    assert_eq!(code, Some(2));
    assert!(said.contains("lamina.yaml:2:9: policy 4+2 spreads over 6 drives and 2 are named"), "{said}");
    let mut nothing = Command::new(env!("CARGO_BIN_EXE_laminad"));
    nothing.arg("--check");
    assert_eq!(end_of(nothing).0, Some(2));
}

#[test]
fn systemd_is_told_of_readiness_of_life_and_of_the_end() {
    let mut place = Place::new();
    let path = place.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bind");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    place.notify = Some((socket.try_clone().expect("clone"), path));
    let daemon = place.start();
    let wanted = |start: &str| {
        let mut buffer = [0; 512];
        loop {
            let len = socket.recv(&mut buffer).expect("a message in time");
            let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
            if text.starts_with(start) {
                return text;
            }
        }
    };
    assert!(wanted("READY=1").contains("STATUS=lamina ready"));
    wanted("WATCHDOG=1");
    wanted("WATCHDOG=1");
    assert!(daemon.terminate().success());
    wanted("STOPPING=1");
}

#[test]
fn metrics_are_on_loopback_and_on_the_local_socket() {
    let mut place = Place::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    place.extra = vec![format!("--metrics-listen=127.0.0.1:{port}")];
    let daemon = place.start();
    daemon.create("web").expect("made");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("send");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answer");
    for line in [
        "lamina_volume_size_bytes{volume=\"web\"} 1048576",
        "lamina_requests_total{volume=\"web\",op=\"flush\"} 0",
        "lamina_target_up{target=\"5\"",
    ] {
        assert!(text.contains(line), "no {line} in {text}");
    }
    let (_, body) = text.split_once("\r\n\r\n").expect("a body");
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let (_, value) = line.rsplit_once(' ').expect("a sample");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    assert!(daemon.ask(async |client| client.metrics().await).expect("metrics").contains("lamina_build_info"));
}

#[test]
fn files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let _daemon = place.start();
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&place.state().join("run/lamina.sock")), 0o600);
    for private in ["meta", "journal", "cache", "run/vhost"] {
        assert_eq!(mode(&place.state().join(private)) & 0o007, 0, "{private} is open to all");
    }
}
