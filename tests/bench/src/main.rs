//! Speed and bounds: Lamina beside `qemu-storage-daemon` with files, on the same disk, in the same run, with the same client.
//!
//! The client is the `blkio` crate over vhost-user; data is random; sets are written before on both sides. Each line of the
//! acceptance is a row with PASS or MISS. Exit code 1 means that something failed, 2 that a figure was missed.

mod boot_set;
mod boot_storm;
mod bounds;
mod clients;
mod contender;
mod idle;
mod limits;
mod load;
mod pattern_store;
mod report;
mod resident;
mod settings;
mod speed;
mod sustained;
mod volumes;

use std::process::ExitCode;

use clap::Parser;
use lamina_harness::{HarnessError, Place, binary, cleanup};

use report::Report;
use settings::Settings;

fn main() -> ExitCode {
    let settings = Settings::parse();
    if let (Some(part), Some(directory)) = (&settings.bounds_part, &settings.bounds_directory) {
        return match bounds::child(part, directory, settings.bounds_writes) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    if let Err(error) = cleanup::on_interrupt() {
        eprintln!("cannot watch for signals: {error}");
        return ExitCode::FAILURE;
    }
    let mut report = Report::default();
    let outcome = run(&settings, &mut report);
    report.print();
    if let Err(error) = outcome.and_then(|()| save(&settings, &report)) {
        eprintln!("\nThe benchmark could not go on: {error}");
        return ExitCode::FAILURE;
    }
    match report.misses() {
        0 => ExitCode::SUCCESS,
        misses => {
            println!("\n{misses} figures missed");
            ExitCode::from(2)
        }
    }
}

fn run(settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    println!("laminad: {}", binary("laminad")?.display());
    let machine = limits::measure(settings, report);
    // Each group in a place of its own: what one leaves on disk is gone before the next.
    speed_groups(settings, report)?;
    if settings.wants("storm") {
        boot_storm::run(Place::new()?.path(), settings, report)?;
    }
    if settings.wants("sustained") {
        sustained::run(Place::new()?.path(), settings, machine, report)?;
    }
    if settings.wants("bounds") {
        bounds::run(Place::new()?.path(), settings, report)?;
    }
    if settings.wants("volumes") {
        volumes::run(Place::new()?.path(), settings, report)?;
    }
    if settings.wants("clients") {
        clients::run(settings, report)?;
    }
    if settings.wants("idle") {
        idle::run(Place::new()?.path(), settings, report)?;
    }
    Ok(())
}

fn speed_groups(settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    for group in ["writes", "reads", "sequential", "sixteen", "control"] {
        // The control says nothing about Lamina: it runs when asked for.
        if settings.wants(group) && (group != "control" || !settings.only.is_empty()) {
            println!("\n{group}");
            let place = Place::new()?;
            let one = Settings { only: vec![group.to_owned()], ..settings.clone() };
            speed::run(place.path(), &one, report)?;
        }
    }
    Ok(())
}

fn save(settings: &Settings, report: &Report) -> Result<(), HarnessError> {
    let Some(path) = &settings.json else { return Ok(()) };
    let text = format!("{:#}\n", report.json());
    std::fs::write(path, text).map_err(HarnessError::file("write", path))
}
