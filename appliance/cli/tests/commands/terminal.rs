//! What only happens on a terminal: a bar, a question, a live view. `script` makes the terminal.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use lamina_api::job::JobState;

use crate::daemon::{Daemon, daemon};

/// A command on a terminal, and what it has shown so far.
struct Terminal {
    child: Child,
    shown: String,
    more: Receiver<Vec<u8>>,
}

impl Terminal {
    fn new(daemon: &Daemon, arguments: &str) -> Self {
        let line = format!("exec {} --state-dir {} {arguments}", env!("CARGO_BIN_EXE_lamina"), daemon.dir.path().display());
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        command.env_remove("LAMINA_SERVER").env_remove("NO_COLOR").env("TZ", "UTC").env("TERM", "xterm");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script, of bsdutils");
        let mut out = child.stdout.take().expect("a pipe");
        let (sender, more) = channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = out.read(&mut piece) {
                if sender.send(piece[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, shown: String::new(), more }
    }

    /// Waits until `words` are shown, behind what was waited for before.
    #[track_caller]
    fn wait_for(&mut self, words: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        while !self.shown.contains(words) {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(piece) = self.more.recv_timeout(left) else { panic!("'{words}' never came: {:?}", self.shown) };
            self.shown.push_str(&String::from_utf8_lossy(&piece));
        }
        let behind = self.shown.find(words).expect("found") + words.len();
        self.shown.drain(..behind);
    }

    fn press(&mut self, keys: &str) {
        self.child.stdin.as_mut().expect("a pipe").write_all(keys.as_bytes()).expect("pressed");
    }

    fn exit_code(mut self) -> Option<i32> {
        // `script` ends when its command does; its input stays open until then.
        self.child.wait().expect("ended").code()
    }
}

#[test]
fn the_live_view_obeys_keys_and_leaves_the_terminal_as_it_was() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "web", "--size", "1GiB"]);
    let mut top = Terminal::new(&daemon, "top --interval 1s");
    top.wait_for("\x1b[?1049h");
    top.wait_for("web");
    top.wait_for("by IOPS");
    top.press("s");
    top.wait_for("by throughput");
    top.press(" ");
    top.wait_for("held");
    top.press("q");
    top.wait_for("\x1b[?25h\x1b[?1049l");
    assert_eq!(top.exit_code(), Some(0));
}

/// The terminal's program makes the command its child.
fn child_of(parent: u32) -> Option<String> {
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    processes.map(|process| process.file_name().to_string_lossy().into_owned()).find(|process| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        // `7 (name) S 5 …`: the parent stands behind the state.
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        behind.split_whitespace().nth(1) == Some(&parent.to_string())
    })
}

#[test]
fn a_live_view_that_is_ended_from_elsewhere_leaves_the_terminal_as_it_was() {
    let daemon = daemon();
    for signal in ["TERM", "HUP"] {
        let mut top = Terminal::new(&daemon, "top --interval 1s");
        top.wait_for("by IOPS");
        let command = child_of(top.child.id()).expect("the command");
        assert!(Command::new("kill").args([format!("-{signal}"), command]).status().expect("kill").success());
        top.wait_for("\x1b[?25h\x1b[?1049l");
        assert_eq!(top.exit_code(), Some(130), "{signal}");
    }
}

#[test]
fn ctrl_c_asks_whether_the_job_shall_end_too() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "slow-1", "--size", "1GiB"]);
    let state = |id: &str| daemon.json(&["job", "show", id])["state"].as_str().map(str::to_owned);
    let newest = || daemon.ok(&["job", "list", "-q"]).lines().next().expect("a job").to_owned();

    let mut cancelled = Terminal::new(&daemon, "volume clone slow-1 --name a");
    cancelled.wait_for("0 of 1 volumes");
    cancelled.press("\x03");
    cancelled.wait_for("[y/N, Ctrl-C leaves it running]");
    cancelled.press("n\n");
    cancelled.wait_for("0 of 1 volumes");
    cancelled.press("\x03");
    cancelled.wait_for("[y/N, Ctrl-C leaves it running]");
    cancelled.press("y\n");
    cancelled.wait_for("interrupted");
    assert_eq!(cancelled.exit_code(), Some(130));
    assert_eq!(state(&newest()).as_deref(), Some(JobState::Cancelled.as_str()));

    let mut left = Terminal::new(&daemon, "volume clone slow-1 --name b");
    left.wait_for("0 of 1 volumes");
    left.press("\x03");
    left.wait_for("[y/N, Ctrl-C leaves it running]");
    left.press("\x03");
    left.wait_for("goes on");
    assert_eq!(left.exit_code(), Some(130));
    assert_eq!(state(&newest()).as_deref(), Some(JobState::Running.as_str()));
}

#[test]
fn deleting_wants_the_name_typed_again() {
    let daemon = daemon();
    daemon.ok(&["volume", "create", "web", "--size", "1GiB"]);
    let mut wrong = Terminal::new(&daemon, "volume delete web");
    wrong.wait_for("Deleting volume 'web' removes all its data. Type 'web' to go on:");
    wrong.press("wbe\n");
    wrong.wait_for("that is not 'web': nothing was done");
    assert_eq!(wrong.exit_code(), Some(1));
    let mut right = Terminal::new(&daemon, "volume delete web");
    right.wait_for("to go on:");
    right.press("web\n");
    right.wait_for("deleted");
    assert_eq!(right.exit_code(), Some(0));
    daemon.fails(3, &["volume", "show", "web"]);
}
