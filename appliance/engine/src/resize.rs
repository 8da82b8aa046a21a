//! Changing what operators set on a volume: its size, and its settings.

use std::sync::Arc;

use lamina_contract::snapshot::check_labels;
use lamina_contract::{BlockAddress, RecordChange, VolumeId, VolumeSettings};

use crate::error::EngineError;
use crate::node::{LARGEST_VOLUME, Node};
use crate::snapshot::Paused;
use crate::volume::Volume;
use crate::write::{Accepted, Staging};

impl Node {
    /// Changes a volume's capacity. Shrinking refuses to cut data off unless `force` says so; what is cut off is gone, but for snapshots.
    ///
    /// A crash while shrinking leaves the old size, with what was to be cut off gone already.
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
        if bytes < before {
            self.cut_off(&volume, bytes, before, force).await?;
        }
        let (coordination, owner) = (self.core.coordination.clone(), volume.ownership());
        let changed = self.core.run_heavy(move || coordination.change(&[(owner, RecordChange::Size(bytes))])).await;
        if let Err(error) = changed.ok_or(EngineError::Interrupted)? {
            volume.set_size(before);
            return Err(error.into());
        }
        volume.set_size(bytes);
        tracing::info!(volume = %id, before, bytes, "volume resized");
        volume.mark_past().await
    }

    /// Gives back everything behind the new end. Until it is decided, guests see the new end already.
    async fn cut_off(&self, volume: &Arc<Volume>, bytes: u64, before: u64, force: bool) -> Result<(), EngineError> {
        let size = volume.block_size().bytes() as u64;
        let (end, old_end) = (BlockAddress(bytes / size), BlockAddress(before / size));
        let paused = Paused::all(std::iter::once(volume.clone()));
        volume.set_size(bytes);
        let cut = async {
            if !force && let Some(extent) = volume.extents(end, old_end, 1).await?.0.first() {
                return Err(EngineError::WouldCut { volume: volume.id(), at: extent.first.0 * size });
            }
            let mut staging = Staging::default();
            staging.add_zeros(end, old_end.0 - end.0, false);
            volume.accept_while_paused(&staging).await?;
            let core = self.core.clone();
            self.core.run_heavy(move || core.journal.sync()).await.ok_or(EngineError::Interrupted)??;
            Ok(())
        };
        let cut = cut.await;
        if cut.is_err() {
            volume.set_size(before);
        }
        drop(paused);
        cut
    }

    /// Changes what operators set.
    ///
    /// # Errors
    /// When labels are not allowed, or the store or registry refuse.
    pub async fn change_settings(&self, id: VolumeId, settings: VolumeSettings) -> Result<(), EngineError> {
        let _change = self.changes.lock().await;
        let volume = self.volume(id).ok_or(EngineError::Unknown { volume: id })?;
        check_labels(&settings.labels)?;
        let change = RecordChange::Settings(Box::new(settings.clone()));
        let (coordination, owner) = (self.core.coordination.clone(), volume.ownership());
        self.core.run_heavy(move || coordination.change(&[(owner, change)])).await.ok_or(EngineError::Interrupted)??;
        let kept_past = volume.settings().cdp_ms > 0;
        let keeps_past = settings.cdp_ms > 0;
        volume.set_settings(settings);
        if kept_past != keeps_past { volume.begin_past().await } else { Ok(()) }
    }
}

impl Volume {
    /// Accepts changes of the appliance's own while those of guests wait.
    async fn accept_while_paused(self: &Arc<Self>, staging: &Staging) -> Result<(), EngineError> {
        loop {
            let accepted = {
                let mut append = self.core.journal.lock();
                self.accept_anyway(&mut append, staging)
            };
            match accepted {
                Accepted::Yes(_) => return Ok(()),
                Accepted::Full => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                Accepted::Held | Accepted::Failed => return Err(EngineError::Halted { volume: self.id() }),
            }
        }
    }
}
