//! Keys of a volume's objects: `<volume>/sco/<epoch>-<number>.v<version>` and its siblings.
//!
//! A key carries the epoch of its writer, so two writers never share one; numbers are zero-padded so that listings sort.

use lamina_contract::{Epoch, Generation, ScoNumber, TlogNumber, VolumeId};
use lamina_formats::manifest::Term;
use object_store::path::Path;

/// All objects of one volume in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace(pub VolumeId);

impl Namespace {
    /// The prefix of all its objects.
    #[must_use]
    pub fn prefix(self) -> Path {
        Path::from(self.0.to_string())
    }

    /// The identity of the volume.
    #[must_use]
    pub fn volume(self) -> Path {
        Path::from(format!("{}/volume", self.0))
    }

    /// A container, as its first version.
    #[must_use]
    pub fn sco(self, epoch: Epoch, sco: ScoNumber) -> Path {
        Path::from(format!("{}/sco/{:08x}-{:010x}.v0", self.0, epoch.0, sco.0))
    }

    /// A TLog.
    #[must_use]
    pub fn tlog(self, epoch: Epoch, tlog: TlogNumber) -> Path {
        Path::from(format!("{}/tlog/{:08x}-{:010x}", self.0, epoch.0, tlog.0))
    }

    /// A map object.
    #[must_use]
    pub fn map(self, epoch: Epoch, number: u64) -> Path {
        Path::from(format!("{}/map/{:08x}-{number:010x}", self.0, epoch.0))
    }

    /// A manifest generation.
    #[must_use]
    pub fn manifest(self, generation: Generation, epoch: Epoch) -> Path {
        Path::from(format!("{}/manifest/{:010x}-{:08x}", self.0, generation.0, epoch.0))
    }

    /// Where all manifests are.
    #[must_use]
    pub fn manifests(self) -> Path {
        Path::from(format!("{}/manifest", self.0))
    }
}

/// Generation and epoch of a manifest's key, if it is one.
#[must_use]
pub fn parse_manifest_key(path: &Path) -> Option<(Generation, Epoch)> {
    let (generation, epoch) = path.filename()?.split_once('-')?;
    let generation = u64::from_str_radix(generation, 16).ok()?;
    let epoch = u64::from_str_radix(epoch, 16).ok()?;
    Some((Generation(generation), Epoch(epoch)))
}

/// The epoch under which object `number` has its key.
#[must_use]
pub fn epoch_of(terms: &[Term], number: u64) -> Option<Epoch> {
    terms.iter().rev().find(|term| term.first <= number).map(|term| term.epoch)
}

#[cfg(test)]
mod tests {
    use lamina_contract::{Epoch, Generation, VolumeId};
    use lamina_formats::manifest::Term;

    use super::{Namespace, epoch_of, parse_manifest_key};

    #[test]
    fn a_manifest_key_reads_back_and_sorts_by_generation() {
        let ns = Namespace(VolumeId(7));
        let (low, high) = (ns.manifest(Generation(9), Epoch(200)), ns.manifest(Generation(16), Epoch(1)));
        assert_eq!(parse_manifest_key(&high), Some((Generation(16), Epoch(1))));
        assert!(low < high);
        assert_eq!(parse_manifest_key(&ns.volume()), None);
    }

    #[test]
    fn the_last_term_that_begins_before_a_number_has_it() {
        let terms = [Term { epoch: Epoch(1), first: 1 }, Term { epoch: Epoch(4), first: 10 }];
        assert_eq!(epoch_of(&terms, 9), Some(Epoch(1)));
        assert_eq!(epoch_of(&terms, 10), Some(Epoch(4)));
        assert_eq!(epoch_of(&terms, 0), None);
    }
}
