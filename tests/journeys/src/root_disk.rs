//! A disk that a guest lives on: an ext4 file system with a small userspace, and the init that hands over to it.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use lamina_contract::units::ByteSize;
use lamina_harness::{HarnessError, Place};

/// What busybox is called there.
const COMMANDS: [&str; 12] = ["sh", "mount", "cat", "awk", "ls", "sync", "poweroff", "echo", "sleep", "tr", "touch", "true"];

/// PID 1 on the disk. `as=NAME` on the kernel's command line is the name that it leaves a mark under.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin
fail() { echo "LAMINA-ERROR $*"; sync; poweroff -f; sleep 60; }
report() { echo "LAMINA-RESULT $1=$2"; }
mount -t proc proc /proc || fail "no /proc"
mount -t devtmpfs dev /dev || fail "no /dev"
for word in $(cat /proc/cmdline); do case $word in as=*) as=${word#as=} ;; esac; done
report pid $$
report machine "$(cat /etc/hostname)"
report root "$(awk '$2 == "/" { last = $1 " " $3 } END { print last }' /proc/mounts)"
report marks "$(echo $(ls /var/marks))"
touch "/var/marks/$as" || fail "cannot write"
sync
mount -o remount,ro / || fail "cannot end in good order"
echo LAMINA-DONE
poweroff -f
sleep 60
"#;

/// The initramfs' script for a guest whose root is `/dev/vda`.
pub const ENTER_ROOT: &str = r#"
wait_for_disk /dev/vda
mount -t ext4 /dev/vda /mnt || fail "cannot mount the root"
umount /dev /sys /proc
exec switch_root /mnt /sbin/init
"#;

/// The bytes of a root disk whose machine calls itself `machine`.
///
/// # Errors
/// When busybox or mke2fs is missing.
pub fn root_disk(machine: &str, size: ByteSize) -> Result<Vec<u8>, HarnessError> {
    let place = Place::new()?;
    let root = place.subdirectory("root")?;
    for directory in ["bin", "sbin", "etc", "proc", "dev", "var/marks"] {
        let path = root.join(directory);
        std::fs::create_dir_all(&path).map_err(HarnessError::file("make", &path))?;
    }
    let busybox = root.join("bin/busybox");
    std::fs::copy("/bin/busybox", &busybox).map_err(HarnessError::file("copy", "/bin/busybox"))?;
    for command in COMMANDS {
        let link = root.join("bin").join(command);
        symlink("busybox", &link).map_err(HarnessError::file("make", &link))?;
    }
    write(&root.join("etc/hostname"), machine.as_bytes(), 0o644)?;
    write(&root.join("sbin/init"), INIT.as_bytes(), 0o755)?;
    let image = place.path().join("image");
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d"]);
    command.arg(&root).arg(&image).arg(format!("{}k", size.0 / 1024));
    let made = command.output().map_err(|cause| HarnessError::Program { doing: "run", program: "mke2fs".to_owned(), cause })?;
    if !made.status.success() {
        let message = String::from_utf8_lossy(&made.stderr).into_owned();
        return Err(HarnessError::Refused { command: format!("{command:?}"), code: made.status.code().unwrap_or(-1), message });
    }
    std::fs::read(&image).map_err(HarnessError::file("read", &image))
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), HarnessError> {
    std::fs::write(path, content).map_err(HarnessError::file("write", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(HarnessError::file("write", path))
}
