//! Life-cycle operations on a node with its own threads, while its registry is slow or refuses manifests, or its store is away.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lamina_contract::{
    BlockDevice, Coordination, CoordinationError, Epoch, Generation, IoError, Lba, Op, Ownership, RecordChange, Request,
    SectorCount, SnapshotName, Timestamp, VolumeId, VolumeName, VolumeRecord, VolumeSettings,
};
use lamina_engine::{CloneSpec, EngineError, Node, Snapshot, SnapshotChange, SnapshotSpec, Volume};
use lamina_simulation::fault::{Fault, When};
use lamina_simulation::life::spec_of;
use lamina_simulation::sim_registry::SimRegistry;
use lamina_simulation::transfer::{Pending, transfer};
use object_store::ObjectStore;
use support::devices::{Devices, runtime, until};
use support::small_volume;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// A registry that takes its time for promises, as it does behind a slow fdatasync of the journal, and for manifests, which it may refuse.
struct Slow {
    rules: Arc<SimRegistry>,
    promise_ms: AtomicU64,
    manifest_ms: AtomicU64,
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
        std::thread::sleep(Duration::from_millis(self.manifest_ms.load(Ordering::Relaxed)));
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

/// A node on devices with such a registry, and what runs it.
struct Scene {
    devices: Devices,
    registry: Arc<Slow>,
    runtime: Runtime,
}

impl Scene {
    fn new() -> Self {
        let mut registry = None;
        let devices = Devices::with_registry(|rules| {
            let slow = Arc::new(Slow {
                rules,
                promise_ms: AtomicU64::new(0),
                manifest_ms: AtomicU64::new(0),
                refuses_manifests: AtomicBool::new(false),
            });
            registry = Some(Arc::clone(&slow));
            slow
        });
        Self { devices, registry: registry.expect("made"), runtime: runtime() }
    }

    fn open(&self) -> Arc<Node> {
        self.devices.open(&self.runtime)
    }

    fn refuse_manifests(&self, refuse: bool) {
        self.registry.refuses_manifests.store(refuse, Ordering::Relaxed);
    }
}

fn submit(volume: &Volume, op: Op, block: u64, byte: u8) -> Pending {
    let (transfer, wait) = transfer(vec![byte; 4096], |_| {});
    volume.submit(&mut vec![Request { op, start: Lba(block * 8), sectors: SectorCount(8), transfer }]);
    wait
}

fn answered(wait: &Pending) -> Result<(), IoError> {
    until("an answer", || wait.answer().is_some());
    wait.answer().expect("answered")
}

fn write(volume: &Volume, block: u64, byte: u8) {
    answered(&submit(volume, Op::Write { fua: true }, block, byte)).expect("written");
}

/// The first byte of a block.
fn read(volume: &Volume, block: u64) -> Result<u8, IoError> {
    let wait = submit(volume, Op::Read, block, 0xee);
    answered(&wait).map(|()| wait.take_bytes()[0])
}

fn clone_named(name: &str) -> CloneSpec {
    CloneSpec { name: VolumeName::new(name).expect("a name"), settings: VolumeSettings::default() }
}

fn named(name: &str) -> SnapshotSpec {
    SnapshotSpec::named(SnapshotName::new(name).expect("a name"))
}

fn with_past() -> VolumeSettings {
    VolumeSettings { cdp_ms: 3_600_000, ..VolumeSettings::default() }
}

#[test]
fn a_snapshot_that_the_store_side_makes_before_its_promise_leaves_no_promise() {
    let scene = Scene::new();
    let (node, runtime) = (scene.open(), &scene.runtime);
    let volume = runtime.block_on(node.create(spec_of(0, &small_volume(8)))).expect("created");
    write(&volume, 0, 1);
    assert!(runtime.block_on(node.drain(Duration::from_secs(10))));
    scene.registry.promise_ms.store(500, Ordering::Relaxed);
    let taken = runtime.block_on(node.snapshot(&[(volume.id(), named("daily"))])).expect("taken").remove(0);
    until("stored snapshot", || volume.snapshots().iter().all(|s| s.stored));
    std::thread::sleep(Duration::from_millis(500));
    let left = scene.registry.get(volume.id()).expect("there").cuts.len();
    assert_eq!(left, 0, "what is made is promised no more");
    // Retention deletes it, the guest goes on, the daemon is restarted.
    runtime.block_on(node.delete_snapshot(volume.id(), taken.note.id)).expect("deleted");
    write(&volume, 0, 2);
    assert!(runtime.block_on(node.drain(Duration::from_secs(10))));
    runtime.block_on(node.shutdown());
    let id = volume.id();
    drop((volume, node));
    let node = scene.open();
    let names: Vec<_> = node.volume(id).expect("open").snapshots().iter().map(|s| s.note.name.to_string()).collect();
    assert_eq!(names, Vec::<String>::new(), "a deleted snapshot is there again");
}

/// Processor time of this process so far.
fn cpu_ms() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").expect("stat");
    let after = text.rsplit_once(')').expect("a name in parentheses").1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("ticks")).sum::<u64>() * 10
}

#[test]
fn a_clone_that_waits_for_its_parent_burns_no_processor() {
    let scene = Scene::new();
    let (node, runtime) = (scene.open(), &scene.runtime);
    let volume = runtime.block_on(node.create(spec_of(0, &small_volume(8)))).expect("created");
    write(&volume, 0, 1);
    scene.refuse_manifests(true);
    let taken = runtime.block_on(node.snapshot(&[(volume.id(), named("golden"))])).expect("taken").remove(0);
    let clone =
        runtime.block_on(node.clone_volume(volume.id(), taken.note.id, &[clone_named("desktop")])).expect("cloned").remove(0);
    write(&clone, 1, 2);
    std::thread::sleep(Duration::from_millis(500));
    let before = cpu_ms();
    std::thread::sleep(Duration::from_secs(3));
    let burnt = cpu_ms() - before;
    scene.refuse_manifests(false);
    runtime.block_on(node.shutdown());
    assert!(burnt < 300, "{burnt} ms of processor in 3 s");
}

#[test]
fn a_snapshot_that_is_pinned_while_its_deletion_waits_stays() {
    let scene = Scene::new();
    let (node, runtime) = (scene.open(), &scene.runtime);
    let volume = runtime.block_on(node.create(spec_of(0, &small_volume(8)))).expect("created");
    let id = volume.id();
    for round in 0..12_u8 {
        write(&volume, 0, round + 1);
        scene.refuse_manifests(true);
        let taken = runtime.block_on(node.snapshot(&[(id, named(&format!("s{round}")))])).expect("taken").remove(0).note.id;
        let (deleting, changing) = (node.clone(), node.clone());
        let deletion = runtime.spawn(async move { deleting.delete_snapshot(id, taken).await });
        std::thread::sleep(Duration::from_millis(20));
        let pin = SnapshotChange { pinned: Some(true), ..SnapshotChange::default() };
        let change = runtime.spawn(async move { changing.change_snapshot(id, taken, &pin).await });
        std::thread::sleep(Duration::from_millis(20));
        scene.refuse_manifests(false);
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
    let scene = Scene::new();
    let (node, runtime) = (scene.open(), &scene.runtime);
    let volume = runtime.block_on(node.create(spec_of(0, &small_volume(8)))).expect("created");
    let waiting = volume.id();
    runtime.block_on(node.change_settings(waiting, with_past())).expect("its past begins");
    let other = runtime.block_on(node.create(spec_of(1, &small_volume(8)))).expect("created").id();
    let at = volume.past_begins().expect("a past");
    std::thread::sleep(Duration::from_millis(5));
    write(&volume, 0, 1);
    scene.refuse_manifests(true);
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
    scene.refuse_manifests(false);
    let (past, full) = runtime.block_on(async { (past.await.expect("ends"), full.await.expect("ends")) });
    assert_eq!(past.expect("made").note.created, at);
    full.expect("taken once there is room");
    runtime.block_on(node.shutdown());
}

#[test]
fn guests_wait_for_the_store_to_know_a_size_for_ten_seconds_at_most() {
    let scene = Scene::new();
    let (node, runtime) = (scene.open(), &scene.runtime);
    let volume = runtime.block_on(node.create_with(spec_of(0, &small_volume(8)), with_past())).expect("created");
    write(&volume, 0, 1);
    scene.refuse_manifests(true);
    let resize = async { tokio::time::timeout(Duration::from_secs(30), node.resize(volume.id(), 16 * 4096, false)).await };
    let resized = runtime.block_on(resize);
    resized.expect("in time").expect("resized");
    write(&volume, 15, 2);
    scene.refuse_manifests(false);
    assert!(runtime.block_on(node.drain(Duration::from_secs(10))));
    runtime.block_on(node.shutdown());
}

#[test]
fn catalogs_that_a_daemon_left_behind_are_deleted_by_a_later_one() {
    const DAEMONS: u8 = 8;
    let scene = Scene::new();
    let runtime = &scene.runtime;
    let id = spec_of(0, &small_volume(8));
    let mut volume = None;
    let stored = |volume: &Volume| until("stored snapshots", || volume.snapshots().iter().all(|s| s.stored));
    let catalogs = || {
        let listed = runtime.block_on(futures::TryStreamExt::try_collect::<Vec<_>>(scene.devices.store.list(None)));
        listed.expect("a list").iter().filter(|meta| meta.location.as_ref().contains("/catalog/")).count()
    };
    for daemon in 0..DAEMONS {
        let node = scene.open();
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
    let node = scene.open();
    let open = node.volume(volume.expect("made")).expect("open");
    for daemon in 0..DAEMONS {
        let first = open.snapshots().remove(0).note.id;
        runtime.block_on(node.delete_snapshot(open.id(), first)).expect("deleted");
        assert_eq!(open.snapshots().len(), usize::from(DAEMONS - daemon) - 1);
    }
    until("deletions", || catalogs() <= 5);
    runtime.block_on(node.shutdown());
}

/// A parent whose blocks hold 1, its clone, and another volume.
fn clone_and_another(scene: &Scene, node: &Arc<Node>) -> (Arc<Volume>, Arc<Volume>, Arc<Volume>) {
    let runtime = &scene.runtime;
    let parent = runtime.block_on(node.create(spec_of(0, &small_volume(8)))).expect("created");
    let other = runtime.block_on(node.create(spec_of(1, &small_volume(8)))).expect("created");
    (0..8).for_each(|block| write(&parent, block, 1));
    let golden = runtime.block_on(node.snapshot(&[(parent.id(), named("golden"))])).expect("taken").remove(0);
    until("stored snapshot", || parent.snapshots().iter().all(|snapshot| snapshot.stored));
    let cloned = runtime.block_on(node.clone_volume(parent.id(), golden.note.id, &[clone_named("c")]));
    (parent, cloned.expect("cloned").remove(0), other)
}

/// Keeps changes of all volumes waiting for so long.
fn change_slowly(scene: &Scene, node: &Arc<Node>, other: &Volume, ms: u64) -> JoinHandle<Result<Vec<Snapshot>, EngineError>> {
    scene.registry.promise_ms.store(ms, Ordering::Relaxed);
    let (node, id) = (node.clone(), other.id());
    let change = scene.runtime.spawn(async move { node.snapshot(&[(id, named("unrelated"))]).await });
    std::thread::sleep(Duration::from_millis(200));
    change
}

fn flatten(scene: &Scene, node: &Arc<Node>, volume: &Volume) -> JoinHandle<Result<(), EngineError>> {
    let (node, id) = (node.clone(), volume.id());
    scene.runtime.spawn(async move { node.flatten(id, &|_, _| (), &AtomicBool::new(false)).await })
}

/// Either the moment or the flattening is refused, or the snapshot holds nothing of the parent's.
#[test]
fn a_moment_that_becomes_a_snapshot_while_its_clone_is_flattened_outlives_the_parent() {
    let scene = Scene::new();
    let (node, runtime) = (scene.open(), &scene.runtime);
    let (parent, clone, other) = clone_and_another(&scene, &node);
    runtime.block_on(node.change_settings(clone.id(), with_past())).expect("keeps its past");
    std::thread::sleep(Duration::from_millis(20));
    let at = Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).expect("now").as_millis() as u64);
    std::thread::sleep(Duration::from_millis(20));
    write(&clone, 0, 2);
    // Somebody else changes something; behind that wait first the moment, then the flattening.
    let change = change_slowly(&scene, &node, &other, 2000);
    let (past, id) = (node.clone(), clone.id());
    let moment = runtime.spawn(async move { past.snapshot_at(id, at, &named("moment")).await });
    std::thread::sleep(Duration::from_millis(200));
    let flattened = flatten(&scene, &node, &clone);
    std::thread::sleep(Duration::from_millis(1000));
    scene.registry.manifest_ms.store(700, Ordering::Relaxed);
    runtime.block_on(change).expect("ends").expect("taken");
    let moment = runtime.block_on(moment).expect("ends").expect("it came first");
    let flattened = runtime.block_on(flattened).expect("ends");
    scene.registry.manifest_ms.store(0, Ordering::Relaxed);
    if flattened.is_ok() {
        let gone = parent.id();
        runtime.block_on(node.delete(gone, true)).expect("nobody needs it");
        until("forgotten parent", || scene.registry.get(gone).is_err());
    }
    drop((parent, other, clone));
    runtime.block_on(node.shutdown());
    drop(node);
    let node = scene.open();
    let back = runtime.block_on(node.clone_volume(id, moment.note.id, &[clone_named("d")]));
    let back = back.expect("a snapshot that was promised can be cloned").remove(0);
    assert_eq!((0..8).map(|block| read(&back, block)).collect::<Vec<_>>(), vec![Ok(1); 8]);
    runtime.block_on(node.shutdown());
}

#[test]
fn a_volume_takes_no_snapshots_while_it_is_flattened_and_does_again_when_that_is_cancelled() {
    let scene = Scene::new();
    let (node, runtime) = (scene.open(), &scene.runtime);
    let (_parent, clone, _other) = clone_and_another(&scene, &node);
    scene.refuse_manifests(true);
    let cancel = Arc::new(AtomicBool::new(false));
    let (flattening, id, stop) = (node.clone(), clone.id(), cancel.clone());
    let flattened = runtime.spawn(async move { flattening.flatten(id, &|_, _| (), &stop).await });
    until("blocks taken over", || clone.status().unstored_bytes > 0);
    let refused = runtime.block_on(node.snapshot(&[(id, named("hourly"))]));
    assert!(matches!(refused, Err(EngineError::Flattening { .. })), "{refused:?}");
    let second = runtime.block_on(node.flatten(id, &|_, _| (), &AtomicBool::new(false)));
    assert!(matches!(second, Err(EngineError::Flattening { .. })), "{second:?}");
    // It waits for the registry, and ends all the same.
    cancel.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    let flattened = runtime.block_on(flattened).expect("ends");
    assert!(matches!(flattened, Err(EngineError::Cancelled)), "{flattened:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    runtime.block_on(node.snapshot(&[(id, named("hourly"))])).expect("taken");
    scene.refuse_manifests(false);
    assert!(runtime.block_on(node.drain(Duration::from_secs(10))));
    assert_eq!((0..8).map(|block| read(&clone, block)).collect::<Vec<_>>(), vec![Ok(1); 8]);
    runtime.block_on(node.shutdown());
}

#[test]
fn a_flattening_that_cannot_end_keeps_no_others_from_being_changed() {
    let scene = Scene::new();
    let (node, runtime) = (scene.open(), &scene.runtime);
    let (_parent, clone, other) = clone_and_another(&scene, &node);
    scene.registry.manifest_ms.store(500, Ordering::Relaxed);
    let before = clone.status().generation;
    let flattened = flatten(&scene, &node, &clone);
    // Its blocks are stored and in pages; the manifest without the parent is under way.
    until("two manifests", || clone.status().generation.0 >= before.0 + 2);
    scene.refuse_manifests(true);
    std::thread::sleep(Duration::from_secs(1));
    let taken = async { tokio::time::timeout(Duration::from_secs(5), node.snapshot(&[(other.id(), named("o"))])).await };
    runtime.block_on(taken).expect("a snapshot of another volume waits behind a flattening").expect("taken");
    assert!(!flattened.is_finished() && clone.parent().is_some(), "it has ended: the test shows nothing");
    scene.refuse_manifests(false);
    runtime.block_on(flattened).expect("ends").expect("flattened");
    assert_eq!(clone.parent(), None);
    runtime.block_on(node.shutdown());
}

#[test]
fn growing_a_volume_while_the_journal_is_full_is_refused_and_keeps_no_others_from_being_changed() {
    let scene = Scene::new();
    let (node, runtime) = (scene.open(), &scene.runtime);
    let one = runtime.block_on(node.create(spec_of(0, &small_volume(4096)))).expect("created");
    let other = runtime.block_on(node.create(spec_of(1, &small_volume(8)))).expect("created");
    scene.devices.store_faults.plan(When::From(0), Fault::Io);
    let fills = |n: u64| {
        let wait = submit(&one, Op::Write { fua: false }, n % 4096, (n % 250) as u8 + 1);
        let begun = Instant::now();
        while wait.answer().is_none() && begun.elapsed() < Duration::from_millis(200) {
            std::thread::yield_now();
        }
        wait.answer().is_none()
    };
    assert!((0..40_000).any(fills), "the journal has room for ever");
    // What the throttle left is used up by growing.
    let begun = Instant::now();
    let refused = loop {
        assert!(begun.elapsed() < Duration::from_secs(120), "it can be grown for ever: the test shows nothing");
        let (growing, id, bytes) = (node.clone(), one.id(), one.size_bytes() + 4096);
        let growing = runtime.spawn(async move { growing.resize(id, bytes, false).await });
        let limit = Instant::now() + Duration::from_secs(2);
        until("end or limit", || growing.is_finished() || Instant::now() > limit);
        if !growing.is_finished() {
            break growing;
        }
        runtime.block_on(growing).expect("ends").expect("grown");
    };
    let taken =
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), node.snapshot(&[(other.id(), named("o"))])).await });
    let _ = taken.expect("a snapshot of another volume waits for room in the journal behind a resize");
    let refused = runtime.block_on(refused).expect("ends");
    assert!(matches!(refused, Err(EngineError::NoRoom { .. })), "{refused:?}");
    runtime.block_on(node.shutdown());
}

#[test]
fn a_snapshot_that_was_taken_since_somebody_looked_keeps_its_volume_from_being_deleted() {
    let scene = Scene::new();
    let (node, runtime) = (scene.open(), &scene.runtime);
    let volume = runtime.block_on(node.create(spec_of(0, &small_volume(8)))).expect("created");
    let id = volume.id();
    write(&volume, 0, 1);
    scene.registry.promise_ms.store(500, Ordering::Relaxed);
    for pinned in [false, true] {
        let name = if pinned { "pinned" } else { "hourly" };
        let taking = node.clone();
        let taking = runtime.spawn(async move { taking.snapshot(&[(id, SnapshotSpec { pinned, ..named(name) })]).await });
        std::thread::sleep(Duration::from_millis(100));
        // Snapshots may go with it, but no pinned one.
        let deleted = runtime.block_on(node.delete(id, pinned));
        match pinned {
            false => assert!(matches!(deleted, Err(EngineError::HasSnapshots { snapshots: 1, .. })), "{deleted:?}"),
            true => assert!(matches!(deleted, Err(EngineError::Pinned { .. })), "{deleted:?}"),
        }
        runtime.block_on(taking).expect("ends").expect("taken");
    }
    assert_eq!(volume.snapshot_count(), 2);
    runtime.block_on(node.shutdown());
}
