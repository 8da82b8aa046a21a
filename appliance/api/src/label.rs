//! Labels: words that operators put on things to find them again and to aim schedules at them.

use std::collections::BTreeMap;

use lamina_contract::snapshot::{MOST_LABEL_VALUE, MOST_LABELS};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::{Problem, ProblemKind};

/// Labels a thing may have, those that the appliance gives it included.
pub const MAX_LABELS: usize = 32;
/// Bytes of a label's key.
const MAX_KEY: usize = 63;
/// Characters of a label's value.
const MAX_VALUE: usize = 128;

// What is accepted here the engine keeps.
const _: () = assert!(MAX_LABELS <= MOST_LABELS && MAX_VALUE <= MOST_LABEL_VALUE);

/// Keys with values. A key matches `[a-z0-9][a-z0-9._/-]{0,62}`; a value has up to 128 characters and 255 bytes, and no control characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "BTreeMap<String, String>")]
#[schema(value_type = BTreeMap<String, String>)]
pub struct Labels(BTreeMap<String, String>);

/// Why labels were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Too many.
    #[error("a thing has at most {MAX_LABELS} labels")]
    Many,
    /// A key in another form.
    #[error("a label's key matches [a-z0-9][a-z0-9._/-]{{0,62}}")]
    Key,
    /// A value that is too long or not printable.
    #[error("a label's value has up to {MAX_VALUE} characters in up to {MOST_LABEL_VALUE} bytes and no control characters")]
    Value,
    /// Text that is not `key=value`.
    #[error("a label is written key=value")]
    Form,
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = LabelError;

    fn try_from(labels: BTreeMap<String, String>) -> Result<Self, LabelError> {
        if labels.len() > MAX_LABELS {
            return Err(LabelError::Many);
        }
        labels.iter().try_for_each(|(key, value)| check(key, value))?;
        Ok(Self(labels))
    }
}

impl Labels {
    /// In order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Whether every label of `asked` is here with the same value.
    #[must_use]
    pub fn contain(&self, asked: &Self) -> bool {
        asked.iter().all(|(key, value)| self.get(key) == Some(value))
    }

    /// Labels that were accepted once, perhaps with other bounds: values are cut, and the last ones left out, rather than all refused.
    #[must_use]
    pub fn within_bounds(labels: impl IntoIterator<Item = (String, String)>) -> Self {
        let cut = |(key, value): (String, String)| {
            let printable = value.chars().filter(|character| !character.is_control()).take(MAX_VALUE);
            let mut value: String = printable.collect();
            while value.len() > MOST_LABEL_VALUE {
                value.pop();
            }
            check(&key, &value).is_ok().then_some((key, value))
        };
        Self(labels.into_iter().filter_map(cut).take(MAX_LABELS).collect())
    }

    /// Adds a label that is written `key=value`.
    ///
    /// # Errors
    /// [`LabelError`].
    pub fn add(&mut self, text: &str) -> Result<(), LabelError> {
        let (key, value) = text.split_once('=').ok_or(LabelError::Form)?;
        check(key, value)?;
        if self.0.len() >= MAX_LABELS && !self.0.contains_key(key) {
            return Err(LabelError::Many);
        }
        self.0.insert(key.to_owned(), value.to_owned());
        Ok(())
    }
}

impl From<LabelError> for Problem {
    fn from(error: LabelError) -> Self {
        Self::new(ProblemKind::InvalidRequest, error.to_string())
    }
}

fn check(key: &str, value: &str) -> Result<(), LabelError> {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._/-".contains(&b);
    let begins = key.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !begins || key.len() > MAX_KEY || !key.bytes().all(inside) {
        return Err(LabelError::Key);
    }
    if value.chars().count() > MAX_VALUE || value.len() > MOST_LABEL_VALUE || value.chars().any(char::is_control) {
        return Err(LabelError::Value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Labels;

    #[test]
    fn labels_are_checked_where_they_arrive_and_match_as_a_whole() {
        let labels: Labels = serde_json::from_str(r#"{"tier":"gold","site":"a"}"#).expect("labels");
        let mut asked = Labels::default();
        asked.add("tier=gold").expect("a label");
        assert!(labels.contain(&asked) && !asked.contain(&labels));
        for bad in [r#"{"Tier":"x"}"#, r#"{"":"x"}"#, r#"{"a":"\u0000"}"#, r#"{"a":1}"#] {
            assert!(serde_json::from_str::<Labels>(bad).is_err(), "{bad}");
        }
        let many: String = (0..33).map(|n| format!("\"k{n}\":\"\",")).collect();
        assert!(serde_json::from_str::<Labels>(&format!("{{{}}}", many.trim_end_matches(','))).is_err());
        assert!(asked.add("novalue").is_err());
    }

    #[test]
    fn what_is_accepted_here_the_engine_keeps() {
        let one = |value: String| Labels::try_from(BTreeMap::from([("a".to_owned(), value)]));
        // 1 to 4 bytes a character.
        for (character, most) in [('x', 128), ('ä', 127), ('€', 85), ('😀', 63)] {
            for count in [most, most + 1] {
                let value: String = std::iter::repeat_n(character, count).collect();
                let kept = lamina_contract::snapshot::check_labels(&BTreeMap::from([("a".to_owned(), value.clone())])).is_ok();
                let accepted = one(value.clone()).is_ok();
                assert_eq!(accepted, count == most, "{character} {count}");
                assert!(kept || !accepted, "{character} {count}");
                let shown = Labels::within_bounds([("a".to_owned(), value.clone())]);
                assert!(shown.get("a").is_some_and(|shown| value.starts_with(shown) && shown.chars().count() == most));
            }
        }
    }

    #[test]
    fn labels_beyond_the_most_cost_the_last_ones_and_not_all() {
        let labels = (0..40).map(|n| (format!("k{n:02}"), "v\n".to_owned())).chain([("Bad".to_owned(), String::new())]);
        let shown = Labels::within_bounds(labels);
        assert_eq!((shown.iter().count(), shown.get("k31"), shown.get("k32")), (32, Some("v"), None));
    }
}
