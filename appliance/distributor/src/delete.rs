//! Deleting an object from all targets, those that are away too.
//!
//! A target that does not answer keeps its fragments and would bring them back: a small object is whole on each of its targets. So when
//! any target is away, a mark (`<stripe>.gone`, newer than every stripe) is put on P + 1 others (on as many as a small object's put needs) before the delete succeeds;
//! readers ignore whatever is older than a mark, and repair removes marks once every target has been seen without older fragments.
//! A mark outlives any P losses, as the object would have.

use std::sync::Arc;

use futures::future::join_all;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};

use crate::distributor::Core;
use crate::error::{DistributorError, LostFragment, TargetFault};
use crate::lookup::{FoundStripe, KeyState, Thoroughness};
use crate::placement::assign;
use crate::stats::add;
use crate::stripe::{Name, policy_for};
use crate::target::{Patience, Purpose};

impl Core {
    /// Deletes `key` durably; a missing one is fine.
    pub(crate) async fn delete(self: Arc<Self>, key: Path) -> Result<(), DistributorError> {
        crate::stripe::check_key(&key)?;
        let _guard = self.locks.lock(&key).await;
        let result = self.delete_locked(&key).await;
        self.changed(&key);
        self.views.remove(&key);
        if result.is_ok() {
            add(&self.counters.deletes, 1);
        }
        result
    }

    async fn delete_locked(self: &Arc<Self>, key: &Path) -> Result<(), DistributorError> {
        let state = self.lookup(key, Thoroughness::All).await;
        let late = self.stragglers.has(key);
        if state.is_empty() && !late && self.proves_absence(state.unknown.len()) {
            // An object would show on at least one of the targets that answered.
            return Ok(());
        }
        if !late && state.unknown.is_empty() && self.remove_all(key, &state).await.is_ok() {
            return Ok(());
        }
        // Some fragments stay where they are for now.
        self.mark_gone(key, &state).await?;
        let _ = self.remove_all(key, &state).await;
        self.doubt(key);
        Ok(())
    }

    /// Removes fragments, oldest stripes first, then marks. Says how many stay.
    pub(crate) async fn remove_all(self: &Arc<Self>, key: &Path, state: &KeyState) -> Result<(), usize> {
        let mut failures = 0;
        for found in state.stripes.values() {
            failures += self.remove_stripe(key, found).await.err().unwrap_or(0);
        }
        if failures > 0 || !state.unknown.is_empty() {
            return Err(failures);
        }
        for (gone, holders) in &state.gone {
            let name = Name::Gone(*gone).under(key);
            for &at in holders {
                failures += usize::from(self.delete_from(at, &name).await.is_err());
            }
        }
        if failures == 0 { Ok(()) } else { Err(failures) }
    }

    /// Removes all fragments of one stripe at once; says how many stay.
    pub(crate) async fn remove_stripe(self: &Arc<Self>, key: &Path, found: &FoundStripe) -> Result<(), usize> {
        let fragments = found.holders.iter().enumerate().flat_map(|(index, holders)| holders.iter().map(move |&at| (index, at)));
        let removals = fragments.map(|(index, at)| {
            let name = Name::Fragment { layout: found.layout, index }.under(key);
            async move { self.delete_from(at, &name).await }
        });
        match join_all(removals).await.iter().filter(|removed| removed.is_err()).count() {
            0 => Ok(()),
            failures => Err(failures),
        }
    }

    /// Puts the mark on P + 1 targets, at least on as many as a small object's put needs.
    async fn mark_gone(self: &Arc<Self>, key: &Path, state: &KeyState) -> Result<(), DistributorError> {
        let copies = policy_for(self.options.policy, 0);
        let need = self.need_of(copies);
        let name = Name::Gone(self.next_stripe(state.highest_order())).under(key);
        let usable =
            |at: usize| !state.unknown.contains(&at) && self.targets.get(at).is_some_and(|target| target.is_usable(Purpose::Write));
        let assignment = assign(key.as_ref(), &self.places, copies.total(), &usable);
        let patience = Patience::Until(self.options.write_timeout);
        let mut lost = Vec::new();
        let mut written = 0;
        let takers: Vec<usize> = assignment.slots.into_iter().flatten().chain(assignment.spare).collect();
        // Too few for the delete to succeed get no mark: it would hide the object from some readers and not from others.
        for at in takers.iter().copied().filter(|_| takers.len() >= need) {
            if written == copies.total() {
                break;
            }
            let Some(target) = self.targets.get(at) else { continue };
            let name = &name;
            let put = target.call(Purpose::Write, patience, |store| async move { store.put(name, PutPayload::new()).await });
            match put.await {
                Ok(_) => written += 1,
                Err(fault) => lost.push(LostFragment { index: written, target: Some(target.place.id), fault }),
            }
        }
        if written >= need {
            return Ok(());
        }
        if lost.is_empty() {
            lost.push(LostFragment { index: written, target: None, fault: TargetFault::Absent });
        }
        Err(DistributorError::NotWritten { key: key.to_string(), written, need, lost })
    }
}
