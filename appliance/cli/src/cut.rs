//! A volume's or VM's snapshot on the command line: `web@daily-1`, as zfs and rbd write it, or two words.

use std::fmt;

use lamina_api::name::Name;
use lamina_contract::VolumeName;

use crate::mistake::Mistake;

type ParseError = Box<dyn std::error::Error + Send + Sync>;

/// `web` or `web@daily-1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut<N> {
    /// The volume or VM.
    pub(crate) of: N,
    /// Its snapshot.
    pub(crate) snapshot: Option<Name>,
}

/// Of a volume.
pub(crate) fn volume(text: &str) -> Result<Cut<VolumeName>, ParseError> {
    let (of, snapshot) = halves(text)?;
    Ok(Cut { of: VolumeName::new(of)?, snapshot })
}

/// Of a VM.
pub(crate) fn vm(text: &str) -> Result<Cut<Name>, ParseError> {
    let (of, snapshot) = halves(text)?;
    Ok(Cut { of: Name::new(of)?, snapshot })
}

fn halves(text: &str) -> Result<(&str, Option<Name>), ParseError> {
    match text.split_once('@') {
        Some((of, snapshot)) => Ok((of, Some(Name::new(snapshot)?))),
        None => Ok((text, None)),
    }
}

impl<N: fmt::Display> Cut<N> {
    /// The snapshot that was named here or as `other`, in one of the places.
    pub(crate) fn either<'a>(&'a self, other: Option<&'a Name>) -> Result<Option<&'a Name>, Mistake> {
        match (&self.snapshot, other) {
            (Some(_), Some(_)) => Err(Mistake::TwoSnapshots),
            (one, other) => Ok(one.as_ref().or(other)),
        }
    }

    /// The snapshot, which must have been named.
    pub(crate) fn named<'a>(&'a self, other: Option<&'a Name>) -> Result<&'a Name, Mistake> {
        self.either(other)?.ok_or_else(|| Mistake::NoSnapshot { of: self.of.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use lamina_api::name::Name;

    use super::volume;

    #[test]
    fn a_snapshot_is_named_once_in_either_way() {
        let two = Name::new("daily-1").expect("a name");
        let whole = volume("web@daily-1").expect("a cut");
        let half = volume("web").expect("a cut");
        assert_eq!(whole.named(None).expect("named"), &two);
        assert_eq!(half.named(Some(&two)).expect("named"), &two);
        assert!(half.named(None).is_err() && whole.named(Some(&two)).is_err());
        for bad in ["", "@x", "web@", "web@A", "a@b@c"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }
}
