//! What has to be undone when the program is interrupted: process groups, mounts, directories.
//!
//! Each resource registers what ends it and holds the [`Ticket`]; dropping the ticket (after the resource ended itself)
//! unregisters. [`on_interrupt`] makes SIGINT, SIGTERM and SIGHUP run all registered entries, newest first, and exit. A test
//! run under `kill -9` is covered by the children themselves: they ask the kernel to die with their parent.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::{io, mem, ptr, thread};

/// Something to undo.
#[derive(Debug, Clone)]
enum Undo {
    /// Kill this process group.
    Group(i32),
    /// Unmount this file system (lazily, since its users may be dying still).
    Mount(PathBuf),
    /// Remove this directory.
    Directory(PathBuf),
}

static REGISTERED: Mutex<Vec<(u64, Undo)>> = Mutex::new(Vec::new());

/// Unregisters its entry when dropped.
#[derive(Debug)]
pub struct Ticket(u64);

impl Drop for Ticket {
    fn drop(&mut self) {
        REGISTERED.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _)| *id != self.0);
    }
}

fn register(undo: Undo) -> Ticket {
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    let id = registered.last().map_or(1, |(id, _)| id + 1);
    registered.push((id, undo));
    Ticket(id)
}

/// Registers a process group.
#[must_use]
pub fn group(pgid: i32) -> Ticket {
    register(Undo::Group(pgid))
}

/// Registers a mounted file system.
#[must_use]
pub fn mount(at: &Path) -> Ticket {
    register(Undo::Mount(at.to_owned()))
}

/// Registers a directory.
#[must_use]
pub fn directory(path: &Path) -> Ticket {
    register(Undo::Directory(path.to_owned()))
}

/// Undoes everything that is registered, newest first.
pub fn run_all() {
    let all = mem::take(&mut *REGISTERED.lock().unwrap_or_else(PoisonError::into_inner));
    for (_, undo) in all.into_iter().rev() {
        match undo {
            Undo::Group(pgid) => {
                // SAFETY: kill takes two integers and touches no memory of ours.
                unsafe { libc::kill(-pgid, libc::SIGKILL) };
            }
            Undo::Mount(path) => {
                let _ = Command::new("umount").arg("-l").arg("-d").arg(&path).status();
            }
            Undo::Directory(path) => {
                let _ = std::fs::remove_dir_all(&path);
            }
        }
    }
}

/// Makes SIGINT, SIGTERM and SIGHUP clean up, say so and exit with 128 + the signal's number. Call it first in `main`, before
/// any thread exists, since the signal mask is inherited by threads.
///
/// # Errors
/// When the signals cannot be blocked.
pub fn on_interrupt() -> io::Result<()> {
    // SAFETY: an all-zero sigset_t is what sigemptyset makes; the set outlives the calls.
    let set = unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGHUP);
        match libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) {
            0 => set,
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
    };
    thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of this thread.
        if unsafe { libc::sigwait(&set, &mut signal) } == 0 {
            eprintln!("\ninterrupted: stopping everything that was started");
            run_all();
            std::process::exit(128 + signal);
        }
    })?;
    Ok(())
}
