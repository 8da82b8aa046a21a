//! `lamina vm …`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use lamina_api::job::{Job, Outcome};
use lamina_api::name::Name;
use lamina_api::paths;
use lamina_api::snapshot::Rollback;
use lamina_api::vm::{
    ChangeVm, CreateVm, CreateVmSnapshot, Firmware, Machine as Shape, NicModel, RolledBackVm, SetTemplate, Vm, VmList, VmNic,
    VmSnapshot, VmSnapshotList,
};
use lamina_contract::VolumeName;
use serde::Serialize;
use serde_json::json;

use crate::confirm;
use crate::cut::Cut;
use crate::deleted;
use crate::failure::Failure;
use crate::follow::{self, Followed};
use crate::job;
use crate::labels;
use crate::machine::{Description, Machine};
use crate::mistake::Mistake;
use crate::moment::local;
use crate::printer::{Printer, Property, Row, or_dash, size, text};
use crate::render;
use crate::session::Session;
use crate::snapshot;
use crate::table::{Cell, Column};
use crate::tone::Tone;
use crate::vm_verbs::{One, VmVerb};
use crate::volume_verbs::{Back, Hypervisor};

/// A machine's description is far smaller.
const MAX_BYTES: u64 = 1 << 20;

/// What `render` answers to programs.
#[derive(Serialize)]
struct Rendered<'a> {
    name: &'a str,
    text: String,
}

impl One {
    fn parts(&self) -> Result<(&Name, &Name), Mistake> {
        Ok((&self.vm.of, self.vm.named(self.snapshot.as_ref())?))
    }
}

/// Does what `verb` says.
pub(crate) async fn run(verb: &VmVerb, session: &Session) -> Result<(), Failure> {
    let Session { client, printer, .. } = session;
    let show = |vm: Vm| printer.one(&vm, &vm.name, properties);
    match verb {
        VmVerb::List => printer.list(&client.all::<VmList>(paths::VMS).await?),
        VmVerb::Show { name } => show(client.get(&paths::vm(name)).await?),
        VmVerb::Create { name, cpus, memory, firmware, disks, nics, guest_agent, labels } => {
            let machine = Shape {
                cpus: *cpus,
                memory_bytes: memory.0,
                firmware: (*firmware).into(),
                disks: disks.clone(),
                nics: nics.clone(),
            };
            let request =
                CreateVm { name: name.to_string(), labels: labels::all(labels)?, machine, guest_agent: guest_agent.clone() };
            show(client.post(paths::VMS, &request).await?)
        }
        VmVerb::Set { name, .. } => show(client.change(&paths::vm(name), |vm| changed(verb, &vm)).await?),
        VmVerb::Delete { name, volumes, yes } => {
            if !yes {
                client.get::<Vm>(&paths::vm(name)).await?;
                let too = if *volumes { ", all its volumes and their snapshots" } else { "; its volumes stay" };
                confirm::loss(&format!("this deletes VM '{name}'{too}"), name.as_str(), false)?;
            }
            client.delete(&format!("{}?volumes={volumes}", paths::vm(name))).await?;
            deleted::print(session, name.as_str())
        }
        VmVerb::Snapshot { one, freeze, description, pin, labels } => {
            let (vm, snapshot) = one.parts()?;
            let request = CreateVmSnapshot {
                name: snapshot.to_string(),
                labels: labels::all(labels)?,
                description: description.clone(),
                pinned: *pin,
                freeze: *freeze,
            };
            let taken: VmSnapshot = client.post(&paths::of_vm(vm, "snapshots"), &request).await?;
            printer.one(&taken, &format!("{vm}@{snapshot}"), snapshot_properties)
        }
        VmVerb::Snapshots { name } => printer.list(&client.all::<VmSnapshotList>(&paths::of_vm(name, "snapshots")).await?),
        VmVerb::DeleteSnapshot { one, yes } => {
            let (vm, snapshot) = one.parts()?;
            let path = paths::vm_snapshot(vm, snapshot);
            if !yes {
                client.get::<VmSnapshot>(&path).await?;
                confirm::loss(&format!("deleting snapshot '{vm}@{snapshot}' cannot be undone"), snapshot.as_str(), false)?;
            }
            client.delete(&path).await?;
            deleted::print(session, &format!("{vm}@{snapshot}"))
        }
        VmVerb::Rollback { vm, back, yes } => rollback(vm, back, *yes, session).await,
        VmVerb::Clone { vm, back, clones } => {
            let job: Job = client.post(&paths::of_vm(&vm.of, "clones"), &clones.request(vm, back)?).await?;
            job::finish(session, job).await
        }
        VmVerb::Template { name, undo } => {
            show(client.post(&paths::of_vm(name, "template"), &SetTemplate { template: !undo }).await?)
        }
        VmVerb::Render { name: Some(name), hypervisor, .. } => {
            print_rendered(described(name, session).await?, *hypervisor, printer)
        }
        VmVerb::Render { from, hypervisor, .. } => {
            render_file(from.as_deref().unwrap_or_else(|| Path::new("-")), *hypervisor, printer)
        }
    }
}

/// What `lamina vm set` makes of a VM.
fn changed(verb: &VmVerb, vm: &Vm) -> Result<ChangeVm, Failure> {
    let VmVerb::Set { cpus, memory, firmware, add_disks, remove_disks, nics, no_nics, guest_agent, labels, unlabel, .. } = verb
    else {
        return Err(Mistake::NoChange.into());
    };
    let mut machine = vm.machine.clone();
    for gone in remove_disks {
        let before = machine.disks.len();
        machine.disks.retain(|disk| disk.volume != gone.as_str());
        if machine.disks.len() == before {
            return Err(Mistake::NoDisk { vm: vm.name.clone(), volume: gone.to_string() }.into());
        }
    }
    machine.disks.extend(add_disks.iter().cloned());
    machine.cpus = cpus.unwrap_or(machine.cpus);
    machine.memory_bytes = memory.map_or(machine.memory_bytes, |memory| memory.0);
    machine.firmware = firmware.map_or(machine.firmware, Into::into);
    if !nics.is_empty() || *no_nics {
        machine.nics.clone_from(nics);
    }
    let agent = guest_agent.as_ref().map(|agent| if agent == "none" { String::new() } else { agent.clone() });
    let change = ChangeVm {
        labels: labels::changed(&vm.labels, labels, unlabel)?,
        machine: (machine != vm.machine).then_some(machine),
        guest_agent: agent,
    };
    if change == ChangeVm::default() { Err(Mistake::NoChange.into()) } else { Ok(change) }
}

async fn rollback(cut: &Cut<Name>, back: &Back, yes: bool, session: &Session) -> Result<(), Failure> {
    let request: Rollback = back.needed(cut)?;
    let name = &cut.of;
    if !yes {
        session.client.get::<Vm>(&paths::vm(name)).await?;
        confirm::loss(&format!("taking VM '{name}' back replaces what its disks hold now"), name.as_str(), false)?;
    }
    let begun: Outcome<RolledBackVm> = session.client.begin(&paths::of_vm(name, "rollback"), &request).await?;
    let done = match follow::outcome(session, begun).await? {
        Followed::Done(done) => done,
        Followed::Succeeded(job) => {
            let discarded = job.result.unwrap_or_default().discarded.unwrap_or_default();
            RolledBackVm { vm: session.client.get(&paths::vm(name)).await?, discarded }
        }
        Followed::Left(job) => return job::print(session, &job),
    };
    session.printer.one(&done, &done.discarded, |done| {
        let mut rows = properties(&done.vm);
        rows.push(("what it held before", format!("{name}@{}", done.discarded).into()));
        rows
    })
}

/// A machine out of a file; asks no daemon.
pub(crate) fn render_file(from: &Path, hypervisor: Hypervisor, printer: &Printer) -> Result<(), Failure> {
    print_rendered(serde_json::from_str(&read(from)?).map_err(Failure::Description)?, hypervisor, printer)
}

fn print_rendered(description: Description, hypervisor: Hypervisor, printer: &Printer) -> Result<(), Failure> {
    let machine = Machine::try_from(description)?;
    let words = render::text(hypervisor, &machine)?;
    if hypervisor == Hypervisor::Libvirt {
        printer.notice(
            "libvirt's QEMU must be let to the sockets: user = \"root\" in /etc/libvirt/qemu.conf, or an ACL (OPERATIONS, Libvirt)",
        );
    }
    if printer.output.is_table() { text(&words) } else { printer.data(&Rendered { name: &machine.name, text: words }) }
}

/// A VM that the daemon knows, with the sockets of its volumes.
async fn described(name: &Name, session: &Session) -> Result<Description, Failure> {
    let vm: Vm = session.client.get(&paths::vm(name)).await?;
    let mut disks = Vec::new();
    for disk in &vm.machine.disks {
        let volume = session.client.volume(&VolumeName::new(&disk.volume)?).await?;
        let Some(socket) = volume.socket else { return Err(Mistake::Detached { volume: volume.name }.into()) };
        disks.push(json!({ "volume": disk.volume, "socket": socket, "boot_order": disk.boot_order }));
    }
    let Shape { cpus, memory_bytes, firmware, nics, .. } = &vm.machine;
    let whole = json!({
        "name": vm.name, "cpus": cpus, "memory_bytes": memory_bytes, "firmware": firmware, "disks": disks, "nics": nics,
        "guest_agent": vm.guest_agent,
    });
    serde_json::from_value(whole).map_err(Failure::Description)
}

/// `-` is standard input.
fn read(from: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = |source: &mut dyn Read, text: &mut String| source.take(MAX_BYTES).read_to_string(text);
    let result = if from == Path::new("-") {
        read(&mut io::stdin().lock(), &mut text)
    } else {
        File::open(from).and_then(|mut file| read(&mut file, &mut text))
    };
    result.map(|_| text).map_err(|cause| Failure::Read { path: from.to_owned(), cause })
}

impl Row for Vm {
    const COLUMNS: &'static [Column] = &[
        Column::new("NAME"),
        Column::number("CPUS"),
        Column::number("MEMORY"),
        Column::new("DISKS"),
        Column::new("TEMPLATE"),
        Column::new("LABELS"),
        Column::new("FIRMWARE").wide(),
        Column::number("NICS").wide(),
        Column::new("CREATED").wide(),
    ];

    fn cells(&self) -> Vec<Cell> {
        let disks: Vec<_> = self.machine.disks.iter().map(|disk| disk.volume.as_str()).collect();
        vec![
            self.name.as_str().into(),
            self.machine.cpus.to_string().into(),
            size(self.machine.memory_bytes).into(),
            disks.join(",").into(),
            or_dash(self.template.then_some("yes")),
            labels::cell(&self.labels),
            firmware(self.machine.firmware).into(),
            self.machine.nics.len().to_string().into(),
            local(&self.created).into(),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

fn firmware(firmware: Firmware) -> &'static str {
    match firmware {
        Firmware::Bios => "bios",
        Firmware::Uefi => "uefi",
    }
}

fn card(nic: &VmNic) -> String {
    let link = match (&nic.bridge, &nic.network) {
        (Some(bridge), _) => format!("bridge {bridge}"),
        (None, Some(network)) => format!("network {network}"),
        (None, None) => "nothing".to_owned(),
    };
    let model = match nic.model {
        NicModel::Virtio => "virtio",
        NicModel::E1000e => "e1000e",
    };
    let mac = nic.mac.as_ref().map(|mac| format!(", {mac}")).unwrap_or_default();
    format!("{model} on {link}{mac}")
}

fn properties(vm: &Vm) -> Vec<Property> {
    let mut rows = vec![
        ("name", vm.name.as_str().into()),
        ("CPUs", vm.machine.cpus.to_string().into()),
        ("memory", size(vm.machine.memory_bytes).into()),
        ("firmware", firmware(vm.machine.firmware).into()),
    ];
    rows.extend(vm.machine.disks.iter().map(|disk| {
        let order = disk.boot_order.map(|order| format!(", boots as {order}")).unwrap_or_default();
        ("disk", Cell::from(format!("{}{order}", disk.volume)))
    }));
    rows.extend(vm.machine.nics.iter().map(|nic| ("network card", Cell::from(card(nic)))));
    rows.extend([
        ("guest agent", or_dash(vm.guest_agent.as_deref())),
        ("template", if vm.template { "yes" } else { "no" }.into()),
        ("labels", labels::cell(&vm.labels)),
        ("created", local(&vm.created).into()),
    ]);
    rows
}

fn frozen(snapshot: &VmSnapshot) -> Cell {
    if snapshot.frozen { Cell::new("frozen", Tone::Good) } else { "as after a power cut".into() }
}

impl Row for VmSnapshot {
    const COLUMNS: &'static [Column] = &[
        Column::new("SNAPSHOT"),
        Column::new("CREATED"),
        Column::new("STATE"),
        Column::new("FILE SYSTEMS"),
        Column::new("KIND"),
        Column::number("DISKS"),
        Column::new("LABELS").wide(),
        Column::new("DESCRIPTION"),
    ];

    fn cells(&self) -> Vec<Cell> {
        vec![
            format!("{}@{}", self.vm, self.name).into(),
            local(&self.created).into(),
            snapshot::state(self.state),
            frozen(self),
            snapshot::kind(self.automatic, self.pinned),
            self.disks.len().to_string().into(),
            labels::cell(&self.labels),
            or_dash(Some(self.description.as_str()).filter(|text| !text.is_empty())),
        ]
    }

    fn name(&self) -> String {
        format!("{}@{}", self.vm, self.name)
    }
}

fn snapshot_properties(snapshot: &VmSnapshot) -> Vec<Property> {
    let mut rows = vec![
        ("name", format!("{}@{}", snapshot.vm, snapshot.name).into()),
        ("created", local(&snapshot.created).into()),
        ("state", snapshot::state(snapshot.state)),
        ("file systems", frozen(snapshot)),
        ("kind", snapshot::kind(snapshot.automatic, snapshot.pinned)),
    ];
    rows.extend(snapshot.disks.iter().map(|disk| ("disk", Cell::from(format!("{}@{}", disk.volume, disk.snapshot)))));
    rows.push(("labels", labels::cell(&snapshot.labels)));
    rows
}
