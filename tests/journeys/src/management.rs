//! Life cycles by the management interface, each a call: what the command does too, quicker than a process each, and from a thread
//! beside the one that kills the daemon.

use lamina_harness::{Daemon, HarnessError, VolumeInfo};
use serde_json::{Value, json};

/// A daemon that somebody else may kill meanwhile.
pub(crate) struct Management(Daemon);

impl Management {
    pub fn of(daemon: &Daemon) -> Self {
        Self(daemon.visitor())
    }

    pub fn volume(&self, name: &str) -> Result<VolumeInfo, HarnessError> {
        self.0.volume(name)
    }

    /// Up to a thousand.
    pub fn volumes(&self) -> Result<Vec<Value>, HarnessError> {
        self.list("/api/v1/volumes?limit=1000", "volumes")
    }

    pub fn take_snapshot(&self, volume: &str, name: &str) -> Result<(), HarnessError> {
        self.0.call("POST", &format!("/api/v1/volumes/{volume}/snapshots"), &json!({ "name": name })).map(|_| ())
    }

    /// Up to a thousand.
    pub fn snapshots(&self, volume: &str) -> Result<Vec<Value>, HarnessError> {
        self.list(&format!("/api/v1/volumes/{volume}/snapshots?limit=1000"), "snapshots")
    }

    pub fn delete_snapshot(&self, volume: &str, snapshot: &str) -> Result<(), HarnessError> {
        self.0.call("DELETE", &format!("/api/v1/volumes/{volume}/snapshots/{snapshot}"), &Value::Null).map(|_| ())
    }

    /// A volume that has no snapshots.
    pub fn delete_volume(&self, volume: &str) -> Result<(), HarnessError> {
        self.0.call("DELETE", &format!("/api/v1/volumes/{volume}"), &Value::Null).map(|_| ())
    }

    /// It is served when this returns.
    pub fn clone_volume(&self, volume: &str, snapshot: &str, name: &str) -> Result<(), HarnessError> {
        let wanted = json!({ "snapshot": snapshot, "name": name, "count": 1 });
        let job = self.0.call("POST", &format!("/api/v1/volumes/{volume}/clones"), &wanted)?;
        self.0.finished(job).map(|_| ())
    }

    /// Does not wait for it: the job.
    pub fn begin_flatten(&self, volume: &str) -> Result<Value, HarnessError> {
        self.0.call("POST", &format!("/api/v1/volumes/{volume}/flatten"), &Value::Null)
    }

    pub fn flatten(&self, volume: &str) -> Result<(), HarnessError> {
        self.begin_flatten(volume).and_then(|job| self.0.finished(job)).map(|_| ())
    }

    fn list(&self, path: &str, of: &str) -> Result<Vec<Value>, HarnessError> {
        let answer = self.0.call("GET", path, &Value::Null)?;
        Ok(answer[of].as_array().cloned().unwrap_or_default())
    }
}
