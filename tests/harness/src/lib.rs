//! What the tests, the demo and the benchmark stand on: the real daemon as a child process, a vhost-user-blk client without a VM,
//! stamped writes with an oracle of what a crash may leave, real guests in QEMU, and file systems that lose power.
//!
//! Nothing here knows the appliance's insides: it uses the two binaries, their flags, their JSON and the vhost-user sockets, as
//! an operator and a guest would. Everything started is ended when its value is dropped, also when a test panics, and through
//! [`cleanup`] when the program is interrupted.

pub mod cleanup;
mod client;
mod daemon;
mod error;
mod exposition;
mod guest;
mod histogram;
mod initramfs;
mod interface;
mod loopfs;
mod metrics;
mod oracle;
mod place;
mod process;
mod procfs;
mod stamp;
mod storage_daemon;
mod writer;

pub use client::{Action, Client, ClientError, ClientOptions, Done, Queue, Slot};
pub use daemon::{Daemon, DaemonOptions, VolumeInfo};
pub use error::HarnessError;
pub use exposition::{Exposition, ExpositionError, Family, FamilyKind, LabelSet};
pub use guest::{BootTimeouts, Guest, GuestDisk, GuestImage, GuestOptions, GuestReport};
pub use histogram::Histogram;
pub use initramfs::Initramfs;
pub use loopfs::LoopFs;
pub use metrics::Metrics;
pub use oracle::{Crash, Moment, Moments, OpId, Oracle, Taken, Verdict, Violation};
pub use place::{Place, assets, binary, test_root};
pub use process::{Process, Sign};
pub use procfs::{ProcessUse, process_use};
pub use stamp::{Content, SECTOR, TemplateId, paint, read_content};
pub use storage_daemon::{Backing, Cache, StorageDaemon};
pub use writer::{StampedWriter, WriterEnd, WriterMix, read_image};
