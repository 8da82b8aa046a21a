//! An appliance in memory: the rules that callers see, and nothing behind them. For tests of whatever calls the interface.
//!
//! Jobs end at once, unless their subject's name begins with `slow`: those run until they are cancelled or [`FakeAppliance::finish_jobs`]
//! is called. A guest is connected to volumes whose name begins with `busy`; `panic` as a volume's name is a bug;
//! making, attaching or deleting one whose name begins with `late` takes a second. Volumes whose name begins with `closed` are not
//! open and cannot list their snapshots, and those that begin with `gone` are deleted when these are asked for.

#![allow(dead_code, reason = "each test uses a part of it")]

mod access;
mod schedules;
mod snapshots;
mod vms;
mod volumes;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use lamina_api::appliance::{Overview, Volumes};
use lamina_api::audit::AuditLine;
use lamina_api::idempotency::KeptAnswer;
use lamina_api::instant::{parse_rfc3339, rfc3339};
use lamina_api::job::{Job, JobKind, JobResult, JobState, JobUnit};
use lamina_api::label::Labels;
use lamina_api::name::JobId;
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::role::Role;
use lamina_api::schedule::Schedule;
use lamina_api::snapshot::Snapshot;
use lamina_api::status::{CacheStatus, Degradation, Health, Space, Status, StoreStatus};
use lamina_api::target::{Target, TargetList, TargetState};
use lamina_api::token::Token;
use lamina_api::vm::{Vm, VmSnapshot};
use lamina_api::volume::Volume;
use lamina_contract::{Timestamp, VolumeName};
use parking_lot::Mutex;

/// 2026-01-01T00:00:00Z.
pub const BEGAN: Timestamp = Timestamp(1_767_225_600_000);

#[derive(Default)]
struct State {
    volumes: BTreeMap<String, Volume>,
    /// Sparse: 4 KiB each.
    blocks: BTreeMap<(String, u64), Vec<u8>>,
    snapshots: BTreeMap<(String, String), Snapshot>,
    vms: BTreeMap<String, Vm>,
    vm_snapshots: BTreeMap<(String, String), VmSnapshot>,
    schedules: BTreeMap<String, Schedule>,
    jobs: BTreeMap<JobId, Job>,
    tokens: BTreeMap<String, (Token, String)>,
    audit: Vec<AuditLine>,
    answers: BTreeMap<String, KeptAnswer>,
}

/// See the file's header.
pub struct FakeAppliance {
    state: Mutex<State>,
    numbers: AtomicU64,
    /// Milliseconds since [`BEGAN`].
    pub elapsed_ms: AtomicU64,
    /// How often a metrics page was made.
    pub metrics_made: AtomicU64,
    /// Bytes of comment that such a page has behind what it says.
    pub metrics_comment: AtomicUsize,
}

impl Default for FakeAppliance {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            numbers: AtomicU64::new(1),
            elapsed_ms: AtomicU64::new(0),
            metrics_made: AtomicU64::new(0),
            metrics_comment: AtomicUsize::new(0),
        }
    }
}

fn problem(kind: ProblemKind, detail: impl Into<String>) -> Problem {
    Problem::new(kind, detail)
}

/// In the daemon's words, as the next one: callers look for names in them.
fn missing(what: &str, name: impl std::fmt::Display) -> Problem {
    let list = what.to_lowercase();
    problem(ProblemKind::NotFound, format!("no {what} '{name}'")).advise(format!("`lamina {list} list` shows all {what}s"))
}

fn no_snapshot(of: &str, owner: impl std::fmt::Display, name: impl std::fmt::Display) -> Problem {
    let list = if of == "VM" { "vm snapshots" } else { "snapshot list" };
    problem(ProblemKind::NotFound, format!("{of} '{owner}' has no snapshot '{name}'"))
        .advise(format!("`lamina {list} {owner}` shows all of them"))
}

fn taken(what: &str, name: &str) -> Problem {
    problem(ProblemKind::Conflict, format!("a {what} named '{name}' exists already")).advise("choose another name")
}

const BLOCK: u64 = 4096;

impl FakeAppliance {
    /// One with a token of each role, whose secret is the role's name and `-secret`.
    pub fn with_tokens() -> Self {
        let fake = Self::default();
        for role in Role::ALL {
            fake.add_token(role.as_str(), role, None);
        }
        fake
    }

    /// Adds a token whose secret is its name and `-secret`.
    pub fn add_token(&self, name: &str, role: Role, scope: Option<&str>) {
        let token = Token {
            name: name.to_owned(),
            role,
            scope: scope.map(str::to_owned),
            created: self.time(),
            expires: "2100-01-01T00:00:00Z".to_owned(),
        };
        self.state.lock().tokens.insert(name.to_owned(), (token, format!("{name}-secret")));
    }

    /// Lets every job that runs succeed.
    pub fn finish_jobs(&self) {
        let now = self.time();
        for job in self.state.lock().jobs.values_mut().filter(|job| !job.state.is_final()) {
            job.state = JobState::Succeeded;
            job.progress = 1.0;
            job.done = job.total;
            job.ended = Some(now.clone());
        }
    }

    /// What was written to the audit log.
    pub fn audited(&self) -> Vec<AuditLine> {
        self.state.lock().audit.clone()
    }

    /// Answers that a restart would find.
    pub fn answers(&self) -> Vec<KeptAnswer> {
        self.state.lock().answers.values().cloned().collect()
    }

    fn time(&self) -> String {
        rfc3339(self.now())
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn job_of(&self, kind: JobKind, subject: &str, unit: JobUnit, result: JobResult) -> Job {
        let total = (result.volumes.len() + result.vms.len()).max(1) as u64;
        let slow = subject.starts_with("slow");
        let id = JobId(self.number());
        let job = Job {
            id: id.to_string(),
            kind,
            subject: subject.to_owned(),
            phase: "working".to_owned(),
            state: if slow { JobState::Running } else { JobState::Succeeded },
            progress: if slow { 0.0 } else { 1.0 },
            done: if slow { 0 } else { total },
            total,
            unit,
            eta_seconds: slow.then_some(60),
            created: self.time(),
            started: Some(self.time()),
            ended: (!slow).then(|| self.time()),
            result: Some(result),
            problem: None,
        };
        self.state.lock().jobs.insert(id, job.clone());
        job
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Volume) -> Result<(), Problem>) -> Result<Volume, Problem> {
        let mut state = self.state.lock();
        let volume = state.volumes.get_mut(name).ok_or_else(|| missing("volume", name))?;
        let mut changed = volume.clone();
        change(&mut changed)?;
        *volume = changed;
        let mut shown = volume.clone();
        shown.snapshots = state.snapshots.keys().filter(|(volume, _)| volume == name).count() as u32;
        let of_this = |other: &&Volume| other.parent.as_ref().is_some_and(|parent| parent.volume == name);
        shown.clones = state.volumes.values().filter(of_this).count() as u32;
        Ok(shown)
    }

    fn idle(&self, name: &VolumeName) -> Result<Volume, Problem> {
        let volume = self.volume(name)?;
        if volume.connected {
            return Err(problem(ProblemKind::Conflict, format!("a guest uses volume '{name}'")).advise("shut the guest down"));
        }
        Ok(volume)
    }

    fn check_source(&self, volume: &str, snapshot: Option<&str>, at: Option<&str>) -> Result<(), Problem> {
        let known = |name: &str| self.state.lock().snapshots.contains_key(&(volume.to_owned(), name.to_owned()));
        if let Some(name) = snapshot.filter(|name| !known(name)) {
            return Err(no_snapshot("volume", volume, name));
        }
        match at.and_then(parse_rfc3339) {
            Some(at) if at > self.now() => Err(problem(ProblemKind::Conflict, "that moment is still to come")),
            _ => Ok(()),
        }
    }
}

impl Overview for FakeAppliance {
    fn now(&self) -> Timestamp {
        Timestamp(BEGAN.0 + self.elapsed_ms.load(Ordering::Relaxed))
    }

    fn status(&self) -> Result<Status, Problem> {
        let volumes = self.state.lock().volumes.len() as u32;
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
            volumes,
            volumes_attached: volumes,
            written_bytes: 1 << 30,
            deduplicated_bytes: 1 << 20,
            stored_bytes: 1 << 29,
            journal: Space { used_bytes: 4096, capacity_bytes: 1 << 30 },
            cache: CacheStatus::default(),
            store: StoreStatus { policy: "4+2".to_owned(), write_min: 5, targets: 6, targets_up: 5, ..StoreStatus::default() },
        })
    }

    fn targets(&self) -> Result<TargetList, Problem> {
        let target = |index: u32| Target {
            index,
            id: format!("{index:032x}"),
            path: (index != 3).then(|| format!("/srv/d{index}")),
            state: if index == 3 { TargetState::Missing } else { TargetState::Up },
            capacity_bytes: 1 << 40,
            free_bytes: 1 << 39,
            read_bytes: 0,
            written_bytes: 0,
            errors: 0,
            last_error: None,
        };
        Ok(TargetList { policy: "4+2".to_owned(), targets: (0..6).map(target).collect() })
    }

    fn metrics(&self) -> String {
        self.metrics_made.fetch_add(1, Ordering::Relaxed);
        format!("lamina_up 1\n{}", "#".repeat(self.metrics_comment.load(Ordering::Relaxed)))
    }
}

/// Labels out of `key=value` words.
pub fn labels(words: &[&str]) -> Labels {
    let mut labels = Labels::default();
    for word in words {
        labels.add(word).expect("a label");
    }
    labels
}
