//! Flattening: a clone takes over the blocks of its ancestors until it needs them no more.
//!
//! Blocks are written anew by the ordinary write path, each under a hold on its range, so a guest may go on. When neither pages nor
//! locations name an ancestor, the identity in the store says so first and the registry then: a crash in between leaves a dependency
//! that is not needed, and a second flattening finds nothing to do.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lamina_contract::{BlockAddress, Location, RecordChange, ScoNumber, VolumeId};
use lamina_formats::map::{FANOUT, Page, PageKind};

use crate::error::EngineError;
use crate::failpoint;
use crate::layers::Source;
use crate::node::Node;
use crate::volume::Volume;
use crate::write::{Accepted, Staging};

/// Blocks that are held and copied at a time.
const RUN: u64 = 64;
/// Runs of blocks that are looked up at a time.
const EXTENTS: usize = 256;
/// How long to wait before the journal is asked for room again.
const ROOM_POLL: Duration = Duration::from_millis(5);
/// How often it is looked whether to stop, while something else is waited for.
const CANCEL_POLL: Duration = Duration::from_millis(100);

/// A volume that is being flattened and takes no snapshots, until this is dropped.
struct Flattening(Arc<Volume>);

impl Flattening {
    /// By the holder of the lock on changes.
    fn mark(volume: &Arc<Volume>) -> Result<Self, EngineError> {
        match volume.snapshot_count() {
            0 if volume.snapshots.are_coming() => Err(EngineError::Busy { volume: volume.id() }),
            0 if volume.snapshots.set_flattening(true) => Ok(Self(volume.clone())),
            0 => Err(EngineError::Flattening { volume: volume.id() }),
            snapshots => Err(EngineError::SnapshotsHoldParent { volume: volume.id(), snapshots }),
        }
    }
}

impl Drop for Flattening {
    fn drop(&mut self) {
        self.0.snapshots.set_flattening(false);
    }
}

fn go_on(cancel: &AtomicBool) -> Result<(), EngineError> {
    if cancel.load(Ordering::Relaxed) { Err(EngineError::Cancelled) } else { Ok(()) }
}

/// Waits for `work`, which may be dropped in its middle, unless it is to stop.
async fn unless<T>(cancel: &AtomicBool, work: impl Future<Output = T>) -> Result<T, EngineError> {
    let mut work = std::pin::pin!(work);
    loop {
        go_on(cancel)?;
        if let Ok(done) = tokio::time::timeout(CANCEL_POLL, work.as_mut()).await {
            return Ok(done);
        }
    }
}

/// The same for work of the store side, which is left to itself when nobody waits for it any more: it is never to end in its middle.
async fn unless_left<T: Send + 'static>(
    cancel: &AtomicBool,
    work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    unless(cancel, tokio::spawn(work)).await?.unwrap_or(Err(EngineError::Interrupted))
}

impl Node {
    /// Makes a clone independent of its parent, and begins its past anew. `progress` is told blocks done and blocks in all; when `cancel`
    /// is set it stops and may be begun again later. The volume takes no snapshots meanwhile.
    ///
    /// # Errors
    /// When the volume is not there or has snapshots, blocks cannot be read, or the store or registry refuse.
    pub async fn flatten(
        self: &Arc<Self>,
        id: VolumeId,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
        cancel: &AtomicBool,
    ) -> Result<(), EngineError> {
        let volume = self.volume(id).ok_or(EngineError::Unknown { volume: id })?;
        if volume.parent().is_none() {
            return Ok(());
        }
        let _flattening = {
            let _change = self.changes.lock().await;
            Flattening::mark(&volume)?
        };
        // Blocks that its ancestors still have in the journal are not told from its own.
        self.wait_for_pages(&volume, cancel).await?;
        self.give_back_behind_end(&volume).await?;
        volume.take_over_blocks(progress, cancel).await?;
        if self.is_manual() {
            self.store_all(&volume).await?;
        } else {
            let all = volume.clone();
            unless_left(cancel, async move { all.store_all().await }).await?;
        }
        if volume.needs_parent(cancel).await? {
            return Err(EngineError::Busy { volume: id });
        }
        self.forget_parent(&volume, cancel).await
    }

    /// Waits until a volume stands on map pages alone.
    async fn wait_for_pages(&self, volume: &Arc<Volume>, cancel: &AtomicBool) -> Result<(), EngineError> {
        loop {
            let stands = volume.stand_on_pages(&mut *unless(cancel, volume.behind.state.lock()).await?);
            if stands && volume.layers.read().views().is_empty() {
                return Ok(());
            }
            if volume.is_halted() {
                return Err(EngineError::Halted { volume: volume.id() });
            }
            if self.is_manual() {
                self.step(false).await?;
            } else {
                volume.core.work.notify_one();
                tokio::time::sleep(ROOM_POLL).await;
            }
        }
    }

    /// A crash while the volume was made smaller may have left blocks behind its end; they may be the parent's.
    async fn give_back_behind_end(&self, volume: &Arc<Volume>) -> Result<(), EngineError> {
        let _change = self.changes.lock().await;
        let per_directory = u64::from(FANOUT) * u64::from(FANOUT);
        let mapped = volume.pages.state().directories.last().map_or(0, |(last, _)| (last + 1) * per_directory);
        let (end, mapped) = (BlockAddress(volume.blocks()), BlockAddress(mapped));
        if mapped <= end || volume.extents(end, mapped, 1).await?.0.is_empty() {
            return Ok(());
        }
        self.give_back(volume, end, mapped).await
    }

    async fn forget_parent(&self, volume: &Arc<Volume>, cancel: &AtomicBool) -> Result<(), EngineError> {
        // A root and a past that name the parent go, empty as they are.
        if self.is_manual() {
            volume.begin_past_without_parent().await?;
        } else {
            let begun = volume.clone();
            unless_left(cancel, async move { begun.begin_past_without_parent().await }).await?;
        }
        let mut record = self.core.coordination.get(volume.id())?;
        record.parent = None;
        self.sources.put_identity(&record).await?;
        failpoint::hit(failpoint::FLATTEN_AFTER_IDENTITY);
        let (coordination, owner) = (self.core.coordination.clone(), volume.ownership());
        let changed = self.core.run_heavy(move || coordination.change(&[(owner, RecordChange::Flattened)])).await;
        changed.ok_or(EngineError::Interrupted)??;
        volume.forget_parent();
        tracing::info!(volume = %volume.id(), "volume flattened");
        Ok(())
    }

    /// Waits until everything that a volume has accepted so far is stored and in map pages.
    pub(crate) async fn store_all(&self, volume: &Arc<Volume>) -> Result<(), EngineError> {
        if !self.is_manual() {
            return volume.store_all().await;
        }
        volume.close_aged(0);
        let last = volume.last_closed();
        while volume.waits_for_store(last)? {
            self.step(false).await?;
        }
        volume.checkpoint_rest().await
    }
}

impl Volume {
    /// As [`Node::store_all`], while the store side runs by itself.
    pub(crate) async fn store_all(self: &Arc<Self>) -> Result<(), EngineError> {
        self.close_aged(0);
        let last = self.last_closed();
        while self.waits_for_store(last)? {
            self.core.work.notify_one();
            // Nobody else may want it stored yet.
            self.store_behind(|| true).await?;
            tokio::time::sleep(ROOM_POLL).await;
        }
        self.checkpoint_rest().await
    }

    fn waits_for_store(&self, last: ScoNumber) -> Result<bool, EngineError> {
        if self.is_halted() {
            return Err(EngineError::Halted { volume: self.id() });
        }
        Ok(self.behind.stored_sco() < last || self.layers.read().cuts() > 0)
    }

    async fn checkpoint_rest(self: &Arc<Self>) -> Result<(), EngineError> {
        let mut state = self.behind.state.lock().await;
        if self.layers.read().is_checkpointed() { Ok(()) } else { self.checkpoint(&mut state).await }
    }
}

impl Volume {
    async fn take_over_blocks(
        self: &Arc<Self>,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
        cancel: &AtomicBool,
    ) -> Result<(), EngineError> {
        let all = self.blocks();
        let mut at = Some(BlockAddress(0));
        while let Some(from) = at {
            progress(from.0, all);
            let (extents, next) = self.extents(from, BlockAddress(all), EXTENTS).await?;
            for extent in extents {
                let mut block = extent.first.0;
                let end = extent.first.0 + extent.count;
                while block < end {
                    let stop = (block + RUN).min(end);
                    self.take_over(block..stop, cancel).await?;
                    block = stop;
                }
            }
            at = next;
        }
        progress(all, all);
        Ok(())
    }

    /// Writes those of the blocks anew that an ancestor holds.
    async fn take_over(self: &Arc<Self>, blocks: Range<u64>, cancel: &AtomicBool) -> Result<(), EngineError> {
        go_on(cancel)?;
        // Guests first: this waits like a write that the throttle holds back.
        while self.core.throttle.slows() && !self.is_halted() {
            go_on(cancel)?;
            tokio::time::sleep(ROOM_POLL).await;
        }
        let held = loop {
            go_on(cancel)?;
            match self.try_hold(BlockAddress(blocks.start)..=BlockAddress(blocks.end - 1)) {
                Some(held) => break held,
                None => tokio::time::sleep(ROOM_POLL).await,
            }
        };
        let mut staging = Staging::default();
        for block in blocks.map(BlockAddress) {
            let unreadable = |_| EngineError::Unreadable { volume: self.id(), block };
            let source = self.located(block).await.map_err(unreadable)?;
            let is_foreign = matches!(&source, Source::Stored { location: Location { ancestor: 1.., .. }, .. });
            if matches!(&source, Source::Lost) {
                // It is lost in the parent: as long as nobody writes or discards it, its map page is the parent's.
                return Err(EngineError::Unreadable { volume: self.id(), block });
            }
            if is_foreign {
                let bytes = self.bytes_of(source).await.map_err(unreadable)?;
                let fill = |to: &mut [u8]| {
                    to.copy_from_slice(&bytes);
                    Ok(())
                };
                staging.add_block(self.core.journal.id(), block, bytes.len(), fill).map_err(unreadable)?;
            }
        }
        loop {
            go_on(cancel)?;
            let accepted = {
                let mut append = self.core.journal.lock();
                self.accept_locked(&mut append, &staging)
            };
            match accepted {
                Accepted::Yes(_) => break,
                Accepted::Full => tokio::time::sleep(ROOM_POLL).await,
                Accepted::Held | Accepted::Failed => return Err(self.refused()),
            }
        }
        drop(held);
        Ok(())
    }

    /// Takes a root of an ancestor, under which nothing is, as what it is: all zeros; and begins the past, if one is kept, with what is
    /// its own.
    async fn begin_past_without_parent(self: &Arc<Self>) -> Result<(), EngineError> {
        self.drop_foreign_root().await;
        self.begin_past().await
    }

    async fn drop_foreign_root(&self) {
        let mut state = self.behind.state.lock().await;
        if self.pages.state().root.is_some_and(|root| root.0.ancestor > 0) {
            state.manifest.map_root = Vec::new();
            self.pages.switch(Arc::default());
        }
    }

    /// Whether pages or locations of the head's map name an ancestor. Everything is in pages.
    async fn needs_parent(&self, cancel: &AtomicBool) -> Result<bool, EngineError> {
        if !self.layers.read().views().is_empty() {
            return Ok(true);
        }
        let state = self.pages.state();
        if state.root.is_some_and(|root| root.0.ancestor > 0) {
            return Ok(!state.directories.is_empty());
        }
        for (number, directory) in state.directories.iter() {
            go_on(cancel)?;
            if directory.ancestor > 0 {
                return Ok(true);
            }
            let id = self.pages.own_id(PageKind::Directory, *number);
            let bytes = self.pages.load(id, directory).await?;
            let leaves: Vec<_> = self.pages.known(&bytes, id, directory)?.leaves().collect();
            for (index, leaf) in leaves {
                if leaf.ancestor > 0 {
                    return Ok(true);
                }
                let id = self.pages.own_id(PageKind::Leaf, number * u64::from(FANOUT) + u64::from(index));
                let bytes = self.pages.load(id, &leaf).await?;
                let page: Page<'_> = self.pages.known(&bytes, id, &leaf)?;
                let foreign = |at: Location| at.ancestor > 0 && at != Location::LOST;
                if page.blocks().any(|(_, location, _)| foreign(location)) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
