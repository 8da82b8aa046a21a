//! Every byte that outlives a process or crosses a wire. Encode and decode only: no I/O, no clock, no policy.
//!
//! Each format has a magic, a version and a checksum that says what it covers; sizes and offsets are asserted at compile time;
//! golden bytes stand in `tests/`. A released format never changes: a new layout gets a new version number.

pub mod cache;
pub mod catalog;
pub mod drive;
pub mod fragment;
pub mod integrity;
pub mod journal;
pub mod manifest;
pub mod map;
pub mod sco;
pub mod tlog;
pub mod volume;

pub use integrity::{FormatError, crc32c};
