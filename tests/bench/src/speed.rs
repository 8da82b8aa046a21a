//! Lamina beside `qemu-storage-daemon`: rounds in which each contender is measured once, in turn, on the same disk; ratios are
//! taken within a round and their median is the figure, since a disk's own speed wanders by a third.

use std::path::Path;
use std::time::Duration;

use lamina_harness::HarnessError;

use crate::contender::{Contender, Kind, Sizes, drop_caches};
use crate::load::{self, Load, Order, Way};
use crate::report::{Goal, Report, Run, Series, median};
use crate::settings::Settings;

/// Page cache before each measurement of reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    Warm,
    Cold,
}

/// What is measured in rounds.
struct Contest<'a> {
    name: &'a str,
    load: Load,
    pages: Pages,
    /// Whether Lamina gets new volumes for each round.
    renew: bool,
    /// Whether bytes written are counted until they are stored behind.
    count_bytes: bool,
}

/// The lines under **Speed** that compare with a file.
pub(crate) fn run(root: &Path, settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    if settings.wants("writes") {
        writes(root, settings, report)?;
    }
    if settings.wants("reads") {
        reads(root, settings, report)?;
    }
    if settings.wants("sequential") {
        sequential(root, settings, report)?;
    }
    if settings.wants("sixteen") {
        sixteen(root, settings, report)?;
    }
    if settings.only.iter().any(|name| name == "control") {
        control(root, settings, report)?;
    }
    Ok(())
}

/// A file against another file of the same kind: how far the ratios wander when there is nothing to find.
fn control(root: &Path, settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    let mut all = vec![
        Contender::start(&root.join("a"), Kind::RawCached, 1, settings.sizes())?,
        Contender::start(&root.join("b"), Kind::RawCached, 1, settings.sizes())?,
    ];
    for (name, load) in [
        ("control: 4K random write QD32", load(settings, Way::Write, 4096, 32)),
        ("control: 4K random write QD1", load(settings, Way::Write, 4096, 1)),
        ("control: 4K random read QD32", load(settings, Way::Read, 4096, 32)),
    ] {
        let contest = Contest { name, load, pages: Pages::Warm, renew: false, count_bytes: false };
        let series = rounds(&mut all, &contest, settings)?;
        let [one, other] = series.as_slice() else { continue };
        let ratios: Vec<f64> = pairs(one, other).collect();
        let spread = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(" ");
        report.row(name, median(ratios), "×", Goal::None, format!("the same against the same; rounds: {spread}"));
        report.series.extend(series);
    }
    Ok(())
}

fn contenders(root: &Path, kinds: &[Kind], disks: usize, sizes: Sizes) -> Result<Vec<Contender>, HarnessError> {
    kinds.iter().map(|kind| Contender::start(root, *kind, disks, sizes)).collect()
}

fn load(settings: &Settings, way: Way, bytes: usize, depth: u16) -> Load {
    let order = Order::Random;
    Load {
        way,
        order,
        bytes,
        depth,
        set: settings.sizes().set,
        time: settings.burst(),
        warm_up: settings.warm_up(),
        poll: settings.poll,
    }
}

fn writes(root: &Path, settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    let kinds = [Kind::Lamina, Kind::RawCached, Kind::LaminaSingle, Kind::RawDirect, Kind::QcowDirect];
    let mut all = contenders(root, &kinds, 1, settings.sizes())?;
    let burst = Contest {
        name: "4K random write QD32",
        load: load(settings, Way::Write, 4096, 32),
        pages: Pages::Warm,
        renew: true,
        count_bytes: true,
    };
    let series = rounds(&mut all, &burst, settings)?;
    let note = |kind: Kind| format!("burst of {:?}, below the high-water mark; beside {}", burst.load.time, kind.name());
    for (kind, goal) in [(Kind::RawCached, 1.0), (Kind::RawDirect, 2.0), (Kind::QcowDirect, 2.5)] {
        report.row(
            format!("write QD32 / {}", kind.name()),
            ratio(&series, Kind::Lamina, kind),
            "×",
            Goal::AtLeast(goal),
            note(kind),
        );
    }
    let cost = ratio(&series, Kind::Lamina, Kind::LaminaSingle);
    report.row("write QD32, 4+2 / single directory", cost, "×", Goal::AtLeast(0.9), "the store costs the guest at most 10 %");
    report.series.extend(series);

    let single = Contest { name: "4K random write QD1", load: load(settings, Way::Write, 4096, 1), count_bytes: false, ..burst };
    all.retain(|contender| contender.kind != Kind::LaminaSingle && contender.kind != Kind::QcowDirect);
    let series = rounds(&mut all, &single, settings)?;
    report.row("write QD1 / raw cached", ratio(&series, Kind::Lamina, Kind::RawCached), "×", Goal::AtLeast(0.8), "burst");
    report.row("write QD1 / raw direct", ratio(&series, Kind::Lamina, Kind::RawDirect), "×", Goal::None, "burst");
    report.series.extend(series);
    Ok(())
}

fn reads(root: &Path, settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    let mut all = contenders(root, &[Kind::Lamina, Kind::RawCached], 1, settings.sizes())?;
    for (depth, pages, goal) in [
        (32, Pages::Warm, Goal::AtLeast(1.0)),
        (32, Pages::Cold, Goal::AtLeast(1.0)),
        (1, Pages::Warm, Goal::None),
        (1, Pages::Cold, Goal::None),
    ] {
        let (order, how) = match pages {
            Pages::Warm => (Order::Random, "page cache warm on both sides"),
            Pages::Cold => (Order::Once, "page cache dropped on both sides, each block read once"),
        };
        let time = if pages == Pages::Cold { settings.burst().min(Duration::from_secs(3)) } else { settings.burst() };
        let warm_up = if pages == Pages::Cold { Duration::ZERO } else { settings.warm_up() };
        let name = format!("4K random read QD{depth} {}", if pages == Pages::Warm { "warm" } else { "cold" });
        let load = Load { order, time, warm_up, ..load(settings, Way::Read, 4096, depth) };
        let contest = Contest { name: &name, load, pages, renew: false, count_bytes: false };
        if pages == Pages::Cold && !drop_caches() {
            println!("  {name}: skipped, the page cache cannot be dropped here");
            continue;
        }
        let series = rounds(&mut all, &contest, settings)?;
        report.row(
            format!("{name} / raw cached"),
            ratio(&series, Kind::Lamina, Kind::RawCached),
            "×",
            goal,
            format!("set in the SSD cache, {how}"),
        );
        report.series.extend(series);
    }
    Ok(())
}

fn sequential(root: &Path, settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    let mut all = contenders(root, &[Kind::Lamina, Kind::RawCached, Kind::RawDirect], 1, settings.sizes())?;
    for (way, name) in [(Way::Write, "64K sequential write QD8"), (Way::Read, "64K sequential read QD8")] {
        let load = Load { order: Order::Sequential, ..load(settings, way, 64 << 10, 8) };
        let contest = Contest { name, load, pages: Pages::Warm, renew: way == Way::Write, count_bytes: way == Way::Write };
        let series = rounds(&mut all, &contest, settings)?;
        for kind in [Kind::RawCached, Kind::RawDirect] {
            report.row(format!("{name} / {}", kind.name()), ratio(&series, Kind::Lamina, kind), "×", Goal::None, "for information");
        }
        report.series.extend(series);
    }
    Ok(())
}

fn sixteen(root: &Path, settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    let usual = settings.sizes();
    let sizes = Sizes { disk: usual.disk / 16, set: usual.set / 16, ..usual };
    let mut all = contenders(root, &[Kind::Lamina, Kind::RawCached], 16, sizes)?;
    let load = Load { set: sizes.set, ..load(settings, Way::WriteFlush, 4096, 1) };
    let contest = Contest { name: "16 × (4K write, flush)", load, pages: Pages::Warm, renew: true, count_bytes: false };
    let series = rounds(&mut all, &contest, settings)?;
    let value = ratio(&series, Kind::Lamina, Kind::RawCached);
    report.row("16 volumes write+flush / sixteen raw files", value, "×", Goal::AtLeast(3.0), "pairs per second, raw cached");
    report.series.extend(series);
    Ok(())
}

/// Measures each contender once a round, in an order that turns.
fn rounds(all: &mut [Contender], contest: &Contest<'_>, settings: &Settings) -> Result<Vec<Series>, HarnessError> {
    println!("{}: {} rounds of {:?}", contest.name, settings.rounds(), contest.load.time);
    let mut series: Vec<Series> =
        all.iter().map(|one| Series { load: contest.name.to_owned(), contender: one.kind.name(), runs: Vec::new() }).collect();
    for round in 0..settings.rounds() {
        for turn in 0..all.len() {
            let index = (turn + round) % all.len();
            let run = measure(&mut all[index], contest, round as u64)?;
            println!("  round {round} {:<12} {:>9.0} /s", all[index].kind.name(), run.measured.per_second());
            series[index].runs.push(run);
        }
    }
    Ok(series)
}

fn measure(contender: &mut Contender, contest: &Contest<'_>, round: u64) -> Result<Run, HarnessError> {
    if contest.renew && round > 0 {
        contender.renew()?;
    }
    contender.settle()?;
    match contest.pages {
        Pages::Cold => {
            drop_caches();
        }
        Pages::Warm if contest.load.way == Way::Read => {
            // One pass over the whole set, so that everything that can be in memory is.
            contender.sockets().iter().try_for_each(|socket| load::scan(socket, contest.load.set))?;
        }
        Pages::Warm => {}
    }
    let before = contender.used()?;
    let measured = load::run_all(contender.sockets(), &contest.load, 1000 + round)?;
    let after = contender.used()?;
    let mut run = Run { measured, cpu: after.cpu.saturating_sub(before.cpu), written: None };
    if contest.count_bytes {
        contender.settle()?;
        let end = contender.used()?;
        let drives = end.to_drives - before.to_drives;
        run.written = Some(((end.written - before.written).saturating_sub(drives), drives));
    }
    Ok(run)
}

/// The rounds' ratios.
fn pairs<'a>(of: &'a Series, to: &'a Series) -> impl Iterator<Item = f64> + 'a {
    of.runs.iter().zip(&to.runs).map(|(a, b)| a.measured.per_second() / b.measured.per_second().max(1e-9))
}

/// The median of the rounds' ratios.
fn ratio(series: &[Series], of: Kind, to: Kind) -> f64 {
    let find = |kind: Kind| series.iter().find(|one| one.contender == kind.name());
    let (Some(of), Some(to)) = (find(of), find(to)) else { return 0.0 };
    median(pairs(of, to).collect())
}
