//! `lamina target …`.

use clap::Subcommand;
use lamina_api::paths;
use lamina_api::target::{Target, TargetList, TargetState};

use crate::failure::Failure;
use crate::printer::{Row, or_dash, size};
use crate::session::Session;
use crate::table::{Cell, Column};
use crate::tone::Tone;

/// What to do with targets.
#[derive(Debug, Subcommand)]
pub(crate) enum TargetVerb {
    /// Lists the members of the store and how they are.
    #[command(after_long_help = "\
Examples:
  lamina target list
  lamina target list -o wide
  lamina target list -o json | jq '.targets[] | select(.state != \"up\")'")]
    List,
}

/// Does what `verb` says.
pub(crate) async fn run(verb: &TargetVerb, session: &Session) -> Result<(), Failure> {
    let TargetVerb::List = verb;
    let list: TargetList = session.client.get(paths::TARGETS).await?;
    if session.printer.output.is_table() { session.printer.rows(&list.targets) } else { session.printer.data(&list) }
}

/// How a target is.
pub(crate) fn state(state: TargetState) -> Cell {
    let tone = match state {
        TargetState::Up => Tone::Good,
        TargetState::Full | TargetState::Suspect => Tone::Warn,
        TargetState::Missing => Tone::Bad,
    };
    Cell::new(state.as_str(), tone)
}

impl Row for Target {
    const COLUMNS: &'static [Column] = &[
        Column::number("TARGET"),
        Column::new("STATE"),
        Column::number("FREE"),
        Column::number("CAPACITY"),
        Column::number("READ"),
        Column::number("WRITTEN"),
        Column::number("ERRORS"),
        Column::new("IDENTITY"),
        Column::new("PATH"),
        Column::new("LAST ERROR").wide(),
    ];

    fn cells(&self) -> Vec<Cell> {
        let space = |bytes: u64| if bytes == 0 { Cell::from("-") } else { size(bytes).into() };
        vec![
            self.index.to_string().into(),
            state(self.state),
            space(self.free_bytes),
            space(self.capacity_bytes),
            size(self.read_bytes).into(),
            size(self.written_bytes).into(),
            Cell::new(self.errors.to_string(), if self.errors > 0 { Tone::Warn } else { Tone::Plain }),
            self.id.as_str().into(),
            or_dash(self.path.as_deref()),
            or_dash(self.last_error.as_deref()),
        ]
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}
