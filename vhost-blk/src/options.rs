//! How a server behaves, and why one could not be made.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// How a [`crate::Server`] behaves. `Default` is what a daemon wants.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Queues offered to the guest, 1 to 64.
    pub queues: u16,
    /// Largest ring a front end may set up, a power of two up to 1024; also the bound on requests in flight per queue.
    pub queue_size: u16,
    /// Whether the guest sees a write-back cache, so that it flushes. Without it every write is made durable (`fua`).
    pub write_cache: bool,
    /// Users that may connect besides root and the daemon's own.
    pub allowed_uids: Vec<u32>,
    /// Guest memory that one front end may share, in bytes.
    pub max_guest_memory: u64,
    /// Threads that serve the queues of one connection.
    pub threads: u16,
    /// How long a thread looks at its rings before it sleeps, at most 1 ms; it adapts below that and idles without using CPU. Zero,
    /// the default, turns it off: where guests and daemon share CPUs, looking takes away the time that the guest needs (README,
    /// measured on 2 CPUs). A host with CPUs to spare wins a little latency with 10-50 µs.
    pub poll: Duration,
    /// How long a stopping ring waits for reads; then they are answered with an I/O error. (Writes are always waited for.)
    pub read_patience: Duration,
    /// How long [`crate::Server::stop`] waits for answers in flight.
    pub drain_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            queues: 4,
            queue_size: 1024,
            write_cache: true,
            allowed_uids: Vec::new(),
            max_guest_memory: 16 << 40,
            threads: 2,
            poll: Duration::ZERO,
            read_patience: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// Why a server could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An option outside its bounds.
    #[error("option {option} is out of bounds")]
    Option {
        /// Its name.
        option: &'static str,
    },
    /// The path is empty, has no directory or is longer than a socket address holds.
    #[error("socket path {path} has no file name or is longer than 107 bytes")]
    Path {
        /// The refused path.
        path: PathBuf,
    },
    /// Somebody listens there, or it is not a socket.
    #[error("{path} is in use: another process listens there, or it is not a socket")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {doing} {path}")]
    System {
        /// What we were doing.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl ServerOptions {
    pub(crate) fn check(&self) -> Result<(), ServerError> {
        let rules = [
            ("queues", (1..=64).contains(&self.queues)),
            ("queue_size", self.queue_size.is_power_of_two() && self.queue_size <= 1024),
            ("threads", self.threads >= 1),
            ("poll", self.poll <= Duration::from_millis(1)),
        ];
        match rules.into_iter().find(|(_, holds)| !holds) {
            Some((option, _)) => Err(ServerError::Option { option }),
            None => Ok(()),
        }
    }
}
