//! `lamina support-bundle` beside a real daemon: what is in it, what it says is missing, and that no secret is in it wherever one was planted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use lamina_contract::units::{ByteSize, Lba};
use lamina_harness::{Client, ClientOptions, binary};
use lamina_journeys::Bed;
use serde_json::Value;

/// In everything that is planted; long enough to be no chance.
const PLANT: &str = "pl4nted";

fn bundle(bed: &Bed, file: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binary("lamina").expect("built"));
    command.arg("--state-dir").arg(bed.daemon.state()).arg("support-bundle").arg(file).args(arguments);
    command.envs(environment.iter().copied()).output().expect("it runs")
}

/// Every file of the bundle by its name in it.
fn unpacked(bed: &Bed, file: &Path) -> BTreeMap<String, Vec<u8>> {
    let into =
        bed.place.subdirectory(&format!("unpacked-{}", file.file_stem().unwrap_or_default().display())).expect("a directory");
    let status = Command::new("tar").arg("-xzf").arg(file).arg("-C").arg(&into).status().expect("tar");
    assert!(status.success());
    let (mut files, mut open) = (BTreeMap::new(), vec![into.clone()]);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let inside: PathBuf = path.strip_prefix(&into).expect("inside").components().skip(1).collect();
            files.insert(inside.display().to_string(), std::fs::read(&path).expect("read"));
        }
    }
    files
}

fn manifest(files: &BTreeMap<String, Vec<u8>>) -> Value {
    serde_json::from_slice(files.get("manifest.json").expect("a manifest")).expect("JSON")
}

/// Who holds `needle`; with gzip's own bytes gone, everything is plain.
fn holders<'a>(files: &'a BTreeMap<String, Vec<u8>>, needle: &str) -> Vec<&'a str> {
    let holds = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
    files.iter().filter(|(name, bytes)| name.contains(needle) || holds(bytes)).map(|(name, _)| name.as_str()).collect()
}

#[test]
fn secrets_planted_everywhere_are_in_no_bundle_and_neither_is_guests_data() {
    let mut bed = Bed::with(|options, _| {
        options.environment.push(("STORE_SECRET_KEY".to_owned(), format!("{PLANT}-daemon-environment")));
        Ok(())
    })
    .expect("a daemon");
    let volume = bed.volume("web", ByteSize(16 << 20)).expect("a volume");
    let mut client = Client::connect(&volume.socket, ClientOptions::default()).expect("connected");
    let data: Vec<u8> = format!("{PLANT}-guest-data ").into_bytes().into_iter().cycle().take(4096).collect();
    client.queue().write(Lba(0), &data).expect("written");
    client.queue().flush().expect("flushed");
    drop(client);

    let here = bed.place.path().to_owned();
    let token_file = here.join("store-token");
    std::fs::write(&token_file, format!("{PLANT}-token-file\n")).expect("written");
    let key_file = here.join("server-key.pem");
    std::fs::write(&key_file, format!("-----BEGIN PRIVATE KEY-----\n{PLANT}InTheKeysFile\n-----END PRIVATE KEY-----\n"))
        .expect("written");
    let config = here.join("lamina.yaml");
    let yaml = format!(
        "# {PLANT}-comment\npolicy: 4+2\napi_key: {}\nstore:\n  token_file: {}\n  password: {PLANT}-configured\n  \
         url: https://me:{PLANT}-in-url@store.example/\n  keys: {{ access_key: [{PLANT}-in-a-list] }}\n",
        key_file.display(),
        token_file.display(),
    );
    std::fs::write(&config, yaml).expect("written");
    let log = here.join("laminad.log");
    let lines = [
        format!("INFO attached volume=web password={PLANT}-log-1"),
        format!("WARN Authorization: Bearer {PLANT}-log-2"),
        format!("{{\"level\":\"INFO\",\"fields\":{{\"token\":\"{PLANT}-log-3\",\"message\":\"bearer {PLANT}-log-4\"}}}}"),
        format!("ERROR it sent {PLANT}-token-file to the store"),
        format!("ERROR it sent {PLANT}InTheKeysFile and {PLANT}-own-environment"),
        format!("-----BEGIN RSA PRIVATE KEY-----\n{PLANT}-log-5\n-----END RSA PRIVATE KEY-----"),
        format!("got lamina_{}{PLANT}", "0123456789abcdef".repeat(4)),
        "INFO the last line".to_owned(),
    ];
    let audit = bed.daemon.state().join("audit/audit.log");
    let line = format!(
        "{{\"time\":\"2026-01-01T00:00:00Z\",\"who\":\"ci\",\"role\":\"admin\",\"from\":\"local\",\"method\":\"POST\",\
         \"path\":\"/api/v1/volumes?token={PLANT}-audit\",\"status\":201,\"request_id\":\"1\"}}\n"
    );
    std::fs::write(&audit, line).expect("written");

    let (config, log_name) = (config.display().to_string(), log.display().to_string());
    let arguments = ["--config", config.as_str(), "--log", log_name.as_str()];
    let own = format!("{PLANT}-own-environment");
    let environment = [("MY_PASSWORD", own.as_str())];
    for running in [true, false] {
        // The environment of a daemon that has ended cannot be known any more: a bare word of it could not be told from others.
        let last = if running { format!("ERROR it sent {PLANT}-daemon-environment\n") } else { String::new() };
        std::fs::write(&log, format!("{last}{}", lines.join("\n"))).expect("written");
        if !running {
            bed.daemon.kill();
        }
        let file = here.join(format!("running-{running}.tar.gz"));
        let output = bundle(&bed, &file, &arguments, &environment);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let files = unpacked(&bed, &file);
        assert_eq!(holders(&files, PLANT), [""; 0], "running: {running}");
        let text = |name: &str| String::from_utf8_lossy(&files[name]).into_owned();
        // What surrounds the secrets is there.
        assert!(text("laminad.log").contains("INFO attached volume=web") && text("laminad.log").contains("INFO the last line"));
        assert!(text("configuration.json").contains("store.example") && text("configuration.json").contains("4+2"));
        let audited = if running { "audit.json" } else { "audit.log" };
        assert!(text(audited).contains("/api/v1/volumes"), "{}", text(audited));
        assert!(manifest(&files)["removed"].as_u64().expect("a number") > 10);
    }
}

#[test]
fn a_bundle_lists_what_is_in_it_and_says_what_is_missing_when_the_daemon_is_down() {
    let mut bed = Bed::new().expect("a daemon");
    bed.volume("web", ByteSize(16 << 20)).expect("a volume");
    let up = bed.place.path().join("up.tar.gz");
    let output = bundle(&bed, &up, &[], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&up).expect("there").permissions().mode() & 0o777, 0o600);
    let files = unpacked(&bed, &up);
    let listed = manifest(&files);
    let entries = listed["files"].as_array().expect("files");
    let mut names: Vec<&str> = entries.iter().filter_map(|entry| entry["file"].as_str()).chain(["manifest.json"]).collect();
    names.sort_unstable();
    assert_eq!(names, files.keys().map(String::as_str).collect::<Vec<_>>());
    for entry in entries {
        assert_eq!(entry["bytes"].as_u64(), files.get(entry["file"].as_str().expect("a name")).map(|bytes| bytes.len() as u64));
    }
    for name in [
        "status.json",
        "targets.json",
        "volumes.json",
        "metrics.txt",
        "jobs.json",
        "registry.json",
        "system/meminfo",
        "process/status",
    ] {
        assert!(files.contains_key(name), "no {name}: {listed}");
    }
    let missing = listed["missing"].as_array().expect("what is missing");
    assert!(missing.iter().any(|one| one["what"] == "the log"), "the daemon's log is on its standard error: {listed}");
    assert!(listed["left_out"].as_array().is_some_and(|all| !all.is_empty()));
    // Nothing is left beside it, and what is there is not replaced.
    let beside = std::fs::read_dir(bed.place.path()).expect("listed").flatten();
    assert!(!beside.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".lamina-support")));
    assert_eq!(bundle(&bed, &up, &[], &[]).status.code(), Some(5));

    bed.daemon.terminate(Duration::from_secs(60)).expect("ended");
    let down = bed.place.path().join("down.tar.gz");
    let output = bundle(&bed, &down, &[], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = unpacked(&bed, &down);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for name in ["status.json", "metrics.txt", "volumes.json"] {
        assert!(!files.contains_key(name) && said.contains(&format!("missing: {name}: no answer")), "{said}");
    }
    assert!(said.contains("missing: the daemon's process"), "{said}");
    for name in ["registry.json", "system/meminfo", "state-files.txt"] {
        assert!(files.contains_key(name), "no {name}");
    }
}

#[test]
fn an_anonymous_bundle_names_no_volume_with_or_without_the_daemon() {
    let mut bed = Bed::new().expect("a daemon");
    bed.volume("payroll-2026", ByteSize(16 << 20)).expect("a volume");
    let log = bed.place.path().join("laminad.log");
    // A volume that is not there any more, its snapshot, and a name that was made of another.
    let lines = "INFO attached volume=payroll-2026 socket=/run/lamina/vhost/payroll-2026.sock\n\
        INFO deleted volume=ledger snapshot=before-audit\nINFO made ledger-export-1a2b3c4d of payroll-2026-20260105-0200\n";
    std::fs::write(&log, lines).expect("written");
    let log = log.display().to_string();
    for running in [true, false] {
        if !running {
            bed.daemon.kill();
        }
        let file = bed.place.path().join(format!("anonymous-{running}.tar.gz"));
        let output = bundle(&bed, &file, &["--anonymous", "--log", &log], &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let files = unpacked(&bed, &file);
        assert_eq!(holders(&files, "payroll"), [""; 0], "running: {running}");
        assert!(String::from_utf8_lossy(&files["laminad.log"]).contains("volume=name-"));
        let log = String::from_utf8_lossy(&files["laminad.log"]).into_owned();
        assert!(!log.contains("ledger") && !log.contains("before-audit"), "{log}");
        assert_eq!(manifest(&files)["anonymous"], true);
    }
    // Without any list of names, nothing that holds some is given away.
    std::fs::remove_file(bed.daemon.state().join("meta/registry/registry.json")).expect("removed");
    let file = bed.place.path().join("unknown.tar.gz");
    let output = bundle(&bed, &file, &["--anonymous", "--log", &log], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(holders(&unpacked(&bed, &file), "payroll"), [""; 0]);
}
