//! Takes secrets, and names if wanted, out of what others shall see.
//!
//! Four walls, each for itself: values under keys that are named like secrets; what is shaped like a secret (private keys in PEM, bearer
//! tokens, passwords in URLs, long random words); the very secrets that were found on this machine, wherever they stand; and lines in which
//! a word says that a secret follows. Rather too much is taken than too little.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// What stands where something was taken out.
pub(crate) const REMOVED: &str = "[removed]";

/// Parts of keys that name secrets.
const SECRET_PARTS: [&str; 12] = [
    "secret",
    "token",
    "passw",
    "passphrase",
    "private",
    "credential",
    "authorization",
    "cookie",
    "apikey",
    "api_key",
    "api-key",
    "access_key",
];

/// Keys whose last word this is are secrets too: `tls_key`, `key`.
const SECRET_END: &str = "key";

/// Shorter words are no secrets that could be looked for.
const MIN_LITERAL: usize = 8;

/// From this length on, a word with digits and letters is taken for a secret. Target identities have 32 digits.
const LONG_WORD: usize = 40;

/// Shorter names are not looked for within words.
const MIN_PART: usize = 3;

/// Longer words are nobody's names: those have 63 characters, and hosts 64.
const MAX_NAME: usize = 256;

/// Words before a secret in running text.
const SCHEMES: [&str; 2] = ["bearer ", "basic "];

/// What is known to be taken out, and how often it was.
#[derive(Debug, Default)]
pub(crate) struct Redaction {
    literals: BTreeSet<String>,
    names: BTreeMap<String, String>,
    /// How long names are, by what is in front of their first `-`: so that text is gone through once, whatever is in it.
    lengths: BTreeMap<String, BTreeSet<usize>>,
    removed: u64,
}

impl Redaction {
    /// Takes each line of `text` out wherever it stands: a secret's file, or a secret.
    pub(crate) fn know(&mut self, text: &str) {
        let lines = text.lines().map(str::trim).filter(|line| line.len() >= MIN_LITERAL && !line.starts_with("-----"));
        self.literals.extend(lines.map(str::to_owned));
    }

    /// Replaces `name` by what does not tell it, the same within one bundle.
    pub(crate) fn hide(&mut self, name: &str, salt: &[u8]) {
        if name.len() > MAX_NAME {
            return;
        }
        let mut hasher = Sha256::new();
        hasher.update(salt);
        hasher.update(name.as_bytes());
        let digest: String = hasher.finalize().iter().take(5).map(|byte| format!("{byte:02x}")).collect();
        self.names.insert(name.to_owned(), format!("name-{digest}"));
        self.lengths.entry(first(name).to_owned()).or_default().insert(name.len());
    }

    /// How much was taken out.
    pub(crate) fn removed(&self) -> u64 {
        self.removed
    }

    /// A document without secrets.
    pub(crate) fn value(&mut self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (key, inner) in fields.iter_mut() {
                    if is_secret(key) && !matches!(inner, Value::Null | Value::Bool(_)) {
                        self.removed += 1;
                        *inner = Value::String(REMOVED.to_owned());
                    } else {
                        self.value(inner);
                    }
                }
                // Keys can be names: of labels, of clients.
                let keys: Vec<String> = fields.keys().cloned().collect();
                for key in keys {
                    let shown = self.words(&key);
                    if shown != key
                        && let Some(inner) = fields.remove(&key)
                    {
                        fields.insert(shown, inner);
                    }
                }
            }
            Value::Array(all) => all.iter_mut().for_each(|inner| self.value(inner)),
            Value::String(text) => *text = self.text(text),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Text without secrets. Lines that are JSON are read as such.
    pub(crate) fn text(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut private = false;
        for line in text.split_inclusive('\n') {
            let (body, end) = line.strip_suffix('\n').map_or((line, ""), |body| (body, "\n"));
            if body.contains("-----BEGIN") && body.contains("PRIVATE KEY") {
                private = true;
                self.removed += 1;
                out.push_str(REMOVED);
                out.push_str(end);
            }
            if !private {
                out.push_str(&self.line(body));
                out.push_str(end);
            }
            if body.contains("-----END") {
                private = false;
            }
        }
        out
    }

    fn line(&mut self, line: &str) -> String {
        if line.starts_with('{')
            && let Ok(mut value @ Value::Object(_)) = serde_json::from_str(line)
        {
            self.value(&mut value);
            return value.to_string();
        }
        let assigned = self.assigned(line);
        self.words(&assigned)
    }

    /// Without what follows `name=`, `name:` and `Bearer`.
    fn assigned(&mut self, line: &str) -> String {
        let lower = line.to_ascii_lowercase();
        let mut cut: Option<usize> = None;
        for scheme in SCHEMES {
            let found = lower.find(scheme).map(|at| at + scheme.len());
            cut = [cut, found].into_iter().flatten().min();
        }
        for (at, _) in line.match_indices(['=', ':']) {
            let before = line.get(..at).unwrap_or_default().trim_end_matches(['"', '\'', ' ']);
            let start = before.rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).map_or(0, |place| place + 1);
            // `path: key` is not a secret's name, but `://` and times have none either.
            if is_secret(before.get(start..).unwrap_or_default()) {
                cut = [cut, Some(at + 1)].into_iter().flatten().min();
            }
        }
        match cut {
            // To the end of the line: where a secret ends cannot be known.
            Some(at) if line.get(at..).is_some_and(|rest| !rest.trim().is_empty()) => {
                self.removed += 1;
                format!("{}{REMOVED}", line.get(..at).unwrap_or_default())
            }
            _ => line.to_owned(),
        }
    }

    fn words(&mut self, text: &str) -> String {
        let mut text = text.to_owned();
        for literal in &self.literals {
            let found = text.matches(literal.as_str()).count() as u64;
            if found > 0 {
                self.removed += found;
                text = text.replace(literal.as_str(), REMOVED);
            }
        }
        text = self.without_user_information(text);
        let mut out = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(start) = rest.find(is_word) {
            out.push_str(rest.get(..start).unwrap_or_default());
            rest = rest.get(start..).unwrap_or_default();
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let (word, behind) = rest.split_at(end);
            if let Some(hidden) = self.hidden(word) {
                out.push_str(&hidden);
            } else if is_random(word) {
                self.removed += 1;
                out.push_str(REMOVED);
            } else {
                out.push_str(word);
            }
            rest = behind;
        }
        out.push_str(rest);
        out
    }
}

impl Redaction {
    /// Without `user:password` of URLs.
    fn without_user_information(&mut self, text: String) -> String {
        const SEPARATOR: &str = "://";
        let (mut out, mut rest) = (String::new(), text.as_str());
        while let Some(start) = rest.find(SEPARATOR).map(|at| at + SEPARATOR.len()) {
            let (before, behind) = rest.split_at(start);
            out.push_str(before);
            let end = behind.find(|c: char| c == '/' || c.is_whitespace() || c == '"').unwrap_or(behind.len());
            let (authority, after) = behind.split_at(end);
            match authority.rsplit_once('@').filter(|(user, _)| *user != REMOVED) {
                Some((_, host)) => {
                    self.removed += 1;
                    out.extend([REMOVED, "@", host]);
                }
                None => out.push_str(authority),
            }
            rest = after;
        }
        out.push_str(rest);
        out
    }

    /// A word that is a hidden name, or several joined with `-`, as names are that were made of others: `web-20260105-0200`.
    fn hidden(&self, word: &str) -> Option<String> {
        if self.names.is_empty() {
            return None;
        }
        let (mut out, mut found, mut behind_name, mut rest) = (String::new(), false, true, word);
        loop {
            let name = self.longest(rest, behind_name);
            let length = name.map_or_else(|| first(rest).len(), |(length, _)| length);
            let (part, behind) = rest.split_at_checked(length)?;
            out.push_str(name.map_or(part, |(_, hidden)| hidden));
            (found, behind_name) = (found || name.is_some(), name.is_some());
            match behind.strip_prefix('-') {
                Some(behind) => rest = behind,
                None => return found.then_some(out),
            }
            out.push('-');
        }
    }

    /// The longest name that `word` begins with, up to a `-` or its end: its length and what stands for it. Short ones count only alone, or
    /// at the end behind another name.
    fn longest(&self, word: &str, short: bool) -> Option<(usize, &str)> {
        self.lengths.get(first(word))?.iter().rev().find_map(|length| {
            let (name, behind) = word.split_at_checked(*length)?;
            let counts = *length >= MIN_PART || (short && behind.is_empty());
            if !counts || !(behind.is_empty() || behind.starts_with('-')) {
                return None;
            }
            self.names.get(name).map(|hidden| (*length, hidden.as_str()))
        })
    }
}

/// What is in front of the first `-`.
fn first(word: &str) -> &str {
    word.split('-').next().unwrap_or_default()
}

/// Whether a key is named like that of a secret.
pub(crate) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let last = key.rsplit(['_', '-', '.']).next().unwrap_or_default();
    last == SECRET_END || SECRET_PARTS.iter().any(|part| key.contains(part))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-'
}

fn is_random(word: &str) -> bool {
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    word.len() >= LONG_WORD && digits >= 4 && digits < word.len()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::{REMOVED, Redaction, is_secret};

    #[test]
    fn keys_that_name_secrets_are_told_from_others() {
        for secret in
            ["token", "api_key", "s3_secret_access_key", "Password", "tls.key", "LAMINA_TOKEN", "authorization", "private"]
        {
            assert!(is_secret(secret), "{secret}");
        }
        for plain in ["drives", "state_dir", "keys_per_page", "policy", "name", "monkey", "cache_size"] {
            assert!(!is_secret(plain), "{plain}");
        }
    }

    #[test]
    fn secrets_are_taken_out_of_text_wherever_they_stand() {
        let mut redaction = Redaction::default();
        redaction.know("-----BEGIN X-----\nc3RyaWN0bHkgc2VjcmV0\nshort\n");
        for line in [
            "Authorization: Bearer plant",
            "got header bearer plant today",
            "connecting with password=plant",
            "connecting with \"secret\": \"plant\"",
            "url https://user:plant@host/x",
            "{\"level\":\"INFO\",\"fields\":{\"token\":\"plant\",\"note\":\"password=plant\"}}",
            "sent plant0123456789012345678901234567890123456789",
            "read c3RyaWN0bHkgc2VjcmV0",
        ] {
            let text = redaction.text(line);
            assert!(text.contains(REMOVED) && !text.contains("plant") && !text.contains("c3Ry"), "{line} -> {text}");
        }
        let pem = "a\n-----BEGIN EC PRIVATE KEY-----\nplant\n-----END EC PRIVATE KEY-----\nb";
        assert_eq!(redaction.text(pem), format!("a\n{REMOVED}\nb"));
        assert_eq!(redaction.removed(), 10);
    }

    #[test]
    fn what_is_no_secret_stays() {
        let mut redaction = Redaction::default();
        for line in [
            "2026-11-23T05:00:00Z INFO attached volume=web socket=/run/lamina/vhost/web.sock",
            "lamina_target_up{target=\"5\",id=\"0123456789abcdef0123456789abcdef\"} 1",
            "lamina_target_request_duration_seconds_bucket{op=\"read\",le=\"0.000016384\"} 7",
            "https://localhost:9602/api/v1",
            "",
        ] {
            assert_eq!(redaction.text(line), line);
        }
        assert_eq!(redaction.removed(), 0);
    }

    #[test]
    fn documents_lose_values_of_secret_keys_and_keep_their_shape() {
        let mut value = json!({"drives": ["/a"], "api_key": "/etc/plant", "store": {"secret_key": ["plant"], "password": 7, "n": 1}, "token": null});
        let mut redaction = Redaction::default();
        redaction.value(&mut value);
        assert_eq!(
            value,
            json!({"drives": ["/a"], "api_key": REMOVED, "store": {"secret_key": REMOVED, "password": REMOVED, "n": 1}, "token": null})
        );
    }

    #[test]
    fn hidden_names_are_the_same_everywhere_and_within_names_that_were_made_of_them() {
        let mut redaction = Redaction::default();
        redaction.hide("web", b"salt");
        let text =
            redaction.text("volume=web socket=/run/vhost/web.sock webserver web-20260105-0200 before-web web-export-1a on-web-web");
        let (first, _) = text.trim_start_matches("volume=").split_once(' ').expect("a word");
        assert!(first.starts_with("name-") && first.len() == 15, "{text}");
        let made = format!("{first}-20260105-0200 before-{first} {first}-export-1a on-{first}-{first}");
        assert_eq!(text, format!("volume={first} socket=/run/vhost/{first}.sock webserver {made}"));
        redaction.hide("web-shop", b"salt");
        assert!(!redaction.text("web-shop-1").contains("shop"), "the longest name counts");
        let mut labels = json!({"web": "web"});
        redaction.value(&mut labels);
        assert_eq!(labels, json!({first: first}));
        let mut other = Redaction::default();
        other.hide("web", b"pepper");
        assert_ne!(other.text("web"), first);
    }

    #[test]
    fn a_line_takes_as_long_as_it_is_long_whatever_is_in_it() {
        const MIB: usize = 1 << 20;
        // A scan that looks at each dash from each dash takes minutes.
        let limit = Duration::from_secs(20);
        let long_name = "a-".repeat(MIB / 2);
        for names in [&[][..], &["web", "a-b", "a-a-b", "-", "---x", &long_name]] {
            for line in ["-".repeat(MIB), "a-".repeat(MIB / 2), "web-".repeat(MIB / 4), "s3://u:plant@h ".repeat(MIB / 15)] {
                let mut redaction = Redaction::default();
                names.iter().for_each(|name| redaction.hide(name, b"salt"));
                let begun = Instant::now();
                let text = redaction.text(&line);
                assert!(begun.elapsed() < limit, "{:?} of {}", begun.elapsed(), line.get(..8).unwrap_or_default());
                assert!(!text.contains("plant"));
                assert_eq!(text.contains("web-"), line.starts_with("web") && names.is_empty(), "{names:?}");
            }
        }
    }
}
