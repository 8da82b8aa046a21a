//! The daemon's `/metrics`: fetched over its Unix socket or a TCP address, parsed from the Prometheus text form.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::error::HarnessError;

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(20);

/// One fetch's samples.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Fetches over the API's Unix socket.
    ///
    /// # Errors
    /// [`HarnessError::File`], [`HarnessError::Answer`].
    pub fn over_socket(socket: &Path) -> Result<Self, HarnessError> {
        let stream = UnixStream::connect(socket).map_err(HarnessError::file("connect to", socket))?;
        stream.set_read_timeout(Some(LIMIT)).map_err(HarnessError::file("set up", socket))?;
        Self::fetch(stream, &socket.display().to_string())
    }

    /// Fetches over TCP.
    ///
    /// # Errors
    /// As [`Metrics::over_socket`].
    pub fn over_tcp(address: &str) -> Result<Self, HarnessError> {
        let stream = TcpStream::connect(address).map_err(HarnessError::file("connect to", address))?;
        stream.set_read_timeout(Some(LIMIT)).map_err(HarnessError::file("set up", address))?;
        Self::fetch(stream, address)
    }

    fn fetch(mut stream: impl Read + Write, whom: &str) -> Result<Self, HarnessError> {
        let mut answer = Vec::new();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: lamina\r\nConnection: close\r\n\r\n")
            .and_then(|()| stream.read_to_end(&mut answer))
            .map_err(HarnessError::file("read metrics of", whom))?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let split = text.split_once("\r\n\r\n").filter(|_| text.starts_with("HTTP/1.1 200"));
        let Some((_, body)) = split else {
            return Err(HarnessError::Answer {
                source_of: format!("{whom}/metrics"),
                expected: "200",
                answer: text.chars().take(400).collect(),
            });
        };
        Ok(Self::parse(body))
    }

    fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect() }
    }

    /// The sum of all samples of `name` whose labels include `labels`; `None` when there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.iter().any(|(have, is)| have == key && is == value))
        };
        self.samples.iter().filter(wanted).map(|sample| sample.value).reduce(|sum, value| sum + value)
    }

    /// All names, for messages.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.samples.iter().map(|sample| sample.name.as_str()).collect();
        names.dedup();
        names
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (head, value) = line.trim().rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = head.split_once('{') else { return Some(Sample { name: head.to_owned(), labels: Vec::new(), value }) };
    let labels = rest.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
    let labels = labels.map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned())).collect();
    Some(Sample { name: name.to_owned(), labels, value })
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn samples_are_summed_by_label() {
        let text = "# HELP x y\nlamina_requests_total{volume=\"a\",op=\"flush\"} 3\nlamina_requests_total{volume=\"b\",op=\"flush\"} 4\nlamina_up 1\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("lamina_requests_total", &[("op", "flush")]), Some(7.0));
        assert_eq!(metrics.sum("lamina_requests_total", &[("volume", "a")]), Some(3.0));
        assert_eq!(metrics.sum("lamina_requests_total", &[("op", "read")]), None);
        assert_eq!(metrics.sum("lamina_up", &[]), Some(1.0));
    }
}
