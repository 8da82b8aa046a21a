//! The management interface: what the daemon answers and the command asks, over HTTP under `/api/v1`.
//!
//! Types first, a file a noun; feature `server` adds the table of routes over an [`appliance::Appliance`] and the listeners; feature
//! `client` adds [`client::Client`]. Sizes are numbers of bytes, times are RFC 3339 in UTC, names match `[a-z0-9-]{1,63}`. This crate
//! knows no engine, no drive and no socket of a guest.

pub mod audit;
pub mod data;
pub mod instant;
pub mod job;
pub mod label;
pub mod name;
pub mod page;
pub mod paths;
pub mod problem;
pub mod role;
pub mod schedule;
pub mod snapshot;
pub mod status;
pub mod target;
pub mod token;
pub mod vm;
pub mod volume;

#[cfg(feature = "server")]
mod answer_body;
#[cfg(feature = "server")]
pub mod appliance;
#[cfg(feature = "server")]
mod body_room;
#[cfg(feature = "server")]
mod call;
#[cfg(feature = "server")]
pub mod call_counts;
#[cfg(feature = "server")]
pub mod caller;
#[cfg(feature = "server")]
mod checked;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
mod connection;
#[cfg(feature = "server")]
pub mod idempotency;
#[cfg(feature = "server")]
pub mod listener;
#[cfg(feature = "server")]
mod metrics_pages;
#[cfg(feature = "server")]
pub mod openapi;
#[cfg(feature = "server")]
mod overview_calls;
#[cfg(feature = "server")]
mod paced;
#[cfg(feature = "server")]
pub mod rate;
#[cfg(feature = "server")]
pub mod route;
#[cfg(feature = "server")]
pub mod routes;
#[cfg(feature = "server")]
mod start;
#[cfg(feature = "server")]
pub mod table;
#[cfg(feature = "server")]
mod tag;
#[cfg(feature = "server")]
pub mod tls;
#[cfg(feature = "server")]
mod turns;
#[cfg(feature = "server")]
mod vm_calls;
#[cfg(feature = "server")]
mod volume_calls;

/// The largest body either side accepts, in bytes: far above any request, and about 1,000 volumes in a list.
pub const MAX_BODY_BYTES: usize = 1 << 20;

/// The most bytes of headers of a request.
pub const MAX_HEADER_BYTES: usize = 16 << 10;
