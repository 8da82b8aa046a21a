//! Life-cycle operations while the registry, the store or the journal fail: what each of these once broke.

use std::sync::Arc;

use lamina_contract::{BlockDevice, Coordination, Lba, Op, Request, SectorCount, SnapshotName, VolumeSettings};
use lamina_engine::SnapshotSpec;
use lamina_simulation::family::{Act, Difference, Disks, Family, shape};
use lamina_simulation::life::{End, World};
use lamina_simulation::log::Event;
use lamina_simulation::transfer::transfer;

fn must<T>(done: Result<T, Difference>) -> T {
    done.unwrap_or_else(|d| panic!("{d}"))
}

fn begin() -> Family {
    must(Family::begin(&shape(Some(0), 0), &World::default(), Disks::default()))
}

fn apply(world: &mut World, event: &Event) {
    match event {
        Event::Journal(event) => world.journal.apply(event),
        Event::Cache(event) => world.cache.apply(event),
        Event::Store(objects) => world.store = Arc::clone(objects),
        Event::Registry(records) => world.registry = Arc::clone(records),
        Event::Mark(_) => {}
    }
}

/// Kill between the decision of a rollback's cut and the dropping of its promise; then the discarded state is deleted.
fn stale_promise(history: &[Act], delete: &[usize]) {
    let mut family = begin();
    for act in history {
        must(family.act(*act));
    }
    let disks = family.disks.clone();
    let now_ms = family.life().now_ms();
    let (_, events) = family.into_history();
    // The last event that still shows a promise, plus what the store has: the kill is just before the registry drops it.
    let last_drop = events
        .iter()
        .rposition(|event| matches!(event, Event::Registry(records) if records.iter().any(|r| !r.cuts.is_empty())))
        .expect("a promise");
    let mut world = World::default();
    for event in &events[..=last_drop] {
        apply(&mut world, event);
    }
    world.now_ms = now_ms;
    let mut family = must(Family::begin(&shape(Some(0), 0), &world, disks));
    must(family.act(Act::Store));
    must(family.check());
    println!(
        "after the kill: cuts in registry {:?}",
        family.life().registry().list().expect("works").iter().map(|r| r.cuts.len()).collect::<Vec<_>>()
    );
    for snapshot in delete {
        must(family.act(Act::DeleteSnapshot { disk: 0, snapshot: *snapshot }));
    }
    for block in [0, 1, 2, 3, 0, 1, 2, 3] {
        must(family.act(Act::Write { disk: 0, block, count: 1 }));
    }
    must(family.act(Act::Store));
    must(family.check());
    must(family.act(Act::Restart(End::Clean)));
    must(family.check());
}

const ROLLED: [Act; 6] = [
    Act::Create { blocks: 4 },
    Act::Write { disk: 0, block: 0, count: 4 },
    Act::Snapshot { disk: 0 },
    Act::Write { disk: 0, block: 1, count: 2 },
    Act::Rollback { disk: 0, snapshot: 0 },
    Act::Store,
];

#[test]
fn stale_promise_of_a_rollback_rolls_back_again() {
    stale_promise(&ROLLED, &[1]);
}

#[test]
fn stale_promise_of_a_rollback_whose_target_is_gone_keeps_the_volume_shut() {
    stale_promise(&ROLLED, &[1, 0]);
}

#[test]
fn stale_promise_of_a_snapshot_brings_it_back_with_other_content() {
    stale_promise(&ROLLED[..4].iter().copied().chain([Act::Store]).collect::<Vec<_>>(), &[0]);
}

#[test]
fn a_moment_before_a_resize_has_the_size_of_then() {
    let mut family = begin();
    must(family.act(Act::Create { blocks: 4 }));
    must(family.set("d0", VolumeSettings { cdp_ms: 24 * 3_600_000, ..VolumeSettings::default() }));
    family.pass(1000);
    must(family.act(Act::Write { disk: 0, block: 0, count: 4 }));
    must(family.act(Act::Store));
    family.pass(10_000);
    let (then, held) = (family.now(), (*family.disks.0["d0"].blocks).clone());
    family.pass(10_000);
    must(family.act(Act::Resize { disk: 0, blocks: 2, force: true }));
    family.pass(1000);
    assert_eq!(must(family.go_back("d0", then)), held);
}

#[test]
fn a_resize_whose_answer_was_lost_cuts_nothing_off_later() {
    let mut family = begin();
    must(family.act(Act::Create { blocks: 4 }));
    let volume = must(family.volume("d0"));
    family.life().registry().rules().lose_next_answer();
    let node = family.node();
    let resized = family.life().run(node.resize(volume.id(), 2 * 4096, true));
    // It finds out that it was done: else the guest would write behind an end that the next start sees.
    assert!(resized.is_ok(), "{resized:?}");
    assert_eq!(volume.size_bytes(), 2 * 4096);
    drop((volume, node));
    must(family.act(Act::Restart(End::Clean)));
    assert_eq!(must(family.volume("d0")).size_bytes(), 2 * 4096);
}

/// A snapshot whose promise is recorded after the store side has made it (idle volume, slow journal sync): as a kept promise that stays.
#[test]
fn a_registry_that_is_away_when_a_rollback_is_settled() {
    let mut family = begin();
    for act in &ROLLED[..5] {
        must(family.act(*act));
    }
    must(family.act(Act::Store));
    must(family.check());
}

/// A write that waits when a rollback begins.
#[test]
fn a_write_that_waited_for_room_is_not_laid_over_what_was_gone_back_to() {
    let mut family = begin();
    must(family.act(Act::Create { blocks: 2048 }));
    must(family.act(Act::Write { disk: 0, block: 0, count: 4 }));
    must(family.act(Act::Snapshot { disk: 0 }));
    must(family.act(Act::Store));
    let volume = must(family.volume("d0"));
    let at_snapshot = must(family.read(&volume));
    // Fill the journal until a write is held back; nobody runs the store side here.
    let mut waits = Vec::new();
    let mut parked = None;
    for n in 0..40_000_u64 {
        let bytes: Vec<u8> = (0..4096).map(|i| (n as usize + i * 7) as u8 | 1).collect();
        let (t, wait) = transfer(bytes, |_| {});
        let start = Lba((n % 2048) * 8);
        let mut batch = vec![Request { op: Op::Write { fua: false }, start, sectors: SectorCount(8), transfer: t }];
        family.life().inside(|| volume.submit(&mut batch));
        if wait.answer().is_none() {
            parked = Some((n, wait));
            break;
        }
        waits.push(wait);
    }
    let (n, wait) = parked.expect("a write that waits");
    println!("write {n} waits");
    let to = volume.snapshots()[0].note.id;
    let node = family.node();
    let spec = SnapshotSpec::named(SnapshotName::new("discarded").expect("works"));
    family.life().run(node.rollback(volume.id(), to, spec)).expect("rolled back");
    for _ in 0..5 {
        family.life().run(node.step(true)).expect("store");
    }
    println!("the write that waited: {:?}", wait.answer());
    let now = family.read(&volume);
    assert_eq!(now.map_err(|d| d.to_string()), Ok(at_snapshot));
}

/// The SSD is lost before a snapshot with as many labels as are allowed is stored: one more is added, which the catalog refuses.
#[test]
fn a_snapshot_with_all_labels_survives_being_cut_short() {
    let mut family = begin();
    must(family.act(Act::Create { blocks: 4 }));
    must(family.act(Act::Write { disk: 0, block: 0, count: 2 }));
    must(family.act(Act::Store));
    must(family.act(Act::Write { disk: 0, block: 1, count: 2 }));
    let volume = must(family.volume("d0"));
    let labels = (0..64).map(|n| (format!("k{n}"), String::new())).collect();
    let spec = SnapshotSpec { labels, ..SnapshotSpec::named(SnapshotName::new("full").expect("works")) };
    let node = family.node();
    family.life().run(node.snapshot(&[(volume.id(), spec)])).expect("taken");
    drop((volume, node));
    let (_, events) = family.into_history();
    let mut world = World::default();
    events.iter().for_each(|event| apply(&mut world, event));
    world.journal = Default::default();
    world.cache = Default::default();
    let mut family = must(Family::begin(&shape(Some(0), 0), &world, Disks::default()));
    must(family.act(Act::Store));
    let seen = must(family.look());
    println!("{:?}", seen.0["d0"].snapshots);
}

/// A clone of a snapshot that is not stored, whose parent's block was lost in the journal, and other ways in which only LOST is left.
#[test]
fn a_store_that_is_away_while_a_snapshot_is_deleted_keeps_nobody_from_taking_one() {
    let mut family = begin();
    must(family.act(Act::Create { blocks: 4 }));
    must(family.act(Act::Create { blocks: 4 }));
    must(family.act(Act::Write { disk: 0, block: 0, count: 2 }));
    must(family.act(Act::Snapshot { disk: 0 }));
    must(family.act(Act::Store));
    let (one, other) = (must(family.volume("d0")), must(family.volume("d1")));
    family.life().faults().store.plan(lamina_simulation::fault::When::From(0), lamina_simulation::fault::Fault::Io);
    let node = family.node();
    let gone = one.snapshots()[0].note.id;
    let outcome = family.life().run(async {
        let deleting = node.delete_snapshot(one.id(), gone);
        let taking = async {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            let spec = SnapshotSpec::named(SnapshotName::new("other").expect("works"));
            tokio::time::timeout(std::time::Duration::from_secs(3600), node.snapshot(&[(other.id(), spec)])).await
        };
        tokio::pin!(taking);
        tokio::select! {
            deleted = deleting => panic!("deleted: {deleted:?}"),
            taken = &mut taking => taken,
        }
    });
    println!("an hour later: {outcome:?}");
    assert!(outcome.is_ok(), "a snapshot of another volume waits for the store of the first");
}

mod running {
    //! With the node's own threads.

    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use lamina_contract::{
        BlockDevice, Coordination, CoordinationError, Epoch, Generation, Lba, Op, Ownership, RecordChange, Request, SectorCount,
        SnapshotName, VolumeId, VolumeName, VolumeRecord, VolumeSettings,
    };
    use lamina_engine::{Background, CloneSpec, EngineError, JournalConfig, Node, NodeConfig, Seams, SnapshotChange, SnapshotSpec};
    use lamina_simulation::disk_image::DiskImage;
    use lamina_simulation::fault::Faults;
    use lamina_simulation::life::{VolumeShape, spec_of};
    use lamina_simulation::log::Log;
    use lamina_simulation::real_clock::RealClock;
    use lamina_simulation::sim_disk::{Role, SimDisk};
    use lamina_simulation::sim_registry::SimRegistry;
    use lamina_simulation::sim_store::SimStore;
    use lamina_simulation::transfer::transfer;
    use object_store::ObjectStore;
    use tokio::runtime::Runtime;

    /// A registry that takes its time for promises, as it does behind a slow fdatasync of the journal, and that may refuse manifests.
    struct Slow {
        rules: Arc<SimRegistry>,
        promise_ms: AtomicU64,
        refuses_manifests: AtomicBool,
    }

    impl Coordination for Slow {
        fn create_all(&self, records: &[VolumeRecord]) -> Result<(), CoordinationError> {
            self.rules.create_all(records)
        }
        fn list(&self) -> Result<Vec<VolumeRecord>, CoordinationError> {
            self.rules.list()
        }
        fn get(&self, volume: VolumeId) -> Result<VolumeRecord, CoordinationError> {
            self.rules.get(volume)
        }
        fn take_all(&self, volumes: &[(VolumeId, Epoch)]) -> Result<Vec<Ownership>, CoordinationError> {
            self.rules.take_all(volumes)
        }
        fn advance(&self, owner: Ownership, next: Generation) -> Result<(), CoordinationError> {
            if self.refuses_manifests.load(Ordering::Relaxed) {
                return Err(CoordinationError::Unavailable { doing: "advancing", cause: "not now".into() });
            }
            self.rules.advance(owner, next)
        }
        fn adopt(&self, owner: Ownership, generation: Generation, manifest_epoch: Epoch) -> Result<(), CoordinationError> {
            self.rules.adopt(owner, generation, manifest_epoch)
        }
        fn change(&self, changes: &[(Ownership, RecordChange)]) -> Result<(), CoordinationError> {
            if changes.iter().any(|(_, change)| matches!(change, RecordChange::AddCut(_))) {
                std::thread::sleep(Duration::from_millis(self.promise_ms.load(Ordering::Relaxed)));
            }
            self.rules.change(changes)
        }
        fn begin_delete(&self, volume: VolumeId) -> Result<(), CoordinationError> {
            self.rules.begin_delete(volume)
        }
        fn forget(&self, volume: VolumeId) -> Result<(), CoordinationError> {
            self.rules.forget(volume)
        }
    }

    struct Devices {
        journal: Arc<SimDisk>,
        cache: Arc<SimDisk>,
        store: SimStore,
        registry: Arc<Slow>,
    }

    impl Devices {
        fn fresh() -> Self {
            let log = Log::default();
            let _ = log.close();
            let disk = |role| Arc::new(SimDisk::over(&DiskImage::default(), role, log.clone(), Faults::default()));
            Self {
                journal: disk(Role::Journal),
                cache: disk(Role::Cache),
                store: SimStore::over(Arc::default(), log.clone(), Faults::default()),
                registry: Arc::new(Slow {
                    rules: Arc::new(SimRegistry::over(&[], log.clone())),
                    promise_ms: AtomicU64::new(0),
                    refuses_manifests: AtomicBool::new(false),
                }),
            }
        }

        fn open(&self, runtime: &Runtime) -> Arc<Node> {
            let seams = Seams {
                journal_disk: self.journal.clone(),
                cache_disk: self.cache.clone(),
                page_store: None,
                store: Arc::new(self.store.clone()),
                coordination: self.registry.clone(),
                clock: Arc::new(RealClock::default()),
                runtime: runtime.handle().clone(),
            };
            let config = NodeConfig {
                journal: JournalConfig { bytes: 16 << 20, segment_bytes: 4 << 20 },
                cache_bytes: 4 << 20,
                memory_cap: 200 << 20,
                store_lag_ms: 100,
                background: Background::Running,
            };
            runtime.block_on(Node::open(config, seams)).expect("a healthy node opens")
        }
    }

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("a runtime")
    }

    fn shape() -> VolumeShape {
        VolumeShape {
            blocks: 8,
            block_size: lamina_contract::BlockSize::DEFAULT,
            sco_size: lamina_contract::ScoSize::new(1 << 20).expect("a size"),
        }
    }

    fn write(volume: &lamina_engine::Volume, block: u64, byte: u8) {
        let (t, wait) = transfer(vec![byte; 4096], |_| {});
        volume.submit(&mut vec![Request {
            op: Op::Write { fua: true },
            start: Lba(block * 8),
            sectors: SectorCount(8),
            transfer: t,
        }]);
        until("an answer", || wait.answer().is_some());
        wait.answer().expect("answered").expect("written");
    }

    fn until(what: &str, done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no {what} for a minute");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_snapshot_that_the_store_side_makes_before_its_promise_leaves_no_promise() {
        let (devices, runtime) = (Devices::fresh(), runtime());
        let node = devices.open(&runtime);
        let volume = runtime.block_on(node.create(spec_of(0, &shape()))).expect("created");
        write(&volume, 0, 1);
        assert!(runtime.block_on(node.drain(Duration::from_secs(10))));
        devices.registry.promise_ms.store(500, Ordering::Relaxed);
        let spec = SnapshotSpec::named(SnapshotName::new("daily").expect("works"));
        let taken = runtime.block_on(node.snapshot(&[(volume.id(), spec)])).expect("taken").remove(0);
        until("stored snapshot", || volume.snapshots().iter().all(|s| s.stored));
        std::thread::sleep(Duration::from_millis(500));
        let left = devices.registry.get(volume.id()).expect("there").cuts.len();
        println!("promises left in the registry: {left}");
        // Retention deletes it, the guest goes on, the daemon is restarted.
        runtime.block_on(node.delete_snapshot(volume.id(), taken.note.id)).expect("deleted");
        write(&volume, 0, 2);
        assert!(runtime.block_on(node.drain(Duration::from_secs(10))));
        runtime.block_on(node.shutdown());
        let id = volume.id();
        drop((volume, node));
        let node = devices.open(&runtime);
        let names: Vec<_> = node.volume(id).expect("open").snapshots().iter().map(|s| s.note.name.to_string()).collect();
        assert_eq!(names, Vec::<String>::new(), "a deleted snapshot is there again");
    }

    fn cpu_ms() -> u64 {
        let text = std::fs::read_to_string("/proc/self/stat").expect("stat");
        let after = text.rsplit_once(')').expect("comm").1;
        let fields: Vec<&str> = after.split_whitespace().collect();
        (fields[11].parse::<u64>().expect("works") + fields[12].parse::<u64>().expect("works")) * 10
    }

    #[test]
    fn a_clone_that_waits_for_its_parent_burns_no_processor() {
        let (devices, runtime) = (Devices::fresh(), runtime());
        let node = devices.open(&runtime);
        let volume = runtime.block_on(node.create(spec_of(0, &shape()))).expect("created");
        write(&volume, 0, 1);
        devices.registry.refuses_manifests.store(true, Ordering::Relaxed);
        let spec = SnapshotSpec::named(SnapshotName::new("golden").expect("works"));
        let taken = runtime.block_on(node.snapshot(&[(volume.id(), spec)])).expect("taken").remove(0);
        let before = cpu_ms();
        std::thread::sleep(Duration::from_secs(3));
        println!("without a clone: {} ms of processor in 3 s", cpu_ms() - before);
        let clone = CloneSpec { name: VolumeName::new("desktop").expect("works"), settings: VolumeSettings::default() };
        let clone = runtime.block_on(node.clone_volume(volume.id(), taken.note.id, &[clone])).expect("cloned").remove(0);
        write(&clone, 1, 2);
        std::thread::sleep(Duration::from_millis(500));
        let before = cpu_ms();
        std::thread::sleep(Duration::from_secs(3));
        let burnt = cpu_ms() - before;
        println!("with a clone that waits: {burnt} ms of processor in 3 s");
        devices.registry.refuses_manifests.store(false, Ordering::Relaxed);
        runtime.block_on(node.shutdown());
        assert!(burnt < 300, "{burnt} ms");
    }

    fn named(name: &str) -> SnapshotSpec {
        SnapshotSpec::named(SnapshotName::new(name).expect("a name"))
    }

    fn with_past() -> VolumeSettings {
        VolumeSettings { cdp_ms: 3_600_000, ..VolumeSettings::default() }
    }

    #[test]
    fn a_snapshot_that_is_pinned_while_its_deletion_waits_stays() {
        let (devices, runtime) = (Devices::fresh(), runtime());
        let node = devices.open(&runtime);
        let volume = runtime.block_on(node.create(spec_of(0, &shape()))).expect("created");
        let id = volume.id();
        for round in 0..12_u8 {
            write(&volume, 0, round + 1);
            devices.registry.refuses_manifests.store(true, Ordering::Relaxed);
            let taken = runtime.block_on(node.snapshot(&[(id, named(&format!("s{round}")))])).expect("taken").remove(0).note.id;
            let (deleting, changing) = (node.clone(), node.clone());
            let deletion = runtime.spawn(async move { deleting.delete_snapshot(id, taken).await });
            std::thread::sleep(Duration::from_millis(20));
            let pin = SnapshotChange { pinned: Some(true), ..SnapshotChange::default() };
            let change = runtime.spawn(async move { changing.change_snapshot(id, taken, &pin).await });
            std::thread::sleep(Duration::from_millis(20));
            devices.registry.refuses_manifests.store(false, Ordering::Relaxed);
            let (deletion, change) = runtime.block_on(async { (deletion.await.expect("ends"), change.await.expect("ends")) });
            let found = volume.snapshots().into_iter().find(|s| s.note.id == taken);
            match change {
                Ok(_) => {
                    assert!(matches!(deletion, Err(EngineError::Pinned { .. })), "{deletion:?}");
                    assert!(found.is_some_and(|s| s.note.pinned), "a pinned snapshot is gone");
                }
                Err(EngineError::NoSnapshot { .. }) => {
                    deletion.expect("deleted first");
                    assert_eq!(found, None);
                }
                Err(other) => panic!("{other}"),
            }
        }
        runtime.block_on(node.shutdown());
    }

    #[test]
    fn a_volume_that_waits_for_the_store_holds_no_other_up() {
        const MOST_WAITING: usize = 64;
        let (devices, runtime) = (Devices::fresh(), runtime());
        let node = devices.open(&runtime);
        let volume = runtime.block_on(node.create(spec_of(0, &shape()))).expect("created");
        let waiting = volume.id();
        runtime.block_on(node.change_settings(waiting, with_past())).expect("its past begins");
        let other = runtime.block_on(node.create(spec_of(1, &shape()))).expect("created").id();
        let at = volume.past_begins().expect("a past");
        std::thread::sleep(Duration::from_millis(5));
        write(&volume, 0, 1);
        devices.registry.refuses_manifests.store(true, Ordering::Relaxed);
        let past = node.clone();
        let past = runtime.spawn(async move { past.snapshot_at(waiting, at, &named("then")).await });
        std::thread::sleep(Duration::from_millis(100));
        let take =
            async |volume, name: &str| tokio::time::timeout(Duration::from_secs(5), node.snapshot(&[(volume, named(name))])).await;
        let again = runtime.block_on(take(waiting, "then"));
        assert!(matches!(again, Ok(Err(EngineError::SnapshotExists { .. }))), "{again:?}");
        for number in 0..MOST_WAITING {
            let taken = runtime.block_on(take(waiting, &format!("s{number}")));
            taken.expect("the past keeps nobody waiting").expect("taken");
        }
        let full = node.clone();
        let full = runtime.spawn(async move { full.snapshot(&[(waiting, named("one-more"))]).await });
        std::thread::sleep(Duration::from_millis(100));
        let taken = runtime.block_on(take(other, "free"));
        taken.expect("a full volume keeps no other waiting").expect("taken");
        assert!(!past.is_finished() && !full.is_finished(), "nothing waited: the test shows nothing");
        devices.registry.refuses_manifests.store(false, Ordering::Relaxed);
        let (past, full) = runtime.block_on(async { (past.await.expect("ends"), full.await.expect("ends")) });
        assert_eq!(past.expect("made").note.created, at);
        full.expect("taken once there is room");
        runtime.block_on(node.shutdown());
    }

    #[test]
    fn guests_wait_for_the_store_to_know_a_size_for_ten_seconds_at_most() {
        let (devices, runtime) = (Devices::fresh(), runtime());
        let node = devices.open(&runtime);
        let volume = runtime.block_on(node.create_with(spec_of(0, &shape()), with_past())).expect("created");
        write(&volume, 0, 1);
        devices.registry.refuses_manifests.store(true, Ordering::Relaxed);
        let resize = async { tokio::time::timeout(Duration::from_secs(30), node.resize(volume.id(), 16 * 4096, false)).await };
        let resized = runtime.block_on(resize);
        resized.expect("in time").expect("resized");
        write(&volume, 15, 2);
        devices.registry.refuses_manifests.store(false, Ordering::Relaxed);
        assert!(runtime.block_on(node.drain(Duration::from_secs(10))));
        runtime.block_on(node.shutdown());
    }

    #[test]
    fn catalogs_that_a_daemon_left_behind_are_deleted_by_a_later_one() {
        const DAEMONS: u8 = 8;
        let (devices, runtime) = (Devices::fresh(), runtime());
        let id = spec_of(0, &shape());
        let mut volume = None;
        let stored = |volume: &lamina_engine::Volume| until("stored snapshots", || volume.snapshots().iter().all(|s| s.stored));
        let catalogs = || {
            let listed = runtime.block_on(futures::TryStreamExt::try_collect::<Vec<_>>(devices.store.list(None)));
            listed.expect("a list").iter().filter(|meta| meta.location.as_ref().contains("/catalog/")).count()
        };
        for daemon in 0..DAEMONS {
            let node = devices.open(&runtime);
            let open = match volume {
                None => runtime.block_on(node.create(id.clone())).expect("created"),
                Some(id) => node.volume(id).expect("open"),
            };
            volume = Some(open.id());
            write(&open, 0, daemon + 1);
            runtime.block_on(node.snapshot(&[(open.id(), named(&format!("s{daemon}")))])).expect("taken");
            stored(&open);
            runtime.block_on(node.shutdown());
        }
        let left = catalogs();
        assert!(left >= usize::from(DAEMONS), "{left} catalogs: nothing was left behind");
        let node = devices.open(&runtime);
        let open = node.volume(volume.expect("made")).expect("open");
        for daemon in 0..DAEMONS {
            let first = open.snapshots().remove(0).note.id;
            runtime.block_on(node.delete_snapshot(open.id(), first)).expect("deleted");
            assert_eq!(open.snapshots().len(), usize::from(DAEMONS - daemon) - 1);
        }
        until("deletions", || catalogs() <= 5);
        runtime.block_on(node.shutdown());
    }
}
