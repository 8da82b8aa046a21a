//! The state machine under clocks that behave and clocks that do not.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use lamina_contract::{Clock, Timestamp, VolumeName};
use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

use super::{AT_ONCE, FIRST_PAUSE_MS, Job, LONGEST_PAUSE_MS, Outcome, Scheduler, YOUNG_MS};
use crate::calendar::Minute;
use crate::schedule::{Schedule, ScheduleName, Subject, TargetLists, Targets};

/// Wall time that can be set, beside monotonic time that only goes on.
#[derive(Debug)]
struct TestClock {
    wall: AtomicU64,
    monotonic: AtomicU64,
}

impl TestClock {
    fn at(stamp: &str) -> Self {
        Self { wall: AtomicU64::new(time(stamp).0), monotonic: AtomicU64::new(0) }
    }

    fn pass(&self, ms: u64) {
        self.wall.fetch_add(ms, Ordering::Relaxed);
        self.monotonic.fetch_add(ms, Ordering::Relaxed);
    }

    fn set(&self, stamp: &str) {
        self.wall.store(time(stamp).0, Ordering::Relaxed);
    }

    /// Goes on to a later time, in the ordinary way.
    fn reach(&self, stamp: &str) {
        self.pass(time(stamp).0 - self.wall().0);
    }
}

impl Clock for TestClock {
    fn wall(&self) -> Timestamp {
        Timestamp(self.wall.load(Ordering::Relaxed))
    }

    fn monotonic_ms(&self) -> u64 {
        self.monotonic.load(Ordering::Relaxed)
    }
}

fn time(stamp: &str) -> Timestamp {
    Minute::from_stamp(stamp).expect("a date").start()
}

fn schedule(name: &str, every: &str, volumes: &[&str], since: &str) -> Schedule {
    let volumes = volumes.iter().map(|name| VolumeName::new(name).expect("right")).collect();
    Schedule {
        name: ScheduleName::new(name).expect("right"),
        targets: Targets::try_from(TargetLists { volumes, ..TargetLists::default() }).expect("some"),
        every: every.parse().expect("right"),
        keep: None,
        enabled: true,
        since: time(since),
    }
}

fn named(targets: &Targets) -> Option<BTreeSet<Subject>> {
    Some(targets.named())
}

fn failed() -> Outcome {
    Outcome::NotTaken { why: "the disk is on fire".to_owned() }
}

/// Takes what is due; the names of the snapshots.
fn work(scheduler: &mut Scheduler, clock: &TestClock) -> Vec<String> {
    let mut taken = Vec::new();
    loop {
        let jobs = scheduler.due(clock, named);
        if jobs.is_empty() {
            return taken;
        }
        for job in jobs {
            taken.push(job.schedule.snapshot(job.at));
            scheduler.finished(&job, Outcome::Done, clock);
        }
        assert!(taken.len() < 1000, "a storm");
    }
}

/// One hourly schedule of one volume that has seen 10:00.
fn hourly() -> (Scheduler, TestClock) {
    let clock = TestClock::at("20260105-0930");
    let mut scheduler = Scheduler::default();
    scheduler.put(schedule("h", "hourly", &["web"], "20260105-0915"));
    assert_eq!(work(&mut scheduler, &clock), Vec::<String>::new(), "nothing before its first time");
    clock.reach("20260105-1000");
    assert_eq!(work(&mut scheduler, &clock), ["h-20260105-1000"]);
    (scheduler, clock)
}

fn restarted(scheduler: &mut Scheduler, schedules: &[Schedule]) -> Scheduler {
    let saved = scheduler.unsaved();
    let mut again = Scheduler::new(saved);
    schedules.iter().for_each(|one| again.put(one.clone()));
    again
}

#[test]
fn each_run_is_taken_once() {
    let (mut scheduler, clock) = hourly();
    assert_eq!(work(&mut scheduler, &clock), Vec::<String>::new());
    clock.reach("20260105-1059");
    assert_eq!(work(&mut scheduler, &clock), Vec::<String>::new());
    clock.reach("20260105-1100");
    assert_eq!(work(&mut scheduler, &clock), ["h-20260105-1100"]);
}

#[test]
fn runs_that_were_missed_while_it_was_down_are_made_up_by_one() {
    let (mut scheduler, clock) = hourly();
    let mut again = restarted(&mut scheduler, &[schedule("h", "hourly", &["web"], "20260105-0915")]);
    clock.reach("20260108-1530");
    assert_eq!(work(&mut again, &clock), ["h-20260108-1500"]);
    clock.reach("20260108-1600");
    assert_eq!(work(&mut again, &clock), ["h-20260108-1600"]);
}

#[test]
fn a_restart_without_a_missed_run_takes_nothing() {
    let (mut scheduler, clock) = hourly();
    let mut again = restarted(&mut scheduler, &[schedule("h", "hourly", &["web"], "20260105-0915")]);
    clock.reach("20260105-1059");
    assert_eq!(work(&mut again, &clock), Vec::<String>::new());
}

#[test]
fn a_clock_that_jumps_ahead_causes_one_run_and_when_it_is_put_right_runs_go_on() {
    let (mut scheduler, clock) = hourly();
    clock.set("20990101-0005");
    assert_eq!(work(&mut scheduler, &clock), ["h-20990101-0000"]);
    clock.set("20260105-1010");
    assert_eq!(work(&mut scheduler, &clock), Vec::<String>::new(), "10:00 was done before the jump");
    clock.reach("20260105-1100");
    assert_eq!(work(&mut scheduler, &clock), ["h-20260105-1100"], "it does not wait for 2099");
}

#[test]
fn a_clock_that_is_set_back_a_little_repeats_nothing() {
    let (mut scheduler, clock) = hourly();
    clock.set("20260105-0959");
    assert_eq!(work(&mut scheduler, &clock), Vec::<String>::new());
    clock.reach("20260105-1000");
    assert_eq!(work(&mut scheduler, &clock), Vec::<String>::new(), "10:00 again");
    clock.reach("20260105-1100");
    assert_eq!(work(&mut scheduler, &clock), ["h-20260105-1100"]);
}

#[test]
fn a_clock_that_swings_causes_only_runs_whose_names_say_that_they_were_taken() {
    let (mut scheduler, clock) = hourly();
    let mut names = BTreeSet::new();
    for _ in 0..50 {
        clock.set("20260105-1430");
        names.extend(work(&mut scheduler, &clock));
        clock.set("20260105-1015");
        names.extend(work(&mut scheduler, &clock));
    }
    // `runner::perform` finds the snapshot by that name and takes none.
    assert_eq!(names, BTreeSet::from(["h-20260105-1400".to_owned()]));
}

#[test]
fn changing_or_enabling_a_schedule_makes_nothing_up() {
    let (mut scheduler, clock) = hourly();
    clock.reach("20260105-1030");
    scheduler.put(Schedule { enabled: false, ..schedule("h", "hourly", &["web"], "20260105-1030") });
    clock.reach("20260106-0030");
    assert_eq!(work(&mut scheduler, &clock), Vec::<String>::new());
    scheduler.put(schedule("h", "hourly", &["web"], "20260106-0030"));
    assert_eq!(work(&mut scheduler, &clock), Vec::<String>::new());
    scheduler.put(schedule("h", "every 10 minutes", &["web"], "20260106-0035"));
    assert_eq!(work(&mut scheduler, &clock), Vec::<String>::new());
    clock.reach("20260106-0040");
    assert_eq!(work(&mut scheduler, &clock), ["h-20260106-0040"]);
}

#[test]
fn a_schedule_made_while_the_clock_was_ahead_runs_all_the_same() {
    let clock = TestClock::at("20260105-0930");
    let mut scheduler = Scheduler::default();
    scheduler.put(schedule("h", "hourly", &["web"], "20990101-0000"));
    assert_eq!(work(&mut scheduler, &clock), Vec::<String>::new());
    clock.reach("20260105-1000");
    assert_eq!(work(&mut scheduler, &clock), ["h-20260105-1000"]);
}

#[test]
fn a_subject_that_comes_later_waits_for_the_next_run() {
    let (mut scheduler, clock) = hourly();
    clock.reach("20260105-1030");
    scheduler.put(schedule("h", "hourly", &["web", "db"], "20260105-0915"));
    assert_eq!(work(&mut scheduler, &clock), Vec::<String>::new());
    clock.reach("20260105-1100");
    assert_eq!(work(&mut scheduler, &clock).len(), 2);
}

#[test]
fn a_failure_is_kept_and_tried_again_with_growing_pauses_until_the_next_run() {
    let (mut scheduler, clock) = hourly();
    clock.reach("20260105-1100");
    let mut pauses = Vec::new();
    let mut before = clock.monotonic_ms();
    while clock.wall() < time("20260105-1200") {
        for job in scheduler.due(&clock, named) {
            assert_eq!(job.at.stamp(), "20260105-1100");
            pauses.push((clock.monotonic_ms() - before) / 1000);
            before = clock.monotonic_ms();
            scheduler.finished(&job, failed(), &clock);
        }
        clock.pass(1000);
    }
    assert_eq!(pauses, [0, 30, 60, 120, 240, 480, 900, 900], "seconds, and the longest pause is {LONGEST_PAUSE_MS} ms");
    let view = &scheduler.views(clock.wall())[0].runs[0];
    assert_eq!(view.last_error.as_ref().map(|error| error.why.as_str()), Some("the disk is on fire"));
    assert_eq!(view.taken, Some(Minute::from_stamp("20260105-1000").expect("a date").get()), "the last that there is");
    // The next run is tried at once, and what it takes clears the error.
    assert_eq!(work(&mut scheduler, &clock), ["h-20260105-1200"]);
    assert_eq!(scheduler.views(clock.wall())[0].runs[0].last_error, None);
}

#[test]
fn a_failed_run_that_is_not_wanted_any_more_is_neither_tried_nor_a_failure() {
    for change in ["20260105-1101", "disabled"] {
        let (mut scheduler, clock) = hourly();
        clock.reach("20260105-1100");
        let job = scheduler.due(&clock, named).pop().expect("due");
        scheduler.finished(&job, failed(), &clock);
        assert_eq!(scheduler.pause_ms(&clock), Some(FIRST_PAUSE_MS));
        // The clock passes what it would have waited for.
        clock.pass(2 * FIRST_PAUSE_MS);
        let since = if change == "disabled" { "20260105-0915" } else { change };
        scheduler.put(Schedule { enabled: change != "disabled", ..schedule("h", "hourly", &["web"], since) });
        assert_eq!(scheduler.due(&clock, named), [], "{change}");
        let left = (change != "disabled").then(|| time("20260105-1200").0 - clock.wall().0);
        assert_eq!(scheduler.pause_ms(&clock), left, "it waits for the next run: {change}");
        let runs = scheduler.views(clock.wall()).pop().expect("one").runs;
        assert!(runs.iter().all(|run| run.last_error.is_none()), "{change}: {runs:?}");
        assert!(!scheduler.unsaved().is_empty(), "{change}");
    }
}

#[test]
fn what_could_not_be_deleted_is_tried_again_without_another_snapshot() {
    let (mut scheduler, clock) = hourly();
    clock.reach("20260105-1100");
    let job = scheduler.due(&clock, named).remove(0);
    scheduler.finished(&job, Outcome::NotPruned { why: "busy".to_owned() }, &clock);
    assert_eq!(scheduler.due(&clock, named), Vec::<Job>::new());
    clock.pass(FIRST_PAUSE_MS);
    let again = scheduler.due(&clock, named).remove(0);
    assert_eq!((again.take, again.at), (false, job.at));
    scheduler.finished(&again, Outcome::Done, &clock);
    clock.reach("20260105-1159");
    assert_eq!(scheduler.due(&clock, named), Vec::<Job>::new());
}

#[test]
fn subjects_that_hang_or_fail_hold_up_no_others() {
    let clock = TestClock::at("20260105-0930");
    let mut scheduler = Scheduler::default();
    let names: Vec<String> = (0..12).map(|number| format!("v{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    scheduler.put(schedule("h", "hourly", &names, "20260105-0900"));
    assert!(scheduler.due(&clock, named).is_empty());
    clock.reach("20260105-1000");
    let hanging = scheduler.due(&clock, named);
    assert_eq!(hanging.len(), AT_ONCE);
    assert!(scheduler.due(&clock, named).is_empty(), "no more at the same time");
    clock.pass(YOUNG_MS);
    // The four still hang; the others come now, and of them those that fail come last when they come again.
    let next = scheduler.due(&clock, named);
    assert_eq!(next.len(), AT_ONCE);
    next.iter().for_each(|job| scheduler.finished(job, failed(), &clock));
    clock.pass(FIRST_PAUSE_MS);
    let last = scheduler.due(&clock, named);
    assert!(last.iter().all(|job| !hanging.contains(job) && !next.contains(job)), "{last:?}");
    assert_eq!(last.len(), AT_ONCE);
}

#[test]
fn two_schedules_never_work_on_one_subject_at_the_same_time() {
    let clock = TestClock::at("20260105-0930");
    let mut scheduler = Scheduler::default();
    scheduler.put(schedule("a", "hourly", &["web"], "20260105-0900"));
    scheduler.put(schedule("b", "hourly", &["web"], "20260105-0900"));
    assert!(scheduler.due(&clock, named).is_empty());
    clock.reach("20260105-1000");
    let first = scheduler.due(&clock, named);
    assert_eq!(first.len(), 1);
    scheduler.finished(&first[0], Outcome::Done, &clock);
    let second = scheduler.due(&clock, named);
    assert_eq!(second.len(), 1);
    assert_ne!(first[0].schedule, second[0].schedule);
}

#[test]
fn a_selection_that_cannot_be_made_now_changes_nothing() {
    let (mut scheduler, clock) = hourly();
    clock.reach("20260105-1100");
    assert!(scheduler.due(&clock, |_| None).is_empty());
    assert_eq!(work(&mut scheduler, &clock), ["h-20260105-1100"], "the volume was not forgotten");
}

#[test]
fn a_schedule_that_is_removed_is_forgotten_and_its_records_too() {
    let (mut scheduler, clock) = hourly();
    assert_eq!(scheduler.unsaved().len(), 1);
    scheduler.remove(&ScheduleName::new("h").expect("right"));
    let saved = scheduler.unsaved();
    assert_eq!(saved.len(), 1);
    assert!(saved[0].1.is_empty());
    assert!(scheduler.unsaved().is_empty() && scheduler.views(clock.wall()).is_empty());
    // Records whose schedule is gone when the daemon starts go too.
    let (mut other, clock) = hourly();
    let mut orphaned = restarted(&mut other, &[]);
    assert!(orphaned.due(&clock, named).is_empty());
    assert!(orphaned.unsaved()[0].1.is_empty());
}

proptest! {
    /// Whatever the clock does, a tick causes at most one run, and it is the one that is due.
    #[test]
    fn no_clock_causes_a_storm(moves in proptest::collection::vec((-500_i64..500, 0_u64..90), 1..200)) {
        let (mut scheduler, clock) = hourly();
        for (jump, minutes) in moves {
            clock.pass(minutes * 60_000);
            clock.wall.store(clock.wall().0.saturating_add_signed(jump * 600_000), Ordering::Relaxed);
            let taken = work(&mut scheduler, &clock);
            prop_assert!(taken.len() <= 1);
            if let Some(name) = taken.first() {
                prop_assert_eq!(name, &format!("h-{}", Minute::new(Minute::of(clock.wall()).get() / 60 * 60).stamp()));
            }
        }
        // And afterwards it goes on as ever, once the clock is past the schedule's making.
        clock.wall.fetch_max(time("20260105-1000").0, Ordering::Relaxed);
        work(&mut scheduler, &clock);
        clock.pass(3_600_000);
        work(&mut scheduler, &clock);
        clock.pass(3_600_000);
        prop_assert_eq!(work(&mut scheduler, &clock).len(), 1);
    }
}
