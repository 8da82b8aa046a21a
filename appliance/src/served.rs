//! The appliance behind the interface: volumes of the node and their sockets.
//!
//! A volume is attached unless an operator detached it; that is kept in `meta/detached.json` and written before the answer. Changes go
//! one at a time. Creating: the engine registers and stores the volume, then the socket is made; a crash between leaves a volume that the
//! next start attaches. Detaching: the list first, then the socket goes.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use lamina_api::appliance::{Overview, Volumes};
use lamina_api::call_counts::CallCounts;
use lamina_api::label::Labels;
use lamina_api::listener::MAX_SOCKET_PATH;
use lamina_api::page::{Page, Paged};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::status::{Degradation, Status};
use lamina_api::target::TargetList;
use lamina_api::volume::{ChangeVolume, CreateVolume, Volume, VolumeFilter, VolumeList};
use lamina_cluster::EmbeddedCoordination;
use lamina_contract::snapshot::check_labels;
use lamina_contract::{
    BlockDevice, BlockSize, Clock, Coordination, CoordinationError, ScoSize, Timestamp, VolumeId, VolumeName, VolumeRecord,
    VolumeSettings, VolumeSpec,
};
use lamina_distributor::Distributor;
use lamina_engine::{EngineError, HeldCounters, Limits, Node, Paced, Pacer, VolumeStatus};
use lamina_vhost_blk::{CounterSnapshot, Drained, Server, ServerError, ServerOptions};
use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::runtime::Handle;

use crate::degraded::{self, States};
use crate::detached::Detached;
use crate::machines::Machines;
use crate::records::Records;
use crate::relations::Relations;
use crate::reserved;
use crate::settings::Settings;
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
    pub(crate) machines: Arc<Machines>,
    pub(crate) pacer: Pacer,
    clock: Arc<dyn Clock>,
    coordination: Arc<EmbeddedCoordination>,
    runtime: Handle,
    vhost: PathBuf,
    fronts: RwLock<Fronts>,
    /// Held during each change, so that they go one at a time.
    detached: Mutex<Detached>,
    began: Instant,
    started: Timestamp,
    recovery: Duration,
    calls: OnceLock<Arc<CallCounts>>,
    this: OnceLock<Weak<Self>>,
}

/// The sockets there are.
#[derive(Default)]
struct Fronts {
    of: BTreeMap<VolumeId, Front>,
    /// The daemon ends: none is made any more, or guests would come back to volumes that are being closed.
    are_closing: bool,
}

/// A volume's socket, and what holds its guest to limits.
#[derive(Clone)]
struct Front {
    server: Arc<Server>,
    paced: Arc<Paced>,
    /// Made by a start: until then a guest that had it before may be on its way back.
    expecting_until: Option<Instant>,
}

impl Front {
    /// Lets held requests go and ends the socket.
    fn stop(&self) -> Drained {
        self.paced.set_limits(Limits::default());
        self.server.stop()
    }
}

impl Served {
    /// Takes the parts over; serves nothing yet.
    pub(crate) fn new(parts: Parts, settings: Settings, vhost: PathBuf, kept: Kept, runtime: Handle) -> Self {
        let machines = Machines::new(Arc::clone(&parts.node), Arc::clone(&kept.records.documents), runtime.clone());
        let started = parts.clock.wall();
        Self {
            machines: Arc::new(machines),
            node: parts.node,
            store: parts.store,
            watch: parts.watch,
            settings,
            transitions: Transitions::default(),
            repairs: Repairs::default(),
            records: kept.records,
            pacer: Pacer::new(parts.clock.clone()),
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
            this: OnceLock::new(),
        }
    }

    /// For jobs, which outlive the call that begins them.
    pub(crate) fn know_itself(self: &Arc<Self>) {
        // Told once, by the start.
        let _ = self.this.set(Arc::downgrade(self));
    }

    pub(crate) fn this(&self) -> Result<Arc<Self>, Problem> {
        let this = self.this.get().and_then(Weak::upgrade);
        this.ok_or_else(|| Problem::new(ProblemKind::Unavailable, "the daemon is starting or ending"))
    }

    /// Waits for the engine in a thread that may.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Changes go one at a time: to volumes, their sockets, and what is a disk of which VM.
    pub(crate) fn changes(&self) -> MutexGuard<'_, Detached> {
        self.detached.lock()
    }

    /// Every volume as it is registered.
    pub(crate) fn records(&self) -> Result<Vec<VolumeRecord>, Problem> {
        self.coordination.list().map_err(|error| of_coordination(&error))
    }

    /// Who is whose clone, at this moment.
    pub(crate) fn relations(&self) -> Result<Relations, Problem> {
        let records = self.coordination.list().map_err(|error| of_coordination(&error))?;
        Ok(Relations::of(&records, &self.node))
    }

    /// What limits hold back, by volume.
    pub(crate) fn held(&self) -> BTreeMap<VolumeId, HeldCounters> {
        self.fronts.read().of.iter().map(|(id, front)| (*id, front.paced.counters())).collect()
    }

    /// Tells a volume's guest that it may have another size.
    pub(crate) fn resized(&self, id: VolumeId) {
        if let Some(front) = self.fronts.read().of.get(&id) {
            front.server.resized();
        }
    }

    /// Serves volumes that were just made, or notes that they are not to be.
    pub(crate) fn attach_new(&self, volumes: &[(VolumeId, VolumeName)], attach: bool) -> Result<(), Problem> {
        let mut detached = self.detached.lock();
        for (id, name) in volumes {
            if attach {
                self.serve(*id, name)?;
            } else {
                detached.insert(*id).map_err(|error| unkept(&error))?;
            }
        }
        Ok(())
    }

    fn is_connected(&self, id: VolumeId) -> bool {
        self.fronts.read().of.get(&id).is_some_and(|front| front.server.counters().connected)
    }

    /// Whether a guest that had the volume before the start may be on its way back to it.
    pub(crate) fn is_expecting(&self, id: VolumeId) -> bool {
        let fronts = self.fronts.read();
        let is_due = |front: &Front| front.expecting_until.is_some_and(|until| Instant::now() < until);
        fronts.of.get(&id).is_some_and(|front| is_due(front) && front.server.counters().connections == 0)
    }

    /// Attaches every volume that was not detached. One that cannot be served is logged and listed as degraded.
    pub(crate) fn attach_all(&self) {
        let detached = self.detached.lock();
        for volume in self.node.volumes() {
            if detached.contains(volume.id()) {
                continue;
            }
            let expecting = Some(Instant::now() + self.settings.reconnect_wait);
            if let Err(problem) = self.serve_expecting(volume.id(), &volume.spec().name, expecting) {
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
        let fronts = {
            let mut fronts = self.fronts.write();
            fronts.are_closing = true;
            std::mem::take(&mut fronts.of)
        };
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
        self.fronts.read().of.iter().map(|(id, front)| (*id, front.server.counters())).collect()
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
            let without = volumes.iter().filter(|volume| !fronts.of.contains_key(&volume.id) && !detached.contains(volume.id));
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
            troubles: &self.records.documents.troubles(),
            audit: self.records.audit.trouble().as_deref(),
        })
    }

    pub(crate) fn find(&self, name: &VolumeName) -> Result<VolumeRecord, Problem> {
        let records = self.coordination.list().map_err(|error| of_coordination(&error))?;
        records.into_iter().find(|record| !record.deleting && record.spec.name == *name).ok_or_else(|| {
            Problem::new(ProblemKind::NotFound, format!("no volume '{name}'")).advise("`lamina volume list` shows all volumes")
        })
    }

    /// A volume that no guest is connected to, for reading and writing it.
    pub(crate) fn idle(&self, name: &VolumeName) -> Result<Arc<lamina_engine::Volume>, Problem> {
        let record = self.find(name)?;
        self.refuse_connected(record.id, name)?;
        self.node.volume(record.id).ok_or_else(|| {
            Problem::new(ProblemKind::Unavailable, format!("volume '{name}' is not open"))
                .advise("`lamina status` and the daemon's log say why")
        })
    }

    pub(crate) fn refuse_connected(&self, id: VolumeId, name: &VolumeName) -> Result<(), Problem> {
        if self.is_connected(id) { Err(self.in_use(name)) } else { Ok(()) }
    }

    pub(crate) fn in_use(&self, name: &VolumeName) -> Problem {
        Problem::new(ProblemKind::Conflict, format!("a guest uses volume '{name}'"))
            .advise("shut the guest down or take the disk from it first")
    }

    fn show(&self, record: &VolumeRecord, relations: &Relations) -> Volume {
        let volume = self.node.volume(record.id);
        let front = self.fronts.read().of.get(&record.id).map(|front| Arc::clone(&front.server));
        let counters = front.as_ref().map(|front| front.counters());
        view::volume(record, volume.as_deref(), relations, front.as_ref().map(|front| front.path()), counters.as_ref())
    }

    /// Makes the volume's socket, unless it is there.
    pub(crate) fn serve(&self, id: VolumeId, name: &VolumeName) -> Result<(), Problem> {
        self.serve_expecting(id, name, None)
    }

    fn serve_expecting(&self, id: VolumeId, name: &VolumeName, expecting_until: Option<Instant>) -> Result<(), Problem> {
        if self.fronts.read().of.contains_key(&id) {
            return Ok(());
        }
        let Some(volume) = self.node.volume(id) else {
            return Err(Problem::new(ProblemKind::Unavailable, format!("volume '{name}' is not open"))
                .advise("`lamina status` and the daemon's log say why"));
        };
        let path = self.socket(name);
        let options = ServerOptions { queues: QUEUES, drain_timeout: DRAIN, ..ServerOptions::default() };
        let paced = self.pacer.pace(volume.clone() as Arc<dyn BlockDevice>);
        paced.set_limits(limits_of(&volume.settings()));
        let server = Server::bind(&path, Arc::clone(&paced) as Arc<dyn BlockDevice>, options).map_err(|error| of_server(&error))?;
        let front = Front { server: Arc::new(server), paced, expecting_until };
        {
            let mut fronts = self.fronts.write();
            if !fronts.are_closing {
                fronts.of.insert(id, front);
                tracing::info!(volume = %name, socket = %path.display(), "attached");
                return Ok(());
            }
        }
        front.stop();
        Err(Problem::new(ProblemKind::Unavailable, "the daemon is ending"))
    }

    fn socket(&self, name: &VolumeName) -> PathBuf {
        self.vhost.join(format!("{name}.sock"))
    }

    /// A socket's path is short by nature: said before a volume is made that could not be served.
    pub(crate) fn check_socket(&self, name: &VolumeName) -> Result<(), Problem> {
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

    /// Removes the volume's socket, if it has one. Whether a guest had it, up to the moment when it was gone.
    pub(crate) fn unserve(&self, id: VolumeId, name: &VolumeName) -> bool {
        let Some(front) = self.fronts.write().of.remove(&id) else { return false };
        let before = front.server.counters();
        if let Drained::Unanswered(left) = front.stop() {
            tracing::warn!(volume = %name, left, "requests were left unanswered");
        }
        tracing::info!(volume = %name, "detached");
        before.connected || front.server.counters().connections > before.connections
    }
}

impl Served {
    /// Refuses to delete what clones stand on, what is pinned, and snapshots that nobody spoke of.
    fn refuse_needed(&self, record: &VolumeRecord, with_snapshots: bool) -> Result<(), Problem> {
        let name = &record.spec.name;
        let clones = self.node.clones_of(record.id, None).map_err(|error| of_engine(&error))?;
        if !clones.is_empty() {
            let detail = format!("volume '{name}' has {} clone{}: {}", clones.len(), plural(clones.len()), few(&clones));
            return Err(Problem::new(ProblemKind::Conflict, detail).advise("delete or flatten them first"));
        }
        // Not open: whether it has pinned snapshots is not known, and they would go with it.
        let snapshots = self.open_volume(name)?.snapshots();
        let names = |wanted: &dyn Fn(&lamina_engine::Snapshot) -> bool| -> Vec<_> {
            snapshots.iter().filter(|snapshot| wanted(snapshot)).map(|snapshot| snapshot.note.name.clone()).collect()
        };
        let pinned = names(&|snapshot| snapshot.note.pinned);
        if !pinned.is_empty() {
            let detail = format!("volume '{name}' has {} pinned snapshot{}: {}", pinned.len(), plural(pinned.len()), few(&pinned));
            return Err(Problem::new(ProblemKind::Conflict, detail).advise("unpin them first"));
        }
        let all = names(&|_| true);
        if !all.is_empty() && !with_snapshots {
            let detail = format!("volume '{name}' has {} snapshot{}: {}", all.len(), plural(all.len()), few(&all));
            return Err(Problem::new(ProblemKind::Conflict, detail).advise("delete them first, or say that they go with it"));
        }
        Ok(())
    }
}

impl Served {
    /// Deletes a volume that was found to be free for it and has no socket, and its snapshots when `snapshots` says so.
    pub(crate) fn delete_now(
        &self,
        detached: &mut Detached,
        id: VolumeId,
        name: &VolumeName,
        snapshots: bool,
    ) -> Result<(), Problem> {
        self.runtime.block_on(self.node.delete(id, snapshots)).map_err(|error| of_engine(&error))?;
        if let Err(error) = detached.remove(id) {
            // An identity is never used again: the entry costs 19 bytes.
            tracing::debug!(volume = %name, %error, "the list of detached volumes keeps a deleted one");
        }
        Ok(())
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
        let relations = Relations::of(&records, &self.node);
        let shown = records.iter().map(|record| self.show(record, &relations)).filter(|volume| filter.holds(volume));
        // A volume that is being deleted has given its name away: its identity keeps the two apart.
        let Paged { entries, next } = page.cut(shown, |volume| format!("{} {}", volume.name, volume.id));
        Ok(VolumeList { volumes: entries, next })
    }

    fn volume(&self, name: &VolumeName) -> Result<Volume, Problem> {
        let record = self.find(name)?;
        Ok(self.show(&record, &self.relations()?))
    }

    fn create_volume(&self, request: &CreateVolume) -> Result<Volume, Problem> {
        let spec = spec(request)?;
        let name = spec.name.clone();
        self.check_socket(&name)?;
        let changes = self.detached.lock();
        let volume =
            self.runtime.block_on(self.node.create_with(spec, settings_in(request)?)).map_err(|error| of_engine(&error))?;
        self.serve(volume.id(), &name).map_err(|problem| {
            let detail = format!("volume '{name}' was made but is not served: {}", problem.detail);
            Problem::new(problem.kind, detail).advise(format!("`lamina volume attach {name}` tries again"))
        })?;
        drop(changes);
        self.volume(&name)
    }

    fn change_volume(&self, name: &VolumeName, change: &ChangeVolume) -> Result<Volume, Problem> {
        let volume = self.open_volume(name)?;
        let id = volume.id();
        // What a guest must not see happen.
        let wants_no_guest = || {
            let shrinks = change.size_bytes.is_some_and(|bytes| bytes < volume.size_bytes());
            shrinks || change.template.is_some_and(|template| template != volume.settings().template)
        };
        let (unguested, changes) = if wants_no_guest() {
            (Some(self.unguested(vec![(id, name.clone())])?), None)
        } else {
            (None, Some(self.detached.lock()))
        };
        if unguested.is_none() && wants_no_guest() {
            return Err(Problem::new(ProblemKind::Conflict, format!("volume '{name}' was changed meanwhile")).advise("ask again"));
        }
        let mut settings = (*volume.settings()).clone();
        if let Some(labels) = &change.labels {
            settings.labels = reserved::replaced(&settings.labels, labels)?;
            // Before the size is changed: all of it or nothing.
            check_labels(&settings.labels).map_err(|error| of_unit(&error))?;
        }
        if let Some(changes) = change.settings {
            settings = with_settings(changes.applied_to(view::settings_of(&settings)), settings);
        }
        settings.template = change.template.unwrap_or(settings.template);
        if let Some(bytes) = change.size_bytes {
            self.block_on(self.node.resize(id, bytes, change.force)).map_err(|error| of_engine(&error))?;
            self.resized(id);
        }
        if settings != *volume.settings() {
            let limits = limits_of(&settings);
            self.block_on(self.node.change_settings(id, settings)).map_err(|error| of_engine(&error))?;
            if let Some(front) = self.fronts.read().of.get(&id) {
                front.paced.set_limits(limits);
            }
        }
        drop((unguested, changes));
        self.volume(name)
    }

    fn delete_volume(&self, name: &VolumeName, snapshots: bool) -> Result<(), Problem> {
        let record = self.find(name)?;
        let mut unguested = self.unguested(vec![(record.id, name.clone())])?;
        self.machines.refuse_disks([name.as_str()], None)?;
        self.refuse_needed(&record, snapshots)?;
        self.delete_now(unguested.detached(), record.id, name, snapshots)
    }

    fn attach(&self, name: &VolumeName) -> Result<Volume, Problem> {
        let mut detached = self.detached.lock();
        let record = self.find(name)?;
        self.serve(record.id, name)?;
        detached.remove(record.id).map_err(|error| unkept(&error))?;
        Ok(self.show(&record, &self.relations()?))
    }

    fn detach(&self, name: &VolumeName, force: bool) -> Result<Volume, Problem> {
        let mut detached = self.detached.lock();
        let record = self.find(name)?;
        if !force {
            self.refuse_connected(record.id, name)?;
        }
        detached.insert(record.id).map_err(|error| unkept(&error))?;
        self.unserve(record.id, name);
        Ok(self.show(&record, &self.relations()?))
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

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// The first few names.
fn few<T: std::fmt::Display>(names: &[T]) -> String {
    const SHOWN: usize = 5;
    let mut text = names.iter().take(SHOWN).map(T::to_string).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

/// Labels as the interface has them.
pub(crate) fn labels_of(labels: &lamina_contract::Labels) -> Labels {
    reserved::shown(labels)
}

fn settings_in(request: &CreateVolume) -> Result<VolumeSettings, Problem> {
    let labels = reserved::checked(&request.labels)?;
    Ok(with_settings(request.settings, VolumeSettings { labels, ..VolumeSettings::default() }))
}

/// `before` with what the interface says; 0 is no limit.
fn with_settings(wanted: lamina_api::volume::VolumeSettings, before: VolumeSettings) -> VolumeSettings {
    let some = |number: u64| (number > 0).then_some(number);
    VolumeSettings {
        iops: some(wanted.qos.iops),
        bandwidth: some(wanted.qos.bandwidth_bytes),
        burst_ms: wanted.qos.burst_seconds * 1000,
        cdp_ms: wanted.cdp_seconds * 1000,
        cache_quota: some(wanted.cache_quota_bytes),
        ..before
    }
}

fn limits_of(settings: &VolumeSettings) -> Limits {
    Limits {
        iops: settings.iops.and_then(NonZeroU64::new),
        bandwidth: settings.bandwidth.and_then(NonZeroU64::new),
        burst: (settings.burst_ms > 0).then(|| Duration::from_millis(settings.burst_ms)),
    }
}

pub(crate) fn of_unit(error: &lamina_contract::UnitError) -> Problem {
    Problem::new(ProblemKind::InvalidRequest, error.to_string())
}

pub(crate) fn of_coordination(error: &CoordinationError) -> Problem {
    match error {
        CoordinationError::NameTaken { .. } => Problem::caused(ProblemKind::Conflict, error).advise("choose another name"),
        CoordinationError::Unknown { .. } => Problem::caused(ProblemKind::NotFound, error),
        CoordinationError::Fenced { .. } => Problem::caused(ProblemKind::Conflict, error),
        CoordinationError::HasClones { .. } => Problem::caused(ProblemKind::Conflict, error).advise("delete or flatten them first"),
        CoordinationError::Unavailable { .. } => {
            Problem::caused(ProblemKind::Unavailable, error).advise("the daemon's log says more")
        }
    }
}

pub(crate) fn of_engine(error: &EngineError) -> Problem {
    let conflict = |advice: &str| Problem::caused(ProblemKind::Conflict, error).advise(advice);
    match error {
        EngineError::Unit(inner) => of_unit(inner),
        EngineError::LongDescription { .. } => Problem::caused(ProblemKind::InvalidRequest, error),
        EngineError::NoSnapshot { .. } => Problem::caused(ProblemKind::NotFound, error),
        EngineError::SnapshotExists { .. } => conflict("choose another name"),
        EngineError::Pinned { .. } => conflict("unpin it first"),
        EngineError::SnapshotHasClones { .. } => conflict("delete or flatten them first"),
        EngineError::TooDeep { .. } => conflict("flatten it first"),
        EngineError::WouldCut { .. } => conflict("say `force` to cut it off, or take a snapshot first"),
        EngineError::HasSnapshots { .. } => conflict("delete them first, or say that they go with it"),
        EngineError::Flattening { .. } => conflict("wait for that job, or cancel it"),
        EngineError::SnapshotsHoldParent { .. } => conflict("delete its snapshots, flatten it, and take new ones"),
        EngineError::Cancelled => Problem::caused(ProblemKind::Conflict, error),
        EngineError::NotInWindow { begins, .. } => Problem::caused(ProblemKind::Conflict, error).advise(match begins {
            Some(begins) => format!("its window begins at {}", lamina_api::instant::rfc3339_not_before(*begins)),
            None => "it keeps no past: set a CDP window first".to_owned(),
        }),
        EngineError::TooManyWaiting { .. }
        | EngineError::Halted { .. }
        | EngineError::Busy { .. }
        | EngineError::NoRoom { .. }
        | EngineError::StoreDown
        | EngineError::ParentNotOpen { .. } => {
            Problem::caused(ProblemKind::Unavailable, error).advise("`lamina status` says what is wrong")
        }
        EngineError::Coordination(inner) => of_coordination(inner),
        EngineError::VolumeSize { .. } => Problem::caused(ProblemKind::InvalidRequest, error),
        EngineError::Unknown { .. } => Problem::caused(ProblemKind::NotFound, error),
        EngineError::Store { .. } => {
            Problem::caused(ProblemKind::Unavailable, error).advise("`lamina status` says which drives are missing or full")
        }
        // The map's pages are in the store, too.
        EngineError::Map(_) if is_of_store(error) => {
            Problem::caused(ProblemKind::Unavailable, error).advise("`lamina status` says which drives are missing or full")
        }
        EngineError::Unreadable { .. } => Problem::caused(ProblemKind::Unavailable, error)
            .advise("bring missing drives back (`lamina status`) and ask again; what stays unreadable must be restored first"),
        EngineError::LeftAlone { .. } => Problem::caused(ProblemKind::Unavailable, error).advise("ask again"),
        EngineError::Interrupted => Problem::caused(ProblemKind::Unavailable, error).advise("ask again when it is back"),
        EngineError::Thread(_) => Problem::caused(ProblemKind::Unavailable, error)
            .advise("the system has no thread to give: lower the load, or raise its limits"),
        EngineError::Map(_)
        | EngineError::Journal(_)
        | EngineError::Cache(_)
        | EngineError::Format { .. }
        | EngineError::BlockMissing { .. }
        | EngineError::WrongBlock { .. }
        | EngineError::JournalDamage { .. }
        | EngineError::JournalGap { .. }
        | EngineError::NoRoot { .. }
        | EngineError::MemoryCap { .. } => {
            Problem::caused(ProblemKind::Internal, error).advise("`lamina status` and the daemon's log say more")
        }
    }
}

/// Whether a store that did not answer is at the end of it.
fn is_of_store(error: &EngineError) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        if next.is::<object_store::Error>() {
            return true;
        }
        cause = next.source();
    }
    false
}

fn of_server(error: &ServerError) -> Problem {
    let kind = match error {
        ServerError::Path { .. } => ProblemKind::InvalidRequest,
        ServerError::InUse { .. } => ProblemKind::Conflict,
        _ => ProblemKind::Internal,
    };
    Problem::caused(kind, error)
}

pub(crate) fn unkept(error: &std::io::Error) -> Problem {
    Problem::new(ProblemKind::Internal, format!("the list of detached volumes could not be written: {error}"))
}

#[cfg(test)]
mod tests {
    use lamina_api::problem::ProblemKind;
    use lamina_contract::{BlockAddress, Timestamp, VolumeId};
    use lamina_engine::EngineError;
    use object_store::path::Path;

    use super::of_engine;

    #[test]
    fn what_passes_by_itself_or_by_bringing_drives_back_is_no_defect() {
        let (volume, object) = (VolumeId(1), Path::from("v/sco/1"));
        for error in [
            EngineError::Unreadable { volume, block: BlockAddress(1) },
            EngineError::LeftAlone { object: object.clone() },
            EngineError::Interrupted,
        ] {
            let problem = of_engine(&error);
            assert_eq!((problem.kind, problem.advice.is_some()), (ProblemKind::Unavailable, true), "{error}");
        }
        for error in [EngineError::BlockMissing { object: object.clone() }, EngineError::NoRoot { volume }] {
            assert_eq!(of_engine(&error).kind, ProblemKind::Internal, "{error}");
        }
    }

    #[test]
    fn the_moment_that_is_advised_lies_within_the_window() {
        let error = EngineError::NotInWindow { volume: VolumeId(1), begins: Some(Timestamp(1_767_225_600_250)) };
        assert!(of_engine(&error).advice.is_some_and(|advice| advice.ends_with("2026-01-01T00:00:01Z")));
    }
}
