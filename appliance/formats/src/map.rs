//! Map pages and the objects they are stored in.
//!
//! ```text
//! root ─→ directories of 1024 leaves ─→ leaves of 1024 blocks          object = page │ page │ … (up to 8 MiB)
//! ```
//! A page is a header (64 B) and a body; its CRC covers both, and the reference to it repeats the CRC. The header says whose page
//! it is, which, and where it was written, so that a misplaced, stale or rotten page is told from the right one. Bodies:
//! - leaf: indexes (u16 × n, ascending), locations (u64 × n), fingerprints (32 B × n), of blocks that are not zero;
//! - directory: indexes (u16 × n, ascending), references (32 B × n), of leaves that have a block;
//! - root: two counts (u32), directories (number and reference, 40 B each, ascending), objects with their use (32 B each, ascending).
//!
//! A reference or location names its volume by how many generations of clones lie between: 0 is the volume that the page belongs to, 1
//! what that one is a clone of, and so on. So a page means the same to every clone that reaches it.

use lamina_contract::{Epoch, Fingerprint, Location, VolumeId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::integrity::{FormatError, crc32c};

const FORMAT: &str = "map page";
const MAGIC: u64 = u64::from_le_bytes(*b"LAMMAPP\0");
const VERSION: u16 = 1;

/// Blocks of a leaf, and leaves of a directory.
pub const FANOUT: u16 = 1024;
/// Bytes of a page's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of an encoded [`MapRoot`].
pub const ROOT_BYTES: usize = 32;
/// No page is longer: the root of a volume of 64 TiB, fully mapped, has 3.5 MiB.
const MOST_BYTES: u32 = 64 << 20;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U64,
    version: U16,
    kind: u8,
    _reserved: u8,
    crc: U32,
    volume: U64,
    number: U64,
    object_epoch: U64,
    object_number: U64,
    offset: U32,
    length: U32,
    entries: U32,
    _reserved2: [u8; 4],
}
const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRef {
    epoch: U64,
    number: U64,
    offset: U32,
    length: U32,
    crc: U32,
    ancestor: u8,
    _reserved: [u8; 3],
}
const _: () = assert!(size_of::<RawRef>() == ROOT_BYTES);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawDirectory {
    number: U64,
    page: RawRef,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawUse {
    epoch: U64,
    number: U64,
    live: U64,
    total: U64,
}
const _: () = assert!(size_of::<RawDirectory>() == 40 && size_of::<RawUse>() == 32);

/// A map object's name within its volume: the epoch of its writer and a number that is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapObject {
    /// The writer's epoch.
    pub epoch: Epoch,
    /// Counts up.
    pub number: u64,
}

/// Where a page is, and what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRef {
    /// Whose object: generations of clones up from the volume that has the reference.
    pub ancestor: u8,
    /// The object that holds it.
    pub object: MapObject,
    /// First byte within the object.
    pub offset: u32,
    /// Bytes, header included.
    pub length: u32,
    /// The page's CRC.
    pub crc: u32,
}

/// The reference to a volume's root page: what a manifest holds of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MapRoot(pub PageRef);

/// What a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageKind {
    /// All directories, and the use of all objects. Its number is 0.
    Root,
    /// 1024 leaves.
    Directory,
    /// 1024 blocks.
    Leaf,
}

/// Whose page, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageId {
    /// The volume.
    pub volume: VolumeId,
    /// What it is.
    pub kind: PageKind,
    /// Which of its kind: first block address divided by 1024 (leaf) or 1,048,576 (directory).
    pub number: u64,
}

/// How much of an object is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectUse {
    /// The object.
    pub object: MapObject,
    /// Bytes of pages that the root reaches.
    pub live: u64,
    /// Bytes in all.
    pub total: u64,
}

impl PageRef {
    fn to_raw(self) -> RawRef {
        RawRef {
            epoch: self.object.epoch.0.into(),
            number: self.object.number.into(),
            offset: self.offset.into(),
            length: self.length.into(),
            crc: self.crc.into(),
            ancestor: self.ancestor,
            _reserved: [0; 3],
        }
    }

    fn from_raw(raw: &RawRef) -> Result<Self, FormatError> {
        let (offset, length) = (raw.offset.get(), raw.length.get());
        if (length as usize) < HEADER_BYTES || length > MOST_BYTES || offset.checked_add(length).is_none() {
            return Err(FormatError::Field { format: FORMAT, field: "reference" });
        }
        let object = MapObject { epoch: Epoch(raw.epoch.get()), number: raw.number.get() };
        Ok(Self { ancestor: raw.ancestor, object, offset, length, crc: raw.crc.get() })
    }

    /// The same as seen from `generations` of clones further down; `None` past the 254th.
    #[must_use]
    pub fn seen_from(self, generations: u8) -> Option<Self> {
        let ancestor = self.ancestor.checked_add(generations).filter(|&ancestor| ancestor < u8::MAX)?;
        Some(Self { ancestor, ..self })
    }

    /// The bytes of the object that hold the page.
    #[must_use]
    pub const fn range(&self) -> std::ops::Range<u64> {
        self.offset as u64..self.offset as u64 + self.length as u64
    }
}

impl MapRoot {
    /// As the manifest holds it; the manifest's checksum covers it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; ROOT_BYTES] {
        let mut out = [0; ROOT_BYTES];
        out.copy_from_slice(self.0.to_raw().as_bytes());
        out
    }

    /// The inverse of [`MapRoot::to_bytes`].
    ///
    /// # Errors
    /// [`FormatError`] for another length or a reference that makes no sense.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let short = FormatError::Short { format: "map root", need: ROOT_BYTES, have: bytes.len() };
        let raw = RawRef::read_from_bytes(bytes).map_err(|_| short)?;
        PageRef::from_raw(&raw).map(Self)
    }
}

impl PageKind {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Root => 1,
            Self::Directory => 2,
            Self::Leaf => 3,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Root),
            2 => Some(Self::Directory),
            3 => Some(Self::Leaf),
            _ => None,
        }
    }
}

/// Appends a page to an object's bytes: `body` appends the body and answers how many entries it has.
///
/// # Panics
/// When the object grows past 4 GiB or the page past 64 MiB: a caller's bug.
pub fn append_page(out: &mut Vec<u8>, object: MapObject, id: PageId, body: impl FnOnce(&mut Vec<u8>) -> usize) -> PageRef {
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    let entries = body(out);
    let length = out.len() - start;
    assert!(length <= MOST_BYTES as usize && u32::try_from(out.len()).is_ok(), "a map page of {length} bytes at {start}");
    let mut header = RawHeader {
        magic: MAGIC.into(),
        version: VERSION.into(),
        kind: id.kind.to_byte(),
        _reserved: 0,
        crc: 0.into(),
        volume: id.volume.0.into(),
        number: id.number.into(),
        object_epoch: object.epoch.0.into(),
        object_number: object.number.into(),
        offset: (start as u32).into(),
        length: (length as u32).into(),
        entries: (entries as u32).into(),
        _reserved2: [0; 4],
    };
    out[start..start + HEADER_BYTES].copy_from_slice(header.as_bytes());
    let crc = crc32c(&out[start..]);
    header.crc = crc.into();
    out[start..start + HEADER_BYTES].copy_from_slice(header.as_bytes());
    PageRef { ancestor: 0, object, offset: start as u32, length: length as u32, crc }
}

/// A page that was checked against its reference, or against itself.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// Whose and which.
    pub id: PageId,
    /// Where it says it is.
    pub at: PageRef,
    entries: u32,
    body: &'a [u8],
}

impl<'a> Page<'a> {
    /// The first page in `bytes`, which may go on behind it: checked against itself only.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`append_page`] did not write.
    pub fn first(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let short = |need| FormatError::Short { format: FORMAT, need, have: bytes.len() };
        let (header, _) = RawHeader::ref_from_prefix(bytes).map_err(|_| short(HEADER_BYTES))?;
        if header.magic.get() != MAGIC {
            return Err(FormatError::Magic { format: FORMAT, found: header.magic.get() });
        }
        if header.version.get() != VERSION {
            return Err(FormatError::Version { format: FORMAT, found: header.version.get() });
        }
        let raw = RawRef {
            epoch: header.object_epoch,
            number: header.object_number,
            offset: header.offset,
            length: header.length,
            crc: header.crc,
            ancestor: 0,
            _reserved: [0; 3],
        };
        let at = PageRef::from_raw(&raw)?;
        let page = bytes.get(..at.length as usize).ok_or(short(at.length as usize))?;
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        let mut zeroed = *header;
        zeroed.crc = 0.into();
        digest.update(zeroed.as_bytes());
        digest.update(&page[HEADER_BYTES..]);
        // CRC-32C's value fits 32 bits by definition.
        if digest.finalize() as u32 != at.crc {
            return Err(FormatError::Checksum { format: FORMAT, part: "page" });
        }
        let field = |field| FormatError::Field { format: FORMAT, field };
        let kind = PageKind::from_byte(header.kind).ok_or(field("kind"))?;
        let id = PageId { volume: VolumeId(header.volume.get()), kind, number: header.number.get() };
        let page = Self { id, at, entries: header.entries.get(), body: &page[HEADER_BYTES..] };
        page.check_body()?;
        Ok(page)
    }

    /// The page that `at` refers to and that must be `id`.
    ///
    /// # Errors
    /// [`FormatError`] when `bytes` are not exactly that page.
    pub fn read(bytes: &'a [u8], id: PageId, at: &PageRef) -> Result<Self, FormatError> {
        let page = Self::first(bytes)?;
        let field = |field| FormatError::Field { format: FORMAT, field };
        if bytes.len() != at.length as usize {
            return Err(field("length"));
        }
        if page.id != id {
            return Err(field("identity"));
        }
        // A page knows its volume, not how far away its reader is.
        if page.at != (PageRef { ancestor: 0, ..*at }) {
            return Err(field("place"));
        }
        Ok(Self { at: *at, ..page })
    }

    /// A page that [`Page::read`] has checked before and that only memory has held since.
    ///
    /// # Errors
    /// [`FormatError::Short`] for fewer bytes than a header.
    pub fn known(bytes: &'a [u8], id: PageId, at: &PageRef) -> Result<Self, FormatError> {
        let short = FormatError::Short { format: FORMAT, need: HEADER_BYTES, have: bytes.len() };
        let (header, body) = RawHeader::ref_from_prefix(bytes).map_err(|_| short)?;
        Ok(Self { id, at: *at, entries: header.entries.get(), body })
    }

    fn check_body(&self) -> Result<(), FormatError> {
        let field = |field| FormatError::Field { format: FORMAT, field };
        let size = match self.id.kind {
            PageKind::Leaf => 2 + 8 + 32,
            PageKind::Directory => 2 + size_of::<RawRef>(),
            PageKind::Root => return RootPage::parse(self).map(drop),
        };
        let entries = self.entries as usize;
        if entries > usize::from(FANOUT) || self.body.len() != entries * size {
            return Err(field("entries"));
        }
        let ascending = self.indexes().windows(2).all(|pair| pair[0].get() < pair[1].get());
        if !ascending || self.indexes().last().is_some_and(|last| last.get() >= FANOUT) {
            return Err(field("index"));
        }
        // A reference that cannot be read must not pass for a leaf of zeros.
        if self.id.kind == PageKind::Directory && self.leaves().count() != entries {
            return Err(field("reference"));
        }
        Ok(())
    }

    fn indexes(&self) -> &'a [U16] {
        let bytes = self.body.get(..self.entries as usize * 2).unwrap_or(&[]);
        <[U16]>::ref_from_bytes(bytes).unwrap_or(&[])
    }

    fn position(&self, index: u16) -> Option<usize> {
        self.indexes().binary_search_by_key(&index, |entry| entry.get()).ok()
    }

    /// How many blocks, leaves or directories and objects it has.
    #[must_use]
    pub const fn entries(&self) -> u32 {
        self.entries
    }

    /// A leaf's block; `None` is a zero block.
    #[must_use]
    pub fn block(&self, index: u16) -> Option<(Location, Fingerprint)> {
        debug_assert_eq!(self.id.kind, PageKind::Leaf);
        self.block_at(self.position(index)?).map(|(_, location, fingerprint)| (location, fingerprint))
    }

    fn block_at(&self, position: usize) -> Option<(u16, Location, Fingerprint)> {
        let entries = self.entries as usize;
        let index = self.indexes().get(position)?.get();
        let bits = self.body.get(entries * 2 + position * 8..)?.first_chunk::<8>()?;
        let print = self.body.get(entries * 10 + position * 32..)?.first_chunk::<32>()?;
        Some((index, Location::from_bits(u64::from_le_bytes(*bits)), Fingerprint(*print)))
    }

    /// All blocks of a leaf, ascending.
    pub fn blocks(&self) -> impl Iterator<Item = (u16, Location, Fingerprint)> + '_ {
        (0..self.entries as usize).map_while(|position| self.block_at(position))
    }

    /// A directory's leaf; `None` when all its blocks are zero.
    #[must_use]
    pub fn leaf(&self, index: u16) -> Option<PageRef> {
        debug_assert_eq!(self.id.kind, PageKind::Directory);
        self.leaf_at(self.position(index)?).map(|(_, page)| page)
    }

    fn leaf_at(&self, position: usize) -> Option<(u16, PageRef)> {
        let index = self.indexes().get(position)?.get();
        let at = self.entries as usize * 2 + position * size_of::<RawRef>();
        let (raw, _) = RawRef::ref_from_prefix(self.body.get(at..)?).ok()?;
        PageRef::from_raw(raw).ok().map(|page| (index, page))
    }

    /// All leaves of a directory, ascending.
    pub fn leaves(&self) -> impl Iterator<Item = (u16, PageRef)> + '_ {
        (0..self.entries as usize).map_while(|position| self.leaf_at(position))
    }
}

/// Appends a leaf's body: `blocks` ascend by index.
pub fn leaf_body(out: &mut Vec<u8>, blocks: &[(u16, Location, Fingerprint)]) -> usize {
    out.reserve(blocks.len() * 42);
    blocks.iter().for_each(|(index, ..)| out.extend_from_slice(&index.to_le_bytes()));
    blocks.iter().for_each(|(_, location, _)| out.extend_from_slice(&location.to_bits().to_le_bytes()));
    blocks.iter().for_each(|(.., fingerprint)| out.extend_from_slice(&fingerprint.0));
    blocks.len()
}

/// Appends a directory's body: `leaves` ascend by index.
pub fn directory_body<'a>(out: &mut Vec<u8>, leaves: impl Iterator<Item = (&'a u16, &'a PageRef)> + Clone) -> usize {
    leaves.clone().for_each(|(index, _)| out.extend_from_slice(&index.to_le_bytes()));
    leaves.map(|(_, page)| out.extend_from_slice(page.to_raw().as_bytes())).count()
}

/// What a root page says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RootPage {
    /// Directories that have a leaf, ascending by number.
    pub directories: Vec<(u64, PageRef)>,
    /// Objects that have a live page, ascending.
    pub objects: Vec<ObjectUse>,
}

impl RootPage {
    /// Bytes of the page, header included.
    #[must_use]
    pub const fn page_bytes(directories: usize, objects: usize) -> usize {
        HEADER_BYTES + 8 + directories * size_of::<RawDirectory>() + objects * size_of::<RawUse>()
    }

    /// Appends the body.
    pub fn body(&self, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(&(self.directories.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.objects.len() as u32).to_le_bytes());
        for (number, page) in &self.directories {
            out.extend_from_slice(RawDirectory { number: (*number).into(), page: page.to_raw() }.as_bytes());
        }
        for entry in &self.objects {
            let raw = RawUse {
                epoch: entry.object.epoch.0.into(),
                number: entry.object.number.into(),
                live: entry.live.into(),
                total: entry.total.into(),
            };
            out.extend_from_slice(raw.as_bytes());
        }
        self.directories.len() + self.objects.len()
    }

    /// Reads a root's body.
    ///
    /// # Errors
    /// [`FormatError`] for counts that do not fit the body, or entries out of order.
    pub fn parse(page: &Page<'_>) -> Result<Self, FormatError> {
        let field = |field| FormatError::Field { format: FORMAT, field };
        if page.id.kind != PageKind::Root {
            return Err(field("kind"));
        }
        let (counts, rest) = <[U32; 2]>::ref_from_prefix(page.body).map_err(|_| field("counts"))?;
        let (directories, objects) = (counts[0].get() as usize, counts[1].get() as usize);
        // A page has at most 64 MiB, checked before: neither count times its size can overflow once it fits.
        let split = directories.checked_mul(size_of::<RawDirectory>()).filter(|&at| at <= rest.len()).ok_or(field("counts"))?;
        let (first, second) = rest.split_at(split);
        if objects.checked_mul(size_of::<RawUse>()) != Some(second.len()) || page.entries as usize != directories + objects {
            return Err(field("counts"));
        }
        let raw = <[RawDirectory]>::ref_from_bytes(first).map_err(|_| field("directories"))?;
        let directories = raw
            .iter()
            .map(|entry| PageRef::from_raw(&entry.page).map(|page| (entry.number.get(), page)))
            .collect::<Result<Vec<_>, _>>()?;
        let raw = <[RawUse]>::ref_from_bytes(second).map_err(|_| field("objects"))?;
        let objects: Vec<ObjectUse> = raw
            .iter()
            .map(|entry| ObjectUse {
                object: MapObject { epoch: Epoch(entry.epoch.get()), number: entry.number.get() },
                live: entry.live.get(),
                total: entry.total.get(),
            })
            .collect();
        if !directories.is_sorted_by(|a, b| a.0 < b.0) || !objects.is_sorted_by(|a, b| a.object < b.object) {
            return Err(field("order"));
        }
        if objects.iter().any(|entry| entry.live > entry.total || entry.total > u64::from(u32::MAX)) {
            return Err(field("use"));
        }
        Ok(Self { directories, objects })
    }
}
