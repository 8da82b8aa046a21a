//! One object store made of Y others: an object becomes X + P fragments on different targets, and any X of them bring it back.
//!
//! Read in this order: [`policy`] (what is decided), [`codec`] (parity), [`placement`] (where), `stripe` (shapes and names), `put`, `get`,
//! `delete`, `list`, [`repair`]. It knows no SCOs, volumes or drives: its targets are object stores.

pub mod codec;
mod delete;
pub mod distributor;
mod encode;
pub mod error;
mod get;
#[cfg(all(feature = "isa-l", target_arch = "x86_64"))]
mod isal;
mod list;
mod locks;
mod lookup;
mod matrix;
pub mod placement;
pub mod policy;
mod progress;
mod put;
pub mod repair;
pub mod stats;
mod stripe;
mod target;
mod view;

pub use codec::{Codec, CodecError, Codecs, Engine, ReferenceCodec};
pub use distributor::Distributor;
pub use error::{DistributorError, LostFragment, TargetFault};
pub use placement::{FailureDomain, TargetId};
pub use policy::{DistributorOptions, OptionsError};
pub use repair::{AuditReport, DamagedFragment, RepairProgress, RepairReport, RepairStatus};
pub use stats::DistributorStats;
pub use stripe::{COPIES_BELOW, KeyError};
pub use target::{Target, TargetHealth, TargetState};
