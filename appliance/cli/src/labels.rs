//! Labels on the command line: `--label tier=gold`, `--unlabel tier`.

use std::collections::BTreeMap;

use lamina_api::label::{LabelError, Labels};
use lamina_api::problem::Problem;

use crate::table::Cell;
use crate::tone::Tone;

/// One `key=value` that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label(String);

/// Reads `key=value`.
pub(crate) fn one(text: &str) -> Result<Label, LabelError> {
    Labels::default().add(text).map(|()| Label(text.to_owned()))
}

/// All of them together.
pub(crate) fn all(labels: &[Label]) -> Result<Labels, Problem> {
    let mut all = Labels::default();
    labels.iter().try_for_each(|label| all.add(&label.0))?;
    Ok(all)
}

/// `labels` with some added and some keys gone; `None` when that was not asked for.
pub(crate) fn changed(labels: &Labels, add: &[Label], remove: &[String]) -> Result<Option<Labels>, Problem> {
    if add.is_empty() && remove.is_empty() {
        return Ok(None);
    }
    let kept = labels.iter().filter(|(key, _)| !remove.iter().any(|gone| gone == key));
    let kept: BTreeMap<String, String> = kept.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let mut changed = Labels::try_from(kept)?;
    add.iter().try_for_each(|label| changed.add(&label.0))?;
    Ok(Some(changed))
}

/// As a filter of a list: `&label=a%3Db`.
pub(crate) fn query(labels: &[Label]) -> String {
    labels.iter().map(|label| format!("&label={}", escaped(&label.0))).collect()
}

/// Percent-encoded for a query (RFC 3986, 2.3: what is unreserved stays).
pub(crate) fn escaped(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() || b"-._~".contains(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// For a table.
pub(crate) fn cell(labels: &Labels) -> Cell {
    if labels.is_empty() {
        return Cell::new("-", Tone::Dim);
    }
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",").into()
}

#[cfg(test)]
mod tests {
    use super::{all, changed, one, query};

    #[test]
    fn labels_are_added_and_removed_and_untouched_when_nobody_asks() {
        let label = |text: &str| one(text).expect("a label");
        let labels = all(&[label("tier=gold"), label("site=a")]).expect("labels");
        assert_eq!(changed(&labels, &[], &[]).expect("nothing"), None);
        let now = changed(&labels, &[label("tier=silver")], &["site".to_owned()]).expect("changed").expect("some");
        assert_eq!(now.iter().collect::<Vec<_>>(), [("tier", "silver")]);
        assert_eq!(query(&[label("a/b=x y&z")]), "&label=a%2Fb%3Dx%20y%26z");
        assert!(one("Tier=x").is_err() && one("tier").is_err());
    }
}
