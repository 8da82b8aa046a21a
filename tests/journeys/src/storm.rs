//! A storm: stamped writers on several volumes while the daemon is killed, stopped, aborted at failpoints; after each restart
//! the oracles look at every sector.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lamina_contract::units::{ByteSize, SectorCount};
use lamina_harness::{Crash, Daemon, HarnessError, StampedWriter, Verdict, VolumeInfo, WriterMix};

use crate::bed::wait_attached;

/// How long a silent daemon is waited for: a loaded machine may take its time, a lost request never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Writers on the volumes of one daemon.
pub struct Storm {
    targets: Vec<(VolumeInfo, StampedWriter)>,
}

/// What a storm saw.
#[derive(Debug, Clone, Default)]
pub struct StormReport {
    /// Checks made.
    pub checks: usize,
    /// Changes acknowledged.
    pub acknowledged: usize,
    /// Of these, those that had to survive.
    pub durable: usize,
    /// Of the others, those that the crashes took.
    pub taken: usize,
    /// Of these, those acknowledged before another in flight with them that survived.
    pub swapped: usize,
    /// The longest restart until ready.
    pub slowest_restart: Duration,
}

impl StormReport {
    /// Adds a check.
    ///
    /// # Panics
    /// When it found a broken promise: that is what the test is for.
    pub fn add(&mut self, what: &str, verdict: &Verdict) {
        let first: Vec<String> = verdict.violations.iter().take(10).map(|broken| format!("\n  {broken}")).collect();
        assert!(first.is_empty(), "{what}: {} violations:{}", verdict.violations.len(), first.concat());
        self.checks += 1;
        self.acknowledged += verdict.acknowledged;
        self.durable += verdict.durable;
        self.taken += verdict.taken;
        self.swapped += verdict.swapped;
    }
}

impl Storm {
    /// Creates `volumes` volumes of `size` and a writer over each whole one.
    ///
    /// # Errors
    /// When a volume cannot be created.
    pub fn new(daemon: &Daemon, volumes: usize, size: ByteSize, mix: WriterMix, seed: u64) -> Result<Self, HarnessError> {
        let mut targets = Vec::new();
        for number in 0..volumes {
            let volume = daemon.create_volume(&format!("storm-{number}"), size)?;
            wait_attached(&volume.socket)?;
            let writer = StampedWriter::new(number as u64 + 1, SectorCount(size.0 / 512), mix, seed + number as u64);
            targets.push((volume, writer));
        }
        Ok(Self { targets })
    }

    /// The names of its volumes.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.targets.iter().map(|(volume, _)| volume.name.as_str()).collect()
    }

    /// The writers.
    pub fn writers(&mut self) -> impl Iterator<Item = &mut StampedWriter> {
        self.targets.iter_mut().map(|(_, writer)| writer)
    }

    /// The writer of one of its volumes.
    pub fn writer(&mut self, volume: &str) -> Option<&mut StampedWriter> {
        self.targets.iter_mut().find(|(target, _)| target.name == volume).map(|(_, writer)| writer)
    }

    /// Changes acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.targets.iter().map(|(_, writer)| writer.acknowledged()).sum()
    }

    /// Runs the writers while `during` does something to the daemon. When `during` returns true the daemon is gone; else the
    /// writers stop in good order.
    ///
    /// # Errors
    /// When the daemon is silent though nobody killed it, or `during` fails.
    pub fn blow(&mut self, during: impl FnOnce() -> Result<bool, HarnessError>) -> Result<(), HarnessError> {
        let (stop, gone) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let mut running = Vec::new();
            for (volume, writer) in &mut self.targets {
                let (stop, gone) = (&stop, &gone);
                running.push(scope.spawn(move || writer.run(&volume.socket, stop, gone, PATIENCE)));
            }
            let outcome = during();
            match outcome {
                Ok(false) => stop.store(true, Ordering::SeqCst),
                _ => gone.store(true, Ordering::SeqCst),
            }
            let mut first_error = outcome.err();
            for writer in running {
                match writer.join() {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => first_error = first_error.or(Some(error.into())),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            first_error.map_or(Ok(()), Err)
        })
    }

    /// Looks at every sector of every volume.
    ///
    /// # Errors
    /// When a volume cannot be read.
    pub fn check(&mut self, what: &str, crash: Crash, report: &mut StormReport) -> Result<(), HarnessError> {
        self.check_each(what, |_| crash, report)
    }

    /// Like [`Storm::check`], with a crash that depends on the writer.
    ///
    /// # Errors
    /// When a volume cannot be read.
    pub fn check_each(
        &mut self,
        what: &str,
        crash: impl Fn(&StampedWriter) -> Crash,
        report: &mut StormReport,
    ) -> Result<(), HarnessError> {
        for (volume, writer) in &mut self.targets {
            wait_attached(&volume.socket)?;
            let crash = crash(writer);
            let verdict = writer.verify(&volume.socket, crash, PATIENCE)?;
            report.add(&format!("{what}, volume {}", volume.name), &verdict);
        }
        Ok(())
    }

    /// Starts the daemon again and notes how long it took.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart(daemon: &mut Daemon, report: &mut StormReport) -> Result<(), HarnessError> {
        let begin = Instant::now();
        daemon.start_again()?;
        report.slowest_restart = report.slowest_restart.max(begin.elapsed());
        Ok(())
    }
}

/// The number of cycles that the environment asks for, or the default of a test run; forty times that in a soak
/// (`LAMINA_SOAK`).
#[must_use]
pub fn cycles_from_environment(variable: &str, default: usize) -> usize {
    let usual = if std::env::var_os("LAMINA_SOAK").is_some() { default * 40 } else { default };
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}
