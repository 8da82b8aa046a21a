//! Volumes that no guest has, nor gets while it lasts: what a guest must not see happen under its hands is done with this in hand.
//!
//! Their sockets are away meanwhile and changes to volumes are locked out. A guest that came between the look and the removal of the
//! socket is found by the count of connections; then nothing is done and it gets its disk back. After a start, guests that were
//! connected before are still on their way: whoever wants one of these volumes waits that long.

use std::time::Duration;

use lamina_api::problem::Problem;
use lamina_contract::{VolumeId, VolumeName};
use parking_lot::MutexGuard;

use crate::detached::Detached;
use crate::served::Served;

/// How often it is looked whether a guest came back.
const POLL: Duration = Duration::from_millis(50);

/// See the file's header. The sockets come back when it goes.
pub(crate) struct Unguested<'a> {
    served: &'a Served,
    detached: MutexGuard<'a, Detached>,
    away: Vec<(VolumeId, VolumeName)>,
}

impl Served {
    /// These volumes without guests.
    ///
    /// # Errors
    /// When a guest has one of them, before anything is changed.
    pub(crate) fn unguested(&self, volumes: Vec<(VolumeId, VolumeName)>) -> Result<Unguested<'_>, Problem> {
        self.wait_for_guests(&volumes)?;
        let detached = self.changes();
        for (id, name) in &volumes {
            self.refuse_connected(*id, name)?;
        }
        let mut unguested = Unguested { served: self, detached, away: Vec::with_capacity(volumes.len()) };
        for (id, name) in volumes {
            let had_guest = self.unserve(id, &name);
            unguested.away.push((id, name.clone()));
            if had_guest {
                return Err(self.in_use(&name));
            }
        }
        Ok(unguested)
    }

    /// Waits until guests that had one of these volumes before a restart must have come back. Before any lock.
    fn wait_for_guests(&self, volumes: &[(VolumeId, VolumeName)]) -> Result<(), Problem> {
        while volumes.iter().any(|(id, _)| self.is_expecting(*id)) {
            volumes.iter().try_for_each(|(id, name)| self.refuse_connected(*id, name))?;
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Unguested<'_> {
    /// The list of volumes that have no socket, for a change that ends with them.
    pub(crate) fn detached(&mut self) -> &mut Detached {
        &mut self.detached
    }
}

impl Drop for Unguested<'_> {
    fn drop(&mut self) {
        for (id, name) in &self.away {
            // One that was deleted meanwhile is not open any more.
            if self.detached.contains(*id) || self.served.node.volume(*id).is_none() {
                continue;
            }
            if let Err(problem) = self.served.serve(*id, name) {
                tracing::error!(volume = %name, %problem, "not served again: `lamina volume attach` tries it");
            }
        }
    }
}
