//! Disks with snapshots, clones and a past, driven one operation at a time beside a model that keeps plain copies.
//!
//! Every write is made durable before the next operation, so what was answered survives a power cut as well as a kill: a crash leaves the
//! state before the operation that was under way, or the state behind it, whole.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lamina_contract::{
    BlockDevice, BlockSize, Clock, Coordination, IoError, Lba, Op, Request, ScoSize, SectorCount, SnapshotName, Timestamp,
    VolumeName, VolumeSettings, VolumeSpec,
};
use lamina_engine::{CloneSpec, EngineError, Node, Snapshot, SnapshotSpec, Volume};

use crate::act::Act;
use crate::life::{Life, Past, Shape, World};
use crate::log::Event;
use crate::stamp::{Content, Place, SECTOR, paint, read};
use crate::transfer::{Pending, transfer};

/// Sectors of a block of 4 KiB.
const PER_BLOCK: usize = 8;

/// What a disk or snapshot holds, block by block.
pub type Blocks = Arc<Vec<Content>>;

/// A disk as its owner knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disk {
    /// Block by block.
    pub blocks: Blocks,
    /// By name.
    pub snapshots: BTreeMap<String, Blocks>,
    /// The disk and snapshot that it is a clone of.
    pub parent: Option<(String, String)>,
}

/// All disks, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disks(pub BTreeMap<String, Disk>);

/// What went another way than the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Difference(pub String);

fn differs(text: impl Into<String>) -> Difference {
    Difference(text.into())
}

/// See the module's header.
pub struct Family {
    life: Life,
    shape: Shape,
    /// What the disks hold.
    pub disks: Disks,
    next_disk: usize,
    next_snapshot: usize,
    next_content: u32,
    probes: usize,
    history: Vec<Began>,
}

/// An operation began.
#[derive(Debug, Clone)]
pub struct Began {
    /// After how many events.
    pub at: usize,
    /// What the disks held then.
    pub disks: Disks,
    /// What else they may hold in its middle.
    pub middles: Vec<Disks>,
}

/// A shape without volumes of its own.
#[must_use]
pub fn shape(checkpoint_after: Option<u64>, cache_bytes: u64) -> Shape {
    Shape { checkpoint_after, cache_bytes, ..Shape::of(&[]) }
}

fn volume_name(name: &str) -> Result<VolumeName, Difference> {
    VolumeName::new(name).map_err(|error| differs(error.to_string()))
}

fn snapshot_name(name: &str) -> Result<SnapshotName, Difference> {
    SnapshotName::new(name).map_err(|error| differs(error.to_string()))
}

impl Family {
    /// An empty node on `world`, which `disks` describe.
    ///
    /// # Errors
    /// When the node does not open.
    pub fn begin(shape: &Shape, world: &World, disks: Disks) -> Result<Self, Difference> {
        let life = Life::begin(shape, world, &Past::fresh(shape)).map_err(|v| differs(v.to_string()))?;
        Ok(Self {
            life,
            shape: shape.clone(),
            disks,
            next_disk: 0,
            next_snapshot: 0,
            next_content: 1,
            probes: 0,
            history: Vec::new(),
        })
    }

    /// Names and contents that another family on this world did not use.
    pub fn go_on_from(&mut self, number: usize) {
        (self.next_disk, self.next_snapshot, self.next_content, self.probes) = (number, number, number as u32, number);
    }

    /// The life beneath.
    #[must_use]
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// The node.
    ///
    /// # Panics
    /// When no process runs.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test's own mistake")]
    pub fn node(&self) -> Arc<Node> {
        self.life.node().expect("a process").clone()
    }

    /// Ends everything: what the disks held at each moment, and what happened.
    #[must_use]
    pub fn into_history(mut self) -> (Vec<Began>, Vec<Event>) {
        let last = Began { at: usize::MAX, disks: self.disks.clone(), middles: Vec::new() };
        let mut history = std::mem::take(&mut self.history);
        history.push(last);
        (history, self.life.into_log())
    }

    /// What is left when its process is killed now.
    #[must_use]
    pub fn killed(self) -> World {
        let now_ms = self.life.now_ms();
        World::after(&self.into_history().1, now_ms)
    }

    /// The disk with this number, modulo how many there are.
    fn disk(&self, number: usize) -> Option<String> {
        let count = self.disks.0.len();
        self.disks.0.keys().nth(number.checked_rem(count)?).cloned()
    }

    /// The number of the disk that was made last.
    #[must_use]
    pub fn newest(&self) -> usize {
        let made = |name: &String| name.trim_start_matches('d').parse::<usize>().unwrap_or(0);
        let all = self.disks.0.keys().enumerate();
        all.max_by_key(|(_, name)| made(name)).map_or(0, |(number, _)| number)
    }

    fn snapshot_of(&self, disk: &str, number: usize) -> Option<String> {
        let snapshots = &self.disks.0.get(disk)?.snapshots;
        snapshots.keys().nth(number.checked_rem(snapshots.len())?).cloned()
    }

    /// The volume of a disk.
    ///
    /// # Errors
    /// When the node does not have it.
    pub fn volume(&self, disk: &str) -> Result<Arc<Volume>, Difference> {
        let name = volume_name(disk)?;
        let found = self.node().volumes().into_iter().find(|volume| volume.spec().name == name);
        found.ok_or_else(|| {
            let why = self.node().unopened().iter().find(|u| u.record.spec.name == name).map(|u| format!("{:?}", u.error));
            differs(format!("{disk} is not open: {}", why.unwrap_or_else(|| "nobody knows it".to_owned())))
        })
    }

    fn find_snapshot(&self, disk: &str, snapshot: &str) -> Result<Snapshot, Difference> {
        let found = self.volume(disk)?.snapshot(&snapshot_name(snapshot)?);
        found.ok_or_else(|| differs(format!("{disk}@{snapshot} is not there")))
    }

    fn fresh(&mut self) -> Content {
        let content = Content::unique(self.next_content);
        self.next_content += 1;
        content
    }

    /// Does one thing, to the node and to the model; what the model says must be refused must be.
    ///
    /// # Errors
    /// Whatever went another way.
    pub fn act(&mut self, act: Act) -> Result<(), Difference> {
        self.history.push(Began { at: self.life.events(), disks: self.disks.clone(), middles: Vec::new() });
        self.life.pass(7);
        match act {
            Act::Create { blocks } => self.create(blocks),
            Act::Write { disk, block, count } => self.change(disk, block, count, Kind::Write),
            Act::WriteAndSnapshot { disk, block } => {
                self.change(disk, block, 1, Kind::Unflushed)?;
                let middle = self.disks.clone();
                self.history.iter_mut().last().into_iter().for_each(|began| began.middles.push(middle.clone()));
                self.snapshot(&[disk])
            }
            Act::SubBlock { disk, block } => self.change(disk, block, 1, Kind::SubBlock),
            Act::Discard { disk, block, count } => self.change(disk, block, count, Kind::Discard),
            Act::Snapshot { disk } => self.snapshot(&[disk]),
            Act::SnapshotTwo { disk, other } => self.snapshot(&[disk, other]),
            Act::Rollback { disk, snapshot } => self.rollback(disk, snapshot),
            Act::Clone { disk, snapshot, count } => self.clone_disk(disk, snapshot, count),
            Act::DeleteSnapshot { disk, snapshot } => self.delete_snapshot(disk, snapshot),
            Act::Delete { disk } => self.delete(disk),
            Act::Resize { disk, blocks, force } => self.resize(disk, blocks, force),
            Act::Flatten { disk } => self.flatten(disk),
            Act::Store => self.life.step().map_err(|error| differs(format!("storing: {error:?}"))),
            Act::Restart(end) => {
                self.life.end(end);
                self.life.open().map_err(|v| differs(v.to_string()))
            }
        }
    }

    /// Lets time pass.
    pub fn pass(&self, ms: u64) {
        self.life.pass(ms);
    }

    fn create(&mut self, blocks: usize) -> Result<(), Difference> {
        let name = format!("d{}", self.next_disk);
        self.next_disk += 1;
        let spec = VolumeSpec {
            name: volume_name(&name)?,
            size_bytes: (blocks * PER_BLOCK * SECTOR) as u64,
            block_size: BlockSize::DEFAULT,
            sco_size: ScoSize::new(1 << 20).map_err(|error| differs(error.to_string()))?,
            read_only: false,
        };
        self.life.run(self.node().create(spec)).map_err(|error| differs(format!("creating: {error:?}")))?;
        self.disks.0.insert(name, Disk { blocks: Arc::new(vec![Content::ZERO; blocks]), ..Disk::default() });
        Ok(())
    }

    fn change(&mut self, disk: usize, block: usize, count: usize, kind: Kind) -> Result<(), Difference> {
        let Some(name) = self.disk(disk) else { return Ok(()) };
        let size = self.disks.0[&name].blocks.len();
        let first = block % size;
        let range = first..(first + count.max(1)).min(size);
        let volume = self.volume(&name)?;
        let mut batch = Vec::new();
        let mut pending = Vec::new();
        let mut now = (*self.disks.0[&name].blocks).clone();
        for block in range {
            let content = if kind == Kind::Discard { Content::ZERO } else { self.fresh() };
            // A sub-block write of one sector makes the whole block another content only in the model's eyes: all its other sectors must
            // stay, so it is written as a whole through its parts.
            let sectors: Vec<Range<usize>> = match kind {
                Kind::SubBlock => vec![0..3, 3..PER_BLOCK],
                Kind::Write | Kind::Unflushed | Kind::Discard => std::iter::once(0..PER_BLOCK).collect(),
            };
            for part in sectors {
                let start = block * PER_BLOCK + part.start;
                let bytes = if kind == Kind::Discard { Vec::new() } else { painted(content, start, part.len()) };
                let (transfer, wait) = transfer(bytes, |_| {});
                let op = if kind == Kind::Discard { Op::Discard } else { Op::Write { fua: false } };
                batch.push(Request { op, start: Lba(start as u64), sectors: SectorCount(part.len() as u64), transfer });
                pending.push(wait);
            }
            now[block] = content;
        }
        if kind == Kind::SubBlock {
            // One after the other, for a crash between them would leave half of each.
            for (request, wait) in batch.into_iter().zip(&pending) {
                self.submit(&volume, vec![request], std::slice::from_ref(wait))
                    .map_err(|e| differs(format!("writing {name}: {e}")))?;
            }
        } else {
            self.submit(&volume, batch, &pending).map_err(|error| differs(format!("writing {name}: {error}")))?;
        }
        if kind != Kind::Unflushed {
            let (transfer, wait) = transfer(Vec::new(), |_| {});
            let flush = Request { op: Op::Flush, start: Lba(0), sectors: SectorCount(0), transfer };
            self.submit(&volume, vec![flush], &[wait]).map_err(|error| differs(format!("flushing {name}: {error}")))?;
        }
        self.entry(&name).blocks = Arc::new(now);
        Ok(())
    }

    fn entry(&mut self, name: &str) -> &mut Disk {
        self.disks.0.entry(name.to_owned()).or_default()
    }

    fn submit(&self, volume: &Arc<Volume>, mut batch: Vec<Request>, pending: &[Pending]) -> Result<(), IoError> {
        self.life.inside(|| volume.submit(&mut batch));
        let mut result = Ok(());
        for wait in pending {
            result = result.and(self.life.answer_of(wait));
        }
        result
    }

    fn snapshot(&mut self, disks: &[usize]) -> Result<(), Difference> {
        let mut names: Vec<String> = disks.iter().filter_map(|disk| self.disk(*disk)).collect();
        names.dedup();
        let snapshot = format!("s{:04}", self.next_snapshot);
        self.next_snapshot += 1;
        let spec = SnapshotSpec::named(snapshot_name(&snapshot)?);
        let wanted: Vec<_> =
            names.iter().map(|name| Ok((self.volume(name)?.id(), spec.clone()))).collect::<Result<_, Difference>>()?;
        let taken = self.run_stepping(async |node| node.snapshot(&wanted).await);
        taken.map_err(|error| differs(format!("snapshot of {names:?}: {error:?}")))?;
        for name in &names {
            let disk = self.entry(name);
            disk.snapshots.insert(snapshot.clone(), disk.blocks.clone());
        }
        Ok(())
    }

    /// Runs a call that may be refused because too much waits for the store: then the store gets its turn, and the call another.
    fn run_stepping<T>(&mut self, call: impl AsyncFn(&Arc<Node>) -> Result<T, EngineError>) -> Result<T, EngineError> {
        let node = self.node();
        match self.life.run(call(&node)) {
            Err(EngineError::TooManyWaiting { .. }) => {
                self.life.step()?;
                self.life.run(call(&node))
            }
            result => result,
        }
    }

    fn rollback(&mut self, disk: usize, snapshot: usize) -> Result<(), Difference> {
        let Some(name) = self.disk(disk) else { return Ok(()) };
        let Some(snapshot) = self.snapshot_of(&name, snapshot) else { return Ok(()) };
        let discarded = format!("s{:04}", self.next_snapshot);
        self.next_snapshot += 1;
        let (volume, to) = (self.volume(&name)?.id(), self.find_snapshot(&name, &snapshot)?.note.id);
        let spec = SnapshotSpec::named(snapshot_name(&discarded)?);
        let done = self.run_stepping(async |node| node.rollback(volume, to, spec.clone()).await);
        done.map_err(|error| differs(format!("rollback of {name} to {snapshot}: {error:?}")))?;
        let disk = self.entry(&name);
        disk.snapshots.insert(discarded, disk.blocks.clone());
        disk.blocks = disk.snapshots[&snapshot].clone();
        Ok(())
    }

    fn clone_disk(&mut self, disk: usize, snapshot: usize, count: usize) -> Result<(), Difference> {
        let Some(name) = self.disk(disk) else { return Ok(()) };
        let Some(snapshot) = self.snapshot_of(&name, snapshot) else { return Ok(()) };
        let names: Vec<String> = (self.next_disk..self.next_disk + count).map(|number| format!("d{number}")).collect();
        self.next_disk += count;
        let specs: Vec<CloneSpec> = names
            .iter()
            .map(|name| Ok(CloneSpec { name: volume_name(name)?, settings: VolumeSettings::default() }))
            .collect::<Result<_, Difference>>()?;
        let (parent, from) = (self.volume(&name)?.id(), self.find_snapshot(&name, &snapshot)?.note.id);
        let node = self.node();
        let made = self.life.run(node.clone_volume(parent, from, &specs));
        made.map_err(|error| differs(format!("clones of {name}@{snapshot}: {error:?}")))?;
        let blocks = self.disks.0[&name].snapshots[&snapshot].clone();
        for clone in names {
            let parent = Some((name.clone(), snapshot.clone()));
            self.disks.0.insert(clone, Disk { blocks: blocks.clone(), snapshots: BTreeMap::new(), parent });
        }
        Ok(())
    }

    fn has_clones(&self, disk: &str, snapshot: Option<&str>) -> bool {
        let is_clone = |(of, at): &(String, String)| of == disk && snapshot.is_none_or(|snapshot| snapshot == at);
        self.disks.0.values().any(|other| other.parent.as_ref().is_some_and(is_clone))
    }

    fn delete_snapshot(&mut self, disk: usize, snapshot: usize) -> Result<(), Difference> {
        let Some(name) = self.disk(disk) else { return Ok(()) };
        let Some(snapshot) = self.snapshot_of(&name, snapshot) else { return Ok(()) };
        let (volume, id) = (self.volume(&name)?.id(), self.find_snapshot(&name, &snapshot)?.note.id);
        let node = self.node();
        let deleted = self.life.run(node.delete_snapshot(volume, id));
        match (deleted, self.has_clones(&name, Some(&snapshot))) {
            (Ok(()), false) => {
                self.entry(&name).snapshots.remove(&snapshot);
                Ok(())
            }
            (Err(EngineError::SnapshotHasClones { .. }), true) => Ok(()),
            (other, has) => Err(differs(format!("deleting {name}@{snapshot}, clones: {has}: {other:?}"))),
        }
    }

    fn delete(&mut self, disk: usize) -> Result<(), Difference> {
        let Some(name) = self.disk(disk) else { return Ok(()) };
        let (volume, node) = (self.volume(&name)?.id(), self.node());
        let deleted = self.life.run(node.delete(volume, true));
        let refused = |error: &EngineError| error.to_string().contains("clone(s)");
        match (deleted, self.has_clones(&name, None)) {
            (Ok(()), false) => {
                self.disks.0.remove(&name);
                Ok(())
            }
            (Err(error), true) if refused(&error) => Ok(()),
            (other, has) => Err(differs(format!("deleting {name}, clones: {has}: {other:?}"))),
        }
    }

    fn resize(&mut self, disk: usize, blocks: usize, force: bool) -> Result<(), Difference> {
        let Some(name) = self.disk(disk) else { return Ok(()) };
        let volume = self.volume(&name)?.id();
        let node = self.node();
        let done = self.life.run(node.resize(volume, (blocks * PER_BLOCK * SECTOR) as u64, force));
        let old = self.disks.0[&name].blocks.clone();
        let cuts = old.iter().skip(blocks).any(|content| *content != Content::ZERO);
        match (done, cuts && !force) {
            (Ok(()), false) => {
                let mut now = (*old).clone();
                now.resize(blocks, Content::ZERO);
                self.entry(&name).blocks = Arc::new(now);
                Ok(())
            }
            (Err(EngineError::WouldCut { .. }), true) => Ok(()),
            (other, refused) => Err(differs(format!("resizing {name} to {blocks}, to be refused: {refused}: {other:?}"))),
        }
    }

    fn flatten(&mut self, disk: usize) -> Result<(), Difference> {
        let Some(name) = self.disk(disk) else { return Ok(()) };
        let (volume, node) = (self.volume(&name)?.id(), self.node());
        let done = self.life.run(node.flatten(volume, &|_, _| {}, &AtomicBool::new(false)));
        let known = &self.disks.0[&name];
        let refused = known.parent.is_some() && !known.snapshots.is_empty();
        match (done, refused) {
            (Ok(()), false) => {
                self.entry(&name).parent = None;
                Ok(())
            }
            (Err(EngineError::SnapshotsHoldParent { .. }), true) => Ok(()),
            (other, refused) => Err(differs(format!("flattening {name}, to be refused: {refused}: {other:?}"))),
        }
    }

    /// What a volume holds, block by block.
    ///
    /// # Errors
    /// When it cannot be read, or a block holds what nobody wrote as one.
    pub fn read(&self, volume: &Arc<Volume>) -> Result<Vec<Content>, Difference> {
        let name = volume.spec().name;
        let sectors = (volume.size_bytes() as usize) / SECTOR;
        let (transfer, wait) = transfer(vec![0xee; sectors * SECTOR], |_| {});
        let request = Request { op: Op::Read, start: Lba(0), sectors: SectorCount(sectors as u64), transfer };
        self.submit(volume, vec![request], std::slice::from_ref(&wait))
            .map_err(|error| differs(format!("reading {name}: {error}")))?;
        let bytes = wait.take_bytes();
        let block = |(block, bytes): (usize, &[u8])| {
            let mut all = bytes.chunks_exact(SECTOR).enumerate().map(|(n, sector)| read(place(block * PER_BLOCK + n), sector));
            let first = all.next().flatten().ok_or_else(|| differs(format!("{name}: block {block} holds foreign bytes")))?;
            let rest: Vec<_> = all.collect();
            if rest.iter().all(|content| *content == Some(first)) {
                Ok(first)
            } else {
                Err(differs(format!("{name}: block {block} holds {first:?} and then {rest:?}")))
            }
        };
        bytes.chunks_exact(PER_BLOCK * SECTOR).enumerate().map(block).collect()
    }

    /// What all disks hold now: each volume that the registry has is read; each snapshot is read through a clone of it.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn look(&mut self) -> Result<Disks, Difference> {
        let node = self.node();
        let unopened = node.unopened();
        if let Some(unopened) = unopened.first() {
            return Err(differs(format!("{} does not open: {:?}", unopened.record.spec.name, unopened.error)));
        }
        let mut seen = Disks::default();
        let mut names = BTreeMap::new();
        let volumes = node.volumes();
        for volume in &volumes {
            let name = volume.spec().name.to_string();
            for snapshot in volume.snapshots() {
                names.insert((volume.id(), snapshot.note.id), (name.clone(), snapshot.note.name.to_string()));
            }
        }
        for volume in volumes {
            let mut disk = Disk { blocks: Arc::new(self.read(&volume)?), ..Disk::default() };
            if let Some(parent) = volume.parent() {
                let known = names.get(&(parent.volume, parent.snapshot)).cloned();
                disk.parent = Some(known.unwrap_or_else(|| ("?".to_owned(), "?".to_owned())));
            }
            for snapshot in volume.snapshots() {
                self.probes += 1;
                let name = volume_name(&format!("probe-{}", self.probes))?;
                let spec = CloneSpec { name, settings: VolumeSettings::default() };
                let made = self.life.run(node.clone_volume(volume.id(), snapshot.note.id, &[spec]));
                let probe = made.map_err(|error| differs(format!("a clone of {}: {error:?}", snapshot.note.name)))?.remove(0);
                let blocks = self.read(&probe)?;
                self.life.run(node.delete(probe.id(), true)).map_err(|error| differs(format!("deleting a probe: {error:?}")))?;
                disk.snapshots.insert(snapshot.note.name.to_string(), Arc::new(blocks));
            }
            seen.0.insert(volume.spec().name.to_string(), disk);
        }
        Ok(seen)
    }

    /// All is as the model says.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&mut self) -> Result<(), Difference> {
        let seen = self.look()?;
        compare(&seen, &self.disks)
    }

    /// Sets settings of a disk.
    ///
    /// # Errors
    /// What the node says.
    pub fn set(&mut self, disk: &str, settings: VolumeSettings) -> Result<(), Difference> {
        let volume = self.volume(disk)?.id();
        let node = self.node();
        self.life.run(node.change_settings(volume, settings)).map_err(|error| differs(format!("settings of {disk}: {error:?}")))
    }

    /// Takes a disk back to a moment; gives what it holds then.
    ///
    /// # Errors
    /// What the node says.
    pub fn go_back(&mut self, disk: &str, at: Timestamp) -> Result<Vec<Content>, Difference> {
        let volume = self.volume(disk)?;
        let node = self.node();
        let names = [format!("at-{}", self.next_snapshot), format!("before-{}", self.next_snapshot)];
        self.next_snapshot += 1;
        let spec = SnapshotSpec::named(snapshot_name(&names[0])?);
        let made = self.life.run(node.snapshot_at(volume.id(), at, &spec));
        let made = made.map_err(|error| differs(format!("{disk} at {at:?}: {error:?}")))?;
        let spec = SnapshotSpec::named(snapshot_name(&names[1])?);
        let done = self.run_stepping(async |node| node.rollback(volume.id(), made.note.id, spec.clone()).await);
        done.map_err(|error| differs(format!("{disk} back to {at:?}: {error:?}")))?;
        self.read(&volume)
    }

    /// What time it is, as entries are dated.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.life.clock().wall()
    }

    /// The shape that it was begun with.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Names of volumes that the registry has, those being deleted left out.
    #[must_use]
    pub fn registered(&self) -> Vec<String> {
        let records = self.life.registry().list().unwrap_or_default();
        records.into_iter().filter(|record| !record.deleting).map(|record| record.spec.name.to_string()).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Unflushed,
    SubBlock,
    Discard,
}

fn place(sector: usize) -> Place {
    // Clones show what their parents wrote: all disks count as one.
    Place { volume: 0, sector, per_block: PER_BLOCK }
}

fn painted(content: Content, start: usize, sectors: usize) -> Vec<u8> {
    let mut bytes = vec![0; sectors * SECTOR];
    for (n, sector) in bytes.chunks_exact_mut(SECTOR).enumerate() {
        paint(content, place(start + n), sector);
    }
    bytes
}

/// The first difference between what is seen and what is expected.
///
/// # Errors
/// That difference.
pub fn compare(seen: &Disks, expected: &Disks) -> Result<(), Difference> {
    for (name, disk) in &expected.0 {
        let found = seen.0.get(name).ok_or_else(|| differs(format!("{name} is missing")))?;
        if found.blocks != disk.blocks {
            return Err(differs(format!("{name} holds {:?} instead of {:?}", found.blocks, disk.blocks)));
        }
        if found.parent != disk.parent {
            return Err(differs(format!("{name} is a clone of {:?} instead of {:?}", found.parent, disk.parent)));
        }
        for (snapshot, blocks) in &disk.snapshots {
            let shown = found.snapshots.get(snapshot).ok_or_else(|| differs(format!("{name}@{snapshot} is missing")))?;
            if shown != blocks {
                return Err(differs(format!("{name}@{snapshot} shows {shown:?} instead of {blocks:?}")));
            }
        }
        if let Some(more) = found.snapshots.keys().find(|snapshot| !disk.snapshots.contains_key(*snapshot)) {
            return Err(differs(format!("{name}@{more} came from nowhere")));
        }
    }
    match seen.0.keys().find(|name| !expected.0.contains_key(*name)) {
        Some(more) => Err(differs(format!("{more} came from nowhere"))),
        None => Ok(()),
    }
}
