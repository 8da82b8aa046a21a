//! What a store's own device did wrong, told apart so that callers can act: full is not dead, dead is not missing.
//!
//! Every error of the stores here carries a [`StoreFault`] as its source; [`is_full`], [`is_device_error`] and [`is_gone`] find it
//! through any wrapping.

use std::error::Error as StdError;
use std::io;

use rustix::io::Errno;

/// What to do about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// No space (ENOSPC, EDQUOT): reads still work, writes will again once space is freed.
    Full,
    /// The device failed (EIO and the like, or an fsync that did): set it aside.
    Device,
    /// The directory is no longer the drive that was opened: unplugged, unmounted, removed.
    Gone,
    /// Anything else the system said.
    Other,
}

/// A system call that failed, and what it was for.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {cause}")]
pub struct StoreFault {
    kind: FaultKind,
    doing: &'static str,
    #[source]
    cause: io::Error,
}

impl StoreFault {
    /// Classifies `cause`.
    #[must_use]
    pub fn new(doing: &'static str, cause: io::Error) -> Self {
        let kind = match cause.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => FaultKind::Full,
            // ESTALE: a network share's server forgot the handle. EROFS: the file system gave up after an error.
            Some(Errno::IO | Errno::NXIO | Errno::NODEV | Errno::ROFS | Errno::STALE | Errno::SHUTDOWN | Errno::UCLEAN) => {
                FaultKind::Device
            }
            _ => FaultKind::Other,
        };
        Self { kind, doing, cause }
    }

    /// A fault whose kind is known.
    #[must_use]
    pub const fn of_kind(kind: FaultKind, doing: &'static str, cause: io::Error) -> Self {
        Self { kind, doing, cause }
    }

    /// What to do about it.
    #[must_use]
    pub const fn kind(&self) -> FaultKind {
        self.kind
    }

    /// The system's error.
    #[must_use]
    pub const fn cause(&self) -> &io::Error {
        &self.cause
    }

    /// As the trait's error.
    #[must_use]
    pub fn into_store_error(self, store: &'static str) -> object_store::Error {
        object_store::Error::Generic { store, source: Box::new(self) }
    }
}

/// The fault behind an error of any store, if one of ours is.
#[must_use]
pub fn fault_kind(error: &object_store::Error) -> Option<FaultKind> {
    let mut current: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = current {
        if let Some(fault) = error.downcast_ref::<StoreFault>() {
            return Some(fault.kind);
        }
        current = error.source();
    }
    None
}

/// Whether the store has no space left.
#[must_use]
pub fn is_full(error: &object_store::Error) -> bool {
    fault_kind(error) == Some(FaultKind::Full)
}

/// Whether the device behind the store failed or went away.
#[must_use]
pub fn is_device_error(error: &object_store::Error) -> bool {
    matches!(fault_kind(error), Some(FaultKind::Device | FaultKind::Gone))
}

/// Whether the device behind the store went away.
#[must_use]
pub fn is_gone(error: &object_store::Error) -> bool {
    fault_kind(error) == Some(FaultKind::Gone)
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustix::io::Errno;

    use super::{StoreFault, is_device_error, is_full};

    #[test]
    fn faults_are_found_through_wrapping() {
        let full = StoreFault::new("writing", io::Error::from(Errno::NOSPC)).into_store_error("drive");
        assert!(is_full(&full) && !is_device_error(&full));
        let wrapped = object_store::Error::Generic { store: "outer", source: Box::new(full) };
        assert!(is_full(&wrapped));
        let dead = StoreFault::new("reading", io::Error::from(Errno::IO)).into_store_error("drive");
        assert!(is_device_error(&dead) && !is_full(&dead));
        let other = object_store::Error::Generic { store: "outer", source: "unrelated".into() };
        assert!(!is_full(&other) && !is_device_error(&other));
    }
}
