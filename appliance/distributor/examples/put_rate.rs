//! How fast objects go into a coded pool of local drives, and what it costs: `cargo run --release --example put_rate -- DIRECTORY [POLICY]`.
//!
//! Prints encode and decode rates of each engine, then puts, reads and degraded reads of 4 MiB objects over drive directories below
//! DIRECTORY, with a single drive without coding as the measure. Rates are of object bytes; CPU is of the whole process.

use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use lamina_contract::{ManualClock, Policy, Timestamp};
use lamina_distributor::{Codecs, Distributor, DistributorOptions, Engine, FailureDomain, Target, TargetId};
use lamina_stores::conformance::sample;
use lamina_stores::{MemberState, open_pool};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

const OBJECT: usize = 4 << 20;
const COUNT: u64 = 128;

type Failure = Box<dyn std::error::Error>;

/// User and system time of the process.
fn cpu_seconds() -> [f64; 2] {
    // Behind the name and the state (no number) of /proc/self/stat, utime and stime are the 11th and 12th numbers, in ticks of 10 ms.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().filter_map(|f| f.parse().ok()).collect();
    [10, 11].map(|at| fields.get(at).map_or(0.0, |ticks| ticks / 100.0))
}

/// Processor time of this thread: other work on the machine does not count.
fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

struct Measure(Instant, [f64; 2]);

impl Measure {
    fn begin() -> Self {
        Self(Instant::now(), cpu_seconds())
    }

    fn end(self, what: &str, bytes: u64) {
        let (seconds, cpu, mb) = (self.0.elapsed().as_secs_f64(), cpu_seconds(), bytes as f64 / 1e6);
        let [user, system] = [0, 1].map(|at| (cpu[at] - self.1[at]) * 1000.0 / mb);
        println!("{what:<40} {:>8.0} MB/s   CPU ms/MB: {user:.3} user {system:.3} system", mb / seconds);
    }
}

fn places(fragments: &mut [Vec<u8>]) -> Vec<&mut [u8]> {
    fragments.iter_mut().map(Vec::as_mut_slice).collect()
}

fn engines(policy: Policy) -> Result<(), Failure> {
    let len = OBJECT.div_ceil(policy.data()).next_multiple_of(4096);
    let data: Vec<Bytes> = (0..policy.data()).map(|n| sample(n as u64, len)).collect();
    let slices: Vec<&[u8]> = data.iter().map(Bytes::as_ref).collect();
    for engine in [Engine::Reference, Engine::Fastest] {
        let codec = Codecs::new(engine).of(policy)?;
        let mut parity = vec![vec![0; len]; policy.parity()];
        codec.encode(&slices, &mut places(&mut parity))?;
        let rate = |work: &mut dyn FnMut() -> Result<(), Failure>| -> Result<f64, Failure> {
            let (begun, mut rounds) = (thread_seconds(), 0_u32);
            loop {
                work()?;
                rounds += 1;
                let used = thread_seconds() - begun;
                if used >= 0.5 {
                    return Ok(f64::from(rounds) * (len * policy.data()) as f64 / used / 1e9);
                }
            }
        };
        let encode = rate(&mut || Ok(codec.encode(&slices, &mut places(&mut parity))?))?;
        let lost: Vec<usize> = (0..policy.parity().min(policy.data())).collect();
        let parity_at = parity.iter().enumerate().map(|(n, bytes)| (policy.data() + n, bytes.as_slice()));
        let present: Vec<(usize, &[u8])> = slices.iter().copied().enumerate().skip(lost.len()).chain(parity_at).collect();
        let mut rebuilt = vec![vec![0; len]; lost.len()];
        let decode = rate(&mut || {
            codec.rebuild_into(&present, &lost, &mut places(&mut rebuilt))?;
            Ok(())
        })?;
        println!("{:<24} {policy}: encode {encode:.2} GB/s, decode of {} lost {decode:.2} GB/s per core", codec.name(), lost.len());
    }
    Ok(())
}

async fn puts(store: &dyn ObjectStore, prefix: &str, at_once: usize, payload: &Bytes) -> Result<(), Failure> {
    let done: Vec<object_store::Result<_>> = stream::iter(0..COUNT)
        .map(|n| async move { store.put(&Path::from(format!("{prefix}/{n:04}")), payload.clone().into()).await })
        .buffer_unordered(at_once)
        .collect()
        .await;
    done.into_iter().collect::<object_store::Result<Vec<_>>>()?;
    Ok(())
}

async fn gets(store: &dyn ObjectStore, prefix: &str, at_once: usize) -> Result<(), Failure> {
    let done: Vec<object_store::Result<usize>> = stream::iter(0..COUNT)
        .map(|n| async move {
            let mut chunks = store.get(&Path::from(format!("{prefix}/{n:04}"))).await?.into_stream();
            let mut len = 0;
            while let Some(chunk) = chunks.next().await {
                len += chunk?.len();
            }
            Ok(len)
        })
        .buffer_unordered(at_once)
        .collect()
        .await;
    assert!(done.into_iter().collect::<object_store::Result<Vec<_>>>()?.iter().all(|len| *len == OBJECT), "whole objects");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let top = arguments.next().ok_or("usage: put_rate DIRECTORY [POLICY]")?;
    let policy: Policy = arguments.next().as_deref().unwrap_or("4+2").parse()?;
    engines(policy)?;
    let top = FsPath::new(&top);
    let payload = sample(1, OBJECT);
    let bytes = COUNT * OBJECT as u64;

    std::fs::create_dir_all(top)?;
    let single = open_pool(&[top.join("single")], &top.join("single-pool"), Timestamp(0))?;
    let Some(MemberState::Ready { store: single }) = single.members.first().map(|member| member.state.clone()) else {
        return Err("no drive".into());
    };
    let paths: Vec<_> = (0..policy.total()).map(|n| top.join(format!("drive-{n}"))).collect();
    let pool = open_pool(&paths, &top.join("pool"), Timestamp(0))?;
    let targets = pool
        .members
        .iter()
        .map(|member| Target {
            id: TargetId::from(member.drive),
            store: match &member.state {
                MemberState::Ready { store } => Some(Arc::new(store.clone()) as Arc<dyn ObjectStore>),
                MemberState::Missing => None,
            },
            domain: FailureDomain::default(),
            weight: 1,
        })
        .collect();
    let coded = Distributor::new(DistributorOptions::new(pool.id, policy, Arc::new(ManualClock::default())), targets)?;
    for round in 0..3 {
        for at_once in [1, 4, 16] {
            let prefix = format!("r{round}-{at_once}");
            let measure = Measure::begin();
            puts(&single, &prefix, at_once, &payload).await?;
            measure.end(&format!("put, one drive, {at_once} at once"), bytes);
            let measure = Measure::begin();
            puts(&coded, &prefix, at_once, &payload).await?;
            measure.end(&format!("put, {policy}, {at_once} at once"), bytes);
        }
        let measure = Measure::begin();
        gets(&coded, &format!("r{round}-4"), 4).await?;
        measure.end(&format!("get, {policy}, warm, 4 at once"), bytes);
        for member in pool.members.iter().take(policy.parity()) {
            coded.set_target(TargetId::from(member.drive), None);
        }
        let measure = Measure::begin();
        gets(&coded, &format!("r{round}-4"), 4).await?;
        measure.end(&format!("get, {policy}, {} drives lost, warm", policy.parity()), bytes);
        for member in &pool.members {
            if let MemberState::Ready { store } = &member.state {
                coded.set_target(TargetId::from(member.drive), Some(Arc::new(store.clone())));
            }
        }
        let reads = 20_000_u64;
        let begun = Instant::now();
        for n in 0..reads {
            let from = n * 7919 * 4096 % (OBJECT as u64 - 4096);
            coded.get_range(&Path::from(format!("r{round}-4/{:04}", n % COUNT)), from..from + 4096).await?;
        }
        println!(
            "range reads of 4 KiB, warm, one after another   {:>8.1} µs each",
            begun.elapsed().as_secs_f64() * 1e6 / reads as f64
        );
        for prefix in [1, 4, 16].map(|at_once| format!("r{round}-{at_once}")) {
            for n in 0..COUNT {
                single.delete(&Path::from(format!("{prefix}/{n:04}"))).await?;
                coded.delete(&Path::from(format!("{prefix}/{n:04}"))).await?;
            }
        }
    }
    println!("{:?}", coded.stats());
    Ok(())
}
