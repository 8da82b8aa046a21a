//! What the daemon does that stands on no other part, so that it can be tested alone: when snapshots are taken ([`recurrence`],
//! [`schedule`], [`scheduler`], driven by [`runner`]), which are kept ([`retention`]), and how a guest is held still meanwhile
//! ([`freeze`], over [`guest_agent`]).
//!
//! Nothing here knows the engine, a store or the interface: they are behind the traits [`runner::Snapshots`] and [`runner::Records`].

pub mod calendar;
pub mod freeze;
pub mod guest_agent;
pub mod recurrence;
pub mod retention;
pub mod runner;
pub mod schedule;
pub mod scheduler;
