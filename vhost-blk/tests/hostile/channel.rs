//! Lies about the channel on which the back end speaks: what it is, whether it is read, and how it is handed over.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lamina_contract::SectorCount;
use lamina_vhost_blk::driver::{BACKEND_REQ, FrontEnd, NEED_REPLY, Setup, VERSION, message};
use lamina_vhost_blk::driver_queue::{IN, OUT};
use rustix::net::SendFlags;

use crate::{Case, Lab, SECTORS, StopOnDrop, expect_closed};

pub const CASES: &[Case] = &[
    ("hands a file over as the channel", |lab| {
        wrong_channel(lab, &[File::open("/proc/self/status").expect("file").into()]);
    }),
    ("hands an eventfd over as the channel", |lab| {
        wrong_channel(lab, &[rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("eventfd")]);
    }),
    ("hands a pipe over as the channel", |lab| wrong_channel(lab, &[std::io::pipe().expect("pipe").1.into()])),
    ("hands a datagram socket over as the channel", |lab| {
        wrong_channel(lab, &[UnixDatagram::pair().expect("pair").0.into()]);
    }),
    ("hands a TCP socket over as the channel", |lab| {
        wrong_channel(lab, &[std::net::TcpListener::bind("127.0.0.1:0").expect("listener").into()]);
    }),
    ("hands no channel over and says so", |lab| wrong_channel(lab, &[])),
    ("hands two channels over at once", |lab| {
        let (one, other) = UnixStream::pair().expect("pair");
        wrong_channel(lab, &[one.into(), other.into()]);
    }),
    ("hands 40 channels over at once", |lab| {
        let (one, _other) = UnixStream::pair().expect("pair");
        let many: Vec<_> = (0..40).map(|_| one.try_clone().expect("clone").into()).collect();
        let (front, _) = lab.negotiated();
        hand_over(&front, VERSION, &many);
        expect_closed(&front);
    }),
    ("hands a channel over without having negotiated that", |lab| {
        let mut front = lab.connect();
        front.negotiate_protocol(u64::MAX, !BACKEND_REQ).expect("negotiate");
        let (one, _other) = UnixStream::pair().expect("pair");
        hand_over(&front, VERSION, &[one.into()]);
        expect_closed(&front);
    }),
    ("hands a channel over before anything else", |lab| {
        let front = lab.connect();
        let (one, _other) = UnixStream::pair().expect("pair");
        hand_over(&front, VERSION | NEED_REPLY, &[one.into()]);
        expect_closed(&front);
    }),
    ("hands a channel over with a body", |lab| {
        let (front, _) = lab.negotiated();
        let (one, _other) = UnixStream::pair().expect("pair");
        front.send(message::SET_BACKEND_REQ_FD, VERSION, &[0; 8], &[one.as_fd()]).expect("send");
        expect_closed(&front);
    }),
    ("hands a channel over in a reply", |lab| {
        let (front, _) = lab.negotiated();
        let (one, _other) = UnixStream::pair().expect("pair");
        hand_over(&front, VERSION | 4, &[one.into()]);
        expect_closed(&front);
    }),
    ("hands a channel over in half a header and goes", |lab| {
        let (front, _) = lab.negotiated();
        let (one, _other) = UnixStream::pair().expect("pair");
        front.send_bytes(&[21, 0, 0, 0, 1, 0], &[one.as_fd()]).expect("send");
    }),
    ("hands a listening socket over as the channel", |lab| {
        let dir = tempfile::tempdir().expect("dir");
        let socket = UnixListener::bind(dir.path().join("s")).expect("listener");
        goes_on_through_a_resize(lab, socket.into());
    }),
    ("hands its own connection over as the channel", |lab| {
        let (front, _, mut queues) = lab.started(Setup::default());
        front.config(0, 8).expect("config");
        let own = front.stream().try_clone().expect("clone");
        front.ack(message::SET_BACKEND_REQ_FD, &[], &[own.as_fd()]).expect("a stream socket");
        resize(lab);
        // The server hears itself say something that a front end may not say.
        expect_closed(&front);
        assert_eq!(queues[0].used_index(), 0);
        assert!(queues[0].pop().is_none());
    }),
    ("closes the channel before it is used", |lab| {
        goes_on_through_a_resize(lab, UnixStream::pair().expect("pair").0.into());
    }),
    ("hands over a channel that is full and blocking, and never reads it", |lab| {
        let (one, other) = UnixStream::pair().expect("pair");
        fill(&one);
        goes_on_through_a_resize(lab, one.into());
        drop(other);
    }),
    ("keeps a channel full while it reads it", |lab| {
        let (one, mut other) = UnixStream::pair().expect("pair");
        let shared = one.try_clone().expect("clone");
        fill(&one);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                other.set_nonblocking(true).expect("non-blocking");
                let mut bytes = vec![0; 1 << 20];
                while !stop.load(Ordering::Relaxed) {
                    let _ = other.read(&mut bytes);
                    fill(&shared);
                }
            });
            let _stop = StopOnDrop(&stop);
            goes_on_through_a_resize(lab, one.into());
        });
    }),
    ("writes into the channel instead of reading it", |lab| {
        let (one, other) = UnixStream::pair().expect("pair");
        fill(&other);
        goes_on_through_a_resize(lab, one.into());
        drop(other);
    }),
    ("hands a thousand channels over, one after the other", |lab| {
        let (front, _, mut queues) = lab.started(Setup::default());
        for _ in 0..1000 {
            drop(front.open_channel().expect("channel"));
        }
        assert_eq!(queues[0].run(IN, 0, &mut [0; 512]), 0);
    }),
];

/// Fills a socket's buffer and leaves it in blocking mode.
fn fill(socket: &UnixStream) {
    for bytes in [&[0x5a; 4096][..], &[0x5a; 1]] {
        while rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok() {}
    }
}

fn hand_over(front: &FrontEnd, flags: u32, sockets: &[OwnedFd]) {
    let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    front.send(message::SET_BACKEND_REQ_FD, flags, &[], &fds).expect("send");
}

/// The message gets a negative reply and ends the connection.
fn wrong_channel(lab: &Lab, sockets: &[OwnedFd]) {
    let (front, _) = lab.negotiated();
    hand_over(&front, VERSION | NEED_REPLY, sockets);
    if let Ok(reply) = front.receive() {
        assert_ne!(reply, [0; 8], "the server must say no");
    }
    expect_closed(&front);
}

/// The disk is resized twice, and back, as the server's owner does it.
fn resize(lab: &Lab) {
    for sectors in [SECTORS + 8, SECTORS] {
        lab.device.resize(SectorCount(sectors));
        lab.server.resized();
    }
}

/// With that channel, which takes no message, I/O and the connection go on through changes of the size.
fn goes_on_through_a_resize(lab: &Lab, socket: OwnedFd) {
    let (front, _, mut queues) = lab.started(Setup::default());
    front.config(0, 8).expect("config");
    front.ack(message::SET_BACKEND_REQ_FD, &[], &[socket.as_fd()]).expect("a stream socket");
    drop(socket);
    for _ in 0..20 {
        resize(lab);
        assert_eq!(queues[0].run(OUT, 16, &mut [0x5a; 512]), 0);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(front.config(0, 8).expect("the connection's thread is not stuck"), SECTORS.to_le_bytes());
}
