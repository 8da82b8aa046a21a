//! How volumes are shown to people.

use lamina_api::volume::{Volume, VolumeState};

use crate::labels;
use crate::moment::local;
use crate::printer::{Property, Row, or_dash, size};
use crate::span::Span;
use crate::table::{Cell, Column};
use crate::tone::Tone;

impl Row for Volume {
    const COLUMNS: &'static [Column] = &[
        Column::new("NAME"),
        Column::number("SIZE"),
        Column::new("STATE"),
        Column::new("GUEST"),
        Column::number("WRITTEN"),
        Column::number("SNAPSHOTS").wide(),
        Column::new("PARENT").wide(),
        Column::new("LABELS").wide(),
        Column::new("CREATED").wide(),
        Column::new("SOCKET"),
    ];

    fn cells(&self) -> Vec<Cell> {
        vec![
            self.name.as_str().into(),
            size(self.size_bytes).into(),
            state(self),
            guest(self),
            size(self.counters.written_bytes).into(),
            self.snapshots.to_string().into(),
            or_dash(parent(self).as_deref()),
            labels::cell(&self.labels),
            local(&self.created).into(),
            or_dash(self.socket.as_deref()),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

fn state(volume: &Volume) -> Cell {
    let tone = match volume.state {
        VolumeState::Attached => Tone::Good,
        VolumeState::Detached => Tone::Plain,
        VolumeState::Deleting => Tone::Warn,
        VolumeState::Halted => Tone::Bad,
    };
    Cell::new(volume.state.as_str(), tone)
}

fn guest(volume: &Volume) -> Cell {
    or_dash(volume.connected.then_some("connected"))
}

fn parent(volume: &Volume) -> Option<String> {
    volume.parent.as_ref().map(|parent| format!("{}@{}", parent.volume, parent.snapshot))
}

/// What matters after a change.
pub(crate) fn brief(volume: &Volume) -> Vec<Property> {
    let socket = volume.socket.clone().unwrap_or_else(|| "- (attach it with: lamina volume attach)".to_owned());
    vec![
        ("name", volume.name.as_str().into()),
        ("size", size(volume.size_bytes).into()),
        ("state", state(volume)),
        ("socket", socket.into()),
    ]
}

/// Everything.
pub(crate) fn full(volume: &Volume) -> Vec<Property> {
    let mut rows = brief(volume);
    let counters = &volume.counters;
    let settings = &volume.settings;
    let limit = |value: u64, text: String| if value == 0 { "off".to_owned() } else { text };
    let qos = &settings.qos;
    let window = match &volume.cdp_start {
        Some(start) => format!("{}, back to {}", Span(settings.cdp_seconds), local(start)),
        None => limit(settings.cdp_seconds, Span(settings.cdp_seconds).to_string()),
    };
    let access = match (volume.template, volume.read_only) {
        (true, _) => "read-only, a template",
        (false, true) => "read-only",
        (false, false) => "read-write",
    };
    rows.extend([
        ("guest", guest(volume)),
        ("identity", volume.id.as_str().into()),
        ("created", local(&volume.created).into()),
        ("labels", labels::cell(&volume.labels)),
        ("block size", size(volume.block_size).into()),
        ("SCO size", size(volume.sco_size).into()),
        ("access", access.into()),
        ("parent", or_dash(parent(volume).as_deref())),
        ("snapshots", volume.snapshots.to_string().into()),
        ("clones", volume.clones.to_string().into()),
        ("IOPS limit", limit(qos.iops, qos.iops.to_string()).into()),
        ("bandwidth limit", limit(qos.bandwidth_bytes, format!("{}/s", size(qos.bandwidth_bytes))).into()),
        ("burst", limit(qos.burst_seconds, Span(qos.burst_seconds).to_string()).into()),
        ("CDP window", window.into()),
        ("cache quota", limit(settings.cache_quota_bytes, size(settings.cache_quota_bytes)).into()),
        ("epoch, generation", format!("{}, {}", volume.epoch, volume.generation).into()),
        ("read", format!("{} in {} requests", size(counters.read_bytes), counters.reads).into()),
        (
            "written",
            format!("{} in {} requests, {} flushes", size(counters.written_bytes), counters.writes, counters.flushes).into(),
        ),
        ("errors", Cell::new(counters.errors.to_string(), if counters.errors > 0 { Tone::Bad } else { Tone::Plain })),
        ("deduplicated", size(counters.deduplicated_bytes).into()),
        ("stored", size(counters.stored_bytes).into()),
        ("only in the journal", size(counters.pending_bytes).into()),
    ]);
    rows
}
