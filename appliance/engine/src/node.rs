//! A node: the journal, cache and store that its volumes share, and the tasks that work behind them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::stream::TryStreamExt;
use lamina_contract::snapshot::check_labels;
use lamina_contract::{Clock, Coordination, Disk, PageBuffers, VolumeId, VolumeRecord, VolumeSettings, VolumeSpec};
use lamina_formats::journal::PAGE;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::behind::Running;
use crate::cache::{CacheConfig, DedupeCache, Upkeep};
use crate::error::EngineError;
use crate::failpoint;
use crate::fetch::Fetcher;
use crate::journal::{Journal, JournalConfig};
use crate::layers::{Base, Layers};
use crate::lineage::Lineage;
use crate::namespace::Namespace;
use crate::opening::{Opening, Stranded};
use crate::page_store::PageStore;
use crate::pages::PageCache;
use crate::restart::Sources;
use crate::syncer::Syncer;
use crate::throttle::{Throttle, is_low};
use crate::volume::Volume;

/// Memory in MiB of containers of all volumes on their way at once: an eighth of the cap within these bounds. The upper one keeps two
/// cores and six drives busy.
const UPLOAD_MIB: std::ops::RangeInclusive<u64> = 32..=128;
/// What an upload's memory is counted in.
const UPLOAD_UNIT: u64 = 128 << 10;
/// Bytes that an entry takes until it is committed: as it was sealed, gathered for the TLog, encoded, and as parity.
const ENTRY_BYTES: u64 = 256;
/// How long a guest must be quiet for the store to be fed although nothing presses.
const QUIET_MS: u64 = 50;
/// How often aged containers are looked for.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// How often held-back writes are looked at.
const PARKED_TICK: Duration = Duration::from_millis(2);
/// Largest volume: what 2^36 blocks of 4 KiB hold.
pub(crate) const LARGEST_VOLUME: u64 = 256 << 40;

/// Who works behind the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Background {
    /// Threads and tasks.
    Running,
    /// Nobody: a simulation calls [`Node::step`], and flushes sync where they come in.
    Manual,
}

/// Bounds of a node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The journal on SSD.
    pub journal: JournalConfig,
    /// Space of the dedupe cache on SSD; 0 turns it off.
    pub cache_bytes: u64,
    /// Resident memory that everything together stays under.
    pub memory_cap: u64,
    /// How old, in milliseconds, an accepted block may get before it goes to the store although guests keep writing.
    pub store_lag_ms: u64,
    /// Who works behind the guests.
    pub background: Background,
}

/// What a node stands on; each by its seam.
pub struct Seams {
    /// Where the journal is.
    pub journal_disk: Arc<dyn Disk>,
    /// Where the dedupe cache is.
    pub cache_disk: Arc<dyn Disk>,
    /// Map pages that need not be fetched from the store again.
    pub page_store: Option<Box<dyn PageStore>>,
    /// Where containers go.
    pub store: Arc<dyn ObjectStore>,
    /// Who decides ownership.
    pub coordination: Arc<dyn Coordination>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where tasks run.
    pub runtime: Handle,
}

/// What the volumes of a node share.
pub(crate) struct Core {
    pub(crate) config: NodeConfig,
    pub(crate) journal: Arc<Journal>,
    pub(crate) syncer: Arc<Syncer>,
    pub(crate) cache: DedupeCache,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) fetcher: Fetcher,
    pub(crate) coordination: Arc<dyn Coordination>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: Handle,
    pub(crate) lineage: Arc<Lineage>,
    pub(crate) pages: Arc<PageCache>,
    pub(crate) throttle: Throttle,
    /// Where containers are on their way to the store.
    pub(crate) buffers: PageBuffers,
    /// That memory and that of their parity, in units of [`UPLOAD_UNIT`].
    pub(crate) upload_permits: Arc<Semaphore>,
    upload_units: u32,
    /// Something may have to go to the store.
    pub(crate) work: Notify,
    /// Writes are held back.
    pub(crate) parked: Notify,
    last_activity: AtomicU64,
    store_down: AtomicBool,
    pub(crate) volumes: AtomicU64,
    delta_bytes: usize,
}

impl Core {
    /// A guest changes something now.
    pub(crate) fn note_activity(&self) {
        self.last_activity.store(self.clock.monotonic_ms(), Ordering::Relaxed);
    }

    /// Whether the store refused the last object.
    pub(crate) fn is_store_down(&self) -> bool {
        self.store_down.load(Ordering::Acquire)
    }

    /// Whether the store must be fed at full speed: much waits for it, or segments run short.
    pub(crate) fn presses(&self) -> bool {
        let (used, all) = self.journal.usage();
        self.throttle.presses() || is_low(used as f64 / all as f64)
    }

    fn is_quiet(&self) -> bool {
        self.clock.monotonic_ms().saturating_sub(self.last_activity.load(Ordering::Relaxed)) >= QUIET_MS
    }

    /// The store took an object, or refused one.
    pub(crate) fn store_works(&self, works: bool) {
        if self.store_down.swap(!works, Ordering::AcqRel) == works {
            if works {
                tracing::info!("the store takes objects again");
            } else {
                tracing::warn!(
                    unstored = self.throttle.unstored(),
                    "the store refuses objects; the journal holds what is accepted"
                );
            }
        }
    }

    /// How many bytes a volume's uncheckpointed map changes may take.
    pub(crate) fn delta_limit(&self) -> usize {
        let volumes = self.volumes.load(Ordering::Relaxed).max(1) as usize;
        (self.delta_bytes / volumes).max(256 << 10)
    }

    /// Has somebody do what the journal needs although nobody waits for it yet.
    pub(crate) fn see_to_journal(&self) {
        self.syncer.nudge();
        // A simulation prepares where it syncs.
        if self.config.background == Background::Running && self.journal.claim_preparing() {
            let journal = self.journal.clone();
            // Not the thread of the syncs: while much is written it has no time between them.
            self.runtime.spawn_blocking(move || {
                if let Err(error) = journal.prepare() {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the next segment of the journal could not be prepared"
                    );
                }
            });
        }
    }

    /// The right to the memory that a container takes on its way, parity and copies included, and how much of that is for its entries,
    /// which stay longer than its `bytes`; None when the node ends.
    pub(crate) async fn admit(&self, bytes: usize, entries: usize) -> Option<(OwnedSemaphorePermit, usize)> {
        let units = |bytes: u64| u32::try_from(bytes.div_ceil(UPLOAD_UNIT)).unwrap_or(u32::MAX).clamp(1, self.upload_units);
        let entries = units(entries as u64 * ENTRY_BYTES);
        // One that is larger than all there is goes alone.
        let all = units(2 * bytes as u64).max(entries);
        let permit = self.upload_permits.clone().acquire_many_owned(all).await.ok()?;
        Some((permit, entries as usize))
    }

    /// Runs CPU-heavy work beside the runtime's workers; None when the runtime ends.
    pub(crate) async fn run_heavy<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        if self.config.background == Background::Manual {
            return Some(work());
        }
        self.runtime.spawn_blocking(work).await.ok()
    }
}

/// A volume that is registered but could not be opened.
#[derive(Debug, Clone)]
pub struct Unopened {
    /// What is registered of it.
    pub record: VolumeRecord,
    /// Why.
    pub error: Arc<EngineError>,
}

/// A node; see the module's header.
pub struct Node {
    pub(crate) core: Arc<Core>,
    pub(crate) volumes: RwLock<HashMap<VolumeId, Arc<Volume>>>,
    pub(crate) unopened: RwLock<Vec<Unopened>>,
    stranded: Mutex<HashMap<VolumeId, Stranded>>,
    /// The store could be listed, so what neither it nor the registry knows was deleted.
    complete: AtomicBool,
    /// Held while a volume appears or goes.
    pub(crate) changes: tokio::sync::Mutex<()>,
    pub(crate) sources: Sources,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    sync_thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// How a memory cap is divided.
struct Budget {
    pages: usize,
    delta: usize,
    lineage: usize,
    upload_mib: u32,
}

impl Budget {
    fn upload_units(&self) -> u32 {
        self.upload_mib * ((1 << 20) / UPLOAD_UNIT) as u32
    }

    fn of(config: &NodeConfig) -> Result<Self, EngineError> {
        // Per journal block: 16 B entry, 12 B place, about 20 B in the recent layer. Per cache slot: 48 B of index.
        let fixed = config.journal.bytes / PAGE as u64 * 48 + config.cache_bytes / PAGE as u64 * 48;
        // Sealed containers with their parity on the way, queues' buffers, code and stacks.
        let upload_mib = (config.memory_cap >> 23).clamp(*UPLOAD_MIB.start(), *UPLOAD_MIB.end());
        let fixed = fixed + (upload_mib << 20) + (48 << 20);
        let least = 32 << 20;
        let error = EngineError::MemoryCap { cap: config.memory_cap, need: fixed + least };
        let rest = config.memory_cap.checked_sub(fixed).filter(|rest| *rest >= least).ok_or(error)?;
        let rest = usize::try_from(rest).unwrap_or(usize::MAX);
        // A frozen and a growing layer at once: half of the deltas' share each.
        Ok(Self { pages: rest / 3, delta: rest / 6, lineage: rest / 6, upload_mib: upload_mib as u32 })
    }
}

impl Node {
    /// Opens a node: takes its volumes, replays its journal.
    ///
    /// Volumes that cannot be opened do not keep the others from serving; see [`Node::unopened`].
    ///
    /// # Errors
    /// When the journal, the cache's place or the registry cannot be opened, or the bounds make no sense.
    pub async fn open(config: NodeConfig, seams: Seams) -> Result<Arc<Self>, EngineError> {
        let budget = Budget::of(&config)?;
        let pages = Arc::new(PageCache::new(budget.pages, seams.page_store));
        let lineage = Arc::new(Lineage::new(budget.lineage));
        let sources = Sources {
            store: seams.store.clone(),
            coordination: seams.coordination.clone(),
            pages: pages.clone(),
            lineage: lineage.clone(),
        };
        let opening = Opening::of(&sources).await?;
        let (journal, opening) = opening.replay(config.journal, seams.journal_disk, &*seams.clock, &*seams.coordination)?;
        let mut cache_config = CacheConfig::new(config.cache_bytes);
        if config.background == Background::Manual {
            cache_config.upkeep = Upkeep::Inline;
        }
        let journal = Arc::new(journal);
        let (_, capacity) = journal.usage();
        let core = Arc::new(Core {
            cache: DedupeCache::open(seams.cache_disk, cache_config)?,
            syncer: Arc::new(Syncer::new(journal.clone(), seams.clock.clone())),
            throttle: Throttle::new(capacity, journal.segment_bytes()),
            journal,
            fetcher: Fetcher::new(seams.store.clone()),
            store: seams.store,
            coordination: seams.coordination,
            clock: seams.clock,
            runtime: seams.runtime,
            lineage,
            pages,
            buffers: PageBuffers::keeping((budget.upload_mib as usize) << 19),
            upload_permits: Arc::new(Semaphore::new(budget.upload_units() as usize)),
            upload_units: budget.upload_units(),
            work: Notify::new(),
            parked: Notify::new(),
            last_activity: AtomicU64::new(0),
            store_down: AtomicBool::new(false),
            volumes: AtomicU64::new(opening.opened.len() as u64),
            delta_bytes: budget.delta,
            config,
        });
        let mut volumes = HashMap::new();
        for (id, opened) in opening.opened {
            volumes.insert(id, Volume::recovered(core.clone(), opened));
        }
        let node = Arc::new(Self {
            core,
            volumes: RwLock::new(volumes),
            unopened: RwLock::new(opening.unopened),
            stranded: Mutex::new(opening.stranded),
            complete: AtomicBool::new(opening.complete),
            changes: tokio::sync::Mutex::default(),
            sources,
            tasks: Mutex::default(),
            sync_thread: Mutex::default(),
        });
        if node.core.config.background == Background::Running {
            node.start()?;
        }
        for record in opening.deleting {
            node.purge_later(record.id);
        }
        Ok(node)
    }

    fn start(self: &Arc<Self>) -> Result<(), EngineError> {
        *self.sync_thread.lock() = Some(self.core.syncer.start().map_err(EngineError::Thread)?);
        let mut tasks = self.tasks.lock();
        tasks.push(self.core.runtime.spawn(feed_store(Arc::downgrade(self), self.core.clone())));
        tasks.push(self.core.runtime.spawn(release_parked(Arc::downgrade(self), self.core.clone())));
        Ok(())
    }

    /// Makes a volume. It can be written to when this returns.
    ///
    /// # Errors
    /// When its size makes no sense, its name is taken, or the store or registry refuse.
    pub async fn create(&self, spec: VolumeSpec) -> Result<Arc<Volume>, EngineError> {
        self.create_with(spec, VolumeSettings::default()).await
    }

    /// The same with settings.
    ///
    /// # Errors
    /// As [`Node::create`], and for labels that are not allowed.
    pub async fn create_with(&self, spec: VolumeSpec, settings: VolumeSettings) -> Result<Arc<Volume>, EngineError> {
        let block = u64::from(spec.block_size.get());
        if spec.size_bytes == 0 || !spec.size_bytes.is_multiple_of(block) || spec.size_bytes > LARGEST_VOLUME {
            return Err(EngineError::VolumeSize { size_bytes: spec.size_bytes, block_size: spec.block_size.get() });
        }
        check_labels(&settings.labels)?;
        let mut record = VolumeRecord::new(VolumeId(rand::random()), spec, self.core.clock.wall());
        record.settings = settings;
        let _change = self.changes.lock().await;
        self.core.coordination.create(&record)?;
        failpoint::hit(failpoint::CREATE_AFTER_REGISTER);
        match self.sources.open(&record, None).await {
            Ok(opened) => {
                let volume = Volume::new(self.core.clone(), opened);
                self.volumes.write().insert(record.id, volume.clone());
                self.core.volumes.fetch_add(1, Ordering::Relaxed);
                tracing::info!(volume = %record.id, name = %volume.spec().name, "volume created");
                Ok(volume)
            }
            Err(error) => {
                // Nothing was promised yet: take the registration back, else the name would be lost.
                self.core.coordination.begin_delete(record.id)?;
                self.core.coordination.forget(record.id)?;
                Err(error)
            }
        }
    }

    /// An open volume.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<Arc<Volume>> {
        self.volumes.read().get(&id).cloned()
    }

    /// All open volumes.
    #[must_use]
    pub fn volumes(&self) -> Vec<Arc<Volume>> {
        self.volumes.read().values().cloned().collect()
    }

    /// Volumes that are registered but could not be opened.
    #[must_use]
    pub fn unopened(&self) -> Vec<Unopened> {
        self.unopened.read().clone()
    }

    /// Whether volumes are missing that may come when the store or the registry answers; see [`Node::reopen`].
    #[must_use]
    pub fn lacks_volumes(&self) -> bool {
        !self.complete.load(Ordering::Acquire) || !self.unopened.read().is_empty()
    }

    /// Tries again to open what could not be opened at the start, and lays what the journal holds of it over what the store holds.
    /// Gives the volumes that serve now. Meant to be called now and then, with pauses.
    pub async fn reopen(self: &Arc<Self>) -> Vec<Arc<Volume>> {
        let mut candidates: Vec<VolumeRecord> = self.unopened().into_iter().map(|unopened| unopened.record).collect();
        if !self.complete.load(Ordering::Acquire) {
            match self.find_strangers().await {
                Ok(found) => candidates.extend(found),
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "the store cannot be listed yet"),
            }
        }
        let mut back = Vec::new();
        for record in candidates {
            let _change = self.changes.lock().await;
            // It may have been deleted meanwhile.
            let registered = self.core.coordination.get(record.id).is_ok_and(|record| !record.deleting);
            let gap = self.stranded.lock().get(&record.id).is_some_and(Stranded::is_gap);
            if !registered || gap || self.volume(record.id).is_some() {
                continue;
            }
            match self.open_late(&record).await {
                Ok(volume) => back.push(volume),
                Err(error) => {
                    tracing::debug!(volume = %record.id, error = &error as &dyn std::error::Error, "the volume cannot be opened yet");
                    let error = Arc::new(error);
                    let mut unopened = self.unopened.write();
                    match unopened.iter_mut().find(|u| u.record.id == record.id) {
                        Some(known) => known.error = error,
                        None => unopened.push(Unopened { record, error }),
                    }
                }
            }
        }
        back
    }

    async fn open_late(&self, record: &VolumeRecord) -> Result<Arc<Volume>, EngineError> {
        let id = record.id;
        let origin = match record.parent {
            None => None,
            Some(parent) => {
                let volume = self.volume(parent.volume).ok_or(EngineError::ParentNotOpen { parent: parent.volume })?;
                Some(volume.origin(parent.snapshot).await?)
            }
        };
        let mut opened = self.sources.open(record, origin).await?;
        let now = self.core.clock.monotonic_ms();
        self.stranded.lock().get(&id).map_or(Ok(()), |stranded| stranded.lay_over(&mut opened, now))?;
        opened.seal_off(&*self.core.coordination)?;
        let volume = Volume::recovered(self.core.clone(), opened);
        self.volumes.write().insert(id, volume.clone());
        self.core.volumes.fetch_add(1, Ordering::Relaxed);
        self.unopened.write().retain(|u| u.record.id != id);
        self.stranded.lock().remove(&id);
        self.core.work.notify_one();
        tracing::info!(volume = %id, name = %volume.spec().name, "the volume could be opened after all");
        Ok(volume)
    }

    /// Registers what the store alone knows. When the store told everything, entries of volumes that nobody knows were a deleted one's.
    async fn find_strangers(&self) -> Result<Vec<VolumeRecord>, EngineError> {
        let _change = self.changes.lock().await;
        let known: HashSet<VolumeId> = self.core.coordination.list()?.iter().map(|record| record.id).collect();
        let complete = self.sources.adopt_strangers(&known).await?;
        let records = self.core.coordination.list()?;
        if complete {
            self.stranded.lock().retain(|id, _| records.iter().any(|record| record.id == *id && !record.deleting));
            self.core.journal.reclaim(&mut self.core.journal.lock());
            self.complete.store(true, Ordering::Release);
        }
        Ok(records.into_iter().filter(|record| !known.contains(&record.id)).collect())
    }

    /// Deletes a volume, and its snapshots when `snapshots` says so: its name is free when this returns, its objects go in the background.
    ///
    /// # Errors
    /// When it is not known here, has snapshots that are pinned, unspoken of or being made, or the registry refuses.
    pub async fn delete(self: &Arc<Self>, id: VolumeId, snapshots: bool) -> Result<(), EngineError> {
        let _change = self.changes.lock().await;
        let volume = self.volume(id);
        if volume.is_none() && !self.unopened.read().iter().any(|u| u.record.id == id) {
            return Err(EngineError::Unknown { volume: id });
        }
        // Whoever asked looked before; one may have been taken since.
        volume.iter().try_for_each(|volume| volume.refuse_deletion(snapshots))?;
        self.core.coordination.begin_delete(id)?;
        failpoint::hit(failpoint::DELETE_AFTER_MARK);
        if let Some(volume) = volume {
            volume.halt();
            self.volumes.write().remove(&id);
            self.core.volumes.fetch_sub(1, Ordering::Relaxed);
            volume.give_up_journal();
        }
        self.unopened.write().retain(|u| u.record.id != id);
        self.stranded.lock().remove(&id);
        self.core.lineage.forget(id);
        self.core.fetcher.forget(id);
        self.purge_later(id);
        tracing::info!(volume = %id, "volume deleted");
        Ok(())
    }

    /// Removes a deleted volume's objects, its identity first, and forgets it. A restart goes on with it.
    pub(crate) fn purge_later(self: &Arc<Self>, id: VolumeId) {
        let core = self.core.clone();
        self.core.runtime.spawn(async move {
            let namespace = Namespace(id);
            let purge = async {
                match core.store.delete(&namespace.volume()).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
                let mut objects = core.store.list(Some(&namespace.prefix()));
                while let Some(object) = objects.try_next().await? {
                    match core.store.delete(&object.location).await {
                        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            };
            match purge.await {
                Ok(()) => {
                    if let Err(error) = core.coordination.forget(id) {
                        tracing::warn!(volume = %id, error = &error as &dyn std::error::Error, "a deleted volume is not forgotten yet");
                    }
                }
                Err(error) => tracing::warn!(volume = %id, error = &error as &dyn std::error::Error,
                    "objects of a deleted volume are left; the next start removes them"),
            }
        });
    }

    /// One round of the work behind the guests, for simulations: everything closed, or aged if `close_all`, goes to the store.
    ///
    /// # Errors
    /// What the store side met.
    pub async fn step(&self, close_all: bool) -> Result<(), EngineError> {
        let mut volumes = self.volumes();
        // A clone waits for what it stands on.
        volumes.sort_by_key(|volume| volume.ancestry.generations());
        for volume in volumes {
            volume.close_aged(if close_all { 0 } else { self.core.config.store_lag_ms });
            volume.store_behind(|| true).await?;
        }
        self.core.throttle.tick(10);
        for volume in self.volumes() {
            volume.unpark();
        }
        Ok(())
    }

    /// Refuses what would wait until the store is back.
    pub(crate) fn refuse_without_store(&self) -> Result<(), EngineError> {
        if self.core.is_store_down() && !self.is_manual() { Err(EngineError::StoreDown) } else { Ok(()) }
    }

    /// Whether nobody works behind the guests but who calls [`Node::step`].
    pub(crate) fn is_manual(&self) -> bool {
        self.core.config.background == Background::Manual
    }

    /// Waits until everything accepted so far is stored, at most for `limit`. Tells whether it is.
    pub async fn drain(&self, limit: Duration) -> bool {
        let begun = self.core.clock.monotonic_ms();
        loop {
            let mut waiting = false;
            for volume in self.volumes() {
                volume.close_aged(0);
                waiting |= (volume.unstored_bytes() > 0 || volume.layers.read().cuts() > 0) && !volume.is_halted();
            }
            if !waiting {
                return true;
            }
            if u128::from(self.core.clock.monotonic_ms() - begun) > limit.as_millis() {
                return false;
            }
            for volume in self.volumes() {
                if let Some(_running) = Running::begin(&volume)
                    && let Err(error) = volume.store_behind(|| true).await
                {
                    tracing::warn!(volume = %volume.id(), error = &error as &dyn std::error::Error, "draining");
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the node: nothing new is accepted, everything accepted becomes durable on the SSD, tasks end.
    pub async fn shutdown(&self) {
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        for volume in self.volumes() {
            volume.halt();
        }
        self.core.syncer.stop();
        let core = self.core.clone();
        let thread = self.sync_thread.lock().take();
        let ended = self.core.run_heavy(move || {
            if let Some(thread) = thread
                && thread.join().is_err()
            {
                tracing::error!("the journal's sync thread ended abnormally");
            }
            if let Err(error) = core.journal.sync() {
                tracing::error!(error = &error as &dyn std::error::Error, "the journal could not be made durable");
            }
            core.cache.close();
        });
        ended.await;
    }
}

impl Volume {
    /// Closes the open container when it is older than `age_ms`.
    pub(crate) fn close_aged(&self, age_ms: u64) {
        let now = self.core.clock.monotonic_ms();
        let aged = |layers: &Layers| !layers.open.is_empty() && now.saturating_sub(layers.open.opened_ms) >= age_ms;
        if aged(&self.layers.read()) {
            // Locations are assigned under the append lock, so the container changes under it.
            let _append = self.core.journal.lock();
            let mut layers = self.layers.write();
            if aged(&layers) {
                layers.close_open();
            }
        }
    }

    /// Closes the open container when it keeps a filling journal from turning: a quiet volume must not hold up the busy ones.
    fn close_pinning(&self) {
        let oldest = self.core.journal.oldest_use();
        let pins = |layers: &Layers| layers.open.oldest_use().is_some_and(|held| held <= oldest);
        if self.core.presses() && pins(&self.layers.read()) {
            self.close_aged(0);
        }
    }

    /// Whether a closed container should go to the store now.
    fn wants_store(&self) -> bool {
        let layers = self.layers.read();
        if let Base::View { view, .. } = layers.base()
            && view.root().is_none()
        {
            // Nothing can be stored before what it stands on is; who stores that wakes us.
            return false;
        }
        // A promised snapshot is not kept waiting.
        if layers.cuts() > 0 {
            return true;
        }
        let Some(oldest) = layers.closed.front() else { return false };
        let age = self.core.clock.monotonic_ms().saturating_sub(oldest.opened_ms);
        drop(layers);
        self.core.presses() || self.core.is_quiet() || age >= self.core.config.store_lag_ms
    }

    /// Lets go of everything in the journal: the volume is being deleted.
    fn give_up_journal(&self) {
        let mut append = self.core.journal.lock();
        let freed = self.unstored_bytes();
        let mut layers = self.layers.write();
        *layers = Layers::new(layers.open.number);
        drop(layers);
        self.core.journal.reclaim(&mut append);
        self.core.throttle.stored(freed);
    }

    /// Bytes of the journal that wait for the store on behalf of this volume.
    pub(crate) fn unstored_bytes(&self) -> u64 {
        let layers = self.layers.read();
        layers.open.journal_bytes + layers.closed.iter().map(|c| c.journal_bytes).sum::<u64>()
    }
}

/// Sends closed containers to the store, volume by volume, whenever one wants it.
async fn feed_store(node: Weak<Node>, core: Arc<Core>) {
    loop {
        tokio::select! {
            () = core.work.notified() => {}
            () = tokio::time::sleep(HEARTBEAT) => {}
        }
        let Some(node) = node.upgrade() else { return };
        for volume in node.volumes() {
            volume.close_aged(core.config.store_lag_ms);
            volume.close_pinning();
            if volume.is_halted() {
                volume.let_uploads_go();
                continue;
            }
            if !volume.wants_store() {
                continue;
            }
            let Some(running) = Running::begin(&volume) else { continue };
            let core = core.clone();
            core.runtime.clone().spawn(async move {
                let go_on = || volume.wants_store();
                if let Err(error) = volume.store_behind(go_on).await {
                    tracing::error!(volume = %volume.id(), error = &error as &dyn std::error::Error, "the store side stopped; it is tried again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                drop(running);
                core.work.notify_one();
            });
        }
    }
}

/// Lets held-back writes go on as room comes.
async fn release_parked(node: Weak<Node>, core: Arc<Core>) {
    let mut last = core.clock.monotonic_ms();
    loop {
        core.parked.notified().await;
        loop {
            tokio::time::sleep(PARKED_TICK).await;
            let Some(node) = node.upgrade() else { return };
            let now = core.clock.monotonic_ms();
            core.throttle.tick(now.saturating_sub(last).max(1));
            last = now;
            let mut waiting = false;
            for volume in node.volumes() {
                waiting |= volume.unpark();
            }
            if !waiting {
                break;
            }
        }
    }
}
