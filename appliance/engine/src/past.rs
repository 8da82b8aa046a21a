//! Going back to any moment: the youngest map root before it, and TLogs from there up to it.
//!
//! A volume that keeps its past has the roots of its checkpoints in the catalog for as long as its window is. Entries carry the time at
//! which they were accepted; should the clock go back, an entry counts as not before the one before it.

use std::sync::Arc;

use futures::future::BoxFuture;
use lamina_contract::{SnapshotId, SnapshotNote, Timestamp, TlogNumber, VolumeId};
use lamina_formats::catalog::{PastRoot, StoredSnapshot};
use lamina_formats::tlog::TlogEntry;

use crate::behind::State;
use crate::delta::Delta;
use crate::error::EngineError;
use crate::layers::replayed;
use crate::map::Mapped;
use crate::namespace::Namespace;
use crate::node::Node;
use crate::restart::map_root;
use crate::snapshot::{Coming, SnapshotSpec, check};
use crate::snapshots::Snapshot;
use crate::volume::Volume;

impl Node {
    /// Makes a snapshot of what a volume held when `at` had just passed: every write that was accepted in that millisecond or before.
    ///
    /// Takes as long as it takes to store what was accepted since, and to read up to 500,000 entries of TLogs; nobody else waits for that.
    ///
    /// # Errors
    /// [`EngineError::NotInWindow`], or as [`Node::snapshot`].
    pub async fn snapshot_at(&self, id: VolumeId, at: Timestamp, spec: &SnapshotSpec) -> Result<Snapshot, EngineError> {
        let volume = self.volume(id).ok_or(EngineError::Unknown { volume: id })?;
        let _coming = {
            let _change = self.changes.lock().await;
            check(&volume, spec)?;
            Coming::mark(&volume, &spec.name)?
        };
        let outside = || EngineError::NotInWindow { volume: id, begins: volume.past_begins() };
        if at > self.core.clock.wall() || volume.past_begins().is_none_or(|begins| at < begins) {
            return Err(outside());
        }
        self.refuse_without_store()?;
        self.store_all(&volume).await?;
        let mut state = volume.behind.state.lock().await;
        // The window may have moved on meanwhile.
        let past = volume.snapshots.past();
        let after = past.partition_point(|root| root.time <= at);
        let root = *after.checked_sub(1).and_then(|before| past.get(before)).ok_or_else(outside)?;
        let last = past.get(after).map_or(state.manifest.last_tlog, |next| next.tlog);
        let delta = self.entries_up_to(&volume, &state, root, last, at).await?;
        let note = SnapshotNote {
            id: SnapshotId(rand::random()),
            name: spec.name.clone(),
            created: at,
            size_bytes: root.size_bytes,
            labels: spec.labels.clone(),
            description: spec.description.clone(),
            pinned: spec.pinned,
            automatic: spec.automatic,
        };
        volume.add_past_snapshot(&mut state, root, last, &delta, note.clone()).await?;
        Ok(Snapshot { note, stored: true })
    }

    /// What TLogs behind `root`, up to `last` and up to the moment `at`, changed.
    async fn entries_up_to(
        &self,
        volume: &Volume,
        state: &State,
        root: PastRoot,
        last: TlogNumber,
        at: Timestamp,
    ) -> Result<Delta<Mapped>, EngineError> {
        let mut delta = Delta::new();
        let mut time = root.time;
        for number in root.tlog.0 + 1..=last.0 {
            let entries: Vec<TlogEntry> = self.sources.tlog(volume.namespace(), &state.manifest, TlogNumber(number)).await?;
            for entry in &entries {
                time = time.max(entry.time);
                if time > at {
                    return Ok(delta);
                }
                replayed(&mut delta, entry);
            }
        }
        Ok(delta)
    }
}

impl Volume {
    async fn add_past_snapshot(
        self: &Arc<Self>,
        state: &mut State,
        root: PastRoot,
        last: TlogNumber,
        delta: &Delta<Mapped>,
        note: SnapshotNote,
    ) -> Result<(), EngineError> {
        let old = self.pages.load_root(root.map_root).await?;
        let mut next = state.manifest.clone();
        let map_root = if delta.is_empty() {
            root.map_root
        } else {
            let (namespace, epoch) = (self.namespace(), self.epoch());
            let key = move |epoch, number| Namespace::map(namespace, epoch, number);
            // Boxed for the same reason as the checkpoint of the head.
            let made: BoxFuture<'_, _> = Box::pin(self.pages.branch(old, delta, epoch, next.next_map_object, &key));
            let outcome = made.await?;
            next.next_map_object = outcome.next_object;
            Some(outcome.root)
        };
        let mut stored = self.snapshots.stored();
        stored.push(StoredSnapshot { note, last_sco: next.last_sco, last_tlog: last, map_root });
        let past = self.snapshots.past();
        let halted = |_| EngineError::Halted { volume: self.id() };
        self.put_catalog(state, &mut next, &stored, &past).await.map_err(halted)?;
        self.decide(state, next).await.map_err(halted)?;
        self.snapshots.decided(stored, past);
        Ok(())
    }

    /// Begins to keep the past from what is stored on, or stops keeping it, as the settings say.
    pub(crate) async fn begin_past(self: &Arc<Self>) -> Result<(), EngineError> {
        let mut state = self.behind.state.lock().await;
        self.decide_past(&mut state, Vec::new()).await
    }

    /// Notes the size that the volume has from now on. All that it accepted before is stored, and changes wait.
    pub(crate) async fn mark_past(self: &Arc<Self>) -> Result<(), EngineError> {
        if self.settings().cdp_ms == 0 {
            return Ok(());
        }
        let mut state = self.behind.state.lock().await;
        let past = self.snapshots.past();
        self.decide_past(&mut state, past).await
    }

    /// Decides `past` with the head's root at its end.
    async fn decide_past(self: &Arc<Self>, state: &mut State, mut past: Vec<PastRoot>) -> Result<(), EngineError> {
        if !self.stand_on_pages(state) {
            // What a clone stands on is not stored yet; its first checkpoint begins the past.
            return Ok(());
        }
        if self.settings().cdp_ms > 0 {
            if !self.layers.read().is_checkpointed() {
                self.checkpoint(state).await?;
                if !past.is_empty() {
                    past = self.snapshots.past();
                }
            }
            let tlog = state.manifest.checkpoint_tlog;
            // The window begins now, or all that was accepted is stored: what comes later belongs behind this root.
            let time = past.last().map_or(self.core.clock.wall(), |last| self.core.clock.wall().max(last.time));
            past.push(PastRoot { time, tlog, size_bytes: self.size_bytes(), map_root: map_root(&state.manifest)? });
        }
        let stored = self.snapshots.stored();
        let mut next = state.manifest.clone();
        let halted = |_| EngineError::Halted { volume: self.id() };
        self.put_catalog(state, &mut next, &stored, &past).await.map_err(halted)?;
        self.decide(state, next).await.map_err(halted)?;
        self.snapshots.decided(stored, past);
        Ok(())
    }
}
