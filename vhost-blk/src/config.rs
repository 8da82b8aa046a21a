//! What the guest may know: feature bits (virtio 1.2, 5.2.3 and 6) and the configuration space (5.2.4).
//!
//! The space is 60 bytes, little-endian. Reads behind it give zeros up to 256 bytes, so that front ends built against a
//! longer structure work. Offsets may be counted from 0 (QEMU) or from 0x100 (older Cloud Hypervisor).

use lamina_contract::{DeviceGeometry, SECTOR_BYTES};
use vhost::vhost_user::message::VHOST_USER_CONFIG_OFFSET;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::request::{MAX_DATA_BYTES, MAX_RANGE_SECTORS};

/// Data segments of one request: a ring of 128, QEMU's default, less header and status.
pub(crate) const SEG_MAX: u32 = 126;
/// Bytes of one segment: 126 × 32 KiB stay below [`MAX_DATA_BYTES`].
pub(crate) const SIZE_MAX: u32 = 32 << 10;
const _: () = assert!(SEG_MAX * SIZE_MAX <= MAX_DATA_BYTES);

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub(crate) const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Where the write-back byte lies.
const WRITE_BACK_OFFSET: u32 = 32;
const SPACE_BYTES: usize = 60;
const READABLE_BYTES: usize = 256;

const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// Features offered for a disk.
pub(crate) fn offered(geometry: &DeviceGeometry) -> u64 {
    let ring = bit(VIRTIO_F_VERSION_1) | bit(VIRTIO_RING_F_EVENT_IDX) | bit(VIRTIO_RING_F_INDIRECT_DESC);
    let shape = bit(VIRTIO_BLK_F_SIZE_MAX)
        | bit(VIRTIO_BLK_F_SEG_MAX)
        | bit(VIRTIO_BLK_F_BLK_SIZE)
        | bit(VIRTIO_BLK_F_TOPOLOGY)
        | bit(VIRTIO_BLK_F_MQ);
    let cache = bit(VIRTIO_BLK_F_FLUSH) | bit(VIRTIO_BLK_F_CONFIG_WCE);
    let access = if geometry.read_only { bit(VIRTIO_BLK_F_RO) } else { bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES) };
    F_PROTOCOL_FEATURES | ring | shape | cache | access
}

/// Whether rings use event indexes.
pub(crate) const fn event_idx(features: u64) -> bool {
    features & bit(VIRTIO_RING_F_EVENT_IDX) != 0
}

/// Whether each write must be durable before it is answered (5.2.6.2): the guest cannot flush, or write-through was chosen, by
/// it or (`cache` false) for it.
pub(crate) const fn write_through(features: u64, write_back: bool, cache: bool) -> bool {
    let (flush, choice) = (features & bit(VIRTIO_BLK_F_FLUSH) != 0, features & bit(VIRTIO_BLK_F_CONFIG_WCE) != 0);
    !flush || if choice { !write_back } else { !cache }
}

/// The configuration space.
pub(crate) fn space(geometry: &DeviceGeometry, queues: u16, write_back: bool) -> [u8; SPACE_BYTES] {
    let sector = SECTOR_BYTES as u32;
    let block_sectors = (geometry.physical_block / sector).max(1);
    let block_exponent = block_sectors.ilog2() as u8;
    let fields: [&[u8]; 18] = [
        &geometry.sectors.0.to_le_bytes(),
        &SIZE_MAX.to_le_bytes(),
        &SEG_MAX.to_le_bytes(),
        &[0; 4], // geometry, not offered
        &sector.to_le_bytes(),
        &[block_exponent],
        &[0], // alignment offset
        &u16::try_from(block_sectors).unwrap_or(u16::MAX).to_le_bytes(),
        &(geometry.optimal_io / sector).to_le_bytes(),
        &[u8::from(write_back), 0],
        &queues.to_le_bytes(),
        &MAX_RANGE_SECTORS.to_le_bytes(),
        &1u32.to_le_bytes(), // ranges in a discard
        &block_sectors.to_le_bytes(),
        &MAX_RANGE_SECTORS.to_le_bytes(),
        &1u32.to_le_bytes(), // ranges in a write-zeroes
        &[1],                // write-zeroes may unmap
        &[0; 3],
    ];
    let mut space = [0; SPACE_BYTES];
    for (to, from) in space.iter_mut().zip(fields.into_iter().flatten()) {
        *to = *from;
    }
    space
}

/// `size` bytes of the space at `offset`; `None` outside it.
pub(crate) fn read(space: &[u8; SPACE_BYTES], offset: u32, size: u32) -> Option<Vec<u8>> {
    let start = relative(offset) as usize;
    let end = start.checked_add(size as usize).filter(|end| *end <= READABLE_BYTES)?;
    let mut readable = [0; READABLE_BYTES];
    readable.get_mut(..SPACE_BYTES)?.copy_from_slice(space);
    readable.get(start..end).map(<[u8]>::to_vec)
}

/// Whether a read of the space shows all of the capacity.
pub(crate) fn shows_capacity(offset: u32, size: u32) -> bool {
    relative(offset) == 0 && size >= 8
}

/// The write-back choice in a write to the space: the only field a driver may write. `None` for anything else.
pub(crate) fn written(offset: u32, bytes: &[u8]) -> Option<bool> {
    match (relative(offset), bytes) {
        (WRITE_BACK_OFFSET, [0]) => Some(false),
        (WRITE_BACK_OFFSET, [1]) => Some(true),
        _ => None,
    }
}

fn relative(offset: u32) -> u32 {
    offset.checked_sub(VHOST_USER_CONFIG_OFFSET).unwrap_or(offset)
}

#[cfg(test)]
mod tests {
    use lamina_contract::{DeviceGeometry, SectorCount};

    use super::{offered, read, space, write_through, written};

    fn geometry(read_only: bool) -> DeviceGeometry {
        let serial = "lamina".to_owned();
        DeviceGeometry { sectors: SectorCount(0x0102_0304), physical_block: 4096, optimal_io: 65536, read_only, serial }
    }

    #[test]
    fn fields_lie_where_virtio_says() {
        let space = space(&geometry(false), 4, true);
        assert_eq!(space[..8], 0x0102_0304u64.to_le_bytes());
        assert_eq!(space[8..16], [0, 0x80, 0, 0, 126, 0, 0, 0]);
        assert_eq!(space[20..24], 512u32.to_le_bytes());
        assert_eq!((space[24], space[25]), (3, 0));
        assert_eq!(space[26..28], 8u16.to_le_bytes());
        assert_eq!(space[28..32], 128u32.to_le_bytes());
        assert_eq!((space[32], space[34]), (1, 4));
        assert_eq!(space[40..48], [1, 0, 0, 0, 8, 0, 0, 0]);
        assert_eq!((space[52], space[56]), (1, 1));
    }

    #[test]
    fn both_ways_to_count_offsets_read_the_same_and_nothing_behind_the_end() {
        let space = space(&geometry(false), 4, true);
        assert_eq!(read(&space, 0, 60), read(&space, 0x100, 60));
        assert_eq!(read(&space, 32, 1), Some(vec![1]));
        assert_eq!(read(&space, 56, 8), Some(vec![1, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(read(&space, 255, 2), None);
        assert_eq!(read(&space, 0x1ff, 2), None);
        assert_eq!(read(&space, u32::MAX, u32::MAX), None);
    }

    #[test]
    fn only_the_write_back_byte_may_be_written() {
        assert_eq!(written(32, &[0]), Some(false));
        assert_eq!(written(0x120, &[1]), Some(true));
        for (offset, bytes) in [(32, &[2][..]), (32, &[1, 1]), (31, &[1]), (0, &[1]), (32, &[])] {
            assert_eq!(written(offset, bytes), None);
        }
    }

    #[test]
    fn a_guest_that_cannot_flush_gets_write_through() {
        let (flush, wce) = (1 << 9, 1 << 11);
        assert!(write_through(0, true, true) && write_through(wce, true, true));
        assert!(write_through(flush | wce, false, true));
        assert!(!write_through(flush | wce, true, true) && !write_through(flush | wce, true, false));
        // Without CONFIG_WCE the driver assumes a write-back cache, whatever an earlier one chose.
        assert!(!write_through(flush, false, true));
        assert!(write_through(flush, false, false));
    }

    #[test]
    fn a_read_only_disk_offers_no_discard() {
        assert_eq!(offered(&geometry(true)) & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
        assert_eq!(offered(&geometry(false)) & (1 << 5 | 1 << 13 | 1 << 14), 1 << 13 | 1 << 14);
    }
}
