//! A machine as a domain of libvirt (8.10 or later, for reconnecting disks): for `virsh define`.

use crate::identity;
use crate::machine::{Firmware, Link, Machine, MachineDisk, Nic, NicModel};
use crate::xml::{Element, Unwritable};

/// The domain.
pub(crate) fn domain(machine: &Machine) -> Result<String, Unwritable> {
    let word = |name, value: &'static str| Element::new(name).with("mode", value);
    let shared = Element::new("memoryBacking")
        // The appliance reads and writes the guest's memory in place.
        .child(Element::new("source").with("type", "memfd"))
        .child(word("access", "shared"));
    let kind = Element::new("type").with("arch", "x86_64").with("machine", "q35").text("hvm");
    let os = match machine.firmware {
        Firmware::Bios => Element::new("os"),
        Firmware::Uefi => Element::new("os").with("firmware", "efi"),
    };
    let devices = Element::new("devices")
        .children(machine.disks.iter().enumerate().map(|(index, one)| disk(machine, index, one)))
        .children(machine.nics.iter().map(nic))
        .child(Element::new("serial").with("type", "pty"))
        .child(Element::new("console").with("type", "pty"))
        .children(machine.guest_agent.as_deref().map(guest_agent))
        .child(random());
    Element::new("domain")
        .with("type", "kvm")
        .child(Element::new("name").text(&machine.name))
        .child(Element::new("uuid").text(identity::uuid(&machine.name)))
        .child(Element::new("memory").with("unit", "MiB").text(machine.memory_mib.to_string()))
        .child(shared)
        .child(Element::new("vcpu").text(machine.cpus.to_string()))
        .child(os.child(kind))
        .child(Element::new("features").child(Element::new("acpi")).child(Element::new("apic")))
        .child(word("cpu", "host-passthrough"))
        .child(devices)
        .document()
}

fn disk(machine: &Machine, index: usize, disk: &MachineDisk) -> Element {
    let reconnect = Element::new("reconnect").with("enabled", "yes").with("timeout", "1");
    let source = Element::new("source").with("type", "unix").with("path", &disk.socket).child(reconnect);
    let driver = Element::new("driver").with("name", "qemu").with("type", "raw").with("queues", machine.queues().to_string());
    Element::new("disk")
        .with("type", "vhostuser")
        .with("device", "disk")
        .child(driver)
        .child(source)
        .child(Element::new("target").with("dev", device_name(index)).with("bus", "virtio"))
        .children(disk.boot_order.map(|order| Element::new("boot").with("order", order.to_string())))
}

/// `vda` to `vdz`, then `vdaa`, as Linux counts.
fn device_name(index: usize) -> String {
    let letter = |at: usize| char::from(b'a' + u8::try_from(at % 26).unwrap_or_default());
    if index < 26 { format!("vd{}", letter(index)) } else { format!("vd{}{}", letter(index / 26 - 1), letter(index)) }
}

fn nic(nic: &Nic) -> Element {
    let (kind, name) = match &nic.link {
        Link::Bridge(name) => ("bridge", name),
        Link::Network(name) => ("network", name),
    };
    let model = match nic.model {
        NicModel::Virtio => "virtio",
        NicModel::E1000e => "e1000e",
    };
    Element::new("interface")
        .with("type", kind)
        .child(Element::new("mac").with("address", &nic.mac))
        .child(Element::new("source").with(kind, name))
        .child(Element::new("model").with("type", model))
}

fn guest_agent(socket: &str) -> Element {
    Element::new("channel")
        .with("type", "unix")
        .child(Element::new("source").with("mode", "bind").with("path", socket))
        .child(Element::new("target").with("type", "virtio").with("name", "org.qemu.guest_agent.0"))
}

fn random() -> Element {
    Element::new("rng").with("model", "virtio").child(Element::new("backend").with("model", "random").text("/dev/urandom"))
}

#[cfg(test)]
mod tests {
    use super::{device_name, domain};
    use crate::machine::examples::{hostile, small, web};

    #[test]
    fn domains_are_as_they_were() {
        assert_eq!(domain(&web()).expect("writable"), include_str!("../tests/golden/web.xml"));
        assert_eq!(domain(&small()).expect("writable"), include_str!("../tests/golden/small.xml"));
    }

    #[test]
    fn hostile_names_stay_text() {
        let text = domain(&hostile()).expect("writable");
        assert!(!text.contains("<y>") && !text.contains("touch pwned)`id`;&|"));
        let elements = |text: &str| text.matches('<').count();
        // The channel of the guest agent: itself, its end, source and target.
        assert_eq!(elements(&text), elements(&domain(&small()).expect("writable")) + 4);
    }

    #[test]
    fn disks_are_named_as_linux_names_them() {
        let names = [0, 25, 26, 51, 52, 63].map(device_name);
        assert_eq!(names, ["vda", "vdz", "vdaa", "vdaz", "vdba", "vdbl"]);
    }
}
