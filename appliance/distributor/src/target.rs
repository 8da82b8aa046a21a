//! One target: whether it can be used now, how it has done, and every call to it.
//!
//! States: *active*; *missing* (known, no store attached); *set aside* after a device error, a time-out or three failures in a row. A
//! target that is set aside is asked again after a pause that doubles from one second to a minute: one caller's operation is the
//! probe. A *full* target is active for reads, and for writes again after a few seconds.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::StreamExt;
use lamina_contract::{Clock, Latencies, LatencyHistogram, Timestamp};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::error::TargetFault;
use crate::placement::{FailureDomain, Place, TargetId};

const FAILURES: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
const FULL_PAUSE: Duration = Duration::from_secs(5);

/// A member of a distributor's pool.
#[derive(Debug, Clone)]
pub struct Target {
    /// Who it is; for a drive its identity.
    pub id: TargetId,
    /// The store; `None` for a member that is known but missing.
    pub store: Option<Arc<dyn ObjectStore>>,
    /// What fails together with it.
    pub domain: FailureDomain,
    /// Its capacity, in any unit that all targets share.
    pub weight: u64,
}

/// How a target is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetState {
    /// Reads and writes.
    Active,
    /// Reads; no space for writes.
    Full,
    /// Known to the pool, not attached.
    Missing,
    /// Failed: left alone but for a probe now and then.
    SetAside,
}

/// What is visible of a target.
#[derive(Debug, Clone)]
pub struct TargetHealth {
    /// Who it is.
    pub id: TargetId,
    /// Its failure domain.
    pub domain: FailureDomain,
    /// Now.
    pub state: TargetState,
    /// When it came into this state.
    pub since: Timestamp,
    /// Fragment bytes written since the start.
    pub bytes_written: u64,
    /// Fragment bytes read since the start.
    pub bytes_read: u64,
    /// Failed operations since the start.
    pub errors: u64,
    /// Puts that waited for a write on it although they had enough fragments: the pool goes at its pace.
    pub held_back: u64,
    /// How long reads and lookups took that it answered.
    pub reads_took: LatencyHistogram,
    /// How long writes of fragments took that succeeded in time.
    pub writes_took: LatencyHistogram,
    /// The last failure in words.
    pub last_error: Option<Arc<str>>,
}

/// What a store is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Read,
    Write,
    /// Also on a full target, which needs it most; that it works says nothing about room for writes.
    Delete,
    /// Nothing else is left: also a target that is set aside.
    LastResort,
}

/// So many writes that do not end on a target that is set aside say that it hangs.
const STUCK: u64 = 4;

#[derive(Debug)]
struct Condition {
    state: TargetState,
    since: Timestamp,
    failures: u32,
    pause: Duration,
    /// When it may be tried again (set aside, full).
    retry_at: Option<Instant>,
    last_error: Option<Arc<str>>,
}

#[derive(Debug)]
pub(crate) struct TargetSlot {
    pub(crate) place: Place,
    store: RwLock<Option<Arc<dyn ObjectStore>>>,
    condition: Mutex<Condition>,
    clock: ClockRef,
    written: AtomicU64,
    read: AtomicU64,
    errors: AtomicU64,
    held_back: AtomicU64,
    reads_took: Latencies,
    writes_took: Latencies,
    /// Those of the store that is attached.
    writes: RwLock<Arc<Writes>>,
}

/// Writes that were begun on a target and have ended, one way or the other.
#[derive(Debug, Default)]
struct Writes {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A write that goes on, whoever waits for it.
#[derive(Debug)]
pub(crate) struct Writing(Arc<Writes>);

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::AcqRel);
    }
}

struct ClockRef(Arc<dyn Clock>);

impl std::fmt::Debug for ClockRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl TargetSlot {
    pub(crate) fn new(target: Target, clock: Arc<dyn Clock>) -> Self {
        let state = if target.store.is_some() { TargetState::Active } else { TargetState::Missing };
        let since = clock.wall();
        Self {
            place: Place { id: target.id, domain: target.domain, weight: target.weight.max(1) },
            store: RwLock::new(target.store),
            condition: Mutex::new(Condition { state, since, failures: 0, pause: PAUSE_MIN, retry_at: None, last_error: None }),
            clock: ClockRef(clock),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
            reads_took: Latencies::new(),
            writes_took: Latencies::new(),
            writes: RwLock::default(),
        }
    }

    /// Attaches a store that came back, or takes one away.
    pub(crate) fn attach(&self, store: Option<Arc<dyn ObjectStore>>) {
        let state = if store.is_some() { TargetState::Active } else { TargetState::Missing };
        *self.store.write() = store;
        *self.writes.write() = Arc::default();
        let mut condition = self.condition.lock();
        condition.failures = 0;
        condition.pause = PAUSE_MIN;
        self.enter(&mut condition, state, None);
    }

    pub(crate) fn health(&self) -> TargetHealth {
        let condition = self.condition.lock();
        TargetHealth {
            id: self.place.id,
            domain: self.place.domain.clone(),
            state: condition.state,
            since: condition.since,
            bytes_written: self.written.load(Ordering::Relaxed),
            bytes_read: self.read.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            held_back: self.held_back.load(Ordering::Relaxed),
            reads_took: self.reads_took.read(),
            writes_took: self.writes_took.read(),
            last_error: condition.last_error.clone(),
        }
    }

    /// Whether [`TargetSlot::store_for`] would give a store, without counting as a probe.
    pub(crate) fn is_usable(&self, purpose: Purpose) -> bool {
        if self.store.read().is_none() {
            return false;
        }
        let condition = self.condition.lock();
        let due = condition.retry_at.is_none_or(|at| at <= Instant::now());
        match (condition.state, purpose) {
            (TargetState::Missing, _) => false,
            (TargetState::Active, _) | (TargetState::Full, Purpose::Read | Purpose::Delete) | (_, Purpose::LastResort) => true,
            (TargetState::SetAside, _) if self.is_stuck() => false,
            (TargetState::Full | TargetState::SetAside, _) => due,
        }
    }

    fn store_for(&self, purpose: Purpose) -> Option<Arc<dyn ObjectStore>> {
        let store = self.store.read().clone()?;
        let mut condition = self.condition.lock();
        let now = Instant::now();
        let due = condition.retry_at.is_none_or(|at| at <= now);
        match (condition.state, purpose) {
            (TargetState::Missing, _) => return None,
            (TargetState::Active, _) | (TargetState::Full, Purpose::Read | Purpose::Delete) | (_, Purpose::LastResort) => {}
            (TargetState::Full | TargetState::SetAside, _) if !due => return None,
            (TargetState::SetAside, _) if self.is_stuck() => return None,
            // This caller is the probe; the others wait for its outcome.
            (TargetState::SetAside, _) => condition.retry_at = Some(now + condition.pause),
            (TargetState::Full, _) => condition.retry_at = Some(now + FULL_PAUSE),
        }
        Some(store)
    }

    /// Calls the store within `patience` and keeps score.
    pub(crate) async fn call<T, F>(
        &self,
        purpose: Purpose,
        patience: Patience,
        operation: impl FnOnce(Arc<dyn ObjectStore>) -> F,
    ) -> Result<T, TargetFault>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let store = self.store_for(purpose).ok_or(TargetFault::Absent)?;
        let began = Instant::now();
        let outcome = match tokio::time::timeout(patience.limit(), operation(store)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(TargetFault::of(error)),
            Err(_) => Err(TargetFault::TimedOut),
        };
        if outcome.is_ok() {
            match purpose {
                Purpose::Read | Purpose::LastResort => self.reads_took.count(began.elapsed()),
                Purpose::Write => self.writes_took.count(began.elapsed()),
                Purpose::Delete => {}
            }
        }
        match (&outcome, patience) {
            // Impatience says nothing about the target.
            (Err(TargetFault::TimedOut), Patience::Hedge(_)) => {}
            (Ok(_), _) => self.succeeded(purpose),
            (Err(fault), _) => self.failed(fault),
        }
        outcome
    }

    /// Gives everything below `prefix` to `take`. Fails when nothing comes for as long as `stall`; that says nothing about the target,
    /// which may be reading a large directory.
    pub(crate) async fn list(
        &self,
        prefix: Option<&Path>,
        stall: Duration,
        mut take: impl FnMut(ObjectMeta),
    ) -> Result<(), TargetFault> {
        let store = self.store_for(Purpose::Read).ok_or(TargetFault::Absent)?;
        let mut listed = store.list(prefix);
        loop {
            match tokio::time::timeout(stall, listed.next()).await {
                Ok(Some(Ok(meta))) => take(meta),
                Ok(None) => {
                    self.succeeded(Purpose::Read);
                    return Ok(());
                }
                Ok(Some(Err(error))) => {
                    let fault = TargetFault::of(error);
                    self.failed(&fault);
                    return Err(fault);
                }
                Err(_) => return Err(TargetFault::TimedOut),
            }
        }
    }

    /// Counts a write until what it returns is dropped.
    pub(crate) fn begin_write(&self) -> Writing {
        let writes = Arc::clone(&self.writes.read());
        writes.begun.fetch_add(1, Ordering::AcqRel);
        Writing(writes)
    }

    /// Writes that have ended since the start.
    pub(crate) fn writes_ended(&self) -> u64 {
        self.writes.read().ended.load(Ordering::Acquire)
    }

    /// Whether no write is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.unended() == 0
    }

    /// A put had to wait for a write on it beyond its grace.
    pub(crate) fn held_back(&self) {
        self.held_back.fetch_add(1, Ordering::Relaxed);
    }

    fn unended(&self) -> u64 {
        let writes = self.writes.read();
        let ended = writes.ended.load(Ordering::Acquire);
        writes.begun.load(Ordering::Acquire).saturating_sub(ended)
    }

    /// Whether writes hang on it: a probe would only hang with them, and hold its thread and its bytes as they do.
    fn is_stuck(&self) -> bool {
        self.unended() >= STUCK
    }

    pub(crate) fn is_active(&self) -> bool {
        self.condition.lock().state == TargetState::Active
    }

    /// A store for a write that goes on by itself when its caller is tired of waiting; the caller keeps score.
    pub(crate) fn store_for_write(&self) -> Option<Arc<dyn ObjectStore>> {
        self.store_for(Purpose::Write)
    }

    /// A write succeeded.
    pub(crate) fn wrote(&self) {
        self.succeeded(Purpose::Write);
    }

    fn succeeded(&self, purpose: Purpose) {
        let mut condition = self.condition.lock();
        condition.failures = 0;
        let back = match condition.state {
            // While writes hang on it, a read that works says nothing of them.
            TargetState::SetAside => purpose == Purpose::Write || !self.is_stuck(),
            TargetState::Full => purpose == Purpose::Write,
            TargetState::Active | TargetState::Missing => false,
        };
        if back {
            condition.pause = PAUSE_MIN;
            self.enter(&mut condition, TargetState::Active, None);
        }
    }

    pub(crate) fn failed(&self, fault: &TargetFault) {
        if matches!(fault, TargetFault::Missing | TargetFault::Absent) {
            // The target answered well: it does not have it.
            return;
        }
        self.errors.fetch_add(1, Ordering::Relaxed);
        let mut condition = self.condition.lock();
        condition.last_error = Some(describe(fault).into());
        if condition.state == TargetState::Missing {
            return;
        }
        match fault {
            TargetFault::Full => {
                if condition.state == TargetState::Active {
                    self.enter(&mut condition, TargetState::Full, Some(FULL_PAUSE));
                }
            }
            TargetFault::Device(_) | TargetFault::TimedOut => self.set_aside(&mut condition),
            TargetFault::Store(_) => {
                condition.failures += 1;
                if condition.failures >= FAILURES || condition.state == TargetState::SetAside {
                    self.set_aside(&mut condition);
                }
            }
            // Rot is the fragment's, not the target's: counted, repaired, no reason to lose the other fragments.
            TargetFault::Damaged(_) | TargetFault::Wrong | TargetFault::Missing | TargetFault::Absent => {}
        }
    }

    fn set_aside(&self, condition: &mut Condition) {
        let again = condition.state == TargetState::SetAside;
        if again {
            condition.pause = (condition.pause * 2).min(PAUSE_MAX);
        }
        let pause = condition.pause;
        self.enter(condition, TargetState::SetAside, Some(pause));
    }

    fn enter(&self, condition: &mut Condition, state: TargetState, pause: Option<Duration>) {
        condition.retry_at = pause.map(|pause| Instant::now() + pause);
        if condition.state != state {
            let before = condition.state;
            condition.state = state;
            condition.since = self.clock.0.wall();
            let cause = condition.last_error.as_deref().unwrap_or("-");
            match state {
                TargetState::Active => tracing::info!(target_id = %self.place.id, ?before, "target is in use again"),
                _ => tracing::warn!(target_id = %self.place.id, ?before, ?state, cause, "target's state changed"),
            }
        }
    }

    pub(crate) fn write_took(&self, took: Duration) {
        self.writes_took.count(took);
    }

    pub(crate) fn count_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// How long a call may take, and what it means when it takes longer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// After this the target has failed.
    Until(Duration),
    /// After this somebody else is asked; it says nothing about the target.
    Hedge(Duration),
}

impl Patience {
    fn limit(self) -> Duration {
        match self {
            Self::Until(limit) | Self::Hedge(limit) => limit,
        }
    }
}

fn describe(fault: &TargetFault) -> String {
    use std::error::Error;
    use std::fmt::Write;
    let mut text = fault.to_string();
    let mut cause = fault.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text.chars().take(300).collect()
}
