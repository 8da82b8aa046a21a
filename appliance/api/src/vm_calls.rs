//! Calls about VMs and schedules.

use crate::call::{Answer, Call};
use crate::job::Outcome;
use crate::problem::Problem;
use crate::schedule::{ChangeSchedule, CreateSchedule};
use crate::snapshot::Rollback;
use crate::vm::{ChangeVm, CreateVm, CreateVmSnapshot, SetTemplate};

pub(crate) fn list(call: &Call) -> Result<Answer, Problem> {
    Answer::json(200, &call.appliance.vms(&call.page()?)?)
}

pub(crate) fn show(call: &Call) -> Result<Answer, Problem> {
    Answer::tagged(200, &call.appliance.vm(&call.name()?)?)
}

pub(crate) fn create(call: &Call) -> Result<Answer, Problem> {
    let request: CreateVm = call.checked()?;
    Answer::tagged(201, &call.appliance.create_vm(&request)?)
}

pub(crate) fn change(call: &Call) -> Result<Answer, Problem> {
    let change: ChangeVm = call.checked()?;
    Answer::tagged(200, &call.appliance.change_vm(&call.name()?, &change)?)
}

pub(crate) fn delete(call: &Call) -> Result<Answer, Problem> {
    call.appliance.delete_vm(&call.name()?, call.flag("volumes").unwrap_or(false))?;
    Ok(Answer::nothing())
}

pub(crate) fn list_snapshots(call: &Call) -> Result<Answer, Problem> {
    Answer::json(200, &call.appliance.vm_snapshots(&call.name()?, &call.page()?)?)
}

pub(crate) fn show_snapshot(call: &Call) -> Result<Answer, Problem> {
    Answer::tagged(200, &call.appliance.vm_snapshot(&call.name()?, &call.snapshot()?)?)
}

pub(crate) fn take_snapshot(call: &Call) -> Result<Answer, Problem> {
    let request: CreateVmSnapshot = call.checked()?;
    Answer::tagged(201, &call.appliance.take_vm_snapshot(&call.name()?, &request)?)
}

pub(crate) fn delete_snapshot(call: &Call) -> Result<Answer, Problem> {
    call.appliance.delete_vm_snapshot(&call.name()?, &call.snapshot()?)?;
    Ok(Answer::nothing())
}

pub(crate) fn rollback(call: &Call) -> Result<Answer, Problem> {
    let request: Rollback = call.checked()?;
    match call.appliance.rollback_vm(&call.name()?, &request)? {
        Outcome::Done(done) => Answer::json(200, &done),
        Outcome::Job(job) => Answer::json(202, &job),
    }
}

pub(crate) fn clone(call: &Call) -> Result<Answer, Problem> {
    Answer::json(202, &call.appliance.clone_vm(&call.name()?, &call.clones()?)?)
}

pub(crate) fn set_template(call: &Call) -> Result<Answer, Problem> {
    let request: SetTemplate = call.json()?;
    Answer::tagged(200, &call.appliance.set_vm_template(&call.name()?, request.template)?)
}

pub(crate) fn list_schedules(call: &Call) -> Result<Answer, Problem> {
    Answer::json(200, &call.appliance.schedules(&call.page()?)?)
}

pub(crate) fn show_schedule(call: &Call) -> Result<Answer, Problem> {
    Answer::tagged(200, &call.appliance.schedule(&call.name()?)?)
}

pub(crate) fn create_schedule(call: &Call) -> Result<Answer, Problem> {
    let request: CreateSchedule = call.checked()?;
    Answer::tagged(201, &call.appliance.create_schedule(&request)?)
}

pub(crate) fn change_schedule(call: &Call) -> Result<Answer, Problem> {
    let change: ChangeSchedule = call.checked()?;
    Answer::tagged(200, &call.appliance.change_schedule(&call.name()?, &change)?)
}

pub(crate) fn delete_schedule(call: &Call) -> Result<Answer, Problem> {
    call.appliance.delete_schedule(&call.name()?)?;
    Ok(Answer::nothing())
}
