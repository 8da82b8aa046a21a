//! What a server counts: requests, bytes, errors and latencies per operation, and what went wrong on the control side.
//!
//! Each queue counts for itself on its own cache lines; a snapshot sums them up. Counts only ever go up while the server lives.
//! Latency runs from the moment a request was taken off the ring to the moment its answer was put on it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lamina_contract::{Latencies, LatencyHistogram};
use parking_lot::Mutex;

/// The operations that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpKind {
    /// `VIRTIO_BLK_T_IN`.
    Read,
    /// `VIRTIO_BLK_T_OUT`.
    Write,
    /// `VIRTIO_BLK_T_FLUSH`.
    Flush,
    /// `VIRTIO_BLK_T_DISCARD`.
    Discard,
    /// `VIRTIO_BLK_T_WRITE_ZEROES`.
    WriteZeroes,
    /// `VIRTIO_BLK_T_GET_ID`, unknown types and malformed chains.
    Other,
}

const KINDS: usize = 6;

/// The counts of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpCounters {
    /// Answered requests, failed ones included.
    pub requests: u64,
    /// Bytes of data in successful requests (a discard's or write-zeroes' range is not data).
    pub bytes: u64,
    /// Requests answered with anything but success.
    pub errors: u64,
    /// How long answers took.
    pub latency: LatencyHistogram,
}

/// All counts of a server at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterSnapshot {
    /// Whether a front end is connected.
    pub connected: bool,
    /// Front ends served so far, the present one included.
    pub connections: u64,
    /// Connections closed unserved: a second front end, or a user that is not allowed.
    pub refused: u64,
    /// Connections closed because of what the front end sent.
    pub protocol_errors: u64,
    /// Rings stopped because of what was in them.
    pub broken_rings: u64,
    /// Panics of the device that were caught.
    pub panics: u64,
    /// Times that a front end was told of a new size (or, come back, to look whether there is one).
    pub config_changes: u64,
    /// Whether the guest sees a write-back cache (and so owes us flushes).
    pub write_back: bool,
    /// Interrupts sent to the guest.
    pub signals: u64,
    /// Wake-ups by the guest's kicks.
    pub kicks: u64,
    /// Reads.
    pub read: OpCounters,
    /// Writes.
    pub write: OpCounters,
    /// Flushes.
    pub flush: OpCounters,
    /// Discards.
    pub discard: OpCounters,
    /// Write-zeroes.
    pub write_zeroes: OpCounters,
    /// Everything else.
    pub other: OpCounters,
}

#[derive(Debug)]
struct Op {
    bytes: AtomicU64,
    errors: AtomicU64,
    /// Its count is the number of requests: an answer costs three additions.
    latency: Latencies,
}

/// One queue's counts. Aligned so that two queues' threads do not share cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct QueueCounters {
    ops: [Op; KINDS],
    signals: AtomicU64,
    kicks: AtomicU64,
}

/// The server's counts.
#[derive(Debug)]
pub(crate) struct Counters {
    queues: Box<[QueueCounters]>,
    pub(crate) connected: AtomicBool,
    pub(crate) write_back: AtomicBool,
    pub(crate) connections: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) protocol_errors: AtomicU64,
    pub(crate) broken_rings: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) config_changes: AtomicU64,
    last_complaint: Mutex<Option<Instant>>,
}

impl QueueCounters {
    fn new() -> Self {
        let op = |_| Op { bytes: AtomicU64::new(0), errors: AtomicU64::new(0), latency: Latencies::new() };
        Self { ops: [0; KINDS].map(op), signals: AtomicU64::new(0), kicks: AtomicU64::new(0) }
    }

    pub(crate) fn answered(&self, kind: OpKind, bytes: u32, ok: bool, took: Duration) {
        let Some(op) = self.ops.get(kind as usize) else { return };
        if ok {
            op.bytes.fetch_add(u64::from(bytes), Ordering::Relaxed);
        } else {
            op.errors.fetch_add(1, Ordering::Relaxed);
        }
        op.latency.count(took);
    }

    pub(crate) fn signalled(&self) {
        self.signals.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn kicked(&self) {
        self.kicks.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counters {
    pub(crate) fn new(queues: u16, write_back: bool) -> Self {
        Self {
            queues: (0..queues).map(|_| QueueCounters::new()).collect(),
            connected: AtomicBool::new(false),
            write_back: AtomicBool::new(write_back),
            connections: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            protocol_errors: AtomicU64::new(0),
            broken_rings: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            config_changes: AtomicU64::new(0),
            last_complaint: Mutex::new(None),
        }
    }

    pub(crate) fn queue(&self, index: u16) -> Option<&QueueCounters> {
        self.queues.get(usize::from(index))
    }

    /// Whether one more line about a front end's misdeeds may be logged: one a second, so that it cannot flood the log.
    pub(crate) fn may_complain(&self) -> bool {
        let mut last = self.last_complaint.lock();
        let now = Instant::now();
        let may = last.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1));
        if may {
            *last = Some(now);
        }
        may
    }

    pub(crate) fn snapshot(&self) -> CounterSnapshot {
        let sum = |f: fn(&QueueCounters) -> &AtomicU64| self.queues.iter().map(|q| f(q).load(Ordering::Relaxed)).sum();
        CounterSnapshot {
            connected: self.connected.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            protocol_errors: self.protocol_errors.load(Ordering::Relaxed),
            broken_rings: self.broken_rings.load(Ordering::Relaxed),
            panics: self.panics.load(Ordering::Relaxed),
            config_changes: self.config_changes.load(Ordering::Relaxed),
            write_back: self.write_back.load(Ordering::Relaxed),
            signals: sum(|q| &q.signals),
            kicks: sum(|q| &q.kicks),
            read: self.op(OpKind::Read),
            write: self.op(OpKind::Write),
            flush: self.op(OpKind::Flush),
            discard: self.op(OpKind::Discard),
            write_zeroes: self.op(OpKind::WriteZeroes),
            other: self.op(OpKind::Other),
        }
    }

    fn op(&self, kind: OpKind) -> OpCounters {
        let mut sum = OpCounters { requests: 0, bytes: 0, errors: 0, latency: LatencyHistogram::default() };
        for op in self.queues.iter().filter_map(|q| q.ops.get(kind as usize)) {
            sum.bytes += op.bytes.load(Ordering::Relaxed);
            sum.errors += op.errors.load(Ordering::Relaxed);
            sum.latency.merge(&op.latency.read());
        }
        sum.requests = sum.latency.count();
        sum
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Counters, OpKind};

    #[test]
    fn queues_sum_up_and_quantiles_name_the_upper_end_of_a_bucket() {
        let counters = Counters::new(2, true);
        for (queue, nanos) in [(0, 900), (1, 900), (1, 5_000)] {
            counters.queue(queue).expect("queue").answered(OpKind::Read, 4096, true, Duration::from_nanos(nanos));
        }
        counters.queue(0).expect("queue").answered(OpKind::Read, 4096, false, Duration::from_nanos(u64::MAX));
        let read = counters.snapshot().read;
        assert_eq!((read.requests, read.bytes, read.errors), (4, 3 * 4096, 1));
        assert_eq!(read.latency.quantile(0.5), Some(Duration::from_nanos(1024)));
        assert_eq!(read.latency.quantile(0.75), Some(Duration::from_nanos(8192)));
        assert_eq!(read.latency.quantile(1.0), Some(Duration::from_nanos(1 << 35)));
        assert_eq!(counters.snapshot().write.latency.quantile(0.5), None);
    }

    #[test]
    fn complaints_come_at_most_once_a_second() {
        let counters = Counters::new(1, true);
        assert!(counters.may_complain());
        assert!(!counters.may_complain());
    }
}
