//! Each command against a small appliance in this process: what it prints, and the likeliest mistakes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use lamina_api::appliance::Appliance;
use lamina_api::listener::LocalListener;
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::routes;
use lamina_api::status::{CacheStatus, Degradation, Health, Space, Status, StoreStatus};
use lamina_api::target::{Target, TargetList, TargetState};
use lamina_api::volume::{CreateVolume, Volume, VolumeCounters, VolumeList, VolumeState};
use lamina_contract::VolumeName;
use parking_lot::Mutex;
use tempfile::TempDir;

/// Volumes in memory, with the daemon's rules.
#[derive(Default)]
struct Fake(Mutex<BTreeMap<String, Volume>>);

impl Fake {
    fn change(&self, name: &VolumeName, change: impl FnOnce(&mut Volume)) -> Result<Volume, Problem> {
        let mut volumes = self.0.lock();
        let volume = volumes.get_mut(name.as_str()).ok_or_else(|| {
            Problem::new(ProblemKind::NotFound, format!("no volume '{name}'")).advise("lamina volume list shows all")
        })?;
        change(volume);
        Ok(volume.clone())
    }
}

impl Appliance for Fake {
    fn status(&self) -> Result<Status, Problem> {
        Ok(Status {
            version: "0.1.0".to_owned(),
            pid: 7,
            health: Health::Degraded,
            degraded: vec![Degradation {
                what: "target-missing".to_owned(),
                detail: "target 3 is not there".to_owned(),
                risk: "1 more may be lost".to_owned(),
            }],
            uptime_seconds: 5,
            recovery_ms: 12,
            volumes: 1,
            volumes_attached: 1,
            written_bytes: 1 << 30,
            deduplicated_bytes: 1 << 20,
            stored_bytes: 1 << 29,
            journal: Space { used_bytes: 4096, capacity_bytes: 1 << 30 },
            cache: CacheStatus::default(),
            store: StoreStatus { policy: "4+2".to_owned(), write_min: 5, targets: 6, targets_up: 5, ..StoreStatus::default() },
        })
    }

    fn volumes(&self) -> Result<VolumeList, Problem> {
        Ok(VolumeList { volumes: self.0.lock().values().cloned().collect() })
    }

    fn volume(&self, name: &VolumeName) -> Result<Volume, Problem> {
        self.change(name, |_| {})
    }

    fn create(&self, request: &CreateVolume) -> Result<Volume, Problem> {
        let mut volumes = self.0.lock();
        if volumes.contains_key(&request.name) {
            let detail = format!("a volume named '{}' exists already", request.name);
            return Err(Problem::new(ProblemKind::Conflict, detail).advise("choose another name"));
        }
        let volume = Volume {
            name: request.name.clone(),
            id: "00000000000000aa".to_owned(),
            size_bytes: request.size_bytes,
            block_size: request.block_size.unwrap_or(4096),
            sco_size: request.sco_size.unwrap_or(4 << 20),
            read_only: request.read_only,
            created: "2026-01-01T00:00:00Z".to_owned(),
            state: VolumeState::Attached,
            socket: Some(format!("/run/lamina/vhost/{}.sock", request.name)),
            connected: request.name == "busy",
            epoch: 1,
            generation: 0,
            counters: VolumeCounters::default(),
        };
        volumes.insert(request.name.clone(), volume.clone());
        Ok(volume)
    }

    fn delete(&self, name: &VolumeName) -> Result<(), Problem> {
        if self.volume(name)?.connected {
            return Err(Problem::new(ProblemKind::Conflict, format!("a guest uses volume '{name}'")).advise("shut the guest down"));
        }
        self.0.lock().remove(name.as_str());
        Ok(())
    }

    fn attach(&self, name: &VolumeName) -> Result<Volume, Problem> {
        self.change(name, |volume| {
            volume.state = VolumeState::Attached;
            volume.socket = Some(format!("/run/lamina/vhost/{name}.sock"));
        })
    }

    fn detach(&self, name: &VolumeName) -> Result<Volume, Problem> {
        self.change(name, |volume| {
            volume.state = VolumeState::Detached;
            volume.socket = None;
        })
    }

    fn targets(&self) -> Result<TargetList, Problem> {
        let target = |index, state, path: Option<&str>| Target {
            index,
            id: format!("{index:016x}"),
            path: path.map(str::to_owned),
            state,
            capacity_bytes: 1 << 40,
            free_bytes: 1 << 39,
            read_bytes: 1,
            written_bytes: 2,
            errors: 0,
            last_error: None,
        };
        let targets = vec![target(0, TargetState::Up, Some("/srv/d0")), target(1, TargetState::Missing, None)];
        Ok(TargetList { policy: "4+2".to_owned(), targets })
    }

    fn metrics(&self) -> String {
        String::new()
    }
}

struct Daemon {
    dir: TempDir,
    _runtime: tokio::runtime::Runtime,
}

fn daemon() -> Daemon {
    let dir = TempDir::new().expect("tempdir");
    std::fs::create_dir(dir.path().join("run")).expect("mkdir");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let listener = LocalListener::bind(&dir.path().join("run/lamina.sock")).expect("bind");
    runtime.spawn(listener.serve(routes::router(Arc::new(Fake::default()))));
    Daemon { dir, _runtime: runtime }
}

impl Daemon {
    fn lamina(&self, arguments: &[&str]) -> Output {
        lamina(self.dir.path().to_owned(), arguments)
    }

    /// Stdout of a command that must succeed.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.lamina(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Stderr of a command that must exit with `code` and print nothing on stdout.
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.lamina(arguments);
        let stderr = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        stderr
    }
}

fn lamina(state: PathBuf, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lamina"))
        .env_remove("LAMINA_SOCKET")
        .arg("--state-dir")
        .arg(state)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("runs")
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("json")
}

#[test]
fn create_answers_scripts_with_name_size_and_socket() {
    let daemon = daemon();
    let made = json(&daemon.ok(&["volume", "create", "web", "--size", "10GiB", "-o", "json"]));
    assert_eq!((made["name"].as_str(), made["size_bytes"].as_u64()), (Some("web"), Some(10 << 30)));
    assert_eq!(made["socket"], "/run/lamina/vhost/web.sock");
    let made = json(&daemon.ok(&[
        "volume",
        "create",
        "db",
        "--size",
        "1T",
        "--block-size",
        "16KiB",
        "--sco-size",
        "8MiB",
        "--read-only",
        "-ojson",
    ]));
    let shape = (made["block_size"].as_u64(), made["sco_size"].as_u64(), made["read_only"].as_bool());
    assert_eq!(shape, (Some(16384), Some(8 << 20), Some(true)));
}

#[test]
fn mistakes_in_create_say_what_would_be_right() {
    let daemon = daemon();
    for (arguments, advice) in [
        (&["volume", "create", "web"][..], "--size"),
        (&["volume", "create", "Web", "--size", "1GiB"], "a-z, 0-9 and '-'"),
        (&["volume", "create", "web", "--size", "10GB"], "10GiB"),
        (&["volume", "create", "web", "--size", "ten"], "10GiB"),
        (&["volume", "create", "web", "--size", "1GiB", "--block-size", "1KiB"], "power of two from 4096 to 65536"),
        (&["volume", "create", "web", "--size", "1GiB", "--sco-size", "64MiB"], "1 MiB to 16 MiB"),
        (&["volume", "creat", "web"], "create"),
        (&["volumes", "list"], "volume"),
    ] {
        let stderr = daemon.fails(2, arguments);
        assert!(stderr.contains(advice), "{arguments:?}: {stderr}");
    }
    daemon.ok(&["volume", "create", "web", "--size", "1GiB"]);
    let stderr = daemon.fails(5, &["volume", "create", "web", "--size", "1GiB"]);
    assert!(stderr.contains("exists already") && stderr.contains("advice: choose another name"), "{stderr}");
}

#[test]
fn list_is_a_table_an_array_and_yaml() {
    let daemon = daemon();
    assert_eq!(json(&daemon.ok(&["volume", "list", "-o", "json"])), serde_json::json!([]));
    daemon.ok(&["volume", "create", "b", "--size", "1GiB"]);
    daemon.ok(&["volume", "create", "a", "--size", "1536MiB"]);
    let table = daemon.ok(&["volume", "list"]);
    let lines: Vec<_> = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[0], ["NAME", "SIZE", "STATE", "GUEST", "WRITTEN", "SOCKET"]);
    assert_eq!(lines[1], ["a", "1.5", "GiB", "attached", "-", "0", "B", "/run/lamina/vhost/a.sock"]);
    assert_eq!(lines.len(), 3);
    assert_eq!(json(&daemon.ok(&["volume", "list", "-o", "json"]))[1]["name"], "b");
    assert!(daemon.ok(&["volume", "list", "-o", "yaml"]).starts_with("- name: a\n"));
}

#[test]
fn show_of_a_missing_volume_exits_3() {
    let daemon = daemon();
    assert!(daemon.fails(3, &["volume", "show", "nope"]).contains("no volume 'nope'"));
    daemon.ok(&["volume", "create", "web", "--size", "1GiB"]);
    let table = daemon.ok(&["volume", "show", "web"]);
    assert!(table.contains("identity") && table.contains("00000000000000aa"), "{table}");
}

#[test]
fn attach_prints_what_each_hypervisor_needs() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "web", "--size", "1GiB"]);
    let qemu = daemon.ok(&["volume", "attach", "web", "--hypervisor", "qemu", "--memory", "512MiB", "--queues", "1"]);
    assert!(qemu.contains("memory-backend-memfd,id=mem,size=512M,share=on"), "{qemu}");
    assert!(qemu.contains("path=/run/lamina/vhost/web.sock,reconnect-ms=500"), "{qemu}");
    assert!(daemon.ok(&["volume", "attach", "web", "--hypervisor", "cloud-hypervisor"]).contains("shared=on"));
    assert!(daemon.ok(&["volume", "attach", "web", "--hypervisor", "libvirt"]).contains("<disk type='vhostuser'"));
    let both = json(&daemon.ok(&["volume", "attach", "web", "--hypervisor", "qemu", "-o", "json"]));
    assert_eq!(both["volume"]["name"], "web");
    assert!(both["text"].as_str().expect("text").contains("vhost-user-blk-pci"));
    assert!(daemon.fails(2, &["volume", "attach", "web", "--hypervisor", "xen"]).contains("cloud-hypervisor"));
    daemon.fails(3, &["volume", "attach", "nope", "--hypervisor", "qemu"]);
}

#[test]
fn detach_removes_the_socket_and_attach_brings_it_back() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "web", "--size", "1GiB"]);
    assert!(json(&daemon.ok(&["volume", "detach", "web", "-o", "json"]))["socket"].is_null());
    assert!(daemon.ok(&["volume", "show", "web"]).contains("lamina volume attach"));
    assert_eq!(json(&daemon.ok(&["volume", "attach", "web", "-o", "json"]))["state"], "attached");
    daemon.fails(3, &["volume", "detach", "nope"]);
}

#[test]
fn delete_wants_a_yes_and_no_guest() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "web", "--size", "1GiB"]);
    daemon.ok(&["volume", "create", "busy", "--size", "1GiB"]);
    assert!(daemon.fails(2, &["volume", "delete", "web"]).contains("advice: add --yes"));
    assert!(daemon.fails(5, &["volume", "delete", "busy", "--yes"]).contains("advice: shut the guest down"));
    assert!(daemon.ok(&["volume", "delete", "web", "--yes"]).contains("deleted"));
    daemon.fails(3, &["volume", "delete", "web", "--yes"]);
    daemon.fails(3, &["volume", "delete", "web"]);
}

#[test]
fn status_and_targets_say_what_is_degraded() {
    let daemon = daemon();
    let table = daemon.ok(&["status"]);
    assert!(table.contains("target 3 is not there; 1 more may be lost") && table.contains("5 of 6 targets up"), "{table}");
    assert_eq!(json(&daemon.ok(&["status", "-o", "json"]))["health"], "degraded");
    assert!(daemon.ok(&["target", "list"]).lines().any(|line| line.contains("missing")));
    assert_eq!(json(&daemon.ok(&["target", "list", "-o", "json"]))["targets"][0]["path"], "/srv/d0");
}

#[test]
fn without_a_daemon_it_exits_4_and_says_where_it_looked() {
    let dir = TempDir::new().expect("tempdir");
    let output = lamina(dir.path().to_owned(), &["status"]);
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains("run/lamina.sock") && stderr.contains("advice: start laminad"), "{stderr}");
    // A socket that a killed daemon left.
    std::fs::create_dir(dir.path().join("run")).expect("mkdir");
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("run/lamina.sock")).expect("bind"));
    let output = lamina(dir.path().to_owned(), &["status"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("without removing its socket"));
}

#[test]
fn completions_know_the_commands() {
    let output = Command::new(env!("CARGO_BIN_EXE_lamina")).args(["completions", "bash"]).output().expect("runs");
    assert!(String::from_utf8_lossy(&output.stdout).contains("attach"));
}

#[test]
fn a_machine_is_rendered_without_a_daemon_and_mistakes_are_usage_errors() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let lamina = |arguments: &[&str], input: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lamina"));
        command.args(["--socket", "/nowhere/lamina.sock", "vm", "render"]).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
        // It may have ended without reading.
        let _ = std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), input.as_bytes());
        child.wait_with_output().expect("ended")
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let domain = lamina(&["--from", &format!("{golden}/web.json"), "--hypervisor", "libvirt"], "");
    assert_eq!(text(&domain.stdout), std::fs::read_to_string(format!("{golden}/web.xml")).expect("golden"));
    let small = std::fs::read_to_string(format!("{golden}/small.json")).expect("golden");
    let script = lamina(&["--from", "-", "--hypervisor", "cloud-hypervisor", "-o", "json"], &small);
    let answer: serde_json::Value = serde_json::from_slice(&script.stdout).expect("JSON");
    let expected = std::fs::read_to_string(format!("{golden}/small-cloud-hypervisor.sh")).expect("golden");
    assert_eq!((answer["name"].as_str(), answer["text"].as_str()), (Some("small"), Some(expected.as_str())));
    for (arguments, input, words) in [
        (["--from", "/nowhere/x.json", "--hypervisor", "qemu"], "", "/nowhere/x.json cannot be read"),
        (["--from", "-", "--hypervisor", "qemu"], "{}", "missing field `name`"),
        (["--from", "-", "--hypervisor", "qemu"], &small.replace("\"br0\"", "\"br 0\""), "cannot be the name of a bridge"),
        (["--from", "-", "--hypervisor", "cloud-hypervisor"], &small.replace("uefi", "bios"), "has no BIOS"),
    ] {
        let refused = lamina(&arguments, input);
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
        assert!(text(&refused.stderr).contains(words), "{}", text(&refused.stderr));
    }
}
