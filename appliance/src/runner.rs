//! Takes the snapshots that are due and deletes those that are surplus: drives a [`Scheduler`] over what the appliance can do.
//!
//! Jobs run side by side; one that fails or hangs holds up no other. A crash between a snapshot and its record repeats the run, which
//! finds the snapshot by name and takes none.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use lamina_contract::{Clock, Timestamp};
use parking_lot::Mutex;
use tokio::task::{Id, JoinError, JoinSet};

use crate::retention::{Candidate, surplus};
use crate::schedule::{LABEL, Labels, ScheduleName, Subject, Targets};
use crate::scheduler::{Job, Outcome, Record, Scheduler};

/// How often at least is looked, since clocks jump and schedules change.
const TICK: Duration = Duration::from_secs(5);
/// And how often at most: what is due may have to wait for something that is under way.
const SHORTEST: Duration = Duration::from_millis(100);

/// A snapshot, as far as schedules care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name, unique on its subject.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Somebody wants it kept.
    pub pinned: bool,
    /// A clone or something else depends on it.
    pub cloned: bool,
}

/// What the appliance can do with snapshots. Called from tokio tasks: what blocks goes to a blocking thread inside.
pub trait Snapshots: Send + Sync + 'static {
    /// Why something was not possible.
    type Error: std::error::Error + Send;

    /// Those named and those that carry all the labels ([`Targets::contain`]); `None` when that cannot be said now. Does not wait.
    fn select(&self, targets: &Targets) -> Option<BTreeSet<Subject>>;

    /// Takes a snapshot; it is durable when this returns.
    fn take(&self, subject: &Subject, name: &str, labels: Labels) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// All snapshots of a subject, also those that were made by hand.
    fn snapshots(&self, subject: &Subject) -> impl Future<Output = Result<Vec<Snapshot>, Self::Error>> + Send;

    /// Deletes one; must refuse when it is pinned or has clones by now.
    fn delete(&self, subject: &Subject, name: &str) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Where records are kept over a restart. Called from a blocking thread.
pub trait Records: Send + Sync + 'static {
    /// Why records could not be kept.
    type Error: std::error::Error + Send;

    /// Durably replaces the records of a schedule; an empty list removes them.
    ///
    /// # Errors
    /// When it could not; the old ones are still there.
    fn save(&self, schedule: &ScheduleName, records: &[Record]) -> Result<(), Self::Error>;
}

/// Works until it is dropped. `scheduler` is shared with those who change schedules and show them.
pub async fn run<S: Snapshots, R: Records>(
    scheduler: Arc<Mutex<Scheduler>>,
    snapshots: Arc<S>,
    records: Arc<R>,
    clock: Arc<dyn Clock>,
) {
    let mut jobs: HashMap<Id, Job> = HashMap::new();
    let mut working: JoinSet<Outcome> = JoinSet::new();
    loop {
        let due = scheduler.lock().due(&*clock, |targets| snapshots.select(targets));
        for job in due {
            let (snapshots, doing, now) = (Arc::clone(&snapshots), job.clone(), clock.wall());
            let id = working.spawn(async move { perform(&*snapshots, &doing, now).await }).id();
            jobs.insert(id, job);
        }
        save(&scheduler, &records).await;
        let pause = scheduler.lock().pause_ms(&*clock).map_or(TICK, Duration::from_millis).clamp(SHORTEST, TICK);
        tokio::select! {
            Some(ended) = working.join_next_with_id(), if !working.is_empty() => {
                let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
                if let Some(job) = jobs.remove(&id) {
                    let outcome = ended.map_or_else(|_| broken(&job), |(_, outcome)| outcome);
                    tell(&job, &outcome);
                    scheduler.lock().finished(&job, outcome, &*clock);
                }
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// It panicked.
fn broken(job: &Job) -> Outcome {
    let why = "the run broke off; the log says where".to_owned();
    if job.take { Outcome::NotTaken { why } } else { Outcome::NotPruned { why } }
}

fn tell(job: &Job, outcome: &Outcome) {
    let Job { schedule, subject, .. } = job;
    let name = schedule.snapshot(job.at);
    match outcome {
        Outcome::Done if job.take => tracing::info!(%schedule, %subject, %name, "snapshot taken"),
        Outcome::Done => {}
        Outcome::NotTaken { why } => tracing::warn!(%schedule, %subject, %name, %why, "snapshot not taken: will be tried again"),
        Outcome::NotPruned { why } => {
            tracing::warn!(%schedule, %subject, %why, "surplus snapshots not deleted: will be tried again")
        }
    }
}

async fn save<R: Records>(scheduler: &Mutex<Scheduler>, records: &Arc<R>) {
    let unsaved = scheduler.lock().unsaved();
    if unsaved.is_empty() {
        return;
    }
    let records = Arc::clone(records);
    let saving = tokio::task::spawn_blocking(move || {
        for (schedule, all) in &unsaved {
            if let Err(error) = records.save(schedule, all) {
                tracing::warn!(%schedule, %error, "what the schedule has done was not written down: a restart looks for its snapshots");
            }
        }
    });
    // What is lost by a panic is said by it.
    let _ = saving.await;
}

/// Does one job: the snapshot unless it is there already, then what is surplus. Nothing is deleted when the snapshot fails.
pub async fn perform<S: Snapshots>(snapshots: &S, job: &Job, now: Timestamp) -> Outcome {
    let name = job.schedule.snapshot(job.at);
    let mut all = match snapshots.snapshots(&job.subject).await {
        Ok(all) => all,
        Err(error) if job.take => return Outcome::NotTaken { why: chain(&error) },
        Err(error) => return Outcome::NotPruned { why: chain(&error) },
    };
    let own = |one: &Snapshot| job.schedule.run_of(&one.name, &one.labels);
    if job.take && !all.iter().any(|one| own(one) == Some(job.at)) {
        let labels = Labels::from([(LABEL.to_owned(), job.schedule.to_string())]);
        if let Err(error) = snapshots.take(&job.subject, &name, labels.clone()).await {
            return Outcome::NotTaken { why: chain(&error) };
        }
        all.push(Snapshot { name, labels, pinned: false, cloned: false });
    }
    let Some(keep) = job.keep else { return Outcome::Done };
    let candidate = |one: &Snapshot| {
        let at = own(one)?;
        Some(Candidate { id: one.name.clone(), at, pinned: one.pinned, cloned: one.cloned })
    };
    let candidates: Vec<_> = all.iter().filter_map(candidate).collect();
    let mut outcome = Outcome::Done;
    for name in surplus(&candidates, keep, now) {
        if let Err(error) = snapshots.delete(&job.subject, &name).await {
            // The others need not stay for this one.
            outcome = Outcome::NotPruned { why: format!("{name}: {}", chain(&error)) };
        }
    }
    outcome
}

/// The error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
