//! The drives of the store at start: what may be founded, what may start degraded, what must be refused.
//!
//! Identity decides, never the path: what is written on a drive says which member of the pool it is (`lamina-stores`).

use std::path::PathBuf;

use lamina_contract::{Policy, Timestamp};
use lamina_stores::{DriveError, DriveState, DriveStore, MemberState, Pool, PoolError, open_pool};

use crate::settings::Settings;
use crate::state_dir::StateDir;

/// Why the drives cannot be used as they are.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DrivesError {
    /// A new pool would be founded with a drive that is not there.
    #[error(
        "drive {} does not exist, and a new pool starts with all its drives: mount the drive, or make the directory",
        path.display()
    )]
    Absent { path: PathBuf },
    /// The pool cannot be opened.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A drive could not even be looked at.
    #[error("drive {} cannot be looked at", path.display())]
    Look {
        path: PathBuf,
        #[source]
        cause: DriveError,
    },
    /// More drives are missing than the policy bears.
    #[error(
        "{ready} of the pool's {members} drives are there and policy {policy} needs {} to read: {}. Nothing was changed; bring the missing \
         drives back",
        policy.data(),
        Strangers(strangers)
    )]
    TooFew { ready: usize, members: usize, policy: Policy, strangers: Vec<String> },
    /// The pool has fewer members than the policy spreads over.
    #[error("policy {policy} spreads over {} drives and the pool has {members}", policy.total())]
    SmallPool { policy: Policy, members: usize },
}

struct Strangers<'a>(&'a [String]);

impl std::fmt::Display for Strangers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// Finds or founds the pool.
pub(crate) fn open(settings: &Settings, state: &StateDir, now: Timestamp) -> Result<Pool, DrivesError> {
    if !state.pool_file().exists() {
        refuse_absent(&settings.drives)?;
    }
    let pool = open_pool(&settings.drives, &state.pool_file(), now)?;
    let ready = pool.members.iter().filter(|member| matches!(member.state, MemberState::Ready { .. })).count();
    let (members, policy) = (pool.members.len(), settings.policy);
    if members < policy.total() {
        return Err(DrivesError::SmallPool { policy, members });
    }
    if ready < policy.data() {
        let strangers =
            pool.strangers.iter().map(|stranger| format!("drive {}: {}", stranger.path.display(), stranger.why)).collect();
        return Err(DrivesError::TooFew { ready, members, policy, strangers });
    }
    Ok(pool)
}

/// Without a roster here or on any drive this is a first start: a directory that is not there is a drive that is not mounted.
fn refuse_absent(drives: &[PathBuf]) -> Result<(), DrivesError> {
    let mut absent = None;
    for path in drives {
        match DriveStore::inspect(path) {
            // The pool is known to a drive.
            Ok(DriveState::Ours { .. }) => return Ok(()),
            Ok(DriveState::Missing) => absent = absent.or(Some(path)),
            Ok(_) => {}
            Err(cause) => return Err(DrivesError::Look { path: path.clone(), cause }),
        }
    }
    absent.map_or(Ok(()), |path| Err(DrivesError::Absent { path: path.clone() }))
}
