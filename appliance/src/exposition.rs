//! `/metrics`: counters and gauges in Prometheus' text form (version 0.0.4), rendered from the parts' own counters at each scrape.
//!
//! Names begin with `lamina_`, units are seconds and bytes; counters end in `_total` and run from the daemon's start. What has several
//! known values (kinds of degradation, states) shows all of them, 0 too, so that an alert never waits for a series to appear.
//! `appliance/docs/OPERATIONS.md` lists the names; a test holds dashboard and rules to what a daemon really shows.

use lamina_distributor::{DistributorStats, TargetHealth};
use lamina_engine::NodeStatus;

use crate::degraded::{self, Condition, condition};
use crate::metrics_page::{COARSE, Kind, Page};
use crate::served::Served;
use crate::volume_metrics;
use crate::watch::{Sight, Watched};

/// The text.
pub(crate) fn text(served: &Served) -> String {
    let mut page = Page::default();
    daemon(&mut page, served);
    node(&mut page, &served.node.status());
    store(&mut page, served.store.stats());
    targets(&mut page, served);
    jobs(&mut page, served);
    interface(&mut page, served);
    let volumes = served.statuses();
    volume_metrics::volumes(&mut page, &volumes);
    volume_metrics::fronts(&mut page, &volumes, &served.fronts());
    volume_metrics::limits(&mut page, &volumes, &served.held());
    page.text()
}

fn daemon(page: &mut Page, served: &Served) {
    page.family("lamina_build_info", Kind::Gauge, "1, with the release as a label.");
    page.sample("lamina_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let started = served.started().0 as f64 / 1000.0;
    page.single("lamina_start_time_seconds", Kind::Gauge, "When the daemon was ready, since 1970.", started);
    page.single("lamina_uptime_seconds", Kind::Gauge, "Since the daemon was ready.", served.uptime().as_secs());
    page.single(
        "lamina_store_lag_seconds",
        Kind::Gauge,
        "Age at which blocks go to the store.",
        served.settings.store_lag.as_secs_f64(),
    );
    page.single("lamina_recovery_seconds", Kind::Gauge, "How long its start took.", served.recovery().as_secs_f64());
    page.family("lamina_degraded", Kind::Gauge, "Things that are not as they should be, by kind.");
    let degraded = served.degradations();
    for kind in degraded::KINDS {
        let count = degraded.iter().filter(|one| one.what == kind).count();
        page.sample("lamina_degraded", &[("what", kind)], count);
    }
    let (begun, ended) = (served.transitions.begun(), served.transitions.ended());
    page.single("lamina_degradations_total", Kind::Counter, "How often something became degraded.", begun);
    page.single("lamina_degradations_ended_total", Kind::Counter, "How often something was well again.", ended);
}

fn node(page: &mut Page, node: &NodeStatus) {
    for (name, help, value) in [
        ("lamina_journal_capacity_bytes", "Space of the journal.", node.journal_bytes),
        ("lamina_journal_used_bytes", "Journal segments in use.", node.journal_used_bytes),
        ("lamina_journal_unstored_bytes", "Bytes in the journal that the store does not have.", node.unstored_bytes),
        ("lamina_cache_capacity_bytes", "Space of the dedupe cache.", node.cache.capacity),
        ("lamina_cache_used_bytes", "Blocks in the dedupe cache.", node.cache.bytes),
        ("lamina_memory_bytes", "Memory of map layers, pages and cache index.", node.memory_bytes),
        ("lamina_throttled", "1 while guests are being slowed.", u64::from(node.throttled)),
        ("lamina_journal_failed", "1 when the journal's SSD failed.", u64::from(node.journal_failed)),
        ("lamina_store_down", "1 while the store refuses objects.", u64::from(node.store_down)),
        ("lamina_cache_failed", "1 when the dedupe cache is off.", u64::from(node.cache_failed)),
    ] {
        page.single(name, Kind::Gauge, help, value);
    }
    page.single("lamina_journal_fill_ratio", Kind::Gauge, "Share of the journal that waits for the store.", node.journal_fill);
    for (name, help, value) in [
        ("lamina_journal_written_bytes_total", "Bytes written to the journal.", node.journal_written_bytes),
        ("lamina_journal_syncs_total", "fdatasync calls on the journal.", node.journal_syncs),
        ("lamina_cache_hits_total", "Blocks read from the dedupe cache.", node.cache.hits),
        ("lamina_cache_misses_total", "Blocks that the dedupe cache did not have.", node.cache.misses),
        ("lamina_cache_inserts_total", "Blocks taken into the dedupe cache.", node.cache.inserts),
        ("lamina_cache_evictions_total", "Blocks evicted from the dedupe cache.", node.cache.evictions),
        ("lamina_cache_bad_total", "Damaged copies found in the dedupe cache.", node.cache.bad),
        ("lamina_cache_written_bytes_total", "Bytes written to the dedupe cache.", node.cache.bytes_written),
    ] {
        page.single(name, Kind::Counter, help, value);
    }
    let took = "How long syncs of the journal took that flushes waited for.";
    page.single_histogram("lamina_journal_sync_duration_seconds", took, &node.journal_sync_took);
}

fn store(page: &mut Page, stats: DistributorStats) {
    for (name, help, value) in [
        ("lamina_store_puts_total", "Objects put.", stats.puts),
        ("lamina_store_put_bytes_total", "Bytes of objects put.", stats.bytes_in),
        ("lamina_store_gets_total", "Reads of objects or ranges.", stats.gets),
        ("lamina_store_get_bytes_total", "Bytes of objects read.", stats.bytes_out),
        ("lamina_store_deletes_total", "Objects deleted.", stats.deletes),
        ("lamina_store_written_bytes_total", "Bytes of fragments written, parity included.", stats.fragment_bytes_written),
        ("lamina_store_degraded_reads_total", "Reads that had to be decoded.", stats.degraded_reads),
        ("lamina_store_degraded_writes_total", "Writes that left fragments to be repaired.", stats.degraded_writes),
        ("lamina_store_failed_writes_total", "Writes with too few fragments.", stats.failed_writes),
        ("lamina_store_decodes_total", "Fragments made out of others.", stats.decodes),
        ("lamina_store_damaged_fragments_total", "Fragments that did not verify.", stats.damaged_fragments),
        ("lamina_store_repaired_fragments_total", "Fragments made again.", stats.repaired_fragments),
    ] {
        page.single(name, Kind::Counter, help, value);
    }
    page.single("lamina_store_awaiting_repair", Kind::Gauge, "Objects with too few fragments.", stats.awaiting_repair);
    let puts = "How long objects took to be durable in the store.";
    page.single_histogram("lamina_store_put_duration_seconds", puts, &stats.put_took);
    let gets = "How long reads took, objects over 64 MiB to their first part.";
    page.single_histogram("lamina_store_get_duration_seconds", gets, &stats.get_took);
}

/// A member of the store with what working with it says.
struct Member<'a> {
    slot: String,
    id: String,
    watched: &'a Watched,
    health: Option<&'a TargetHealth>,
}

/// Name, kind, help, and where the value is.
type Family<'a> = (&'static str, Kind, &'static str, fn(&Member<'a>) -> u64);

impl Member<'_> {
    fn state(&self) -> &'static str {
        match condition(self.watched, self.health) {
            Condition::Up => "up",
            Condition::Full => "full",
            Condition::Suspect(_) => "suspect",
            Condition::Missing(_) => "missing",
        }
    }

    /// Free and in all.
    fn space(&self) -> (u64, u64) {
        match self.watched.sight() {
            Sight::There(space) => (space.free, space.total),
            Sight::Gone(_) | Sight::Silent | Sight::Missing => (0, 0),
        }
    }

    fn count(&self, count: fn(&TargetHealth) -> u64) -> u64 {
        self.health.map_or(0, count)
    }
}

fn targets(page: &mut Page, served: &Served) {
    let health = served.store.health();
    let members = served.watch.members().iter().map(|watched| Member {
        slot: watched.slot.to_string(),
        id: format!("{:032x}", watched.id),
        watched,
        health: health.iter().find(|target| target.id.0 == watched.id),
    });
    let members: Vec<_> = members.collect();
    let families: [Family<'_>; 7] = [
        ("lamina_target_up", Kind::Gauge, "1 while the target takes and gives fragments.", |m| u64::from(m.state() == "up")),
        ("lamina_target_free_bytes", Kind::Gauge, "Free space, 0 when unknown.", |m| m.space().0),
        ("lamina_target_capacity_bytes", Kind::Gauge, "Size of the file system, 0 when unknown.", |m| m.space().1),
        ("lamina_target_read_bytes_total", Kind::Counter, "Bytes of fragments read.", |m| m.count(|t| t.bytes_read)),
        ("lamina_target_written_bytes_total", Kind::Counter, "Bytes of fragments written.", |m| m.count(|t| t.bytes_written)),
        ("lamina_target_errors_total", Kind::Counter, "Calls that failed.", |m| m.count(|t| t.errors)),
        (
            "lamina_target_held_back_total",
            Kind::Counter,
            "Puts that waited for this target alone: the pool goes at its pace.",
            |m| m.count(|t| t.held_back),
        ),
    ];
    for (name, kind, help, value) in families {
        page.family(name, kind, help);
        for member in &members {
            page.sample(name, &[("target", &member.slot), ("id", &member.id)], value(member));
        }
    }
    page.family("lamina_target_state", Kind::Gauge, "1 for the state that it is in.");
    for member in &members {
        let now = member.state();
        for state in ["up", "full", "suspect", "missing"] {
            let labels = [("target", member.slot.as_str()), ("id", &member.id), ("state", state)];
            page.sample("lamina_target_state", &labels, u64::from(now == state));
        }
    }
    let took = "lamina_target_request_duration_seconds";
    page.family(took, Kind::Histogram, "How long calls took that it answered well.");
    for member in &members {
        let Some(health) = member.health else { continue };
        for (op, latency) in [("read", &health.reads_took), ("write", &health.writes_took)] {
            page.histogram(took, &[("target", &member.slot), ("id", &member.id), ("op", op)], latency, &COARSE);
        }
    }
}

fn jobs(page: &mut Page, served: &Served) {
    page.family("lamina_jobs", Kind::Gauge, "Jobs by state; those that have ended as long as they are remembered.");
    for (state, count) in served.records.jobs.counts() {
        page.sample("lamina_jobs", &[("state", state.as_str())], count);
    }
    page.single("lamina_jobs_failed_total", Kind::Counter, "Jobs that failed.", served.records.jobs.failed());
}

fn interface(page: &mut Page, served: &Served) {
    let Some(counts) = served.calls() else { return };
    page.family("lamina_api_requests_total", Kind::Counter, "Requests of the interface, by route and first digit of the status.");
    for one in counts.read() {
        let class = format!("{}xx", one.class);
        let labels = [("method", one.method.as_str()), ("route", one.route), ("class", &class)];
        page.sample("lamina_api_requests_total", &labels, one.count);
    }
    let took = "How long answers of the interface took, waiting for jobs included.";
    page.single_histogram("lamina_api_request_duration_seconds", took, &counts.took());
}
