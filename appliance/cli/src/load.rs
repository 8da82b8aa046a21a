//! What the appliance does right now: rates between two looks at counters that only grow.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lamina_api::job::{Job, JobList, JobState};
use lamina_api::page::MAX_LIMIT;
use lamina_api::paths;
use lamina_api::status::{Health, Space, Status};
use lamina_api::volume::{Volume, VolumeList};
use serde::Serialize;

use crate::client::{CallError, Client};

/// One look.
#[derive(Debug)]
pub(crate) struct Look {
    at: Instant,
    status: Status,
    volumes: Vec<Volume>,
    jobs: Vec<Job>,
    latency: BTreeMap<String, f64>,
}

/// What happened between two looks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Load {
    /// Between the looks.
    pub(crate) seconds: f64,
    /// Whether everything that should protect the data does.
    pub(crate) health: Health,
    /// What does not, in words.
    pub(crate) degraded: Vec<String>,
    /// The journal.
    pub(crate) journal: Space,
    /// The dedupe cache's space.
    pub(crate) cache: Space,
    /// Reads that it served, of all it was asked, from 0 to 1; absent without reads.
    pub(crate) cache_hit_ratio: Option<f64>,
    /// Bytes written to targets a second, parity included.
    pub(crate) store_written_bytes_per_second: f64,
    /// Targets that take and give fragments, of all.
    pub(crate) targets_up: u32,
    /// All of them.
    pub(crate) targets: u32,
    /// Each volume.
    pub(crate) volumes: Vec<VolumeLoad>,
    /// Jobs that have not ended.
    pub(crate) jobs: Vec<Job>,
}

/// What a volume's guest does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct VolumeLoad {
    /// The volume.
    pub(crate) name: String,
    /// Whether a hypervisor is connected.
    pub(crate) connected: bool,
    /// Read requests a second.
    pub(crate) reads_per_second: f64,
    /// Write requests a second.
    pub(crate) writes_per_second: f64,
    /// Bytes read a second.
    pub(crate) read_bytes_per_second: f64,
    /// Bytes written a second.
    pub(crate) written_bytes_per_second: f64,
    /// The latency that 99 of 100 requests kept since the daemon started, the worse of reads and writes; absent while nothing is known.
    pub(crate) p99_seconds: Option<f64>,
    /// Bytes that only the journal holds.
    pub(crate) pending_bytes: u64,
    /// Requests answered with an error a second.
    pub(crate) errors_per_second: f64,
}

/// What volumes are sorted by, the greatest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Order {
    /// Requests a second.
    Iops,
    /// Bytes a second.
    Throughput,
    /// The latency that 99 of 100 requests kept.
    Latency,
    /// Bytes that only the journal holds.
    Pending,
}

impl Order {
    /// The next one, for a key.
    pub(crate) const fn next(self) -> Self {
        match self {
            Self::Iops => Self::Throughput,
            Self::Throughput => Self::Latency,
            Self::Latency => Self::Pending,
            Self::Pending => Self::Iops,
        }
    }

    /// In a word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Iops => "IOPS",
            Self::Throughput => "throughput",
            Self::Latency => "latency",
            Self::Pending => "pending",
        }
    }

    fn value(self, load: &VolumeLoad) -> f64 {
        match self {
            Self::Iops => load.reads_per_second + load.writes_per_second,
            Self::Throughput => load.read_bytes_per_second + load.written_bytes_per_second,
            Self::Latency => load.p99_seconds.unwrap_or_default(),
            Self::Pending => load.pending_bytes as f64,
        }
    }
}

impl Look {
    /// Looks now.
    pub(crate) async fn take(client: &Client) -> Result<Self, CallError> {
        let status = client.get(paths::STATUS).await?;
        let volumes = client.all::<VolumeList>(paths::VOLUMES).await?;
        let at = Instant::now();
        let mut jobs = Vec::new();
        for state in [JobState::Running, JobState::Queued] {
            let page: JobList = client.get(&format!("{}?state={}&limit={MAX_LIMIT}", paths::JOBS, state.as_str())).await?;
            jobs.extend(page.jobs);
        }
        Ok(Self { at, status, volumes, jobs, latency: latencies(&client.metrics().await?) })
    }

    /// What happened since `before`, sorted by `order`.
    pub(crate) fn since(&self, before: &Self, order: Order) -> Load {
        let over = self.at.saturating_duration_since(before.at).max(Duration::from_millis(1)).as_secs_f64();
        // A counter that shrank belongs to a daemon that was started again.
        let rate = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now) as f64 / over;
        let mut volumes: Vec<_> = self
            .volumes
            .iter()
            .map(|volume| {
                let then =
                    before.volumes.iter().find(|other| other.id == volume.id).map_or(volume.counters, |other| other.counters);
                let now = volume.counters;
                VolumeLoad {
                    name: volume.name.clone(),
                    connected: volume.connected,
                    reads_per_second: rate(now.reads, then.reads),
                    writes_per_second: rate(now.writes, then.writes),
                    read_bytes_per_second: rate(now.read_bytes, then.read_bytes),
                    written_bytes_per_second: rate(now.written_bytes, then.written_bytes),
                    p99_seconds: self.latency.get(&volume.name).copied(),
                    pending_bytes: now.pending_bytes,
                    errors_per_second: rate(now.errors, then.errors),
                }
            })
            .collect();
        volumes.sort_by(|a, b| order.value(b).total_cmp(&order.value(a)).then_with(|| a.name.cmp(&b.name)));
        let (cache, earlier) = (&self.status.cache, &before.status.cache);
        let (hits, misses) = (rate(cache.hits, earlier.hits), rate(cache.misses, earlier.misses));
        let store = &self.status.store;
        Load {
            seconds: over,
            health: self.status.health,
            degraded: self
                .status
                .degraded
                .iter()
                .map(|degraded| format!("{}: {}; {}", degraded.what, degraded.detail, degraded.risk))
                .collect(),
            journal: self.status.journal,
            cache: cache.space,
            cache_hit_ratio: (hits + misses > 0.0).then(|| hits / (hits + misses)),
            store_written_bytes_per_second: rate(store.written_bytes, before.status.store.written_bytes),
            targets_up: store.targets_up,
            targets: store.targets,
            volumes,
            jobs: self.jobs.clone(),
        }
    }
}

/// The 0.99 quantile of reads and writes by volume, the worse of both, out of Prometheus text.
fn latencies(metrics: &str) -> BTreeMap<String, f64> {
    let mut worst = BTreeMap::new();
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix("lamina_request_seconds{") else { continue };
        let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
        // Names of volumes and operations have neither quotes nor commas in them.
        let label =
            |name: &str| labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'));
        let wanted = label("quantile") == Some("0.99") && matches!(label("op"), Some("read" | "write"));
        if let (true, Some(volume), Ok(value)) = (wanted, label("volume"), value.trim().parse::<f64>()) {
            let known = worst.entry(volume.to_owned()).or_insert(value);
            *known = known.max(value);
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::latencies;

    #[test]
    fn the_worse_of_reads_and_writes_is_a_volumes_latency() {
        let metrics = "\
# HELP lamina_request_seconds Latency.
lamina_request_seconds{volume=\"web\",op=\"read\",quantile=\"0.99\"} 0.000256
lamina_request_seconds{volume=\"web\",op=\"write\",quantile=\"0.99\"} 0.001024
lamina_request_seconds{volume=\"web\",op=\"write\",quantile=\"0.999\"} 1
lamina_request_seconds{volume=\"web\",op=\"flush\",quantile=\"0.99\"} 2
lamina_request_seconds{volume=\"db\",op=\"read\",quantile=\"0.99\"} x
lamina_requests_total{volume=\"web\",op=\"read\"} 7\n";
        assert_eq!(latencies(metrics).into_iter().collect::<Vec<_>>(), [("web".to_owned(), 0.001024)]);
    }
}
