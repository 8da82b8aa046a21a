//! VMs: as many volumes at once.

use lamina_api::appliance::Vms;
use lamina_api::job::{Job, JobKind, JobResult, JobUnit, Outcome};
use lamina_api::name::Name;
use lamina_api::page::{Page, Paged};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::snapshot::{CreateClones, Rollback, SnapshotState};
use lamina_api::vm::{ChangeVm, CreateVm, CreateVmSnapshot, RolledBackVm, Vm, VmList, VmSnapshot, VmSnapshotDisk, VmSnapshotList};

use super::{FakeAppliance, missing, no_snapshot, problem, taken};

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
