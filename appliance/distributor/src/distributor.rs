//! One object store made of Y or more others.
//!
//! [`Distributor`] is the trait's side; [`Core`] is what its operations share. A pool has one distributor that writes (ownership is
//! decided elsewhere); any number may read. Puts, deletes and repair run in tasks of their own, so a caller that goes away leaves
//! nothing half done.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::try_join_all;
use futures::stream::{self, BoxStream, StreamExt};
use lamina_contract::{PageBuffers, Policy};
use lamina_formats::fragment::StripeId;
use lamina_stores::BufferedUpload;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::codec::Codecs;
use crate::error::DistributorError;
use crate::list::object_meta;
use crate::locks::KeyLocks;
use crate::placement::{Place, TargetId};
use crate::policy::{DistributorOptions, OptionsError, copies_min_of};
use crate::put::{PutRefusal, e_tag};
use crate::stats::{Counters, DistributorStats, add};
use crate::stripe::policy_for;
use crate::target::{Target, TargetHealth, TargetSlot};
use crate::view::{StripeView, ViewCache};

const STORE: &str = "distributor";

/// Bytes of parity and rebuilt fragments that wait to be used again: three fragments of 1 MiB each for
/// 32 objects of 4 MiB under 4+2.
const KEPT_BYTES: usize = 96 << 20;

/// A read of more than this comes in pieces, so that memory does not grow with the object.
const WINDOW: u64 = 64 << 20;

/// Objects remembered as short of fragments; a full repair finds the others.
const DOUBTFUL_MAX: usize = 65_536;

/// Counters of changes, by key: what a lookup found is cached only when nothing changed meanwhile.
const CHANGE_COUNTERS: usize = 1024;

/// One object store made of Y or more others. Cheap to clone.
#[derive(Clone)]
pub struct Distributor {
    pub(crate) core: Arc<Core>,
}

/// What all operations share.
pub(crate) struct Core {
    pub(crate) options: DistributorOptions,
    pub(crate) write_min: usize,
    pub(crate) targets: Vec<TargetSlot>,
    pub(crate) places: Vec<Place>,
    pub(crate) codecs: Codecs,
    pub(crate) buffers: PageBuffers,
    pub(crate) views: ViewCache,
    pub(crate) locks: KeyLocks,
    pub(crate) stragglers: Stragglers,
    /// Memory of puts that were acknowledged before their last fragment, in pages.
    pub(crate) late: Arc<Semaphore>,
    pub(crate) counters: Counters,
    pub(crate) latency_us: AtomicU64,
    doubtful: Mutex<HashSet<Path>>,
    changes: Vec<AtomicU64>,
    hasher: RandomState,
    last_order: AtomicU64,
    background: Arc<Background>,
}

/// What so many bytes of late puts take of [`Core::late`].
pub(crate) fn late_permits(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(4096)).unwrap_or(u32::MAX)
}

#[derive(Default)]
struct Background {
    running: AtomicUsize,
    idle: Notify,
}

struct Running(Arc<Background>);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// Keys with writes that were given up but have not ended.
#[derive(Debug, Default)]
pub(crate) struct Stragglers(Mutex<HashMap<Path, usize>>);

impl Stragglers {
    pub(crate) fn begin(&self, key: &Path) {
        *self.0.lock().entry(key.clone()).or_default() += 1;
    }

    pub(crate) fn end(&self, key: &Path) {
        let mut keys = self.0.lock();
        if let Some(count) = keys.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                keys.remove(key);
            }
        }
    }

    pub(crate) fn has(&self, key: &Path) -> bool {
        self.0.lock().contains_key(key)
    }
}

impl Core {
    /// An id above every one that this distributor gave out and above `seen`, near the time of day.
    pub(crate) fn next_stripe(&self, seen: u64) -> StripeId {
        let now = self.options.clock.wall().0.saturating_mul(1000);
        let next = |last: u64| Some(last.max(seen).saturating_add(1).max(now));
        let last = self.last_order.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).unwrap_or_else(|last| last);
        let order = last.max(seen).saturating_add(1).max(now);
        StripeId::new(order, rand::random())
    }

    /// Fragments of a stripe under `policy` that are durable before its put succeeds.
    pub(crate) fn need_of(&self, policy: Policy) -> usize {
        if policy.data() == 1 { copies_min_of(self.options.policy, self.write_min, self.targets.len()) } else { self.write_min }
    }

    /// Whether an object or mark that was acknowledged must show although `silent` targets do not answer: it has a fragment on more
    /// targets than those. Otherwise finding nothing proves nothing.
    pub(crate) fn proves_absence(&self, silent: usize) -> bool {
        silent < self.need_of(policy_for(self.options.policy, 0)).min(self.write_min)
    }

    fn change_counter(&self, key: &Path) -> Option<&AtomicU64> {
        self.changes.get(self.hasher.hash_one(key) as usize % CHANGE_COUNTERS)
    }

    /// The object's fragments moved: lookups that are under way must not be cached.
    pub(crate) fn changed(&self, key: &Path) {
        if let Some(counter) = self.change_counter(key) {
            counter.fetch_add(1, Ordering::AcqRel);
        }
        self.views.remove(key);
    }

    pub(crate) fn changes_of(&self, key: &Path) -> u64 {
        self.change_counter(key).map_or(0, |counter| counter.load(Ordering::Acquire))
    }

    /// Remembers that an object may be short of fragments.
    pub(crate) fn doubt(&self, key: &Path) {
        let mut doubtful = self.doubtful.lock();
        if doubtful.len() < DOUBTFUL_MAX {
            doubtful.insert(key.clone());
        }
    }

    pub(crate) fn is_doubtful(&self, key: &Path) -> bool {
        self.doubtful.lock().contains(key)
    }

    pub(crate) fn trust(&self, key: &Path) {
        self.doubtful.lock().remove(key);
    }

    /// Runs something to its end whatever happens to its caller; [`Distributor::quiesce`] waits for it.
    pub(crate) fn background(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.background.running.fetch_add(1, Ordering::AcqRel);
        let running = Running(Arc::clone(&self.background));
        tokio::spawn(async move {
            work.await;
            drop(running);
        });
    }
}

impl Distributor {
    /// Makes one of `targets`, those that are missing too.
    ///
    /// # Errors
    /// [`OptionsError`] for options that contradict each other or the targets.
    pub fn new(options: DistributorOptions, targets: Vec<Target>) -> std::result::Result<Self, OptionsError> {
        let write_min = options.checked_write_min()?;
        if targets.len() < options.policy.total() {
            return Err(OptionsError::TooFewTargets { policy: options.policy, have: targets.len() });
        }
        let mut seen = HashSet::new();
        if let Some(twice) = targets.iter().find(|target| !seen.insert(target.id)) {
            return Err(OptionsError::Twice { target: twice.id });
        }
        let targets: Vec<TargetSlot> =
            targets.into_iter().map(|target| TargetSlot::new(target, Arc::clone(&options.clock))).collect();
        let places = targets.iter().map(|target| target.place.clone()).collect();
        let core = Core {
            write_min,
            places,
            targets,
            codecs: Codecs::new(options.engine),
            buffers: PageBuffers::keeping(KEPT_BYTES),
            views: ViewCache::new(options.header_cache_bytes),
            locks: KeyLocks::default(),
            stragglers: Stragglers::default(),
            late: Arc::new(Semaphore::new(late_permits(options.late_bytes as u64) as usize)),
            counters: Counters::default(),
            latency_us: AtomicU64::new(0),
            doubtful: Mutex::default(),
            changes: (0..CHANGE_COUNTERS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
            last_order: AtomicU64::new(0),
            background: Arc::default(),
            options,
        };
        Ok(Self { core: Arc::new(core) })
    }

    /// How each target is doing, in the order they were given.
    #[must_use]
    pub fn health(&self) -> Vec<TargetHealth> {
        self.core.targets.iter().map(TargetSlot::health).collect()
    }

    /// What happened since the distributor was made.
    #[must_use]
    pub fn stats(&self) -> DistributorStats {
        self.core.counters.read(self.core.doubtful.lock().len() as u64)
    }

    /// Attaches the store of a member that came back, or takes one away. False when there is no such member.
    pub fn set_target(&self, id: TargetId, store: Option<Arc<dyn ObjectStore>>) -> bool {
        match self.core.targets.iter().find(|target| target.place.id == id) {
            Some(target) => {
                target.attach(store);
                true
            }
            None => false,
        }
    }

    /// The options it was made with.
    #[must_use]
    pub fn options(&self) -> &DistributorOptions {
        &self.core.options
    }

    /// Fragments that a put of an object of `len` bytes needs durable, and how many it makes.
    #[must_use]
    pub fn write_min(&self, len: u64) -> (usize, usize) {
        let policy = policy_for(self.core.options.policy, len);
        (self.core.need_of(policy), policy.total())
    }

    /// Waits until nothing is being finished behind: before an orderly end.
    pub async fn quiesce(&self) {
        loop {
            let idle = self.core.background.idle.notified();
            if self.core.background.running.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    /// The object as the trait wants it named when it is not there.
    fn not_found(key: &Path) -> object_store::Error {
        object_store::Error::NotFound { path: key.to_string(), source: "no stripe has enough fragments".into() }
    }

    async fn view(&self, key: &Path) -> Result<Arc<StripeView>> {
        crate::stripe::check_key(key).map_err(DistributorError::from)?;
        self.core.view(key).await?.ok_or_else(|| Self::not_found(key))
    }

    /// Reads with a view that may be stale: when its stripe is gone the object is looked at again.
    async fn read<T, F>(&self, key: &Path, operation: impl Fn(Arc<StripeView>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let view = self.view(key).await?;
        let first = match operation(Arc::clone(&view)).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if !first_is_unreadable(&first) {
            return Err(first);
        }
        self.core.views.remove_view(key, &view);
        match self.core.fresh_view(key).await? {
            Some(fresh) if fresh.layout.stripe != view.layout.stripe => operation(fresh).await,
            Some(_) => Err(first),
            None => Err(Self::not_found(key)),
        }
    }

    async fn get_view(&self, key: &Path, view: Arc<StripeView>, options: &GetOptions) -> Result<GetResult> {
        let meta = object_meta(key, &view.layout);
        if !view.is_readable() {
            // Names what is lost.
            self.core.read(key, &view, 0..1.min(meta.size)).await?;
            self.core.gather(key, &view, &(0..4096), Vec::new(), Vec::new()).await?;
        }
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            Some(range) => resolve(range, meta.size)?,
            None => 0..meta.size,
        };
        let payload = if options.head {
            stream::empty().boxed()
        } else {
            add(&self.core.counters.gets, 1);
            let began = Instant::now();
            let stream = self.stream(key, view, range.clone()).await?;
            self.core.counters.get_took.count(began.elapsed());
            stream
        };
        let payload = GetResultPayload::Stream(payload);
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }

    /// The first window is read before this returns, so that errors come early; the others as they are asked for.
    async fn stream(&self, key: &Path, view: Arc<StripeView>, range: Range<u64>) -> Result<BoxStream<'static, Result<Bytes>>> {
        let core = Arc::clone(&self.core);
        let key = key.clone();
        let window = |range: &Range<u64>| range.start..range.end.min(range.start.saturating_add(WINDOW));
        let first = core.read_current(&key, Arc::clone(&view), window(&range)).await?;
        add(&core.counters.bytes_out, range.end - range.start);
        let rest = window(&range).end..range.end;
        let later = stream::try_unfold(rest, move |rest| {
            let (core, key, view) = (Arc::clone(&core), key.clone(), Arc::clone(&view));
            async move {
                if rest.start >= rest.end {
                    return Ok::<_, object_store::Error>(None);
                }
                let next = window(&rest);
                let rest = next.end..rest.end;
                let bytes = core.read_current(&key, view, next).await?;
                Ok(Some((stream::iter(bytes.into_iter().map(Ok)), rest)))
            }
        });
        let later = later.flat_map(|chunk| match chunk {
            Ok(chunk) => chunk.boxed(),
            Err(error) => stream::once(async move { Err(error) }).boxed(),
        });
        Ok(stream::iter(first.into_iter().map(Ok)).chain(later).boxed())
    }

    async fn ranges_of(&self, key: &Path, view: Arc<StripeView>, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let reads = ranges.iter().map(|range| {
            let view = Arc::clone(&view);
            async move {
                let range = resolve(&GetRange::Bounded(range.clone()), view.layout.len)?;
                let chunks = self.core.read_current(key, view, range).await?;
                Ok::<_, object_store::Error>(match <[Bytes; 1]>::try_from(chunks) {
                    Ok([only]) => only,
                    Err(chunks) => chunks.concat().into(),
                })
            }
        });
        let began = Instant::now();
        let read: Vec<Bytes> = try_join_all(reads).await?;
        self.core.counters.get_took.count(began.elapsed());
        add(&self.core.counters.gets, 1);
        add(&self.core.counters.bytes_out, read.iter().map(|bytes| bytes.len() as u64).sum());
        Ok(read)
    }
}

fn first_is_unreadable(error: &object_store::Error) -> bool {
    match error {
        object_store::Error::Generic { source, .. } => {
            matches!(source.downcast_ref::<DistributorError>(), Some(DistributorError::Unreadable { .. }))
        }
        _ => false,
    }
}

fn resolve(range: &GetRange, size: u64) -> Result<Range<u64>> {
    range.as_range(size).map_err(|source| object_store::Error::Generic { store: STORE, source: Box::new(source) })
}

impl fmt::Debug for Distributor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Distributor")
            .field("policy", &self.core.options.policy)
            .field("targets", &self.core.targets.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Distributor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "distributor({} over {} targets)", self.core.options.policy, self.core.targets.len())
    }
}

#[async_trait]
impl ObjectStore for Distributor {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let put = tokio::spawn(Arc::clone(&self.core).put(location.clone(), payload, opts.mode));
        match put.await.map_err(DistributorError::from)? {
            Ok(stripe) => Ok(PutResult { e_tag: Some(e_tag(stripe)), version: None, extensions: Default::default() }),
            Err(PutRefusal::Exists) => {
                Err(object_store::Error::AlreadyExists { path: location.to_string(), source: "the object exists".into() })
            }
            Err(PutRefusal::Changed) => Err(object_store::Error::Precondition {
                path: location.to_string(),
                source: "the object is another one or missing".into(),
            }),
            Err(PutRefusal::Failed(error)) => Err(error.into()),
        }
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(BufferedUpload::new(Arc::new(self.clone()), location.clone(), opts)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.version.is_some() {
            return Err(object_store::Error::NotSupported { source: "a distributor keeps no versions".into() });
        }
        self.read(location, |view| self.get_view(location, view, &options)).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.read(location, |view| self.ranges_of(location, view, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let core = Arc::clone(&self.core);
        locations
            .map(move |location| {
                let core = Arc::clone(&core);
                async move {
                    let location = location?;
                    tokio::spawn(core.delete(location.clone())).await.map_err(DistributorError::from)??;
                    Ok(location)
                }
            })
            .buffered(16)
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (core, prefix) = (Arc::clone(&self.core), prefix.cloned());
        stream::once(async move {
            match core.objects(prefix.as_ref()).await {
                Ok(objects) => stream::iter(objects.into_iter().map(Ok)).boxed(),
                Err(error) => stream::once(async move { Err(error.into()) }).boxed(),
            }
        })
        .flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let root = Path::default();
        let base = prefix.unwrap_or(&root);
        let mut result = ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() };
        let mut common = BTreeSet::new();
        for meta in self.core.objects(prefix).await? {
            let Some(mut parts) = meta.location.prefix_match(base) else { continue };
            let Some(first) = parts.next() else { continue };
            if parts.next().is_none() {
                drop(parts);
                result.objects.push(meta);
                continue;
            }
            common.insert(base.clone().join(first));
        }
        result.common_prefixes = common.into_iter().collect();
        Ok(result)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let read = self.get_opts(from, GetOptions::default()).await?;
        let chunks: Vec<Result<Bytes>> = read.into_stream().collect().await;
        let payload: PutPayload = chunks.into_iter().collect::<Result<Vec<Bytes>>>()?.into_iter().collect();
        let mode = if options.mode == CopyMode::Create { PutMode::Create } else { PutMode::Overwrite };
        self.put_opts(to, payload, mode.into()).await.map(|_| ())
    }
}
