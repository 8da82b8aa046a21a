//! Bounds of bodies: said in the schemas, held here, before anything behind the interface hears of a request.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use lamina_contract::{BlockSize, ScoSize};

use crate::instant::parse_rfc3339;
use crate::name::{Name, volume_name};
use crate::problem::{Problem, ProblemKind};
use crate::schedule::{
    ChangeSchedule, CreateSchedule, Every, Keep, MAX_KEEP, MAX_MINUTES, MAX_SCHEDULE_NAME, MAX_TARGETS, ScheduleTargets,
    ScheduleTime,
};
use crate::snapshot::{ChangeSnapshot, CreateClones, CreateSnapshot, MAX_CLONES, MAX_DESCRIPTION, Rollback};
use crate::token::{CreateToken, MAX_LIFE_SECONDS};
use crate::vm::{ChangeVm, CreateVm, CreateVmSnapshot, MAX_DISKS, MAX_NICS, Machine, VmNic};
use crate::volume::{
    ChangeSettings, ChangeVolume, CreateVolume, MAX_BURST_SECONDS, MAX_CDP_SECONDS, MAX_IOPS, MAX_SIZE_BYTES, Qos, VolumeSettings,
};

/// A body with bounds.
pub(crate) trait Checked {
    /// `InvalidRequest` when something is outside its bounds.
    fn check(&self) -> Result<(), Problem>;
}

fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(ProblemKind::InvalidRequest, detail)
}

fn within(what: &str, value: u64, range: RangeInclusive<u64>) -> Result<(), Problem> {
    if range.contains(&value) {
        Ok(())
    } else {
        Err(invalid(format!("{what} is a number from {} to {}", range.start(), range.end())))
    }
}

fn description(text: &str) -> Result<(), Problem> {
    if text.chars().count() > MAX_DESCRIPTION || text.chars().any(char::is_control) {
        return Err(invalid(format!("a description has up to {MAX_DESCRIPTION} characters and no control characters")));
    }
    Ok(())
}

fn moment(text: &str) -> Result<(), Problem> {
    parse_rfc3339(text).map(|_| ()).ok_or_else(|| invalid("a time is written as RFC 3339 has it: 2026-01-01T00:00:00Z"))
}

/// A snapshot or a moment, not both.
fn source(snapshot: Option<&str>, at: Option<&str>) -> Result<(), Problem> {
    if snapshot.is_some() && at.is_some() {
        return Err(invalid("'snapshot' and 'at' exclude each other"));
    }
    snapshot.map(Name::new).transpose()?;
    at.map(moment).transpose()?;
    Ok(())
}

impl Checked for CreateVolume {
    fn check(&self) -> Result<(), Problem> {
        volume_name(&self.name)?;
        let unit = |error: lamina_contract::UnitError| invalid(error.to_string());
        let block = self.block_size.map_or(Ok(BlockSize::DEFAULT), BlockSize::new).map_err(unit)?;
        self.sco_size.map(ScoSize::new).transpose().map_err(unit)?;
        let block = u64::from(block.get());
        within("size_bytes", self.size_bytes, block..=MAX_SIZE_BYTES)?;
        if !self.size_bytes.is_multiple_of(block) {
            return Err(invalid(format!("size_bytes is a multiple of the block size, {block}")));
        }
        self.settings.check()
    }
}

impl Checked for VolumeSettings {
    fn check(&self) -> Result<(), Problem> {
        self.qos.check()?;
        within("cdp_seconds", self.cdp_seconds, 0..=MAX_CDP_SECONDS)?;
        within("cache_quota_bytes", self.cache_quota_bytes, 0..=MAX_SIZE_BYTES)
    }
}

impl Checked for Qos {
    fn check(&self) -> Result<(), Problem> {
        within("iops", self.iops, 0..=MAX_IOPS)?;
        within("bandwidth_bytes", self.bandwidth_bytes, 0..=MAX_SIZE_BYTES)?;
        within("burst_seconds", self.burst_seconds, 0..=MAX_BURST_SECONDS)
    }
}

impl Checked for ChangeVolume {
    fn check(&self) -> Result<(), Problem> {
        if let Some(size) = self.size_bytes {
            within("size_bytes", size, BlockSize::DEFAULT.get().into()..=MAX_SIZE_BYTES)?;
        }
        if self.force && self.size_bytes.is_none() {
            return Err(invalid("'force' is about 'size_bytes', which is absent"));
        }
        self.settings.map_or(Ok(()), |settings: ChangeSettings| settings.applied_to(VolumeSettings::default()).check())
    }
}

impl Checked for CreateSnapshot {
    fn check(&self) -> Result<(), Problem> {
        Name::new(&self.name)?;
        description(&self.description)
    }
}

impl Checked for ChangeSnapshot {
    fn check(&self) -> Result<(), Problem> {
        self.description.as_deref().map_or(Ok(()), description)
    }
}

impl Checked for Rollback {
    fn check(&self) -> Result<(), Problem> {
        if self.snapshot.is_none() && self.at.is_none() {
            return Err(invalid("say what to go back to: 'snapshot' or 'at'"));
        }
        source(self.snapshot.as_deref(), self.at.as_deref())
    }
}

impl Checked for CreateClones {
    fn check(&self) -> Result<(), Problem> {
        source(self.snapshot.as_deref(), self.at.as_deref())?;
        self.spelled_out().map(|_| ())
    }
}

impl CreateClones {
    /// The names of all clones: each valid, none twice.
    ///
    /// # Errors
    /// `InvalidRequest`.
    pub fn spelled_out(&self) -> Result<Vec<String>, Problem> {
        let names = match (&self.name, self.count) {
            (None, None) if !self.names.is_empty() => self.names.clone(),
            (Some(name), count) if self.names.is_empty() => numbered(name, count.unwrap_or(1))?,
            _ => return Err(invalid("name the clones: either 'names', or 'name' with or without 'count'")),
        };
        within("the number of clones", names.len() as u64, 1..=MAX_CLONES.into())?;
        names.iter().try_for_each(|name| volume_name(name).map(|_| ()))?;
        let different: BTreeSet<_> = names.iter().collect();
        if different.len() < names.len() {
            return Err(invalid("each clone has a name of its own"));
        }
        Ok(names)
    }
}

fn numbered(name: &str, count: u32) -> Result<Vec<String>, Problem> {
    within("count", count.into(), 1..=MAX_CLONES.into())?;
    // What the longest name with the longest number may have; said before a thousand copies are made.
    if name.len() > 66 {
        return Err(invalid("a name has up to 63 characters"));
    }
    if count > 1 && !name.contains("{n}") {
        return Err(invalid("more than one clone needs '{n}' in the name, for its number"));
    }
    Ok((1..=count).map(|number| name.replace("{n}", &number.to_string())).collect())
}

impl Checked for CreateVm {
    fn check(&self) -> Result<(), Problem> {
        Name::new(&self.name)?;
        self.machine.check()?;
        self.guest_agent.as_deref().map_or(Ok(()), agent)
    }
}

impl Checked for ChangeVm {
    fn check(&self) -> Result<(), Problem> {
        self.machine.as_ref().map_or(Ok(()), Checked::check)?;
        self.guest_agent.as_deref().filter(|path| !path.is_empty()).map_or(Ok(()), agent)
    }
}

/// A socket's path ends after 107 bytes.
fn agent(path: &str) -> Result<(), Problem> {
    if !path.starts_with('/') || !(2..=107).contains(&path.len()) || path.chars().any(char::is_control) {
        return Err(invalid("guest_agent is the absolute path of a socket, up to 107 bytes"));
    }
    Ok(())
}

impl Checked for Machine {
    fn check(&self) -> Result<(), Problem> {
        within("cpus", self.cpus.into(), 1..=1024)?;
        within("memory_bytes", self.memory_bytes, 1 << 20..=64 << 40)?;
        within("the number of disks", self.disks.len() as u64, 1..=MAX_DISKS as u64)?;
        within("the number of nics", self.nics.len() as u64, 0..=MAX_NICS as u64)?;
        let mut seen = BTreeSet::new();
        for disk in &self.disks {
            volume_name(&disk.volume)?;
            if !seen.insert(&disk.volume) {
                return Err(invalid(format!("volume '{}' is named as two disks", disk.volume)));
            }
            disk.boot_order.map_or(Ok(()), |order| within("boot_order", order.into(), 1..=MAX_DISKS as u64))?;
        }
        self.nics.iter().try_for_each(Checked::check)
    }
}

impl Checked for VmNic {
    fn check(&self) -> Result<(), Problem> {
        let link = match (&self.bridge, &self.network) {
            (Some(bridge), None) if bridge.len() <= 15 => bridge,
            (None, Some(network)) if network.len() <= 63 => network,
            _ => return Err(invalid("a nic is on a 'bridge' (up to 15 characters) or on a 'network' (up to 63), one of them")),
        };
        if link.is_empty() || !link.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
            return Err(invalid("names of bridges and networks have letters, digits, '_', '.' and '-'"));
        }
        let hex = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match &self.mac {
            Some(mac) if mac.split(':').count() != 6 || !mac.split(':').all(hex) => {
                Err(invalid("a mac is written 52:54:00:12:34:56"))
            }
            _ => Ok(()),
        }
    }
}

impl Checked for CreateVmSnapshot {
    fn check(&self) -> Result<(), Problem> {
        Name::new(&self.name)?;
        description(&self.description)
    }
}

impl Checked for CreateSchedule {
    fn check(&self) -> Result<(), Problem> {
        Name::new(&self.name)?;
        if self.name.len() > MAX_SCHEDULE_NAME {
            return Err(invalid(format!(
                "a schedule's name has up to {MAX_SCHEDULE_NAME} characters: a time follows it in snapshots' names"
            )));
        }
        self.targets.check()?;
        self.every.check()?;
        self.at.as_deref().map_or(Ok(()), |at| at.parse::<ScheduleTime>().map(|_| ()))?;
        self.keep.check()
    }
}

impl Checked for ChangeSchedule {
    fn check(&self) -> Result<(), Problem> {
        self.targets.as_ref().map_or(Ok(()), Checked::check)?;
        self.every.map_or(Ok(()), |every| every.check())?;
        self.at.as_deref().map_or(Ok(()), |at| at.parse::<ScheduleTime>().map(|_| ()))?;
        self.keep.map_or(Ok(()), |keep| keep.check())
    }
}

impl Checked for ScheduleTargets {
    fn check(&self) -> Result<(), Problem> {
        if self.is_empty() {
            return Err(invalid("a schedule names volumes or VMs, or labels of some"));
        }
        within("the number of targets", (self.volumes.len() + self.vms.len()) as u64, 0..=MAX_TARGETS as u64)?;
        self.volumes.iter().chain(&self.vms).try_for_each(|name| Name::new(name).map(|_| ()))
    }
}

impl Checked for Every {
    fn check(&self) -> Result<(), Problem> {
        match self {
            Self::Minutes(minutes) if *minutes > 0 && MAX_MINUTES.is_multiple_of(*minutes) => Ok(()),
            Self::Minutes(_) => {
                Err(invalid("minutes divide a day of 1440: 1, 5, 10, 15, 20, 30, 60, 120, 240, 360, 480, 720 and others"))
            }
            Self::Hourly | Self::Daily | Self::Weekly => Ok(()),
        }
    }
}

impl Checked for Keep {
    fn check(&self) -> Result<(), Problem> {
        let counts = [self.last, self.hourly, self.daily, self.weekly, self.monthly];
        counts.iter().try_for_each(|count| within("each number of 'keep'", (*count).into(), 0..=MAX_KEEP.into()))
    }
}

impl Checked for CreateToken {
    fn check(&self) -> Result<(), Problem> {
        Name::new(&self.name)?;
        self.scope.as_deref().map(Name::new).transpose()?;
        self.expires_in_seconds.map_or(Ok(()), |life| within("expires_in_seconds", life, 1..=MAX_LIFE_SECONDS))
    }
}

#[cfg(test)]
mod tests {
    use crate::snapshot::CreateClones;

    #[test]
    fn clones_are_numbered_or_named_and_never_both() {
        let many = CreateClones { name: Some("desk-{n}".to_owned()), count: Some(3), ..CreateClones::default() };
        assert_eq!(many.spelled_out().expect("names"), ["desk-1", "desk-2", "desk-3"]);
        let one = CreateClones { name: Some("desk".to_owned()), ..CreateClones::default() };
        assert_eq!(one.spelled_out().expect("names"), ["desk"]);
        let named =
            |names: &[&str]| CreateClones { names: names.iter().map(|&name| name.to_owned()).collect(), ..CreateClones::default() };
        assert_eq!(named(&["a", "b"]).spelled_out().expect("names"), ["a", "b"]);
        for bad in [
            CreateClones::default(),
            CreateClones { count: Some(2), ..one.clone() },
            CreateClones { count: Some(1001), ..many.clone() },
            CreateClones { count: Some(0), ..many.clone() },
            CreateClones { names: vec!["x".to_owned()], ..many },
            CreateClones { count: Some(1), ..named(&["a"]) },
            CreateClones { name: Some("{m}".to_owned()), ..one },
            named(&["a", "a"]),
            named(&["A"]),
        ] {
            assert!(bad.spelled_out().is_err(), "{bad:?}");
        }
    }
}
