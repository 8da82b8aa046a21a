//! Where things are. Names in paths are [`VolumeName`]s or [`Name`]s, which need no escaping.

use lamina_contract::VolumeName;

use crate::name::{JobId, Name};

/// Release and interface version.
pub const VERSION: &str = "/api/v1/version";
/// This interface, described as OpenAPI.
pub const OPENAPI: &str = "/api/v1/openapi.json";
/// The appliance as a whole.
pub const STATUS: &str = "/api/v1/status";
/// The members of the store.
pub const TARGETS: &str = "/api/v1/targets";
/// Prometheus text.
pub const METRICS: &str = "/metrics";

/// All volumes: list and create.
pub const VOLUMES: &str = "/api/v1/volumes";
/// One volume: show, change and delete.
pub const VOLUME: &str = "/api/v1/volumes/{name}";
/// Begins to serve a volume on its socket.
pub const VOLUME_ATTACH: &str = "/api/v1/volumes/{name}/attach";
/// Stops serving a volume and removes its socket.
pub const VOLUME_DETACH: &str = "/api/v1/volumes/{name}/detach";
/// A volume's snapshots: list and take.
pub const SNAPSHOTS: &str = "/api/v1/volumes/{name}/snapshots";
/// One snapshot: show, change and delete.
pub const SNAPSHOT: &str = "/api/v1/volumes/{name}/snapshots/{snapshot}";
/// Takes a volume back.
pub const VOLUME_ROLLBACK: &str = "/api/v1/volumes/{name}/rollback";
/// Makes clones of a volume.
pub const VOLUME_CLONES: &str = "/api/v1/volumes/{name}/clones";
/// Makes a clone independent of its parent.
pub const VOLUME_FLATTEN: &str = "/api/v1/volumes/{name}/flatten";
/// Runs of a volume that hold data.
pub const VOLUME_EXTENTS: &str = "/api/v1/volumes/{name}/extents";
/// A volume's bytes.
pub const VOLUME_DATA: &str = "/api/v1/volumes/{name}/data";

/// All VMs: list and create.
pub const VMS: &str = "/api/v1/vms";
/// One VM: show, change and delete.
pub const VM: &str = "/api/v1/vms/{name}";
/// A VM's snapshots: list and take.
pub const VM_SNAPSHOTS: &str = "/api/v1/vms/{name}/snapshots";
/// One snapshot of a VM: show and delete.
pub const VM_SNAPSHOT: &str = "/api/v1/vms/{name}/snapshots/{snapshot}";
/// Takes a VM back.
pub const VM_ROLLBACK: &str = "/api/v1/vms/{name}/rollback";
/// Makes clones of a VM.
pub const VM_CLONES: &str = "/api/v1/vms/{name}/clones";
/// Makes a VM a template, or a machine again.
pub const VM_TEMPLATE: &str = "/api/v1/vms/{name}/template";

/// All schedules: list and create.
pub const SCHEDULES: &str = "/api/v1/schedules";
/// One schedule: show, change and delete.
pub const SCHEDULE: &str = "/api/v1/schedules/{name}";

/// All jobs.
pub const JOBS: &str = "/api/v1/jobs";
/// One job: show, and forget when it ended.
pub const JOB: &str = "/api/v1/jobs/{id}";
/// Asks a job to end early.
pub const JOB_CANCEL: &str = "/api/v1/jobs/{id}/cancel";

/// All tokens: list and create.
pub const TOKENS: &str = "/api/v1/tokens";
/// One token: delete.
pub const TOKEN: &str = "/api/v1/tokens/{name}";
/// The audit log.
pub const AUDIT: &str = "/api/v1/audit";

/// [`VOLUME`] of this name.
#[must_use]
pub fn volume(name: &VolumeName) -> String {
    format!("{VOLUMES}/{name}")
}

/// What a volume has or does: `attach`, `snapshots`, `clones`, …
#[must_use]
pub fn of_volume(name: &VolumeName, part: &str) -> String {
    format!("{VOLUMES}/{name}/{part}")
}

/// [`SNAPSHOT`] of these names.
#[must_use]
pub fn snapshot(volume: &VolumeName, snapshot: &Name) -> String {
    format!("{VOLUMES}/{volume}/snapshots/{snapshot}")
}

/// [`VM`] of this name.
#[must_use]
pub fn vm(name: &Name) -> String {
    format!("{VMS}/{name}")
}

/// What a VM has or does: `snapshots`, `rollback`, `clones`, `template`.
#[must_use]
pub fn of_vm(name: &Name, part: &str) -> String {
    format!("{VMS}/{name}/{part}")
}

/// [`VM_SNAPSHOT`] of these names.
#[must_use]
pub fn vm_snapshot(vm: &Name, snapshot: &Name) -> String {
    format!("{VMS}/{vm}/snapshots/{snapshot}")
}

/// [`SCHEDULE`] of this name.
#[must_use]
pub fn schedule(name: &Name) -> String {
    format!("{SCHEDULES}/{name}")
}

/// [`JOB`] of this number.
#[must_use]
pub fn job(id: JobId) -> String {
    format!("{JOBS}/{id}")
}

/// [`JOB_CANCEL`] of this number.
#[must_use]
pub fn job_cancel(id: JobId) -> String {
    format!("{JOBS}/{id}/cancel")
}

/// [`TOKEN`] of this name.
#[must_use]
pub fn token(name: &Name) -> String {
    format!("{TOKENS}/{name}")
}
