//! How the demo speaks: sections, commands, what the guest says, a table.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// The teller; knows when it began, and whether colours help.
pub(crate) struct Story {
    begun: Instant,
    colours: bool,
}

impl Story {
    pub(crate) fn begin() -> Self {
        let story =
            Self { begun: Instant::now(), colours: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() };
        println!("{}", story.bold("Lamina: a guest's disk on an SSD journal and erasure-coded drives"));
        story
    }

    fn bold(&self, text: &str) -> String {
        if self.colours { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn dim(&self, text: &str) -> String {
        if self.colours { format!("\u{1b}[2m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    pub(crate) fn section(&self, title: &str) {
        println!("\n{} {}", self.bold(&format!("── {title}")), self.dim(&format!("({})", time(self.begun.elapsed()))));
    }

    pub(crate) fn command(&self, line: &str) {
        println!("   {} {line}", self.bold("$"));
    }

    pub(crate) fn say(&self, text: &str) {
        println!("   {text}");
    }

    pub(crate) fn guest(&self, text: &str) {
        println!("   {} {text}", self.dim("guest:"));
    }

    pub(crate) fn row(&self, name: &str, value: &str) {
        println!("   {name:<52}{}", self.bold(&format!("{value:>20}")));
    }

    pub(crate) fn end(&self) {
        println!("\nDone in {}. Nothing is left running, and nothing on disk.", time(self.begun.elapsed()));
    }
}

/// A duration as people read it.
pub(crate) fn time(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}
