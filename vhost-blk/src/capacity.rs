//! How large the disk is now: one number for a server and its connections, asked of the device again whenever it may have changed.
//!
//! Requests are checked against it. A device may shrink while requests are on their way, so it checks them too.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lamina_contract::BlockDevice;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

/// The device and its size as it was last asked.
pub(crate) struct Capacity {
    device: Arc<dyn BlockDevice>,
    sectors: AtomicU64,
    /// Held while the device is asked, so that an older answer never replaces a newer one.
    asking: Mutex<()>,
    /// Readable from a change until a connection has seen it.
    changed: OwnedFd,
}

impl Capacity {
    pub(crate) fn new(device: Arc<dyn BlockDevice>) -> io::Result<Self> {
        let changed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let sectors = AtomicU64::new(device.geometry().sectors.0);
        Ok(Self { device, sectors, asking: Mutex::new(()), changed })
    }

    pub(crate) fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Sectors when the device was last asked.
    pub(crate) fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed)
    }

    /// Asks the device.
    pub(crate) fn ask(&self) -> u64 {
        let _one_at_a_time = self.asking.lock();
        let sectors = self.device.geometry().sectors.0;
        self.sectors.store(sectors, Ordering::Relaxed);
        sectors
    }

    /// Asks the device and wakes the connection, which tells its front end.
    pub(crate) fn announce(&self) -> u64 {
        let sectors = self.ask();
        // Our own eventfd in non-blocking mode: a full counter means that a wake-up is pending.
        let _ = rustix::io::write(&self.changed, &1u64.to_ne_bytes());
        sectors
    }

    /// Takes note of the wake-up; several changes are one.
    pub(crate) fn note(&self) {
        let _ = rustix::io::read(&self.changed, &mut [0u8; 8]);
    }
}

impl AsFd for Capacity {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }
}

impl fmt::Debug for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capacity({} sectors)", self.sectors())
    }
}
