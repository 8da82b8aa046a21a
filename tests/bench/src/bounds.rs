//! A volume of 1 TiB, ten million scattered writes of 4 KiB: how much memory the node takes, and how soon it serves again after
//! `kill -9`.
//!
//! The node runs in a child process of its own, so that its resident memory is its own: engine, journal and cache on a real
//! disk, the registry, and a store that keeps patterned data in a small file ([`PatternStore`]). The parent watches the child's
//! memory, kills it the moment the last write is acknowledged, starts it again and takes the time to the first answered read.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lamina_cluster::EmbeddedCoordination;
use lamina_contract::{
    BlockDevice, BlockSize, Clock, IoError, Lba, Op, Request, ScoSize, SectorCount, Timestamp, Transfer, Transferable, VolumeName,
    VolumeSpec,
};
use lamina_engine::{Background, FilePages, JournalConfig, Node, NodeConfig, Seams};
use lamina_harness::{HarnessError, Process, process_use};
use lamina_stores::LocalDisk;

use crate::pattern_store::PatternStore;
use crate::report::{Goal, Report};
use crate::settings::Settings;

/// 1 TiB in blocks of 4 KiB.
const BLOCKS: u64 = 1 << 28;
const BLOCK: usize = 4096;
/// Any odd number visits each block once; this one jumps far.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
const MEMORY_CAP: u64 = 512 << 20;
const JOURNAL: u64 = 2 << 30;
const CACHE: u64 = 1 << 30;
const IN_FLIGHT: u64 = 128;
/// Reads that are checked after the restart.
const CHECKED: u64 = 20_000;
/// Store, registry or engine gone wrong: the child says so and ends.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The parent's side.
pub(crate) fn run(root: &Path, settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    let writes: u64 = if settings.quick { 300_000 } else { 10_000_000 };
    let directory = root.join("bounds");
    std::fs::create_dir_all(&directory).map_err(HarnessError::file("make", &directory))?;
    println!("bounds: {writes} scattered writes into 1 TiB");
    let mut writer = part("write", &directory, writes)?;
    let begin = Instant::now();
    let peak = watch(&mut writer, "DONE", Duration::from_secs(3600))?;
    let took = begin.elapsed();
    // At once: the journal holds as much as it ever does.
    writer.kill();
    let note = format!("{} MiB at most while writing, cap {} MiB", peak >> 20, MEMORY_CAP >> 20);
    report.row("resident memory, 10 M writes / cap", peak as f64 / MEMORY_CAP as f64, "×", Goal::AtMost(1.1), note);
    report.row("scattered writes", writes as f64 / took.as_secs_f64(), "/s", Goal::None, format!("over {took:.0?}"));
    let mut reader = part("read", &directory, writes)?;
    let first = reader.wait_for("first I/O", 0, Duration::from_secs(600), |line| {
        line.strip_prefix("FIRST ").and_then(|text| text.parse::<f64>().ok())
    })?;
    report.row(
        "restart to first I/O",
        first,
        "s",
        Goal::AtMost(3.0),
        "after kill -9, from opening the registry to the first read answered",
    );
    let again = watch(&mut reader, "DONE", Duration::from_secs(600))?;
    report.row(
        "resident memory, restarted / cap",
        again as f64 / MEMORY_CAP as f64,
        "×",
        Goal::AtMost(1.1),
        format!("{} MiB; {CHECKED} blocks read and right", again >> 20),
    );
    Ok(())
}

fn part(name: &str, directory: &Path, writes: u64) -> Result<Process, HarnessError> {
    let own = std::env::current_exe().map_err(HarnessError::file("find", "this program"))?;
    let mut command = Command::new(own);
    command.args(["--bounds-part", name, "--bounds-writes", &writes.to_string(), "--bounds-directory"]).arg(directory);
    // As `laminad` sets it for itself (`allocator.rs`).
    command.env("MALLOC_MMAP_THRESHOLD_", (256 << 10).to_string());
    Process::spawn("bounds", command)
}

/// Watches the child's memory until it prints `word`; answers the most it had.
fn watch(child: &mut Process, word: &str, limit: Duration) -> Result<u64, HarnessError> {
    let until = Instant::now() + limit;
    loop {
        let found = child.wait_for(word, 0, Duration::from_millis(200), |line| line.starts_with(word).then_some(()));
        match found {
            Ok(()) => return Ok(process_use(child.pid())?.peak_resident),
            Err(HarnessError::Late { .. }) if Instant::now() < until => {}
            Err(error) => return Err(error),
        }
    }
}

struct SystemClock(Instant);

impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
    }

    fn monotonic_ms(&self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }
}

/// The child's side. Ends when its parent kills it or, after reading, by itself.
pub(crate) fn child(name: &str, directory: &Path, writes: u64) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // Its index is read before the clock starts: a real store needs nothing of the kind.
    let store = PatternStore::open(directory.join("store"))?;
    let begin = Instant::now();
    let node = runtime.block_on(open(directory, &store, &runtime))?;
    if name == "write" {
        let spec = VolumeSpec {
            name: VolumeName::new("large")?,
            size_bytes: BLOCKS * BLOCK as u64,
            block_size: BlockSize::DEFAULT,
            sco_size: ScoSize::DEFAULT,
            read_only: false,
        };
        let volume = runtime.block_on(node.create(spec))?;
        scatter(&*volume, writes, Op::Write { fua: false })?;
        say("DONE")?;
        // The parent kills it now.
        std::thread::sleep(Duration::from_secs(600));
        return Ok(());
    }
    let volumes = node.volumes();
    let volume = volumes.first().ok_or("the volume is gone")?;
    scatter(&**volume, 1, Op::Read)?;
    say(&format!("FIRST {}", begin.elapsed().as_secs_f64()))?;
    // Spread over the whole history, the newest too.
    let every = (writes / CHECKED).max(1);
    let mut batch = Checked::default();
    for number in (0..writes).rev().step_by(every as usize) {
        batch.submit(&**volume, number, Op::Read);
    }
    batch.finish()?;
    say("DONE")?;
    std::thread::sleep(Duration::from_secs(1));
    runtime.block_on(node.shutdown());
    Ok(())
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    out.flush()
}

async fn open(directory: &Path, store: &PatternStore, runtime: &tokio::runtime::Runtime) -> Result<Arc<Node>, Failure> {
    let place = |name: &str| -> std::io::Result<PathBuf> {
        let path = directory.join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    };
    let config = NodeConfig {
        journal: JournalConfig { bytes: JOURNAL, segment_bytes: 64 << 20 },
        cache_bytes: CACHE,
        memory_cap: MEMORY_CAP,
        store_lag_ms: 10_000,
        background: Background::Running,
    };
    let seams = Seams {
        journal_disk: Arc::new(LocalDisk::open(&place("journal")?)?),
        cache_disk: Arc::new(LocalDisk::open(&place("cache")?)?),
        page_store: Some(Box::new(FilePages::open(&place("pages")?, CACHE / 8)?)),
        store: Arc::new(store.clone()),
        coordination: Arc::new(EmbeddedCoordination::open(&place("registry")?)?),
        clock: Arc::new(SystemClock(Instant::now())),
        runtime: runtime.handle().clone(),
    };
    Ok(Node::open(config, seams).await?)
}

/// The word that the block of the write `number` repeats.
fn word(number: u64) -> [u8; 8] {
    (number.wrapping_mul(0xd134_2543_de82_ef95) | 1).to_le_bytes()
}

/// One after the other, as many in flight as a guest's queues hold.
fn scatter(volume: &dyn BlockDevice, count: u64, op: Op) -> Result<(), Failure> {
    let mut batch = Checked::default();
    for number in 0..count {
        batch.submit(volume, number, op);
    }
    batch.finish()
}

/// Requests in flight and what went wrong with them.
#[derive(Default)]
struct Window {
    flying: Mutex<u64>,
    landed: Condvar,
    errors: AtomicU64,
    wrong: AtomicU64,
}

#[derive(Default)]
struct Checked {
    window: Arc<Window>,
}

impl Checked {
    fn submit(&mut self, volume: &dyn BlockDevice, number: u64, op: Op) {
        let mut flying = self.window.flying.lock().unwrap_or_else(PoisonError::into_inner);
        while *flying >= IN_FLIGHT {
            flying = self.window.landed.wait(flying).unwrap_or_else(PoisonError::into_inner);
        }
        *flying += 1;
        drop(flying);
        let block = number.wrapping_mul(STEP) % BLOCKS;
        let transfer = Transfer::new(Box::new(Patterned { word: word(number), window: Arc::clone(&self.window) }));
        let request = Request { op, start: Lba(block * 8), sectors: SectorCount(8), transfer };
        volume.submit(&mut vec![request]);
    }

    fn finish(self) -> Result<(), Failure> {
        let mut flying = self.window.flying.lock().unwrap_or_else(PoisonError::into_inner);
        while *flying > 0 {
            flying = self.window.landed.wait(flying).unwrap_or_else(PoisonError::into_inner);
        }
        let (errors, wrong) = (self.window.errors.load(Ordering::SeqCst), self.window.wrong.load(Ordering::SeqCst));
        if errors + wrong == 0 { Ok(()) } else { Err(format!("{errors} requests failed, {wrong} reads were wrong").into()) }
    }
}

/// A block that repeats a word: written from nothing, compared when read.
struct Patterned {
    word: [u8; 8],
    window: Arc<Window>,
}

impl Transferable for Patterned {
    fn len(&self) -> usize {
        BLOCK
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), IoError> {
        for (at, byte) in to.iter_mut().enumerate() {
            *byte = self.word[(offset + at) % 8];
        }
        Ok(())
    }

    fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), IoError> {
        if from.iter().enumerate().any(|(at, byte)| *byte != self.word[(offset + at) % 8]) {
            self.window.wrong.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn fill_zero(&self, _: usize, _: usize) -> Result<(), IoError> {
        self.window.wrong.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn answer(self: Box<Self>, result: Result<(), IoError>) {
        if result.is_err() {
            self.window.errors.fetch_add(1, Ordering::SeqCst);
        }
        *self.window.flying.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.window.landed.notify_one();
    }
}
