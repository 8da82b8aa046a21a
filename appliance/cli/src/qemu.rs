//! A machine as a script that becomes QEMU (9.2 or later, for `reconnect-ms`). The console is on the script's terminal.
//!
//! Every device has its place on the root bus, eight to a slot, so that 64 disks and 16 cards fit and none moves when another is added.

use crate::identity;
use crate::machine::{Firmware, Link, Machine, NicModel};
use crate::render::RenderError;
use crate::shell::{Script, quoted};

const COMMENT: &[&str] = &[
    "Starts a virtual machine in QEMU. Written by `lamina vm render`.",
    "Arguments are handed on to QEMU behind its own, for example: -vga std -vnc :1",
];

/// The script.
pub(crate) fn script(machine: &Machine) -> Result<String, RenderError> {
    let memory = machine.memory_mib;
    let mut script = Script::new(COMMENT, "qemu-system-x86_64");
    script.flag("-nodefaults");
    script.flag("-no-user-config");
    script.option("-name", &format!("guest={}", value(&machine.name)));
    script.option("-uuid", &identity::uuid(&machine.name));
    script.option("-machine", "q35,memory-backend=mem,accel=kvm:tcg");
    script.option("-cpu", "max");
    script.option("-smp", &machine.cpus.to_string());
    // The appliance reads and writes the guest's memory in place.
    script.option("-m", &format!("{memory}M"));
    script.option("-object", &format!("memory-backend-memfd,id=mem,size={memory}M,share=on"));
    script.option("-display", "none");
    script.option("-serial", "mon:stdio");
    if machine.firmware == Firmware::Uefi {
        firmware(machine, &mut script);
    }
    for (index, disk) in machine.disks.iter().enumerate() {
        script.option("-chardev", &format!("socket,id=lamina{index},path={},reconnect-ms=500", value(&disk.socket)));
        let order = disk.boot_order.map(|order| format!(",bootindex={order}")).unwrap_or_default();
        let (queues, place) = (machine.queues(), place(DISKS, index));
        // Firmware would drive a transitional device in the old virtio mode.
        let device = "vhost-user-blk-pci";
        script.option(
            "-device",
            &format!("{device},id=disk{index},chardev=lamina{index},num-queues={queues},disable-legacy=on{order},{place}"),
        );
    }
    for (index, nic) in machine.nics.iter().enumerate() {
        let bridge = match &nic.link {
            Link::Bridge(bridge) => bridge,
            Link::Network(network) => return Err(RenderError::Network { network: network.clone() }),
        };
        let model = match nic.model {
            NicModel::Virtio => "virtio-net-pci",
            NicModel::E1000e => "e1000e",
        };
        script.option("-netdev", &format!("bridge,id=net{index},br={}", value(bridge)));
        // No ROM: nothing is booted from the network, and it may not be installed.
        let (mac, place) = (value(&nic.mac), place(NICS, index));
        script.option("-device", &format!("{model},id=nic{index},netdev=net{index},mac={mac},romfile=,{place}"));
    }
    if let Some(socket) = &machine.guest_agent {
        script.option("-chardev", &format!("socket,id=agent,path={},server=on,wait=off", value(socket)));
        script.option("-device", &format!("virtio-serial-pci,id=serial,disable-legacy=on,{}", place(REST, 1)));
        script.option("-device", "virtserialport,bus=serial.0,chardev=agent,name=org.qemu.guest_agent.0");
    }
    script.option("-device", &format!("virtio-rng-pci,disable-legacy=on,{}", place(REST, 0)));
    Ok(script.finish())
}

/// The machine's own variables lie beside where it is started.
fn firmware(machine: &Machine, script: &mut Script) {
    let variables = format!("./{}-vars.fd", machine.name.replace('/', "_"));
    let word = quoted(&variables);
    script.before("OVMF=${OVMF:-/usr/share/OVMF}");
    script.before(&format!("[ -e {word} ] || cp \"$OVMF/OVMF_VARS_4M.fd\" {word}"));
    script.option_as_is("-drive", "\"if=pflash,unit=0,format=raw,readonly=on,file=$OVMF/OVMF_CODE_4M.fd\"");
    script.option("-drive", &format!("if=pflash,unit=1,format=raw,file={}", value(&variables)));
}

/// A value within an option: a comma ends it, two are one.
fn value(text: &str) -> String {
    text.replace(',', ",,")
}

/// The first slot of the cards (two, for 16), of the disks (eight, for 64), and of the rest. Slot 1 is left to what is asked for
/// with -vga, and 31 has the chipset's own.
const NICS: usize = 2;
const DISKS: usize = 4;
const REST: usize = 12;

/// The place of the device `index` of those that begin at `slot`.
fn place(slot: usize, index: usize) -> String {
    format!("bus=pcie.0,addr={:#x}.{},multifunction=on", slot + index / 8, index % 8)
}

#[cfg(test)]
mod tests {
    use super::script;
    use crate::machine::Link;
    use crate::machine::examples::{hostile, small, web};
    use crate::render::tests::arguments;

    #[test]
    fn scripts_are_as_they_were() {
        let mut web = web();
        web.nics.truncate(1);
        assert_eq!(script(&web).expect("rendered"), include_str!("../tests/golden/web-qemu.sh"));
        assert_eq!(script(&small()).expect("rendered"), include_str!("../tests/golden/small-qemu.sh"));
    }

    #[test]
    fn hostile_names_reach_qemu_as_they_are_and_are_never_run() {
        let machine = hostile();
        let given = arguments("qemu-system-x86_64", &script(&machine).expect("rendered"), &["-extra", "one more"]);
        let escaped = |text: &str| text.replace(',', ",,");
        assert!(given.contains(&format!("guest={}", escaped(&machine.name))), "{given:?}");
        let socket = format!("socket,id=lamina0,path={},reconnect-ms=500", escaped(&machine.disks[0].socket));
        assert!(given.contains(&socket), "{given:?}");
        assert_eq!(given[given.len() - 2..], ["-extra", "one more"]);
        assert_eq!(given.len(), arguments("qemu-system-x86_64", &script(&small()).expect("rendered"), &[]).len() + 8);
    }

    #[test]
    fn a_network_of_libvirt_is_refused() {
        let mut machine = small();
        machine.nics[0].link = Link::Network("default".to_owned());
        assert!(script(&machine).expect_err("refused").to_string().contains("network 'default' is libvirt's"));
    }
}
