//! A catalog: a volume's snapshots, and the map roots of its recent past. A manifest names the one that belongs with it.
//!
//! ```text
//! header (64 B) │ snapshot (96 B, then its texts) │ … │ moment (64 B) │ …
//! ```
//! Texts of a snapshot: name, description, then per label its key's length (u8), its value's length (u8), key, value. One CRC covers
//! everything; the manifest repeats it.

use lamina_contract::snapshot::{MOST_DESCRIPTION, MOST_LABELS};
use lamina_contract::{
    Epoch, Generation, Labels, ScoNumber, SnapshotId, SnapshotName, SnapshotNote, Timestamp, TlogNumber, VolumeId,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::integrity::{FormatError, crc32c};
use crate::map::{MapRoot, ROOT_BYTES};

const FORMAT: &str = "catalog";
const MAGIC: u64 = u64::from_le_bytes(*b"LAMCATL\0");
const VERSION: u16 = 1;

const FLAG_PINNED: u8 = 1;
const FLAG_AUTOMATIC: u8 = 2;
const FLAG_ROOT: u8 = 4;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U64,
    version: U16,
    _reserved: [u8; 2],
    crc: U32,
    volume: U64,
    generation: U64,
    epoch: U64,
    snapshots: U32,
    moments: U32,
    _reserved2: [u8; 16],
}
const _: () = assert!(size_of::<RawHeader>() == 64);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSnapshot {
    id: U64,
    created_ms: U64,
    size_bytes: U64,
    last_sco: U64,
    last_tlog: U64,
    root: [u8; ROOT_BYTES],
    flags: u8,
    name_bytes: u8,
    labels: U16,
    description_bytes: U16,
    _reserved: [u8; 18],
}
const _: () = assert!(size_of::<RawSnapshot>() == 96);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawMoment {
    time_ms: U64,
    tlog: U64,
    size_bytes: U64,
    root: [u8; ROOT_BYTES],
    flags: u8,
    _reserved: [u8; 7],
}
const _: () = assert!(size_of::<RawMoment>() == 64);

/// A snapshot whose blocks and map are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSnapshot {
    /// What is said of it.
    pub note: SnapshotNote,
    /// The last container that its entries are in.
    pub last_sco: ScoNumber,
    /// The last TLog that its entries are in.
    pub last_tlog: TlogNumber,
    /// Its map; `None` is all zeros.
    pub map_root: Option<MapRoot>,
}

/// A map root of the past, from which any later moment is reached by TLogs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastRoot {
    /// Of the last entry that it knows.
    pub time: Timestamp,
    /// The map pages hold what TLogs up to this one yield.
    pub tlog: TlogNumber,
    /// The volume's capacity then.
    pub size_bytes: u64,
    /// The map; `None` is all zeros.
    pub map_root: Option<MapRoot>,
}

/// See the file's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    /// Whose.
    pub volume: VolumeId,
    /// The first manifest that names it.
    pub generation: Generation,
    /// That manifest's writer.
    pub epoch: Epoch,
    /// In the order in which they were taken.
    pub snapshots: Vec<StoredSnapshot>,
    /// Oldest first; empty unless the volume keeps its past.
    pub past: Vec<PastRoot>,
}

fn root_bytes(root: Option<MapRoot>) -> [u8; ROOT_BYTES] {
    root.map_or([0; ROOT_BYTES], MapRoot::to_bytes)
}

fn root_of(flags: u8, bytes: &[u8]) -> Result<Option<MapRoot>, FormatError> {
    (flags & FLAG_ROOT != 0).then(|| MapRoot::from_bytes(bytes)).transpose()
}

/// Bytes that are taken from the front, or the object is too short.
struct Rest<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl<'a> Rest<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], FormatError> {
        let at = self.len - self.bytes.len();
        let short = FormatError::Short { format: FORMAT, need: at + bytes, have: self.len };
        let (taken, rest) = self.bytes.split_at_checked(bytes).ok_or(short)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn text(&mut self, bytes: usize, field: &'static str) -> Result<String, FormatError> {
        let taken = self.take(bytes)?;
        std::str::from_utf8(taken).map(str::to_owned).map_err(|_| FormatError::Field { format: FORMAT, field })
    }

    fn raw<T: FromBytes>(&mut self) -> Result<T, FormatError> {
        let taken = self.take(size_of::<T>())?;
        T::read_from_bytes(taken).map_err(|_| FormatError::Field { format: FORMAT, field: "entry" })
    }
}

impl Catalog {
    /// The object's bytes, and their CRC for the manifest.
    ///
    /// # Panics
    /// With texts longer than their checks allow: a caller's bug.
    #[must_use]
    pub fn encode(&self) -> (Vec<u8>, u32) {
        let mut header = RawHeader {
            magic: MAGIC.into(),
            version: VERSION.into(),
            _reserved: [0; 2],
            crc: 0.into(),
            volume: self.volume.0.into(),
            generation: self.generation.0.into(),
            epoch: self.epoch.0.into(),
            snapshots: (self.snapshots.len() as u32).into(),
            moments: (self.past.len() as u32).into(),
            _reserved2: [0; 16],
        };
        let mut out = header.as_bytes().to_vec();
        for snapshot in &self.snapshots {
            snapshot.append(&mut out);
        }
        for moment in &self.past {
            let raw = RawMoment {
                time_ms: moment.time.0.into(),
                tlog: moment.tlog.0.into(),
                size_bytes: moment.size_bytes.into(),
                root: root_bytes(moment.map_root),
                flags: if moment.map_root.is_some() { FLAG_ROOT } else { 0 },
                _reserved: [0; 7],
            };
            out.extend_from_slice(raw.as_bytes());
        }
        let crc = crc32c(&out);
        header.crc = crc.into();
        out[..size_of::<RawHeader>()].copy_from_slice(header.as_bytes());
        (out, crc)
    }

    /// Verifies and reads an object; also gives its CRC, which the manifest must repeat.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`Catalog::encode`] did not write.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u32), FormatError> {
        let mut rest = Rest { bytes, len: bytes.len() };
        let header: RawHeader = rest.raw()?;
        if header.magic.get() != MAGIC {
            return Err(FormatError::Magic { format: FORMAT, found: header.magic.get() });
        }
        if header.version.get() != VERSION {
            return Err(FormatError::Version { format: FORMAT, found: header.version.get() });
        }
        let mut covered = bytes.to_vec();
        let mut zeroed = header;
        zeroed.crc = 0.into();
        covered[..size_of::<RawHeader>()].copy_from_slice(zeroed.as_bytes());
        if crc32c(&covered) != header.crc.get() {
            return Err(FormatError::Checksum { format: FORMAT, part: "everything" });
        }
        // Counts are believed only as far as bytes follow: each entry takes some.
        let snapshots = (0..header.snapshots.get()).map(|_| StoredSnapshot::take(&mut rest)).collect::<Result<_, _>>()?;
        let past = (0..header.moments.get()).map(|_| take_moment(&mut rest)).collect::<Result<_, _>>()?;
        if !rest.bytes.is_empty() {
            return Err(FormatError::Field { format: FORMAT, field: "length" });
        }
        let catalog = Self {
            volume: VolumeId(header.volume.get()),
            generation: Generation(header.generation.get()),
            epoch: Epoch(header.epoch.get()),
            snapshots,
            past,
        };
        Ok((catalog, header.crc.get()))
    }
}

fn take_moment(rest: &mut Rest<'_>) -> Result<PastRoot, FormatError> {
    let raw: RawMoment = rest.raw()?;
    Ok(PastRoot {
        time: Timestamp(raw.time_ms.get()),
        tlog: TlogNumber(raw.tlog.get()),
        size_bytes: raw.size_bytes.get(),
        map_root: root_of(raw.flags, &raw.root)?,
    })
}

impl StoredSnapshot {
    fn append(&self, out: &mut Vec<u8>) {
        let note = &self.note;
        let name = note.name.as_str();
        assert!(note.labels.len() <= MOST_LABELS && note.description.len() <= MOST_DESCRIPTION, "texts of {}", note.id);
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let raw = RawSnapshot {
            id: note.id.0.into(),
            created_ms: note.created.0.into(),
            size_bytes: note.size_bytes.into(),
            last_sco: self.last_sco.0.into(),
            last_tlog: self.last_tlog.0.into(),
            root: root_bytes(self.map_root),
            flags: flag(note.pinned, FLAG_PINNED) | flag(note.automatic, FLAG_AUTOMATIC) | flag(self.map_root.is_some(), FLAG_ROOT),
            // A name has at most 63 bytes.
            name_bytes: name.len() as u8,
            labels: (note.labels.len() as u16).into(),
            description_bytes: (note.description.len() as u16).into(),
            _reserved: [0; 18],
        };
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(note.description.as_bytes());
        for (key, value) in &note.labels {
            // Keys have at most 63 bytes, values at most 255.
            out.extend_from_slice(&[key.len() as u8, value.len() as u8]);
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(value.as_bytes());
        }
    }

    fn take(rest: &mut Rest<'_>) -> Result<Self, FormatError> {
        let field = |field| FormatError::Field { format: FORMAT, field };
        let raw: RawSnapshot = rest.raw()?;
        if usize::from(raw.labels.get()) > MOST_LABELS || usize::from(raw.description_bytes.get()) > MOST_DESCRIPTION {
            return Err(field("texts"));
        }
        let name = rest.text(usize::from(raw.name_bytes), "name")?;
        let description = rest.text(usize::from(raw.description_bytes.get()), "description")?;
        let mut labels = Labels::new();
        for _ in 0..raw.labels.get() {
            let &[key, value] = rest.take(2)?.first_chunk().ok_or(field("label"))?;
            labels.insert(rest.text(usize::from(key), "label")?, rest.text(usize::from(value), "label")?);
        }
        let note = SnapshotNote {
            id: SnapshotId(raw.id.get()),
            name: SnapshotName::new(&name).map_err(|_| field("name"))?,
            created: Timestamp(raw.created_ms.get()),
            size_bytes: raw.size_bytes.get(),
            labels,
            description,
            pinned: raw.flags & FLAG_PINNED != 0,
            automatic: raw.flags & FLAG_AUTOMATIC != 0,
        };
        Ok(Self {
            note,
            last_sco: ScoNumber(raw.last_sco.get()),
            last_tlog: TlogNumber(raw.last_tlog.get()),
            map_root: root_of(raw.flags, &raw.root)?,
        })
    }
}
