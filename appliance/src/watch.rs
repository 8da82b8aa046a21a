//! Looks at each drive once a second, so that one that vanishes is missed although nobody reads or writes; takes back one that returns.
//!
//! A look is two system calls on a thread of its own; a drive that does not answer has one look outstanding and holds nobody else up.
//! Which drive is where is decided by what is written on it; a blank or foreign directory is never touched.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lamina_formats::drive::PoolId;
use lamina_stores::{DriveSpace, DriveState, DriveStore, FaultKind, MemberState, Pool};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;

/// A look that takes longer is a drive that does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a look saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sight {
    /// It is there.
    There(DriveSpace),
    /// It is gone or fails; in words.
    Gone(String),
    /// It does not answer.
    Silent,
    /// It was not there at the start, and has not come since.
    Missing,
}

/// One member of the pool.
#[derive(Debug)]
pub(crate) struct Watched {
    /// Its number in the pool.
    pub(crate) slot: u32,
    /// Its identity.
    pub(crate) id: u128,
    look: Arc<Look>,
}

#[derive(Debug)]
struct Look {
    drive: RwLock<Option<DriveStore>>,
    running: AtomicBool,
    since: Mutex<Instant>,
    saw: Mutex<Sight>,
}

/// All members, and the directories that hold none.
#[derive(Debug)]
pub(crate) struct Watch {
    pool: PoolId,
    directories: Vec<PathBuf>,
    members: Vec<Watched>,
    strangers: RwLock<Vec<(PathBuf, String)>>,
}

impl Watch {
    /// Members as they were found at the start in `directories`.
    pub(crate) fn new(pool: &Pool, directories: &[PathBuf]) -> Self {
        let members = pool.members.iter().map(|member| {
            let drive = match &member.state {
                MemberState::Ready { store } => Some(store.clone()),
                MemberState::Missing => None,
            };
            let saw = drive.as_ref().map_or(Sight::Missing, see);
            let look = Look {
                drive: RwLock::new(drive),
                running: AtomicBool::new(false),
                since: Mutex::new(Instant::now()),
                saw: Mutex::new(saw),
            };
            Watched { slot: member.slot, id: member.drive.0, look: Arc::new(look) }
        });
        let strangers = pool.strangers.iter().map(|stranger| (stranger.path.clone(), stranger.why.to_string())).collect();
        Self { pool: pool.id, directories: directories.to_vec(), members: members.collect(), strangers: RwLock::new(strangers) }
    }

    /// Begins a look at each drive that has none outstanding.
    pub(crate) fn look(&self, runtime: &Handle) {
        for member in &self.members {
            let Some(drive) = member.look.drive.read().clone() else { continue };
            let look = Arc::clone(&member.look);
            if look.running.swap(true, Ordering::AcqRel) {
                continue;
            }
            *look.since.lock() = Instant::now();
            runtime.spawn_blocking(move || {
                let sight = see(&drive);
                *look.saw.lock() = sight;
                look.running.store(false, Ordering::Release);
            });
        }
    }

    /// Members by slot.
    pub(crate) fn members(&self) -> &[Watched] {
        &self.members
    }

    /// Named directories that hold no member, and why.
    pub(crate) fn strangers(&self) -> Vec<(PathBuf, String)> {
        self.strangers.read().clone()
    }

    /// Opens members that were away and are in one of the directories again. Blocks as long as a drive takes to answer.
    pub(crate) fn returned(&self) -> Vec<(u128, DriveStore)> {
        let mut back = Vec::new();
        for member in self.members.iter().filter(|member| matches!(member.sight(), Sight::Missing | Sight::Gone(_))) {
            if let Some(drive) = self.directories.iter().find_map(|path| self.open_if(path, member.id)) {
                tracing::info!(slot = member.slot, path = %drive.path().display(), "a drive is back");
                *member.look.saw.lock() = see(&drive);
                self.strangers.write().retain(|(path, _)| path != drive.path());
                *member.look.drive.write() = Some(drive.clone());
                back.push((member.id, drive));
            }
        }
        back
    }

    fn open_if(&self, path: &Path, id: u128) -> Option<DriveStore> {
        match DriveStore::inspect(path) {
            Ok(DriveState::Ours { identity }) if identity.drive.0 == id && identity.pool == self.pool => {
                let opened = DriveStore::open(path, self.pool);
                // In use by ourselves: it only flickered, and the open one works again.
                opened
                    .inspect_err(|why| tracing::debug!(path = %path.display(), %why, "a drive that is back cannot be opened"))
                    .ok()
            }
            _ => None,
        }
    }
}

impl Watched {
    /// Where it was found.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        self.look.drive.read().as_ref().map(|drive| drive.path().to_owned())
    }

    /// What the last look saw.
    pub(crate) fn sight(&self) -> Sight {
        if self.look.running.load(Ordering::Acquire) && self.look.since.lock().elapsed() > PATIENCE {
            return Sight::Silent;
        }
        self.look.saw.lock().clone()
    }

    /// Its name for people: number and place.
    pub(crate) fn name(&self) -> String {
        match self.path() {
            Some(path) => format!("drive {} ({})", self.slot, path.display()),
            None => format!("drive {} ({:032x})", self.slot, self.id),
        }
    }
}

fn see(drive: &DriveStore) -> Sight {
    match drive.space() {
        Ok(space) => Sight::There(space),
        Err(fault) if fault.kind() == FaultKind::Gone => {
            Sight::Gone("its directory is gone, or something else is mounted there".to_owned())
        }
        Err(fault) => Sight::Gone(fault.cause().to_string()),
    }
}
