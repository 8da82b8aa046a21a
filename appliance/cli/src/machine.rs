//! A machine as every hypervisor can be told of it: what `lamina vm render` reads, checked once.

use std::collections::BTreeSet;

use lamina_contract::{ByteSize, UnitError, VolumeName};
use serde::Deserialize;

use crate::identity;

/// As the interface has it (`appliance/api`).
const MAX_CPUS: u32 = 1024;
const MAX_DISKS: usize = 64;
const MAX_NICS: usize = 16;
/// Queues that the daemon offers for each disk.
const MAX_QUEUES: u32 = 16;
/// Bytes of a Unix socket's path.
const MAX_SOCKET: usize = 107;

/// A machine as it is written down, unchecked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Description {
    name: String,
    cpus: u32,
    memory_bytes: u64,
    #[serde(default)]
    firmware: Firmware,
    disks: Vec<DiskDescription>,
    #[serde(default)]
    nics: Vec<NicDescription>,
    #[serde(default)]
    guest_agent: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskDescription {
    volume: String,
    socket: String,
    #[serde(default)]
    boot_order: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct NicDescription {
    #[serde(default)]
    mac: Option<String>,
    #[serde(default)]
    bridge: Option<String>,
    #[serde(default)]
    network: Option<String>,
    #[serde(default)]
    model: NicModel,
}

/// What a machine boots with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Firmware {
    /// SeaBIOS and its like.
    #[default]
    Bios,
    /// OVMF and its like.
    Uefi,
}

/// What a network card is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NicModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel's, for guests without virtio.
    E1000e,
}

/// A machine that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Its name.
    pub(crate) name: String,
    /// Virtual CPUs.
    pub(crate) cpus: u32,
    /// Memory, whole MiB.
    pub(crate) memory_mib: u64,
    /// What it boots with.
    pub(crate) firmware: Firmware,
    /// Its disks, in their order.
    pub(crate) disks: Vec<MachineDisk>,
    /// Its network cards, in their order.
    pub(crate) nics: Vec<Nic>,
    /// Where the hypervisor puts the guest agent's socket.
    pub(crate) guest_agent: Option<String>,
}

/// A disk of a machine. That a volume refuses writes is said by the volume to the guest: over vhost-user no hypervisor has a word for it,
/// and libvirt refuses `<readonly/>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MachineDisk {
    /// The vhost-user socket.
    pub(crate) socket: String,
    /// Its place in the order of booting, from 1.
    pub(crate) boot_order: Option<u32>,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic {
    /// Given, or made of the machine's name.
    pub(crate) mac: String,
    /// What it is on.
    pub(crate) link: Link,
    /// What it is.
    pub(crate) model: NicModel,
}

/// What a network card is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Link {
    /// A bridge of the host.
    Bridge(String),
    /// A network of libvirt.
    Network(String),
}

/// Why a description is not one of a machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// A name.
    #[error(transparent)]
    Name(#[from] UnitError),
    /// Outside its bounds.
    #[error("a machine has {least} to {most} {of}, not {given}")]
    Number { of: &'static str, least: u64, most: u64, given: u64 },
    /// A path that no socket can have.
    #[error("'{path}' cannot be a socket's path: it must be absolute and have at most {MAX_SOCKET} bytes")]
    Socket { path: String },
    /// A volume, a socket, a place in the order of booting or a MAC address.
    #[error("{what} '{value}' is used twice")]
    Twice { what: &'static str, value: String },
    /// Neither or both.
    #[error("network card {index} must be on a bridge or on a network, one of them")]
    Link { index: usize },
    /// A name that no bridge or network has.
    #[error("'{name}' cannot be the name of a bridge or network: letters, digits, '_', '.' and '-', at most {most} of them")]
    LinkName { name: String, most: usize },
    /// Not a MAC address of one card.
    #[error("'{mac}' is not a MAC address of one card: six pairs of hexadecimal digits, the first one even")]
    Mac { mac: String },
}

impl Machine {
    /// Queues of each disk: one for each CPU.
    pub(crate) fn queues(&self) -> u32 {
        self.cpus.min(MAX_QUEUES)
    }
}

impl TryFrom<Description> for Machine {
    type Error = MachineError;

    fn try_from(given: Description) -> Result<Self, MachineError> {
        let name = VolumeName::new(&given.name)?.as_str().to_owned();
        bounds("CPUs", u64::from(given.cpus), 1, u64::from(MAX_CPUS))?;
        bounds("bytes of memory", given.memory_bytes, 1 << 20, 64 << 40)?;
        bounds("disks", given.disks.len() as u64, 1, MAX_DISKS as u64)?;
        bounds("network cards", given.nics.len() as u64, 0, MAX_NICS as u64)?;
        let (mut volumes, mut sockets, mut orders, mut macs) =
            (Once::new("volume"), Once::new("socket"), Once::new("boot order"), Once::new("MAC address"));
        let mut disks = Vec::new();
        for disk in given.disks {
            volumes.add(VolumeName::new(&disk.volume)?.as_str())?;
            sockets.add(&disk.socket)?;
            if let Some(order) = disk.boot_order {
                bounds("disks to boot from", u64::from(order), 1, MAX_DISKS as u64)?;
                orders.add(&order.to_string())?;
            }
            disks.push(MachineDisk { socket: path(disk.socket)?, boot_order: disk.boot_order });
        }
        let mut nics = Vec::new();
        for (index, nic) in given.nics.into_iter().enumerate() {
            let mac = nic.mac.map_or_else(|| Ok(identity::mac(&name, index)), mac)?;
            macs.add(&mac)?;
            let link = match (nic.bridge, nic.network) {
                (Some(bridge), None) => Link::Bridge(link_name(bridge, 15)?),
                (None, Some(network)) => Link::Network(link_name(network, 63)?),
                _ => return Err(MachineError::Link { index: index + 1 }),
            };
            nics.push(Nic { mac, link, model: nic.model });
        }
        let guest_agent = given.guest_agent.map(path).transpose()?;
        let memory_mib = ByteSize(given.memory_bytes).0.div_ceil(1 << 20);
        Ok(Self { name, cpus: given.cpus, memory_mib, firmware: given.firmware, disks, nics, guest_agent })
    }
}

fn bounds(of: &'static str, given: u64, least: u64, most: u64) -> Result<(), MachineError> {
    if (least..=most).contains(&given) { Ok(()) } else { Err(MachineError::Number { of, least, most, given }) }
}

fn path(path: String) -> Result<String, MachineError> {
    let fits = path.starts_with('/') && path.len() <= MAX_SOCKET && !path.contains('\0');
    if fits { Ok(path) } else { Err(MachineError::Socket { path: path.chars().take(120).collect() }) }
}

fn link_name(name: String, most: usize) -> Result<String, MachineError> {
    let fits = (1..=most).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if fits { Ok(name) } else { Err(MachineError::LinkName { name: name.chars().take(80).collect(), most }) }
}

fn mac(mac: String) -> Result<String, MachineError> {
    let pair = |pair: &str| u8::from_str_radix(pair, 16).ok().filter(|_| pair.len() == 2 && !pair.starts_with('+'));
    let pairs: Option<Vec<u8>> = mac.split(':').map(pair).collect();
    match pairs.as_deref() {
        Some([first, _, _, _, _, _]) if first & 1 == 0 => Ok(mac.to_ascii_lowercase()),
        _ => Err(MachineError::Mac { mac: mac.chars().take(40).collect() }),
    }
}

/// What may stand in a machine once.
struct Once {
    what: &'static str,
    seen: BTreeSet<String>,
}

impl Once {
    const fn new(what: &'static str) -> Self {
        Self { what, seen: BTreeSet::new() }
    }

    fn add(&mut self, value: &str) -> Result<(), MachineError> {
        if self.seen.insert(value.to_owned()) {
            Ok(())
        } else {
            Err(MachineError::Twice { what: self.what, value: value.chars().take(120).collect() })
        }
    }
}

/// The machines of the golden files, and one whose names are hostile.
#[cfg(test)]
pub(crate) mod examples {
    use super::{Description, Firmware, Link, Machine, MachineDisk, Nic, NicModel};

    /// Parses what an operator would write.
    pub(crate) fn parse(text: &str) -> Result<Machine, String> {
        let description: Description = serde_json::from_str(text).map_err(|error| error.to_string())?;
        Machine::try_from(description).map_err(|error| error.to_string())
    }

    /// Two disks; bridge and network; BIOS; a guest agent.
    pub(crate) fn web() -> Machine {
        parse(include_str!("../tests/golden/web.json")).expect("right")
    }

    /// One disk, UEFI, one card on a bridge.
    pub(crate) fn small() -> Machine {
        parse(include_str!("../tests/golden/small.json")).expect("right")
    }

    /// What no check lets through, in case a check fails one day.
    pub(crate) fn hostile() -> Machine {
        let bad = "x' \"$(touch pwned)`id`;&|<y>\\,,readonly=on\n#";
        let disk = MachineDisk { socket: format!("/run/{bad}.sock"), boot_order: Some(1) };
        let nic = Nic { mac: bad.to_owned(), link: Link::Bridge(bad.to_owned()), model: NicModel::Virtio };
        Machine {
            name: bad.to_owned(),
            cpus: 1,
            memory_mib: 64,
            firmware: Firmware::Uefi,
            disks: vec![disk],
            nics: vec![nic],
            guest_agent: Some(format!("/run/{bad}.qga")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::examples::parse;

    const RIGHT: &str = r#"{"name":"web","cpus":2,"memory_bytes":1073741825,
        "disks":[{"volume":"root","socket":"/s/root.sock","boot_order":1},{"volume":"data","socket":"/s/data.sock"}],
        "nics":[{"bridge":"br0"},{"mac":"52:54:00:AB:cd:01","network":"default","model":"e1000e"}]}"#;

    #[test]
    fn a_right_description_is_a_machine() {
        let machine = parse(RIGHT).expect("right");
        assert_eq!((machine.memory_mib, machine.queues(), machine.disks.len()), (1025, 2, 2));
        assert_eq!(machine.nics[1].mac, "52:54:00:ab:cd:01");
        assert!(machine.nics[0].mac.starts_with("52:"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_named() {
        for (from, to, words) in [
            ("\"web\"", "\"We b\"", "name 'We b'"),
            ("\"cpus\":2", "\"cpus\":0", "1 to 1024 CPUs"),
            ("1073741825", "1024", "bytes of memory"),
            ("\"data\"", "\"root\"", "volume 'root' is used twice"),
            ("/s/data.sock", "/s/root.sock", "socket '/s/root.sock' is used twice"),
            ("\"/s/data.sock\"", "\"/s/data.sock\",\"boot_order\":1", "boot order '1' is used twice"),
            ("\"boot_order\":1", "\"boot_order\":0", "disks to boot from"),
            ("/s/data.sock", "data.sock", "must be absolute"),
            ("{\"bridge\":\"br0\"}", "{}", "card 1 must be on"),
            ("{\"bridge\":\"br0\"}", "{\"bridge\":\"br0\",\"network\":\"x\"}", "card 1 must be on"),
            ("\"br0\"", "\"br0;reboot\"", "cannot be the name"),
            ("52:54:00:AB:cd:01", "53:54:00:ab:cd:01", "not a MAC address of one card"),
            ("52:54:00:AB:cd:01", "52:54:00:ab:cd", "not a MAC address"),
            ("52:54:00:AB:cd:01", "52:54:00:ab:cd:+1", "not a MAC address"),
            ("\"e1000e\"", "\"rtl8139\"", "unknown variant"),
            ("\"cpus\"", "\"cpu\"", "unknown field"),
        ] {
            assert!(RIGHT.contains(from), "{from}");
            let refused = parse(&RIGHT.replace(from, to)).expect_err(to);
            assert!(refused.contains(words), "{to}: {refused}");
        }
    }
}
