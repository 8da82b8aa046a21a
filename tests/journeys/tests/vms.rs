//! VMs under load: what their snapshots hold of writes that depend on each other.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lamina_api::client::{Client as Caller, ClientError};
use lamina_api::job::{Job, JobState};
use lamina_api::name::Name;
use lamina_api::paths;
use lamina_api::snapshot::{CreateClones, CreateSnapshot, Snapshot};
use lamina_api::vm::{CreateVm, CreateVmSnapshot, Machine, Vm, VmDisk, VmSnapshot};
use lamina_contract::VolumeName;
use lamina_contract::units::{ByteSize, Lba};
use lamina_harness::{Client, ClientOptions};
use lamina_journeys::Bed;

const SNAPSHOTS: usize = 50;
/// A stamp fills a block.
const BLOCK: usize = 4096;

/// Calls of the daemon's interface.
struct Calls {
    caller: Caller,
    runtime: tokio::runtime::Runtime,
}

impl Calls {
    fn of(state: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { caller: Caller::new(&state.join("run/lamina.sock")), runtime }
    }

    fn ask<T>(&self, call: impl AsyncFnOnce(&Caller) -> Result<T, ClientError>) -> T {
        self.runtime.block_on(call(&self.caller)).expect("answered")
    }

    /// Makes a clone of a snapshot, which nobody is served.
    fn clone(&self, path: &str, name: &str, snapshot: &str) {
        let (name, snapshot, attach) = (Some(name.to_owned()), Some(snapshot.to_owned()), Some(false));
        let request = CreateClones { name, snapshot, attach, ..CreateClones::default() };
        let job: Job = self.ask(async |caller| caller.post(path, &request).await);
        let id = job.id.parse().expect("a number");
        let job = self.ask(async |caller| caller.job(id, Duration::from_secs(30)).await);
        assert_eq!(job.state, JobState::Succeeded, "{job:?}");
    }

    /// The stamp that a volume holds.
    fn stamp(&self, volume: &str) -> u64 {
        let volume = VolumeName::new(volume).expect("a name");
        let bytes = self.ask(async |caller| caller.read_data(&volume, 0, BLOCK as u64).await);
        let mut words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
        let stamp = words.next().expect("a block");
        assert!(words.all(|word| word == stamp), "{volume} holds a mixture");
        stamp
    }
}

fn machine(disks: [&str; 2]) -> Machine {
    let disks = disks.map(|volume| VmDisk { volume: volume.to_owned(), ..VmDisk::default() }).to_vec();
    Machine { cpus: 1, memory_bytes: 1 << 30, disks, ..Machine::default() }
}

/// Writes stamp 1 to the first disk, then to the second, then stamp 2 …, each when the one before was answered.
fn write_stamps(sockets: [&Path; 2], written: &AtomicU64, stop: &AtomicBool) {
    let mut disks = sockets.map(|socket| Client::connect(socket, ClientOptions::default()).expect("connected"));
    while !stop.load(Ordering::Acquire) {
        let stamp = written.load(Ordering::Acquire) + 1;
        let block: Vec<u8> = stamp.to_le_bytes().repeat(BLOCK / 8);
        disks.iter_mut().for_each(|disk| disk.queue().write(Lba(0), &block).expect("written"));
        written.store(stamp, Ordering::Release);
    }
}

#[test]
fn a_vms_snapshots_hold_its_disks_at_one_moment() {
    let bed = Bed::new().expect("a daemon");
    let disks = ["web-a", "web-b"].map(|name| bed.volume(name, ByteSize(16 << 20)).expect("a volume"));
    let calls = Calls::of(bed.daemon.state());
    let request = CreateVm { name: "web".to_owned(), machine: machine(["web-a", "web-b"]), ..CreateVm::default() };
    let _: Vm = calls.ask(async |caller| caller.post(paths::VMS, &request).await);
    let vm = Name::new("web").expect("a name");

    let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut before = Vec::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_stamps([&disks[0].socket, &disks[1].socket], &written, &stop));
        let until = Instant::now() + Duration::from_secs(60);
        while written.load(Ordering::Acquire) == 0 {
            assert!(Instant::now() < until && !writer.is_finished(), "nothing is written");
            std::thread::yield_now();
        }
        for number in 1..=SNAPSHOTS {
            before.push(written.load(Ordering::Acquire));
            let request = CreateVmSnapshot { name: format!("s-{number}"), ..CreateVmSnapshot::default() };
            let taken: VmSnapshot = calls.ask(async |caller| caller.post(&paths::of_vm(&vm, "snapshots"), &request).await);
            assert!(taken.complete && taken.disks.len() == 2);
        }
        // One after the other, to see that this test would tell: the second disk is ahead.
        for volume in ["web-a", "web-b"] {
            let (before, until) = (written.load(Ordering::Acquire), Instant::now() + Duration::from_secs(60));
            while written.load(Ordering::Acquire) < before + 2 {
                assert!(Instant::now() < until, "nothing is written");
                std::thread::yield_now();
            }
            let request = CreateSnapshot { name: "apart".to_owned(), ..CreateSnapshot::default() };
            let path = paths::of_volume(&VolumeName::new(volume).expect("a name"), "snapshots");
            let _: Snapshot = calls.ask(async |caller| caller.post(&path, &request).await);
        }
        stop.store(true, Ordering::Release);
    });

    let (mut earlier, mut between) = ((0, 0), 0);
    for (number, before) in (1..).zip(before) {
        calls.clone(&paths::of_vm(&vm, "clones"), &format!("c-{number}"), &format!("s-{number}"));
        let (a, b) = (calls.stamp(&format!("c-{number}-a")), calls.stamp(&format!("c-{number}-b")));
        assert!(b <= a && a <= b + 1, "snapshot {number}: the first disk has stamp {a}, the second {b}");
        assert!(before <= b, "snapshot {number} lacks what was answered before it: {b} of {before}");
        // Disk by disk: nothing may have been written since the one before, which may lie between two writes.
        assert!(earlier.0 <= a && earlier.1 <= b, "snapshot {number} is older than the one before: {a}, {b} and {earlier:?}");
        earlier = (a, b);
        between += usize::from(a > b);
    }
    for volume in ["web-a", "web-b"] {
        let path = paths::of_volume(&VolumeName::new(volume).expect("a name"), "clones");
        calls.clone(&path, &format!("apart-{volume}"), "apart");
    }
    let (a, b) = (calls.stamp("apart-web-a"), calls.stamp("apart-web-b"));
    assert!(b > a, "taken apart, they are of one moment: {a}, {b}");
    let written = written.load(Ordering::Acquire);
    println!("{written} stamps, {SNAPSHOTS} snapshots, {between} of them between two writes");
    assert!(written > SNAPSHOTS as u64, "the writer stood still: {written}");
}
