//! Schedules that never run, and jobs.

use lamina_api::appliance::{Jobs, Schedules};
use lamina_api::job::{Job, JobList, JobState};
use lamina_api::name::{JobId, Name};
use lamina_api::page::{Page, Paged};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::schedule::{ChangeSchedule, CreateSchedule, Schedule, ScheduleList};

use super::{FakeAppliance, missing, problem, taken};

impl Schedules for FakeAppliance {
    fn schedules(&self, page: &Page) -> Result<ScheduleList, Problem> {
        let state = self.state.lock();
        let Paged { entries, next } = page.cut(state.schedules.values().cloned(), |schedule| schedule.name.clone());
        Ok(ScheduleList { schedules: entries, next })
    }

    fn schedule(&self, name: &Name) -> Result<Schedule, Problem> {
        self.state.lock().schedules.get(name.as_str()).cloned().ok_or_else(|| missing("schedule", name))
    }

    fn create_schedule(&self, request: &CreateSchedule) -> Result<Schedule, Problem> {
        let mut state = self.state.lock();
        if state.schedules.contains_key(&request.name) {
            return Err(taken("schedule", &request.name));
        }
        let enabled = request.enabled.unwrap_or(true);
        let schedule = Schedule {
            name: request.name.clone(),
            targets: request.targets.clone(),
            every: request.every,
            at: request.at.clone(),
            keep: request.keep,
            enabled,
            last_run: None,
            next_run: enabled.then(|| self.time()),
            last_error: None,
        };
        state.schedules.insert(request.name.clone(), schedule.clone());
        Ok(schedule)
    }

    fn change_schedule(&self, name: &Name, change: &ChangeSchedule) -> Result<Schedule, Problem> {
        let now = self.time();
        let mut state = self.state.lock();
        let schedule = state.schedules.get_mut(name.as_str()).ok_or_else(|| missing("schedule", name))?;
        schedule.targets = change.targets.clone().unwrap_or_else(|| schedule.targets.clone());
        schedule.every = change.every.unwrap_or(schedule.every);
        schedule.at = change.at.clone().or_else(|| schedule.at.clone());
        schedule.keep = change.keep.unwrap_or(schedule.keep);
        schedule.enabled = change.enabled.unwrap_or(schedule.enabled);
        schedule.next_run = schedule.enabled.then_some(now);
        Ok(schedule.clone())
    }

    fn delete_schedule(&self, name: &Name) -> Result<(), Problem> {
        self.state.lock().schedules.remove(name.as_str()).map(|_| ()).ok_or_else(|| missing("schedule", name))
    }
}

impl Jobs for FakeAppliance {
    fn jobs(&self, state: Option<JobState>, page: &Page) -> Result<JobList, Problem> {
        let all = self.state.lock();
        let jobs = all.jobs.iter().rev().filter(|(_, job)| state.is_none_or(|state| job.state == state));
        // The newest first: keys that grow as numbers fall.
        let Paged { entries, next } = page.cut(jobs, |(id, _)| JobId(u64::MAX - id.0).to_string());
        Ok(JobList { jobs: entries.into_iter().map(|(_, job)| job.clone()).collect(), next })
    }

    fn job(&self, id: JobId) -> Result<Job, Problem> {
        self.state.lock().jobs.get(&id).cloned().ok_or_else(|| missing("job", id))
    }

    fn cancel_job(&self, id: JobId) -> Result<Job, Problem> {
        let now = self.time();
        let mut state = self.state.lock();
        let job = state.jobs.get_mut(&id).ok_or_else(|| missing("job", id))?;
        if job.state.is_final() {
            return Err(problem(ProblemKind::Conflict, format!("job {id} has ended")));
        }
        job.state = JobState::Cancelled;
        job.ended = Some(now);
        Ok(job.clone())
    }

    fn forget_job(&self, id: JobId) -> Result<(), Problem> {
        let mut state = self.state.lock();
        match state.jobs.get(&id) {
            None => Err(missing("job", id)),
            Some(job) if !job.state.is_final() => Err(problem(ProblemKind::Conflict, format!("job {id} has not ended"))),
            Some(_) => {
                state.jobs.remove(&id);
                Ok(())
            }
        }
    }
}
