//! Holds a guest's file systems still while a snapshot is taken, and never longer.
//!
//! ```text
//! connect, synchronize, freeze ──▶ Frozen ──▶ status, thaw
//! └──── Limits::freeze ──────┘    └ hold ┘   └ Limits::thaw ┘ then, when it was not confirmed, again and again behind
//! ```
//! From the moment the command to freeze may have reached the guest, a thread of its own is in charge of thawing: when the guard is
//! dropped, when [`Limits::hold`] is over, or when freezing failed (the guest may do it late). Until the agent confirms it is told again,
//! over new connections too, for [`Limits::behind`].
//!
//! A daemon that is killed meanwhile leaves the guest frozen: call [`thaw_if_frozen`] for each guest with an agent at the start.
//! Freezing makes the guest write its dirty data to disks that this daemon serves: never call it from a thread that serves them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::guest_agent::{Agent, AgentError, FreezeStatus};

/// Pause after the first try to thaw; doubles to the longest.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Tries without an answer before a connection is given up.
const SILENT_TRIES: u32 = 3;
/// How long one try may take.
const TRY: Duration = Duration::from_secs(1);

/// How long things may take. The caller waits for the first three at most; the default is 5 s in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Until the guest is frozen; it writes its dirty data meanwhile.
    pub freeze: Duration,
    /// How long it stays frozen at most.
    pub hold: Duration,
    /// Until it has confirmed that it is thawed.
    pub thaw: Duration,
    /// How long it is told to thaw when it has not confirmed; nobody waits for that.
    pub behind: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { freeze: seconds(2), hold: seconds(2), thaw: seconds(1), behind: seconds(60) }
    }
}

/// Whether a snapshot goes on when the guest cannot be frozen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FreezePolicy {
    /// No snapshot without it.
    Required,
    /// Without it the snapshot is what a power cut would leave.
    Preferred,
    /// Not tried.
    #[default]
    Off,
}

/// Why a guest was not held still.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The VM has no agent's socket.
    #[error("the VM has no guest agent, and its snapshots need one")]
    NoAgent,
    /// The agent did not do it.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// It took longer than the guest may be held.
    #[error("the guest was thawed before the snapshot was done: it is only what a power cut would leave")]
    ThawedEarly,
    /// No thread for the thawing: nothing was frozen.
    #[error("no thread can be started to thaw the guest later")]
    NoThread(#[source] io::Error),
}

/// How a freeze ended.
#[derive(Debug)]
pub struct End {
    /// The guest was frozen all the time, as far as it can be known.
    pub held: bool,
    /// Whether the agent has confirmed that it is thawed; if not, it is told again behind.
    pub thawed: Result<(), AgentError>,
}

/// A guest that is frozen. It is thawed when this is dropped, or when the limit is over.
#[derive(Debug)]
pub struct Frozen {
    filesystems: u64,
    thawing: Thawing,
}

/// The thread that is in charge of thawing.
#[derive(Debug)]
struct Thawing {
    release: Option<Sender<()>>,
    ended: Receiver<End>,
    patience: Duration,
}

/// A value that was made while the guest was, or was not, held still.
#[derive(Debug)]
pub struct Held<T> {
    /// What was made.
    pub value: T,
    /// The guest's file systems were frozen from before until after.
    pub frozen: bool,
    /// Why they were not, or why the guest did not confirm that it goes on.
    pub trouble: Option<FreezeError>,
}

/// Freezes the guest whose agent listens at `socket`. Blocks up to `limits.freeze`.
///
/// # Errors
/// [`FreezeError`]; what may have been frozen nevertheless is thawed behind.
pub fn freeze(socket: &Path, limits: Limits) -> Result<Frozen, FreezeError> {
    let deadline = Instant::now() + limits.freeze;
    let mut agent = Agent::connect(socket, deadline)?;
    if agent.status(deadline)? == FreezeStatus::Frozen {
        return Err(AgentError::AlreadyFrozen.into());
    }
    // The thread first: when there is none, nothing is frozen.
    let (hand_over, frozen) = channel();
    let thawing = Thawing::start(socket.to_owned(), frozen, limits).map_err(FreezeError::NoThread)?;
    match agent.freeze(deadline) {
        Ok(filesystems) => {
            // It lives until it has been told and this side is dropped.
            let _ = hand_over.send(agent);
            Ok(Frozen { filesystems, thawing })
        }
        Err(error) => {
            // Also when it refused: what it had frozen by then it should have thawed itself.
            let _ = hand_over.send(agent);
            thawing.forget();
            Err(error.into())
        }
    }
}

impl Frozen {
    /// How many file systems are frozen; 0 when the guest has none that can be.
    #[must_use]
    pub const fn filesystems(&self) -> u64 {
        self.filesystems
    }

    /// Thaws. Blocks up to [`Limits::thaw`].
    #[must_use]
    pub fn thaw(mut self) -> End {
        self.thawing.end()
    }
}

impl Thawing {
    fn start(socket: PathBuf, frozen: Receiver<Agent>, limits: Limits) -> io::Result<Self> {
        let (release, released) = channel();
        let (report, ended) = channel();
        let work = move || {
            // Nothing comes when the command to freeze was never sent.
            if let Ok(agent) = frozen.recv() {
                watch(&socket, agent, &released, &report, limits);
            }
        };
        thread::Builder::new().name("thaw".to_owned()).spawn(work)?;
        Ok(Self { release: Some(release), ended, patience: limits.thaw })
    }

    /// Begins to thaw and waits for the end.
    fn end(&mut self) -> End {
        self.release = None;
        let silent = End { held: false, thawed: Err(AgentError::Silent { doing: "thawing" }) };
        self.ended.recv_timeout(self.patience).unwrap_or(silent)
    }

    /// Begins to thaw and waits for nothing.
    fn forget(mut self) {
        self.release = None;
        self.patience = Duration::ZERO;
    }
}

impl Drop for Thawing {
    fn drop(&mut self) {
        if self.release.is_some() {
            let _ = self.end();
        }
    }
}

/// Waits for the release or the limit, then thaws until it is confirmed.
fn watch(socket: &Path, agent: Agent, released: &Receiver<()>, report: &Sender<End>, limits: Limits) {
    let in_time = released.recv_timeout(limits.hold) != Err(RecvTimeoutError::Timeout);
    let until = Instant::now() + limits.behind.max(limits.thaw);
    let mut agent = Some(agent);
    let (mut held, mut pause, mut failed, mut silent) = (None, PAUSE, 0_u32, 0);
    loop {
        let deadline = Instant::now() + TRY.min(limits.thaw);
        match try_to_thaw(socket, &mut agent, &mut held, deadline) {
            Ok(()) => {
                let _ = report.send(End { held: in_time && held == Some(true), thawed: Ok(()) });
                return;
            }
            Err(error) if Instant::now() >= until => {
                tracing::error!(%error, socket = %socket.display(), "a guest was frozen and did not confirm that it is thawed: it may hang");
                let _ = report.send(End { held: in_time && held == Some(true), thawed: Err(error) });
                return;
            }
            Err(error) => {
                failed += 1;
                if failed == 1 {
                    tracing::warn!(%error, socket = %socket.display(), "a guest that may be frozen did not thaw yet: telling it again");
                }
                // One that is silent may be busy with freezing, and has what was asked in its queue.
                silent = if matches!(error, AgentError::Silent { .. }) { silent + 1 } else { 0 };
                let listens = matches!(error, AgentError::Silent { .. } | AgentError::Refused { .. });
                if !listens || silent == SILENT_TRIES {
                    (agent, silent) = (None, 0);
                }
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One try; `held` is what the guest said before it was first told to thaw.
fn try_to_thaw(socket: &Path, agent: &mut Option<Agent>, held: &mut Option<bool>, deadline: Instant) -> Result<(), AgentError> {
    let here = match agent {
        Some(here) => {
            here.synchronize(deadline)?;
            here
        }
        none => none.insert(Agent::connect(socket, deadline)?),
    };
    let frozen = here.status(deadline)? == FreezeStatus::Frozen;
    held.get_or_insert(frozen);
    if frozen {
        here.thaw(deadline)?;
        if here.status(deadline)? == FreezeStatus::Frozen {
            return Err(AgentError::Refused { doing: "thawing", why: "it is still frozen".to_owned() });
        }
    }
    Ok(())
}

/// Thaws what a daemon that was killed has left frozen; whether it was.
///
/// # Errors
/// [`AgentError`]; it may still be frozen.
pub fn thaw_if_frozen(socket: &Path, limit: Duration) -> Result<bool, AgentError> {
    let mut held = None;
    try_to_thaw(socket, &mut None, &mut held, Instant::now() + limit)?;
    Ok(held == Some(true))
}

/// Makes something (a snapshot) while the guest is held still, as far as `policy` wants it. Blocks up to `limits.freeze`, for `make`, and up
/// to `limits.thaw`. With [`FreezePolicy::Required`] and a result that is not `frozen` the limit was over: the caller gives the result up.
///
/// # Errors
/// [`FreezeError`] with [`FreezePolicy::Required`] when the guest could not be frozen: nothing was made.
pub fn hold_still<T>(
    policy: FreezePolicy,
    socket: Option<&Path>,
    limits: Limits,
    make: impl FnOnce() -> T,
) -> Result<Held<T>, FreezeError> {
    if policy == FreezePolicy::Off {
        return Ok(Held { value: make(), frozen: false, trouble: None });
    }
    match socket.ok_or(FreezeError::NoAgent).and_then(|socket| freeze(socket, limits)) {
        Ok(frozen) => {
            let value = make();
            let End { held, thawed } = frozen.thaw();
            let early = (!held).then_some(FreezeError::ThawedEarly);
            Ok(Held { value, frozen: held, trouble: thawed.err().map(FreezeError::Agent).or(early) })
        }
        Err(error) if policy == FreezePolicy::Required => Err(error),
        Err(error) => Ok(Held { value: make(), frozen: false, trouble: Some(error) }),
    }
}

#[cfg(test)]
#[path = "freeze_tests.rs"]
mod tests;
