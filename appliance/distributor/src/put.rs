//! Putting an object: encode, write all Y fragments at once, answer at `write_min`, finish the rest behind.
//!
//! What a crash leaves: fragments of the new stripe on some targets. With fewer than X they are no object (repair removes them); with
//! X or more the put has happened though nobody was told. The old stripe is deleted only after the new one has `write_min` durable
//! fragments, so one of the two is always readable, and a reader never mixes them.
//!
//! The whole put runs in a task of its own: a caller that goes away does not leave it half done. It holds the key's lock until the last
//! straggler has ended or was given up, so no later delete can be overtaken by an earlier write; a write that timed out is remembered as
//! a straggler until it ends, and a delete meanwhile leaves a mark.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lamina_formats::fragment::{FragmentHeader, StripeDescription, StripeId};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::distributor::Core;
use crate::encode::{Encoded, encode};
use crate::error::{DistributorError, LostFragment, TargetFault};
use crate::locks::KeyGuard;
use crate::lookup::{KeyState, Thoroughness};
use crate::placement::assign;
use crate::progress::{Outcome, Progress};
use crate::stats::add;
use crate::stripe::{Layout, Name, check_key, policy_for};
use crate::target::Purpose;
use crate::view::StripeView;

/// Work below this is done where it is: handing it over costs more.
const INLINE_BYTES: usize = 32 << 10;

/// Why a put did not happen.
#[derive(Debug)]
pub(crate) enum PutRefusal {
    Exists,
    Changed,
    Failed(DistributorError),
}

impl<E: Into<DistributorError>> From<E> for PutRefusal {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// One fragment ready to be written.
struct Job {
    index: usize,
    name: Path,
    header: Arc<FragmentHeader>,
    payload: PutPayload,
}

impl Core {
    pub(crate) async fn put(self: Arc<Self>, key: Path, payload: PutPayload, mode: PutMode) -> Result<StripeId, PutRefusal> {
        let bytes = payload.content_length() as u64;
        let began = Instant::now();
        let result = Arc::clone(&self).put_locked(&key, payload, mode).await;
        match &result {
            Ok(_) => {
                add(&self.counters.puts, 1);
                add(&self.counters.bytes_in, bytes);
                self.counters.put_took.count(began.elapsed());
            }
            Err(PutRefusal::Failed(_)) => add(&self.counters.failed_writes, 1),
            Err(_) => {}
        }
        result
    }

    async fn put_locked(self: Arc<Self>, key: &Path, payload: PutPayload, mode: PutMode) -> Result<StripeId, PutRefusal> {
        check_key(key).map_err(DistributorError::from)?;
        let len = payload.content_length() as u64;
        let mut layout = Layout { stripe: StripeId(0), policy: policy_for(self.options.policy, len), len };
        if !layout.is_valid() {
            return Err(DistributorError::TooLong { len }.into());
        }
        let guard = self.locks.lock(key).await;
        let (state, encoded) = tokio::join!(self.lookup(key, Thoroughness::All), self.encode(payload, layout));
        let encoded = encoded?;
        let current = state.current().map(|found| found.layout.stripe);
        // Under the key's lock nothing is under way: a newer stripe that may be whole elsewhere may be the object.
        let undecided = !self.proves_absence(state.unknown.len()) || state.is_undecided();
        match mode {
            PutMode::Overwrite => {}
            PutMode::Create if current.is_some() => return Err(PutRefusal::Exists),
            PutMode::Create | PutMode::Update(_) if undecided => {
                return Err(DistributorError::Unknown { unknown: state.unknown.len() }.into());
            }
            PutMode::Create => {}
            PutMode::Update(version) => {
                if current.is_none() || version.e_tag != current.map(e_tag) {
                    return Err(PutRefusal::Changed);
                }
            }
        }
        layout.stripe = self.next_stripe(state.highest_order());
        self.write(key, layout, encoded, state, guard).await?;
        Ok(layout.stripe)
    }

    async fn encode(self: &Arc<Self>, payload: PutPayload, layout: Layout) -> Result<Vec<Encoded>, DistributorError> {
        let codec = if layout.policy.data() == 1 { None } else { Some(self.codecs.of(layout.policy)?) };
        let buffers = self.buffers.clone();
        let work = move || encode(payload.as_ref(), &layout, codec.as_deref(), &buffers);
        if layout.len as usize <= INLINE_BYTES {
            return Ok(work()?);
        }
        Ok(tokio::task::spawn_blocking(work).await??)
    }

    fn jobs(&self, key: &Path, layout: &Layout, encoded: Vec<Encoded>) -> Result<Vec<Job>, DistributorError> {
        let description = StripeDescription {
            key: key.to_string(),
            stripe: layout.stripe,
            pool: self.options.pool,
            policy: layout.policy,
            matrix: layout.matrix(),
            object_len: layout.len,
        };
        encoded
            .into_iter()
            .enumerate()
            .map(|(index, Encoded { data, sums })| {
                // An index is below Y ≤ 255.
                let header = FragmentHeader::new(&description, index as u8, sums)?;
                let payload = [Bytes::from(header.encode()), data].into_iter().collect();
                let name = Name::Fragment { layout: *layout, index }.under(key);
                Ok(Job { index, name, header: Arc::new(header), payload })
            })
            .collect()
    }

    async fn write(
        self: Arc<Self>,
        key: &Path,
        layout: Layout,
        encoded: Vec<Encoded>,
        state: KeyState,
        guard: KeyGuard,
    ) -> Result<(), DistributorError> {
        let total = layout.policy.total();
        let need = self.need_of(layout.policy);
        let jobs = self.jobs(key, &layout, encoded)?;
        let headers: Vec<Arc<FragmentHeader>> = jobs.iter().map(|job| Arc::clone(&job.header)).collect();
        let usable = |at: usize| self.targets.get(at).is_some_and(|target| target.is_usable(Purpose::Write));
        let assignment = assign(key.as_ref(), &self.places, total, &usable);
        let takers = assignment.slots.iter().flatten().count();
        if takers < need {
            // Nothing is written that could not become an object.
            let absent = |(index, _): (usize, &Option<usize>)| LostFragment { index, target: None, fault: TargetFault::Absent };
            let lost = assignment.slots.iter().enumerate().filter(|(_, slot)| slot.is_none()).map(absent).collect();
            return Err(DistributorError::NotWritten { key: key.to_string(), written: takers, need, lost });
        }
        let spare = Arc::new(Mutex::new(VecDeque::from(assignment.spare)));
        let (report, mut reports) = mpsc::unbounded_channel();
        for (job, slot) in jobs.into_iter().zip(assignment.slots.iter().copied()) {
            let (core, key, spare, report) = (Arc::clone(&self), key.clone(), Arc::clone(&spare), report.clone());
            tokio::spawn(async move {
                let index = job.index;
                let written = core.write_fragment(&key, job, slot, &spare).await;
                // The collector is gone only when the runtime is.
                let _ = report.send(Outcome { index, written });
            });
        }
        drop(report);
        let mut progress = Progress::new(total, need);
        progress.collect(&mut reports, self.options.grace).await;
        if progress.written() < need {
            return Err(self.give_up(key, layout, progress, reports, guard).await);
        }
        let late = self.hold_back(&layout, &assignment.slots, &mut progress, &mut reports).await;
        // The new stripe is the object now: the old one goes before anybody is told.
        self.remove_older(key, &state, layout.stripe).await;
        let finished = progress.reported() == total;
        if finished {
            self.settle(key, layout, &headers, progress, &guard);
        } else {
            let (core, key) = (Arc::clone(&self), key.clone());
            self.changed(&key);
            self.background(async move {
                progress.collect(&mut reports, Duration::MAX).await;
                core.settle(&key, layout, &headers, progress, &guard);
                drop(late);
            });
        }
        Ok(())
    }

    /// Every fragment has been written or given up: the view is cached, a short stripe queued for repair.
    fn settle(&self, key: &Path, layout: Layout, headers: &[Arc<FragmentHeader>], progress: Progress, _guard: &KeyGuard) {
        if !progress.lost.is_empty() {
            add(&self.counters.degraded_writes, 1);
            self.doubt(key);
            for lost in &progress.lost {
                tracing::debug!(%key, index = lost.index, target_id = ?lost.target, fault = %lost.fault, "a fragment was not written");
            }
        }
        let view = StripeView::new(layout, progress.holders);
        for (index, header) in headers.iter().enumerate() {
            view.learn(index, Arc::clone(header));
        }
        self.changed(key);
        self.views.insert(key, Arc::new(view));
    }

    /// Writes one fragment to its target, or to whoever stands in when that fails.
    async fn write_fragment(
        self: &Arc<Self>,
        key: &Path,
        job: Job,
        slot: Option<usize>,
        spare: &Mutex<VecDeque<usize>>,
    ) -> Result<usize, LostFragment> {
        let mut next = slot;
        let mut lost = LostFragment { index: job.index, target: None, fault: TargetFault::Absent };
        while let Some(at) = next {
            match self.write_to(key, at, &job).await {
                Ok(()) => return Ok(at),
                Err(fault) => lost = LostFragment { index: job.index, target: self.targets.get(at).map(|t| t.place.id), fault },
            }
            next = spare.lock().pop_front();
        }
        Err(lost)
    }

    async fn write_to(self: &Arc<Self>, key: &Path, at: usize, job: &Job) -> Result<(), TargetFault> {
        let target = self.targets.get(at).ok_or(TargetFault::Absent)?;
        let Some(store) = target.store_for_write() else { return Err(TargetFault::Absent) };
        let (name, payload) = (job.name.clone(), job.payload.clone());
        let bytes = payload.content_length() as u64;
        // A task of its own: a write that is late is not cancelled, for a store may do it all the same.
        let counted = target.begin_write();
        let began = Instant::now();
        let mut writing: JoinHandle<object_store::Result<_>> = tokio::spawn(async move {
            let written = store.put_opts(&name, payload, PutOptions::default()).await;
            drop(counted);
            written
        });
        match tokio::time::timeout(self.options.write_timeout, &mut writing).await {
            Ok(Ok(Ok(_))) => {
                target.wrote();
                target.count_written(bytes);
                target.write_took(began.elapsed());
                add(&self.counters.fragment_bytes_written, bytes);
                Ok(())
            }
            Ok(Ok(Err(error))) => {
                let fault = TargetFault::of(error);
                target.failed(&fault);
                Err(fault)
            }
            // The task was torn down: the runtime ends.
            Ok(Err(_)) => Err(TargetFault::Absent),
            Err(_) => {
                target.failed(&TargetFault::TimedOut);
                self.straggle(key, at, &job.name, writing);
                Err(TargetFault::TimedOut)
            }
        }
    }

    /// Remembers a write that was given up until it ends; what it wrote then is removed, unless it became part of the object meanwhile
    /// or some target did not say: then it is repair's.
    fn straggle(
        self: &Arc<Self>,
        key: &Path,
        at: usize,
        name: &Path,
        writing: JoinHandle<object_store::Result<object_store::PutResult>>,
    ) {
        self.stragglers.begin(key);
        let (core, key, name) = (Arc::clone(self), key.clone(), name.clone());
        tokio::spawn(async move {
            let ended = writing.await;
            // Only under the key's lock: repair may have chosen this very place since.
            let guard = core.locks.lock(&key).await;
            let state = core.lookup(&key, Thoroughness::All).await;
            let holds_it = state.current().is_some_and(|found| {
                found.holders.iter().enumerate().any(|(index, holders)| {
                    holders.contains(&at) && Name::Fragment { layout: found.layout, index }.under(&key) == name
                })
            });
            if !state.unknown.is_empty() {
                core.doubt(&key);
            } else if matches!(ended, Ok(Ok(_)))
                && !holds_it
                && let Err(fault) = core.delete_from(at, &name).await
            {
                tracing::debug!(%key, %fault, "a late fragment stays until repair");
            }
            core.stragglers.end(&key);
            drop(guard);
        });
    }

    /// The put failed: what was written is removed behind, and the caller gets the reasons.
    async fn give_up(
        self: Arc<Self>,
        key: &Path,
        layout: Layout,
        mut progress: Progress,
        mut reports: mpsc::UnboundedReceiver<Outcome>,
        guard: KeyGuard,
    ) -> DistributorError {
        progress.collect(&mut reports, Duration::MAX).await;
        let lost = std::mem::take(&mut progress.lost);
        let error = DistributorError::NotWritten { key: key.to_string(), written: progress.written(), need: progress.need, lost };
        let (core, key) = (Arc::clone(&self), key.clone());
        self.changed(&key);
        self.background(async move {
            for (index, holders) in progress.holders.iter().enumerate() {
                let name = Name::Fragment { layout, index }.under(&key);
                for &at in holders {
                    if let Err(fault) = core.delete_from(at, &name).await {
                        tracing::debug!(%key, index, %fault, "a fragment of a failed put stays until repair");
                    }
                }
            }
            core.changed(&key);
            core.views.remove(&key);
            drop(guard);
        });
        error
    }

    /// Deletes every stripe and mark that `stripe` replaces, oldest first.
    pub(crate) async fn remove_older(self: &Arc<Self>, key: &Path, state: &KeyState, stripe: StripeId) {
        for found in state.stripes.values().filter(|found| found.layout.stripe < stripe) {
            if let Err(failures) = self.remove_stripe(key, found).await {
                tracing::debug!(%key, failures, "fragments of a replaced stripe stay until repair");
                self.doubt(key);
            }
        }
        if state.unknown.is_empty() {
            for (gone, holders) in state.gone.iter().filter(|(gone, _)| **gone < stripe) {
                for &at in holders {
                    if self.delete_from(at, &Name::Gone(*gone).under(key)).await.is_err() {
                        self.doubt(key);
                    }
                }
            }
        }
    }

    pub(crate) async fn delete_from(&self, at: usize, name: &Path) -> Result<(), TargetFault> {
        let target = self.targets.get(at).ok_or(TargetFault::Absent)?;
        let patience = crate::target::Patience::Until(self.options.write_timeout);
        match target.call(Purpose::Delete, patience, |store| async move { store.delete(name).await }).await {
            Err(TargetFault::Missing) => Ok(()),
            other => other,
        }
    }
}

/// The object's tag: its stripe.
pub(crate) fn e_tag(stripe: StripeId) -> String {
    format!("{:032x}", stripe.0)
}
