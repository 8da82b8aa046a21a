//! Lengths of time and limits as people type them: `24h`, `off`, `5000`.

use std::fmt;
use std::str::FromStr;

use lamina_contract::ByteSize;

/// Text that is none of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpanError {
    /// Not a length of time.
    #[error("'{0}' is not a length of time: write 90s, 30m, 24h, 7d or 2w")]
    Span(Box<str>),
    /// Not a limit.
    #[error("'{0}' is not a number; write off for no limit")]
    Number(Box<str>),
}

/// Seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) u64);

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let bad = || SpanError::Span(text.chars().take(64).collect());
        let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = text.split_at(end);
        let seconds: u64 = match unit {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            _ => return Err(bad()),
        };
        number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds)).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(86_400, "d"), (3600, "h"), (60, "m")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}s", self.0)
    }
}

/// A length of time, or `off`, which is 0.
pub(crate) fn span_or_off(text: &str) -> Result<u64, SpanError> {
    if text == "off" { Ok(0) } else { text.parse::<Span>().map(|span| span.0) }
}

/// A number, or `off`, which is 0.
pub(crate) fn number_or_off(text: &str) -> Result<u64, SpanError> {
    if text == "off" { Ok(0) } else { text.parse().map_err(|_| SpanError::Number(text.chars().take(64).collect())) }
}

/// A size, or `off`, which is 0.
pub(crate) fn size_or_off(text: &str) -> Result<u64, lamina_contract::UnitError> {
    if text == "off" { Ok(0) } else { text.parse::<ByteSize>().map(|size| size.0) }
}

#[cfg(test)]
mod tests {
    use super::{Span, number_or_off, size_or_off, span_or_off};

    #[test]
    fn spans_read_as_people_write_them() {
        assert_eq!("24h".parse(), Ok(Span(86_400)));
        assert_eq!((span_or_off("2w"), span_or_off("off")), (Ok(1_209_600), Ok(0)));
        for bad in ["", "24", "h", "1.5h", "99999999999999999999d", "18446744073709551615w", "-1h"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        assert_eq!(
            (Span(86_400).to_string(), Span(5400).to_string(), Span(61).to_string()),
            ("1d".into(), "90m".into(), "61s".into())
        );
        assert_eq!((number_or_off("off"), size_or_off("1KiB")), (Ok(0), Ok(1024)));
        assert!(number_or_off("many").is_err() && size_or_off("").is_err());
    }
}
