//! Results on stdout: tables for people, JSON and YAML for programs; everything else on stderr. The only place that knows YAML here.

use std::io::{self, Write};

use lamina_contract::ByteSize;
use serde::Serialize;

use crate::failure::Failure;
use crate::table::{self, Cell, Column, Shown};
use crate::tone::{Painter, Tone, When};

/// How to print results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For people with wide windows: more columns.
    Wide,
    /// For programs: sizes in bytes.
    Json,
    /// The same as JSON, in YAML.
    Yaml,
}

impl Output {
    /// Whether people read it.
    pub(crate) fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// A thing that lists have a row of.
pub(crate) trait Row: Serialize {
    /// The headings.
    const COLUMNS: &'static [Column];

    /// A cell for each column.
    fn cells(&self) -> Vec<Cell>;

    /// What `--quiet` prints of it.
    fn name(&self) -> String;
}

/// A name and a value of something that is shown alone.
pub(crate) type Property = (&'static str, Cell);

/// Prints what was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    /// In which form.
    pub(crate) output: Output,
    headers: bool,
    quiet: bool,
    /// For stdout.
    pub(crate) painter: Painter,
    /// For stderr.
    pub(crate) notices: Painter,
}

impl Printer {
    /// As asked.
    pub(crate) fn new(output: Output, headers: bool, quiet: bool, when: When) -> Self {
        let (painter, notices) = (Painter::new(when, &io::stdout()), Painter::new(when, &io::stderr()));
        Self { output, headers, quiet, painter, notices }
    }

    /// A list: a table, or an array.
    pub(crate) fn list<T: Row>(&self, rows: &[T]) -> Result<(), Failure> {
        if self.output.is_table() {
            return self.rows(rows);
        }
        self.data(&rows)
    }

    /// The rows of something that is more than an array to programs.
    pub(crate) fn rows<T: Row>(&self, rows: &[T]) -> Result<(), Failure> {
        if self.quiet {
            return text(&rows.iter().map(|row| row.name() + "\n").collect::<String>());
        }
        let shown = Shown { headers: self.headers, wide: self.output == Output::Wide };
        text(&table::lines(T::COLUMNS, rows.iter().map(Row::cells).collect(), shown, self.painter))
    }

    /// One thing; `properties` are made only when they are wanted.
    pub(crate) fn one<T: Serialize>(
        &self,
        value: &T,
        name: &str,
        properties: impl FnOnce(&T) -> Vec<Property>,
    ) -> Result<(), Failure> {
        if !self.output.is_table() {
            return self.data(value);
        }
        if self.quiet {
            return text(&format!("{name}\n"));
        }
        self.properties(properties(value))
    }

    /// Names and values, for people.
    pub(crate) fn properties(&self, properties: Vec<Property>) -> Result<(), Failure> {
        let rows: Vec<_> = properties.into_iter().map(|(name, value)| vec![Cell::new(name, Tone::Dim), value]).collect();
        text(&table::aligned(&rows, &[], self.painter))
    }

    /// For programs.
    pub(crate) fn data<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        match self.output {
            Output::Yaml => {
                // Without tags: what JSON has as an object with one name is one here too.
                let mut yaml = Vec::new();
                serde_yaml::with::singleton_map_recursive::serialize(value, &mut serde_yaml::Serializer::new(&mut yaml))?;
                text(&String::from_utf8_lossy(&yaml))
            }
            _ => text(&(serde_json::to_string_pretty(value)? + "\n")),
        }
    }

    /// Something for people to know, on stderr.
    pub(crate) fn notice(&self, words: &str) {
        if !self.quiet {
            // With stderr gone there is nobody left to tell.
            let _ = writeln!(io::stderr(), "{words}");
        }
    }

    /// Something that people should know even when they want quiet.
    pub(crate) fn warn(&self, words: &str) {
        let _ = writeln!(io::stderr(), "{}", self.notices.paint(Tone::Warn, &format!("lamina: {words}")));
    }

    /// Whether notices are wanted.
    pub(crate) fn talks(&self) -> bool {
        !self.quiet
    }
}

/// Writes to stdout as it is.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// A value that may be absent.
pub(crate) fn or_dash(value: Option<&str>) -> Cell {
    value.map_or_else(|| Cell::new("-", Tone::Dim), Cell::from)
}
