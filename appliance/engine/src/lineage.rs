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

    /// Where a block with this fingerprint lives in `volume`.
    pub(crate) fn find(&self, volume: VolumeId, fingerprint: &Fingerprint) -> Option<Location> {
        let sets = self.sets.lock();
        let set = sets.get(set_of(sets.len(), volume, fingerprint))?;
        set.iter()
            .find(|slot| slot.location != 0 && slot.volume == volume.0 && slot.fingerprint == fingerprint.0)
            .map(|slot| Location::from_bits(slot.location))
    }

    /// Remembers where a block lives; the longest unrefreshed of its set gives way.
    pub(crate) fn insert(&self, volume: VolumeId, fingerprint: &Fingerprint, location: Location) {
        let mut sets = self.sets.lock();
        let at = set_of(sets.len(), volume, fingerprint);
        if let Some(set) = sets.get_mut(at) {
            let old = set.iter().position(|slot| slot.volume == volume.0 && slot.fingerprint == fingerprint.0);
            set[..=old.unwrap_or(WAYS - 1)].rotate_right(1);
            set[0] = Slot { fingerprint: fingerprint.0, volume: volume.0, location: location.to_bits() };
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

    #[test]
    fn a_fingerprint_is_found_in_its_own_volume_only() {
        let lineage = Lineage::new(4096);
        let print = Fingerprint([7; 32]);
        lineage.insert(VolumeId(1), &print, at(5));
        assert_eq!(lineage.find(VolumeId(1), &print), Some(at(5)));
        assert_eq!(lineage.find(VolumeId(2), &print), None);
        lineage.insert(VolumeId(1), &print, at(6));
        assert_eq!(lineage.find(VolumeId(1), &print), Some(at(6)));
        lineage.forget(VolumeId(1));
        assert_eq!(lineage.find(VolumeId(1), &print), None);
    }

    #[test]
    fn a_full_set_forgets_its_oldest() {
        let lineage = Lineage::new(1);
        for n in 0..=WAYS {
            lineage.insert(VolumeId(1), &Fingerprint([n as u8; 32]), at(n as u64 + 1));
        }
        assert_eq!(lineage.find(VolumeId(1), &Fingerprint([0; 32])), None);
        assert_eq!(lineage.find(VolumeId(1), &Fingerprint([1; 32])), Some(at(2)));
    }
}
