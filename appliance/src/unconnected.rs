//! Calls of the interface that nothing behind it answers yet.

use lamina_api::appliance::{Schedules, Vms};
use lamina_api::job::{Job, Outcome};
use lamina_api::name::Name;
use lamina_api::page::Page;
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::schedule::{ChangeSchedule, CreateSchedule, Schedule, ScheduleList};
use lamina_api::snapshot::{CreateClones, Rollback};
use lamina_api::vm::{ChangeVm, CreateVm, CreateVmSnapshot, RolledBackVm, Vm, VmList, VmSnapshot, VmSnapshotList};

use crate::served::Served;

/// The answer of a call whose engine is not connected.
pub(crate) fn not_connected() -> Problem {
    Problem::new(ProblemKind::Unavailable, "this release does not do that yet")
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
