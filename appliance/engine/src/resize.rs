//! Changing what operators set on a volume: its size, and its settings.
//!
//! Growing makes what comes in zero first, so whatever an earlier end left behind it is not seen again; shrinking is one decision in the
//! registry, and what was cut off is given back after it. A manifest has the size that belongs to the entries which it holds.

use std::sync::Arc;
use std::time::Duration;

use lamina_contract::snapshot::check_labels;
use lamina_contract::{BlockAddress, RecordChange, VolumeId, VolumeSettings};

use crate::error::EngineError;
use crate::node::{LARGEST_VOLUME, Node};
use crate::snapshot::Paused;
use crate::volume::Volume;
use crate::write::{Accepted, Staging};

/// How long guests wait for the store to know a volume's new size, or for room in the journal.
const STORE_PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait before the journal is asked for room again.
const ROOM_POLL: Duration = Duration::from_millis(5);

impl Node {
    /// Changes a volume's capacity. Shrinking refuses to cut data off unless `force` says so; what is cut off is gone, but for snapshots.
    ///
    /// # Errors
    /// When the size makes no sense, data would be cut off, or the journal or registry refuse.
    pub async fn resize(&self, id: VolumeId, bytes: u64, force: bool) -> Result<(), EngineError> {
        let _change = self.changes.lock().await;
        let volume = self.volume(id).ok_or(EngineError::Unknown { volume: id })?;
        let block = volume.block_size();
        if bytes == 0 || !bytes.is_multiple_of(block.bytes() as u64) || bytes > LARGEST_VOLUME {
            return Err(EngineError::VolumeSize { size_bytes: bytes, block_size: block.get() });
        }
        let before = volume.size_bytes();
        if bytes == before {
            return Ok(());
        }
        let keeps_past = volume.settings().cdp_ms > 0;
        if keeps_past {
            self.refuse_without_store()?;
        }
        // Requests under way were checked against the old end.
        let paused = Paused::all(std::iter::once(volume.clone()));
        self.resize_paused(&volume, before, bytes, force).await?;
        tracing::info!(volume = %id, before, bytes, "volume resized");
        if keeps_past {
            // A moment of the past has the size of then: no entry may lie on both sides.
            self.mark_size(&volume).await?;
        }
        drop(paused);
        Ok(())
    }

    /// Has the past know a new size. Guests wait for it; should the store go away meanwhile, not for long.
    async fn mark_size(&self, volume: &Arc<Volume>) -> Result<(), EngineError> {
        if self.is_manual() {
            self.store_all(volume).await?;
            return volume.mark_past().await;
        }
        let marked = volume.clone();
        // A task of its own, since what the store side does must not be left in the middle.
        let marking = tokio::spawn(async move {
            marked.store_all().await?;
            marked.mark_past().await
        });
        match tokio::time::timeout(STORE_PATIENCE, marking).await {
            Ok(marked) => marked.unwrap_or(Err(EngineError::Interrupted)),
            Err(_) => {
                tracing::warn!(volume = %volume.id(),
                    "the store does not take the volume's new size: until it does, moments of the past have the old one");
                Ok(())
            }
        }
    }

    async fn resize_paused(&self, volume: &Arc<Volume>, before: u64, bytes: u64, force: bool) -> Result<(), EngineError> {
        let block = |bytes: u64| BlockAddress(bytes / volume.block_size().bytes() as u64);
        if bytes < before
            && !force
            && let Some(extent) = volume.extents(block(bytes), block(before), 1).await?.0.first()
        {
            return Err(EngineError::WouldCut { volume: volume.id(), at: extent.first.0 * volume.block_size().bytes() as u64 });
        }
        let ends = (block(before.min(bytes)), block(before.max(bytes)));
        if bytes > before {
            self.give_back(volume, ends.0, ends.1).await?;
            let core = self.core.clone();
            self.core.run_heavy(move || core.journal.sync()).await.ok_or(EngineError::Interrupted)??;
        }
        let (coordination, owner) = (self.core.coordination.clone(), volume.ownership());
        // Nothing is accepted between here and the decision.
        let resized = RecordChange::Size { bytes, after: volume.layers.read().last_container() };
        let changed = self.core.run_heavy(move || coordination.change(&[(owner, resized)])).await;
        let changed = changed.ok_or(EngineError::Interrupted).and_then(|changed| Ok(changed?));
        if let Err(error) = changed {
            match self.core.coordination.get(volume.id()) {
                // Its answer was lost.
                Ok(record) if record.spec.size_bytes == bytes => {}
                Ok(_) => return Err(error),
                Err(unknown) => {
                    // The next start may find the new size: nothing may be accepted behind it until then.
                    tracing::error!(volume = %volume.id(), error = &unknown as &dyn std::error::Error,
                        "whether the volume was resized cannot be found out; it is halted");
                    volume.halt();
                    return Err(error);
                }
            }
        }
        {
            let _append = self.core.journal.lock();
            volume.set_size(bytes);
        }
        if bytes > before {
            return Ok(());
        }
        match self.give_back(volume, ends.0, ends.1).await {
            Err(EngineError::NoRoom { .. }) => {
                tracing::warn!(volume = %volume.id(), "what was cut off takes space until the volume grows again: the journal is full");
                Ok(())
            }
            other => other,
        }
    }

    /// Makes a range zero while guests' changes wait.
    pub(crate) async fn give_back(&self, volume: &Arc<Volume>, first: BlockAddress, end: BlockAddress) -> Result<(), EngineError> {
        let mut staging = Staging::default();
        staging.add_zeros(first, end.0 - first.0, false);
        let until = self.core.clock.monotonic_ms() + STORE_PATIENCE.as_millis() as u64;
        loop {
            let accepted = {
                let mut append = self.core.journal.lock();
                volume.accept_anyway(&mut append, &staging)
            };
            match accepted {
                Accepted::Yes(_) => return Ok(()),
                // The journal is full: the store makes room.
                Accepted::Full if self.is_manual() => self.step(true).await?,
                Accepted::Full if self.core.clock.monotonic_ms() >= until => {
                    return Err(EngineError::NoRoom { volume: volume.id() });
                }
                Accepted::Full => tokio::time::sleep(ROOM_POLL).await,
                Accepted::Held | Accepted::Failed => return Err(volume.refused()),
            }
        }
    }

    /// Changes what operators set.
    ///
    /// # Errors
    /// When labels are not allowed, or the store or registry refuse.
    pub async fn change_settings(&self, id: VolumeId, settings: VolumeSettings) -> Result<(), EngineError> {
        let change = self.changes.lock().await;
        let volume = self.volume(id).ok_or(EngineError::Unknown { volume: id })?;
        check_labels(&settings.labels)?;
        let (kept_past, keeps_past) = (volume.settings().cdp_ms > 0, settings.cdp_ms > 0);
        if kept_past != keeps_past {
            self.refuse_without_store()?;
        }
        let recorded = RecordChange::Settings(Box::new(settings.clone()));
        let (coordination, owner) = (self.core.coordination.clone(), volume.ownership());
        self.core.run_heavy(move || coordination.change(&[(owner, recorded)])).await.ok_or(EngineError::Interrupted)??;
        volume.set_settings(settings);
        // The store side's own lock orders what follows; whatever the settings are by then is what counts.
        drop(change);
        if kept_past != keeps_past { volume.begin_past().await } else { Ok(()) }
    }
}
