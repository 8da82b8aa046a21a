//! What asks the command to end: Ctrl-C, SIGTERM, SIGHUP. One stream for as long as it matters, so that none is missed between two looks.
//!
//! From the first stream on these signals no longer end the process by themselves. What was ignored when the command began stays ignored:
//! `nohup`, and commands in the background of a script.

use std::fs;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM, or SIGHUP: the terminal has gone.
    Terminate,
}

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Ends {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hang_up: Option<Signal>,
}

impl Ends {
    /// All of them from now on.
    pub(crate) fn listen() -> io::Result<Self> {
        let ignored = ignored(&fs::read_to_string("/proc/self/status").unwrap_or_default());
        let one = |kind: SignalKind| if is_in(ignored, kind.as_raw_value()) { Ok(None) } else { signal(kind).map(Some) };
        Ok(Self {
            interrupt: one(SignalKind::interrupt())?,
            terminate: one(SignalKind::terminate())?,
            hang_up: one(SignalKind::hangup())?,
        })
    }

    /// What comes of `work`; nothing, when the command shall end before.
    pub(crate) async fn during<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            _ = self.next() => None,
        }
    }

    /// The next one; never, if none comes.
    pub(crate) async fn next(&mut self) -> End {
        tokio::select! {
            () = received(&mut self.interrupt) => End::Interrupt,
            () = received(&mut self.terminate) => End::Terminate,
            () = received(&mut self.hang_up) => End::Terminate,
        }
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// The mask of a process' ignored signals, from its `/proc/PID/status`.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

fn is_in(mask: u64, signal: i32) -> bool {
    // Signal 1 is the lowest bit.
    u32::try_from(signal - 1).is_ok_and(|bit| mask.checked_shr(bit).unwrap_or_default() & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::{ignored, is_in};

    #[test]
    fn a_status_says_which_signals_are_ignored() {
        let mask = ignored("Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n");
        assert_eq!([1, 2, 13, 15].map(|signal| is_in(mask, signal)), [true, false, true, false]);
        assert_eq!(ignored(""), 0);
    }
}
