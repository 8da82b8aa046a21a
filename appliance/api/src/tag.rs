//! Entity tags: what a caller saw, so that it changes only that (`If-Match`) and is not told it again (`If-None-Match`).
//!
//! A tag covers what calls change: of a volume, not its counters and not where its store is. So a tag holds while a guest writes.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::job::Job;
use crate::problem::{Problem, ProblemKind};
use crate::schedule::Schedule;
use crate::snapshot::Snapshot;
use crate::vm::{Vm, VmSnapshot};
use crate::volume::Volume;

/// Something with an entity tag.
pub(crate) trait Tagged {
    /// Fields that change by themselves.
    const RESTLESS: &'static [&'static str];
}

impl Tagged for Volume {
    const RESTLESS: &'static [&'static str] = &["counters", "connected", "epoch", "generation", "clones", "snapshots", "cdp_start"];
}

impl Tagged for Snapshot {
    const RESTLESS: &'static [&'static str] = &["state", "clones"];
}

impl Tagged for Vm {
    const RESTLESS: &'static [&'static str] = &[];
}

impl Tagged for VmSnapshot {
    const RESTLESS: &'static [&'static str] = &["state", "complete", "disks"];
}

impl Tagged for Schedule {
    const RESTLESS: &'static [&'static str] = &["last_run", "next_run", "last_error"];
}

impl Tagged for Job {
    const RESTLESS: &'static [&'static str] = &[];
}

/// The tag of `body`, in quotes as headers have it.
pub(crate) fn tag_of<T: Serialize + Tagged>(body: &T) -> Result<String, Problem> {
    let unwritable = |error: serde_json::Error| Problem::new(ProblemKind::Internal, format!("no tag: {error}"));
    let mut value = serde_json::to_value(body).map_err(unwritable)?;
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| !T::RESTLESS.contains(&name.as_str()));
    }
    Ok(format!("\"{}\"", hex(Sha256::digest(value.to_string().as_bytes()).get(..16).unwrap_or_default())))
}

/// Bytes as hexadecimal text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a list of tags as in `If-Match` (RFC 9110, 13.1.1) has `tag`. `None` when it is no such list.
pub(crate) fn list_has(list: &str, tag: &str) -> Option<bool> {
    let list = list.trim();
    if list == "*" {
        return Some(true);
    }
    let mut has = false;
    for entry in list.split(',').map(str::trim) {
        // Weak ones are compared as text: this interface makes none.
        let bare = entry.strip_prefix("W/").unwrap_or(entry);
        let inside = bare.strip_prefix('"')?.strip_suffix('"')?;
        if inside.contains('"') {
            return None;
        }
        has |= entry == tag;
    }
    Some(has)
}

#[cfg(test)]
mod tests {
    use super::list_has;

    #[test]
    fn lists_of_tags_are_read_as_http_writes_them() {
        assert_eq!(list_has("*", "\"a\""), Some(true));
        assert_eq!(list_has("\"b\", \"a\"", "\"a\""), Some(true));
        assert_eq!(list_has("W/\"a\"", "\"a\""), Some(false));
        for bad in ["a", "", "\"a", "\"a\"b\"", "\"a\",,"] {
            assert_eq!(list_has(bad, "\"a\""), None, "{bad}");
        }
    }
}
