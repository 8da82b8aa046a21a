//! A vhost-user-blk server for any [`lamina_contract::BlockDevice`]: virtqueues in front, batches of requests behind.
//!
//! It knows no volumes. One [`Server`] is one socket with one device; a daemon makes one per volume. Guests and VMMs are
//! hostile: nothing they send may kill, hang or bloat the process, or disturb another server in it.
//!
//! Read in this order: `server` (accepts), `connection` (messages), `frontend` (what messages do to rings), `worker` (takes
//! chains, makes batches), `chain` and `request` (what a chain asks for), `transfer` and `completion` (the way back), `ring` and
//! `memory` (what lies in guest memory), `sigbus` (guest memory that goes away), `capacity` and `channel` (a disk that changes its size).

mod capacity;
mod chain;
#[cfg(test)]
mod chain_tests;
mod channel;
mod completion;
mod config;
mod connection;
mod counters;
#[cfg(feature = "test-driver")]
pub mod driver;
#[cfg(feature = "test-driver")]
pub mod driver_queue;
mod frontend;
mod memory;
mod options;
mod ram;
mod request;
mod ring;
mod server;
mod sigbus;
mod socket;
mod stopping;
mod transfer;
mod worker;

pub use counters::{CounterSnapshot, OpCounters, OpKind};
pub use options::{ServerError, ServerOptions};
pub use ram::{NullDisk, RamDisk};
pub use request::{MAX_DATA_BYTES, MAX_RANGE_SECTORS};
pub use server::{Drained, Server};
