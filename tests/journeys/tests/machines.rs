//! Whole machines: what `lamina vm render` writes is taken by the hypervisors, and a running guest is held still by its agent.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lamina_contract::units::ByteSize;
use lamina_harness::{Guest, GuestDisk, GuestImage, GuestOptions, Place, Process, binary};
use lamina_journeys::{Bed, SHOW_MACHINE, WRITE_UNDER_AGENT, counter};
use laminad::freeze::{End, FreezeError, Limits, freeze, thaw_if_frozen};
use laminad::guest_agent::AgentError;

/// Where Debian's libvirt0 has what a domain may be.
const SCHEMA: &str = "/usr/share/libvirt/schemas/domain.rng";

/// A machine with two disks in `place`, as an operator writes it down.
fn description(place: &Path) -> PathBuf {
    let at = |name: &str| place.join(name).display().to_string();
    let text = serde_json::json!({
        "name": "web", "cpus": 2, "memory_bytes": 512 << 20, "firmware": "bios",
        "disks": [
            { "volume": "root", "socket": at("root.sock"), "boot_order": 1 },
            { "volume": "data", "socket": at("a, b's data.sock") },
        ],
        "guest_agent": at("agent.sock"),
    });
    let path = place.join("web.json");
    std::fs::write(&path, text.to_string()).expect("written");
    path
}

fn render(description: &Path, hypervisor: &str) -> String {
    let mut command = Command::new(binary("lamina").expect("built"));
    let out = command.args(["vm", "render", "--hypervisor", hypervisor, "--from"]).arg(description).output().expect("runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

fn serve(socket: &Path, size: &str) -> Process {
    let mut command = Command::new(binary("vhost-blk-ram").expect("built"));
    command.arg("--socket").arg(socket).args(["--size", size]);
    let mut process = Process::spawn("vhost-blk-ram", command).expect("a server");
    process.wait_for("its socket", 0, Duration::from_secs(10), |line| line.starts_with("serving").then_some(())).expect("serves");
    process
}

#[test]
fn a_rendered_script_starts_qemu_and_the_guest_sees_its_machine() {
    let place = Place::new().expect("a directory");
    let path = place.path();
    let description = description(path);
    let _root = serve(&path.join("root.sock"), "64MiB");
    let _data = serve(&path.join("a, b's data.sock"), "32MiB");
    let script = path.join("web.sh");
    std::fs::write(&script, render(&description, "qemu")).expect("written");
    let mut command = Command::new("/bin/sh");
    // KVM may be there and not work; the script's own choice comes first, what it is given overrides it.
    command.arg(&script).args(["-machine", "accel=tcg"]);
    let image = GuestImage::with(SHOW_MACHINE, &[], &["virtio_console"]).expect("an image");
    let options = GuestOptions::with_disk(&path.join("root.sock"));
    let mut guest = image.boot_in(command, &options).expect("a machine");
    guest.wait_booted().expect("booted");
    let report = guest.wait_done().expect("a report");
    let number = |key| report.number(key).expect("a number");
    assert_eq!((number("first"), number("second")), (64 << 11, 32 << 11), "disks are in their order");
    assert_eq!((number("cpus"), number("queues")), (2, 2));
    assert!((400 << 10..512 << 10).contains(&number("memory")), "{} KiB", number("memory"));
    let domain = render(&description, "libvirt");
    let uuid = report.text("uuid").expect("an answer").to_lowercase();
    assert!(domain.contains(&uuid), "the same machine to libvirt: {uuid}");
    assert_eq!(report.text("port").expect("an answer"), "org.qemu.guest_agent.0");
}

#[test]
fn a_rendered_domain_is_one_that_libvirt_knows() {
    let place = Place::new().expect("a directory");
    let description = description(place.path());
    let path = place.path().join("web.xml");
    std::fs::write(&path, render(&description, "libvirt")).expect("written");
    let out = Command::new("xmllint").args(["--noout", "--relaxng", SCHEMA]).arg(&path).output();
    let out = out.expect("xmllint: run tests/install-packages.sh as root");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // The schema is no rubber stamp.
    let wrong = render(&description, "libvirt").replace("<vcpu>2</vcpu>", "<vcpu>two</vcpu>");
    std::fs::write(&path, wrong).expect("written");
    let out = Command::new("xmllint").args(["--noout", "--relaxng", SCHEMA]).arg(&path).output().expect("runs");
    assert!(!out.status.success());
}

/// Waits until the guest has written `more` times than `than`.
fn wait_written(guest: &Guest, than: usize, more: usize) -> usize {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let written = guest.count_lines("LAMINA-WROTE");
        if written >= than + more {
            return written;
        }
        assert!(Instant::now() < until, "the guest does not write: {written}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Emulation is slow: longer than the daemon's own limits.
const PATIENT: Limits = Limits {
    freeze: Duration::from_secs(20),
    hold: Duration::from_secs(10),
    thaw: Duration::from_secs(10),
    behind: Duration::from_secs(30),
};

#[test]
fn a_running_guest_is_frozen_writes_nothing_meanwhile_and_goes_on() {
    let bed = Bed::new().expect("a daemon");
    let volume = bed.volume("root", ByteSize(64 << 20)).expect("a volume");
    let agent = bed.place.path().join("agent.sock");
    let image = GuestImage::with(WRITE_UNDER_AGENT, &["qemu-ga"], &["virtio_console"]).expect("an image");
    let mut options = GuestOptions::with_disk(&volume.socket);
    options.disks = vec![GuestDisk { socket: volume.socket.clone(), queues: 2 }];
    let channel = format!("socket,id=agent,path={},server=on,wait=off", agent.display());
    let port = "virtserialport,chardev=agent,name=org.qemu.guest_agent.0";
    options.extra = ["-chardev", &channel, "-device", "virtio-serial-pci", "-device", port].map(str::to_owned).to_vec();
    let mut guest = image.boot(&options).expect("a machine");
    // Nobody answers while the guest boots, and that is said in time.
    let began = Instant::now();
    let early = Limits { freeze: Duration::from_millis(300), ..PATIENT };
    let error = freeze(&agent, early).expect_err("no agent yet");
    assert!(matches!(error, FreezeError::Agent(AgentError::Silent { .. } | AgentError::Unreachable { .. })), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2));
    guest.wait_booted().expect("booted");
    guest.wait_result("running").expect("the agent is started");
    let before = wait_written(&guest, 0, 5);

    let frozen = freeze(&agent, PATIENT).expect("frozen");
    assert_eq!(frozen.filesystems(), 1, "the one on the volume");
    // One write may have been let through before, and its line come now.
    std::thread::sleep(Duration::from_millis(200));
    let arrived = |bed: &Bed| counter(&bed.daemon.volume("root").expect("shown").json, &["counters", "writes"]);
    let (lines, writes) = (guest.count_lines("LAMINA-WROTE"), arrived(&bed));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(guest.count_lines("LAMINA-WROTE"), lines, "writes stall");
    assert_eq!(arrived(&bed), writes, "nothing reaches the volume");
    assert!(lines >= before);
    let End { held, thawed } = frozen.thaw();
    assert!(held, "frozen all the time");
    thawed.expect("confirmed");
    let after = wait_written(&guest, lines, 5);
    assert!(arrived(&bed) > writes);

    // Nobody lets go: the limit does.
    let short = Limits { hold: Duration::from_millis(500), ..PATIENT };
    let forgotten = freeze(&agent, short).expect("frozen again");
    wait_written(&guest, after, 5);
    let End { held, thawed } = forgotten.thaw();
    assert!(!held && thawed.is_ok());
    assert!(!thaw_if_frozen(&agent, Duration::from_secs(10)).expect("asked"), "nothing is left frozen");
    guest.type_line("stop").expect("typed");
    let report = guest.wait_done().expect("ended well");
    assert_eq!(report.number("right").expect("a number"), 1);
}
