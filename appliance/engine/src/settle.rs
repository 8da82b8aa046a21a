//! Into map pages: checkpoints of what is committed, and cuts that become snapshots of the store.
//!
//! ```text
//! all before the cut committed → its level into pages → put catalog → put manifest → decided: root, catalog, where the head goes on
//!   → the level goes, views of the snapshot read pages → the promise goes from the registry
//! ```
//! A crash before the decision leaves the promise in the registry and objects that nothing names; one behind it leaves a promise that
//! the catalog holds already, which the next start sees.

use std::sync::Arc;

use futures::future::BoxFuture;
use lamina_contract::{Cut, Generation, RecordChange, Timestamp, TlogNumber};
use lamina_formats::catalog::{Catalog, PastRoot, StoredSnapshot};
use lamina_formats::manifest::{CatalogRef, Manifest};
use lamina_formats::map::MapRoot;

use crate::behind::{Halted, State};
use crate::checkpoint::CheckpointOutcome;
use crate::error::EngineError;
use crate::failpoint;
use crate::layers::Base;
use crate::mutant;
use crate::namespace::Namespace;
use crate::restart::map_root;
use crate::view::View;
use crate::volume::Volume;

/// Entries in TLogs since the last checkpoint after which the next is due: what a restart replays in well under a second.
const REPLAY_ENTRIES: u64 = 500_000;

impl Volume {
    pub(crate) async fn checkpoint_if_due(self: &Arc<Self>, state: &mut State) -> Result<(), EngineError> {
        let bytes = self.layers.read().stored_bytes();
        let due = bytes > self.core.delta_limit() || state.entries_since_checkpoint > mutant::replay_entries(REPLAY_ENTRIES);
        if due || state.frozen_through.is_some() { self.checkpoint(state).await } else { Ok(()) }
    }

    /// Writes what the TLogs changed since the last checkpoint into map pages, and decides it.
    pub(crate) async fn checkpoint(self: &Arc<Self>, state: &mut State) -> Result<(), EngineError> {
        let (outcome, through, time) = self.make_pages(state).await?;
        let mut next = state.manifest.clone();
        next.map_root = outcome.root.to_bytes().to_vec();
        next.next_map_object = outcome.next_object;
        next.checkpoint_tlog = through;
        let past = self.past_with(PastRoot { time, tlog: through, size_bytes: next.size_bytes, map_root: Some(outcome.root) });
        let stored = self.snapshots.stored();
        if past != self.snapshots.past() && self.put_catalog(state, &mut next, &stored, &past).await.is_err() {
            return Ok(());
        }
        if self.decide(state, next).await.is_err() {
            return Ok(());
        }
        self.pages.install(outcome.root);
        self.layers.write().thaw();
        self.snapshots.decided(stored, past);
        self.note_checkpoint(state, &outcome);
        Ok(())
    }

    /// Puts the pages of the frozen layer; gives the TLog up to which they reach and the time of its last entry.
    async fn make_pages(self: &Arc<Self>, state: &mut State) -> Result<(CheckpointOutcome, TlogNumber, Timestamp), EngineError> {
        let frozen = self.layers.write().freeze();
        // After a failure the frozen layer is an older one: it reaches as far as it did then.
        let (through, time) = *state.frozen_through.get_or_insert((state.manifest.last_tlog, state.last_time));
        let (namespace, epoch) = (self.namespace(), self.epoch());
        let key = move |epoch, number| Namespace::map(namespace, epoch, number);
        // Boxed: the compiler cannot tell that the future of a walk over borrowed layers is Send, unless it is told here.
        let made: BoxFuture<'_, _> = Box::pin(self.pages.checkpoint(&frozen, epoch, state.manifest.next_map_object, &key));
        let outcome = made.await?;
        failpoint::hit(failpoint::CHECKPOINT_AFTER_PUT);
        Ok((outcome, through, time))
    }

    /// A checkpoint is decided.
    fn note_checkpoint(&self, state: &mut State, outcome: &CheckpointOutcome) {
        use std::sync::atomic::Ordering;
        if state.frozen_through.take().is_some_and(|(through, _)| through == state.manifest.last_tlog) {
            state.entries_since_checkpoint = 0;
        }
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        if self.snapshots.hold_pages() {
            // A snapshot may reach them: whoever deletes one looks.
            state.given_up += outcome.dead.len();
        } else {
            let since = state.manifest.generation;
            let namespace = self.namespace();
            state.dead.extend(outcome.dead.iter().map(|(epoch, number)| (since, namespace.map(*epoch, *number))));
        }
    }

    /// Has a clone stand on its parent's pages as soon as they hold what it was made from; false until then.
    pub(crate) fn stand_on_pages(&self, state: &mut State) -> bool {
        let mut layers = self.layers.write();
        let Base::View { view, generations } = layers.base() else { return true };
        // What a rollback goes back to was settled before its level became the oldest.
        debug_assert_eq!(*generations, 1, "only a clone stands on a view that waits");
        let Some(root) = view.root() else { return false };
        // As deep as its origin was when it was made: checked then.
        let Some(own) = root.for_clone() else { return false };
        state.manifest.map_root = own.root.map_or_else(Vec::new, |root| root.to_bytes().to_vec());
        self.pages.switch(Arc::new(own));
        layers.stand_on_pages();
        true
    }

    /// Makes snapshots of the store out of cuts before which everything is committed.
    pub(crate) async fn settle_due(self: &Arc<Self>, state: &mut State) -> Result<(), EngineError> {
        while !self.is_halted() {
            let due = {
                let layers = self.layers.read();
                if layers.is_cut_due() { layers.first_cut() } else { None }
            };
            let Some((cut, view)) = due else { return Ok(()) };
            if self.snapshots.is_being_recorded(cut.note.id) {
                // Its promise would come behind its keeping, and stay.
                return Ok(());
            }
            let is_promised = self.snapshots.is_waiting(cut.note.id);
            if state.frozen_through.is_some() || !(is_promised || self.layers.read().is_checkpointed()) {
                // A checkpoint that failed, perhaps of only a part of the level; or no snapshot will come of it.
                self.checkpoint(state).await?;
            } else if is_promised {
                self.settle(state, &cut, &view).await?;
            } else {
                self.layers.write().drop_oldest();
                self.drop_promise(&cut).await;
            }
        }
        Ok(())
    }

    async fn settle(self: &Arc<Self>, state: &mut State, cut: &Arc<Cut>, view: &Arc<View>) -> Result<(), EngineError> {
        let outcome = if self.layers.read().is_checkpointed() { None } else { Some(self.make_pages(state).await?.0) };
        let mut next = state.manifest.clone();
        if let Some(outcome) = &outcome {
            next.map_root = outcome.root.to_bytes().to_vec();
            next.next_map_object = outcome.next_object;
        }
        next.checkpoint_tlog = next.last_tlog;
        next.size_bytes = cut.note.size_bytes;
        let map_root: Option<MapRoot> = map_root(&next)?;
        let mut stored = self.snapshots.stored();
        let target = match cut.rollback {
            Some(target) => {
                let found = stored.iter().find(|snapshot| snapshot.note.id == target);
                let found = found.ok_or(EngineError::NoSnapshot { volume: self.id(), snapshot: target })?;
                // Sizes from before the cut are over: the manifest has that of the state gone back to.
                self.size_at(next.last_sco, next.size_bytes);
                next.size_bytes = found.note.size_bytes;
                let root = found.map_root;
                Some((root, self.pages.load_root(root).await?))
            }
            None => None,
        };
        stored.push(StoredSnapshot { note: cut.note.clone(), last_sco: cut.after, last_tlog: next.last_tlog, map_root });
        let mut past =
            self.past_with(PastRoot { time: cut.note.created, tlog: next.last_tlog, size_bytes: cut.note.size_bytes, map_root });
        if let Some((root, _)) = &target {
            next.map_root = root.map_or_else(Vec::new, |root| root.to_bytes().to_vec());
            if !past.is_empty() {
                // From this moment on the volume goes on from there.
                let time = past.last().map_or(cut.note.created, |last| cut.note.created.max(last.time));
                past.push(PastRoot { time, tlog: next.last_tlog, size_bytes: self.size_bytes(), map_root: *root });
            }
        }
        if self.put_catalog(state, &mut next, &stored, &past).await.is_err() {
            return Ok(());
        }
        failpoint::hit(failpoint::CATALOG_AFTER_PUT);
        if self.decide(state, next).await.is_err() {
            return Ok(());
        }
        {
            // One moment for all who read: the level goes, and what it showed is in pages.
            let mut layers = self.layers.write();
            if let Some(outcome) = &outcome {
                self.pages.install(outcome.root);
            }
            view.settle(self.pages.state());
            if let Some((_, root)) = target {
                self.pages.switch(root);
            }
            layers.drop_oldest();
        }
        self.snapshots.decided(stored, past);
        match &outcome {
            Some(outcome) => self.note_checkpoint(state, outcome),
            None => state.entries_since_checkpoint = 0,
        }
        failpoint::hit(failpoint::CUT_DECIDED);
        self.drop_promise(cut).await;
        // Clones may wait for it.
        self.core.work.notify_one();
        tracing::info!(volume = %self.id(), snapshot = %cut.note.name, "snapshot stored");
        Ok(())
    }

    /// Takes a promise that a manifest holds out of the registry. One that stays is seen through at the next start.
    async fn drop_promise(self: &Arc<Self>, cut: &Cut) {
        let (coordination, owner, id) = (self.core.coordination.clone(), self.ownership(), cut.note.id);
        let dropped = self.core.run_heavy(move || coordination.change(&[(owner, RecordChange::DropCuts(vec![id]))])).await;
        if let Some(Err(error)) = dropped {
            tracing::warn!(volume = %self.id(), error = &error as &dyn std::error::Error, "a kept promise stays in the registry");
        }
    }

    /// Puts the next manifest's catalog and names it there.
    pub(crate) async fn put_catalog(
        self: &Arc<Self>,
        state: &State,
        next: &mut Manifest,
        stored: &[StoredSnapshot],
        past: &[PastRoot],
    ) -> Result<(), Halted> {
        let generation = Generation(state.manifest.generation.0 + 1);
        let catalog =
            Catalog { volume: self.id(), generation, epoch: self.epoch(), snapshots: stored.to_vec(), past: past.to_vec() };
        let (bytes, crc) = catalog.encode();
        // A snapshot takes some 200 bytes: 4 GiB are 20 million.
        let at = CatalogRef { generation, epoch: self.epoch(), crc, bytes: bytes.len() as u32 };
        self.put_until_stored(&self.namespace().catalog(at.epoch, at.generation), bytes.into()).await?;
        next.catalog = Some(at);
        Ok(())
    }

    /// The roots of the past with one more, and without those that the window does not need: of the older ones only the youngest.
    fn past_with(&self, root: PastRoot) -> Vec<PastRoot> {
        let window = self.settings().cdp_ms;
        if window == 0 {
            return Vec::new();
        }
        let mut past = self.snapshots.past();
        // The clock may have been set back; the order of the log counts.
        let time = past.last().map_or(root.time, |last| root.time.max(last.time));
        past.push(PastRoot { time, ..root });
        let begins = Timestamp(self.core.clock.wall().0.saturating_sub(window));
        let needless = past.partition_point(|moment| moment.time <= begins).saturating_sub(1);
        past.drain(..needless);
        past
    }
}
