//! Lies in rings: indexes, heads, descriptors, requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lamina_vhost_blk::driver::{EVENT_IDX, FrontEnd, GUEST_BASE, Setup, message};
use lamina_vhost_blk::driver_queue::{
    DISCARD, DriverQueue, GET_ID, IN, INDIRECT, NEXT, OUT, UNTOUCHED, WRITE, WRITE_ZEROES, descriptor, range,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::{Case, HELD_FROM, Lab, PATIENCE, SECTORS};

const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

pub const CASES: &[Case] = &[
    ("jumps ahead by more than the ring", |lab| breaks(lab, |queue| queue.publish(129))),
    ("moves the available index backwards", |lab| {
        breaks(lab, |queue| {
            queue.run(IN, 0, &mut [0; 512]);
            queue.publish(0);
            queue.kick();
        });
    }),
    ("offers a head outside the ring", |lab| {
        breaks(lab, |queue| {
            queue.offer(128);
            queue.publish_all();
        });
    }),
    ("offers head 65535", |lab| {
        breaks(lab, |queue| {
            queue.offer(u16::MAX);
            queue.publish_all();
        });
    }),
    ("offers a head twice at once", |lab| {
        breaks(lab, |queue| {
            queue.prepare(0, IN, 0, &[0; 512]);
            queue.offer(0);
            queue.offer(0);
            queue.publish_all();
            assert!(queue.finished(PATIENCE).is_some(), "the first one is answered");
        });
    }),
    ("offers a malformed head twice at once", |lab| {
        breaks(lab, |queue| {
            queue.describe(0, GUEST_BASE, 16, NEXT, 0);
            queue.offer(0);
            queue.offer(0);
            queue.publish_all();
            assert_eq!(queue.wait(PATIENCE), Some((0, 0)));
        });
    }),
    ("offers a head that is in flight", |lab| {
        breaks(lab, |queue| {
            queue.request(0, IN, HELD_FROM.0, &[0; 512]);
            queue.offer(0);
            queue.publish_all();
        });
    }),
    ("ties a chain to itself", |lab| {
        answered(lab, 0, None, |queue| queue.describe(0, GUEST_BASE, 16, NEXT, 0));
    }),
    ("ties a chain of writable descriptors to itself", |lab| {
        answered(lab, 1, None, |queue| {
            queue.prepare(0, IN, 0, &[0; 512]);
            queue.describe(2, DriverQueue::guest(queue.slot(0) + 16), 1, WRITE | NEXT, 1);
        });
    }),
    ("ties two descriptors together", |lab| {
        answered(lab, 0, None, |queue| {
            queue.describe(0, GUEST_BASE, 16, NEXT, 1);
            queue.describe(1, GUEST_BASE, 16, NEXT, 0);
        });
    }),
    ("goes on outside the table", |lab| {
        answered(lab, 0, None, |queue| queue.describe(0, GUEST_BASE, 16, NEXT, 128));
    }),
    ("makes a chain of the whole ring that goes on", |lab| {
        answered(lab, 0, None, |queue| (0..128).for_each(|i| queue.describe(i, GUEST_BASE, 16, NEXT, (i + 1) % 128)));
    }),
    ("makes a chain of nothing but empty descriptors", |lab| {
        answered(lab, 0, None, |queue| {
            (0..10).for_each(|i| queue.describe(i, GUEST_BASE, 0, if i < 9 { NEXT } else { WRITE }, i + 1));
        });
    }),
    ("puts empty descriptors between honest ones", |lab| {
        let at = |queue: &DriverQueue, offset| DriverQueue::guest(queue.slot(0) + offset);
        answered(lab, 513, Some(0), |queue| {
            queue.prepare(0, IN, 0, &[1; 512]);
            queue.describe(0, at(queue, 0), 16, NEXT, 10);
            queue.describe(10, u64::MAX, 0, NEXT, 1);
            queue.describe(1, at(queue, 4096), 512, NEXT | WRITE, 11);
            queue.describe(11, 0, 0, NEXT | WRITE, 2);
        });
    }),
    ("puts a readable descriptor behind a writable one", |lab| {
        answered(lab, 1, None, |queue| {
            queue.prepare(0, IN, 0, &[0; 512]);
            queue.describe(2, DriverQueue::guest(queue.slot(0) + 16), 1, 0, 0);
        });
    }),
    ("leaves no room for a status", |lab| {
        answered(lab, 0, None, |queue| {
            queue.prepare(0, OUT, 0, &[0; 512]);
            queue.describe(2, DriverQueue::guest(queue.slot(0) + 16), 1, 0, 0);
        });
    }),
    ("leaves out the header", |lab| {
        answered(lab, 1, Some(IOERR), |queue| {
            queue.prepare(0, IN, 0, &[0; 512]);
            queue.describe(0, DriverQueue::guest(queue.slot(0) + 16), 1, WRITE, 0);
        });
    }),
    ("sends 15 bytes of header", |lab| {
        answered(lab, 1, Some(IOERR), |queue| {
            queue.prepare(0, IN, 0, &[0; 512]);
            queue.describe(0, DriverQueue::guest(queue.slot(0)), 15, NEXT, 1);
        });
    }),
    ("cuts the header into single bytes", |lab| {
        answered(lab, 513, Some(0), |queue| {
            queue.prepare(0, IN, 0, &[1; 512]);
            let at = DriverQueue::guest(queue.slot(0));
            queue.describe(0, at, 1, NEXT, 10);
            (0..15).for_each(|i| queue.describe(10 + i, at + 1 + u64::from(i), 1, NEXT, if i < 14 { 11 + i } else { 1 }));
        });
    }),
    ("puts header and data of a write into one descriptor", |lab| {
        answered(lab, 1, Some(0), |queue| {
            queue.prepare(0, OUT, 0, &[1; 512]);
            let at = queue.slot(0) + 8192;
            let header = queue.memory().get(queue.slot(0), 16);
            queue.memory().put(at, &header);
            queue.describe(0, DriverQueue::guest(at), 16 + 512, NEXT, 2);
        });
    }),
    ("puts data and status of a read into one descriptor", |lab| {
        answered(lab, 513, None, |queue| {
            queue.prepare(0, IN, 0, &[1; 513]);
            queue.describe(1, DriverQueue::guest(queue.slot(0) + 4096), 513, WRITE, 0);
        });
    }),
    ("reads into memory that is not there", |lab| buffer_outside(lab, IN, 0x10, 512)),
    ("writes from memory that is not there", |lab| buffer_outside(lab, OUT, 0x10, 512)),
    ("reads at the end of all addresses", |lab| buffer_outside(lab, IN, u64::MAX - 100, 512)),
    ("reads over the end of its memory", |lab| buffer_outside(lab, IN, GUEST_BASE + (16 << 20) - 256, 512)),
    ("reads 4 GiB", |lab| buffer_outside(lab, IN, GUEST_BASE, u32::MAX)),
    ("reads 5 MiB, more than a request may", |lab| {
        answered(lab, 1, Some(IOERR), |queue| {
            queue.prepare(0, IN, 0, &[0; 512]);
            queue.describe(1, GUEST_BASE + (8 << 20), 5 << 20, NEXT | WRITE, 2);
        });
    }),
    ("puts the status outside its memory", |lab| {
        answered(lab, 1, None, |queue| {
            queue.prepare(0, IN, 0, &[0; 512]);
            queue.describe(2, 0x20, 1, WRITE, 0);
        });
    }),
    ("puts an indirect table into an indirect table", |lab| {
        indirect(lab, 0, &[descriptor(GUEST_BASE, 16, INDIRECT, 0)], None);
    }),
    ("goes on behind an indirect table", |lab| {
        answered(lab, 0, None, |queue| {
            queue.prepare_indirect(0, IN, 0, &[0; 512], 1);
            queue.describe(0, DriverQueue::guest(queue.slot(0) + 64), 48, INDIRECT | NEXT, 1);
        });
    }),
    ("sends an empty indirect table", |lab| indirect(lab, 0, &[], Some(0))),
    ("sends half an entry in an indirect table", |lab| indirect(lab, 0, &[[0; 16]], Some(24))),
    ("sends an indirect table of 257 entries", |lab| indirect(lab, 0, &[[0; 16]], Some(257 * 16))),
    ("sends an indirect table of 4 GiB", |lab| indirect(lab, 0, &[[0; 16]], Some(0xffff_fff0))),
    ("puts an indirect table outside its memory", |lab| {
        answered(lab, 0, None, |queue| queue.describe(0, 0x100, 48, INDIRECT, 0));
    }),
    ("ties an indirect chain to itself", |lab| indirect(lab, 0, &[descriptor(GUEST_BASE, 16, NEXT, 0)], None)),
    ("goes on outside an indirect table", |lab| indirect(lab, 0, &[descriptor(GUEST_BASE, 16, NEXT, 1)], None)),
    ("puts an indirect table at an odd address", |lab| {
        answered(lab, 513, Some(0), |queue| {
            queue.prepare_indirect(0, IN, 0, &[1; 512], 1);
            let table = queue.memory().get(queue.slot(0) + 64, 48);
            queue.memory().put(queue.slot(0) + 1027, &table);
            queue.describe(0, DriverQueue::guest(queue.slot(0) + 1027), 48, INDIRECT, 0);
        });
    }),
    ("sends an unknown request type", |lab| request(lab, 77, 0, &[0; 512], UNSUPP)),
    ("sends a SCSI command", |lab| request(lab, 2, 0, &[0; 512], UNSUPP)),
    ("sends a write with the barrier bit of old", |lab| request(lab, OUT | 1 << 31, 0, &[0; 512], UNSUPP)),
    ("reads behind the end", |lab| request(lab, IN, SECTORS, &[0; 512], IOERR)),
    ("reads over the end", |lab| request(lab, IN, SECTORS - 1, &[0; 1024], IOERR)),
    ("writes at a sector that overflows", |lab| request(lab, OUT, u64::MAX, &[0; 512], IOERR)),
    ("reads 100 bytes", |lab| request(lab, IN, 0, &[0; 100], IOERR)),
    ("writes 513 bytes", |lab| request(lab, OUT, 0, &[0; 513], IOERR)),
    ("discards behind the end", |lab| request(lab, DISCARD, 0, &range(SECTORS, 1, 0), IOERR)),
    ("discards at a sector that overflows", |lab| request(lab, DISCARD, 0, &range(u64::MAX, u32::MAX, 0), IOERR)),
    ("discards with a flag", |lab| request(lab, DISCARD, 0, &range(0, 8, 1), UNSUPP)),
    ("discards two ranges", |lab| request(lab, DISCARD, 0, &[range(0, 8, 0), range(8, 8, 0)].concat(), IOERR)),
    ("discards half a range", |lab| request(lab, DISCARD, 0, &[0; 8], IOERR)),
    ("discards nothing", |lab| request(lab, DISCARD, 0, &range(0, 0, 0), 0)),
    ("writes zeroes with unknown flags", |lab| request(lab, WRITE_ZEROES, 0, &range(0, 8, 6), UNSUPP)),
    ("writes zeroes without a range", |lab| request(lab, WRITE_ZEROES, 0, &[], IOERR)),
    ("asks for the serial with room for 5 bytes", |lab| {
        answered(lab, 6, Some(0), |queue| queue.prepare(0, GET_ID, 0, &[UNTOUCHED; 5]));
    }),
    ("asks for the serial with no room", |lab| answered(lab, 1, Some(0), |queue| queue.prepare(0, GET_ID, 0, &[]))),
    ("sends no interrupt descriptor", |lab| {
        let (front, _, mut queues) = lab.started(Setup::default());
        front.ack(message::SET_VRING_CALL, &0x100u64.to_le_bytes(), &[]).expect("no call descriptor");
        queues[0].request(0, IN, 0, &[1; 512]);
        poll_until(|| queues[0].used_index() == 1);
    }),
    ("fills up the counter of the interrupt descriptor", |lab| {
        let (_front, _, mut queues) = lab.started(Setup::default());
        rustix::io::write(queues[0].call(), &(u64::MAX - 1).to_ne_bytes()).expect("fill");
        for round in 1..=20 {
            queues[0].request(0, IN, 0, &[1; 512]);
            poll_until(|| queues[0].used_index() == round);
        }
    }),
    ("kicks without end and without work", |lab| {
        let (_front, _, mut queues) = lab.started(Setup::default());
        (0..10_000).for_each(|_| queues[0].kick());
        assert_eq!(queues[0].run(IN, 0, &mut [0; 512]), 0);
    }),
    ("changes descriptors while they are read", |lab| {
        let (_front, memory, mut queues) = lab.started(Setup::default());
        let (stop, queue) = (AtomicBool::new(false), &mut queues[0]);
        let table: Vec<usize> = (0..48).map(|i| 16 * i).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = StdRng::seed_from_u64(3);
                while !stop.load(Ordering::Relaxed) {
                    let at = table[random.random_range(0..table.len())] + random.random_range(0..16);
                    memory.put(at, &[random.random()]);
                }
            });
            for _ in 0..300 {
                for slot in 0..16 {
                    queue.prepare(slot, if slot % 2 == 0 { IN } else { OUT }, 64, &[9; 1024]);
                    queue.offer(3 * slot);
                }
                queue.publish_all();
                for _ in 0..16 {
                    assert!(queue.wait(PATIENCE).is_some(), "each chain is answered");
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }),
    ("fills rings and memory with noise", |lab| {
        for seed in 0..40 {
            let features = if seed % 2 == 0 { u64::MAX } else { !EVENT_IDX };
            let (_front, memory, queues) = lab.started(Setup { queues: 2, features, ..Setup::default() });
            let mut random = StdRng::seed_from_u64(seed);
            let mut noise = vec![0; 4096];
            for queue in &queues {
                for _ in 0..20 {
                    random.fill(&mut noise[..]);
                    memory.put(usize::from(queue.index()) * (2 << 20), &noise);
                    queue.kick();
                }
            }
        }
    }),
    ("fills rings with chains of plausible noise", plausible_noise),
];

/// The lie breaks ring 0; ring 1 goes on, and so does ring 0 after a reset.
fn breaks(lab: &Lab, lie: impl FnOnce(&mut DriverQueue)) {
    let before = lab.server.counters().broken_rings;
    let (front, memory, mut queues) = lab.started(Setup { queues: 2, ..Setup::default() });
    lie(&mut queues[0]);
    poll_until(|| lab.server.counters().broken_rings == before + 1);
    assert_eq!(queues[1].run(IN, 0, &mut [0; 512]), 0, "the other ring goes on");
    lab.release();
    front.stop_queue(0).expect("stop");
    memory.put(0, &[0; 64 << 10]);
    let mut again = DriverQueue::new(0, 128, memory, true).expect("queue");
    front.start_queue(&again, 0).expect("start");
    assert_eq!(again.run(IN, 0, &mut [0; 512]), 0, "a reset heals the ring");
}

/// One chain with head 0: it comes back once, with this length and (if it has one in the usual place) this status.
fn answered(lab: &Lab, len: u32, status: Option<u8>, prepare: impl FnOnce(&mut DriverQueue)) {
    let (_front, _, mut queues) = lab.started(Setup::default());
    let queue = &mut queues[0];
    prepare(queue);
    queue.offer(0);
    queue.publish_all();
    assert_eq!(queue.wait(PATIENCE), Some((0, len)));
    if let Some(status) = status {
        assert_eq!(queue.memory().get(queue.slot(0) + 16, 1), [status]);
    }
    queue.request(1, IN, 0, &[1; 512]);
    let finished = queue.finished(PATIENCE).expect("the next request is served");
    assert_eq!((finished.slot, finished.status, queue.used_index()), (1, 0, 2));
}

fn request(lab: &Lab, kind: u32, sector: u64, data: &[u8], status: u8) {
    answered(lab, 1, Some(status), |queue| queue.prepare(0, kind, sector, data));
}

fn buffer_outside(lab: &Lab, kind: u32, address: u64, len: u32) {
    answered(lab, 0, None, |queue| {
        queue.prepare(0, kind, 0, &[0; 512]);
        queue.describe(1, address, len, NEXT | if kind == IN { WRITE } else { 0 }, 2);
    });
}

fn indirect(lab: &Lab, len: u32, table: &[[u8; 16]], claimed: Option<u32>) {
    answered(lab, len, None, |queue| {
        let at = queue.slot(0) + 64;
        queue.memory().put(at, &table.concat());
        queue.describe(0, DriverQueue::guest(at), claimed.unwrap_or(16 * table.len() as u32), INDIRECT, 0);
    });
}

fn poll_until(mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "it never happened");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Random chains out of valid pieces: each must come back exactly once.
fn plausible_noise(lab: &Lab) {
    let mut random = StdRng::seed_from_u64(11);
    let (_front, memory, mut queues): (FrontEnd, _, _) = lab.started(Setup::default());
    let queue = &mut queues[0];
    for round in 0..400u16 {
        for index in 0..128 {
            let address = match random.random_range(0..8) {
                0 => random.random(),
                1 => GUEST_BASE + memory.len() as u64 - random.random_range(0..2048),
                _ => GUEST_BASE + (1 << 20) + random.random_range(0..1 << 20),
            };
            let len = [0, 1, 15, 16, 17, 512, 513, 4096][random.random_range(0..8usize)];
            let flags = [0, NEXT, WRITE, NEXT | WRITE, INDIRECT, NEXT][random.random_range(0..6usize)];
            queue.describe(index, address, len, flags, random.random_range(0..130));
        }
        for _ in 0..16 {
            let header = [[random.random_range(0..14), 0, 0, 0, 0, 0, 0, 0, random.random(), 0, 0, 0, 0, 0, 0, 0]].concat();
            memory.put((1 << 20) + random.random_range(0..1 << 20), &header);
        }
        let heads: std::collections::BTreeSet<u16> = (0..8).map(|_| random.random_range(0..128)).collect();
        heads.iter().for_each(|head| queue.offer(*head));
        queue.publish_all();
        let mut back = std::collections::BTreeSet::new();
        for _ in &heads {
            lab.release();
            let (head, _) = queue
                .wait(Duration::from_millis(200))
                .or_else(|| {
                    lab.release();
                    queue.wait(PATIENCE)
                })
                .unwrap_or_else(|| panic!("round {round}: a chain never came back"));
            assert!(back.insert(head as u16), "round {round}: head {head} came back twice");
        }
        assert_eq!(back, heads, "round {round}");
        assert!(queue.pop().is_none());
    }
}
