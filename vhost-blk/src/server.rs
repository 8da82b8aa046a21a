//! A server: one socket, one device, one front end at a time.
//!
//! The accepting thread hands a connection to a thread of its own. While that one is served, others are refused; once its
//! front end is gone, the next one waits until the writes of the last are answered, so that they cannot land on top of its own.
//! A crash leaves the socket file, which the next [`Server::bind`] replaces.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use lamina_contract::{BlockDevice, SectorCount};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::geteuid;

use crate::capacity::Capacity;
use crate::connection;
use crate::counters::{CounterSnapshot, Counters};
use crate::frontend::has_hung_up;
use crate::options::{ServerError, ServerOptions};
use crate::sigbus;
use crate::socket::Listener;
use crate::stopping::Stopping;

/// After an accept that failed for lack of resources.
const BACK_OFF: Duration = Duration::from_millis(100);

/// What [`Server::stop`] left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every request was answered.
    Clean,
    /// The device had not answered this many requests when the time was up. It no longer reaches the guest's memory for reads.
    Unanswered(u32),
}

/// A vhost-user-blk server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    options: Arc<ServerOptions>,
    counters: Arc<Counters>,
    stopping: Arc<Stopping>,
    capacity: Arc<Capacity>,
    thread: Mutex<Option<JoinHandle<u32>>>,
}

impl Server {
    /// Makes the socket at `path` and serves `device` there until [`Server::stop`].
    ///
    /// The socket's directory is made with mode 0750 if it is missing; the socket has mode 0660. A socket file that nobody listens
    /// on is replaced.
    ///
    /// # Errors
    /// [`ServerError`], with the path.
    pub fn bind(path: impl AsRef<Path>, device: Arc<dyn BlockDevice>, options: ServerOptions) -> Result<Self, ServerError> {
        options.check()?;
        let path = path.as_ref().to_owned();
        let system = |doing| {
            let path = path.clone();
            move |source: io::Error| ServerError::System { doing, path, source }
        };
        sigbus::install().map_err(system("install the SIGBUS guard for"))?;
        let stopping = Arc::new(Stopping::new().map_err(system("make an eventfd for"))?);
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| system("make an eventfd for")(errno.into()))?;
        let capacity = Arc::new(Capacity::new(device).map_err(system("make an eventfd for"))?);
        let listener = Listener::bind(&path)?;
        let counters = Arc::new(Counters::new(options.queues, options.write_cache));
        let options = Arc::new(options);
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let mut reception = Reception {
            name: name.clone(),
            listener,
            capacity: capacity.clone(),
            options: options.clone(),
            counters: counters.clone(),
            stopping: stopping.clone(),
            ended: Arc::new(ended),
            guest: None,
            unanswered: 0,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vhost-{name}"))
            .spawn(move || reception.run())
            .map_err(system("start a thread for"))?;
        Ok(Self { path, options, counters, stopping, capacity, thread: Mutex::new(Some(thread)) })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it counted so far.
    #[must_use]
    pub fn counters(&self) -> CounterSnapshot {
        self.counters.snapshot()
    }

    /// To be called when the device's size has changed: asks it for the new one and answers that.
    ///
    /// From then on requests are checked against the new size and the configuration space shows it, without disturbing requests under way.
    /// A front end that gave us a channel for it (QEMU does) is told at once, from the connection's own thread; another sees the new size
    /// when it reads the configuration next. Never waits for a front end. Several calls in a row may reach it as one message.
    pub fn resized(&self) -> SectorCount {
        let sectors = SectorCount(self.capacity.announce());
        tracing::info!(socket = %self.path.display(), sectors = sectors.0, "the disk has another size");
        sectors
    }

    /// Takes no more requests, waits for answers in flight (at most [`ServerOptions::drain_timeout`]), closes the connection and
    /// removes the socket. A second call finds nothing to do.
    pub fn stop(&self) -> Drained {
        self.stopping.ask(self.options.drain_timeout);
        match self.thread.lock().take().map(JoinHandle::join) {
            Some(Ok(left)) if left > 0 => Drained::Unanswered(left),
            _ => Drained::Clean,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The front end that is being served, or whose requests are still out.
struct Guest {
    stream: UnixStream,
    thread: JoinHandle<u32>,
}

/// The accepting thread's state.
struct Reception {
    name: String,
    listener: Listener,
    capacity: Arc<Capacity>,
    options: Arc<ServerOptions>,
    counters: Arc<Counters>,
    stopping: Arc<Stopping>,
    /// Written by a connection's thread when it ends.
    ended: Arc<OwnedFd>,
    guest: Option<Guest>,
    unanswered: u32,
}

impl Reception {
    fn run(&mut self) -> u32 {
        while !self.stopping.is_stopping() {
            if self.guest.as_ref().is_some_and(|guest| guest.thread.is_finished()) {
                self.see_off();
            }
            // A front end that is gone but not yet seen off: the next one waits in the backlog.
            let leaving = self.guest.as_ref().is_some_and(|guest| has_hung_up(&guest.stream));
            let listen = if leaving { PollFlags::empty() } else { PollFlags::IN };
            let mut fds = [
                PollFd::new(&self.stopping, PollFlags::IN),
                PollFd::new(&self.ended, PollFlags::IN),
                PollFd::new(&self.listener, listen),
            ];
            if poll(&mut fds, None).is_err() {
                continue;
            }
            let [_, ended, waiting] = fds.map(|fd| !fd.revents().is_empty());
            if ended {
                let _ = rustix::io::read(&self.ended, &mut [0u8; 8]);
                // The descriptor is written as the thread's last act: it ends at once.
                self.see_off();
            } else if waiting {
                self.receive();
            }
        }
        self.see_off();
        self.unanswered
    }

    fn receive(&mut self) {
        // Looked at again, since the poll before may be old news.
        if self.guest.as_ref().is_some_and(|guest| has_hung_up(&guest.stream)) {
            return;
        }
        match self.listener.accept() {
            Ok(None) => {}
            Ok(Some((stream, uid))) => {
                let own = geteuid().as_raw();
                let allowed = uid == 0 || uid == own || self.options.allowed_uids.contains(&uid);
                if !allowed || self.guest.is_some() {
                    self.counters.refused.fetch_add(1, Ordering::Relaxed);
                    if self.counters.may_complain() {
                        let reason = if allowed { "another front end is connected" } else { "user is not allowed" };
                        tracing::warn!(socket = %self.name, uid, reason, "connection refused");
                    }
                    return;
                }
                if let Err(error) = self.admit(stream) {
                    tracing::warn!(socket = %self.name, %error, "cannot serve a connection");
                }
            }
            Err(error) => {
                tracing::warn!(socket = %self.name, %error, "cannot accept a connection");
                let back_off = Timespec { tv_sec: 0, tv_nsec: i64::from(BACK_OFF.subsec_nanos()) };
                let _ = poll(&mut [PollFd::new(&self.stopping, PollFlags::IN)], Some(&back_off));
            }
        }
    }

    fn admit(&mut self, stream: UnixStream) -> io::Result<()> {
        let own = stream.try_clone()?;
        let (name, capacity, options) = (self.name.clone(), self.capacity.clone(), self.options.clone());
        let (counters, stopping, ended) = (self.counters.clone(), self.stopping.clone(), self.ended.clone());
        let thread = std::thread::Builder::new().name(format!("vctl-{name}")).spawn(move || {
            counters.connections.fetch_add(1, Ordering::Relaxed);
            counters.connected.store(true, Ordering::Relaxed);
            tracing::info!(socket = %name, "front end connected");
            let left = connection::serve(&name, stream, capacity, options, counters.clone(), stopping).unwrap_or_else(|error| {
                tracing::warn!(socket = %name, %error, "connection failed");
                0
            });
            counters.connected.store(false, Ordering::Relaxed);
            tracing::info!(socket = %name, unanswered = left, "front end disconnected");
            let _ = rustix::io::write(&*ended, &1u64.to_ne_bytes());
            left
        })?;
        self.guest = Some(Guest { stream: own, thread });
        Ok(())
    }

    fn see_off(&mut self) {
        if let Some(guest) = self.guest.take() {
            self.unanswered = guest.thread.join().unwrap_or(0);
        }
    }
}
