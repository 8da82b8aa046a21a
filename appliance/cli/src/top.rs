//! `lamina top`: a live view of who does what.

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use lamina_api::status::Space;

use crate::ends::{End, Ends};
use crate::failure::Failure;
use crate::load::{Load, Look, Order, VolumeLoad};
use crate::mistake::Mistake;
use crate::printer::{Row, size, text};
use crate::session::Session;
use crate::span::Span;
use crate::status;
use crate::table::{self, Cell, Column, Shown};
use crate::terminal::{Screen, keys};
use crate::tone::{Painter, Tone};

/// What to show, and how often.
#[derive(Debug, Args)]
pub(crate) struct TopArguments {
    /// Between two looks, as 2s.
    #[arg(long, value_name = "TIME", default_value = "2s")]
    interval: Span,
    /// What volumes are sorted by.
    #[arg(long, value_enum, default_value_t = Order::Iops)]
    sort: Order,
    /// Show it once, after one interval.
    #[arg(long)]
    once: bool,
}

/// Does it.
pub(crate) async fn run(arguments: &TopArguments, session: &Session) -> Result<(), Failure> {
    let interval = Duration::from_secs(arguments.interval.0.max(1));
    let printer = &session.printer;
    if arguments.once || !printer.output.is_table() {
        let before = Look::take(&session.client).await?;
        tokio::time::sleep(interval).await;
        let load = Look::take(&session.client).await?.since(&before, arguments.sort);
        return if printer.output.is_table() { text(&page(&load, arguments.sort, printer.painter)) } else { printer.data(&load) };
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Mistake::NoTerminal.into());
    }
    live(interval, arguments.sort, session).await
}

async fn live(interval: Duration, mut order: Order, session: &Session) -> Result<(), Failure> {
    let painter = session.printer.painter;
    let mut before = Look::take(&session.client).await?;
    // The first rates come soon.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut now = Look::take(&session.client).await?;
    // Before the terminal is another: from here on nothing ends this without putting it back.
    let mut ends = Ends::listen()?;
    let screen = Screen::open()?;
    let mut pressed = keys();
    let mut held = false;
    loop {
        let state = if held { "held, space goes on" } else { "space holds" };
        let help = painter.paint(Tone::Dim, &format!("q quits, s sorts (by {}), {state}", order.as_str()));
        screen.show(&format!("{}\n{help}", page(&now.since(&before, order), order, painter)))?;
        tokio::select! {
            key = pressed.recv() => match key {
                Some(b'q' | b'Q' | 4) | None => return Ok(()),
                Some(b's' | b'S') => order = order.next(),
                Some(b' ') => held = !held,
                Some(_) => {}
            },
            end = ends.next() => return left(end),
            () = tokio::time::sleep(interval), if !held => {
                // A daemon that hangs must not hold people up.
                let next = tokio::select! {
                    next = Look::take(&session.client) => next?,
                    end = ends.next() => return left(end),
                };
                before = std::mem::replace(&mut now, next);
            }
        }
    }
}

/// Ctrl-C is how many leave such a view; to be ended from elsewhere is to be interrupted.
fn left(end: End) -> Result<(), Failure> {
    match end {
        End::Interrupt => Ok(()),
        End::Terminate => Err(Failure::Interrupted { job: None }),
    }
}

impl Row for VolumeLoad {
    const COLUMNS: &'static [Column] = &[
        Column::new("VOLUME"),
        Column::new("GUEST"),
        Column::number("READS/s"),
        Column::number("WRITES/s"),
        Column::number("READ/s"),
        Column::number("WRITTEN/s"),
        Column::number("P99"),
        Column::number("PENDING"),
        Column::number("ERRORS/s"),
    ];

    fn cells(&self) -> Vec<Cell> {
        let errors = if self.errors_per_second > 0.0 { Tone::Bad } else { Tone::Dim };
        vec![
            self.name.as_str().into(),
            if self.connected { "connected" } else { "-" }.into(),
            format!("{:.0}", self.reads_per_second).into(),
            format!("{:.0}", self.writes_per_second).into(),
            size(self.read_bytes_per_second as u64).into(),
            size(self.written_bytes_per_second as u64).into(),
            self.p99_seconds.map_or_else(|| "-".to_owned(), latency).into(),
            size(self.pending_bytes).into(),
            Cell::new(format!("{:.0}", self.errors_per_second), errors),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

fn latency(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.1} s"),
        s if s >= 0.001 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}

fn used(space: Space) -> String {
    let share = if space.capacity_bytes == 0 { 0.0 } else { space.used_bytes as f64 / space.capacity_bytes as f64 };
    format!("{} of {} ({:.0}%)", size(space.used_bytes), size(space.capacity_bytes), share * 100.0)
}

/// The whole view as lines.
fn page(load: &Load, order: Order, painter: Painter) -> String {
    let hits = load.cache_hit_ratio.map(|ratio| format!(", {:.0}% hits", ratio * 100.0)).unwrap_or_default();
    let (up, all) = (load.targets_up, load.targets);
    let targets = Cell::new(format!("{up} of {all} targets up"), if up == all { Tone::Good } else { Tone::Bad });
    let mut head = vec![vec![Cell::new("health", Tone::Dim), status::health(load.health)]];
    head.extend(load.degraded.iter().map(|words| vec![Cell::default(), Cell::new(words.as_str(), Tone::Warn)]));
    head.extend([
        vec![Cell::new("journal", Tone::Dim), used(load.journal).into()],
        vec![Cell::new("cache", Tone::Dim), format!("{}{hits}", used(load.cache)).into()],
        vec![
            Cell::new("store", Tone::Dim),
            format!("{}/s written", size(load.store_written_bytes_per_second as u64)).into(),
            targets,
        ],
    ]);
    let mut page = table::aligned(&head, &[], painter);
    let shown = Shown { headers: true, wide: false };
    page.push('\n');
    page.push_str(&table::lines(VolumeLoad::COLUMNS, load.volumes.iter().map(Row::cells).collect(), shown, painter));
    if load.volumes.is_empty() {
        page.push_str(&painter.paint(Tone::Dim, "no volumes\n"));
    } else if load.volumes.len() > 1 {
        page.push_str(&painter.paint(Tone::Dim, &format!("sorted by {}\n", order.as_str())));
    }
    if !load.jobs.is_empty() {
        page.push('\n');
        let rows = load.jobs.iter().map(Row::cells).collect();
        page.push_str(&table::lines(lamina_api::job::Job::COLUMNS, rows, shown, painter));
    }
    page
}
