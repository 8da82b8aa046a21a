//! A machine as a script that becomes Cloud Hypervisor. It has no BIOS, no Intel cards, no guest agent's channel.

use crate::identity;
use crate::machine::{Firmware, Link, Machine, NicModel};
use crate::render::RenderError;
use crate::shell::{Script, quoted};

const COMMENT: &[&str] = &[
    "Starts a virtual machine in Cloud Hypervisor. Written by `lamina vm render`.",
    "Arguments are handed on behind its own. Run it as root: it makes tap devices and puts them on bridges.",
];

/// The script.
pub(crate) fn script(machine: &Machine) -> Result<String, RenderError> {
    if machine.firmware == Firmware::Bios {
        return Err(RenderError::Bios);
    }
    let mut script = Script::new(COMMENT, "cloud-hypervisor");
    script.before("FIRMWARE=${FIRMWARE:-/usr/share/cloud-hypervisor/CLOUDHV_EFI.fd}");
    script.option_as_is("--firmware", "\"$FIRMWARE\"");
    script.option("--platform", &format!("uuid={}", identity::uuid(&machine.name)));
    script.option("--cpus", &format!("boot={}", machine.cpus));
    // The appliance reads and writes the guest's memory in place.
    script.option("--memory", &format!("size={}M,shared=on", machine.memory_mib));
    script.option("--console", "off");
    script.option("--serial", "tty");
    // Firmware tries disks in their order.
    let mut disks: Vec<_> = machine.disks.iter().enumerate().collect();
    disks.sort_by_key(|(_, disk)| disk.boot_order.unwrap_or(u32::MAX));
    for (index, disk) in disks {
        let (socket, queues) = (value(&disk.socket)?, machine.queues());
        script.option("--disk", &format!("vhost_user=true,socket={socket},num_queues={queues},queue_size=256,id=disk{index}"));
    }
    for (index, nic) in machine.nics.iter().enumerate() {
        let bridge = match (&nic.link, nic.model) {
            (Link::Network(network), _) => return Err(RenderError::Network { network: network.clone() }),
            (_, NicModel::E1000e) => return Err(RenderError::Card),
            (Link::Bridge(bridge), NicModel::Virtio) => quoted(bridge),
        };
        let tap = identity::tap(&machine.name, index);
        script.before(&format!("[ -e /sys/class/net/{tap} ] || ip tuntap add dev {tap} mode tap"));
        script.before(&format!("ip link set dev {tap} master {bridge} up"));
        script.option("--net", &format!("tap={tap},mac={},id=net{index}", value(&nic.mac)?));
    }
    Ok(script.finish())
}

/// A value within an option. What would end it, or begin a list, cannot be written in all versions.
fn value(text: &str) -> Result<&str, RenderError> {
    let special = |c: char| c.is_control() || ",\"[]".contains(c);
    if text.contains(special) { Err(RenderError::Value { value: text.to_owned() }) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::script;
    use crate::machine::examples::{hostile, small, web};
    use crate::machine::{Firmware, NicModel};
    use crate::render::tests::arguments;

    #[test]
    fn scripts_are_as_they_were() {
        assert_eq!(script(&small()).expect("rendered"), include_str!("../tests/golden/small-cloud-hypervisor.sh"));
    }

    #[test]
    fn disks_stand_in_the_order_of_booting() {
        let mut machine = web();
        machine.firmware = Firmware::Uefi;
        machine.nics.clear();
        (machine.disks[0].boot_order, machine.disks[1].boot_order) = (None, Some(1));
        let given = arguments("cloud-hypervisor", &script(&machine).expect("rendered"), &["--log-file", "a b"]);
        let disks: Vec<_> = given.iter().filter(|word| word.starts_with("vhost_user")).collect();
        assert!(disks[0].ends_with("id=disk1") && disks[1].ends_with("id=disk0"), "{disks:?}");
        assert_eq!(given[given.len() - 2..], ["--log-file", "a b"]);
    }

    #[test]
    fn what_it_cannot_do_is_refused() {
        let mut machine = small();
        machine.nics[0].model = NicModel::E1000e;
        assert!(script(&machine).expect_err("refused").to_string().contains("virtio"));
        assert!(script(&web()).expect_err("refused").to_string().contains("no BIOS"));
        assert!(script(&hostile()).expect_err("refused").to_string().contains("cannot be written"));
        let mut quiet = hostile();
        quiet.disks[0].socket = "/run/a b'c$(id).sock".to_owned();
        quiet.nics.clear();
        let given = arguments("cloud-hypervisor", &script(&quiet).expect("rendered"), &[]);
        assert!(given.iter().any(|word| word.contains("socket=/run/a b'c$(id).sock,")), "{given:?}");
    }
}
