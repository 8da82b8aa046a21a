//! Labels that only the appliance writes: those whose keys begin with `lamina/`. Callers see them and cannot set or change them.

use lamina_api::label::{Labels, MAX_LABELS};
use lamina_api::problem::{Problem, ProblemKind};

/// How their keys begin.
const PREFIX: &str = "lamina/";
/// On a snapshot: the VM whose snapshot it is a part of.
pub(crate) const VM: &str = "lamina/vm";
/// On a snapshot: 16 hexadecimal digits that all parts of one VM's snapshot share.
pub(crate) const SET: &str = "lamina/vm-set";
/// On a snapshot: `2/3` is the second disk of three.
pub(crate) const PART: &str = "lamina/vm-part";
/// On a snapshot: `true` when the guest's file systems were frozen meanwhile.
pub(crate) const FROZEN: &str = "lamina/vm-frozen";
/// On a volume: the VM that it was made to be a disk of, by cloning. What is a disk of what, the VM says.
pub(crate) const MADE_FOR: &str = "lamina/made-for";

/// Labels of its own that a VM's snapshot may have, so that all its labels can be shown together.
const MOST_ON_A_VMS_SNAPSHOT: usize = MAX_LABELS - 4;

fn is_reserved(key: &str) -> bool {
    key.starts_with(PREFIX)
}

fn refused(key: &str) -> Problem {
    Problem::new(
        ProblemKind::InvalidRequest,
        format!("the label '{key}' is not yours to set: the appliance keeps those of '{PREFIX}'"),
    )
}

/// The labels of something new, as the engine has them.
pub(crate) fn checked(labels: &Labels) -> Result<lamina_contract::Labels, Problem> {
    replaced(&lamina_contract::Labels::new(), labels)
}

/// As [`checked`], with room for what the parts of a VM's snapshot carry besides.
pub(crate) fn checked_for_vm_snapshot(labels: &Labels) -> Result<lamina_contract::Labels, Problem> {
    if labels.iter().count() > MOST_ON_A_VMS_SNAPSHOT {
        let detail = format!("a VM's snapshot has at most {MOST_ON_A_VMS_SNAPSHOT} labels");
        return Err(Problem::new(ProblemKind::InvalidRequest, detail));
    }
    checked(labels)
}

/// `wanted` in place of `before`: what is reserved stays as it is, and may be repeated as it is.
pub(crate) fn replaced(before: &lamina_contract::Labels, wanted: &Labels) -> Result<lamina_contract::Labels, Problem> {
    let foreign = |(key, value): &(&str, &str)| is_reserved(key) && before.get(*key).map(String::as_str) != Some(*value);
    if let Some((key, _)) = wanted.iter().find(foreign) {
        return Err(refused(key));
    }
    let kept = before.iter().filter(|(key, _)| is_reserved(key)).map(|(key, value)| (key.clone(), value.clone()));
    Ok(kept.chain(wanted.iter().map(|(key, value)| (key.to_owned(), value.to_owned()))).collect())
}

/// `labels` without what is reserved.
pub(crate) fn without(labels: &lamina_contract::Labels) -> lamina_contract::Labels {
    labels.iter().filter(|(key, _)| !is_reserved(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use lamina_api::label::Labels;

    use super::{SET, VM, checked, checked_for_vm_snapshot, replaced, without};

    fn labels(texts: &[&str]) -> Labels {
        let mut labels = Labels::default();
        texts.iter().for_each(|text| labels.add(text).expect("a label"));
        labels
    }

    #[test]
    fn reserved_labels_are_not_set_not_changed_and_not_lost() {
        assert!(checked(&labels(&["tier=gold", "lamina=x", "laminated/x=y"])).is_ok());
        assert!(checked(&labels(&["lamina/vm=web"])).is_err());
        let before = [(VM, "web"), (SET, "1"), ("tier", "gold")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let after = replaced(&before, &labels(&["tier=silver", "lamina/vm=web"])).expect("repeated as it is");
        assert_eq!(
            after,
            [(VM, "web"), (SET, "1"), ("tier", "silver")].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
        );
        assert!(replaced(&before, &labels(&["lamina/vm=db"])).is_err());
        assert!(replaced(&before, &labels(&["lamina/new=x"])).is_err());
        assert_eq!(without(&before).into_keys().collect::<Vec<_>>(), ["tier"]);
    }

    #[test]
    fn a_vms_snapshot_leaves_room_for_the_appliances_labels() {
        let many = |count: usize| {
            let mut labels = Labels::default();
            (0..count).for_each(|number| labels.add(&format!("k{number}=")).expect("a label"));
            labels
        };
        assert!(checked_for_vm_snapshot(&many(28)).is_ok() && checked_for_vm_snapshot(&many(29)).is_err());
    }
}
