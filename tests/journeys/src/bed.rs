//! A daemon with six drives in a directory that goes when the value does.

use std::path::Path;
use std::time::{Duration, Instant};

use lamina_contract::units::ByteSize;
use lamina_harness::{Daemon, DaemonOptions, HarnessError, Place, VolumeInfo};
use serde_json::Value;

/// A running daemon and its directory. Field order is drop order: the daemon ends before its directory goes.
#[derive(Debug)]
pub struct Bed {
    /// The daemon.
    pub daemon: Daemon,
    /// Its directory.
    pub place: Place,
}

impl Bed {
    /// Six drives, 4+2, ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn new() -> Result<Self, HarnessError> {
        Self::with(|_, _| Ok(()))
    }

    /// Like [`Bed::new`] with changed options.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn with(change: impl FnOnce(&mut DaemonOptions, &Path) -> Result<(), HarnessError>) -> Result<Self, HarnessError> {
        let place = Place::new()?;
        let mut options = DaemonOptions::six_drives(place.path())?;
        change(&mut options, place.path())?;
        Ok(Self { daemon: Daemon::start(options)?, place })
    }

    /// A volume, served.
    ///
    /// # Errors
    /// When it cannot be created, or its socket does not appear.
    pub fn volume(&self, name: &str, size: ByteSize) -> Result<VolumeInfo, HarnessError> {
        let volume = self.daemon.create_volume(name, size)?;
        wait_attached(&volume.socket)?;
        Ok(volume)
    }
}

/// Waits until a volume's socket is there (a daemon that started again may be ready before its last volume is served).
///
/// # Errors
/// [`HarnessError::Late`].
pub fn wait_attached(socket: &Path) -> Result<(), HarnessError> {
    let limit = Duration::from_secs(30);
    let until = Instant::now() + limit;
    while !socket.exists() {
        if Instant::now() > until {
            let waiting_for = format!("socket {}", socket.display());
            return Err(HarnessError::Late { program: "laminad".to_owned(), waiting_for, limit, log: String::new() });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Waits until no guest is connected to a volume any more: a daemon may hear a moment later that a guest's machine has ended.
///
/// # Errors
/// [`HarnessError::Late`].
pub fn wait_unconnected(daemon: &Daemon, volume: &str) -> Result<(), HarnessError> {
    let limit = Duration::from_secs(20);
    let until = Instant::now() + limit;
    while daemon.volume(volume)?.json["connected"] == true {
        if Instant::now() > until {
            let waiting_for = format!("end of the connection to {volume}");
            return Err(HarnessError::Late { program: "laminad".to_owned(), waiting_for, limit, log: String::new() });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Takes a drive away while the daemon uses it, as `rm -rf` does: what is written to it meanwhile is removed too.
///
/// # Errors
/// [`HarnessError::File`].
pub fn lose_drive(drive: &Path) -> Result<(), HarnessError> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match std::fs::remove_dir_all(drive) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !drive.exists() => return Ok(()),
            Err(error) if Instant::now() > until => return Err(HarnessError::file("remove", drive)(error)),
            Err(_) => {}
        }
    }
}

/// A number at a path of keys in an answer, 0 when absent.
#[must_use]
pub fn counter(answer: &Value, path: &[&str]) -> u64 {
    path.iter().fold(answer, |value, key| &value[*key]).as_u64().unwrap_or(0)
}

/// Whether `status` says that something required is missing.
#[must_use]
pub fn is_degraded(status: &Value) -> bool {
    status["health"] == "degraded"
}

/// What `status` says is missing, in words.
#[must_use]
pub fn degradations(status: &Value) -> Vec<String> {
    let list = status["degraded"].as_array().into_iter().flatten();
    list.map(|one| format!("{}: {}", one["what"].as_str().unwrap_or("?"), one["detail"].as_str().unwrap_or("?"))).collect()
}

/// Waits until everything that guests wrote is stored behind.
///
/// # Errors
/// [`HarnessError::Late`].
pub fn drain(daemon: &Daemon, volumes: &[&str], limit: Duration) -> Result<(), HarnessError> {
    let until = Instant::now() + limit;
    loop {
        let mut pending = 0;
        let mut last = Value::Null;
        for name in volumes {
            last = daemon.volume(name)?.json;
            pending += counter(&last, &["counters", "pending_bytes"]);
        }
        if pending == 0 {
            return Ok(());
        }
        if Instant::now() > until {
            let log = serde_json::to_string_pretty(&last).unwrap_or_default();
            return Err(HarnessError::Late {
                program: "laminad".to_owned(),
                waiting_for: "data stored behind".to_owned(),
                limit,
                log,
            });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
