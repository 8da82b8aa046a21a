//! The guest's first file system, made in memory: a cpio archive ("newc") of busybox, kernel modules, e2fsprogs with their
//! libraries, and an init that loads the drivers, runs the test's script and turns the machine off.
//!
//! What is needed is taken from this machine and from the kernel package that `tests/install-packages.sh` fetched; nothing is
//! compressed, since unpacking under emulation costs more than reading.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::HarnessError;
use crate::place::assets;

/// Drivers that a guest loads, in any order: what they depend on is loaded first.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// Programs beside busybox; each brings its libraries.
const PROGRAMS: [&str; 5] = ["mke2fs", "e2fsck", "sfdisk", "blkdiscard", "fallocate"];
const SEARCHED: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// What runs before and after the script. `report KEY VALUE` is how a script answers, `say` is for
/// people.
const INIT: &str = r#"#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /tmp /mnt /run
# One program writes to the console at a time, so that a line stays a line.
echo 1 > /proc/sys/kernel/printk
while read -r module; do insmod "/modules/$module" || echo "LAMINA-ERROR cannot load $module"; done < /modules/order
# busybox prefers its own programs by bare name; these are the real ones.
mke2fs() { /usr/sbin/mke2fs "$@"; }
e2fsck() { /usr/sbin/e2fsck "$@"; }
sfdisk() { /usr/sbin/sfdisk "$@"; }
blkdiscard() { /usr/sbin/blkdiscard "$@"; }
fallocate() { /usr/sbin/fallocate "$@"; }
say() { echo "LAMINA-SAY $*"; }
report() { echo "LAMINA-RESULT $1=$2"; }
fail() { echo "LAMINA-ERROR $*"; sync; poweroff -f; sleep 60; }
wait_for_disk() {
    tries=0
    while [ ! -b "$1" ]; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || fail "no disk $1"
        usleep 50000
    done
}
# Flush requests that this kernel has sent to the disk: the 16th field of its statistics.
flushes() { set -- $(cat "/sys/block/$1/stat"); shift 15; echo "$1"; }
echo LAMINA-BOOTED
. /script
echo LAMINA-DONE
poweroff -f
sleep 60
"#;

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Initramfs {
    archive: Vec<u8>,
    paths: BTreeSet<String>,
    inode: u32,
}

impl Initramfs {
    /// The archive that boots and runs `script` (for busybox `sh`, with `report`, `fail`, `wait_for_disk` and `flushes`).
    ///
    /// # Errors
    /// When something that guests are made of is missing.
    pub fn with_script(script: &str) -> Result<Vec<u8>, HarnessError> {
        Self::with_script_and(script, &[], &[])
    }

    /// Like [`Initramfs::with_script`] with more programs of this machine and more kernel modules.
    ///
    /// # Errors
    /// When something that guests are made of is missing.
    pub fn with_script_and(script: &str, programs: &[&str], modules: &[&str]) -> Result<Vec<u8>, HarnessError> {
        let mut new = Self::default();
        for directory in ["dev", "proc", "sys", "modules"] {
            new.directory(directory);
        }
        new.host_file(Path::new("/bin/busybox"), "bin/busybox")?;
        for program in PROGRAMS.iter().chain(programs) {
            new.program(program)?;
        }
        new.modules(modules)?;
        new.link("bin/sh", "busybox");
        new.link("etc/mtab", "/proc/mounts");
        new.file("init", 0o755, INIT.as_bytes());
        new.file("script", 0o755, script.as_bytes());
        Ok(new.finish())
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let fields = [self.inode, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, path.len() as u32 + 1, 0];
        self.archive.extend_from_slice(b"070701");
        for field in fields {
            self.archive.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.archive.extend_from_slice(path.as_bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }

    fn directory(&mut self, path: &str) {
        let mut whole = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if !whole.is_empty() {
                whole.push('/');
            }
            whole.push_str(part);
            if self.paths.insert(whole.clone()) {
                self.entry(&whole.clone(), 0o040_755, &[]);
            }
        }
    }

    fn parent(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.parent(path);
        if self.paths.insert(path.to_owned()) {
            self.entry(path, 0o100_000 | mode, content);
        }
    }

    fn link(&mut self, path: &str, to: &str) {
        self.parent(path);
        if self.paths.insert(path.to_owned()) {
            self.entry(path, 0o120_777, to.as_bytes());
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.archive.resize(self.archive.len().next_multiple_of(512), 0);
        self.archive
    }

    fn host_file(&mut self, from: &Path, to: &str) -> Result<(), HarnessError> {
        let missing = |_| HarnessError::Missing { what: "a file that guests are made of", path: from.to_owned(), advice: ADVICE };
        let content = std::fs::read(from).map_err(missing)?;
        let mode = std::fs::metadata(from).map_or(0o755, |meta| meta.permissions().mode() & 0o777);
        self.file(to, mode, &content);
        Ok(())
    }

    /// A program and the libraries that its loader names.
    fn program(&mut self, name: &str) -> Result<(), HarnessError> {
        let found = SEARCHED.iter().map(|directory| Path::new(directory).join(name)).find(|path| path.is_file());
        let missing = || HarnessError::Missing { what: "a program that guests run", path: name.into(), advice: ADVICE };
        let path = found.ok_or_else(missing)?;
        self.host_file(&path, &format!("usr/sbin/{name}"))?;
        let listed = Command::new("ldd").arg(&path).output();
        let listed = listed.map_err(|cause| HarnessError::Program { doing: "run", program: "ldd".to_owned(), cause })?;
        for library in libraries(&String::from_utf8_lossy(&listed.stdout)) {
            self.host_file(Path::new(library), library.trim_start_matches('/'))?;
        }
        Ok(())
    }

    fn modules(&mut self, more: &[&str]) -> Result<(), HarnessError> {
        let root = assets().join("kernel/modules");
        let builtin = std::fs::read_to_string(root.join("modules.builtin"))
            .map_err(HarnessError::file("read", root.join("modules.builtin")))?;
        let listing =
            std::fs::read_to_string(root.join("modules.order")).map_err(HarnessError::file("read", root.join("modules.order")))?;
        let mut found = ModuleSet { root, builtin, listing, order: Vec::new() };
        for module in MODULES.iter().chain(more) {
            found.add(module)?;
        }
        let mut order = String::new();
        for (name, path) in found.order {
            self.host_file(&path, &format!("modules/{name}.ko"))?;
            order.push_str(&name);
            order.push_str(".ko\n");
        }
        self.file("modules/order", 0o644, order.as_bytes());
        Ok(())
    }
}

const ADVICE: &str = "run tests/install-packages.sh as root";

/// The absolute paths in what `ldd` prints.
fn libraries(listing: &str) -> Vec<&str> {
    listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).collect()
}

/// Modules in an order in which they can be loaded.
struct ModuleSet {
    root: PathBuf,
    builtin: String,
    listing: String,
    order: Vec<(String, PathBuf)>,
}

impl ModuleSet {
    fn add(&mut self, name: &str) -> Result<(), HarnessError> {
        if listed(&self.builtin, name).is_some() || self.order.iter().any(|(have, _)| have == name) {
            return Ok(());
        }
        let missing = || HarnessError::Missing { what: "a kernel module", path: self.root.join(name), advice: ADVICE };
        let path = self.root.join(listed(&self.listing, name).ok_or_else(missing)?);
        let content = std::fs::read(&path).map_err(HarnessError::file("read", &path))?;
        for needed in depends(&content) {
            self.add(&needed)?;
        }
        self.order.push((name.to_owned(), path));
        Ok(())
    }
}

/// The path in a kernel's module list whose file is `name` (files may say '-' where modules say '_').
fn listed<'a>(list: &'a str, name: &str) -> Option<&'a str> {
    list.lines().find(|line| {
        let file = line.rsplit_once('/').map_or(*line, |(_, file)| file);
        file.strip_suffix(".ko").is_some_and(|stem| stem.replace('-', "_") == name)
    })
}

/// The modules that a module's own description says it depends on (`depends=a,b` between zero bytes).
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module.get(at + KEY.len()..).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::{Initramfs, depends, libraries, listed};

    #[test]
    fn dependencies_are_read_from_a_module() {
        assert_eq!(depends(b"\x01\0license=GPL\0depends=virtio_ring,virtio-pci\0retpoline=Y\0"), ["virtio_ring", "virtio_pci"]);
        assert!(depends(b"\0depends=\0x").is_empty());
    }

    #[test]
    fn modules_are_found_under_either_spelling() {
        let list = "kernel/a/crc32c-intel.ko\nkernel/fs/ext4/ext4.ko\n";
        assert_eq!(listed(list, "crc32c_intel"), Some("kernel/a/crc32c-intel.ko"));
        assert_eq!(listed(list, "ext"), None);
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(libraries(text), ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn the_archive_is_one_that_cpio_reads() {
        let mut archive = Initramfs::default();
        archive.file("a/b/c.txt", 0o640, b"hello");
        archive.link("a/l", "b/c.txt");
        let bytes = archive.finish();
        let out = tempfile::tempdir().expect("a directory");
        let file = out.path().join("x.cpio");
        std::fs::write(&file, bytes).expect("written");
        let status =
            std::process::Command::new("busybox").args(["cpio", "-idF"]).arg(&file).current_dir(out.path()).status().expect("cpio");
        assert!(status.success());
        assert_eq!(std::fs::read(out.path().join("a/l")).expect("through the link"), b"hello");
    }
}
