//! Snapshots, clones and what people set on a volume: what Coordination must know of them to decide.
//!
//! A snapshot stands between two containers: all entries up to container `after` belong to it. So it costs nothing to take, survives a
//! replay of the journal on any node, and nothing that is stored later can change it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::clock::Timestamp;
use crate::units::{ScoNumber, UnitError, VolumeId, VolumeName};

/// What people wrote on a thing, by key.
pub type Labels = BTreeMap<String, String>;

/// The most labels that one thing has.
pub const MOST_LABELS: usize = 64;
/// The most bytes of a description.
pub const MOST_DESCRIPTION: usize = 1024;
/// The most bytes of a label's value.
pub const MOST_LABEL_VALUE: usize = 255;

/// Checks labels from outside: keys of 1 to 63 characters out of `a-z0-9._/-`, values of up to 255 bytes without control characters.
///
/// # Errors
/// [`UnitError::Label`].
pub fn check_labels(labels: &Labels) -> Result<(), UnitError> {
    let bad = |key: &str| UnitError::Label { key: key.chars().take(80).collect() };
    if labels.len() > MOST_LABELS {
        return Err(bad(&format!("{} labels", labels.len())));
    }
    let key_fits = |key: &str| {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._/-".contains(&b);
        (1..=63).contains(&key.len()) && key.bytes().all(fits)
    };
    let value_fits = |value: &str| value.len() <= MOST_LABEL_VALUE && !value.chars().any(char::is_control);
    labels.iter().try_for_each(|(key, value)| if key_fits(key) && value_fits(value) { Ok(()) } else { Err(bad(key)) })
}

/// The identity of a snapshot: 64 random bits, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub u64);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for SnapshotId {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        text.parse::<VolumeId>().map(|id| Self(id.0))
    }
}

/// A snapshot's name for people, unique in its volume: `[a-z0-9-]{1,63}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName(VolumeName);

impl SnapshotName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`UnitError::Name`] when it does not match `[a-z0-9-]{1,63}`.
    pub fn new(name: &str) -> Result<Self, UnitError> {
        VolumeName::new(name).map(Self)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is said of a snapshot; nothing of it says where its blocks are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotNote {
    /// Its identity.
    pub id: SnapshotId,
    /// Its name.
    pub name: SnapshotName,
    /// The moment that it shows.
    pub created: Timestamp,
    /// The volume's capacity then.
    pub size_bytes: u64,
    /// For people and schedules.
    pub labels: Labels,
    /// For people.
    pub description: String,
    /// Must not be deleted until that is taken back.
    pub pinned: bool,
    /// Made by the appliance: what a rollback discarded, what a clone was made from.
    pub automatic: bool,
}

/// A cut that was promised and is not in a manifest yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The last container before it.
    pub after: ScoNumber,
    /// What it is known as.
    pub note: SnapshotNote,
    /// The volume goes on from this snapshot of its own behind the cut, instead of from the cut.
    pub rollback: Option<SnapshotId>,
}

/// What a clone was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// The volume.
    pub volume: VolumeId,
    /// Its snapshot.
    pub snapshot: SnapshotId,
}

/// What an operator may change on a volume at any time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeSettings {
    /// For people and schedules.
    pub labels: Labels,
    /// Made to be cloned: it refuses writes.
    pub template: bool,
    /// Requests per second; None for no limit.
    pub iops: Option<u64>,
    /// Bytes per second; None for no limit.
    pub bandwidth: Option<u64>,
    /// For how many milliseconds at full rate a quiet guest may save up.
    pub burst_ms: u64,
    /// How far back, in milliseconds, the volume can be cloned or rolled back to any second; 0 for snapshots only.
    pub cdp_ms: u64,
    /// Bytes of the dedupe cache that its blocks may take; None for all.
    pub cache_quota: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::{Labels, check_labels};

    #[test]
    fn labels_are_short_and_printable() {
        let one = |key: &str, value: &str| check_labels(&Labels::from([(key.to_owned(), value.to_owned())]));
        assert!(one("app.example/tier", "Größe 1").is_ok());
        assert!(one("", "x").is_err());
        assert!(one("Tier", "x").is_err());
        assert!(one("tier", "a\nb").is_err());
        assert!(one("tier", &"x".repeat(256)).is_err());
        let many: Labels = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
        assert!(check_labels(&many).is_err());
    }
}
