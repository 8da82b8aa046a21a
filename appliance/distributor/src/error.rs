//! What can go wrong with a stripe, and with one of its targets.

use lamina_formats::FormatError;
use lamina_formats::fragment::StripeId;
use lamina_stores::{FaultKind, fault_kind};

use crate::codec::CodecError;
use crate::placement::TargetId;
use crate::policy::OptionsError;
use crate::stripe::KeyError;

/// Why one target did not do its part.
#[derive(Debug, thiserror::Error)]
pub enum TargetFault {
    /// Known to the pool but not there, or set aside after failures.
    #[error("not available")]
    Absent,
    /// The fragment is not on any target that answered.
    #[error("fragment missing")]
    Missing,
    /// No space.
    #[error("no space left")]
    Full,
    /// The device failed or went away.
    #[error("device error")]
    Device(#[source] object_store::Error),
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The bytes do not verify.
    #[error("damaged")]
    Damaged(#[source] FormatError),
    /// The bytes verify but are those of another fragment, or fewer than asked for.
    #[error("not the fragment that was asked for")]
    Wrong,
    /// Anything else.
    #[error("store error")]
    Store(#[source] object_store::Error),
}

impl TargetFault {
    /// Classifies a store's error.
    #[must_use]
    pub fn of(error: object_store::Error) -> Self {
        match (&error, fault_kind(&error)) {
            (object_store::Error::NotFound { .. }, _) => Self::Missing,
            (_, Some(FaultKind::Full)) => Self::Full,
            (_, Some(FaultKind::Device | FaultKind::Gone)) => Self::Device(error),
            _ => Self::Store(error),
        }
    }
}

/// A fragment that could not be used, and why.
#[derive(Debug)]
pub struct LostFragment {
    /// Its place in the stripe.
    pub index: usize,
    /// Where it was looked for last; `None` when no target that answered has it.
    pub target: Option<TargetId>,
    /// What happened.
    pub fault: TargetFault,
}

/// Why an operation on the whole failed.
#[derive(Debug, thiserror::Error)]
pub enum DistributorError {
    /// The key cannot be stored.
    #[error("key")]
    Key(#[from] KeyError),
    /// The object is longer than fragments can hold.
    #[error("an object of {len} bytes is too long for the policy")]
    TooLong {
        /// Its length.
        len: u64,
    },
    /// More than P fragments cannot be read.
    #[error("{key}: only {have} of the {need} fragments needed can be read; lost: {}", Lost(lost))]
    Unreadable {
        /// The object.
        key: String,
        /// Which stripe.
        stripe: StripeId,
        /// Fragments that verified.
        have: usize,
        /// X.
        need: usize,
        /// The others.
        lost: Vec<LostFragment>,
    },
    /// Too few targets took the write; what they took is removed or will be.
    #[error("{key}: {written} of {need} fragments needed were written; failed: {}", Lost(lost))]
    NotWritten {
        /// The object.
        key: String,
        /// Fragments that are durable.
        written: usize,
        /// `write_min`.
        need: usize,
        /// The others.
        lost: Vec<LostFragment>,
    },
    /// More than P targets do not answer: what they hold cannot be ruled out.
    #[error("{unknown} targets do not answer, which is more than the policy bears")]
    Unknown {
        /// How many.
        unknown: usize,
    },
    /// The code refused; a bug or a policy it cannot do.
    #[error("codec")]
    Codec(#[from] CodecError),
    /// A header could not be made.
    #[error("fragment header")]
    Header(#[from] FormatError),
    /// The distributor cannot be set up like that.
    #[error("options")]
    Options(#[from] OptionsError),
    /// A task was torn down: the runtime is shutting down, or a bug.
    #[error("task")]
    Task(#[from] tokio::task::JoinError),
}

struct Lost<'a>(&'a [LostFragment]);

impl std::fmt::Display for Lost<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, lost) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match lost.target {
                Some(target) => write!(f, "{comma}fragment {} on {target}: {}", lost.index, lost.fault)?,
                None => write!(f, "{comma}fragment {}: {}", lost.index, lost.fault)?,
            }
        }
        Ok(())
    }
}

impl From<DistributorError> for object_store::Error {
    fn from(error: DistributorError) -> Self {
        Self::Generic { store: "distributor", source: Box::new(error) }
    }
}
