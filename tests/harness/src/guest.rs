//! A real Linux guest in QEMU: Debian's cloud kernel, an initramfs with the test's script, disks over vhost-user-blk.
//!
//! Emulated (TCG), so that it runs where there is no KVM: for correctness and never for speed. The script answers through the
//! serial console in lines `LAMINA-RESULT key=value`; `LAMINA-ERROR` fails the run. QEMU dies with the value.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::HarnessError;
use crate::initramfs::Initramfs;
use crate::place::{Place, assets};
use crate::process::Process;

/// How long a guest may take.
#[derive(Debug, Clone, Copy)]
pub struct BootTimeouts {
    /// To the first line of its init.
    pub boot: Duration,
    /// From there to the end of the script.
    pub script: Duration,
}

impl Default for BootTimeouts {
    fn default() -> Self {
        // A boot takes 4 s alone and up to ten times that beside a full test run.
        Self { boot: Duration::from_secs(180), script: Duration::from_secs(300) }
    }
}

/// One disk of a guest.
#[derive(Debug, Clone)]
pub struct GuestDisk {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// Virtqueues.
    pub queues: u16,
}

/// How the machine is built.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// Its disks: `/dev/vda`, `/dev/vdb`, …
    pub disks: Vec<GuestDisk>,
    /// Whether `reboot` in the guest restarts it in the same QEMU (else it ends QEMU).
    pub reboots: bool,
    /// Extra words for the kernel's command line, where the script finds them (`/proc/cmdline`).
    pub words: String,
    /// Extra arguments for QEMU.
    pub extra: Vec<String>,
    /// Limits.
    pub timeouts: BootTimeouts,
}

impl GuestOptions {
    /// A machine with one disk.
    #[must_use]
    pub fn with_disk(socket: &Path) -> Self {
        let disk = GuestDisk { socket: socket.to_owned(), queues: 2 };
        Self { disks: vec![disk], ..Self::without_disks() }
    }

    /// A machine without disks.
    #[must_use]
    pub fn without_disks() -> Self {
        Self { disks: Vec::new(), reboots: false, words: String::new(), extra: Vec::new(), timeouts: BootTimeouts::default() }
    }
}

/// A script made bootable; boots any number of guests.
#[derive(Debug)]
pub struct GuestImage {
    place: Place,
}

impl GuestImage {
    /// Builds the initramfs around `script`.
    ///
    /// # Errors
    /// When something that guests are made of is missing.
    pub fn new(script: &str) -> Result<Self, HarnessError> {
        Self::with(script, &[], &[])
    }

    /// Like [`GuestImage::new`] with more programs of this machine and more kernel modules.
    ///
    /// # Errors
    /// When something that guests are made of is missing.
    pub fn with(script: &str, programs: &[&str], modules: &[&str]) -> Result<Self, HarnessError> {
        let place = Place::new()?;
        let path = place.path().join("initrd");
        let archive = Initramfs::with_script_and(script, programs, modules)?;
        std::fs::write(&path, archive).map_err(HarnessError::file("write", &path))?;
        Ok(Self { place })
    }

    /// Turns the machine on.
    ///
    /// # Errors
    /// When QEMU or the kernel is missing.
    pub fn boot(&self, options: &GuestOptions) -> Result<Guest, HarnessError> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-M",
            "q35,memory-backend=mem",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
        ]);
        command.args(["-m", "512M", "-object", "memory-backend-memfd,id=mem,size=512M,share=on"]);
        command.args(["-display", "none", "-monitor", "none", "-serial", "stdio"]);
        for (index, disk) in options.disks.iter().enumerate() {
            let queues = disk.queues;
            command.arg("-chardev").arg(format!("socket,id=c{index},path={},reconnect-ms=500", disk.socket.display()));
            command.arg("-device").arg(format!("vhost-user-blk-pci,chardev=c{index},num-queues={queues},disable-legacy=on"));
        }
        self.boot_in(command, options)
    }

    /// Turns on a machine that somebody else has described: `command` becomes QEMU with the arguments that it is given, and has its console
    /// on standard output. Of the options, disks do not count.
    ///
    /// # Errors
    /// When the program or the kernel is missing.
    pub fn boot_in(&self, mut command: Command, options: &GuestOptions) -> Result<Guest, HarnessError> {
        let kernel = assets().join("kernel/vmlinuz");
        if !kernel.is_file() {
            return Err(HarnessError::Missing {
                what: "the guests' kernel",
                path: kernel,
                advice: "run tests/install-packages.sh as root",
            });
        }
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(self.place.path().join("initrd"));
        command.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 mitigations=off {}", options.words));
        if !options.reboots {
            command.arg("-no-reboot");
        }
        command.args(&options.extra);
        let process = Process::spawn("qemu-system-x86_64", command)?;
        Ok(Guest { process, timeouts: options.timeouts, read_from: 0 })
    }

    /// Boots, runs the script and returns its answers.
    ///
    /// # Errors
    /// [`HarnessError`] when it hangs, dies or reports an error.
    pub fn run(&self, options: &GuestOptions) -> Result<GuestReport, HarnessError> {
        let mut guest = self.boot(options)?;
        guest.wait_booted()?;
        guest.wait_done()
    }
}

/// What a script answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestReport {
    results: BTreeMap<String, String>,
}

impl GuestReport {
    /// The answer to `key`.
    ///
    /// # Errors
    /// [`HarnessError::Answer`] when the script did not give it.
    pub fn text(&self, key: &'static str) -> Result<&str, HarnessError> {
        let missing =
            || HarnessError::Answer { source_of: "guest".to_owned(), expected: key, answer: format!("{:?}", self.results) };
        self.results.get(key).map(String::as_str).ok_or_else(missing)
    }

    /// The answer to `key`, as a number.
    ///
    /// # Errors
    /// As [`GuestReport::text`].
    pub fn number(&self, key: &'static str) -> Result<u64, HarnessError> {
        let text = self.text(key)?;
        text.parse().map_err(|_| HarnessError::Answer { source_of: "guest".to_owned(), expected: key, answer: text.to_owned() })
    }
}

/// A machine that is on.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    timeouts: BootTimeouts,
    read_from: usize,
}

impl Guest {
    /// Waits until its init runs.
    ///
    /// # Errors
    /// [`HarnessError::Late`], [`HarnessError::Ended`].
    pub fn wait_booted(&mut self) -> Result<(), HarnessError> {
        self.process
            .wait_for("guest's init", self.read_from, self.timeouts.boot, |line| line.contains("LAMINA-BOOTED").then_some(()))
    }

    /// Waits for the answer to `key`.
    ///
    /// # Errors
    /// [`HarnessError::Late`], [`HarnessError::Ended`]; [`HarnessError::Answer`] when the script failed.
    pub fn wait_result(&mut self, key: &'static str) -> Result<String, HarnessError> {
        let prefix = format!("LAMINA-RESULT {key}=");
        self.wait_line(key, move |line| line.find(&prefix).map(|at| line[at + prefix.len()..].to_owned()))
    }

    /// How many lines of its console so far contain `text`.
    #[must_use]
    pub fn count_lines(&self, text: &str) -> usize {
        self.process.output().iter().filter(|line| line.contains(text)).count()
    }

    /// Waits for the end of the script and of QEMU.
    ///
    /// # Errors
    /// As [`Guest::wait_result`].
    pub fn wait_done(self) -> Result<GuestReport, HarnessError> {
        self.narrate(|_| ())
    }

    /// Like [`Guest::wait_done`], and hands on what the script `say`s as it comes.
    ///
    /// # Errors
    /// As [`Guest::wait_result`].
    pub fn narrate(mut self, mut tell: impl FnMut(&str)) -> Result<GuestReport, HarnessError> {
        self.wait_line("the end of the script", |line| {
            if let Some((_, said)) = line.split_once("LAMINA-SAY ") {
                tell(said);
            }
            line.contains("LAMINA-DONE").then_some(())
        })?;
        self.process.wait(Duration::from_secs(60))?;
        Ok(GuestReport { results: self.results() })
    }

    fn results(&self) -> BTreeMap<String, String> {
        let output = self.process.output();
        let answers = output.iter().filter_map(|line| line.find("LAMINA-RESULT ").map(|at| &line[at + "LAMINA-RESULT ".len()..]));
        answers.filter_map(|answer| answer.split_once('=')).map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
    }

    fn wait_line<T>(&mut self, what: &'static str, mut wanted: impl FnMut(&str) -> Option<T>) -> Result<T, HarnessError> {
        let found = self.process.wait_for(what, self.read_from, self.timeouts.script, |line| {
            if line.contains("LAMINA-ERROR") || line.contains("Kernel panic") {
                Some(Err(line.to_owned()))
            } else {
                wanted(line).map(Ok)
            }
        })?;
        found.map_err(|answer| HarnessError::Answer {
            source_of: "guest".to_owned(),
            expected: what,
            answer: format!("{answer}\n{}", self.process.log_tail()),
        })
    }

    /// Only lines that come from now on are looked at.
    pub fn forget_output(&mut self) {
        self.read_from = self.process.lines_seen();
    }

    /// Types a line at its console (a script reads it with `read`).
    ///
    /// # Errors
    /// [`HarnessError::Program`] when QEMU is gone.
    pub fn type_line(&mut self, text: &str) -> Result<(), HarnessError> {
        self.process.say(&format!("{text}\n"))
    }

    /// QEMU itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

#[cfg(test)]
mod tests {
    use lamina_contract::units::ByteSize;

    use super::{GuestImage, GuestOptions};
    use crate::place::Place;
    use crate::storage_daemon::{Backing, Cache, StorageDaemon};

    #[test]
    fn a_guest_boots_sees_its_disk_and_answers() {
        let place = Place::new().expect("a directory");
        let server = StorageDaemon::start(place.path(), "disk", ByteSize(64 << 20), Backing::Raw(Cache::Cached)).expect("a server");
        let script = "wait_for_disk /dev/vda\n\
            report sectors $(cat /sys/block/vda/size)\n\
            mke2fs -q -t ext4 /dev/vda && mount /dev/vda /mnt || fail mount\n\
            echo hello > /mnt/file; sync; umount /mnt\n\
            e2fsck -fn /dev/vda > /tmp/fsck || fail fsck\n\
            report flushes $(flushes vda)\n";
        let image = GuestImage::new(script).expect("an image");
        let report = image.run(&GuestOptions::with_disk(server.socket())).expect("a report");
        assert_eq!(report.number("sectors").expect("sectors"), 64 << 11);
        report.number("flushes").expect("flushes");
    }
}
