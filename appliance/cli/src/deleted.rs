//! What deleting answers.

use serde::Serialize;

use crate::failure::Failure;
use crate::session::Session;

#[derive(Serialize)]
struct Deleted<'a> {
    name: &'a str,
    deleted: bool,
}

/// Says that `name` is gone.
pub(crate) fn print(session: &Session, name: &str) -> Result<(), Failure> {
    session.printer.one(&Deleted { name, deleted: true }, name, |gone| vec![("deleted", gone.name.into())])
}
