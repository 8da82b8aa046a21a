//! A node between its start and its end, on simulated devices, driven one operation at a time.

use std::sync::Arc;
use std::time::Duration;

use lamina_contract::{
    BlockDevice, BlockSize, Clock, IoError, Lba, ManualClock, Op, Request, ScoSize, SectorCount, VolumeName, VolumeRecord,
    VolumeSpec,
};
use lamina_engine::mutant;
use lamina_engine::{Background, EngineError, JournalConfig, Node, NodeConfig, Seams, Volume};
use tokio::runtime::Runtime;

use crate::disk_image::DiskImage;
use crate::fault::Faults;
use crate::log::{Event, Log, Mark};
use crate::moment::Moment;
use crate::oracle::{Model, Part, Violation};
use crate::sim_disk::{Role, SimDisk};
use crate::sim_registry::SimRegistry;
use crate::sim_store::{Objects, SimStore};
use crate::stamp::{Content, Place, SECTOR, paint};
use crate::transfer::{Pending, transfer};

/// Shape of a world's node and volumes.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Its journal.
    pub journal: JournalConfig,
    /// Bytes of its dedupe cache; 0 for none.
    pub cache_bytes: u64,
    /// Entries after which its maps are checkpointed; None for the engine's own bound.
    pub checkpoint_after: Option<u64>,
    /// Its volumes: how many blocks, of which size, in containers of which size.
    pub volumes: Vec<VolumeShape>,
}

/// Shape of a volume.
#[derive(Debug, Clone, Copy)]
pub struct VolumeShape {
    /// Blocks.
    pub blocks: usize,
    /// Bytes of a block.
    pub block_size: BlockSize,
    /// Bytes of a container.
    pub sco_size: ScoSize,
}

impl VolumeShape {
    /// Sectors of the volume.
    #[must_use]
    pub fn sectors(&self) -> usize {
        self.blocks * self.per_block()
    }

    /// Sectors of a block.
    #[must_use]
    pub fn per_block(&self) -> usize {
        self.block_size.bytes() / SECTOR
    }
}

impl Shape {
    /// The smallest journal, without a cache.
    #[must_use]
    pub fn of(volumes: &[VolumeShape]) -> Self {
        let journal = JournalConfig { bytes: 16 << 20, segment_bytes: 4 << 20 };
        Self { journal, cache_bytes: 0, checkpoint_after: None, volumes: volumes.to_vec() }
    }
}

/// Everything of a node that outlives its process.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// The journal's disk.
    pub journal: DiskImage,
    /// The cache's disk.
    pub cache: DiskImage,
    /// The store.
    pub store: Arc<Objects>,
    /// Coordination.
    pub registry: Arc<Vec<VolumeRecord>>,
    /// Milliseconds since the world began.
    pub now_ms: u64,
}

impl World {
    /// What `events` make of a world in which nothing was.
    #[must_use]
    pub fn after(events: &[Event], now_ms: u64) -> Self {
        let mut world = Self { now_ms, ..Self::default() };
        events.iter().for_each(|event| world.apply(event));
        world
    }

    /// Goes on by one event.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Journal(event) => self.journal.apply(event),
            Event::Cache(event) => self.cache.apply(event),
            Event::Store(objects) => self.store = Arc::clone(objects),
            Event::Registry(records) => self.registry = Arc::clone(records),
            Event::Mark(_) => {}
        }
    }

    /// What is left when the node is lost with all its disks and coordination: the store.
    #[must_use]
    pub fn store_alone(&self) -> Self {
        Self { store: Arc::clone(&self.store), now_ms: self.now_ms, ..Self::default() }
    }
}

/// A device that was given to a node, with the switch for its faults.
#[derive(Debug, Clone, Default)]
pub struct LifeFaults {
    /// Of the journal's disk.
    pub journal: Faults,
    /// Of the cache's disk.
    pub cache: Faults,
    /// Of the store.
    pub store: Faults,
}

/// How a process ends and the next begins on the same devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It shuts down.
    Clean,
    /// It is killed.
    Killed,
}

/// How often a request that waits is given the store side's help before it counts as forgotten.
const PATIENCE: usize = 20;

struct Process {
    // The node goes before the runtime that its tasks are in.
    volumes: Vec<Arc<Volume>>,
    node: Arc<Node>,
    runtime: Runtime,
}

/// See the module's header.
pub struct Life {
    shape: Shape,
    log: Log,
    faults: LifeFaults,
    clock: Arc<ManualClock>,
    journal: Arc<SimDisk>,
    cache: Arc<SimDisk>,
    store: SimStore,
    registry: Arc<SimRegistry>,
    process: Option<Process>,
    models: Arc<Vec<Model>>,
    next_op: u32,
}

/// What guests know of a world: what they wrote to it, and what they were promised.
#[derive(Debug, Clone)]
pub struct Past {
    /// By volume.
    pub models: Arc<Vec<Model>>,
    /// By volume: operations that are durable.
    pub durable: Vec<usize>,
    /// By volume: operations that are in the store.
    pub stored: Vec<usize>,
    /// The number of the next operation.
    pub next_op: u32,
}

impl Past {
    /// The guests of fresh volumes.
    #[must_use]
    pub fn fresh(shape: &Shape) -> Self {
        let count = shape.volumes.len();
        Self { models: Arc::new(fresh_models(shape)), durable: vec![0; count], stored: vec![0; count], next_op: 1 }
    }
}

/// The name of a world's n-th volume.
///
/// # Panics
/// Never: the name is valid by its form.
#[must_use]
#[expect(clippy::expect_used, reason = "'v' and digits")]
pub fn name_of(volume: usize) -> VolumeName {
    VolumeName::new(&format!("v{volume}")).expect("a valid name")
}

#[expect(clippy::expect_used, reason = "a test program without a runtime cannot go on")]
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

fn why(error: &dyn std::error::Error) -> Arc<str> {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.into()
}

impl Life {
    /// Starts a node on `world`. Volumes that the registry lacks are not made.
    ///
    /// # Errors
    /// [`Violation::NoNode`], [`Violation::NotOpened`].
    pub fn begin(shape: &Shape, world: &World, past: &Past) -> Result<Self, Violation> {
        let mut life = Self::prepare(shape, world, past);
        life.open()?;
        Ok(life)
    }

    /// The devices, with no process on them yet.
    #[must_use]
    pub fn prepare(shape: &Shape, world: &World, past: &Past) -> Self {
        let (log, faults) = (Log::default(), LifeFaults::default());
        let clock = Arc::new(ManualClock::default());
        clock.advance(world.now_ms);
        Self {
            journal: Arc::new(SimDisk::over(&world.journal, Role::Journal, log.clone(), faults.journal.clone())),
            cache: Arc::new(SimDisk::over(&world.cache, Role::Cache, log.clone(), faults.cache.clone())),
            store: SimStore::over(world.store.clone(), log.clone(), faults.store.clone()),
            registry: Arc::new(SimRegistry::over(&world.registry, log.clone())),
            shape: shape.clone(),
            process: None,
            clock,
            log,
            faults,
            models: past.models.clone(),
            next_op: past.next_op,
        }
    }

    /// A world with fresh volumes, made by a node that was shut down.
    ///
    /// # Errors
    /// When a healthy node cannot make them.
    pub fn create(shape: &Shape) -> Result<(World, Past), Violation> {
        let past = Past::fresh(shape);
        let mut life = Self::prepare(shape, &World::default(), &past);
        life.open_node()?;
        for (n, volume) in shape.volumes.iter().enumerate() {
            let spec = spec_of(n, volume);
            if let Some(process) = &life.process {
                let made = process.runtime.block_on(process.node.create(spec));
                made.map_err(|error| Violation::NotOpened { volume: n, why: why(&error) })?;
            }
        }
        life.end(End::Clean);
        let mut moment = Moment::at_start(&World::default(), &past, &past.models);
        life.into_log().iter().for_each(|event| moment.apply(event));
        Ok((moment.world, past))
    }

    fn open_node(&mut self) -> Result<(), Violation> {
        // One thread runs everything, and shapes differ: the bound is set anew for each process.
        mutant::checkpoint_after(self.shape.checkpoint_after);
        let runtime = runtime();
        let seams = Seams {
            journal_disk: self.journal.clone(),
            cache_disk: self.cache.clone(),
            page_store: None,
            store: Arc::new(self.store.clone()),
            coordination: self.registry.clone(),
            clock: self.clock.clone(),
            runtime: runtime.handle().clone(),
        };
        let node = runtime.block_on(Node::open(config_of(&self.shape), seams));
        let node = node.map_err(|error| Violation::NoNode { why: why(&error) })?;
        self.process = Some(Process { volumes: Vec::new(), node, runtime });
        Ok(())
    }

    /// Starts a process on the devices.
    ///
    /// # Errors
    /// [`Violation::NoNode`], [`Violation::NotOpened`].
    pub fn open(&mut self) -> Result<(), Violation> {
        self.open_node()?;
        self.adopt()
    }

    /// Takes over the volumes that the node has opened.
    ///
    /// # Errors
    /// [`Violation::NotOpened`].
    pub fn adopt(&mut self) -> Result<(), Violation> {
        let Some(process) = &mut self.process else { return Ok(()) };
        process.volumes.clear();
        for n in 0..self.shape.volumes.len() {
            let name = name_of(n);
            let found = process.node.volumes().into_iter().find(|v| v.spec().name == name);
            let Some(volume) = found else {
                let unopened = process.node.unopened().into_iter().find(|u| u.record.spec.name == name);
                let why = unopened.map_or_else(|| "nothing knows it".into(), |u| why(&*u.error));
                return Err(Violation::NotOpened { volume: n, why });
            };
            process.volumes.push(volume);
        }
        // What a recovery shows is durable.
        for (volume, model) in self.models.iter().enumerate() {
            self.log.push(Event::Mark(Mark::Durable { volume, through: model.ops() }));
        }
        Ok(())
    }

    /// Ends the process; the devices stay.
    pub fn end(&mut self, end: End) {
        if let Some(process) = self.process.take()
            && end == End::Clean
        {
            process.runtime.block_on(process.node.shutdown());
        }
    }

    /// Kills the process; this life began on `world` with `past`. What it leaves, and what guests know then, nothing of it promised.
    #[must_use]
    pub fn killed(self, world: &World, past: &Past) -> (World, Past) {
        let (models, next_op, volumes) = (Arc::clone(&self.models), self.next_op, past.durable.len());
        let mut left = world.clone();
        self.into_log().iter().for_each(|event| left.apply(event));
        (left, Past { models, durable: vec![0; volumes], stored: vec![0; volumes], next_op })
    }

    /// Ends everything and gives what happened.
    #[must_use]
    pub fn into_log(mut self) -> Vec<Event> {
        let events = self.log.close();
        self.process = None;
        events
    }

    /// How many events there were so far.
    #[must_use]
    pub fn events(&self) -> usize {
        self.log.len()
    }

    /// What its volumes hold.
    #[must_use]
    pub fn models(&self) -> &Arc<Vec<Model>> {
        &self.models
    }

    /// The number of the next operation.
    #[must_use]
    pub fn next_op(&self) -> u32 {
        self.next_op
    }

    /// Switches for faults.
    #[must_use]
    pub fn faults(&self) -> &LifeFaults {
        &self.faults
    }

    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &SimRegistry {
        &self.registry
    }

    /// What the store holds.
    #[must_use]
    pub fn store(&self) -> &SimStore {
        &self.store
    }

    /// The running node.
    #[must_use]
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.process.as_ref().map(|p| &p.node)
    }

    /// Lets time pass.
    pub fn pass(&self, ms: u64) {
        self.clock.advance(ms);
    }

    /// What time it is, in milliseconds since the world began.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.monotonic_ms()
    }

    /// Content that no other operation writes.
    pub fn fresh(&mut self) -> Content {
        let content = Content::unique(self.next_op);
        self.next_op += 1;
        content
    }

    /// Hands the parts, which touch different blocks, to the volume in one batch, as one operation, and waits for the answers.
    ///
    /// # Errors
    /// What the volume answered to the first that failed.
    pub fn write(&mut self, volume: usize, parts: &[Part], fua: bool) -> Result<(), IoError> {
        let requests = parts.iter().map(|part| (Op::Write { fua }, part.clone())).collect();
        self.change(volume, requests)
    }

    /// Makes sectors zero by `op`, which is a discard or a write of zeros, and waits for the answer.
    ///
    /// # Errors
    /// What the volume answered.
    pub fn zero(&mut self, volume: usize, op: Op, sectors: std::ops::Range<usize>) -> Result<(), IoError> {
        let part = Part { sector: sectors.start, contents: vec![Content::ZERO; sectors.len()] };
        self.change(volume, vec![(op, part)])
    }

    fn change(&mut self, volume: usize, requests: Vec<(Op, Part)>) -> Result<(), IoError> {
        let parts: Vec<Part> = requests.iter().map(|(_, part)| part.clone()).collect();
        let count = Arc::make_mut(&mut self.models)[volume].push(&parts);
        self.log.push(Event::Mark(Mark::Submitted { volume, count }));
        let per_block = self.models[volume].per_block;
        let single = requests.len() == 1;
        let mut batch = Vec::new();
        let mut pending = Vec::new();
        for (part_no, (op, part)) in requests.into_iter().enumerate() {
            let bytes = if matches!(op, Op::Write { .. }) { painted(volume, per_block, &part) } else { Vec::new() };
            let log = self.log.clone();
            let fua = matches!(op, Op::Write { fua: true });
            let (transfer, wait) = transfer(bytes, move |answer| {
                if answer.is_ok() {
                    log.push(Event::Mark(Mark::Acked { volume, op: count - 1, part: part_no }));
                    if fua {
                        // Of a batch, what was before it; of a single request, that too.
                        let through = if single { count } else { count - 1 };
                        log.push(Event::Mark(Mark::Durable { volume, through }));
                    }
                }
            });
            let (start, sectors) = (Lba(part.sector as u64), SectorCount(part.contents.len() as u64));
            batch.push(Request { op, start, sectors, transfer });
            pending.push(wait);
        }
        self.submit(volume, &mut batch);
        let mut result = Ok(());
        for wait in &pending {
            result = result.and(self.wait(wait));
        }
        result
    }

    /// Deletes a volume and makes another one, of zeros, with its name.
    ///
    /// # Errors
    /// What the engine met.
    pub fn recreate(&mut self, volume: usize) -> Result<(), EngineError> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let shape = self.shape.volumes[volume];
        process.runtime.block_on(process.node.delete(process.volumes[volume].id(), true))?;
        process.volumes[volume] = process.runtime.block_on(process.node.create(spec_of(volume, &shape)))?;
        Arc::make_mut(&mut self.models)[volume] = Model::of(volume, shape.per_block(), vec![Content::ZERO; shape.sectors()]);
        Ok(())
    }

    /// Flushes the volume and waits for the answer.
    ///
    /// # Errors
    /// What the volume answered.
    pub fn flush(&mut self, volume: usize) -> Result<(), IoError> {
        let (log, through) = (self.log.clone(), self.models[volume].ops());
        let (transfer, wait) = transfer(Vec::new(), move |answer| {
            if answer.is_ok() {
                log.push(Event::Mark(Mark::Durable { volume, through }));
            }
        });
        self.submit(volume, &mut vec![Request { op: Op::Flush, start: Lba(0), sectors: SectorCount(0), transfer }]);
        self.wait(&wait)
    }

    /// Reads sectors.
    ///
    /// # Errors
    /// What the volume answered.
    pub fn read_sectors(&self, volume: usize, sectors: std::ops::Range<usize>) -> Result<Vec<u8>, IoError> {
        let (transfer, wait) = transfer(vec![0xee; sectors.len() * SECTOR], |_| {});
        let (start, count) = (Lba(sectors.start as u64), SectorCount(sectors.len() as u64));
        self.submit(volume, &mut vec![Request { op: Op::Read, start, sectors: count, transfer }]);
        self.wait(&wait)?;
        Ok(wait.take_bytes())
    }

    /// Reads a volume and says what each sector holds.
    ///
    /// # Errors
    /// [`Violation::Unreadable`], [`Violation::Foreign`].
    pub fn read(&self, volume: usize) -> Result<Vec<Content>, Violation> {
        let sectors = self.shape.volumes[volume].sectors();
        let bytes = self.read_sectors(volume, 0..sectors).map_err(|error| Violation::Unreadable { volume, error })?;
        self.models[volume].read(&bytes)
    }

    /// One round of the work behind the guests: everything accepted goes to the store.
    ///
    /// # Errors
    /// What the engine met.
    pub fn step(&mut self) -> Result<(), EngineError> {
        let through: Vec<usize> = self.models.iter().map(Model::ops).collect();
        mutant::checkpoint_after(self.shape.checkpoint_after);
        if let Some(process) = &self.process {
            process.runtime.block_on(process.node.step(true))?;
            for (volume, through) in through.into_iter().enumerate() {
                self.log.push(Event::Mark(Mark::Stored { volume, through }));
            }
        }
        Ok(())
    }

    /// Runs `future` on the node's runtime.
    ///
    /// # Panics
    /// When no process runs.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        #[expect(clippy::expect_used, reason = "a test's own mistake")]
        self.process.as_ref().expect("a process").runtime.block_on(future)
    }

    /// Runs `work` where tasks of the node may begin.
    ///
    /// # Panics
    /// When no process runs.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        #[expect(clippy::expect_used, reason = "a test's own mistake")]
        let _inside = self.process.as_ref().expect("a process").runtime.enter();
        work()
    }

    /// Waits for an answer; the store side gets its turns meanwhile.
    ///
    /// # Errors
    /// What the volume answered.
    pub fn answer_of(&self, pending: &Pending) -> Result<(), IoError> {
        self.wait(pending)
    }

    /// The clock that everything reads.
    #[must_use]
    pub fn clock(&self) -> &ManualClock {
        &self.clock
    }

    fn submit(&self, volume: usize, batch: &mut Vec<Request>) {
        if let Some(process) = &self.process {
            let _inside = process.runtime.enter();
            process.volumes[volume].submit(batch);
        }
        batch.clear();
    }

    fn wait(&self, pending: &Pending) -> Result<(), IoError> {
        match (pending.answer(), &self.process) {
            (Some(answer), _) => answer,
            (None, Some(process)) => process.runtime.block_on(async {
                // Virtual time: this passes at once when nothing else can go on.
                for _ in 0..PATIENCE {
                    let answer = tokio::time::timeout(Duration::from_secs(10), pending.answered()).await;
                    if let Ok(answer) = answer {
                        return answer;
                    }
                    // A write that the throttle holds back waits for the store side, which nobody else runs here.
                    let _ = tokio::time::timeout(Duration::from_secs(60), process.node.step(true)).await;
                }
                panic!("a request is never answered")
            }),
            (None, None) => Err(IoError::Io),
        }
    }
}

/// The bytes of a part.
fn painted(volume: usize, per_block: usize, part: &Part) -> Vec<u8> {
    let mut bytes = vec![0; part.contents.len() * SECTOR];
    for (n, (content, sector)) in part.contents.iter().zip(bytes.chunks_exact_mut(SECTOR)).enumerate() {
        paint(*content, Place { volume, sector: part.sector + n, per_block }, sector);
    }
    bytes
}

/// Models of volumes that hold zeros.
#[must_use]
pub fn fresh_models(shape: &Shape) -> Vec<Model> {
    let fresh = |(n, v): (usize, &VolumeShape)| Model::of(n, v.per_block(), vec![Content::ZERO; v.sectors()]);
    shape.volumes.iter().enumerate().map(fresh).collect()
}

/// How a world's n-th volume is made.
#[must_use]
pub fn spec_of(n: usize, volume: &VolumeShape) -> VolumeSpec {
    VolumeSpec {
        name: name_of(n),
        size_bytes: (volume.sectors() * SECTOR) as u64,
        block_size: volume.block_size,
        sco_size: volume.sco_size,
        read_only: false,
    }
}

fn config_of(shape: &Shape) -> NodeConfig {
    NodeConfig {
        journal: shape.journal,
        cache_bytes: shape.cache_bytes,
        // A little more than the least that the engine accepts for such a journal.
        memory_cap: 184 << 20,
        store_lag_ms: 1000,
        background: Background::Manual,
    }
}
