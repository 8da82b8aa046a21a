//! Times as people and programs both read them: RFC 3339 in UTC, to the second.

use lamina_contract::Timestamp;

const SECONDS_A_DAY: u64 = 86_400;

/// `2026-01-01T00:00:00Z` for a time in milliseconds since the Unix epoch.
#[must_use]
pub fn rfc3339(at: Timestamp) -> String {
    let seconds = at.0 / 1000;
    let (days, second) = (seconds / SECONDS_A_DAY, seconds % SECONDS_A_DAY);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// The same for the beginning of something: the first whole second within, so that asking for the time that is shown is not too early.
#[must_use]
pub fn rfc3339_not_before(at: Timestamp) -> String {
    rfc3339(Timestamp(at.0.div_ceil(1000).saturating_mul(1000)))
}

/// The Gregorian date `days` after 1970-01-01, counted in eras of 400 years that begin in March, so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    // 719,468 days from 0000-03-01 to 1970-01-01; 146,097 days an era.
    let since = days + 719_468;
    let (era, day_of_era) = (since / 146_097, since % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The time that `text` says: RFC 3339 with any offset; fractions down to a millisecond count, leap seconds as the second before.
/// `None` before 1970 and for text that is none.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    let number = |range: std::ops::Range<usize>| {
        let digits = text.get(range)?;
        if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None }
    };
    let is = |at: usize, any: &[u8]| text.as_bytes().get(at).is_some_and(|byte| any.contains(byte));
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let days = days_since_1970(year, month, day)?;
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let rest = text.get(19..)?;
    let (milliseconds, zone) = fraction(rest)?;
    let local = (days * SECONDS_A_DAY + hour * 3600 + minute * 60 + second.min(59)) * 1000 + milliseconds;
    let at = i64::try_from(local).ok()?.checked_sub(offset(zone)? * 1000)?;
    u64::try_from(at).ok().map(Timestamp)
}

/// Milliseconds of `.123456Z`, and what is behind them.
fn fraction(text: &str) -> Option<(u64, &str)> {
    let Some(fraction) = text.strip_prefix('.') else { return Some((0, text)) };
    let end = fraction.bytes().position(|b| !b.is_ascii_digit())?;
    let (digits, zone) = fraction.split_at_checked(end)?;
    let thousandths: String = digits.chars().chain("000".chars()).take(3).collect();
    if digits.is_empty() { None } else { Some((thousandths.parse().ok()?, zone)) }
}

/// Seconds that a zone is ahead of UTC.
fn offset(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, time) = match zone.split_at_checked(1)? {
        ("+", time) => (1, time),
        ("-", time) => (-1, time),
        _ => return None,
    };
    let (hours, minutes) = time.split_once(':')?;
    let two = |text: &str| (text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse::<i64>().ok())?;
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// The inverse of [`civil`] for days that there are since 1970.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 || !(1..=12).contains(&month) {
        return None;
    }
    let march_year = year - u64::from(month <= 2);
    let (era, year_of_era) = (march_year / 400, march_year % 400);
    let march_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * march_month + 2) / 5 + day.checked_sub(1)?;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = days.checked_sub(719_468)?;
    // A day that its month does not have comes out as one of the next month.
    (civil(days) == (year, month, day)).then_some(days)
}

#[cfg(test)]
mod tests {
    use lamina_contract::Timestamp;

    use super::{parse_rfc3339, rfc3339, rfc3339_not_before};

    #[test]
    fn times_are_read_back_in_any_zone_and_refused_when_the_calendar_has_none() {
        for seconds in [0, 951_782_400, 1_709_251_199, 1_767_225_600, 4_107_542_400, 253_402_300_799] {
            assert_eq!(parse_rfc3339(&rfc3339(Timestamp(seconds * 1000))), Some(Timestamp(seconds * 1000)));
        }
        let at = parse_rfc3339("2026-01-01T00:00:00Z");
        assert_eq!(parse_rfc3339("2026-01-01T02:30:00+02:30"), at);
        assert_eq!(parse_rfc3339("2025-12-31t19:00:00-05:00"), at);
        assert_eq!(parse_rfc3339("2026-01-01T00:00:00.2509Z").map(|at| at.0 % 1000), Some(250));
        for bad in [
            "",
            "2026-01-01",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+0100",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+01:00",
            "+026-01-01T00:00:00Z",
            "2026-01-01T00:00:0äZ",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_beginning_that_is_shown_lies_within() {
        for at in [0, 1, 999, 1000, 1001, 1_767_225_600_250] {
            let shown = parse_rfc3339(&rfc3339_not_before(Timestamp(at))).expect("a time");
            assert!(shown.0 >= at && shown.0 < at + 1000, "{at}: {shown:?}");
        }
        assert!(rfc3339_not_before(Timestamp(u64::MAX)).ends_with('Z'));
    }

    #[test]
    fn times_read_as_the_calendar_says() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(Timestamp(seconds * 1000 + 999)), text);
        }
        assert!(rfc3339(Timestamp(u64::MAX)).ends_with('Z'));
    }
}
