//! Where things are. Names in paths are [`VolumeName`]s, which need no escaping.

use lamina_contract::VolumeName;

/// Release and interface version.
pub const VERSION: &str = "/api/v1/version";
/// The appliance as a whole.
pub const STATUS: &str = "/api/v1/status";
/// All volumes: list and create.
pub const VOLUMES: &str = "/api/v1/volumes";
/// One volume: show and delete.
pub const VOLUME: &str = "/api/v1/volumes/{name}";
/// Begins to serve a volume on its socket.
pub const VOLUME_ATTACH: &str = "/api/v1/volumes/{name}/attach";
/// Stops serving a volume and removes its socket.
pub const VOLUME_DETACH: &str = "/api/v1/volumes/{name}/detach";
/// The members of the store.
pub const TARGETS: &str = "/api/v1/targets";
/// Prometheus text.
pub const METRICS: &str = "/metrics";

/// [`VOLUME`] of this name.
#[must_use]
pub fn volume(name: &VolumeName) -> String {
    format!("{VOLUMES}/{name}")
}

/// [`VOLUME_ATTACH`] of this name.
#[must_use]
pub fn volume_attach(name: &VolumeName) -> String {
    format!("{VOLUMES}/{name}/attach")
}

/// [`VOLUME_DETACH`] of this name.
#[must_use]
pub fn volume_detach(name: &VolumeName) -> String {
    format!("{VOLUMES}/{name}/detach")
}
