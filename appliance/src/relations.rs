//! Who is whose clone: counted once for a whole list.

use std::collections::HashMap;
use std::sync::Arc;

use lamina_api::volume::Parent;
use lamina_contract::{SnapshotId, VolumeId, VolumeRecord};
use lamina_engine::Node;

/// See the file's header.
pub(crate) struct Relations {
    node: Arc<Node>,
    names: HashMap<VolumeId, String>,
    clones: HashMap<(VolumeId, SnapshotId), u32>,
    of_volume: HashMap<VolumeId, u32>,
}

impl Relations {
    pub(crate) fn of(records: &[VolumeRecord], node: &Arc<Node>) -> Self {
        let (mut clones, mut of_volume) = (HashMap::new(), HashMap::new());
        for parent in records.iter().filter(|record| !record.deleting).filter_map(|record| record.parent) {
            *clones.entry((parent.volume, parent.snapshot)).or_insert(0) += 1;
            *of_volume.entry(parent.volume).or_insert(0) += 1;
        }
        let names = records.iter().map(|record| (record.id, record.spec.name.to_string())).collect();
        Self { node: Arc::clone(node), names, clones, of_volume }
    }

    pub(crate) fn clones_of_volume(&self, volume: VolumeId) -> u32 {
        self.of_volume.get(&volume).copied().unwrap_or(0)
    }

    pub(crate) fn clones_of_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> u32 {
        self.clones.get(&(volume, snapshot)).copied().unwrap_or(0)
    }

    /// A parent in words; by its identity where it is not open.
    pub(crate) fn parent(&self, parent: lamina_contract::Parent) -> Parent {
        let volume = self.names.get(&parent.volume).cloned().unwrap_or_else(|| parent.volume.to_string());
        let snapshot = self.node.volume(parent.volume).and_then(|volume| volume.snapshot_name(parent.snapshot));
        Parent { volume, snapshot: snapshot.map_or_else(|| parent.snapshot.to_string(), |name| name.to_string()) }
    }
}
