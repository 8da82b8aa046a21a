//! Puts the parts together. The only place that names concrete types of two crates.
//!
//! Order: drives → distributor → registry → journal and cache disks → node, which replays its journal. What fails here fails the start;
//! volumes that cannot be opened do not.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamina_cluster::EmbeddedCoordination;
use lamina_contract::{ByteSize, Clock, Coordination, CoordinationError};
use lamina_distributor::{Distributor, DistributorOptions, FailureDomain, OptionsError, Target};
use lamina_engine::page_store::PageStore;
use lamina_engine::{Background, EngineError, FilePages, JournalConfig, Node, NodeConfig, Seams};
use lamina_stores::{LocalDisk, MemberState, Pool};
use object_store::ObjectStore;
use tokio::runtime::Handle;

use crate::clock::SystemClock;
use crate::drives::{self, DrivesError};
use crate::settings::Settings;
use crate::state_dir::StateDir;
use crate::watch::Watch;

/// A segment of the journal: a 32nd of it within these bounds.
const SEGMENT: std::ops::RangeInclusive<u64> = 4 << 20..=64 << 20;

/// Space for local copies of map pages.
const PAGES: std::ops::RangeInclusive<u64> = 64 << 20..=16 << 30;

/// Everything that runs.
pub(crate) struct Parts {
    pub(crate) node: Arc<Node>,
    pub(crate) store: Arc<Distributor>,
    pub(crate) coordination: Arc<EmbeddedCoordination>,
    pub(crate) watch: Watch,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Why the parts do not come together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WiringError {
    /// The drives.
    #[error(transparent)]
    Drives(#[from] DrivesError),
    /// The distributor's options.
    #[error("the store cannot be set up")]
    Store(#[from] OptionsError),
    /// The registry.
    #[error("the registry cannot be opened")]
    Registry(#[from] CoordinationError),
    /// The journal's or cache's directory.
    #[error("the {what} directory {} cannot be used", path.display())]
    Disk {
        what: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// There is too little space for a new journal and cache.
    #[error(
        "not enough space in {} for a new {what} of {wanted}: {free} are free; choose a smaller --{what}-size or another file system",
        path.display()
    )]
    Space { what: &'static str, path: PathBuf, wanted: ByteSize, free: ByteSize },
    /// The engine.
    #[error("the engine cannot start")]
    Engine(#[source] EngineError),
}

impl WiringError {
    /// Whether an operator must change something before another start can help.
    pub(crate) fn needs_operator(&self) -> bool {
        match self {
            Self::Drives(_) | Self::Store(_) | Self::Space { .. } => true,
            Self::Engine(error) => matches!(error, EngineError::MemoryCap { .. }),
            Self::Registry(_) | Self::Disk { .. } => false,
        }
    }
}

/// Opens everything; returns when the journal is replayed and volumes can be served.
pub(crate) async fn open(settings: &Settings, state: &StateDir) -> Result<Parts, WiringError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    check_space("journal", &settings.journal_dir, settings.journal_size)?;
    check_space("cache", &settings.cache_dir, settings.cache_size)?;
    let pool = drives::open(settings, state, clock.wall())?;
    let watch = Watch::new(&pool, &settings.drives);
    let store = Arc::new(distributor(settings, pool, Arc::clone(&clock))?);
    let coordination = Arc::new(EmbeddedCoordination::open(&state.registry())?);
    let node = Node::open(
        NodeConfig {
            journal: JournalConfig { bytes: settings.journal_size.0, segment_bytes: segment_bytes(settings.journal_size) },
            cache_bytes: settings.cache_size.0,
            memory_cap: settings.memory_cap.0,
            store_lag_ms: settings.store_lag.as_millis() as u64,
            background: Background::Running,
        },
        Seams {
            journal_disk: Arc::new(disk("journal", &settings.journal_dir)?),
            cache_disk: Arc::new(disk("cache", &settings.cache_dir)?),
            page_store: pages(settings, state),
            store: Arc::clone(&store) as Arc<dyn ObjectStore>,
            coordination: Arc::clone(&coordination) as Arc<dyn Coordination>,
            clock: Arc::clone(&clock),
            runtime: Handle::current(),
        },
    );
    let node = node.await.map_err(WiringError::Engine)?;
    Ok(Parts { node, store, coordination, watch, clock })
}

fn distributor(settings: &Settings, pool: Pool, clock: Arc<dyn Clock>) -> Result<Distributor, OptionsError> {
    let mut options = DistributorOptions::new(pool.id, settings.policy, clock);
    options.write_min = Some(settings.write_min);
    let targets = pool.members.into_iter().map(|member| Target {
        id: member.drive.into(),
        store: match member.state {
            MemberState::Ready { store } => Some(Arc::new(store) as Arc<dyn ObjectStore>),
            MemberState::Missing => None,
        },
        // One machine holds all drives of this pool.
        domain: FailureDomain::default(),
        weight: 1,
    });
    Distributor::new(options, targets.collect())
}

/// Local copies of map pages. At 42 bytes a block, an eighth of the cache's space maps twelve times the blocks that the cache holds.
fn pages(settings: &Settings, state: &StateDir) -> Option<Box<dyn PageStore>> {
    let bytes = (settings.cache_size.0 / 8).clamp(*PAGES.start(), *PAGES.end());
    match FilePages::open(&state.pages(), bytes) {
        Ok(pages) => Some(Box::new(pages)),
        Err(error) => {
            tracing::warn!(%error, path = %state.pages().display(), "no local copies of map pages: they come from the store");
            None
        }
    }
}

fn disk(what: &'static str, path: &Path) -> Result<LocalDisk, WiringError> {
    LocalDisk::open(path).map_err(|cause| WiringError::Disk { what, path: path.to_owned(), cause })
}

/// Space is allocated when files are first made; said before anything is founded, a refusal leaves nothing behind.
fn check_space(what: &'static str, path: &Path, wanted: ByteSize) -> Result<(), WiringError> {
    let failed = |cause| WiringError::Disk { what, path: path.to_owned(), cause };
    if std::fs::read_dir(path).map_err(failed)?.next().is_some() {
        return Ok(());
    }
    let stat = rustix::fs::statvfs(path).map_err(|errno| failed(errno.into()))?;
    let free = ByteSize(stat.f_bavail.saturating_mul(stat.f_frsize));
    if free < wanted { Err(WiringError::Space { what, path: path.to_owned(), wanted, free }) } else { Ok(()) }
}

fn segment_bytes(journal: ByteSize) -> u64 {
    let share = (journal.0 / 32).clamp(*SEGMENT.start(), *SEGMENT.end());
    // A power of two, so that it is a multiple of a page.
    1 << share.ilog2()
}

#[cfg(test)]
mod tests {
    use lamina_contract::ByteSize;

    use super::segment_bytes;

    #[test]
    fn segments_are_a_32nd_of_the_journal_within_bounds() {
        assert_eq!(segment_bytes(ByteSize(64 << 20)), 4 << 20);
        assert_eq!(segment_bytes(ByteSize(2 << 30)), 64 << 20);
        assert_eq!(segment_bytes(ByteSize(1 << 40)), 64 << 20);
        assert_eq!(segment_bytes(ByteSize(300_000_001)), 8 << 20);
    }
}
