//! The seam between the routes and whatever answers them: one trait a noun, and [`Appliance`], which has them all.
//!
//! Calls may block; the routes make them on threads for that. What reaches them has been checked: names, bounds, the caller's role and
//! scope. A [`Problem`] is the caller's answer, word for word.

use lamina_contract::{Timestamp, VolumeName};

use crate::audit::{AuditLine, AuditList};
use crate::caller::Caller;
use crate::data::ExtentList;
use crate::idempotency::KeptAnswer;
use crate::job::{Job, JobList, JobState, Outcome};
use crate::name::{JobId, Name};
use crate::page::Page;
use crate::problem::Problem;
use crate::schedule::{ChangeSchedule, CreateSchedule, Schedule, ScheduleList};
use crate::snapshot::{ChangeSnapshot, CreateClones, CreateSnapshot, Rollback, RolledBack, Snapshot, SnapshotList};
use crate::status::{Status, Version};
use crate::target::TargetList;
use crate::token::{CreateToken, NewToken, TokenList};
use crate::vm::{ChangeVm, CreateVm, CreateVmSnapshot, RolledBackVm, Vm, VmList, VmSnapshot, VmSnapshotList};
use crate::volume::{ChangeVolume, CreateVolume, Volume, VolumeFilter, VolumeList};

/// Everything that the interface can ask for.
pub trait Appliance: Overview + Volumes + Snapshots + VolumeData + Vms + Schedules + Jobs + Access + 'static {}

impl<T: Overview + Volumes + Snapshots + VolumeData + Vms + Schedules + Jobs + Access + 'static> Appliance for T {}

/// The appliance as a whole.
pub trait Overview: Send + Sync {
    /// Release and interface.
    fn version(&self) -> Version {
        Version { version: env!("CARGO_PKG_VERSION").to_owned(), api: "v1".to_owned() }
    }

    /// The time, for tokens, kept answers and the audit log.
    fn now(&self) -> Timestamp;

    /// Everything at a glance.
    ///
    /// # Errors
    /// When it cannot be known.
    fn status(&self) -> Result<Status, Problem>;

    /// The members of the store.
    ///
    /// # Errors
    /// When they cannot be known.
    fn targets(&self) -> Result<TargetList, Problem>;

    /// Prometheus text.
    fn metrics(&self) -> String;
}

/// Volumes and their sockets.
pub trait Volumes: Send + Sync {
    /// Volumes by name.
    ///
    /// # Errors
    /// When they cannot be known.
    fn volumes(&self, filter: &VolumeFilter, page: &Page) -> Result<VolumeList, Problem>;

    /// One volume.
    ///
    /// # Errors
    /// `NotFound`, or when it cannot be known.
    fn volume(&self, name: &VolumeName) -> Result<Volume, Problem>;

    /// Makes a volume and attaches it.
    ///
    /// # Errors
    /// `InvalidRequest`, `Conflict`, or why it could not be made.
    fn create_volume(&self, request: &CreateVolume) -> Result<Volume, Problem>;

    /// Changes a volume: all of it or nothing.
    ///
    /// # Errors
    /// `NotFound`, `InvalidRequest`, `Conflict`, or why it could not be changed.
    fn change_volume(&self, name: &VolumeName, change: &ChangeVolume) -> Result<Volume, Problem>;

    /// Deletes a volume that no guest uses and no clone needs, with its snapshots if `snapshots` says so.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, or why it could not be deleted.
    fn delete_volume(&self, name: &VolumeName, snapshots: bool) -> Result<(), Problem>;

    /// Serves a volume on its socket, now and after each restart. Nothing happens when it is attached.
    ///
    /// # Errors
    /// `NotFound`, or why it could not be served.
    fn attach(&self, name: &VolumeName) -> Result<Volume, Problem>;

    /// Stops serving a volume, which is refused while a guest uses it unless `force` is said. Nothing happens when it is detached.
    ///
    /// # Errors
    /// `NotFound`, or why it could not be stopped.
    fn detach(&self, name: &VolumeName, force: bool) -> Result<Volume, Problem>;
}

/// Snapshots of volumes, and what begins as one.
pub trait Snapshots: Send + Sync {
    /// A volume's snapshots by name.
    ///
    /// # Errors
    /// `NotFound`, or when they cannot be known.
    fn snapshots(&self, volume: &VolumeName, page: &Page) -> Result<SnapshotList, Problem>;

    /// One snapshot.
    ///
    /// # Errors
    /// `NotFound`, or when it cannot be known.
    fn snapshot(&self, volume: &VolumeName, snapshot: &Name) -> Result<Snapshot, Problem>;

    /// Takes a snapshot; it holds every write that was acknowledged before the call.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, or why it could not be taken.
    fn take_snapshot(&self, volume: &VolumeName, request: &CreateSnapshot) -> Result<Snapshot, Problem>;

    /// Changes a snapshot's words.
    ///
    /// # Errors
    /// `NotFound`, or why it could not be changed.
    fn change_snapshot(&self, volume: &VolumeName, snapshot: &Name, change: &ChangeSnapshot) -> Result<Snapshot, Problem>;

    /// Deletes a snapshot that is not pinned and that no clone needs.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, or why it could not be deleted.
    fn delete_snapshot(&self, volume: &VolumeName, snapshot: &Name) -> Result<(), Problem>;

    /// Takes a volume back; what that discards stays as an automatic snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` while a guest is connected, or why it could not be done.
    fn rollback(&self, volume: &VolumeName, request: &Rollback) -> Result<Outcome<RolledBack>, Problem>;

    /// Makes clones, by a job; the request's names have been checked and are [`CreateClones::names`] by then.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, or why it could not begin.
    fn clone_volume(&self, volume: &VolumeName, request: &CreateClones) -> Result<Job, Problem>;

    /// Makes a clone independent of its parent, by a job.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` for a volume without a parent, or why it could not begin.
    fn flatten(&self, volume: &VolumeName) -> Result<Job, Problem>;
}

/// Bytes of volumes that no guest is connected to.
pub trait VolumeData: Send + Sync {
    /// Allocated runs from byte `from`, up to `limit` of them.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` while a guest is connected, or when they cannot be known.
    fn extents(&self, volume: &VolumeName, from: u64, limit: usize) -> Result<ExtentList, Problem>;

    /// `length` bytes from `offset`.
    ///
    /// # Errors
    /// `NotFound`, `InvalidRequest` outside the volume, `Conflict` while a guest is connected, or why they cannot be read.
    fn read_data(&self, volume: &VolumeName, offset: u64, length: u64) -> Result<Vec<u8>, Problem>;

    /// Writes `bytes` at `offset`, durably.
    ///
    /// # Errors
    /// As [`VolumeData::read_data`]; `Conflict` for a volume that refuses writes.
    fn write_data(&self, volume: &VolumeName, offset: u64, bytes: &[u8]) -> Result<(), Problem>;
}

/// VMs.
pub trait Vms: Send + Sync {
    /// VMs by name.
    ///
    /// # Errors
    /// When they cannot be known.
    fn vms(&self, page: &Page) -> Result<VmList, Problem>;

    /// One VM.
    ///
    /// # Errors
    /// `NotFound`, or when it cannot be known.
    fn vm(&self, name: &Name) -> Result<Vm, Problem>;

    /// Makes a VM of volumes that are there.
    ///
    /// # Errors
    /// `InvalidRequest`, `Conflict`, or why it could not be made.
    fn create_vm(&self, request: &CreateVm) -> Result<Vm, Problem>;

    /// Changes a VM: all of it or nothing.
    ///
    /// # Errors
    /// `NotFound`, `InvalidRequest`, `Conflict`, or why it could not be changed.
    fn change_vm(&self, name: &Name, change: &ChangeVm) -> Result<Vm, Problem>;

    /// Deletes a VM, with its volumes if `volumes` says so.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, or why it could not be deleted.
    fn delete_vm(&self, name: &Name, volumes: bool) -> Result<(), Problem>;

    /// A VM's snapshots by name.
    ///
    /// # Errors
    /// `NotFound`, or when they cannot be known.
    fn vm_snapshots(&self, name: &Name, page: &Page) -> Result<VmSnapshotList, Problem>;

    /// One snapshot of a VM.
    ///
    /// # Errors
    /// `NotFound`, or when it cannot be known.
    fn vm_snapshot(&self, name: &Name, snapshot: &Name) -> Result<VmSnapshot, Problem>;

    /// Takes a snapshot of all disks at one barrier.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, or why it could not be taken.
    fn take_vm_snapshot(&self, name: &Name, request: &CreateVmSnapshot) -> Result<VmSnapshot, Problem>;

    /// Deletes the disks' snapshots of that name.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, or why it could not be deleted.
    fn delete_vm_snapshot(&self, name: &Name, snapshot: &Name) -> Result<(), Problem>;

    /// Takes all disks back.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` while a guest is connected, or why it could not be done.
    fn rollback_vm(&self, name: &Name, request: &Rollback) -> Result<Outcome<RolledBackVm>, Problem>;

    /// Makes clones with their volumes, by a job; the request's names are [`CreateClones::names`] by then.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, or why it could not begin.
    fn clone_vm(&self, name: &Name, request: &CreateClones) -> Result<Job, Problem>;

    /// Makes a VM and its volumes a template, or machines again.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, or why it could not be done.
    fn set_vm_template(&self, name: &Name, template: bool) -> Result<Vm, Problem>;
}

/// Snapshots by the clock.
pub trait Schedules: Send + Sync {
    /// Schedules by name.
    ///
    /// # Errors
    /// When they cannot be known.
    fn schedules(&self, page: &Page) -> Result<ScheduleList, Problem>;

    /// One schedule.
    ///
    /// # Errors
    /// `NotFound`, or when it cannot be known.
    fn schedule(&self, name: &Name) -> Result<Schedule, Problem>;

    /// Makes a schedule.
    ///
    /// # Errors
    /// `InvalidRequest`, `Conflict`, or why it could not be made.
    fn create_schedule(&self, request: &CreateSchedule) -> Result<Schedule, Problem>;

    /// Changes a schedule.
    ///
    /// # Errors
    /// `NotFound`, `InvalidRequest`, or why it could not be changed.
    fn change_schedule(&self, name: &Name, change: &ChangeSchedule) -> Result<Schedule, Problem>;

    /// Deletes a schedule; its snapshots stay.
    ///
    /// # Errors
    /// `NotFound`, or why it could not be deleted.
    fn delete_schedule(&self, name: &Name) -> Result<(), Problem>;
}

/// Work that takes long.
pub trait Jobs: Send + Sync {
    /// Jobs, the newest first.
    ///
    /// # Errors
    /// When they cannot be known.
    fn jobs(&self, state: Option<JobState>, page: &Page) -> Result<JobList, Problem>;

    /// One job.
    ///
    /// # Errors
    /// `NotFound`.
    fn job(&self, id: JobId) -> Result<Job, Problem>;

    /// Asks a job to end early; it does so at the next place where it can.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` when it has ended.
    fn cancel_job(&self, id: JobId) -> Result<Job, Problem>;

    /// Forgets a job that has ended.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` while it has not.
    fn forget_job(&self, id: JobId) -> Result<(), Problem>;
}

/// Who may call, who called, and what they were answered.
pub trait Access: Send + Sync {
    /// Whom a bearer token's secret belongs to; `None` for one that is wrong, deleted or too old.
    fn identify(&self, secret: &str) -> Option<Caller>;

    /// Tokens by name, without secrets.
    ///
    /// # Errors
    /// When they cannot be known.
    fn tokens(&self, page: &Page) -> Result<TokenList, Problem>;

    /// Makes a token. Its secret is in this answer and nowhere else.
    ///
    /// # Errors
    /// `Conflict`, or why it could not be made.
    fn create_token(&self, request: &CreateToken) -> Result<NewToken, Problem>;

    /// Deletes a token; its holder is unknown from then on.
    ///
    /// # Errors
    /// `NotFound`, or why it could not be deleted.
    fn delete_token(&self, name: &Name) -> Result<(), Problem>;

    /// The newest `limit` lines of the audit log.
    ///
    /// # Errors
    /// When they cannot be read.
    fn audit(&self, limit: usize) -> Result<AuditList, Problem>;

    /// Adds a line to the audit log. Called before the caller hears of a change.
    fn record(&self, line: &AuditLine);

    /// Answers that were kept, from before a restart too; asked once.
    fn kept_answers(&self) -> Vec<KeptAnswer>;

    /// Keeps an answer durably, in place of an earlier one of the same key.
    ///
    /// # Errors
    /// Why it could not be kept.
    fn keep_answer(&self, answer: &KeptAnswer) -> Result<(), Problem>;

    /// Forgets a kept answer.
    fn drop_answer(&self, key: &str);
}
