//! Who owns a volume and which manifest is its root: implementations of [`lamina_contract::Coordination`].
//!
//! [`EmbeddedCoordination`] keeps the registry of one node in two copies that are compared when it is opened; [`MemoryCoordination`]
//! is for simulations and can take volumes away. Both apply the same rules (`registry.rs`) and pass the same suite.
//! This crate knows no store, no manifest's content and no device.

mod embedded;
mod memory;
mod registry;
mod row;
mod sealed;
mod second_copy;
mod sled_copy;

#[cfg(test)]
mod conformance;

pub use embedded::{CopyError, EmbeddedCoordination, RegistryError};
pub use memory::MemoryCoordination;
pub use sealed::SealError;
