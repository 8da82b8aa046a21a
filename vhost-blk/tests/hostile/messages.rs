//! Lies in messages: headers, bodies, descriptors, order.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use lamina_vhost_blk::driver::{NEED_REPLY, Setup, VERSION, message, pair};
use lamina_vhost_blk::driver_queue::{DriverQueue, IN};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::{Case, Lab, expect_closed};

pub const CASES: &[Case] = &[
    ("connects and says nothing", |lab| drop(lab.connect())),
    ("sends garbage for a header", |lab| {
        let front = lab.connect();
        front.send_bytes(&[0xff; 64], &[]).expect("send");
        expect_closed(&front);
    }),
    ("sends an unknown request", |lab| refused(lab, 4242, VERSION, &[])),
    ("sends request 0", |lab| refused(lab, 0, VERSION, &[])),
    ("claims another protocol version", |lab| refused(lab, message::GET_FEATURES, 2, &[])),
    ("sends a reply instead of a request", |lab| refused(lab, message::GET_FEATURES, VERSION | 4, &[])),
    ("claims a body of 4 GiB", |lab| {
        let front = lab.connect();
        front.send_claiming(message::SET_FEATURES, VERSION, u32::MAX, &[], &[]).expect("send");
        expect_closed(&front);
    }),
    ("claims a body of 4097 bytes", |lab| {
        let front = lab.connect();
        front.send_claiming(message::SET_FEATURES, VERSION, 4097, &[0; 4097], &[]).expect("send");
        expect_closed(&front);
    }),
    ("sends half a header and goes", |lab| {
        let front = lab.connect();
        front.send_bytes(&[1, 0, 0, 0, 1, 0], &[]).expect("send");
    }),
    ("sends half a body and goes", |lab| {
        let front = lab.connect();
        front.send_claiming(message::SET_FEATURES, VERSION, 8, &[0; 3], &[]).expect("send");
    }),
    ("sends a body that is too short", |lab| refused(lab, message::SET_VRING_NUM, VERSION, &[0; 4])),
    ("sends a body that is too long", |lab| refused(lab, message::SET_VRING_NUM, VERSION, &[0; 12])),
    ("sends a body where none belongs", |lab| refused(lab, message::GET_FEATURES, VERSION, &[0; 8])),
    ("accepts features that were not offered", |lab| refused(lab, message::SET_FEATURES, VERSION, &u64::MAX.to_le_bytes())),
    ("accepts protocol features that were not offered", |lab| {
        refused(lab, message::SET_PROTOCOL_FEATURES, VERSION, &u64::MAX.to_le_bytes());
    }),
    ("asks for queues without multi-queue", |lab| refused(lab, message::GET_QUEUE_NUM, VERSION, &[])),
    ("reads the configuration without negotiating it", |lab| refused(lab, message::GET_CONFIG, VERSION, &[0; 24])),
    ("enables a ring without negotiating that", |lab| refused(lab, message::SET_VRING_ENABLE, VERSION, &pair(0, 1))),
    ("enables a ring twofold", |lab| nacked(lab, message::SET_VRING_ENABLE, &pair(0, 2))),
    ("gives a ring no entries", |lab| nacked(lab, message::SET_VRING_NUM, &pair(0, 0))),
    ("gives a ring 3 entries", |lab| nacked(lab, message::SET_VRING_NUM, &pair(0, 3))),
    ("gives a ring 2048 entries", |lab| nacked(lab, message::SET_VRING_NUM, &pair(0, 2048))),
    ("gives a ring 65536 entries", |lab| nacked(lab, message::SET_VRING_NUM, &pair(0, 65536))),
    ("names ring 4 of 4", |lab| nacked(lab, message::SET_VRING_NUM, &pair(4, 128))),
    ("names ring 4294967295", |lab| nacked(lab, message::GET_VRING_BASE, &pair(u32::MAX, 0))),
    ("starts a ring at 65536", |lab| nacked(lab, message::SET_VRING_BASE, &pair(0, 65536))),
    ("says a kick descriptor comes and sends none", |lab| nacked(lab, message::SET_VRING_KICK, &0u64.to_le_bytes())),
    ("asks to poll for kicks", |lab| nacked(lab, message::SET_VRING_KICK, &0x100u64.to_le_bytes())),
    ("says no kick descriptor comes and sends one", |lab| {
        with_file(lab, message::SET_VRING_KICK, 0x100, &[eventfd()]);
    }),
    ("sends two kick descriptors", |lab| with_file(lab, message::SET_VRING_KICK, 0, &[eventfd(), eventfd()])),
    ("kicks ring 255", |lab| with_file(lab, message::SET_VRING_KICK, 255, &[eventfd()])),
    ("sends a file to kick with", |lab| with_file(lab, message::SET_VRING_KICK, 0, &[some_file()])),
    ("sends a socket to call with", |lab| {
        let (ours, _theirs) = UnixStream::pair().expect("pair");
        with_file(lab, message::SET_VRING_CALL, 0, &[File::from(std::os::fd::OwnedFd::from(ours))]);
    }),
    ("sends a pipe to call with", |lab| {
        let (_read, write) = std::io::pipe().expect("pipe");
        with_file(lab, message::SET_VRING_CALL, 0, &[File::from(std::os::fd::OwnedFd::from(write))]);
    }),
    ("sends a file to report errors with", |lab| with_file(lab, message::SET_VRING_ERR, 0, &[some_file()])),
    ("sends 40 descriptors", |lab| {
        let files: Vec<File> = (0..40).map(|_| eventfd()).collect();
        with_file(lab, message::SET_VRING_KICK, 0, &files);
    }),
    ("sends 200 descriptors", |lab| {
        let files: Vec<File> = (0..200).map(|_| eventfd()).collect();
        with_file(lab, message::SET_VRING_KICK, 0, &files);
    }),
    ("sends descriptors with a question", |lab| with_file(lab, message::GET_FEATURES, 0, &[eventfd()])),
    ("reads behind the configuration", |lab| {
        let (front, _) = lab.negotiated();
        assert!(front.config(250, 8).is_err());
        assert!(front.config(0x100 + 250, 8).is_err());
        assert_eq!(front.config(32, 1).expect("still there"), [1]);
    }),
    ("reads the configuration at an offset that overflows", |lab| {
        let (front, _) = lab.negotiated();
        assert!(front.config(u32::MAX - 3, 8).is_err());
    }),
    ("claims a configuration read of another size than sent", |lab| {
        let (front, _) = lab.negotiated();
        let mut body = [0; 24];
        body[4] = 200;
        front.send(message::GET_CONFIG, VERSION, &body, &[]).expect("send");
        expect_closed(&front);
    }),
    ("writes the capacity", |lab| config_refused(lab, 0, &[0xff; 8])),
    ("writes a write-back byte of 2", |lab| config_refused(lab, 32, &[2])),
    ("asks for in-flight memory that was not offered", |lab| nacked(lab, message::GET_INFLIGHT_FD, &[1; 24])),
    ("sets a dirty log that was not offered", |lab| with_file(lab, message::SET_LOG_BASE, 0, &[eventfd()])),
    ("comes second", |lab| {
        let (_first, _, mut queues) = lab.started(Setup::default());
        let second = lab.connect();
        expect_closed(&second);
        assert_eq!(queues[0].run(IN, 0, &mut [0; 512]), 0);
    }),
    ("resizes, moves and rewinds a running ring", |lab| {
        let changes = [(message::SET_VRING_NUM, pair(0, 64).to_vec()), (message::SET_VRING_BASE, pair(0, 7).to_vec())];
        for (code, body) in changes {
            let (front, _, _queues) = lab.started(Setup::default());
            assert!(front.ack(code, &body, &[]).is_err());
            expect_closed(&front);
        }
        let (front, _, queues) = lab.started(Setup::default());
        let mut moved = queues[0].addresses();
        moved[8] ^= 0x10;
        assert!(front.ack(message::SET_VRING_ADDR, &moved, &[]).is_err());
        expect_closed(&front);
    }),
    ("replaces kick and call descriptors of a running ring", |lab| {
        let (front, memory, mut queues) = lab.started(Setup::default());
        for _ in 0..50 {
            let other = DriverQueue::new(0, 128, memory.clone(), true).expect("descriptors");
            front.ack(message::SET_VRING_KICK, &0u64.to_le_bytes(), &[other.kick_fd()]).expect("kick");
            front.ack(message::SET_VRING_CALL, &0u64.to_le_bytes(), &[other.call()]).expect("call");
        }
        front.ack(message::SET_VRING_KICK, &0u64.to_le_bytes(), &[queues[0].kick_fd()]).expect("kick");
        front.ack(message::SET_VRING_CALL, &0u64.to_le_bytes(), &[queues[0].call()]).expect("call");
        assert_eq!(queues[0].run(IN, 0, &mut [0; 512]), 0);
    }),
    ("asks where a ring stands that never ran, twice", |lab| {
        let (front, _) = lab.negotiated();
        assert_eq!(front.stop_queue(0).expect("base"), 0);
        assert_eq!(front.stop_queue(0).expect("base"), 0);
    }),
    ("switches a ring off and on a hundred times", |lab| {
        let (front, _, mut queues) = lab.started(Setup::default());
        for _ in 0..100 {
            front.ack(message::SET_VRING_ENABLE, &pair(0, 0), &[]).expect("off");
            front.ack(message::SET_VRING_ENABLE, &pair(0, 1), &[]).expect("on");
            queues[0].kick();
        }
        assert_eq!(queues[0].run(IN, 0, &mut [0; 512]), 0);
    }),
    ("resets and sets everything up again", |lab| {
        let (front, memory, mut queues) = lab.started(Setup::default());
        assert_eq!(queues[0].run(IN, 0, &mut [0; 512]), 0);
        for code in [message::RESET_DEVICE, message::RESET_OWNER] {
            front.ack(code, &[], &[]).expect("reset");
            // A guest that boots finds its memory cleared.
            memory.put(0, &[0; 64 << 10]);
            let mut queue = DriverQueue::new(0, 128, memory.clone(), true).expect("queue");
            front.start_queue(&queue, 0).expect("start");
            assert_eq!(queue.run(IN, 0, &mut [0; 512]), 0);
        }
    }),
    ("floods with questions and never reads an answer", |lab| {
        let front = lab.connect();
        front.stream().set_nonblocking(true).expect("non-blocking");
        for _ in 0..100_000 {
            if front.send(message::GET_FEATURES, VERSION, &[], &[]).is_err() {
                break;
            }
        }
    }),
    ("sends random messages", |lab| {
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..200 {
            let (front, _) = if random.random_bool(0.5) { lab.negotiated() } else { (lab.connect(), memory_stub()) };
            for _ in 0..random.random_range(1..6) {
                let mut body = vec![0; random.random_range(0..64)];
                random.fill(&mut body[..]);
                if random.random_bool(0.7) {
                    body.iter_mut().skip(1).for_each(|b| *b &= random.random_range(0..3u8));
                }
                let files = [eventfd()];
                let fds: Vec<_> = files.iter().take(random.random_range(0..2)).map(File::as_fd).collect();
                let flags = if random.random_bool(0.9) { VERSION | NEED_REPLY } else { random.random() };
                if front.send(random.random_range(0..48), flags, &body, &fds).is_err() {
                    break;
                }
            }
        }
    }),
];

fn memory_stub() -> std::sync::Arc<lamina_vhost_blk::driver::SharedMemory> {
    lamina_vhost_blk::driver::SharedMemory::new(4096, true).expect("memory")
}

/// On a fresh connection: the message ends it.
fn refused(lab: &Lab, code: u32, flags: u32, body: &[u8]) {
    let front = lab.connect();
    front.send(code, flags, body, &[]).expect("send");
    expect_closed(&front);
}

/// After negotiation: the message ends the connection, with or without a negative reply.
fn nacked(lab: &Lab, code: u32, body: &[u8]) {
    let (front, _) = lab.negotiated();
    front.send(code, VERSION | NEED_REPLY, body, &[]).expect("send");
    if let Ok(reply) = front.receive() {
        assert_ne!(reply, [0; 8], "the server must say no");
    }
    expect_closed(&front);
}

fn with_file(lab: &Lab, code: u32, value: u64, files: &[File]) {
    let (front, _) = lab.negotiated();
    let fds: Vec<_> = files.iter().map(File::as_fd).collect();
    front.send(code, VERSION, &value.to_le_bytes(), &fds).expect("send");
    expect_closed(&front);
}

fn config_refused(lab: &Lab, offset: u32, bytes: &[u8]) {
    let (front, _) = lab.negotiated();
    assert!(front.set_config(offset, bytes).is_err());
    expect_closed(&front);
}

fn eventfd() -> File {
    File::from(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("eventfd"))
}

fn some_file() -> File {
    File::open("/proc/self/status").expect("a file")
}
