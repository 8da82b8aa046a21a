//! Scripts for `/bin/sh` that start a hypervisor. Whatever a name or path holds, it stays one word and is never run.

/// One word for a shell: plain text as it is, everything else in single quotes, in which nothing has a meaning.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=,:+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A script that prepares and then becomes the program. Its own arguments are handed on behind the program's.
#[derive(Debug)]
pub(crate) struct Script {
    text: String,
    /// Lines of the command: an option with its value.
    command: Vec<String>,
}

impl Script {
    /// One that will become `program`. `comment` is ours: fixed text of whole lines.
    pub(crate) fn new(comment: &'static [&'static str], program: &'static str) -> Self {
        let comment: String = comment.iter().map(|line| format!("# {line}\n")).collect();
        Self { text: format!("#!/bin/sh\n{comment}set -eu\n"), command: vec![format!("exec {program}")] }
    }

    /// A line that runs before. Words in it that are not fixed must be [`quoted`].
    pub(crate) fn before(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// An option and its value.
    pub(crate) fn option(&mut self, option: &str, value: &str) {
        self.command.push(format!("{option} {}", quoted(value)));
    }

    /// An option with several values, which stands once: nothing without any.
    pub(crate) fn option_of(&mut self, option: &str, values: &[String]) {
        if !values.is_empty() {
            let values: Vec<_> = values.iter().map(|value| quoted(value)).collect();
            self.command.push(format!("{option} {}", values.join(" \\\n        ")));
        }
    }

    /// An option whose value is a shell word already.
    pub(crate) fn option_as_is(&mut self, option: &str, word: &str) {
        self.command.push(format!("{option} {word}"));
    }

    /// An option without a value.
    pub(crate) fn flag(&mut self, flag: &str) {
        self.command.push(flag.to_owned());
    }

    /// The text.
    pub(crate) fn finish(mut self) -> String {
        self.command.push("\"$@\"".to_owned());
        format!("{}{}\n", self.text, self.command.join(" \\\n    "))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

    use super::{Script, quoted};

    /// What a real shell makes of it.
    fn words(text: &str) -> Vec<u8> {
        let out = Command::new("/bin/sh").arg("-c").arg(format!("printf '%s\\0' {text}")).output().expect("a shell");
        assert!(out.status.success(), "{text:?}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    }

    #[test]
    fn hostile_text_stays_one_word() {
        for text in [
            "",
            "a b",
            "$(touch x)",
            "`id`",
            "a'b",
            "''",
            "\\",
            "a\nb",
            "-x",
            "*",
            "~",
            "a;b|c&d",
            "\"",
            "#",
            "!",
            "\u{e4}\u{1f600}",
        ] {
            assert_eq!(words(&quoted(text)), [text.as_bytes(), b"\0"].concat(), "{text:?}");
        }
        assert_eq!(quoted("/run/lamina/vhost/web.sock"), "/run/lamina/vhost/web.sock");
    }

    #[test]
    fn a_script_becomes_the_program_with_all_its_words() {
        let mut script = Script::new(&["A comment."], "printf");
        script.before("unused=1");
        script.flag("'%s|'");
        script.option("--name", "it's $HOME");
        let path = tempfile::TempDir::new().expect("tempdir");
        let file = path.path().join("run.sh");
        std::fs::write(&file, script.finish()).expect("written");
        let out = Command::new("/bin/sh").arg(&file).args(["more", "of it"]).output().expect("a shell");
        assert_eq!(String::from_utf8_lossy(&out.stdout), "--name|it's $HOME|more|of it|");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_text_stays_one_word(text in "[^\\x00]{0,30}") {
            prop_assert_eq!(words(&quoted(&text)), [text.as_bytes(), b"\0"].concat());
        }
    }
}
