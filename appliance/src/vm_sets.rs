//! Snapshots of VMs: sets of snapshots of volumes, taken at one barrier. The disks' snapshots say by labels which set they are of, which
//! part of it, and how many parts there are; nothing else is kept, so there is nothing to disagree with.
//!
//! A set is found through a disk that the VM has now; its other parts may be on volumes that are its disks no more. It is complete when all
//! parts are there. One is not complete when a part's volume is deleted or not open, when a disk's snapshot was deleted by itself, or when a
//! crash cut a deletion off: deleting it again finishes that. Taking is all or nothing, whatever happens.
//!
//! A guest that is to be frozen: the parts say so when they are taken and it is made sure of afterwards; when it was thawed too early they
//! are deleted or corrected. A kill between leaves a set that says "frozen" of a guest that may have gone on for the last moment.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lamina_api::instant::rfc3339;
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::snapshot::SnapshotState;
use lamina_api::vm::{VmSnapshot, VmSnapshotDisk};
use lamina_contract::{Labels, SnapshotName, VolumeId};
use lamina_engine::{Snapshot, SnapshotChange, SnapshotSpec, Volume};
use laminad::freeze::{FreezeError, FreezePolicy, Limits, hold_still};

use crate::machines::{Machines, StoredVm};
use crate::reserved;
use crate::served::{labels_of, of_engine};

/// One disk's part.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) volume: Arc<Volume>,
    pub(crate) snapshot: Snapshot,
    pub(crate) place: usize,
}

/// A VM's snapshot. It has a part.
pub(crate) struct Set {
    /// What its parts share.
    pub(crate) id: String,
    pub(crate) name: SnapshotName,
    /// How many parts it was taken with.
    size: usize,
    /// In the order of the disks then.
    pub(crate) parts: Vec<Part>,
}

/// What a set is to be known as.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) name: SnapshotName,
    pub(crate) labels: Labels,
    pub(crate) description: String,
    pub(crate) pinned: bool,
    pub(crate) automatic: bool,
}

impl Wanted {
    /// One that the appliance makes by itself.
    pub(crate) fn automatic(name: SnapshotName) -> Self {
        Self { name, labels: Labels::new(), description: String::new(), pinned: false, automatic: true }
    }

    /// What each disk's part is to be, in the order of the disks.
    pub(crate) fn parts(&self, vm: &str, count: usize) -> impl Iterator<Item = SnapshotSpec> {
        let id = format!("{:016x}", rand::random::<u64>());
        (1..=count).map(move |place| {
            let mut labels = self.labels.clone();
            labels.insert(reserved::VM.to_owned(), vm.to_owned());
            labels.insert(reserved::SET.to_owned(), id.clone());
            labels.insert(reserved::PART.to_owned(), format!("{place}/{count}"));
            SnapshotSpec {
                name: self.name.clone(),
                labels,
                description: self.description.clone(),
                pinned: self.pinned,
                automatic: self.automatic,
            }
        })
    }
}

impl Set {
    /// All parts are there.
    pub(crate) fn is_complete(&self) -> bool {
        self.parts.len() == self.size
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.parts.iter().any(|part| part.snapshot.note.pinned)
    }

    /// The labels that people and schedules gave it.
    pub(crate) fn labels(&self) -> Labels {
        self.parts.first().map(|part| reserved::without(&part.snapshot.note.labels)).unwrap_or_default()
    }

    fn is_frozen(&self) -> bool {
        self.parts.iter().all(|part| part.snapshot.note.labels.contains_key(reserved::FROZEN))
    }

    /// The part of each of these disks: all of one moment.
    pub(crate) fn parts_of(&self, disks: &[Arc<Volume>]) -> Result<Vec<Part>, Problem> {
        let part = |disk: &Arc<Volume>| {
            self.parts.iter().find(|part| part.volume.id() == disk.id()).cloned().ok_or_else(|| {
                let detail = format!("snapshot '{}' has no part of disk '{}'", self.name, disk.spec().name);
                Problem::new(ProblemKind::Conflict, detail)
                    .advise("use a snapshot of all disks that the VM has now, or change its disks")
            })
        };
        disks.iter().map(part).collect()
    }

    /// As the interface shows it.
    pub(crate) fn shown(&self, vm: &str) -> VmSnapshot {
        let first = self.parts.first().map(|part| &part.snapshot.note);
        let disk = |part: &Part| VmSnapshotDisk { volume: part.volume.spec().name.to_string(), snapshot: self.name.to_string() };
        let stored = self.parts.iter().all(|part| part.snapshot.stored);
        VmSnapshot {
            name: self.name.to_string(),
            vm: vm.to_owned(),
            created: first.map(|note| rfc3339(note.created)).unwrap_or_default(),
            labels: labels_of(&self.labels()),
            description: first.map(|note| note.description.clone()).unwrap_or_default(),
            pinned: self.is_pinned(),
            automatic: first.is_some_and(|note| note.automatic),
            frozen: self.is_frozen(),
            complete: self.is_complete(),
            state: if stored { SnapshotState::Stored } else { SnapshotState::Settling },
            disks: self.parts.iter().map(disk).collect(),
        }
    }
}

/// A part of a set of `vm`: the set, and how many parts it has.
fn part_of(vm: &str, volume: &Arc<Volume>, snapshot: &Snapshot) -> Option<(String, usize, Part)> {
    let labels = &snapshot.note.labels;
    if labels.get(reserved::VM).map(String::as_str) != Some(vm) {
        return None;
    }
    let (place, size) = labels.get(reserved::PART)?.split_once('/')?;
    let (place, size) = (place.parse().ok()?, size.parse().ok()?);
    Some((labels.get(reserved::SET)?.clone(), size, Part { volume: Arc::clone(volume), snapshot: snapshot.clone(), place }))
}

impl Machines {
    /// A VM's snapshots, by name.
    pub(crate) fn sets(&self, vm: &StoredVm) -> Vec<Set> {
        let mut others = self.open_volumes();
        let parts_on = |volume: &Arc<Volume>| -> Vec<(String, usize, Part)> {
            volume.snapshots().iter().filter_map(|snapshot| part_of(&vm.name, volume, snapshot)).collect()
        };
        let mut sets: BTreeMap<String, Set> = BTreeMap::new();
        for disk in vm.body.machine.disks.iter().filter_map(|disk| others.remove(&disk.volume)) {
            for (id, size, part) in parts_on(&disk) {
                let name = part.snapshot.note.name.clone();
                let new = || Set { id: id.clone(), name, size, parts: Vec::new() };
                sets.entry(id.clone()).or_insert_with(new).parts.push(part);
            }
        }
        if sets.values().any(|set| !set.is_complete()) {
            // On volumes that were its disks then.
            for (id, _, part) in others.values().flat_map(parts_on) {
                if let Some(set) = sets.get_mut(&id) {
                    set.parts.push(part);
                }
            }
        }
        let mut sets: Vec<Set> = sets.into_values().collect();
        sets.iter_mut().for_each(|set| set.parts.sort_by_key(|part| part.place));
        sets.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        sets
    }

    /// One of them. Two have the same name when the VM changed all its disks between: the complete one counts, then the newer.
    pub(crate) fn set(&self, vm: &StoredVm, name: &str) -> Result<Set, Problem> {
        let named = self.sets(vm).into_iter().filter(|set| set.name.as_str() == name);
        let created = |set: &Set| set.parts.first().map(|part| part.snapshot.note.created);
        named.max_by_key(|set| (set.is_complete(), created(set))).ok_or_else(|| {
            Problem::new(ProblemKind::NotFound, format!("VM '{}' has no snapshot '{name}'", vm.name))
                .advise(format!("`lamina vm snapshots {}` shows all of them", vm.name))
        })
    }

    /// Takes a snapshot of all disks at one barrier, its guest held still as far as `policy` wants it. Blocks.
    pub(crate) fn take(&self, vm: &StoredVm, wanted: &Wanted, policy: FreezePolicy) -> Result<Set, Problem> {
        let disks = self.disks(vm)?;
        if policy == FreezePolicy::Off {
            return self.cut(vm, &disks, wanted);
        }
        let agent = vm.body.guest_agent.as_deref().map(Path::new);
        match hold_still(FreezePolicy::Required, agent, Limits::default(), || self.cut(vm, &disks, wanted)) {
            Ok(held) => {
                let set = held.value?;
                if let Some(trouble) = &held.trouble {
                    tracing::warn!(vm = %vm.name, snapshot = %set.name, error = trouble as &dyn std::error::Error, "freezing the guest");
                }
                match (held.frozen, policy) {
                    (true, _) => Ok(self.marked_frozen(vm, set)),
                    (false, FreezePolicy::Required) => self.given_up(vm, &set),
                    (false, _) => Ok(set),
                }
            }
            Err(error) if policy == FreezePolicy::Preferred => {
                tracing::warn!(vm = %vm.name, snapshot = %wanted.name, error = &error as &dyn std::error::Error,
                    "the guest was not frozen: the snapshot is what a power cut would leave");
                self.cut(vm, &disks, wanted)
            }
            Err(error) => Err(of_freeze(&error)),
        }
    }

    fn cut(&self, vm: &StoredVm, disks: &[Arc<Volume>], wanted: &Wanted) -> Result<Set, Problem> {
        let specs = wanted.parts(&vm.name, disks.len());
        let all: Vec<(VolumeId, SnapshotSpec)> = disks.iter().map(|disk| disk.id()).zip(specs).collect();
        let taken = self.block_on(self.node.snapshot(&all)).map_err(|error| of_engine(&error))?;
        let parts = disks.iter().zip(taken).zip(1..);
        let parts: Vec<Part> =
            parts.map(|((volume, snapshot), place)| Part { volume: Arc::clone(volume), snapshot, place }).collect();
        let id = parts.first().and_then(|part| part.snapshot.note.labels.get(reserved::SET)).cloned().unwrap_or_default();
        Ok(Set { id, name: wanted.name.clone(), size: disks.len(), parts })
    }

    /// Says on all parts that the guest was held still: known only now that it was until they were all taken. One that cannot be
    /// told so is a snapshot of a guest that runs, which promises less.
    fn marked_frozen(&self, vm: &StoredVm, mut set: Set) -> Set {
        for part in &mut set.parts {
            let mut labels = part.snapshot.note.labels.clone();
            labels.insert(reserved::FROZEN.to_owned(), "true".to_owned());
            let change = SnapshotChange { labels: Some(labels), ..SnapshotChange::default() };
            match self.block_on(self.node.change_snapshot(part.volume.id(), part.snapshot.note.id, &change)) {
                Ok(changed) => part.snapshot = changed,
                Err(error) => {
                    tracing::warn!(vm = %vm.name, snapshot = %set.name, error = &error as &dyn std::error::Error,
                        "the guest was frozen, and the snapshot cannot be made to say so");
                    break;
                }
            }
        }
        set
    }

    /// The guest thawed before the snapshot was done, and only a frozen one was wanted.
    fn given_up(&self, vm: &StoredVm, set: &Set) -> Result<Set, Problem> {
        let problem = of_freeze(&FreezeError::ThawedEarly);
        let Err(left) = self.delete_set(set) else { return Err(problem) };
        tracing::warn!(vm = %vm.name, snapshot = %set.name, problem = %left, "taken while the guest was not frozen, and still there");
        Err(problem.advise(format!("snapshot '{}' is there all the same, of a guest that ran: delete it or keep it", set.name)))
    }

    /// Whether a clone stands on a part.
    pub(crate) fn is_cloned(&self, set: &Set) -> Result<bool, Problem> {
        for part in &set.parts {
            let clones = self.node.clones_of(part.volume.id(), Some(part.snapshot.note.id));
            if !clones.map_err(|error| of_engine(&error))?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Deletes all parts; refuses before the first when one is pinned or has clones. Blocks.
    pub(crate) fn delete_set(&self, set: &Set) -> Result<(), Problem> {
        if set.is_pinned() {
            return Err(Problem::new(ProblemKind::Conflict, format!("snapshot '{}' is pinned", set.name))
                .advise("unpin the snapshot of that name of each disk first"));
        }
        if self.is_cloned(set)? {
            return Err(Problem::new(ProblemKind::Conflict, format!("snapshot '{}' has clones", set.name))
                .advise("delete or flatten them first"));
        }
        for part in &set.parts {
            self.block_on(self.node.delete_snapshot(part.volume.id(), part.snapshot.note.id)).map_err(|error| of_engine(&error))?;
        }
        Ok(())
    }
}

fn of_freeze(error: &FreezeError) -> Problem {
    match error {
        FreezeError::NoAgent => {
            Problem::caused(ProblemKind::Conflict, error).advise("leave freeze out, or set the VM's guest_agent")
        }
        FreezeError::Agent(_) | FreezeError::ThawedEarly | FreezeError::NoThread(_) => {
            Problem::caused(ProblemKind::Unavailable, error).advise("no snapshot was taken; leave freeze out to take one without")
        }
    }
}
