//! The seam between the routes and whatever answers them. Calls may block; the routes make them on threads for that.

use lamina_contract::VolumeName;

use crate::problem::Problem;
use crate::status::{Status, Version};
use crate::target::TargetList;
use crate::volume::{CreateVolume, Volume, VolumeList};

/// What the interface can ask for. A [`Problem`] is the caller's answer, word for word.
pub trait Appliance: Send + Sync + 'static {
    /// Release and interface.
    fn version(&self) -> Version {
        Version { version: env!("CARGO_PKG_VERSION").to_owned(), api: "v1".to_owned() }
    }

    /// Everything at a glance.
    ///
    /// # Errors
    /// When it cannot be known.
    fn status(&self) -> Result<Status, Problem>;

    /// All volumes, by name.
    ///
    /// # Errors
    /// When they cannot be known.
    fn volumes(&self) -> Result<VolumeList, Problem>;

    /// One volume.
    ///
    /// # Errors
    /// `NotFound`, or when it cannot be known.
    fn volume(&self, name: &VolumeName) -> Result<Volume, Problem>;

    /// Makes a volume and attaches it.
    ///
    /// # Errors
    /// `InvalidRequest`, `Conflict`, or why it could not be made.
    fn create(&self, request: &CreateVolume) -> Result<Volume, Problem>;

    /// Deletes a volume that no guest uses.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, or why it could not be deleted.
    fn delete(&self, name: &VolumeName) -> Result<(), Problem>;

    /// Serves a volume on its socket, now and after each restart. Nothing happens when it is attached.
    ///
    /// # Errors
    /// `NotFound`, or why it could not be served.
    fn attach(&self, name: &VolumeName) -> Result<Volume, Problem>;

    /// Stops serving a volume. Nothing happens when it is detached.
    ///
    /// # Errors
    /// `NotFound`, or why it could not be stopped.
    fn detach(&self, name: &VolumeName) -> Result<Volume, Problem>;

    /// The members of the store.
    ///
    /// # Errors
    /// When they cannot be known.
    fn targets(&self) -> Result<TargetList, Problem>;

    /// Prometheus text.
    fn metrics(&self) -> String;
}
