//! Long lists in pages: a limit, and a cursor that says where the next page begins. The cursor is opaque to callers.
//!
//! A page begins after the last key of the page before, so that what is made or deleted meanwhile neither repeats nor hides others.

use crate::problem::{Problem, ProblemKind};

/// Entries in a page when nobody asks.
pub const DEFAULT_LIMIT: usize = 100;
/// Entries in a page at most.
pub const MAX_LIMIT: usize = 1000;

/// Longest cursor: a name or two in hexadecimal.
const MAX_CURSOR: usize = 512;

/// Which part of a list is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    limit: usize,
    after: Option<String>,
}

impl Default for Page {
    fn default() -> Self {
        Self { limit: DEFAULT_LIMIT, after: None }
    }
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paged<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Where the next page begins; absent at the end.
    pub next: Option<String>,
}

impl Page {
    /// A page of up to `limit` entries behind `cursor`.
    ///
    /// # Errors
    /// `InvalidRequest` for a limit outside 1 to [`MAX_LIMIT`] and for a cursor that this interface did not make.
    pub fn new(limit: Option<usize>, cursor: Option<&str>) -> Result<Self, Problem> {
        let limit = limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(Problem::new(ProblemKind::InvalidRequest, format!("limit is a number from 1 to {MAX_LIMIT}")));
        }
        Ok(Self { limit, after: cursor.map(decode).transpose()? })
    }

    /// All there is in one page, for callers inside.
    #[must_use]
    pub fn all() -> Self {
        Self { limit: usize::MAX, after: None }
    }

    /// Entries at most.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The key that the page begins behind.
    #[must_use]
    pub fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// This page of `sorted`, which is in ascending order of `key`.
    pub fn cut<T>(&self, sorted: impl IntoIterator<Item = T>, key: impl Fn(&T) -> String) -> Paged<T> {
        let mut rest = sorted.into_iter().filter(|entry| self.after.as_ref().is_none_or(|after| key(entry) > *after)).peekable();
        let entries: Vec<T> = rest.by_ref().take(self.limit).collect();
        let next = rest.peek().and(entries.last()).map(|last| encode(&key(last)));
        Paged { entries, next }
    }
}

fn encode(key: &str) -> String {
    key.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(cursor: &str) -> Result<String, Problem> {
    let foreign =
        || Problem::new(ProblemKind::InvalidRequest, "the cursor is not one of this interface").advise("begin without one");
    if cursor.is_empty()
        || cursor.len() > MAX_CURSOR
        || !cursor.len().is_multiple_of(2)
        || !cursor.bytes().all(|b| b.is_ascii_hexdigit())
    {
        return Err(foreign());
    }
    let pairs = cursor.as_bytes().chunks_exact(2);
    let bytes: Option<Vec<u8>> =
        pairs.map(|pair| std::str::from_utf8(pair).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok())).collect();
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(foreign)
}

#[cfg(test)]
mod tests {
    use super::Page;

    #[test]
    fn pages_follow_each_other_without_gaps() {
        let names: Vec<String> = (0..25).map(|n| format!("v{n:02}")).collect();
        let (mut seen, mut cursor) = (Vec::new(), None);
        loop {
            let page = Page::new(Some(10), cursor.as_deref()).expect("a page").cut(names.clone(), String::clone);
            seen.extend(page.entries);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, names);
        assert!(Page::new(Some(25), None).expect("a page").cut(names, String::clone).next.is_none());
    }

    #[test]
    fn limits_and_cursors_from_elsewhere_are_refused() {
        assert!(Page::new(Some(0), None).is_err() && Page::new(Some(1001), None).is_err());
        for bad in ["", "0", "zz", "+f", "ff", &"00".repeat(300)] {
            assert!(Page::new(None, Some(bad)).is_err(), "{bad}");
        }
    }
}
