//! Every command as people see it: what is typed, what comes out, and the likeliest mistakes, in `tests/transcripts`.
//!
//! A line with `$` is typed; lines behind it are stdout, those with `!` stderr, and `[exit 3]` is the code unless it is 0. Each file has an
//! appliance of its own. `BLESS=1 cargo test -p lamina-cli` writes what comes out into the files, to be read before it is committed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon::{Daemon, daemon, lamina};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/transcripts");

fn transcripts() -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(DIR).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    found.sort();
    found
}

/// Words as a shell splits them, with single and double quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (None, '\'' | '"') => (quote, any) = (Some(c), true),
            (Some(open), c) if c == open => quote = None,
            (None, ' ') => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            (_, c) => word.push(c),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

fn played(daemon: &Daemon, line: &str) -> String {
    let all = words(line);
    let (program, arguments) = all.split_first().expect("a command");
    assert_eq!(program, "lamina");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // A line that says itself which daemon is meant is not told.
    let says = ["--state-dir", "--socket", "--server"];
    let mut command =
        if arguments.iter().any(|word| says.contains(word)) { lamina(daemon.dir.path()) } else { daemon.command(&[]) };
    command.args(&arguments);
    command.current_dir(daemon.dir.path());
    let output = command.output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&daemon.dir.path().display().to_string(), "STATE");
    let mut out = format!("$ {line}\n{}", text(&output.stdout));
    for line in text(&output.stderr).lines() {
        out.push_str(format!("! {line}").trim_end());
        out.push('\n');
    }
    match output.status.code() {
        Some(0) => {}
        code => out.push_str(&format!("[exit {}]\n", code.unwrap_or(-1))),
    }
    out
}

fn replayed(path: &Path) -> (String, String) {
    let expected = fs::read_to_string(path).expect("a transcript");
    let daemon = daemon();
    let mut actual = String::new();
    for line in expected.lines() {
        if let Some(typed) = line.strip_prefix("$ ") {
            actual.push_str(&played(&daemon, typed));
        } else if line.starts_with('#') {
            actual.push_str(line);
            actual.push('\n');
        }
    }
    (expected, actual)
}

#[test]
fn every_command_prints_what_its_transcript_says() {
    let bless = std::env::var_os("BLESS").is_some();
    for path in transcripts() {
        let (expected, actual) = replayed(&path);
        if bless {
            fs::write(&path, &actual).expect("written");
            continue;
        }
        let differs = expected.lines().zip(actual.lines()).enumerate().find(|(_, (a, b))| a != b);
        assert_eq!(expected, actual, "{}: first at line {:?}", path.display(), differs.map(|(at, _)| at + 1));
    }
}

/// Verbs as `lamina --help` lists them, each with its noun.
fn commands(above: &[String]) -> Vec<Vec<String>> {
    let output = Command::new(env!("CARGO_BIN_EXE_lamina")).args(above).arg("-h").output().expect("runs");
    let help = String::from_utf8(output.stdout).expect("text");
    let Some((_, rest)) = help.split_once("Commands:\n") else { return vec![above.to_vec()] };
    let listed = rest.lines().take_while(|line| line.starts_with("  "));
    let names = listed.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.flat_map(|name| commands(&[above, &[name.to_owned()]].concat())).collect()
}

#[test]
fn no_command_lacks_a_transcript_of_its_answer_and_of_three_mistakes() {
    let all = commands(&[]);
    assert!(all.len() > 40, "{all:?}");
    let (mut good, mut bad): (BTreeMap<Vec<String>, usize>, BTreeMap<Vec<String>, usize>) = Default::default();
    for path in transcripts() {
        let text = fs::read_to_string(path).expect("a transcript");
        for part in text.split("$ lamina ").skip(1) {
            let typed = words(part.lines().next().unwrap_or_default());
            let Some(command) = all.iter().filter(|command| typed.starts_with(command)).max_by_key(|command| command.len()) else {
                continue;
            };
            let counts = if part.contains("\n[exit ") { &mut bad } else { &mut good };
            *counts.entry(command.clone()).or_default() += 1;
        }
    }
    // An image needs more than a transcript (`images.rs`), and who asked is another on each machine (`overview.rs`).
    let elsewhere = |command: &[String]| command.last().is_some_and(|verb| ["import", "export", "audit"].contains(&verb.as_str()));
    let lacking: Vec<_> = all
        .iter()
        .filter(|command| !(good.contains_key(*command) || elsewhere(command)) || bad.get(*command).is_none_or(|count| *count < 3))
        .map(|command| format!("lamina {}", command.join(" ")))
        .collect();
    assert!(lacking.is_empty(), "these lack an answer or three mistakes in tests/transcripts: {lacking:#?}");
}
