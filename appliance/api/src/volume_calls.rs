//! Calls about volumes, their snapshots and their bytes.

use lamina_contract::SECTOR_BYTES;

use crate::call::{Answer, BYTES, Call};
use crate::checked::Checked;
use crate::data::MAX_DATA_BYTES;
use crate::job::Outcome;
use crate::problem::{Problem, ProblemKind};
use crate::snapshot::{ChangeSnapshot, CreateClones, CreateSnapshot, Rollback};
use crate::volume::{ChangeVolume, CreateVolume, VolumeFilter};

impl Call {
    /// The body, within its bounds.
    pub(crate) fn checked<T: serde::de::DeserializeOwned + Checked>(&self) -> Result<T, Problem> {
        let body: T = self.json()?;
        body.check()?;
        Ok(body)
    }

    /// The clones that the body asks for, each by its name, all within the caller's scope.
    pub(crate) fn clones(&self) -> Result<CreateClones, Problem> {
        let mut request: CreateClones = self.checked()?;
        request.names = request.spelled_out()?;
        request.name = None;
        request.count = None;
        request.names.iter().try_for_each(|name| self.caller.check_reach(name))?;
        Ok(request)
    }
}

pub(crate) fn list(call: &Call) -> Result<Answer, Problem> {
    let filter = VolumeFilter { labels: call.labels()?, template: call.flag("template"), prefix: call.caller.scope.clone() };
    Answer::json(200, &call.appliance.volumes(&filter, &call.page()?)?)
}

pub(crate) fn show(call: &Call) -> Result<Answer, Problem> {
    Answer::tagged(200, &call.appliance.volume(&call.volume()?)?)
}

pub(crate) fn create(call: &Call) -> Result<Answer, Problem> {
    let request: CreateVolume = call.checked()?;
    call.caller.check_reach(&request.name)?;
    Answer::tagged(201, &call.appliance.create_volume(&request)?)
}

pub(crate) fn change(call: &Call) -> Result<Answer, Problem> {
    let change: ChangeVolume = call.checked()?;
    if change.force {
        call.only_admins("cut a volume off")?;
    }
    Answer::tagged(200, &call.appliance.change_volume(&call.volume()?, &change)?)
}

pub(crate) fn delete(call: &Call) -> Result<Answer, Problem> {
    call.appliance.delete_volume(&call.volume()?, call.flag("snapshots").unwrap_or(false))?;
    Ok(Answer::nothing())
}

pub(crate) fn attach(call: &Call) -> Result<Answer, Problem> {
    Answer::tagged(200, &call.appliance.attach(&call.volume()?)?)
}

pub(crate) fn detach(call: &Call) -> Result<Answer, Problem> {
    Answer::tagged(200, &call.appliance.detach(&call.volume()?, call.flag("force").unwrap_or(false))?)
}

pub(crate) fn list_snapshots(call: &Call) -> Result<Answer, Problem> {
    Answer::json(200, &call.appliance.snapshots(&call.volume()?, &call.page()?)?)
}

pub(crate) fn show_snapshot(call: &Call) -> Result<Answer, Problem> {
    Answer::tagged(200, &call.appliance.snapshot(&call.volume()?, &call.snapshot()?)?)
}

pub(crate) fn take_snapshot(call: &Call) -> Result<Answer, Problem> {
    let request: CreateSnapshot = call.checked()?;
    Answer::tagged(201, &call.appliance.take_snapshot(&call.volume()?, &request)?)
}

pub(crate) fn change_snapshot(call: &Call) -> Result<Answer, Problem> {
    let change: ChangeSnapshot = call.checked()?;
    Answer::tagged(200, &call.appliance.change_snapshot(&call.volume()?, &call.snapshot()?, &change)?)
}

pub(crate) fn delete_snapshot(call: &Call) -> Result<Answer, Problem> {
    call.appliance.delete_snapshot(&call.volume()?, &call.snapshot()?)?;
    Ok(Answer::nothing())
}

pub(crate) fn rollback(call: &Call) -> Result<Answer, Problem> {
    let request: Rollback = call.checked()?;
    match call.appliance.rollback(&call.volume()?, &request)? {
        Outcome::Done(done) => Answer::json(200, &done),
        Outcome::Job(job) => Answer::json(202, &job),
    }
}

pub(crate) fn clone(call: &Call) -> Result<Answer, Problem> {
    Answer::json(202, &call.appliance.clone_volume(&call.volume()?, &call.clones()?)?)
}

pub(crate) fn flatten(call: &Call) -> Result<Answer, Problem> {
    Answer::json(202, &call.appliance.flatten(&call.volume()?)?)
}

pub(crate) fn extents(call: &Call) -> Result<Answer, Problem> {
    let limit = call.page()?.limit();
    Answer::json(200, &call.appliance.extents(&call.volume()?, call.number("from").unwrap_or(0), limit)?)
}

pub(crate) fn read_data(call: &Call) -> Result<Answer, Problem> {
    let (offset, length) = (call.number("offset").unwrap_or(0), call.number("length").unwrap_or(0));
    whole_sectors(&[offset, length])?;
    Ok(Answer::other(BYTES, call.appliance.read_data(&call.volume()?, offset, length)?))
}

pub(crate) fn write_data(call: &Call) -> Result<Answer, Problem> {
    if call.body.is_empty() || call.body.len() as u64 > MAX_DATA_BYTES {
        return Err(Problem::new(ProblemKind::InvalidRequest, format!("the body has 1 to {MAX_DATA_BYTES} bytes")));
    }
    let offset = call.number("offset").unwrap_or(0);
    whole_sectors(&[offset, call.body.len() as u64])?;
    call.appliance.write_data(&call.volume()?, offset, &call.body)?;
    Ok(Answer::nothing())
}

fn whole_sectors(numbers: &[u64]) -> Result<(), Problem> {
    if numbers.iter().all(|number| number.is_multiple_of(SECTOR_BYTES)) {
        return Ok(());
    }
    Err(Problem::new(ProblemKind::InvalidRequest, format!("offsets and lengths are multiples of {SECTOR_BYTES}, a sector")))
}
