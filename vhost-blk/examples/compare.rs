//! Measures `vhost-blk-ram` against `qemu-storage-daemon`'s null device: the same client, interleaved, medians of ratios.
//!
//! `cargo run --release -p lamina-vhost-blk --example compare -- [ROUNDS] [SECONDS-PER-POINT]`, after a release build of the binary.
//! Servers run in processes of their own; the client is libblkio's crate in this one.

use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use blkio::{Blkio, Completion, ReqFlags};

const SIZE: u64 = 256 << 20;
const BLOCK: usize = 4096;

struct Point {
    name: &'static str,
    write: bool,
    depth: usize,
    queues: usize,
}

const POINTS: [Point; 6] = [
    Point { name: "4K read  QD1  1 queue ", write: false, depth: 1, queues: 1 },
    Point { name: "4K write QD1  1 queue ", write: true, depth: 1, queues: 1 },
    Point { name: "4K read  QD32 1 queue ", write: false, depth: 32, queues: 1 },
    Point { name: "4K write QD32 1 queue ", write: true, depth: 32, queues: 1 },
    Point { name: "4K read  QD32 4 queues", write: false, depth: 32, queues: 4 },
    Point { name: "4K write QD32 4 queues", write: true, depth: 32, queues: 4 },
];

struct Contender {
    name: String,
    socket: PathBuf,
    child: Child,
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Operations per second, and the server's CPU seconds per million of them.
fn measure(contender: &Contender, point: &Point, time: Duration) -> (f64, f64) {
    let cpu = cpu_seconds(contender.child.id());
    let mut blkio = Blkio::new("virtio-blk-vhost-user").expect("driver");
    blkio.set_str("path", contender.socket.to_str().expect("utf-8")).expect("path");
    blkio.connect().expect("connect");
    blkio.set_i32("num-queues", point.queues as i32).expect("queues");
    let mut queues = blkio.start().expect("start").queues;
    let region = blkio.alloc_mem_region(point.depth * BLOCK).expect("memory");
    blkio.map_mem_region(&region).expect("map");
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let per_queue = point.depth.div_ceil(point.queues).min(point.depth);
    let mut issue = |queue: &mut blkio::Blkioq, slot: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let at = (seed % (SIZE / BLOCK as u64)) * BLOCK as u64;
        let buffer = region.addr + slot * BLOCK;
        if point.write {
            queue.write(at, buffer as *const u8, BLOCK, slot, ReqFlags::empty());
        } else {
            queue.read(at, buffer as *mut u8, BLOCK, slot, ReqFlags::empty());
        }
    };
    let mut completions = [const { MaybeUninit::<Completion>::uninit() }; 64];
    for (number, queue) in queues.iter_mut().enumerate() {
        for slot in 0..per_queue {
            issue(queue, number * per_queue + slot);
        }
    }
    let single = point.queues == 1;
    let (start, mut done) = (Instant::now(), 0u64);
    while start.elapsed() < time {
        for _ in 0..16 {
            for queue in &mut queues {
                let n = queue.do_io(&mut completions[..per_queue], usize::from(single), None, None).expect("do_io");
                for completion in &completions[..n] {
                    // SAFETY: do_io filled the first n.
                    let completion = unsafe { completion.assume_init_ref() };
                    assert_eq!(completion.ret, 0);
                    issue(queue, completion.user_data);
                }
                done += n as u64;
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    for queue in &mut queues {
        queue.do_io(&mut completions[..per_queue], per_queue, None, None).expect("drain");
    }
    (done as f64 / seconds, (cpu_seconds(contender.child.id()) - cpu) / done as f64 * 1e6)
}

fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    (fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime")) / 100.0
}

fn start(dir: &Path, name: &str, program: &Path, arguments: &[String]) -> Contender {
    let socket = dir.join(format!("{name}.sock"));
    let arguments: Vec<String> = arguments.iter().map(|a| a.replace("SOCKET", socket.to_str().expect("utf-8"))).collect();
    let child = Command::new(program).args(arguments).stdout(Stdio::null()).spawn().expect("start server");
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(100));
    Contender { name: name.to_owned(), socket, child }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut words = std::env::args().skip(1);
    let rounds: usize = words.next().map_or(7, |w| w.parse().expect("rounds"));
    let time = Duration::from_secs_f64(words.next().map_or(0.5, |w| w.parse().expect("seconds")));
    let extra: Vec<String> = words.collect();
    let dir = tempfile::tempdir().expect("dir");
    let ours = std::env::current_exe().expect("exe").parent().and_then(Path::parent).expect("target").join("vhost-blk-ram");
    let own = |kind: &[&str]| -> Vec<String> {
        let size = SIZE.to_string();
        ["--socket", "SOCKET", "--size", &size].iter().chain(kind).map(|s| (*s).to_owned()).chain(extra.clone()).collect()
    };
    let qsd = vec![
        "--blockdev".to_owned(),
        format!("driver=null-co,node-name=n,size={SIZE},read-zeroes=on"),
        "--export".to_owned(),
        "type=vhost-user-blk,id=e,addr.type=unix,addr.path=SOCKET,node-name=n,writable=on,num-queues=4".to_owned(),
    ];
    let contenders = [
        start(dir.path(), "qemu-null", Path::new("qemu-storage-daemon"), &qsd),
        start(dir.path(), "null", &ours, &own(&["--null"])),
        start(dir.path(), "ram", &ours, &own(&[])),
    ];
    println!("{:24} {:>12} {:>12} {:>12}   null/qemu ram/qemu   CPU s per million: qemu null ram", "", "qemu-null", "null", "ram");
    for point in &POINTS {
        let mut rates = vec![Vec::new(); contenders.len()];
        let mut cpus = vec![Vec::new(); contenders.len()];
        for _ in 0..rounds {
            for (index, contender) in contenders.iter().enumerate() {
                let (rate, cpu) = measure(contender, point, time);
                rates[index].push(rate);
                cpus[index].push(cpu);
            }
        }
        let ratio = |index: usize| {
            let mut ratios: Vec<f64> = rates[index].iter().zip(&rates[0]).map(|(a, b)| a / b).collect();
            median(&mut ratios)
        };
        let (null, ram) = (ratio(1), ratio(2));
        let rates: Vec<f64> = rates.iter_mut().map(|r| median(r)).collect();
        let cpus: Vec<f64> = cpus.iter_mut().map(|c| median(c)).collect();
        println!(
            "{:24} {:>12.0} {:>12.0} {:>12.0}   {null:>9.2} {ram:>8.2}   {:>20.2} {:.2} {:.2}",
            point.name, rates[0], rates[1], rates[2], cpus[0], cpus[1], cpus[2]
        );
    }
    println!("{}", contenders.map(|c| c.name.clone()).join(" "));
}
