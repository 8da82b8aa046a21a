//! Rows with their figure to meet, as a table for people and JSON for programs.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Value, json};

use crate::load::Measured;

/// How a figure is judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// For information.
    None,
}

/// One line of the acceptance.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) goal: Goal,
    /// What stands behind the value.
    pub(crate) note: String,
}

impl Row {
    fn verdict(&self) -> &'static str {
        let met = match self.goal {
            Goal::AtLeast(least) => self.value >= least,
            Goal::AtMost(most) => self.value <= most,
            Goal::None => return "",
        };
        if met { "PASS" } else { "MISS" }
    }

    fn goal_text(&self) -> String {
        match self.goal {
            Goal::AtLeast(least) => format!("≥ {least}"),
            Goal::AtMost(most) => format!("≤ {most}"),
            Goal::None => String::new(),
        }
    }
}

/// Medians of one contender under one load.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) load: String,
    pub(crate) contender: &'static str,
    pub(crate) runs: Vec<Run>,
}

/// One measurement.
#[derive(Debug, Clone, Default)]
pub(crate) struct Run {
    pub(crate) measured: Measured,
    pub(crate) cpu: Duration,
    /// Bytes to the SSD (or the file) and to the drives until everything was stored behind; `None` where not looked at.
    pub(crate) written: Option<(u64, u64)>,
}

/// The middle one; 0 of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

impl Series {
    pub(crate) fn per_second(&self) -> f64 {
        median(self.runs.iter().map(|run| run.measured.per_second()).collect())
    }

    fn bytes_per_second(&self) -> f64 {
        median(self.runs.iter().map(|run| run.measured.bytes_per_second()).collect())
    }

    fn quantile(&self, quantile: f64) -> f64 {
        median(self.runs.iter().map(|run| run.measured.latency.quantile(quantile).as_secs_f64() * 1e6).collect())
    }

    fn cpu_per_million(&self) -> f64 {
        median(self.runs.iter().map(|run| run.cpu.as_secs_f64() * 1e6 / run.measured.requests.max(1) as f64).collect())
    }

    fn written_per_byte(&self) -> Option<(f64, f64)> {
        let per_byte = |part: fn(&(u64, u64)) -> u64| {
            let known = self.runs.iter().filter_map(|run| run.written.as_ref().map(|written| (part(written), run.measured.bytes)));
            median(known.map(|(written, bytes)| written as f64 / bytes.max(1) as f64).collect())
        };
        self.runs.iter().any(|run| run.written.is_some()).then(|| (per_byte(|written| written.0), per_byte(|written| written.1)))
    }
}

/// Everything that was found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    pub(crate) series: Vec<Series>,
}

impl Report {
    pub(crate) fn row(&mut self, name: impl Into<String>, value: f64, unit: &'static str, goal: Goal, note: impl Into<String>) {
        let row = Row { name: name.into(), value, unit, goal, note: note.into() };
        println!("  {} = {:.3} {} {} {}  {}", row.name, row.value, row.unit, row.goal_text(), row.verdict(), row.note);
        self.rows.push(row);
    }

    /// How many goals were missed.
    pub(crate) fn misses(&self) -> usize {
        self.rows.iter().filter(|row| row.verdict() == "MISS").count()
    }

    pub(crate) fn print(&self) {
        let mut loads =
            table(&["load", "contender", "req/s", "MiB/s", "p50 µs", "p99 µs", "p99.9 µs", "CPU s/M", "SSD B/B", "drives B/B"]);
        for series in &self.series {
            let (ssd, drives) = series
                .written_per_byte()
                .map_or((String::new(), String::new()), |(ssd, drives)| (format!("{ssd:.2}"), format!("{drives:.2}")));
            loads.add_row(vec![
                Cell::new(&series.load),
                Cell::new(series.contender),
                right(format!("{:.0}", series.per_second())),
                right(format!("{:.0}", series.bytes_per_second() / f64::from(1 << 20))),
                right(format!("{:.0}", series.quantile(0.5))),
                right(format!("{:.0}", series.quantile(0.99))),
                right(format!("{:.0}", series.quantile(0.999))),
                right(format!("{:.2}", series.cpu_per_million())),
                right(ssd),
                right(drives),
            ]);
        }
        let mut goals = table(&["figure", "value", "", "goal", "", "how"]);
        for row in &self.rows {
            goals.add_row(vec![
                Cell::new(&row.name),
                right(format!("{:.3}", row.value)),
                Cell::new(row.unit),
                right(row.goal_text()),
                Cell::new(row.verdict()),
                Cell::new(&row.note),
            ]);
        }
        println!("\n{loads}\n\n{goals}");
    }

    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|row| json!({ "name": row.name, "value": row.value, "unit": row.unit, "goal": row.goal_text(), "verdict": row.verdict(), "note": row.note })).collect();
        let series: Vec<Value> = self.series.iter().map(series_json).collect();
        json!({ "rows": rows, "loads": series })
    }
}

fn series_json(series: &Series) -> Value {
    let runs: Vec<Value> = series
        .runs
        .iter()
        .map(|run| json!({ "per_second": run.measured.per_second(), "cpu_seconds": run.cpu.as_secs_f64() }))
        .collect();
    json!({
        "load": series.load,
        "contender": series.contender,
        "per_second": series.per_second(),
        "bytes_per_second": series.bytes_per_second(),
        "p50_us": series.quantile(0.5),
        "p99_us": series.quantile(0.99),
        "p999_us": series.quantile(0.999),
        "cpu_seconds_per_million": series.cpu_per_million(),
        "written_per_guest_byte": series.written_per_byte().map(|(ssd, drives)| json!({ "ssd": ssd, "drives": drives })),
        "runs": runs,
    })
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled).set_header(header.to_vec());
    table
}
