//! Names that guests' owners gave, for a bundle that shall not tell them: where they stand on an appliance.
//!
//! Volumes, VMs, schedules and tokens each have a list that is whole: the daemon's answer, the registry, or a directory of documents. Names
//! that stand in no list, of what was deleted, and of snapshots while the daemon is down, are taken from where they are used: paths of the
//! audit log, and the log's fields, quotes and sockets.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Keys of documents under which a name stands, or a list of them.
const KEYS: [&str; 8] = ["name", "volume", "subject", "snapshot", "discarded", "volumes", "vms", "names"];

/// What stands before a name in a log or a path.
const BEFORE: [&str; 22] = [
    "volume=",
    "snapshot=",
    "vm=",
    "schedule=",
    "token=",
    "volume '",
    "snapshot '",
    "VM '",
    "schedule '",
    "token '",
    "\"volume\":\"",
    "\"snapshot\":\"",
    "\"vm\":\"",
    "\"schedule\":\"",
    "\"token\":\"",
    "token:",
    "/volumes/",
    "/vms/",
    "/schedules/",
    "/tokens/",
    "/snapshots/",
    "/vhost/",
];

/// Before the name in a client's certificate, which has dots.
const CERTIFICATE: &str = "certificate:";

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Names {
    found: BTreeSet<String>,
}

impl Names {
    /// Those of a document: under keys that name something, and labels.
    pub(crate) fn of_document(&mut self, value: &Value) {
        match value {
            Value::Array(all) => all.iter().for_each(|inner| self.of_document(inner)),
            Value::Object(fields) => fields.iter().for_each(|(key, inner)| match inner {
                Value::String(name) if KEYS.contains(&key.as_str()) => self.add(name),
                Value::Array(names) if KEYS.contains(&key.as_str()) && names.iter().all(Value::is_string) => {
                    names.iter().filter_map(Value::as_str).for_each(|name| self.add(name));
                }
                Value::Object(labels) if key == "labels" => {
                    let pairs = labels.iter().flat_map(|(label, value)| [Some(label.as_str()), value.as_str()]);
                    pairs.flatten().for_each(|word| self.add(word));
                }
                inner => self.of_document(inner),
            }),
            _ => {}
        }
    }

    /// Those that a log or a document tells in its words.
    pub(crate) fn of_text(&mut self, text: &str) {
        for before in BEFORE {
            for (at, _) in text.match_indices(before) {
                let behind = text.get(at + before.len()..).unwrap_or_default();
                let behind = behind.strip_prefix('"').unwrap_or(behind);
                let name = word(behind);
                self.add(name);
                // `web@daily-1`.
                if let Some(cut) = behind.strip_prefix(name).and_then(|behind| behind.strip_prefix('@')) {
                    self.add(word(cut));
                }
            }
        }
        for (at, _) in text.match_indices(CERTIFICATE) {
            let behind = text.get(at + CERTIFICATE.len()..).unwrap_or_default();
            self.add(behind.split(|c: char| c.is_whitespace() || c == '"').next().unwrap_or_default());
        }
    }

    /// Those of the documents in a directory, which are the names of its files. Whether it could be read.
    pub(crate) fn of_directory(&mut self, directory: &Path) -> bool {
        let Ok(entries) = fs::read_dir(directory) else { return false };
        for entry in entries.flatten() {
            // `web.json`, `web.damaged-1`.
            self.add(entry.file_name().to_string_lossy().split('.').next().unwrap_or_default());
        }
        true
    }

    /// One more. Words are what can be looked for: a host's name has dots.
    pub(crate) fn add(&mut self, name: &str) {
        let words = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter(|word| !word.is_empty());
        self.found.extend(words.map(str::to_owned));
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.found.iter().map(String::as_str)
    }
}

fn word(text: &str) -> &str {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Names;

    #[test]
    fn names_stand_in_fields_quotes_paths_and_sockets() {
        for (text, expected) in [
            ("INFO attached volume=web socket=/run/lamina/vhost/web.sock", &["web"][..]),
            ("lamina_writes_total{volume=\"mail\"} 1", &["mail"]),
            (r#"{"fields":{"snapshot":"q4","vm":"shop"}}"#, &["q4", "shop"]),
            ("volume 'web' has no snapshot 'dialy-1'", &["dialy-1", "web"]),
            ("export of volume 'web@q4'", &["q4", "web"]),
            ("DELETE /api/v1/volumes/web/snapshots/daily-1 200", &["daily-1", "web"]),
            ("PATCH /api/v1/schedules/nightly", &["nightly"]),
            ("\"who\":\"certificate:backup.acme.net\"", &["acme", "backup", "net"]),
            ("GET /api/v1/jobs/2a", &[]),
        ] {
            let mut names = Names::default();
            names.of_text(text);
            assert_eq!(names.iter().collect::<Vec<_>>(), expected, "{text}");
        }
    }

    #[test]
    fn names_stand_under_keys_in_lists_and_labels() {
        let mut names = Names::default();
        names.of_document(&json!({"volumes": [{"name": "payroll", "labels": {"customer": "acme"}, "state": "attached"}]}));
        names.of_document(&json!({"jobs": [{"subject": "ledger", "result": {"volumes": ["desk-1"], "discarded": "before"}}]}));
        assert_eq!(names.iter().collect::<Vec<_>>(), ["acme", "before", "customer", "desk-1", "ledger", "payroll"]);
    }

    #[test]
    fn files_of_documents_are_named_after_them() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        std::fs::write(dir.path().join("nightly.json"), "{}").expect("written");
        std::fs::write(dir.path().join("old.damaged-1"), "").expect("written");
        let mut names = Names::default();
        assert!(names.of_directory(dir.path()) && !names.of_directory(&dir.path().join("nowhere")));
        assert_eq!(names.iter().collect::<Vec<_>>(), ["nightly", "old"]);
    }

    #[test]
    fn a_log_of_many_names_takes_as_long_as_it_is_long() {
        let begun = std::time::Instant::now();
        let mut names = Names::default();
        names.of_text(&"volume=web vm=\"shop\" ".repeat(400_000));
        assert_eq!(names.iter().collect::<Vec<_>>(), ["shop", "web"]);
        // Looking through all that follows each one takes minutes.
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}
