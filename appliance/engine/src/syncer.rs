//! Group commit: one fdatasync answers every flush that waits for it, whatever volume it came from.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use lamina_contract::answers::together;
use lamina_contract::{Clock, IoError, Latencies, LatencyHistogram, Transfer};
use parking_lot::{Condvar, Mutex};

use crate::journal::{Journal, JournalError};
use crate::mutant::{self, Mutant};

/// How long an accepted write stays without an fdatasync when nobody flushes: bounds what recovery must re-read.
const IDLE_SYNC: Duration = Duration::from_secs(1);

struct Waiter {
    through: u64,
    transfer: Transfer,
    /// Set when the answer is good: the volume's next entry follows a sync mark.
    mark: Option<Arc<AtomicBool>>,
}

/// The flushes that wait, and the thread that serves them.
pub(crate) struct Syncer {
    journal: Arc<Journal>,
    clock: Arc<dyn Clock>,
    took: Latencies,
    waiting: Mutex<Vec<Waiter>>,
    wake: Condvar,
    threaded: AtomicBool,
    stop: AtomicBool,
}

impl Syncer {
    pub(crate) fn new(journal: Arc<Journal>, clock: Arc<dyn Clock>) -> Self {
        Self {
            journal,
            clock,
            took: Latencies::new(),
            waiting: Mutex::default(),
            wake: Condvar::new(),
            threaded: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    /// Serves flushes from a thread of its own from now on; before, they are served where they come in.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<std::thread::JoinHandle<()>> {
        let weak = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("journal-sync".into()).spawn(move || serve(&weak))?;
        self.threaded.store(true, Ordering::Release);
        Ok(thread)
    }

    /// Answers what waits and ends the thread.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake.notify_all();
    }

    /// Answers `transfer` once batch `through` is durable.
    pub(crate) fn when_durable(&self, through: u64, transfer: Transfer, mark: Option<Arc<AtomicBool>>) {
        let waiter = Waiter { through, transfer, mark };
        if mutant::is(Mutant::FlushBeforeSync) {
            return answer(waiter, Ok(()));
        }
        if self.journal.is_failed() {
            return answer(waiter, Err(IoError::Halted));
        }
        if through <= self.journal.durable() {
            return answer(waiter, Ok(()));
        }
        if self.threaded.load(Ordering::Acquire) {
            self.waiting.lock().push(waiter);
            self.wake.notify_one();
            if !self.threaded.load(Ordering::Acquire) {
                // The thread ended between the look and the push.
                self.serve_once();
            }
        } else {
            let result = self.sync().map(|_| ()).map_err(|_| IoError::Io);
            answer(waiter, result);
            if self.journal.claim_preparing()
                && let Err(error) = self.journal.prepare()
            {
                tracing::error!(error = &error as &dyn std::error::Error, "the next segment of the journal could not be prepared");
            }
        }
    }

    /// Has the thread sync although nobody flushes, when much was accepted.
    pub(crate) fn nudge(&self) {
        if self.journal.wants_sync() {
            self.wake.notify_one();
        }
    }

    /// How long syncs took.
    pub(crate) fn took(&self) -> LatencyHistogram {
        self.took.read()
    }

    fn sync(&self) -> Result<u64, JournalError> {
        let (syncs, began) = (self.journal.syncs(), self.clock.monotonic_ns());
        let result = self.journal.sync();
        // One that found everything durable says nothing about the SSD.
        if self.journal.syncs() != syncs {
            self.took.count(Duration::from_nanos(self.clock.monotonic_ns().saturating_sub(began)));
        }
        result
    }

    fn serve_once(&self) {
        let waiters = {
            let mut waiting = self.waiting.lock();
            let idle = waiting.is_empty() && !self.journal.wants_sync();
            if idle && self.threaded.load(Ordering::Acquire) && !self.stop.load(Ordering::Acquire) {
                self.wake.wait_for(&mut waiting, IDLE_SYNC);
            }
            std::mem::take(&mut *waiting)
        };
        if waiters.is_empty() && self.journal.durable() == self.journal.accepted() {
            return;
        }
        // Taken before the sync began, so all of them were accepted before it and are covered.
        let result = match self.sync() {
            Ok(_) => Ok(()),
            Err(error) => {
                if !waiters.is_empty() {
                    tracing::error!(error = &error as &dyn std::error::Error, flushes = waiters.len(), "flushes failed");
                }
                Err(IoError::Io)
            }
        };
        together(|| {
            for waiter in waiters {
                debug_assert!(result.is_err() || waiter.through <= self.journal.durable());
                answer(waiter, result);
            }
        });
    }
}

fn answer(waiter: Waiter, result: Result<(), IoError>) {
    if let (Some(mark), Ok(())) = (waiter.mark, result) {
        mark.store(true, Ordering::Release);
    }
    waiter.transfer.answer(result);
}

fn serve(weak: &Weak<Syncer>) {
    while let Some(syncer) = weak.upgrade() {
        syncer.serve_once();
        if syncer.stop.load(Ordering::Acquire) && syncer.waiting.lock().is_empty() {
            // A flush that comes later is served where it comes in.
            syncer.threaded.store(false, Ordering::Release);
            syncer.serve_once();
            return;
        }
    }
}
