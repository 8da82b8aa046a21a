//! The drives of a pool, found by who they are and not by where they are.
//!
//! The roster says which drives a pool has. It lies in one file of the node's state and on every drive; the highest number that
//! verifies is true, so losing the state directory loses nothing. Number 0 means the pool is being founded and has never served:
//! then blank directories are claimed. Once it is 1 or more, nothing is ever claimed without being asked.
//!
//! Order of founding: roster 0 in the state file → each drive claimed → roster 1 on each drive → roster 1 in the state file. Cut
//! anywhere, the next start goes on where it ended: drives claimed by then are members, the blank ones are claimed.

use std::io;
use std::path::{Path, PathBuf};

use lamina_contract::Timestamp;
use lamina_formats::FormatError;
use lamina_formats::drive::{DriveId, DriveIdentity, MEMBERS_MAX, PoolId, PoolRoster};
use rustix::fs::Mode;
use rustix::io::Errno;

use crate::drive::DriveStore;
use crate::identity::{self, DriveError, DriveState, ROSTER};

/// A pool as it was found.
#[derive(Debug)]
pub struct Pool {
    /// Its identity.
    pub id: PoolId,
    /// Every member of the roster by slot, those that are missing too.
    pub members: Vec<PoolMember>,
    /// Directories that were named but hold no member that can be used.
    pub strangers: Vec<Stranger>,
    number: u64,
    state_file: PathBuf,
}

/// A member of a pool.
#[derive(Debug, Clone)]
pub struct PoolMember {
    /// Its number in the pool.
    pub slot: u32,
    /// Who it is.
    pub drive: DriveId,
    /// Whether it is there.
    pub state: MemberState,
}

/// Whether a member is there.
#[derive(Debug, Clone)]
pub enum MemberState {
    /// Open, and taken for this process.
    Ready {
        /// The drive.
        store: DriveStore,
    },
    /// In none of the directories.
    Missing,
}

/// A directory that was named and holds no member that can be used.
#[derive(Debug)]
pub struct Stranger {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub why: DriveError,
}

/// Why a pool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// No directories, or more than a roster holds.
    #[error("a pool has 1 to {MEMBERS_MAX} drives, {count} were named")]
    Count {
        /// How many.
        count: usize,
    },
    /// A drive could not be used at all.
    #[error("drive {}: {cause}", path.display())]
    Drive {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: DriveError,
    },
    /// The same drive twice: one path is a link to the other, or one drive is a copy of the other.
    #[error("{} and {} are the same drive {drive}: a path named twice, or a copied drive", first.display(), second.display())]
    Twice {
        /// Where it is.
        first: PathBuf,
        /// And again.
        second: PathBuf,
        /// Who it is.
        drive: DriveId,
    },
    /// The roster in the state directory cannot be used, and no drive carries a copy.
    #[error("the pool roster {} is damaged and no drive carries a copy", path.display())]
    Roster {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: FormatError,
    },
    /// The state file could not be read or written.
    #[error("pool roster {}", path.display())]
    State {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        cause: DriveError,
    },
    /// There is no such slot, or its drive is there.
    #[error("slot {slot} has no missing drive to be replaced")]
    Slot {
        /// Which.
        slot: u32,
    },
}

/// Finds the drives of the pool whose roster is `state_file` (its directory must exist); founds the pool when there is none yet.
///
/// A missing, blank, damaged or failing drive leaves the pool degraded, which is returned and logged, never silent.
///
/// # Errors
/// [`PoolError`] for what must not be guessed at: a directory with somebody's files, a drive of another pool, the same drive twice,
/// a drive that another process serves.
pub fn open_pool(directories: &[PathBuf], state_file: &Path, now: Timestamp) -> Result<Pool, PoolError> {
    if directories.is_empty() || directories.len() > MEMBERS_MAX {
        return Err(PoolError::Count { count: directories.len() });
    }
    let seen = look(directories)?;
    let roster = match known_roster(&seen, state_file)? {
        Some(roster) if roster.number > 0 => roster,
        unfinished => found(directories, unfinished.map(|roster| roster.pool), state_file, now)?,
    };
    assemble(look(directories)?, roster, state_file)
}

struct Seen {
    path: PathBuf,
    state: Result<DriveState, DriveError>,
}

impl Seen {
    fn identity(&self) -> Option<&DriveIdentity> {
        match &self.state {
            Ok(DriveState::Ours { identity }) => Some(identity),
            _ => None,
        }
    }
}

fn look(directories: &[PathBuf]) -> Result<Vec<Seen>, PoolError> {
    let mut seen: Vec<Seen> = Vec::with_capacity(directories.len());
    for path in directories {
        let state = identity::inspect(path);
        if let Ok(DriveState::Foreign) = state {
            return Err(PoolError::Drive { path: path.clone(), cause: DriveError::Foreign });
        }
        let next = Seen { path: path.clone(), state };
        if let Some(identity) = next.identity()
            && let Some(other) = seen.iter().find(|other| other.identity().is_some_and(|known| known.drive == identity.drive))
        {
            return Err(PoolError::Twice { first: other.path.clone(), second: path.clone(), drive: identity.drive });
        }
        seen.push(next);
    }
    Ok(seen)
}

/// The roster with the highest number among the state file's and the drives'; drives of different pools are an error.
fn known_roster(seen: &[Seen], state_file: &Path) -> Result<Option<PoolRoster>, PoolError> {
    let state = read_state(state_file)?;
    let mut best = match &state {
        Some(Ok(roster)) => Some(roster.clone()),
        _ => None,
    };
    let mut pool = best.as_ref().map(|roster| roster.pool);
    for drive in seen {
        let Some(identity) = drive.identity() else { continue };
        let expected = *pool.get_or_insert(identity.pool);
        if identity.pool != expected {
            let cause = DriveError::OtherPool { found: identity.pool, expected };
            return Err(PoolError::Drive { path: drive.path.clone(), cause });
        }
        let root = match identity::open_directory(&drive.path) {
            Ok(root) => root,
            Err(errno) => {
                tracing::warn!(path = %drive.path.display(), %errno, "cannot read the drive's copy of the roster");
                continue;
            }
        };
        match identity::read_roster(&root) {
            Ok(Some(roster)) if roster.pool == expected => {
                if best.as_ref().is_none_or(|known| known.number < roster.number) {
                    best = Some(roster);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(path = %drive.path.display(), %error, "cannot read the drive's copy of the roster"),
        }
    }
    if best.is_none() {
        if let Some(Err(cause)) = state {
            return Err(PoolError::Roster { path: state_file.to_owned(), cause });
        }
        // Claimed drives without any roster: founding was cut before its end, and the state file went since.
        best = pool.map(|pool| PoolRoster { pool, number: 0, members: Vec::new() });
    }
    Ok(best)
}

fn split(state_file: &Path) -> Result<(rustix::fd::OwnedFd, String), PoolError> {
    let failed = |cause: io::Error| PoolError::State {
        path: state_file.to_owned(),
        cause: DriveError::Io { doing: "opening the state directory", cause },
    };
    let name = state_file.file_name().and_then(|name| name.to_str()).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let parent = state_file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = identity::open_directory(parent).map_err(|errno| failed(errno.into()))?;
    Ok((directory, name.to_owned()))
}

fn read_state(state_file: &Path) -> Result<Option<Result<PoolRoster, FormatError>>, PoolError> {
    let (directory, name) = split(state_file)?;
    let bytes = identity::read_small(&directory, &name).map_err(|cause| PoolError::State { path: state_file.to_owned(), cause })?;
    Ok(bytes.map(|bytes| PoolRoster::decode(&bytes)))
}

fn write_state(state_file: &Path, roster: &PoolRoster) -> Result<(), PoolError> {
    let (directory, name) = split(state_file)?;
    identity::write_durably(&directory, &name, &roster.encode())
        .map_err(|cause| PoolError::State { path: state_file.to_owned(), cause })
}

fn write_copy(path: &Path, roster: &PoolRoster) -> Result<(), PoolError> {
    let failed = |cause| PoolError::Drive { path: path.to_owned(), cause };
    let root = identity::open_directory(path)
        .map_err(|errno| failed(DriveError::Io { doing: "opening the drive's directory", cause: errno.into() }))?;
    identity::write_durably(&root, ROSTER, &roster.encode()).map_err(failed)
}

/// Makes a pool of the named directories, or goes on with one whose founding was cut short.
fn found(directories: &[PathBuf], begun: Option<PoolId>, state_file: &Path, now: Timestamp) -> Result<PoolRoster, PoolError> {
    let pool = begun.unwrap_or_else(|| PoolId(rand::random()));
    let mut members = Vec::with_capacity(directories.len());
    for path in directories {
        let failed = |cause| PoolError::Drive { path: path.clone(), cause };
        members.push(match identity::inspect(path).map_err(failed)? {
            DriveState::Ours { identity } => identity.drive,
            DriveState::Blank => DriveId(rand::random()),
            DriveState::Missing => {
                make_directory(path).map_err(failed)?;
                DriveId(rand::random())
            }
            DriveState::Foreign => return Err(failed(DriveError::Foreign)),
            DriveState::Damaged { cause } => return Err(failed(DriveError::Damaged { cause })),
        });
    }
    write_state(state_file, &PoolRoster { pool, number: 0, members: members.clone() })?;
    for ((path, drive), slot) in directories.iter().zip(&members).zip(0..) {
        let identity = DriveIdentity { drive: *drive, pool, slot, created: now };
        match identity::claim(path, &identity) {
            Ok(()) => {}
            Err(DriveError::Claimed { identity }) if identity.drive == *drive => {}
            // The same blank directory under two names.
            Err(DriveError::Claimed { identity }) if identity.pool == pool => {
                let first = members.iter().position(|known| *known == identity.drive).and_then(|at| directories.get(at));
                let first = first.unwrap_or(path).clone();
                return Err(PoolError::Twice { first, second: path.clone(), drive: identity.drive });
            }
            Err(cause) => return Err(PoolError::Drive { path: path.clone(), cause }),
        }
    }
    let roster = PoolRoster { pool, number: 1, members };
    for path in directories {
        write_copy(path, &roster)?;
    }
    write_state(state_file, &roster)?;
    tracing::info!(%pool, drives = directories.len(), "a new pool was founded");
    Ok(roster)
}

/// Only the last component is made, and only while the pool is being founded.
fn make_directory(path: &Path) -> Result<(), DriveError> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o750)) {
        Ok(()) => {}
        Err(Errno::NOENT) => return Err(DriveError::Missing),
        Err(errno) => return Err(identity::io_error("making the drive's directory")(errno)),
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = identity::open_directory(parent).map_err(identity::io_error("opening the directory above the drive"))?;
    rustix::fs::fsync(&parent).map_err(identity::io_error("syncing the directory above the drive"))
}

fn assemble(seen: Vec<Seen>, roster: PoolRoster, state_file: &Path) -> Result<Pool, PoolError> {
    let mut members: Vec<PoolMember> = roster
        .members
        .iter()
        .zip(0..)
        .map(|(drive, slot)| PoolMember { slot, drive: *drive, state: MemberState::Missing })
        .collect();
    let mut strangers = Vec::new();
    for (Seen { path, state }, place) in seen.into_iter().zip(0_u32..) {
        let why = match state {
            Ok(DriveState::Ours { identity }) => match members.iter_mut().find(|member| member.drive == identity.drive) {
                Some(member) => match DriveStore::open(&path, roster.pool) {
                    Ok(store) => {
                        if member.slot != place {
                            tracing::info!(slot = member.slot, path = %path.display(), drive = %identity.drive, "a drive moved to another path");
                        }
                        refresh_copy(&path, &roster);
                        member.state = MemberState::Ready { store };
                        continue;
                    }
                    Err(cause @ DriveError::InUse) => return Err(PoolError::Drive { path, cause }),
                    Err(why) => why,
                },
                // One that was replaced, come back.
                None => DriveError::Claimed { identity },
            },
            Ok(DriveState::Missing) => DriveError::Missing,
            Ok(DriveState::Blank) => DriveError::Blank,
            Ok(DriveState::Damaged { cause }) => DriveError::Damaged { cause },
            Ok(DriveState::Foreign) => return Err(PoolError::Drive { path, cause: DriveError::Foreign }),
            Err(why) => why,
        };
        tracing::warn!(path = %path.display(), %why, "no drive of the pool here");
        strangers.push(Stranger { path, why });
    }
    for member in &members {
        if matches!(member.state, MemberState::Missing) {
            tracing::warn!(slot = member.slot, drive = %member.drive, "a drive of the pool is missing: running degraded");
        }
    }
    match read_state(state_file)? {
        Some(Ok(known)) if known == roster => {}
        _ => write_state(state_file, &roster)?,
    }
    Ok(Pool { id: roster.pool, members, strangers, number: roster.number, state_file: state_file.to_owned() })
}

/// A drive that was away has an older roster. Failing to renew it costs nothing but a copy.
fn refresh_copy(path: &Path, roster: &PoolRoster) {
    let current = identity::open_directory(path).ok().and_then(|root| identity::read_roster(&root).ok().flatten());
    if current.as_ref() != Some(roster)
        && let Err(error) = write_copy(path, roster)
    {
        tracing::warn!(path = %path.display(), %error, "the drive's copy of the roster could not be renewed");
    }
}

impl Pool {
    /// Puts the blank drive at `path` in the place of the missing one of `slot`, durably; repair fills it.
    ///
    /// # Errors
    /// [`PoolError::Slot`] when that slot's drive is not missing; what the directory is instead of blank.
    pub fn replace(&mut self, slot: u32, path: &Path, now: Timestamp) -> Result<DriveStore, PoolError> {
        let failed = |cause| PoolError::Drive { path: path.to_owned(), cause };
        let place = slot as usize;
        if !self.members.get(place).is_some_and(|member| matches!(member.state, MemberState::Missing)) {
            return Err(PoolError::Slot { slot });
        }
        let drive = match identity::inspect(path).map_err(failed)? {
            // A replacement that was cut before the roster named it.
            DriveState::Ours { identity }
                if identity.pool == self.id && self.members.iter().all(|member| member.drive != identity.drive) =>
            {
                identity.drive
            }
            _ => {
                let drive = DriveId(rand::random());
                identity::claim(path, &DriveIdentity { drive, pool: self.id, slot, created: now }).map_err(failed)?;
                drive
            }
        };
        let mut members: Vec<DriveId> = self.members.iter().map(|member| member.drive).collect();
        if let Some(member) = members.get_mut(place) {
            *member = drive;
        }
        let roster = PoolRoster { pool: self.id, number: self.number + 1, members };
        write_copy(path, &roster)?;
        write_state(&self.state_file, &roster)?;
        for member in &self.members {
            if let MemberState::Ready { store } = &member.state {
                refresh_copy(store.path(), &roster);
            }
        }
        let store = DriveStore::open(path, self.id).map_err(failed)?;
        self.number = roster.number;
        if let Some(member) = self.members.get_mut(place) {
            *member = PoolMember { slot, drive, state: MemberState::Ready { store: store.clone() } };
        }
        self.strangers.retain(|stranger| stranger.path != path);
        Ok(store)
    }
}
