//! An appliance in memory: the rules that callers see, and nothing behind them. For tests of whatever calls the interface.
//!
//! Jobs end at once, unless their subject's name begins with `slow`: those run until they are cancelled or [`FakeAppliance::finish_jobs`]
//! is called. A guest is connected to volumes whose name begins with `busy`; `panic` as a volume's name is a bug;
//! making, attaching or deleting one whose name begins with `late` takes a second. Volumes whose name begins with `closed` are not
//! open and cannot list their snapshots, and those that begin with `gone` are deleted when these are asked for.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use lamina_api::appliance::{Access, Jobs, Overview, Schedules, Snapshots, Vms, VolumeData, Volumes};
use lamina_api::audit::{AuditLine, AuditList};
use lamina_api::caller::Caller;
use lamina_api::data::{Extent, ExtentList};
use lamina_api::idempotency::KeptAnswer;
use lamina_api::instant::{parse_rfc3339, rfc3339};
use lamina_api::job::{Job, JobKind, JobList, JobResult, JobState, JobUnit, Outcome};
use lamina_api::label::Labels;
use lamina_api::name::{JobId, Name};
use lamina_api::page::{Page, Paged};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::role::Role;
use lamina_api::schedule::{ChangeSchedule, CreateSchedule, Schedule, ScheduleList};
use lamina_api::snapshot::{
    ChangeSnapshot, CreateClones, CreateSnapshot, Rollback, RolledBack, Snapshot, SnapshotList, SnapshotState,
};
use lamina_api::status::{CacheStatus, Degradation, Health, Space, Status, StoreStatus};
use lamina_api::target::{Target, TargetList, TargetState};
use lamina_api::token::{CreateToken, DEFAULT_LIFE_SECONDS, NewToken, Token, TokenList};
use lamina_api::vm::{ChangeVm, CreateVm, CreateVmSnapshot, RolledBackVm, Vm, VmList, VmSnapshot, VmSnapshotDisk, VmSnapshotList};
use lamina_api::volume::{ChangeVolume, CreateVolume, Parent, Volume, VolumeCounters, VolumeFilter, VolumeList, VolumeState};
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
}

impl Default for FakeAppliance {
    fn default() -> Self {
        Self { state: Mutex::default(), numbers: AtomicU64::new(1), elapsed_ms: AtomicU64::new(0), metrics_made: AtomicU64::new(0) }
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
        "lamina_up 1\n".to_owned()
    }
}

impl Volumes for FakeAppliance {
    fn volumes(&self, filter: &VolumeFilter, page: &Page) -> Result<VolumeList, Problem> {
        let state = self.state.lock();
        let volumes = state.volumes.values().filter(|volume| filter.holds(volume)).cloned();
        let Paged { entries, next } = page.cut(volumes, |volume| volume.name.clone());
        Ok(VolumeList { volumes: entries, next })
    }

    fn volume(&self, name: &VolumeName) -> Result<Volume, Problem> {
        assert!(name.as_str() != "panic", "a bug");
        self.edit(name.as_str(), |_| Ok(()))
    }

    fn create_volume(&self, request: &CreateVolume) -> Result<Volume, Problem> {
        if request.name.starts_with("late") {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        let mut state = self.state.lock();
        if state.volumes.contains_key(&request.name) {
            return Err(taken("volume", &request.name));
        }
        let volume = Volume {
            name: request.name.clone(),
            id: format!("{:016x}", self.number()),
            size_bytes: request.size_bytes,
            block_size: request.block_size.unwrap_or(4096),
            sco_size: request.sco_size.unwrap_or(4 << 20),
            read_only: request.read_only,
            created: self.time(),
            state: VolumeState::Attached,
            socket: Some(format!("/run/lamina/vhost/{}.sock", request.name)),
            connected: request.name.starts_with("busy"),
            epoch: 1,
            generation: 0,
            labels: request.labels.clone(),
            template: false,
            parent: None,
            clones: 0,
            snapshots: 0,
            settings: request.settings,
            cdp_start: (request.settings.cdp_seconds > 0).then(|| self.time()),
            counters: VolumeCounters::default(),
        };
        state.volumes.insert(request.name.clone(), volume.clone());
        Ok(volume)
    }

    fn change_volume(&self, name: &VolumeName, change: &ChangeVolume) -> Result<Volume, Problem> {
        let now = self.time();
        self.edit(name.as_str(), |volume| {
            if let Some(size) = change.size_bytes {
                if !size.is_multiple_of(volume.block_size) {
                    return Err(problem(ProblemKind::InvalidRequest, "size_bytes is a multiple of the block size"));
                }
                if size < volume.size_bytes && (!change.force || volume.connected) {
                    return Err(problem(ProblemKind::Conflict, "that would cut data off").advise("force it, without a guest"));
                }
                volume.size_bytes = size;
            }
            if let Some(labels) = &change.labels {
                volume.labels = labels.clone();
            }
            if let Some(settings) = change.settings {
                volume.settings = settings.applied_to(volume.settings);
                volume.cdp_start = (volume.settings.cdp_seconds > 0).then_some(now);
            }
            if let Some(template) = change.template {
                volume.template = template;
                volume.read_only = template;
            }
            Ok(())
        })
    }

    fn delete_volume(&self, name: &VolumeName, snapshots: bool) -> Result<(), Problem> {
        let volume = self.idle(name)?;
        if name.as_str().starts_with("late") {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        if volume.clones > 0 {
            return Err(
                problem(ProblemKind::Conflict, format!("{} clones need volume '{name}'", volume.clones)).advise("flatten them")
            );
        }
        if volume.snapshots > 0 && !snapshots {
            return Err(problem(ProblemKind::Conflict, format!("volume '{name}' has snapshots")).advise("say that they go too"));
        }
        let mut state = self.state.lock();
        state.volumes.remove(name.as_str());
        state.snapshots.retain(|(of, _), _| of != name.as_str());
        state.blocks.retain(|(of, _), _| of != name.as_str());
        Ok(())
    }

    fn attach(&self, name: &VolumeName) -> Result<Volume, Problem> {
        if name.as_str().starts_with("late") {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        self.edit(name.as_str(), |volume| {
            volume.state = VolumeState::Attached;
            volume.socket = Some(format!("/run/lamina/vhost/{name}.sock"));
            Ok(())
        })
    }

    fn detach(&self, name: &VolumeName, force: bool) -> Result<Volume, Problem> {
        self.edit(name.as_str(), |volume| {
            if volume.connected && !force {
                return Err(problem(ProblemKind::Conflict, format!("a guest uses volume '{name}'")).advise("shut the guest down"));
            }
            volume.state = VolumeState::Detached;
            volume.socket = None;
            volume.connected = false;
            Ok(())
        })
    }
}

impl Snapshots for FakeAppliance {
    fn snapshots(&self, volume: &VolumeName, page: &Page) -> Result<SnapshotList, Problem> {
        self.volume(volume)?;
        if volume.as_str().starts_with("closed") {
            return Err(problem(ProblemKind::Unavailable, format!("volume '{volume}' is not open")));
        }
        if volume.as_str().starts_with("gone") {
            return Err(missing("volume", volume));
        }
        let state = self.state.lock();
        let snapshots = state.snapshots.values().filter(|snapshot| snapshot.volume == volume.as_str()).cloned();
        let Paged { entries, next } = page.cut(snapshots, |snapshot| snapshot.name.clone());
        Ok(SnapshotList { snapshots: entries, next })
    }

    fn snapshot(&self, volume: &VolumeName, snapshot: &Name) -> Result<Snapshot, Problem> {
        self.volume(volume)?;
        let key = (volume.to_string(), snapshot.to_string());
        let state = self.state.lock();
        let mut found = state.snapshots.get(&key).cloned().ok_or_else(|| no_snapshot("volume", volume, snapshot))?;
        let of_this =
            |other: &&Volume| other.parent.as_ref().is_some_and(|parent| (&parent.volume, &parent.snapshot) == (&key.0, &key.1));
        found.clones = state.volumes.values().filter(of_this).count() as u32;
        Ok(found)
    }

    fn take_snapshot(&self, volume: &VolumeName, request: &CreateSnapshot) -> Result<Snapshot, Problem> {
        let size_bytes = self.volume(volume)?.size_bytes;
        let mut state = self.state.lock();
        let key = (volume.to_string(), request.name.clone());
        if state.snapshots.contains_key(&key) {
            return Err(taken("snapshot", &request.name));
        }
        let snapshot = Snapshot {
            name: request.name.clone(),
            id: format!("{:016x}", self.number()),
            volume: volume.to_string(),
            created: self.time(),
            size_bytes,
            labels: request.labels.clone(),
            description: request.description.clone(),
            pinned: request.pinned,
            automatic: false,
            state: SnapshotState::Stored,
            clones: 0,
        };
        state.snapshots.insert(key, snapshot.clone());
        Ok(snapshot)
    }

    fn change_snapshot(&self, volume: &VolumeName, snapshot: &Name, change: &ChangeSnapshot) -> Result<Snapshot, Problem> {
        self.volume(volume)?;
        let mut state = self.state.lock();
        let found = state.snapshots.get_mut(&(volume.to_string(), snapshot.to_string()));
        let found = found.ok_or_else(|| no_snapshot("volume", volume, snapshot))?;
        found.labels = change.labels.clone().unwrap_or_else(|| found.labels.clone());
        found.description = change.description.clone().unwrap_or_else(|| found.description.clone());
        found.pinned = change.pinned.unwrap_or(found.pinned);
        Ok(found.clone())
    }

    fn delete_snapshot(&self, volume: &VolumeName, snapshot: &Name) -> Result<(), Problem> {
        let found = self.snapshot(volume, snapshot)?;
        if found.pinned {
            return Err(problem(ProblemKind::Conflict, format!("snapshot '{snapshot}' is pinned")).advise("unpin it first"));
        }
        if found.clones > 0 {
            return Err(problem(ProblemKind::Conflict, format!("{} clones need snapshot '{snapshot}'", found.clones))
                .advise("flatten them"));
        }
        self.state.lock().snapshots.remove(&(volume.to_string(), snapshot.to_string()));
        Ok(())
    }

    fn rollback(&self, volume: &VolumeName, request: &Rollback) -> Result<Outcome<RolledBack>, Problem> {
        self.idle(volume)?;
        self.check_source(volume.as_str(), request.snapshot.as_deref(), request.at.as_deref())?;
        let name = format!("rollback-{}", self.number());
        self.take_snapshot(volume, &CreateSnapshot { name: name.clone(), ..CreateSnapshot::default() })?;
        if let Some(kept) = self.state.lock().snapshots.get_mut(&(volume.to_string(), name.clone())) {
            kept.automatic = true;
        }
        if request.at.is_some() {
            let result = JobResult { volumes: vec![volume.to_string()], discarded: Some(name), ..JobResult::default() };
            let job = self.job_of(JobKind::RollbackVolume, volume.as_str(), JobUnit::Entries, result);
            return Ok(Outcome::Job(Box::new(job)));
        }
        Ok(Outcome::Done(RolledBack { volume: self.volume(volume)?, discarded: name }))
    }

    fn clone_volume(&self, volume: &VolumeName, request: &CreateClones) -> Result<Job, Problem> {
        let source = self.volume(volume)?;
        self.check_source(volume.as_str(), request.snapshot.as_deref(), request.at.as_deref())?;
        if let Some(name) = request.names.iter().find(|name| self.state.lock().volumes.contains_key(*name)) {
            return Err(taken("volume", name));
        }
        let snapshot = match &request.snapshot {
            Some(snapshot) => snapshot.clone(),
            None => {
                let name = format!("{}-{}", if request.at.is_some() { "at" } else { "clone" }, self.number());
                self.take_snapshot(volume, &CreateSnapshot { name: name.clone(), ..CreateSnapshot::default() })?.name
            }
        };
        let size_bytes = self.snapshot(volume, &Name::new(&snapshot)?)?.size_bytes;
        for name in &request.names {
            self.create_volume(&CreateVolume {
                name: name.clone(),
                size_bytes,
                block_size: Some(source.block_size),
                sco_size: Some(source.sco_size),
                labels: request.labels.clone(),
                ..CreateVolume::default()
            })?;
            let parent = Parent { volume: volume.to_string(), snapshot: snapshot.clone() };
            // Snapshots hold no bytes here: a clone begins with those of now.
            let mut state = self.state.lock();
            let own = state.blocks.iter().filter(|((of, _), _)| of == volume.as_str());
            let copies: Vec<_> = own.map(|((_, at), block)| ((name.clone(), *at), block.clone())).collect();
            state.blocks.extend(copies);
            drop(state);
            self.edit(name, |clone| {
                clone.parent = Some(parent);
                Ok(())
            })?;
        }
        let result = JobResult { volumes: request.names.clone(), ..JobResult::default() };
        Ok(self.job_of(JobKind::CloneVolume, volume.as_str(), JobUnit::Volumes, result))
    }

    fn flatten(&self, volume: &VolumeName) -> Result<Job, Problem> {
        if self.volume(volume)?.parent.is_none() {
            return Err(problem(ProblemKind::Conflict, format!("volume '{volume}' is no clone")));
        }
        self.edit(volume.as_str(), |clone| {
            clone.parent = None;
            Ok(())
        })?;
        let result = JobResult { volumes: vec![volume.to_string()], ..JobResult::default() };
        Ok(self.job_of(JobKind::FlattenVolume, volume.as_str(), JobUnit::Blocks, result))
    }
}

impl VolumeData for FakeAppliance {
    fn extents(&self, volume: &VolumeName, from: u64, limit: usize) -> Result<ExtentList, Problem> {
        self.idle(volume)?;
        let state = self.state.lock();
        let mut extents: Vec<Extent> = Vec::new();
        for (_, block) in state.blocks.keys().filter(|(of, block)| of == volume.as_str() && block * BLOCK >= from) {
            match extents.last_mut() {
                Some(last) if last.offset + last.length == block * BLOCK => last.length += BLOCK,
                _ => extents.push(Extent { offset: block * BLOCK, length: BLOCK }),
            }
        }
        let next_from = extents.get(limit).map(|next| next.offset);
        extents.truncate(limit);
        Ok(ExtentList { extents, next_from })
    }

    fn read_data(&self, volume: &VolumeName, offset: u64, length: u64) -> Result<Vec<u8>, Problem> {
        let end = offset.checked_add(length).filter(|end| self.idle(volume).is_ok_and(|volume| *end <= volume.size_bytes));
        self.idle(volume)?;
        let end = end.ok_or_else(|| problem(ProblemKind::InvalidRequest, "outside the volume"))?;
        let state = self.state.lock();
        let byte = |at: u64| {
            let block = state.blocks.get(&(volume.to_string(), at / BLOCK));
            block.and_then(|block| block.get((at % BLOCK) as usize)).copied().unwrap_or(0)
        };
        Ok((offset..end).map(byte).collect())
    }

    fn write_data(&self, volume: &VolumeName, offset: u64, bytes: &[u8]) -> Result<(), Problem> {
        let found = self.idle(volume)?;
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > found.size_bytes) {
            return Err(problem(ProblemKind::InvalidRequest, "outside the volume"));
        }
        if found.read_only {
            return Err(problem(ProblemKind::Conflict, format!("volume '{volume}' refuses writes")));
        }
        let mut state = self.state.lock();
        for (at, byte) in (offset..).zip(bytes) {
            let block = state.blocks.entry((volume.to_string(), at / BLOCK)).or_insert_with(|| vec![0; BLOCK as usize]);
            block[(at % BLOCK) as usize] = *byte;
        }
        Ok(())
    }
}

impl Vms for FakeAppliance {
    fn vms(&self, page: &Page) -> Result<VmList, Problem> {
        let Paged { entries, next } = page.cut(self.state.lock().vms.values().cloned(), |vm| vm.name.clone());
        Ok(VmList { vms: entries, next })
    }

    fn vm(&self, name: &Name) -> Result<Vm, Problem> {
        self.state.lock().vms.get(name.as_str()).cloned().ok_or_else(|| missing("VM", name))
    }

    fn create_vm(&self, request: &CreateVm) -> Result<Vm, Problem> {
        let mut state = self.state.lock();
        if state.vms.contains_key(&request.name) {
            return Err(taken("vm", &request.name));
        }
        if let Some(disk) = request.machine.disks.iter().find(|disk| !state.volumes.contains_key(&disk.volume)) {
            let detail = missing("volume", &disk.volume).detail;
            return Err(problem(ProblemKind::InvalidRequest, detail).advise("make the volume first"));
        }
        let vm = Vm {
            name: request.name.clone(),
            labels: request.labels.clone(),
            template: false,
            machine: request.machine.clone(),
            guest_agent: request.guest_agent.clone(),
            created: self.time(),
        };
        state.vms.insert(request.name.clone(), vm.clone());
        Ok(vm)
    }

    fn change_vm(&self, name: &Name, change: &ChangeVm) -> Result<Vm, Problem> {
        let mut state = self.state.lock();
        let vm = state.vms.get_mut(name.as_str()).ok_or_else(|| missing("VM", name))?;
        vm.labels = change.labels.clone().unwrap_or_else(|| vm.labels.clone());
        vm.machine = change.machine.clone().unwrap_or_else(|| vm.machine.clone());
        if let Some(agent) = &change.guest_agent {
            vm.guest_agent = Some(agent.clone()).filter(|agent| !agent.is_empty());
        }
        Ok(vm.clone())
    }

    fn delete_vm(&self, name: &Name, volumes: bool) -> Result<(), Problem> {
        let vm = self.vm(name)?;
        let mut state = self.state.lock();
        state.vms.remove(name.as_str());
        state.vm_snapshots.retain(|(of, _), _| of != name.as_str());
        if volumes {
            for disk in &vm.machine.disks {
                state.volumes.remove(&disk.volume);
                state.snapshots.retain(|(of, _), _| *of != disk.volume);
            }
        }
        Ok(())
    }

    fn vm_snapshots(&self, name: &Name, page: &Page) -> Result<VmSnapshotList, Problem> {
        self.vm(name)?;
        let state = self.state.lock();
        let snapshots = state.vm_snapshots.values().filter(|snapshot| snapshot.vm == name.as_str()).cloned();
        let Paged { entries, next } = page.cut(snapshots, |snapshot| snapshot.name.clone());
        Ok(VmSnapshotList { snapshots: entries, next })
    }

    fn vm_snapshot(&self, name: &Name, snapshot: &Name) -> Result<VmSnapshot, Problem> {
        self.vm(name)?;
        let state = self.state.lock();
        let found = state.vm_snapshots.get(&(name.to_string(), snapshot.to_string()));
        found.cloned().ok_or_else(|| no_snapshot("VM", name, snapshot))
    }

    fn take_vm_snapshot(&self, name: &Name, request: &CreateVmSnapshot) -> Result<VmSnapshot, Problem> {
        let vm = self.vm(name)?;
        if request.freeze && vm.guest_agent.is_none() {
            return Err(problem(ProblemKind::Conflict, format!("VM '{name}' has no guest agent")).advise("leave freeze out"));
        }
        let key = (name.to_string(), request.name.clone());
        let mut state = self.state.lock();
        if state.vm_snapshots.contains_key(&key) {
            return Err(taken("snapshot", &request.name));
        }
        let disk = |volume: &String| VmSnapshotDisk { volume: volume.clone(), snapshot: request.name.clone() };
        let snapshot = VmSnapshot {
            name: request.name.clone(),
            vm: name.to_string(),
            created: self.time(),
            labels: request.labels.clone(),
            description: request.description.clone(),
            pinned: request.pinned,
            automatic: false,
            frozen: request.freeze,
            complete: true,
            state: SnapshotState::Stored,
            disks: vm.machine.disks.iter().map(|found| disk(&found.volume)).collect(),
        };
        state.vm_snapshots.insert(key, snapshot.clone());
        Ok(snapshot)
    }

    fn delete_vm_snapshot(&self, name: &Name, snapshot: &Name) -> Result<(), Problem> {
        if self.vm_snapshot(name, snapshot)?.pinned {
            return Err(problem(ProblemKind::Conflict, format!("snapshot '{snapshot}' is pinned")).advise("unpin it first"));
        }
        self.state.lock().vm_snapshots.remove(&(name.to_string(), snapshot.to_string()));
        Ok(())
    }

    fn rollback_vm(&self, name: &Name, request: &Rollback) -> Result<Outcome<RolledBackVm>, Problem> {
        let vm = self.vm(name)?;
        if let Some(snapshot) = &request.snapshot {
            self.vm_snapshot(name, &Name::new(snapshot)?)?;
        }
        let discarded = format!("rollback-{}", self.number());
        self.take_vm_snapshot(name, &CreateVmSnapshot { name: discarded.clone(), ..CreateVmSnapshot::default() })?;
        if request.at.is_some() {
            let result = JobResult { vms: vec![name.to_string()], discarded: Some(discarded), ..JobResult::default() };
            return Ok(Outcome::Job(Box::new(self.job_of(JobKind::RollbackVm, name.as_str(), JobUnit::Entries, result))));
        }
        Ok(Outcome::Done(RolledBackVm { vm, discarded }))
    }

    fn clone_vm(&self, name: &Name, request: &CreateClones) -> Result<Job, Problem> {
        let vm = self.vm(name)?;
        if let Some(snapshot) = &request.snapshot {
            self.vm_snapshot(name, &Name::new(snapshot)?)?;
        }
        for clone in &request.names {
            let mut state = self.state.lock();
            if state.vms.contains_key(clone) {
                return Err(taken("vm", clone));
            }
            let made = Vm { name: clone.clone(), labels: request.labels.clone(), template: false, ..vm.clone() };
            state.vms.insert(clone.clone(), made);
        }
        let result = JobResult { vms: request.names.clone(), ..JobResult::default() };
        Ok(self.job_of(JobKind::CloneVm, name.as_str(), JobUnit::Vms, result))
    }

    fn set_vm_template(&self, name: &Name, template: bool) -> Result<Vm, Problem> {
        let mut state = self.state.lock();
        let vm = state.vms.get_mut(name.as_str()).ok_or_else(|| missing("VM", name))?;
        vm.template = template;
        Ok(vm.clone())
    }
}

impl Schedules for FakeAppliance {
    fn schedules(&self, page: &Page) -> Result<ScheduleList, Problem> {
        let state = self.state.lock();
        let Paged { entries, next } = page.cut(state.schedules.values().cloned(), |schedule| schedule.name.clone());
        Ok(ScheduleList { schedules: entries, next })
    }

    fn schedule(&self, name: &Name) -> Result<Schedule, Problem> {
        self.state.lock().schedules.get(name.as_str()).cloned().ok_or_else(|| missing("schedule", name))
    }

    fn create_schedule(&self, request: &CreateSchedule) -> Result<Schedule, Problem> {
        let mut state = self.state.lock();
        if state.schedules.contains_key(&request.name) {
            return Err(taken("schedule", &request.name));
        }
        let enabled = request.enabled.unwrap_or(true);
        let schedule = Schedule {
            name: request.name.clone(),
            targets: request.targets.clone(),
            every: request.every,
            at: request.at.clone(),
            keep: request.keep,
            enabled,
            last_run: None,
            next_run: enabled.then(|| self.time()),
            last_error: None,
        };
        state.schedules.insert(request.name.clone(), schedule.clone());
        Ok(schedule)
    }

    fn change_schedule(&self, name: &Name, change: &ChangeSchedule) -> Result<Schedule, Problem> {
        let now = self.time();
        let mut state = self.state.lock();
        let schedule = state.schedules.get_mut(name.as_str()).ok_or_else(|| missing("schedule", name))?;
        schedule.targets = change.targets.clone().unwrap_or_else(|| schedule.targets.clone());
        schedule.every = change.every.unwrap_or(schedule.every);
        schedule.at = change.at.clone().or_else(|| schedule.at.clone());
        schedule.keep = change.keep.unwrap_or(schedule.keep);
        schedule.enabled = change.enabled.unwrap_or(schedule.enabled);
        schedule.next_run = schedule.enabled.then_some(now);
        Ok(schedule.clone())
    }

    fn delete_schedule(&self, name: &Name) -> Result<(), Problem> {
        self.state.lock().schedules.remove(name.as_str()).map(|_| ()).ok_or_else(|| missing("schedule", name))
    }
}

impl Jobs for FakeAppliance {
    fn jobs(&self, state: Option<JobState>, page: &Page) -> Result<JobList, Problem> {
        let all = self.state.lock();
        let jobs = all.jobs.iter().rev().filter(|(_, job)| state.is_none_or(|state| job.state == state));
        // The newest first: keys that grow as numbers fall.
        let Paged { entries, next } = page.cut(jobs, |(id, _)| JobId(u64::MAX - id.0).to_string());
        Ok(JobList { jobs: entries.into_iter().map(|(_, job)| job.clone()).collect(), next })
    }

    fn job(&self, id: JobId) -> Result<Job, Problem> {
        self.state.lock().jobs.get(&id).cloned().ok_or_else(|| missing("job", id))
    }

    fn cancel_job(&self, id: JobId) -> Result<Job, Problem> {
        let now = self.time();
        let mut state = self.state.lock();
        let job = state.jobs.get_mut(&id).ok_or_else(|| missing("job", id))?;
        if job.state.is_final() {
            return Err(problem(ProblemKind::Conflict, format!("job {id} has ended")));
        }
        job.state = JobState::Cancelled;
        job.ended = Some(now);
        Ok(job.clone())
    }

    fn forget_job(&self, id: JobId) -> Result<(), Problem> {
        let mut state = self.state.lock();
        match state.jobs.get(&id) {
            None => Err(missing("job", id)),
            Some(job) if !job.state.is_final() => Err(problem(ProblemKind::Conflict, format!("job {id} has not ended"))),
            Some(_) => {
                state.jobs.remove(&id);
                Ok(())
            }
        }
    }
}

impl Access for FakeAppliance {
    fn identify(&self, secret: &str) -> Option<Caller> {
        let state = self.state.lock();
        let (token, _) =
            state.tokens.values().find(|(token, own)| own == secret && parse_rfc3339(&token.expires) > Some(self.now()))?;
        Some(Caller { who: format!("token:{}", token.name), role: token.role, scope: token.scope.clone() })
    }

    fn tokens(&self, page: &Page) -> Result<TokenList, Problem> {
        let state = self.state.lock();
        let Paged { entries, next } = page.cut(state.tokens.values().map(|(token, _)| token.clone()), |token| token.name.clone());
        Ok(TokenList { tokens: entries, next })
    }

    fn create_token(&self, request: &CreateToken) -> Result<NewToken, Problem> {
        let mut state = self.state.lock();
        if state.tokens.contains_key(&request.name) {
            return Err(taken("token", &request.name));
        }
        let life = request.expires_in_seconds.unwrap_or(DEFAULT_LIFE_SECONDS);
        let token = Token {
            name: request.name.clone(),
            role: request.role,
            scope: request.scope.clone(),
            created: self.time(),
            expires: rfc3339(Timestamp(self.now().0 + life * 1000)),
        };
        let secret = format!("{}-secret", request.name);
        state.tokens.insert(request.name.clone(), (token.clone(), secret.clone()));
        Ok(NewToken { token, secret })
    }

    fn delete_token(&self, name: &Name) -> Result<(), Problem> {
        self.state.lock().tokens.remove(name.as_str()).map(|_| ()).ok_or_else(|| missing("token", name))
    }

    fn audit(&self, limit: usize) -> Result<AuditList, Problem> {
        Ok(AuditList { lines: self.state.lock().audit.iter().rev().take(limit).cloned().collect() })
    }

    fn record(&self, line: &AuditLine) {
        self.state.lock().audit.push(line.clone());
    }

    fn kept_answers(&self) -> Vec<KeptAnswer> {
        self.answers()
    }

    fn keep_answer(&self, answer: &KeptAnswer) -> Result<(), Problem> {
        self.state.lock().answers.insert(answer.key.clone(), answer.clone());
        Ok(())
    }

    fn drop_answer(&self, key: &str) {
        self.state.lock().answers.remove(key);
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
