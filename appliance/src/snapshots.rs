//! Snapshots, rollback, clones and flattening behind the interface.
//!
//! Names made here: `before-rollback-<time>` keeps what a rollback discards, `clone-<time>` is what a clone begins as when nobody says,
//! `at-<time>` a moment of the past. Clones are made in groups; each group is there with its sockets or not at all, and a job that ends early
//! says which it made.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lamina_api::appliance::{Snapshots, Volumes};
use lamina_api::instant::{parse_rfc3339, rfc3339};
use lamina_api::job::{Job, JobKind, JobResult, JobUnit, Outcome};
use lamina_api::name::Name;
use lamina_api::page::{Page, Paged};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::snapshot::{
    ChangeSnapshot, CreateClones, CreateSnapshot, Rollback, RolledBack, Snapshot, SnapshotList, SnapshotState,
};
use lamina_contract::{SnapshotName, Timestamp, VolumeId, VolumeName, VolumeSettings};
use lamina_engine::{CloneSpec, SnapshotChange, SnapshotSpec, Volume};

use crate::jobs::{JobOrder, JobProgress};
use crate::reserved;
use crate::served::{Served, labels_of, of_engine, of_unit};
use crate::vms::refuse_read_only;

/// Clones that appear together.
const TOGETHER: usize = 50;

/// What a clone or a rollback begins from.
pub(crate) enum From {
    Snapshot(SnapshotName),
    Moment(Timestamp),
    Now,
}

impl From {
    pub(crate) fn of(snapshot: Option<&str>, at: Option<&str>) -> Result<Self, Problem> {
        match (snapshot, at) {
            (Some(_), Some(_)) => {
                Err(Problem::new(ProblemKind::InvalidRequest, "either a snapshot or a moment can be gone from, not both"))
            }
            (Some(name), None) => SnapshotName::new(name).map(Self::Snapshot).map_err(|error| of_unit(&error)),
            (None, Some(text)) => {
                let bad = || Problem::new(ProblemKind::InvalidRequest, "a moment is written as in RFC 3339: 2026-11-22T10:15:30Z");
                parse_rfc3339(text).map(Self::Moment).ok_or_else(bad)
            }
            (None, None) => Ok(Self::Now),
        }
    }
}

impl Served {
    /// The engine's volume of this name.
    pub(crate) fn open_volume(&self, name: &VolumeName) -> Result<Arc<Volume>, Problem> {
        let record = self.find(name)?;
        self.node.volume(record.id).ok_or_else(|| {
            Problem::new(ProblemKind::Unavailable, format!("volume '{name}' is not open"))
                .advise("`lamina status` and the daemon's log say why")
        })
    }

    fn find_snapshot(&self, volume: &Volume, name: &SnapshotName) -> Result<lamina_engine::Snapshot, Problem> {
        volume.snapshot(name).ok_or_else(|| {
            let of = volume.spec().name;
            Problem::new(ProblemKind::NotFound, format!("volume '{of}' has no snapshot '{name}'"))
                .advise(format!("`lamina snapshot list {of}` shows all of them"))
        })
    }

    fn show_snapshot(&self, volume: &Volume, snapshot: &lamina_engine::Snapshot, clones: u32) -> Snapshot {
        let note = &snapshot.note;
        Snapshot {
            name: note.name.to_string(),
            id: note.id.to_string(),
            volume: volume.spec().name.to_string(),
            created: rfc3339(note.created),
            size_bytes: note.size_bytes,
            labels: labels_of(&note.labels),
            description: note.description.clone(),
            pinned: note.pinned,
            automatic: note.automatic,
            state: if snapshot.stored { SnapshotState::Stored } else { SnapshotState::Settling },
            clones,
        }
    }

    fn with_clones(&self, volume: &Volume, snapshot: &lamina_engine::Snapshot) -> Result<Snapshot, Problem> {
        let clones = self.node.clones_of(volume.id(), Some(snapshot.note.id)).map_err(|error| of_engine(&error))?;
        Ok(self.show_snapshot(volume, snapshot, clones.len() as u32))
    }

    /// A name that says what made it and when.
    pub(crate) fn dated_name(&self, what: &str, at: Timestamp) -> Result<SnapshotName, Problem> {
        // A snapshot a millisecond: two of one name within it are refused.
        let digits: String = rfc3339(at).chars().filter(char::is_ascii_digit).collect();
        let text = format!("{what}-{digits}-{:03}", at.0 % 1000);
        SnapshotName::new(&text).map_err(|error| of_unit(&error))
    }

    /// The snapshot that something begins as; one is made unless it is there.
    pub(crate) async fn beginning(&self, volume: &Arc<Volume>, from: From) -> Result<lamina_engine::Snapshot, Problem> {
        let engine = |error| of_engine(&error);
        let automatic = |name| SnapshotSpec { automatic: true, ..SnapshotSpec::named(name) };
        match from {
            From::Snapshot(name) => self.find_snapshot(volume, &name),
            From::Moment(at) => {
                let spec = automatic(self.dated_name("at", at)?);
                if let Some(known) = volume.snapshot(&spec.name).filter(|known| known.note.created == at) {
                    return Ok(known);
                }
                self.node.snapshot_at(volume.id(), at, &spec).await.map_err(engine)
            }
            From::Now => {
                // Clones of a template all begin as one snapshot.
                if let Some(unchanged) =
                    volume.unchanged_snapshot().filter(|snapshot| snapshot.note.size_bytes == volume.size_bytes())
                {
                    return Ok(unchanged);
                }
                let spec = automatic(self.dated_name("clone", self.clock().wall())?);
                let mut taken = self.node.snapshot(&[(volume.id(), spec)]).await.map_err(engine)?;
                taken.pop().ok_or_else(|| Problem::new(ProblemKind::Internal, "no snapshot was taken"))
            }
        }
    }

    /// Takes a volume back while no guest has it; gives the name of what that discards. Blocks.
    fn roll_back(&self, volume: &Arc<Volume>, to: &lamina_engine::Snapshot) -> Result<SnapshotName, Problem> {
        let _unguested = self.unguested(vec![(volume.id(), volume.spec().name)])?;
        refuse_read_only(volume)?;
        let name = self.dated_name("before-rollback", self.clock().wall())?;
        let discarded = self.block_on(self.node.rollback(volume.id(), to.note.id, SnapshotSpec::named(name)));
        Ok(discarded.map_err(|error| of_engine(&error))?.note.name)
    }

    async fn make_clones(
        self: Arc<Self>,
        parent: Arc<Volume>,
        from: From,
        request: CreateClones,
        progress: Arc<JobProgress>,
    ) -> Result<JobResult, Problem> {
        progress.phase("finding where to begin");
        let beginning = self.beginning(&parent, from).await?;
        let labels = reserved::checked(&request.labels)?;
        let settings = VolumeSettings { labels, ..VolumeSettings::default() };
        progress.phase("cloning");
        for names in request.names.chunks(TOGETHER) {
            progress.check()?;
            let specs: Result<Vec<CloneSpec>, _> =
                names.iter().map(|name| Ok(CloneSpec { name: VolumeName::new(name)?, settings: settings.clone() })).collect();
            let specs = specs.map_err(|error| of_unit(&error))?;
            let made = self.node.clone_volume(parent.id(), beginning.note.id, &specs).await.map_err(|error| of_engine(&error))?;
            progress.made(|result| result.volumes.extend(names.iter().cloned()));
            let (served, attach) = (Arc::clone(&self), request.attach.unwrap_or(true));
            let ids: Vec<(VolumeId, VolumeName)> = made.iter().map(|volume| (volume.id(), volume.spec().name)).collect();
            // Sockets are made by calls that block.
            let attached = tokio::task::spawn_blocking(move || served.attach_new(&ids, attach)).await;
            attached.map_err(|_| Problem::new(ProblemKind::Internal, "attaching the clones failed unexpectedly"))??;
            progress.advance(names.len() as u64);
        }
        Ok(JobResult { volumes: request.names, ..JobResult::default() })
    }
}

impl Snapshots for Served {
    fn snapshots(&self, volume: &VolumeName, page: &Page) -> Result<SnapshotList, Problem> {
        let volume = self.open_volume(volume)?;
        let mut all = volume.snapshots();
        all.sort_by(|a, b| a.note.name.cmp(&b.note.name));
        let relations = self.relations()?;
        let shown = all
            .iter()
            .map(|snapshot| self.show_snapshot(&volume, snapshot, relations.clones_of_snapshot(volume.id(), snapshot.note.id)));
        let Paged { entries, next } = page.cut(shown, |snapshot| snapshot.name.clone());
        Ok(SnapshotList { snapshots: entries, next })
    }

    fn snapshot(&self, volume: &VolumeName, snapshot: &Name) -> Result<Snapshot, Problem> {
        let volume = self.open_volume(volume)?;
        let found = self.find_snapshot(&volume, &name_of(snapshot)?)?;
        self.with_clones(&volume, &found)
    }

    fn take_snapshot(&self, volume: &VolumeName, request: &CreateSnapshot) -> Result<Snapshot, Problem> {
        let volume = self.open_volume(volume)?;
        let spec = SnapshotSpec {
            name: SnapshotName::new(&request.name).map_err(|error| of_unit(&error))?,
            labels: reserved::checked(&request.labels)?,
            description: request.description.clone(),
            pinned: request.pinned,
            automatic: false,
        };
        let taken = self.block_on(self.node.snapshot(&[(volume.id(), spec)])).map_err(|error| of_engine(&error))?;
        let taken = taken.first().ok_or_else(|| Problem::new(ProblemKind::Internal, "no snapshot was taken"))?;
        Ok(self.show_snapshot(&volume, taken, 0))
    }

    fn change_snapshot(&self, volume: &VolumeName, snapshot: &Name, change: &ChangeSnapshot) -> Result<Snapshot, Problem> {
        let volume = self.open_volume(volume)?;
        let found = self.find_snapshot(&volume, &name_of(snapshot)?)?;
        let change = SnapshotChange {
            labels: change.labels.as_ref().map(|labels| reserved::replaced_on_snapshot(&found.note.labels, labels)).transpose()?,
            description: change.description.clone(),
            pinned: change.pinned,
        };
        let changed = self.block_on(self.node.change_snapshot(volume.id(), found.note.id, &change));
        self.with_clones(&volume, &changed.map_err(|error| of_engine(&error))?)
    }

    fn delete_snapshot(&self, volume: &VolumeName, snapshot: &Name) -> Result<(), Problem> {
        let volume = self.open_volume(volume)?;
        let found = self.find_snapshot(&volume, &name_of(snapshot)?)?;
        self.block_on(self.node.delete_snapshot(volume.id(), found.note.id)).map_err(|error| of_engine(&error))
    }

    fn rollback(&self, volume: &VolumeName, request: &Rollback) -> Result<Outcome<RolledBack>, Problem> {
        let from = From::of(request.snapshot.as_deref(), request.at.as_deref())?;
        let idle = self.idle(volume)?;
        refuse_read_only(&idle)?;
        match from {
            From::Now => Err(Problem::new(ProblemKind::InvalidRequest, "say which snapshot or moment to go back to")),
            From::Snapshot(name) => {
                let to = self.find_snapshot(&idle, &name)?;
                let discarded = self.roll_back(&idle, &to)?.to_string();
                Ok(Outcome::Done(RolledBack { volume: self.volume(volume)?, discarded }))
            }
            From::Moment(_) => {
                let order =
                    JobOrder { kind: JobKind::RollbackVolume, subject: volume.to_string(), unit: JobUnit::Entries, total: 0 };
                let (served, name) = (self.this()?, volume.clone());
                let job = self.records.jobs.start(order, async move |progress: Arc<JobProgress>| {
                    progress.phase("reading the log");
                    let to = served.beginning(&idle, from).await?;
                    progress.check()?;
                    progress.phase("going back");
                    // What waits for front ends blocks.
                    let working = tokio::task::spawn_blocking(move || served.roll_back(&idle, &to));
                    let discarded = working
                        .await
                        .unwrap_or_else(|_| Err(Problem::new(ProblemKind::Internal, "going back failed unexpectedly")))?;
                    Ok(JobResult {
                        volumes: vec![name.to_string()],
                        discarded: Some(discarded.to_string()),
                        ..JobResult::default()
                    })
                })?;
                Ok(Outcome::Job(Box::new(job)))
            }
        }
    }

    fn clone_volume(&self, volume: &VolumeName, request: &CreateClones) -> Result<Job, Problem> {
        let from = From::of(request.snapshot.as_deref(), request.at.as_deref())?;
        let parent = self.open_volume(volume)?;
        reserved::checked(&request.labels)?;
        if let From::Snapshot(name) = &from {
            self.find_snapshot(&parent, name)?;
        }
        let known = self.records()?.into_iter().filter(|record| !record.deleting).map(|record| record.spec.name);
        let known: BTreeSet<VolumeName> = known.collect();
        for name in &request.names {
            let name = VolumeName::new(name).map_err(|error| of_unit(&error))?;
            self.check_socket(&name)?;
            if known.contains(&name) {
                return Err(Problem::new(ProblemKind::Conflict, format!("a volume named '{name}' exists already"))
                    .advise("choose other names"));
            }
        }
        let order = JobOrder {
            kind: JobKind::CloneVolume,
            subject: volume.to_string(),
            unit: JobUnit::Volumes,
            total: request.names.len() as u64,
        };
        let (served, request) = (self.this()?, request.clone());
        self.records.jobs.start(order, move |progress| served.make_clones(parent, from, request, progress))
    }

    fn flatten(&self, volume: &VolumeName) -> Result<Job, Problem> {
        let open = self.open_volume(volume)?;
        if open.parent().is_none() {
            return Err(Problem::new(
                ProblemKind::Conflict,
                format!("volume '{volume}' is not a clone: there is nothing to flatten"),
            ));
        }
        let order =
            JobOrder { kind: JobKind::FlattenVolume, subject: volume.to_string(), unit: JobUnit::Blocks, total: open.blocks() };
        let (node, id, name) = (self.node.clone(), open.id(), volume.to_string());
        self.records.jobs.start(order, async move |progress: Arc<JobProgress>| {
            progress.phase("copying blocks");
            let cancel = Arc::new(AtomicBool::new(false));
            let (told, seen) = (progress.clone(), AtomicU64::new(0));
            let tell = move |done: u64, total: u64| {
                told.total(total);
                told.advance(done.saturating_sub(seen.swap(done, Ordering::Relaxed)));
            };
            let stop = {
                let (progress, cancel) = (progress.clone(), cancel.clone());
                tokio::spawn(async move {
                    progress.cancelled().await;
                    cancel.store(true, Ordering::Relaxed);
                })
            };
            let flattened = node.flatten(id, &tell, &cancel).await;
            stop.abort();
            flattened.map_err(|error| of_engine(&error))?;
            Ok(JobResult { volumes: vec![name], ..JobResult::default() })
        })
    }
}

fn name_of(name: &Name) -> Result<SnapshotName, Problem> {
    SnapshotName::new(name.as_str()).map_err(|error| of_unit(&error))
}
