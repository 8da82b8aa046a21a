//! Twice thirty seconds of writing with the journal full: the store sets the pace, and the pace is put beside what the slowest of
//! hashing, coding and the disk allows.
//!
//! Each guest byte is hashed once, coded once, and written at least 2.5 times (once to the journal, 6/4 times to the drives), all
//! to one disk here. The client's own work is not subtracted. A machine with two cores also runs the client: the
//! limits of hashing and coding are those of one core.

use std::path::Path;
use std::time::Duration;

use lamina_harness::{HarnessError, process_use};

use crate::contender::{Contender, Sizes};
use crate::limits::{self, Limits};
use crate::load::{self, Load, Order, Way};
use crate::report::{Goal, Report, Run, Series};
use crate::settings::Settings;

/// Journal 1 + fragments 6/4.
const BYTES_PER_BYTE: f64 = 2.5;
/// Rest after tens of thousands of files were removed: ext4 without a journal does not use an inode again that went less than a minute
/// ago, and whoever makes a file next to many such looks at each of them.
const INODE_REST: Duration = Duration::from_secs(65);

pub(crate) fn run(root: &Path, settings: &Settings, machine: Limits, report: &mut Report) -> Result<(), HarnessError> {
    let time = Duration::from_secs(if settings.quick { 10 } else { 60 });
    let sizes = Sizes { journal: 512 << 20, cache: 512 << 20, ..settings.sizes() };
    let disk_time = settings.burst();
    rest(settings);
    let before = limits::disk(root, disk_time)?;
    let fill = Duration::from_secs(if settings.quick { 3 } else { 10 });
    check_space(root, (time / 2 + fill).as_secs_f64() * before / BYTES_PER_BYTE * 1.5)?;
    let base = Load {
        way: Way::Write,
        order: Order::Random,
        bytes: 4096,
        depth: 32,
        set: sizes.set,
        time,
        warm_up: Duration::ZERO,
        poll: false,
    };
    let mut found = Vec::new();
    let mut resident = 0;
    let mut full = Vec::new();
    for (number, (name, bytes)) in
        [("4K random write QD32, journal full", 4096), ("64K random write QD32, journal full", 64 << 10)].into_iter().enumerate()
    {
        rest(settings);
        // Each on drives of its own, which go when it is done: half a minute's writing is tens of gigabytes.
        let place = root.join(format!("sustained{number}"));
        let contender = Contender::lamina_with(&place, sizes, &[])?;
        // Until the journal is full, the guest sees the journal's pace.
        load::run_all(contender.sockets(), &Load { bytes: 64 << 10, time: fill, ..base }, 1)?;
        let start = contender.used()?;
        let load = Load { bytes, time: time / 2, ..base };
        let measured = load::run_all(contender.sockets(), &load, 7)?;
        let end = contender.used()?;
        println!("  {name}: {:.0} MiB/s", measured.bytes_per_second() / f64::from(1 << 20));
        let cpu = end.cpu.saturating_sub(start.cpu);
        let drives = end.to_drives - start.to_drives;
        let written = Some(((end.written - start.written).saturating_sub(drives), drives));
        full.push((start.journal, end.journal));
        resident = resident.max(process_use(contender.pid())?.peak_resident);
        found.push(Series { load: name.to_owned(), contender: "lamina 4+2", runs: vec![Run { measured, cpu, written }] });
        drop(contender);
        std::fs::remove_dir_all(&place).map_err(HarnessError::file("remove", &place))?;
    }
    rest(settings);
    let after = limits::disk(root, disk_time)?;
    let disk = f64::midpoint(before, after);
    let allowed = [("hashing", machine.hash), ("coding", machine.code), ("disk", disk / BYTES_PER_BYTE)];
    let slowest = allowed.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(("disk", f64::INFINITY));
    let limits: Vec<String> = allowed.iter().map(|(name, rate)| format!("{name} {:.0} MB/s", rate / 1e6)).collect();
    for (series, (begin, end)) in found.iter().zip(full) {
        // What the journal took in beyond what the store took out was not sustained.
        let grown = (end - begin).max(0.0) * sizes.journal as f64 / (time / 2).as_secs_f64();
        let rate = series.runs.first().map_or(0.0, |run| run.measured.bytes_per_second()) - grown;
        let note = format!(
            "{:.0} MB/s; journal {:.0} % full before and {:.0} % after; allowed by {}; disk before/after {:.0}/{:.0} MB/s",
            rate / 1e6,
            begin * 100.0,
            end * 100.0,
            limits.join(", "),
            before / 1e6,
            after / 1e6
        );
        report.row(format!("{} / {}", series.load, slowest.0), rate / slowest.1, "×", Goal::AtLeast(0.7), note);
    }
    report.row(
        "resident memory, sustained / cap",
        resident as f64 / sizes.memory as f64,
        "×",
        Goal::AtMost(1.1),
        format!("{} MiB", resident >> 20),
    );
    report.series.extend(found);
    Ok(())
}

/// What the disk still has to do is not to slow what comes next, neither us nor what we are measured against.
fn rest(settings: &Settings) {
    rustix::fs::sync();
    std::thread::sleep(if settings.quick { settings.burst() } else { INODE_REST });
}

/// Says beforehand what a full disk would only show as drives that refuse.
fn check_space(root: &Path, need: f64) -> Result<(), HarnessError> {
    let space = rustix::fs::statvfs(root).map_err(|errno| HarnessError::file("look at the space of", root)(errno.into()))?;
    let free = (space.f_bavail * space.f_frsize) as f64;
    if free < need {
        return Err(HarnessError::Space { path: root.to_owned(), need_gib: gib(need), free_gib: gib(free) });
    }
    Ok(())
}

fn gib(bytes: f64) -> u64 {
    (bytes / f64::from(1 << 30)).ceil() as u64
}
