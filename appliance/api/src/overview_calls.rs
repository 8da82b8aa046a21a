//! Calls about the appliance as a whole: status, jobs, tokens, audit log, and this interface itself.

use crate::call::{Answer, Call, JSON, METRICS};
use crate::job::{Job, JobState};
use crate::openapi;
use crate::problem::{Problem, ProblemKind};
use crate::token::CreateToken;

pub(crate) fn version(call: &Call) -> Result<Answer, Problem> {
    Answer::json(200, &call.appliance.version())
}

pub(crate) fn openapi(_: &Call) -> Result<Answer, Problem> {
    Ok(Answer::other(JSON, openapi::text().into_bytes()))
}

pub(crate) fn status(call: &Call) -> Result<Answer, Problem> {
    Answer::json(200, &call.appliance.status()?)
}

pub(crate) fn targets(call: &Call) -> Result<Answer, Problem> {
    Answer::json(200, &call.appliance.targets()?)
}

pub(crate) fn metrics(call: &Call) -> Result<Answer, Problem> {
    Ok(Answer::other(METRICS, call.pages.page(|| call.appliance.metrics())?))
}

/// A caller with a scope sees the jobs of its own volumes, page by page of all.
pub(crate) fn list_jobs(call: &Call) -> Result<Answer, Problem> {
    let state = call.text("state").and_then(|text| JobState::ALL.into_iter().find(|state| state.as_str() == text));
    let mut list = call.appliance.jobs(state, &call.page()?)?;
    list.jobs.retain(|job| call.caller.reaches_job(job));
    Answer::json(200, &list)
}

pub(crate) fn show_job(call: &Call) -> Result<Answer, Problem> {
    let job = reached(call, call.appliance.job(call.job()?)?)?;
    Ok(Answer { unfinished: !job.state.is_final(), ..Answer::tagged(200, &job)? })
}

pub(crate) fn cancel_job(call: &Call) -> Result<Answer, Problem> {
    let id = call.job()?;
    reached(call, call.appliance.job(id)?)?;
    Answer::tagged(200, &call.appliance.cancel_job(id)?)
}

pub(crate) fn forget_job(call: &Call) -> Result<Answer, Problem> {
    let id = call.job()?;
    reached(call, call.appliance.job(id)?)?;
    call.appliance.forget_job(id)?;
    Ok(Answer::nothing())
}

/// A job out of a caller's scope is as one that is not there.
fn reached(call: &Call, job: Job) -> Result<Job, Problem> {
    if call.caller.reaches_job(&job) { Ok(job) } else { Err(Problem::new(ProblemKind::NotFound, format!("no job {}", job.id))) }
}

pub(crate) fn list_tokens(call: &Call) -> Result<Answer, Problem> {
    Answer::json(200, &call.appliance.tokens(&call.page()?)?)
}

pub(crate) fn create_token(call: &Call) -> Result<Answer, Problem> {
    let request: CreateToken = call.checked()?;
    Answer::json(201, &call.appliance.create_token(&request)?)
}

pub(crate) fn delete_token(call: &Call) -> Result<Answer, Problem> {
    call.appliance.delete_token(&call.name()?)?;
    Ok(Answer::nothing())
}

pub(crate) fn audit(call: &Call) -> Result<Answer, Problem> {
    Answer::json(200, &call.appliance.audit(call.page()?.limit())?)
}
