//! Which file holds which object of a drive.
//!
//! The last two parts of a key share one file name: `a/b/c` is the file `b~c` in directory `a`, `a/b` is `a~b`, `a` is `~a`. What lies
//! together under one key (the fragments of an object) so needs no directory of its own: an inode, a block and two syncs less for each
//! object and drive. The names of files hold one `~` and those of directories none, so an object may lie below another one's key.

use std::borrow::Cow;

use object_store::path::Path;

/// Between the last two parts of a key. `Path::from` never yields it: it writes it as `%7E`.
const BETWEEN: char = '~';

/// The file of `key`, relative to `objects/`; `None` for a key that has none here: the empty one, and one with a `~`.
pub(crate) fn file_of(key: &Path) -> Option<String> {
    let key = key.as_ref();
    if key.is_empty() || key.contains(BETWEEN) {
        return None;
    }
    let (above, last) = key.rsplit_once('/').unwrap_or(("", key));
    Some(format!("{above}{BETWEEN}{last}"))
}

/// The key of file `name` in `directory`; `None` when no key is called so.
pub(crate) fn key_of(directory: &str, name: &str) -> Option<Path> {
    let (above, last) = name.split_once(BETWEEN)?;
    let key = match (directory, above) {
        ("", "") => Cow::Borrowed(last),
        ("", above) => format!("{above}/{last}").into(),
        (_, "") => return None,
        (directory, above) => format!("{directory}/{above}/{last}").into(),
    };
    let key = Path::parse(key).ok()?;
    // `Path::parse` forgives what would give one object two files.
    (file_of(&key)? == within(directory, name)).then_some(key)
}

/// Where the objects straight below `prefix` are: a directory, and what their files' names begin with.
pub(crate) fn straight_below(prefix: &str) -> (&str, String) {
    let (directory, above) = prefix.rsplit_once('/').unwrap_or(("", prefix));
    (directory, format!("{above}{BETWEEN}"))
}

/// The key that the file's siblings of the same beginning lie below, given `name` in `directory`.
pub(crate) fn prefix_of(directory: &str, name: &str) -> Option<Path> {
    let (above, _) = name.split_once(BETWEEN).filter(|(above, _)| !above.is_empty())?;
    Path::parse(within(directory, above)).ok()
}

/// `name` in `directory`, relative to `objects/`.
pub(crate) fn within(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// The directories above a file, from the top: `a`, `a/b` for `a/b/c~d`.
pub(crate) fn parents(file: &str) -> impl Iterator<Item = &str> {
    file.match_indices('/').filter_map(|(at, _)| file.get(..at))
}

#[cfg(test)]
mod tests {
    use object_store::path::Path;

    use super::{file_of, key_of, parents, straight_below};

    #[test]
    fn an_object_has_one_file_and_a_file_one_object() {
        for (key, directory, name) in
            [("a", "", "~a"), ("a/b", "", "a~b"), ("a/b/c", "a", "b~c"), ("a/b/c/d", "a/b", "c~d"), ("a%7E/b/%2E", "a%7E", "b~%2E")]
        {
            let file = if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") };
            let key = Path::parse(key).expect("a key");
            assert_eq!(file_of(&key).as_deref(), Some(file.as_str()));
            assert_eq!(key_of(directory, name), Some(key));
            assert_eq!(parents(&file).last().unwrap_or(""), directory);
        }
        for (directory, name) in
            [("", "a"), ("", "a~"), ("", "~"), ("", "a~b~c"), ("a", "~b"), ("a", "b~"), ("a", ".~b"), ("a", "b~..")]
        {
            assert_eq!(key_of(directory, name), None, "{directory} {name}");
        }
        assert_eq!(file_of(&Path::parse("a~b/c").expect("a key")), None);
        assert_eq!(file_of(&Path::default()), None);
    }

    #[test]
    fn what_is_straight_below_a_prefix_shares_a_beginning() {
        assert_eq!(straight_below(""), ("", "~".to_owned()));
        assert_eq!(straight_below("a"), ("", "a~".to_owned()));
        assert_eq!(straight_below("a/b/c"), ("a/b", "c~".to_owned()));
    }
}
