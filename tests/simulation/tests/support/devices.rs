//! Devices under nodes that run on threads of their own, by the clock on the wall: they outlive a node, and keep no log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lamina_contract::Coordination;
use lamina_engine::{Background, JournalConfig, Node, NodeConfig, Seams};
use lamina_simulation::disk_image::DiskImage;
use lamina_simulation::fault::Faults;
use lamina_simulation::log::Log;
use lamina_simulation::real_clock::RealClock;
use lamina_simulation::sim_disk::{Role, SimDisk};
use lamina_simulation::sim_registry::SimRegistry;
use lamina_simulation::sim_store::SimStore;
use tokio::runtime::Runtime;

/// See the file's header.
pub struct Devices {
    pub journal: Arc<SimDisk>,
    pub cache: Arc<SimDisk>,
    pub store: SimStore,
    pub store_faults: Faults,
    pub registry: Arc<dyn Coordination>,
}

impl Devices {
    /// Empty ones.
    pub fn fresh() -> Self {
        Self::with_registry(|rules| rules)
    }

    /// Empty ones, with a registry that does `with` what a healthy one would.
    pub fn with_registry<R: Coordination + 'static>(with: impl FnOnce(Arc<SimRegistry>) -> Arc<R>) -> Self {
        let log = Log::default();
        let _ = log.close();
        let store_faults = Faults::default();
        let disk = |role| Arc::new(SimDisk::over(&DiskImage::default(), role, log.clone(), Faults::default()));
        Self {
            journal: disk(Role::Journal),
            cache: disk(Role::Cache),
            store: SimStore::over(Arc::default(), log.clone(), store_faults.clone()),
            store_faults,
            registry: with(Arc::new(SimRegistry::over(&[], log.clone()))),
        }
    }

    /// A node on them.
    pub fn open(&self, runtime: &Runtime) -> Arc<Node> {
        let seams = Seams {
            journal_disk: self.journal.clone(),
            cache_disk: self.cache.clone(),
            page_store: None,
            store: Arc::new(self.store.clone()),
            coordination: self.registry.clone(),
            clock: Arc::new(RealClock::default()),
            runtime: runtime.handle().clone(),
        };
        let config = NodeConfig {
            journal: JournalConfig { bytes: 16 << 20, segment_bytes: 4 << 20 },
            cache_bytes: 4 << 20,
            memory_cap: 200 << 20,
            store_lag_ms: 100,
            background: Background::Running,
        };
        runtime.block_on(Node::open(config, seams)).expect("a healthy node opens")
    }
}

/// For a node's tasks.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("a runtime")
}

/// Waits a minute at most until something is `done`.
pub fn until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no {what} for a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}
