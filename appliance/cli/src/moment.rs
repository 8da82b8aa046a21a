//! Moments as people type them, for `--at`: local time, or RFC 3339.

use chrono::offset::LocalResult;
use chrono::{DateTime, Local, NaiveDate, NaiveDateTime, SecondsFormat, TimeDelta, TimeZone, Utc};

/// Text that says no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MomentError {
    /// In no form that is known.
    #[error("'{0}' is not a time: write \"2026-11-22 10:15:30\" for local time or 2026-11-22T10:15:30Z")]
    Form(Box<str>),
    /// The clocks were set back over it.
    #[error("'{0}' was there twice, since the clocks were set back: write it with its offset, as in 2026-10-25T02:30:00+01:00")]
    Twice(Box<str>),
    /// The clocks were set forward over it.
    #[error("'{0}' was never there, since the clocks were set forward")]
    Never(Box<str>),
}

/// A moment, as the interface wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moment(String);

impl Moment {
    /// RFC 3339 in UTC.
    pub(crate) fn rfc3339(&self) -> &str {
        &self.0
    }

    /// Reads `text`; without an offset it is local time.
    pub(crate) fn parse(text: &str) -> Result<Self, MomentError> {
        Self::within(text, &Local)
    }

    fn within<Z: TimeZone>(text: &str, zone: &Z) -> Result<Self, MomentError> {
        let quoted = || text.chars().take(64).collect();
        let utc = |at: DateTime<Utc>| Self(at.to_rfc3339_opts(SecondsFormat::AutoSi, true));
        if let Ok(at) = DateTime::parse_from_rfc3339(text) {
            return Ok(utc(at.to_utc()));
        }
        let forms = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"];
        let local = forms.iter().find_map(|form| NaiveDateTime::parse_from_str(text, form).ok());
        let midnight = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().and_then(|date| date.and_hms_opt(0, 0, 0));
        let local = local.or_else(midnight).ok_or_else(|| MomentError::Form(quoted()))?;
        match zone.from_local_datetime(&local) {
            LocalResult::Single(at) => Ok(utc(at.to_utc())),
            LocalResult::Ambiguous(_, _) => Err(MomentError::Twice(quoted())),
            LocalResult::None => Err(MomentError::Never(quoted())),
        }
    }
}

/// So many seconds ago, in UTC.
pub(crate) fn ago(seconds: u64) -> DateTime<Utc> {
    let span = i64::try_from(seconds).ok().and_then(TimeDelta::try_seconds);
    span.and_then(|span| Utc::now().checked_sub_signed(span)).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// Whether `one` is before `rfc3339`; not, when that is no time.
pub(crate) fn is_before(one: &DateTime<Utc>, rfc3339: &str) -> bool {
    DateTime::parse_from_rfc3339(rfc3339).is_ok_and(|other| *one <= other)
}

/// The same moment on this machine's clock, for people.
pub(crate) fn local(rfc3339: &str) -> String {
    DateTime::parse_from_rfc3339(rfc3339)
        .map_or_else(|_| rfc3339.to_owned(), |at| at.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string())
}

#[cfg(test)]
mod tests {
    use chrono::FixedOffset;

    use super::Moment;

    #[test]
    fn a_time_without_an_offset_is_local() {
        let zone = FixedOffset::east_opt(2 * 3600).expect("a zone");
        for text in ["2026-11-22 10:15:30", "2026-11-22T10:15:30", "2026-11-22T08:15:30Z", "2026-11-22T09:15:30+01:00"] {
            assert_eq!(Moment::within(text, &zone).expect("a moment").rfc3339(), "2026-11-22T08:15:30Z", "{text}");
        }
        assert_eq!(Moment::within("2026-11-22", &zone).expect("a moment").rfc3339(), "2026-11-21T22:00:00Z");
        for bad in ["", "yesterday", "2026-13-01 00:00:00", "10:15"] {
            assert!(Moment::within(bad, &zone).is_err(), "{bad}");
        }
    }
}
