//! `lamina vm …`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::Serialize;

use crate::args::{Hypervisor, Output, VmVerb};
use crate::failure::Failure;
use crate::machine::{Description, Machine};
use crate::{output, render};

/// Far above any real machine.
const MAX_BYTES: u64 = 1 << 20;

/// What `render` answers to programs.
#[derive(Serialize)]
struct Rendered<'a> {
    name: &'a str,
    text: String,
}

/// Does what `verb` says.
pub(crate) fn run(verb: &VmVerb, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    match verb {
        VmVerb::Render { from, hypervisor } => render(from, *hypervisor, output, out),
    }
}

fn render(from: &Path, hypervisor: Hypervisor, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let description: Description = serde_json::from_str(&read(from)?).map_err(Failure::Description)?;
    let machine = Machine::try_from(description)?;
    let text = render::text(hypervisor, &machine)?;
    if output == Output::Table {
        out.write_all(text.as_bytes())?;
        out.flush()?;
        return Ok(());
    }
    output::print(out, output, &Rendered { name: &machine.name, text }, |_| output::properties(Vec::new()))
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
