//! Counters of a distributor: cheap enough for every request.

use std::sync::atomic::{AtomicU64, Ordering};

use lamina_contract::{Latencies, LatencyHistogram};

/// What happened since the distributor was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DistributorStats {
    /// Objects put.
    pub puts: u64,
    /// Object bytes put.
    pub bytes_in: u64,
    /// Reads of objects or ranges.
    pub gets: u64,
    /// Object bytes read by callers.
    pub bytes_out: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// Bytes of fragments written, headers and parity too.
    pub fragment_bytes_written: u64,
    /// Reads that needed more than the fragments that hold the bytes.
    pub degraded_reads: u64,
    /// Puts that succeeded with fewer than Y fragments.
    pub degraded_writes: u64,
    /// Puts that failed.
    pub failed_writes: u64,
    /// Fragments made out of others, for reads and repair.
    pub decodes: u64,
    /// Fragments that did not verify.
    pub damaged_fragments: u64,
    /// Fragments that repair made again.
    pub repaired_fragments: u64,
    /// How long puts took that succeeded, until `write_min` fragments were durable.
    pub put_took: LatencyHistogram,
    /// How long reads took until their first bytes (up to 64 MiB) were there.
    pub get_took: LatencyHistogram,
    /// Objects waiting for repair because a write or read found fragments short.
    pub awaiting_repair: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) puts: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) gets: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) deletes: AtomicU64,
    pub(crate) fragment_bytes_written: AtomicU64,
    pub(crate) degraded_reads: AtomicU64,
    pub(crate) degraded_writes: AtomicU64,
    pub(crate) failed_writes: AtomicU64,
    pub(crate) decodes: AtomicU64,
    pub(crate) damaged_fragments: AtomicU64,
    pub(crate) repaired_fragments: AtomicU64,
    pub(crate) put_took: Latencies,
    pub(crate) get_took: Latencies,
}

pub(crate) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn read(&self, awaiting_repair: u64) -> DistributorStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DistributorStats {
            puts: get(&self.puts),
            bytes_in: get(&self.bytes_in),
            gets: get(&self.gets),
            bytes_out: get(&self.bytes_out),
            deletes: get(&self.deletes),
            fragment_bytes_written: get(&self.fragment_bytes_written),
            degraded_reads: get(&self.degraded_reads),
            degraded_writes: get(&self.degraded_writes),
            failed_writes: get(&self.failed_writes),
            decodes: get(&self.decodes),
            damaged_fragments: get(&self.damaged_fragments),
            repaired_fragments: get(&self.repaired_fragments),
            put_took: self.put_took.read(),
            get_took: self.get_took.read(),
            awaiting_repair,
        }
    }
}
