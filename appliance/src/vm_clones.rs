//! Clones of VMs: a job that clones all disks as they were at one moment, and copies the machine.
//!
//! A clone `desk-7` of the VM `golden` with the disks `golden-system` and `golden-data` has `desk-7-system` and `desk-7-data`: what stands
//! behind the VM's name in a disk's, or else the whole of it; where that is not different for each disk or too long, `desk-7-disk1` and so
//! on. Names are checked before anything is made. Network cards have no MAC and the VM no agent's socket: those are the source's own.
//!
//! Clones appear in groups: volumes, then what of them is not to be attached, then a document for each VM, then sockets. An error, or being
//! cancelled, leaves whole VMs only. A kill leaves at most one group's volumes without a VM; each says by its label `lamina/made-for` which
//! it was to be a disk of. Also, and always: the automatic snapshot that the clones began as.

use std::collections::BTreeSet;
use std::sync::Arc;

use lamina_api::appliance::Overview;
use lamina_api::job::{Job, JobKind, JobResult, JobUnit};
use lamina_api::label::Labels;
use lamina_api::name::{Name, volume_name};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::snapshot::CreateClones;
use lamina_api::vm::{Machine, VmDisk, VmNic};
use lamina_contract::{VolumeName, VolumeSettings};
use lamina_engine::{CloneSpec, Volume};
use laminad::freeze::FreezePolicy;

use crate::detached::Detached;
use crate::jobs::{JobOrder, JobProgress};
use crate::machines::{StoredVm, VmDocument, taken};
use crate::reserved;
use crate::served::{Served, of_engine, unkept};
use crate::snapshots::From;
use crate::vm_sets::{Part, Set, Wanted};

/// VMs that appear together.
const TOGETHER: usize = 25;

/// A clone to be made.
#[derive(Debug, Clone, PartialEq)]
struct Plan {
    name: String,
    /// In the order of the source's.
    volumes: Vec<VolumeName>,
    document: VmDocument,
}

/// What a job is asked for.
struct Order {
    vm: StoredVm,
    disks: Vec<Arc<Volume>>,
    from: From,
    plans: Vec<Plan>,
    attach: bool,
}

/// What a clone is named after, for each disk.
fn suffixes(vm: &str, disks: &[VmDisk], longest: usize) -> Vec<String> {
    let rest = |disk: &VmDisk| {
        let behind = disk.volume.strip_prefix(vm).and_then(|rest| rest.strip_prefix('-')).filter(|rest| !rest.is_empty());
        behind.unwrap_or(&disk.volume).to_owned()
    };
    let natural: Vec<String> = disks.iter().map(rest).collect();
    let different: BTreeSet<&String> = natural.iter().collect();
    let fits = |suffix: &String| longest + 1 + suffix.len() <= MOST_NAME && suffix != vm;
    if different.len() == disks.len() && natural.iter().all(fits) {
        return natural;
    }
    (1..=disks.len()).map(|number| format!("disk{number}")).collect()
}

/// Characters of any name.
const MOST_NAME: usize = 63;

fn plans(vm: &StoredVm, names: &[String], labels: &Labels, created_ms: u64) -> Result<Vec<Plan>, Problem> {
    let disks = &vm.body.machine.disks;
    let suffixes = suffixes(&vm.name, disks, names.iter().map(String::len).max().unwrap_or(0));
    let most = MOST_NAME.saturating_sub(1 + suffixes.iter().map(String::len).max().unwrap_or(0));
    let mut volumes_of_all = BTreeSet::new();
    let plan = |name: &String| {
        if name.len() > most {
            let detail = format!(
                "'{name}' is too long for a clone of this VM: with its disks' names behind it, {most} characters are the most"
            );
            return Err(Problem::new(ProblemKind::InvalidRequest, detail));
        }
        let volumes: Vec<VolumeName> =
            suffixes.iter().map(|suffix| volume_name(&format!("{name}-{suffix}"))).collect::<Result<_, _>>()?;
        for volume in &volumes {
            if !volumes_of_all.insert(volume.clone()) {
                let detail = format!("two of these clones would have a volume '{volume}'");
                return Err(Problem::new(ProblemKind::InvalidRequest, detail).advise("choose other names"));
            }
        }
        let disk = |(disk, volume): (&VmDisk, &VolumeName)| VmDisk { volume: volume.to_string(), ..disk.clone() };
        let machine = Machine {
            disks: disks.iter().zip(&volumes).map(disk).collect(),
            nics: vm.body.machine.nics.iter().map(|nic| VmNic { mac: None, ..nic.clone() }).collect(),
            ..vm.body.machine.clone()
        };
        let document = VmDocument { labels: labels.clone(), machine, guest_agent: None, created_ms };
        Ok(Plan { name: name.clone(), volumes, document })
    };
    names.iter().map(plan).collect()
}

impl Served {
    /// Checks everything that can be, and begins the job.
    pub(crate) fn begin_vm_clones(&self, name: &Name, request: &CreateClones) -> Result<Job, Problem> {
        reserved::checked(&request.labels)?;
        let vm = self.machines.get(name.as_str())?;
        let disks = self.machines.disks(&vm)?;
        let from = From::of(request.snapshot.as_deref(), request.at.as_deref())?;
        match &from {
            From::Snapshot(snapshot) => drop(self.machines.set(&vm, snapshot.as_str())?.parts_of(&disks)?),
            From::Moment(at) => self.check_past(&disks, *at)?,
            From::Now => {}
        }
        let plans = plans(&vm, &request.names, &request.labels, self.now().0)?;
        let known: BTreeSet<VolumeName> =
            self.records()?.into_iter().filter(|record| !record.deleting).map(|record| record.spec.name).collect();
        for plan in &plans {
            self.machines.refuse_taken(&plan.name)?;
            for volume in &plan.volumes {
                self.check_socket(volume)?;
                if known.contains(volume) {
                    return Err(taken("volume", volume.as_str()));
                }
            }
        }
        let order = JobOrder { kind: JobKind::CloneVm, subject: vm.name.clone(), unit: JobUnit::Vms, total: plans.len() as u64 };
        let work = Order { vm, disks, from, plans, attach: request.attach.unwrap_or(true) };
        let served = self.this()?;
        self.records.jobs.start(order, async move |progress| {
            // What waits for the engine and for front ends blocks.
            let working = tokio::task::spawn_blocking(move || served.clone_vms(&work, &progress));
            working.await.unwrap_or_else(|_| Err(Problem::new(ProblemKind::Internal, "cloning failed unexpectedly")))
        })
    }

    fn clone_vms(&self, order: &Order, progress: &JobProgress) -> Result<JobResult, Problem> {
        progress.phase("finding where to begin");
        let (parts, own) = match &order.from {
            From::Snapshot(name) => (self.machines.set(&order.vm, name.as_str())?.parts_of(&order.disks)?, None),
            From::Moment(at) => (self.parts_at(&order.disks, *at)?, None),
            From::Now => {
                let wanted = Wanted::automatic(self.dated_name("clone", self.now())?);
                let set = self.machines.take(&order.vm, &wanted, FreezePolicy::Off)?;
                (set.parts.clone(), Some(set))
            }
        };
        progress.phase("cloning");
        let mut result = JobResult::default();
        for group in order.plans.chunks(TOGETHER) {
            let made = progress.check().and_then(|()| self.clone_group(&parts, group, order.attach));
            let (made, ended) = match made {
                Ok(()) => (group.len(), Ok(())),
                Err(problem) => (0, Err(problem)),
            };
            for plan in group.iter().take(made) {
                result.vms.push(plan.name.clone());
                result.volumes.extend(plan.volumes.iter().map(VolumeName::to_string));
            }
            progress.made(|told| told.clone_from(&result));
            progress.advance(made as u64);
            if let Err(problem) = ended {
                if result.vms.is_empty() {
                    self.give_up_beginning(own.as_ref());
                }
                return Err(problem);
            }
        }
        Ok(result)
    }

    /// Nothing stands on it.
    fn give_up_beginning(&self, set: Option<&Set>) {
        if let Some(set) = set
            && let Err(problem) = self.machines.delete_set(set)
        {
            tracing::warn!(snapshot = %set.name, %problem, "an automatic snapshot is left of clones that were not made");
        }
    }

    /// Makes all VMs of a group, or none.
    fn clone_group(&self, parts: &[Part], group: &[Plan], attach: bool) -> Result<(), Problem> {
        // Held until all is there: nobody takes a name meanwhile, and volumes without sockets are no fault.
        let mut detached = self.changes();
        let mut volumes = Vec::new();
        let made = self.clone_volumes(parts, group, &mut volumes).and_then(|()| {
            if !attach {
                volumes.iter().try_for_each(|volume| detached.insert(volume.id())).map_err(|error| unkept(&error))?;
            }
            self.add_documents(group)
        });
        if let Err(problem) = made {
            self.take_back_clones(&mut detached, &volumes);
            return Err(problem);
        }
        for volume in volumes.iter().filter(|_| attach) {
            let name = volume.spec().name;
            if let Err(problem) = self.serve(volume.id(), &name) {
                // Shown as a degradation until it is.
                tracing::error!(volume = %name, %problem, "a clone was made but is not served: `lamina volume attach` tries it");
            }
        }
        Ok(())
    }

    fn clone_volumes(&self, parts: &[Part], group: &[Plan], made: &mut Vec<Arc<Volume>>) -> Result<(), Problem> {
        for (disk, part) in parts.iter().enumerate() {
            let before = part.volume.settings();
            let spec = |plan: &Plan| {
                let labels = [(reserved::MADE_FOR.to_owned(), plan.name.clone())].into();
                let settings = VolumeSettings { labels, template: false, ..(*before).clone() };
                Some(CloneSpec { name: plan.volumes.get(disk)?.clone(), settings })
            };
            let specs: Vec<CloneSpec> = group.iter().filter_map(spec).collect();
            let clones = self.block_on(self.node.clone_volume(part.volume.id(), part.snapshot.note.id, &specs));
            made.extend(clones.map_err(|error| of_engine(&error))?);
        }
        Ok(())
    }

    fn add_documents(&self, group: &[Plan]) -> Result<(), Problem> {
        for (done, plan) in group.iter().enumerate() {
            if let Err(problem) = self.machines.add(&plan.name, &plan.document) {
                for before in group.iter().take(done) {
                    if let Err(problem) = self.machines.get(&before.name).and_then(|vm| self.machines.forget(&vm)) {
                        tracing::error!(vm = %before.name, %problem, "this VM is left without its volumes: delete it");
                    }
                }
                return Err(problem);
            }
        }
        Ok(())
    }

    fn take_back_clones(&self, detached: &mut Detached, volumes: &[Arc<Volume>]) {
        for volume in volumes {
            let name = volume.spec().name;
            if let Err(problem) = self.delete_now(detached, volume.id(), &name, true) {
                tracing::error!(volume = %name, %problem, "this clone is left of a VM that was not made: delete it");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lamina_api::label::Labels;
    use lamina_api::vm::{Machine, VmDisk, VmNic};

    use super::{Plan, plans};
    use crate::documents::Stored;
    use crate::machines::{StoredVm, VmDocument};

    fn vm(name: &str, disks: &[&str]) -> StoredVm {
        let disk = |volume: &&str| VmDisk { volume: (*volume).to_owned(), boot_order: Some(2), ..VmDisk::default() };
        let nics = vec![VmNic { mac: Some("52:54:00:00:00:01".to_owned()), bridge: Some("br0".to_owned()), ..VmNic::default() }];
        let machine =
            Machine { cpus: 2, memory_bytes: 1 << 30, disks: disks.iter().map(disk).collect(), nics, ..Machine::default() };
        let guest_agent = Some("/run/agent.sock".to_owned());
        let body = VmDocument { labels: Labels::default(), machine, guest_agent, created_ms: 1 };
        Stored { name: name.to_owned(), version: 1, body }
    }

    fn planned(vm: &StoredVm, names: &[&str]) -> Option<Vec<Plan>> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        plans(vm, &names, &Labels::default(), 7).ok()
    }

    fn volumes(vm: &StoredVm, name: &str) -> Vec<String> {
        let plans = planned(vm, &[name]).expect("possible");
        plans.iter().flat_map(|plan| &plan.volumes).map(ToString::to_string).collect()
    }

    #[test]
    fn volumes_are_named_after_their_vm_and_what_they_are_for() {
        assert_eq!(volumes(&vm("golden", &["golden-system", "golden-data"]), "desk-7"), ["desk-7-system", "desk-7-data"]);
        assert_eq!(volumes(&vm("golden", &["system", "golden-data"]), "d"), ["d-system", "d-data"]);
        // The name of the VM itself, and names that would be the same.
        assert_eq!(volumes(&vm("db", &["db"]), "db2"), ["db2-disk1"]);
        assert_eq!(volumes(&vm("db", &["db-data", "data"]), "x"), ["x-disk1", "x-disk2"]);
        assert_eq!(volumes(&vm("db", &["db-"]), "x"), ["x-db-"]);
        // A clone of a clone keeps them.
        assert_eq!(volumes(&vm("db2", &["db2-disk1"]), "db3"), ["db3-disk1"]);
    }

    #[test]
    fn names_stay_within_63_characters_and_never_meet() {
        let long = vm("a", &["a-system-of-the-first-floor", "a-b"]);
        assert_eq!(volumes(&long, &"n".repeat(57)), [format!("{}-disk1", "n".repeat(57)), format!("{}-disk2", "n".repeat(57))]);
        assert!(planned(&long, &[&"n".repeat(58)]).is_none());
        let two = vm("g", &["g-c", "g-b-c"]);
        assert!(planned(&two, &["a", "a-b"]).is_none(), "both would have a-b-c");
        assert!(planned(&two, &["a", "a-c"]).is_some());
    }

    #[test]
    fn the_machine_is_copied_without_what_is_the_sources_own() {
        let source = vm("golden", &["golden-system"]);
        let plan = planned(&source, &["desk"]).expect("possible").remove(0);
        assert_eq!((plan.document.guest_agent.as_ref(), plan.document.created_ms), (None, 7));
        let machine = &plan.document.machine;
        assert_eq!((machine.cpus, machine.nics[0].mac.as_ref(), machine.nics[0].bridge.as_deref()), (2, None, Some("br0")));
        assert_eq!((machine.disks[0].volume.as_str(), machine.disks[0].boot_order), ("desk-system", Some(2)));
    }
}
