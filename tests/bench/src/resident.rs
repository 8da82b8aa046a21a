//! How much of files is in the page cache: after the cache was dropped, that is what was read of them, readahead included.

use std::fs::File;
use std::path::Path;

use lamina_harness::HarnessError;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const PAGE: usize = 4096;

/// Bytes in the page cache of all files below `directory`.
pub(crate) fn resident_below(directory: &Path) -> Result<u64, HarnessError> {
    let mut all = 0;
    for entry in std::fs::read_dir(directory).map_err(HarnessError::file("list", directory))?.flatten() {
        let path = entry.path();
        match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => all += resident_below(&path)?,
            Ok(meta) if meta.is_file() => all += resident(&path)?,
            _ => {}
        }
    }
    Ok(all)
}

/// Bytes in the page cache of a file.
pub(crate) fn resident(path: &Path) -> Result<u64, HarnessError> {
    // One that was deleted since it was listed has nothing to tell, and an empty one cannot be mapped.
    let Ok(file) = File::open(path) else { return Ok(0) };
    let len = usize::try_from(file.metadata().map_or(0, |meta| meta.len())).unwrap_or(0);
    if len == 0 {
        return Ok(0);
    }
    let failed = |cause: std::io::Error| HarnessError::file("look at pages of", path)(cause);
    // SAFETY: a new mapping at an address of the kernel's choice; its bytes are never touched.
    let base = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, &file, 0) };
    let base = base.map_err(|errno| failed(errno.into()))?;
    let mut pages = vec![0_u8; len.div_ceil(PAGE)];
    // SAFETY: the range is the mapping made above, and `pages` has a byte for each of its pages.
    let asked = unsafe { libc::mincore(base, len, pages.as_mut_ptr()) };
    let error = std::io::Error::last_os_error();
    // SAFETY: made by mmap above with this length; nothing refers to it.
    let _ = unsafe { munmap(base, len) };
    if asked != 0 {
        return Err(failed(error));
    }
    Ok(pages.iter().filter(|page| **page & 1 == 1).count() as u64 * PAGE as u64)
}
