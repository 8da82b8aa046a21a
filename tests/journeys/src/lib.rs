//! What the journeys and the demo share: a daemon in a directory of its own, questions about its state, and storms of stamped
//! writers. Everything here stands on what users can see: flags, JSON, metrics, sockets.

mod bed;
mod life_cycle;
mod management;
mod root_disk;
mod scripts;
mod storm;

pub use bed::{Bed, counter, degradations, drain, is_degraded, lose_drive, wait_attached, wait_unconnected};
pub use life_cycle::{LifeCycles, LifeReport};
pub use root_disk::{ENTER_ROOT, root_disk};
pub use scripts::{COUNT_FLUSHES, FILES, FOLLOW_SIZE, LIVE_THROUGH, SHOW_MACHINE, WRITE_UNDER_AGENT};
pub use storm::{Storm, StormReport, cycles_from_environment};
