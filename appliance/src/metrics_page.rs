//! A page in Prometheus' text form, version 0.0.4: families with their samples, names and label values as its parser wants them.
//! https://prometheus.io/docs/instrumenting/exposition_formats/

use std::fmt::{Display, Write};

use lamina_contract::LatencyHistogram;

/// Upper ends of buckets, as powers of two of a nanosecond, for what there are many series of (volumes, targets): 16 µs to 4.3 s, four
/// times wider each. A thousand volumes with three operations each then are 39,000 lines, and a quantile is still known to a factor of
/// two on the average.
pub(crate) const COARSE: [usize; 10] = [14, 16, 18, 20, 22, 24, 26, 28, 30, 32];

/// For what there is one series of: 8 µs to 17 s, twice as wide each.
pub(crate) const FINE: [usize; 22] = [13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34];

const NANOS: f64 = 1e9;

/// What a family's samples are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Label and value.
pub(crate) type Label<'a> = (&'a str, &'a str);

/// Lines, a family's samples together.
#[derive(Debug, Default)]
pub(crate) struct Page {
    text: String,
}

impl Page {
    /// All of it.
    pub(crate) fn text(self) -> String {
        self.text
    }

    /// Begins a family; its samples follow.
    pub(crate) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
    }

    /// One sample.
    pub(crate) fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl Display) {
        self.line(name, "", labels, None, value);
    }

    /// A family of one sample.
    pub(crate) fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// Buckets, sum and count of one series. All come from one reading, so that they agree.
    pub(crate) fn histogram(&mut self, name: &str, labels: &[Label<'_>], took: &LatencyHistogram, bounds: &[usize]) {
        for exponent in bounds {
            let end = 2_f64.powi(*exponent as i32) / NANOS;
            self.line(name, "_bucket", labels, Some(&end.to_string()), took.at_most(*exponent));
        }
        self.line(name, "_bucket", labels, Some("+Inf"), took.count());
        self.line(name, "_sum", labels, None, took.sum_nanos as f64 / NANOS);
        self.line(name, "_count", labels, None, took.count());
    }

    /// A family of one histogram.
    pub(crate) fn single_histogram(&mut self, name: &str, help: &str, took: &LatencyHistogram) {
        self.family(name, Kind::Histogram, help);
        self.histogram(name, &[], took, &FINE);
    }

    fn line(&mut self, name: &str, suffix: &str, labels: &[Label<'_>], bound: Option<&str>, value: impl Display) {
        self.text.push_str(name);
        self.text.push_str(suffix);
        let bound = bound.map(|bound| ("le", bound));
        let mut open = '{';
        for (label, text) in labels.iter().copied().chain(bound) {
            self.text.push(open);
            self.text.push_str(label);
            self.text.push_str("=\"");
            self.escaped(text);
            self.text.push('"');
            open = ',';
        }
        let close = if open == ',' { "}" } else { "" };
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{close} {value}");
    }

    fn escaped(&mut self, text: &str) {
        for character in text.chars() {
            match character {
                '\\' => self.text.push_str(r"\\"),
                '"' => self.text.push_str("\\\""),
                '\n' => self.text.push_str(r"\n"),
                other => self.text.push(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lamina_contract::Latencies;

    use super::{Kind, Page};

    #[test]
    fn labels_are_escaped_as_prometheus_reads_them() {
        let mut page = Page::default();
        page.sample("lamina_x", &[("a", "q\"\\\n"), ("b", "2")], 7);
        page.single("lamina_y", Kind::Gauge, "Help.", 0.5);
        assert_eq!(
            page.text(),
            "lamina_x{a=\"q\\\"\\\\\\n\",b=\"2\"} 7\n# HELP lamina_y Help.\n# TYPE lamina_y gauge\nlamina_y 0.5\n"
        );
    }

    #[test]
    fn buckets_add_up_to_the_count() {
        let took = Latencies::new();
        for millis in [1, 2, 60_000] {
            took.count(Duration::from_millis(millis));
        }
        let mut page = Page::default();
        page.histogram("lamina_z_seconds", &[("op", "read")], &took.read(), &[20, 22]);
        assert_eq!(
            page.text(),
            "lamina_z_seconds_bucket{op=\"read\",le=\"0.001048576\"} 1\n\
             lamina_z_seconds_bucket{op=\"read\",le=\"0.004194304\"} 2\n\
             lamina_z_seconds_bucket{op=\"read\",le=\"+Inf\"} 3\n\
             lamina_z_seconds_sum{op=\"read\"} 60.003\n\
             lamina_z_seconds_count{op=\"read\"} 3\n"
        );
    }
}
