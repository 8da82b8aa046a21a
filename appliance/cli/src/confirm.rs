//! Asks a person before data goes away.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use crate::failure::Failure;

/// Wants `word` typed, unless `yes` was said. `loses` is what is lost by what. Only a terminal can answer.
pub(crate) fn loss(loses: &str, word: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::Unconfirmed { loses: loses.to_owned() });
    }
    let mut stderr = io::stderr();
    write!(
        stderr,
        "{}{}. Type '{word}' to go on: ",
        loses.get(..1).unwrap_or_default().to_uppercase(),
        loses.get(1..).unwrap_or_default()
    )?;
    stderr.flush()?;
    let mut typed = String::new();
    // A name has at most 63 characters; more is not one.
    stdin.lock().take(128).read_line(&mut typed)?;
    if typed.trim() == word { Ok(()) } else { Err(Failure::Denied { word: word.to_owned() }) }
}
