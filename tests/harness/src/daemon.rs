//! The appliance as an operator runs it: `laminad` with a state directory and drives, and `lamina` beside it.
//!
//! Only the contract is relied on: the flags, the ready line on standard output, the files staying under the state directory
//! and the drives, and the JSON of the command. A daemon's directories outlive its process, so that it can be killed and
//! started again; they go with the [`Place`] they were made in.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use lamina_contract::units::ByteSize;
use serde_json::Value;

use crate::error::HarnessError;
use crate::metrics::Metrics;
use crate::place::binary;
use crate::process::{Process, Sign};

/// How a daemon is started.
#[derive(Debug, Clone)]
pub struct DaemonOptions {
    /// Where it keeps its state.
    pub state: PathBuf,
    /// Its drives.
    pub drives: Vec<PathBuf>,
    /// `X+P`.
    pub policy: String,
    /// `--journal-size`.
    pub journal: Option<ByteSize>,
    /// `--cache-size`.
    pub cache: Option<ByteSize>,
    /// `--memory-cap`.
    pub memory: Option<ByteSize>,
    /// `--store-lag`, in the daemon's own notation.
    pub store_lag: Option<String>,
    /// `--reconnect-wait`, in the daemon's own notation. None waits: tests know whether a guest is on its way.
    pub reconnect_wait: Option<String>,
    /// Any other arguments.
    pub extra: Vec<String>,
    /// Environment of the daemon (failpoints).
    pub environment: Vec<(String, String)>,
    /// Longest wait for the ready line.
    pub ready_within: Duration,
}

impl DaemonOptions {
    /// Six drives under `directory`, 4+2, and a journal and cache that are small enough for tests.
    ///
    /// # Errors
    /// [`HarnessError::File`].
    pub fn six_drives(directory: &Path) -> Result<Self, HarnessError> {
        Self::with_drives(directory, 6, "4+2")
    }

    /// `count` drives under `directory` with a policy.
    ///
    /// # Errors
    /// [`HarnessError::File`].
    pub fn with_drives(directory: &Path, count: usize, policy: &str) -> Result<Self, HarnessError> {
        let drives: Vec<PathBuf> = (1..=count).map(|number| directory.join(format!("drive{number}"))).collect();
        for drive in &drives {
            std::fs::create_dir_all(drive).map_err(HarnessError::file("make", drive))?;
        }
        Ok(Self {
            state: directory.join("state"),
            drives,
            policy: policy.to_owned(),
            journal: Some(ByteSize(256 << 20)),
            cache: Some(ByteSize(256 << 20)),
            memory: Some(ByteSize(256 << 20)),
            store_lag: None,
            reconnect_wait: None,
            extra: Vec::new(),
            environment: Vec::new(),
            ready_within: Duration::from_secs(60),
        })
    }

    /// The command line.
    ///
    /// # Errors
    /// [`HarnessError::Missing`] when the binary is not built.
    pub fn command(&self) -> Result<Command, HarnessError> {
        let mut command = Command::new(binary("laminad")?);
        command.arg("--state-dir").arg(&self.state).arg("--policy").arg(&self.policy);
        for drive in &self.drives {
            command.arg("--drive").arg(drive);
        }
        let sizes = [("--journal-size", self.journal), ("--cache-size", self.cache), ("--memory-cap", self.memory)];
        for (flag, size) in sizes {
            if let Some(size) = size {
                command.arg(flag).arg(size.0.to_string());
            }
        }
        if let Some(lag) = &self.store_lag {
            command.arg("--store-lag").arg(lag);
        }
        command.arg("--reconnect-wait").arg(self.reconnect_wait.as_deref().unwrap_or("0s"));
        command.args(&self.extra);
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        Ok(command)
    }
}

/// What `volume create` and `volume show` answer.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: ByteSize,
    /// Where its disk is served.
    pub socket: PathBuf,
    /// The whole answer.
    pub json: Value,
}

impl VolumeInfo {
    fn from_json(command: &str, json: Value) -> Result<Self, HarnessError> {
        let missing = |expected| HarnessError::Answer { source_of: command.to_owned(), expected, answer: json.to_string() };
        let name = json["name"].as_str().ok_or_else(|| missing("a name"))?.to_owned();
        let size = ByteSize(json["size_bytes"].as_u64().ok_or_else(|| missing("size_bytes"))?);
        let socket = PathBuf::from(json["socket"].as_str().ok_or_else(|| missing("a socket"))?);
        Ok(Self { name, size, socket, json })
    }
}

/// A daemon, running or not.
#[derive(Debug)]
pub struct Daemon {
    options: DaemonOptions,
    process: Option<Process>,
    ready_line: String,
    ready_after: Duration,
}

impl Daemon {
    /// Starts it and waits for its ready line.
    ///
    /// # Errors
    /// [`HarnessError`] with its last words when it does not become ready.
    pub fn start(options: DaemonOptions) -> Result<Self, HarnessError> {
        let mut daemon = Self { options, process: None, ready_line: String::new(), ready_after: Duration::ZERO };
        daemon.start_again()?;
        Ok(daemon)
    }

    /// The same daemon without its process: for a thread that calls it while another one kills it.
    #[must_use]
    pub fn visitor(&self) -> Self {
        Self { options: self.options.clone(), process: None, ready_line: String::new(), ready_after: Duration::ZERO }
    }

    /// Starts it again on the same state.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_again(&mut self) -> Result<(), HarnessError> {
        let mut process = Process::spawn("laminad", self.options.command()?)?;
        let begin = Instant::now();
        let ready = |line: &str| line.contains("ready").then(|| line.to_owned());
        self.ready_line = process.wait_for("ready line", 0, self.options.ready_within, ready)?;
        self.ready_after = begin.elapsed();
        self.process = Some(process);
        Ok(())
    }

    /// Starts it where it is expected to refuse: how it ended and what it said.
    ///
    /// # Errors
    /// [`HarnessError::Late`] when it keeps running for `limit`.
    pub fn start_refused(options: &DaemonOptions, limit: Duration) -> Result<(ExitStatus, String), HarnessError> {
        let mut process = Process::spawn("laminad", options.command()?)?;
        let status = process.wait(limit)?;
        Ok((status, process.log().join("\n")))
    }

    /// The options, to be changed before the next start.
    pub fn options(&mut self) -> &mut DaemonOptions {
        &mut self.options
    }

    /// Its state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.options.state
    }

    /// Its drives.
    #[must_use]
    pub fn drives(&self) -> &[PathBuf] {
        &self.options.drives
    }

    /// The line it printed when it became ready.
    #[must_use]
    pub fn ready_line(&self) -> &str {
        &self.ready_line
    }

    /// From its start to its ready line.
    #[must_use]
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// The process.
    ///
    /// # Panics
    /// When it was not started again after it ended.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the daemon was started")
    }

    /// Its process id; 0 when it does not run.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.as_ref().map_or(0, Process::pid)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM, and how it ended.
    ///
    /// # Errors
    /// [`HarnessError::Late`].
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus, HarnessError> {
        let process = self.process();
        process.signal(Sign::Terminate);
        let status = process.wait(limit)?;
        self.process = None;
        Ok(status)
    }

    /// Runs `lamina … -o json` and parses its answer.
    ///
    /// # Errors
    /// [`HarnessError::Refused`] with its message, [`HarnessError::Answer`].
    pub fn cli(&self, arguments: &[&str]) -> Result<Value, HarnessError> {
        let line = format!("lamina {}", arguments.join(" "));
        let mut command = Command::new(binary("lamina")?);
        command.arg("--state-dir").arg(&self.options.state).args(arguments).args(["-o", "json"]);
        let output = command.output().map_err(|cause| HarnessError::Program { doing: "run", program: line.clone(), cause })?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(HarnessError::Refused { command: line, code: output.status.code().unwrap_or(-1), message });
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&text).map_err(|_| HarnessError::Answer { source_of: line, expected: "JSON", answer: text })
    }

    /// Creates a volume.
    ///
    /// # Errors
    /// As [`Daemon::cli`].
    pub fn create_volume(&self, name: &str, size: ByteSize) -> Result<VolumeInfo, HarnessError> {
        let answer = self.cli(&["volume", "create", name, "--size", &size.0.to_string()])?;
        VolumeInfo::from_json("lamina volume create", answer)
    }

    /// Shows a volume.
    ///
    /// # Errors
    /// As [`Daemon::cli`].
    pub fn volume(&self, name: &str) -> Result<VolumeInfo, HarnessError> {
        VolumeInfo::from_json("lamina volume show", self.cli(&["volume", "show", name])?)
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// As [`Daemon::cli`].
    pub fn take_snapshot(&self, volume: &str, name: &str) -> Result<Value, HarnessError> {
        self.cli(&["snapshot", "create", &format!("{volume}@{name}")])
    }

    /// The snapshots of a volume.
    ///
    /// # Errors
    /// As [`Daemon::cli`].
    pub fn snapshots(&self, volume: &str) -> Result<Vec<Value>, HarnessError> {
        let answer = self.cli(&["snapshot", "list", volume])?;
        Ok(answer.as_array().cloned().unwrap_or_default())
    }

    /// Goes back to a snapshot; the name of the automatic one that keeps what is discarded.
    ///
    /// # Errors
    /// As [`Daemon::cli`].
    pub fn roll_back(&self, volume: &str, snapshot: &str) -> Result<String, HarnessError> {
        let answer = self.cli(&["volume", "rollback", &format!("{volume}@{snapshot}"), "--yes"])?;
        answer["discarded"].as_str().map(str::to_owned).ok_or_else(|| HarnessError::Answer {
            source_of: "lamina volume rollback".to_owned(),
            expected: "what was discarded",
            answer: answer.to_string(),
        })
    }

    /// Makes a volume a template.
    ///
    /// # Errors
    /// As [`Daemon::cli`].
    pub fn make_template(&self, volume: &str) -> Result<Value, HarnessError> {
        self.cli(&["volume", "template", volume])
    }

    /// Makes clones that begin as a snapshot: one of the name, or several of a name with `{n}` in it. They are served when this
    /// returns.
    ///
    /// # Errors
    /// As [`Daemon::cli`].
    pub fn clone_volume(&self, volume: &str, snapshot: &str, name: &str, count: usize) -> Result<Vec<VolumeInfo>, HarnessError> {
        let source = format!("{volume}@{snapshot}");
        let answer = self.cli(&["volume", "clone", &source, "--name", name, "--count", &count.to_string()])?;
        let made: Vec<&str> = answer["result"]["volumes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if made.len() != count {
            let expected = "as many clones as were asked for";
            return Err(HarnessError::Answer { source_of: "lamina volume clone".to_owned(), expected, answer: answer.to_string() });
        }
        made.into_iter().map(|name| self.volume(name)).collect()
    }

    /// `lamina status`.
    ///
    /// # Errors
    /// As [`Daemon::cli`].
    pub fn status(&self) -> Result<Value, HarnessError> {
        self.cli(&["status"])
    }

    /// Asks `status` until `wanted` takes it.
    ///
    /// # Errors
    /// [`HarnessError::Late`] with the last answer.
    pub fn wait_status<T>(
        &self,
        waiting_for: &str,
        limit: Duration,
        mut wanted: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T, HarnessError> {
        let until = Instant::now() + limit;
        loop {
            let status = self.status()?;
            if let Some(found) = wanted(&status) {
                return Ok(found);
            }
            if Instant::now() >= until {
                let log = serde_json::to_string_pretty(&status).unwrap_or_default();
                return Err(HarnessError::Late {
                    program: "lamina status".to_owned(),
                    waiting_for: waiting_for.to_owned(),
                    limit,
                    log,
                });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Its metrics as they are now, over the API's socket. Takes a second: so long the daemon answers with the page it made last.
    ///
    /// # Errors
    /// As [`Metrics::over_socket`].
    pub fn metrics(&self) -> Result<Metrics, HarnessError> {
        std::thread::sleep(Duration::from_millis(1050));
        Metrics::over_socket(&self.options.state.join("run/lamina.sock"))
    }

    /// A TCP port of this machine that is free now.
    ///
    /// # Errors
    /// [`HarnessError::File`].
    pub fn free_port() -> Result<u16, HarnessError> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(HarnessError::file("listen on", "127.0.0.1"))?;
        listener.local_addr().map(|address| address.port()).map_err(HarnessError::file("ask for the port of", "127.0.0.1"))
    }
}
