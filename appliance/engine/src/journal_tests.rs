//! The journal alone: order, full and recycled segments, what recovery accepts.

use std::io::IoSlice;
use std::sync::Arc;

use lamina_contract::{BlockAddress, Disk, Location, ScoNumber, Timestamp, VolumeId};
use lamina_formats::journal::{JournalEntry, JournalOp, PAGE, SegmentHeader};
use lamina_stores::MemoryDisk;

use super::{Journal, JournalConfig, JournalError, SegmentUse};

const CONFIG: JournalConfig = JournalConfig { bytes: 16 << 20, segment_bytes: 4 << 20 };

fn disk() -> Arc<dyn Disk> {
    Arc::new(MemoryDisk::default())
}

/// Opens the journal and returns the blocks that it replays, with who holds their segments.
fn open(disk: &Arc<dyn Disk>) -> (Journal, Vec<u64>, Vec<Arc<SegmentUse>>) {
    open_as(disk, CONFIG)
}

fn open_as(disk: &Arc<dyn Disk>, config: JournalConfig) -> (Journal, Vec<u64>, Vec<Arc<SegmentUse>>) {
    let (mut blocks, mut held) = (Vec::new(), Vec::new());
    let journal = Journal::open(disk.clone(), config, 77, |batch| {
        blocks.extend(batch.entries.iter().map(|e| e.block.0));
        held.push(batch.segment.clone());
    });
    (journal.expect("a journal"), blocks, held)
}

/// Appends one block whose bytes are all `fill`.
fn append(journal: &Journal, block: u64, fill: u8) -> Result<Arc<SegmentUse>, JournalError> {
    let data = vec![fill; PAGE];
    let entry = JournalEntry {
        volume: VolumeId(1),
        block: BlockAddress(block),
        location: Location { ancestor: 0, sco: ScoNumber(1), index: 0 },
        op: JournalOp::Data { sum: journal.block_sum(&data), pages: 1 },
        after_sync: false,
    };
    let mut append = journal.lock();
    journal.reserve(&mut append, 1, data.len())?;
    Ok(journal.write(&mut append, Timestamp(1), &[entry], &data)?.segment)
}

#[test]
fn what_was_appended_replays_in_order() {
    let disk = disk();
    let (journal, replayed, _) = open(&disk);
    assert!(replayed.is_empty());
    for block in 0..100 {
        append(&journal, block, block as u8 + 1).expect("append");
    }
    drop(journal);
    let (_, replayed, _) = open(&disk);
    assert_eq!(replayed, (0..100).collect::<Vec<_>>());
}

#[test]
fn replay_stops_at_a_batch_whose_data_is_damaged_and_new_batches_follow_the_good_ones() {
    let disk = disk();
    let (journal, ..) = open(&disk);
    for block in 0..10 {
        append(&journal, block, 9).expect("append");
    }
    drop(journal);
    // Batch n (from 0) has its header at page 1 + 2n and its data behind it.
    let file = disk.open("journal-00000.seg").expect("segment");
    file.write_at((1 + 2 * 6 + 1) * PAGE as u64, &[IoSlice::new(b"rot")]).expect("damage");
    let (journal, replayed, _) = open(&disk);
    assert_eq!(replayed, (0..6).collect::<Vec<_>>());
    append(&journal, 1000, 1).expect("append");
    drop(journal);
    // The left-overs 7, 8, 9 are intact, but the newer segment holds the truth from batch 7 on.
    let (_, replayed, _) = open(&disk);
    assert_eq!(replayed, [0, 1, 2, 3, 4, 5, 1000]);
}

#[test]
fn damage_below_the_durable_watermark_is_reported() {
    let disk = disk();
    let (journal, ..) = open(&disk);
    let mut held = Vec::new();
    for block in 0..1200 {
        held.push(append(&journal, block, 9).expect("append"));
        if block == 600 {
            journal.sync().expect("sync");
        }
    }
    drop((journal, held));
    let file = disk.open("journal-00000.seg").expect("segment");
    file.write_at((1 + 2 * 3) * PAGE as u64, &[IoSlice::new(b"rot")]).expect("damage a header");
    let (journal, replayed, _) = open(&disk);
    assert_eq!(replayed, [0, 1, 2], "nothing is trusted because a later one is present");
    assert!(journal.is_damaged(), "a later segment tells that batch 600 had been durable");
}

#[test]
fn a_full_journal_says_so_and_goes_on_once_its_oldest_segment_is_let_go() {
    let disk = disk();
    let (journal, ..) = open(&disk);
    let mut held = Vec::new();
    let mut block = 0;
    let full = loop {
        match append(&journal, block, 3) {
            Ok(segment) => held.push(segment),
            Err(error) => break error,
        }
        block += 1;
    };
    assert!(matches!(full, JournalError::Full), "{full}");
    // Two pages a batch, one page of header a segment, four segments.
    assert_eq!(block, 4 * (1024 - 1) / 2 / 4 * 4);
    let first = held[0].clone();
    held.retain(|segment| !Arc::ptr_eq(segment, &first));
    assert!(append(&journal, block, 3).is_err(), "somebody still holds the oldest");
    drop(first);
    append(&journal, block, 3).expect("room again");
    drop((journal, held));
    let (_, replayed, _) = open(&disk);
    assert_eq!(replayed.first(), Some(&511), "the recycled segment's batches are gone");
    assert_eq!(replayed.last(), Some(&block));
}

#[test]
fn a_sync_covers_every_segment_since_the_last_one() {
    let disk = disk();
    let (journal, ..) = open(&disk);
    let mut held = Vec::new();
    for block in 0..1200 {
        held.push(append(&journal, block, 1).expect("append"));
    }
    assert_eq!(journal.sync().expect("sync"), 1200);
    assert_eq!((journal.durable(), journal.accepted(), journal.syncs()), (1200, 1200, 1));
    assert_eq!(journal.sync().expect("nothing to do"), 1200);
    assert_eq!(journal.syncs(), 1);
}

#[test]
fn another_journals_left_overs_do_not_replay() {
    let disk = disk();
    let (journal, ..) = open(&disk);
    append(&journal, 5, 5).expect("append");
    drop(journal);
    // Wiped headers: the segments are as good as new, whatever batches they hold.
    for slot in 0..4 {
        let file = disk.open(&format!("journal-{slot:05}.seg")).expect("segment");
        file.write_at(0, &[IoSlice::new(&[0; PAGE])]).expect("wipe");
    }
    let mut replayed = 0;
    let journal = Journal::open(disk.clone(), CONFIG, 78, |_| replayed += 1).expect("a journal");
    append(&journal, 6, 6).expect("append");
    drop(journal);
    let (_, blocks, _) = open(&disk);
    assert_eq!((replayed, blocks), (0, vec![6]));
}

#[test]
fn a_shape_that_cannot_turn_is_refused() {
    for config in [
        JournalConfig { bytes: 8 << 20, segment_bytes: 4 << 20 },
        JournalConfig { bytes: 16 << 20, segment_bytes: 1 << 20 },
        JournalConfig { bytes: 64 << 20, segment_bytes: (4 << 20) + 512 },
    ] {
        let opened = Journal::open(disk(), config, 1, |_| ());
        assert!(matches!(opened, Err(JournalError::Shape { .. })));
    }
}

/// Appends blocks 0 to 1699. 511 batches of two pages fill a segment: the first two are let go together when the third is full; one of
/// them is used again, the other is dead.
fn two_let_go(disk: &Arc<dyn Disk>, prepare: bool) {
    let (journal, ..) = open(disk);
    let held = append(&journal, 0, 9).expect("append");
    for block in 1..1533 {
        append(&journal, block, 9).expect("append");
    }
    drop(held);
    if prepare {
        journal.prepare().expect("prepared");
    }
    for block in 1533..1700 {
        append(&journal, block, 9).expect("append");
    }
}

fn header(disk: &Arc<dyn Disk>, slot: usize) -> Option<SegmentHeader> {
    let file = disk.open(&format!("journal-{slot:05}.seg")).expect("segment");
    let mut page = vec![0; PAGE];
    file.read_at(0, &mut page).expect("a header");
    SegmentHeader::decode(&page).ok()
}

fn newest(disk: &Arc<dyn Disk>) -> usize {
    (0..4).max_by_key(|slot| header(disk, *slot).map_or(0, |header| header.sequence)).expect("a slot")
}

fn write(disk: &Arc<dyn Disk>, slot: usize, page: usize, bytes: &[u8]) {
    let file = disk.open(&format!("journal-{slot:05}.seg")).expect("segment");
    file.write_at((page * PAGE) as u64, &[IoSlice::new(bytes)]).expect("written");
}

#[test]
fn rot_in_a_segment_that_nobody_needs_costs_nothing_that_is_live() {
    for prepare in [false, true] {
        let disk = disk();
        two_let_go(&disk, prepare);
        write(&disk, 1, 1 + 2 * 3, b"rot in a batch's header");
        let (journal, replayed, _) = open(&disk);
        assert_eq!(replayed, (1022..1700).collect::<Vec<_>>());
        assert!(!journal.is_damaged());
    }
}

#[test]
fn rot_in_the_newest_header_costs_nothing_either() {
    for prepare in [false, true] {
        let disk = disk();
        two_let_go(&disk, prepare);
        write(&disk, newest(&disk), 0, b"rot");
        let (_, replayed, _) = open(&disk);
        let needed = (1022..1700).collect::<Vec<_>>();
        assert!(replayed.ends_with(&needed), "replayed {:?} to {:?}", replayed.first(), replayed.last());
    }
}

/// Appends blocks 0 to `count` - 1, all of them held, and prepares a segment whenever none is.
fn with_prepared(disk: &Arc<dyn Disk>, count: u64) {
    let (journal, ..) = open(disk);
    let mut held = Vec::new();
    for block in 0..count {
        held.push(append(&journal, block, 9).expect("append"));
        assert_eq!(journal.claim_preparing(), block % 511 == 0 && block < 1533, "at {block}");
        assert!(!journal.claim_preparing());
        journal.prepare().expect("prepared");
        assert!(!journal.claim_preparing());
    }
}

#[test]
fn a_prepared_segment_that_was_not_begun_is_free() {
    let disk = disk();
    for (starts, blocks) in [(1_u64, 600_u64), (2, 700), (3, 800)] {
        with_prepared_again(&disk, starts, blocks);
    }
}

/// A journal that ends, `starts` times so far, with a prepared segment; what was appended in earlier lives replays too.
fn with_prepared_again(disk: &Arc<dyn Disk>, starts: u64, blocks: u64) {
    let (journal, replayed, held) = open(disk);
    assert_eq!(replayed.is_empty(), starts == 1);
    drop(held);
    let expected = replayed.last().map_or(0, |last| last + 1);
    for block in expected..blocks {
        append(&journal, block, 9).expect("append");
        journal.prepare().expect("prepared");
    }
    assert_eq!(header(disk, newest(disk)).map(|header| header.first_batch), Some(0), "the newest is one that waits");
    drop(journal);
    let (_, replayed, _) = open(disk);
    assert_eq!(replayed.last(), Some(&(blocks - 1)));
    let run = replayed.first().copied().unwrap_or(0)..blocks;
    assert_eq!(replayed, run.collect::<Vec<_>>(), "an unbroken run");
}

#[test]
fn a_segment_that_was_prepared_replays_from_its_first_batch_and_breaks_the_run_without_it() {
    let disk = disk();
    with_prepared(&disk, 1200);
    let slot =
        |sequence| (0..4).find(|slot| header(&disk, *slot).is_some_and(|header| header.sequence == sequence)).expect("a slot");
    assert_eq!(header(&disk, slot(2)).expect("a header").first_batch, 0, "it is not written again");
    let (_, replayed, _) = open(&disk);
    assert_eq!(replayed, (0..1200).collect::<Vec<_>>());
    // A header that rots: its first batch says what it was.
    write(&disk, slot(2), 0, &[0xA5; 512]);
    let (_, replayed, _) = open(&disk);
    assert_eq!(replayed, (0..1200).collect::<Vec<_>>());
}

#[test]
fn what_follows_a_segment_that_power_emptied_does_not_pass_for_the_beginning() {
    for emptied in [2, 3] {
        let disk = disk();
        // Uses 1 to 3, of which the first is let go, and of the last two nothing was synced but their headers.
        let (journal, ..) = open(&disk);
        let mut held = Vec::new();
        for block in 0..1200 {
            let segment = append(&journal, block, 9).expect("append");
            if block >= 511 {
                held.push(segment);
            }
            journal.prepare().expect("prepared");
        }
        let slot = (0..4).find(|slot| header(&disk, *slot).is_some_and(|header| header.sequence == emptied)).expect("a slot");
        drop(journal);
        write(&disk, slot, 1, &[0; 512]);
        let (journal, replayed, _) = open(&disk);
        let lost = if emptied == 2 { 511 } else { 1022 };
        assert!(replayed.iter().all(|block| *block < lost), "{:?} to {:?}", replayed.first(), replayed.last());
        assert!(!journal.is_damaged(), "none of it was durable");
        append(&journal, 5000, 9).expect("append");
        drop(journal);
        let (_, replayed, _) = open(&disk);
        assert_eq!(replayed.last(), Some(&5000));
        assert!(replayed.iter().all(|block| *block < lost || *block == 5000));
    }
}

#[test]
fn a_durable_batch_that_rots_at_the_beginning_of_a_segment_is_damage() {
    // At the front of the run, in its middle, and in the newest segment.
    for (rotten, kept) in [(2, 511), (3, 1022), (4, 1533)] {
        let disk = disk();
        let (journal, ..) = open(&disk);
        let mut held = Vec::new();
        for block in 0..1700 {
            let segment = append(&journal, block, 9).expect("append");
            if block >= 511 {
                held.push(segment);
            }
            journal.prepare().expect("prepared");
        }
        journal.sync().expect("synced");
        append(&journal, 1700, 9).expect("append");
        let slot = (0..4).find(|slot| header(&disk, *slot).is_some_and(|header| header.sequence == rotten)).expect("a slot");
        drop((journal, held));
        write(&disk, slot, 1, b"rot");
        let (journal, replayed, _) = open(&disk);
        assert!(replayed.iter().all(|block| *block < kept), "{rotten}: to {:?}", replayed.last());
        assert!(journal.is_damaged(), "{rotten}");
    }
}

#[test]
fn a_segment_that_an_earlier_life_prepared_does_not_hide_what_a_later_one_wrote() {
    let disk = disk();
    with_prepared(&disk, 20);
    // Another life: it begins a segment, lets the first one go, and goes on until that one's place is used again.
    let (journal, _, held) = open(&disk);
    append(&journal, 20, 9).expect("append");
    assert_eq!((0..4).filter_map(|slot| header(&disk, slot)).filter(|header| header.first_batch == 0).count(), 0, "none is left");
    journal.prepare().expect("prepared");
    drop(held);
    let mut held = Vec::new();
    for block in 21..1200 {
        held.push(append(&journal, block, 9).expect("append"));
        journal.prepare().expect("prepared");
    }
    drop((journal, held));
    write(&disk, newest(&disk), 0, b"rot");
    let (journal, replayed, _) = open(&disk);
    assert!(replayed.ends_with(&(21..1200).collect::<Vec<_>>()), "{:?} to {:?}", replayed.first(), replayed.last());
    assert!(!journal.is_damaged());
}

const LONG: JournalConfig = JournalConfig { bytes: 128 << 20, segment_bytes: 4 << 20 };

/// A long journal after its first block and so many preparations.
fn prepared(times: usize) -> (Arc<dyn Disk>, Journal, Vec<Arc<SegmentUse>>) {
    let disk = disk();
    let (journal, ..) = open_as(&disk, LONG);
    let held = vec![append(&journal, 0, 9).expect("append")];
    for _ in 0..times {
        journal.prepare().expect("prepared");
    }
    (disk, journal, held)
}

#[test]
fn rot_in_the_newest_header_costs_nothing_when_several_were_prepared_in_the_life_before() {
    let (disk, journal, mut held) = prepared(3);
    // Into use 4, the last that waited; the oldest are let go in two goes, and a segment is prepared after each.
    for block in 1..1700 {
        held.push(append(&journal, block, 9).expect("append"));
    }
    for needed in [3, 4] {
        held.retain(|segment| segment.sequence() >= needed);
        journal.prepare().expect("prepared");
    }
    journal.sync().expect("synced");
    drop((journal, held));
    // A life that only begins. Its first header is the one that says what is needed, and it rots.
    let (journal, _, _held) = open_as(&disk, LONG);
    append(&journal, 1700, 9).expect("append");
    journal.sync().expect("synced");
    drop(journal);
    let newest = (0..32).max_by_key(|slot| header(&disk, *slot).map_or(0, |header| header.sequence)).expect("a slot");
    write(&disk, newest, 0, b"rot");
    let (journal, replayed, _) = open_as(&disk, LONG);
    assert!(replayed.ends_with(&(1533..=1700).collect::<Vec<_>>()), "{:?} to {:?}", replayed.first(), replayed.last());
    assert!(!journal.is_damaged());
}

#[test]
fn a_long_journal_prepares_several_segments_and_begins_them_in_their_order() {
    let unbegun = |disk: &Arc<dyn Disk>| {
        let waiting = (0..32).filter_map(|slot| header(disk, slot)).filter(|header| header.first_batch == 0);
        let mut waiting: Vec<u64> = waiting.map(|header| header.sequence).collect();
        waiting.sort_unstable();
        waiting
    };
    let (disk, journal, mut held) = prepared(5);
    assert_eq!(unbegun(&disk), [2, 3, 4], "three and no more");
    assert!(!journal.claim_preparing());
    // Through two of them; nobody prepares in their stead, but somebody is asked to.
    for block in 1..1200 {
        held.push(append(&journal, block, 9).expect("append"));
    }
    assert_eq!(held.iter().map(|segment| segment.sequence()).max(), Some(3));
    assert!(journal.claim_preparing());
    drop((journal, held));
    // A later life begins behind all of them, and leaves none that waits.
    let (journal, replayed, held) = open_as(&disk, LONG);
    assert_eq!(replayed, (0..1200).collect::<Vec<_>>());
    append(&journal, 1200, 9).expect("append");
    assert_eq!(header(&disk, 4).map(|header| header.first_batch), Some(1201), "use 5 says where the truth begins");
    let left: Vec<u64> = unbegun(&disk).into_iter().filter(|sequence| *sequence > 3).collect();
    assert!(left.is_empty(), "never begun, and wiped: {left:?}");
    drop((journal, held));
    let (journal, replayed, _) = open_as(&disk, LONG);
    assert_eq!(replayed, (0..=1200).collect::<Vec<_>>());
    assert!(!journal.is_damaged());
}

#[test]
fn segments_prepared_by_several_threads_are_begun_in_one_order() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let disk = disk();
    let (journal, ..) = open_as(&disk, LONG);
    let over = AtomicBool::new(false);
    let held = std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    journal.prepare().expect("prepared");
                    journal.sync().expect("synced");
                }
            });
        }
        let held: Vec<_> = (0..12_000).map(|block| append(&journal, block, 9).expect("append")).collect();
        over.store(true, Ordering::Relaxed);
        held
    });
    assert!(held.is_sorted_by_key(|segment| segment.sequence()));
    drop((journal, held));
    let (journal, replayed, _) = open_as(&disk, LONG);
    assert_eq!(replayed, (0..12_000).collect::<Vec<_>>());
    assert!(!journal.is_damaged());
}

#[test]
fn a_header_that_power_took_behind_the_one_in_use_costs_nothing() {
    // Of three that waited the first was begun, and the second is not there any more.
    let (disk, journal, mut held) = prepared(3);
    for block in 1..800 {
        held.push(append(&journal, block, 9).expect("append"));
    }
    let slot = (0..32).find(|slot| header(&disk, *slot).is_some_and(|header| header.sequence == 3)).expect("a slot");
    drop((journal, held));
    write(&disk, slot, 0, &[0; 4096]);
    let (journal, replayed, _held) = open_as(&disk, LONG);
    assert_eq!(replayed, (0..800).collect::<Vec<_>>());
    assert!(!journal.is_damaged());
    append(&journal, 800, 9).expect("append");
    drop(journal);
    let (_, replayed, _) = open_as(&disk, LONG);
    assert_eq!(replayed, (0..=800).collect::<Vec<_>>());
}

#[test]
fn the_first_segment_after_recovery_says_durably_where_the_truth_begins() {
    let disk = disk();
    with_prepared(&disk, 20);
    let (journal, ..) = open(&disk);
    journal.prepare().expect("nothing to do");
    append(&journal, 20, 9).expect("append");
    let first = header(&disk, newest(&disk)).expect("a header");
    assert_eq!(first.first_batch, 21);
}

#[test]
fn many_small_syncs_leave_a_short_list_of_what_is_cached() {
    let disk = disk();
    let (journal, ..) = open(&disk);
    for block in 0..2000 {
        append(&journal, block, 9).expect("append");
        journal.sync().expect("synced");
    }
    let cached = &journal.syncing.lock().cached;
    assert!(cached.ranges.len() < 64, "{} ranges of {} bytes", cached.ranges.len(), cached.bytes);
    assert_eq!(cached.bytes, cached.ranges.iter().map(|(_, _, bytes)| bytes).sum::<u64>());
}

#[test]
fn the_segment_let_go_last_is_used_next() {
    let disk = disk();
    let (journal, ..) = open(&disk);
    for block in 0..10_000 {
        append(&journal, block, 9).expect("append");
    }
    drop(journal);
    let used = (0..4).filter(|slot| header(&disk, *slot).is_some());
    assert_eq!(used.count(), 2, "a journal that nobody waits for turns in two segments, whose pages stay in memory");
}
