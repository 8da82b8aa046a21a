//! The server's wish to end, seen by all of its threads: a flag, a deadline, and a descriptor to poll on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

/// Shared by a server and its threads.
#[derive(Debug)]
pub(crate) struct Stopping {
    deadline: Mutex<Option<Instant>>,
    event: OwnedFd,
}

impl Stopping {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { deadline: Mutex::new(None), event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Asks everyone to end within `patience`. The first deadline counts.
    pub(crate) fn ask(&self, patience: Duration) {
        self.deadline.lock().get_or_insert(Instant::now() + patience);
        // Our own eventfd, never read: from now on it is always readable.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.deadline.lock().is_some()
    }

    /// Whether the deadline has passed.
    pub(crate) fn is_overdue(&self) -> bool {
        self.deadline.lock().is_some_and(|deadline| Instant::now() >= deadline)
    }
}

impl AsFd for Stopping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
