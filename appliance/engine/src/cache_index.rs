//! The dedupe cache's memory of what it holds: fingerprint → slot, and per slot what eviction needs to know.
//!
//! Units: a slot number is region × slots per region + index. 34 to 40 bytes per slot in all: 24 here, 6 to 11 in the table, up to 4 in
//! the ghost. Memory only: after a crash the regions' tables bring it back. 128 bits of a fingerprint are kept, which nobody can
//! collide on purpose; the slot's CRC covers all 256 together with the data, so even then nothing wrong is read.

use hashbrown::{HashMap, HashTable};
use lamina_contract::{BlockSize, Fingerprint, VolumeId};

/// Hits are remembered up to this many.
const MOST_HITS: u8 = 3;
const LIVE: u8 = 4;
const DOUBT: u8 = 8;

/// Nobody in particular: more than 65,534 volumes have blocks here.
const NOBODY: u16 = u16::MAX;

/// The 128 bits of a fingerprint that are kept.
pub(crate) type Tag = [u64; 2];

/// The tag of a fingerprint.
pub(crate) fn tag_of(fingerprint: &Fingerprint) -> Tag {
    let (low, rest) = fingerprint.0.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    let high = rest.first_chunk::<8>().unwrap_or(&[0; 8]);
    [u64::from_le_bytes(*low), u64::from_le_bytes(*high)]
}

#[derive(Debug, Clone, Copy)]
struct Meta {
    tag: Tag,
    crc: u32,
    owner: u16,
    state: u8,
}
const _: () = assert!(size_of::<Meta>() == 24);

/// One slot as [`Index::find`] answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) region: u32,
    pub(crate) index: u32,
    pub(crate) generation: u64,
    pub(crate) slot_bytes: BlockSize,
    pub(crate) crc: u32,
    pub(crate) doubt: bool,
}

/// A slot to add.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewSlot {
    pub(crate) tag: Tag,
    pub(crate) crc: u32,
    pub(crate) volume: VolumeId,
    /// Read back from a table after a restart: its first hit is hashed.
    pub(crate) doubt: bool,
    pub(crate) hits: u8,
}

#[derive(Debug)]
struct RegionSlots {
    generation: u64,
    slot_bytes: BlockSize,
    slots: Vec<Meta>,
}

#[derive(Debug)]
struct Owner {
    volume: VolumeId,
    bytes: u64,
    quota: Option<u64>,
}

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Index {
    table: HashTable<u32>,
    regions: Vec<RegionSlots>,
    stride: u32,
    keys: Tag,
    /// Tags of blocks that left probation unwanted, one per place; the newest stays.
    ghost: Box<[u64]>,
    owners: Vec<Owner>,
    by_volume: HashMap<VolumeId, u16>,
    live_bytes: u64,
}

impl Index {
    /// For `regions` regions of at most `stride` slots. `keys` are random, so that nobody can aim at one bucket.
    pub(crate) fn new(regions: u32, stride: u32, keys: Tag) -> Self {
        let slots = regions as usize * stride as usize;
        let empty = || RegionSlots { generation: 0, slot_bytes: BlockSize::DEFAULT, slots: Vec::new() };
        Self {
            table: HashTable::with_capacity(slots),
            regions: (0..regions).map(|_| empty()).collect(),
            stride,
            keys,
            ghost: vec![0; (slots / 2).next_power_of_two().max(64)].into_boxed_slice(),
            owners: Vec::new(),
            by_volume: HashMap::new(),
            live_bytes: 0,
        }
    }

    /// Bytes of memory held when every slot is in use, which is also what is reserved.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.table.allocation_size()
            + self
                .regions
                .iter()
                .map(|region| region.slots.capacity() * size_of::<Meta>() + size_of::<RegionSlots>())
                .sum::<usize>()
            + self.ghost.len() * size_of::<u64>()
            + self.owners.capacity() * size_of::<Owner>()
            + self.by_volume.allocation_size()
    }

    /// Bytes of blocks that can be found.
    pub(crate) const fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    fn hash(keys: Tag, tag: Tag) -> u64 {
        let product = u128::from(tag[0] ^ keys[0]) * u128::from((tag[1] ^ keys[1]) | 1);
        product as u64 ^ (product >> 64) as u64
    }

    fn slot(&self, number: u32) -> Option<&Meta> {
        self.regions.get((number / self.stride) as usize)?.slots.get((number % self.stride) as usize)
    }

    fn number_of(&self, tag: Tag) -> Option<u32> {
        let hash = Self::hash(self.keys, tag);
        self.table.find(hash, |&number| self.slot(number).is_some_and(|slot| slot.tag == tag)).copied()
    }

    pub(crate) fn contains(&self, tag: Tag) -> bool {
        self.number_of(tag).is_some()
    }

    /// The slot with this tag; it counts as wanted.
    pub(crate) fn find(&mut self, tag: Tag) -> Option<Found> {
        let number = self.number_of(tag)?;
        let region = self.regions.get_mut((number / self.stride) as usize)?;
        let slot = region.slots.get_mut((number % self.stride) as usize)?;
        let hits = slot.state & MOST_HITS;
        if hits < MOST_HITS {
            slot.state += 1;
        }
        Some(Found {
            region: number / self.stride,
            index: number % self.stride,
            generation: region.generation,
            slot_bytes: region.slot_bytes,
            crc: slot.crc,
            doubt: slot.state & DOUBT != 0,
        })
    }

    /// Takes a region into use, empty.
    pub(crate) fn begin(&mut self, region: u32, generation: u64, slot_bytes: BlockSize, slots: u32) {
        if let Some(state) = self.regions.get_mut(region as usize) {
            debug_assert!(state.slots.is_empty());
            *state = RegionSlots { generation, slot_bytes, slots: Vec::with_capacity(slots.min(self.stride) as usize) };
        }
    }

    /// Adds the next slot of `region`. With `over` a copy elsewhere is given up for it; else the copy stays and the new slot is dead.
    pub(crate) fn add(&mut self, region: u32, new: NewSlot, over: bool) -> bool {
        let known = self.number_of(new.tag);
        if let Some(number) = known
            && over
        {
            self.kill(number);
        }
        let live = known.is_none() || over;
        let owner = if live { self.owner(new.volume) } else { NOBODY };
        let Some(state) = self.regions.get_mut(region as usize) else { return false };
        let number = region * self.stride + state.slots.len() as u32;
        let flags = if live { LIVE } else { 0 } | if new.doubt { DOUBT } else { 0 } | new.hits.min(MOST_HITS);
        state.slots.push(Meta { tag: new.tag, crc: new.crc, owner, state: flags });
        if live {
            let bytes = u64::from(state.slot_bytes.get());
            self.live_bytes += bytes;
            if let Some(owner) = self.owners.get_mut(usize::from(owner)) {
                owner.bytes += bytes;
            }
            let (keys, regions, stride) = (self.keys, &self.regions, self.stride);
            let rehash = |&number: &u32| {
                let slot = regions.get((number / stride) as usize).and_then(|r| r.slots.get((number % stride) as usize));
                slot.map_or(0, |slot| Self::hash(keys, slot.tag))
            };
            self.table.insert_unique(Self::hash(keys, new.tag), number, rehash);
        }
        live
    }

    /// Forgets the block with this tag, if it is in `region` of `generation` (anywhere, when `None`).
    pub(crate) fn forget(&mut self, tag: Tag, only: Option<(u32, u64)>) -> bool {
        let Some(number) = self.number_of(tag) else { return false };
        let here = |(region, generation)| {
            number / self.stride == region && self.regions.get(region as usize).is_some_and(|state| state.generation == generation)
        };
        if only.is_none_or(here) {
            self.kill(number);
            return true;
        }
        false
    }

    /// The block's data was hashed and is right.
    pub(crate) fn trust(&mut self, tag: Tag) {
        if let Some(number) = self.number_of(tag)
            && let Some(region) = self.regions.get_mut((number / self.stride) as usize)
            && let Some(slot) = region.slots.get_mut((number % self.stride) as usize)
        {
            slot.state &= !DOUBT;
        }
    }

    /// Indexes of the slots of `region` that were wanted, with how often.
    pub(crate) fn wanted(&self, region: u32) -> Vec<(u32, u8)> {
        let slots = self.regions.get(region as usize).map_or(&[][..], |region| &region.slots);
        let hits = slots.iter().map(|slot| if slot.state & LIVE != 0 { slot.state & MOST_HITS } else { 0 });
        (0u32..).zip(hits).filter(|&(_, hits)| hits > 0).collect()
    }

    /// Whether the slot can be found.
    pub(crate) fn is_live(&self, region: u32, index: u32) -> bool {
        let slot = self.regions.get(region as usize).and_then(|region| region.slots.get(index as usize));
        slot.is_some_and(|slot| slot.state & LIVE != 0)
    }

    /// Forgets up to `most` slots of `region` from `from` on: the next index and how many were live; `None` when all are done.
    pub(crate) fn clear_some(&mut self, region: u32, from: u32, most: u32, remember: bool) -> Option<(u32, u64)> {
        let total = self.regions.get(region as usize)?.slots.len() as u32;
        if from >= total {
            return None;
        }
        let end = total.min(from + most);
        let mut gone = 0;
        for index in from..end {
            let number = region * self.stride + index;
            let Some(slot) = self.slot(number).copied() else { continue };
            if slot.state & LIVE == 0 {
                continue;
            }
            self.kill(number);
            gone += 1;
            if remember {
                let place = Self::hash(self.keys, slot.tag) as usize & (self.ghost.len() - 1);
                self.ghost[place] = slot.tag[0];
            }
        }
        Some((end, gone))
    }

    /// Ends a region's use; its slots were cleared.
    pub(crate) fn end(&mut self, region: u32) {
        if let Some(state) = self.regions.get_mut(region as usize) {
            *state = RegionSlots { generation: 0, slot_bytes: BlockSize::DEFAULT, slots: Vec::new() };
        }
    }

    /// Whether the block was here a while ago.
    pub(crate) fn is_ghost(&self, tag: Tag) -> bool {
        let place = Self::hash(self.keys, tag) as usize & (self.ghost.len() - 1);
        tag[0] != 0 && self.ghost.get(place) == Some(&tag[0])
    }

    /// Whether `volume` may bring in `bytes` more.
    pub(crate) fn may_add(&self, volume: VolumeId, bytes: u64) -> bool {
        let owner = self.by_volume.get(&volume).and_then(|&owner| self.owners.get(usize::from(owner)));
        owner.is_none_or(|owner| owner.quota.is_none_or(|quota| owner.bytes + bytes <= quota))
    }

    /// Bounds what `volume` brings in.
    pub(crate) fn set_quota(&mut self, volume: VolumeId, quota: Option<u64>) {
        let owner = self.owner(volume);
        if let Some(owner) = self.owners.get_mut(usize::from(owner)) {
            owner.quota = quota;
        }
    }

    /// Bytes that `volume` has brought in and that are still here.
    pub(crate) fn bytes_of(&self, volume: VolumeId) -> u64 {
        let owner = self.by_volume.get(&volume).and_then(|&owner| self.owners.get(usize::from(owner)));
        owner.map_or(0, |owner| owner.bytes)
    }

    fn owner(&mut self, volume: VolumeId) -> u16 {
        if let Some(&owner) = self.by_volume.get(&volume) {
            return owner;
        }
        let new = Owner { volume, bytes: 0, quota: None };
        // Only when there are many is it worth looking for one that has nothing here any more.
        let reuse = if self.owners.len() < 1024 {
            None
        } else {
            self.owners.iter().position(|owner| owner.bytes == 0 && owner.quota.is_none())
        };
        let place = match reuse {
            Some(place) => {
                if let Some(old) = self.owners.get_mut(place) {
                    self.by_volume.remove(&old.volume);
                    *old = new;
                }
                place as u16
            }
            None if self.owners.len() < usize::from(NOBODY) => {
                self.owners.push(new);
                (self.owners.len() - 1) as u16
            }
            None => return NOBODY,
        };
        self.by_volume.insert(volume, place);
        place
    }

    fn kill(&mut self, number: u32) {
        let Some(tag) = self.slot(number).map(|slot| slot.tag) else { return };
        if let Ok(entry) = self.table.find_entry(Self::hash(self.keys, tag), |&other| other == number) {
            entry.remove();
        }
        let Some(region) = self.regions.get_mut((number / self.stride) as usize) else { return };
        let Some(slot) = region.slots.get_mut((number % self.stride) as usize) else { return };
        if slot.state & LIVE == 0 {
            return;
        }
        slot.state = 0;
        let bytes = u64::from(region.slot_bytes.get());
        self.live_bytes -= bytes;
        if let Some(owner) = self.owners.get_mut(usize::from(slot.owner)) {
            owner.bytes -= bytes;
        }
    }
}
