//! The configuration file: YAML, refused whole when anything in it is unknown, with line and column. The daemon's only YAML.
//!
//! Sizes are numbers of bytes or text as `8GiB`; times are text as `30s`. A file has at most [`MAX_BYTES`].

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use lamina_api::role::Role;
use lamina_contract::{ByteSize, Policy};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

/// Far above any real configuration, and little enough to read on every start.
const MAX_BYTES: u64 = 1 << 20;

/// What the file says; `None` where it says nothing. A key that has a flag is named as that is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Document {
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) runtime_dir: Option<PathBuf>,
    pub(crate) drives: Vec<PathBuf>,
    #[serde(deserialize_with = "parsed")]
    pub(crate) policy: Option<Policy>,
    pub(crate) write_min: Option<usize>,
    #[serde(deserialize_with = "duration")]
    pub(crate) store_lag: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    pub(crate) reconnect_wait: Option<Duration>,
    pub(crate) journal_dir: Option<PathBuf>,
    #[serde(deserialize_with = "parsed")]
    pub(crate) journal_size: Option<ByteSize>,
    pub(crate) cache_dir: Option<PathBuf>,
    #[serde(deserialize_with = "parsed")]
    pub(crate) cache_size: Option<ByteSize>,
    #[serde(deserialize_with = "parsed")]
    pub(crate) memory_cap: Option<ByteSize>,
    #[serde(deserialize_with = "parsed")]
    pub(crate) metrics_listen: Option<SocketAddr>,
    #[serde(deserialize_with = "parsed")]
    pub(crate) api_listen: Option<SocketAddr>,
    pub(crate) api_certificate: Option<PathBuf>,
    pub(crate) api_key: Option<PathBuf>,
    pub(crate) api_client_ca: Option<PathBuf>,
    pub(crate) api_clients: BTreeMap<String, Role>,
    pub(crate) log: Option<String>,
    pub(crate) log_format: Option<LogFormat>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: an object a line.
    Json,
}

/// A line and column of the file, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// Why a file was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// It cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// It is not text, or too much of it.
    #[error("{}: a configuration is UTF-8 text of at most {MAX_BYTES} bytes", path.display())]
    Shape { path: PathBuf },
    /// YAML, a key or a value is wrong. The cause's text names what was expected.
    #[error("{}:{place}: {cause}{}", path.display(), advice(cause))]
    Yaml { path: PathBuf, place: Place, cause: serde_yaml::Error },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A file that was read: what it says, and its text to find places in.
#[derive(Debug, Clone)]
pub(crate) struct Configuration {
    pub(crate) path: PathBuf,
    pub(crate) document: Document,
    text: String,
}

impl Configuration {
    /// Reads `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |cause| ConfigError::Read { path: path.to_owned(), cause };
        let shape = || ConfigError::Shape { path: path.to_owned() };
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(failed)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(shape());
        }
        Self::parse(path, String::from_utf8(bytes).map_err(|_| shape())?)
    }

    /// Reads text that stands in `path`.
    pub(crate) fn parse(path: &Path, text: String) -> Result<Self, ConfigError> {
        // An empty document is null: everything has a default.
        let document = serde_yaml::from_str::<Option<Document>>(&text).map_err(|cause| {
            let place = duplicate_place(&text, &cause.to_string())
                .or_else(|| cause.location().map(|at| Place { line: at.line(), column: at.column() }))
                .unwrap_or(Place { line: 1, column: 1 });
            ConfigError::Yaml { path: path.to_owned(), place, cause }
        })?;
        Ok(Self { path: path.to_owned(), document: document.unwrap_or_default(), text })
    }

    /// Where the value of `key` is written; the beginning of the file when it is not.
    pub(crate) fn place(&self, key: &str) -> Place {
        let found = self.text.lines().enumerate().find_map(|(number, line)| Some((number, line, key_column(line, key)?)));
        let Some((number, line, column)) = found else { return Place { line: 1, column: 1 } };
        let after_colon = column + key.len() + 1;
        let value = line.get(after_colon..).unwrap_or_default();
        let blanks = value.len() - value.trim_start().len();
        // A list below the key: its own place is the best that can be said.
        let column = if value.trim().is_empty() { column } else { after_colon + blanks };
        Place { line: number + 1, column: column + 1 }
    }
}

/// The parser places a duplicate key at the beginning of its mapping; the second one is what people look for.
fn duplicate_place(text: &str, complaint: &str) -> Option<Place> {
    let (_, rest) = complaint.split_once("duplicate field `")?;
    let (key, _) = rest.split_once('`')?;
    let mut found = text.lines().enumerate().filter_map(|(number, line)| Some((number, key_column(line, key)?)));
    let (line, column) = found.nth(1)?;
    Some(Place { line: line + 1, column: column + 1 })
}

/// The byte at which `key:` begins in `line`, if it does.
fn key_column(line: &str, key: &str) -> Option<usize> {
    let comment = line
        .char_indices()
        .find(|(at, c)| *c == '#' && line.get(..*at).is_some_and(|before| before.trim().is_empty() || before.ends_with(' ')));
    let code = comment.map_or(line, |(at, _)| line.get(..at).unwrap_or_default());
    let mut from = 0;
    while let Some(at) = code.get(from..)?.find(key) {
        let begin = from + at;
        let end = begin + key.len();
        let starts = code.get(..begin).is_some_and(|before| before.chars().next_back().is_none_or(|c| " {,".contains(c)));
        if starts && code.get(end..).is_some_and(|after| after.starts_with(':')) {
            return Some(begin);
        }
        from = end;
    }
    None
}

/// What usually helps.
fn advice(cause: &serde_yaml::Error) -> &'static str {
    let text = cause.to_string();
    if text.contains("unknown field") {
        " (is it misspelled? keys are named as flags are, with _ for -)"
    } else if text.contains("mapping values are not allowed") || text.contains("found character that cannot start") {
        " (indent with spaces, and put text with ': ' in quotes)"
    } else {
        ""
    }
}

/// `500ms`, `30s`, `2m`; a bare number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let bad = || DurationError { text: text.chars().take(40).collect() };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let milliseconds = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        _ => return Err(bad()),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(bad)
}

/// Text that is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a time: write 500ms, 30s or 2m")]
pub(crate) struct DurationError {
    text: String,
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    from.deserialize_any(Text(parse_duration)).map(Some)
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(from: D) -> Result<Option<T>, D::Error> {
    from.deserialize_any(Text(T::from_str)).map(Some)
}

/// Text that is parsed further. Both `8589934592` and `8GiB` are written without quotes, and YAML makes a number of the first.
/// It is parsed inside the visitor, so that YAML's errors know the place.
struct Text<F>(F);

impl<T, E: fmt::Display, F: Fn(&str) -> Result<T, E>> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text or a number")
    }

    fn visit_u64<X: serde::de::Error>(self, number: u64) -> Result<T, X> {
        self.visit_str(&number.to_string())
    }

    fn visit_str<X: serde::de::Error>(self, text: &str) -> Result<T, X> {
        (self.0)(text).map_err(X::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use lamina_contract::ByteSize;

    use super::{Configuration, Place, parse_duration};

    fn parse(text: &str) -> Result<Configuration, String> {
        Configuration::parse(Path::new("lamina.yaml"), text.to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_full_file_is_read() {
        let text = include_str!("../packaging/lamina.yaml");
        let document = parse(text).expect("the example is right").document;
        assert_eq!(document.drives.len(), 6);
        assert_eq!(document.policy.map(|policy| policy.to_string()), Some("4+2".to_owned()));
        assert_eq!(document.store_lag, Some(Duration::from_secs(10)));
        assert_eq!(parse("memory_cap: 1073741824\n").expect("a number").document.memory_cap, Some(ByteSize(1 << 30)));
        assert_eq!(parse("# nothing\n").expect("all defaults").document, super::Document::default());
    }

    #[test]
    fn errors_name_line_and_column_and_what_was_expected() {
        for (text, place, words) in [
            ("drives: [/a]\npolcy: 4+2\n", "lamina.yaml:2:1", "unknown field `polcy`"),
            ("drives: [/a]\npolicy: 4-2\n", "lamina.yaml:2:", "is not of the form X+P"),
            ("log: info\njournal_size: huge\n", "lamina.yaml:2:", "write 4096, 64KiB"),
            ("state_dir: /a\nstate_dir: /b\n", "lamina.yaml:2:", "duplicate"),
            ("log: info\nstore_lag: soon\n", "lamina.yaml:2:", "500ms"),
            ("log: info\nlog_format: xml\n", "lamina.yaml:2:", "`text`"),
            ("log: info\nmetrics_listen: localhost\n", "lamina.yaml:2:", "invalid socket address"),
            ("drives: /a\n", "lamina.yaml:1:", "sequence"),
            ("drives:\n\t- /a\n", "lamina.yaml:2:", "cannot start any token"),
            ("drives: &a [*a, *a]\n", "lamina.yaml:1:", ""),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(place) && error.contains(words), "{text:?}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(&deep).is_err());
    }

    #[test]
    fn a_files_size_is_bounded() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let path = dir.path().join("lamina.yaml");
        std::fs::write(&path, "#".repeat((1 << 20) + 1)).expect("write");
        assert!(Configuration::read(&path).is_err());
        assert!(Configuration::read(&dir.path().join("none.yaml")).expect_err("missing").to_string().contains("none.yaml"));
    }

    #[test]
    fn places_of_keys_are_found_for_later_complaints() {
        let configuration = parse("# policy: 1+0\ndrives:\n  - /a\npolicy:  4+2 # six\n").expect("right");
        assert_eq!(configuration.place("policy"), Place { line: 4, column: 10 });
        assert_eq!(configuration.place("drives"), Place { line: 2, column: 1 });
        assert_eq!(configuration.place("write_min"), Place { line: 1, column: 1 });
        let flow = parse("{log: info, policy: 4+2}\n").expect("right");
        assert_eq!(flow.place("policy"), Place { line: 1, column: 21 });
    }

    #[test]
    fn times_read_as_people_write_them() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!((parse_duration("30"), parse_duration("2m")), (Ok(Duration::from_secs(30)), Ok(Duration::from_secs(120))));
        assert!(
            parse_duration("-1s").is_err() && parse_duration("1h").is_err() && parse_duration("99999999999999999999s").is_err()
        );
    }
}
