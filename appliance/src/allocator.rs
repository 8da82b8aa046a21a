//! One setting of the system's allocator.

/// Allocations from here on are mappings of their own, which return to the system when they are freed.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 256 << 10;

/// Keeps the allocator from growing with what was once large.
///
/// glibc raises the size from which it maps memory to that of the largest mapping freed so far. Buffers of megabytes then come from the heaps
/// of a hundred threads, which fragment: under sustained writes resident memory grew to four times what was in use. Setting the size
/// once ends that. Frequent large buffers are used again by their owners, so the mappings are few.
pub(crate) fn give_large_memory_back() {
    #[cfg(target_env = "gnu")]
    // Nothing but more memory depends on it, and the logs are not open yet.
    // SAFETY: `mallopt` takes two integers and has no requirements; no other thread exists yet.
    let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM) };
}
