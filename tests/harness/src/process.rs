//! A child in its own process group: output captured, readiness awaited by a line, always ended.
//!
//! The group is killed when the value is dropped; the kernel kills the child when the thread that started it ends (so start
//! children from a thread that lives as long as they should), and [`crate::cleanup`] kills it on interruption.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cleanup::{self, Ticket};
use crate::error::HarnessError;

/// Lines kept per child: a daemon at debug level for a minute, without growing for ever.
const KEPT_LINES: usize = 20_000;
/// Lines shown when something went wrong.
const SHOWN_LINES: usize = 60;

/// A signal to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// SIGTERM: asks it to end in good order.
    Terminate,
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
    /// SIGCONT.
    Continue,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<String>,
    /// Number of lines ever seen; `kept` holds the last of them.
    seen: usize,
    open: usize,
}

/// What a child wrote, line by line.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Lines>,
    grown: Condvar,
}

impl Log {
    fn read(self: &Arc<Self>, stream: impl Read + Send + 'static) -> std::io::Result<JoinHandle<()>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).open += 1;
        let log = Arc::clone(self);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(stream.read_until(b'\n', &mut line), Ok(n) if n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                let mut lines = log.lines.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.kept.len() == KEPT_LINES {
                    lines.kept.pop_front();
                }
                lines.kept.push_back(text);
                lines.seen += 1;
                log.grown.notify_all();
            }
            log.lines.lock().unwrap_or_else(PoisonError::into_inner).open -= 1;
            log.grown.notify_all();
        })
    }

    fn tail(&self, count: usize) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = lines.kept.len().saturating_sub(count);
        lines.kept.iter().skip(skip).map(|line| format!("  | {line}\n")).collect()
    }
}

/// A running (or ended) child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Standard output.
    out: Arc<Log>,
    /// Standard output and standard error together, for people.
    all: Arc<Log>,
    status: Option<ExitStatus>,
    readers: Vec<JoinHandle<()>>,
    _ticket: Ticket,
}

impl Process {
    /// Starts `command` in a new process group with its output captured. Standard input is a pipe that [`Process::say`] writes.
    ///
    /// # Errors
    /// [`HarnessError::Program`].
    pub fn spawn(name: &str, mut command: Command) -> Result<Self, HarnessError> {
        let program = |doing| move |cause| HarnessError::Program { doing, program: name.to_owned(), cause };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        // SAFETY: prctl and sigprocmask on the stack only; async-signal-safe, as what runs between fork and exec must be.
        unsafe {
            command.pre_exec(|| {
                // A program that waits for signals in a thread of its own blocks them; its children must not inherit that.
                let mut none: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&raw mut none);
                let masked = libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
                if masked != 0 || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(program("start"))?;
        let ticket = cleanup::group(child.id().cast_signed());
        let (out, all) = (Arc::new(Log::default()), Arc::new(Log::default()));
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(out.read(Tee { from: stdout, to: Arc::clone(&all), partial: Vec::new() }).map_err(program("read"))?);
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(all.read(stderr).map_err(program("read"))?);
        }
        Ok(Self { name: name.to_owned(), child, out, all, status: None, readers, _ticket: ticket })
    }

    /// Its process id, which is its group's too.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends a signal to the whole group (ended ones are ignored).
    pub fn signal(&mut self, sign: Sign) {
        if self.status.is_some() {
            return;
        }
        let signal = match sign {
            Sign::Terminate => libc::SIGTERM,
            Sign::Kill => libc::SIGKILL,
            Sign::Stop => libc::SIGSTOP,
            Sign::Continue => libc::SIGCONT,
        };
        // SAFETY: kill takes two integers; the group exists since the child was not waited for yet.
        unsafe { libc::kill(-self.pid(), signal) };
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// [`HarnessError::Program`] when it does not read any more.
    pub fn say(&mut self, text: &str) -> Result<(), HarnessError> {
        let Some(stdin) = self.child.stdin.as_mut() else { return Ok(()) };
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).map_err(|cause| HarnessError::Program {
            doing: "write to",
            program: self.name.clone(),
            cause,
        })
    }

    /// How it ended, when it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`HarnessError::Late`].
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, HarnessError> {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                for reader in self.readers.drain(..) {
                    let _ = reader.join();
                }
                return Ok(status);
            }
            if Instant::now() >= until {
                return Err(HarnessError::Late {
                    program: self.name.clone(),
                    waiting_for: "end".to_owned(),
                    limit,
                    log: self.log_tail(),
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills the group and waits.
    pub fn kill(&mut self) {
        self.signal(Sign::Kill);
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
        // A reader ends when the last holder of the pipe does; a grandchild that left the group must not hold us up.
        self.readers.clear();
    }

    /// Waits for a line of standard output that `wanted` takes, starting at the line number `from`.
    ///
    /// # Errors
    /// [`HarnessError::Late`], [`HarnessError::Ended`].
    pub fn wait_for<T>(
        &mut self,
        waiting_for: &str,
        from: usize,
        limit: Duration,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, HarnessError> {
        let until = Instant::now() + limit;
        let mut next = from;
        let mut lines = self.out.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let first = lines.seen - lines.kept.len();
            while next < lines.seen {
                let line = lines.kept.get(next.saturating_sub(first)).map_or("", String::as_str);
                next += 1;
                if let Some(found) = wanted(line) {
                    return Ok(found);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if lines.open == 0 || left.is_zero() {
                break;
            }
            lines = self.out.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let closed = lines.open == 0;
        drop(lines);
        let (program, waiting_for) = (self.name.clone(), waiting_for.to_owned());
        if !closed {
            return Err(HarnessError::Late { program, waiting_for, limit, log: self.log_tail() });
        }
        // Its output is closed: it is ending.
        let status = self.wait(Duration::from_secs(5)).map_or_else(|_| "output closed".to_owned(), |status| status.to_string());
        Err(HarnessError::Ended { program, status, waiting_for, log: self.log_tail() })
    }

    /// Every line of standard output that is still kept.
    #[must_use]
    pub fn output(&self) -> Vec<String> {
        self.out.lines.lock().unwrap_or_else(PoisonError::into_inner).kept.iter().cloned().collect()
    }

    /// Every line of both streams that is still kept.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.all.lines.lock().unwrap_or_else(PoisonError::into_inner).kept.iter().cloned().collect()
    }

    /// The number of lines of standard output so far.
    #[must_use]
    pub fn lines_seen(&self) -> usize {
        self.out.lines.lock().unwrap_or_else(PoisonError::into_inner).seen
    }

    /// The end of its output, for a message.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.all.tail(SHOWN_LINES)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("last words of {}:\n{}", self.name, self.log_tail());
        }
    }
}

/// Passes a stream on and notes its lines in a second log.
struct Tee<R> {
    from: R,
    to: Arc<Log>,
    partial: Vec<u8>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.partial.extend_from_slice(buffer.get(..read).unwrap_or_default());
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            let mut lines = self.to.lines.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.kept.len() == KEPT_LINES {
                lines.kept.pop_front();
            }
            lines.kept.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
            lines.seen += 1;
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::{Process, Sign};
    use crate::error::HarnessError;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn("sh", command).expect("a shell")
    }

    #[test]
    fn a_line_is_waited_for_and_found() {
        let mut process = shell("echo one; sleep 0.05; echo ready at 5; sleep 60");
        let at =
            process.wait_for("ready line", 0, Duration::from_secs(10), |line| line.strip_prefix("ready at ").map(str::to_owned));
        assert_eq!(at.expect("found"), "5");
        process.signal(Sign::Terminate);
        assert!(!process.wait(Duration::from_secs(10)).expect("ended").success());
    }

    #[test]
    fn a_child_that_ends_too_early_is_an_error_with_its_last_words() {
        let mut process = shell("echo giving up >&2; exit 3");
        let ended = process.wait_for("ready line", 0, Duration::from_secs(10), |line| line.contains("ready").then_some(()));
        match ended {
            Err(HarnessError::Ended { status, log, .. }) => {
                assert!(status.contains('3'), "{status}");
                assert!(log.contains("giving up"), "{log}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn dropping_it_kills_grandchildren_too() {
        let mut process = shell("sleep 77.25 & echo $!; wait");
        let pid: i32 = process.wait_for("pid", 0, Duration::from_secs(10), |line| line.parse().ok()).expect("pid");
        drop(process);
        let until = Instant::now() + Duration::from_secs(5);
        // SAFETY: signal 0 only asks whether the process exists.
        while unsafe { libc::kill(pid, 0) } == 0 && !zombie(pid) {
            assert!(Instant::now() < until, "the grandchild lives");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Nobody may be there to reap an orphan in a container.
    fn zombie(pid: i32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    }
}
