//! The dedupe cache: hits, eviction, restart, damage.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use lamina_contract::{Disk, DiskFile, Fingerprint, Space, VolumeId};
use parking_lot::{Mutex, RwLock};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::{collection, prop_assert, prop_assert_eq};
use sha2::{Digest, Sha256};

use super::{CacheConfig, CacheRead, DedupeCache, Upkeep};

const KIB: u64 = 1024;
const ONE: VolumeId = VolumeId(1);

#[derive(Default)]
struct MemFile {
    bytes: RwLock<Vec<u8>>,
    broken: Arc<AtomicBool>,
    cold: Arc<AtomicBool>,
}

impl MemFile {
    fn check(&self) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) { Err(io::Error::other("broken")) } else { Ok(()) }
    }
}

impl DiskFile for MemFile {
    fn len(&self) -> u64 {
        self.bytes.read().len() as u64
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        self.check()?;
        let (mut bytes, mut at) = (self.bytes.write(), offset as usize);
        for buf in bufs {
            bytes.get_mut(at..at + buf.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(buf);
            at += buf.len();
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check()?;
        let at = offset as usize;
        buf.copy_from_slice(self.bytes.read().get(at..at + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        if self.cold.load(Ordering::SeqCst) { self.check().map(|()| false) } else { self.read_at(offset, buf).map(|()| true) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()
    }
}

#[derive(Default)]
struct MemDisk {
    files: Mutex<HashMap<String, Arc<MemFile>>>,
    broken: Arc<AtomicBool>,
    cold: Arc<AtomicBool>,
}

impl Disk for MemDisk {
    fn create(&self, name: &str, len: u64, _: Space) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = self.files.lock();
        if let Some(file) = files.get(name)
            && file.len() == len
        {
            return Ok(file.clone());
        }
        let bytes = RwLock::new(vec![0; len as usize]);
        let file = Arc::new(MemFile { bytes, broken: self.broken.clone(), cold: self.cold.clone() });
        files.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.files.lock().get(name).cloned();
        file.map(|file| file as Arc<dyn DiskFile>).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.lock().keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.lock().remove(name);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files.lock();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}

fn config(bytes: u64, upkeep: Upkeep) -> CacheConfig {
    CacheConfig { bytes, region_bytes: 128 * KIB, upkeep, hash_keys: [1, 2] }
}

fn open(disk: &Arc<MemDisk>, bytes: u64) -> DedupeCache {
    DedupeCache::open(disk.clone(), config(bytes, Upkeep::Inline)).expect("opens")
}

/// Block `n`, different from every other.
fn block(n: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![n as u8; bytes];
    data[..8].copy_from_slice(&n.to_le_bytes());
    data
}

fn print(data: &[u8]) -> Fingerprint {
    Fingerprint(Sha256::digest(data).into())
}

fn insert(cache: &DedupeCache, n: u64, bytes: usize) {
    let data = block(n, bytes);
    cache.insert(ONE, &print(&data), &data);
}

/// What the cache answers for block `n`; panics when a hit is not that block.
fn probe(cache: &DedupeCache, n: u64, bytes: usize) -> Option<CacheRead> {
    let data = block(n, bytes);
    let slot = cache.find(&print(&data))?;
    let mut buf = vec![0; slot.len()];
    let read = cache.read(slot, &mut buf);
    assert!(read != CacheRead::Hit || buf == data, "block {n}: a hit with other bytes");
    Some(read)
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u64),
    Burst(u64, u64),
    Probe(u64),
    Later(u64),
    Forget(u64),
    Close,
    Crash,
    Flip(u64, u8),
    Garble(u64, u64),
    Truncate,
    Resize(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0..900u64).prop_map(Step::Insert),
        6 => (0..900u64, 1..200u64).prop_map(|(first, count)| Step::Burst(first, count)),
        10 => (0..900u64).prop_map(Step::Probe),
        2 => (0..900u64).prop_map(Step::Later),
        1 => (0..900u64).prop_map(Step::Forget),
        1 => Just(Step::Close),
        1 => Just(Step::Crash),
        2 => (any::<u64>(), 1..=255u8).prop_map(|(at, bits)| Step::Flip(at, bits)),
        1 => (any::<u64>(), 1..200_000u64).prop_map(|(at, len)| Step::Garble(at, len)),
        1 => Just(Step::Truncate),
        1 => prop_oneof![Just(1024 * KIB), Just(2048 * KIB), Just(0)].prop_map(Step::Resize),
    ]
}

/// Blocks 0-799 are of 4 KiB, the others of 16 KiB.
const fn size(n: u64) -> usize {
    if n < 800 { 4096 } else { 16384 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn a_hit_is_what_was_inserted_whatever_happened_between(steps in collection::vec(step(), 1..80)) {
        let disk = Arc::new(MemDisk::default());
        let mut bytes = 2048 * KIB;
        let mut cache = open(&disk, bytes);
        let mut inserted = [false; 1200];
        for step in steps {
            match step {
                Step::Insert(n) => {
                    insert(&cache, n, size(n));
                    inserted[n as usize] = true;
                    if bytes > 0 {
                        prop_assert!(probe(&cache, n, size(n)).is_some(), "a block just inserted is there");
                    }
                }
                Step::Burst(first, count) => {
                    for n in first..(first + count).min(900) {
                        insert(&cache, n, size(n));
                        inserted[n as usize] = true;
                    }
                }
                Step::Probe(n) => prop_assert!(probe(&cache, n, size(n)).is_none() || inserted[n as usize]),
                Step::Later(n) => {
                    let data = block(n, size(n));
                    if let Some(slot) = cache.find(&print(&data)) {
                        cache.read_later(slot, move |read, buf| assert!(read != CacheRead::Hit || buf == data));
                    }
                }
                Step::Forget(n) => {
                    cache.forget(&print(&block(n, size(n))));
                    prop_assert!(probe(&cache, n, size(n)).is_none());
                }
                Step::Close => {
                    cache.close();
                    cache = open(&disk, bytes);
                }
                Step::Crash => {
                    drop(cache);
                    cache = open(&disk, bytes);
                }
                Step::Flip(at, bits) => {
                    for file in disk.files.lock().values() {
                        let mut content = file.bytes.write();
                        let at = at as usize % content.len();
                        content[at] ^= bits;
                    }
                }
                Step::Garble(at, len) => {
                    for file in disk.files.lock().values() {
                        let mut content = file.bytes.write();
                        let at = at as usize % content.len();
                        let end = content.len().min(at + len as usize);
                        // What a misdirected write leaves: right bytes in the wrong place.
                        let from = content.len() - end;
                        let (copy, to) = (content[from..from + end - at].to_vec(), at..end);
                        content[to].copy_from_slice(&copy);
                    }
                }
                Step::Truncate => {
                    drop(cache);
                    for file in disk.files.lock().values() {
                        let mut content = file.bytes.write();
                        let half = content.len() / 2;
                        content.truncate(half);
                    }
                    cache = open(&disk, bytes);
                }
                Step::Resize(to) => {
                    cache.close();
                    bytes = to;
                    cache = open(&disk, bytes);
                }
            }
            prop_assert!(!cache.is_failed());
        }
        for n in 0..900 {
            prop_assert!(probe(&cache, n, size(n)).is_none() || inserted[n as usize]);
        }
        let stats = cache.stats();
        prop_assert!(stats.bytes <= stats.capacity);
        prop_assert_eq!(cache.bytes_of(ONE), stats.bytes);
    }
}

#[test]
fn a_hot_set_survives_a_scan_of_ten_times_the_cache() {
    let disk = Arc::new(MemDisk::default());
    let cache = open(&disk, 4096 * KIB);
    // 1,024 slots or so; the hot set is a third of that.
    let hot = 0..340u64;
    for _ in 0..4 {
        for n in hot.clone() {
            if probe(&cache, n, 4096).is_none() {
                insert(&cache, n, 4096);
            }
        }
    }
    for n in 0..10_240u64 {
        insert(&cache, 1_000_000 + n, 4096);
        // The hot set is in use meanwhile, a little.
        if n % 64 == 0 {
            probe(&cache, (n / 64) % 340, 4096);
        }
    }
    let left = hot.filter(|&n| cache.contains(&print(&block(n, 4096)))).count();
    assert!(left >= 320, "{left} of 340 hot blocks are left");
    let stats = cache.stats();
    assert!(stats.evictions > 9_000, "{stats:?}");
    assert_eq!(stats.skipped, 0);
}

#[test]
fn blocks_survive_an_orderly_restart_and_full_regions_a_crash() {
    let disk = Arc::new(MemDisk::default());
    let cache = open(&disk, 4096 * KIB);
    for n in 0..100 {
        insert(&cache, n, 4096);
    }
    drop(cache);
    let cache = open(&disk, 4096 * KIB);
    let left = (0..100).filter(|&n| probe(&cache, n, 4096) == Some(CacheRead::Hit)).count();
    // 31 slots per region: three are full, the fourth was being filled.
    assert_eq!(left, 93);
    for n in 93..100 {
        insert(&cache, n, 4096);
    }
    cache.close();
    drop(cache);
    let cache = open(&disk, 4096 * KIB);
    assert_eq!((0..100).filter(|&n| probe(&cache, n, 4096) == Some(CacheRead::Hit)).count(), 100);
    assert_eq!(cache.stats().bytes, 100 * 4096);
    assert_eq!(cache.bytes_of(ONE), 100 * 4096);
}

#[test]
fn a_stale_table_over_new_data_never_verifies() {
    // Power loss may bring a region's old table back under data that was written later.
    let disk = Arc::new(MemDisk::default());
    let cache = open(&disk, 1024 * KIB);
    for n in 0..30 {
        insert(&cache, n, 4096);
    }
    cache.close();
    let file = disk.files.lock().values().next().expect("a file").clone();
    let old = file.bytes.read()[..4096].to_vec();
    for n in 100..2000 {
        insert(&cache, n, 4096);
    }
    drop(cache);
    file.bytes.write()[..4096].copy_from_slice(&old);
    let cache = open(&disk, 1024 * KIB);
    let reads: Vec<_> = (0..30).filter_map(|n| probe(&cache, n, 4096)).collect();
    assert_eq!(reads, vec![CacheRead::Bad; 30]);
    assert_eq!(cache.stats().bad, 30);
    assert!((0..30).all(|n| probe(&cache, n, 4096).is_none()), "a bad copy is asked for once");
}

#[test]
fn a_copy_whose_crc_lies_is_found_by_hashing_after_a_restart() {
    let disk = Arc::new(MemDisk::default());
    let cache = open(&disk, 1024 * KIB);
    let (right, wrong) = (block(1, 4096), block(2, 4096));
    // A caller's mistake stands for what a CRC cannot see.
    cache.insert(ONE, &print(&right), &wrong);
    cache.close();
    drop(cache);
    let cache = open(&disk, 1024 * KIB);
    let slot = cache.find(&print(&right)).expect("found");
    assert_eq!(cache.read(slot, &mut [0; 4096]), CacheRead::Bad);
}

#[test]
fn a_slot_of_a_region_that_was_used_again_is_gone() {
    let disk = Arc::new(MemDisk::default());
    let cache = open(&disk, 1024 * KIB);
    insert(&cache, 0, 4096);
    let slot = cache.find(&print(&block(0, 4096))).expect("found");
    cache.forget(&print(&block(0, 4096)));
    for n in 1..2000 {
        insert(&cache, n, 4096);
    }
    assert_eq!(cache.read(slot, &mut [0; 4096]), CacheRead::Gone);
    let (send, receive) = std::sync::mpsc::channel();
    cache.read_later(slot, move |read, _| send.send(read).expect("listens"));
    assert_eq!(receive.recv(), Ok(CacheRead::Gone));
}

#[test]
fn a_broken_disk_turns_the_cache_off_and_nothing_else() {
    for when in 0..2 {
        let disk = Arc::new(MemDisk::default());
        let cache = open(&disk, 1024 * KIB);
        for n in 0..100 {
            insert(&cache, n, 4096);
        }
        disk.broken.store(true, Ordering::SeqCst);
        if when == 0 {
            assert_eq!(probe(&cache, 0, 4096), Some(CacheRead::Gone));
        } else {
            for n in 100..300 {
                insert(&cache, n, 4096);
            }
        }
        assert!(cache.is_failed());
        assert!(probe(&cache, 1, 4096).is_none());
        assert!(!cache.contains(&print(&block(1, 4096))));
        insert(&cache, 1000, 4096);
        cache.close();
    }
    let disk = Arc::new(MemDisk::default());
    disk.create(&format!("dedupe-{}-00000", 128 * KIB), 1024 * KIB, Space::Allocated).expect("made");
    disk.broken.store(true, Ordering::SeqCst);
    assert!(DedupeCache::open(disk, config(1024 * KIB, Upkeep::Inline)).is_err());
}

#[test]
fn a_cold_block_is_read_later() {
    let disk = Arc::new(MemDisk::default());
    let cache = open(&disk, 1024 * KIB);
    insert(&cache, 0, 4096);
    disk.cold.store(true, Ordering::SeqCst);
    assert_eq!(probe(&cache, 0, 4096), Some(CacheRead::Hit), "still in memory");
    cache.close();
    assert_eq!(probe(&cache, 0, 4096), Some(CacheRead::WouldBlock));
    let slot = cache.find(&print(&block(0, 4096))).expect("found");
    let (send, receive) = std::sync::mpsc::channel();
    cache.read_later(slot, move |read, buf| send.send((read, buf)).expect("listens"));
    assert_eq!(receive.recv(), Ok((CacheRead::Hit, block(0, 4096))));
}

#[test]
fn a_volume_over_its_quota_brings_nothing_more_in() {
    let disk = Arc::new(MemDisk::default());
    let cache = open(&disk, 4096 * KIB);
    cache.set_quota(ONE, Some(10 * 4096));
    for n in 0..50 {
        insert(&cache, n, 4096);
    }
    assert_eq!(cache.bytes_of(ONE), 10 * 4096);
    let data = block(60, 4096);
    cache.insert(VolumeId(2), &print(&data), &data);
    assert!(cache.contains(&print(&data)));
    cache.forget(&print(&block(0, 4096)));
    insert(&cache, 70, 4096);
    assert_eq!(cache.bytes_of(ONE), 10 * 4096, "what was forgotten makes room");
}

#[test]
fn a_cache_of_size_zero_is_off_and_impossible_sizes_are_refused() {
    let disk = Arc::new(MemDisk::default());
    let cache = open(&disk, 0);
    insert(&cache, 1, 4096);
    assert!(probe(&cache, 1, 4096).is_none());
    assert!(!cache.is_failed() && cache.stats().capacity == 0);
    assert!(disk.list().expect("lists").is_empty());
    let refused = |bytes, region_bytes| {
        DedupeCache::open(disk.clone(), CacheConfig { bytes, region_bytes, upkeep: Upkeep::Inline, hash_keys: [0, 0] }).is_err()
    };
    assert!(refused(1 << 30, 100_000) && refused(1 << 30, 4096) && refused(1 << 60, 16 << 20));
}

#[test]
fn odd_sizes_are_not_taken_in() {
    let disk = Arc::new(MemDisk::default());
    let cache = open(&disk, 2048 * KIB);
    for bytes in [512, 5000, 131_072] {
        let data = block(1, bytes);
        cache.insert(ONE, &print(&data), &data);
        assert!(!cache.contains(&print(&data)));
    }
    insert(&cache, 2, 65536);
    assert_eq!(probe(&cache, 2, 65536), Some(CacheRead::Hit));
}

#[test]
fn memory_per_slot_is_bounded_and_accounted() {
    let disk = Arc::new(MemDisk::default());
    let mut with = config(64 << 20, Upkeep::Inline);
    with.region_bytes = 1 << 20;
    let cache = DedupeCache::open(disk, with).expect("opens");
    for n in 0..20_000 {
        insert(&cache, n, 4096);
    }
    let slots = (cache.stats().bytes / 4096) as usize;
    assert!(slots > 14_000, "{slots}");
    let index = cache.inner.index.lock().memory_bytes();
    assert!(index / slots <= 48, "{} bytes per slot", index / slots);
    assert!(cache.memory_bytes() < index + (12 << 20));
}

#[test]
fn many_threads_find_read_and_insert_at_once() {
    let disk = Arc::new(MemDisk::default());
    let cache = Arc::new(DedupeCache::open(disk.clone(), config(2048 * KIB, Upkeep::Thread)).expect("opens"));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let cache = &cache;
            scope.spawn(move || {
                for i in 0..4000u64 {
                    let n = (i * 7919 + thread * 13) % 700;
                    if probe(cache, n, 4096).is_none_or(|read| read != CacheRead::Hit) {
                        insert(cache, n, 4096);
                    }
                }
            });
        }
    });
    cache.settle();
    let stats = cache.stats();
    assert_eq!(stats.bad, 0, "{stats:?}");
    assert!(stats.hits > 0 && !cache.is_failed());
    cache.close();
    drop(cache);
    let cache = DedupeCache::open(disk, config(2048 * KIB, Upkeep::Thread)).expect("opens");
    cache.settle();
    let found = (0..700).filter(|&n| probe(&cache, n, 4096) == Some(CacheRead::Hit)).count();
    assert!(found > 200, "{found} blocks after the restart");
}

/// Nanoseconds that this thread has had a CPU: other work on the machine does not count.
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("proc");
    stat.split_whitespace().next().and_then(|ns| ns.parse().ok()).expect("a number")
}

/// Prints hits and inserts per second; run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_hits() {
    let disk = Arc::new(MemDisk::default());
    let cache = Arc::new(DedupeCache::open(disk.clone(), CacheConfig::new(2 << 30)).expect("opens"));
    let blocks = 400_000u64;
    let prints: Vec<Fingerprint> = (0..blocks).map(|n| print(&block(n, 4096))).collect();
    let begun = Instant::now();
    for n in 0..blocks {
        let data = block(n, 4096);
        while !cache.contains(&prints[n as usize]) {
            cache.insert(ONE, &prints[n as usize], &data);
        }
    }
    println!("inserts: {:.0}/s", blocks as f64 / begun.elapsed().as_secs_f64());
    cache.settle();
    for threads in [1u64, 2, 4] {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (cache, prints) = (&cache, &prints);
                scope.spawn(move || {
                    let (mut buf, begun) = (vec![0; 4096], cpu_ns());
                    for i in 0..500_000u64 {
                        let n = i.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(thread) % blocks;
                        let slot = cache.find(&prints[n as usize]).expect("there");
                        assert_eq!(cache.read(slot, &mut buf), CacheRead::Hit);
                    }
                    println!("  {} ns of CPU per hit", (cpu_ns() - begun) / 500_000);
                });
            }
        });
        println!("{threads} threads: {:.0} hits/s", (threads * 500_000) as f64 / begun.elapsed().as_secs_f64());
    }
    println!("{} bytes of memory per slot", cache.memory_bytes() as u64 / (2 << 18));
    cache.close();
    drop(cache);
    let begun = Instant::now();
    let cache = DedupeCache::open(disk, CacheConfig::new(2 << 30)).expect("opens");
    let opened = begun.elapsed();
    cache.settle();
    println!("reopened in {opened:?}, {} blocks loaded in {:?}", cache.stats().bytes / 4096, begun.elapsed());
}
