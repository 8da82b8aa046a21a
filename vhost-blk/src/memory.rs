//! The guest's memory as the front end shares it: regions checked before they are mapped, and addresses turned into segments.
//!
//! Invariants:
//! - Nothing is mapped that is larger than its file, not memory-backed (a FUSE file could block a fault for ever), overlapping
//!   another region, or beyond the caps. The file is sealed against shrinking, or the [`crate::sigbus`] guard covers it.
//! - A [`GuestMemory`] never changes: a new memory table makes a new one, and whoever holds the old one keeps its mappings alive.
//! - A [`Segment`] is only followed together with the [`GuestMemory`] that made it.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use lamina_contract::IoError;
use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, fstatfs};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use vm_memory::VolatileSlice;

use crate::sigbus::Registration;

/// More than any VMM asks for; libvhost-user allows 509 as well.
pub(crate) const MAX_REGIONS: usize = 509;

const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
const PAGE: u64 = 4096;

/// Where a region lies and which part of its file it is, as the front end says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RegionSpec {
    /// Guest physical address: what descriptors hold.
    pub(crate) guest: u64,
    /// Address in the front end's process: what SET_VRING_ADDR holds.
    pub(crate) user: u64,
    pub(crate) len: u64,
    pub(crate) file_offset: u64,
}

/// Why a region was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("region is empty or its addresses overflow")]
    Range,
    #[error("region overlaps another one")]
    Overlap,
    #[error("more than {MAX_REGIONS} regions")]
    TooMany,
    #[error("guest memory exceeds the configured maximum")]
    TooLarge,
    #[error("file offset is not a multiple of 4096")]
    Alignment,
    #[error("region reaches behind the end of its file")]
    BehindFile,
    #[error("backing file is neither memfd, tmpfs nor hugetlbfs")]
    NotMemory,
    #[error("too many guest mappings in this process")]
    RegistryFull,
    #[error("no such region")]
    Unknown,
    #[error("cannot inspect or map the backing file")]
    System(#[from] rustix::io::Errno),
}

/// One mapped region.
#[derive(Debug)]
pub(crate) struct Mapping {
    spec: RegionSpec,
    map: NonNull<u8>,
    map_len: usize,
    /// Host address of the region's first byte, behind `map` by the page rounding.
    base: NonNull<u8>,
    /// Dropped after the unmapping in `drop`, see there.
    guard: Option<Registration>,
}

// SAFETY: a Mapping is an address range that stays valid until drop; what is in it is shared with another process anyway and
// only touched through volatile or atomic accesses and plain copies.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Checks `file` against `spec` and maps it.
    pub(crate) fn new(spec: RegionSpec, file: &File) -> Result<Self, MemoryError> {
        spec.check()?;
        let stat = fstat(file)?;
        let size = u64::try_from(stat.st_size).map_err(|_| MemoryError::BehindFile)?;
        if spec.file_offset.checked_add(spec.len).is_none_or(|end| end > size) {
            return Err(MemoryError::BehindFile);
        }
        let fs = fstatfs(file)?;
        let page = match fs.f_type as u64 & 0xffff_ffff {
            TMPFS_MAGIC => PAGE,
            HUGETLBFS_MAGIC => u64::try_from(fs.f_bsize).ok().filter(|b| b.is_power_of_two()).unwrap_or(PAGE),
            _ => return Err(MemoryError::NotMemory),
        };
        // Best effort: QEMU sets it itself, libblkio's memfd does not allow sealing. The SIGBUS guard stands behind both.
        if fcntl_get_seals(file).is_ok_and(|seals| !seals.contains(SealFlags::SHRINK)) {
            let _ = fcntl_add_seals(file, SealFlags::SHRINK);
        }
        // Hugetlbfs maps whole huge pages, while QEMU cuts regions at 640 KiB: round outwards and remember where we are.
        let start = spec.file_offset & !(page - 1);
        let lead = (spec.file_offset - start) as usize;
        let map_len = (spec.len + lead as u64).checked_next_multiple_of(page).ok_or(MemoryError::Range)? as usize;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        // SAFETY: a fresh mapping at an address the kernel chooses; nobody else refers to it.
        let map = unsafe { mmap(std::ptr::null_mut(), map_len, prot, flags, file, start) }?;
        let map = NonNull::new(map.cast::<u8>()).ok_or(MemoryError::Range)?;
        // Guest memory has no business in a core dump of the daemon.
        // SAFETY: the range was mapped just now; DONTDUMP changes no content.
        let _ = unsafe { madvise(map.as_ptr().cast(), map_len, Advice::LinuxDontDump) };
        // SAFETY: lead < page <= map_len.
        let base = unsafe { map.add(lead) };
        let mut mapping = Self { spec, map, map_len, base, guard: None };
        mapping.guard = Some(Registration::new(map.as_ptr() as usize, map_len, page as usize).ok_or(MemoryError::RegistryFull)?);
        Ok(mapping)
    }

    /// Whether the front end took pages away while we were reading them.
    pub(crate) fn is_broken(&self) -> bool {
        self.guard.as_ref().is_none_or(Registration::is_broken)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Out of the registry first: once unmapped, the range may be given to someone else.
        self.guard = None;
        // SAFETY: `map..map + map_len` is ours since `new`, and the last owner is being dropped.
        let _ = unsafe { munmap(self.map.as_ptr().cast(), self.map_len) };
    }
}

impl RegionSpec {
    fn check(&self) -> Result<(), MemoryError> {
        let ends = [self.guest, self.user, self.file_offset].map(|start| start.checked_add(self.len));
        if self.len == 0 || ends.contains(&None) {
            return Err(MemoryError::Range);
        }
        if !self.file_offset.is_multiple_of(PAGE) {
            return Err(MemoryError::Alignment);
        }
        Ok(())
    }

    fn overlaps(&self, other: &Self) -> bool {
        let cross = |a: u64, b: u64| a < b + other.len && b < a + self.len;
        cross(self.guest, other.guest) || cross(self.user, other.user)
    }
}

/// A piece of guest memory: `len` bytes at `at`, in the region numbered `region`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) at: NonNull<u8>,
    pub(crate) len: u32,
    pub(crate) region: u32,
}

// SAFETY: a Segment is an address; following it is unsafe and needs the GuestMemory that made it.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

/// All regions of one guest, in order of guest address.
#[derive(Debug, Default, Clone)]
pub(crate) struct GuestMemory {
    regions: Vec<Arc<Mapping>>,
}

impl GuestMemory {
    /// This memory and one more region.
    pub(crate) fn with(&self, spec: RegionSpec, file: &File, max_bytes: u64) -> Result<Self, MemoryError> {
        spec.check()?;
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        if self.regions.iter().any(|other| other.spec.overlaps(&spec)) {
            return Err(MemoryError::Overlap);
        }
        let total = self.regions.iter().map(|r| r.spec.len).fold(spec.len, u64::saturating_add);
        if total > max_bytes {
            return Err(MemoryError::TooLarge);
        }
        let mut regions = self.regions.clone();
        regions.push(Arc::new(Mapping::new(spec, file)?));
        regions.sort_unstable_by_key(|r| r.spec.guest);
        Ok(Self { regions })
    }

    /// This memory without a region.
    pub(crate) fn without(&self, guest: u64, user: u64, len: u64) -> Result<Self, MemoryError> {
        let is = |r: &Arc<Mapping>| (r.spec.guest, r.spec.user, r.spec.len) == (guest, user, len);
        let position = self.regions.iter().position(is).ok_or(MemoryError::Unknown)?;
        let mut regions = self.regions.clone();
        regions.remove(position);
        Ok(Self { regions })
    }

    /// Appends the segments of `len` bytes at guest address `address` to `out`: one, or more when they run over adjacent regions.
    /// `false` when part of it is not guest memory (`out` may then hold a part).
    pub(crate) fn resolve(&self, mut address: u64, len: u32, out: &mut Vec<Segment>) -> bool {
        let mut left = u64::from(len);
        while left > 0 {
            let after = self.regions.partition_point(|r| r.spec.guest <= address);
            let Some(index) = after.checked_sub(1) else { return false };
            let Some(region) = self.regions.get(index) else { return false };
            let offset = address - region.spec.guest;
            let Some(room) = region.spec.len.checked_sub(offset).filter(|room| *room > 0) else { return false };
            let take = room.min(left);
            // SAFETY: offset < len of the region, whose bytes are all mapped from `base` on.
            let at = unsafe { region.base.add(offset as usize) };
            out.push(Segment { at, len: take as u32, region: index as u32 });
            left -= take;
            let Some(next) = address.checked_add(take) else { return left == 0 };
            address = next;
        }
        true
    }

    /// Host address of `len` bytes at the front end's own address `user`, all in one region and aligned to `align`.
    pub(crate) fn resolve_user(&self, user: u64, len: u64, align: usize) -> Option<Segment> {
        let (index, region) =
            self.regions.iter().enumerate().find(|(_, r)| user >= r.spec.user && user - r.spec.user < r.spec.len)?;
        let offset = user - region.spec.user;
        if offset.checked_add(len)? > region.spec.len {
            return None;
        }
        // SAFETY: offset + len <= len of the region.
        let at = unsafe { region.base.add(offset as usize) };
        (at.as_ptr() as usize).is_multiple_of(align).then_some(Segment { at, len: u32::try_from(len).ok()?, region: index as u32 })
    }

    /// Whether the region of `segment` lost pages.
    pub(crate) fn is_broken(&self, segment: &Segment) -> bool {
        self.regions.get(segment.region as usize).is_none_or(|r| r.is_broken())
    }

    /// Copies from guest memory.
    pub(crate) fn read(&self, segment: &Segment, offset: usize, to: &mut [u8]) -> Result<(), IoError> {
        let slice = self.slice(segment, offset, to.len())?;
        slice.copy_to(to);
        if self.is_broken(segment) { Err(IoError::GuestMemory) } else { Ok(()) }
    }

    /// Copies into guest memory.
    pub(crate) fn write(&self, segment: &Segment, offset: usize, from: &[u8]) -> Result<(), IoError> {
        let slice = self.slice(segment, offset, from.len())?;
        slice.copy_from(from);
        if self.is_broken(segment) { Err(IoError::GuestMemory) } else { Ok(()) }
    }

    /// Zeroes guest memory.
    pub(crate) fn zero(&self, segment: &Segment, offset: usize, len: usize) -> Result<(), IoError> {
        let slice = self.slice(segment, offset, len)?;
        // SAFETY: the slice was checked to lie in a live mapping; the guest may write it at the same time, which is its own affair.
        unsafe { std::ptr::write_bytes(slice.ptr_guard_mut().as_ptr(), 0, len) };
        if self.is_broken(segment) { Err(IoError::GuestMemory) } else { Ok(()) }
    }

    fn slice(&self, segment: &Segment, offset: usize, len: usize) -> Result<VolatileSlice<'_>, IoError> {
        if offset.checked_add(len).is_none_or(|end| end > segment.len as usize) {
            return Err(IoError::GuestMemory);
        }
        // SAFETY: the segment was made by this GuestMemory (callers hold both together), which keeps the mapping alive for as long
        // as `self` is borrowed, and offset + len lies inside it.
        Ok(unsafe { VolatileSlice::new(segment.at.as_ptr().add(offset), len) })
    }
}
