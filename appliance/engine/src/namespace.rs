//! Keys of a volume's objects: `<volume>/sco/<group>/<epoch>-<number>.v<version>` and its siblings.
//!
//! A key carries the epoch of its writer, so two writers never share one; numbers are zero-padded so that listings sort. Numbers of which
//! a volume has many lie in groups: on a drive a group is a directory, small enough to look through, and shared enough that few are made.

use lamina_contract::{Epoch, Generation, ScoNumber, TlogNumber, VolumeId};
use lamina_formats::manifest::Term;
use object_store::path::Path;

/// Numbers in a group: as many as have their fragments' names in one block of a directory (of 4 KiB).
const GROUP: u64 = 32;

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
        Path::from(format!("{}/sco/{}.v0", self.0, grouped(epoch, sco.0)))
    }

    /// A TLog.
    #[must_use]
    pub fn tlog(self, epoch: Epoch, tlog: TlogNumber) -> Path {
        Path::from(format!("{}/tlog/{}", self.0, grouped(epoch, tlog.0)))
    }

    /// A map object.
    #[must_use]
    pub fn map(self, epoch: Epoch, number: u64) -> Path {
        Path::from(format!("{}/map/{}", self.0, grouped(epoch, number)))
    }

    /// The catalog that this manifest was the first to name.
    #[must_use]
    pub fn catalog(self, epoch: Epoch, generation: Generation) -> Path {
        Path::from(format!("{}/catalog/{}", self.0, grouped(epoch, generation.0)))
    }

    /// Where all catalogs are.
    #[must_use]
    pub fn catalogs(self) -> Path {
        Path::from(format!("{}/catalog", self.0))
    }

    /// Where all map objects are.
    #[must_use]
    pub fn maps(self) -> Path {
        Path::from(format!("{}/map", self.0))
    }

    /// A manifest generation.
    #[must_use]
    pub fn manifest(self, generation: Generation, epoch: Epoch) -> Path {
        let generation = generation.0;
        Path::from(format!("{}/manifest/{:09x}/{generation:010x}-{:08x}", self.0, generation / GROUP, epoch.0))
    }

    /// Where all manifests are.
    #[must_use]
    pub fn manifests(self) -> Path {
        Path::from(format!("{}/manifest", self.0))
    }
}

fn grouped(epoch: Epoch, number: u64) -> String {
    format!("{:09x}/{:08x}-{number:010x}", number / GROUP, epoch.0)
}

/// Generation and epoch of a manifest's key, if it is one.
#[must_use]
pub fn parse_manifest_key(path: &Path) -> Option<(Generation, Epoch)> {
    let (generation, epoch) = path.filename()?.split_once('-')?;
    let generation = u64::from_str_radix(generation, 16).ok()?;
    let epoch = u64::from_str_radix(epoch, 16).ok()?;
    Some((Generation(generation), Epoch(epoch)))
}

/// Epoch and number of a map object's key, if it is one.
#[must_use]
pub fn parse_map_key(path: &Path) -> Option<(Epoch, u64)> {
    let (epoch, number) = path.filename()?.split_once('-')?;
    Some((Epoch(u64::from_str_radix(epoch, 16).ok()?), u64::from_str_radix(number, 16).ok()?))
}

/// The epoch under which object `number` has its key.
#[must_use]
pub fn epoch_of(terms: &[Term], number: u64) -> Option<Epoch> {
    terms.iter().rev().find(|term| term.first <= number).map(|term| term.epoch)
}

#[cfg(test)]
mod tests {
    use lamina_contract::{Epoch, Generation, ScoNumber, TlogNumber, VolumeId};
    use lamina_formats::manifest::Term;

    use super::{Namespace, epoch_of, parse_manifest_key, parse_map_key};

    #[test]
    fn a_manifest_key_reads_back_and_sorts_by_generation() {
        let ns = Namespace(VolumeId(7));
        let (low, high) = (ns.manifest(Generation(9), Epoch(200)), ns.manifest(Generation(16), Epoch(1)));
        assert_eq!(parse_manifest_key(&high), Some((Generation(16), Epoch(1))));
        assert!(low < high);
        assert_eq!(parse_manifest_key(&ns.volume()), None);
    }

    #[test]
    fn keys_of_numbers_sort_and_share_groups() {
        let ns = Namespace(VolumeId(7));
        let keys: Vec<_> = [0, 31, 32, 0xff_ffff_ffff].map(|number| ns.sco(Epoch(2), ScoNumber(number))).into();
        assert_eq!(keys[1].as_ref(), "0000000000000007/sco/000000000/00000002-000000001f.v0");
        assert_eq!(keys[2].as_ref(), "0000000000000007/sco/000000001/00000002-0000000020.v0");
        assert_eq!(keys[3].as_ref(), "0000000000000007/sco/7ffffffff/00000002-ffffffffff.v0");
        assert!(keys.is_sorted());
        // They are on drives and in buckets: none may change.
        assert_eq!(ns.tlog(Epoch(2), TlogNumber(33)).as_ref(), "0000000000000007/tlog/000000001/00000002-0000000021");
        assert_eq!(ns.map(Epoch(2), 33).as_ref(), "0000000000000007/map/000000001/00000002-0000000021");
        assert_eq!(ns.catalog(Epoch(2), Generation(33)).as_ref(), "0000000000000007/catalog/000000001/00000002-0000000021");
        assert_eq!(parse_map_key(&ns.map(Epoch(0x12), 0x345)), Some((Epoch(0x12), 0x345)));
        assert_eq!(ns.manifest(Generation(33), Epoch(2)).as_ref(), "0000000000000007/manifest/000000001/0000000021-00000002");
        assert_eq!(ns.volume().as_ref(), "0000000000000007/volume");
    }

    #[test]
    fn the_last_term_that_begins_before_a_number_has_it() {
        let terms = [Term { epoch: Epoch(1), first: 1 }, Term { epoch: Epoch(4), first: 10 }];
        assert_eq!(epoch_of(&terms, 9), Some(Epoch(1)));
        assert_eq!(epoch_of(&terms, 10), Some(Epoch(4)));
        assert_eq!(epoch_of(&terms, 0), None);
    }
}
