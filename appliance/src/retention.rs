//! Which of a schedule's snapshots are kept, and which are surplus.
//!
//! Grandfather, father, son, with the meaning that restic gives to `--keep-*`. Each rule looks at the snapshots from the newest to the
//! oldest, puts them into periods (hours, days, weeks from Monday, months; UTC) and keeps **the newest snapshot of each** of its
//! first N periods *that hold one*: a week without snapshots uses up nothing, so an appliance that was off for a month deletes
//! nothing for it. `last` keeps the N newest. The rules are independent: what any of them keeps is kept (borg, in contrast, counts for a
//! rule only what rules of shorter periods have left). restic also keeps the very oldest snapshot until a rule is full; this does not.
//!
//! Pinned snapshots and those with clones count like any other and are never surplus, so pinning one costs no other its place.
//! Snapshots of the future (taken while the clock was wrong) neither count nor go.

use std::collections::BTreeSet;

use lamina_contract::Timestamp;
use serde::{Deserialize, Serialize};

use crate::calendar::{Minute, Period};

/// How many of each to keep. Not all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "KeepCounts", into = "KeepCounts")]
pub struct Keep(KeepCounts);

/// How many of each to keep, as people and documents write it; 0 for what is not said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeepCounts {
    /// The newest, whatever their time.
    pub last: u32,
    /// The newest of each hour.
    pub hourly: u32,
    /// The newest of each day.
    pub daily: u32,
    /// The newest of each week.
    pub weekly: u32,
    /// The newest of each month.
    pub monthly: u32,
}

/// Nothing would be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a retention that keeps nothing is refused: give at least one of last, hourly, daily, weekly, monthly, or none at all to keep everything"
)]
pub struct KeepsNothing;

impl Keep {
    /// Checks that something is kept.
    ///
    /// # Errors
    /// [`KeepsNothing`] when all are 0.
    pub fn new(counts: KeepCounts) -> Result<Self, KeepsNothing> {
        if counts == KeepCounts::default() { Err(KeepsNothing) } else { Ok(Self(counts)) }
    }

    /// The numbers.
    #[must_use]
    pub const fn counts(self) -> KeepCounts {
        self.0
    }
}

impl TryFrom<KeepCounts> for Keep {
    type Error = KeepsNothing;

    fn try_from(counts: KeepCounts) -> Result<Self, KeepsNothing> {
        Self::new(counts)
    }
}

impl From<Keep> for KeepCounts {
    fn from(keep: Keep) -> Self {
        keep.0
    }
}

/// One snapshot that a schedule has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate<I> {
    /// What it is called.
    pub id: I,
    /// The run that it belongs to. (The time it was really taken may be later, even on the next day; a run has one place.)
    pub at: Minute,
    /// Somebody wants it kept.
    pub pinned: bool,
    /// Something depends on it.
    pub cloned: bool,
}

/// The snapshots to delete, oldest first.
#[must_use]
pub fn surplus<I: Ord + Clone>(snapshots: &[Candidate<I>], keep: Keep, now: Timestamp) -> Vec<I> {
    let mut counted: Vec<&Candidate<I>> = snapshots.iter().filter(|one| one.at.start() <= now).collect();
    // Newest first; of two at the same time the one with the larger id counts as newer.
    counted.sort_by(|a, b| (b.at, &b.id).cmp(&(a.at, &a.id)));
    let KeepCounts { last, hourly, daily, weekly, monthly } = keep.0;
    let mut kept: BTreeSet<&I> = counted.iter().take(last as usize).map(|one| &one.id).collect();
    for (count, period) in [(hourly, Period::Hour), (daily, Period::Day), (weekly, Period::Week), (monthly, Period::Month)] {
        let mut left = count;
        let mut current = None;
        for one in &counted {
            let place = Some(one.at.period(period));
            if place == current {
                continue;
            }
            if left == 0 {
                break;
            }
            (left, current) = (left - 1, place);
            kept.insert(&one.id);
        }
    }
    let goes = |one: &&&Candidate<I>| !kept.contains(&one.id) && !one.pinned && !one.cloned;
    counted.iter().rev().filter(goes).map(|one| one.id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lamina_contract::Timestamp;
    use proptest::prelude::{ProptestConfig, Strategy, prop_assert, prop_assert_eq, proptest};

    use super::{Candidate, Keep, KeepCounts, surplus};
    use crate::calendar::{Minute, Period};

    fn minute(stamp: &str) -> Minute {
        Minute::from_stamp(stamp).expect("a date")
    }

    fn plain(stamp: &str) -> Candidate<String> {
        Candidate { id: stamp.to_owned(), at: minute(stamp), pinned: false, cloned: false }
    }

    fn gone(stamps: &[&str], counts: KeepCounts) -> Vec<String> {
        let all: Vec<_> = stamps.iter().map(|stamp| plain(stamp)).collect();
        surplus(&all, Keep::new(counts).expect("keeps something"), minute("20270101-0000").start())
    }

    const NONE: KeepCounts = KeepCounts { last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0 };

    #[test]
    fn each_rule_keeps_the_newest_of_its_periods() {
        let days = ["20260105-0100", "20260105-1300", "20260106-0100", "20260106-1300", "20260108-0100"];
        assert_eq!(gone(&days, KeepCounts { last: 2, ..NONE }), days[..3]);
        // The newest of a day; the 7th holds none and uses up nothing.
        assert_eq!(gone(&days, KeepCounts { daily: 2, ..NONE }), ["20260105-0100", "20260105-1300", "20260106-0100"]);
        assert_eq!(gone(&days, KeepCounts { daily: 3, ..NONE }), ["20260105-0100", "20260106-0100"]);
        assert_eq!(gone(&days, KeepCounts { daily: 99, ..NONE }), ["20260105-0100", "20260106-0100"]);
        // All in one week, which began on Monday the 5th, and in one month.
        assert_eq!(gone(&days, KeepCounts { weekly: 5, ..NONE }), days[..4]);
        assert_eq!(gone(&days, KeepCounts { monthly: 5, ..NONE }), days[..4]);
        // Rules add up: the daily one keeps two more than the last one alone.
        assert_eq!(gone(&days, KeepCounts { last: 1, daily: 3, ..NONE }), ["20260105-0100", "20260106-0100"]);
    }

    #[test]
    fn borders_of_hours_weeks_and_months_are_where_the_calendar_has_them() {
        let borders = ["20251231-2359", "20260101-0000", "20260104-2359", "20260105-0000", "20260105-0001"];
        assert_eq!(gone(&borders, KeepCounts { hourly: 9, ..NONE }), ["20260105-0000"]);
        assert_eq!(gone(&borders, KeepCounts { weekly: 9, ..NONE }), ["20251231-2359", "20260101-0000", "20260105-0000"]);
        assert_eq!(gone(&borders, KeepCounts { monthly: 9, ..NONE }), ["20260101-0000", "20260104-2359", "20260105-0000"]);
    }

    #[test]
    fn pinned_and_cloned_ones_stay_and_take_no_place_from_others() {
        let mut all = vec![plain("20260101-0000"), plain("20260102-0000"), plain("20260103-0000"), plain("20260104-0000")];
        all[0].pinned = true;
        all[2].cloned = true;
        let now = minute("20270101-0000").start();
        let keep = Keep::new(KeepCounts { last: 1, ..NONE }).expect("keeps something");
        assert_eq!(surplus(&all, keep, now), ["20260102-0000"]);
        all[3].pinned = true;
        assert_eq!(surplus(&all, keep, now), ["20260102-0000"], "a pinned newest is the newest");
    }

    #[test]
    fn snapshots_of_the_future_neither_count_nor_go() {
        let all = [plain("20260101-0000"), plain("20260102-0000"), plain("20990101-0000")];
        let keep = Keep::new(KeepCounts { last: 1, ..NONE }).expect("keeps something");
        assert_eq!(surplus(&all, keep, minute("20260102-0000").start()), ["20260101-0000"]);
    }

    #[test]
    fn keeping_nothing_is_refused_in_documents_too() {
        assert!(Keep::new(NONE).is_err());
        assert!(serde_json::from_str::<Keep>("{}").is_err());
        assert!(serde_json::from_str::<Keep>("{\"dayly\": 1}").is_err());
        let keep: Keep = serde_json::from_str("{\"daily\": 7}").expect("right");
        assert_eq!(keep.counts(), KeepCounts { daily: 7, ..NONE });
    }

    /// A year of snapshots at odd times, some of them at the same minute.
    fn histories() -> impl Strategy<Value = Vec<Candidate<u32>>> {
        // Dense at the minute, hour and month so that every rule has something to decide.
        let at = proptest::prop_oneof![0_u64..300, 0_u64..20_000, 0_u64..525_600];
        let one = (at, proptest::bool::weighted(0.1), proptest::bool::weighted(0.1));
        proptest::collection::vec(one, 0..80).prop_map(|all| {
            let candidate = |(id, (at, pinned, cloned))| Candidate { id, at: Minute::new(29_453_760 + at), pinned, cloned };
            (0..).zip(all).map(candidate).collect()
        })
    }

    fn rules() -> impl Strategy<Value = KeepCounts> {
        let count = || proptest::prop_oneof![proptest::strategy::Just(0_u32), 0_u32..4, 0_u32..40];
        let five = (count(), count(), count(), count(), count());
        five.prop_map(|(last, hourly, daily, weekly, monthly)| KeepCounts { last, hourly, daily, weekly, monthly })
    }

    /// The rule in other words than the code's: kept when it is the newest of its period and fewer than N other periods that hold
    /// something are newer.
    fn rule_keeps(one: &Candidate<u32>, all: &[Candidate<u32>], count: u32, place: impl Fn(&Candidate<u32>) -> u64) -> bool {
        let newest = all.iter().filter(|other| place(other) == place(one)).all(|other| (other.at, other.id) <= (one.at, one.id));
        let newer: BTreeSet<u64> = all.iter().filter(|other| other.at > one.at).map(&place).filter(|p| *p != place(one)).collect();
        newest && (newer.len() as u32) < count
    }

    fn is_kept(one: &Candidate<u32>, all: &[Candidate<u32>], rules: KeepCounts) -> bool {
        let newer = all.iter().filter(|other| (other.at, other.id) > (one.at, one.id)).count() as u32;
        let by = |count, period| rule_keeps(one, all, count, |candidate| candidate.at.period(period));
        newer < rules.last
            || by(rules.hourly, Period::Hour)
            || by(rules.daily, Period::Day)
            || by(rules.weekly, Period::Week)
            || by(rules.monthly, Period::Month)
    }

    const LATER: Timestamp = Timestamp(u64::MAX);

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn exactly_what_no_rule_keeps_and_nobody_holds_goes(all in histories(), counts in rules(), now in 0_u64..600_000) {
            let Ok(keep) = Keep::new(counts) else { return Ok(()) };
            let now = Minute::new(29_453_760 + now).start();
            let past: Vec<_> = all.iter().filter(|one| one.at.start() <= now).cloned().collect();
            let expected: BTreeSet<u32> =
                past.iter().filter(|one| !is_kept(one, &past, counts) && !one.pinned && !one.cloned).map(|one| one.id).collect();
            let chosen = surplus(&all, keep, now);
            prop_assert_eq!(chosen.iter().copied().collect::<BTreeSet<_>>(), expected);
            let times: Vec<Minute> = chosen.iter().map(|id| all[*id as usize].at).collect();
            prop_assert!(times.is_sorted(), "oldest first");
        }

        #[test]
        fn the_newest_stays_and_no_more_stay_than_the_rules_allow(all in histories(), counts in rules()) {
            let Ok(keep) = Keep::new(counts) else { return Ok(()) };
            let chosen = surplus(&all, keep, LATER);
            if let Some(newest) = all.iter().max_by_key(|one| (one.at, one.id)) {
                prop_assert!(!chosen.contains(&newest.id));
            }
            let held = all.iter().filter(|one| one.pinned || one.cloned).count();
            let KeepCounts { last, hourly, daily, weekly, monthly } = counts;
            prop_assert!(all.len() - chosen.len() <= (last + hourly + daily + weekly + monthly) as usize + held);
        }

        #[test]
        fn doing_it_again_changes_nothing(all in histories(), counts in rules()) {
            let Ok(keep) = Keep::new(counts) else { return Ok(()) };
            let chosen = surplus(&all, keep, LATER);
            let left: Vec<_> = all.iter().filter(|one| !chosen.contains(&one.id)).cloned().collect();
            prop_assert_eq!(surplus(&left, keep, LATER), Vec::<u32>::new());
        }

        #[test]
        fn a_rule_that_keeps_more_deletes_no_other(all in histories(), counts in rules(), more in rules()) {
            let sum = KeepCounts {
                last: counts.last + more.last,
                hourly: counts.hourly + more.hourly,
                daily: counts.daily + more.daily,
                weekly: counts.weekly + more.weekly,
                monthly: counts.monthly + more.monthly,
            };
            let (Ok(keep), Ok(wider)) = (Keep::new(counts), Keep::new(sum)) else { return Ok(()) };
            let chosen: BTreeSet<u32> = surplus(&all, keep, LATER).into_iter().collect();
            prop_assert!(surplus(&all, wider, LATER).iter().all(|id| chosen.contains(id)));
        }
    }
}
