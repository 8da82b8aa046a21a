//! A small ext4 file system in a file, mounted through a loop device: it can be full, and it can lose power.
//!
//! Power loss is `EXT4_IOC_SHUTDOWN` with NOLOGFLUSH: from that moment nothing more reaches the file, neither data nor journal,
//! and every operation answers EIO. What was in the page cache and not written back is gone, as after a power cut. After
//! [`LoopFs::restore`] the file system is mounted again and ext4 replays its own journal.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use lamina_contract::units::ByteSize;

use crate::cleanup::{self, Ticket};
use crate::error::HarnessError;

/// `_IOR('X', 125, __u32)`.
const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// Neither data nor the file system's journal is written.
const NOLOGFLUSH: u32 = 2;

/// A mounted file system of its own.
#[derive(Debug)]
pub struct LoopFs {
    file: PathBuf,
    at: PathBuf,
    mounted: Option<Ticket>,
}

impl LoopFs {
    /// Makes `directory/name.img` of `size`, formats it and mounts it at `directory/name`. Needs root.
    ///
    /// # Errors
    /// When a step is refused.
    pub fn new(directory: &Path, name: &str, size: ByteSize) -> Result<Self, HarnessError> {
        let file = directory.join(format!("{name}.img"));
        let at = directory.join(name);
        let made = File::create(&file).map_err(HarnessError::file("make", &file))?;
        made.set_len(size.0).map_err(HarnessError::file("size", &file))?;
        std::fs::create_dir_all(&at).map_err(HarnessError::file("make", &at))?;
        run(Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-m", "0"])
            .arg(&file))?;
        let mut new = Self { file, at, mounted: None };
        new.restore()?;
        // The file system's own directory would make a drive look foreign.
        let _ = std::fs::remove_dir(new.at.join("lost+found"));
        Ok(new)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Cuts the power. Everything that uses it sees EIO from now on.
    ///
    /// # Errors
    /// [`HarnessError::File`].
    pub fn cut_power(&self) -> Result<(), HarnessError> {
        let root = File::open(&self.at).map_err(HarnessError::file("open", &self.at))?;
        let how = NOLOGFLUSH;
        // SAFETY: the ioctl reads one u32 that outlives the call.
        match unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &how) } {
            0 => Ok(()),
            _ => {
                Err(HarnessError::File { doing: "cut the power of", path: self.at.clone(), cause: std::io::Error::last_os_error() })
            }
        }
    }

    /// Mounts it (again). Nothing may use it any more.
    ///
    /// # Errors
    /// When a step is refused.
    pub fn restore(&mut self) -> Result<(), HarnessError> {
        self.unmount()?;
        run(Command::new("mount").args(["-o", "loop", "-t", "ext4"]).arg(&self.file).arg(&self.at))?;
        self.mounted = Some(cleanup::mount(&self.at));
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), HarnessError> {
        if self.mounted.is_none() {
            return Ok(());
        }
        // A killed user's last references may take a moment.
        let mut tries = 0;
        while let Err(error) = run(Command::new("umount").arg("-d").arg(&self.at)) {
            tries += 1;
            if tries == 100 {
                return Err(error);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        self.mounted = None;
        Ok(())
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        if self.mounted.is_some() && self.unmount().is_err() {
            let _ = run(Command::new("umount").arg("-l").arg("-d").arg(&self.at));
        }
        let _ = std::fs::remove_file(&self.file);
    }
}

fn run(command: &mut Command) -> Result<(), HarnessError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|cause| HarnessError::Program { doing: "run", program, cause })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(HarnessError::Refused { command: format!("{command:?}"), code: output.status.code().unwrap_or(-1), message })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use lamina_contract::units::ByteSize;

    use super::LoopFs;
    use crate::place::Place;

    #[test]
    fn power_loss_takes_what_was_not_synced_and_keeps_what_was() {
        let place = Place::new().expect("a directory");
        let mut fs = LoopFs::new(place.path(), "fs", ByteSize(64 << 20)).expect("a file system");
        let path = fs.path().join("file");
        let mut file = File::create(&path).expect("made");
        file.write_all(&[1; 4096]).expect("written");
        file.sync_all().expect("synced");
        File::open(fs.path()).and_then(|directory| directory.sync_all()).expect("name synced");
        file.write_all(&[2; 4096]).expect("written");
        fs.cut_power().expect("cut");
        assert!(file.sync_all().is_err(), "EIO after power loss");
        drop(file);
        fs.restore().expect("mounted again");
        assert_eq!(std::fs::read(&path).expect("there").len(), 4096);
    }
}
