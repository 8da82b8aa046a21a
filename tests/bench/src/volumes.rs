//! Life-cycle operations on a volume of 1 TiB with ten million mapped blocks, and a thousand clones of one template, against a real daemon
//! over six drives.
//!
//! The volume is written block by block all over, with a few hundred different contents, so that what counts is the map and not the
//! store's space. Then everything is stored, and each operation is asked for over the local interface, as the CLI does.

use std::path::Path;
use std::time::{Duration, Instant};

use lamina_api::client::Client as Interface;
use lamina_api::job::{Job, JobState, Outcome};
use lamina_api::name::JobId;
use lamina_api::paths;
use lamina_api::snapshot::{CreateClones, CreateSnapshot, Rollback, RolledBack, Snapshot};
use lamina_api::volume::{ChangeVolume, CreateVolume, Volume};
use lamina_contract::VolumeName;
use lamina_contract::units::{ByteSize, Lba, SectorCount};
use lamina_harness::{Action, Client, ClientOptions, Daemon, DaemonOptions, HarnessError, Queue, process_use};
use lamina_journeys::drain;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

use crate::load::{self, Load, Order, Way};
use crate::report::{Goal, Report};
use crate::settings::Settings;

/// 1 TiB in blocks of 4 KiB.
const BLOCKS: u64 = 1 << 28;
const BLOCK: usize = 4096;
/// Any odd number visits each block once; this one jumps far.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// Different contents of blocks.
const CONTENTS: u64 = 509;
const CLONES: u32 = 1000;

/// The interface, and somebody who waits for it.
struct Asking {
    runtime: Runtime,
    interface: Interface,
}

impl Asking {
    fn of(daemon: &Daemon) -> Result<Self, HarnessError> {
        let socket = daemon.state().join("run/lamina.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self { runtime: runtime.map_err(HarnessError::file("start threads for", &socket))?, interface: Interface::new(&socket) })
    }

    fn ask<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, lamina_api::client::ClientError>>,
    ) -> Result<T, HarnessError> {
        self.runtime.block_on(call).map_err(|error| HarnessError::Answer {
            source_of: what.to_owned(),
            expected: "an answer",
            answer: error.to_string(),
        })
    }

    fn post<T: DeserializeOwned>(&self, path: &str, request: &impl Serialize) -> Result<T, HarnessError> {
        self.ask(path, self.interface.post(path, request))
    }

    fn finish(&self, job: Job) -> Result<(), HarnessError> {
        let mut job = job;
        while !job.state.is_final() {
            let id: JobId = job.id.parse().unwrap_or(JobId(0));
            job = self.ask("a job", self.interface.job(id, Duration::from_secs(10)))?;
        }
        if job.state == JobState::Succeeded {
            return Ok(());
        }
        let answer = job.problem.map_or_else(|| job.phase, |problem| problem.detail);
        Err(HarnessError::Answer { source_of: format!("job {}", job.id), expected: "success", answer })
    }
}

fn name(text: &str) -> VolumeName {
    #[expect(clippy::expect_used, reason = "names of this file")]
    VolumeName::new(text).expect("a name")
}

pub(crate) fn run(root: &Path, settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    let writes: u64 = if settings.quick { 300_000 } else { 10_000_000 };
    let rounds = if settings.quick { 20 } else { 100 };
    let directory = root.join("volumes");
    std::fs::create_dir_all(&directory).map_err(HarnessError::file("make", &directory))?;
    let mut options = DaemonOptions::six_drives(&directory)?;
    options.journal = Some(ByteSize(2 << 30));
    options.cache = Some(ByteSize(512 << 20));
    options.memory = Some(ByteSize(512 << 20));
    let daemon = Daemon::start(options)?;
    let asking = Asking::of(&daemon)?;
    println!("volumes: {writes} scattered writes into 1 TiB");
    let large = CreateVolume { name: "large".to_owned(), size_bytes: BLOCKS * BLOCK as u64, ..CreateVolume::default() };
    let volume: Volume = asking.post(paths::VOLUMES, &large)?;
    let begin = Instant::now();
    scatter(Path::new(volume.socket.as_deref().unwrap_or_default()), writes)?;
    drain(&daemon, &["large"], Duration::from_secs(900))?;
    println!("volumes: written and stored after {:.0?}", begin.elapsed());
    life_cycles(&asking, writes, rounds, report)?;
    thousand_clones(&daemon, &asking, report)?;
    depth(&daemon, &asking, settings, report)
}

fn scatter(socket: &Path, writes: u64) -> Result<(), HarnessError> {
    let options = ClientOptions { queues: 1, depth: 64, buffer: BLOCK, ..ClientOptions::default() };
    let mut client = Client::connect_within(socket, options, Duration::from_secs(30))?;
    let queue = client.queue();
    for number in 0..writes {
        let slot = loop {
            if let Some(slot) = queue.acquire() {
                break slot;
            }
            reap(queue)?;
        };
        let word = (number % CONTENTS + 1).to_le_bytes();
        queue.buffer(slot).chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&word));
        let block = number.wrapping_mul(STEP) % BLOCKS;
        queue.submit(slot, Action::Write { start: Lba(block * 8), sectors: SectorCount(8) });
    }
    while queue.in_flight() > 0 {
        reap(queue)?;
    }
    Ok(queue.flush()?)
}

fn reap(queue: &mut Queue) -> Result<(), HarnessError> {
    let done = queue.reap(1, Duration::from_secs(60))?.to_vec();
    for done in done {
        done.outcome.map_err(|errno| HarnessError::Answer {
            source_of: "a write".to_owned(),
            expected: "success",
            answer: errno.to_string(),
        })?;
        queue.release(done.slot);
    }
    Ok(())
}

/// `rounds` of a snapshot, a clone of it, a read there, and a rollback: five rounds a second, so ten cuts, while the first of them has the
/// whole map checkpointed. Asked for without a pause, the 64 cuts that may wait for that are used up within two seconds.
fn life_cycles(asking: &Asking, writes: u64, rounds: usize, report: &mut Report) -> Result<(), HarnessError> {
    const PACE: Duration = Duration::from_millis(200);
    let large = name("large");
    let (mut snapshots, mut clones, mut reads, mut rollbacks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let first = Instant::now();
    for round in 0..rounds {
        std::thread::sleep((PACE * round as u32).saturating_sub(first.elapsed()));
        // Each round changes something, so that there is something to take and to discard.
        let block = (round as u64).wrapping_mul(STEP) % BLOCKS * BLOCK as u64;
        asking.ask("a write", asking.interface.write_data(&large, block, vec![0xa5; BLOCK].into()))?;
        let snapshot = format!("s{round}");
        let begin = Instant::now();
        let request = CreateSnapshot { name: snapshot.clone(), ..CreateSnapshot::default() };
        let _: Snapshot = asking.post(&paths::of_volume(&large, "snapshots"), &request)?;
        snapshots.push(begin.elapsed());

        let clone = format!("c{round}");
        let begin = Instant::now();
        let request = CreateClones { names: vec![clone.clone()], snapshot: Some(snapshot.clone()), ..CreateClones::default() };
        let job: Job = asking.post(&paths::of_volume(&large, "clones"), &request)?;
        asking.finish(job)?;
        clones.push(begin.elapsed());

        let number = (round as u64 * 7919 + 1) % writes;
        let at = number.wrapping_mul(STEP) % BLOCKS * BLOCK as u64;
        let begin = Instant::now();
        let bytes = asking.ask("a read", asking.interface.read_data(&name(&clone), at, BLOCK as u64))?;
        reads.push(begin.elapsed());
        let overwritten = (0..=round as u64).any(|round| round.wrapping_mul(STEP) % BLOCKS * BLOCK as u64 == at);
        let expected = if overwritten { [0xa5; 8] } else { (number % CONTENTS + 1).to_le_bytes() };
        if bytes.chunks_exact(8).any(|chunk| chunk != expected) {
            return Err(HarnessError::Answer {
                source_of: format!("a read of {clone}"),
                expected: "what was written",
                answer: format!("{:02x?}", &bytes[..16]),
            });
        }

        let begin = Instant::now();
        let back = Rollback { snapshot: Some(snapshot), at: None };
        let outcome: Outcome<RolledBack> =
            asking.ask("a rollback", asking.interface.rollback(&paths::of_volume(&large, "rollback"), &back))?;
        rollbacks.push(begin.elapsed());
        if let Outcome::Job(job) = outcome {
            asking.finish(*job)?;
        }
    }
    let note = |times: &[Duration]| format!("median {:.1?}, worst {:.1?}, {rounds} rounds", at(times, 50), at(times, 100));
    let ms = |times: &[Duration]| at(times, 99).as_secs_f64() * 1e3;
    report.row("snapshot of 1 TiB, 10 M blocks, p99", ms(&snapshots), "ms", Goal::AtMost(50.0), note(&snapshots));
    report.row("clone of it, p99", ms(&clones), "ms", Goal::AtMost(50.0), note(&clones));
    report.row("first read on the clone, p99", ms(&reads), "ms", Goal::AtMost(100.0), note(&reads));
    report.row("rollback of it, p99", ms(&rollbacks), "ms", Goal::AtMost(50.0), note(&rollbacks));
    Ok(())
}

/// The time that so many of a hundred do not exceed.
fn at(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}

fn thousand_clones(daemon: &Daemon, asking: &Asking, report: &mut Report) -> Result<(), HarnessError> {
    let golden = name("golden");
    let _: Volume =
        asking.post(paths::VOLUMES, &CreateVolume { name: golden.to_string(), size_bytes: 10 << 30, ..CreateVolume::default() })?;
    for part in 0..64_u64 {
        let bytes: Vec<u8> = (0..1 << 20).map(|n: u64| (n * 31 / 7 + part) as u8).collect();
        asking.ask("a write", asking.interface.write_data(&golden, part << 20, bytes.into()))?;
    }
    let template = ChangeVolume { template: Some(true), ..ChangeVolume::default() };
    asking.ask("a template", asking.interface.change(&golden, &template))?;
    drain(daemon, &["golden"], Duration::from_secs(60))?;
    let before = process_use(daemon.pid())?.resident;
    let begin = Instant::now();
    let request = CreateClones { name: Some("desk-{n}".to_owned()), count: Some(CLONES), ..CreateClones::default() };
    let job: Job = asking.post(&paths::of_volume(&golden, "clones"), &request)?;
    asking.finish(job)?;
    let took = begin.elapsed();
    // Until what begins lazily has begun.
    std::thread::sleep(Duration::from_secs(5));
    let grown = process_use(daemon.pid())?.resident.saturating_sub(before);
    report.row("1,000 clones of one template", took.as_secs_f64(), "s", Goal::AtMost(10.0), "attached, sockets and all");
    let note = format!("{} MiB before, {} MiB more", before >> 20, grown >> 20);
    report.row("memory of an idle clone", grown as f64 / f64::from(CLONES) / 1024.0, "KiB", Goal::AtMost(100.0), note);
    Ok(())
}

/// A clone of a clone, 64 times, each with a change of its own: reads of the last one beside those of the first.
fn depth(daemon: &Daemon, asking: &Asking, settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    const GENERATIONS: usize = 64;
    const SET: u64 = 64 << 20;
    let mut parent = name("desk-1");
    for generation in 0..GENERATIONS {
        let own = vec![generation as u8 + 1; BLOCK];
        asking.ask("a write", asking.interface.write_data(&parent, SET + (generation * BLOCK) as u64, own.into()))?;
        let clone = name(&format!("deep-{generation}"));
        let request = CreateClones { names: vec![clone.to_string()], ..CreateClones::default() };
        let job: Job = asking.post(&paths::of_volume(&parent, "clones"), &request)?;
        asking.finish(job)?;
        parent = clone;
    }
    drain(daemon, &[parent.as_str()], Duration::from_secs(60))?;
    let load = Load {
        way: Way::Read,
        order: Order::Random,
        bytes: BLOCK,
        depth: 32,
        set: SET,
        time: Duration::from_secs(2),
        warm_up: Duration::from_millis(500),
        poll: false,
    };
    let sockets = [name("desk-2"), parent].map(|volume| daemon.volume(volume.as_str()).map(|volume| volume.socket));
    let [flat, deep] = sockets;
    let (flat, deep) = (flat?, deep?);
    let pairs = if settings.quick { 5 } else { 21 };
    let mut ratios = Vec::new();
    for pair in 0..pairs {
        // Whoever goes first has the machine as the pair before left it: they take turns.
        let (one, other) = if pair % 2 == 0 {
            let one = load::run(&flat, &load, 1)?;
            (one, load::run(&deep, &load, 2)?)
        } else {
            let other = load::run(&deep, &load, 2)?;
            (load::run(&flat, &load, 1)?, other)
        };
        ratios.push(other.per_second() / one.per_second());
    }
    ratios.sort_by(f64::total_cmp);
    let note = format!("median of {pairs} pairs, {:.2} to {:.2}", ratios[0], ratios[pairs - 1]);
    report.row("reads 64 generations deep / of one", ratios[pairs / 2], "×", Goal::AtLeast(0.95), note);
    Ok(())
}
