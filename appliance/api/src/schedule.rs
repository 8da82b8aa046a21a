//! Schedules: snapshots that are taken by the clock and kept for a while.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::label::Labels;
use crate::problem::{Problem, ProblemKind};

/// Names in one target list.
pub const MAX_TARGETS: usize = 1000;
/// Snapshots of one kind kept at most.
pub const MAX_KEEP: u32 = 10_000;
/// Minutes of a day: a number of minutes between runs divides it, so that each day's runs are at the same times.
pub const MAX_MINUTES: u32 = 1440;
/// Characters of a schedule's name: with a time behind it, it names snapshots.
pub const MAX_SCHEDULE_NAME: usize = 49;

/// What a schedule takes snapshots of: everything that any of these names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleTargets {
    /// Volumes by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 1000)]
    pub volumes: Vec<String>,
    /// VMs by name; all disks of one at one barrier.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 1000)]
    pub vms: Vec<String>,
    /// Volumes that have all these labels; none when empty.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub volume_labels: Labels,
    /// VMs that have all these labels; none when empty.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub vm_labels: Labels,
}

impl ScheduleTargets {
    /// Whether it names nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.volumes.is_empty() && self.vms.is_empty() && self.volume_labels.is_empty() && self.vm_labels.is_empty()
    }
}

/// How often: `"hourly"`, `"daily"`, `"weekly"` or `{"minutes": 15}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Every {
    /// Each hour, at the minute of [`Schedule::at`], whose hour is 00.
    Hourly,
    /// Each day, at [`Schedule::at`].
    Daily,
    /// Each week, at [`Schedule::at`], with a day.
    Weekly,
    /// From midnight UTC on, each so many minutes: 1 to 1440, dividing a day.
    Minutes(u32),
}

/// A time of day, or of a week, in UTC: `02:30`, `mon 02:30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduleTime {
    /// Days since Monday, for weekly ones.
    pub weekday: Option<u8>,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
}

/// In the order of [`ScheduleTime::weekday`].
const WEEKDAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl FromStr for ScheduleTime {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let bad = || Problem::new(ProblemKind::InvalidRequest, "a schedule's time is written 02:30 or mon 02:30, in UTC");
        let (weekday, time) = match text.split_once(' ') {
            Some((day, time)) => {
                let at = WEEKDAYS.iter().position(|weekday| *weekday == day).ok_or_else(bad)?;
                (Some(u8::try_from(at).map_err(|_| bad())?), time)
            }
            None => (None, text),
        };
        let (hour, minute) = time.split_once(':').ok_or_else(bad)?;
        let number = |text: &str, below: u8| {
            let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|number| digits && *number < below).ok_or_else(bad)
        };
        Ok(Self { weekday, hour: number(hour, 24)?, minute: number(minute, 60)? })
    }
}

/// How many snapshots of a schedule are kept: the newest `last`, and of each of the last so many hours, days, weeks and months the newest.
/// All 0 keeps everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// The newest.
    #[schema(maximum = 10_000)]
    pub last: u32,
    /// Hours.
    #[schema(maximum = 10_000)]
    pub hourly: u32,
    /// Days.
    #[schema(maximum = 10_000)]
    pub daily: u32,
    /// Weeks.
    #[schema(maximum = 10_000)]
    pub weekly: u32,
    /// Months.
    #[schema(maximum = 10_000)]
    pub monthly: u32,
}

/// A schedule to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSchedule {
    /// `[a-z0-9-]{1,49}`: with a time behind it, it names snapshots.
    #[schema(pattern = "^[a-z0-9-]{1,49}$")]
    pub name: String,
    /// Of what.
    pub targets: ScheduleTargets,
    /// How often.
    pub every: Every,
    /// `02:30`, `mon 02:30` for weekly ones, `00:15` for hourly ones; UTC. The first possible moment when absent; always so with minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^((mon|tue|wed|thu|fri|sat|sun) )?([01][0-9]|2[0-3]):[0-5][0-9]$")]
    pub at: Option<String>,
    /// How many are kept.
    #[serde(default)]
    pub keep: Keep,
    /// Whether it runs; it does when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// What shall change of a schedule; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeSchedule {
    /// Of what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<ScheduleTargets>,
    /// How often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Every>,
    /// `02:30` or `mon 02:30`, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^((mon|tue|wed|thu|fri|sat|sun) )?([01][0-9]|2[0-3]):[0-5][0-9]$")]
    pub at: Option<String>,
    /// How many are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// Whether it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// One schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Schedule {
    /// Its name.
    pub name: String,
    /// Of what.
    pub targets: ScheduleTargets,
    /// How often.
    pub every: Every,
    /// `02:30` or `mon 02:30`, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// How many are kept.
    pub keep: Keep,
    /// Whether it runs.
    pub enabled: bool,
    /// When it ran last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub last_run: Option<String>,
    /// When it runs next; absent when it is not enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub next_run: Option<String>,
    /// What went wrong at the last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// All schedules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleList {
    /// By name.
    pub schedules: Vec<Schedule>,
    /// Cursor of the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{Every, ScheduleTime};

    #[test]
    fn times_and_intervals_read_as_they_are_written() {
        let sunday: ScheduleTime = "sun 23:59".parse().expect("a time");
        assert_eq!((sunday.weekday, sunday.hour, sunday.minute), (Some(6), 23, 59));
        assert_eq!("02:30".parse::<ScheduleTime>().expect("a time").weekday, None);
        for bad in ["24:00", "2:30", "02:60", "day 02:30", "mon", "+1:30", ""] {
            assert!(bad.parse::<ScheduleTime>().is_err(), "{bad}");
        }
        assert_eq!(serde_json::to_string(&Every::Daily).expect("json"), "\"daily\"");
        assert_eq!(serde_json::from_str::<Every>(r#"{"minutes":15}"#).expect("every"), Every::Minutes(15));
    }
}
