//! What a process has used, as the kernel counts it.

use std::time::Duration;

use crate::error::HarnessError;

/// Figures of one process (all its threads).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessUse {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel on its behalf.
    pub system: Duration,
    /// Resident memory in bytes.
    pub resident: u64,
    /// Highest resident memory in bytes.
    pub peak_resident: u64,
    /// Bytes it caused to be written to block devices (page cache included, when it is dirtied).
    pub written: u64,
    /// Bytes it caused to be read from block devices.
    pub read: u64,
    /// Open file descriptors.
    pub descriptors: u64,
}

impl ProcessUse {
    /// User and system time together.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

/// Reads the figures of `pid`.
///
/// # Errors
/// [`HarnessError::File`] when the process is gone.
pub fn process_use(pid: i32) -> Result<ProcessUse, HarnessError> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::read_to_string(&path).map_err(HarnessError::file("read", path))
    };
    let (user, system) = cpu_times(&read("stat")?);
    let (status, io) = (read("status")?, read("io").unwrap_or_default());
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64);
    Ok(ProcessUse {
        user,
        system,
        resident: field(&status, "VmRSS:") * 1024,
        peak_resident: field(&status, "VmHWM:") * 1024,
        written: field(&io, "write_bytes:"),
        read: field(&io, "read_bytes:"),
        descriptors,
    })
}

/// Fields 14 and 15 of `stat`, counted in clock ticks of 10 ms; the name in field 2 may hold spaces, so they are counted behind it.
fn cpu_times(stat: &str) -> (Duration, Duration) {
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = behind_name.split_whitespace().skip(11).map(|ticks| ticks.parse::<u64>().unwrap_or(0));
    let mut next = || Duration::from_millis(fields.next().unwrap_or(0) * 10);
    (next(), next())
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{cpu_times, process_use};
    use std::time::Duration;

    #[test]
    fn cpu_times_are_found_behind_a_name_with_spaces() {
        let stat = "12 (a b) c) S 1 2 3 4 5 6 7 8 9 10 250 13 14 15";
        assert_eq!(cpu_times(stat), (Duration::from_millis(2500), Duration::from_millis(130)));
    }

    #[test]
    fn this_process_is_resident_and_has_descriptors() {
        let now = process_use(std::process::id().cast_signed()).expect("self");
        assert!(now.resident > 100_000 && now.peak_resident >= now.resident && now.descriptors >= 3);
    }
}
