//! Life cycles in a storm: while writers write, snapshots of their volumes are taken and deleted, clones are made, flattened and
//! deleted; the daemon dies meanwhile, and afterwards every answer that it gave must hold:
//!
//! - a snapshot whose taking was answered exists, one whose deletion was answered does not; of the others either is right;
//! - a clone whose making was answered exists, is served, and shows what its snapshot shows;
//! - a snapshot of this storm shows what [`Oracle::check_snapshot`](lamina_harness::Oracle::check_snapshot) allows, and ever after what it
//!   showed when it was looked at first, flattened or not.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lamina_contract::units::SectorCount;
use lamina_harness::{Daemon, HarnessError, Moments, Taken, read_image};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::bed::wait_attached;
use crate::management::Management;
use crate::storm::{PATIENCE, Storm};

/// Snapshots of a volume beyond which the oldest go.
const MOST_SNAPSHOTS: usize = 6;
/// Clones of a volume beyond which some go.
const MOST_CLONES: usize = 2;
/// How long a daemon may still answer after a call failed because it dies.
const DYING: Duration = Duration::from_secs(10);
/// How long a daemon may take to see that a client is gone.
const PARTING: Duration = Duration::from_secs(10);

/// What is known of something that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Asked for, not answered: it may be there.
    Asked,
    /// It must be there.
    There,
    /// Its deletion was asked for and not answered: it may be there.
    Deleting,
    /// It must not be there.
    Gone,
}

impl Fate {
    /// Whether it may be as it was found, and what it is from now on.
    fn settled(self, is_there: bool) -> Option<Self> {
        match (self, is_there) {
            (Self::There, false) | (Self::Gone, true) => None,
            (_, true) => Some(Self::There),
            (_, false) => Some(Self::Gone),
        }
    }
}

struct Cut {
    fate: Fate,
    taken: Taken,
    /// Taken since the oracle settled.
    is_fresh: bool,
    /// What it showed when it was first looked at.
    shown: Option<u64>,
}

struct Cloned {
    fate: Fate,
    /// The snapshot that it began as.
    of: String,
    /// Needs no parent any more.
    is_flat: bool,
    /// Somebody asked for that since the last check.
    is_flattening: bool,
}

/// One volume's, by names in order of age.
struct Lineage {
    volume: String,
    sectors: SectorCount,
    moments: Moments,
    cuts: BTreeMap<String, Cut>,
    clones: BTreeMap<String, Cloned>,
}

/// What life cycles saw.
#[derive(Debug, Clone, Default)]
pub struct LifeReport {
    /// Snapshots whose taking was answered.
    pub taken: usize,
    /// Snapshots whose deletion was answered.
    pub deleted: usize,
    /// Clones whose making was answered.
    pub cloned: usize,
    /// Clones that were found without a parent.
    pub flattened: usize,
    /// Calls that the daemon had no room for.
    pub refused: usize,
    /// Answers that were looked after: snapshots and clones that had to be there or not.
    pub held: usize,
    /// Snapshots that the oracle checked.
    pub checked: usize,
    /// Writes that had to be in these.
    pub durable: usize,
    /// Clones that showed what their snapshot had shown before.
    pub compared: usize,
}

/// See the file's header.
pub struct LifeCycles {
    daemon: Management,
    lineages: Vec<Lineage>,
    random: StdRng,
    serial: u64,
    /// What a daemon answered that lived on: never expected.
    faults: Vec<HarnessError>,
    report: LifeReport,
}

impl LifeCycles {
    /// Of the volumes of a storm.
    #[must_use]
    pub fn new(daemon: &Daemon, storm: &mut Storm, seed: u64) -> Self {
        let names: Vec<String> = storm.names().into_iter().map(str::to_owned).collect();
        let lineages = names.into_iter().zip(storm.writers()).map(|(volume, writer)| {
            let (sectors, moments) = (writer.oracle().sectors(), writer.oracle().moments());
            Lineage { volume, sectors, moments, cuts: BTreeMap::new(), clones: BTreeMap::new() }
        });
        Self {
            lineages: lineages.collect(),
            daemon: Management::of(daemon),
            random: StdRng::seed_from_u64(seed),
            serial: 0,
            faults: Vec::new(),
            report: LifeReport::default(),
        }
    }

    /// What was seen so far.
    #[must_use]
    pub fn report(&self) -> &LifeReport {
        &self.report
    }

    /// Lives on while `during` runs, or until the daemon is gone.
    pub fn meanwhile<T>(&mut self, during: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let living = scope.spawn(|| self.live(&over));
            let outcome = during();
            over.store(true, Ordering::SeqCst);
            if let Err(panic) = living.join() {
                std::panic::resume_unwind(panic);
            }
            outcome
        })
    }

    /// Flattens a clone of each volume and waits for that.
    ///
    /// # Errors
    /// When the daemon does not.
    pub fn flatten(&mut self) -> Result<(), HarnessError> {
        for lineage in &self.lineages {
            let deep = lineage.clones.iter().find(|(_, clone)| clone.fate == Fate::There && !clone.is_flat);
            if let Some((name, _)) = deep {
                self.daemon.flatten(name)?;
            }
        }
        Ok(())
    }

    fn live(&mut self, over: &AtomicBool) {
        while !over.load(Ordering::SeqCst) {
            let index = self.random.random_range(0..self.lineages.len());
            let draw = self.random.random_range(0..100_u32);
            let serial = self.serial;
            self.serial += 1;
            let Some(lineage) = self.lineages.get_mut(index) else { return };
            match lineage.step(&self.daemon, draw, serial, &mut self.report) {
                Ok(()) => {}
                // It has too much to do, says so, and has done nothing.
                Err(HarnessError::Refused { code: 429 | 503, .. }) => self.report.refused += 1,
                Err(error) => {
                    if lives_on(&self.daemon, over) {
                        self.faults.push(error);
                    }
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(self.random.random_range(1..15)));
        }
    }

    /// Looks at every snapshot and clone after a restart, before the storm's oracles settle.
    ///
    /// # Errors
    /// When the daemon does not answer.
    ///
    /// # Panics
    /// When a promise is broken: that is what the test is for.
    pub fn check(&mut self, what: &str, storm: &mut Storm) -> Result<(), HarnessError> {
        assert!(self.faults.is_empty(), "{what}: a daemon that lived on answered {:?}", self.faults);
        let volumes = self.daemon.volumes()?;
        let volumes: BTreeMap<&str, &Value> = volumes.iter().filter_map(|one| Some((one["name"].as_str()?, one))).collect();
        for lineage in &mut self.lineages {
            let what = format!("{what}, volume {}", lineage.volume);
            lineage.settle_cuts(&what, &self.daemon, &mut self.report)?;
            lineage.settle_clones(&what, &volumes, &mut self.report);
            lineage.clone_newest(&self.daemon, self.serial, &mut self.report)?;
            self.serial += 1;
            lineage.look(&what, &self.daemon, storm, &mut self.report)?;
            lineage.thin_out(&self.daemon)?;
        }
        Ok(())
    }
}

/// Whether a daemon still answers that should be dying.
fn lives_on(daemon: &Management, over: &AtomicBool) -> bool {
    let until = Instant::now() + DYING;
    while Instant::now() < until {
        if over.load(Ordering::SeqCst) || daemon.volumes().is_err() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

impl Lineage {
    /// One thing of a life cycle.
    fn step(&mut self, daemon: &Management, draw: u32, serial: u64, report: &mut LifeReport) -> Result<(), HarnessError> {
        let there = |fate: Fate| fate == Fate::There;
        let kept = self.cuts.values().filter(|cut| there(cut.fate)).count();
        match draw {
            0..50 => self.take(daemon, serial, report),
            50..65 if self.clones.values().filter(|clone| there(clone.fate)).count() < MOST_CLONES => {
                let Some(of) = self.newest() else { return Ok(()) };
                self.clone_of(daemon, serial, of, report)
            }
            65..90 if kept > MOST_SNAPSHOTS => {
                let needed = |name: &str| {
                    let needs = |clone: &Cloned| clone.fate != Fate::Gone && !clone.is_flat && clone.of == name;
                    self.clones.values().any(needs)
                };
                let oldest = self.cuts.iter().find(|(name, cut)| there(cut.fate) && !needed(name));
                let Some(name) = oldest.map(|(name, _)| name.clone()) else { return Ok(()) };
                self.set_cut(&name, Fate::Deleting);
                daemon.delete_snapshot(&self.volume, &name)?;
                self.set_cut(&name, Fate::Gone);
                report.deleted += 1;
                Ok(())
            }
            90..95 => {
                let begun = self.clones.iter_mut().find(|(_, clone)| there(clone.fate) && !clone.is_flat && !clone.is_flattening);
                let Some((name, clone)) = begun else { return Ok(()) };
                clone.is_flattening = true;
                daemon.begin_flatten(name).map(|_| ())
            }
            95..100 => {
                let oldest = self.clones.iter().find(|(_, clone)| there(clone.fate) && !clone.is_flattening);
                let Some(name) = oldest.map(|(name, _)| name.clone()) else { return Ok(()) };
                self.drop_clone(daemon, &name)
            }
            _ => Ok(()),
        }
    }

    fn newest(&self) -> Option<String> {
        self.cuts.iter().rev().find(|(_, cut)| cut.fate == Fate::There).map(|(name, _)| name.clone())
    }

    fn set_cut(&mut self, name: &str, fate: Fate) {
        if let Some(cut) = self.cuts.get_mut(name) {
            cut.fate = fate;
        }
    }

    fn set_clone(&mut self, name: &str, fate: Fate) {
        if let Some(clone) = self.clones.get_mut(name) {
            clone.fate = fate;
        }
    }

    fn take(&mut self, daemon: &Management, serial: u64, report: &mut LifeReport) -> Result<(), HarnessError> {
        // Names in order of age.
        let name = format!("cut-{serial:08}");
        let taken = Taken { asked: self.moments.now(), answered: None };
        let cut = Cut { fate: Fate::Asked, taken, is_fresh: true, shown: None };
        self.cuts.insert(name.clone(), cut);
        daemon.take_snapshot(&self.volume, &name)?;
        if let Some(cut) = self.cuts.get_mut(&name) {
            (cut.fate, cut.taken.answered) = (Fate::There, Some(self.moments.now()));
        }
        report.taken += 1;
        Ok(())
    }

    fn clone_of(&mut self, daemon: &Management, serial: u64, of: String, report: &mut LifeReport) -> Result<(), HarnessError> {
        let name = format!("{}-clone-{serial:08}", self.volume);
        let clone = Cloned { fate: Fate::Asked, of: of.clone(), is_flat: false, is_flattening: false };
        self.clones.insert(name.clone(), clone);
        daemon.clone_volume(&self.volume, &of, &name)?;
        self.set_clone(&name, Fate::There);
        report.cloned += 1;
        Ok(())
    }

    fn drop_clone(&mut self, daemon: &Management, name: &str) -> Result<(), HarnessError> {
        self.set_clone(name, Fate::Deleting);
        let until = Instant::now() + PARTING;
        loop {
            match daemon.delete_volume(name) {
                // The daemon may see late that nobody reads it any more.
                Err(HarnessError::Refused { code: 409, .. }) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                answer => break answer?,
            }
        }
        self.set_clone(name, Fate::Gone);
        Ok(())
    }

    /// Every answered snapshot is there and no deleted one; what was not answered is from now on what it was found to be.
    fn settle_cuts(&mut self, what: &str, daemon: &Management, report: &mut LifeReport) -> Result<(), HarnessError> {
        let listed = daemon.snapshots(&self.volume)?;
        let listed: Vec<&str> = listed.iter().filter_map(|snapshot| snapshot["name"].as_str()).collect();
        let unknown: Vec<&&str> = listed.iter().filter(|name| !self.cuts.contains_key(**name)).collect();
        assert!(unknown.is_empty(), "{what}: snapshots that nobody asked for: {unknown:?}");
        for (name, cut) in &mut self.cuts {
            let is_there = listed.contains(&name.as_str());
            report.held += usize::from(matches!(cut.fate, Fate::There | Fate::Gone));
            let settled = cut.fate.settled(is_there);
            cut.fate = settled.unwrap_or_else(|| panic!("{what}: snapshot {name}, {:?}: is it there? {is_there}", cut.fate));
        }
        Ok(())
    }

    /// The same for clones.
    fn settle_clones(&mut self, what: &str, volumes: &BTreeMap<&str, &Value>, report: &mut LifeReport) {
        for (name, clone) in &mut self.clones {
            let found = volumes.get(name.as_str());
            report.held += usize::from(matches!(clone.fate, Fate::There | Fate::Gone));
            let settled = clone.fate.settled(found.is_some());
            clone.fate =
                settled.unwrap_or_else(|| panic!("{what}: clone {name}, {:?}: is it there? {}", clone.fate, found.is_some()));
            let is_flat = found.is_some_and(|volume| volume["parent"].is_null());
            report.flattened += usize::from(is_flat && !clone.is_flat);
            (clone.is_flat, clone.is_flattening) = (is_flat, false);
        }
    }

    /// Clones the newest snapshot, so that somebody can look at it.
    fn clone_newest(&mut self, daemon: &Management, serial: u64, report: &mut LifeReport) -> Result<(), HarnessError> {
        let Some(newest) = self.newest() else { return Ok(()) };
        if self.clones.values().any(|clone| clone.fate == Fate::There && clone.of == newest) {
            return Ok(());
        }
        self.clone_of(daemon, serial, newest, report)
    }

    /// Lets go of clones beyond the most, the oldest first.
    fn thin_out(&mut self, daemon: &Management) -> Result<(), HarnessError> {
        let there = self.clones.iter().filter(|(_, clone)| clone.fate == Fate::There);
        let names: Vec<String> = there.map(|(name, _)| name.clone()).collect();
        let spare = names.len().saturating_sub(MOST_CLONES);
        names.iter().take(spare).try_for_each(|name| self.drop_clone(daemon, name))
    }

    /// Reads all clones: a fresh snapshot is held to the oracle, any other to what it showed before.
    fn look(&mut self, what: &str, daemon: &Management, storm: &mut Storm, report: &mut LifeReport) -> Result<(), HarnessError> {
        for (name, clone) in self.clones.iter().filter(|(_, clone)| clone.fate == Fate::There) {
            let what = format!("{what}, clone {name} of {}", clone.of);
            let socket = daemon.volume(name)?.socket;
            wait_attached(&socket)?;
            let image = read_image(&socket, self.sectors, PATIENCE)?;
            let mut hasher = DefaultHasher::new();
            hasher.write(&image);
            let shown = hasher.finish();
            let Some(cut) = self.cuts.get_mut(&clone.of) else { continue };
            if let Some(before) = cut.shown {
                assert_eq!(before, shown, "{what}: it shows something else than before");
                report.compared += 1;
            } else if cut.is_fresh {
                let oracle = storm.writer(&self.volume).map(|writer| writer.oracle().check_snapshot(cut.taken, &image));
                let verdict = oracle.expect("a writer for each volume");
                let first: Vec<String> = verdict.violations.iter().take(10).map(|broken| format!("\n  {broken}")).collect();
                assert!(first.is_empty(), "{what}: {} violations:{}", verdict.violations.len(), first.concat());
                report.checked += 1;
                report.durable += verdict.durable;
            }
            cut.shown = Some(shown);
        }
        self.cuts.values_mut().for_each(|cut| cut.is_fresh = false);
        Ok(())
    }
}
