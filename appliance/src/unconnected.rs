//! Calls of the interface that nothing behind it answers yet.

use lamina_api::appliance::{Access, Jobs, Schedules, Snapshots, Vms, VolumeData};
use lamina_api::audit::{AuditLine, AuditList};
use lamina_api::caller::Caller;
use lamina_api::data::ExtentList;
use lamina_api::idempotency::KeptAnswer;
use lamina_api::job::{Job, JobList, JobState, Outcome};
use lamina_api::name::{JobId, Name};
use lamina_api::page::Page;
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::schedule::{ChangeSchedule, CreateSchedule, Schedule, ScheduleList};
use lamina_api::snapshot::{ChangeSnapshot, CreateClones, CreateSnapshot, Rollback, RolledBack, Snapshot, SnapshotList};
use lamina_api::token::{CreateToken, NewToken, TokenList};
use lamina_api::vm::{ChangeVm, CreateVm, CreateVmSnapshot, RolledBackVm, Vm, VmList, VmSnapshot, VmSnapshotList};
use lamina_contract::VolumeName;

use crate::served::Served;

/// The answer of a call whose engine is not connected.
pub(crate) fn not_connected() -> Problem {
    Problem::new(ProblemKind::Unavailable, "this release does not do that yet")
}

impl Snapshots for Served {
    fn snapshots(&self, _: &VolumeName, _: &Page) -> Result<SnapshotList, Problem> {
        Err(not_connected())
    }

    fn snapshot(&self, _: &VolumeName, _: &Name) -> Result<Snapshot, Problem> {
        Err(not_connected())
    }

    fn take_snapshot(&self, _: &VolumeName, _: &CreateSnapshot) -> Result<Snapshot, Problem> {
        Err(not_connected())
    }

    fn change_snapshot(&self, _: &VolumeName, _: &Name, _: &ChangeSnapshot) -> Result<Snapshot, Problem> {
        Err(not_connected())
    }

    fn delete_snapshot(&self, _: &VolumeName, _: &Name) -> Result<(), Problem> {
        Err(not_connected())
    }

    fn rollback(&self, _: &VolumeName, _: &Rollback) -> Result<Outcome<RolledBack>, Problem> {
        Err(not_connected())
    }

    fn clone_volume(&self, _: &VolumeName, _: &CreateClones) -> Result<Job, Problem> {
        Err(not_connected())
    }

    fn flatten(&self, _: &VolumeName) -> Result<Job, Problem> {
        Err(not_connected())
    }
}

impl VolumeData for Served {
    fn extents(&self, _: &VolumeName, _: u64, _: usize) -> Result<ExtentList, Problem> {
        Err(not_connected())
    }

    fn read_data(&self, _: &VolumeName, _: u64, _: u64) -> Result<Vec<u8>, Problem> {
        Err(not_connected())
    }

    fn write_data(&self, _: &VolumeName, _: u64, _: &[u8]) -> Result<(), Problem> {
        Err(not_connected())
    }
}

impl Vms for Served {
    fn vms(&self, _: &Page) -> Result<VmList, Problem> {
        Err(not_connected())
    }

    fn vm(&self, _: &Name) -> Result<Vm, Problem> {
        Err(not_connected())
    }

    fn create_vm(&self, _: &CreateVm) -> Result<Vm, Problem> {
        Err(not_connected())
    }

    fn change_vm(&self, _: &Name, _: &ChangeVm) -> Result<Vm, Problem> {
        Err(not_connected())
    }

    fn delete_vm(&self, _: &Name, _: bool) -> Result<(), Problem> {
        Err(not_connected())
    }

    fn vm_snapshots(&self, _: &Name, _: &Page) -> Result<VmSnapshotList, Problem> {
        Err(not_connected())
    }

    fn vm_snapshot(&self, _: &Name, _: &Name) -> Result<VmSnapshot, Problem> {
        Err(not_connected())
    }

    fn take_vm_snapshot(&self, _: &Name, _: &CreateVmSnapshot) -> Result<VmSnapshot, Problem> {
        Err(not_connected())
    }

    fn delete_vm_snapshot(&self, _: &Name, _: &Name) -> Result<(), Problem> {
        Err(not_connected())
    }

    fn rollback_vm(&self, _: &Name, _: &Rollback) -> Result<Outcome<RolledBackVm>, Problem> {
        Err(not_connected())
    }

    fn clone_vm(&self, _: &Name, _: &CreateClones) -> Result<Job, Problem> {
        Err(not_connected())
    }

    fn set_vm_template(&self, _: &Name, _: bool) -> Result<Vm, Problem> {
        Err(not_connected())
    }
}

impl Schedules for Served {
    fn schedules(&self, _: &Page) -> Result<ScheduleList, Problem> {
        Err(not_connected())
    }

    fn schedule(&self, _: &Name) -> Result<Schedule, Problem> {
        Err(not_connected())
    }

    fn create_schedule(&self, _: &CreateSchedule) -> Result<Schedule, Problem> {
        Err(not_connected())
    }

    fn change_schedule(&self, _: &Name, _: &ChangeSchedule) -> Result<Schedule, Problem> {
        Err(not_connected())
    }

    fn delete_schedule(&self, _: &Name) -> Result<(), Problem> {
        Err(not_connected())
    }
}

impl Jobs for Served {
    fn jobs(&self, _: Option<JobState>, _: &Page) -> Result<JobList, Problem> {
        Err(not_connected())
    }

    fn job(&self, _: JobId) -> Result<Job, Problem> {
        Err(not_connected())
    }

    fn cancel_job(&self, _: JobId) -> Result<Job, Problem> {
        Err(not_connected())
    }

    fn forget_job(&self, _: JobId) -> Result<(), Problem> {
        Err(not_connected())
    }
}

impl Access for Served {
    fn identify(&self, _: &str) -> Option<Caller> {
        None
    }

    fn tokens(&self, _: &Page) -> Result<TokenList, Problem> {
        Err(not_connected())
    }

    fn create_token(&self, _: &CreateToken) -> Result<NewToken, Problem> {
        Err(not_connected())
    }

    fn delete_token(&self, _: &Name) -> Result<(), Problem> {
        Err(not_connected())
    }

    fn audit(&self, _: usize) -> Result<AuditList, Problem> {
        Err(not_connected())
    }

    fn record(&self, _: &AuditLine) {}

    fn kept_answers(&self) -> Vec<KeptAnswer> {
        Vec::new()
    }

    fn keep_answer(&self, _: &KeptAnswer) -> Result<(), Problem> {
        Err(not_connected())
    }

    fn drop_answer(&self, _: &str) {}
}
