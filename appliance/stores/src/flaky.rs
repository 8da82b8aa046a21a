//! A store that lies and fails on purpose: a seeded wrapper around any other, controlled while it runs.
//!
//! Faults by chance ([`Toxics`]): errors before and after the deed, delays, truncated and wrong bodies, puts that are answered and lost,
//! stale reads. Faults by command: down, full, slow, or cut after so many changes. Delays are in tokio's time, so a
//! paused clock makes them free. The same seed and the same order of operations give the same faults.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::io::Errno;

use crate::fault::StoreFault;
use crate::upload::BufferedUpload;

const STORE: &str = "flaky";

/// Puts whose previous content is remembered for stale reads.
const STALE_MAX: usize = 256;

/// Chances of faults, each from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Toxics {
    /// An operation fails and has done nothing.
    pub error: f64,
    /// A put or delete is done and answers with an error all the same.
    pub error_after: f64,
    /// An operation takes `delay` longer.
    pub slow: f64,
    /// How much longer.
    pub delay: Duration,
    /// A read ends early.
    pub truncated: f64,
    /// A read has a byte that is not the object's.
    pub wrong: f64,
    /// A put is answered with success and nothing is stored.
    pub lost: f64,
    /// A read gives what the object was before the last put.
    pub stale: f64,
}

/// Ends the world after so many changes: what several stores that share it do afterwards fails, as after a power cut.
#[derive(Debug)]
pub struct Fuse {
    /// `u64::MAX` for ever.
    left: AtomicU64,
    blown: AtomicBool,
}

impl Default for Fuse {
    fn default() -> Self {
        Self { left: AtomicU64::new(u64::MAX), blown: AtomicBool::new(false) }
    }
}

impl Fuse {
    /// Allows this many further changes; the next one, and everything after it, fails. `None` lifts it.
    pub fn set(&self, changes: Option<u64>) {
        self.left.store(changes.unwrap_or(u64::MAX), Ordering::SeqCst);
        self.blown.store(false, Ordering::SeqCst);
    }

    /// Whether it has blown.
    #[must_use]
    pub fn is_blown(&self) -> bool {
        self.blown.load(Ordering::SeqCst)
    }

    fn lets_through(&self, change: bool) -> bool {
        let spend = |left: u64| if left == u64::MAX { Some(left) } else { left.checked_sub(1) };
        if change && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend).is_err() {
            self.blown.store(true, Ordering::SeqCst);
        }
        !self.is_blown()
    }
}

/// The wrapper. Cheap to clone; clones share their controls.
#[derive(Clone)]
pub struct FlakyStore {
    inner: Arc<dyn ObjectStore>,
    controls: Arc<Controls>,
}

struct Controls {
    random: Mutex<StdRng>,
    toxics: Mutex<Toxics>,
    down: AtomicBool,
    full: AtomicBool,
    slow: Mutex<Option<Duration>>,
    slow_changes: Mutex<Option<Duration>>,
    slow_listing: Mutex<Option<Duration>>,
    fuse: Arc<Fuse>,
    operations: AtomicU64,
    changes: AtomicU64,
    faults: AtomicU64,
    before: Mutex<HashMap<Path, Bytes>>,
}

impl FlakyStore {
    /// Wraps `inner`; no faults until they are asked for.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, seed: u64) -> Self {
        Self::with_fuse(inner, seed, Arc::default())
    }

    /// Wraps `inner`; shares its fuse with others.
    #[must_use]
    pub fn with_fuse(inner: Arc<dyn ObjectStore>, seed: u64, fuse: Arc<Fuse>) -> Self {
        let controls = Controls {
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            toxics: Mutex::default(),
            down: AtomicBool::new(false),
            full: AtomicBool::new(false),
            slow: Mutex::new(None),
            slow_changes: Mutex::new(None),
            slow_listing: Mutex::new(None),
            fuse,
            operations: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            before: Mutex::default(),
        };
        Self { inner, controls: Arc::new(controls) }
    }

    /// Sets the chances of faults.
    pub fn set_toxics(&self, toxics: Toxics) {
        *self.controls.toxics.lock() = toxics;
    }

    /// Every operation fails as if the device were gone (EIO).
    pub fn set_down(&self, down: bool) {
        self.controls.down.store(down, Ordering::SeqCst);
    }

    /// Every put fails for lack of space.
    pub fn set_full(&self, full: bool) {
        self.controls.full.store(full, Ordering::SeqCst);
    }

    /// Every operation takes this much longer.
    pub fn set_slow(&self, delay: Option<Duration>) {
        *self.controls.slow.lock() = delay;
    }

    /// Every put and delete takes this much longer.
    pub fn set_slow_changes(&self, delay: Option<Duration>) {
        *self.controls.slow_changes.lock() = delay;
    }

    /// Every item of a listing takes this much longer.
    pub fn set_slow_listing(&self, each: Option<Duration>) {
        *self.controls.slow_listing.lock() = each;
    }

    /// After this many further changes everything fails, as after a crash; `None` lifts it. See [`Fuse::set`].
    pub fn cut_after(&self, changes: Option<u64>) {
        self.controls.fuse.set(changes);
    }

    /// Operations that were asked for.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.controls.operations.load(Ordering::SeqCst)
    }

    /// Puts, deletes and copies that were let through.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.controls.changes.load(Ordering::SeqCst)
    }

    /// Faults that were made.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.controls.faults.load(Ordering::SeqCst)
    }

    /// The store behind.
    #[must_use]
    pub fn inner(&self) -> &Arc<dyn ObjectStore> {
        &self.inner
    }

    async fn change<T>(&self, deed: impl Future<Output = Result<T>>) -> Result<T> {
        let dice = self.controls.enter(true).await?;
        self.controls.changes.fetch_add(1, Ordering::SeqCst);
        let done = deed.await?;
        if dice.error_after {
            return Err(self.controls.fault(Errno::TIMEDOUT));
        }
        Ok(done)
    }

    /// What a read gives instead of `bytes`.
    fn corrupt(&self, bytes: Bytes, dice: &Dice) -> Bytes {
        if bytes.is_empty() {
            return bytes;
        }
        if dice.truncated {
            self.controls.faults.fetch_add(1, Ordering::SeqCst);
            return bytes.slice(..bytes.len() / 2);
        }
        if dice.wrong {
            self.controls.faults.fetch_add(1, Ordering::SeqCst);
            let mut changed = BytesMut::from(bytes.as_ref());
            let at = dice.position as usize % changed.len();
            if let Some(byte) = changed.get_mut(at) {
                *byte ^= 1 << (dice.position >> 61);
            }
            return changed.freeze();
        }
        bytes
    }
}

/// What chance says about one operation; thrown in one order whatever the toxics, so that a seed means the same.
struct Dice {
    error: bool,
    error_after: bool,
    slow: bool,
    truncated: bool,
    wrong: bool,
    lost: bool,
    stale: bool,
    position: u64,
}

impl Controls {
    fn throw(&self) -> Dice {
        let toxics = *self.toxics.lock();
        let mut random = self.random.lock();
        let mut chance = |p: f64| random.random::<f64>() < p;
        Dice {
            error: chance(toxics.error),
            error_after: chance(toxics.error_after),
            slow: chance(toxics.slow),
            truncated: chance(toxics.truncated),
            wrong: chance(toxics.wrong),
            lost: chance(toxics.lost),
            stale: chance(toxics.stale),
            position: random.random(),
        }
    }

    fn fault(&self, errno: Errno) -> object_store::Error {
        self.faults.fetch_add(1, Ordering::SeqCst);
        StoreFault::new("a planted fault", io::Error::from(errno)).into_store_error(STORE)
    }

    /// What every operation goes through first.
    async fn enter(&self, changes: bool) -> Result<Dice> {
        self.operations.fetch_add(1, Ordering::SeqCst);
        let dice = self.throw();
        let slow = self.slow.lock().unwrap_or_default();
        let slow_change = if changes { self.slow_changes.lock().unwrap_or_default() } else { Duration::ZERO };
        let by_chance = if dice.slow { self.toxics.lock().delay } else { Duration::ZERO };
        let delay = slow + slow_change + by_chance;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if !self.fuse.lets_through(changes) || self.down.load(Ordering::SeqCst) {
            return Err(self.fault(Errno::IO));
        }
        if dice.error {
            return Err(self.fault(Errno::TIMEDOUT));
        }
        Ok(dice)
    }
}

impl fmt::Debug for FlakyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlakyStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl fmt::Display for FlakyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flaky({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FlakyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let dice = self.controls.enter(true).await?;
        if self.controls.full.load(Ordering::SeqCst) {
            return Err(self.controls.fault(Errno::NOSPC));
        }
        self.controls.changes.fetch_add(1, Ordering::SeqCst);
        if dice.lost {
            self.controls.faults.fetch_add(1, Ordering::SeqCst);
            return Ok(PutResult { e_tag: None, version: None, extensions: Default::default() });
        }
        if self.controls.toxics.lock().stale > 0.0
            && let Ok(old) = self.inner.get(location).await
            && let Ok(old) = old.bytes().await
        {
            let mut before = self.controls.before.lock();
            if before.len() < STALE_MAX || before.contains_key(location) {
                before.insert(location.clone(), old);
            }
        }
        let put = self.inner.put_opts(location, payload, opts).await?;
        if dice.error_after {
            return Err(self.controls.fault(Errno::TIMEDOUT));
        }
        Ok(put)
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(BufferedUpload::new(Arc::new(self.clone()), location.clone(), opts)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let dice = self.controls.enter(false).await?;
        let head = options.head;
        let whole = options.range.is_none();
        let got = self.inner.get_opts(location, options).await?;
        if head {
            return Ok(got);
        }
        let (meta, range, attributes) = (got.meta.clone(), got.range.clone(), got.attributes.clone());
        let mut bytes = got.bytes().await?;
        let stale = if dice.stale && whole { self.controls.before.lock().get(location).cloned() } else { None };
        if let Some(stale) = stale {
            self.controls.faults.fetch_add(1, Ordering::SeqCst);
            bytes = stale;
        }
        let bytes = self.corrupt(bytes, &dice);
        let payload = GetResultPayload::Stream(stream::once(async move { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions: Default::default() })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let dice = self.controls.enter(false).await?;
        let stale = if dice.stale { self.controls.before.lock().get(location).cloned() } else { None };
        if let Some(stale) = stale {
            self.controls.faults.fetch_add(1, Ordering::SeqCst);
            let cut = |at: u64| (at as usize).min(stale.len());
            return Ok(ranges.iter().map(|range| stale.slice(cut(range.start)..cut(range.end).max(cut(range.start)))).collect());
        }
        let read = self.inner.get_ranges(location, ranges).await?;
        Ok(read.into_iter().map(|bytes| self.corrupt(bytes, &dice)).collect())
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .then(move |location| {
                let store = store.clone();
                async move {
                    let location = location?;
                    store.change(store.inner.delete(&location)).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        stream::once(async move {
            match store.controls.enter(false).await {
                Ok(_) => {
                    let each = store.controls.slow_listing.lock().unwrap_or_default();
                    let items = store.inner.list(prefix.as_ref());
                    if each.is_zero() {
                        return items;
                    }
                    items
                        .then(move |item| async move {
                            tokio::time::sleep(each).await;
                            item
                        })
                        .boxed()
                }
                Err(error) => stream::once(async move { Err(error) }).boxed(),
            }
        })
        .flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.controls.enter(false).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.change(self.inner.copy_opts(from, to, options)).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt};

    use super::{FlakyStore, Toxics};
    use crate::conformance::{conformance, sample};
    use crate::fault::{is_device_error, is_full};
    use crate::memory::MemoryStore;

    fn flaky(seed: u64) -> FlakyStore {
        FlakyStore::new(Arc::new(MemoryStore::new()), seed)
    }

    #[tokio::test]
    async fn without_toxics_it_conforms() {
        conformance(&flaky(1)).await;
    }

    #[tokio::test]
    async fn a_seed_always_means_the_same_faults() {
        let run = async |seed| {
            let store = flaky(seed);
            store.set_toxics(Toxics { error: 0.3, lost: 0.2, wrong: 0.3, truncated: 0.1, ..Toxics::default() });
            let mut story = Vec::new();
            for n in 0..50 {
                let key = Path::from(format!("k{}", n % 5));
                story.push(store.put(&key, sample(n, 100).into()).await.is_ok().to_string());
                story.push(match store.get(&key).await {
                    Ok(got) => got.bytes().await.map_or("cut".into(), |bytes| format!("{bytes:?}")),
                    Err(error) => error.to_string(),
                });
            }
            story
        };
        assert_eq!(run(7).await, run(7).await);
        assert_ne!(run(7).await, run(8).await);
    }

    #[tokio::test(start_paused = true)]
    async fn commands_take_effect_at_once() {
        let store = flaky(1);
        let key = Path::from("k");
        store.put(&key, sample(1, 10).into()).await.expect("put");
        store.set_down(true);
        assert!(is_device_error(&store.get(&key).await.expect_err("down")));
        assert!(store.list_with_delimiter(None).await.is_err());
        store.set_down(false);
        store.set_full(true);
        assert!(is_full(&store.put(&key, sample(1, 10).into()).await.expect_err("full")));
        assert!(store.get(&key).await.is_ok(), "full is not dead");
        store.set_full(false);
        store.set_slow(Some(Duration::from_secs(5)));
        let begun = tokio::time::Instant::now();
        store.head(&key).await.expect("slow but there");
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        store.set_slow(None);
        store.cut_after(Some(1));
        store.put(&key, sample(2, 10).into()).await.expect("the last change");
        assert!(store.put(&key, sample(3, 10).into()).await.is_err());
        assert!(store.get(&key).await.is_err(), "after the cut nothing answers");
    }
}
