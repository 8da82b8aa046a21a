//! The runner of schedules over the engine and the documents: what is selected, taken, looked at and deleted, and where it is written down.
//!
//! A volume that is a disk of a VM of the same schedule is no subject of its own: the VM's snapshot has it. Each call works on a thread that
//! may block and has a turn; the end of the daemon takes all turns, so that it waits for what is under way, and nothing begins behind it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lamina_api::problem::{Problem, ProblemKind};
use lamina_contract::{Clock, SnapshotId, SnapshotName, VolumeId, VolumeName};
use lamina_engine::{SnapshotSpec, Volume};
use laminad::freeze::FreezePolicy;
use laminad::runner::{self, Snapshot};
use laminad::schedule::{Labels, ScheduleName, Subject, Targets};
use laminad::scheduler::{Failure, Record, Scheduler};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::documents::{DocumentError, Documents, Expected, Kind};
use crate::machines::Machines;
use crate::served::{of_engine, of_unit};
use crate::vm_sets::{Set, Wanted};

/// Far more calls than are ever under way: the scheduler starts a few runs at a time.
const TURNS: u32 = 1024;

/// Characters of a reason that are kept where there is no room for all of it.
const MOST_WHY: usize = 80;

/// How long the end of the daemon waits for what is under way.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the runner works on.
pub(crate) struct Runs {
    machines: Arc<Machines>,
    turns: Arc<Semaphore>,
}

/// Where it writes down what was done.
struct RunRecords(Arc<Documents>);

impl Runs {
    pub(crate) fn new(machines: Arc<Machines>) -> Arc<Self> {
        Arc::new(Self { machines, turns: Arc::new(Semaphore::new(TURNS as usize)) })
    }

    /// Works until it is dropped.
    pub(crate) async fn run(self: Arc<Self>, scheduler: Arc<Mutex<Scheduler>>, documents: Arc<Documents>, clock: Arc<dyn Clock>) {
        runner::run(scheduler, self, Arc::new(RunRecords(documents)), clock).await;
    }

    /// Waits for what is under way; afterwards nothing begins.
    pub(crate) async fn end(&self) {
        if tokio::time::timeout(PATIENCE, self.turns.acquire_many(TURNS)).await.is_err() {
            tracing::warn!("a scheduled snapshot is still under way: the next start looks whether it was taken");
        }
        self.turns.close();
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Machines) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let ending = |_| Problem::new(ProblemKind::Unavailable, "the daemon is ending");
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(ending)?;
        let machines = Arc::clone(&self.machines);
        let working = tokio::task::spawn_blocking(move || {
            // Kept by the work itself: nobody may be waiting for it any more.
            let _turn = turn;
            work(&machines)
        });
        working.await.unwrap_or_else(|_| Err(Problem::new(ProblemKind::Internal, "it broke off; the log says where")))
    }
}

fn open_volume(machines: &Machines, name: &VolumeName) -> Result<Arc<Volume>, Problem> {
    machines.open_volumes().remove(name.as_str()).ok_or_else(|| {
        let known = machines.settings().contains_key(name.as_str());
        let (kind, state) =
            if known { (ProblemKind::Unavailable, "is not open") } else { (ProblemKind::NotFound, "does not exist") };
        Problem::new(kind, format!("volume '{name}' {state}"))
    })
}

impl runner::Snapshots for Runs {
    type Error = Problem;

    fn select(&self, targets: &Targets) -> Option<BTreeSet<Subject>> {
        let mut subjects = targets.named();
        // Asked for each schedule every few seconds, with the scheduler's lock held: nothing is parsed here.
        let vms = self.machines.listed();
        let named = |text: &str| VolumeName::new(text).ok();
        let labels = |labels: &lamina_api::label::Labels| -> Labels {
            labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        let mut covered = BTreeSet::new();
        for vm in vms.iter() {
            let Some(subject) = named(&vm.name).map(Subject::Vm) else { continue };
            if targets.contain(&subject, &labels(&vm.body.labels)) {
                covered.extend(vm.body.machine.disks.iter().filter_map(|disk| named(&disk.volume)));
                subjects.insert(subject);
            }
        }
        if !targets.lists().volume_labels.is_empty() {
            let volumes = self.machines.settings().into_iter();
            let volumes = volumes.filter_map(|(name, settings)| Some((Subject::Volume(named(&name)?), settings)));
            subjects.extend(volumes.filter(|(one, settings)| targets.contain(one, &settings.labels)).map(|(one, _)| one));
        }
        subjects.retain(|subject| !matches!(subject, Subject::Volume(name) if covered.contains(name)));
        Some(subjects)
    }

    async fn take(&self, subject: &Subject, name: &str, labels: Labels) -> Result<(), Problem> {
        let (subject, name) = (subject.clone(), SnapshotName::new(name).map_err(|error| of_unit(&error))?);
        self.work(move |machines| match &subject {
            Subject::Volume(volume) => {
                let volume = open_volume(machines, volume)?;
                let spec = SnapshotSpec { labels, automatic: true, ..SnapshotSpec::named(name) };
                machines.block_on(machines.node.snapshot(&[(volume.id(), spec)])).map(|_| ()).map_err(|error| of_engine(&error))
            }
            Subject::Vm(vm) => {
                let vm = machines.get(vm.as_str())?;
                let policy = if vm.body.guest_agent.is_some() { FreezePolicy::Preferred } else { FreezePolicy::Off };
                machines.take(&vm, &Wanted { labels, ..Wanted::automatic(name) }, policy).map(|_| ())
            }
        })
        .await
    }

    async fn snapshots(&self, subject: &Subject) -> Result<Vec<Snapshot>, Problem> {
        let subject = subject.clone();
        self.work(move |machines| match &subject {
            Subject::Volume(volume) => {
                let volume = open_volume(machines, volume)?;
                let cloned = clones(machines);
                let shown = |one: lamina_engine::Snapshot| Snapshot {
                    cloned: cloned.contains(&(volume.id(), one.note.id)),
                    name: one.note.name.to_string(),
                    labels: one.note.labels,
                    pinned: one.note.pinned,
                };
                Ok(volume.snapshots().into_iter().map(shown).collect())
            }
            Subject::Vm(vm) => {
                let cloned = clones(machines);
                let sets = machines.sets(&machines.get(vm.as_str())?);
                let is_cloned =
                    |set: &Set| set.parts.iter().any(|part| cloned.contains(&(part.volume.id(), part.snapshot.note.id)));
                let shown = |set: &Set| Snapshot {
                    name: set.name.to_string(),
                    labels: set.labels(),
                    pinned: set.is_pinned(),
                    cloned: is_cloned(set),
                };
                Ok(sets.iter().map(shown).collect())
            }
        })
        .await
    }

    async fn delete(&self, subject: &Subject, name: &str) -> Result<(), Problem> {
        let (subject, name) = (subject.clone(), name.to_owned());
        self.work(move |machines| match &subject {
            Subject::Volume(volume) => {
                let volume = open_volume(machines, volume)?;
                let name = SnapshotName::new(&name).map_err(|error| of_unit(&error))?;
                let Some(found) = volume.snapshot(&name) else { return Ok(()) };
                machines.block_on(machines.node.delete_snapshot(volume.id(), found.note.id)).map_err(|error| of_engine(&error))
            }
            Subject::Vm(vm) => machines.delete_set(&machines.set(&machines.get(vm.as_str())?, &name)?),
        })
        .await
    }
}

/// Snapshots that volumes of this node began as. The engine asks the registry again before it deletes one.
fn clones(machines: &Machines) -> BTreeSet<(VolumeId, SnapshotId)> {
    let open = machines.node.volumes().into_iter().filter_map(|volume| volume.parent());
    let unopened = machines.node.unopened().into_iter().filter_map(|one| one.record.parent);
    open.chain(unopened).map(|parent| (parent.volume, parent.snapshot)).collect()
}

/// Records whose errors have so many characters at most; none with 0.
fn with_reasons_of(most: usize, records: &[Record]) -> Vec<Record> {
    let cut = |failure: &Failure| Failure { why: failure.why.chars().take(most).collect(), ..failure.clone() };
    let short = |record: &Record| Record { last_error: record.last_error.as_ref().filter(|_| most > 0).map(cut), ..record.clone() };
    records.iter().map(short).collect()
}

impl runner::Records for RunRecords {
    type Error = DocumentError;

    fn save(&self, schedule: &ScheduleName, records: &[Record]) -> Result<(), DocumentError> {
        if records.is_empty() {
            return self.0.delete(Kind::ScheduleRuns, schedule.as_str(), Expected::Anything);
        }
        let put = |records: &[Record]| self.0.put(Kind::ScheduleRuns, schedule.as_str(), Expected::Anything, &records).map(|_| ());
        match put(records) {
            // What was done counts for more than why something was not: without reasons 1 MiB has 5,000 subjects, with them 1,000.
            Err(DocumentError::Full { .. }) => match put(&with_reasons_of(MOST_WHY, records)) {
                Err(DocumentError::Full { .. }) => put(&with_reasons_of(0, records)),
                kept => kept,
            },
            kept => kept,
        }
    }
}

#[cfg(test)]
#[path = "schedule_runs_tests.rs"]
mod tests;
