//! The terminal as a screen of its own: keys without Enter, another buffer, and everything as it was afterwards, whatever happened.

use std::io::{self, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// What it is when nothing says.
const USUAL: (usize, usize) = (80, 24);

/// The screen, until it is dropped.
pub(crate) struct Screen {
    before: Termios,
}

impl Screen {
    /// Takes the terminal. Ctrl-C stays a signal.
    pub(crate) fn open() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        let screen = Self { before };
        // Another buffer, no cursor.
        say("\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    /// Shows `text`, as much of it as there is room for.
    pub(crate) fn show(&self, text: &str) -> io::Result<()> {
        let (columns, rows) = size();
        let lines: Vec<_> = text.lines().take(rows).map(|line| format!("{}\x1b[0m\x1b[K", clipped(line, columns))).collect();
        say(&format!("\x1b[H{}\x1b[J", lines.join("\r\n")))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is nothing else to be done about a terminal that is gone.
        let _ = say("\x1b[?25h\x1b[?1049l");
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Keys as they are pressed. The thread that reads them ends with the command.
pub(crate) fn keys() -> mpsc::Receiver<u8> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut key = [0];
        while let Ok(1) = io::stdin().lock().read(&mut key) {
            let [key] = key;
            if sender.blocking_send(key).is_err() {
                return;
            }
        }
    });
    receiver
}

fn size() -> (usize, usize) {
    tcgetwinsize(io::stdout())
        .map_or(USUAL, |size| if size.ws_col == 0 || size.ws_row == 0 { USUAL } else { (size.ws_col.into(), size.ws_row.into()) })
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The first `columns` characters that are seen; colour codes take no room.
fn clipped(line: &str, columns: usize) -> String {
    let (mut text, mut seen, mut code) = (String::new(), 0, false);
    for c in line.chars() {
        if c == '\x1b' {
            code = true;
        } else if code {
            code = !c.is_ascii_alphabetic();
        } else if seen == columns {
            break;
        } else {
            seen += 1;
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::clipped;

    #[test]
    fn lines_are_cut_by_what_is_seen() {
        assert_eq!(clipped("abcdef", 3), "abc");
        assert_eq!(clipped("\x1b[31mab\x1b[0mcd", 3), "\x1b[31mab\x1b[0mc");
    }
}
