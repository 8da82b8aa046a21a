//! Near names: what somebody may have meant who typed a name that is not there.

/// The one of `names` that is nearest to `typed`, when it is near enough to be a slip: one edit, or two in longer names.
pub(crate) fn nearest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let bound = match typed.chars().count() {
        0..=2 => 1,
        3..=8 => 2,
        _ => 3,
    };
    names
        .into_iter()
        .map(|name| (distance(typed, name), name))
        .filter(|(distance, name)| *distance <= bound && *distance < name.chars().count().max(1))
        .min()
        .map(|(_, name)| name)
}

/// Insertions, deletions, replacements and swaps of neighbours that make `a` of `b` (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX / 2);
            let mut cost = (at(&last, j + 1) + 1).min(at(&row, j) + 1).min(at(&last, j) + usize::from(x != y));
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                cost = cost.min(at(&before, j - 1) + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{distance, nearest};

    #[test]
    fn slips_of_the_hand_are_near_and_other_names_are_not() {
        assert_eq!((distance("wbe", "web"), distance("kitten", "sitting"), distance("", "ab")), (1, 3, 2));
        assert_eq!(nearest("wbe", ["db", "web", "web-2"]), Some("web"));
        assert_eq!(nearest("desk-l2", ["desk-12", "desk-13"]), Some("desk-12"));
        assert_eq!(nearest("mail", ["web", "db"]), None);
        assert_eq!(nearest("x", ["y"]), None);
    }
}
