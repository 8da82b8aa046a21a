//! Crashes: which images a kill or a power cut may leave of a moment, and whether recovery makes of each what it must.

use std::fmt;
use std::sync::Arc;

use lamina_formats::journal::{SegmentHeader, decode_batch};

use crate::dice::Dice;
use crate::disk_image::{DiskEvent, DiskImage, Fate};
use crate::life::{Life, Past, Shape, World};
use crate::log::{Event, Mark};
use crate::moment::Moment;
use crate::oracle::{Bounds, Model, Violation};
use crate::stamp::Content;

/// Events that a finding tells.
const BEFORE: usize = 60;

/// How a node ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Crash {
    /// The process was killed; what it wrote is with the system.
    Kill,
    /// The process was killed while its last write was under way: this many sectors of it arrived.
    KillInWrite(usize),
    /// Power was cut; what the journal's unsynced writes met, oldest first.
    Power(Vec<Fate>),
    /// Journal, cache and registry are lost; only the store is left.
    Wipe,
}

/// A promise that was broken, and where.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The promise.
    pub violation: Violation,
    /// The crash.
    pub crash: Crash,
    /// After how many events of the life.
    pub event: usize,
    /// The events before that, newest last.
    pub before: Vec<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n  after event {} by {:?}", self.violation, self.event, self.crash)?;
        self.before.iter().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

/// How thorough to be.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Unsynced writes up to which every one of them meets every fate.
    pub exhaustive_writes: usize,
    /// Power images by chance for each moment besides.
    pub random_images: usize,
    /// Of 100 recoveries, how many are themselves cut at each of their events.
    pub cut_recoveries: u64,
    /// Of 100 moments, how many are looked at.
    pub moments: u64,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Moments.
    pub moments: u64,
    /// Images recovered from.
    pub states: u64,
    /// Of these, images of a recovery that was cut off.
    pub cut_recoveries: u64,
}

/// A life that is over, with all that is needed to judge its crashes.
pub struct Ended<'a> {
    /// Shape of the node.
    pub shape: &'a Shape,
    /// The world as it was before.
    pub world: &'a World,
    /// What guests knew before.
    pub past: &'a Past,
    /// What guests knew in the end.
    pub models: Arc<Vec<Model>>,
    /// What happened.
    pub events: Vec<Event>,
    /// The number of the operation after the last.
    pub next_op: u32,
    /// Milliseconds since the world began.
    pub now_ms: u64,
}

/// A crash that was survived, to go on from.
pub struct Survivor {
    /// What it left.
    pub world: World,
    /// What guests know.
    pub past: Past,
}

/// Looks at crashes.
pub struct Explorer {
    effort: Effort,
    dice: Dice,
    /// What was looked at so far.
    pub count: Count,
}

impl Explorer {
    /// With chance from `seed`.
    #[must_use]
    pub fn new(effort: Effort, seed: u64) -> Self {
        Self { effort, dice: Dice::new(seed), count: Count::default() }
    }

    /// Looks at the crashes of `life` after its event `from`.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn explore(&mut self, life: &Ended<'_>, from: usize) -> Result<(), Box<Finding>> {
        let mut moment = Moment::at_start(life.world, life.past, &life.models);
        moment.world.now_ms = life.now_ms;
        let mut news = News { opened: false, acked: true, durable: true, stored: true };
        for at in 0..=life.events.len() {
            let next = life.events.get(at);
            let last = at.checked_sub(1).and_then(|n| life.events.get(n));
            if at >= from && self.dice.chance(self.effort.moments) {
                self.moment(life, &moment, at, last, next, &mut news)?;
            }
            let Some(event) = next else { break };
            moment.apply(event);
            news.hear(event);
        }
        Ok(())
    }

    fn moment(
        &mut self,
        life: &Ended<'_>,
        moment: &Moment,
        at: usize,
        last: Option<&Event>,
        next: Option<&Event>,
        news: &mut News,
    ) -> Result<(), Box<Finding>> {
        let changed = !matches!(last, Some(Event::Mark(_)) | None);
        // Before the next change the guests know most, so most is promised.
        let settled = !matches!(next, Some(Event::Mark(_)));
        let mut looked = false;
        if let Some(Event::Journal(DiskEvent::Write { .. })) = last
            && let Some(write) = moment.world.journal.unsynced().last()
        {
            let part = self.dice.index(write.sectors);
            looked = true;
            self.judge(life, moment, at, Crash::KillInWrite(part))?;
        }
        if settled && news.acked {
            looked = true;
            self.judge(life, moment, at, Crash::Kill)?;
        }
        if changed || (settled && news.durable) {
            looked = true;
            for fates in self.fates(&moment.world.journal) {
                self.judge(life, moment, at, Crash::Power(fates))?;
            }
            news.durable = !settled;
        }
        // Until the node has opened, no guest has seen what the crash before took.
        if settled && news.stored && news.opened {
            looked = true;
            self.judge(life, moment, at, Crash::Wipe)?;
        }
        if settled {
            *news = News { opened: news.opened, ..News::default() };
        }
        self.count.moments += u64::from(looked);
        Ok(())
    }

    /// What the unsynced writes of a disk may meet.
    fn fates(&mut self, disk: &DiskImage) -> Vec<Vec<Fate>> {
        let writes = disk.unsynced();
        let count = writes.len();
        if count == 0 {
            return vec![Vec::new()];
        }
        let mut all = vec![vec![Fate::Whole; count], vec![Fate::Lost; count]];
        if count <= self.effort.exhaustive_writes {
            for (n, write) in writes.iter().enumerate() {
                let half = write.sectors / 2;
                for fate in [
                    Fate::Lost,
                    Fate::Prefix(1),
                    Fate::Prefix(half.max(1)),
                    Fate::Suffix(half.max(1)),
                    Fate::Torn(self.dice.word()),
                    Fate::Garbage(self.dice.word()),
                    Fate::Misdirected(write.nowhere),
                ] {
                    let mut fates = vec![Fate::Whole; count];
                    fates[n] = fate;
                    all.push(fates);
                }
            }
        }
        for _ in 0..self.effort.random_images {
            all.push(writes.iter().map(|write| self.fate(write.sectors, write.nowhere)).collect());
        }
        all
    }

    fn fate(&mut self, sectors: usize, nowhere: u64) -> Fate {
        match self.dice.below(12) {
            0..=5 => Fate::Whole,
            6 | 7 => Fate::Lost,
            8 => Fate::Prefix(self.dice.index(sectors)),
            9 => Fate::Torn(self.dice.word()),
            10 => Fate::Garbage(self.dice.word()),
            _ => Fate::Misdirected(nowhere),
        }
    }

    fn judge(&mut self, life: &Ended<'_>, moment: &Moment, at: usize, crash: Crash) -> Result<(), Box<Finding>> {
        let (world, bounds) = self.after(moment, &crash);
        let cut = self.dice.chance(self.effort.cut_recoveries);
        self.recover(life, &world, &bounds, cut).map(drop).map_err(|violation| {
            let first = at.saturating_sub(BEFORE);
            let before = life.events[first..at].iter().map(describe).collect();
            Box::new(Finding { violation, crash, event: at, before })
        })
    }

    /// What `crash` leaves, and what must be there.
    fn after(&mut self, moment: &Moment, crash: &Crash) -> (World, Vec<Bounds>) {
        let mut world = moment.world.clone();
        match crash {
            Crash::Kill => (world, moment.after_kill()),
            Crash::KillInWrite(sectors) => {
                // The process died in the call: what did not arrive never will, the rest is as good as before.
                world.journal = world.journal.with_last_cut(*sectors);
                (world, moment.after_kill())
            }
            Crash::Power(fates) => {
                let (mut names, mut cache) = (self.dice.fork(), self.dice.fork());
                let keep_all = names.chance(50);
                world.journal = world.journal.settle(fates, |_| keep_all || names.chance(50));
                let cached = world.cache.unsynced();
                let fates: Vec<Fate> = cached.iter().map(|w| self.fate(w.sectors, w.nowhere)).collect();
                world.cache = world.cache.settle(&fates, |_| cache.chance(80));
                (world, moment.after_power())
            }
            Crash::Wipe => {
                world.journal = DiskImage::default();
                world.cache = DiskImage::default();
                world.registry = Arc::default();
                (world, moment.after_wipe())
            }
        }
    }

    /// Recovers from `world` and judges what comes back: the state of each volume. With `cut`, the recovery is cut at each of its
    /// own events too, and must come to the same.
    fn recover(&mut self, life: &Ended<'_>, world: &World, bounds: &[Bounds], cut: bool) -> Result<Vec<usize>, Violation> {
        self.count.states += 1;
        let past = Past { models: life.models.clone(), durable: Vec::new(), stored: Vec::new(), next_op: life.next_op };
        let (seen, events) = open_and_read(life.shape, world, &past)?;
        let mut found = Vec::with_capacity(bounds.len());
        for ((model, seen), bounds) in life.models.iter().zip(&seen).zip(bounds) {
            found.push(model.judge(seen, *bounds)?);
        }
        if cut {
            self.cut_recovery(life, world, &past, &seen, &events)?;
        }
        Ok(found)
    }

    fn cut_recovery(
        &mut self,
        life: &Ended<'_>,
        world: &World,
        past: &Past,
        seen: &[Vec<Content>],
        events: &[Event],
    ) -> Result<(), Violation> {
        // A recovery that was killed leaves the world with what it wrote; where nothing was unsynced before, power may take that.
        let fixed = world.journal.unsynced().is_empty();
        let mut world = world.clone();
        for (at, event) in events.iter().enumerate() {
            match event {
                Event::Journal(event) => world.journal.apply(event),
                Event::Cache(event) => world.cache.apply(event),
                Event::Store(objects) => world.store = objects.clone(),
                Event::Registry(records) => world.registry = records.clone(),
                Event::Mark(_) => continue,
            }
            let mut left = world.clone();
            if fixed && self.dice.chance(67) {
                let fates: Vec<Fate> = world.journal.unsynced().iter().map(|w| self.fate(w.sectors, w.nowhere)).collect();
                let mut names = self.dice.fork();
                left.journal = world.journal.settle(&fates, |_| names.chance(50));
            }
            self.count.states += 1;
            self.count.cut_recoveries += 1;
            let (again, _) = open_and_read(life.shape, &left, past)?;
            if let Some(volume) = (0..seen.len()).find(|v| again[*v] != seen[*v]) {
                return Err(Violation::NotIdempotent { volume, event: at });
            }
        }
        Ok(())
    }

    /// Picks one crash of `life` and gives what guests find afterwards, to begin the next life with.
    ///
    /// # Errors
    /// A broken promise.
    pub fn crash_somewhere(&mut self, life: &Ended<'_>) -> Result<Survivor, Box<Finding>> {
        let at = life.events.len() - self.dice.index(life.events.len() / 2 + 1);
        let mut moment = Moment::at_start(life.world, life.past, &life.models);
        life.events[..at].iter().for_each(|event| moment.apply(event));
        moment.world.now_ms = life.now_ms;
        let crash = match self.dice.below(10) {
            0..=3 => Crash::Kill,
            4 => Crash::Wipe,
            _ => {
                let writes = moment.world.journal.unsynced();
                Crash::Power(writes.iter().map(|w| self.fate(w.sectors, w.nowhere)).collect())
            }
        };
        let (world, bounds) = self.after(&moment, &crash);
        let finding = |violation| {
            let before = life.events[at.saturating_sub(BEFORE)..at].iter().map(describe).collect();
            Box::new(Finding { violation, crash: crash.clone(), event: at, before })
        };
        let past = Past { models: life.models.clone(), durable: Vec::new(), stored: Vec::new(), next_op: life.next_op };
        self.count.states += 1;
        let (seen, _) = open_and_read(life.shape, &world, &past).map_err(finding)?;
        let mut found = Vec::new();
        let mut models = (*life.models).clone();
        for ((model, seen), bounds) in models.iter_mut().zip(&seen).zip(&bounds) {
            found.push(model.settle(seen, *bounds).map_err(finding)?);
        }
        // Killed, nothing more is durable than before; after a power cut, what is left is.
        let durable = match crash {
            Crash::Kill | Crash::KillInWrite(_) => moment.after_power().iter().map(|b| b.lower).collect(),
            Crash::Power(_) | Crash::Wipe => found.clone(),
        };
        let past = moment.past(&models, &found, durable, life.next_op);
        Ok(Survivor { world, past })
    }
}

/// What the guests heard since they were looked at last.
#[derive(Debug, Default)]
struct News {
    /// The node serves.
    opened: bool,
    acked: bool,
    durable: bool,
    stored: bool,
}

impl News {
    fn hear(&mut self, event: &Event) {
        match event {
            Event::Mark(Mark::Acked { .. }) => self.acked = true,
            Event::Mark(Mark::Durable { .. }) => (self.opened, self.durable, self.stored) = (true, true, true),
            Event::Mark(Mark::Stored { .. }) => self.stored = true,
            Event::Mark(Mark::Submitted { .. }) => {}
            Event::Store(_) => (self.acked, self.stored) = (true, true),
            Event::Journal(_) | Event::Cache(_) | Event::Registry(_) => self.acked = true,
        }
    }
}

/// Recovers, reads every volume, and gives what happened meanwhile.
fn open_and_read(shape: &Shape, world: &World, past: &Past) -> Result<(Vec<Vec<Content>>, Vec<Event>), Violation> {
    let life = Life::begin(shape, world, past)?;
    let seen = (0..shape.volumes.len()).map(|volume| life.read(volume)).collect::<Result<_, _>>()?;
    Ok((seen, life.into_log()))
}

/// An event as a line for people.
fn describe(event: &Event) -> String {
    let disk = |name: &str, event: &DiskEvent| match event {
        DiskEvent::Write { file, offset, data } => {
            format!("{name}: write {} B at {offset} of file {}{}", data.len(), file.0, describe_journal(data))
        }
        other => format!("{name}: {other:?}"),
    };
    match event {
        Event::Journal(event) => disk("journal", event),
        Event::Cache(event) => disk("cache", event),
        Event::Store(objects) => format!("store: {} objects", objects.len()),
        Event::Registry(records) => {
            let generations: Vec<u64> = records.iter().map(|r| r.generation.0).collect();
            format!("registry: generations {generations:?}")
        }
        Event::Mark(mark) => format!("guest: {mark:?}"),
    }
}

fn describe_journal(data: &[u8]) -> String {
    if let Ok(segment) = SegmentHeader::decode(data) {
        format!(": segment {} from batch {} on", segment.sequence, segment.first_batch)
    } else if let Ok((batch, entries)) = decode_batch(data) {
        format!(
            ": batch {} of segment {}, {} entries, durable through {}",
            batch.sequence,
            batch.segment,
            entries.len(),
            batch.durable_through
        )
    } else {
        String::new()
    }
}
