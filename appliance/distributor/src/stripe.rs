//! A stripe's shape, and the names of its fragments.
//!
//! An object `key` is a prefix on each target that holds a piece of it:
//! `key/<stripe>.<X>.<P>.<index>.<length>` is a fragment, `key/<stripe>.gone` says that every older stripe was deleted. The name tells
//! what a listing needs; the header inside is what a reader believes. Numbers are hexadecimal without leading zeros, the stripe has 32
//! digits. A name never gets other content, so what was learnt about it stays true while it exists.

use std::fmt;
use std::ops::Range;

use lamina_contract::Policy;
use lamina_formats::fragment::{FragmentHeader, KEY_MAX, MatrixId, PAGE, PAGES_MAX, StripeId, fragment_pages, header_len};
use object_store::path::Path;

/// Objects below this are stored as P + 1 copies: four fragments of less than 16 KiB would cost more seeks than they save space.
pub const COPIES_BELOW: u64 = 64 << 10;

/// The shape of one stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) stripe: StripeId,
    pub(crate) policy: Policy,
    pub(crate) len: u64,
}

/// How an object of `len` bytes is stored under a pool's policy.
pub(crate) fn policy_for(pool: Policy, len: u64) -> Policy {
    if len < COPIES_BELOW {
        // P + 1 ≤ 255 because X + P is, with X ≥ 1.
        Policy::new(1, pool.parity()).unwrap_or(pool)
    } else {
        pool
    }
}

impl Layout {
    pub(crate) fn matrix(&self) -> MatrixId {
        if self.policy.data() == 1 { MatrixId::Copies } else { MatrixId::VandermondeSystematic }
    }

    /// Whether fragments of it can exist at all.
    pub(crate) fn is_valid(&self) -> bool {
        fragment_pages(self.len, self.policy.data()) <= u64::from(PAGES_MAX)
    }

    pub(crate) fn pages(&self) -> u32 {
        // `is_valid` holds for every layout that is used: made by put after that check, or parsed with it.
        fragment_pages(self.len, self.policy.data()) as u32
    }

    /// F: bytes of data in each fragment; a multiple of 4 KiB.
    pub(crate) fn fragment_len(&self) -> u64 {
        u64::from(self.pages()) * PAGE as u64
    }

    pub(crate) fn header_len(&self) -> u64 {
        header_len(self.pages()) as u64
    }

    /// The pieces that hold bytes `range` of the object.
    pub(crate) fn pieces(&self, range: &Range<u64>) -> Vec<Piece> {
        let each = self.fragment_len();
        if range.start >= range.end {
            return Vec::new();
        }
        (range.start / each..=(range.end - 1) / each)
            .map(|index| {
                let base = index * each;
                let (from, to) = (range.start.max(base) - base, range.end.min(base + each) - base);
                Piece { index: index as usize, from, to }
            })
            .collect()
    }

    /// Whether a verified header is that of fragment `index` of this stripe.
    pub(crate) fn matches(&self, key: &Path, index: usize, header: &FragmentHeader) -> bool {
        header.stripe() == self.stripe
            && header.index() == index
            && header.key() == key.as_ref()
            && header.policy() == self.policy
            && header.object_len() == self.len
            && header.matrix() == self.matrix()
    }
}

/// Bytes `from..to` of the data of one fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) index: usize,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Piece {
    /// The whole pages around it: what is read and verified.
    pub(crate) fn pages(&self) -> Range<u64> {
        let page = PAGE as u64;
        self.from / page * page..self.to.next_multiple_of(page)
    }
}

/// What a name below a key says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    Fragment { layout: Layout, index: usize },
    Gone(StripeId),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fragment { layout, index } => {
                let (x, p) = (layout.policy.data(), layout.policy.parity());
                write!(f, "{:032x}.{x:x}.{p:x}.{index:x}.{:x}", layout.stripe.0, layout.len)
            }
            Self::Gone(stripe) => write!(f, "{:032x}.gone", stripe.0),
        }
    }
}

impl Name {
    /// Reads a name; `None` for anything that `Display` does not write.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (stripe, rest) = text.split_once('.')?;
        if stripe.len() != 32 {
            return None;
        }
        let stripe = StripeId(u128::from_str_radix(stripe, 16).ok()?);
        let name = if rest == "gone" {
            Self::Gone(stripe)
        } else {
            let mut fields = rest.split('.');
            let mut field = || u64::from_str_radix(fields.next()?, 16).ok();
            let (x, p, index, len) = (field()?, field()?, field()?, field()?);
            let policy = Policy::new(usize::try_from(x).ok()?, usize::try_from(p).ok()?).ok()?;
            let layout = Layout { stripe, policy, len };
            let index = usize::try_from(index).ok()?;
            if fields.next().is_some() || index >= policy.total() || !layout.is_valid() {
                return None;
            }
            Self::Fragment { layout, index }
        };
        // One spelling only: otherwise two names would mean one fragment.
        (name.to_string() == text).then_some(name)
    }

    /// The whole path on a target.
    pub(crate) fn under(&self, key: &Path) -> Path {
        key.clone().join(self.to_string())
    }
}

/// Bytes of a key's last part: a file name has 255, a fragment's name at most 32 + 4 + 2 + 2 + 2 + 16 of them, and one stands between.
const LAST_MAX: usize = 255 - 58 - 1;

/// Why a key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Empty, or longer than a fragment's header holds.
    #[error("a key has 1 to {KEY_MAX} bytes")]
    Length,
    /// A part of it looks like a fragment's name, or has the character that stands between key and fragment in a drive's files.
    #[error("a part of the key has the form of a fragment's name, or a ~")]
    Reserved,
    /// Its last part and a fragment's name are more than a file name holds.
    #[error("the last part of a key has at most {LAST_MAX} bytes")]
    LastPart,
}

/// Checks that fragments under `key` can be told from everything else.
pub(crate) fn check_key(key: &Path) -> Result<(), KeyError> {
    if key.as_ref().is_empty() || key.as_ref().len() > KEY_MAX {
        return Err(KeyError::Length);
    }
    if key.as_ref().contains('~') || key.parts().any(|part| Name::parse(part.as_ref()).is_some()) {
        return Err(KeyError::Reserved);
    }
    if key.filename().is_some_and(|last| last.len() > LAST_MAX) {
        return Err(KeyError::LastPart);
    }
    Ok(())
}

/// Splits a path on a target into key and name.
pub(crate) fn split(path: &Path) -> Option<(Path, Name)> {
    let (key, name) = path.as_ref().rsplit_once('/')?;
    Some((Path::parse(key).ok()?, Name::parse(name)?))
}

#[cfg(test)]
mod tests {
    use lamina_formats::fragment::{PAGES_MAX, StripeId};
    use object_store::path::Path;

    use super::{KeyError, Layout, Name, Piece, check_key, policy_for, split};

    fn layout(policy: &str, len: u64) -> Layout {
        Layout { stripe: StripeId::new(7, 9), policy: policy.parse().expect("a policy"), len }
    }

    #[test]
    fn a_name_reads_back_and_has_one_spelling() {
        for name in [Name::Fragment { layout: layout("11+7", 4 << 20), index: 17 }, Name::Gone(StripeId::new(1, 2))] {
            assert_eq!(Name::parse(&name.to_string()), Some(name));
            let path = name.under(&Path::from("ns/sco/1"));
            assert_eq!(split(&path), Some((Path::from("ns/sco/1"), name)));
        }
        let good = Name::Fragment { layout: layout("4+2", 100), index: 5 }.to_string();
        for bad in
            [good.to_uppercase(), format!("{good}.0"), good.replace(".5.", ".05."), good.replace(".5.", ".6."), good[1..].into()]
        {
            assert!(bad == good || Name::parse(&bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn keys_that_look_like_fragments_are_refused() {
        let name = Name::Gone(StripeId::new(1, 2)).to_string();
        assert_eq!(check_key(&Path::from(format!("a/{name}/b"))), Err(KeyError::Reserved));
        assert_eq!(check_key(&Path::default()), Err(KeyError::Length));
        assert_eq!(check_key(&Path::from("x".repeat(256))), Err(KeyError::Length));
        assert_eq!(check_key(&Path::parse("a~b/c").expect("a path")), Err(KeyError::Reserved));
        assert_eq!(check_key(&Path::from(format!("a/{}", "x".repeat(197)))), Err(KeyError::LastPart));
        let longest = Path::from(format!("a/{}", "x".repeat(196)));
        assert_eq!(check_key(&longest), Ok(()));
        let name = Name::Fragment { layout: layout("128+127", u64::from(PAGES_MAX) * 128 * 4096), index: 254 };
        assert!(longest.filename().expect("a part").len() + 1 + name.to_string().len() <= 255);
        assert_eq!(check_key(&Path::from("ns/sco/000000000/0001-17.v0")), Ok(()));
    }

    #[test]
    fn an_11_mib_object_under_11_7_has_fragments_of_1_mib() {
        let layout = layout("11+7", 11 << 20);
        assert_eq!((layout.fragment_len(), layout.header_len()), (1 << 20, 4096));
        assert_eq!(layout.pieces(&(0..1)), [Piece { index: 0, from: 0, to: 1 }]);
        let edge = layout.pieces(&((1 << 20) - 1..(1 << 20) + 1));
        assert_eq!(edge, [Piece { index: 0, from: (1 << 20) - 1, to: 1 << 20 }, Piece { index: 1, from: 0, to: 1 }]);
        assert_eq!(edge[0].pages(), (1 << 20) - 4096..1 << 20);
    }

    #[test]
    fn small_objects_become_copies() {
        let pool = "4+2".parse().expect("a policy");
        assert_eq!(policy_for(pool, 65_535).to_string(), "1+2");
        assert_eq!(policy_for(pool, 65_536).to_string(), "4+2");
    }
}
