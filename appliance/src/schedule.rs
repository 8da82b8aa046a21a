//! A schedule as an operator writes it: of what, when, and how many snapshots are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use lamina_contract::{Timestamp, VolumeName};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::calendar::Minute;
use crate::recurrence::Recurrence;
use crate::retention::Keep;

/// The label of a schedule's snapshots; its value is the schedule's name.
pub const LABEL: &str = "schedule";

/// `-YYYYMMDD-HHMM` behind the schedule's name.
const STAMP_BYTES: usize = 14;
/// A snapshot's name is one of 63 characters, as all names are.
const NAME_BYTES: usize = 63 - STAMP_BYTES;

/// A schedule's name: `[a-z0-9-]{1,49}`, so that with a time behind it there is a name of 63 characters for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScheduleName(String);

/// Names and labels that are out of bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// A schedule's name.
    #[error("schedule name '{name}' must be 1 to {NAME_BYTES} characters out of a-z, 0-9 and '-'")]
    Name {
        /// The refused value.
        name: String,
    },
    /// Neither names nor labels.
    #[error("a schedule needs at least one volume, one VM or one label")]
    Empty,
}

impl ScheduleName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`ScheduleError::Name`] when it does not match `[a-z0-9-]{1,49}`.
    pub fn new(name: &str) -> Result<Self, ScheduleError> {
        let fits = (1..=NAME_BYTES).contains(&name.len());
        if fits && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
            Ok(Self(name.to_owned()))
        } else {
            Err(ScheduleError::Name { name: name.chars().take(80).collect() })
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the snapshots of the run `at` are called, on whatever they are taken: `<schedule>-YYYYMMDD-HHMM`.
    #[must_use]
    pub fn snapshot(&self, at: Minute) -> String {
        format!("{}-{}", self.0, at.stamp())
    }

    /// The run that the snapshot `name` with these labels is of, when it is this schedule's. Both must say so: the label is what
    /// decides, and a name of another form was given by hand.
    #[must_use]
    pub fn run_of(&self, name: &str, labels: &Labels) -> Option<Minute> {
        if labels.get(LABEL) != Some(&self.0) {
            return None;
        }
        Minute::from_stamp(name.strip_prefix(&self.0)?.strip_prefix('-')?)
    }
}

impl fmt::Display for ScheduleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ScheduleName {
    type Error = ScheduleError;

    fn try_from(name: String) -> Result<Self, ScheduleError> {
        Self::new(&name)
    }
}

impl From<ScheduleName> for String {
    fn from(name: ScheduleName) -> Self {
        name.0
    }
}

/// What a snapshot is of: all disks of a VM at one barrier, or one volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// One volume.
    Volume(#[serde(with = "name")] VolumeName),
    /// A VM; its names follow the same rules.
    Vm(#[serde(with = "name")] VolumeName),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => write!(f, "volume {name}"),
            Self::Vm(name) => write!(f, "vm {name}"),
        }
    }
}

/// What a schedule is for: everything that any of these names. Not empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TargetLists", into = "TargetLists")]
pub struct Targets(TargetLists);

/// What a schedule is for, as people and documents write it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetLists {
    /// Volumes by name.
    #[serde(with = "names", skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<VolumeName>,
    /// VMs by name.
    #[serde(with = "names", skip_serializing_if = "BTreeSet::is_empty")]
    pub vms: BTreeSet<VolumeName>,
    /// Volumes that have all these labels; none when empty.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub volume_labels: Labels,
    /// VMs that have all these labels; none when empty.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub vm_labels: Labels,
}

/// Words to find something by.
pub type Labels = BTreeMap<String, String>;

impl TryFrom<TargetLists> for Targets {
    type Error = ScheduleError;

    fn try_from(lists: TargetLists) -> Result<Self, ScheduleError> {
        if lists == TargetLists::default() { Err(ScheduleError::Empty) } else { Ok(Self(lists)) }
    }
}

impl From<Targets> for TargetLists {
    fn from(targets: Targets) -> Self {
        targets.0
    }
}

impl Targets {
    /// The lists.
    #[must_use]
    pub const fn lists(&self) -> &TargetLists {
        &self.0
    }

    /// Those named, whether they exist or not: one that does not is an error of its own run, not of the others.
    #[must_use]
    pub fn named(&self) -> BTreeSet<Subject> {
        let volumes = self.0.volumes.iter().cloned().map(Subject::Volume);
        volumes.chain(self.0.vms.iter().cloned().map(Subject::Vm)).collect()
    }

    /// Whether `subject` is one of them, when it carries `labels`.
    #[must_use]
    pub fn contain(&self, subject: &Subject, labels: &Labels) -> bool {
        let (names, name, wanted) = match subject {
            Subject::Volume(name) => (&self.0.volumes, name, &self.0.volume_labels),
            Subject::Vm(name) => (&self.0.vms, name, &self.0.vm_labels),
        };
        let carries = !wanted.is_empty() && wanted.iter().all(|(key, value)| labels.get(key) == Some(value));
        names.contains(name) || carries
    }
}

/// When snapshots of what are taken, and how many are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Its name, in the names of its snapshots and in their label.
    pub name: ScheduleName,
    /// Of what.
    pub targets: Targets,
    /// When, in UTC.
    pub every: Recurrence,
    /// What to keep; absent: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// Whether it runs.
    pub enabled: bool,
    /// When it was made, last changed, or last enabled: runs that were due until then are not made up. Milliseconds since the epoch.
    #[serde(with = "milliseconds", rename = "since_ms")]
    pub since: Timestamp,
}

mod name {
    use super::{Deserialize, Deserializer, Serialize, Serializer, VolumeName};

    pub(super) fn serialize<S: Serializer>(name: &VolumeName, to: S) -> Result<S::Ok, S::Error> {
        name.as_str().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<VolumeName, D::Error> {
        VolumeName::new(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

mod names {
    use super::{BTreeSet, Deserialize, Deserializer, Serializer, VolumeName};

    pub(super) fn serialize<S: Serializer>(names: &BTreeSet<VolumeName>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(names.iter().map(VolumeName::as_str))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<VolumeName>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| VolumeName::new(text).map_err(serde::de::Error::custom)).collect()
    }
}

mod milliseconds {
    use super::{Deserialize, Deserializer, Serialize, Serializer, Timestamp};

    pub(super) fn serialize<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        at.0.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        u64::deserialize(from).map(Timestamp)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lamina_contract::VolumeName;

    use super::{LABEL, Labels, Schedule, ScheduleName, Subject, TargetLists, Targets};
    use crate::calendar::Minute;

    fn labels(value: &str) -> Labels {
        BTreeMap::from([(LABEL.to_owned(), value.to_owned())])
    }

    #[test]
    fn a_snapshot_belongs_to_the_schedule_that_its_label_and_name_both_say() {
        let name = ScheduleName::new("web-daily").expect("right");
        let at = Minute::from_stamp("20260105-0200").expect("a date");
        assert_eq!(name.snapshot(at), "web-daily-20260105-0200");
        assert_eq!(name.run_of("web-daily-20260105-0200", &labels("web-daily")), Some(at));
        assert_eq!(name.run_of("web-daily-20260105-0200", &BTreeMap::new()), None, "made by hand");
        assert_eq!(name.run_of("web-daily-20260105-0200", &labels("web")), None);
        assert_eq!(name.run_of("before-upgrade", &labels("web-daily")), None);
        assert_eq!(name.run_of("web-daily-20260105-0200-x", &labels("web-daily")), None);
        // `web` with a snapshot of `web-daily`: the names begin alike.
        let web = ScheduleName::new("web").expect("right");
        assert_eq!(web.run_of("web-daily-20260105-0200", &labels("web")), None);
    }

    #[test]
    fn names_leave_room_for_the_time() {
        let longest = ScheduleName::new(&"a".repeat(49)).expect("fits");
        assert_eq!(longest.snapshot(Minute::new(u64::MAX)).len(), 63);
        for wrong in ["", "Web", "a b", &"a".repeat(50)] {
            assert!(ScheduleName::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_document_is_read_back_and_a_wrong_one_is_refused() {
        let text = r#"{"name":"night","targets":{"volumes":["web"],"vms":["db"],"vm_labels":{"tier":"gold"}},
            "every":"daily at 02:30","keep":{"daily":7,"weekly":4},"enabled":true,"since_ms":1767225600000}"#;
        let schedule: Schedule = serde_json::from_str(text).expect("right");
        let again = serde_json::to_string(&schedule).expect("text");
        assert_eq!(serde_json::from_str::<Schedule>(&again).expect("right"), schedule);
        for (from, to) in [
            ("\"night\"", "\"Night\""),
            ("daily at 02:30", "daily at 2"),
            ("{\"daily\":7,\"weekly\":4}", "{}"),
            ("[\"db\"]", "[\"../db\"]"),
            ("\"volumes\":[\"web\"],\"vms\":[\"db\"],\"vm_labels\":{\"tier\":\"gold\"}", ""),
            ("\"enabled\"", "\"enable\""),
        ] {
            assert!(serde_json::from_str::<Schedule>(&text.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn targets_are_those_named_and_those_that_carry_all_the_labels() {
        let name = |text| VolumeName::new(text).expect("right");
        let wanted = Labels::from([("tier".to_owned(), "gold".to_owned()), ("os".to_owned(), "linux".to_owned())]);
        let lists = TargetLists { volumes: [name("web")].into(), vm_labels: wanted.clone(), ..TargetLists::default() };
        let targets = Targets::try_from(lists).expect("some");
        assert_eq!(targets.named(), [Subject::Volume(name("web"))].into());
        assert!(targets.contain(&Subject::Volume(name("web")), &Labels::new()));
        assert!(!targets.contain(&Subject::Vm(name("web")), &Labels::new()));
        assert!(targets.contain(&Subject::Vm(name("db")), &wanted));
        assert!(!targets.contain(&Subject::Vm(name("db")), &labels("x")));
        assert!(!targets.contain(&Subject::Volume(name("db")), &wanted), "labels of VMs");
    }
}
