//! Asks a person before data goes away.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use lamina_contract::VolumeName;

use crate::failure::Failure;

/// Wants the volume's name typed again. Only a terminal can answer.
pub(crate) fn deletion(name: &VolumeName) -> Result<(), Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::Unconfirmed { name: name.clone() });
    }
    let mut stderr = io::stderr();
    write!(stderr, "This deletes volume '{name}' and all its data. Type its name to go on: ")?;
    stderr.flush()?;
    let mut typed = String::new();
    // A name has at most 63 characters; more is not one.
    stdin.lock().take(128).read_line(&mut typed)?;
    if typed.trim() == name.as_str() { Ok(()) } else { Err(Failure::Denied { name: name.clone() }) }
}
