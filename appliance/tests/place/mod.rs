//! A place for a daemon as a process, and the daemon in it.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lamina_api::client::{Client, ClientError};
use lamina_api::problem::ProblemKind;
use lamina_api::status::{Health, Status};
use lamina_api::volume::CreateVolume;
use lamina_contract::VolumeName;
use tempfile::TempDir;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// Six drives and a place for the state.
pub struct Place {
    pub dir: TempDir,
    pub drives: Vec<PathBuf>,
    pub policy: &'static str,
    pub extra: Vec<String>,
    /// A directory between the temporary one and the state's.
    pub under: Option<String>,
    pub notify: Option<(UnixDatagram, PathBuf)>,
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    pub child: Child,
    pub ready: String,
    pub state: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Place {
    pub fn new() -> Self {
        let dir = TempDir::new().expect("tempdir");
        let drives: Vec<_> = (1..=6).map(|number| dir.path().join(format!("drive{number}"))).collect();
        for drive in &drives {
            std::fs::create_dir(drive).expect("mkdir");
        }
        Self { dir, drives, policy: "4+2", extra: Vec::new(), under: None, notify: None }
    }

    pub fn state(&self) -> PathBuf {
        let under = self.under.iter().fold(self.dir.path().to_owned(), |path, part| path.join(part));
        under.join("state")
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_laminad"));
        command.arg("--state-dir").arg(self.state()).args([
            "--policy",
            self.policy,
            "--journal-size",
            "64MiB",
            "--cache-size",
            "16MiB",
        ]);
        for drive in &self.drives {
            command.arg("--drive").arg(drive);
        }
        command.args(&self.extra).env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        if let Some((_, path)) = &self.notify {
            command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "200000");
        }
        command
    }

    pub fn start(&self) -> Daemon {
        let mut child = self.command().stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("spawns");
        let mut ready = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut ready).expect("a line");
        assert!(!ready.is_empty(), "it ended: {:?}; {}", child.wait(), self.refused().1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        Daemon { child, ready, state: self.state(), runtime }
    }

    /// Exit code and stderr of a start that must end by itself.
    pub fn refused(&self) -> (Option<i32>, String) {
        end_of(self.command())
    }
}

pub fn end_of(mut command: Command) -> (Option<i32>, String) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("spawns");
    let mut stderr = child.stderr.take().expect("piped");
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let status = wait(&mut child);
    (status.code(), reader.join().expect("no panic").expect("text"))
}

pub fn wait(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("waits") {
            return status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            panic!("it did not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Daemon {
    pub fn ask<T>(&self, call: impl AsyncFnOnce(&Client) -> Result<T, ClientError>) -> Result<T, ClientError> {
        self.runtime.block_on(call(&Client::new(&self.state.join("run/lamina.sock"))))
    }

    pub fn create(&self, volume: &str) -> Result<PathBuf, ClientError> {
        let request = CreateVolume { name: volume.to_owned(), size_bytes: 1 << 20, ..CreateVolume::default() };
        let made = self.ask(async |client| client.create(&request).await)?;
        assert_eq!((made.name.as_str(), made.size_bytes), (volume, 1 << 20));
        Ok(PathBuf::from(made.socket.expect("attached at once")))
    }

    pub fn status(&self) -> Status {
        self.ask(async |client| client.status().await).expect("answers")
    }

    /// What is answered to `line` (method and path) with a header and a body.
    pub fn raw(&self, line: &str, header: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(self.state.join("run/lamina.sock")).expect("connects");
        let head = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// Waits until the degradations, as one text, hold `words`.
    pub fn degraded(&self, words: &str) -> String {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.status();
            let text: Vec<_> = status.degraded.iter().map(|one| format!("{}: {} ({})", one.what, one.detail, one.risk)).collect();
            let text = text.join("\n");
            if text.contains(words) {
                assert_eq!(status.health, Health::Degraded);
                return text;
            }
            assert!(Instant::now() < until, "no '{words}' in: {text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `kill -9`, and its end.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
        wait(&mut self.child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn name(text: &str) -> VolumeName {
    VolumeName::new(text).expect("a name")
}

pub fn kind(outcome: Result<impl Sized, ClientError>) -> ProblemKind {
    match outcome {
        Err(ClientError::Refused(problem)) => problem.kind,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it worked"),
    }
}
