//! Schedules over a real engine and real documents; only the scheduler's clock is by hand.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lamina_api::label::Labels as ShownLabels;
use lamina_api::vm::{Machine, VmDisk};
use lamina_cluster::EmbeddedCoordination;
use lamina_contract::{BlockSize, Clock, ManualClock, ScoSize, VolumeName, VolumeSettings, VolumeSpec};
use lamina_engine::{Background, CloneSpec, JournalConfig, Node, NodeConfig, Seams};
use lamina_stores::LocalDisk;
use laminad::calendar::Minute;
use laminad::retention::{Keep, KeepCounts};
use laminad::runner::{Records as _, Snapshots};
use laminad::schedule::{Labels, Schedule, ScheduleName, Subject, TargetLists, Targets};
use laminad::scheduler::{Failure, Record, Scheduler};
use object_store::memory::InMemory;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::Runs;
use crate::clock::SystemClock;
use crate::documents::{Documents, Expected, Kind};
use crate::machines::{Machines, VmDocument};
use crate::schedules::Schedules;

const MINUTE: u64 = 60_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// A node with the volumes `a`, `b` and `c`, and the VM `web` of `a` and `b`; `b` and `c` and the VM carry `tier=gold`.
struct Bed {
    _dir: TempDir,
    machines: Arc<Machines>,
    documents: Arc<Documents>,
    clock: Arc<ManualClock>,
}

fn name(text: &str) -> VolumeName {
    VolumeName::new(text).expect("a name")
}

fn gold() -> Labels {
    Labels::from([("tier".to_owned(), "gold".to_owned())])
}

fn disk(path: &Path) -> Arc<LocalDisk> {
    std::fs::create_dir_all(path).expect("mkdir");
    Arc::new(LocalDisk::open(path).expect("opens"))
}

impl Bed {
    async fn new() -> Self {
        let dir = TempDir::new().expect("tempdir");
        let config = NodeConfig {
            journal: JournalConfig { bytes: 64 << 20, segment_bytes: 4 << 20 },
            cache_bytes: 16 << 20,
            memory_cap: 256 << 20,
            store_lag_ms: 1000,
            background: Background::Running,
        };
        let seams = Seams {
            journal_disk: disk(&dir.path().join("journal")),
            cache_disk: disk(&dir.path().join("cache")),
            page_store: None,
            store: Arc::new(InMemory::new()),
            coordination: Arc::new(EmbeddedCoordination::open(&dir.path().join("registry")).expect("opens")),
            clock: Arc::new(SystemClock::new()),
            runtime: Handle::current(),
        };
        let node = Node::open(config, seams).await.expect("opens");
        for (volume, labels) in [("a", Labels::new()), ("b", gold()), ("c", gold())] {
            let spec = VolumeSpec {
                name: name(volume),
                size_bytes: 1 << 20,
                block_size: BlockSize::DEFAULT,
                sco_size: ScoSize::DEFAULT,
                read_only: false,
            };
            node.create_with(spec, VolumeSettings { labels, ..VolumeSettings::default() }).await.expect("made");
        }
        let documents = Arc::new(Documents::open(&dir.path().join("documents")));
        let machines = Arc::new(Machines::new(node, Arc::clone(&documents), Handle::current()));
        let disks = ["a", "b"].map(|volume| VmDisk { volume: volume.to_owned(), ..VmDisk::default() }).to_vec();
        let machine = Machine { cpus: 1, memory_bytes: 1 << 30, disks, ..Machine::default() };
        let labels = ShownLabels::try_from(gold()).expect("labels");
        machines.add("web", &VmDocument { labels, machine, guest_agent: None, created_ms: 0 }).expect("kept");
        // Just before a minute's end, so that the runner looks again soon.
        let clock = Arc::new(ManualClock::default());
        clock.advance(MINUTE - 50);
        Self { _dir: dir, machines, documents, clock }
    }

    fn runs(&self) -> Arc<Runs> {
        Runs::new(Arc::clone(&self.machines))
    }

    /// Begins to follow what the documents say.
    fn follow(&self) -> (Arc<Runs>, Arc<Mutex<Scheduler>>, tokio::task::JoinHandle<()>) {
        let scheduler = Schedules::open(&self.documents).scheduler();
        let runs = self.runs();
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let following = Arc::clone(&runs).run(Arc::clone(&scheduler), Arc::clone(&self.documents), clock);
        (runs, scheduler, tokio::spawn(following))
    }

    fn keep(&self, schedule: &Schedule) {
        self.documents.put(Kind::Schedule, schedule.name.as_str(), Expected::Anything, schedule).expect("kept");
    }

    fn records(&self, schedule: &str) -> Vec<Record> {
        let stored = self.documents.get::<Vec<Record>>(Kind::ScheduleRuns, schedule).expect("understood");
        stored.map(|stored| stored.body).unwrap_or_default()
    }

    fn names(&self, volume: &str) -> Vec<String> {
        let volume = self.machines.open_volumes().remove(volume).expect("open");
        volume.snapshots().iter().map(|one| one.note.name.to_string()).collect()
    }

    /// Waits until it holds.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < until, "not in time: {what}; a has {:?}, c has {:?}", self.names("a"), self.names("c"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn schedule(lists: TargetLists, keep: KeepCounts, since: lamina_contract::Timestamp) -> Schedule {
    Schedule {
        name: ScheduleName::new("often").expect("right"),
        targets: Targets::try_from(lists).expect("some"),
        every: "every 1 minutes".parse().expect("right"),
        keep: Keep::new(keep).ok(),
        enabled: true,
        since,
    }
}

fn of_all() -> TargetLists {
    TargetLists { vms: [name("web")].into(), volume_labels: gold(), ..TargetLists::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_of_a_selected_vm_is_no_subject_of_its_own() {
    let bed = Bed::new().await;
    let select = |lists: TargetLists| bed.runs().select(&Targets::try_from(lists).expect("some")).expect("known");
    let (web, b, c) = (Subject::Vm(name("web")), Subject::Volume(name("b")), Subject::Volume(name("c")));
    assert_eq!(select(of_all()), [web.clone(), c.clone()].into());
    assert_eq!(select(TargetLists { volume_labels: gold(), ..TargetLists::default() }), [b.clone(), c].into());
    assert_eq!(select(TargetLists { vm_labels: gold(), volumes: [name("b")].into(), ..TargetLists::default() }), [web].into());
    // Those that are named and are not there are for the run to fail with.
    let missing = Subject::Volume(name("none"));
    let lists = TargetLists { volumes: [name("none"), name("b")].into(), ..TargetLists::default() };
    assert_eq!(select(lists), [missing.clone(), b].into());
    assert!(bed.runs().take(&missing, "x", Labels::new()).await.expect_err("refused").detail.contains("does not exist"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_taken_when_due_kept_by_the_rules_and_written_down() {
    let bed = Bed::new().await;
    bed.keep(&schedule(of_all(), KeepCounts { last: 2, ..KeepCounts::default() }, bed.clock.wall()));
    let (runs, scheduler, following) = bed.follow();
    bed.until("it knows what it is for", |bed| bed.records("often").len() == 2).await;
    assert_eq!((bed.names("a"), bed.names("c")), (Vec::new(), Vec::new()), "subjects that are new wait for the next run");
    let stamp = |minutes: u64| format!("often-{}", Minute::new(Minute::of(bed.clock.wall()).get() - minutes).stamp());
    for _ in 0..4 {
        bed.clock.advance(MINUTE);
        let newest = stamp(0);
        bed.until("taken", |bed| ["a", "b", "c"].iter().all(|volume| bed.names(volume).contains(&newest))).await;
        // The last of a run is that it is noted; a clock by hand waits for that.
        bed.until("noted", |bed| {
            let minute = Some(Minute::of(bed.clock.wall()).get());
            bed.records("often").iter().all(|record| record.taken == minute && record.last_error.is_none())
        })
        .await;
    }
    let kept = vec![stamp(1), stamp(0)];
    assert_eq!((bed.names("a"), bed.names("b"), bed.names("c")), (kept.clone(), kept.clone(), kept.clone()));
    let sets = bed.machines.sets(&bed.machines.get("web").expect("there"));
    assert!(sets.iter().all(|set| set.is_complete() && set.labels().contains_key("schedule")) && sets.len() == 2);
    // One with a clone stays, and the others go without it.
    let c = bed.machines.open_volumes().remove("c").expect("open");
    let oldest = c.snapshots().first().expect("two").note.id;
    let clone = CloneSpec { name: name("clone"), settings: VolumeSettings::default() };
    bed.machines.node.clone_volume(c.id(), oldest, &[clone]).await.expect("cloned");
    bed.clock.advance(MINUTE);
    let newest = stamp(0);
    bed.until("taken again", |bed| bed.names("c").contains(&newest) && bed.names("a").len() == 2).await;
    assert_eq!(bed.names("c").len(), 3, "{:?}", bed.names("c"));
    assert_eq!(scheduler.lock().views(bed.clock.wall())[0].runs.len(), 2);
    following.abort();
    let _ = following.await;
    runs.end().await;
    let ended = runs.take(&Subject::Volume(name("c")), "late", Labels::new()).await;
    assert!(ended.expect_err("refused").detail.contains("ending"), "nothing begins behind the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_was_missed_is_made_up_by_one_after_a_restart() {
    let bed = Bed::new().await;
    bed.keep(&schedule(of_all(), KeepCounts::default(), bed.clock.wall()));
    let (_, _, following) = bed.follow();
    bed.until("it knows what it is for", |bed| bed.records("often").len() == 2).await;
    following.abort();
    let _ = following.await;
    bed.clock.advance(90 * MINUTE);
    let (_, scheduler, following) = bed.follow();
    bed.until("made up", |bed| bed.names("c").len() == 1 && bed.names("a").len() == 1).await;
    let stamp = format!("often-{}", Minute::of(bed.clock.wall()).stamp());
    assert_eq!((bed.names("a"), bed.names("c")), (vec![stamp.clone()], vec![stamp]));
    bed.until("noted", |bed| bed.records("often").iter().all(|record| record.taken.is_some())).await;
    // A schedule that is gone leaves no records, and its snapshots.
    scheduler.lock().remove(&ScheduleName::new("often").expect("right"));
    bed.clock.advance(MINUTE);
    bed.until("forgotten", |bed| bed.records("often").is_empty()).await;
    assert_eq!(bed.names("c").len(), 1);
    following.abort();
    let _ = following.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_vm_is_not_understood_no_volume_is_taken_for_free() {
    let bed = Bed::new().await;
    bed.machines.refuse_disks(["c"], None).expect("free");
    assert!(bed.machines.refuse_disks(["a"], None).is_err());
    bed.documents.put(Kind::Vm, "odd", Expected::Absent, &serde_json::json!({ "sealed": true })).expect("kept");
    let refused = bed.machines.refuse_disks(["c"], None).expect_err("perhaps a disk of it");
    assert!(refused.detail.contains("'odd'"), "{refused}");
    assert_eq!((bed.machines.listed().len(), bed.documents.troubles().len()), (1, 1), "the other VM is there");
    assert!(bed.machines.get("odd").is_err() && bed.machines.refuse_taken("odd").is_err());
    bed.documents.delete(Kind::Vm, "odd", Expected::Anything).expect("deleted");
    bed.machines.refuse_disks(["c"], None).expect("free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_are_parsed_when_they_have_changed_and_not_when_somebody_looks() {
    let bed = Bed::new().await;
    let listed = bed.machines.listed();
    assert!(Arc::ptr_eq(&listed, &bed.machines.listed()));
    bed.runs().select(&Targets::try_from(of_all()).expect("targets")).expect("selected");
    bed.documents.put(Kind::Job, "0000000000000001", Expected::Absent, &1).expect("kept");
    assert!(Arc::ptr_eq(&listed, &bed.machines.listed()));
    let vm = bed.machines.get("web").expect("there");
    bed.machines.change(&vm, &VmDocument { guest_agent: Some("/a".to_owned()), ..vm.body.clone() }).expect("kept");
    assert_eq!(bed.machines.listed()[0].body.guest_agent.as_deref(), Some("/a"));
    assert!(bed.machines.forget(&vm).is_err(), "of another version");
    bed.machines.forget(&bed.machines.get("web").expect("there")).expect("deleted");
    assert!(bed.machines.listed().is_empty());
}

#[test]
fn what_a_schedule_has_done_stays_while_the_schedule_is_not_understood() {
    let dir = TempDir::new().expect("tempdir");
    let documents = Documents::open(&dir.path().join("documents"));
    let subject = Subject::Volume(name("a"));
    let records = [Record { subject, done: 7, taken: Some(7), last_error: None }];
    for schedule in ["newer", "gone"] {
        documents.put(Kind::ScheduleRuns, schedule, Expected::Absent, &records).expect("kept");
    }
    documents.put(Kind::Schedule, "newer", Expected::Absent, &serde_json::json!({ "sealed": true })).expect("kept");
    let scheduler = Schedules::open(&documents).scheduler();
    let mut scheduler = scheduler.lock();
    assert!(scheduler.due(&ManualClock::default(), |_| None).is_empty());
    let given_up: Vec<_> = scheduler.unsaved().into_iter().map(|(name, records)| (name.to_string(), records.len())).collect();
    assert_eq!(given_up, [("gone".to_owned(), 0)]);
}

#[test]
fn runs_on_thousands_of_volumes_that_fail_are_written_down() {
    let dir = TempDir::new().expect("tempdir");
    let documents = Arc::new(Documents::open(&dir.path().join("documents")));
    let runs = super::RunRecords(Arc::clone(&documents));
    let failure = |number: usize| Failure { at_ms: 1_767_225_600_000, why: format!("{number:0500}") };
    let record = |number: usize| Record {
        subject: Subject::Volume(name(&format!("{number:063}"))),
        done: 29_453_760,
        taken: Some(29_453_760),
        last_error: Some(failure(number)),
    };
    let schedule = ScheduleName::new("s").expect("a name");
    for (count, why) in [(1000, 500), (3000, 80), (5000, 0)] {
        let records: Vec<_> = (0..count).map(record).collect();
        runs.save(&schedule, &records).expect("written down");
        let kept = documents.get::<Vec<Record>>(Kind::ScheduleRuns, "s").expect("understood").expect("there").body;
        assert_eq!((kept.len(), kept[0].last_error.as_ref().map_or(0, |failure| failure.why.len())), (count, why));
        assert!(kept.iter().zip(&records).all(|(kept, record)| (&kept.subject, kept.done) == (&record.subject, record.done)));
    }
}
