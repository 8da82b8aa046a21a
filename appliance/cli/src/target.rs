//! `lamina target …`.

use std::io::Write;

use comfy_table::Table;
use lamina_api::client::Client;
use lamina_api::target::TargetList;

use crate::args::{Output, TargetVerb};
use crate::failure::Failure;
use crate::output::{self, size};

/// Does what `verb` says.
pub(crate) async fn run(verb: &TargetVerb, client: &Client, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    match verb {
        TargetVerb::List => output::print(out, output, &client.targets().await?, table),
    }
}

fn table(list: &TargetList) -> Table {
    let mut table = output::columns(&["TARGET", "STATE", "FREE", "CAPACITY", "READ", "WRITTEN", "ERRORS", "IDENTITY", "PATH"]);
    for target in &list.targets {
        let space = |bytes: u64| if bytes == 0 { "-".to_owned() } else { size(bytes) };
        table.add_row([
            target.index.to_string(),
            target.state.as_str().to_owned(),
            space(target.free_bytes),
            space(target.capacity_bytes),
            size(target.read_bytes),
            size(target.written_bytes),
            target.errors.to_string(),
            target.id.clone(),
            target.path.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}
