//! Minutes, days and months in UTC, as computers count them: every day has 1,440 minutes, leap seconds do not exist.

use chrono::{DateTime, Datelike, NaiveDate, Utc};
use lamina_contract::Timestamp;

const MINUTE_MS: u64 = 60_000;

/// 9999-12-31T23:59: the last minute whose date has four digits for the year.
const LAST: u64 = 4_223_371_679;

/// A minute since the Unix epoch: when something is due. Not later than the year 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Minute(u64);

impl Minute {
    /// The minute number `minutes`; times beyond the year 9999 are its last minute.
    #[must_use]
    pub const fn new(minutes: u64) -> Self {
        Self(if minutes < LAST { minutes } else { LAST })
    }

    /// The minute that `at` lies in.
    #[must_use]
    pub const fn of(at: Timestamp) -> Self {
        Self::new(at.0 / MINUTE_MS)
    }

    /// Minutes since the epoch.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Its first millisecond.
    #[must_use]
    pub const fn start(self) -> Timestamp {
        Timestamp(self.0 * MINUTE_MS)
    }

    /// `20260105-0200`.
    #[must_use]
    pub fn stamp(self) -> String {
        self.date_time().format("%Y%m%d-%H%M").to_string()
    }

    /// The inverse of [`Minute::stamp`]; `None` for anything that it does not write.
    #[must_use]
    pub fn from_stamp(text: &str) -> Option<Self> {
        let (date, time) = text.split_once('-')?;
        let digits = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(date, 8) || !digits(time, 4) {
            return None;
        }
        let (date, time): (u32, u32) = (date.parse().ok()?, time.parse().ok()?);
        let year = i32::try_from(date / 10_000).ok()?;
        let at = NaiveDate::from_ymd_opt(year, date / 100 % 100, date % 100)?.and_hms_opt(time / 100, time % 100, 0)?;
        // Before 1970 there were none.
        u64::try_from(at.and_utc().timestamp()).ok().map(|seconds| Self::new(seconds / 60))
    }

    /// The hour, day, week (from Monday) or month that it lies in, as a number that only means something beside others of its kind.
    #[must_use]
    pub fn period(self, length: Period) -> u64 {
        match length {
            Period::Hour => self.0 / 60,
            Period::Day => self.0 / DAY,
            // 1970-01-01 was a Thursday, three days after a Monday.
            Period::Week => (self.0 / DAY + 3) / 7,
            Period::Month => {
                let at = self.date_time();
                u64::from(at.year_ce().1) * 12 + u64::from(at.month0())
            }
        }
    }

    fn date_time(self) -> DateTime<Utc> {
        // Cannot be out of range up to the year 9999; the epoch would be a wrong date, never a crash.
        i64::try_from(self.0 * 60).ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0)).unwrap_or_default()
    }
}

/// Minutes in a day.
pub const DAY: u64 = 1440;

/// What snapshots are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// From minute 0.
    Hour,
    /// From midnight UTC.
    Day,
    /// From Monday, midnight UTC.
    Week,
    /// From its first day, midnight UTC.
    Month,
}

#[cfg(test)]
mod tests {
    use lamina_contract::Timestamp;

    use super::{LAST, Minute, Period};

    #[test]
    fn a_stamp_is_the_date_and_reads_back() {
        for (minutes, stamp) in
            [(0, "19700101-0000"), (28_487_459, "20240229-2259"), (29_453_760, "20260101-0000"), (LAST, "99991231-2359")]
        {
            assert_eq!(Minute::new(minutes).stamp(), stamp);
            assert_eq!(Minute::from_stamp(stamp), Some(Minute::new(minutes)));
        }
        for wrong in [
            "",
            "2026",
            "20260101-0060",
            "20261301-0000",
            "20250229-0000",
            "20260101-00000",
            "19691231-2359",
            "20260101-2400",
            " 20260101-0000",
            "+2026101-0000",
        ] {
            assert_eq!(Minute::from_stamp(wrong), None, "{wrong}");
        }
        assert_eq!(Minute::of(Timestamp(u64::MAX)).stamp(), "99991231-2359");
    }

    #[test]
    fn weeks_begin_on_monday_and_months_on_their_first_day() {
        let at = |stamp| Minute::from_stamp(stamp).expect("a date");
        let (sunday, monday) = (at("20260104-2359"), at("20260105-0000"));
        assert_eq!(sunday.period(Period::Week) + 1, monday.period(Period::Week));
        assert_eq!(monday.period(Period::Week), at("20260111-2359").period(Period::Week));
        assert_eq!(at("20251231-2359").period(Period::Month) + 1, at("20260101-0000").period(Period::Month));
        assert_eq!(sunday.period(Period::Day) + 1, monday.period(Period::Day));
        assert_eq!(at("20260104-2200").period(Period::Hour) + 1, sunday.period(Period::Hour));
    }
}
