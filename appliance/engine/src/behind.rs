//! The store side of a volume: sealed containers go out, then their TLog, then a manifest; then the journal is freed.
//!
//! ```text
//! read back → seal in order → put SCOs, several at once → put TLog → put manifest g+1 → Coordination decides g+1 → layers move, journal freed
//! ```
//! Where a cut stands between two containers, nothing behind it is committed before all of it is in map pages and its snapshot in a
//! manifest (`settle.rs`).
//!
//! Invariant 5 (Order) is this file: each arrow waits for what stands before it. A crash between two arrows leaves objects that
//! nothing names (the next owner writes under its own epoch) and entries that are still in the journal.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lamina_contract::{CoordinationError, Epoch, Fingerprint, Generation, ScoNumber, Timestamp, TlogNumber};
use lamina_formats::manifest::{Manifest, Term};
use lamina_formats::tlog::{self, TlogEntry, TlogIdentity, TlogOp};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use parking_lot::RwLock;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::JoinHandle;

use crate::ancestry::Terms;
use crate::error::EngineError;
use crate::failpoint;
use crate::inflight::{EntryOp, Inflight};
use crate::layers::Layers;
use crate::mutant::{self, Mutant};
use crate::namespace::{epoch_of, parse_manifest_key};
use crate::seal::{Damage, JournalDamage, Sealed, SealedObject};
use crate::volume::Volume;

/// Containers of one volume on their way at once; how many of them are in memory is for [`Core::admit`](crate::node::Core::admit) to say. Enough that the store
/// always has something to do while those before are committed.
const UPLOADS: usize = 96;
/// Manifests that stay behind the current one, for a reader that came late and for recovery without Coordination.
const KEEP_MANIFESTS: usize = 4;
/// Entries that one commit gathers at most, but for its first container: one TLog is encoded, put and replayed in one piece.
const COMMIT_ENTRIES: usize = 100_000;
/// How often a container whose blocks do not verify is read again before they are given up; the pauses between are a second.
const DAMAGE_TRIES: u32 = 5;
/// First wait after a store's refusal; doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The store side's state.
pub(crate) struct Behind {
    pub(crate) state: tokio::sync::Mutex<State>,
    running: AtomicBool,
    sco_terms: Terms,
    generation: AtomicU64,
    stored_sco: AtomicU64,
}

pub(crate) struct State {
    pub(crate) manifest: Manifest,
    uploads: VecDeque<Upload>,
    /// Every container up to this one is stored or among `uploads`.
    sealed_through: ScoNumber,
    /// A run over it is under way, or was dropped in the middle.
    running: bool,
    /// How often in a row the next container to be committed could not be sealed because of damage.
    damage_seen: u32,
    /// The TLog up to which a frozen layer reaches, and the time of its last entry, while a checkpoint of it is due.
    pub(crate) frozen_through: Option<(TlogNumber, Timestamp)>,
    pub(crate) entries_since_checkpoint: u64,
    /// Of the last entry that is committed.
    pub(crate) last_time: Timestamp,
    old_manifests: VecDeque<Path>,
    /// Objects that the manifests from this generation on do not name, with that generation.
    pub(crate) dead: VecDeque<(Generation, Path)>,
    /// Map objects that the head gave up while snapshots may still reach them, since somebody looked.
    pub(crate) given_up: usize,
}

/// A container on its way: read back once there is memory for it, sealed when its turn comes, then put.
struct Upload {
    number: ScoNumber,
    work: JoinHandle<Result<Stored, Trouble>>,
    /// What the next container waits for.
    turns: Option<Turns>,
}

/// What a container is told by the one before it; dropped untold when that one fails.
struct Turns {
    /// Memory: given in order, or those behind could hold all of it and wait for one that has none.
    admitted: oneshot::Receiver<()>,
    /// A block that the container before holds becomes a reference to it.
    sealed: oneshot::Receiver<()>,
}

/// A container whose object is stored.
struct Stored {
    container: Arc<Inflight>,
    sealed: Sealed,
    /// The right to the memory of its TLog entries.
    _permit: OwnedSemaphorePermit,
}

/// Why a container did not get to the store.
enum Trouble {
    Halted,
    Damage(JournalDamage),
    /// The runtime ends, a panic, or the container before it had trouble.
    Interrupted,
}

/// The right to run a volume's store side; given back when dropped, by a panic too.
pub(crate) struct Running(Arc<Volume>);

impl Running {
    /// None when somebody runs it already.
    pub(crate) fn begin(volume: &Arc<Volume>) -> Option<Self> {
        volume.behind.begin().then(|| Self(volume.clone()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.behind.running.store(false, Ordering::Release);
    }
}

/// The volume was halted meanwhile: nothing more is stored.
#[derive(Debug)]
pub(crate) struct Halted;

impl From<Halted> for Trouble {
    fn from(_: Halted) -> Self {
        Self::Halted
    }
}

impl Behind {
    /// Continues from `manifest`; `replayed` entries came from its TLogs since the last checkpoint.
    pub(crate) fn new(manifest: Manifest, replayed: u64, old_manifests: VecDeque<Path>, last_time: Timestamp) -> Self {
        Self {
            running: AtomicBool::new(false),
            sco_terms: Arc::new(RwLock::new(manifest.sco_terms.clone())),
            generation: AtomicU64::new(manifest.generation.0),
            stored_sco: AtomicU64::new(manifest.last_sco.0),
            state: tokio::sync::Mutex::new(State {
                sealed_through: manifest.last_sco,
                manifest,
                uploads: VecDeque::new(),
                running: false,
                damage_seen: 0,
                frozen_through: None,
                entries_since_checkpoint: replayed,
                last_time,
                old_manifests,
                dead: VecDeque::new(),
                given_up: 0,
            }),
        }
    }

    /// The terms of its containers, as they grow.
    pub(crate) fn terms(&self) -> Terms {
        self.sco_terms.clone()
    }

    /// The epoch in the key of a stored container.
    pub(crate) fn sco_epoch(&self, sco: ScoNumber) -> Option<Epoch> {
        epoch_of(&self.sco_terms.read(), sco.0)
    }

    /// The manifest that was decided last.
    pub(crate) fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// Every container up to this one is stored.
    pub(crate) fn stored_sco(&self) -> ScoNumber {
        ScoNumber(self.stored_sco.load(Ordering::Acquire))
    }

    /// Claims the right to run; false when somebody runs already.
    fn begin(&self) -> bool {
        !self.running.swap(true, Ordering::AcqRel)
    }
}

impl Volume {
    /// Stores closed containers, oldest first, until none is left or `go_on` says no; then checkpoints the map if due.
    ///
    /// While some are committed, the ones behind them are sealed and put: neither the CPU nor the store waits for the other.
    pub(crate) async fn store_behind(self: &Arc<Self>, go_on: impl Fn() -> bool) -> Result<(), EngineError> {
        let mut state = self.behind.state.lock().await;
        if std::mem::replace(&mut state.running, true) {
            // A run that was dropped took stored containers with it.
            self.give_up_uploads(&mut state).await;
            let oldest = self.layers.read().closed.front().map(|container| container.number);
            if oldest.is_some_and(|number| number <= state.manifest.last_sco) {
                tracing::error!(volume = %self.id(), "the store side ended between a decision and its consequences; the volume is halted");
                self.halt();
                state.running = false;
                return Ok(());
            }
        }
        let result = self.store_uploads(&mut state, go_on).await;
        state.running = false;
        result
    }

    async fn store_uploads(self: &Arc<Self>, state: &mut State, go_on: impl Fn() -> bool) -> Result<(), EngineError> {
        if !self.stand_on_pages(state) {
            // What a clone stands on is not stored: a manifest of the clone would promise it.
            return Ok(());
        }
        self.settle_due(state).await?;
        // After a checkpoint that failed nothing more is begun; what is under way is committed, for it holds memory of the node.
        let mut checkpointed = Ok(());
        loop {
            while checkpointed.is_ok() && state.uploads.len() < UPLOADS && go_on() && self.start_upload(state) {}
            if state.uploads.is_empty() {
                break;
            }
            // What is stored is committed even if nothing can follow it.
            let layers = &self.layers;
            let (stored, trouble) = arrived(state, |number| layers.read().may_commit(number)).await;
            if trouble.is_none() && checkpointed.is_ok() {
                while state.uploads.len() < UPLOADS && go_on() && self.start_upload(state) {}
            }
            if matches!(trouble, Some(Trouble::Halted)) || self.commit(state, stored).await.is_err() {
                // Nothing of it will be stored by this owner: others may have its permits.
                state.uploads.clear();
                return Ok(());
            }
            if let Some(trouble) = trouble {
                self.give_up_uploads(state).await;
                state.damage_seen += u32::from(matches!(trouble, Trouble::Damage(_)));
                return Err(match trouble {
                    Trouble::Damage(damage) => EngineError::JournalDamage { volume: self.id(), block: damage.block },
                    Trouble::Halted | Trouble::Interrupted => EngineError::Interrupted,
                });
            }
            if let Err(error) = self.settle_due(state).await {
                // Nothing behind the cut may be committed.
                self.give_up_uploads(state).await;
                return Err(error);
            }
            if self.is_halted() {
                state.uploads.clear();
                return Ok(());
            }
            // Here and not at the end: under load there is always a next container.
            if checkpointed.is_ok() {
                checkpointed = self.checkpoint_if_due(state).await;
            }
        }
        checkpointed?;
        self.checkpoint_if_due(state).await?;
        self.collect_if_due(state).await;
        Ok(())
    }

    /// Gives back what a volume that stores nothing any more holds of the node's memory, unless somebody is at it.
    pub(crate) fn let_uploads_go(&self) {
        if let Ok(mut state) = self.behind.state.try_lock() {
            state.uploads.clear();
        }
    }

    /// Begins again behind what is committed. Waits for puts under way: the same keys are put again later.
    async fn give_up_uploads(&self, state: &mut State) {
        while let Some(upload) = state.uploads.front_mut() {
            // Whatever it comes to: it will be sealed again.
            let _ = (&mut upload.work).await;
            state.uploads.pop_front();
        }
        state.sealed_through = state.manifest.last_sco;
        // Sealed again, a container may leave a block out that it held the first time: nothing may refer to that.
        self.core.lineage.forget(self.id());
    }

    /// Sends the next closed container off; false when there is none.
    fn start_upload(self: &Arc<Self>, state: &mut State) -> bool {
        let next = self.layers.read().closed.iter().find(|c| c.number > state.sealed_through).cloned();
        let Some(container) = next else { return false };
        let number = container.number;
        state.sealed_through = number;
        // The first container in line is the one that had the damage; those behind it get their own tries.
        let first = self.layers.read().closed.front().is_some_and(|front| front.number == container.number);
        let given_up = state.damage_seen >= DAMAGE_TRIES && first;
        let damage = if given_up { Damage::Lose } else { Damage::Refuse };
        let (admit_turn, seal_turn) =
            state.uploads.back_mut().and_then(|before| before.turns.take()).map(|turns| (turns.admitted, turns.sealed)).unzip();
        let (tell_admitted, admitted) = oneshot::channel();
        let (tell_sealed, sealed) = oneshot::channel();
        let volume = self.clone();
        let work = self.core.runtime.spawn(async move {
            wait_for(admit_turn).await?;
            let bytes = container.block_count() * volume.block_size().bytes();
            let admitted = volume.core.admit(bytes, container.entries.len()).await;
            let (mut permit, for_entries) = admitted.ok_or(Trouble::Interrupted)?;
            // Nobody waits behind the last one.
            let _ = tell_admitted.send(());
            if volume.is_halted() {
                return Err(Trouble::Halted);
            }
            let (reader, closed) = (volume.clone(), container.clone());
            let read = volume.core.run_heavy(move || reader.read_back(&closed)).await.ok_or(Trouble::Interrupted)?;
            wait_for(seal_turn).await?;
            let (sealer, closed) = (volume.clone(), container.clone());
            let sealed = volume.core.run_heavy(move || sealer.seal(&closed, read, damage)).await;
            let (sealed, object) = sealed.ok_or(Trouble::Interrupted)?.map_err(Trouble::Damage)?;
            let _ = tell_sealed.send(());
            if let Some(object) = object {
                volume.send(container.number, &object).await?;
                volume.fill_cache(&sealed, object).await;
            }
            // Those behind need the memory of its blocks.
            if let Some(rest) = permit.split(for_entries) {
                permit = rest;
            }
            Ok(Stored { container, sealed, _permit: permit })
        });
        state.uploads.push_back(Upload { number, work, turns: Some(Turns { admitted, sealed }) });
        true
    }

    /// Puts a container.
    async fn send(&self, number: ScoNumber, object: &SealedObject) -> Result<(), Halted> {
        failpoint::hit(failpoint::SCO_BEFORE_PUT);
        self.counters.sco_bytes.fetch_add(object.len(), Ordering::Relaxed);
        let stored = self.put_until_stored(&self.namespace().sco(self.epoch(), number), object.payload()).await;
        failpoint::hit(failpoint::SCO_AFTER_PUT);
        stored
    }

    /// Commits containers whose objects are stored: TLog, manifest, decision, memory.
    async fn commit(self: &Arc<Self>, state: &mut State, batch: Vec<Stored>) -> Result<(), Halted> {
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return Ok(()) };
        let number = TlogNumber(state.manifest.last_tlog.0 + 1);
        let identity = TlogIdentity {
            volume: self.id(),
            number,
            epoch: self.epoch(),
            first_sco: first.container.number,
            last_sco: last.container.number,
        };
        let entries: Vec<TlogEntry> = batch.iter().flat_map(|stored| stored.sealed.tlog.iter().copied()).collect();
        let mut next = state.manifest.clone();
        next.last_sco = last.container.number;
        next.last_tlog = number;
        extend_terms(&mut next.sco_terms, self.epoch(), first.container.number.0);
        extend_terms(&mut next.tlog_terms, self.epoch(), number.0);
        next.data_blocks += batch.iter().map(|stored| stored.sealed.data_blocks).sum::<u64>();
        next.reference_blocks += batch.iter().map(|stored| stored.sealed.reference_blocks).sum::<u64>();
        let object = PutPayload::from(tlog::encode(&identity, &entries));
        let key = self.namespace().tlog(self.epoch(), number);
        if mutant::is(Mutant::ManifestBeforeTlog) {
            self.decide(state, next).await?;
            self.put_until_stored(&key, object).await?;
        } else {
            self.put_until_stored(&key, object).await?;
            failpoint::hit(failpoint::TLOG_AFTER_PUT);
            self.decide(state, next).await?;
        }
        state.entries_since_checkpoint += entries.len() as u64;
        state.last_time = entries.iter().map(|entry| entry.time).max().unwrap_or(state.last_time).max(state.last_time);
        state.damage_seen = 0;
        // A stored location may be asked for as soon as the layers show it.
        self.behind.sco_terms.write().clone_from(&state.manifest.sco_terms);
        self.behind.stored_sco.store(state.manifest.last_sco.0, Ordering::Release);
        let mut freed = 0;
        for stored in &batch {
            freed += stored.container.journal_bytes;
            Layers::commit(&self.layers, &stored.container, &stored.sealed.tlog);
        }
        self.core.throttle.stored(freed);
        self.count_stored(&batch);
        drop(batch);
        self.core.journal.reclaim(&mut self.core.journal.lock());
        self.core.see_to_journal();
        self.core.parked.notify_one();
        Ok(())
    }

    /// Stores `next` as the next generation and has it decided. Halts the volume when another writer won.
    pub(crate) async fn decide(self: &Arc<Self>, state: &mut State, mut next: Manifest) -> Result<(), Halted> {
        next.generation = Generation(state.manifest.generation.0 + 1);
        next.epoch = self.epoch();
        next.size_bytes = self.size_at(next.last_sco, next.size_bytes);
        next.time = self.core.clock.wall();
        let key = self.namespace().manifest(next.generation, next.epoch);
        self.put_until_stored(&key, next.encode().into()).await?;
        failpoint::hit(failpoint::MANIFEST_AFTER_PUT);
        let mut wait = FIRST_WAIT;
        loop {
            let (coordination, owner, generation) = (self.core.coordination.clone(), self.ownership(), next.generation);
            let Some(decided) = self.core.run_heavy(move || coordination.advance(owner, generation)).await else {
                // Only a panic or the end of the runtime: what was decided is not known here any more.
                self.halt();
                return Err(Halted);
            };
            match decided {
                Ok(()) => break,
                // An earlier try whose answer was lost may have decided it.
                Err(_) if self.is_decided(&next) => break,
                Err(_) if self.is_halted() => return Err(Halted),
                Err(CoordinationError::Unavailable { doing, cause }) => {
                    tracing::warn!(volume = %self.id(), doing, error = &*cause as &dyn std::error::Error, "coordination cannot be reached");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
                Err(error) => {
                    tracing::error!(volume = %self.id(), error = &error as &dyn std::error::Error, "volume lost its ownership; it is halted");
                    self.halt();
                    return Err(Halted);
                }
            }
        }
        failpoint::hit(failpoint::GENERATION_DECIDED);
        self.behind.generation.store(next.generation.0, Ordering::Release);
        if let Some(old) = state.manifest.catalog.filter(|old| next.catalog != Some(*old)) {
            // It goes once no kept manifest names it.
            state.dead.push_back((next.generation, self.namespace().catalog(old.epoch, old.generation)));
        }
        state.manifest = next;
        state.old_manifests.push_back(key);
        self.drop_old_manifests(state);
        Ok(())
    }

    fn is_decided(&self, manifest: &Manifest) -> bool {
        let record = self.core.coordination.get(self.id());
        record.is_ok_and(|record| record.generation == manifest.generation && record.manifest_epoch == manifest.epoch)
    }

    fn drop_old_manifests(&self, state: &mut State) {
        while state.old_manifests.len() > KEEP_MANIFESTS + 1 {
            if let Some(old) = state.old_manifests.pop_front() {
                self.delete_later(old);
            }
        }
        // What a kept manifest names stays, even though that manifest is not the current one.
        let oldest = state.old_manifests.front().and_then(parse_manifest_key).map_or(Generation(0), |(generation, _)| generation);
        while state.dead.front().is_some_and(|(since, _)| *since <= oldest) {
            if let Some((_, key)) = state.dead.pop_front() {
                self.delete_later(key);
            }
        }
    }

    /// Deletes an object that nothing can reach any more. One that stays is only a leak.
    fn delete_later(&self, key: Path) {
        let store = self.core.store.clone();
        self.core.runtime.spawn(async move {
            if let Err(error) = store.delete(&key).await
                && !matches!(error, object_store::Error::NotFound { .. })
            {
                tracing::debug!(%key, error = &error as &dyn std::error::Error, "an unreachable object could not be deleted");
            }
        });
    }

    /// Puts an object, however long the store refuses: until then the journal holds what it is made of.
    pub(crate) async fn put_until_stored(&self, key: &Path, object: PutPayload) -> Result<(), Halted> {
        let mut wait = FIRST_WAIT;
        while !self.is_halted() {
            match self.core.store.put(key, object.clone()).await {
                Ok(_) => {
                    self.counters.stored_objects.fetch_add(1, Ordering::Relaxed);
                    self.core.store_works(true);
                    return Ok(());
                }
                Err(error) => {
                    self.counters.store_failures.fetch_add(1, Ordering::Relaxed);
                    self.core.store_works(false);
                    tracing::warn!(%key, error = &error as &dyn std::error::Error, "the store refused an object; it is tried again");
                }
            }
            let jitter = rand::random_range(0.5..1.5);
            tokio::time::sleep(wait.mul_f64(jitter)).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        Err(Halted)
    }

    fn count_stored(&self, batch: &[Stored]) {
        let entries = batch.iter().flat_map(|stored| &stored.container.entries);
        let zeros = entries.filter(|entry| !matches!(entry.op(), EntryOp::Data { .. })).count();
        self.counters.zero_blocks.fetch_add(zeros as u64, Ordering::Relaxed);
        for Stored { sealed, .. } in batch {
            self.counters.data_blocks.fetch_add(sealed.data_blocks, Ordering::Relaxed);
            self.counters.reference_blocks.fetch_add(sealed.reference_blocks, Ordering::Relaxed);
            self.counters.lost_blocks.fetch_add(sealed.lost_blocks, Ordering::Relaxed);
        }
    }

    /// Whether the cache has space that nothing else wants, at a time without pressure.
    fn has_cache_to_fill(&self) -> bool {
        let stats = self.core.cache.stats();
        // Eviction begins somewhat before the last byte.
        !self.core.presses() && stats.bytes < stats.capacity / 8 * 7
    }

    /// What was just stored is likely to be read again. Right whether or not it is ever committed: the cache knows blocks by their content.
    async fn fill_cache(self: &Arc<Self>, sealed: &Sealed, object: SealedObject) {
        if !self.has_cache_to_fill() {
            return;
        }
        let stored = sealed.tlog.iter().filter_map(|entry| match entry.op {
            TlogOp::Data { fingerprint, .. } => Some(fingerprint),
            _ => None,
        });
        let stored: Vec<Fingerprint> = stored.collect();
        let volume = self.clone();
        let filled = self.core.run_heavy(move || {
            for (fingerprint, bytes) in stored.iter().zip(object.blocks.chunks_exact(volume.block_size().bytes())) {
                volume.core.cache.insert(volume.id(), fingerprint, bytes);
            }
        });
        filled.await;
    }
}

/// Waits until the container before tells; one without a predecessor does not wait.
async fn wait_for(turn: Option<oneshot::Receiver<()>>) -> Result<(), Trouble> {
    match turn {
        Some(turn) => turn.await.map_err(|_| Trouble::Interrupted),
        None => Ok(()),
    }
}

/// Waits for the first upload and takes those behind it that are stored by then too, up to one that had trouble, that may not be committed
/// now, or to a full TLog.
async fn arrived(state: &mut State, may_commit: impl Fn(ScoNumber) -> bool) -> (Vec<Stored>, Option<Trouble>) {
    let mut stored: Vec<Stored> = Vec::new();
    let mut entries = 0;
    while let Some(first) = state.uploads.front_mut() {
        if !may_commit(first.number) || (!stored.is_empty() && (entries >= COMMIT_ENTRIES || !first.work.is_finished())) {
            break;
        }
        let outcome = (&mut first.work).await;
        state.uploads.pop_front();
        match outcome {
            Ok(Ok(one)) => {
                entries += one.sealed.tlog.len();
                stored.push(one);
            }
            Ok(Err(trouble)) => return (stored, Some(trouble)),
            Err(error) => {
                tracing::error!(%error, "a put ended abnormally; its container is sealed again");
                return (stored, Some(Trouble::Interrupted));
            }
        }
    }
    (stored, None)
}

fn extend_terms(terms: &mut Vec<Term>, epoch: Epoch, first: u64) {
    if terms.last().is_none_or(|term| term.epoch != epoch) {
        terms.push(Term { epoch, first });
    }
}
