//! The identity of a volume in its namespace (object `volume`): what it is. Written when it is made, and again when a clone is
//! flattened.

use lamina_contract::{BlockSize, Parent, ScoSize, SnapshotId, Timestamp, VolumeId, VolumeName, VolumeSpec};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::integrity::{FormatError, crc32c};

const FORMAT: &str = "volume identity";
const MAGIC: u64 = u64::from_le_bytes(*b"LAMVOLU\0");
const VERSION: u16 = 1;
const FLAG_READ_ONLY: u8 = 1;
const FLAG_CLONE: u8 = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawVolume {
    magic: U64,
    version: U16,
    flags: u8,
    name_len: u8,
    crc: U32,
    id: U64,
    size_bytes: U64,
    created_ms: U64,
    block_size: U32,
    sco_size: U32,
    name: [u8; 64],
    parent_volume: U64,
    parent_snapshot: U64,
}
const _: () = assert!(size_of::<RawVolume>() == 128);

/// What a namespace says of its volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeIdentity {
    /// The volume and namespace.
    pub id: VolumeId,
    /// How it was made.
    pub spec: VolumeSpec,
    /// When.
    pub created: Timestamp,
    /// What it was made from, until it is flattened.
    pub parent: Option<Parent>,
}

impl VolumeIdentity {
    /// The object's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut name = [0; 64];
        let text = self.spec.name.as_str().as_bytes();
        name[..text.len()].copy_from_slice(text);
        let mut raw = RawVolume {
            magic: MAGIC.into(),
            version: VERSION.into(),
            flags: (if self.spec.read_only { FLAG_READ_ONLY } else { 0 }) | (if self.parent.is_some() { FLAG_CLONE } else { 0 }),
            // A name has at most 63 bytes.
            name_len: text.len() as u8,
            crc: 0.into(),
            id: self.id.0.into(),
            size_bytes: self.spec.size_bytes.into(),
            created_ms: self.created.0.into(),
            block_size: self.spec.block_size.get().into(),
            sco_size: self.spec.sco_size.get().into(),
            name,
            parent_volume: self.parent.map_or(0, |parent| parent.volume.0).into(),
            parent_snapshot: self.parent.map_or(0, |parent| parent.snapshot.0).into(),
        };
        raw.crc = crc32c(raw.as_bytes()).into();
        raw.as_bytes().to_vec()
    }

    /// Verifies and reads an object.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`VolumeIdentity::encode`] did not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let field = |field| FormatError::Field { format: FORMAT, field };
        let raw =
            RawVolume::read_from_bytes(bytes).map_err(|_| FormatError::Short { format: FORMAT, need: 128, have: bytes.len() })?;
        if raw.magic.get() != MAGIC {
            return Err(FormatError::Magic { format: FORMAT, found: raw.magic.get() });
        }
        let mut zeroed = raw;
        zeroed.crc = 0.into();
        if crc32c(zeroed.as_bytes()) != raw.crc.get() {
            return Err(FormatError::Checksum { format: FORMAT, part: "everything" });
        }
        if raw.version.get() != VERSION {
            return Err(FormatError::Version { format: FORMAT, found: raw.version.get() });
        }
        let name = raw.name.get(..usize::from(raw.name_len)).ok_or(field("name"))?;
        let name = std::str::from_utf8(name).map_err(|_| field("name"))?;
        Ok(Self {
            id: VolumeId(raw.id.get()),
            spec: VolumeSpec {
                name: VolumeName::new(name).map_err(|_| field("name"))?,
                size_bytes: raw.size_bytes.get(),
                block_size: BlockSize::new(u64::from(raw.block_size.get())).map_err(|_| field("block_size"))?,
                sco_size: ScoSize::new(u64::from(raw.sco_size.get())).map_err(|_| field("sco_size"))?,
                read_only: raw.flags & FLAG_READ_ONLY != 0,
            },
            created: Timestamp(raw.created_ms.get()),
            parent: (raw.flags & FLAG_CLONE != 0)
                .then_some(Parent { volume: VolumeId(raw.parent_volume.get()), snapshot: SnapshotId(raw.parent_snapshot.get()) }),
        })
    }
}
