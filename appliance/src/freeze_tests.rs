//! Guests that freeze as they should, and agents with every fault that could be thought of.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{End, FreezeError, FreezePolicy, Limits, freeze, hold_still, thaw_if_frozen};
use crate::guest_agent::AgentError;

/// Short, so that tests are; what is asserted of time has a second to spare, for machines that are busy.
const LIMITS: Limits = Limits {
    freeze: Duration::from_millis(400),
    hold: Duration::from_secs(1),
    thaw: Duration::from_millis(400),
    behind: Duration::from_secs(10),
};

/// What the guest is like inside.
#[derive(Debug, Default)]
struct Inside {
    frozen: bool,
    /// Commands in the order of their arrival, without synchronizing ones.
    commands: Vec<String>,
    connections: u32,
}

/// What the agent does about a command.
enum Reply {
    /// As the protocol says.
    Right,
    /// Other bytes.
    Raw(Vec<u8>),
    /// As the protocol says, but late.
    Late(Duration),
    /// Nothing.
    Silence,
    /// The connection ends.
    Close,
    /// Bytes without an end.
    Flood(u8),
    /// A byte now and then, without an end.
    Drip,
}

struct Guest {
    _dir: TempDir,
    socket: PathBuf,
    inside: Arc<Mutex<Inside>>,
}

impl Guest {
    /// An agent that does what `behave` says to each command, which it is given with the number of commands before.
    fn new(behave: impl Fn(&str, usize) -> Reply + Send + 'static) -> Self {
        let dir = TempDir::new().expect("tempdir");
        let socket = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).expect("bound");
        let inside = Arc::new(Mutex::new(Inside::default()));
        let shared = Arc::clone(&inside);
        thread::spawn(move || {
            let mut seen = 0;
            // One connection at a time, as QEMU does.
            while let Ok((stream, _)) = listener.accept() {
                shared.lock().connections += 1;
                let _ = serve(&stream, &shared, &behave, &mut seen);
            }
        });
        Self { _dir: dir, socket, inside }
    }

    fn honest() -> Self {
        Self::new(|_, _| Reply::Right)
    }

    fn frozen(&self) -> bool {
        self.inside.lock().frozen
    }

    fn commands(&self) -> Vec<String> {
        self.inside.lock().commands.clone()
    }

    fn wait_thawed(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        while self.frozen() || !self.commands().contains(&"guest-fsfreeze-thaw".to_owned()) {
            assert!(Instant::now() < until, "still frozen; {:?}", self.commands());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn serve(
    stream: &UnixStream,
    inside: &Mutex<Inside>,
    behave: &impl Fn(&str, usize) -> Reply,
    seen: &mut usize,
) -> std::io::Result<()> {
    let (mut from, mut to) = (BufReader::new(stream), stream);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        let text = line.strip_prefix(&[0xff]).unwrap_or(&line);
        let request: Value = serde_json::from_slice(text)?;
        line.clear();
        let command = request["execute"].as_str().unwrap_or("?").to_owned();
        let reply = behave(&command, *seen);
        *seen += 1;
        // The guest freezes, whatever becomes of the answer.
        inside.lock().frozen |= command == "guest-fsfreeze-freeze";
        if let Reply::Late(time) = reply {
            thread::sleep(time);
        }
        match reply {
            Reply::Right | Reply::Late(_) => to.write_all(&right(&command, &request, &mut inside.lock()))?,
            Reply::Raw(bytes) => {
                inside.lock().commands.push(command);
                to.write_all(&bytes)?;
            }
            Reply::Silence => inside.lock().commands.push(command),
            Reply::Close => return Ok(()),
            Reply::Flood(byte) => loop {
                to.write_all(&[byte; 4096])?;
            },
            Reply::Drip => loop {
                to.write_all(b" ")?;
                thread::sleep(Duration::from_millis(20));
            },
        }
    }
    Ok(())
}

fn right(command: &str, request: &Value, inside: &mut Inside) -> Vec<u8> {
    let mut answer = Vec::new();
    let value = match command {
        "guest-sync-delimited" => {
            answer.push(0xff);
            request["arguments"]["id"].clone()
        }
        other => {
            inside.commands.push(other.to_owned());
            match other {
                "guest-fsfreeze-freeze" => {
                    inside.frozen = true;
                    json!(2)
                }
                "guest-fsfreeze-thaw" => json!(if std::mem::take(&mut inside.frozen) { 2 } else { 0 }),
                _ => json!(if inside.frozen { "frozen" } else { "thawed" }),
            }
        }
    };
    answer.extend_from_slice(format!("{}\n", json!({ "return": value })).as_bytes());
    answer
}

/// The command that a fault is for.
fn only(wanted: &'static str, fault: fn() -> Reply) -> impl Fn(&str, usize) -> Reply + Send {
    move |command, _| if command == wanted { fault() } else { Reply::Right }
}

fn refusal() -> Reply {
    Reply::Raw(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"not\\u0007 today\"}}\n".to_vec())
}

/// The error, and that it came within the limit.
fn failure(socket: &Path) -> AgentError {
    let began = Instant::now();
    let error = freeze(socket, LIMITS).expect_err("a fault");
    assert!(began.elapsed() < LIMITS.freeze + Duration::from_secs(1), "{:?}: {error}", began.elapsed());
    match error {
        FreezeError::Agent(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
fn a_guest_is_frozen_until_it_is_thawed() {
    let guest = Guest::honest();
    let frozen = freeze(&guest.socket, LIMITS).expect("frozen");
    assert_eq!(frozen.filesystems(), 2);
    assert!(guest.frozen());
    let End { held, thawed } = frozen.thaw();
    assert!(held && thawed.is_ok() && !guest.frozen());
    let expected = ["status", "freeze", "status", "thaw", "status"].map(|verb| format!("guest-fsfreeze-{verb}"));
    assert_eq!(guest.commands(), expected);
}

#[test]
fn dropping_the_guard_thaws_also_when_the_snapshot_panics() {
    let guest = Guest::honest();
    let socket = guest.socket.clone();
    let panicked = thread::spawn(move || {
        let _frozen = freeze(&socket, LIMITS).expect("frozen");
        panic!("the snapshot failed");
    });
    assert!(panicked.join().is_err());
    assert!(!guest.frozen());
}

#[test]
fn a_guest_is_never_held_longer_than_the_limit_and_that_is_said() {
    let guest = Guest::honest();
    let frozen = freeze(&guest.socket, LIMITS).expect("frozen");
    assert!(guest.frozen());
    thread::sleep(LIMITS.hold + Duration::from_secs(1));
    assert!(!guest.frozen(), "thawed although nobody has let go");
    let End { held, thawed } = frozen.thaw();
    assert!(!held && thawed.is_ok());
}

#[test]
fn a_guest_that_was_thawed_by_somebody_else_was_not_held() {
    let guest = Guest::honest();
    let frozen = freeze(&guest.socket, LIMITS).expect("frozen");
    guest.inside.lock().frozen = false;
    let End { held, thawed } = frozen.thaw();
    assert!(!held && thawed.is_ok());
}

#[test]
fn what_others_have_left_in_the_connection_is_skipped() {
    let guest = Guest::new(|command, seen| {
        if command == "guest-sync-delimited" && seen == 0 {
            return Reply::Raw(b"{\"return\": 1}\n\xff{\"return\": 7}\n{\"error\": {}}\nhalf a li".to_vec());
        }
        Reply::Right
    });
    // The first answer never comes; the second attempt begins in the middle of the first one's remains.
    assert!(matches!(failure(&guest.socket), AgentError::Silent { .. }));
    assert!(freeze(&guest.socket, LIMITS).expect("frozen").thaw().held);
}

#[test]
fn every_fault_while_connecting_is_an_error_in_time_and_nothing_is_frozen() {
    for (fault, expected) in [
        (only("guest-sync-delimited", || Reply::Silence), "did not answer in time"),
        (only("guest-sync-delimited", || Reply::Close), "was closed"),
        (only("guest-sync-delimited", || Reply::Flood(b'x')), "has no end"),
        (only("guest-sync-delimited", || Reply::Flood(0xff)), "has no end"),
        (only("guest-sync-delimited", || Reply::Flood(b'\n')), "has no end"),
        (only("guest-sync-delimited", || Reply::Drip), "did not answer in time"),
        (
            only("guest-sync-delimited", || Reply::Raw(b"\xff{}\n\xff[]\n\xff\n\xff{\"return\": \"x\"}\n".to_vec())),
            "did not answer",
        ),
        (only("guest-fsfreeze-status", || Reply::Raw(b"\x00\xfe\xfd\n".to_vec())), "something else"),
        (only("guest-fsfreeze-status", || Reply::Raw(b"{\"return\": \"melting\"}\n".to_vec())), "something else"),
        (only("guest-fsfreeze-status", || Reply::Raw("[".repeat(60_000).into_bytes())), "did not answer in time"),
        (only("guest-fsfreeze-status", || Reply::Raw(format!("{}\n", "[".repeat(60_000)).into_bytes())), "something else"),
        (only("guest-fsfreeze-status", || Reply::Flood(b'[')), "has no end"),
        (only("guest-fsfreeze-status", refusal), "refused: asking whether it is frozen: not today"),
    ] {
        let guest = Guest::new(fault);
        let error = failure(&guest.socket).to_string();
        assert!(error.contains(expected), "{error}, not: {expected}");
        assert!(!guest.commands().contains(&"guest-fsfreeze-freeze".to_owned()));
    }
}

#[test]
fn every_fault_while_freezing_is_an_error_in_time_and_the_guest_is_thawed() {
    // It freezes, and then says something else, nothing, or is gone.
    for (fault, expected) in [
        ((|| Reply::Raw(b"{\"return\": -1}\n".to_vec())) as fn() -> Reply, "something else"),
        (|| Reply::Raw(b"{\"return\": 2".to_vec()), "did not answer in time"),
        (|| Reply::Silence, "did not answer in time"),
        (|| Reply::Close, "was closed"),
        (refusal, "not today"),
        (|| Reply::Flood(b'x'), "has no end"),
    ] {
        let guest = Guest::new(only("guest-fsfreeze-freeze", fault));
        let error = failure(&guest.socket).to_string();
        assert!(error.contains(expected), "{error}, not: {expected}");
        guest.wait_thawed();
    }
}

#[test]
fn a_freeze_that_comes_too_late_is_thawed_behind() {
    let guest =
        Guest::new(
            |command, _| {
                if command == "guest-fsfreeze-freeze" { Reply::Late(Duration::from_millis(1500)) } else { Reply::Right }
            },
        );
    assert!(matches!(failure(&guest.socket), AgentError::Silent { .. }));
    thread::sleep(Duration::from_millis(1300));
    guest.wait_thawed();
}

#[test]
fn thawing_is_tried_again_until_it_is_confirmed() {
    for fault in
        [(|| Reply::Close) as fn() -> Reply, refusal, || Reply::Raw(b"what?\n".to_vec()), || Reply::Silence, || Reply::Flood(b'x')]
    {
        let faults = Mutex::new(2);
        let guest = Guest::new(move |command, _| {
            let mut left = faults.lock();
            if command == "guest-fsfreeze-thaw" && *left > 0 {
                *left -= 1;
                return fault();
            }
            Reply::Right
        });
        let frozen = freeze(&guest.socket, LIMITS).expect("frozen");
        let began = Instant::now();
        drop(frozen);
        assert!(began.elapsed() < LIMITS.thaw + Duration::from_secs(1), "nobody waits longer: {:?}", began.elapsed());
        guest.wait_thawed();
    }
}

#[test]
fn a_guest_that_somebody_else_has_frozen_is_left_alone() {
    let guest = Guest::honest();
    guest.inside.lock().frozen = true;
    assert!(matches!(failure(&guest.socket), AgentError::AlreadyFrozen));
    thread::sleep(Duration::from_millis(100));
    assert!(guest.frozen());
    assert_eq!(guest.commands(), ["guest-fsfreeze-status"]);
}

#[test]
fn what_a_killed_daemon_left_frozen_is_thawed() {
    let guest = Guest::honest();
    let limit = Duration::from_secs(5);
    assert!(!thaw_if_frozen(&guest.socket, limit).expect("asked"));
    guest.inside.lock().frozen = true;
    assert!(thaw_if_frozen(&guest.socket, limit).expect("thawed"));
    assert!(!guest.frozen());
}

#[test]
fn a_socket_that_nobody_serves_is_an_error_in_time() {
    let dir = TempDir::new().expect("tempdir");
    assert!(matches!(failure(&dir.path().join("none.sock")), AgentError::Unreachable { .. }));
    assert!(matches!(failure(&dir.path().join("x".repeat(200))), AgentError::Unreachable { .. }));
    // Nobody takes connections: one is taken by the kernel's queue, the next ones have to wait.
    let path = dir.path().join("full.sock");
    let descriptor =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).expect("a socket");
    rustix::net::bind(&descriptor, &rustix::net::SocketAddrUnix::new(&path).expect("short")).expect("bound");
    rustix::net::listen(&descriptor, 0).expect("listening");
    let held = UnixStream::connect(&path).expect("queued");
    assert!(matches!(failure(&path), AgentError::Unreachable { .. }));
    drop(held);
    assert!(matches!(failure(&path), AgentError::Silent { .. } | AgentError::Unreachable { .. }));
}

#[test]
fn the_policy_says_whether_a_snapshot_goes_on() {
    let (guest, dead) = (Guest::honest(), Guest::new(|_, _| Reply::Silence));
    let frozen_inside = || guest.frozen();
    let (alive, dead) = (Some(guest.socket.as_path()), Some(dead.socket.as_path()));

    let off = hold_still(FreezePolicy::Off, alive, LIMITS, frozen_inside).expect("made");
    assert!(!off.value && !off.frozen && off.trouble.is_none());
    for policy in [FreezePolicy::Required, FreezePolicy::Preferred] {
        let held = hold_still(policy, alive, LIMITS, frozen_inside).expect("made");
        assert!(held.value && held.frozen && held.trouble.is_none());
    }
    let preferred = hold_still(FreezePolicy::Preferred, dead, LIMITS, || 5).expect("made");
    assert_eq!((preferred.value, preferred.frozen), (5, false));
    assert!(matches!(preferred.trouble, Some(FreezeError::Agent(AgentError::Silent { .. }))));
    let without = hold_still(FreezePolicy::Preferred, None, LIMITS, || 5).expect("made");
    assert!(matches!((without.frozen, without.trouble), (false, Some(FreezeError::NoAgent))));

    let made = std::cell::Cell::new(false);
    assert!(matches!(hold_still(FreezePolicy::Required, dead, LIMITS, || made.set(true)), Err(FreezeError::Agent(_))));
    assert!(matches!(hold_still(FreezePolicy::Required, None, LIMITS, || made.set(true)), Err(FreezeError::NoAgent)));
    assert!(!made.get(), "nothing was made");
    let slow = hold_still(FreezePolicy::Required, alive, LIMITS, || thread::sleep(LIMITS.hold + Duration::from_millis(300)));
    let slow = slow.expect("made, and to be given up");
    assert!(!slow.frozen && matches!(slow.trouble, Some(FreezeError::ThawedEarly)));
}
