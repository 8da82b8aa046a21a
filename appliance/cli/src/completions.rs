//! `lamina completions`: a script that lets a shell ask `lamina` itself what may come next, names of volumes too.

use clap_complete::env::Shells;

use crate::failure::Failure;
use crate::printer::text;

/// The variable with which a shell asks.
pub(crate) const VARIABLE: &str = "COMPLETE";

/// Shells whose scripts are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shell {
    /// bash.
    Bash,
    /// elvish.
    Elvish,
    /// fish.
    Fish,
    /// PowerShell.
    Powershell,
    /// zsh.
    Zsh,
}

impl Shell {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Elvish => "elvish",
            Self::Fish => "fish",
            Self::Powershell => "powershell",
            Self::Zsh => "zsh",
        }
    }
}

/// Prints the script.
pub(crate) fn run(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    if let Some(writer) = Shells::builtins().completer(shell.as_str()) {
        writer.write_registration(VARIABLE, "lamina", "lamina", "lamina", &mut script)?;
    }
    text(&String::from_utf8_lossy(&script))
}
