//! Which lines of the audit log are written as they come and which are summed up, so that no caller can crowd the others' lines out.
//!
//! Two kinds are many: bytes of a volume, a request for each MiB of an import; and refused requests, which anybody may send who is known.
//! Of each caller's bytes for one path the first line of a minute is written and the rest is one line; of each caller's refused requests the
//! first [`MOST_REFUSED`] are written and the rest is one line. Everything else is written. A kill loses the sums of the last minute, and
//! no line that stands for one change alone. Bounded: [`MOST_SUMS`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lamina_api::audit::AuditLine;

/// How long a sum goes on.
const SPAN: Duration = Duration::from_secs(60);
/// Refused requests of one caller in a [`SPAN`] that have a line each: a caller writes 11 lines a minute, 16 MiB a day at most.
const MOST_REFUSED: u32 = 10;
/// Sums at a time; one more ends all of them.
const MOST_SUMS: usize = 1024;

/// What belongs to one sum.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Sort {
    Bytes { who: String, path: String },
    Refused { who: String },
}

#[derive(Debug)]
struct Sum {
    since: Instant,
    written: u32,
    held: Option<AuditLine>,
}

/// All sums.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    sums: BTreeMap<Sort, Sum>,
}

impl Sums {
    /// The lines to write now that `line` has come, itself among them or not.
    pub(crate) fn add(&mut self, line: &AuditLine, now: Instant) -> Vec<AuditLine> {
        let mut lines = self.ended(now);
        let Some(sort) = sort(line) else {
            lines.push(line.clone());
            return lines;
        };
        if self.sums.len() >= MOST_SUMS && !self.sums.contains_key(&sort) {
            lines.extend(self.held());
            self.sums.clear();
        }
        let most = if matches!(sort, Sort::Refused { .. }) { MOST_REFUSED } else { 1 };
        let sum = self.sums.entry(sort).or_insert(Sum { since: now, written: 0, held: None });
        if sum.written < most {
            sum.written += 1;
            lines.push(line.clone());
        } else {
            let (count, bytes) = sum.held.as_ref().map_or((0, None), |held| (held.count.unwrap_or(1), held.bytes));
            let bytes = bytes.map_or(line.bytes, |before| Some(before.saturating_add(line.bytes.unwrap_or(0))));
            sum.held = Some(AuditLine { bytes, count: Some(count + 1).filter(|count| *count > 1), ..line.clone() });
        }
        lines
    }

    /// Lines of sums that are over.
    pub(crate) fn ended(&mut self, now: Instant) -> Vec<AuditLine> {
        let over = |sum: &Sum| now.saturating_duration_since(sum.since) >= SPAN;
        let lines = self.sums.values_mut().filter(|sum| over(sum)).filter_map(|sum| sum.held.take()).collect();
        self.sums.retain(|_, sum| !over(sum));
        lines
    }

    /// Lines of all sums, which go on.
    pub(crate) fn held(&mut self) -> Vec<AuditLine> {
        self.sums.values_mut().filter_map(|sum| sum.held.take()).collect()
    }
}

fn sort(line: &AuditLine) -> Option<Sort> {
    match line.status {
        200..300 if line.bytes.is_some() => Some(Sort::Bytes { who: line.who.clone(), path: line.path.clone() }),
        400..500 => Some(Sort::Refused { who: line.who.clone() }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use lamina_api::audit::AuditLine;

    use super::{MOST_REFUSED, MOST_SUMS, Sums};

    fn line(who: &str, path: &str, status: u16, bytes: Option<u64>) -> AuditLine {
        AuditLine {
            time: String::new(),
            who: who.to_owned(),
            role: None,
            from: "local".to_owned(),
            method: "PUT".to_owned(),
            path: path.to_owned(),
            status,
            request_id: String::new(),
            bytes,
            count: None,
        }
    }

    fn counts(lines: &[AuditLine]) -> Vec<(Option<u64>, Option<u64>)> {
        lines.iter().map(|line| (line.count, line.bytes)).collect()
    }

    #[test]
    fn an_import_is_two_lines_a_minute() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        let written: Vec<_> = (0..100).flat_map(|_| sums.add(&line("a", "/v", 204, Some(10)), now)).collect();
        assert_eq!(counts(&written), [(None, Some(10))]);
        assert_eq!(counts(&sums.add(&line("a", "/w", 204, Some(1)), now)), [(None, Some(1))], "another volume");
        assert!(sums.ended(now + Duration::from_secs(59)).is_empty());
        let next = sums.add(&line("a", "/v", 204, Some(7)), now + Duration::from_secs(60));
        assert_eq!(counts(&next), [(Some(99), Some(990)), (None, Some(7))]);
        assert!(sums.ended(now + Duration::from_secs(200)).is_empty(), "each is said once");
    }

    #[test]
    fn who_is_refused_all_the_time_crowds_nobody_out_and_is_counted() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        let written: usize = (0..1000).map(|n| sums.add(&line("a", &format!("/{n}"), 403, None), now).len()).sum();
        assert_eq!(written, MOST_REFUSED as usize);
        for (who, status) in [("b", 403), ("a", 201), ("a", 503)] {
            assert_eq!(sums.add(&line(who, "/v", status, None), now).len(), 1, "{who} {status}");
        }
        let held = sums.held();
        assert_eq!((counts(&held), held[0].path.as_str()), (vec![(Some(990), None)], "/999"));
        // It goes on: asking for what is held gives nobody new lines.
        assert!(sums.add(&line("a", "/v", 403, None), now).is_empty());
    }

    #[test]
    fn callers_without_end_use_memory_with_one_and_no_line_is_lost() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        let all = 10 * MOST_SUMS;
        let mut lines = Vec::new();
        for n in 0..all {
            let refused = line(&n.to_string(), "/v", 403, None);
            (0..=MOST_REFUSED).for_each(|_| lines.extend(sums.add(&refused, now)));
            assert!(sums.sums.len() <= MOST_SUMS);
        }
        lines.extend(sums.held());
        assert_eq!(lines.len(), all * (MOST_REFUSED as usize + 1));
    }
}
