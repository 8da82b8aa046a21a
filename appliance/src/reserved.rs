//! Labels that only the appliance writes: those whose keys begin with `lamina/`. Callers see them and cannot set or change them. And the one
//! by which a schedule knows its snapshots: nobody takes it off by writing others in its place, since then nothing would delete them.

use lamina_api::label::{Labels, MAX_LABELS};
use lamina_api::problem::{Problem, ProblemKind};
use laminad::schedule::LABEL as SCHEDULE;

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
    bounded(kept.chain(wanted.iter().map(|(key, value)| (key.to_owned(), value.to_owned()))).collect())
}

/// As [`replaced`], of a snapshot: the label of its schedule stays too.
pub(crate) fn replaced_on_snapshot(before: &lamina_contract::Labels, wanted: &Labels) -> Result<lamina_contract::Labels, Problem> {
    let mut after = replaced(before, wanted)?;
    if let Some(schedule) = before.get(SCHEDULE) {
        if wanted.get(SCHEDULE).is_some_and(|other| other != schedule) {
            let detail = format!("the label '{SCHEDULE}' of a snapshot that a schedule took is not yours to change");
            return Err(Problem::new(ProblemKind::InvalidRequest, detail).advise("pin the snapshot to keep it"));
        }
        after.insert(SCHEDULE.to_owned(), schedule.clone());
    }
    bounded(after)
}

fn bounded(labels: lamina_contract::Labels) -> Result<lamina_contract::Labels, Problem> {
    if labels.len() > MAX_LABELS {
        let own = labels.keys().filter(|key| is_reserved(key) || *key == SCHEDULE).count();
        let detail = format!("a thing has at most {MAX_LABELS} labels, and {own} of these are the appliance's own");
        return Err(Problem::new(ProblemKind::InvalidRequest, detail));
    }
    Ok(labels)
}

/// Labels as the interface shows them. Of more than it has room for, which an earlier release may have kept, those that callers gave come
/// first: the others stay whatever a caller writes.
pub(crate) fn shown(labels: &lamina_contract::Labels) -> Labels {
    let (reserved, given): (Vec<_>, Vec<_>) = labels.clone().into_iter().partition(|(key, _)| is_reserved(key));
    Labels::within_bounds(given.into_iter().chain(reserved))
}

/// `labels` without what is reserved.
pub(crate) fn without(labels: &lamina_contract::Labels) -> lamina_contract::Labels {
    labels.iter().filter(|(key, _)| !is_reserved(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use lamina_api::label::Labels;

    use super::{PART, SET, VM, checked, checked_for_vm_snapshot, replaced, replaced_on_snapshot, shown, without};

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

    fn kept(labels: &[(&str, &str)]) -> lamina_contract::Labels {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_snapshot_does_not_leave_its_schedule_unawares() {
        let before = kept(&[("schedule", "daily"), ("tier", "gold")]);
        let after = replaced_on_snapshot(&before, &labels(&["tier=silver"])).expect("right");
        assert_eq!(after, kept(&[("schedule", "daily"), ("tier", "silver")]));
        assert_eq!(replaced_on_snapshot(&before, &labels(&["schedule=daily"])).expect("repeated"), kept(&[("schedule", "daily")]));
        assert!(replaced_on_snapshot(&before, &labels(&["schedule=weekly"])).is_err());
        // On a volume it is a label as any other.
        assert_eq!(replaced(&before, &labels(&[])).expect("right"), kept(&[]));
    }

    #[test]
    fn what_can_be_written_can_be_shown_and_written_again() {
        let many = |count: usize| -> Vec<String> { (0..count).map(|number| format!("k{number:02}=v")).collect() };
        let wanted = |count: usize| labels(&many(count).iter().map(String::as_str).collect::<Vec<_>>());
        let before = kept(&[(VM, "web"), (SET, "1"), (PART, "1/1"), ("schedule", "daily")]);
        let full = replaced_on_snapshot(&before, &wanted(28)).expect("32 in all");
        assert_eq!(shown(&full).iter().count(), 32);
        assert_eq!(replaced_on_snapshot(&full, &shown(&full)).expect("as it was shown"), full);
        assert!(replaced_on_snapshot(&before, &wanted(29)).is_err());
        // More than that, from before: nothing that a caller gave is lost by being shown and written again.
        let mut overfull = before.clone();
        overfull.extend(without(&replaced(&kept(&[]), &wanted(31)).expect("31")));
        let seen = shown(&overfull);
        assert_eq!((seen.iter().count(), seen.get("schedule"), seen.get("k30")), (32, Some("daily"), Some("v")));
        assert!(replaced_on_snapshot(&overfull, &seen).is_err(), "refused, and nothing is dropped");
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
