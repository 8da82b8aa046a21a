//! `laminad`: the daemon. Settings, wiring, the interface, telemetry, an orderly end.
//!
//! Exit codes: 0 ended as asked; 1 failed while starting or running; 2 something must be changed first. What a kill leaves is the
//! business of the parts; here only the sockets' files are left, and replaced by the next start.

mod allocator;
mod args;
mod audit_log;
mod audit_sums;
mod clock;
mod config;
mod degraded;
mod detached;
mod documents;
mod drives;
mod exposition;
mod jobs;
mod logging;
mod machines;
mod metrics_page;
mod notify;
mod records;
mod relations;
mod reserved;
mod schedule_runs;
mod schedules;
mod served;
mod settings;
mod snapshots;
mod state_dir;
mod telemetry;
mod tokens;
mod unguested;
mod upkeep;
mod view;
mod vm_clones;
mod vm_sets;
mod vms;
mod volume_data;
mod volume_metrics;
mod watch;
mod wiring;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use lamina_api::appliance::Appliance;
use lamina_api::listener::{LocalListener, MetricsListener, NetworkListener};
use lamina_api::routes::{Interface, Limits};
use lamina_api::tls::{Tls, TlsError};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Arguments;
use crate::detached::Detached;
use crate::notify::Notifier;
use crate::records::Records;
use crate::schedule_runs::Runs;
use crate::served::{Kept, Served};
use crate::settings::{Settings, SettingsError};
use crate::state_dir::{StateDir, StateError};
use crate::wiring::WiringError;

/// How long an orderly end may take before it is cut short; nothing acknowledged depends on it.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(60);

/// How long fragments that are late may take to come to their drives then; what does not come is repaired later.
const LATE_PATIENCE: Duration = Duration::from_secs(10);

/// Threads for what blocks, beside those of the drives.
const BLOCKING_THREADS: usize = 256;

/// Threads for connections of the interface.
const API_THREADS: usize = 2;

/// Threads for its calls: each call that is under way has one, and each of two listeners bounds these to 48 changes and 48 reads. The rest is
/// for notes in the audit log.
const API_CALLS: usize = 224;

/// How much the connections' threads stand behind those that serve guests.
const API_NICE: i32 = 10;
/// How long jobs may take to come to a place where they can end.
const JOBS_PATIENCE: Duration = Duration::from_secs(10);

/// How long tasks that are left may go on after that.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// Why the daemon did not run to its end.
#[derive(Debug, thiserror::Error)]
enum DaemonError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{0}")]
    Wiring(#[source] Box<WiringError>),
    #[error("TLS of the interface")]
    Tls(#[from] TlsError),
    #[error("{doing}")]
    System {
        doing: &'static str,
        #[source]
        cause: io::Error,
    },
}

impl DaemonError {
    fn exit_code(&self) -> u8 {
        let needs_operator = match self {
            Self::Settings(_) | Self::Tls(_) => true,
            Self::State(error) => matches!(error, StateError::InUse { .. }),
            Self::Wiring(error) => error.needs_operator(),
            Self::System { .. } => false,
        };
        if needs_operator { 2 } else { 1 }
    }
}

fn system(doing: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |cause| DaemonError::System { doing, cause }
}

fn main() -> ExitCode {
    allocator::give_large_memory_back();
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With stderr gone too there is nobody left to tell.
            let _ = writeln!(io::stderr(), "laminad: {}", chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

/// The error and its causes in one line; texts that hold their cause already are not said twice.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = next.source();
    }
    text
}

fn run(arguments: &Arguments) -> Result<(), DaemonError> {
    if arguments.list_failpoints {
        let names = lamina_engine::failpoint::ALL.join("\n");
        return writeln!(io::stdout(), "{names}").map_err(system("printing"));
    }
    let settings = Settings::load(arguments)?;
    let tls = settings.api.as_ref().map(|api| Tls::load(api.tls.clone())).transpose()?;
    if arguments.check {
        return writeln!(io::stdout(), "the configuration is right").map_err(system("printing"));
    }
    logging::start(&settings.log, settings.log_format);
    raise_descriptor_limit();
    let began = Instant::now();
    let state = StateDir::take(&settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Drives that hang keep their threads: what is left must do.
        .max_blocking_threads(BLOCKING_THREADS + settings.drives.len() * lamina_stores::drive::OPERATIONS)
        .thread_name("lamina")
        .build()
        .map_err(system("starting threads"))?;
    let behind = rustix::process::getpriority_process(None).unwrap_or(0) + API_NICE;
    let interface = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(API_THREADS)
        .thread_name("lamina-api")
        .on_thread_start(move || stand_back(behind))
        .build()
        .map_err(system("starting threads"))?;
    let calls = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(1)
        .max_blocking_threads(API_CALLS)
        .thread_name("lamina-call")
        .build()
        .map_err(system("starting threads"))?;
    let ended = serve(Runtimes { main: &runtime, interface: &interface, calls: &calls }, settings, tls, &state, began);
    interface.shutdown_timeout(LAST_PATIENCE);
    calls.shutdown_timeout(LAST_PATIENCE);
    runtime.shutdown_timeout(LAST_PATIENCE);
    ended
}

/// Sets of threads, so that a flood of requests takes none that serves a guest. Those of connections stand back. Those of calls do not: what
/// they start (a volume's socket has threads) inherits their priority, and serves guests.
#[derive(Clone, Copy)]
struct Runtimes<'a> {
    main: &'a Runtime,
    interface: &'a Runtime,
    calls: &'a Runtime,
}

/// Linux counts niceness by thread. Set, not added: a thread begins with that of the one that starts it.
fn stand_back(niceness: i32) {
    if let Err(errno) = rustix::process::setpriority_process(None, niceness) {
        tracing::debug!(%errno, "a thread of the interface keeps its priority");
    }
}

fn serve(
    runtimes: Runtimes<'_>,
    settings: Settings,
    tls: Option<Tls>,
    state: &StateDir,
    began: Instant,
) -> Result<(), DaemonError> {
    let runtime = runtimes.main;
    let notifier = Arc::new(Notifier::from_environment());
    // Before anything is opened, so that a signal during recovery is not lost.
    let guard = runtime.enter();
    let mut terminate = signal(SignalKind::terminate()).map_err(system("listening for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("listening for signals"))?;
    drop(guard);
    let metrics = settings.metrics_listen.map(MetricsListener::bind).transpose().map_err(system("binding the metrics address"))?;
    let network = settings.api.as_ref().map(|api| api.listen).zip(tls);
    let network = network.map(|(address, tls)| NetworkListener::bind(address, tls)).transpose();
    let network = network.map_err(system("binding the address of the interface"))?;
    let detached = Detached::open(state.detached_file());
    let parts = runtime.block_on(wiring::open(&settings, state)).map_err(|error| DaemonError::Wiring(Box::new(error)))?;
    let kept = Kept { detached, records: Records::open(state, &parts.clock, runtime.handle().clone()) };
    let mut served = Served::new(parts, settings, state.vhost().to_owned(), kept, runtime.handle().clone());
    served.pacer.start().map_err(system("starting the pacing thread"))?;
    served.attach_all();
    let local = LocalListener::bind(state.api_socket()).map_err(system("binding the local socket"))?;
    served.ready(began.elapsed());
    let served = Arc::new(served);
    served.know_itself();

    let mut tasks = vec![runtime.spawn(telemetry::run(Arc::clone(&served), Arc::clone(&notifier)))];
    tasks.push(runtime.spawn(upkeep::run(Arc::clone(&served))));
    tasks.push(runtime.spawn(upkeep::reopen(Arc::clone(&served))));
    tasks.push(runtime.spawn(Arc::clone(&served.machines).thaw_left()));
    tasks.push(runtime.spawn(records::settle_audit(Arc::clone(&served))));
    let runs = Runs::new(Arc::clone(&served.machines));
    let following = Arc::clone(&runs).run(
        served.records.schedules.scheduler(),
        Arc::clone(&served.records.documents),
        Arc::clone(served.clock()),
    );
    tasks.push(runtime.spawn(following));
    let interface = Interface::new(Arc::clone(&served) as Arc<dyn Appliance>, Some(runtimes.calls.handle().clone()));
    served.counted_by(interface.counts());
    if let Some(metrics) = metrics {
        tasks.push(runtimes.interface.spawn(logged("metrics", metrics.serve(interface.metrics_router()))));
    }
    if let Some(network) = network {
        let serving = network.serve(interface.router(Limits::default()));
        tasks.push(runtimes.interface.spawn(logged("interface on the network", serving)));
    }
    tasks.push(runtimes.interface.spawn(logged("interface", local.serve(interface.router(Limits::default())))));
    announce(&served, state, &notifier);

    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
            _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
        }
    });
    notifier.stopping();
    runtime.block_on(async {
        for task in tasks {
            task.abort();
            // Its end, so that the socket's file is gone.
            let _ = task.await;
        }
        runs.end().await;
        served.records.jobs.end(JOBS_PATIENCE).await;
    });
    end(runtime, &served);
    Ok(())
}

async fn logged(what: &'static str, serving: impl Future<Output = io::Result<()>>) {
    if let Err(error) = serving.await {
        tracing::error!(%error, what, "no longer served");
    }
}

/// The one line on stdout, and systemd.
fn announce(served: &Served, state: &StateDir, notifier: &Notifier) {
    let drives = served.watch.members().len();
    let line = format!(
        "lamina ready: api {}, {drives} drive{}, policy {}",
        state.api_socket().display(),
        if drives == 1 { "" } else { "s" },
        served.settings.policy
    );
    let mut out = io::stdout();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        tracing::debug!(%error, "nobody reads stdout");
    }
    tracing::info!(recovery_ms = served.recovery().as_millis() as u64, volumes = served.fronts().len(), "{line}");
    notifier.ready(&line);
}

/// Front ends first, so that everything acknowledged is in the engine; then the engine. The journal need not be empty.
fn end(runtime: &Runtime, served: &Arc<Served>) {
    let began = Instant::now();
    served.stop_fronts();
    served.pacer.stop();
    let node = Arc::clone(&served.node);
    let ended = runtime.block_on(async { tokio::time::timeout(SHUTDOWN_PATIENCE, node.shutdown()).await });
    if runtime.block_on(async { tokio::time::timeout(LATE_PATIENCE, served.store.quiesce()).await }).is_err() {
        tracing::warn!("a drive did not take its last fragments in time: the next repair makes them");
    }
    match ended {
        Ok(()) => tracing::info!(took_ms = began.elapsed().as_millis() as u64, "ended"),
        Err(_) => tracing::warn!("the engine did not end in time: what is in the journal is replayed at the next start"),
    }
}

/// A connection, a volume and a drive each take descriptors; the soft limit is often 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(errno) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::debug!(%errno, "the limit of open files stays as it is");
    }
}
