//! Results on stdout: tables for people, JSON and YAML for programs. The only place that knows YAML here.

use std::io::Write;

use comfy_table::{Table, presets};
use lamina_contract::ByteSize;
use serde::Serialize;

use crate::args::Output;
use crate::failure::Failure;

/// Prints `value` as asked; `table` is made only when it is wanted.
pub(crate) fn print<T: Serialize>(
    out: &mut dyn Write,
    output: Output,
    value: &T,
    table: impl FnOnce(&T) -> Table,
) -> Result<(), Failure> {
    match output {
        Output::Table => writeln!(out, "{}", text(&table(value)))?,
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(value)?)?,
        Output::Yaml => write!(out, "{}", serde_yaml::to_string(value)?)?,
    }
    out.flush()?;
    Ok(())
}

/// A table of columns.
pub(crate) fn columns(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table
}

/// A table of names and values.
pub(crate) fn properties(rows: Vec<(&str, String)>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    for (name, value) in rows {
        table.add_row([name.to_owned(), value]);
    }
    table
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// Lines without the padding at their ends.
fn text(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
