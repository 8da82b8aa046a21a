//! Tables for people: columns as wide as their widest cell, two spaces between them, nothing at the ends of lines.

use crate::tone::{Painter, Tone};

/// One value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// `text` with a tone. What a terminal would obey is shown and not obeyed, since names and messages come from elsewhere.
    pub(crate) fn new(text: impl Into<String>, tone: Tone) -> Self {
        let text = text.into();
        let text = if text.chars().any(char::is_control) {
            text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
        } else {
            text
        };
        Self { text, tone }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// A column's heading, and whether only `-o wide` has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    /// In capitals.
    pub(crate) heading: &'static str,
    /// Only in wide tables.
    pub(crate) wide: bool,
    /// Numbers stand at the right.
    pub(crate) right: bool,
}

impl Column {
    /// A column of words.
    pub(crate) const fn new(heading: &'static str) -> Self {
        Self { heading, wide: false, right: false }
    }

    /// A column of numbers.
    pub(crate) const fn number(heading: &'static str) -> Self {
        Self { heading, wide: false, right: true }
    }

    /// Only in wide tables.
    pub(crate) const fn wide(mut self) -> Self {
        self.wide = true;
        self
    }
}

/// A table's lines, each ended.
pub(crate) fn lines(columns: &[Column], rows: Vec<Vec<Cell>>, shown: Shown, painter: Painter) -> String {
    let kept: Vec<bool> = columns.iter().map(|column| shown.wide || !column.wide).collect();
    let keep =
        |row: Vec<Cell>| -> Vec<Cell> { row.into_iter().zip(&kept).filter(|(_, kept)| **kept).map(|(cell, _)| cell).collect() };
    let right: Vec<bool> = columns.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(column, _)| column.right).collect();
    let heading = keep(columns.iter().map(|column| Cell::new(column.heading, Tone::Bold)).collect());
    let mut all = if shown.headers { vec![heading] } else { Vec::new() };
    all.extend(rows.into_iter().map(keep));
    aligned(&all, &right, painter)
}

/// Which parts of a table are shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown {
    /// Its headings.
    pub(crate) headers: bool,
    /// Its wide columns.
    pub(crate) wide: bool,
}

/// Lines of cells, aligned.
pub(crate) fn aligned(rows: &[Vec<Cell>], right: &[bool], painter: Painter) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> =
        (0..columns).map(|at| rows.iter().filter_map(|row| row.get(at)).map(Cell::width).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width.saturating_sub(cell.width()));
            let painted = painter.paint(cell.tone, &cell.text);
            if at > 0 {
                line.push_str("  ");
            }
            match right.get(at) {
                Some(true) => line.extend([padding, painted]),
                _ => line.extend([painted, padding]),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Cell, Column, Shown, lines};
    use crate::tone::{Painter, Tone, When};

    #[test]
    fn cells_are_aligned_by_what_is_seen_and_not_by_colour_codes() {
        let columns = [Column::new("NAME"), Column::number("SIZE"), Column::new("STATE"), Column::new("MORE").wide()];
        let row = |name: &str, size: &str, tone| vec![Cell::from(name), Cell::from(size), Cell::new("up", tone), Cell::from("x")];
        let rows = vec![row("a", "10 GiB", Tone::Good), row("längst", "1 B", Tone::Bad)];
        let shown = Shown { headers: true, wide: false };
        let plain = lines(&columns, rows.clone(), shown, Painter::new(When::Never, &std::io::stdout()));
        assert_eq!(plain, "NAME      SIZE  STATE\na       10 GiB  up\nlängst     1 B  up\n");
        let coloured = lines(&columns, rows, shown, Painter::new(When::Always, &std::io::stdout()));
        assert!(coloured.contains("a       10 GiB  \x1b[32mup\x1b[0m\n"), "{coloured:?}");
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_passed_on() {
        let rows = vec![vec![Cell::from("\x1b[2Jgone\n")]];
        let text = lines(
            &[Column::new("NAME")],
            rows,
            Shown { headers: false, wide: false },
            Painter::new(When::Never, &std::io::stdout()),
        );
        assert_eq!(text, "\u{fffd}[2Jgone\u{fffd}\n");
    }
}
