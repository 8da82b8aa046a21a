//! Completion of names: asks the daemon, briefly, and says nothing when it does not answer.
//!
//! A shell calls `lamina` with what was typed so far behind `--`; which daemon is meant stands there too.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::{ArgValueCandidates, CompletionCandidate};
use lamina_api::paths;

use crate::client::Client;
use crate::endpoint::Connection;
use crate::missing::names;

/// Nobody waits longer for a TAB.
const PATIENCE: Duration = Duration::from_secs(1);

/// Volumes.
pub(crate) fn volumes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| listed(paths::VOLUMES))
}

/// `VOLUME` and `VOLUME@SNAPSHOT`.
pub(crate) fn snapshots() -> ArgValueCandidates {
    ArgValueCandidates::new(|| cuts(paths::VOLUMES))
}

/// VMs.
pub(crate) fn vms() -> ArgValueCandidates {
    ArgValueCandidates::new(|| listed(paths::VMS))
}

/// `VM` and `VM@SNAPSHOT`.
pub(crate) fn vm_snapshots() -> ArgValueCandidates {
    ArgValueCandidates::new(|| cuts(paths::VMS))
}

/// Schedules.
pub(crate) fn schedules() -> ArgValueCandidates {
    ArgValueCandidates::new(|| listed(paths::SCHEDULES))
}

/// Tokens.
pub(crate) fn tokens() -> ArgValueCandidates {
    ArgValueCandidates::new(|| listed(paths::TOKENS))
}

/// Jobs.
pub(crate) fn jobs() -> ArgValueCandidates {
    ArgValueCandidates::new(|| listed(paths::JOBS))
}

fn listed(path: &'static str) -> Vec<CompletionCandidate> {
    asked(async |client: &Client| names(client, path).await).unwrap_or_default().into_iter().map(CompletionCandidate::new).collect()
}

fn cuts(path: &'static str) -> Vec<CompletionCandidate> {
    let found = asked(async |client: &Client| {
        let mut found = names(client, path).await?;
        // The snapshots of what is typed already, or none: a thousand lists are too many for a TAB.
        let typed = words().next_back().unwrap_or_default();
        if let Some((of, _)) = typed.split_once('@').filter(|(of, _)| found.iter().any(|name| name == of)) {
            let of = of.to_owned();
            let cuts = names(client, &format!("{path}/{of}/snapshots")).await.unwrap_or_default();
            found = cuts.into_iter().map(|cut| format!("{of}@{cut}")).collect();
        }
        Some(found)
    });
    found.unwrap_or_default().into_iter().map(CompletionCandidate::new).collect()
}

fn asked(ask: impl AsyncFnOnce(&Client) -> Option<Vec<String>>) -> Option<Vec<String>> {
    let client = Client::new(connection(words()).endpoint().ok()?, Some(PATIENCE));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, ask(&client)).await.ok().flatten() })
}

/// What was typed. Names are plain text: what is not, is none.
fn words() -> impl DoubleEndedIterator<Item = String> {
    env::args_os().map(|word| word.to_string_lossy().into_owned())
}

/// What a line that is not finished yet says about the daemon.
fn connection(words: impl Iterator<Item = String>) -> Connection {
    let mut connection = Connection::default();
    let mut words = words.skip_while(|word| word != "--").skip(1);
    while let Some(word) = words.next() {
        let (name, joined) = word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value.to_owned())));
        let place = match name {
            "--state-dir" => &mut connection.state_dir,
            "--socket" => &mut connection.socket,
            "--token-file" => &mut connection.token_file,
            "--ca-file" => &mut connection.ca_file,
            "--cert" => &mut connection.cert,
            "--key" => &mut connection.key,
            "--server" => {
                connection.server = joined.or_else(|| words.next()).and_then(|text| text.parse().ok());
                continue;
            }
            _ => continue,
        };
        *place = joined.or_else(|| words.next()).map(PathBuf::from);
    }
    connection
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::connection;

    #[test]
    fn a_line_that_is_not_finished_says_which_daemon_is_meant() {
        let line = ["lamina", "--", "lamina", "--state-dir", "/s", "volume", "show", "--server=https://a:1", "w"];
        let found = connection(line.into_iter().map(str::to_owned));
        assert_eq!(found.state_dir.as_deref(), Some(Path::new("/s")));
        assert!(found.server.is_some());
    }
}
