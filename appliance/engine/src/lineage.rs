//! Which fingerprints already live in a volume's own lineage, and where: lets a block be logged as a reference.
//!
//! A bounded, four-way associative table over all volumes of the node. It forgets (then a block is stored once more); it never
//! errs: a hit compares the full fingerprint, and only blocks of containers sealed earlier are in it.

use lamina_contract::{Fingerprint, Location, VolumeId};
use parking_lot::Mutex;

const WAYS: usize = 4;

#[derive(Clone, Copy)]
struct Slot {
    fingerprint: [u8; 32],
    volume: u64,
    /// 0 when the slot is free: SCO numbers begin at 1.
    location: u64,
}

const FREE: Slot = Slot { fingerprint: [0; 32], volume: 0, location: 0 };

/// The table.
pub(crate) struct Lineage {
    sets: Mutex<Vec<[Slot; WAYS]>>,
}

impl Lineage {
    /// A table of about `bytes`; memory is touched as it fills.
    pub(crate) fn new(bytes: usize) -> Self {
        let sets = (bytes / size_of::<[Slot; WAYS]>()).max(1);
        Self { sets: Mutex::new(vec![[FREE; WAYS]; sets]) }
    }

    /// Where blocks with these fingerprints live in `volume`.
    ///
    /// All at once: each is a miss of the processor's caches, and in one short loop many are under way together.
    pub(crate) fn find_all<'a>(
        &self,
        volume: VolumeId,
        fingerprints: impl Iterator<Item = Option<&'a Fingerprint>>,
    ) -> Vec<Option<Location>> {
        let sets = self.sets.lock();
        let find = |fingerprint: &Fingerprint| {
            let set = sets.get(set_of(sets.len(), volume, fingerprint))?;
            set.iter()
                .find(|slot| slot.location != 0 && slot.volume == volume.0 && slot.fingerprint == fingerprint.0)
                .map(|slot| Location::from_bits(slot.location))
        };
        fingerprints.map(|fingerprint| find(fingerprint?)).collect()
    }

    /// Remembers where blocks live; the longest unrefreshed of a set gives way.
    pub(crate) fn insert_all<'a>(&self, volume: VolumeId, blocks: impl Iterator<Item = (&'a Fingerprint, Location)>) {
        let mut sets = self.sets.lock();
        for (fingerprint, location) in blocks {
            let at = set_of(sets.len(), volume, fingerprint);
            if let Some(set) = sets.get_mut(at) {
                let old = set.iter().position(|slot| slot.volume == volume.0 && slot.fingerprint == fingerprint.0);
                set[..=old.unwrap_or(WAYS - 1)].rotate_right(1);
                set[0] = Slot { fingerprint: fingerprint.0, volume: volume.0, location: location.to_bits() };
            }
        }
    }

    /// Forgets everything of `volume`.
    pub(crate) fn forget(&self, volume: VolumeId) {
        for set in self.sets.lock().iter_mut() {
            for slot in set.iter_mut().filter(|slot| slot.volume == volume.0) {
                *slot = FREE;
            }
        }
    }
}

fn set_of(sets: usize, volume: VolumeId, fingerprint: &Fingerprint) -> usize {
    let mut low = [0; 8];
    low.copy_from_slice(&fingerprint.0[..8]);
    ((u64::from_le_bytes(low) ^ volume.0) % sets as u64) as usize
}

#[cfg(test)]
mod tests {
    use lamina_contract::{Fingerprint, Location, ScoNumber, VolumeId};

    use super::{Lineage, WAYS};

    fn at(sco: u64) -> Location {
        Location { ancestor: 0, sco: ScoNumber(sco), index: 3 }
    }

    fn find(lineage: &Lineage, volume: u64, print: u8) -> Option<Location> {
        lineage.find_all(VolumeId(volume), [None, Some(&Fingerprint([print; 32]))].into_iter())[1]
    }

    fn insert(lineage: &Lineage, volume: u64, print: u8, location: Location) {
        lineage.insert_all(VolumeId(volume), [(&Fingerprint([print; 32]), location)].into_iter());
    }

    #[test]
    fn a_fingerprint_is_found_in_its_own_volume_only() {
        let lineage = Lineage::new(4096);
        insert(&lineage, 1, 7, at(5));
        assert_eq!(find(&lineage, 1, 7), Some(at(5)));
        assert_eq!(find(&lineage, 2, 7), None);
        insert(&lineage, 1, 7, at(6));
        assert_eq!(find(&lineage, 1, 7), Some(at(6)));
        lineage.forget(VolumeId(1));
        assert_eq!(find(&lineage, 1, 7), None);
    }

    #[test]
    fn a_full_set_forgets_its_oldest() {
        let lineage = Lineage::new(1);
        for n in 0..=WAYS {
            insert(&lineage, 1, n as u8, at(n as u64 + 1));
        }
        assert_eq!(find(&lineage, 1, 0), None);
        assert_eq!(find(&lineage, 1, 1), Some(at(2)));
    }
}
