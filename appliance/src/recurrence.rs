//! When a schedule runs: hourly, daily, weekly, or every so many minutes; always in UTC.
//!
//! Each of them is an arithmetic progression of minutes since the Unix epoch (UTC has no summer time), so "the latest" and "the next"
//! are a division each, wherever the clock jumps.

use std::fmt;
use std::str::FromStr;

use lamina_contract::Timestamp;
use serde::{Deserialize, Serialize};

use crate::calendar::{DAY, Minute};

/// When a schedule runs. As text: `hourly`, `hourly at minute 15`, `daily at 02:30`, `weekly on sunday at 02:30`, `every 15 minutes`; times are UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Recurrence {
    /// At this minute of each hour.
    Hourly(MinuteOfHour),
    /// Once a day.
    Daily(TimeOfDay),
    /// Once a week.
    Weekly(Weekday, TimeOfDay),
    /// From midnight on, every so many minutes.
    Minutes(MinuteStep),
}

/// Hours and minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeOfDay {
    /// 0 to 1439.
    minutes: u16,
}

/// 0 to 59.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct MinuteOfHour(u8);

/// A number of minutes, 1 to 1440, that divides a day, so that each day's runs are at the same times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MinuteStep(u16);

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Weekday {
    /// The first.
    Monday,
    /// The second.
    Tuesday,
    /// The third.
    Wednesday,
    /// The fourth.
    Thursday,
    /// The fifth.
    Friday,
    /// The sixth.
    Saturday,
    /// The last.
    Sunday,
}

/// Why text is not a recurrence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecurrenceError {
    /// None of the known forms.
    #[error("'{text}' is none of: hourly, daily at 02:30, weekly on sunday at 02:30, every 15 minutes (times are UTC)")]
    Form {
        /// The refused text.
        text: String,
    },
    /// Not a time of day.
    #[error("'{text}' is not a time of day: write 00:00 to 23:59 (UTC)")]
    Time {
        /// The refused text.
        text: String,
    },
    /// Not a minute of an hour.
    #[error("minute {minute} is not one of 0 to 59")]
    Minute {
        /// The refused number.
        minute: u8,
    },
    /// Runs would be at other times each day.
    #[error("{minutes} minutes do not divide a day of 1440: take 1, 5, 10, 15, 20, 30, 60, 120, 240, 360, 480 or 720")]
    Step {
        /// The refused number.
        minutes: u64,
    },
}

impl Recurrence {
    /// The latest run that is due at `now`; `None` before the first there ever was.
    #[must_use]
    pub const fn latest(self, now: Timestamp) -> Option<Minute> {
        let Progression { first, every } = self.progression();
        match Minute::of(now).get().checked_sub(first) {
            None => None,
            Some(since) => Some(Minute::new(first + since / every * every)),
        }
    }

    /// The first run that is due after `now`.
    #[must_use]
    pub const fn next(self, now: Timestamp) -> Minute {
        let Progression { first, every } = self.progression();
        match Minute::of(now).get().checked_sub(first) {
            None => Minute::new(first),
            Some(since) => Minute::new(first + (since / every + 1) * every),
        }
    }

    const fn progression(self) -> Progression {
        match self {
            Self::Hourly(minute) => Progression { first: minute.0 as u64, every: 60 },
            Self::Daily(at) => Progression { first: at.minutes as u64, every: DAY },
            Self::Weekly(day, at) => Progression { first: day.after_thursday() * DAY + at.minutes as u64, every: 7 * DAY },
            Self::Minutes(step) => Progression { first: 0, every: step.0 as u64 },
        }
    }
}

/// Minutes since the epoch: `first`, `first + every`, …
struct Progression {
    first: u64,
    every: u64,
}

impl TimeOfDay {
    /// Checks hours and minutes.
    ///
    /// # Errors
    /// [`RecurrenceError::Time`] outside 00:00 to 23:59.
    pub fn new(hour: u16, minute: u16) -> Result<Self, RecurrenceError> {
        if hour < 24 && minute < 60 {
            Ok(Self { minutes: hour * 60 + minute })
        } else {
            Err(RecurrenceError::Time { text: format!("{hour:02}:{minute:02}") })
        }
    }
}

impl MinuteOfHour {
    /// Checks the number.
    ///
    /// # Errors
    /// [`RecurrenceError::Minute`] above 59.
    pub fn new(minute: u8) -> Result<Self, RecurrenceError> {
        if minute < 60 { Ok(Self(minute)) } else { Err(RecurrenceError::Minute { minute }) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl MinuteStep {
    /// Checks the number.
    ///
    /// # Errors
    /// [`RecurrenceError::Step`] when it does not divide 1440.
    pub fn new(minutes: u64) -> Result<Self, RecurrenceError> {
        let refused = RecurrenceError::Step { minutes };
        match u16::try_from(minutes) {
            Ok(step) if step > 0 && DAY.is_multiple_of(minutes) => Ok(Self(step)),
            _ => Err(refused),
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Weekday {
    const NAMES: [(Self, &'static str); 7] = [
        (Self::Monday, "monday"),
        (Self::Tuesday, "tuesday"),
        (Self::Wednesday, "wednesday"),
        (Self::Thursday, "thursday"),
        (Self::Friday, "friday"),
        (Self::Saturday, "saturday"),
        (Self::Sunday, "sunday"),
    ];

    /// The day that many days after Monday; `None` above 6.
    #[must_use]
    pub fn after_monday(days: u8) -> Option<Self> {
        Self::NAMES.get(usize::from(days)).map(|(day, _)| *day)
    }

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Monday => "monday",
            Self::Tuesday => "tuesday",
            Self::Wednesday => "wednesday",
            Self::Thursday => "thursday",
            Self::Friday => "friday",
            Self::Saturday => "saturday",
            Self::Sunday => "sunday",
        }
    }

    /// Days since a Thursday, which 1970-01-01 was.
    const fn after_thursday(self) -> u64 {
        match self {
            Self::Thursday => 0,
            Self::Friday => 1,
            Self::Saturday => 2,
            Self::Sunday => 3,
            Self::Monday => 4,
            Self::Tuesday => 5,
            Self::Wednesday => 6,
        }
    }
}

impl FromStr for TimeOfDay {
    type Err = RecurrenceError;

    fn from_str(text: &str) -> Result<Self, RecurrenceError> {
        let bad = || RecurrenceError::Time { text: shown(text) };
        let (hour, minute) = text.split_once(':').ok_or_else(bad)?;
        let number = |digits: &str| {
            let plain = matches!(digits.len(), 1 | 2) && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten()
        };
        match (number(hour), number(minute)) {
            (Some(hour), Some(minutes)) if minute.len() == 2 => Self::new(hour, minutes).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.minutes / 60, self.minutes % 60)
    }
}

impl FromStr for Recurrence {
    type Err = RecurrenceError;

    fn from_str(text: &str) -> Result<Self, RecurrenceError> {
        let bad = || RecurrenceError::Form { text: shown(text) };
        let lower = text.to_ascii_lowercase();
        let words: Vec<&str> = lower.split_whitespace().collect();
        match words.as_slice() {
            ["hourly"] => Ok(Self::Hourly(MinuteOfHour::default())),
            ["hourly", "at", "minute", minute] => Ok(Self::Hourly(MinuteOfHour::new(minute.parse().map_err(|_| bad())?)?)),
            ["daily", "at", time] => Ok(Self::Daily(time.parse()?)),
            ["weekly", "on", day, "at", time] => {
                let named = |(_, name): &&(Weekday, &str)| name == day || name.get(..3) == Some(*day);
                let (day, _) = Weekday::NAMES.iter().find(named).ok_or_else(bad)?;
                Ok(Self::Weekly(*day, time.parse()?))
            }
            ["every", number, "minute" | "minutes"] => Ok(Self::Minutes(MinuteStep::new(number.parse().map_err(|_| bad())?)?)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Recurrence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hourly(MinuteOfHour(0)) => f.write_str("hourly"),
            Self::Hourly(MinuteOfHour(minute)) => write!(f, "hourly at minute {minute}"),
            Self::Daily(at) => write!(f, "daily at {at}"),
            Self::Weekly(day, at) => write!(f, "weekly on {} at {at}", day.as_str()),
            Self::Minutes(step) => write!(f, "every {} minutes", step.0),
        }
    }
}

impl TryFrom<String> for Recurrence {
    type Error = RecurrenceError;

    fn try_from(text: String) -> Result<Self, RecurrenceError> {
        text.parse()
    }
}

impl From<Recurrence> for String {
    fn from(recurrence: Recurrence) -> Self {
        recurrence.to_string()
    }
}

/// As much of a refused text as belongs in a message.
fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use lamina_contract::Timestamp;
    use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, proptest};

    use super::{MinuteOfHour, MinuteStep, Recurrence, TimeOfDay, Weekday};
    use crate::calendar::Minute;

    fn at(stamp: &str) -> Timestamp {
        Minute::from_stamp(stamp).expect("a date").start()
    }

    #[test]
    fn the_next_run_is_the_first_after_now() {
        for (text, now, next) in [
            ("hourly", "20260101-1000", "20260101-1100"),
            ("hourly", "20260101-1059", "20260101-1100"),
            ("hourly at minute 15", "20260101-1014", "20260101-1015"),
            ("hourly at minute 15", "20260101-1015", "20260101-1115"),
            ("daily at 02:30", "20260101-0229", "20260101-0230"),
            ("daily at 02:30", "20260101-0230", "20260102-0230"),
            ("daily at 00:00", "20251231-2359", "20260101-0000"),
            ("daily at 23:59", "20240228-2359", "20240229-2359"),
            // 2026-01-01 is a Thursday.
            ("weekly on thursday at 10:00", "20260101-0959", "20260101-1000"),
            ("weekly on thursday at 10:00", "20260101-1000", "20260108-1000"),
            ("weekly on monday at 00:00", "20260101-1000", "20260105-0000"),
            ("weekly on wednesday at 23:59", "20260101-1000", "20260107-2359"),
            ("every 15 minutes", "20260101-1014", "20260101-1015"),
            ("every 1 minutes", "20260101-1014", "20260101-1015"),
            ("every 1440 minutes", "20260101-1014", "20260102-0000"),
            ("every 288 minutes", "20260101-2300", "20260102-0000"),
        ] {
            let recurrence: Recurrence = text.parse().expect("right");
            assert_eq!(recurrence.next(at(now)).stamp(), next, "{text} after {now}");
        }
    }

    #[test]
    fn the_latest_run_is_the_last_one_that_is_due_and_none_before_the_first_ever() {
        let weekly: Recurrence = "weekly on wednesday at 12:00".parse().expect("right");
        assert_eq!(weekly.latest(Timestamp(0)), None);
        assert_eq!(weekly.next(Timestamp(0)).stamp(), "19700107-1200");
        assert_eq!(weekly.latest(at("20260107-1159")).map(Minute::stamp), Some("20251231-1200".to_owned()));
        assert_eq!(weekly.latest(at("20260107-1200")).map(Minute::stamp), Some("20260107-1200".to_owned()));
    }

    #[test]
    fn text_is_read_as_people_write_it_and_what_is_wrong_is_said() {
        for (text, canonical) in [
            (" Hourly ", "hourly"),
            ("daily at 2:05", "daily at 02:05"),
            ("weekly on Sun at 23:59", "weekly on sunday at 23:59"),
            ("every 1 minute", "every 1 minutes"),
        ] {
            assert_eq!(text.parse::<Recurrence>().map(|right| right.to_string()), Ok(canonical.to_owned()));
        }
        for (text, words) in [
            ("", "none of"),
            ("daily", "none of"),
            ("yearly", "none of"),
            ("hourly at minute 60", "0 to 59"),
            ("hourly at minute 256", "none of"),
            ("daily at 24:00", "'24:00' is not a time"),
            ("daily at 12:60", "not a time"),
            ("daily at 12", "not a time"),
            ("daily at 12:5", "not a time"),
            ("daily at +1:00", "not a time"),
            ("daily at 123456789:00", "not a time"),
            ("weekly on someday at 12:00", "none of"),
            ("weekly on s at 12:00", "none of"),
            ("every 7 minutes", "do not divide"),
            ("every 0 minutes", "do not divide"),
            ("every 2880 minutes", "do not divide"),
            ("every -5 minutes", "none of"),
            ("every 99999999999999999999 minutes", "none of"),
        ] {
            let refused = text.parse::<Recurrence>().expect_err(text).to_string();
            assert!(refused.contains(words), "{text}: {refused}");
        }
    }

    #[test]
    fn a_recurrence_is_its_text_in_documents() {
        let recurrence: Recurrence = serde_json::from_str("\"daily at 02:30\"").expect("right");
        assert_eq!(serde_json::to_string(&recurrence).expect("text"), "\"daily at 02:30\"");
        assert!(serde_json::from_str::<Recurrence>("\"daily at 25:30\"").is_err());
    }

    fn recurrences() -> impl Strategy<Value = Recurrence> {
        let time = || (0_u16..24, 0_u16..60).prop_map(|(hour, minute)| TimeOfDay::new(hour, minute).expect("in bounds"));
        let steps: Vec<u64> = (1..=1440).filter(|step| 1440 % step == 0).collect();
        proptest::prop_oneof![
            (0_u8..60).prop_map(|minute| Recurrence::Hourly(MinuteOfHour::new(minute).expect("in bounds"))),
            time().prop_map(Recurrence::Daily),
            (0_usize..7, time()).prop_map(|(day, at)| Recurrence::Weekly(Weekday::NAMES[day].0, at)),
            proptest::sample::select(steps).prop_map(|step| Recurrence::Minutes(MinuteStep::new(step).expect("divides"))),
        ]
    }

    proptest! {
        #[test]
        fn latest_and_next_enclose_now_with_nothing_between(recurrence in recurrences(), now in 700_000_000_u64..200_000_000_000_000) {
            let now = Timestamp(now);
            let latest = recurrence.latest(now).expect("long after the first");
            let next = recurrence.next(now);
            prop_assert!(latest.start() <= now && now < next.start());
            prop_assert_eq!(recurrence.next(latest.start()), next);
            prop_assert_eq!(recurrence.latest(next.start()), Some(next));
        }

        #[test]
        fn what_it_writes_it_reads(recurrence in recurrences()) {
            prop_assert_eq!(recurrence.to_string().parse(), Ok(recurrence));
        }

        #[test]
        fn no_text_and_no_time_make_it_panic(text in "\\PC{0,40}", now in proptest::num::u64::ANY, recurrence in recurrences()) {
            let _ = text.parse::<Recurrence>();
            let _ = (recurrence.latest(Timestamp(now)), recurrence.next(Timestamp(now)));
        }
    }
}
