//! Snapshots, clones and what jobs they are.

use lamina_api::appliance::{Snapshots, Volumes};
use lamina_api::job::{Job, JobKind, JobResult, JobUnit, Outcome};
use lamina_api::name::Name;
use lamina_api::page::{Page, Paged};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::snapshot::{
    ChangeSnapshot, CreateClones, CreateSnapshot, Rollback, RolledBack, Snapshot, SnapshotList, SnapshotState,
};
use lamina_api::volume::{CreateVolume, Parent, Volume};
use lamina_contract::VolumeName;

use super::{FakeAppliance, missing, no_snapshot, problem, taken};

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
