//! VMs: a document each, and volumes that are its disks. What the documents say is true; nothing is copied from them elsewhere.
//!
//! A document names volumes that are there when it is written, each in one VM at most: whoever changes either holds the lock on changes
//! (`Served::detached`). Whether a VM is a template, its volumes say. Its snapshots are derived from theirs (`vm_sets.rs`).
//!
//! A document that this release does not understand may name any volume: while there is one, no volume is deleted and none becomes a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lamina_api::instant::rfc3339;
use lamina_api::label::Labels;
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::vm::{Machine, Vm};
use lamina_contract::{Timestamp, VolumeSettings};
use lamina_engine::{Node, Volume};
use laminad::freeze;
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::documents::{DocumentError, Documents, Expected, Kind, Stored};

/// How long a guest's agent may take to say at the start whether the guest is frozen.
const THAW_PATIENCE: Duration = Duration::from_secs(2);
/// Agents that are asked at a time.
const THAW_AT_ONCE: usize = 16;

/// VMs that are not understood and are named in a message.
const SHOWN_LEFT_OUT: usize = 5;

/// What helps against documents that this release leaves alone.
pub(crate) const LEFT_ALONE_ADVICE: &str =
    "run the newer release that wrote it, or take its file out of meta/documents and restart; `lamina status` names the file";

/// A VM as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmDocument {
    #[serde(deserialize_with = "kept_labels")]
    pub(crate) labels: Labels,
    pub(crate) machine: Machine,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guest_agent: Option<String>,
    pub(crate) created_ms: u64,
}

/// Bounds of labels have been others: no reason not to know a VM.
fn kept_labels<'de, D: Deserializer<'de>>(kept: D) -> Result<Labels, D::Error> {
    BTreeMap::<String, String>::deserialize(kept).map(Labels::within_bounds)
}

/// A VM as it was read.
pub(crate) type StoredVm = Stored<VmDocument>;

/// All VMs and their disks in the engine.
pub(crate) struct Machines {
    pub(crate) node: Arc<Node>,
    documents: Arc<Documents>,
    runtime: Handle,
    /// As of this many changes of the documents.
    listed: Mutex<Option<(u64, Arc<[StoredVm]>)>>,
}

impl Machines {
    pub(crate) fn new(node: Arc<Node>, documents: Arc<Documents>, runtime: Handle) -> Self {
        Self { node, documents, runtime, listed: Mutex::default() }
    }

    /// Waits for the engine in a thread that may.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// All of them, by name.
    pub(crate) fn list(&self) -> Result<Vec<StoredVm>, Problem> {
        Ok(self.listed().to_vec())
    }

    /// The same, shared: parsed when a document has changed, and then by whoever changed it, not by who looks every few seconds.
    pub(crate) fn listed(&self) -> Arc<[StoredVm]> {
        // Before the documents are read: one that changes meanwhile is read again.
        let changed = self.documents.changed(Kind::Vm);
        let mut listed = self.listed.lock();
        match &*listed {
            Some((at, vms)) if *at >= changed => Arc::clone(vms),
            _ => {
                let vms: Arc<[StoredVm]> = self.documents.list(Kind::Vm).into();
                *listed = Some((changed, Arc::clone(&vms)));
                vms
            }
        }
    }

    /// One of them.
    pub(crate) fn get(&self, name: &str) -> Result<StoredVm, Problem> {
        let found = self.documents.get(Kind::Vm, name).map_err(|error| of_document(&error))?;
        found.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("no VM '{name}'")).advise("`lamina vm list` shows all VMs"))
    }

    /// Durably keeps one that is not there yet.
    pub(crate) fn add(&self, name: &str, document: &VmDocument) -> Result<(), Problem> {
        let kept = self.documents.put(Kind::Vm, name, Expected::Absent, document);
        self.listed();
        kept.map(|_| ()).map_err(|error| match error {
            DocumentError::Changed { .. } => taken("VM", name),
            error => of_document(&error),
        })
    }

    /// Durably keeps a changed one, if nobody else has changed it since it was read.
    pub(crate) fn change(&self, read: &StoredVm, document: &VmDocument) -> Result<(), Problem> {
        let expected = Expected::Version(read.version);
        let kept = self.documents.put(Kind::Vm, &read.name, expected, document);
        self.listed();
        kept.map(|_| ()).map_err(|error| of_document(&error))
    }

    /// Durably forgets one; its volumes stay.
    pub(crate) fn forget(&self, read: &StoredVm) -> Result<(), Problem> {
        let deleted = self.documents.delete(Kind::Vm, &read.name, Expected::Version(read.version));
        self.listed();
        deleted.map_err(|error| of_document(&error))
    }

    /// Refuses a name that a VM has.
    pub(crate) fn refuse_taken(&self, name: &str) -> Result<(), Problem> {
        let found = self.documents.get::<VmDocument>(Kind::Vm, name).map_err(|error| of_document(&error))?;
        if found.is_some() { Err(taken("VM", name)) } else { Ok(()) }
    }

    /// Refuses volumes that are disks of VMs other than `except`: what would be done to a volume by itself would break its VM.
    pub(crate) fn refuse_disks<'a>(&self, volumes: impl IntoIterator<Item = &'a str>, except: Option<&str>) -> Result<(), Problem> {
        let wanted: BTreeSet<&str> = volumes.into_iter().collect();
        self.refuse_left_out()?;
        for vm in self.listed().iter().filter(|vm| except != Some(vm.name.as_str())) {
            if let Some(disk) = vm.body.machine.disks.iter().find(|disk| wanted.contains(disk.volume.as_str())) {
                let detail = format!("volume '{}' is a disk of VM '{}'", disk.volume, vm.name);
                return Err(Problem::new(ProblemKind::Conflict, detail).advise("delete that VM, or take the disk from it, first"));
            }
        }
        Ok(())
    }

    /// Refuses while there are VMs whose disks nobody knows.
    fn refuse_left_out(&self) -> Result<(), Problem> {
        let left_out = self.documents.left_out::<VmDocument>(Kind::Vm);
        if left_out.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = left_out.names.iter().take(SHOWN_LEFT_OUT).map(|name| format!("'{name}'")).collect();
        let more = left_out.names.len() - names.len();
        let detail = match (names.as_slice(), more) {
            ([], _) => "the documents of VMs cannot be read, so any volume may be a disk of one".to_owned(),
            (_, 0) => format!("the VM {} is not understood, so any volume may be a disk of it", names.join(", ")),
            (_, more) => {
                format!("the VMs {} and {more} more are not understood, so any volume may be a disk of them", names.join(", "))
            }
        };
        Err(Problem::new(ProblemKind::Conflict, detail).advise(LEFT_ALONE_ADVICE))
    }

    /// Open volumes by name.
    pub(crate) fn open_volumes(&self) -> BTreeMap<String, Arc<Volume>> {
        self.node.volumes().into_iter().map(|volume| (volume.spec().name.to_string(), volume)).collect()
    }

    /// What is set on every volume of the node, open or not, by name.
    pub(crate) fn settings(&self) -> BTreeMap<String, Arc<VolumeSettings>> {
        let unopened =
            self.node.unopened().into_iter().map(|one| (one.record.spec.name.to_string(), Arc::new(one.record.settings)));
        let open = self.node.volumes().into_iter().map(|volume| (volume.spec().name.to_string(), volume.settings()));
        unopened.chain(open).collect()
    }

    /// A VM's disks, in their order: all of them, open.
    pub(crate) fn disks(&self, vm: &StoredVm) -> Result<Vec<Arc<Volume>>, Problem> {
        let mut open = self.open_volumes();
        let disk = |name: &String| {
            open.remove(name).ok_or_else(|| {
                Problem::new(ProblemKind::Unavailable, format!("volume '{name}', a disk of VM '{}', is not open", vm.name))
                    .advise("`lamina status` and the daemon's log say why")
            })
        };
        vm.body.machine.disks.iter().map(|disk| &disk.volume).map(disk).collect()
    }

    /// Tells each guest with an agent to go on, should the daemon have been killed while it was held. Asked at the start.
    pub(crate) async fn thaw_left(self: Arc<Self>) {
        let Ok(vms) = self.list() else { return };
        let mut asking = JoinSet::new();
        for (name, agent) in vms.into_iter().filter_map(|vm| Some((vm.name, PathBuf::from(vm.body.guest_agent?)))) {
            if asking.len() >= THAW_AT_ONCE {
                asking.join_next().await;
            }
            asking.spawn_blocking(move || match freeze::thaw_if_frozen(&agent, THAW_PATIENCE) {
                Ok(true) => tracing::warn!(vm = %name, "its guest was frozen and is thawed"),
                Ok(false) => {}
                // Most often it does not run.
                Err(error) => tracing::debug!(vm = %name, %error, "its guest agent was not asked"),
            });
        }
        asking.join_all().await;
    }
}

/// A VM as the interface shows it.
pub(crate) fn shown(vm: &StoredVm, settings: &BTreeMap<String, Arc<VolumeSettings>>) -> Vm {
    let disks = &vm.body.machine.disks;
    Vm {
        name: vm.name.clone(),
        labels: vm.body.labels.clone(),
        template: !disks.is_empty() && disks.iter().all(|disk| settings.get(&disk.volume).is_some_and(|set| set.template)),
        machine: vm.body.machine.clone(),
        guest_agent: vm.body.guest_agent.clone(),
        created: rfc3339(Timestamp(vm.body.created_ms)),
    }
}

pub(crate) fn taken(what: &str, name: &str) -> Problem {
    Problem::new(ProblemKind::Conflict, format!("a {what} named '{name}' exists already")).advise("choose another name")
}

pub(crate) fn of_document(error: &DocumentError) -> Problem {
    match error {
        DocumentError::Changed { .. } => Problem::caused(ProblemKind::Conflict, error).advise("look at it and try again"),
        DocumentError::Full { .. } => Problem::caused(ProblemKind::Conflict, error).advise("delete some, or make it smaller"),
        DocumentError::Name { .. } => Problem::caused(ProblemKind::InvalidRequest, error),
        DocumentError::Withheld { .. } | DocumentError::Strange { .. } => {
            Problem::caused(ProblemKind::Unavailable, error).advise(LEFT_ALONE_ADVICE)
        }
        DocumentError::Io { .. } => Problem::caused(ProblemKind::Internal, error).advise("the daemon's log says more"),
    }
}
