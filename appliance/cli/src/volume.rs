//! `lamina volume …`.

use std::io::Write;

use comfy_table::Table;
use lamina_api::client::Client;
use lamina_api::volume::{CreateVolume, Volume};
use lamina_contract::{ByteSize, VolumeName};
use serde::Serialize;

use crate::args::{Hypervisor, Output, VolumeVerb};
use crate::confirm;
use crate::failure::Failure;
use crate::hypervisor::{self, Disk};
use crate::output::{self, size};

/// What `attach --hypervisor` answers to programs.
#[derive(Serialize)]
struct Attached<'a> {
    volume: &'a Volume,
    text: String,
}

/// What `delete` answers to programs.
#[derive(Serialize)]
struct Deleted<'a> {
    name: &'a str,
    deleted: bool,
}

/// Does what `verb` says.
pub(crate) async fn run(verb: &VolumeVerb, client: &Client, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    match verb {
        VolumeVerb::Create { name, size, block_size, sco_size, read_only } => {
            let request = CreateVolume {
                name: name.as_str().to_owned(),
                size_bytes: size.0,
                block_size: block_size.map(|size| size.0),
                sco_size: sco_size.map(|size| size.0),
                read_only: *read_only,
                ..CreateVolume::default()
            };
            output::print(out, output, &client.create(&request).await?, brief)
        }
        VolumeVerb::List => output::print(out, output, &client.volumes().await?.volumes, |volumes| list(volumes)),
        VolumeVerb::Show { name } => output::print(out, output, &client.volume(name).await?, full),
        VolumeVerb::Attach { name, hypervisor, memory, queues } => {
            let volume = client.attach(name).await?;
            match hypervisor {
                Some(hypervisor) => paste(&volume, *hypervisor, *memory, *queues, output, out),
                None => output::print(out, output, &volume, brief),
            }
        }
        VolumeVerb::Detach { name } => output::print(out, output, &client.detach(name).await?, brief),
        VolumeVerb::Delete { name, yes } => delete(name, *yes, client, output, out).await,
    }
}

async fn delete(name: &VolumeName, yes: bool, client: &Client, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    if !yes {
        // A wrong name is said before anybody is asked to type it again.
        client.volume(name).await?;
        confirm::deletion(name)?;
    }
    client.delete(name, false).await?;
    output::print(out, output, &Deleted { name: name.as_str(), deleted: true }, |gone| {
        output::properties(vec![("deleted", gone.name.to_owned())])
    })
}

fn paste(
    volume: &Volume,
    hypervisor: Hypervisor,
    memory: ByteSize,
    queues: u16,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let socket = volume.socket.as_deref().ok_or_else(|| Failure::NoSocket { name: volume.name.clone() })?;
    let text = hypervisor::text(hypervisor, &Disk { name: &volume.name, socket, memory, queues });
    if output == Output::Table {
        out.write_all(text.as_bytes())?;
        out.flush()?;
        return Ok(());
    }
    output::print(out, output, &Attached { volume, text }, |_| output::properties(Vec::new()))
}

fn list(volumes: &[Volume]) -> Table {
    let mut table = output::columns(&["NAME", "SIZE", "STATE", "GUEST", "WRITTEN", "SOCKET"]);
    for volume in volumes {
        table.add_row([
            volume.name.clone(),
            size(volume.size_bytes),
            volume.state.as_str().to_owned(),
            guest(volume).to_owned(),
            size(volume.counters.written_bytes),
            volume.socket.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}

fn guest(volume: &Volume) -> &'static str {
    if volume.connected { "connected" } else { "-" }
}

fn brief(volume: &Volume) -> Table {
    output::properties(head(volume))
}

fn head(volume: &Volume) -> Vec<(&'static str, String)> {
    vec![
        ("name", volume.name.clone()),
        ("size", size(volume.size_bytes)),
        ("state", volume.state.as_str().to_owned()),
        ("socket", volume.socket.clone().unwrap_or_else(|| "- (attach it with: lamina volume attach)".to_owned())),
    ]
}

fn full(volume: &Volume) -> Table {
    let mut rows = head(volume);
    let counters = &volume.counters;
    rows.extend([
        ("guest", guest(volume).to_owned()),
        ("identity", volume.id.clone()),
        ("created", volume.created.clone()),
        ("block size", size(volume.block_size)),
        ("SCO size", size(volume.sco_size)),
        ("access", if volume.read_only { "read-only" } else { "read-write" }.to_owned()),
        ("epoch, generation", format!("{}, {}", volume.epoch, volume.generation)),
        ("read", format!("{} in {} requests", size(counters.read_bytes), counters.reads)),
        ("written", format!("{} in {} requests, {} flushes", size(counters.written_bytes), counters.writes, counters.flushes)),
        ("errors", counters.errors.to_string()),
        ("deduplicated", size(counters.deduplicated_bytes)),
        ("stored", size(counters.stored_bytes)),
        ("only in the journal", size(counters.pending_bytes)),
    ]);
    output::properties(rows)
}
