//! The runner over an appliance in memory: a simulated year, and what fails or hangs.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use lamina_contract::{Clock, ManualClock, VolumeName};
use parking_lot::Mutex;

use super::{Records, Snapshot, Snapshots, perform, run};
use crate::calendar::Minute;
use crate::retention::{Keep, KeepCounts};
use crate::schedule::{LABEL, Labels, Schedule, ScheduleName, Subject, TargetLists, Targets};
use crate::scheduler::{Job, Outcome, Record, Scheduler};

/// Snapshots in memory. What stands in `broken` fails, what stands in `hanging` never answers.
#[derive(Debug, Default)]
struct Fake {
    all: Mutex<BTreeMap<Subject, Vec<Snapshot>>>,
    broken: Mutex<BTreeSet<Subject>>,
    undeletable: Mutex<BTreeSet<String>>,
    hanging: BTreeSet<Subject>,
    labelled: BTreeSet<Subject>,
}

#[derive(Debug, thiserror::Error)]
#[error("no")]
struct No;

impl Fake {
    fn names(&self, subject: &Subject) -> Vec<String> {
        self.all.lock().get(subject).into_iter().flatten().map(|one| one.name.clone()).collect()
    }

    fn add(&self, subject: &Subject, name: &str, schedule: Option<&str>) {
        let labels = schedule.map(|schedule| (LABEL.to_owned(), schedule.to_owned())).into_iter().collect();
        let one = Snapshot { name: name.to_owned(), labels, pinned: false, cloned: false };
        self.all.lock().entry(subject.clone()).or_default().push(one);
    }
}

impl Snapshots for Fake {
    type Error = No;

    fn select(&self, targets: &Targets) -> Option<BTreeSet<Subject>> {
        let gold = Labels::from([("tier".to_owned(), "gold".to_owned())]);
        let labelled = self.labelled.iter().filter(|subject| targets.contain(subject, &gold)).cloned();
        Some(targets.named().into_iter().chain(labelled).collect())
    }

    async fn take(&self, subject: &Subject, name: &str, labels: Labels) -> Result<(), No> {
        if self.hanging.contains(subject) {
            std::future::pending::<()>().await;
        }
        if self.broken.lock().contains(subject) {
            return Err(No);
        }
        let mut all = self.all.lock();
        let here = all.entry(subject.clone()).or_default();
        assert!(here.iter().all(|one| one.name != name), "{name} is taken twice");
        here.push(Snapshot { name: name.to_owned(), labels, pinned: false, cloned: false });
        Ok(())
    }

    async fn snapshots(&self, subject: &Subject) -> Result<Vec<Snapshot>, No> {
        Ok(self.all.lock().get(subject).cloned().unwrap_or_default())
    }

    async fn delete(&self, subject: &Subject, name: &str) -> Result<(), No> {
        if self.undeletable.lock().contains(name) {
            return Err(No);
        }
        let mut all = self.all.lock();
        let here = all.get_mut(subject).expect("a subject with snapshots");
        let at = here.iter().position(|one| one.name == name).expect("a snapshot that is there");
        let gone = here.remove(at);
        assert!(!gone.pinned && !gone.cloned && gone.labels.contains_key(LABEL), "{gone:?} must stay");
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Kept(Mutex<BTreeMap<ScheduleName, Vec<Record>>>);

impl Records for Kept {
    type Error = Infallible;

    fn save(&self, schedule: &ScheduleName, records: &[Record]) -> Result<(), Infallible> {
        self.0.lock().insert(schedule.clone(), records.to_vec());
        Ok(())
    }
}

fn volume(name: &str) -> Subject {
    Subject::Volume(VolumeName::new(name).expect("right"))
}

fn schedule(name: &str, every: &str, volumes: &[&str], keep: KeepCounts) -> Schedule {
    let volumes = volumes.iter().map(|name| VolumeName::new(name).expect("right")).collect();
    let volume_labels = Labels::from([("tier".to_owned(), "gold".to_owned())]);
    Schedule {
        name: ScheduleName::new(name).expect("right"),
        targets: Targets::try_from(TargetLists { volumes, volume_labels, ..TargetLists::default() }).expect("some"),
        every: every.parse().expect("right"),
        keep: Keep::new(keep).ok(),
        enabled: true,
        since: ManualClock::default().wall(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

fn job(subject: &Subject, at: &str, keep: KeepCounts) -> Job {
    let at = Minute::from_stamp(at).expect("a date");
    Job { schedule: ScheduleName::new("h").expect("right"), subject: subject.clone(), at, take: true, keep: Keep::new(keep).ok() }
}

const HOUR: u64 = 3_600_000;
const DAYS: u64 = 365;

#[test]
fn a_year_of_schedules_takes_every_run_once_and_keeps_what_the_rules_say() {
    let (fake, clock, runtime) = (Fake::default(), ManualClock::default(), runtime());
    let mut scheduler = Scheduler::default();
    scheduler.put(schedule("often", "every 30 minutes", &["db"], KeepCounts { last: 4, ..KeepCounts::default() }));
    let family = KeepCounts { last: 0, hourly: 24, daily: 7, weekly: 4, monthly: 12 };
    scheduler.put(schedule("hourly", "hourly", &["db", "web", "sick"], family));
    scheduler.put(schedule("nightly", "daily at 02:30", &["db", "web"], KeepCounts { daily: 14, ..KeepCounts::default() }));
    scheduler.put(schedule("weekly", "weekly on sunday at 04:00", &["web"], KeepCounts::default()));
    fake.add(&volume("web"), "by-hand", None);
    let mut taken: BTreeMap<(ScheduleName, Subject), u64> = BTreeMap::new();
    let mut looks = 0_u64;
    while clock.monotonic_ms() <= DAYS * 24 * HOUR {
        looks += 1;
        // One volume is out of order for a week in March.
        let day = clock.monotonic_ms() / (24 * HOUR);
        let broken: BTreeSet<_> = (60..67).contains(&day).then(|| volume("sick")).into_iter().collect();
        *fake.broken.lock() = broken;
        loop {
            let jobs = scheduler.due(&clock, |targets| fake.select(targets));
            if jobs.is_empty() {
                break;
            }
            for job in jobs {
                let outcome = runtime.block_on(perform(&fake, &job, clock.wall()));
                if outcome == Outcome::Done {
                    *taken.entry((job.schedule.clone(), job.subject.clone())).or_default() += 1;
                }
                scheduler.finished(&job, outcome, &clock);
            }
        }
        scheduler.unsaved();
        clock.advance(scheduler.pause_ms(&clock).expect("something is to come").max(1));
    }
    let count = |name: &str, subject: &str| taken[&(ScheduleName::new(name).expect("right"), volume(subject))];
    // The year begins with a run of each that is due just then; subjects seen first then wait for the next.
    assert_eq!(count("often", "db"), DAYS * 48);
    assert_eq!((count("hourly", "db"), count("hourly", "web")), (DAYS * 24, DAYS * 24));
    assert_eq!(count("hourly", "sick"), (DAYS - 7) * 24);
    assert_eq!(count("nightly", "web"), DAYS);
    // Sundays of 2026: the 4th of January is the first of 52.
    assert_eq!(count("weekly", "web"), 52);

    let db = fake.names(&volume("db"));
    let of = |names: &[String], schedule: &str| names.iter().filter(|name| name.starts_with(schedule)).cloned().collect::<Vec<_>>();
    assert_eq!(of(&db, "often"), ["often-20261231-2230", "often-20261231-2300", "often-20261231-2330", "often-20270101-0000"]);
    assert_eq!(of(&db, "nightly").len(), 14);
    // 24 hours, then 7 days, 4 weeks and 12 months, of which some are the same.
    let hourly = of(&db, "hourly");
    assert!(hourly.len() > 24 + 5 + 2 + 9 && hourly.len() < 24 + 7 + 4 + 12, "{hourly:?}");
    assert!(hourly.contains(&"hourly-20260228-2300".to_owned()), "the newest of February: {hourly:?}");
    let web = fake.names(&volume("web"));
    assert_eq!(of(&web, "weekly").len(), 52, "without rules everything is kept");
    assert!(web.contains(&"by-hand".to_owned()));
    // Each half hour, and while one is out of order a few more.
    assert!(looks < DAYS * 48 + 7 * 24 * 10, "{looks}");
}

#[test]
fn a_run_that_is_repeated_finds_its_snapshot() {
    let (fake, runtime) = (Fake::default(), runtime());
    let job = job(&volume("web"), "20260105-1000", KeepCounts::default());
    for _ in 0..2 {
        assert_eq!(runtime.block_on(perform(&fake, &job, job.at.start())), Outcome::Done);
    }
    assert_eq!(fake.names(&volume("web")), ["h-20260105-1000"]);
}

#[test]
fn nothing_is_deleted_when_no_snapshot_was_taken() {
    let (fake, runtime, web) = (Fake::default(), runtime(), volume("web"));
    fake.add(&web, "h-20260105-0800", Some("h"));
    fake.add(&web, "h-20260105-0900", Some("h"));
    let job = job(&web, "20260105-1000", KeepCounts { last: 1, ..KeepCounts::default() });
    fake.broken.lock().insert(web.clone());
    assert_eq!(runtime.block_on(perform(&fake, &job, job.at.start())), Outcome::NotTaken { why: "no".to_owned() });
    assert_eq!(fake.names(&web).len(), 2);
    fake.broken.lock().clear();
    assert_eq!(runtime.block_on(perform(&fake, &job, job.at.start())), Outcome::Done);
    assert_eq!(fake.names(&web), ["h-20260105-1000"]);
}

#[test]
fn one_that_cannot_be_deleted_does_not_keep_the_others() {
    let (fake, runtime, web) = (Fake::default(), runtime(), volume("web"));
    for name in ["h-20260105-0700", "h-20260105-0800", "h-20260105-0900"] {
        fake.add(&web, name, Some("h"));
    }
    // Of another schedule, by hand, and with a label that its name does not bear out.
    fake.add(&web, "g-20260105-0700", Some("g"));
    fake.add(&web, "h-20260105-0701", None);
    fake.add(&web, "before-upgrade", Some("h"));
    fake.undeletable.lock().insert("h-20260105-0700".to_owned());
    let job = job(&web, "20260105-1000", KeepCounts { last: 1, ..KeepCounts::default() });
    let outcome = runtime.block_on(perform(&fake, &job, job.at.start()));
    assert_eq!(outcome, Outcome::NotPruned { why: "h-20260105-0700: no".to_owned() });
    assert_eq!(fake.names(&web), ["h-20260105-0700", "g-20260105-0700", "h-20260105-0701", "before-upgrade", "h-20260105-1000"]);
}

#[test]
fn a_subject_that_hangs_or_fails_holds_up_no_other_and_what_was_done_is_written_down() {
    let hanging = BTreeSet::from([volume("a-hangs")]);
    let labelled = BTreeSet::from([volume("by-label")]);
    let fake = Arc::new(Fake { hanging, labelled, ..Fake::default() });
    fake.broken.lock().insert(volume("b-fails"));
    let (clock, kept) = (Arc::new(ManualClock::default()), Arc::new(Kept::default()));
    let mut scheduler = Scheduler::default();
    scheduler.put(schedule("h", "hourly", &["a-hangs", "b-fails", "c-works"], KeepCounts::default()));
    let scheduler = Arc::new(Mutex::new(scheduler));
    // Time passes for the runtime only when all wait; for the appliance by hand.
    runtime().block_on(async {
        let (shared, appliance) = (Arc::clone(&scheduler), Arc::clone(&fake));
        let task = tokio::spawn(run(shared, appliance, Arc::clone(&kept), Arc::clone(&clock) as Arc<dyn Clock>));
        tokio::time::sleep(Duration::from_secs(10)).await;
        clock.advance(HOUR);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(fake.names(&volume("c-works")), ["h-20260101-0100"]);
        assert_eq!(fake.names(&volume("by-label")), ["h-20260101-0100"]);
        fake.broken.lock().clear();
        clock.advance(60_000);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(fake.names(&volume("b-fails")), ["h-20260101-0100"], "tried again");
        task.abort();
        let _ = task.await;
    });
    let records = kept.0.lock()[&ScheduleName::new("h").expect("right")].clone();
    let one = Minute::from_stamp("20260101-0100").expect("a date").get();
    let done: BTreeMap<_, _> = records.iter().map(|record| (record.subject.clone(), record.done)).collect();
    assert_eq!(done[&volume("c-works")], one);
    assert_eq!(done[&volume("b-fails")], one);
    assert_eq!(done[&volume("a-hangs")], one - 60, "not done: a restart takes it");
}
