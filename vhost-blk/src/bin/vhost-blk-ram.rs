//! Serves a disk in memory (or, with `--null`, one that holds nothing) over vhost-user-blk until SIGINT or SIGTERM.
//!
//! A size on a line of standard input (`2GiB`) resizes the disk in memory while guests use it.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;

use lamina_contract::{BlockDevice, ByteSize, SECTOR_BYTES, SectorCount};
use lamina_vhost_blk::{NullDisk, RamDisk, Server, ServerOptions};

const USAGE: &str = "usage: vhost-blk-ram --socket PATH --size 1GiB [--queues N] [--threads N] [--poll-us N] [--null]";

struct Arguments {
    socket: String,
    size: ByteSize,
    null: bool,
    options: ServerOptions,
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Arguments> {
    let (mut socket, mut size, mut null, mut options) = (None, None, false, ServerOptions::default());
    while let Some(word) = words.next() {
        match word.as_str() {
            "--socket" => socket = words.next(),
            "--size" => size = words.next()?.parse().ok(),
            "--queues" => options.queues = words.next()?.parse().ok()?,
            "--threads" => options.threads = words.next()?.parse().ok()?,
            "--poll-us" => options.poll = std::time::Duration::from_micros(words.next()?.parse().ok()?),
            "--null" => null = true,
            _ => return None,
        }
    }
    Some(Arguments { socket: socket?, size: size?, null, options })
}

fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    // Before any thread starts, so that all of them leave these signals to us.
    // SAFETY: plain calls on a local signal set.
    let signals = unsafe {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    };
    let sectors = SectorCount(arguments.size.0 / SECTOR_BYTES);
    let disk = Arc::new(RamDisk::new(sectors));
    let device: Arc<dyn BlockDevice> = if arguments.null { Arc::new(NullDisk::new(sectors)) } else { disk.clone() };
    let server = match Server::bind(&arguments.socket, device, arguments.options) {
        Ok(server) => Arc::new(server),
        Err(error) => {
            eprintln!("vhost-blk-ram: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("serving {} at {}", arguments.size, arguments.socket);
    let _ = std::io::stdout().flush();
    if !arguments.null {
        let server = server.clone();
        // It ends with standard input or with the process.
        std::thread::spawn(move || resize_as_told(&disk, &server));
    }
    let mut signal = 0;
    // SAFETY: waits for one of the blocked signals.
    unsafe { libc::sigwait(&raw const signals, &raw mut signal) };
    let drained = server.stop();
    println!("stopped: {drained:?}, {:?}", server.counters());
    ExitCode::SUCCESS
}

fn resize_as_told(disk: &RamDisk, server: &Server) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let Ok(size) = line.trim().parse::<ByteSize>() else {
            eprintln!("vhost-blk-ram: a size like 2GiB, please");
            continue;
        };
        disk.resize(SectorCount(size.0 / SECTOR_BYTES));
        println!("resized to {} sectors", server.resized().0);
    }
}
