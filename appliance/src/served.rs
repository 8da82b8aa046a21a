//! The appliance behind the interface: volumes of the node and their sockets.
//!
//! A volume is attached unless an operator detached it; that is kept in `meta/detached.json` and written before the answer. Changes go
//! one at a time. Creating: the engine registers and stores the volume, then the socket is made; a crash between leaves a volume that the
//! next start attaches. Detaching: the list first, then the socket goes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lamina_api::appliance::{Overview, Volumes};
use lamina_api::call_counts::CallCounts;
use lamina_api::listener::MAX_SOCKET_PATH;
use lamina_api::page::{Page, Paged};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::status::{Degradation, Status};
use lamina_api::target::TargetList;
use lamina_api::volume::{ChangeVolume, CreateVolume, Volume, VolumeFilter, VolumeList};
use lamina_cluster::EmbeddedCoordination;
use lamina_contract::{
    BlockDevice, BlockSize, Clock, Coordination, CoordinationError, ScoSize, Timestamp, VolumeId, VolumeName, VolumeRecord,
    VolumeSpec,
};
use lamina_distributor::Distributor;
use lamina_engine::{EngineError, Node, VolumeStatus};
use lamina_vhost_blk::{CounterSnapshot, Drained, Server, ServerError, ServerOptions};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;

use crate::degraded::{self, States};
use crate::detached::Detached;
use crate::records::Records;
use crate::settings::Settings;
use crate::unconnected::not_connected;
use crate::upkeep::Repairs;
use crate::view;
use crate::watch::Watch;
use crate::wiring::Parts;
use crate::{exposition, telemetry::Transitions};

/// Queues offered to a guest: one per virtual CPU up to this.
const QUEUES: u16 = 16;

/// How long a front end's answers in flight are waited for when its socket goes.
const DRAIN: Duration = Duration::from_secs(10);

/// What the daemon keeps beside volumes.
pub(crate) struct Kept {
    pub(crate) detached: Detached,
    pub(crate) records: Records,
}

/// Volumes, sockets and what is told about them.
pub(crate) struct Served {
    pub(crate) node: Arc<Node>,
    pub(crate) store: Arc<Distributor>,
    pub(crate) watch: Watch,
    pub(crate) settings: Settings,
    pub(crate) transitions: Transitions,
    pub(crate) repairs: Repairs,
    pub(crate) records: Records,
    clock: Arc<dyn Clock>,
    coordination: Arc<EmbeddedCoordination>,
    runtime: Handle,
    vhost: PathBuf,
    fronts: RwLock<BTreeMap<VolumeId, Arc<Server>>>,
    /// Held during each change, so that they go one at a time.
    detached: Mutex<Detached>,
    began: Instant,
    started: Timestamp,
    recovery: Duration,
    calls: OnceLock<Arc<CallCounts>>,
}

impl Served {
    /// Takes the parts over; serves nothing yet.
    pub(crate) fn new(parts: Parts, settings: Settings, vhost: PathBuf, kept: Kept, runtime: Handle) -> Self {
        let started = parts.clock.wall();
        Self {
            node: parts.node,
            store: parts.store,
            watch: parts.watch,
            settings,
            transitions: Transitions::default(),
            repairs: Repairs::default(),
            records: kept.records,
            clock: parts.clock,
            coordination: parts.coordination,
            runtime,
            vhost,
            fronts: RwLock::default(),
            detached: Mutex::new(kept.detached),
            began: Instant::now(),
            started,
            recovery: Duration::ZERO,
            calls: OnceLock::new(),
        }
    }

    /// Attaches every volume that was not detached. One that cannot be served is logged and listed as degraded.
    pub(crate) fn attach_all(&self) {
        let detached = self.detached.lock();
        for volume in self.node.volumes() {
            if detached.contains(volume.id()) {
                continue;
            }
            if let Err(problem) = self.serve(volume.id(), &volume.spec().name) {
                tracing::error!(volume = %volume.spec().name, %problem, "the volume is not served");
            }
        }
    }

    /// Notes how long the start took.
    pub(crate) fn ready(&mut self, recovery: Duration) {
        self.recovery = recovery;
        self.began = Instant::now();
        self.started = self.clock.wall();
    }

    /// Notes where the interface counts its requests.
    pub(crate) fn counted_by(&self, calls: Arc<CallCounts>) {
        // The first one stays: there is one interface.
        let _ = self.calls.set(calls);
    }

    /// What the interface counts, once it is there.
    pub(crate) fn calls(&self) -> Option<&CallCounts> {
        self.calls.get().map(Arc::as_ref)
    }

    /// Stops all front ends at once and waits for them.
    pub(crate) fn stop_fronts(&self) {
        let fronts = std::mem::take(&mut *self.fronts.write());
        let stopping: Vec<_> = fronts.into_values().map(|front| std::thread::spawn(move || front.stop())).collect();
        for thread in stopping {
            match thread.join() {
                Ok(Drained::Clean) => {}
                Ok(Drained::Unanswered(left)) => tracing::warn!(left, "requests were left unanswered"),
                Err(_) => tracing::error!("a front end ended abnormally"),
            }
        }
    }

    /// How long the daemon has been ready.
    pub(crate) fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// When it was ready.
    pub(crate) fn started(&self) -> Timestamp {
        self.started
    }

    /// How long its start took.
    pub(crate) fn recovery(&self) -> Duration {
        self.recovery
    }

    /// What front ends count, by volume.
    pub(crate) fn fronts(&self) -> BTreeMap<VolumeId, CounterSnapshot> {
        self.fronts.read().iter().map(|(id, front)| (*id, front.counters())).collect()
    }

    /// Every open volume's status, by name.
    pub(crate) fn statuses(&self) -> Vec<VolumeStatus> {
        let mut statuses: Vec<_> = self.node.volumes().iter().map(|volume| volume.status()).collect();
        statuses.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        statuses
    }

    /// What is not as it should be, now.
    pub(crate) fn degradations(&self) -> Vec<Degradation> {
        let volumes = self.statuses();
        let fronts = self.fronts.read();
        // While a change is under way, a volume without a socket is no fault.
        let unserved = self.detached.try_lock().map_or_else(Vec::new, |detached| {
            let without = volumes.iter().filter(|volume| !fronts.contains_key(&volume.id) && !detached.contains(volume.id));
            without.map(|volume| volume.spec.name.to_string()).collect()
        });
        drop(fronts);
        degraded::degradations(&States {
            policy: self.settings.policy,
            watch: &self.watch,
            targets: &self.store.health(),
            store: self.store.stats(),
            node: &self.node.status(),
            volumes: &volumes,
            unopened: &self.node.unopened(),
            unserved: &unserved,
            unreadable: self.repairs.unreadable(),
            damaged: self.records.documents.damaged(),
        })
    }

    fn find(&self, name: &VolumeName) -> Result<VolumeRecord, Problem> {
        let records = self.coordination.list().map_err(|error| of_coordination(&error))?;
        records.into_iter().find(|record| !record.deleting && record.spec.name == *name).ok_or_else(|| {
            Problem::new(ProblemKind::NotFound, format!("no volume '{name}'")).advise("`lamina volume list` shows all volumes")
        })
    }

    /// A volume that no guest is connected to, for reading and writing it.
    pub(crate) fn idle(&self, name: &VolumeName) -> Result<Arc<lamina_engine::Volume>, Problem> {
        let record = self.find(name)?;
        if self.fronts.read().get(&record.id).is_some_and(|front| front.counters().connected) {
            return Err(Problem::new(ProblemKind::Conflict, format!("a guest uses volume '{name}'"))
                .advise("shut the guest down or take the disk from it first"));
        }
        self.node.volume(record.id).ok_or_else(|| {
            Problem::new(ProblemKind::Unavailable, format!("volume '{name}' is not open"))
                .advise("`lamina status` and the daemon's log say why")
        })
    }

    fn show(&self, record: &VolumeRecord) -> Volume {
        let status = self.node.volume(record.id).map(|volume| volume.status());
        let fronts = self.fronts.read();
        let front = fronts.get(&record.id);
        view::volume(record, status.as_ref(), front.map(|front| front.path()), front.map(|front| front.counters()).as_ref())
    }

    /// Makes the volume's socket, unless it is there.
    fn serve(&self, id: VolumeId, name: &VolumeName) -> Result<(), Problem> {
        if self.fronts.read().contains_key(&id) {
            return Ok(());
        }
        let Some(volume) = self.node.volume(id) else {
            return Err(Problem::new(ProblemKind::Unavailable, format!("volume '{name}' is not open"))
                .advise("`lamina status` and the daemon's log say why"));
        };
        let path = self.socket(name);
        let options = ServerOptions { queues: QUEUES, drain_timeout: DRAIN, ..ServerOptions::default() };
        let front = Server::bind(&path, volume as Arc<dyn BlockDevice>, options).map_err(|error| of_server(&error))?;
        tracing::info!(volume = %name, socket = %path.display(), "attached");
        self.fronts.write().insert(id, Arc::new(front));
        Ok(())
    }

    fn socket(&self, name: &VolumeName) -> PathBuf {
        self.vhost.join(format!("{name}.sock"))
    }

    /// A socket's path is short by nature: said before a volume is made that could not be served.
    fn check_socket(&self, name: &VolumeName) -> Result<(), Problem> {
        let path = self.socket(name);
        if path.as_os_str().len() <= MAX_SOCKET_PATH {
            return Ok(());
        }
        let detail = format!(
            "the socket of volume '{name}' would be {}, longer than the {MAX_SOCKET_PATH} bytes of a socket's path",
            path.display()
        );
        Err(Problem::new(ProblemKind::InvalidRequest, detail)
            .advise("choose a shorter name, or a shorter --state-dir or runtime_dir"))
    }

    /// Removes the volume's socket, if it has one.
    fn unserve(&self, id: VolumeId, name: &VolumeName) {
        let front = self.fronts.write().remove(&id);
        if let Some(front) = front {
            if let Drained::Unanswered(left) = front.stop() {
                tracing::warn!(volume = %name, left, "requests were left unanswered");
            }
            tracing::info!(volume = %name, "detached");
        }
    }
}

impl Overview for Served {
    fn now(&self) -> Timestamp {
        self.clock.wall()
    }

    fn status(&self) -> Result<Status, Problem> {
        Ok(view::status(self, self.degradations()))
    }

    fn targets(&self) -> Result<TargetList, Problem> {
        Ok(view::targets(self))
    }

    fn metrics(&self) -> String {
        exposition::text(self)
    }
}

impl Volumes for Served {
    fn volumes(&self, filter: &VolumeFilter, page: &Page) -> Result<VolumeList, Problem> {
        let mut records = self.coordination.list().map_err(|error| of_coordination(&error))?;
        records.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        // The filter knows shown volumes only; the page is cut before the rest is shown.
        let shown = records.iter().map(|record| self.show(record)).filter(|volume| filter.holds(volume));
        // A volume that is being deleted has given its name away: its identity keeps the two apart.
        let Paged { entries, next } = page.cut(shown, |volume| format!("{} {}", volume.name, volume.id));
        Ok(VolumeList { volumes: entries, next })
    }

    fn volume(&self, name: &VolumeName) -> Result<Volume, Problem> {
        self.find(name).map(|record| self.show(&record))
    }

    fn create_volume(&self, request: &CreateVolume) -> Result<Volume, Problem> {
        let spec = spec(request)?;
        let name = spec.name.clone();
        self.check_socket(&name)?;
        let changes = self.detached.lock();
        let volume = self.runtime.block_on(self.node.create(spec)).map_err(|error| of_engine(&error))?;
        self.serve(volume.id(), &name).map_err(|problem| {
            let detail = format!("volume '{name}' was made but is not served: {}", problem.detail);
            Problem::new(problem.kind, detail).advise(format!("`lamina volume attach {name}` tries again"))
        })?;
        drop(changes);
        self.volume(&name)
    }

    fn change_volume(&self, name: &VolumeName, _: &ChangeVolume) -> Result<Volume, Problem> {
        self.find(name)?;
        Err(not_connected())
    }

    fn delete_volume(&self, name: &VolumeName, _snapshots: bool) -> Result<(), Problem> {
        let mut detached = self.detached.lock();
        let record = self.find(name)?;
        if self.fronts.read().get(&record.id).is_some_and(|front| front.counters().connected) {
            return Err(Problem::new(ProblemKind::Conflict, format!("a guest uses volume '{name}'"))
                .advise("shut the guest down or take the disk from it first"));
        }
        self.unserve(record.id, name);
        if let Err(error) = self.runtime.block_on(self.node.delete(record.id)) {
            if !detached.contains(record.id)
                && let Err(problem) = self.serve(record.id, name)
            {
                tracing::warn!(volume = %name, %problem, "not served again after a deletion that failed");
            }
            return Err(of_engine(&error));
        }
        if let Err(error) = detached.remove(record.id) {
            // An identity is never used again: the entry costs 19 bytes.
            tracing::debug!(volume = %name, %error, "the list of detached volumes keeps a deleted one");
        }
        Ok(())
    }

    fn attach(&self, name: &VolumeName) -> Result<Volume, Problem> {
        let mut detached = self.detached.lock();
        let record = self.find(name)?;
        self.serve(record.id, name)?;
        detached.remove(record.id).map_err(|error| unkept(&error))?;
        Ok(self.show(&record))
    }

    fn detach(&self, name: &VolumeName) -> Result<Volume, Problem> {
        let mut detached = self.detached.lock();
        let record = self.find(name)?;
        detached.insert(record.id).map_err(|error| unkept(&error))?;
        self.unserve(record.id, name);
        Ok(self.show(&record))
    }
}

fn spec(request: &CreateVolume) -> Result<VolumeSpec, Problem> {
    let invalid = |error: lamina_contract::UnitError| Problem::new(ProblemKind::InvalidRequest, error.to_string());
    Ok(VolumeSpec {
        name: VolumeName::new(&request.name).map_err(invalid)?,
        size_bytes: request.size_bytes,
        block_size: request.block_size.map_or(Ok(BlockSize::DEFAULT), BlockSize::new).map_err(invalid)?,
        sco_size: request.sco_size.map_or(Ok(ScoSize::DEFAULT), ScoSize::new).map_err(invalid)?,
        read_only: request.read_only,
    })
}

fn of_coordination(error: &CoordinationError) -> Problem {
    match error {
        CoordinationError::NameTaken { .. } => Problem::caused(ProblemKind::Conflict, error).advise("choose another name"),
        CoordinationError::Unknown { .. } => Problem::caused(ProblemKind::NotFound, error),
        CoordinationError::Fenced { .. } => Problem::caused(ProblemKind::Conflict, error),
        CoordinationError::Unavailable { .. } => {
            Problem::caused(ProblemKind::Unavailable, error).advise("the daemon's log says more")
        }
    }
}

fn of_engine(error: &EngineError) -> Problem {
    match error {
        EngineError::Coordination(inner) => of_coordination(inner),
        EngineError::VolumeSize { .. } => Problem::caused(ProblemKind::InvalidRequest, error),
        EngineError::Unknown { .. } => Problem::caused(ProblemKind::NotFound, error),
        EngineError::Store { .. } => {
            Problem::caused(ProblemKind::Unavailable, error).advise("`lamina status` says which drives are missing or full")
        }
        _ => Problem::caused(ProblemKind::Internal, error).advise("the daemon's log says more"),
    }
}

fn of_server(error: &ServerError) -> Problem {
    let kind = match error {
        ServerError::Path { .. } => ProblemKind::InvalidRequest,
        ServerError::InUse { .. } => ProblemKind::Conflict,
        _ => ProblemKind::Internal,
    };
    Problem::caused(kind, error)
}

fn unkept(error: &std::io::Error) -> Problem {
    Problem::new(ProblemKind::Internal, format!("the list of detached volumes could not be written: {error}"))
}
