//! A strict reader of Prometheus' text form (version 0.0.4): stricter than Prometheus itself, which forgives what a careful writer
//! does not do. https://prometheus.io/docs/instrumenting/exposition_formats/
//!
//! Refused: names and labels that are none, wrong escapes, samples without HELP and TYPE right before their family, families that come
//! twice or in pieces, series that come twice, values that are no numbers, counters not called `_total` or below zero, and histograms whose
//! buckets do not rise, lack `+Inf`, or disagree with their count.

use std::collections::{BTreeMap, BTreeSet};

/// What a family's samples are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FamilyKind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

/// Why a text is refused, and in which line (from 1; 0 for what is seen at the end).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}: {text}")]
pub struct ExpositionError {
    /// Where.
    pub line: usize,
    /// What.
    pub fault: &'static str,
    /// The line.
    pub text: String,
}

/// Label and value pairs, by label.
pub type LabelSet = BTreeMap<String, String>;

/// One family.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// From its TYPE.
    pub kind: FamilyKind,
    /// From its HELP.
    pub help: String,
    /// Name (with `_bucket`, `_sum`, `_count`), labels, value.
    pub samples: Vec<(String, LabelSet, f64)>,
}

/// A whole page, by family.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exposition {
    /// Families by name.
    pub families: BTreeMap<String, Family>,
}

type Parsed<T> = Result<T, &'static str>;

impl Exposition {
    /// Reads a page.
    ///
    /// # Errors
    /// [`ExpositionError`] with the first fault.
    pub fn parse(text: &str) -> Result<Self, ExpositionError> {
        if !text.is_empty() && !text.ends_with('\n') {
            return Err(ExpositionError { line: 0, fault: "the last line has no end", text: String::new() });
        }
        let mut reader = Reader::default();
        for (index, line) in text.lines().enumerate() {
            let at = |fault| ExpositionError { line: index + 1, fault, text: line.to_owned() };
            reader.line(line).map_err(at)?;
        }
        let ended = reader.end().map_err(|(fault, text)| ExpositionError { line: 0, fault, text })?;
        Ok(Self { families: ended })
    }

    /// Whether there is a family, or a series of a histogram, of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.family_of(name).is_some()
    }

    /// The family that `name` is, or is a part of.
    #[must_use]
    pub fn family_of(&self, name: &str) -> Option<&Family> {
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let of = histogram.and_then(|base| self.families.get(base)).filter(|family| family.kind == FamilyKind::Histogram);
        self.families.get(name).filter(|family| family.kind != FamilyKind::Histogram).or(of)
    }
}

#[derive(Default)]
struct Reader {
    families: BTreeMap<String, Family>,
    /// Of a HELP whose TYPE must follow.
    help: Option<(String, String)>,
    current: Option<String>,
    seen: BTreeSet<(String, LabelSet)>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Parsed<()> {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or("no help")?;
            let known = self.families.contains_key(name) || self.help.is_some();
            if known || !is_name(name) || help.is_empty() {
                return Err("a help that is empty, comes twice or out of order");
            }
            self.help = Some((name.to_owned(), help.to_owned()));
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or("no type")?;
            let (named, help) = self.help.take().ok_or("a type without its help before it")?;
            let kind = match kind {
                "counter" => FamilyKind::Counter,
                "gauge" => FamilyKind::Gauge,
                "histogram" => FamilyKind::Histogram,
                _ => return Err("a type that is none of ours"),
            };
            if named != name || (kind == FamilyKind::Counter) != name.ends_with("_total") {
                return Err("a type that does not fit its help or its name");
            }
            self.current = Some(named.clone());
            self.families.insert(named, Family { kind, help, samples: Vec::new() });
            return Ok(());
        }
        if line.starts_with('#') || line.trim() != line || line.is_empty() || self.help.is_some() {
            return Err("neither help, type nor sample");
        }
        let (name, labels, value) = sample(line)?;
        let current = self.current.as_deref().ok_or("a sample without a family")?;
        let family = self.families.get_mut(current).ok_or("a sample without a family")?;
        let suffix = name.strip_prefix(current).ok_or("a sample of another family")?;
        match (family.kind, suffix) {
            (FamilyKind::Counter, "") if value < 0.0 || !value.is_finite() => return Err("a counter below zero"),
            (FamilyKind::Counter | FamilyKind::Gauge, "") if !labels.contains_key("le") => {}
            (FamilyKind::Histogram, "_sum" | "_count") if !labels.contains_key("le") => {}
            (FamilyKind::Histogram, "_bucket") if labels.contains_key("le") => {}
            _ => return Err("a sample of another family"),
        }
        if !self.seen.insert((name.clone(), labels.clone())) {
            return Err("a series that was there already");
        }
        family.samples.push((name, labels, value));
        Ok(())
    }

    fn end(self) -> Result<BTreeMap<String, Family>, (&'static str, String)> {
        if let Some((name, _)) = self.help {
            return Err(("a help without a type", name));
        }
        for (name, family) in self.families.iter().filter(|(_, family)| family.kind == FamilyKind::Histogram) {
            histogram(name, family).map_err(|fault| (fault, name.clone()))?;
        }
        Ok(self.families)
    }
}

/// Buckets rise, end with `+Inf`, and that is the count.
fn histogram(name: &str, family: &Family) -> Parsed<()> {
    #[derive(Default)]
    struct Series {
        buckets: Vec<(f64, f64)>,
        sum: Option<f64>,
        count: Option<f64>,
    }
    let mut all: BTreeMap<LabelSet, Series> = BTreeMap::new();
    for (full, labels, value) in &family.samples {
        let mut labels = labels.clone();
        let bound = labels.remove("le");
        let series = all.entry(labels).or_default();
        match (full.strip_prefix(name), bound) {
            (Some("_bucket"), Some(bound)) => series.buckets.push((number(&bound)?, *value)),
            (Some("_sum"), _) => series.sum = Some(*value),
            _ => series.count = Some(*value),
        }
    }
    for series in all.values() {
        let rises = series.buckets.windows(2).all(|pair| matches!(pair, [a, b] if a.0 < b.0 && a.1 <= b.1));
        let last = series.buckets.last().copied();
        if !rises {
            return Err("buckets that do not rise");
        }
        if last.is_none_or(|(bound, _)| bound != f64::INFINITY) {
            return Err("no +Inf bucket");
        }
        if series.sum.is_none_or(|sum| sum < 0.0) || series.count.is_none() || last.map(|(_, count)| count) != series.count {
            return Err("sum or count that is missing, or is not that of +Inf");
        }
    }
    Ok(())
}

fn is_name(text: &str) -> bool {
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn number(text: &str) -> Parsed<f64> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        "NaN" => Ok(f64::NAN),
        _ if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => text.parse().map_err(|_| "a value that is no number"),
        _ => Err("a value that is no number"),
    }
}

fn sample(line: &str) -> Parsed<(String, LabelSet, f64)> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, rest) = line.split_at(end);
    if !is_name(name) {
        return Err("a name that is none");
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (LabelSet::new(), rest),
    };
    // A time after the value is allowed by the form and never ours.
    let value = rest.strip_prefix(' ').ok_or("no value")?;
    Ok((name.to_owned(), labels, number(value)?))
}

/// What is in the braces, and what is behind them.
fn labels(mut rest: &str) -> Parsed<(LabelSet, &str)> {
    let mut labels = LabelSet::new();
    loop {
        let (label, behind) = rest.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(label) || label.starts_with("__") {
            return Err("a label that is none");
        }
        let mut value = String::new();
        let mut characters = behind.char_indices();
        let end = loop {
            match characters.next().ok_or("a value without an end")? {
                (at, '"') => break at,
                (_, '\\') => match characters.next() {
                    Some((_, '\\')) => value.push('\\'),
                    Some((_, '"')) => value.push('"'),
                    Some((_, 'n')) => value.push('\n'),
                    _ => return Err("an escape that is none"),
                },
                (_, other) => value.push(other),
            }
        };
        if labels.insert(label.to_owned(), value).is_some() {
            return Err("a label that comes twice");
        }
        let behind = behind.get(end + 1..).unwrap_or_default();
        match (behind.strip_prefix(','), behind.strip_prefix('}')) {
            (Some(next), _) => rest = next,
            (_, Some(behind)) => return Ok((labels, behind)),
            _ => return Err("braces without an end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Exposition;

    const GOOD: &str = "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"q\\\"\\\\\\n\",y=\"\"} 7\na_total 1\n\
                        # HELP h_seconds Time.\n# TYPE h_seconds histogram\nh_seconds_bucket{le=\"0.5\"} 1\n\
                        h_seconds_bucket{le=\"+Inf\"} 2\nh_seconds_sum 3.5\nh_seconds_count 2\n\
                        # HELP g Now.\n# TYPE g gauge\ng -1.5e3\n";

    #[test]
    fn a_right_page_is_read() {
        let page = Exposition::parse(GOOD).expect("right");
        assert_eq!(page.families.len(), 3);
        let (name, labels, value) = &page.families["a_total"].samples[0];
        assert_eq!((name.as_str(), labels["x"].as_str(), *value), ("a_total", "q\"\\\n", 7.0));
        assert!(page.has("h_seconds_bucket") && page.has("h_seconds_count") && page.has("g"));
        assert!(!page.has("h_seconds") && !page.has("g_sum") && !page.has("a"));
    }

    #[test]
    fn each_fault_is_refused() {
        for (good, bad) in [
            ("# HELP a_total Things.\n", ""),
            ("# TYPE a_total counter\n", ""),
            ("# TYPE a_total counter", "# TYPE a_total gauge"),
            ("# TYPE a_total counter", "# TYPE a_total summary"),
            ("# HELP g Now.", "# HELP g "),
            ("a_total 1", "a_total{x=\"q\\\"\\\\\\n\",y=\"\"} 1"),
            ("a_total 1", "a_total -1"),
            ("a_total 1", "a_total one"),
            ("a_total 1", "a_total inf"),
            ("a_total 1", "b_total 1"),
            ("a_total 1", " a_total 1"),
            ("y=\"\"", "y=\"\\t\""),
            ("y=\"\"", "x=\"\""),
            ("y=\"\"", "1y=\"\""),
            ("y=\"\"}", "y=\"\""),
            ("{le=\"0.5\"} 1", "{le=\"0.5\"} 3"),
            ("h_seconds_bucket{le=\"+Inf\"} 2\n", ""),
            ("h_seconds_count 2", "h_seconds_count 3"),
            ("h_seconds_sum 3.5\n", ""),
            ("# HELP g Now.\n# TYPE g gauge\n", "# HELP a_total Again.\n# TYPE a_total counter\n"),
            ("g -1.5e3\n", "g -1.5e3"),
            ("g -1.5e3\n", "g -1.5e3\n# HELP late Alone.\n"),
            ("g -1.5e3\n", "g -1.5e3\na_total{z=\"1\"} 1\n"),
        ] {
            assert!(GOOD.contains(good), "{good}");
            let page = GOOD.replace(good, bad);
            assert!(Exposition::parse(&page).is_err(), "taken as right:\n{page}");
        }
    }
}
