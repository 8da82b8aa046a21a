//! A machine as a script that becomes Cloud Hypervisor. It has no BIOS, no Intel cards, no guest agent's channel. An option may stand once
//! (since its release 36), with all its values.

use crate::identity;
use crate::machine::{Firmware, Link, Machine, MachineDisk, NicModel};
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
    let queues = machine.queues();
    let disk = |(index, disk): (usize, &MachineDisk)| {
        let socket = value(&disk.socket)?;
        Ok(format!("vhost_user=true,socket={socket},num_queues={queues},queue_size=256,id=disk{index}"))
    };
    script.option_of("--disk", &disks.into_iter().map(disk).collect::<Result<Vec<_>, RenderError>>()?);
    let mut nics = Vec::new();
    for (index, nic) in machine.nics.iter().enumerate() {
        let bridge = match (&nic.link, nic.model) {
            (Link::Network(network), _) => return Err(RenderError::Network { network: network.clone() }),
            (_, NicModel::E1000e) => return Err(RenderError::Card),
            (Link::Bridge(bridge), NicModel::Virtio) => quoted(bridge),
        };
        let tap = identity::tap(&machine.name, index);
        script.before(&format!("[ -e /sys/class/net/{tap} ] || ip tuntap add dev {tap} mode tap"));
        script.before(&format!("ip link set dev {tap} master {bridge} up"));
        nics.push(format!("tap={tap},mac={},id=net{index}", value(&nic.mac)?));
    }
    script.option_of("--net", &nics);
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
    use crate::machine::{Firmware, Link, NicModel};
    use crate::render::tests::arguments;

    #[test]
    fn scripts_are_as_they_were() {
        assert_eq!(script(&small()).expect("rendered"), include_str!("../tests/golden/small-cloud-hypervisor.sh"));
    }

    #[test]
    fn several_disks_and_cards_stand_behind_one_option_each() {
        let mut machine = web();
        machine.firmware = Firmware::Uefi;
        for (number, nic) in machine.nics.iter_mut().enumerate() {
            (nic.link, nic.model) = (Link::Bridge(format!("br{number}")), NicModel::Virtio);
        }
        let script = script(&machine).expect("rendered");
        assert_eq!(script, include_str!("../tests/golden/web-cloud-hypervisor.sh"));
        let given = arguments("cloud-hypervisor", &script, &[]);
        let behind = |option: &str| {
            let at = given.iter().position(|word| word == option).expect(option);
            given.iter().skip(at + 1).take_while(|word| !word.starts_with("--")).count()
        };
        assert_eq!((behind("--disk"), behind("--net")), (2, 2));
        assert_eq!(given.iter().filter(|word| ["--disk", "--net"].contains(&word.as_str())).count(), 2);
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
