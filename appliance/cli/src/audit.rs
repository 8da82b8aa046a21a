//! `lamina audit`.

use lamina_api::audit::{AuditLine, AuditList};
use lamina_api::paths;

use crate::failure::Failure;
use crate::moment::local;
use crate::printer::Row;
use crate::session::Session;
use crate::table::{Cell, Column};
use crate::tone::Tone;

/// Asks for the newest `limit` lines and prints them.
pub(crate) async fn run(limit: u32, session: &Session) -> Result<(), Failure> {
    let list: AuditList = session.client.get(&format!("{}?limit={limit}", paths::AUDIT)).await?;
    session.printer.list(&list.lines)
}

impl Row for AuditLine {
    const COLUMNS: &'static [Column] = &[
        Column::new("TIME"),
        Column::new("WHO"),
        Column::new("ROLE").wide(),
        Column::new("FROM"),
        Column::new("METHOD"),
        Column::new("PATH"),
        Column::number("STATUS"),
        Column::new("REQUEST").wide(),
    ];

    fn cells(&self) -> Vec<Cell> {
        let tone = match self.status {
            0..=399 => Tone::Good,
            400..=499 => Tone::Warn,
            _ => Tone::Bad,
        };
        vec![
            local(&self.time).into(),
            self.who.as_str().into(),
            self.role.map_or("-", lamina_api::role::Role::as_str).into(),
            self.from.as_str().into(),
            self.method.as_str().into(),
            self.path.as_str().into(),
            Cell::new(self.status.to_string(), tone),
            self.request_id.as_str().into(),
        ]
    }

    fn name(&self) -> String {
        self.request_id.clone()
    }
}
