//! Making lost fragments again, and looking for damage before anybody needs the bytes.
//!
//! [`Distributor::repair`] lists all targets, takes the objects nearest to loss first, makes their missing fragments out of verified ones,
//! writes them where the object's placement wants them (or on another target that has none of the stripe), and reads each back. Objects that a
//! read or write found doubtful are verified byte for byte first. It also removes what replaced, deleted and failed stripes left, once every
//! target has answered. [`Distributor::audit`] reads and verifies everything and queues what it finds.
//!
//! Both hold an object's lock only while they work on it, look at it again under the lock, and never touch what is readable and current.
//! A crash anywhere leaves the object as it was plus fragments that are right. A stripe with fewer than X fragments is reported and kept:
//! a drive that comes back may complete it; its owner may delete it.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use lamina_formats::fragment::{FragmentHeader, StripeDescription};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};

use crate::distributor::{Core, Distributor};
use crate::encode::sums_of;
use crate::error::{DistributorError, TargetFault};
use crate::lookup::{FoundStripe, KeyState, Thoroughness};
use crate::placement::{TargetId, assign};
use crate::stats::add;
use crate::stripe::{Layout, Name};
use crate::target::{Patience, Purpose};
use crate::view::StripeView;

/// Keys named in a report; counters go on beyond.
const NAMED_MAX: usize = 1000;

/// How far a repair or audit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepairStatus {
    /// Objects dealt with.
    pub done: u64,
    /// Objects to be dealt with.
    pub total: u64,
    /// Bytes read and written so far, for a rate and an estimate.
    pub bytes: u64,
}

/// Who is told how far a repair is, and may stop it.
pub trait RepairProgress: Send + Sync {
    /// Called after every object. `Break` ends the work after it; the rest waits for the next run.
    fn report(&self, status: RepairStatus) -> ControlFlow<()>;
}

/// Nobody.
impl RepairProgress for () {
    fn report(&self, _status: RepairStatus) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// What a repair found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Objects that were listed.
    pub objects: u64,
    /// Objects that needed something.
    pub short: u64,
    /// Objects that have all their fragments again.
    pub repaired_objects: u64,
    /// Fragments that were made and read back.
    pub repaired_fragments: u64,
    /// Objects that stay short: too few targets, or a write failed.
    pub still_short: u64,
    /// Objects that more than P losses made unreadable, at most 1000 of them by name.
    pub unreadable: Vec<Path>,
    /// How many those are.
    pub unreadable_count: u64,
    /// Targets that did not answer.
    pub unknown_targets: u64,
    /// Whether it was stopped before the end.
    pub stopped: bool,
}

/// What an audit found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditReport {
    /// Objects that were read.
    pub objects: u64,
    /// Fragments that were read and hold.
    pub good_fragments: u64,
    /// Fragments that do not verify, at most 1000 of them by name.
    pub damaged: Vec<DamagedFragment>,
    /// How many those are.
    pub damaged_count: u64,
    /// Fragments that are on no target that answered.
    pub missing_fragments: u64,
    /// Keys with fragments that make no object, at most 1000 of them by name.
    pub leftovers: Vec<Path>,
    /// How many those are.
    pub leftover_count: u64,
    /// Targets that did not answer.
    pub unknown_targets: u64,
    /// Whether it was stopped before the end.
    pub stopped: bool,
}

/// A fragment that does not verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedFragment {
    /// Its object.
    pub key: Path,
    /// Its place in the stripe.
    pub index: usize,
    /// Where it lies.
    pub target: TargetId,
}

/// What became of one object.
#[derive(Debug, Default)]
struct Mended {
    fragments: u64,
    bytes: u64,
    still_short: bool,
}

impl Distributor {
    /// Makes missing and damaged fragments again, objects nearest to loss first.
    ///
    /// # Errors
    /// [`DistributorError::Unknown`] when more than P targets do not answer: then nothing is known well enough to be changed.
    pub async fn repair(&self, progress: &dyn RepairProgress) -> Result<RepairReport, DistributorError> {
        let core = &self.core;
        let listing = core.listing(None).await;
        if listing.unknown.len() > core.options.policy.parity() {
            return Err(DistributorError::Unknown { unknown: listing.unknown.len() });
        }
        let mut report = RepairReport { unknown_targets: listing.unknown.len() as u64, ..RepairReport::default() };
        let mut work: Vec<(usize, Path)> = Vec::new();
        for (key, state) in listing.keys {
            match state.current() {
                Some(found) => {
                    report.objects += 1;
                    let margin = found.found() - found.layout.policy.data();
                    let leftovers = state.stripes.len() > 1 || !state.gone.is_empty();
                    if found.found() < found.layout.policy.total() || leftovers || core.is_doubtful(&key) {
                        work.push((margin, key));
                    }
                }
                None if state.newest().is_some() => {
                    if !core.locks.is_held(&key) {
                        report.unreadable_count += 1;
                        if report.unreadable.len() < NAMED_MAX {
                            report.unreadable.push(key);
                        }
                    }
                }
                // Deleted while a target was away: nothing but leftovers, after everything that can still be saved.
                None => work.push((usize::MAX, key)),
            }
        }
        work.sort();
        let total = work.len() as u64;
        let mut bytes = 0;
        for ((margin, key), done) in work.into_iter().zip(1..) {
            let mended = core.mend(&key).await;
            if margin < usize::MAX {
                report.short += 1;
                report.repaired_objects += u64::from(mended.fragments > 0 && !mended.still_short);
                report.still_short += u64::from(mended.still_short);
                report.repaired_fragments += mended.fragments;
            }
            bytes += mended.bytes;
            if progress.report(RepairStatus { done, total, bytes }).is_break() && done < total {
                report.stopped = true;
                break;
            }
        }
        Ok(report)
    }

    /// Reads and verifies every fragment; what is damaged or missing is queued for [`Distributor::repair`].
    ///
    /// # Errors
    /// [`DistributorError::Unknown`] when more than P targets do not answer.
    pub async fn audit(&self, progress: &dyn RepairProgress) -> Result<AuditReport, DistributorError> {
        let core = &self.core;
        let listing = core.listing(None).await;
        if listing.unknown.len() > core.options.policy.parity() {
            return Err(DistributorError::Unknown { unknown: listing.unknown.len() });
        }
        let mut report = AuditReport { unknown_targets: listing.unknown.len() as u64, ..AuditReport::default() };
        let total = listing.keys.len() as u64;
        let mut bytes = 0;
        for ((key, state), done) in listing.keys.into_iter().zip(1..) {
            match state.current() {
                Some(found) => {
                    report.objects += 1;
                    bytes += core.audit_object(&key, found, &mut report).await;
                }
                None if core.locks.is_held(&key) => {}
                None => {
                    report.leftover_count += 1;
                    if report.leftovers.len() < NAMED_MAX {
                        report.leftovers.push(key);
                    }
                }
            }
            if progress.report(RepairStatus { done, total, bytes }).is_break() && done < total {
                report.stopped = true;
                break;
            }
        }
        Ok(report)
    }
}

impl Core {
    async fn audit_object(self: &Arc<Self>, key: &Path, found: &FoundStripe, report: &mut AuditReport) -> u64 {
        let before = self.changes_of(key);
        let (good, damaged) = self.verify_all(key, found).await;
        if self.changes_of(key) != before {
            // It was replaced or deleted meanwhile: what was seen says nothing.
            return 0;
        }
        let have: HashSet<usize> = good.iter().chain(&damaged).map(|(index, _)| *index).collect();
        let missing = found.layout.policy.total() - have.len();
        report.good_fragments += good.len() as u64;
        report.missing_fragments += missing as u64;
        report.damaged_count += damaged.len() as u64;
        if missing > 0 || !damaged.is_empty() {
            self.doubt(key);
        }
        for &(index, at) in &damaged {
            if let Some(target) = self.targets.get(at).filter(|_| report.damaged.len() < NAMED_MAX) {
                report.damaged.push(DamagedFragment { key: key.clone(), index, target: target.place.id });
            }
        }
        good.len() as u64 * found.layout.fragment_len()
    }

    /// Reads every fragment that is held from wherever it is held. Good ones, and damaged ones; a target that fails counts as neither.
    async fn verify_all(self: &Arc<Self>, key: &Path, found: &FoundStripe) -> (Vec<(usize, usize)>, Vec<(usize, usize)>) {
        let (mut good, mut damaged) = (Vec::new(), Vec::new());
        for (index, holders) in found.holders.iter().enumerate() {
            for &at in holders {
                match self.read_whole(key, found.layout, index, at).await {
                    Ok(()) => good.push((index, at)),
                    Err(TargetFault::Damaged(_) | TargetFault::Wrong | TargetFault::Missing) => damaged.push((index, at)),
                    Err(_) => {}
                }
            }
        }
        (good, damaged)
    }

    /// Reads a fragment back, header and all data, and verifies both; nothing that was known before counts.
    async fn read_whole(self: &Arc<Self>, key: &Path, layout: Layout, index: usize, at: usize) -> Result<(), TargetFault> {
        let view = StripeView::new(layout, vec![Vec::new(); layout.policy.total()]);
        let patience = Patience::Until(self.options.read_timeout);
        let columns = 0..layout.fragment_len();
        let pages = self.read_pages(key, &view, at, index, columns, patience, Purpose::Read).await?;
        let header = view.header(index).ok_or(TargetFault::Wrong)?;
        header.verify_all(&pages.bytes).map_err(TargetFault::Damaged)
    }

    /// Brings one object to its full number of fragments, and removes what older and failed stripes left of it.
    async fn mend(self: &Arc<Self>, key: &Path) -> Mended {
        let _guard = self.locks.lock(key).await;
        let state = self.lookup(key, Thoroughness::All).await;
        let Some(found) = state.current().cloned() else {
            if state.newest().is_none() && !self.stragglers.has(key) && self.remove_all(key, &state).await.is_ok() {
                self.trust(key);
            }
            return Mended::default();
        };
        let mended = match self.mend_stripe(key, &found).await {
            Ok(mended) => mended,
            Err(error) => {
                tracing::warn!(%key, %error, "an object could not be repaired");
                Mended { still_short: true, ..Mended::default() }
            }
        };
        if mended.fragments > 0 {
            self.changed(key);
            tracing::info!(%key, fragments = mended.fragments, "an object was repaired");
        }
        if !mended.still_short {
            self.trust(key);
            if state.unknown.is_empty() && !self.stragglers.has(key) {
                self.remove_older(key, &state, found.layout.stripe).await;
                self.remove_failed(key, &state, &found).await;
            }
        }
        mended
    }

    /// Removes what a put that never reached X fragments left on top of the current stripe.
    async fn remove_failed(self: &Arc<Self>, key: &Path, state: &KeyState, current: &FoundStripe) {
        for failed in state.stripes.values().filter(|failed| failed.layout.stripe > current.layout.stripe) {
            if self.remove_stripe(key, failed).await.is_err() {
                self.doubt(key);
            }
        }
    }

    async fn mend_stripe(self: &Arc<Self>, key: &Path, found: &FoundStripe) -> Result<Mended, DistributorError> {
        let layout = found.layout;
        let mut mended = Mended::default();
        let mut holders = found.holders.clone();
        let mut rewrite: Vec<(usize, usize)> = Vec::new();
        if self.is_doubtful(key) {
            let (good, damaged) = self.verify_all(key, found).await;
            mended.bytes += good.len() as u64 * layout.fragment_len();
            for &(index, at) in &damaged {
                if let Some(holders) = holders.get_mut(index) {
                    holders.retain(|holder| *holder != at);
                }
            }
            rewrite = damaged;
        }
        let missing: Vec<usize> =
            holders.iter().enumerate().filter(|(_, holders)| holders.is_empty()).map(|(index, _)| index).collect();
        // A second, damaged copy of a fragment that is good elsewhere only takes space.
        for &(index, at) in rewrite.iter().filter(|(index, _)| !missing.contains(index)) {
            let _ = self.delete_from(at, &Name::Fragment { layout, index }.under(key)).await;
        }
        if missing.is_empty() {
            return Ok(mended);
        }
        let view = Arc::new(StripeView::new(layout, holders.clone()));
        let columns = 0..layout.fragment_len();
        let pages = self.gather(key, &view, &columns, Vec::new(), Vec::new()).await?;
        mended.bytes += pages.len() as u64 * layout.fragment_len();
        let rebuilt = self.rebuild(&view, pages, missing).await?;
        for (index, data) in rebuilt {
            let in_place = rewrite.iter().find(|(damaged, _)| *damaged == index).map(|(_, at)| *at);
            match self.write_again(key, layout, index, data, in_place, &mut holders).await? {
                true => {
                    mended.fragments += 1;
                    mended.bytes += 2 * layout.fragment_len();
                    add(&self.counters.repaired_fragments, 1);
                }
                false => mended.still_short = true,
            }
        }
        Ok(mended)
    }

    /// Writes a fragment to the best target that has none of the stripe, reads it back. False when none took it.
    async fn write_again(
        self: &Arc<Self>,
        key: &Path,
        layout: Layout,
        index: usize,
        data: Bytes,
        in_place: Option<usize>,
        holders: &mut [Vec<usize>],
    ) -> Result<bool, DistributorError> {
        let description = StripeDescription {
            key: key.to_string(),
            stripe: layout.stripe,
            pool: self.options.pool,
            policy: layout.policy,
            matrix: layout.matrix(),
            object_len: layout.len,
        };
        // An index is below Y ≤ 255.
        let header = FragmentHeader::new(&description, index as u8, sums_of(&data))?;
        let payload: PutPayload = [Bytes::from(header.encode()), data].into_iter().collect();
        let name = Name::Fragment { layout, index }.under(key);
        let holding: HashSet<usize> = holders.iter().flatten().copied().collect();
        let usable = |at: usize| self.targets.get(at).is_some_and(|target| target.is_usable(Purpose::Write));
        let assignment = assign(key.as_ref(), &self.places, layout.policy.total(), &usable);
        let ideal = assignment.slots.get(index).copied().flatten();
        let others = assignment.slots.iter().flatten().copied().chain(assignment.spare.iter().copied());
        let mut candidates: Vec<usize> = Vec::new();
        for at in in_place.into_iter().filter(|at| usable(*at)).chain(ideal).chain(others) {
            if !holding.contains(&at) && !candidates.contains(&at) {
                candidates.push(at);
            }
        }
        for at in candidates {
            let Some(target) = self.targets.get(at) else { continue };
            let patience = Patience::Until(self.options.write_timeout);
            let (name, payload) = (&name, payload.clone());
            let bytes = payload.content_length() as u64;
            let put = target.call(Purpose::Write, patience, |store| async move { store.put(name, payload).await });
            if put.await.is_err() {
                continue;
            }
            target.count_written(bytes);
            add(&self.counters.fragment_bytes_written, bytes);
            // The proof: nothing is believed that was not read back.
            if self.read_whole(key, layout, index, at).await.is_ok() {
                if let Some(holders) = holders.get_mut(index) {
                    holders.push(at);
                }
                return Ok(true);
            }
            let _ = self.delete_from(at, name).await;
        }
        Ok(false)
    }
}
