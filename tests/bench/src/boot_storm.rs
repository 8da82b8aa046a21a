//! A hundred clones of one image boot at once: how often the store and the SSD are read for it, and how long it takes beside a hundred
//! qcow2 overlays of one file.
//!
//! Three boots of Lamina: one clone with an empty dedupe cache, the measure of what a boot reads; all clones with an empty dedupe cache, so
//! that the first to want a block brings it from the store; all clones after a restart with the cache full and memory empty. The page cache
//! is dropped before each.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lamina_contract::units::ByteSize;
use lamina_harness::{Cache, Daemon, DaemonOptions, HarnessError, StorageDaemon, binary, process_use};
use lamina_journeys::{drain, wait_attached};

use crate::boot_set::BootSet;
use crate::contender::drop_caches;
use crate::report::{Goal, Report, median};
use crate::resident::{resident, resident_below};
use crate::settings::Settings;

const DRAIN_WITHIN: Duration = Duration::from_secs(300);

/// What the dedupe cache holds when the clones boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Nothing: all comes from the store.
    Empty,
    /// What the boots before left there.
    Filled,
}

/// What one boot of some clones took.
#[derive(Debug, Clone, Copy)]
struct Boot {
    time: Duration,
    cpu: Duration,
    /// Bytes of fragments read, as the daemon counts them.
    store: u64,
    /// Bytes that the kernel read from the drives' files for it.
    drives: u64,
    /// All other bytes that the daemon's process read from block devices, but for its own program.
    ssd: u64,
}

pub(crate) fn run(root: &Path, settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    let (clones, image, set) = if settings.quick { (20, 48 << 20, 8 << 20) } else { (100, 320 << 20, 80 << 20) };
    let set = BootSet::make(root, image, set)?;
    println!(
        "boot storm: {clones} clones of an image of {} MiB; a boot reads {:.1} MiB in {} requests",
        set.image.len() >> 20,
        mib(set.bytes()),
        set.requests()
    );
    let mut lamina = Lamina::start(root, &set, clones)?;
    let (mut cold, mut warm, mut cached, mut direct) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let one = lamina.boot(&set, 1, Start::Empty)?;
    say("one clone, from the store", &one);
    for round in 0..settings.rounds().min(3) {
        let boot = lamina.boot(&set, clones, Start::Empty)?;
        say("all clones, from the store", &boot);
        cold.push(boot);
        cached.push(overlays(root, &set, clones, Cache::Cached)?);
        let boot = lamina.boot(&set, clones, Start::Filled)?;
        say("all clones, from the SSD", &boot);
        warm.push(boot);
        if round == 0 {
            direct.push(overlays(root, &set, clones, Cache::Direct)?);
        }
    }
    lamina.daemon.terminate(Duration::from_secs(60))?;
    rows(report, &set, &one, [&cold, &warm], [cached, direct], clones);
    Ok(())
}

fn rows(
    report: &mut Report,
    set: &BootSet,
    one: &Boot,
    [cold, warm]: [&[Boot]; 2],
    [cached, direct]: [Vec<Duration>; 2],
    clones: usize,
) {
    let unique = set.unique_bytes() as f64;
    let middle = |boots: &[Boot], what: fn(&Boot) -> u64| median(boots.iter().map(|boot| what(boot) as f64).collect());
    let store = middle(cold, |boot| boot.store);
    let drives = middle(cold, |boot| boot.drives);
    report.row(
        format!("boot storm: store, {clones} boots / one boot"),
        store / one.store as f64,
        "×",
        Goal::AtMost(1.05),
        format!(
            "{:.1} MiB of fragments / {:.1}; the drives' files: {:.1} / {:.1}",
            store / MIB,
            mib(one.store),
            drives / MIB,
            mib(one.drives)
        ),
    );
    // Less would mean that something else than the store had it.
    let note = format!("indexes of containers come on top of {:.1} MiB", unique / MIB);
    report.row("one boot: store / what it reads of the image", one.store as f64 / unique, "×", Goal::AtLeast(0.9), note);
    for (name, boots) in [("from the store", cold), ("from the SSD", warm)] {
        let ssd = middle(boots, |boot| boot.ssd);
        report.row(
            format!("boot storm {name}: SSD, {clones} boots / one boot"),
            ssd / unique,
            "×",
            Goal::AtMost(1.5),
            format!("{:.1} MiB read from the SSD / {:.1} MiB of the image", ssd / MIB, unique / MIB),
        );
    }
    let seconds = |times: &[Duration]| median(times.iter().map(Duration::as_secs_f64).collect());
    let times = |boots: &[Boot]| seconds(&boots.iter().map(|boot| boot.time).collect::<Vec<_>>());
    let cpu = |boots: &[Boot]| median(boots.iter().map(|boot| boot.cpu.as_secs_f64()).collect());
    let (raw, uncached) = (seconds(&cached), seconds(&direct));
    for (name, boots) in [("from the store", cold), ("from the SSD", warm)] {
        let mine = times(boots);
        let note = format!("{mine:.2} s ({:.2} s of CPU) / {raw:.2} s cached; O_DIRECT {uncached:.2} s", cpu(boots));
        report.row(format!("boot storm {name}: time / qcow2 overlays"), mine / raw, "×", Goal::None, note);
    }
}

const MIB: f64 = 1_048_576.0;

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

fn say(what: &str, boot: &Boot) {
    println!(
        "  {what}: {:.2} s, {:.2} s of CPU; {:.1} MiB of fragments, {:.1} MiB of the drives' files, {:.1} MiB of the SSD",
        boot.time.as_secs_f64(),
        boot.cpu.as_secs_f64(),
        mib(boot.store),
        mib(boot.drives),
        mib(boot.ssd)
    );
}

/// A template and its clones.
struct Lamina {
    daemon: Daemon,
    sockets: Vec<PathBuf>,
}

impl Lamina {
    fn start(root: &Path, set: &BootSet, clones: usize) -> Result<Self, HarnessError> {
        let directory = root.join("lamina");
        std::fs::create_dir_all(&directory).map_err(HarnessError::file("make", &directory))?;
        let mut options = DaemonOptions::six_drives(&directory)?;
        options.journal = Some(ByteSize(1 << 30));
        options.cache = Some(ByteSize(1 << 30));
        options.memory = Some(ByteSize(1 << 30));
        let daemon = Daemon::start(options)?;
        daemon.create_volume("golden", ByteSize(set.image.len() as u64))?;
        daemon.write_data("golden", 0, &set.image)?;
        daemon.take_snapshot("golden", "first")?;
        daemon.make_template("golden")?;
        drain(&daemon, &["golden"], DRAIN_WITHIN)?;
        let made = daemon.clone_volume("golden", "first", "desk-{n}", clones)?;
        Ok(Self { daemon, sockets: made.into_iter().map(|clone| clone.socket).collect() })
    }

    /// Restarts the daemon with nothing in memory, and boots the first `count` clones.
    fn boot(&mut self, set: &BootSet, count: usize, start: Start) -> Result<Boot, HarnessError> {
        self.daemon.terminate(Duration::from_secs(60))?;
        if start == Start::Empty {
            let cache = self.daemon.state().join("cache");
            std::fs::remove_dir_all(&cache).map_err(HarnessError::file("remove", &cache))?;
        }
        self.daemon.start_again()?;
        let sockets = &self.sockets[..count];
        for socket in &self.sockets {
            wait_attached(socket)?;
        }
        // What a start does behind its ready line is none of the boot.
        std::thread::sleep(Duration::from_secs(2));
        if !drop_caches() {
            println!("  the page cache cannot be dropped here: bytes of SSD and drives say little");
        }
        let drives = |daemon: &Daemon| daemon.drives().iter().map(|drive| resident_below(drive)).sum::<Result<u64, _>>();
        let program = binary("laminad")?;
        let (drives_before, store_before) = (drives(&self.daemon)?, fragment_bytes(&self.daemon)?);
        let (program_before, use_before) = (resident(&program)?, process_use(self.daemon.pid())?);
        let time = set.boot_all(sockets)?;
        let use_after = process_use(self.daemon.pid())?;
        let program = resident(&program)?.saturating_sub(program_before);
        let drives = drives(&self.daemon)?.saturating_sub(drives_before);
        Ok(Boot {
            time,
            cpu: use_after.cpu().saturating_sub(use_before.cpu()),
            store: fragment_bytes(&self.daemon)? - store_before,
            drives,
            ssd: (use_after.read - use_before.read).saturating_sub(drives + program),
        })
    }
}

/// Bytes of fragments that the daemon has read so far.
fn fragment_bytes(daemon: &Daemon) -> Result<u64, HarnessError> {
    const NAME: &str = "lamina_target_read_bytes_total";
    let metrics = daemon.metrics()?;
    let found = metrics.sum(NAME, &[]).ok_or_else(|| HarnessError::Answer {
        source_of: "/metrics".to_owned(),
        expected: NAME,
        answer: metrics.names().join(" "),
    })?;
    Ok(found as u64)
}

/// The same with qcow2 overlays of the image in one `qemu-storage-daemon`.
fn overlays(root: &Path, set: &BootSet, count: usize, cache: Cache) -> Result<Duration, HarnessError> {
    let directory = root.join("overlays");
    std::fs::create_dir_all(&directory).map_err(HarnessError::file("make", &directory))?;
    let server = StorageDaemon::start_overlays(&directory, &set.path, count, cache)?;
    drop_caches();
    let before = process_use(server.pid())?;
    let time = set.boot_all(server.sockets())?;
    let after = process_use(server.pid())?;
    println!(
        "  qcow2 overlays, {cache:?}: {:.2} s, {:.2} s of CPU; {:.1} MiB of the disk",
        time.as_secs_f64(),
        (after.cpu() - before.cpu()).as_secs_f64(),
        mib(after.read - before.read)
    );
    drop(server);
    std::fs::remove_dir_all(&directory).map_err(HarnessError::file("remove", &directory))?;
    Ok(time)
}
