//! What is not as it should be, in words, with what a further loss would cost. Pure: states in, list out.

use lamina_api::status::Degradation;
use lamina_contract::Policy;
use lamina_distributor::{DistributorStats, TargetHealth, TargetState};
use lamina_engine::{NodeStatus, Unopened, VolumeState, VolumeStatus};

use crate::documents::{Trouble, Wrong};
use crate::watch::{Sight, Watch, Watched};

/// All kinds there are; the interface, metrics and alerts name them so.
pub(crate) const KINDS: [&str; 17] = [
    "target-missing",
    "target-suspect",
    "target-full",
    "drive-unused",
    "repair-pending",
    "objects-unreadable",
    "document-damaged",
    "document-newer",
    "audit-failed",
    "journal-failed",
    "journal-damaged",
    "store-down",
    "cache-failed",
    "volume-halted",
    "blocks-lost",
    "volume-unopened",
    "volume-unserved",
];

/// Everything that the list is made from.
pub(crate) struct States<'a> {
    pub(crate) policy: Policy,
    pub(crate) watch: &'a Watch,
    pub(crate) targets: &'a [TargetHealth],
    pub(crate) store: DistributorStats,
    pub(crate) node: &'a NodeStatus,
    pub(crate) volumes: &'a [VolumeStatus],
    pub(crate) unopened: &'a [Unopened],
    /// Names of volumes that should have a socket and have none.
    pub(crate) unserved: &'a [String],
    /// Objects that the last repair found unreadable.
    pub(crate) unreadable: u64,
    /// Documents that are not as they should be.
    pub(crate) troubles: &'a [Trouble],
    /// Why the audit log cannot be written.
    pub(crate) audit: Option<&'a str>,
}

/// How a drive is, all told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    Up,
    Full,
    Suspect(String),
    Missing(String),
}

/// What looking at a drive and working with it say together.
pub(crate) fn condition(member: &Watched, health: Option<&TargetHealth>) -> Condition {
    match member.sight() {
        Sight::Missing => return Condition::Missing("it was in none of the named directories at the start".to_owned()),
        Sight::Gone(why) => return Condition::Missing(why),
        Sight::Silent => return Condition::Suspect("it does not answer".to_owned()),
        Sight::There(_) => {}
    }
    let Some(health) = health else { return Condition::Up };
    let why = || health.last_error.as_deref().unwrap_or("it failed").to_owned();
    match health.state {
        TargetState::Active => Condition::Up,
        TargetState::Full => Condition::Full,
        TargetState::Missing => Condition::Missing(why()),
        TargetState::SetAside => Condition::Suspect(why()),
    }
}

/// The list, worst first within each kind.
pub(crate) fn degradations(states: &States<'_>) -> Vec<Degradation> {
    let mut list = node(states);
    list.extend(volumes(states));
    list.extend(drives(states));
    list
}

fn drives(states: &States<'_>) -> Vec<Degradation> {
    let members = states.watch.members();
    let health = |member: &Watched| states.targets.iter().find(|target| target.id.0 == member.id);
    let conditions: Vec<_> = members.iter().map(|member| (member, condition(member, health(member)))).collect();
    let lost = conditions.iter().filter(|(_, now)| matches!(now, Condition::Missing(_) | Condition::Suspect(_))).count();
    let risk = risk(states.policy, lost);
    let mut list: Vec<_> = conditions
        .iter()
        .filter_map(|(member, now)| {
            let name = member.name();
            match now {
                Condition::Up => None,
                Condition::Missing(why) => Some(entry("target-missing", format!("{name} is missing: {why}"), risk.clone())),
                Condition::Suspect(why) => Some(entry("target-suspect", format!("{name} is set aside: {why}"), risk.clone())),
                Condition::Full => Some(entry(
                    "target-full",
                    format!("{name} is full: no space for writes, reads go on"),
                    "new data has fewer fragments until there is space".to_owned(),
                )),
            }
        })
        .collect();
    for (path, why) in states.watch.strangers() {
        list.push(entry(
            "drive-unused",
            format!("drive {}: {why}", path.display()),
            "it is left alone and holds nothing".to_owned(),
        ));
    }
    if states.store.awaiting_repair > 0 {
        let detail = format!("{} objects have fewer fragments than they should", states.store.awaiting_repair);
        list.push(entry("repair-pending", detail, risk));
    }
    if states.unreadable > 0 {
        let detail = format!("{} objects of the store cannot be read: too many of their fragments are lost", states.unreadable);
        list.push(entry("objects-unreadable", detail, "what they hold is lost unless missing drives come back".to_owned()));
    }
    list
}

fn risk(policy: Policy, lost: usize) -> String {
    match policy.parity().checked_sub(lost) {
        None => format!("more drives are away than policy {policy} bears: some data cannot be read until they are back"),
        Some(0) => "the loss of one more drive would make data unreadable".to_owned(),
        Some(1) => "one more drive may be lost".to_owned(),
        Some(left) => format!("{left} more drives may be lost"),
    }
}

fn node(states: &States<'_>) -> Vec<Degradation> {
    let node = states.node;
    let unstored: u64 = states.volumes.iter().map(|volume| volume.unstored_bytes).sum();
    let ssd = format!("losing the SSD now would cost {}", lamina_contract::ByteSize(unstored));
    let mut list = Vec::new();
    list.extend(states.troubles.iter().map(document));
    if let Some(why) = states.audit {
        let risk = "who changed what from now on is in the daemon's log only".to_owned();
        list.push(entry("audit-failed", format!("the audit log cannot be written: {why}"), risk));
    }
    if node.journal_failed {
        let detail = "the journal's SSD lost a write: nothing is accepted any more; replace it and restart".to_owned();
        list.push(entry("journal-failed", detail, ssd.clone()));
    }
    if node.journal_damaged {
        let detail = "durable parts of the journal did not verify at the start: the SSD may be failing".to_owned();
        list.push(entry("journal-damaged", detail, "writes that only the journal had may be lost".to_owned()));
    }
    if node.store_down {
        let detail = "the store refuses objects: the journal fills and guests will be slowed".to_owned();
        list.push(entry("store-down", detail, ssd));
    }
    if node.cache_failed {
        let detail = "the dedupe cache is off because its SSD failed: reads come from the drives".to_owned();
        list.push(entry("cache-failed", detail, "nothing: the cache is never the only copy".to_owned()));
    }
    list
}

fn document(trouble: &Trouble) -> Degradation {
    let (kind, path) = (trouble.kind.as_str(), trouble.path.display());
    match trouble.wrong {
        Wrong::Damaged => entry(
            "document-damaged",
            format!("document {path}: it did not verify at the start and is set aside"),
            format!("what it said, of a {kind}, does not hold any more"),
        ),
        Wrong::Unreadable => entry(
            "document-damaged",
            format!("document {path}: it could not be read or put away at the start and is left where it is"),
            format!("what it says, of a {kind}, is not followed; the SSD may be failing"),
        ),
        Wrong::Newer => entry(
            "document-newer",
            format!("document {path}: a newer release wrote it, and this one does not understand it; it is left as it is"),
            format!("what it says, of a {kind}, is not followed until the newer release runs again"),
        ),
    }
}

fn volumes(states: &States<'_>) -> Vec<Degradation> {
    let halted = states.volumes.iter().filter(|volume| volume.state == VolumeState::Halted).map(|volume| {
        let detail = format!("volume '{}' is halted: another writer owns it, or the journal failed", volume.spec.name);
        entry("volume-halted", detail, "its guest sees I/O errors".to_owned())
    });
    let lost = states.volumes.iter().filter(|volume| volume.lost_blocks > 0).map(|volume| {
        let detail =
            format!("the journal's SSD lost {} blocks of volume '{}'; the log names them", volume.lost_blocks, volume.spec.name);
        entry("blocks-lost", detail, "reading them is an I/O error until the guest writes them again; replace the SSD".to_owned())
    });
    let unopened = states.unopened.iter().map(|volume| {
        let detail = format!("volume '{}' could not be opened: {}", volume.record.spec.name, volume.error);
        entry(
            "volume-unopened",
            detail,
            "it is not served; what the journal holds of it is kept, and opening it is tried again".to_owned(),
        )
    });
    let unserved = states.unserved.iter().map(|name| {
        entry("volume-unserved", format!("the socket of volume '{name}' could not be made"), "it is not served".to_owned())
    });
    halted.chain(lost).chain(unopened).chain(unserved).collect()
}

fn entry(what: &str, detail: String, risk: String) -> Degradation {
    debug_assert!(KINDS.contains(&what), "{what} would be missing in the metrics");
    Degradation { what: what.to_owned(), detail, risk }
}

#[cfg(test)]
mod tests {
    use super::risk;

    #[test]
    fn the_risk_counts_what_the_policy_still_bears() {
        let policy = "4+2".parse().expect("a policy");
        assert_eq!(risk(policy, 0), "2 more drives may be lost");
        assert_eq!(risk(policy, 1), "one more drive may be lost");
        assert!(risk(policy, 2).contains("one more drive would make data unreadable"));
        assert!(risk(policy, 3).contains("cannot be read"));
    }
}
