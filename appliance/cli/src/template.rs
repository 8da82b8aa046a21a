//! `lamina template …`.

use clap::Subcommand;
use lamina_api::paths;
use lamina_api::vm::VmList;
use serde::Serialize;

use crate::failure::Failure;
use crate::printer::{Row, size};
use crate::session::Session;
use crate::table::{Cell, Column};
use crate::volume;

/// What to do with templates.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateVerb {
    /// Lists volumes and VMs that are made to be cloned.
    #[command(
        long_about = "Lists volumes and VMs that are templates: read-only, and made to be cloned. lamina volume template and lamina vm template \
make one.",
        after_long_help = "\
Examples:
  lamina template list
  lamina template list -o json | jq -r '.[] | select(.kind == \"volume\") | .name'"
    )]
    List,
}

/// Something to be cloned.
#[derive(Debug, Serialize)]
struct Template {
    name: String,
    kind: &'static str,
    /// Of a VM: of its memory and disks nothing is said here.
    size_bytes: Option<u64>,
    clones: Option<u32>,
}

impl Row for Template {
    const COLUMNS: &'static [Column] =
        &[Column::new("NAME"), Column::new("KIND"), Column::number("SIZE"), Column::number("CLONES")];

    fn cells(&self) -> Vec<Cell> {
        let dash = || Cell::from("-");
        vec![
            self.name.as_str().into(),
            self.kind.into(),
            self.size_bytes.map_or_else(dash, |bytes| size(bytes).into()),
            self.clones.map_or_else(dash, |clones| clones.to_string().into()),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// Does what `verb` says.
pub(crate) async fn run(verb: &TemplateVerb, session: &Session) -> Result<(), Failure> {
    let TemplateVerb::List = verb;
    let volumes = volume::list(session, "&template=true").await?.into_iter().map(|volume| Template {
        kind: "volume",
        size_bytes: Some(volume.size_bytes),
        clones: Some(volume.clones),
        name: volume.name,
    });
    let mut templates: Vec<_> = volumes.collect();
    let vms = session.client.all::<VmList>(paths::VMS).await?.into_iter().filter(|vm| vm.template);
    templates.extend(vms.map(|vm| Template { name: vm.name, kind: "vm", size_bytes: None, clones: None }));
    session.printer.list(&templates)
}
