//! A fragment: one of the Y pieces of a stripe, as it lies on a target. Header, then data.
//!
//! ```text
//! 0        512              512 + 4·pages    header_len (multiple of 4 KiB)
//! | fixed + key | CRC-32C of each data page | zeros | data: `data_len` bytes, multiple of 4 KiB |
//! ```
//!
//! Invariants: the header's CRC covers every header byte (its own field as zeros); each data page has its CRC in the table, so a
//! range of pages is verified without the rest; `data_crc` covers all data. Header and table are immutable: another content is
//! another stripe id. A crash leaves a fragment whole or absent (stores put atomically); where a store lies, the CRCs tell.
//! Drives alone suffice to rebuild: key, stripe, policy, lengths and matrix stand in every fragment.

use crc_fast::{CrcAlgorithm, Digest};
use lamina_contract::Policy;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::drive::PoolId;
use crate::integrity::{FormatError, crc32c};

const FORMAT: &str = "fragment";
const MAGIC: u64 = u64::from_le_bytes(*b"LAMFRAG\0");
const VERSION: u16 = 1;

/// Bytes that one entry of the CRC table covers, and the unit of every length in a fragment.
pub const PAGE: usize = 4096;

/// Longest object key in bytes.
pub const KEY_MAX: usize = 255;

/// Most pages of one fragment: 4 GiB, whose table is 4 MiB. A bound for decoders, far above any object.
pub const PAGES_MAX: u32 = 1 << 20;

/// One attempt to put one object: 128 bits, never used again. The upper half orders attempts on the same key (later is larger),
/// the lower half is random. A reader only ever combines fragments of one stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StripeId(pub u128);

impl StripeId {
    /// Joins the order among stripes of one key and the nonce.
    #[must_use]
    pub const fn new(order: u64, nonce: u64) -> Self {
        Self(((order as u128) << 64) | nonce as u128)
    }

    /// What later attempts exceed.
    #[must_use]
    pub const fn order(self) -> u64 {
        (self.0 >> 64) as u64
    }
}

/// Which generator matrix made the parity. Recorded so that another code can be introduced without guessing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum MatrixId {
    /// X = 1: every fragment is a copy.
    Copies = 0,
    /// GF(2^8) mod 0x11D, the Vandermonde matrix of Y rows times the inverse of its upper X rows (as crate reed-solomon-erasure 6).
    VandermondeSystematic = 1,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawFragment {
    magic: U64,
    version: U16,
    matrix: U16,
    data: u8,
    parity: u8,
    index: u8,
    key_len: u8,
    header_len: U32,
    header_crc: U32,
    data_len: U64,
    object_len: U64,
    stripe: U128,
    pool: U128,
    data_crc: U32,
    pages: U32,
    _reserved: [u8; 176],
    key: [u8; 256],
}
const FIXED: usize = 512;
const _: () = assert!(size_of::<RawFragment>() == FIXED);
const _: () = assert!(std::mem::offset_of!(RawFragment, header_crc) == 20);
const _: () = assert!(std::mem::offset_of!(RawFragment, stripe) == 40);
const _: () = assert!(std::mem::offset_of!(RawFragment, pool) == 56);
const _: () = assert!(std::mem::offset_of!(RawFragment, data_crc) == 72);
const _: () = assert!(std::mem::offset_of!(RawFragment, key) == 256);

/// Length of the header before `pages` pages of data: the table fits behind 512 fixed bytes; rounded up to a page.
#[must_use]
pub const fn header_len(pages: u32) -> usize {
    // 1 MiB of data has 256 pages: 512 + 1024 bytes fit one page; up to 896 pages (3.5 MiB) do.
    (FIXED + 4 * pages as usize).next_multiple_of(PAGE)
}

/// The checksums of a fragment's data, page by page and as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FragmentSums {
    pages: Vec<u32>,
    whole: u32,
}

/// Computes [`FragmentSums`] over data that comes in pieces.
#[derive(Debug)]
pub struct SumBuilder {
    pages: Vec<u32>,
    whole: Digest,
}

impl Default for SumBuilder {
    fn default() -> Self {
        Self { pages: Vec::new(), whole: Digest::new(CrcAlgorithm::Crc32Iscsi) }
    }
}

impl SumBuilder {
    /// Takes the next piece in. Both checksums of a page are made while it is in the first-level cache.
    ///
    /// # Panics
    /// When the piece is not a whole number of pages: the caller cuts and pads.
    pub fn update(&mut self, piece: &[u8]) {
        assert!(piece.len().is_multiple_of(PAGE), "a fragment's data comes in whole pages");
        self.pages.reserve(piece.len() / PAGE);
        for page in piece.chunks_exact(PAGE) {
            self.pages.push(crc32c(page));
            self.whole.update(page);
        }
    }

    /// All pieces are in.
    #[must_use]
    pub fn finish(self) -> FragmentSums {
        // CRC-32C fits 32 bits by definition.
        FragmentSums { pages: self.pages, whole: self.whole.finalize() as u32 }
    }
}

/// A header that was made here or whose checksum held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FragmentHeader {
    key: String,
    stripe: StripeId,
    pool: PoolId,
    policy: Policy,
    index: u8,
    matrix: MatrixId,
    object_len: u64,
    sums: FragmentSums,
}

/// What all fragments of a stripe have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeDescription {
    /// The object's key; 1 to 255 bytes.
    pub key: String,
    /// This attempt to put it.
    pub stripe: StripeId,
    /// The pool its targets belong to.
    pub pool: PoolId,
    /// X and P.
    pub policy: Policy,
    /// How parity was made.
    pub matrix: MatrixId,
    /// Bytes of the object; the last data fragments are padded with zeros.
    pub object_len: u64,
}

impl FragmentHeader {
    /// The header of fragment `index` of a stripe, whose data has `sums`.
    ///
    /// # Errors
    /// [`FormatError::Field`] for a key, index or length that the format cannot hold.
    pub fn new(stripe: &StripeDescription, index: u8, sums: FragmentSums) -> Result<Self, FormatError> {
        let header = Self {
            key: stripe.key.clone(),
            stripe: stripe.stripe,
            pool: stripe.pool,
            policy: stripe.policy,
            index,
            matrix: stripe.matrix,
            object_len: stripe.object_len,
            sums,
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), FormatError> {
        let field = |field| Err(FormatError::Field { format: FORMAT, field });
        if self.key.is_empty() || self.key.len() > KEY_MAX {
            return field("key");
        }
        if usize::from(self.index) >= self.policy.total() {
            return field("index");
        }
        if (self.matrix == MatrixId::Copies) != (self.policy.data() == 1) {
            return field("matrix");
        }
        let pages = self.sums.pages.len() as u64;
        if pages > u64::from(PAGES_MAX) || fragment_pages(self.object_len, self.policy.data()) != pages {
            return field("object_len");
        }
        Ok(())
    }

    /// The object's key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The stripe it belongs to.
    #[must_use]
    pub const fn stripe(&self) -> StripeId {
        self.stripe
    }

    /// The pool it belongs to.
    #[must_use]
    pub const fn pool(&self) -> PoolId {
        self.pool
    }

    /// X and P of its stripe.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// Its place in the stripe: 0..X hold data, X..Y parity.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index as usize
    }

    /// How parity was made.
    #[must_use]
    pub const fn matrix(&self) -> MatrixId {
        self.matrix
    }

    /// Bytes of the object.
    #[must_use]
    pub const fn object_len(&self) -> u64 {
        self.object_len
    }

    /// Bytes of the header; the data begins there.
    #[must_use]
    pub fn header_len(&self) -> usize {
        header_len(self.sums.pages.len() as u32)
    }

    /// Bytes of data behind the header.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        (self.sums.pages.len() * PAGE) as u64
    }

    /// CRC-32C of all data.
    #[must_use]
    pub const fn data_crc(&self) -> u32 {
        self.sums.whole
    }

    /// Bytes of memory it holds, for caches with a bound.
    #[must_use]
    pub fn footprint(&self) -> usize {
        size_of::<Self>() + self.key.len() + 4 * self.sums.pages.len()
    }

    /// The header's bytes, to be followed by the data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut key = [0; 256];
        key[..self.key.len()].copy_from_slice(self.key.as_bytes());
        let raw = RawFragment {
            magic: MAGIC.into(),
            version: VERSION.into(),
            matrix: (self.matrix as u16).into(),
            // X + P ≤ 255 by Policy.
            data: self.policy.data() as u8,
            parity: self.policy.parity() as u8,
            index: self.index,
            key_len: self.key.len() as u8,
            header_len: (self.header_len() as u32).into(),
            header_crc: 0.into(),
            data_len: self.data_len().into(),
            object_len: self.object_len.into(),
            stripe: self.stripe.0.into(),
            pool: self.pool.0.into(),
            data_crc: self.sums.whole.into(),
            pages: (self.sums.pages.len() as u32).into(),
            _reserved: [0; 176],
            key,
        };
        let mut bytes = Vec::with_capacity(self.header_len());
        bytes.extend_from_slice(raw.as_bytes());
        for crc in &self.sums.pages {
            bytes.extend_from_slice(&crc.to_le_bytes());
        }
        bytes.resize(self.header_len(), 0);
        let crc = crc32c(&bytes);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Verifies data pages beginning at byte `offset` of the data.
    ///
    /// # Errors
    /// [`FormatError::Field`] when the range is not whole pages inside the fragment, [`FormatError::Checksum`] when a page changed.
    pub fn verify_pages(&self, offset: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let range = FormatError::Field { format: FORMAT, field: "range" };
        let page = PAGE as u64;
        if !offset.is_multiple_of(page) || !bytes.len().is_multiple_of(PAGE) {
            return Err(range);
        }
        let first = usize::try_from(offset / page).map_err(|_| range)?;
        let end = first.checked_add(bytes.len() / PAGE).ok_or(range)?;
        let expected = self.sums.pages.get(first..end).ok_or(range)?;
        if expected.iter().zip(bytes.chunks_exact(PAGE)).all(|(&crc, page)| crc == crc32c(page)) {
            Ok(())
        } else {
            Err(FormatError::Checksum { format: FORMAT, part: "a data page" })
        }
    }

    /// Verifies all data, page by page and as a whole.
    ///
    /// # Errors
    /// As [`FragmentHeader::verify_pages`], and for a wrong length.
    pub fn verify_all(&self, bytes: &[u8]) -> Result<(), FormatError> {
        if bytes.len() as u64 != self.data_len() {
            return Err(FormatError::Short { format: FORMAT, need: self.sums.pages.len() * PAGE, have: bytes.len() });
        }
        self.verify_pages(0, bytes)?;
        if crc32c(bytes) == self.sums.whole { Ok(()) } else { Err(FormatError::Checksum { format: FORMAT, part: "the data" }) }
    }
}

/// Pages of each fragment of an object: ceil(L / X) rounded up to a page; at least one, so that an empty object has fragments too.
#[must_use]
pub const fn fragment_pages(object_len: u64, data_fragments: usize) -> u64 {
    let share = object_len.div_ceil(data_fragments as u64);
    let pages = share.div_ceil(PAGE as u64);
    if pages == 0 { 1 } else { pages }
}

/// Header bytes as a target gave them: nothing is known of them yet.
#[derive(Debug, Clone, Copy)]
pub struct UnverifiedHeader<'a>(&'a [u8]);

impl<'a> UnverifiedHeader<'a> {
    /// Takes the first bytes of a fragment; more than the header may be given.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Verifies and reads the header.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`FragmentHeader::encode`] did not write.
    pub fn verify(self) -> Result<FragmentHeader, FormatError> {
        let bytes = self.0;
        let field = |field| FormatError::Field { format: FORMAT, field };
        let short = |need| FormatError::Short { format: FORMAT, need, have: bytes.len() };
        let (raw, _) = RawFragment::read_from_prefix(bytes).map_err(|_| short(FIXED))?;
        if raw.magic.get() != MAGIC {
            return Err(FormatError::Magic { format: FORMAT, found: raw.magic.get() });
        }
        // Bounded before it is used for anything: at most 4 MiB of table.
        let pages = raw.pages.get();
        if pages > PAGES_MAX || raw.header_len.get() as usize != header_len(pages) {
            return Err(field("header_len"));
        }
        let header = bytes.get(..header_len(pages)).ok_or_else(|| short(header_len(pages)))?;
        let (head, tail) = header.split_at(20);
        let mut whole = Digest::new(CrcAlgorithm::Crc32Iscsi);
        whole.update(head);
        whole.update(&[0; 4]);
        whole.update(tail.get(4..).unwrap_or_default());
        if whole.finalize() as u32 != raw.header_crc.get() {
            return Err(FormatError::Checksum { format: FORMAT, part: "the header" });
        }
        if raw.version.get() != VERSION {
            return Err(FormatError::Version { format: FORMAT, found: raw.version.get() });
        }
        let matrix = match raw.matrix.get() {
            0 => MatrixId::Copies,
            1 => MatrixId::VandermondeSystematic,
            _ => return Err(field("matrix")),
        };
        let key = raw.key.get(..usize::from(raw.key_len)).ok_or(field("key"))?;
        let table = header.get(FIXED..FIXED + 4 * pages as usize).ok_or_else(|| short(header_len(pages)))?;
        let (entries, _) = table.as_chunks::<4>();
        let decoded = FragmentHeader {
            key: std::str::from_utf8(key).map_err(|_| field("key"))?.to_owned(),
            stripe: StripeId(raw.stripe.get()),
            pool: PoolId(raw.pool.get()),
            policy: Policy::new(usize::from(raw.data), usize::from(raw.parity)).map_err(|_| field("policy"))?,
            index: raw.index,
            matrix,
            object_len: raw.object_len.get(),
            sums: FragmentSums {
                pages: entries.iter().map(|entry| u32::from_le_bytes(*entry)).collect(),
                whole: raw.data_crc.get(),
            },
        };
        if raw.data_len.get() != decoded.data_len() {
            return Err(field("data_len"));
        }
        decoded.check()?;
        Ok(decoded)
    }
}
