//! What is the same for all commands: reaching the daemon, pipes, colours, completion; and what differs by machine.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use lamina_api::job::JobState;
use tempfile::TempDir;

use crate::daemon::{daemon, lamina};

#[test]
fn without_a_daemon_it_exits_4_and_says_where_it_looked() {
    let dir = TempDir::new().expect("tempdir");
    let status = || lamina(dir.path()).arg("--state-dir").arg(dir.path()).arg("status").output().expect("runs");
    let output = status();
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains("run/lamina.sock") && stderr.contains("advice: start laminad"), "{stderr}");
    // A socket that a killed daemon left.
    std::fs::create_dir(dir.path().join("run")).expect("mkdir");
    drop(UnixListener::bind(dir.path().join("run/lamina.sock")).expect("bind"));
    let output = status();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("without removing its socket"));
    // The environment names one too.
    let output = lamina(dir.path()).env("LAMINA_SOCKET", "/nowhere/x.sock").arg("status").output().expect("runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no daemon answers at /nowhere/x.sock"));
}

#[test]
fn a_daemon_that_does_not_answer_in_time_is_exit_code_7() {
    let dir = TempDir::new().expect("tempdir");
    let socket = dir.path().join("s");
    let _silent = UnixListener::bind(&socket).expect("bind");
    let output = lamina(dir.path()).arg("--socket").arg(&socket).args(["status", "--timeout", "1s"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let daemon = daemon();
    for n in 0..40 {
        daemon.ok(&["volume", "create", &format!("v{n}"), "--size", "1GiB"]);
    }
    let mut child =
        daemon.command(&["volume", "list", "-o", "json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn colours_are_for_terminals_and_for_those_who_ask() {
    let daemon = daemon();
    let plain = daemon.ok(&["status"]);
    assert!(!plain.contains('\x1b'));
    let coloured = daemon.ok(&["status", "--color", "always"]);
    assert!(coloured.contains("\x1b[31mdegraded\x1b[0m"), "{coloured:?}");
    let failed = daemon.lamina(&["volume", "show", "x", "--color", "always"]);
    assert!(String::from_utf8_lossy(&failed.stderr).starts_with("\x1b[31mlamina:\x1b[0m no volume 'x'"));
}

#[test]
fn the_audit_log_says_who_changed_what() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "web", "--size", "1GiB"]);
    daemon.fails(3, &["volume", "attach", "wbe"]);
    let lines = daemon.json(&["audit", "--limit", "1"]);
    let newest = &lines[0];
    assert_eq!((newest["method"].as_str(), newest["path"].as_str()), (Some("POST"), Some("/api/v1/volumes/wbe/attach")));
    assert_eq!((newest["status"].as_u64(), lines.as_array().map(Vec::len)), (Some(404), Some(1)));
    let table = daemon.ok(&["audit"]);
    let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["TIME", "WHO", "FROM", "METHOD", "PATH", "STATUS"]);
    assert_eq!(rows[2][rows[2].len() - 3..], ["POST", "/api/v1/volumes", "201"]);
}

#[test]
fn top_shows_rates_for_programs_too() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "web", "--size", "1GiB"]);
    daemon.ok(&["volume", "create", "slow-1", "--size", "1GiB"]);
    daemon.ok(&["volume", "clone", "slow-1", "--name", "x", "--no-wait"]);
    let load = daemon.json(&["top", "--interval", "1s", "--sort", "latency"]);
    assert!(load["seconds"].as_f64().is_some_and(|seconds| seconds >= 1.0), "{load}");
    assert_eq!((load["volumes"].as_array().map(Vec::len), load["jobs"][0]["state"].as_str()), (Some(3), Some("running")));
    assert_eq!(load["volumes"][0]["reads_per_second"].as_f64(), Some(0.0));
}

#[test]
fn shells_are_told_names_of_volumes_and_snapshots() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "web", "--size", "1GiB"]);
    daemon.ok(&["volume", "create", "weblog", "--size", "1GiB"]);
    daemon.ok(&["snapshot", "create", "web@daily-1"]);
    let state = daemon.dir.path().to_str().expect("text");
    let completed = |words: &[&str]| {
        let mut command = lamina(daemon.dir.path());
        command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", (words.len() + 2).to_string()).env("_CLAP_IFS", "\n");
        let output = command.args(["--", "lamina", "--state-dir", state]).args(words).output().expect("runs");
        String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(completed(&["volume", "at"]).contains(&"attach".to_owned()));
    assert_eq!(completed(&["volume", "show", "we"]), ["web", "weblog"]);
    assert_eq!(completed(&["snapshot", "show", "web@"]), ["web@daily-1"]);
    // Without a daemon nothing is said, quickly.
    let begun = std::time::Instant::now();
    let mut alone = lamina(daemon.dir.path());
    alone.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "3").env("_CLAP_IFS", "\n").env("LAMINA_SOCKET", "/nowhere/x");
    let output = alone.args(["--", "lamina", "volume", "show", ""]).output().expect("runs");
    assert!(output.status.success() && begun.elapsed().as_secs() < 5);
    // What is no text is no name, and no reason to fall over.
    let mut odd = lamina(daemon.dir.path());
    odd.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "3").env("_CLAP_IFS", "\n");
    odd.args(["--", "lamina", "snapshot", "show"]).arg(OsStr::from_bytes(b"web@\xff"));
    let output = odd.output().expect("runs");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
    let script = daemon.ok(&["completions", "bash"]);
    assert!(script.contains("COMPLETE=") && script.contains("lamina"), "{script}");
}

#[test]
fn a_job_that_is_left_goes_on_and_the_next_one_is_waited_for() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "slow-1", "--size", "1GiB"]);
    let mut id = String::new();
    for (signal, name) in [("-INT", "x"), ("-TERM", "y")] {
        let clone = ["volume", "clone", "slow-1", "--name", name];
        let mut child = daemon.command(&clone).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
        let mut first = String::new();
        let mut told = BufReader::new(child.stderr.take().expect("a pipe"));
        told.read_line(&mut first).expect("a line");
        assert!(first.starts_with("job ") && first.contains("0 of 1 volumes"), "{first}");
        std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
        assert_eq!(child.wait().expect("ended").code(), Some(130));
        let mut rest = String::new();
        told.read_to_string(&mut rest).expect("text");
        id = first.split([' ', ':']).nth(1).expect("a number").to_owned();
        assert!(rest.contains(&format!("interrupted; job {id} goes on")) && rest.contains("lamina job cancel"), "{rest}");
        assert_eq!(daemon.json(&["job", "show", &id])["state"], "running");
    }

    let child = daemon.command(&["job", "wait", &id, "-o", "json"]).stdout(Stdio::piped()).spawn().expect("runs");
    std::thread::sleep(std::time::Duration::from_millis(300));
    daemon.fake.finish_jobs();
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success());
    let job: lamina_api::job::Job = serde_json::from_slice(&output.stdout).expect("a job");
    assert_eq!(job.state, JobState::Succeeded);
}

#[test]
fn an_anonymous_bundle_tells_no_name_of_what_is_there_or_was() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "payroll", "--size", "1GiB"]);
    daemon.ok(&["volume", "create", "ledger", "--size", "1GiB"]);
    daemon.ok(&["snapshot", "create", "payroll@quarter"]);
    daemon.ok(&["vm", "create", "bookshop", "--cpus", "1", "--memory", "1GiB", "--disk", "payroll"]);
    daemon.ok(&["volume", "delete", "ledger", "--yes"]);
    let dir = daemon.dir.path();
    let log = "INFO snapshot of payroll is stored: quarter\nINFO deleted volume=bygone\nINFO took payroll-20260105-0200, bygone-export-1\n";
    std::fs::write(dir.join("log"), log).expect("written");
    let file = dir.join("b.tar.gz").display().to_string();
    let done = daemon.json(&["support-bundle", &file, "--anonymous", "--log", &dir.join("log").display().to_string()]);
    assert_eq!((done["file"].as_str(), done["anonymous"].as_bool()), (Some(file.as_str()), Some(true)));
    let all = std::process::Command::new("tar").args(["--to-stdout", "-xzf", &file]).output().expect("tar").stdout;
    let all = String::from_utf8_lossy(&all);
    assert!(all.contains("/api/v1/volumes/name-") && all.contains("snapshot of name-"), "the audit log and the log are there");
    for name in ["payroll", "ledger", "quarter", "bookshop", "bygone"] {
        let line = all.lines().find(|line| line.contains(name));
        assert_eq!(line, None, "{name}");
    }
}

#[test]
fn a_bundle_that_was_killed_leaves_the_name_to_the_next_one() {
    let daemon = daemon();
    let dir = daemon.dir.path();
    let (file, begun, programs) = (dir.join("b.tar.gz"), dir.join("begun"), dir.join("bin"));
    std::fs::create_dir(&programs).expect("mkdir");
    let slow = format!("#!/bin/sh\ntouch {}\nexec sleep 2\n", begun.display());
    std::fs::write(programs.join("tar"), slow).expect("written");
    std::fs::set_permissions(programs.join("tar"), std::fs::Permissions::from_mode(0o700)).expect("set");
    let words = ["support-bundle", file.to_str().expect("text")];
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("a path"));
    let mut child = daemon.command(&words).env("PATH", path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !begun.exists() {
        assert!(std::time::Instant::now() < until && child.try_wait().expect("a state").is_none(), "it did not pack");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(!file.exists(), "what is not complete has the name");
    daemon.ok(&words);
    assert_eq!(std::fs::metadata(&file).expect("metadata").permissions().mode() & 0o777, 0o600);
    assert!(daemon.fails(5, &words).contains("choose another name"));
}
