//! How far the fragments of a put are, and how long it waits for the last of them.
//!
//! A put has succeeded with `write_min` fragments, and what is late goes on behind. That must not go on for ever: a drive that hangs for
//! half a minute (an error recovery of its own) would gather every object that is put meanwhile in memory.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::distributor::{Core, late_permits};
use crate::error::{LostFragment, TargetFault};
use crate::stripe::Layout;
use crate::target::TargetSlot;

/// How often a put that is held back looks whether it still must be.
const HOLD_TICK: Duration = Duration::from_millis(50);

/// Looks after which it is seen anew whether the other targets get on.
const HOLD_WINDOW: u32 = 20;

/// What the smallest late put counts for: it holds threads and tasks as well as bytes.
const LATE_MIN: u64 = 256 << 10;

/// What became of one fragment.
pub(crate) struct Outcome {
    pub(crate) index: usize,
    pub(crate) written: Result<usize, LostFragment>,
}

/// How far the fragments of one put are.
pub(crate) struct Progress {
    pub(crate) holders: Vec<Vec<usize>>,
    pub(crate) lost: Vec<LostFragment>,
    pub(crate) need: usize,
}

impl Progress {
    pub(crate) fn new(total: usize, need: usize) -> Self {
        Self { holders: vec![Vec::new(); total], lost: Vec::new(), need }
    }

    pub(crate) fn written(&self) -> usize {
        self.holders.iter().filter(|holders| !holders.is_empty()).count()
    }

    pub(crate) fn reported(&self) -> usize {
        self.written() + self.lost.len()
    }

    pub(crate) fn has(&self, index: usize) -> bool {
        self.holders.get(index).is_some_and(|holders| !holders.is_empty()) || self.lost.iter().any(|lost| lost.index == index)
    }

    /// Takes reports until all are in, or until `need` are written and `grace` is over.
    pub(crate) async fn collect(&mut self, reports: &mut mpsc::UnboundedReceiver<Outcome>, grace: Duration) {
        let mut deadline = None;
        while self.reported() < self.holders.len() {
            if self.written() >= self.need && deadline.is_none() && grace < Duration::MAX {
                deadline = Some(tokio::time::Instant::now() + grace);
            }
            let outcome = match deadline {
                None => reports.recv().await,
                Some(at) => match tokio::time::timeout_at(at, reports.recv()).await {
                    Ok(outcome) => outcome,
                    Err(_) => return,
                },
            };
            let Some(Outcome { index, written }) = outcome else { return };
            match (written, self.holders.get_mut(index)) {
                (Ok(at), Some(holders)) => holders.push(at),
                (Err(lost), _) => self.lost.push(lost),
                (Ok(_), None) => {}
            }
        }
    }
}

impl Core {
    /// Lets a put that has enough fragments be acknowledged before its last one, when the bytes it holds until then are within bounds; else
    /// it waits, which slows its writer down to the pace of the slowest target. A target on which nothing ends meanwhile, though all goes
    /// well on the others, has failed: it keeps what hangs on it and gets nothing more.
    pub(crate) async fn hold_back(
        &self,
        layout: &Layout,
        slots: &[Option<usize>],
        progress: &mut Progress,
        reports: &mut mpsc::UnboundedReceiver<Outcome>,
    ) -> Option<OwnedSemaphorePermit> {
        let total = layout.policy.total();
        let bytes = (layout.fragment_len() * total as u64).max(LATE_MIN);
        let held = late_permits(bytes).min(late_permits(self.options.late_bytes as u64)).max(1);
        let mut before = Vec::new();
        let mut seen: Vec<(u64, Duration)> = slots.iter().map(|_| (0, Duration::ZERO)).collect();
        for look in 0_u32.. {
            if progress.reported() >= total {
                break;
            }
            if look.is_multiple_of(HOLD_WINDOW) {
                before = self.targets.iter().map(TargetSlot::writes_ended).collect();
            }
            if let Ok(permit) = Arc::clone(&self.late).try_acquire_many_owned(held) {
                return Some(permit);
            }
            let mut hopeless = true;
            for ((index, slot), (ended, quiet)) in slots.iter().enumerate().zip(&mut seen) {
                let Some((at, target)) = slot.and_then(|at| Some((at, self.targets.get(at)?))) else { continue };
                if progress.has(index) {
                    continue;
                }
                if target.is_idle() {
                    // The fragment went on to another one.
                    hopeless = false;
                    continue;
                }
                if look == 0 {
                    target.held_back();
                }
                // In looks, not by the clock: a process that was stopped has seen nothing. Nor is it this target when none gets on.
                if target.writes_ended() != *ended {
                    (*ended, *quiet) = (target.writes_ended(), Duration::ZERO);
                } else if self.others_go_well(at, progress.need, &before) {
                    *quiet += HOLD_TICK;
                }
                if target.is_active() && *quiet >= self.options.stall_timeout {
                    target.failed(&TargetFault::TimedOut);
                }
                hopeless &= !target.is_active();
            }
            if hopeless || (reports.is_closed() && reports.is_empty()) {
                return None;
            }
            progress.collect(reports, HOLD_TICK).await;
        }
        None
    }

    /// Whether a put could do without target `at`: enough others have nothing to do, or have done something since `before`.
    fn others_go_well(&self, at: usize, need: usize, before: &[u64]) -> bool {
        let others = self.targets.iter().zip(before).enumerate().filter(|(other, _)| *other != at);
        others.filter(|(_, (target, before))| target.is_active() && (target.is_idle() || target.writes_ended() != **before)).count()
            >= need
    }
}
