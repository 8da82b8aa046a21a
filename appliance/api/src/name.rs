//! Names of snapshots, VMs, schedules and tokens, and the numbers of jobs: parsed once, where a request arrives.

use std::fmt;
use std::str::FromStr;

use lamina_contract::VolumeName;

use crate::problem::{Problem, ProblemKind};

/// What every name matches, as schemas say it.
pub const NAME_PATTERN: &str = "^[a-z0-9-]{1,63}$";

/// A name for people: `[a-z0-9-]{1,63}`. Volumes have [`VolumeName`], which is the same shape.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(VolumeName);

impl Name {
    /// Checks `text`.
    ///
    /// # Errors
    /// `InvalidRequest` when it does not match.
    pub fn new(text: &str) -> Result<Self, Problem> {
        volume_name(text).map(Self)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A volume's name out of a request.
///
/// # Errors
/// `InvalidRequest` when it does not match.
pub fn volume_name(text: &str) -> Result<VolumeName, Problem> {
    VolumeName::new(text).map_err(|error| Problem::new(ProblemKind::InvalidRequest, error.to_string()))
}

/// The number of a job: counts up, also across restarts; 16 hexadecimal digits outside, so that text sorts as numbers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for JobId {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let fits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let number = if fits { u64::from_str_radix(text, 16).ok() } else { None };
        number.map(Self).ok_or_else(|| Problem::new(ProblemKind::InvalidRequest, "a job's id has 16 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::{JobId, Name};

    #[test]
    fn names_and_numbers_are_refused_in_any_other_form() {
        assert_eq!(Name::new("before-upgrade").expect("a name").as_str(), "before-upgrade");
        for bad in ["", "A", "a/b", "a.b", &"x".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
        assert_eq!("00000000000000ff".parse::<JobId>().expect("an id").to_string(), "00000000000000ff");
        for bad in ["ff", "+0000000000000ff", "00000000000000FF", ""] {
            assert!(bad.parse::<JobId>().is_err(), "{bad}");
        }
    }
}
