//! A split virtqueue in guest memory (virtio 1.2, 2.7): where its three areas are, and single accesses to them.
//!
//! Everything here is shared with a guest that may write it at any moment: each value is loaded exactly once and the copy is
//! what gets checked. Indexes are free-running `u16`; positions are taken modulo the ring's size, which is a power of two.
//! The areas are resolved once, when the ring starts or the memory table changes, so an access costs no address lookup.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

use virtio_queue::desc::split::Descriptor;

use crate::memory::{GuestMemory, Segment};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const AVAIL_NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`.
const USED_NO_NOTIFY: u16 = 1;

/// Addresses of the three areas in the front end's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingAddress {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// How many entries a ring has: a power of two from 1 to 32768.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingSize(u16);

impl RingSize {
    /// `None` unless `size` is a power of two and at most `max`.
    pub(crate) fn new(size: u32, max: u16) -> Option<Self> {
        u16::try_from(size).ok().filter(|s| s.is_power_of_two() && *s <= max).map(Self)
    }

    pub(crate) const fn get(self) -> u16 {
        self.0
    }

    /// The entry that a free-running index names.
    pub(crate) const fn position(self, index: u16) -> u16 {
        index & (self.0 - 1)
    }
}

/// A ring's areas, resolved.
#[derive(Debug, Clone)]
pub(crate) struct RingLayout {
    descriptors: Segment,
    available: Segment,
    used: Segment,
    size: RingSize,
    event_idx: bool,
    memory: Arc<GuestMemory>,
}

impl RingLayout {
    /// Resolves the areas; `None` when one of them is not wholly inside one region or is misaligned.
    pub(crate) fn new(memory: &Arc<GuestMemory>, address: RingAddress, size: RingSize, event_idx: bool) -> Option<Self> {
        let entries = u64::from(size.get());
        // 2.7: descriptor 16 bytes; available 2 + 2 + 2·n + 2; used 2 + 2 + 8·n + 2.
        Some(Self {
            descriptors: memory.resolve_user(address.descriptors, 16 * entries, 16)?,
            available: memory.resolve_user(address.available, 6 + 2 * entries, 2)?,
            used: memory.resolve_user(address.used, 6 + 8 * entries, 4)?,
            size,
            event_idx,
            memory: memory.clone(),
        })
    }

    pub(crate) fn size(&self) -> RingSize {
        self.size
    }

    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Whether the front end took away memory that the ring lies in.
    pub(crate) fn is_broken(&self) -> bool {
        [&self.descriptors, &self.available, &self.used].into_iter().any(|s| self.memory.is_broken(s))
    }

    /// How far the driver got. Acquire: entries up to here are visible.
    pub(crate) fn available_index(&self) -> u16 {
        u16::from_le(field(&self.available, 2).load(Ordering::Acquire))
    }

    /// The head of the chain that the driver offered as number `index`.
    pub(crate) fn available_head(&self, index: u16) -> u16 {
        u16::from_le(field(&self.available, 4 + 2 * usize::from(self.size.position(index))).load(Ordering::Relaxed))
    }

    /// One descriptor, read once. `index` must be below the ring's size.
    pub(crate) fn descriptor(&self, index: u16) -> Descriptor {
        load_descriptor(&self.descriptors, index)
    }

    /// Writes the used entry of number `index`; visible only after [`RingLayout::publish_used`].
    pub(crate) fn put_used(&self, index: u16, head: u16, len: u32) {
        let at = 4 + 8 * usize::from(self.size.position(index));
        let entry = self.used.at.as_ptr().wrapping_add(at).cast::<u32>();
        // SAFETY: position < size, so the entry lies inside the used area, which is 4-aligned and mapped while `memory` lives.
        unsafe {
            entry.write_volatile(u32::from(head).to_le());
            entry.add(1).write_volatile(len.to_le());
        }
    }

    /// Makes used entries below `index` visible to the driver.
    pub(crate) fn publish_used(&self, index: u16) {
        field(&self.used, 2).store(index.to_le(), Ordering::Release);
    }

    /// Where the used index stands in memory (a ring that is started again goes on from there).
    pub(crate) fn used_index(&self) -> u16 {
        u16::from_le(field(&self.used, 2).load(Ordering::Relaxed))
    }

    /// Whether the driver wants to hear of the used entries `from..to` (2.7.7.2).
    pub(crate) fn wants_signal(&self, from: u16, to: u16) -> bool {
        // The used index must be visible before the driver's wish is read: it does the opposite.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = u16::from_le(field(&self.available, 4 + 2 * usize::from(self.size.get())).load(Ordering::Relaxed));
            to.wrapping_sub(event).wrapping_sub(1) < to.wrapping_sub(from)
        } else {
            u16::from_le(field(&self.available, 0).load(Ordering::Relaxed)) & AVAIL_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver not to kick. With event-idx there is nothing to do: the event lies behind, so nothing crosses it.
    pub(crate) fn mute_kicks(&self) {
        if !self.event_idx {
            field(&self.used, 0).store(USED_NO_NOTIFY.to_le(), Ordering::Relaxed);
        }
    }

    /// Asks the driver to kick when it offers chain number `next`; the caller must look once more afterwards.
    pub(crate) fn ask_for_kick(&self, next: u16) {
        if self.event_idx {
            field(&self.used, 4 + 8 * usize::from(self.size.get())).store(next.to_le(), Ordering::Relaxed);
        } else {
            field(&self.used, 0).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }
}

/// A 16-bit field of an area. `offset` must be even and inside it.
fn field(area: &Segment, offset: usize) -> &AtomicU16 {
    debug_assert!(offset + 2 <= area.len as usize);
    let at = area.at.as_ptr().wrapping_add(offset).cast::<u16>();
    // SAFETY: the area was resolved with its full length and at least 2-aligned; the mapping outlives the borrow because the
    // RingLayout that owns `area` holds its memory. The guest's concurrent accesses are to shared memory, hence atomic.
    unsafe { AtomicU16::from_ptr(at) }
}

/// Reads descriptor `index` of a table once. The table must be mapped; it may be unaligned (indirect tables need not be).
pub(crate) fn load_descriptor(table: &Segment, index: u16) -> Descriptor {
    debug_assert!(16 * (usize::from(index) + 1) <= table.len as usize);
    let at = table.at.as_ptr().wrapping_add(16 * usize::from(index)).cast::<u64>();
    let (address, rest) = if (at as usize).is_multiple_of(8) {
        // SAFETY: 16 mapped bytes, 8-aligned; the table's memory is held by the caller.
        unsafe { (AtomicU64::from_ptr(at).load(Ordering::Relaxed), AtomicU64::from_ptr(at.add(1)).load(Ordering::Relaxed)) }
    } else {
        // SAFETY: as above, without alignment.
        unsafe { (at.read_unaligned(), at.add(1).read_unaligned()) }
    };
    let rest = u64::from_le(rest);
    Descriptor::new(u64::from_le(address), rest as u32, (rest >> 32) as u16, (rest >> 48) as u16)
}
