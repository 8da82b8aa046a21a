//! A third-party front end (libblkio's Rust crate) against the server: what it writes it reads back, and its flushes arrive.

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use lamina_contract::SectorCount;
use lamina_vhost_blk::{RamDisk, Server, ServerOptions};

const SIZE: u64 = 64 << 20;

fn connect(path: &std::path::Path, queues: i32) -> (Blkio, Vec<Blkioq>) {
    let mut blkio = Blkio::new("virtio-blk-vhost-user").expect("driver");
    blkio.set_str("path", path.to_str().expect("utf-8")).expect("path");
    blkio.connect().expect("connect");
    assert_eq!(blkio.get_u64("capacity").expect("capacity"), SIZE);
    blkio.set_i32("num-queues", queues).expect("queues");
    let started = blkio.start().expect("start");
    (blkio, started.queues)
}

fn complete(queue: &mut Blkioq, count: usize) {
    let mut completions = [const { MaybeUninit::<Completion>::uninit() }; 64];
    let mut left = count;
    while left > 0 {
        let done = queue.do_io(&mut completions[..left.min(64)], 1, Some(&mut Duration::from_secs(10)), None).expect("do_io");
        for completion in &completions[..done] {
            // SAFETY: do_io filled the first `done` of them.
            assert_eq!(unsafe { completion.assume_init_ref() }.ret, 0);
        }
        left -= done;
    }
}

fn slice<'a>(region: MemoryRegion) -> &'a mut [u8] {
    // SAFETY: the region stays mapped while its Blkio lives, and each test touches it from one thread while no I/O is under way.
    unsafe { std::slice::from_raw_parts_mut(region.addr as *mut u8, region.len) }
}

#[test]
fn what_blkio_writes_on_one_queue_it_reads_on_another_and_each_flush_arrives() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("disk.sock");
    let disk = Arc::new(RamDisk::new(SectorCount(SIZE / 512)));
    let server = Server::bind(&path, disk.clone(), ServerOptions::default()).expect("server");
    let (mut blkio, mut queues) = connect(&path, 4);
    let region = blkio.alloc_mem_region(1 << 20).expect("memory");
    blkio.map_mem_region(&region).expect("map");
    let bytes = slice(region);
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = (index / 7) as u8;
    }
    let half = region.len / 2;
    for at in (0..half).step_by(4096) {
        queues[0].write(at as u64 * 3, (region.addr + at) as *const u8, 4096, at, ReqFlags::empty());
    }
    complete(&mut queues[0], half / 4096);
    queues[1].flush(0, ReqFlags::empty());
    complete(&mut queues[1], 1);
    assert_eq!(disk.flushes(), 1);
    for at in (0..half).step_by(4096) {
        queues[2].read(at as u64 * 3, (region.addr + half + at) as *mut u8, 4096, at, ReqFlags::empty());
    }
    complete(&mut queues[2], half / 4096);
    assert_eq!(bytes[..half], bytes[half..]);
    queues[3].discard(0, SIZE, 0, ReqFlags::empty());
    complete(&mut queues[3], 1);
    queues[0].read(3 * 4096, (region.addr + half) as *mut u8, 4096, 0, ReqFlags::empty());
    complete(&mut queues[0], 1);
    assert!(bytes[half..half + 4096].iter().all(|b| *b == 0));
    drop((queues, blkio));
    let counters = server.counters();
    assert_eq!(counters.write.requests, (half / 4096) as u64);
    assert_eq!(counters.write.bytes, half as u64);
    assert_eq!((counters.flush.requests, counters.discard.requests, counters.protocol_errors), (1, 1, 0));
}

#[test]
fn front_ends_come_one_after_the_other_and_find_what_the_last_one_wrote() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("disk.sock");
    let server = Server::bind(&path, Arc::new(RamDisk::new(SectorCount(SIZE / 512))), ServerOptions::default()).expect("server");
    for round in 0..20u8 {
        let (mut blkio, mut queues) = connect(&path, 1);
        let region = blkio.alloc_mem_region(8192).expect("memory");
        blkio.map_mem_region(&region).expect("map");
        let bytes = slice(region);
        queues[0].read(0, region.addr as *mut u8, 4096, 0, ReqFlags::empty());
        complete(&mut queues[0], 1);
        assert!(bytes[..4096].iter().all(|b| *b == round), "round {round} found {}", bytes[0]);
        bytes[4096..].fill(round + 1);
        queues[0].write(0, (region.addr + 4096) as *const u8, 4096, 0, ReqFlags::empty());
        complete(&mut queues[0], 1);
    }
    assert_eq!(server.counters().connections, 20);
}
