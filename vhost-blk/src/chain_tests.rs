//! Descriptor soup: walking and parsing never panic, stay inside guest memory and their bounds, and always know an answer.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{prop_assert, proptest};

use crate::chain::{Chain, ChainFault, MAX_INDIRECT, total};
use crate::driver::SharedMemory;
use crate::driver_queue::{INDIRECT, NEXT, WRITE, descriptor};
use crate::memory::{GuestMemory, RegionSpec};
use crate::request::{DiskShape, MAX_DATA_BYTES, Parsed, parse};
use crate::ring::{RingAddress, RingLayout, RingSize};

const LEN: usize = 1 << 20;
const GUEST: u64 = 0x4000_0000;
const USER: u64 = 0x7000_0000_0000;
/// Two regions that touch: a buffer may run over their border.
const BORDER: u64 = 512 << 10;
const TABLE: usize = 64 << 10;

struct Bed {
    shared: Arc<SharedMemory>,
    layout: RingLayout,
}

impl Bed {
    fn new() -> Self {
        let shared = SharedMemory::new(LEN, true).expect("memory");
        let file = File::from(shared.file().as_fd().try_clone_to_owned().expect("descriptor"));
        let region = |from: u64, len| RegionSpec { guest: GUEST + from, user: USER + from, len, file_offset: from };
        let memory = GuestMemory::default();
        let memory = memory.with(region(0, BORDER), &file, u64::MAX).expect("first");
        let memory = Arc::new(memory.with(region(BORDER, LEN as u64 - BORDER), &file, u64::MAX).expect("second"));
        let address = RingAddress { descriptors: USER, available: USER + 4096, used: USER + 8192 };
        let layout = RingLayout::new(&memory, address, RingSize::new(16, 1024).expect("size"), true).expect("inside");
        Self { shared, layout }
    }

    fn describe(&self, index: usize, bytes: [u8; 16]) {
        self.shared.put(16 * index, &bytes);
    }
}

fn disk() -> DiskShape {
    DiskShape { sectors: 2048, read_only: false, serial: [b's'; 20], write_through: false }
}

fn any_descriptor() -> impl Strategy<Value = [u8; 16]> {
    let address = prop_oneof![
        4 => (0..LEN as u64).prop_map(|at| GUEST + at),
        2 => (0u64..256).prop_map(|at| GUEST + TABLE as u64 + 16 * at),
        1 => (0u64..64).prop_map(|at| GUEST + BORDER - 32 + at),
        1 => (0u64..64).prop_map(|at| GUEST + LEN as u64 - 32 + at),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![Just(0u32), Just(1), Just(16), Just(512), 0..64u32, (0..256u32).prop_map(|n| 16 * n), any::<u32>()];
    let flags = prop_oneof![4 => Just(NEXT), 3 => Just(NEXT | WRITE), 2 => Just(WRITE), 1 => Just(INDIRECT), 1 => any::<u16>()];
    (address, len, flags, 0..18u16).prop_map(|(address, len, flags, next)| descriptor(address, len, flags, next))
}

proptest! {
    #[test]
    fn any_soup_of_descriptors_is_walked_within_bounds_and_has_one_answer(
        ring in proptest::collection::vec(any_descriptor(), 16),
        table in proptest::collection::vec(any_descriptor(), 0..64),
        header in proptest::collection::vec(prop_oneof![Just(0u8), 0..14u8, any::<u8>()], 64),
        head in 0..16u16,
    ) {
        let bed = Bed::new();
        for (index, bytes) in ring.iter().enumerate() {
            bed.describe(index, *bytes);
        }
        bed.shared.put(TABLE, &table.concat());
        bed.shared.put(TABLE + 8192, &header);
        let mut chain = Chain::default();
        let walked = chain.walk(&bed.layout, head);
        // Each descriptor makes one segment, or two at the border.
        prop_assert!(chain.readable().len() + chain.writable().len() <= 2 * (16 + MAX_INDIRECT as usize));
        prop_assert!(chain.readable().iter().chain(chain.writable()).all(|s| s.len > 0));
        if walked.is_ok() {
            let memory = bed.layout.memory();
            match parse(&chain, memory, &disk()) {
                Parsed::Submit { sectors, data, written, .. } => {
                    let bytes = total(data.segments());
                    prop_assert!(bytes <= u64::from(MAX_DATA_BYTES));
                    prop_assert!(data.segments().is_empty() || bytes == sectors.bytes());
                    prop_assert!(u64::from(written) <= total(chain.writable()));
                    for segment in data.segments() {
                        let mut copy = vec![0; segment.len as usize];
                        prop_assert!(memory.read(segment, 0, &mut copy).is_ok());
                    }
                }
                Parsed::Answer { written, .. } => {
                    prop_assert!(chain.status().is_some());
                    prop_assert!(u64::from(written) <= total(chain.writable()));
                }
                Parsed::NoStatus => prop_assert!(chain.writable().is_empty()),
            }
        }
    }
}

#[test]
fn a_chain_over_the_border_of_two_regions_is_one_buffer() {
    let bed = Bed::new();
    bed.shared.put(TABLE, &[0; 16]);
    bed.describe(0, descriptor(GUEST + TABLE as u64, 16, NEXT, 1));
    bed.describe(1, descriptor(GUEST + BORDER - 256, 512, NEXT | WRITE, 2));
    bed.describe(2, descriptor(GUEST + TABLE as u64 + 16, 1, WRITE, 0));
    let mut chain = Chain::default();
    chain.walk(&bed.layout, 0).expect("honest");
    assert_eq!((chain.readable().len(), chain.writable().len()), (1, 3));
    let Parsed::Submit { data, written: 513, .. } = parse(&chain, bed.layout.memory(), &disk()) else {
        panic!("a read of one sector");
    };
    assert_eq!(total(data.segments()), 512);
}

#[test]
fn each_fault_of_a_chain_has_its_name() {
    let bed = Bed::new();
    let mut chain = Chain::default();
    let mut fault = |descriptors: &[[u8; 16]]| {
        for (index, bytes) in descriptors.iter().enumerate() {
            bed.describe(index, *bytes);
        }
        chain.walk(&bed.layout, 0).expect_err("a fault")
    };
    assert_eq!(fault(&[descriptor(GUEST, 16, NEXT, 0)]), ChainFault::TooLong);
    assert_eq!(fault(&[descriptor(GUEST, 16, NEXT, 16)]), ChainFault::NextOutside);
    assert_eq!(fault(&[descriptor(GUEST + LEN as u64, 16, 0, 0)]), ChainFault::BufferOutside);
    assert_eq!(fault(&[descriptor(GUEST, 16, NEXT | WRITE, 1), descriptor(GUEST, 16, 0, 0)]), ChainFault::Order);
    assert_eq!(fault(&[descriptor(GUEST, 16, INDIRECT | NEXT, 1)]), ChainFault::NestedIndirect);
    assert_eq!(fault(&[descriptor(GUEST, 16 * 257, INDIRECT, 0)]), ChainFault::IndirectTable);
    assert_eq!(fault(&[descriptor(GUEST + BORDER - 16, 32, INDIRECT, 0)]), ChainFault::IndirectTable);
}

#[test]
fn a_page_that_the_front_end_took_away_reads_as_a_fault_and_kills_nobody() {
    crate::sigbus::install().expect("guard");
    let shared = SharedMemory::new(LEN, false).expect("memory");
    let file = File::from(shared.file().as_fd().try_clone_to_owned().expect("descriptor"));
    let spec = RegionSpec { guest: GUEST, user: USER, len: LEN as u64, file_offset: 0 };
    let memory = GuestMemory::default().with(spec, &file, u64::MAX).expect("region");
    let mut segments = Vec::new();
    assert!(memory.resolve(GUEST + 4096, 8192, &mut segments));
    let mut copy = [0; 8192];
    assert!(memory.read(&segments[0], 0, &mut copy).is_ok());
    shared.resize(4096).expect("shrink");
    assert!(memory.read(&segments[0], 0, &mut copy).is_err());
    assert!(memory.write(&segments[0], 0, &copy).is_err());
    assert!(memory.zero(&segments[0], 0, 8192).is_err());
}

#[test]
fn a_sigbus_outside_guest_memory_still_ends_the_process() {
    crate::sigbus::install().expect("guard");
    let shared = SharedMemory::new(4096, false).expect("memory");
    shared.resize(0).expect("shrink");
    let at = shared.at(0, 1).as_ptr();
    // SAFETY: the child only reads one byte and ends without running anything of the test harness.
    let status = unsafe {
        let child = libc::fork();
        if child == 0 {
            let byte = at.read_volatile();
            libc::_exit(i32::from(byte));
        }
        let mut status = 0;
        libc::waitpid(child, &raw mut status, 0);
        status
    };
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "status {status:#x}");
}
