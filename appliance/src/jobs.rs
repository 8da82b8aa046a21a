//! Jobs: work that takes longer than a call. Some run at a time, the rest waits its turn; each shows progress, an ETA, and can be cancelled.
//!
//! A job is kept as a document when it is asked for and when it ends, before the caller hears of either. One that was not at its end when the
//! daemon ended is shown as failed by the next start: no kind of job goes on by itself. Numbers count up, also across restarts. Bounds: jobs
//! that wait, and finished ones that are remembered, the oldest of which are forgotten first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lamina_api::instant::rfc3339;
use lamina_api::job::{Job, JobKind, JobList, JobResult, JobState, JobUnit};
use lamina_api::name::JobId;
use lamina_api::page::{Page, Paged};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_contract::Clock;
use lamina_engine::EngineError;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use crate::documents::{Documents, Expected, Kind};
use crate::served::of_engine;

/// Jobs that run at a time: they share the store with guests.
const MAX_RUNNING: usize = 4;
/// Jobs that run or wait.
const MAX_UNFINISHED: usize = 256;
/// How often it is looked whether all have ended.
const ENDING_LOOK: Duration = Duration::from_millis(10);
/// Jobs that have ended and are remembered.
const MAX_FINISHED: usize = 1000;

/// Names of volumes, and of VMs, that a job's result has: as many as the clones of one call. With up to 63 characters each and what stands
/// around them, 132 KiB of a document's 1 MiB.
const MOST_NAMES: usize = 1000;

/// What a job is asked to do, said when it begins.
#[derive(Debug, Clone)]
pub(crate) struct JobOrder {
    pub(crate) kind: JobKind,
    /// The volume or VM.
    pub(crate) subject: String,
    /// What is counted.
    pub(crate) unit: JobUnit,
    /// How many there are; 0 while that is unknown.
    pub(crate) total: u64,
}

/// A running job's own view of itself: where it says how far it is, and learns that it shall end.
#[derive(Debug)]
pub(crate) struct JobProgress {
    done: AtomicU64,
    total: AtomicU64,
    phase: Mutex<String>,
    made: Mutex<JobResult>,
    cancelled: AtomicBool,
    cancel: Notify,
}

impl JobProgress {
    /// Notes what was made, so that it is known also when the job ends early.
    pub(crate) fn made(&self, note: impl FnOnce(&mut JobResult)) {
        note(&mut self.made.lock());
    }

    /// What it is at from now on.
    pub(crate) fn phase(&self, phase: &str) {
        phase.clone_into(&mut self.phase.lock());
    }

    /// How many units there are in all.
    pub(crate) fn total(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// So many more are done.
    pub(crate) fn advance(&self, units: u64) {
        self.done.fetch_add(units, Ordering::Relaxed);
    }

    /// Ends the job when somebody asked for that: called where it can end, as `progress.check()?`.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        if self.cancelled.load(Ordering::Acquire) { Err(cancelled()) } else { Ok(()) }
    }

    /// Whether `problem` is what becomes of work that was asked to end, and not something that went wrong meanwhile.
    fn is_cancelled_by(&self, problem: &Problem) -> bool {
        self.check().is_err() && (*problem == cancelled() || *problem == of_engine(&EngineError::Cancelled))
    }

    /// Returns when somebody asked the job to end.
    pub(crate) async fn cancelled(&self) {
        loop {
            let notified = self.cancel.notified();
            if self.cancelled.load(Ordering::Acquire) {
                return;
            }
            notified.await;
        }
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.cancel.notify_waiters();
    }
}

fn cancelled() -> Problem {
    Problem::new(ProblemKind::Conflict, "it was cancelled")
}

struct Entry {
    job: Job,
    /// While it has not ended.
    work: Option<(Arc<JobProgress>, Option<Instant>)>,
}

/// All jobs.
pub(crate) struct Jobs {
    entries: Mutex<BTreeMap<JobId, Entry>>,
    next: AtomicU64,
    failed: AtomicU64,
    ending: AtomicBool,
    turns: Arc<Semaphore>,
    documents: Arc<Documents>,
    clock: Arc<dyn Clock>,
    runtime: Handle,
}

impl Jobs {
    /// Those that were kept; what was under way then has failed.
    pub(crate) fn open(documents: Arc<Documents>, clock: Arc<dyn Clock>, runtime: Handle) -> Self {
        let mut entries = BTreeMap::new();
        for stored in documents.list::<Job>(Kind::Job) {
            let Ok(id) = stored.name.parse::<JobId>() else { continue };
            let mut job = stored.body;
            if !job.state.is_final() {
                job.state = JobState::Failed;
                job.ended = Some(rfc3339(clock.wall()));
                job.eta_seconds = None;
                job.problem = Some(interrupted());
                if let Err(error) = documents.put(Kind::Job, &stored.name, Expected::Anything, &job) {
                    // No reason to keep guests waiting: the next start says so again.
                    tracing::warn!(job = %id, %error, "that a job was interrupted is not kept");
                }
            }
            entries.insert(id, Entry { job, work: None });
        }
        // A forgotten job's number is not given again: no daemon begins a job a millisecond for long.
        let next = entries.last_key_value().map_or(0, |(id, _)| id.0 + 1).max(clock.wall().0);
        let turns = Arc::new(Semaphore::new(MAX_RUNNING));
        Self {
            entries: Mutex::new(entries),
            next: AtomicU64::new(next),
            failed: AtomicU64::new(0),
            ending: AtomicBool::new(false),
            turns,
            documents,
            clock,
            runtime,
        }
    }

    /// Begins a job. Its work ends early by giving back [`JobProgress::check`]'s problem; what it noted as made is its result then.
    pub(crate) fn start<W, F>(self: &Arc<Self>, order: JobOrder, work: W) -> Result<Job, Problem>
    where
        W: FnOnce(Arc<JobProgress>) -> F + Send + 'static,
        F: Future<Output = Result<JobResult, Problem>> + Send + 'static,
    {
        let progress = Arc::new(JobProgress {
            done: AtomicU64::new(0),
            total: AtomicU64::new(order.total),
            phase: Mutex::new("waiting for its turn".to_owned()),
            made: Mutex::default(),
            cancelled: AtomicBool::new(false),
            cancel: Notify::new(),
        });
        let id = JobId(self.next.fetch_add(1, Ordering::Relaxed));
        let job = Job {
            id: id.to_string(),
            kind: order.kind,
            subject: order.subject,
            phase: progress.phase.lock().clone(),
            state: JobState::Queued,
            progress: 0.0,
            done: 0,
            total: order.total,
            unit: order.unit,
            eta_seconds: None,
            created: rfc3339(self.clock.wall()),
            started: None,
            ended: None,
            result: None,
            problem: None,
        };
        let mut entries = self.entries.lock();
        if self.ending.load(Ordering::Acquire) {
            return Err(Problem::new(ProblemKind::Unavailable, "the daemon is ending"));
        }
        if entries.values().filter(|entry| entry.work.is_some()).count() >= MAX_UNFINISHED {
            let detail = format!("{MAX_UNFINISHED} jobs run or wait already");
            return Err(Problem::new(ProblemKind::TooManyRequests, detail).advise("wait for some of them"));
        }
        entries.insert(id, Entry { job: job.clone(), work: Some((Arc::clone(&progress), None)) });
        drop(entries);
        if let Err(error) = self.documents.put(Kind::Job, &job.id, Expected::Anything, &job) {
            self.entries.lock().remove(&id);
            return Err(Problem::caused(ProblemKind::Internal, &error));
        }
        let jobs = Arc::clone(self);
        self.runtime.spawn(async move {
            let turn = tokio::select! {
                turn = Arc::clone(&jobs.turns).acquire_owned() => turn.ok(),
                () = progress.cancelled() => None,
            };
            let outcome = match turn {
                Some(_) => {
                    jobs.begun(id, &progress);
                    // A task of its own, so that a panic in it is its failure and nobody else's.
                    let working = tokio::spawn(work(Arc::clone(&progress)));
                    working.await.unwrap_or_else(|_| {
                        Err(Problem::new(ProblemKind::Internal, "the job failed unexpectedly")
                            .advise("the daemon's log says where"))
                    })
                }
                None => progress.check().map(|()| JobResult::default()),
            };
            drop(turn);
            // Documents are files.
            let ending = tokio::task::spawn_blocking(move || jobs.ended(id, &progress, outcome));
            if ending.await.is_err() {
                tracing::error!(job = %id, "a job's end could not be noted");
            }
        });
        Ok(job)
    }

    fn begun(&self, id: JobId, progress: &JobProgress) {
        progress.phase("working");
        if let Some(entry) = self.entries.lock().get_mut(&id) {
            entry.job.state = JobState::Running;
            entry.job.started = Some(rfc3339(self.clock.wall()));
            entry.work = entry.work.take().map(|(progress, _)| (progress, Some(Instant::now())));
        }
    }

    fn ended(&self, id: JobId, progress: &JobProgress, outcome: Result<JobResult, Problem>) {
        let Some(mut job) = self.entries.lock().get(&id).map(shown) else { return };
        job.ended = Some(rfc3339(self.clock.wall()));
        job.eta_seconds = None;
        match outcome {
            Ok(result) => {
                (job.state, job.progress, job.result) = (JobState::Succeeded, 1.0, Some(bounded(result)));
                job.done = job.total.max(job.done);
                job.total = job.done;
                "done".clone_into(&mut job.phase);
            }
            Err(problem) => {
                let made = std::mem::take(&mut *progress.made.lock());
                job.result = (made != JobResult::default()).then(|| bounded(made));
                if progress.is_cancelled_by(&problem) {
                    if self.ending.load(Ordering::Acquire) {
                        (job.state, job.problem) = (JobState::Failed, Some(interrupted()));
                    } else {
                        job.state = JobState::Cancelled;
                    }
                } else {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    (job.state, job.problem) = (JobState::Failed, Some(problem));
                }
            }
        }
        tracing::info!(job = %id, kind = job.kind.as_str(), subject = %job.subject, state = job.state.as_str(), "a job has ended");
        if let Err(error) = self.documents.put(Kind::Job, &job.id, Expected::Anything, &job) {
            tracing::error!(job = %id, %error, "after a restart this job is shown as interrupted");
        }
        let mut entries = self.entries.lock();
        entries.insert(id, Entry { job, work: None });
        let finished: Vec<JobId> = entries.iter().filter(|(_, entry)| entry.work.is_none()).map(|(id, _)| *id).collect();
        let old: Vec<JobId> = finished.iter().take(finished.len().saturating_sub(MAX_FINISHED)).copied().collect();
        old.iter().for_each(|id| drop(entries.remove(id)));
        drop(entries);
        for id in old {
            self.forget_document(id);
        }
    }

    fn forget_document(&self, id: JobId) {
        if let Err(error) = self.documents.delete(Kind::Job, &id.to_string(), Expected::Anything) {
            tracing::warn!(job = %id, %error, "a forgotten job may be back after a restart");
        }
    }

    /// Jobs, the newest first.
    pub(crate) fn list(&self, state: Option<JobState>, page: &Page) -> JobList {
        let entries = self.entries.lock();
        let jobs = entries.iter().rev().map(|(id, entry)| (*id, shown(entry)));
        let wanted = jobs.filter(|(_, job)| state.is_none_or(|state| job.state == state));
        // Keys that grow as numbers fall.
        let Paged { entries, next } = page.cut(wanted, |(id, _)| JobId(u64::MAX - id.0).to_string());
        JobList { jobs: entries.into_iter().map(|(_, job)| job).collect(), next }
    }

    /// How many are in each state, ended ones as long as they are remembered.
    pub(crate) fn counts(&self) -> [(JobState, u64); JobState::ALL.len()] {
        let entries = self.entries.lock();
        JobState::ALL.map(|state| (state, entries.values().filter(|entry| entry.job.state == state).count() as u64))
    }

    /// How many failed since the daemon's start.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// One job.
    pub(crate) fn get(&self, id: JobId) -> Result<Job, Problem> {
        self.entries.lock().get(&id).map(shown).ok_or_else(|| unknown(id))
    }

    /// Has all jobs end where they can, and waits for that, at most for `limit`. None begins from here on.
    pub(crate) async fn end(&self, limit: Duration) {
        let until = Instant::now() + limit;
        self.ending.store(true, Ordering::Release);
        let working = || self.entries.lock().values().filter_map(|entry| Some(entry.work.as_ref()?.0.clone())).collect::<Vec<_>>();
        working().iter().for_each(|progress| progress.cancel());
        while Instant::now() < until && !working().is_empty() {
            tokio::time::sleep(ENDING_LOOK).await;
        }
    }

    /// Asks a job to end early.
    pub(crate) fn cancel(&self, id: JobId) -> Result<Job, Problem> {
        let entries = self.entries.lock();
        let entry = entries.get(&id).ok_or_else(|| unknown(id))?;
        let (progress, _) = entry.work.as_ref().ok_or_else(|| conflict(id, "has ended"))?;
        progress.cancel();
        Ok(shown(entry))
    }

    /// Forgets a job that has ended.
    pub(crate) fn forget(&self, id: JobId) -> Result<(), Problem> {
        let mut entries = self.entries.lock();
        let entry = entries.get(&id).ok_or_else(|| unknown(id))?;
        if entry.work.is_some() {
            return Err(conflict(id, "has not ended").advise("cancel it first"));
        }
        entries.remove(&id);
        drop(entries);
        self.forget_document(id);
        Ok(())
    }
}

/// With as many names as a document has room for, and as a list of jobs can be shown with.
fn bounded(mut result: JobResult) -> JobResult {
    let cut = |names: &mut Vec<String>| {
        let more = names.len().saturating_sub(MOST_NAMES) as u64;
        names.truncate(MOST_NAMES);
        more
    };
    result.more_volumes += cut(&mut result.volumes);
    result.more_vms += cut(&mut result.vms);
    result
}

fn interrupted() -> Problem {
    let problem = Problem::new(ProblemKind::Unavailable, "it was interrupted by a restart of the daemon");
    problem.advise("look at what it made, and ask for the rest again")
}

fn unknown(id: JobId) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("no job {id}")).advise("`lamina job list` shows all jobs")
}

fn conflict(id: JobId, state: &str) -> Problem {
    Problem::new(ProblemKind::Conflict, format!("job {id} {state}"))
}

/// The job as it is at this moment.
fn shown(entry: &Entry) -> Job {
    let mut job = entry.job.clone();
    let Some((progress, began)) = &entry.work else { return job };
    job.done = progress.done.load(Ordering::Relaxed);
    job.total = progress.total.load(Ordering::Relaxed);
    progress.phase.lock().clone_into(&mut job.phase);
    if job.total > 0 {
        let part = job.done.min(job.total) as f64 / job.total as f64;
        job.progress = part;
        let spent = began.map(|began| began.elapsed().as_secs_f64());
        // A hundredth says nothing yet about the rest.
        job.eta_seconds = spent.filter(|_| part >= 0.01).map(|spent| (spent * (1.0 - part) / part) as u64);
    }
    job
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use lamina_api::job::{Job, JobKind, JobResult, JobState, JobUnit};
    use lamina_api::name::JobId;
    use lamina_api::page::Page;
    use lamina_api::problem::{Problem, ProblemKind};
    use tempfile::TempDir;
    use tokio::runtime::Runtime;

    use lamina_engine::EngineError;

    use super::{JobOrder, Jobs, MAX_RUNNING};
    use crate::clock::SystemClock;
    use crate::documents::Documents;
    use crate::served::of_engine;

    struct Place {
        dir: TempDir,
        runtime: Runtime,
    }

    impl Place {
        fn new() -> Self {
            Self { dir: TempDir::new().expect("tempdir"), runtime: Runtime::new().expect("runtime") }
        }

        fn open(&self) -> Arc<Jobs> {
            let documents = Arc::new(Documents::open(&self.dir.path().join("documents")));
            let clock = Arc::new(SystemClock::new());
            Arc::new(Jobs::open(documents, clock, self.runtime.handle().clone()))
        }
    }

    fn order(total: u64) -> JobOrder {
        JobOrder { kind: JobKind::CloneVolume, subject: "web".to_owned(), unit: JobUnit::Volumes, total }
    }

    fn id(job: &Job) -> JobId {
        job.id.parse().expect("an id")
    }

    fn until(jobs: &Jobs, job: &Job, holds: impl Fn(&Job) -> bool) -> Job {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let seen = jobs.get(id(job)).expect("known");
            if holds(&seen) {
                return seen;
            }
            assert!(Instant::now() < end, "{seen:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_job_shows_its_progress_and_keeps_its_result_over_a_restart() {
        let place = Place::new();
        let jobs = place.open();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let started = jobs.start(order(0), async move |progress| {
            progress.total(4);
            progress.phase("copying");
            progress.advance(1);
            gone.await.expect("goes on");
            Ok(JobResult { volumes: vec!["a".to_owned()], ..JobResult::default() })
        });
        let job = started.expect("started");
        let seen = until(&jobs, &job, |job| job.done == 1);
        assert_eq!((seen.phase.as_str(), seen.progress, seen.state), ("copying", 0.25, JobState::Running));
        assert!(seen.eta_seconds.is_some());
        assert_eq!(jobs.forget(id(&job)).expect_err("running").kind, ProblemKind::Conflict);
        go.send(()).expect("waits");
        let end = until(&jobs, &job, |job| job.state.is_final());
        assert_eq!((end.state, end.progress, end.done), (JobState::Succeeded, 1.0, 4));
        assert_eq!(jobs.cancel(id(&job)).expect_err("over").kind, ProblemKind::Conflict);
        drop(jobs);
        let jobs = place.open();
        assert_eq!(jobs.get(id(&job)).expect("kept"), end);
        let next = jobs.start(order(0), async |_| Ok(JobResult::default())).expect("started");
        assert!(next.id > job.id);
        until(&jobs, &next, |job| job.state.is_final());
        assert_eq!(jobs.list(Some(JobState::Succeeded), &Page::all()).jobs[0].id, next.id);
        jobs.forget(id(&job)).expect("forgotten");
        assert_eq!(place.open().get(id(&job)).expect_err("gone").kind, ProblemKind::NotFound);
    }

    #[test]
    fn a_job_that_a_kill_cut_off_has_failed() {
        let place = Place::new();
        let jobs = place.open();
        let job = jobs.start(order(1), async |_| std::future::pending().await).expect("started");
        until(&jobs, &job, |job| job.state == JobState::Running);
        let seen = place.open().get(id(&job)).expect("known");
        assert_eq!(seen.state, JobState::Failed);
        assert!(seen.problem.is_some_and(|problem| problem.detail.contains("interrupted by a restart")));
    }

    #[test]
    fn jobs_end_early_when_they_are_asked_to_running_or_waiting() {
        let place = Place::new();
        let jobs = place.open();
        let endless = async |progress: Arc<super::JobProgress>| {
            progress.made(|made| made.volumes.push("first".to_owned()));
            progress.cancelled().await;
            progress.check()?;
            Ok(JobResult::default())
        };
        let all: Vec<Job> = (0..MAX_RUNNING + 1).map(|_| jobs.start(order(0), endless).expect("started")).collect();
        let (last, running) = all.split_last().expect("some");
        for job in running {
            until(&jobs, job, |job| job.state == JobState::Running);
        }
        assert_eq!(jobs.get(id(last)).expect("known").state, JobState::Queued);
        for job in [last].into_iter().chain(running) {
            jobs.cancel(id(job)).expect("asked");
            let end = until(&jobs, job, |job| job.state.is_final());
            assert_eq!((end.state, end.result.is_some()), (JobState::Cancelled, job.id != last.id));
        }
    }

    #[test]
    fn a_job_that_fails_or_panics_says_so_and_leaves_its_turn() {
        let place = Place::new();
        let jobs = place.open();
        for _ in 0..MAX_RUNNING {
            let job = jobs.start(order(0), async |_| panic!("a bug")).expect("started");
            let end = until(&jobs, &job, |job| job.state.is_final());
            assert_eq!(end.problem.map(|problem| problem.kind), Some(ProblemKind::Internal));
        }
        let job = jobs.start(order(0), async |_| Err(Problem::new(ProblemKind::Conflict, "no"))).expect("started");
        let end = until(&jobs, &job, |job| job.state.is_final());
        assert_eq!((end.state, end.problem.map(|problem| problem.detail)), (JobState::Failed, Some("no".to_owned())));
    }

    #[test]
    fn what_goes_wrong_after_a_job_was_asked_to_end_is_still_said() {
        let place = Place::new();
        let jobs = place.open();
        let ends = [
            (Problem::new(ProblemKind::Unavailable, "the store is down"), JobState::Failed),
            (Problem::new(ProblemKind::Internal, "the clones could not be taken back"), JobState::Failed),
            (of_engine(&EngineError::Cancelled), JobState::Cancelled),
        ];
        for (problem, state) in ends {
            let end = problem.clone();
            let work = async move |progress: Arc<super::JobProgress>| {
                progress.cancelled().await;
                Err(end)
            };
            let job = jobs.start(order(0), work).expect("started");
            until(&jobs, &job, |job| job.state == JobState::Running);
            jobs.cancel(id(&job)).expect("asked");
            let end = until(&jobs, &job, |job| job.state.is_final());
            assert_eq!((end.state, end.problem), (state, Some(problem).filter(|_| state == JobState::Failed)));
        }
        // Without having been asked, nothing is cancelled.
        let job = jobs.start(order(0), async |_| Err(of_engine(&EngineError::Cancelled))).expect("started");
        assert_eq!(until(&jobs, &job, |job| job.state.is_final()).state, JobState::Failed);
    }

    #[test]
    fn a_result_of_any_size_outlives_a_restart() {
        let place = Place::new();
        let jobs = place.open();
        let names = |count: usize| (0..count).map(|number| format!("{number:063}")).collect::<Vec<_>>();
        let work = async move |_| Ok(JobResult { volumes: names(64_000), vms: names(1000), ..JobResult::default() });
        let job = jobs.start(order(0), work).expect("started");
        let end = until(&jobs, &job, |job| job.state.is_final());
        let result = end.result.clone().expect("a result");
        assert_eq!((result.volumes.len(), result.more_volumes, result.vms.len(), result.more_vms), (1000, 63_000, 1000, 0));
        assert_eq!(result.volumes[999], format!("{:063}", 999));
        drop(jobs);
        assert_eq!(place.open().get(id(&job)).expect("kept"), end);
    }
}
