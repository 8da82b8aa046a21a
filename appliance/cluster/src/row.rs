//! A volume's record as JSON. Format 1: unknown fields are refused, so that an older release never drops what a newer one knows.

use lamina_contract::{
    BlockSize, Cut, Epoch, Generation, Labels, Parent, ScoNumber, ScoSize, SnapshotId, SnapshotName, SnapshotNote, Timestamp,
    UnitError, VolumeId, VolumeName, VolumeRecord, VolumeSettings, VolumeSpec,
};
use serde::{Deserialize, Serialize};

/// One volume. Sizes in bytes, times in milliseconds, moments since the Unix epoch, identities as 16 hexadecimal digits.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<ParentRow>,
    #[serde(default, skip_serializing_if = "SettingsRow::is_default")]
    settings: SettingsRow,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cuts: Vec<CutRow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size_after: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ParentRow {
    volume: String,
    snapshot: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SettingsRow {
    #[serde(skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
    template: bool,
    iops: Option<u64>,
    bandwidth: Option<u64>,
    burst_ms: u64,
    cdp_ms: u64,
    cache_quota: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CutRow {
    after: u64,
    id: String,
    name: String,
    created_ms: u64,
    size_bytes: u64,
    labels: Labels,
    description: String,
    pinned: bool,
    automatic: bool,
    rollback: Option<String>,
}

impl SettingsRow {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl From<&VolumeSettings> for SettingsRow {
    fn from(settings: &VolumeSettings) -> Self {
        let VolumeSettings { labels, template, iops, bandwidth, burst_ms, cdp_ms, cache_quota } = settings.clone();
        Self { labels, template, iops, bandwidth, burst_ms, cdp_ms, cache_quota }
    }
}

impl From<SettingsRow> for VolumeSettings {
    fn from(row: SettingsRow) -> Self {
        let SettingsRow { labels, template, iops, bandwidth, burst_ms, cdp_ms, cache_quota } = row;
        Self { labels, template, iops, bandwidth, burst_ms, cdp_ms, cache_quota }
    }
}

impl From<&Cut> for CutRow {
    fn from(cut: &Cut) -> Self {
        Self {
            after: cut.after.0,
            id: cut.note.id.to_string(),
            name: cut.note.name.to_string(),
            created_ms: cut.note.created.0,
            size_bytes: cut.note.size_bytes,
            labels: cut.note.labels.clone(),
            description: cut.note.description.clone(),
            pinned: cut.note.pinned,
            automatic: cut.note.automatic,
            rollback: cut.rollback.map(|id| id.to_string()),
        }
    }
}

impl TryFrom<CutRow> for Cut {
    type Error = UnitError;

    fn try_from(row: CutRow) -> Result<Self, UnitError> {
        Ok(Self {
            after: ScoNumber(row.after),
            note: SnapshotNote {
                id: row.id.parse()?,
                name: SnapshotName::new(&row.name)?,
                created: Timestamp(row.created_ms),
                size_bytes: row.size_bytes,
                labels: row.labels,
                description: row.description,
                pinned: row.pinned,
                automatic: row.automatic,
            },
            rollback: row.rollback.map(|id| id.parse::<SnapshotId>()).transpose()?,
        })
    }
}

impl From<&VolumeRecord> for Row {
    fn from(record: &VolumeRecord) -> Self {
        let parent = |parent: Parent| ParentRow { volume: parent.volume.to_string(), snapshot: parent.snapshot.to_string() };
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
            parent: record.parent.map(parent),
            settings: SettingsRow::from(&record.settings),
            cuts: record.cuts.iter().map(CutRow::from).collect(),
            size_after: record.size_after.map(|after| after.0),
        }
    }
}

impl TryFrom<Row> for VolumeRecord {
    type Error = UnitError;

    fn try_from(row: Row) -> Result<Self, UnitError> {
        let parent = |row: ParentRow| -> Result<Parent, UnitError> {
            Ok(Parent { volume: row.volume.parse()?, snapshot: row.snapshot.parse()? })
        };
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
            parent: row.parent.map(parent).transpose()?,
            settings: row.settings.into(),
            cuts: row.cuts.into_iter().map(Cut::try_from).collect::<Result<_, _>>()?,
            size_after: row.size_after.map(ScoNumber),
        })
    }
}
