//! What is counted: sectors, blocks, containers, epochs. Newtypes that convert by name; no bare integer crosses a seam.

use std::fmt;
use std::str::FromStr;

/// Bytes in a sector, the guest's unit (virtio 1.2, 5.2.4: "512-byte sectors" whatever `blk_size` says).
pub const SECTOR_BYTES: u64 = 512;

/// What was wrong with a value from outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a power of two within 4-64 KiB.
    #[error("block size {bytes} is not a power of two from 4096 to 65536")]
    BlockSize {
        /// The refused value.
        bytes: u64,
    },
    /// Not a power of two within 1-16 MiB.
    #[error("SCO size {bytes} is not a power of two from 1 MiB to 16 MiB")]
    ScoSize {
        /// The refused value.
        bytes: u64,
    },
    /// A name that does not match `[a-z0-9-]{1,63}`.
    #[error("name '{name}' must be 1 to 63 characters out of a-z, 0-9 and '-'")]
    Name {
        /// The refused value.
        name: String,
    },
    /// Bytes as text that do not parse.
    #[error("size '{text}' is not a number of bytes: write 4096, 64KiB, 10GiB or 1TiB")]
    Size {
        /// The refused value.
        text: String,
    },
    /// A label with a key or value that is not allowed, or too many of them.
    #[error(
        "label '{key}': at most 64, keys of 1 to 63 characters out of a-z, 0-9 and './-_', values of up to 255 bytes in one line"
    )]
    Label {
        /// The refused key.
        key: String,
    },
    /// Hexadecimal text of the wrong length or alphabet.
    #[error("'{text}' is not an identifier of 16 hexadecimal digits")]
    Id {
        /// The refused value.
        text: String,
    },
}

/// A guest address in sectors of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

/// A number of sectors of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectorCount(pub u64);

impl Lba {
    /// The block that holds this sector.
    #[must_use]
    pub const fn block(self, size: BlockSize) -> BlockAddress {
        BlockAddress(self.0 / size.sectors())
    }

    /// Bytes from the start of its block to this sector.
    #[must_use]
    pub const fn offset_in_block(self, size: BlockSize) -> usize {
        ((self.0 % size.sectors()) * SECTOR_BYTES) as usize
    }
}

impl SectorCount {
    /// The same length in bytes; saturates, since counts from guests are checked against the volume's size before use.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(SECTOR_BYTES)
    }
}

/// A block's place in the volume, counted in blocks of the volume's own [`BlockSize`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockAddress(pub u64);

/// The engine's unit of mapping, hashing and logging: 4-64 KiB, a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockSize(u32);

impl BlockSize {
    /// 4 KiB, the default.
    pub const DEFAULT: Self = Self(4096);

    /// Checks `bytes`.
    ///
    /// # Errors
    /// [`UnitError::BlockSize`] when it is not a power of two from 4096 to 65536.
    pub const fn new(bytes: u64) -> Result<Self, UnitError> {
        if bytes.is_power_of_two() && bytes >= 4096 && bytes <= 65536 {
            Ok(Self(bytes as u32))
        } else {
            Err(UnitError::BlockSize { bytes })
        }
    }

    /// In bytes, as a length.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// In bytes, as formats store it.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// In sectors of 512 bytes.
    #[must_use]
    pub const fn sectors(self) -> u64 {
        self.0 as u64 / SECTOR_BYTES
    }
}

/// How many bytes of blocks a SCO holds at most: 1-16 MiB, a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ScoSize(u32);

impl ScoSize {
    /// 4 MiB, the default.
    pub const DEFAULT: Self = Self(4 << 20);

    /// Checks `bytes`.
    ///
    /// # Errors
    /// [`UnitError::ScoSize`] when it is not a power of two from 1 MiB to 16 MiB.
    pub const fn new(bytes: u64) -> Result<Self, UnitError> {
        if bytes.is_power_of_two() && bytes >= 1 << 20 && bytes <= 16 << 20 {
            Ok(Self(bytes as u32))
        } else {
            Err(UnitError::ScoSize { bytes })
        }
    }

    /// In bytes, as formats store it.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// How many blocks of `block` fit: 16 to 4096.
    #[must_use]
    pub const fn blocks(self, block: BlockSize) -> u16 {
        (self.0 / block.get()) as u16
    }
}

/// SHA-256 of a block's bytes; equal means equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}…", u64::from_be_bytes(*self.0.first_chunk().unwrap_or(&[0; 8])))
    }
}

/// The number of a SCO within its volume, counted from 1; fits 40 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScoNumber(pub u64);

impl ScoNumber {
    /// The largest number a [`Location`] can name: at one 4 MiB SCO a millisecond, 34 years.
    pub const MAX: Self = Self((1 << 40) - 1);

    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The number of a TLog object within its volume, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TlogNumber(pub u64);

/// The ownership term of a volume; the fence against a second writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// The number of a manifest; counts up by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// Where a block's bytes are: a name, never an address; it stays valid for ever.
///
/// Packs into 64 bits: ancestor (8) | SCO number (40) | block index (16).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Which ancestor's namespace: 0 is the volume itself, 1 its parent, and so on.
    pub ancestor: u8,
    /// The SCO within that namespace.
    pub sco: ScoNumber,
    /// The block within that SCO, in order of arrival.
    pub index: u16,
}

impl Location {
    /// No place: the block was accepted, and its bytes were lost before they were stored. Reading it is an error until it is written
    /// again. All 64 bits are set; no container has that number.
    pub const LOST: Self = Self { ancestor: u8::MAX, sco: ScoNumber::MAX, index: u16::MAX };

    /// The 64 bits that maps and formats hold.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        ((self.ancestor as u64) << 56) | ((self.sco.0 & ScoNumber::MAX.0) << 16) | self.index as u64
    }

    /// The inverse of [`Location::to_bits`]; every pattern is a location.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self { ancestor: (bits >> 56) as u8, sco: ScoNumber((bits >> 16) & ScoNumber::MAX.0), index: bits as u16 }
    }
}

/// The identity of a volume and of its namespace: 64 random bits, never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u64);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for VolumeId {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Id { text: text.chars().take(64).collect() };
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| bad())
    }
}

/// A volume's name for people: `[a-z0-9-]{1,63}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

impl VolumeName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`UnitError::Name`] when it does not match `[a-z0-9-]{1,63}`.
    pub fn new(name: &str) -> Result<Self, UnitError> {
        let fits = !name.is_empty() && name.len() <= 63;
        if fits && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            Ok(Self(name.to_owned()))
        } else {
            Err(UnitError::Name { name: name.chars().take(80).collect() })
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A number of bytes as people write it: `4096`, `64KiB`, `10GiB`, `1TiB` (and `10G`, meaning GiB, as QEMU reads it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Size { text: text.chars().take(64).collect() };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(bad()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        for (unit, name) in UNITS {
            if self.0 >= unit {
                let tenths = (u128::from(self.0) * 10 / u128::from(unit)) as u64;
                return match tenths % 10 {
                    0 => write!(f, "{} {name}", tenths / 10),
                    tenth => write!(f, "{}.{tenth} {name}", tenths / 10),
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// X data + P parity: how a distributor stripes an object over Y = X + P targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Policy {
    data: u8,
    parity: u8,
}

/// Why a policy was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Text that is not `X+P`.
    #[error("policy '{text}' is not of the form X+P, as in 4+2")]
    Form {
        /// The refused value.
        text: String,
    },
    /// Outside what the code supports.
    #[error("policy {data}+{parity} needs at least 1 data fragment and at most 255 fragments in all")]
    Range {
        /// Data fragments asked for.
        data: usize,
        /// Parity fragments asked for.
        parity: usize,
    },
}

impl Policy {
    /// Checks X and P: X ≥ 1 and X + P ≤ 255 (the code works in GF(2^8)).
    ///
    /// # Errors
    /// [`PolicyError::Range`] outside that.
    pub fn new(data: usize, parity: usize) -> Result<Self, PolicyError> {
        match (u8::try_from(data), u8::try_from(parity)) {
            (Ok(x), Ok(p)) if x >= 1 && data + parity <= 255 => Ok(Self { data: x, parity: p }),
            _ => Err(PolicyError::Range { data, parity }),
        }
    }

    /// X: fragments that hold data; any X of Y decode.
    #[must_use]
    pub const fn data(self) -> usize {
        self.data as usize
    }

    /// P: fragments that may be lost.
    #[must_use]
    pub const fn parity(self) -> usize {
        self.parity as usize
    }

    /// Y = X + P: targets that a stripe spreads over.
    #[must_use]
    pub const fn total(self) -> usize {
        self.data as usize + self.parity as usize
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let form = || PolicyError::Form { text: text.chars().take(64).collect() };
        let (data, parity) = text.trim().split_once('+').ok_or_else(form)?;
        Self::new(data.trim().parse().map_err(|_| form())?, parity.trim().parse().map_err(|_| form())?)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockSize, ByteSize, Location, Policy, ScoNumber, ScoSize, VolumeId, VolumeName};

    #[test]
    fn a_location_survives_its_bits() {
        let far = Location { ancestor: 200, sco: ScoNumber::MAX, index: u16::MAX };
        assert_eq!(Location::from_bits(far.to_bits()), far);
        let near = Location { ancestor: 0, sco: ScoNumber(1), index: 7 };
        assert_eq!(near.to_bits(), 0x1_0007);
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!("10GiB".parse(), Ok(ByteSize(10 << 30)));
        assert_eq!("10g".parse(), Ok(ByteSize(10 << 30)));
        assert_eq!(" 4096 ".parse(), Ok(ByteSize(4096)));
        assert!("ten".parse::<ByteSize>().is_err());
        assert!("99999999TiB".parse::<ByteSize>().is_err());
        assert_eq!(ByteSize(1536 << 20).to_string(), "1.5 GiB");
    }

    #[test]
    fn bounds_of_volume_parameters_hold() {
        assert!(BlockSize::new(4096).is_ok() && BlockSize::new(65536).is_ok());
        assert!(BlockSize::new(2048).is_err() && BlockSize::new(5000).is_err() && BlockSize::new(131_072).is_err());
        assert!(ScoSize::new(1 << 20).is_ok() && ScoSize::new(32 << 20).is_err());
        assert_eq!(ScoSize::DEFAULT.blocks(BlockSize::DEFAULT), 1024);
        assert!(VolumeName::new("web-01").is_ok());
        assert!(VolumeName::new("").is_err() && VolumeName::new("Web").is_err() && VolumeName::new("../x").is_err());
        assert!("00000000000000ff".parse::<VolumeId>().is_ok());
        assert!("+0000000000000ff".parse::<VolumeId>().is_err());
    }

    #[test]
    fn a_policy_reads_x_plus_p() {
        let policy: Policy = "11+7".parse().expect("a policy");
        assert_eq!((policy.data(), policy.parity(), policy.total()), (11, 7, 18));
        assert!("0+2".parse::<Policy>().is_err() && "200+100".parse::<Policy>().is_err() && "4-2".parse::<Policy>().is_err());
    }
}
