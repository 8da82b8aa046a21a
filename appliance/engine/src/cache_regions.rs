//! The dedupe cache's space on the SSD: equal regions in a few files of the [`Disk`] seam.
//!
//! Units: regions are numbered from 0, 64 to a file; offsets are bytes within a region. What a crash leaves is told by
//! [`lamina_formats::cache`]; nothing here is ever synced, for the checksums decide what is believed.

use std::io::{self, IoSlice};
use std::sync::Arc;

use lamina_contract::{Disk, DiskFile, Space};
use lamina_formats::cache::{PAGE_BYTES, RegionHeader, SlotEntry};

/// Regions in a file: with regions of 16 MiB a file is 1 GiB, so a cache of 1 TiB holds 1,024 files open.
const FILE_REGIONS: u32 = 64;
const PREFIX: &str = "dedupe-";

/// See the file's header.
pub(crate) struct Regions {
    files: Vec<Arc<dyn DiskFile>>,
    region_bytes: u64,
    count: u32,
}

impl Regions {
    /// Opens or makes space for `bytes` in regions of `region_bytes`, and removes files of another size or shape. Space beyond one
    /// file is taken in whole files, so that a change of size keeps the files that stay.
    pub(crate) fn open(disk: &dyn Disk, bytes: u64, region_bytes: u64) -> io::Result<Self> {
        let file_bytes = region_bytes * u64::from(FILE_REGIONS);
        let (files, len) = if bytes >= file_bytes {
            (bytes / file_bytes, file_bytes)
        } else {
            (u64::from(bytes >= region_bytes), bytes / region_bytes * region_bytes)
        };
        let names: Vec<String> = (0..files).map(|file| format!("{PREFIX}{region_bytes}-{file:05}")).collect();
        for name in disk.list()? {
            if name.starts_with(PREFIX) && !names.contains(&name) {
                disk.remove(&name)?;
            }
        }
        let files = names.iter().map(|name| disk.create(name, len, Space::Allocated)).collect::<io::Result<Vec<_>>>()?;
        let count = (len / region_bytes) as u32 * files.len() as u32;
        Ok(Self { files, region_bytes, count })
    }

    /// How many there are.
    pub(crate) const fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of each.
    pub(crate) const fn region_bytes(&self) -> u64 {
        self.region_bytes
    }

    /// The file that holds `region`, and `offset` of the region as the file's.
    pub(crate) fn place(&self, region: u32, offset: u64) -> io::Result<(&Arc<dyn DiskFile>, u64)> {
        let file = self.files.get((region / FILE_REGIONS) as usize).ok_or(io::ErrorKind::NotFound)?;
        Ok((file, u64::from(region % FILE_REGIONS) * self.region_bytes + offset))
    }

    pub(crate) fn write(&self, region: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (file, at) = self.place(region, offset)?;
        file.write_at(at, &[IoSlice::new(bytes)])
    }

    pub(crate) fn read(&self, region: u32, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let (file, at) = self.place(region, offset)?;
        file.read_at(at, buf)
    }

    /// The region's header, if it has one that is its own.
    pub(crate) fn header(&self, region: u32) -> io::Result<Option<RegionHeader>> {
        let mut page = vec![0; PAGE_BYTES];
        self.read(region, 0, &mut page)?;
        let header = RegionHeader::decode(&page).ok();
        Ok(header.filter(|header| header.region == region && header.region_bytes == self.region_bytes))
    }

    /// The region's table, if it has one that is its own and of `generation`.
    pub(crate) fn table(&self, region: u32, generation: u64, slots_start: u64) -> io::Result<Option<Vec<SlotEntry>>> {
        // The slots' start is below the region's length, which is at most 4 GiB.
        let mut bytes = vec![0; slots_start as usize];
        self.read(region, 0, &mut bytes)?;
        match RegionHeader::decode_table(&bytes) {
            Ok((header, entries)) if header.region == region && header.generation == generation => Ok(Some(entries)),
            _ => Ok(None),
        }
    }
}
