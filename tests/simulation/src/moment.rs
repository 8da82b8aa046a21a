//! A moment of a life: what its devices held, and what a crash then must have left.

use std::sync::Arc;

use crate::life::{Past, World};
use crate::log::{Event, Mark};
use crate::oracle::{Bounds, Model};

/// How far a volume's guest had come.
#[derive(Debug, Clone, Default)]
struct Progress {
    submitted: usize,
    /// Requests of each operation that were acknowledged, from the first operation with one that was not.
    acked: Vec<u64>,
    requests: Vec<u64>,
    durable: usize,
    stored: usize,
}

impl Progress {
    fn acked_bounds(&self) -> Bounds {
        let full = self.acked.iter().zip(&self.requests).take_while(|(acked, all)| acked == all).count();
        Bounds { lower: full, upper: self.submitted, parts: self.acked.get(full).copied().unwrap_or(0) }
    }
}

/// See the module's header.
#[derive(Debug, Clone)]
pub struct Moment {
    /// The devices.
    pub world: World,
    progress: Vec<Progress>,
}

impl Moment {
    /// The moment before a life on `world` began; when it ended, its models were `models`.
    #[must_use]
    pub fn at_start(world: &World, past: &Past, models: &[Model]) -> Self {
        let progress = |(n, model): (usize, &Model)| {
            let requests: Vec<u64> = model.requests().map(|parts| if parts >= 64 { u64::MAX } else { (1 << parts) - 1 }).collect();
            let submitted = past.models[n].ops();
            let mut acked = requests.clone();
            acked[submitted..].fill(0);
            Progress { submitted, acked, requests, durable: past.durable[n], stored: past.stored[n] }
        };
        Self { world: world.clone(), progress: models.iter().enumerate().map(progress).collect() }
    }

    /// Goes on by one event.
    pub fn apply(&mut self, event: &Event) {
        self.world.apply(event);
        if let Event::Mark(mark) = event {
            self.mark(*mark);
        }
    }

    fn mark(&mut self, mark: Mark) {
        match mark {
            Mark::Submitted { volume, count } => self.progress[volume].submitted = count,
            Mark::Acked { volume, op, part } => {
                if let Some(acked) = self.progress[volume].acked.get_mut(op) {
                    *acked |= 1 << part;
                }
            }
            Mark::Durable { volume, through } => {
                let durable = &mut self.progress[volume].durable;
                *durable = through.max(*durable);
            }
            Mark::Stored { volume, through } => self.progress[volume].stored = through,
        }
    }

    /// What must be there after the process was killed, by volume.
    #[must_use]
    pub fn after_kill(&self) -> Vec<Bounds> {
        self.progress.iter().map(Progress::acked_bounds).collect()
    }

    /// What must be there after a power cut, by volume.
    #[must_use]
    pub fn after_power(&self) -> Vec<Bounds> {
        self.progress.iter().map(|p| Bounds { lower: p.durable, upper: p.submitted, parts: 0 }).collect()
    }

    /// What must be there when only the store is left, by volume.
    #[must_use]
    pub fn after_wipe(&self) -> Vec<Bounds> {
        self.progress.iter().map(|p| Bounds { lower: p.stored, upper: p.submitted, parts: 0 }).collect()
    }

    /// What guests know after a crash that left the volumes in the states `found`, of which `durable` say how much no power cut
    /// takes any more.
    #[must_use]
    pub fn past(&self, models: &[Model], found: &[usize], durable: Vec<usize>, next_op: u32) -> Past {
        let models = models.iter().zip(found).map(|(model, k)| model.truncated(*k)).collect();
        Past { models: Arc::new(models), durable, stored: self.progress.iter().map(|p| p.stored).collect(), next_op }
    }
}
