//! Against `qemu-storage-daemon`, an implementation of the other side that is not ours.

use std::time::Duration;

use blkio::Errno;
use lamina_contract::units::{ByteSize, Lba, SectorCount};

use super::{Action, Client, ClientError, ClientOptions};
use crate::place::Place;
use crate::storage_daemon::{Backing, Cache, StorageDaemon};

fn served(place: &Place) -> StorageDaemon {
    StorageDaemon::start(place.path(), "disk", ByteSize(16 << 20), Backing::Raw(Cache::Cached)).expect("qemu-storage-daemon")
}

#[test]
fn what_was_written_is_read_back_and_discarded_ranges_are_zeros() {
    let place = Place::new().expect("a directory");
    let server = served(&place);
    let mut client = Client::connect(server.socket(), ClientOptions::default()).expect("a connection");
    assert_eq!(client.capacity(), SectorCount((16 << 20) / 512));
    let pattern: Vec<u8> = (0..200_u32 * 1024).map(|at| (at / 7) as u8).collect();
    let queue = client.queue();
    queue.write(Lba(3), &pattern).expect("written");
    queue.flush().expect("flushed");
    queue.run(Action::WriteZeroes { start: Lba(8), sectors: SectorCount(8), unmap: true }).expect("zeroed");
    let mut back = vec![0xff; pattern.len()];
    queue.read(Lba(3), &mut back).expect("read");
    let mut expected = pattern;
    expected[5 * 512..13 * 512].fill(0);
    assert!(back == expected);
    assert!(matches!(queue.read(Lba(16 << 11), &mut [0; 512]), Err(ClientError::Disk { errno: Errno::IO | Errno::INVAL })));
}

#[test]
fn many_requests_are_in_flight_on_several_queues() {
    let place = Place::new().expect("a directory");
    let server = served(&place);
    let options = ClientOptions { depth: 16, buffer: 4096, ..ClientOptions::default() };
    let mut answered = 0;
    for mut queue in Client::connect(server.socket(), options).expect("a connection").into_queues() {
        for block in 0..16 {
            let slot = queue.acquire().expect("free");
            queue.buffer(slot).fill(block as u8 + 1);
            queue.submit(slot, Action::Write { start: Lba(block * 8), sectors: SectorCount(8) });
        }
        assert!(queue.acquire().is_none());
        while queue.in_flight() > 0 {
            let done = queue.reap(1, Duration::from_secs(20)).expect("answers").to_vec();
            for one in &done {
                assert_eq!(one.outcome, Ok(()));
                queue.release(one.slot);
            }
            answered += done.len();
        }
    }
    assert_eq!(answered, 16);
}

#[test]
fn a_stopped_or_dead_server_is_late_and_never_hangs_the_client() {
    let place = Place::new().expect("a directory");
    let mut server = served(&place);
    let options = ClientOptions { limit: Duration::from_millis(300), ..ClientOptions::default() };
    let mut client = Client::connect_within(server.socket(), options, Duration::from_secs(20)).expect("a connection");
    server.process().signal(crate::process::Sign::Stop);
    assert!(matches!(client.queue().flush(), Err(ClientError::Late { .. })));
    assert!(matches!(Client::connect(server.socket(), options), Err(ClientError::Late { .. })));
    server.process().kill();
    assert!(matches!(client.queue().reap(1, Duration::from_millis(50)), Err(ClientError::Late { .. })));
    assert!(matches!(Client::connect(server.socket(), options), Err(ClientError::Connect { .. })));
}
