//! The machine's own limits, measured in the same run: memory copies, SHA-256, the erasure code, and the disk. What Lamina does
//! is put beside what these allow.

use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use lamina_contract::units::Policy;
use lamina_distributor::{Codecs, Engine};
use lamina_engine::{fingerprint, fingerprints};
use lamina_harness::HarnessError;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use crate::report::{Goal, Report};
use crate::settings::Settings;

const BLOCK: usize = 4096;
/// Larger than the last-level cache, smaller than memory.
const AREA: usize = 64 << 20;

/// Bytes a second of one core, or of the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) hash: f64,
    pub(crate) code: f64,
}

fn rate(bytes: usize, time: Duration, mut work: impl FnMut()) -> f64 {
    work();
    let begin = Instant::now();
    let mut times = 0_u32;
    while begin.elapsed() < time {
        work();
        times += 1;
    }
    bytes as f64 * f64::from(times) / begin.elapsed().as_secs_f64()
}

fn random(bytes: usize) -> Vec<u8> {
    let mut area = vec![0; bytes];
    SmallRng::seed_from_u64(1).fill_bytes(&mut area);
    area
}

/// Measures memcpy, SHA-256 of 4 KiB blocks, and the code of a 4 MiB object, each on one core.
pub(crate) fn measure(settings: &Settings, report: &mut Report) -> Limits {
    let time = settings.burst() / 5;
    let source = random(AREA);
    let mut target = vec![0; AREA];
    let copy = rate(AREA, time, || black_box(&mut target).copy_from_slice(black_box(&source)));
    report.row("memcpy, 64 MiB", copy / 1e9, "GB/s", Goal::None, "one core");
    let blocks: Vec<&[u8]> = source.chunks(BLOCK).collect();
    let single = rate(AREA, time, || {
        for block in &blocks {
            black_box(fingerprint(black_box(block)));
        }
    });
    let hash = rate(AREA, time, || drop(black_box(fingerprints(black_box(&blocks)))));
    let micros = |rate: f64| BLOCK as f64 / rate * 1e6;
    report.row(
        "SHA-256 of 4 KiB, one at a time",
        micros(single),
        "µs",
        Goal::None,
        format!("{:.2} GB/s on one core", single / 1e9),
    );
    report.row("SHA-256 of 4 KiB, side by side", micros(hash), "µs", Goal::None, format!("{:.2} × one at a time", hash / single));
    let mut code = f64::INFINITY;
    for text in ["4+2", "11+7"] {
        for engine in [Engine::Fastest, Engine::Reference] {
            if let Some((name, rate)) = encode(text, engine, time) {
                report.row(
                    format!("encode {text}, {name}"),
                    rate / 1e9,
                    "GB/s",
                    Goal::None,
                    format!("{:.2} × memcpy", rate / copy),
                );
                if text == "4+2" && engine == Engine::Fastest {
                    code = rate;
                }
            }
        }
    }
    Limits { hash, code }
}

/// Bytes of data a second that the engine codes.
fn encode(policy: &str, engine: Engine, time: Duration) -> Option<(&'static str, f64)> {
    let policy: Policy = policy.parse().ok()?;
    let codec = Codecs::new(engine).of(policy).ok()?;
    let fragment = (4_usize << 20).div_ceil(policy.data()).next_multiple_of(BLOCK);
    let bytes = random(fragment * policy.data());
    let data: Vec<&[u8]> = bytes.chunks(fragment).collect();
    let mut parity = vec![vec![0; fragment]; policy.parity()];
    let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    codec.encode(&data, &mut parity).ok()?;
    let rate = rate(bytes.len(), time, || {
        // It did not refuse a moment ago.
        let _ = codec.encode(black_box(&data), black_box(&mut parity));
    });
    Some((codec.name(), rate))
}

/// Bytes a second that the disk takes durably: four writers of preallocated files, 4 MiB at a time, O_DIRECT, rewriting them.
pub(crate) fn disk(root: &Path, time: Duration) -> Result<f64, HarnessError> {
    const FILE: u64 = 512 << 20;
    const WRITERS: usize = 4;
    let mut files = Vec::new();
    for number in 0..WRITERS {
        let path = root.join(format!("limit{number}"));
        let open = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT).open(&path);
        let file = open.map_err(HarnessError::file("make", &path))?;
        files.push((path, file));
    }
    let begin = Instant::now();
    let written: u64 = std::thread::scope(|scope| {
        let running: Vec<_> = files.iter().map(|(_, file)| scope.spawn(move || write_for(file, FILE, time))).collect();
        running.into_iter().map(|one| one.join().unwrap_or(0)).sum()
    });
    let rate = written as f64 / begin.elapsed().as_secs_f64();
    for (path, _) in files {
        let _ = std::fs::remove_file(path);
    }
    Ok(rate)
}

fn write_for(file: &std::fs::File, bytes: u64, time: Duration) -> u64 {
    const PIECE: usize = 4 << 20;
    let area = random(PIECE + BLOCK);
    // O_DIRECT wants memory aligned to the device's block.
    let start = area.as_ptr().align_offset(BLOCK);
    let Some(piece) = area.get(start..start + PIECE) else { return 0 };
    let begin = Instant::now();
    let mut written = 0;
    let mut target = file;
    while begin.elapsed() < time {
        if written % bytes == 0 && std::io::Seek::rewind(&mut target).is_err() {
            break;
        }
        if target.write_all(piece).is_err() {
            break;
        }
        written += PIECE as u64;
    }
    if target.sync_data().is_err() { 0 } else { written }
}
