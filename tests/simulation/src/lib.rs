//! A node in a box: engine, journal SSD, cache SSD, store and registry on one thread, from one seed, with a log of everything
//! that reached any of them. After a run, each prefix of that log is a moment at which power or process could have ended.
//!
//! ```text
//! life (a Node on SimDisk, SimStore, SimRegistry) ──▶ log ──▶ moment: prefix of the log + bounds of what must have survived
//!                                                          ──▶ images: what a kill or a power cut at that moment may leave
//!                                                          ──▶ recovery on each image, read back, judged by the oracle
//! ```
//! Parts: [`dice`] chance, [`fault`] I/O errors, [`disk_image`] and [`sim_disk`] the SSD, [`sim_store`] the store, [`sim_registry`]
//! Coordination, [`stamp`] and [`oracle`] what every sector may hold, [`life`] a running node, [`moment`] and [`explore`] the crashes.

pub mod act;
pub mod dice;
pub mod disk_image;
pub mod explore;
pub mod family;
pub mod fault;
pub mod history;
pub mod life;
pub mod log;
pub mod moment;
pub mod oracle;
pub mod real_clock;
pub mod sim_disk;
pub mod sim_registry;
pub mod sim_store;
pub mod stamp;
pub mod transfer;
