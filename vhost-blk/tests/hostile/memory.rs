//! Lies about memory: tables, files, and memory that goes away.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use lamina_vhost_blk::driver::{
    GUEST_BASE, NEED_REPLY, Setup, SharedMemory, USER_BASE, VERSION, mem_table, message, single_region,
};
use lamina_vhost_blk::driver_queue::{DriverQueue, IN, OUT, UNTOUCHED};

use crate::{Case, HELD_FROM, Lab, PATIENCE, expect_closed};

type Region = (u64, u64, u64, u64);
const MIB: u64 = 1 << 20;

pub const CASES: &[Case] = &[
    ("shares no region", |lab| table(lab, &[], 0)),
    ("shares a region without its descriptor", |lab| table(lab, &[(GUEST_BASE, MIB, USER_BASE, 0)], 0)),
    ("sends more descriptors than regions", |lab| table(lab, &[(GUEST_BASE, MIB, USER_BASE, 0)], 2)),
    ("claims more regions than it sends", |lab| {
        let (front, memory) = lab.negotiated();
        let mut body = mem_table(&[(GUEST_BASE, MIB, USER_BASE, 0)]);
        body[0] = 30;
        front.send(message::SET_MEM_TABLE, VERSION, &body, &[memory.file()]).expect("send");
        expect_closed(&front);
    }),
    ("claims 33 regions", |lab| {
        let regions: Vec<Region> = (0..33).map(|i| (GUEST_BASE + i * MIB, 4096, USER_BASE + i * MIB, 0)).collect();
        table(lab, &regions, 33);
    }),
    ("shares a region that is larger than its file", |lab| table(lab, &[(GUEST_BASE, 4 * MIB + 1, USER_BASE, 0)], 1)),
    ("shares a region behind the end of its file", |lab| table(lab, &[(GUEST_BASE, MIB, USER_BASE, 4 * MIB)], 1)),
    ("shares a region whose offset overflows", |lab| table(lab, &[(GUEST_BASE, MIB, USER_BASE, u64::MAX - 4095)], 1)),
    ("shares a region whose guest address overflows", |lab| table(lab, &[(u64::MAX - 4095, MIB, USER_BASE, 0)], 1)),
    ("shares a region whose own address overflows", |lab| table(lab, &[(GUEST_BASE, MIB, u64::MAX - 4095, 0)], 1)),
    ("shares an empty region", |lab| table(lab, &[(GUEST_BASE, 0, USER_BASE, 0)], 1)),
    ("shares a region at an unaligned offset", |lab| table(lab, &[(GUEST_BASE, MIB, USER_BASE, 100)], 1)),
    ("shares regions that overlap for the guest", |lab| {
        table(lab, &[(GUEST_BASE, MIB, USER_BASE, 0), (GUEST_BASE + 4096, MIB, USER_BASE + MIB, 0)], 2);
    }),
    ("shares regions that overlap for itself", |lab| {
        table(lab, &[(GUEST_BASE, MIB, USER_BASE, 0), (GUEST_BASE + MIB, MIB, USER_BASE + 4096, 0)], 2);
    }),
    ("shares a file that is not memory", |lab| foreign(lab, &File::open("/proc/self/exe").expect("file"))),
    ("shares a device", |lab| foreign(lab, &File::open("/dev/zero").expect("file"))),
    ("shares an eventfd", |lab| {
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("eventfd");
        foreign(lab, &event);
    }),
    ("shares memory read-only", |lab| {
        let memory = SharedMemory::new(1 << 20, true).expect("memory");
        foreign(lab, &File::open(format!("/proc/self/fd/{}", memory.file().as_raw_fd())).expect("read-only"));
    }),
    ("shares more memory than it may", |lab| {
        let (front, _) = lab.negotiated();
        let huge = rustix::fs::memfd_create("huge", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        rustix::fs::ftruncate(&huge, 2 << 40).expect("sparse");
        let body = mem_table(&[(GUEST_BASE, 2 << 40, USER_BASE, 0)]);
        assert!(front.ack(message::SET_MEM_TABLE, &body, &[huge.as_fd()]).is_err());
        expect_closed(&front);
    }),
    ("adds a region twice", |lab| {
        let (front, memory) = lab.negotiated();
        let region = single_region(GUEST_BASE, MIB, USER_BASE, 0);
        front.ack(message::ADD_MEM_REG, &region, &[memory.file()]).expect("first");
        assert!(front.ack(message::ADD_MEM_REG, &region, &[memory.file()]).is_err());
        expect_closed(&front);
    }),
    ("adds 510 regions", |lab| {
        let (front, memory) = lab.negotiated();
        let add = |i: u64| {
            let region = single_region(GUEST_BASE + i * MIB, 4096, USER_BASE + i * MIB, 0);
            front.ack(message::ADD_MEM_REG, &region, &[memory.file()])
        };
        assert!((0..509).all(|i| add(i).is_ok()));
        assert!(add(509).is_err());
        expect_closed(&front);
    }),
    ("removes a region that is not there", |lab| {
        let (front, _) = lab.negotiated();
        assert!(front.ack(message::REM_MEM_REG, &single_region(GUEST_BASE, MIB, USER_BASE, 0), &[]).is_err());
        expect_closed(&front);
    }),
    ("removes the memory that a running ring lies in", |lab| {
        let (front, memory, mut queues) = lab.started(Setup::default());
        let region = single_region(GUEST_BASE, memory.len() as u64, USER_BASE, 0);
        let broken = lab.server.counters().broken_rings;
        front.ack(message::REM_MEM_REG, &region, &[]).expect("remove");
        assert_eq!(lab.server.counters().broken_rings, broken + 1);
        queues[0].request(0, IN, 0, &[0; 512]);
        assert_eq!(queues[0].finished(Duration::from_millis(20)), None);
    }),
    ("shares the same memory again under a running ring with reads in flight", |lab| {
        let (front, memory, mut queues) = lab.started(Setup::default());
        queues[0].request(0, IN, HELD_FROM.0, &[1; 512]);
        lab.wait_held(1);
        for _ in 0..20 {
            front.share(&memory).expect("share");
            queues[0].request(1, OUT, 0, &[7; 512]);
            assert_eq!(queues[0].finished(PATIENCE).expect("answer").status, 0);
        }
        assert_eq!(lab.release(), 1);
        let finished = queues[0].finished(PATIENCE).expect("the held read");
        assert_eq!((finished.slot, finished.status), (0, 0));
        assert_eq!(queues[0].data(0, 512), [0; 512]);
    }),
    ("shares other memory under a running ring with reads in flight", |lab| {
        let (front, memory, mut queues) = lab.started(Setup::default());
        queues[0].request(0, IN, HELD_FROM.0, &[1; 512]);
        lab.wait_held(1);
        let other = SharedMemory::new(memory.len(), true).expect("memory");
        front.share(&other).expect("share");
        assert_eq!(lab.release(), 1);
        // The answer's data went to the memory that the request was made in, the used entry to the new rings.
        let start = std::time::Instant::now();
        while queues[0].status(0) == UNTOUCHED && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(queues[0].data(0, 512), [0; 512]);
    }),
    ("goes with reads in flight", |lab| {
        let (front, _, mut queues) = lab.started(Setup::default());
        for slot in 0..4 {
            queues[0].request(slot, IN, HELD_FROM.0, &[1; 4096]);
        }
        lab.wait_held(4);
        drop((front, queues));
        std::thread::sleep(Duration::from_millis(5));
        lab.release();
    }),
    ("stops a ring whose reads never come back", |lab| {
        let (front, _, mut queues) = lab.started(Setup::default());
        queues[0].request(0, IN, HELD_FROM.0, &[1; 512]);
        lab.wait_held(1);
        assert_eq!(front.stop_queue(0).expect("base"), 1);
        let finished = queues[0].finished(PATIENCE).expect("answered with an error");
        assert_eq!((finished.slot, finished.status), (0, 1));
        // The guest has been reset: what the device answers now must not reach its memory.
        let marker = queues[0].data(0, 512);
        assert_eq!(lab.release(), 1);
        assert_eq!((queues[0].data(0, 512), queues[0].used_index()), (marker, 1));
    }),
    ("shrinks its memory to nothing while rings run", |lab| {
        let (_front, memory, mut queues) = lab.started(Setup { sealed: false, ..Setup::default() });
        assert_eq!(queues[0].run(OUT, 0, &mut [3; 512]), 0);
        memory.resize(0).expect("an unsealed memfd shrinks");
        // Touching our own side would be our own SIGBUS: only the kick goes out.
        queues[0].kick();
        std::thread::sleep(Duration::from_millis(10));
    }),
    ("shrinks its memory below a buffer of a write", |lab| {
        let errors = lab.server.counters().write.errors;
        let (_front, memory, mut queues) = lab.started(Setup { sealed: false, ..Setup::default() });
        let far = memory.len() as u64 - 4096;
        queues[0].prepare(0, OUT, 0, &[1; 512]);
        queues[0].describe(1, GUEST_BASE + far, 512, 1, 2);
        memory.resize(far).expect("an unsealed memfd shrinks");
        queues[0].offer(0);
        queues[0].publish_all();
        let finished = queues[0].finished(PATIENCE).expect("answer");
        assert_eq!(finished.status, 1, "zeros in place of the guest's data must not be taken for a write");
        assert_eq!(lab.server.counters().write.errors, errors + 1);
    }),
    ("shrinks its memory below the buffer of a held read", |lab| {
        let (_front, memory, mut queues) = lab.started(Setup { sealed: false, ..Setup::default() });
        let far = memory.len() as u64 - 4096;
        queues[0].prepare(0, IN, HELD_FROM.0, &[1; 512]);
        queues[0].describe(1, GUEST_BASE + far, 512, 3, 2);
        queues[0].offer(0);
        queues[0].publish_all();
        lab.wait_held(1);
        memory.resize(far).expect("an unsealed memfd shrinks");
        assert_eq!(lab.release(), 1);
        assert_eq!(queues[0].finished(PATIENCE).expect("answer").status, 1);
    }),
    ("tries to shrink memory that could be sealed", |lab| {
        let (front, _) = lab.negotiated();
        let flags = rustix::fs::MemfdFlags::ALLOW_SEALING | rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("late", flags).expect("memfd");
        rustix::fs::ftruncate(&file, MIB).expect("size");
        front.ack(message::SET_MEM_TABLE, &mem_table(&[(GUEST_BASE, MIB, USER_BASE, 0)]), &[file.as_fd()]).expect("share");
        assert!(rustix::fs::ftruncate(&file, 0).is_err(), "the server sealed it");
    }),
    ("names ring addresses before any memory", |lab| {
        let (front, memory) = lab.negotiated();
        ring_outside(&front, &DriverQueue::new(0, 128, memory, true).expect("queue"), None);
    }),
    ("puts a ring outside its memory", |lab| {
        let (front, memory) = lab.negotiated();
        front.share(&memory).expect("share");
        let queue = DriverQueue::new(0, 128, memory.clone(), true).expect("queue");
        ring_outside(&front, &queue, Some(USER_BASE + memory.len() as u64));
    }),
    ("puts a ring over the end of its memory", |lab| {
        let (front, memory) = lab.negotiated();
        front.share(&memory).expect("share");
        let queue = DriverQueue::new(0, 128, memory.clone(), true).expect("queue");
        ring_outside(&front, &queue, Some(USER_BASE + memory.len() as u64 - 16));
    }),
    ("puts a ring at the end of all addresses", |lab| {
        let (front, memory) = lab.negotiated();
        front.share(&memory).expect("share");
        let queue = DriverQueue::new(0, 128, memory.clone(), true).expect("queue");
        ring_outside(&front, &queue, Some(u64::MAX - 15));
    }),
    ("puts a ring at an unaligned address", |lab| {
        let (front, memory) = lab.negotiated();
        front.share(&memory).expect("share");
        let queue = DriverQueue::new(0, 128, memory.clone(), true).expect("queue");
        let mut addresses = queue.addresses();
        addresses[8] |= 1;
        front.send(message::SET_VRING_ADDR, VERSION | NEED_REPLY, &addresses, &[]).expect("send");
        expect_closed(&front);
    }),
    ("puts all of a ring's areas at one address", |lab| {
        let (front, memory) = lab.negotiated();
        front.share(&memory).expect("share");
        let mut queue = DriverQueue::new(0, 128, memory.clone(), true).expect("queue");
        let mut body = 0u64.to_le_bytes().to_vec();
        for word in [USER_BASE, USER_BASE, USER_BASE, 0] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        front.ack(message::SET_VRING_NUM, &128u64.wrapping_shl(32).to_le_bytes(), &[]).expect("size");
        front.ack(message::SET_VRING_ADDR, &body, &[]).expect("address");
        front.ack(message::SET_VRING_KICK, &0u64.to_le_bytes(), &[queue.kick_fd()]).expect("kick");
        front.ack(message::SET_VRING_ENABLE, &(1u64 << 32).to_le_bytes(), &[]).expect("enable");
        for round in 0..200u64 {
            memory.put(0, &round.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            queue.kick();
        }
        queue.publish_all();
    }),
];

fn table(lab: &Lab, regions: &[Region], descriptors: usize) {
    let (front, memory) = lab.negotiated();
    let fds: Vec<BorrowedFd<'_>> = (0..descriptors.min(32)).map(|_| memory.file()).collect();
    front.send(message::SET_MEM_TABLE, VERSION | NEED_REPLY, &mem_table(regions), &fds).expect("send");
    if let Ok(reply) = front.receive() {
        assert_ne!(reply, [0; 8], "the server must say no");
    }
    expect_closed(&front);
}

fn foreign(lab: &Lab, file: &impl AsFd) {
    let (front, _) = lab.negotiated();
    let body = mem_table(&[(GUEST_BASE, 4096, USER_BASE, 0)]);
    assert!(front.ack(message::SET_MEM_TABLE, &body, &[file.as_fd()]).is_err());
    expect_closed(&front);
}

fn ring_outside(front: &lamina_vhost_blk::driver::FrontEnd, queue: &DriverQueue, descriptors: Option<u64>) {
    let mut addresses = queue.addresses();
    if let Some(descriptors) = descriptors {
        addresses[8..16].copy_from_slice(&descriptors.to_le_bytes());
    }
    front.ack(message::SET_VRING_NUM, &128u64.wrapping_shl(32).to_le_bytes(), &[]).expect("size");
    front.send(message::SET_VRING_ADDR, VERSION, &addresses, &[]).expect("send");
    front.send(message::SET_VRING_KICK, VERSION, &0u64.to_le_bytes(), &[queue.kick_fd()]).expect("send");
    front.send(message::SET_VRING_ENABLE, VERSION, &(1u64 << 32).to_le_bytes(), &[]).expect("send");
    expect_closed(front);
}
