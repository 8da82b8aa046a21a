//! What operators watch: `/metrics` of a daemon at work, and the dashboard, rules, alerts and runbook that stand on it.
//!
//! promtool comes from `tests/install-packages.sh`; without it the test that needs it fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lamina_contract::units::{ByteSize, Lba};
use lamina_harness::{Client, ClientOptions, Exposition, assets};
use lamina_journeys::{Bed, drain};
use serde_json::Value;

/// What Prometheus itself adds to each sample.
const SCRAPED: [&str; 2] = ["instance", "job"];

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../appliance/packaging").join(file)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn scrape(bed: &Bed) -> String {
    let mut stream = UnixStream::connect(bed.daemon.state().join("run/lamina.sock")).expect("connected");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    body.to_owned()
}

/// A page of a daemon that has nothing left to do behind: fragments may be late, and the last manifest comes after the last block.
fn settled(bed: &Bed) -> Exposition {
    let work = |page: &Exposition| {
        let sum = |name: &str| page.families[name].samples.iter().map(|(_, _, value)| value).sum::<f64>();
        ["lamina_store_puts_total", "lamina_store_written_bytes_total", "lamina_target_written_bytes_total"].map(sum)
    };
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let before = Exposition::parse(&scrape(bed)).unwrap_or_else(|error| panic!("{error}"));
        std::thread::sleep(Duration::from_secs(1));
        let after = Exposition::parse(&scrape(bed)).unwrap_or_else(|error| panic!("{error}"));
        if work(&before) == work(&after) {
            return after;
        }
        assert!(Instant::now() < until, "it never comes to rest");
    }
}

/// A daemon whose guest has written, flushed and read, with everything stored behind.
fn worked() -> (Bed, Client) {
    let bed = Bed::with(|options, _| {
        options.store_lag = Some("100ms".to_owned());
        Ok(())
    })
    .expect("a daemon");
    let volume = bed.volume("web", ByteSize(64 << 20)).expect("a volume");
    let mut client = Client::connect(&volume.socket, ClientOptions::default()).expect("connected");
    let mut block = [0; 4096];
    for at in 0..64 {
        client.queue().write(Lba(at * 8), &[at as u8 % 3 + 1; 4096]).expect("written");
    }
    client.queue().flush().expect("flushed");
    drain(&bed.daemon, &["web"], Duration::from_secs(60)).expect("stored behind");
    client.queue().read(Lba(0), &mut block).expect("read");
    (bed, client)
}

#[test]
fn a_daemon_at_work_shows_metrics_that_a_strict_reader_takes() {
    let (bed, _client) = worked();
    let page = settled(&bed);
    let value = |name: &str, wanted: &[(&str, &str)]| {
        let family = page.family_of(name).unwrap_or_else(|| panic!("no {name}"));
        let has = |(key, value): &(&str, &str), labels: &BTreeMap<String, String>| labels.get(*key).is_some_and(|is| is == value);
        let fits = family.samples.iter().filter(|(full, labels, _)| full == name && wanted.iter().all(|one| has(one, labels)));
        fits.map(|(_, _, value)| value).sum::<f64>()
    };
    let of = |op| [("volume", "web"), ("op", op)];
    assert_eq!(value("lamina_request_duration_seconds_count", &of("write")), 64.0);
    assert_eq!(value("lamina_request_duration_seconds_count", &of("write")), value("lamina_requests_total", &of("write")));
    assert!(value("lamina_request_duration_seconds_sum", &of("flush")) > 0.0);
    assert_eq!(value("lamina_volume_written_bytes_total", &[("volume", "web")]), 64.0 * 4096.0);
    let stored = value("lamina_volume_data_bytes_total", &[]) + value("lamina_volume_deduplicated_bytes_total", &[]);
    assert_eq!(stored, 64.0 * 4096.0, "each block is stored as data or as a reference");
    assert!(value("lamina_volume_deduplicated_bytes_total", &[]) > 0.0, "three contents, 64 blocks");
    assert!(value("lamina_journal_sync_duration_seconds_count", &[]) >= 1.0);
    assert_eq!(value("lamina_store_put_duration_seconds_count", &[]), value("lamina_store_puts_total", &[]));
    assert!(value("lamina_store_puts_total", &[]) > 0.0);
    let of_targets = value("lamina_target_written_bytes_total", &[]);
    assert_eq!(of_targets, value("lamina_store_written_bytes_total", &[]));
    assert!(value("lamina_target_request_duration_seconds_count", &[("op", "write")]) > 0.0);
    assert_eq!(value("lamina_target_state", &[("state", "up")]), 6.0);
    assert_eq!(value("lamina_degraded", &[]), 0.0);
    assert!(value("lamina_api_requests_total", &[("route", "/metrics"), ("class", "2xx")]) >= 1.0);
    assert!(value("lamina_api_requests_total", &[("route", "/api/v1/volumes"), ("method", "POST"), ("class", "2xx")]) >= 1.0);
}

#[test]
fn a_scrape_while_a_guest_works_stays_consistent() {
    let (bed, mut client) = worked();
    let until = Instant::now() + Duration::from_secs(2);
    let writing = std::thread::spawn(move || {
        while Instant::now() < until {
            client.queue().write(Lba(0), &[7; 4096]).expect("written");
        }
    });
    while !writing.is_finished() {
        // Buckets that fall or a count that is not that of +Inf are refused by the reader.
        Exposition::parse(&scrape(&bed)).unwrap_or_else(|error| panic!("{error}"));
    }
    writing.join().expect("no panic");
}

/// Expressions with where they are from, and what recording rules are called.
struct Named {
    expressions: Vec<(String, String)>,
    recorded: BTreeSet<String>,
    /// Name and runbook.
    alerts: Vec<(String, String)>,
}

fn named() -> Named {
    let mut named = Named { expressions: Vec::new(), recorded: BTreeSet::new(), alerts: Vec::new() };
    for file in ["prometheus/rules.yaml", "prometheus/alerts.yaml"] {
        let rules: Value = serde_yaml::from_str(&read(&packaging(file))).expect("YAML");
        for rule in rules["groups"].as_array().into_iter().flatten().flat_map(|group| group["rules"].as_array().expect("rules")) {
            let expression = rule["expr"].as_str().expect("an expression").to_owned();
            if let Some(record) = rule["record"].as_str() {
                named.recorded.insert(record.to_owned());
                named.expressions.push((record.to_owned(), expression));
                continue;
            }
            let alert = rule["alert"].as_str().expect("an alert").to_owned();
            let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
            assert!(["critical", "warning", "info"].contains(&severity), "{alert}: severity '{severity}'");
            for text in ["summary", "description"] {
                assert!(rule["annotations"][text].as_str().is_some_and(|text| !text.is_empty()), "{alert} has no {text}");
            }
            let runbook = rule["annotations"]["runbook"].as_str().unwrap_or_else(|| panic!("{alert} has no runbook"));
            named.alerts.push((alert.clone(), runbook.to_owned()));
            named.expressions.push((alert, expression));
        }
    }
    let dashboard: Value = serde_json::from_str(&read(&packaging("grafana/lamina.json"))).expect("JSON");
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        for target in panel["targets"].as_array().into_iter().flatten() {
            named.expressions.push((format!("panel {title}"), target["expr"].as_str().expect("an expression").to_owned()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        if let Some(definition) = variable["definition"].as_str() {
            named.expressions.push(("a variable".to_owned(), definition.to_owned()));
        }
    }
    named
}

/// Metrics in an expression, each with the labels that its selector names.
fn metrics_in(expression: &str) -> Vec<(String, Vec<String>)> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(part) {
        rest = rest.get(start..).unwrap_or_default();
        let end = rest.find(|c| !part(c)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        rest = behind;
        let selector = behind.strip_prefix('{').and_then(|inside| inside.split_once('}')).map(|(inside, _)| inside);
        if word.contains("lamina_") {
            let labels = selector.unwrap_or_default().split(',').filter_map(|one| one.split(['=', '!']).next());
            found.push((word.to_owned(), labels.map(|label| label.trim().to_owned()).filter(|label| !label.is_empty()).collect()));
        }
        if let Some(inside) = selector {
            rest = behind.get(inside.len() + 2..).unwrap_or_default();
        }
    }
    found
}

#[test]
fn metrics_are_found_in_expressions_with_their_labels() {
    let expression = "sum by (le) (rate(lamina_a_bucket{x=~\"y|z\",w!=\"lamina_no\"}[5m])) / volume:lamina_b:rate5m > lamina_c";
    let found = metrics_in(expression);
    let names: Vec<_> = found.iter().map(|(name, labels)| (name.as_str(), labels.join(" "))).collect();
    let none = String::new;
    assert_eq!(names, [("lamina_a_bucket", "x w".to_owned()), ("volume:lamina_b:rate5m", none()), ("lamina_c", none())]);
}

#[test]
fn every_metric_of_dashboard_rules_and_alerts_exists_with_the_labels_that_are_asked_for() {
    let (bed, _client) = worked();
    scrape(&bed);
    let page = Exposition::parse(&scrape(&bed)).expect("a page");
    let named = named();
    let mut seen = 0;
    for (whose, expression) in &named.expressions {
        for (name, labels) in metrics_in(expression) {
            seen += 1;
            if name.contains(':') {
                assert!(named.recorded.contains(&name), "{whose}: no rule records {name}");
                continue;
            }
            let family = page.family_of(&name).unwrap_or_else(|| panic!("{whose}: the daemon has no {name}"));
            let known: BTreeSet<&String> = family.samples.iter().flat_map(|(_, labels, _)| labels.keys()).collect();
            // A family without samples here (a past is kept by no volume) shows no labels.
            for label in labels.iter().filter(|label| !SCRAPED.contains(&label.as_str()) && !known.is_empty()) {
                assert!(known.contains(label), "{whose}: {name} has no label {label}");
            }
        }
    }
    assert!(seen > 120, "only {seen} metrics were found");
}

#[test]
fn every_alert_has_its_own_runbook_section_and_every_kind_of_degradation_is_documented() {
    let operations = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../appliance/docs/OPERATIONS.md"));
    let headings = operations.lines().filter_map(|line| line.strip_prefix("### "));
    // As GitHub makes anchors.
    let anchors: BTreeSet<String> = headings.map(|heading| heading.to_lowercase().replace(' ', "-")).collect();
    let alerts = named().alerts;
    assert!(alerts.len() > 20);
    for (alert, runbook) in &alerts {
        let anchor = runbook.strip_prefix("OPERATIONS.md#").unwrap_or_else(|| panic!("{alert}: {runbook}"));
        assert_eq!(anchor, alert.to_lowercase());
        assert!(anchors.contains(anchor), "OPERATIONS.md has no section {alert}");
    }
    let bed = Bed::new().expect("a daemon");
    let page = Exposition::parse(&scrape(&bed)).expect("a page");
    let kinds: Vec<_> = page.families["lamina_degraded"].samples.iter().map(|(_, labels, _)| labels["what"].clone()).collect();
    assert!(kinds.len() > 10, "{kinds:?}");
    for kind in kinds {
        assert!(operations.contains(&format!("| `{kind}` |")), "OPERATIONS.md does not say what {kind} means");
    }
    for (name, family) in &page.families {
        // `lamina_a_{b,c}_total` is how several are written.
        let parts: Vec<&str> = name.split('_').collect();
        let written = operations.contains(name.as_str())
            || (2..parts.len()).any(|at| operations.contains(&format!("{}_{{", parts[..at].join("_"))));
        assert!(written, "OPERATIONS.md does not list {name} ({})", family.help);
    }
}

fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let program = assets().join("promtool");
    assert!(program.exists(), "{} is missing: run tests/install-packages.sh", program.display());
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(packaging("prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    // It may end without reading.
    let feeding = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("it ends");
    let _ = feeding.join().expect("no panic");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), said)
}

#[test]
fn promtool_takes_rules_alerts_and_metrics_and_alerts_fire_when_they_should() {
    for arguments in [["check", "rules", "rules.yaml"], ["check", "rules", "alerts.yaml"], ["test", "rules", "alerts-test.yaml"]] {
        let (well, said) = promtool(&arguments, "");
        assert!(well, "{arguments:?}: {said}");
    }
    let tested = read(&packaging("prometheus/alerts-test.yaml"));
    for (alert, _) in named().alerts {
        assert!(tested.contains(&format!("alertname=\"{alert}\"")), "no test of {alert}");
    }
    let (bed, _client) = worked();
    let (well, said) = promtool(&["check", "metrics"], &scrape(&bed));
    assert!(well, "{said}");
}
