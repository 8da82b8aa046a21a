//! A manifest generation: the numbered root of a volume's namespace.
//!
//! ```text
//! header (144 B) │ map root (opaque here, see `map`) │ term (16 B) …SCO terms… │ …TLog terms…
//! ```
//! One CRC covers everything. A term (epoch, first number) says under which epoch the objects from that number on have their
//! keys, so that a location, which names no epoch, finds its object.

use lamina_contract::{Epoch, Generation, ScoNumber, Timestamp, TlogNumber, VolumeId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::integrity::{FormatError, crc32c};

const FORMAT: &str = "manifest";
const MAGIC: u64 = u64::from_le_bytes(*b"LAMMANI\0");
const VERSION: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U64,
    version: U16,
    root_bytes: U16,
    crc: U32,
    volume: U64,
    generation: U64,
    epoch: U64,
    time_ms: U64,
    size_bytes: U64,
    last_sco: U64,
    last_tlog: U64,
    checkpoint_tlog: U64,
    next_map_object: U64,
    data_blocks: U64,
    reference_blocks: U64,
    sco_terms: U32,
    tlog_terms: U32,
    catalog_generation: U64,
    catalog_epoch: U64,
    catalog_crc: U32,
    catalog_bytes: U32,
    _reserved: [u8; 8],
}
const _: () = assert!(size_of::<RawHeader>() == 144);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawTerm {
    epoch: U64,
    first: U64,
}

/// Objects numbered from `first` on carry `epoch` in their keys, up to the next term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// First number written in it.
    pub first: u64,
}

/// The catalog that a manifest belongs with: where it is and what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogRef {
    /// The first manifest that named it; never 0.
    pub generation: Generation,
    /// That manifest's writer.
    pub epoch: Epoch,
    /// Its CRC.
    pub crc: u32,
    /// Its length.
    pub bytes: u32,
}

/// The root of a namespace at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Whose.
    pub volume: VolumeId,
    /// Counts up by one.
    pub generation: Generation,
    /// Who wrote it.
    pub epoch: Epoch,
    /// When.
    pub time: Timestamp,
    /// The volume's capacity.
    pub size_bytes: u64,
    /// Every SCO up to this one is stored (or was empty).
    pub last_sco: ScoNumber,
    /// Every TLog up to this one is stored.
    pub last_tlog: TlogNumber,
    /// The map pages hold what TLogs up to this one yield.
    pub checkpoint_tlog: TlogNumber,
    /// The first map object number never used.
    pub next_map_object: u64,
    /// Blocks that went into SCOs, ever.
    pub data_blocks: u64,
    /// Blocks that were logged as references, ever.
    pub reference_blocks: u64,
    /// Encoded root of the map pages; empty before the first checkpoint.
    pub map_root: Vec<u8>,
    /// Snapshots and history; `None` while there are none.
    pub catalog: Option<CatalogRef>,
    /// Terms of the SCOs, ascending.
    pub sco_terms: Vec<Term>,
    /// Terms of the TLogs, ascending.
    pub tlog_terms: Vec<Term>,
}

impl Manifest {
    /// The object's bytes.
    ///
    /// # Panics
    /// With a map root over 64 KiB: a caller's bug.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.map_root.len() <= usize::from(u16::MAX), "map root of {} bytes", self.map_root.len());
        let mut header = RawHeader {
            magic: MAGIC.into(),
            version: VERSION.into(),
            root_bytes: (self.map_root.len() as u16).into(),
            crc: 0.into(),
            volume: self.volume.0.into(),
            generation: self.generation.0.into(),
            epoch: self.epoch.0.into(),
            time_ms: self.time.0.into(),
            size_bytes: self.size_bytes.into(),
            last_sco: self.last_sco.0.into(),
            last_tlog: self.last_tlog.0.into(),
            checkpoint_tlog: self.checkpoint_tlog.0.into(),
            next_map_object: self.next_map_object.into(),
            data_blocks: self.data_blocks.into(),
            reference_blocks: self.reference_blocks.into(),
            sco_terms: (self.sco_terms.len() as u32).into(),
            tlog_terms: (self.tlog_terms.len() as u32).into(),
            catalog_generation: self.catalog.map_or(0, |catalog| catalog.generation.0).into(),
            catalog_epoch: self.catalog.map_or(0, |catalog| catalog.epoch.0).into(),
            catalog_crc: self.catalog.map_or(0, |catalog| catalog.crc).into(),
            catalog_bytes: self.catalog.map_or(0, |catalog| catalog.bytes).into(),
            _reserved: [0; 8],
        };
        let mut out = header.as_bytes().to_vec();
        out.extend_from_slice(&self.map_root);
        for term in self.sco_terms.iter().chain(&self.tlog_terms) {
            out.extend_from_slice(RawTerm { epoch: term.epoch.0.into(), first: term.first.into() }.as_bytes());
        }
        header.crc = crc32c(&out).into();
        out[..size_of::<RawHeader>()].copy_from_slice(header.as_bytes());
        out
    }

    /// Verifies and reads an object.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`Manifest::encode`] did not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let short = |need| FormatError::Short { format: FORMAT, need, have: bytes.len() };
        let (header, body) = RawHeader::read_from_prefix(bytes).map_err(|_| short(size_of::<RawHeader>()))?;
        if header.magic.get() != MAGIC {
            return Err(FormatError::Magic { format: FORMAT, found: header.magic.get() });
        }
        if header.version.get() != VERSION {
            return Err(FormatError::Version { format: FORMAT, found: header.version.get() });
        }
        let root_bytes = usize::from(header.root_bytes.get());
        let (scos, tlogs) = (header.sco_terms.get() as usize, header.tlog_terms.get() as usize);
        let need = root_bytes + (scos + tlogs) * size_of::<RawTerm>();
        if body.len() != need {
            return Err(short(size_of::<RawHeader>() + need));
        }
        let mut covered = bytes.to_vec();
        let mut zeroed = header;
        zeroed.crc = 0.into();
        covered[..size_of::<RawHeader>()].copy_from_slice(zeroed.as_bytes());
        if crc32c(&covered) != header.crc.get() {
            return Err(FormatError::Checksum { format: FORMAT, part: "everything" });
        }
        let catalog = CatalogRef {
            generation: Generation(header.catalog_generation.get()),
            epoch: Epoch(header.catalog_epoch.get()),
            crc: header.catalog_crc.get(),
            bytes: header.catalog_bytes.get(),
        };
        let (root, terms) = body.split_at(root_bytes);
        let terms: Vec<Term> = terms
            .chunks_exact(size_of::<RawTerm>())
            .filter_map(|chunk| RawTerm::read_from_bytes(chunk).ok())
            .map(|raw| Term { epoch: Epoch(raw.epoch.get()), first: raw.first.get() })
            .collect();
        let (sco_terms, tlog_terms) = terms.split_at(scos);
        Ok(Self {
            volume: VolumeId(header.volume.get()),
            generation: Generation(header.generation.get()),
            epoch: Epoch(header.epoch.get()),
            time: Timestamp(header.time_ms.get()),
            size_bytes: header.size_bytes.get(),
            last_sco: ScoNumber(header.last_sco.get()),
            last_tlog: TlogNumber(header.last_tlog.get()),
            checkpoint_tlog: TlogNumber(header.checkpoint_tlog.get()),
            next_map_object: header.next_map_object.get(),
            data_blocks: header.data_blocks.get(),
            reference_blocks: header.reference_blocks.get(),
            map_root: root.to_vec(),
            catalog: (catalog.generation != Generation(0)).then_some(catalog),
            sco_terms: sco_terms.to_vec(),
            tlog_terms: tlog_terms.to_vec(),
        })
    }
}
