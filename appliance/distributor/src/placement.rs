//! Where a key's fragments go: weighted rendezvous hashing, spread over failure domains.
//!
//! Every target has a score for every key, `-weight / ln(h)` with `h` uniform in (0, 1) from a hash of both; targets in order of their
//! scores are the key's order. (Thaler, Ravishankar 1998; the weighted form after Schindelhauer, Schomaker 2005.) A target that comes or
//! goes moves only what it gains or loses. Of that order the first Y are taken, at most ceil(Y/domains) per domain.
//!
//! Readers find fragments by looking, so placement may change between releases without moving anything.

use std::collections::{HashMap, HashSet};
use std::fmt;

use lamina_formats::drive::DriveId;

/// A target of a pool; a drive's is its identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub u128);

impl From<DriveId> for TargetId {
    fn from(drive: DriveId) -> Self {
        Self(drive.0)
    }
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What fails together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct FailureDomain {
    /// The machine.
    pub node: String,
    /// The rack, where known; empty otherwise.
    pub rack: String,
}

/// What placement knows of a target.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) id: TargetId,
    pub(crate) domain: FailureDomain,
    /// Capacity in any unit that all targets share; at least 1.
    pub(crate) weight: u64,
}

/// The finalizer of SplitMix64: every input bit reaches every output bit.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hash(key: &str, id: TargetId) -> u64 {
    // FNV-1a over the key, then the target mixed in, so that no two targets' scores are related.
    let key = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    mix(mix(mix(key) ^ id.0 as u64) ^ (id.0 >> 64) as u64)
}

fn score(key: &str, place: &Place) -> f64 {
    // 53 random bits, moved off 0 so that the logarithm is finite.
    let uniform = ((hash(key, place.id) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -(place.weight.max(1) as f64) / uniform.ln()
}

/// All targets in the key's order of preference.
pub(crate) fn order(key: &str, places: &[Place]) -> Vec<usize> {
    let mut scored: Vec<(f64, usize)> = places.iter().enumerate().map(|(at, place)| (score(key, place), at)).collect();
    scored.sort_by(|(a, x), (b, y)| b.total_cmp(a).then(x.cmp(y)));
    scored.into_iter().map(|(_, at)| at).collect()
}

/// Up to `count` targets of `order` that are `usable`, spread over domains.
///
/// At most ceil(count/nodes) on a node and ceil(count/racks) in a rack; only when that leaves places empty is the bound raised, one at
/// a time: a stripe that leans on one domain is better than one that is short.
fn choose(order: &[usize], places: &[Place], count: usize, usable: &dyn Fn(usize) -> bool) -> Vec<usize> {
    let nodes: HashSet<&str> = places.iter().map(|place| place.domain.node.as_str()).collect();
    let racks: HashSet<&str> = places.iter().map(|place| place.domain.rack.as_str()).collect();
    let mut node_cap = count.div_ceil(nodes.len().max(1));
    let mut rack_cap = count.div_ceil(racks.len().max(1));
    let mut chosen = Vec::with_capacity(count);
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    let mut in_rack: HashMap<&str, usize> = HashMap::new();
    while chosen.len() < count && node_cap <= count {
        for &at in order {
            let Some(place) = places.get(at) else { continue };
            if chosen.len() == count || chosen.contains(&at) || !usable(at) {
                continue;
            }
            let node = on_node.entry(place.domain.node.as_str()).or_default();
            let rack = in_rack.entry(place.domain.rack.as_str()).or_default();
            if *node < node_cap && *rack < rack_cap {
                *node += 1;
                *rack += 1;
                chosen.push(at);
            }
        }
        node_cap += 1;
        rack_cap = (rack_cap + 1).max(node_cap);
    }
    chosen
}

/// Which target gets which of `count` fragments, and who stands in when one fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignment {
    /// By fragment index; `None` when there are fewer usable targets than fragments.
    pub(crate) slots: Vec<Option<usize>>,
    /// Usable targets without a fragment, best first.
    pub(crate) spare: Vec<usize>,
}

/// Fragment i belongs on the i-th target of the key's choice; where that one cannot be used another takes its place, and the other
/// fragments stay where they belong.
pub(crate) fn assign(key: &str, places: &[Place], count: usize, usable: &dyn Fn(usize) -> bool) -> Assignment {
    let order = order(key, places);
    let ideal = choose(&order, places, count, &|_| true);
    let chosen = choose(&order, places, count, usable);
    let mut others = chosen.iter().copied().filter(|at| !ideal.contains(at));
    let slots = (0..count)
        .map(|index| match ideal.get(index) {
            Some(at) if chosen.contains(at) => Some(*at),
            _ => others.next(),
        })
        .collect();
    let spare = order.iter().copied().filter(|at| usable(*at) && !chosen.contains(at)).collect();
    Assignment { slots, spare }
}

#[cfg(test)]
mod tests {
    use super::{FailureDomain, Place, TargetId, assign, order};

    fn pool(nodes: usize, each: usize) -> Vec<Place> {
        (0..nodes * each)
            .map(|n| Place {
                id: TargetId(0x9e37_79b9_7f4a_7c15_u128 * (n as u128 + 1)),
                domain: FailureDomain { node: format!("node-{}", n / each), rack: String::new() },
                weight: 1000,
            })
            .collect()
    }

    #[test]
    fn load_follows_weight() {
        let mut places = pool(10, 1);
        places[3].weight = 3000;
        let mut first = [0_u32; 10];
        for n in 0..24_000 {
            first[order(&format!("sco/{n:08x}"), &places)[0]] += 1;
        }
        // 12 shares of 2000 each; five standard deviations are about 220 (and 370 for the heavy one).
        for (at, count) in first.iter().enumerate() {
            let (expected, slack) = if at == 3 { (6000, 370) } else { (2000, 220) };
            assert!(count.abs_diff(expected) < slack, "target {at} has {count}, not {expected}");
        }
    }

    #[test]
    fn a_new_target_takes_its_share_and_moves_nothing_else() {
        let before = pool(1, 9);
        let mut after = before.clone();
        after.push(Place { id: TargetId(77), domain: FailureDomain { node: "node-0".into(), rack: String::new() }, weight: 1000 });
        let mut moved = 0;
        for n in 0..2000 {
            let key = format!("sco/{n:08x}");
            let old: Vec<usize> = order(&key, &before);
            let new: Vec<usize> = order(&key, &after);
            let without: Vec<usize> = new.iter().copied().filter(|&at| at != 9).collect();
            assert_eq!(without, old, "the order of the others is untouched");
            moved += usize::from(new.iter().position(|&at| at == 9).is_some_and(|rank| rank < 6));
        }
        // It belongs to the first 6 of 10 for 6 of 10 keys.
        assert!((1100..1300).contains(&moved), "{moved}");
    }

    #[test]
    fn no_domain_gets_more_than_its_share() {
        for (nodes, each, count) in [(3, 4, 6), (6, 3, 18), (2, 3, 6), (4, 2, 6)] {
            let places = pool(nodes, each);
            for n in 0..300 {
                let assigned = assign(&format!("k{n}"), &places, count, &|_| true);
                for node in 0..nodes {
                    let here = assigned.slots.iter().flatten().filter(|&&at| at / each == node).count();
                    assert!(here <= count.div_ceil(nodes), "{here} of {count} on one of {nodes} nodes");
                }
                assert_eq!(assigned.slots.iter().flatten().count(), count);
            }
        }
    }

    #[test]
    fn a_missing_target_moves_only_its_own_fragment() {
        let places = pool(1, 9);
        for n in 0..200 {
            let key = format!("k{n}");
            let whole = assign(&key, &places, 6, &|_| true);
            for gone in 0..9 {
                let less = assign(&key, &places, 6, &|at| at != gone);
                for (index, at) in whole.slots.iter().enumerate() {
                    if *at == Some(gone) {
                        assert!(less.slots[index].is_some_and(|other| !whole.slots.contains(&Some(other))));
                    } else {
                        assert_eq!(less.slots[index], *at);
                    }
                }
                assert!(!less.spare.contains(&gone));
            }
        }
    }

    #[test]
    fn too_few_targets_leave_fragments_without_a_place() {
        let places = pool(1, 6);
        let assigned = assign("k", &places, 6, &|at| at > 1);
        assert_eq!(assigned.slots.iter().flatten().count(), 4);
        assert!(assigned.spare.is_empty());
    }

    #[test]
    fn a_short_domain_is_made_up_for_by_others() {
        // Two nodes, one drive and five: 3 per node cannot be kept.
        let mut places = pool(1, 6);
        places[0].domain.node = "alone".into();
        assert_eq!(assign("k", &places, 6, &|_| true).slots.iter().flatten().count(), 6);
    }
}
