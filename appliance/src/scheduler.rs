//! What is due: a state machine without I/O that [`crate::runner`] drives.
//!
//! For each schedule and each of its subjects it knows the latest run that is done. A run is due when the schedule's latest time is
//! newer, so runs that were missed while nobody was there are made up by one, and a clock that jumps ahead causes one run, not a storm.
//! A clock that is set back causes none: what is done stays done until the time is past it; when it is further ahead than the next run
//! (the clock had been wrong), it is taken back to the present, and the names of snapshots keep a run from being taken twice.
//! A subject that is seen for the first time waits for the next run.
//!
//! A failed run is tried again after 30 s to 15 min (doubling, in monotonic time) until the next one is due, which is tried at once.
//! One that is not wanted any more, since the schedule was changed, disabled or the clock set back, is not tried again and no failure.
//! At most [`AT_ONCE`] runs start side by side, those that failed least first; one that takes longer than [`YOUNG_MS`] no longer counts.

use std::collections::{BTreeMap, BTreeSet};

use lamina_contract::{Clock, Timestamp};
use serde::{Deserialize, Serialize};

use crate::calendar::Minute;
use crate::retention::Keep;
use crate::schedule::{Schedule, ScheduleName, Subject, Targets};

/// Runs at the same time: enough that one slow subject holds up few, and few enough that guests do not notice.
pub const AT_ONCE: usize = 4;
/// How long a run counts as one of those, in milliseconds.
pub const YOUNG_MS: u64 = 60_000;
/// Pause after the first failure, in milliseconds; doubles to the longest.
pub const FIRST_PAUSE_MS: u64 = 30_000;
/// The longest pause between tries, in milliseconds.
pub const LONGEST_PAUSE_MS: u64 = 15 * 60_000;
/// Longest text kept of an error.
const FAILURE_CHARS: usize = 500;

/// One thing to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// For which schedule.
    pub schedule: ScheduleName,
    /// On what.
    pub subject: Subject,
    /// The run; names the snapshot.
    pub at: Minute,
    /// Whether the snapshot is to be taken; else it was, and only what is surplus is to be deleted.
    pub take: bool,
    /// What to keep afterwards.
    pub keep: Option<Keep>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Done,
    /// There is no snapshot; nothing was deleted.
    NotTaken {
        /// Why, for people.
        why: String,
    },
    /// The snapshot is there, and something that is surplus too.
    NotPruned {
        /// Why, for people.
        why: String,
    },
}

/// The last thing that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When, in milliseconds since the epoch.
    pub at_ms: u64,
    /// Why, for people.
    pub why: String,
}

/// What is kept of a schedule's runs on one subject over a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// On what.
    pub subject: Subject,
    /// The latest run that needs nothing more, in minutes since the epoch.
    pub done: u64,
    /// The latest run that took a snapshot, in minutes since the epoch.
    #[serde(default)]
    pub taken: Option<u64>,
    /// What went wrong since then.
    #[serde(default)]
    pub last_error: Option<Failure>,
}

/// A schedule as it can be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The schedule.
    pub schedule: Schedule,
    /// The next time that it is due, when it is enabled.
    pub next: Option<Timestamp>,
    /// What is known of each subject.
    pub runs: Vec<Record>,
}

#[derive(Debug)]
struct Run {
    done: Minute,
    taken: Option<Minute>,
    failure: Option<Failure>,
    tries: u32,
    /// The run that the tries are of.
    tried: Option<Minute>,
    /// Monotonic milliseconds.
    not_before: u64,
    unpruned: bool,
    /// Since when a job is under way, in monotonic milliseconds.
    working: Option<u64>,
}

impl Run {
    const fn done_until(done: Minute) -> Self {
        let (taken, failure, tried, working) = (None, None, None, None);
        Self { done, taken, failure, tries: 0, tried, not_before: 0, unpruned: false, working }
    }
}

#[derive(Debug)]
struct Entry {
    schedule: Option<Schedule>,
    runs: BTreeMap<Subject, Run>,
    unsaved: bool,
}

/// All schedules and what they have done.
#[derive(Debug, Default)]
pub struct Scheduler {
    entries: BTreeMap<ScheduleName, Entry>,
}

impl Scheduler {
    /// One that remembers. Records of schedules that are not [`put`](Self::put) before the first [`due`](Self::due) are given up.
    #[must_use]
    pub fn new(records: impl IntoIterator<Item = (ScheduleName, Vec<Record>)>) -> Self {
        let entry = |(name, records): (ScheduleName, Vec<Record>)| {
            let runs = records.into_iter().map(|record| {
                let mut run = Run::done_until(Minute::new(record.done));
                (run.taken, run.failure) = (record.taken.map(Minute::new), record.last_error);
                (record.subject, run)
            });
            (name, Entry { schedule: None, runs: runs.collect(), unsaved: false })
        };
        Self { entries: records.into_iter().map(entry).collect() }
    }

    /// Adds a schedule, or replaces the one of its name. What was done stays done. Who changes one sets its `since`.
    pub fn put(&mut self, schedule: Schedule) {
        let new = || Entry { schedule: None, runs: BTreeMap::new(), unsaved: false };
        let entry = self.entries.entry(schedule.name.clone()).or_insert_with(new);
        entry.schedule = Some(schedule);
    }

    /// Forgets a schedule; its snapshots stay.
    pub fn remove(&mut self, name: &ScheduleName) {
        if let Some(entry) = self.entries.get_mut(name) {
            (entry.schedule, entry.unsaved) = (None, true);
            entry.runs.clear();
        }
    }

    /// All schedules, by name.
    #[must_use]
    pub fn views(&self, now: Timestamp) -> Vec<View> {
        let view = |entry: &Entry| {
            let schedule = entry.schedule.clone()?;
            let next = schedule.enabled.then(|| schedule.every.next(now).start());
            Some(View { next, runs: records(&entry.runs), schedule })
        };
        self.entries.values().filter_map(view).collect()
    }

    /// What is to be done now; each job must be [`finished`](Self::finished). `select` finds what a schedule is for at present; when it
    /// cannot (`None`), the schedule waits as it is.
    pub fn due(&mut self, clock: &dyn Clock, select: impl Fn(&Targets) -> Option<BTreeSet<Subject>>) -> Vec<Job> {
        let (now, monotonic) = (clock.wall(), clock.monotonic_ms());
        let mut waiting = Vec::new();
        let (mut young, mut busy) = (0, BTreeSet::new());
        for entry in self.entries.values_mut() {
            if entry.schedule.is_none() && !entry.runs.is_empty() {
                entry.runs.clear();
                entry.unsaved = true;
            }
            for (subject, since) in entry.runs.iter().filter_map(|(subject, run)| Some((subject, run.working?))) {
                busy.insert(subject.clone());
                young += usize::from(monotonic.saturating_sub(since) < YOUNG_MS);
            }
            let Some(schedule) = &entry.schedule else { continue };
            if !schedule.enabled {
                for run in entry.runs.values_mut() {
                    entry.unsaved |= give_up(run);
                }
                continue;
            }
            let Some(subjects) = select(&schedule.targets) else { continue };
            entry.unsaved |= follow(&mut entry.runs, subjects, schedule.every.latest(now));
            for (subject, run) in &mut entry.runs {
                entry.unsaved |= take_back(run, schedule, now);
                if wanted(schedule, run, now).is_none() {
                    entry.unsaved |= give_up(run);
                }
                if let Some(job) = job(schedule, subject, run, now, monotonic) {
                    waiting.push((run.tries, job));
                }
            }
        }
        waiting.sort_by_key(|(tries, _)| *tries);
        let mut jobs = Vec::new();
        for (_, job) in waiting {
            // Two schedules never work on one subject at the same time.
            if young + jobs.len() >= AT_ONCE || !busy.insert(job.subject.clone()) {
                continue;
            }
            if let Some(run) = self.run(&job) {
                run.working = Some(monotonic);
                jobs.push(job);
            }
        }
        jobs
    }

    /// Notes how a job ended.
    pub fn finished(&mut self, job: &Job, outcome: Outcome, clock: &dyn Clock) {
        let (now, monotonic) = (clock.wall(), clock.monotonic_ms());
        let Some(run) = self.run(job) else { return };
        run.working = None;
        if !matches!(outcome, Outcome::NotTaken { .. }) && job.take {
            (run.done, run.taken) = (run.done.max(job.at), Some(job.at));
        }
        run.unpruned = matches!(outcome, Outcome::NotPruned { .. });
        match outcome {
            Outcome::Done => {
                (run.tries, run.not_before, run.failure) = (0, 0, None);
            }
            Outcome::NotTaken { why } | Outcome::NotPruned { why } => {
                // 30 s, 1 min, 2 min, … 15 min.
                let pause = FIRST_PAUSE_MS.saturating_mul(1 << run.tries.min(10)).min(LONGEST_PAUSE_MS);
                (run.tries, run.tried, run.not_before) =
                    (run.tries.saturating_add(1), Some(job.at), monotonic.saturating_add(pause));
                run.failure = Some(Failure { at_ms: now.0, why: why.chars().take(FAILURE_CHARS).collect() });
            }
        }
        if let Some(entry) = self.entries.get_mut(&job.schedule) {
            entry.unsaved = true;
        }
    }

    /// Records that changed since the last call, whole for each schedule; empty: forget them.
    pub fn unsaved(&mut self) -> Vec<(ScheduleName, Vec<Record>)> {
        let mut saved = Vec::new();
        for (name, entry) in &mut self.entries {
            if std::mem::take(&mut entry.unsaved) {
                saved.push((name.clone(), records(&entry.runs)));
            }
        }
        self.entries.retain(|_, entry| entry.schedule.is_some() || !entry.runs.is_empty());
        saved
    }

    /// Milliseconds until something may be due, if nothing changes and the clock does not jump.
    #[must_use]
    pub fn pause_ms(&self, clock: &dyn Clock) -> Option<u64> {
        let (now, monotonic) = (clock.wall(), clock.monotonic_ms());
        let enabled =
            self.entries.values().filter_map(|entry| Some((entry, entry.schedule.as_ref()?))).filter(|(_, one)| one.enabled);
        let until = |(entry, schedule): (&Entry, &Schedule)| {
            let next = schedule.every.next(now).start().0.saturating_sub(now.0);
            let waits = |run: &&Run| run.tries > 0 && run.working.is_none() && wanted(schedule, run, now).is_some();
            let retry = entry.runs.values().filter(waits);
            retry.map(|run| run.not_before.saturating_sub(monotonic)).chain([next]).min()
        };
        enabled.filter_map(until).min()
    }

    fn run(&mut self, job: &Job) -> Option<&mut Run> {
        self.entries.get_mut(&job.schedule)?.runs.get_mut(&job.subject)
    }
}

fn records(runs: &BTreeMap<Subject, Run>) -> Vec<Record> {
    let record = |(subject, run): (&Subject, &Run)| Record {
        subject: subject.clone(),
        done: run.done.get(),
        taken: run.taken.map(Minute::get),
        last_error: run.failure.clone(),
    };
    runs.iter().map(record).collect()
}

/// Begins with subjects that are new and ends with those that are gone; whether there were any.
fn follow(runs: &mut BTreeMap<Subject, Run>, subjects: BTreeSet<Subject>, latest: Option<Minute>) -> bool {
    let before = runs.len();
    runs.retain(|subject, run| subjects.contains(subject) || run.working.is_some());
    let mut changed = runs.len() != before;
    for subject in subjects {
        runs.entry(subject).or_insert_with(|| {
            changed = true;
            Run::done_until(latest.unwrap_or(Minute::new(0)))
        });
    }
    changed
}

/// What is done further ahead than the next run was done by a clock that was wrong.
fn take_back(run: &mut Run, schedule: &Schedule, now: Timestamp) -> bool {
    let wrong = run.done > schedule.every.next(now);
    if wrong {
        run.done = schedule.every.latest(now).unwrap_or(Minute::new(0));
    }
    wrong
}

/// A run that has something to be done.
struct Wanted {
    at: Minute,
    take: bool,
}

fn wanted(schedule: &Schedule, run: &Run, now: Timestamp) -> Option<Wanted> {
    let at = schedule.every.latest(now)?;
    // A schedule that was changed later than its next run was changed by a clock that was wrong.
    let since = at.start() > schedule.since || schedule.since >= schedule.every.next(now).start();
    if at > run.done && since {
        return Some(Wanted { at, take: true });
    }
    run.unpruned.then_some(Wanted { at: run.done, take: false })
}

/// Nothing is wanted of it: so nothing failed, and nothing is to be tried again. Whether anything was.
fn give_up(run: &mut Run) -> bool {
    if run.working.is_some() {
        return false;
    }
    (run.tries, run.tried, run.not_before) = (0, None, 0);
    run.failure.take().is_some()
}

fn job(schedule: &Schedule, subject: &Subject, run: &Run, now: Timestamp, monotonic: u64) -> Option<Job> {
    if run.working.is_some() {
        return None;
    }
    let Wanted { at, take } = wanted(schedule, run, now)?;
    if monotonic < run.not_before && (!take || run.tried == Some(at)) {
        return None;
    }
    Some(Job { schedule: schedule.name.clone(), subject: subject.clone(), at, take, keep: schedule.keep })
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
