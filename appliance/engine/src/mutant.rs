//! Planted bugs, so that the tests which must find them stay proven, and a bound that tests make small. Compiled in only with the
//! feature `mutants`, which no shipped build sets; even then each is off until a test switches it on.

/// A bug to plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutant {
    /// None.
    Healthy = 0,
    /// A write is answered before it is in the journal.
    AckBeforeWrite = 1,
    /// A flush is answered without an fdatasync.
    FlushBeforeSync = 2,
    /// A manifest is stored and decided before the TLog that it names.
    ManifestBeforeTlog = 3,
}

#[cfg(feature = "mutants")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Plants a bug in this process.
#[cfg(feature = "mutants")]
pub fn plant(mutant: Mutant) {
    PLANTED.store(mutant as u8, std::sync::atomic::Ordering::SeqCst);
}

/// Whether `mutant` is planted.
#[cfg(feature = "mutants")]
pub(crate) fn is(mutant: Mutant) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == mutant as u8
}

/// Whether `mutant` is planted: never.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn is(_mutant: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
thread_local! {
    static CHECKPOINT_AFTER: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// Makes checkpoints due after `entries` entries (None: as usual) on nodes whose store side this thread runs.
#[cfg(feature = "mutants")]
pub fn checkpoint_after(entries: Option<u64>) {
    CHECKPOINT_AFTER.set(entries);
}

/// After how many entries a checkpoint is due.
#[cfg(feature = "mutants")]
pub(crate) fn replay_entries(usual: u64) -> u64 {
    CHECKPOINT_AFTER.get().unwrap_or(usual)
}

/// After how many entries a checkpoint is due: as usual.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn replay_entries(usual: u64) -> u64 {
    usual
}
