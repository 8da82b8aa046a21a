//! VMs behind the interface: calls that are done when they are answered. Clones are in `vm_clones.rs`.
//!
//! What a crash leaves. Creating, changing: the old document or the new one. Deleting with volumes: volumes first, so a VM that lacks some;
//! deleting it again does the rest. Snapshots, going back: all disks or none. Template: perhaps some disks are and the VM is not; saying it
//! again does the rest.

use std::sync::Arc;

use lamina_api::appliance::{Overview, Vms};
use lamina_api::job::{Job, JobKind, JobResult, JobUnit, Outcome};
use lamina_api::name::{Name, volume_name};
use lamina_api::page::{Page, Paged};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::snapshot::{CreateClones, Rollback};
use lamina_api::vm::{ChangeVm, CreateVm, CreateVmSnapshot, Machine, RolledBackVm, Vm, VmList, VmSnapshot, VmSnapshotList};
use lamina_contract::{SnapshotName, Timestamp, VolumeRecord, VolumeSettings};
use lamina_engine::Volume;
use laminad::freeze::FreezePolicy;

use crate::detached::Detached;
use crate::jobs::JobOrder;
use crate::machines::{StoredVm, VmDocument, shown};
use crate::reserved;
use crate::served::{Served, of_engine, of_unit};
use crate::snapshots::From;
use crate::unguested::Unguested;
use crate::vm_sets::{Part, Wanted};

/// Refuses to take back what is to stay as it is.
pub(crate) fn refuse_read_only(disk: &Arc<Volume>) -> Result<(), Problem> {
    if !disk.is_read_only() {
        return Ok(());
    }
    let detail = format!("volume '{}' refuses writes", disk.spec().name);
    Err(Problem::new(ProblemKind::Conflict, detail).advise("what is a template stays as it is; clone it"))
}

impl Served {
    /// Refuses a machine whose disks are not volumes that are free for it.
    fn check_disks(&self, machine: &Machine, vm: Option<&str>) -> Result<(), Problem> {
        for disk in &machine.disks {
            self.find(&volume_name(&disk.volume)?).map_err(|problem| match problem.kind {
                ProblemKind::NotFound => Problem::new(ProblemKind::InvalidRequest, problem.detail).advise("make the volume first"),
                _ => problem,
            })?;
        }
        self.machines.refuse_disks(machine.disks.iter().map(|disk| disk.volume.as_str()), vm)
    }

    /// Its disks as they are registered, those that are there.
    fn disk_records(&self, vm: &StoredVm) -> Result<Vec<VolumeRecord>, Problem> {
        let mut records = Vec::with_capacity(vm.body.machine.disks.len());
        for disk in &vm.body.machine.disks {
            match self.find(&volume_name(&disk.volume)?) {
                Ok(record) => records.push(record),
                Err(problem) if problem.kind == ProblemKind::NotFound => {}
                Err(problem) => return Err(problem),
            }
        }
        Ok(records)
    }

    fn refuse_used(&self, disks: &[Arc<Volume>]) -> Result<(), Problem> {
        disks.iter().try_for_each(|disk| self.refuse_connected(disk.id(), &disk.spec().name))
    }

    /// Holds the disks of a VM as it was ordered: without guests, and still its disks.
    pub(crate) fn hold(&self, vm: &StoredVm, disks: &[Arc<Volume>]) -> Result<Unguested<'_>, Problem> {
        let unguested = self.unguested(disks.iter().map(|disk| (disk.id(), disk.spec().name)).collect())?;
        let now = self.machines.get(&vm.name)?;
        if now.body.machine.disks == vm.body.machine.disks {
            return Ok(unguested);
        }
        Err(Problem::new(ProblemKind::Conflict, format!("VM '{}' got other disks meanwhile", vm.name)).advise("ask again"))
    }

    /// Deletes the volumes of a VM, clones before what they stand on; refuses before the first when one is needed.
    fn delete_disks(&self, detached: &mut Detached, mut disks: Vec<VolumeRecord>) -> Result<(), Problem> {
        let own = |record: &VolumeRecord, disks: &[VolumeRecord]| disks.iter().any(|disk| disk.id == record.id);
        let mut children: Vec<(VolumeRecord, Vec<VolumeRecord>)> = Vec::new();
        let all = self.records()?;
        for disk in &disks {
            let clones: Vec<VolumeRecord> = all
                .iter()
                .filter(|record| !record.deleting && record.parent.is_some_and(|parent| parent.volume == disk.id))
                .cloned()
                .collect();
            if let Some(clone) = clones.iter().find(|clone| !own(clone, &disks)) {
                let detail = format!("volume '{}' has a clone, '{}'", disk.spec.name, clone.spec.name);
                return Err(Problem::new(ProblemKind::Conflict, detail).advise("delete or flatten its clones first"));
            }
            let open = self.open_volume(&disk.spec.name)?;
            if let Some(pinned) = open.snapshots().iter().find(|snapshot| snapshot.note.pinned) {
                let detail = format!("snapshot '{}' of volume '{}' is pinned", pinned.note.name, disk.spec.name);
                return Err(Problem::new(ProblemKind::Conflict, detail).advise("unpin it first"));
            }
            children.push((disk.clone(), clones));
        }
        while !disks.is_empty() {
            let free = children.iter().position(|(_, clones)| !clones.iter().any(|clone| own(clone, &disks)));
            // No volume is its own ancestor.
            let Some(free) = free else { return Err(Problem::new(ProblemKind::Internal, "the disks are clones of each other")) };
            let (disk, _) = children.swap_remove(free);
            self.delete_now(detached, disk.id, &disk.spec.name, true)?;
            disks.retain(|record| record.id != disk.id);
        }
        Ok(())
    }

    /// Takes a VM's disks back to these snapshots; gives the name of what that discards.
    fn take_back(&self, vm: &StoredVm, disks: &[Arc<Volume>], to: &[Part]) -> Result<SnapshotName, Problem> {
        let wanted = Wanted::automatic(self.dated_name("before-rollback", self.now())?);
        let _held = self.hold(vm, disks)?;
        let discarded = wanted.parts(&vm.name, to.len());
        let all = to.iter().zip(discarded).map(|(part, spec)| (part.volume.id(), part.snapshot.note.id, spec));
        let all: Vec<_> = all.collect();
        self.block_on(self.node.rollback_all(&all)).map_err(|error| of_engine(&error))?;
        Ok(wanted.name)
    }

    /// All or none, as far as the registry lets it be.
    fn set_templates(&self, disks: &[Arc<Volume>], template: bool) -> Result<(), Problem> {
        let set = |disk: &Arc<Volume>, template: bool| {
            let settings = VolumeSettings { template, ..(*disk.settings()).clone() };
            self.block_on(self.node.change_settings(disk.id(), settings)).map_err(|error| of_engine(&error))
        };
        let wrong: Vec<&Arc<Volume>> = disks.iter().filter(|disk| disk.settings().template != template).collect();
        for (done, disk) in wrong.iter().enumerate() {
            if let Err(problem) = set(disk, template) {
                for before in wrong.iter().take(done) {
                    if let Err(problem) = set(before, !template) {
                        tracing::warn!(volume = %before.spec().name, %problem, "a disk is not as the others: say it again");
                    }
                }
                return Err(problem);
            }
        }
        Ok(())
    }

    fn show_vm(&self, name: &str) -> Result<Vm, Problem> {
        Ok(shown(&self.machines.get(name)?, &self.machines.settings()))
    }

    /// Whether all disks can be taken back, or cloned, as they were then.
    pub(crate) fn check_past(&self, disks: &[Arc<Volume>], at: Timestamp) -> Result<(), Problem> {
        for disk in disks {
            let begins = disk.past_begins();
            if begins.is_none_or(|begins| at < begins) || at > self.now() {
                return Err(of_engine(&lamina_engine::EngineError::NotInWindow { volume: disk.id(), begins }));
            }
        }
        Ok(())
    }

    /// Snapshots of all disks as they were at a moment; made by the calls that need them, and found again by later ones.
    pub(crate) fn parts_at(&self, disks: &[Arc<Volume>], at: Timestamp) -> Result<Vec<Part>, Problem> {
        let part = |(disk, place): (&Arc<Volume>, usize)| {
            let snapshot = self.block_on(self.beginning(disk, From::Moment(at)))?;
            Ok(Part { volume: Arc::clone(disk), snapshot, place })
        };
        disks.iter().zip(1..).map(part).collect()
    }
}

impl Vms for Served {
    fn vms(&self, page: &Page) -> Result<VmList, Problem> {
        let (vms, settings) = (self.machines.list()?, self.machines.settings());
        let Paged { entries, next } = page.cut(&vms, |vm| vm.name.clone());
        Ok(VmList { vms: entries.into_iter().map(|vm| shown(vm, &settings)).collect(), next })
    }

    fn vm(&self, name: &Name) -> Result<Vm, Problem> {
        self.show_vm(name.as_str())
    }

    fn create_vm(&self, request: &CreateVm) -> Result<Vm, Problem> {
        reserved::checked(&request.labels)?;
        let changes = self.changes();
        self.machines.refuse_taken(&request.name)?;
        self.check_disks(&request.machine, None)?;
        let document = VmDocument {
            labels: request.labels.clone(),
            machine: request.machine.clone(),
            guest_agent: request.guest_agent.clone(),
            created_ms: self.now().0,
        };
        self.machines.add(&request.name, &document)?;
        drop(changes);
        self.show_vm(&request.name)
    }

    fn change_vm(&self, name: &Name, change: &ChangeVm) -> Result<Vm, Problem> {
        change.labels.as_ref().map(reserved::checked).transpose()?;
        let changes = self.changes();
        let vm = self.machines.get(name.as_str())?;
        let mut document = vm.body.clone();
        if let Some(labels) = &change.labels {
            document.labels.clone_from(labels);
        }
        if let Some(machine) = &change.machine {
            self.check_disks(machine, Some(&vm.name))?;
            document.machine.clone_from(machine);
        }
        if let Some(agent) = &change.guest_agent {
            document.guest_agent = Some(agent.clone()).filter(|agent| !agent.is_empty());
        }
        if document != vm.body {
            self.machines.change(&vm, &document)?;
        }
        drop(changes);
        self.show_vm(&vm.name)
    }

    fn delete_vm(&self, name: &Name, volumes: bool) -> Result<(), Problem> {
        let vm = self.machines.get(name.as_str())?;
        let disks = self.disk_records(&vm)?;
        let mut unguested = self.unguested(disks.iter().map(|disk| (disk.id, disk.spec.name.clone())).collect())?;
        if self.machines.get(name.as_str())?.body.machine.disks != vm.body.machine.disks {
            return Err(Problem::new(ProblemKind::Conflict, format!("VM '{name}' got other disks meanwhile")).advise("ask again"));
        }
        if volumes {
            self.machines.refuse_disks(disks.iter().map(|disk| disk.spec.name.as_str()), Some(&vm.name))?;
            self.delete_disks(unguested.detached(), disks)?;
        }
        self.machines.forget(&vm)
    }

    fn vm_snapshots(&self, name: &Name, page: &Page) -> Result<VmSnapshotList, Problem> {
        let vm = self.machines.get(name.as_str())?;
        let sets = self.machines.sets(&vm);
        let Paged { entries, next } = page.cut(&sets, |set| format!("{} {}", set.name, set.id));
        Ok(VmSnapshotList { snapshots: entries.into_iter().map(|set| set.shown(&vm.name)).collect(), next })
    }

    fn vm_snapshot(&self, name: &Name, snapshot: &Name) -> Result<VmSnapshot, Problem> {
        let vm = self.machines.get(name.as_str())?;
        Ok(self.machines.set(&vm, snapshot.as_str())?.shown(&vm.name))
    }

    fn take_vm_snapshot(&self, name: &Name, request: &CreateVmSnapshot) -> Result<VmSnapshot, Problem> {
        let vm = self.machines.get(name.as_str())?;
        let wanted = Wanted {
            name: SnapshotName::new(&request.name).map_err(|error| of_unit(&error))?,
            labels: reserved::checked_for_vm_snapshot(&request.labels)?,
            description: request.description.clone(),
            pinned: request.pinned,
            automatic: false,
        };
        let policy = if request.freeze { FreezePolicy::Required } else { FreezePolicy::Off };
        Ok(self.machines.take(&vm, &wanted, policy)?.shown(&vm.name))
    }

    fn delete_vm_snapshot(&self, name: &Name, snapshot: &Name) -> Result<(), Problem> {
        let vm = self.machines.get(name.as_str())?;
        self.machines.delete_set(&self.machines.set(&vm, snapshot.as_str())?)
    }

    fn rollback_vm(&self, name: &Name, request: &Rollback) -> Result<Outcome<RolledBackVm>, Problem> {
        let vm = self.machines.get(name.as_str())?;
        let disks = self.machines.disks(&vm)?;
        self.refuse_used(&disks)?;
        disks.iter().try_for_each(refuse_read_only)?;
        match From::of(request.snapshot.as_deref(), request.at.as_deref())? {
            From::Now => Err(Problem::new(ProblemKind::InvalidRequest, "say which snapshot or moment to go back to")),
            From::Snapshot(snapshot) => {
                let parts = self.machines.set(&vm, snapshot.as_str())?.parts_of(&disks)?;
                let discarded = self.take_back(&vm, &disks, &parts)?.to_string();
                Ok(Outcome::Done(RolledBackVm { vm: self.show_vm(&vm.name)?, discarded }))
            }
            From::Moment(at) => {
                self.check_past(&disks, at)?;
                let total = disks.len() as u64;
                let order = JobOrder { kind: JobKind::RollbackVm, subject: vm.name.clone(), unit: JobUnit::Volumes, total };
                let served = self.this()?;
                let job = self.records.jobs.start(order, async move |progress| {
                    progress.phase("reading the logs");
                    // What waits for the engine and for front ends blocks.
                    let working = tokio::task::spawn_blocking(move || {
                        let parts = served.parts_at(&disks, at)?;
                        progress.check()?;
                        progress.phase("going back");
                        let discarded = served.take_back(&vm, &disks, &parts)?.to_string();
                        let volumes = disks.iter().map(|disk| disk.spec().name.to_string()).collect();
                        Ok(JobResult { volumes, vms: vec![vm.name], discarded: Some(discarded), ..JobResult::default() })
                    });
                    working.await.unwrap_or_else(|_| Err(Problem::new(ProblemKind::Internal, "going back failed unexpectedly")))
                })?;
                Ok(Outcome::Job(Box::new(job)))
            }
        }
    }

    fn clone_vm(&self, name: &Name, request: &CreateClones) -> Result<Job, Problem> {
        self.begin_vm_clones(name, request)
    }

    fn set_vm_template(&self, name: &Name, template: bool) -> Result<Vm, Problem> {
        let vm = self.machines.get(name.as_str())?;
        let disks = self.machines.disks(&vm)?;
        if disks.iter().any(|disk| disk.settings().template != template) {
            let _held = self.hold(&vm, &disks)?;
            self.set_templates(&disks, template)?;
        }
        self.show_vm(&vm.name)
    }
}
