//! Each command against a small appliance in this process: what it prints, and the likeliest mistakes.

#[path = "../../../api/tests/fake_appliance/mod.rs"]
mod fake_appliance;

#[path = "../../../api/tests/listeners/mod.rs"]
mod listeners;

mod daemon;
mod images;
mod network;
mod overview;
mod terminal;
mod transcripts;
