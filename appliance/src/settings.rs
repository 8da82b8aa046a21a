//! Settings: defaults, then the file, then the flags; checked as a whole, so that nothing starts with half of a configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lamina_contract::{ByteSize, Policy};

use crate::args::Arguments;
use crate::config::{ConfigError, Configuration, LogFormat};
use lamina_api::listener::MAX_SOCKET_PATH;
use lamina_api::tls::TlsFiles;

const SYSTEM_STATE: &str = "/var/lib/lamina";
const SYSTEM_RUNTIME: &str = "/run/lamina";
const DEFAULT_POLICY: &str = "4+2";

/// Less cannot hold a few containers of the largest size for each of some volumes.
const MIN_JOURNAL: ByteSize = ByteSize(64 << 20);
const MIN_CACHE: ByteSize = ByteSize(16 << 20);
const MIN_MEMORY: ByteSize = ByteSize(64 << 20);
const DEFAULT_JOURNAL: ByteSize = ByteSize(2 << 30);
const DEFAULT_CACHE: ByteSize = ByteSize(4 << 30);
const DEFAULT_MEMORY: ByteSize = ByteSize(1 << 30);

/// A shorter lag makes an object of every write, a longer one is no bound.
const LAG: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
const DEFAULT_LAG: Duration = Duration::from_secs(10);

/// QEMU and libvirt look for their socket again after a second.
const DEFAULT_RECONNECT: Duration = Duration::from_secs(3);
const MOST_RECONNECT: Duration = Duration::from_secs(60);

/// `/vhost/` and the shortest name with `.sock`, which must fit behind the runtime directory; a volume whose longer name does not
/// is refused when it is made.
const SOCKET_NAME: usize = "/vhost/".len() + 1 + ".sock".len();

/// Everything that the daemon is told from outside, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) state_dir: PathBuf,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) journal_dir: PathBuf,
    pub(crate) cache_dir: PathBuf,
    pub(crate) drives: Vec<PathBuf>,
    pub(crate) policy: Policy,
    pub(crate) write_min: usize,
    pub(crate) journal_size: ByteSize,
    pub(crate) cache_size: ByteSize,
    pub(crate) memory_cap: ByteSize,
    pub(crate) store_lag: Duration,
    pub(crate) reconnect_wait: Duration,
    pub(crate) metrics_listen: Option<SocketAddr>,
    pub(crate) api: Option<ApiSettings>,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
}

/// The interface on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiSettings {
    pub(crate) listen: SocketAddr,
    pub(crate) tls: TlsFiles,
}

/// Why the settings were refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// The file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A value or a combination that cannot work.
    #[error("{origin}: {problem}")]
    Wrong {
        /// The flag, or the file with line and column.
        origin: Origin,
        #[source]
        problem: Problem,
    },
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag(&'static str),
    File { path: PathBuf, place: crate::config::Place },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag(flag) => f.write_str(flag),
            Self::File { path, place } => write!(f, "{}:{place}", path.display()),
        }
    }
}

/// What cannot work, with what would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    #[error("no drives: name a directory on each drive")]
    NoDrives,
    #[error("policy {policy} spreads over {needed} drives and {named} are named: name more drives or choose a smaller policy")]
    FewDrives { policy: Policy, needed: usize, named: usize },
    #[error("{} is named twice: each drive has its own directory", path.display())]
    SameDrive { path: PathBuf },
    #[error("a write under policy {policy} counts with {least} to {most} fragments, not with {asked}")]
    WriteMin { policy: Policy, least: usize, most: usize, asked: usize },
    #[error("{asked} is too small: at least {least}")]
    Small { asked: ByteSize, least: ByteSize },
    #[error("a lag of {asked:?} is outside 100ms to 60m")]
    Lag { asked: Duration },
    #[error("waiting {asked:?} for guests after a start is more than 60s")]
    Reconnect { asked: Duration },
    #[error("{address} is not a loopback address: metrics have no authentication; use 127.0.0.1 and a proxy in front")]
    NotLoopback { address: SocketAddr },
    #[error(
        "the interface on the network needs api_listen, api_certificate and api_key together, and api_clients needs api_client_ca"
    )]
    ApiParts,
    #[error("'{text}' is not a log level: use error, warn, info, debug or trace, or directives as in RUST_LOG")]
    Level { text: String },
    #[error("paths of sockets end after {MAX_SOCKET_PATH} bytes and {} leaves no room for a volume's name: choose a shorter directory", path.display())]
    LongPath { path: PathBuf },
    #[error("drives, journal and cache must not be inside each other: {} and {}", one.display(), other.display())]
    Nested { one: PathBuf, other: PathBuf },
}

impl Settings {
    /// Settings out of flags and the file they name.
    pub(crate) fn load(arguments: &Arguments) -> Result<Self, SettingsError> {
        let file = arguments.config.as_deref().map(Configuration::read).transpose()?;
        let settings = Self::merge(arguments, file.as_ref());
        settings.check(&Sources { arguments, file: file.as_ref() })?;
        Ok(settings)
    }

    fn merge(flags: &Arguments, file: Option<&Configuration>) -> Self {
        let document = file.map(|file| file.document.clone()).unwrap_or_default();
        let state_dir = flags.state_dir.clone().or(document.state_dir).unwrap_or_else(|| SYSTEM_STATE.into());
        let state_dir = absolute(&state_dir);
        // A state directory on the command line is a world of its own.
        let runtime_dir = match flags.state_dir {
            Some(_) => state_dir.join("run"),
            None => document.runtime_dir.unwrap_or_else(|| SYSTEM_RUNTIME.into()),
        };
        let moved = |configured: Option<PathBuf>| if flags.state_dir.is_some() { None } else { configured };
        let policy = flags.policy.or(document.policy).unwrap_or_else(default_policy);
        let drives = if flags.drives.is_empty() { document.drives } else { flags.drives.clone() };
        let least = least_write_min(policy);
        Self {
            runtime_dir: absolute(&runtime_dir),
            journal_dir: absolute(&moved(document.journal_dir).unwrap_or_else(|| state_dir.join("journal"))),
            cache_dir: absolute(&flags.cache_dir.clone().or(moved(document.cache_dir)).unwrap_or_else(|| state_dir.join("cache"))),
            state_dir,
            drives: drives.iter().map(|drive| absolute(drive)).collect(),
            policy,
            write_min: flags.write_min.or(document.write_min).unwrap_or(least),
            journal_size: flags.journal_size.or(document.journal_size).unwrap_or(DEFAULT_JOURNAL),
            cache_size: flags.cache_size.or(document.cache_size).unwrap_or(DEFAULT_CACHE),
            memory_cap: flags.memory_cap.or(document.memory_cap).unwrap_or(DEFAULT_MEMORY),
            store_lag: flags.store_lag.or(document.store_lag).unwrap_or(DEFAULT_LAG),
            reconnect_wait: flags.reconnect_wait.or(document.reconnect_wait).unwrap_or(DEFAULT_RECONNECT),
            metrics_listen: flags.metrics_listen.or(document.metrics_listen),
            api: match (document.api_listen, document.api_certificate, document.api_key) {
                (Some(listen), Some(certificate), Some(key)) => Some(ApiSettings {
                    listen,
                    tls: TlsFiles {
                        certificate: absolute(&certificate),
                        key: absolute(&key),
                        client_ca: document.api_client_ca.as_deref().map(absolute),
                        clients: document.api_clients,
                    },
                }),
                _ => None,
            },
            log: flags.log.clone().or(document.log).unwrap_or_else(|| "info".to_owned()),
            log_format: flags.log_format.or(document.log_format).unwrap_or_default(),
        }
    }

    fn check(&self, sources: &Sources<'_>) -> Result<(), SettingsError> {
        let arguments = sources.arguments;
        let drives = (!arguments.drives.is_empty()).then_some("--drive");
        if self.drives.is_empty() {
            let flag = sources.file.is_none().then_some("--drive");
            return Err(sources.wrong(flag, "drives", Problem::NoDrives));
        }
        for (index, path) in self.drives.iter().enumerate() {
            if self.drives.iter().take(index).any(|other| other == path) {
                return Err(sources.wrong(drives, "drives", Problem::SameDrive { path: path.clone() }));
            }
        }
        let policy = self.policy;
        let by_policy = arguments.policy.map(|_| "--policy");
        if self.drives.len() < policy.total() {
            let problem = Problem::FewDrives { policy, needed: policy.total(), named: self.drives.len() };
            return Err(sources.wrong(by_policy.or(drives), "policy", problem));
        }
        let least = least_write_min(policy);
        if !(least..=policy.total()).contains(&self.write_min) {
            let problem = Problem::WriteMin { policy, least, most: policy.total(), asked: self.write_min };
            let flag = arguments.write_min.map(|_| "--write-min").or(by_policy);
            return Err(sources.wrong(flag, "write_min", problem));
        }
        self.check_sizes(sources)?;
        if !LAG.contains(&self.store_lag) {
            let flag = arguments.store_lag.map(|_| "--store-lag");
            return Err(sources.wrong(flag, "store_lag", Problem::Lag { asked: self.store_lag }));
        }
        if self.reconnect_wait > MOST_RECONNECT {
            let flag = arguments.reconnect_wait.map(|_| "--reconnect-wait");
            return Err(sources.wrong(flag, "reconnect_wait", Problem::Reconnect { asked: self.reconnect_wait }));
        }
        if let Some(address) = self.metrics_listen.filter(|address| !address.ip().is_loopback()) {
            let flag = arguments.metrics_listen.map(|_| "--metrics-listen");
            return Err(sources.wrong(flag, "metrics_listen", Problem::NotLoopback { address }));
        }
        sources.file.map_or(Ok(()), |file| check_api(file, sources))?;
        if tracing_subscriber::EnvFilter::try_new(&self.log).is_err() {
            let text = self.log.chars().take(80).collect();
            return Err(sources.wrong(arguments.log.as_ref().map(|_| "--log"), "log", Problem::Level { text }));
        }
        self.check_paths(sources)
    }

    fn check_sizes(&self, sources: &Sources<'_>) -> Result<(), SettingsError> {
        let flags = sources.arguments;
        let sizes: [(ByteSize, ByteSize, Option<&'static str>, &str); 3] = [
            (self.journal_size, MIN_JOURNAL, flags.journal_size.map(|_| "--journal-size"), "journal_size"),
            (self.cache_size, MIN_CACHE, flags.cache_size.map(|_| "--cache-size"), "cache_size"),
            (self.memory_cap, MIN_MEMORY, flags.memory_cap.map(|_| "--memory-cap"), "memory_cap"),
        ];
        for (asked, least, flag, key) in sizes {
            // A cache of no size is no cache, which works.
            let none = key == "cache_size" && asked.0 == 0;
            if asked < least && !none {
                return Err(sources.wrong(flag, key, Problem::Small { asked, least }));
            }
        }
        Ok(())
    }

    fn check_paths(&self, sources: &Sources<'_>) -> Result<(), SettingsError> {
        if self.runtime_dir.as_os_str().len() + SOCKET_NAME > MAX_SOCKET_PATH {
            let flag = sources.arguments.state_dir.as_ref().map(|_| "--state-dir");
            return Err(sources.wrong(flag, "runtime_dir", Problem::LongPath { path: self.runtime_dir.clone() }));
        }
        let mut apart: Vec<&Path> = self.drives.iter().map(PathBuf::as_path).collect();
        apart.extend([self.journal_dir.as_path(), self.cache_dir.as_path()]);
        for (index, one) in apart.iter().enumerate() {
            for other in apart.iter().skip(index + 1) {
                if one.starts_with(other) || other.starts_with(one) {
                    let problem = Problem::Nested { one: (*one).to_owned(), other: (*other).to_owned() };
                    let flag = (!sources.arguments.drives.is_empty()).then_some("--drive");
                    return Err(sources.wrong(flag, "drives", problem));
                }
            }
        }
        Ok(())
    }
}

/// Half of an interface on the network would be none, silently.
fn check_api(file: &Configuration, sources: &Sources<'_>) -> Result<(), SettingsError> {
    let document = &file.document;
    let needed = [
        ("api_listen", document.api_listen.is_some()),
        ("api_certificate", document.api_certificate.is_some()),
        ("api_key", document.api_key.is_some()),
    ];
    let more = [("api_client_ca", document.api_client_ca.is_some()), ("api_clients", !document.api_clients.is_empty())];
    let complete = needed.iter().all(|(_, there)| *there);
    let strangers = !document.api_clients.is_empty() && document.api_client_ca.is_none();
    match needed.iter().chain(&more).find(|(_, there)| *there) {
        Some((key, _)) if !complete => Err(sources.wrong(None, key, Problem::ApiParts)),
        _ if strangers => Err(sources.wrong(None, "api_clients", Problem::ApiParts)),
        _ => Ok(()),
    }
}

/// Where values came from, to say so.
struct Sources<'a> {
    arguments: &'a Arguments,
    file: Option<&'a Configuration>,
}

impl Sources<'_> {
    fn wrong(&self, flag: Option<&'static str>, key: &str, problem: Problem) -> SettingsError {
        let origin = match (flag, self.file) {
            (None, Some(file)) => Origin::File { path: file.path.clone(), place: file.place(key) },
            (flag, _) => Origin::Flag(flag.unwrap_or("the defaults")),
        };
        SettingsError::Wrong { origin, problem }
    }
}

/// X+1, so that losing one drive right after a write loses nothing; without parity every fragment.
fn least_write_min(policy: Policy) -> usize {
    (policy.data() + 1).min(policy.total())
}

fn default_policy() -> Policy {
    #[expect(clippy::unwrap_used, reason = "a constant, checked by a test")]
    DEFAULT_POLICY.parse().unwrap()
}

/// Without asking the file system: the path may not be there yet.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::Parser;

    use super::Settings;
    use crate::args::Arguments;

    fn load(line: &[&str]) -> Result<Settings, String> {
        let arguments = Arguments::try_parse_from([&["laminad"], line].concat()).map_err(|error| error.to_string())?;
        Settings::load(&arguments).map_err(|error| error.to_string())
    }

    const SIX: [&str; 14] = [
        "--state-dir",
        "/s",
        "--drive",
        "/d1",
        "--drive",
        "/d2",
        "--drive",
        "/d3",
        "--drive",
        "/d4",
        "--drive",
        "/d5",
        "--drive",
        "/d6",
    ];

    #[test]
    fn a_state_directory_and_drives_are_enough() {
        let settings = load(&SIX).expect("right");
        assert_eq!((settings.policy.to_string().as_str(), settings.write_min), ("4+2", 5));
        assert_eq!(settings.runtime_dir, PathBuf::from("/s/run"));
        assert_eq!(settings.journal_dir, PathBuf::from("/s/journal"));
        let single = load(&["--state-dir", "/s", "--drive", "/d", "--policy", "1+0"]).expect("right");
        assert_eq!(single.write_min, 1);
    }

    #[test]
    fn the_example_for_systemd_is_right() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/lamina.yaml");
        let settings = load(&["--config", example]).expect("right");
        assert_eq!(settings.runtime_dir, PathBuf::from("/run/lamina"));
        let flags = load(&["--config", example, "--policy", "3+3", "--write-min", "4", "--state-dir", "/s"]).expect("flags win");
        assert_eq!((flags.policy.to_string().as_str(), flags.write_min), ("3+3", 4));
        assert_eq!(flags.journal_dir, PathBuf::from("/s/journal"));
    }

    #[test]
    fn impossible_settings_say_where_they_came_from_and_what_would_work() {
        let six = |more: &[&str]| load(&[&SIX[..], more].concat()).expect_err("wrong");
        assert!(six(&["--policy", "6+2"]).starts_with("--policy: policy 6+2 spreads over 8 drives and 6 are named"));
        assert!(six(&["--write-min", "4"]).contains("counts with 5 to 6 fragments, not with 4"));
        assert!(six(&["--write-min", "7"]).starts_with("--write-min"));
        assert!(six(&["--drive", "/d1"]).contains("/d1 is named twice"));
        assert!(six(&["--drive", "/d1/inside"]).contains("inside each other"));
        assert!(six(&["--journal-size", "1MiB"]).contains("--journal-size: 1 MiB is too small: at least 64 MiB"));
        assert!(six(&["--store-lag", "1ms"]).contains("outside 100ms"));
        assert!(six(&["--reconnect-wait", "2m"]).starts_with("--reconnect-wait: waiting 120s"));
        assert!(six(&["--metrics-listen", "0.0.0.0:9603"]).contains("loopback"));
        assert!(six(&["--log", "loud=very"]).contains("--log"));
        assert!(six(&["--policy", "4-2"]).contains("X+P"));
        assert!(load(&["--state-dir", "/s"]).expect_err("wrong").contains("--drive: no drives"));
        assert!(load(&[]).expect_err("wrong").contains("--config"));
        let long = "/x".repeat(50);
        assert!(
            load(&["--state-dir", &long, "--drive", "/d", "--policy", "1+0"]).expect_err("wrong").contains("shorter directory")
        );
    }

    #[test]
    fn impossible_settings_in_the_file_are_named_by_line_and_column() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let path = dir.path().join("lamina.yaml");
        std::fs::write(&path, "drives: [/a, /b]\n\npolicy: 4+2\n").expect("write");
        let error = load(&["--config", path.to_str().expect("text")]).expect_err("wrong");
        assert!(error.contains("lamina.yaml:3:9: policy 4+2 spreads over 6 drives and 2 are named"), "{error}");
    }

    #[test]
    fn the_interface_on_the_network_is_whole_or_refused() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let path = dir.path().join("lamina.yaml");
        let load = |text: &str| {
            std::fs::write(&path, format!("drives: [/a]\npolicy: 1+0\n{text}")).expect("write");
            super::tests::load(&["--config", path.to_str().expect("text")])
        };
        let whole = "api_listen: 192.0.2.1:9602\napi_certificate: /c.pem\napi_key: /k.pem\n";
        assert_eq!(load(whole).expect("right").api.map(|api| api.tls.key), Some(PathBuf::from("/k.pem")));
        let clients = format!("{whole}api_client_ca: /ca.pem\napi_clients: {{backup.example: viewer}}\n");
        assert_eq!(load(&clients).expect("right").api.map(|api| api.tls.clients.len()), Some(1));
        assert!(load("").expect("right").api.is_none());
        for (text, place) in [
            ("api_listen: 192.0.2.1:9602\n", "lamina.yaml:3:13: "),
            ("api_key: /k.pem\n", "lamina.yaml:3:10: "),
            ("api_client_ca: /ca.pem\n", "lamina.yaml:3:16: "),
            (&format!("{whole}api_clients: {{backup.example: viewer}}\n"), "lamina.yaml:6:14: "),
            (&format!("{whole}api_client_ca: /ca.pem\napi_clients: {{a: root}}\n"), "lamina.yaml:7:"),
        ] {
            let error = load(text).expect_err(text);
            assert!(error.contains(place), "{text}: {error}");
        }
    }
}
