//! Named moments at which a test may kill the process, to look at what a crash leaves.
//!
//! `LAMINA_FAILPOINT=name[:count]` aborts at the `count`-th time (first by default) that `name` is reached. Without the
//! variable a failpoint costs one relaxed load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A segment is about to be put to use.
pub const JOURNAL_SEGMENT: &str = "journal-segment";
/// The next segment's header is written and not durable.
pub const JOURNAL_PREPARE: &str = "journal-prepare";
/// A batch is about to be written.
pub const JOURNAL_BEFORE_WRITE: &str = "journal-before-write";
/// A batch is written, nobody was told.
pub const JOURNAL_AFTER_WRITE: &str = "journal-after-write";
/// An fdatasync is about to begin.
pub const JOURNAL_BEFORE_SYNC: &str = "journal-before-sync";
/// An fdatasync returned, nobody was told.
pub const JOURNAL_AFTER_SYNC: &str = "journal-after-sync";
/// Accepted and published, the guest was not told.
pub const WRITE_BEFORE_ACK: &str = "write-before-ack";
/// A SCO is about to go to the store.
pub const SCO_BEFORE_PUT: &str = "sco-before-put";
/// A SCO is stored, its TLog is not.
pub const SCO_AFTER_PUT: &str = "sco-after-put";
/// A TLog is stored, its manifest is not.
pub const TLOG_AFTER_PUT: &str = "tlog-after-put";
/// A manifest is stored, the generation is not decided.
pub const MANIFEST_AFTER_PUT: &str = "manifest-after-put";
/// A generation is decided, memory and journal do not know yet.
pub const GENERATION_DECIDED: &str = "generation-decided";
/// Map pages are stored, no manifest names them.
pub const CHECKPOINT_AFTER_PUT: &str = "checkpoint-after-put";
/// A volume is registered, its identity is not stored.
pub const CREATE_AFTER_REGISTER: &str = "create-after-register";
/// A volume is marked for deletion, its objects are there.
pub const DELETE_AFTER_MARK: &str = "delete-after-mark";

/// A cut is made in memory, the registry does not know.
pub const CUT_BEFORE_RECORD: &str = "cut-before-record";
/// A cut is promised, nobody was told.
pub const CUT_RECORDED: &str = "cut-recorded";
/// A catalog is stored, no manifest names it.
pub const CATALOG_AFTER_PUT: &str = "catalog-after-put";
/// A snapshot is in a manifest, the registry still promises it.
pub const CUT_DECIDED: &str = "cut-decided";
/// Clones are registered, their identities are not stored.
pub const CLONE_AFTER_REGISTER: &str = "clone-after-register";
/// A clone's identity names no parent any more, the registry does.
pub const FLATTEN_AFTER_IDENTITY: &str = "flatten-after-identity";

/// All of them, for `laminad --list-failpoints`.
pub const ALL: [&str; 21] = [
    JOURNAL_SEGMENT,
    JOURNAL_PREPARE,
    JOURNAL_BEFORE_WRITE,
    JOURNAL_AFTER_WRITE,
    JOURNAL_BEFORE_SYNC,
    JOURNAL_AFTER_SYNC,
    WRITE_BEFORE_ACK,
    SCO_BEFORE_PUT,
    SCO_AFTER_PUT,
    TLOG_AFTER_PUT,
    MANIFEST_AFTER_PUT,
    GENERATION_DECIDED,
    CHECKPOINT_AFTER_PUT,
    CREATE_AFTER_REGISTER,
    DELETE_AFTER_MARK,
    CUT_BEFORE_RECORD,
    CUT_RECORDED,
    CATALOG_AFTER_PUT,
    CUT_DECIDED,
    CLONE_AFTER_REGISTER,
    FLATTEN_AFTER_IDENTITY,
];

struct Armed {
    name: String,
    left: AtomicU64,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Reaches the failpoint `name`.
pub fn hit(name: &str) {
    if let Some(armed) = ARMED.get_or_init(from_environment)
        && armed.name == name
        && armed.left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}

fn from_environment() -> Option<Armed> {
    let text = std::env::var("LAMINA_FAILPOINT").ok()?;
    let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
    Some(Armed { name: name.to_owned(), left: AtomicU64::new(count.parse().unwrap_or(1)) })
}
