//! A volume's record as JSON. Format 1: unknown fields are refused, so that an older release never drops what a newer one knows.

use lamina_contract::{
    BlockSize, Epoch, Generation, ScoSize, Timestamp, UnitError, VolumeId, VolumeName, VolumeRecord, VolumeSpec,
};
use serde::{Deserialize, Serialize};

/// One volume. Sizes in bytes, time in milliseconds since the Unix epoch, the identity as 16 hexadecimal digits.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    id: String,
    name: String,
    size_bytes: u64,
    block_size: u32,
    sco_size: u32,
    read_only: bool,
    created_ms: u64,
    epoch: u64,
    generation: u64,
    manifest_epoch: u64,
    deleting: bool,
}

impl From<&VolumeRecord> for Row {
    fn from(record: &VolumeRecord) -> Self {
        Self {
            id: record.id.to_string(),
            name: record.spec.name.as_str().to_owned(),
            size_bytes: record.spec.size_bytes,
            block_size: record.spec.block_size.get(),
            sco_size: record.spec.sco_size.get(),
            read_only: record.spec.read_only,
            created_ms: record.created.0,
            epoch: record.epoch.0,
            generation: record.generation.0,
            manifest_epoch: record.manifest_epoch.0,
            deleting: record.deleting,
        }
    }
}

impl TryFrom<Row> for VolumeRecord {
    type Error = UnitError;

    fn try_from(row: Row) -> Result<Self, UnitError> {
        Ok(Self {
            id: row.id.parse::<VolumeId>()?,
            spec: VolumeSpec {
                name: VolumeName::new(&row.name)?,
                size_bytes: row.size_bytes,
                block_size: BlockSize::new(u64::from(row.block_size))?,
                sco_size: ScoSize::new(u64::from(row.sco_size))?,
                read_only: row.read_only,
            },
            created: Timestamp(row.created_ms),
            epoch: Epoch(row.epoch),
            generation: Generation(row.generation),
            manifest_epoch: Epoch(row.manifest_epoch),
            deleting: row.deleting,
        })
    }
}
