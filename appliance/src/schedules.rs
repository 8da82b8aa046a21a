//! Schedules behind the interface: documents, the scheduler that follows them, and the two ways of writing when one runs.
//!
//! A schedule's document is written before the scheduler hears of it; what it has done is a document beside it (`schedule_runs.rs`). A crash
//! between leaves what the document says. Reading takes the scheduler's lock only, which is never held across I/O.

use std::sync::Arc;

use lamina_api::appliance::{Overview, Schedules as Calls};
use lamina_api::instant::rfc3339;
use lamina_api::label::Labels;
use lamina_api::name::{Name, volume_name};
use lamina_api::page::{Page, Paged};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::schedule::{ChangeSchedule, CreateSchedule, Every, Keep, Schedule, ScheduleList, ScheduleTargets, ScheduleTime};
use lamina_contract::Timestamp;
use laminad::calendar::Minute;
use laminad::recurrence::{MinuteOfHour, MinuteStep, Recurrence, TimeOfDay, Weekday};
use laminad::retention::KeepCounts;
use laminad::schedule::{ScheduleName, TargetLists, Targets};
use laminad::scheduler::{Record, Scheduler, View};
use laminad::{retention, schedule};
use parking_lot::Mutex;

use crate::documents::{DocumentError, Documents, Expected, Kind, Stored};
use crate::machines::{of_document, taken};
use crate::served::{Served, labels_of};

/// All schedules.
pub(crate) struct Schedules {
    scheduler: Arc<Mutex<Scheduler>>,
    /// Held during each change, so that the scheduler hears of them in the order of the documents.
    changes: Mutex<()>,
}

impl Schedules {
    /// Those that were kept, with what they had done.
    pub(crate) fn open(documents: &Documents) -> Self {
        let runs = documents.list::<Vec<Record>>(Kind::ScheduleRuns);
        // What a schedule has done is given up with the schedule, but not when that is there and only not understood.
        let left_out = documents.left_out::<schedule::Schedule>(Kind::Schedule);
        let is_known = |stored: &Stored<Vec<Record>>| !left_out.any && !left_out.names.contains(&stored.name);
        let named = |stored: Stored<Vec<Record>>| Some((ScheduleName::new(&stored.name).ok()?, stored.body));
        let mut scheduler = Scheduler::new(runs.into_iter().filter(is_known).filter_map(named));
        for stored in documents.list::<schedule::Schedule>(Kind::Schedule) {
            scheduler.put(stored.body);
        }
        Self { scheduler: Arc::new(Mutex::new(scheduler)), changes: Mutex::default() }
    }

    /// Shared with the runner.
    pub(crate) fn scheduler(&self) -> Arc<Mutex<Scheduler>> {
        Arc::clone(&self.scheduler)
    }

    /// All of them with what they have done.
    pub(crate) fn views(&self, now: Timestamp) -> Vec<View> {
        self.scheduler.lock().views(now)
    }

    fn view(&self, name: &str, now: Timestamp) -> Result<Schedule, Problem> {
        let found = self.views(now).into_iter().find(|view| view.schedule.name.as_str() == name);
        found.map(shown).ok_or_else(|| unknown(name))
    }

    /// Durably keeps `schedule` in place of what is `expected`, and follows it.
    fn keep(&self, documents: &Documents, expected: Expected, schedule: schedule::Schedule) -> Result<(), Problem> {
        let kept = documents.put(Kind::Schedule, schedule.name.as_str(), expected, &schedule);
        kept.map_err(|error| match error {
            DocumentError::Changed { .. } if expected == Expected::Absent => taken("schedule", schedule.name.as_str()),
            error => of_document(&error),
        })?;
        self.scheduler.lock().put(schedule);
        Ok(())
    }
}

impl Calls for Served {
    fn schedules(&self, page: &Page) -> Result<ScheduleList, Problem> {
        let views = self.records.schedules.views(self.now());
        let Paged { entries, next } = page.cut(views, |view| view.schedule.name.to_string());
        Ok(ScheduleList { schedules: entries.into_iter().map(shown).collect(), next })
    }

    fn schedule(&self, name: &Name) -> Result<Schedule, Problem> {
        self.records.schedules.view(name.as_str(), self.now())
    }

    fn create_schedule(&self, request: &CreateSchedule) -> Result<Schedule, Problem> {
        let schedule = schedule::Schedule {
            name: ScheduleName::new(&request.name).map_err(|error| invalid(&error))?,
            targets: targets(&request.targets)?,
            every: recurrence(request.every, request.at.as_deref(), Weekday::Monday)?,
            keep: keep(request.keep),
            enabled: request.enabled.unwrap_or(true),
            since: self.now(),
        };
        let schedules = &self.records.schedules;
        let changes = schedules.changes.lock();
        schedules.keep(&self.records.documents, Expected::Absent, schedule)?;
        drop(changes);
        schedules.view(&request.name, self.now())
    }

    fn change_schedule(&self, name: &Name, change: &ChangeSchedule) -> Result<Schedule, Problem> {
        let schedules = &self.records.schedules;
        let changes = schedules.changes.lock();
        let stored = self.records.documents.get::<schedule::Schedule>(Kind::Schedule, name.as_str());
        let stored = stored.map_err(|error| of_document(&error))?.ok_or_else(|| unknown(name.as_str()))?;
        let mut schedule = stored.body.clone();
        if let Some(wanted) = &change.targets {
            schedule.targets = targets(wanted)?;
        }
        if change.every.is_some() || change.at.is_some() {
            let (every, at) = words(schedule.every);
            // Another way of recurring begins with its own first moment.
            let at = change.at.clone().or_else(|| at.filter(|_| change.every.is_none_or(|new| new == every)));
            // A time without a day moves no weekly schedule to another day.
            let day = if let Recurrence::Weekly(day, _) = schedule.every { day } else { Weekday::Monday };
            schedule.every = recurrence(change.every.unwrap_or(every), at.as_deref(), day)?;
        }
        if let Some(wanted) = change.keep {
            schedule.keep = keep(wanted);
        }
        schedule.enabled = change.enabled.unwrap_or(schedule.enabled);
        let before = &stored.body;
        if (&schedule.targets, schedule.every) != (&before.targets, before.every) || schedule.enabled && !before.enabled {
            // What was due until now is not made up.
            schedule.since = self.now();
        }
        schedules.keep(&self.records.documents, Expected::Version(stored.version), schedule)?;
        drop(changes);
        schedules.view(name.as_str(), self.now())
    }

    fn delete_schedule(&self, name: &Name) -> Result<(), Problem> {
        let schedules = &self.records.schedules;
        let name = ScheduleName::new(name.as_str()).map_err(|_| unknown(name.as_str()))?;
        let _changes = schedules.changes.lock();
        let stored = self.records.documents.get::<schedule::Schedule>(Kind::Schedule, name.as_str());
        let stored = stored.map_err(|error| of_document(&error))?.ok_or_else(|| unknown(name.as_str()))?;
        let expected = Expected::Version(stored.version);
        self.records.documents.delete(Kind::Schedule, name.as_str(), expected).map_err(|error| of_document(&error))?;
        schedules.scheduler.lock().remove(&name);
        Ok(())
    }
}

fn unknown(name: &str) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("no schedule '{name}'")).advise("`lamina schedule list` shows all schedules")
}

fn invalid(error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::caused(ProblemKind::InvalidRequest, error)
}

fn targets(wanted: &ScheduleTargets) -> Result<Targets, Problem> {
    let names = |names: &[String]| names.iter().map(|name| volume_name(name)).collect::<Result<_, _>>();
    let labels = |labels: &Labels| labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let lists = TargetLists {
        volumes: names(&wanted.volumes)?,
        vms: names(&wanted.vms)?,
        volume_labels: labels(&wanted.volume_labels),
        vm_labels: labels(&wanted.vm_labels),
    };
    Targets::try_from(lists).map_err(|error| invalid(&error))
}

fn keep(wanted: Keep) -> Option<retention::Keep> {
    let Keep { last, hourly, daily, weekly, monthly } = wanted;
    // All 0 keeps everything.
    retention::Keep::new(KeepCounts { last, hourly, daily, weekly, monthly }).ok()
}

/// When a schedule runs, from the interface's words; `day` is a weekly one's where these name none.
fn recurrence(every: Every, at: Option<&str>, day: Weekday) -> Result<Recurrence, Problem> {
    let wrong = |detail: &str| Err(Problem::new(ProblemKind::InvalidRequest, detail));
    let time = at.map(str::parse::<ScheduleTime>).transpose()?;
    let ScheduleTime { weekday, hour, minute } = time.unwrap_or(ScheduleTime { weekday: None, hour: 0, minute: 0 });
    let of_day = TimeOfDay::new(hour.into(), minute.into()).map_err(|error| invalid(&error))?;
    match every {
        Every::Minutes(_) if time.is_some() => wrong("runs every so many minutes begin at midnight UTC: leave 'at' out"),
        Every::Minutes(minutes) => MinuteStep::new(minutes.into()).map(Recurrence::Minutes).map_err(|error| invalid(&error)),
        Every::Hourly | Every::Daily if weekday.is_some() => wrong("only weekly schedules have a day in 'at'"),
        Every::Hourly if hour > 0 => wrong("an hourly schedule's 'at' is the minute, with the hour 00: 00:15"),
        Every::Hourly => MinuteOfHour::new(minute).map(Recurrence::Hourly).map_err(|error| invalid(&error)),
        Every::Daily => Ok(Recurrence::Daily(of_day)),
        Every::Weekly => match weekday.map_or(Some(day), Weekday::after_monday) {
            Some(day) => Ok(Recurrence::Weekly(day, of_day)),
            None => wrong("a week has seven days"),
        },
    }
}

/// The same in the interface's words.
fn words(every: Recurrence) -> (Every, Option<String>) {
    match every {
        Recurrence::Hourly(minute) => (Every::Hourly, Some(format!("00:{:02}", minute.get()))),
        Recurrence::Daily(at) => (Every::Daily, Some(at.to_string())),
        Recurrence::Weekly(day, at) => (Every::Weekly, Some(format!("{} {at}", day.as_str().get(..3).unwrap_or_default()))),
        Recurrence::Minutes(step) => (Every::Minutes(step.get().into()), None),
    }
}

fn shown(view: View) -> Schedule {
    let View { schedule, next, runs } = view;
    let lists = schedule.targets.lists();
    let names = |names: &std::collections::BTreeSet<lamina_contract::VolumeName>| names.iter().map(ToString::to_string).collect();
    let (every, at) = words(schedule.every);
    let counts = schedule.keep.map(retention::Keep::counts).unwrap_or_default();
    let failed = |run: &Record| run.last_error.as_ref().map(|failure| (failure.at_ms, format!("{}: {}", run.subject, failure.why)));
    Schedule {
        name: schedule.name.to_string(),
        targets: ScheduleTargets {
            volumes: names(&lists.volumes),
            vms: names(&lists.vms),
            volume_labels: labels_of(&lists.volume_labels),
            vm_labels: labels_of(&lists.vm_labels),
        },
        every,
        at,
        keep: Keep {
            last: counts.last,
            hourly: counts.hourly,
            daily: counts.daily,
            weekly: counts.weekly,
            monthly: counts.monthly,
        },
        enabled: schedule.enabled,
        last_run: runs.iter().filter_map(|run| run.taken).max().map(|minute| rfc3339(Minute::new(minute).start())),
        next_run: next.map(rfc3339),
        last_error: runs.iter().filter_map(failed).max().map(|(_, text)| text),
    }
}

#[cfg(test)]
mod tests {
    use lamina_api::schedule::{Every, Keep};

    use laminad::recurrence::Weekday;

    use super::{keep, recurrence, words};

    #[test]
    fn both_ways_of_writing_when_a_schedule_runs_say_the_same() {
        for (every, at, text, shown) in [
            (Every::Hourly, None, "hourly", Some("00:00")),
            (Every::Hourly, Some("00:15"), "hourly at minute 15", Some("00:15")),
            (Every::Daily, Some("02:30"), "daily at 02:30", Some("02:30")),
            (Every::Daily, None, "daily at 00:00", Some("00:00")),
            (Every::Weekly, Some("sun 23:59"), "weekly on sunday at 23:59", Some("sun 23:59")),
            (Every::Weekly, Some("02:30"), "weekly on monday at 02:30", Some("mon 02:30")),
            (Every::Minutes(1), None, "every 1 minutes", None),
            (Every::Minutes(1440), None, "every 1440 minutes", None),
        ] {
            let recurrence = recurrence(every, at, Weekday::Monday).expect("right");
            assert_eq!(recurrence.to_string(), text);
            let (again, at) = words(recurrence);
            assert_eq!((again, at.as_deref()), (every, shown), "{text}");
            assert_eq!(super::recurrence(again, at.as_deref(), Weekday::Monday).expect("right"), recurrence);
        }
        for (every, at) in [
            (Every::Hourly, Some("01:15")),
            (Every::Hourly, Some("mon 00:15")),
            (Every::Daily, Some("mon 02:30")),
            (Every::Minutes(15), Some("00:00")),
            (Every::Minutes(7), None),
            (Every::Minutes(0), None),
            (Every::Minutes(2880), None),
        ] {
            assert!(recurrence(every, at, Weekday::Monday).is_err(), "{every:?} {at:?}");
        }
    }

    #[test]
    fn a_time_without_a_day_leaves_a_weekly_schedule_on_its_day() {
        let every = recurrence(Every::Weekly, Some("04:00"), Weekday::Sunday).expect("right");
        assert_eq!(every.to_string(), "weekly on sunday at 04:00");
        let every = recurrence(Every::Weekly, Some("tue 04:00"), Weekday::Sunday).expect("right");
        assert_eq!(every.to_string(), "weekly on tuesday at 04:00");
    }

    #[test]
    fn a_retention_of_nothing_but_zeros_keeps_everything() {
        assert_eq!(keep(Keep::default()), None);
        assert_eq!(keep(Keep { weekly: 4, ..Keep::default() }).map(|keep| keep.counts().weekly), Some(4));
    }
}
