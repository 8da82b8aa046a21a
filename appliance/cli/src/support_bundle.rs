//! `lamina support-bundle`: what somebody needs who shall find out what is wrong, in one file, without secrets and without guests' data.
//!
//! Each part is got by itself: what cannot be had (the daemon is down, a log is not there) is said in `manifest.json`, and the rest is
//! there. Everything passes [`Redaction`] before it is written. Of secrets' files only their contents are read, to look for them and take
//! them out elsewhere. The system's `tar` packs: it is on every system that runs the daemon, and a bundle needs no library. It gets its name
//! when it is complete (`part.rs`). A kill leaves a directory and a part beside it that only their owner can read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use lamina_api::instant::rfc3339;
use lamina_contract::Timestamp;
use rustix::io::Errno;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::bundle_names::Names;
use crate::endpoint::{Connection, Endpoint};
use crate::failure::Failure;
use crate::image::ImageError;
use crate::local_call;
use crate::part::{Part, Present};
use crate::printer::Printer;
use crate::redaction::{Redaction, is_secret};

/// Of each file that is read whole.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// Of logs, from the end.
const MAX_LOG_BYTES: u64 = 16 << 20;
/// Files of the state that are listed.
const MAX_LISTED: usize = 10_000;

/// What the daemon is asked, and the file that has its answer.
const CALLS: [(&str, &str); 9] = [
    ("/api/v1/version", "version.json"),
    ("/api/v1/status", "status.json"),
    ("/api/v1/targets", "targets.json"),
    ("/api/v1/volumes?limit=1000", "volumes.json"),
    ("/api/v1/vms?limit=1000", "vms.json"),
    ("/api/v1/schedules?limit=1000", "schedules.json"),
    ("/api/v1/jobs?limit=1000", "jobs.json"),
    ("/api/v1/audit?limit=1000", "audit.json"),
    ("/metrics", "metrics.txt"),
];

/// Kinds of names: the answer that lists all, and the documents that do.
const KINDS: [(&str, &str, Option<&str>); 4] = [
    ("volumes", "volumes.json", None),
    ("VMs", "vms.json", Some("vm")),
    ("schedules", "schedules.json", Some("schedule")),
    ("tokens", TOKENS, Some("token")),
];

/// An answer that is no file: nobody needs it but for its names.
const TOKENS: &str = "tokens";
/// The same.
const SNAPSHOTS: &str = "snapshots";

/// Facts of the machine, where Linux has them.
const FACTS: [(&str, &str); 14] = [
    ("/etc/os-release", "system/os-release"),
    ("/proc/version", "system/kernel"),
    ("/proc/cmdline", "system/kernel-command-line"),
    ("/proc/cpuinfo", "system/cpuinfo"),
    ("/proc/meminfo", "system/meminfo"),
    ("/proc/loadavg", "system/loadavg"),
    ("/proc/uptime", "system/uptime"),
    ("/proc/mounts", "system/mounts"),
    ("/proc/partitions", "system/partitions"),
    ("/proc/diskstats", "system/diskstats"),
    ("/proc/pressure/cpu", "system/pressure-cpu"),
    ("/proc/pressure/io", "system/pressure-io"),
    ("/proc/pressure/memory", "system/pressure-memory"),
    ("/proc/sys/fs/file-nr", "system/open-files"),
];

/// Of the daemon's process.
const PROCESS: [&str; 6] = ["cmdline", "status", "limits", "io", "stat", "cgroup"];

/// Never in a bundle.
const LEFT_OUT: [&str; 6] = [
    "guests' data: journal, cache, drives and objects of the store are not read",
    "tokens, keys, passwords and what looks like them: replaced by [removed]",
    "contents of files that the configuration names as secrets: read only to look for them elsewhere",
    "the environment of any process",
    "certificates and their private keys",
    "documents of STATE/meta (tokens' hashes, kept answers): only their names and sizes are listed",
];

/// What `lamina support-bundle` is told.
#[derive(Debug, Args)]
pub(crate) struct SupportBundle {
    /// Where to write it [default: lamina-support-TIME.tar.gz here]. An existing file is not touched.
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Replace names of volumes, VMs, snapshots, schedules, tokens and of this machine by others that do not tell them.
    #[arg(long)]
    anonymous: bool,
    /// The daemon's configuration file [default: /etc/lamina/lamina.yaml, unless --state-dir is given].
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// The daemon's log, if it is in a file [default: the journal's unit laminad].
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    log: Option<PathBuf>,
    /// Lines of the log, from the end.
    #[arg(long, value_name = "N", default_value_t = 5000)]
    log_lines: usize,
}

/// Where the daemon is.
#[derive(Debug)]
struct Place {
    socket: PathBuf,
    /// If it was said.
    state: Option<PathBuf>,
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    /// A file of ours cannot be made.
    #[error("{} cannot be written", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It is about another machine.
    #[error("a bundle is made on the appliance itself, not over the network")]
    Elsewhere,
    /// `tar` cannot be run.
    #[error("tar cannot be run")]
    Tar(#[source] io::Error),
    /// It failed.
    #[error("tar failed: {0}")]
    Packed(Box<str>),
}

impl BundleError {
    /// As in [`crate::failure`].
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Elsewhere => 2,
            Self::Write { cause, .. } if cause.kind() == io::ErrorKind::AlreadyExists => 5,
            _ => 1,
        }
    }

    /// What to do about it.
    pub(crate) fn advice(&self) -> Option<String> {
        match self {
            Self::Elsewhere => Some("log in there and ask again without --server and LAMINA_SERVER".to_owned()),
            Self::Write { cause, .. } if cause.kind() == io::ErrorKind::AlreadyExists => Some("choose another name".to_owned()),
            _ => None,
        }
    }
}

/// What is answered.
#[derive(Debug, Serialize)]
struct Bundled<'a> {
    file: &'a Path,
    files: usize,
    removed: u64,
    anonymous: bool,
    missing: &'a [Missing],
}

/// A file of the bundle.
#[derive(Debug, Serialize)]
struct Entry {
    file: String,
    bytes: u64,
    sha256: String,
}

/// What could not be had.
#[derive(Debug, Serialize)]
struct Missing {
    what: String,
    why: String,
}

/// The bundle while it is put together.
struct Bundle {
    directory: PathBuf,
    redaction: Redaction,
    entries: Vec<Entry>,
    missing: Vec<Missing>,
}

/// Makes a bundle and says where it is, and what is missing.
pub(crate) fn run(
    arguments: &SupportBundle,
    connection: &Connection,
    endpoint: &Endpoint,
    printer: &Printer,
) -> Result<(), Failure> {
    let Endpoint::Local(socket) = endpoint else { return Err(BundleError::Elsewhere.into()) };
    let place = &Place { socket: socket.clone(), state: connection.state_dir.clone() };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let created = rfc3339(Timestamp(now.as_millis() as u64));
    let stamp: String = created.chars().take(19).filter(char::is_ascii_alphanumeric).collect();
    let name = format!("lamina-support-{stamp}");
    let file = arguments.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    // Made first: a place that cannot be written is known before anything is asked.
    let target = Part::new(&file, Present::Keep).map_err(unwritten(&file))?;
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let work = Work::new(parent.join(format!(".{name}-{}", std::process::id())))?;
    let bundle = assemble(arguments, place, &work.0.join(&name), &created)?;
    pack(&work.0, &name, target.file().try_clone().map_err(write_error(&file))?)?;
    target.complete().map_err(unwritten(&file))?;
    for missing in &bundle.missing {
        printer.notice(&format!("missing: {}: {}", missing.what, missing.why));
    }
    let (files, removed) = (bundle.entries.len(), bundle.redaction.removed());
    let answer = Bundled { file: &file, files, removed, anonymous: arguments.anonymous, missing: &bundle.missing };
    printer.one(&answer, &file.to_string_lossy(), |answer| {
        vec![
            ("file", answer.file.display().to_string().into()),
            ("files in it", answer.files.to_string().into()),
            ("taken out", format!("{} secrets or what looked like them", answer.removed).into()),
        ]
    })?;
    printer
        .notice(&format!("look into it before you give it away: tar -xzf {}", crate::shell::quoted(&file.display().to_string())));
    Ok(())
}

fn assemble(arguments: &SupportBundle, place: &Place, directory: &Path, created: &str) -> Result<Bundle, BundleError> {
    private_directory(directory)?;
    let mut bundle =
        Bundle { directory: directory.to_owned(), redaction: Redaction::default(), entries: Vec::new(), missing: Vec::new() };
    let state = place.state.clone().unwrap_or_else(|| PathBuf::from("/var/lib/lamina"));
    let system = arguments.config.is_none() && place.state.is_some();
    let config = arguments.config.clone().or_else(|| (!system).then(|| PathBuf::from("/etc/lamina/lamina.yaml")));
    let answers = bundle.ask(&place.socket);
    let process = process_of(&answers, &state);

    // Everything that is to be taken out is known before anything is written.
    let configuration = config.as_deref().map(|path| (path, read_yaml(path)));
    if let Some((_, Ok(document))) = &configuration {
        know_files(&mut bundle.redaction, document, false);
    }
    know_environments(&mut bundle.redaction, process);
    let registry = read_json(&state.join("meta/registry/registry.json"));
    let log = log_text(arguments, place);
    let audit = audit_text(&state);
    let mut unknown = Vec::new();
    if arguments.anonymous {
        let asked = ask_names(&place.socket, &answers);
        let mut names = Names::default();
        [log.as_deref(), audit.as_deref()].into_iter().filter_map(Result::ok).for_each(|text| names.of_text(text));
        unknown = find_names(&mut names, &answers, &asked, registry.as_ref().ok(), &state);
        hide_names(&mut bundle.redaction, &names).unwrap_or_else(|_| unknown.push("chance"));
    }
    let names_known = unknown.is_empty();

    for (name, answer) in answers.into_iter().filter(|_| names_known) {
        bundle.document(&name, answer)?;
    }
    match configuration {
        Some((_, Ok(document))) => bundle.document("configuration.json", Answer::Json(document))?,
        Some((path, Err(error))) => bundle.missing(&format!("configuration {}", path.display()), &error),
        None => {
            bundle.missing("configuration", &"the daemon was started with --state-dir: name its file with --config if it has one")
        }
    }
    match registry {
        Ok(document) => bundle.document("registry.json", Answer::Json(document))?,
        Err(error) => bundle.missing("the registry", &error),
    }
    for (path, name) in FACTS {
        bundle.copied(Path::new(path), name)?;
    }
    bundle.process(process)?;
    bundle.write("system/space", &spaces(&state))?;
    if names_known {
        bundle.write("state-files.txt", &listing(&state))?;
        bundle.log(arguments, log)?;
        bundle.audit(audit)?;
    } else {
        let why = format!("nothing lists all {}, so their names could not be replaced", unknown.join(" and "));
        bundle.missing("what may hold names: the daemon's answers, the log, the audit log, the list of files", &why);
    }
    bundle.manifest(arguments, created)?;
    Ok(bundle)
}

/// What the daemon said.
enum Answer {
    Json(Value),
    Text(String),
}

impl Bundle {
    fn missing(&mut self, what: &str, why: &dyn std::fmt::Display) {
        let why = self.redaction.text(&why.to_string());
        self.missing.push(Missing { what: what.to_owned(), why });
    }

    fn ask(&mut self, socket: &Path) -> Vec<(String, Answer)> {
        let mut answers = Vec::new();
        for (path, name) in CALLS {
            match local_call::get(socket, path) {
                Ok(bytes) if name.ends_with(".json") => match serde_json::from_slice(&bytes) {
                    Ok(value) => answers.push((name.to_owned(), Answer::Json(value))),
                    Err(error) => self.missing(name, &error),
                },
                Ok(bytes) => answers.push((name.to_owned(), Answer::Text(String::from_utf8_lossy(&bytes).into_owned()))),
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                    self.missing(name, &format!("{error}{cause}"));
                }
            }
        }
        answers
    }

    fn document(&mut self, name: &str, answer: Answer) -> Result<(), BundleError> {
        match answer {
            Answer::Text(text) => self.write(name, &text),
            Answer::Json(mut value) => {
                self.redaction.value(&mut value);
                // Redacted already: reading it again as text would only see long lines.
                let text = serde_json::to_string_pretty(&value).unwrap_or_default();
                self.store(name, text.as_bytes())
            }
        }
    }

    fn write(&mut self, name: &str, text: &str) -> Result<(), BundleError> {
        let text = self.redaction.text(text);
        self.store(name, text.as_bytes())
    }

    fn store(&mut self, name: &str, bytes: &[u8]) -> Result<(), BundleError> {
        let path = self.directory.join(name);
        if let Some(parent) = path.parent() {
            private_directory(parent)?;
        }
        private_file(&path).and_then(|mut file| file.write_all(bytes)).map_err(write_error(&path))?;
        let sha256 = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        self.entries.push(Entry { file: name.to_owned(), bytes: bytes.len() as u64, sha256 });
        Ok(())
    }

    fn copied(&mut self, path: &Path, name: &str) -> Result<(), BundleError> {
        match read_bounded(path) {
            Ok(text) => self.write(name, &text),
            Err(error) => {
                self.missing(name, &format!("{}: {error}", path.display()));
                Ok(())
            }
        }
    }

    fn process(&mut self, process: Option<u32>) -> Result<(), BundleError> {
        let Some(process) = process else {
            self.missing("the daemon's process", &"it is not known, or does not run");
            return Ok(());
        };
        for part in PROCESS {
            let path = PathBuf::from(format!("/proc/{process}/{part}"));
            match read_bounded(&path) {
                Ok(text) => self.write(&format!("process/{part}"), &arguments_in(&text))?,
                Err(error) => self.missing(&format!("process/{part}"), &error),
            }
        }
        Ok(())
    }

    fn log(&mut self, arguments: &SupportBundle, text: io::Result<String>) -> Result<(), BundleError> {
        match text {
            Ok(text) => {
                let lines: Vec<&str> = text.lines().collect();
                let from = lines.len().saturating_sub(arguments.log_lines);
                let last = lines.get(from..).unwrap_or_default().join("\n");
                self.write("laminad.log", &last)
            }
            Err(error) => {
                self.missing("the log", &format!("{error}; if it is in a file, name it with --log"));
                Ok(())
            }
        }
    }

    /// From its file, when the daemon could not be asked.
    fn audit(&mut self, text: io::Result<String>) -> Result<(), BundleError> {
        if self.entries.iter().any(|entry| entry.file == "audit.json") {
            return Ok(());
        }
        match text {
            Ok(text) => self.write("audit.log", &text),
            Err(error) => {
                self.missing("the audit log", &error);
                Ok(())
            }
        }
    }

    fn manifest(&mut self, arguments: &SupportBundle, created: &str) -> Result<(), BundleError> {
        let manifest = json!({
            "made_by": format!("lamina {}", env!("CARGO_PKG_VERSION")),
            "created": created,
            "anonymous": arguments.anonymous,
            "removed": self.redaction.removed(),
            "files": self.entries,
            "missing": self.missing,
            "left_out": LEFT_OUT,
        });
        let text = serde_json::to_string_pretty(&manifest).unwrap_or_default();
        self.store("manifest.json", text.as_bytes())
    }
}

/// The directory that a bundle is put together in; it goes with the value.
struct Work(PathBuf);

impl Work {
    fn new(path: PathBuf) -> Result<Self, BundleError> {
        private_directory(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What stays is only its owner's to read.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pack(work: &Path, name: &str, target: File) -> Result<(), BundleError> {
    let mut command = Command::new("tar");
    command.args(["--create", "--gzip", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--directory"]);
    let output = command.arg(work).arg("--").arg(name).stdin(Stdio::null()).stdout(target).stderr(Stdio::piped()).output();
    let output = output.map_err(BundleError::Tar)?;
    if output.status.success() { Ok(()) } else { Err(BundleError::Packed(String::from_utf8_lossy(&output.stderr).trim().into())) }
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> BundleError {
    let path = path.to_owned();
    move |cause| BundleError::Write { path, cause }
}

/// Whatever has the name stays: also a link.
fn unwritten(path: &Path) -> impl FnOnce(ImageError) -> BundleError {
    let path = path.to_owned();
    move |error| match error {
        ImageError::Exists { .. } | ImageError::Special { .. } => BundleError::Write { path, cause: Errno::EXIST.into() },
        ImageError::File { cause, .. } => BundleError::Write { path, cause },
        other => BundleError::Write { path, cause: io::Error::other(other) },
    }
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn private_directory(path: &Path) -> Result<(), BundleError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(write_error(path))
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines, whole ones.
fn read_end(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let from = file.metadata()?.len().saturating_sub(MAX_LOG_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(MAX_LOG_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // A line that is cut may have lost the word that says that a secret follows.
    Ok(if from > 0 { text.split_once('\n').map_or_else(String::new, |(_, whole)| whole.to_owned()) } else { text })
}

fn read_json(path: &Path) -> io::Result<Value> {
    serde_json::from_str(&read_bounded(path)?).map_err(Into::into)
}

/// A document, without comments: those may hold anything.
fn read_yaml(path: &Path) -> io::Result<Value> {
    // The error's text may show a part of what is there.
    serde_yaml::from_str(&read_bounded(path)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not YAML of text keys"))
}

/// A command line, an argument a line; one that names a secret has it in the same line, where it is seen.
fn arguments_in(text: &str) -> String {
    let mut lines = String::with_capacity(text.len());
    for argument in text.split('\0') {
        lines.push_str(argument);
        let names = argument.starts_with("--") && !argument.contains('=') && is_secret(argument);
        lines.push(if names { '=' } else { '\n' });
    }
    lines
}

fn log_text(arguments: &SupportBundle, place: &Place) -> io::Result<String> {
    match &arguments.log {
        Some(path) => read_end(path),
        // The unit's log may be that of another daemon.
        None if place.state.is_some() => Err(io::Error::other("the daemon has its own --state-dir, and its log is not known")),
        None => unit_log(arguments.log_lines),
    }
}

fn audit_text(state: &Path) -> io::Result<String> {
    read_end(&state.join("audit/audit.log"))
}

fn unit_log(lines: usize) -> io::Result<String> {
    let mut command = Command::new("journalctl");
    command.args(["--unit", "laminad", "--no-pager", "--output", "short-iso", "--lines"]).arg(lines.to_string());
    let output = command.stdin(Stdio::null()).output()?;
    let empty = output.stdout.is_empty() || output.stdout.starts_with(b"-- No entries --");
    if !output.status.success() || empty {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("journalctl has nothing of laminad: {said}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// From the daemon's own words, else from its lock.
fn process_of(answers: &[(String, Answer)], state: &Path) -> Option<u32> {
    let told = answers.iter().find_map(|(name, answer)| match answer {
        Answer::Json(status) if name == "status.json" => status.get("pid")?.as_u64(),
        _ => None,
    });
    let process = told.and_then(|pid| u32::try_from(pid).ok());
    let process = process.or_else(|| read_bounded(&state.join("laminad.lock")).ok()?.trim().parse().ok())?;
    let name = read_bounded(Path::new(&format!("/proc/{process}/comm"))).ok()?;
    (name.trim() == "laminad").then_some(process)
}

/// What stands under keys that are named like secrets, and the contents of files that it names.
fn know_files(redaction: &mut Redaction, document: &Value, secret: bool) {
    match document {
        Value::Object(fields) => fields.iter().for_each(|(key, inner)| know_files(redaction, inner, secret || is_secret(key))),
        Value::Array(all) => all.iter().for_each(|inner| know_files(redaction, inner, secret)),
        Value::String(text) if secret => {
            redaction.know(text);
            redaction.know(&read_bounded(Path::new(text)).unwrap_or_default());
        }
        _ => {}
    }
}

/// Secrets in our environment and the daemon's, and in files that they name: to look for, never to show.
fn know_environments(redaction: &mut Redaction, process: Option<u32>) {
    let own = std::env::vars_os().map(|(key, value)| (key.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    let daemon = process.and_then(|process| read_bounded(Path::new(&format!("/proc/{process}/environ"))).ok()).unwrap_or_default();
    let daemon = daemon.split('\0').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned()));
    for (_, value) in own.chain(daemon).filter(|(key, _)| is_secret(key)) {
        if value.starts_with('/') {
            redaction.know(&read_bounded(Path::new(&value)).unwrap_or_default());
        } else {
            redaction.know(&value);
        }
    }
}

/// Lists that are asked for their names only: tokens, and each volume's and VM's snapshots.
fn ask_names(socket: &Path, answers: &[(String, Answer)]) -> Vec<(&'static str, Answer)> {
    let ask = |path: &str| serde_json::from_slice(&local_call::get(socket, path).ok()?).ok().map(Answer::Json);
    let mut asked: Vec<_> = ask("/api/v1/tokens?limit=1000").map(|answer| (TOKENS, answer)).into_iter().collect();
    for (file, list) in [("volumes.json", "volumes"), ("vms.json", "vms")] {
        let Some(Answer::Json(answer)) = answers.iter().find(|(name, _)| name == file).map(|(_, answer)| answer) else { continue };
        let of = answer.get(list).and_then(Value::as_array).into_iter().flatten().filter_map(|one| one.get("name")?.as_str());
        let snapshots = of.filter_map(|of| ask(&format!("/api/v1/{list}/{of}/snapshots?limit=1000")));
        asked.extend(snapshots.map(|answer| (SNAPSHOTS, answer)));
    }
    asked
}

/// Finds names wherever they stand. The kinds of which no list is whole.
fn find_names(
    names: &mut Names,
    answers: &[(String, Answer)],
    asked: &[(&str, Answer)],
    registry: Option<&Value>,
    state: &Path,
) -> Vec<&'static str> {
    let mut whole: Vec<&str> = Vec::new();
    for (name, answer) in
        answers.iter().map(|(name, answer)| (name.as_str(), answer)).chain(asked.iter().map(|(name, one)| (*name, one)))
    {
        match answer {
            Answer::Json(value) => {
                // Those of drives and releases are nobody's secret.
                if !["version.json", "status.json", "targets.json"].contains(&name) {
                    names.of_document(value);
                    names.of_text(&value.to_string());
                }
                if value.get("next").is_none_or(Value::is_null) {
                    whole.push(name);
                }
            }
            Answer::Text(text) => names.of_text(text),
        }
    }
    registry.into_iter().for_each(|registry| names.of_document(registry));
    if let Ok(host) = read_bounded(Path::new("/proc/sys/kernel/hostname")) {
        names.add(host.trim());
    }
    let documents = state.join("meta/documents");
    let mut unknown = Vec::new();
    for (what, answer, kind) in KINDS {
        let listed = kind.map_or(registry.is_some(), |kind| names.of_directory(&documents.join(kind)));
        if !listed && !whole.contains(&answer) {
            unknown.push(what);
        }
    }
    unknown
}

/// With a salt, so that nobody can try likely names.
fn hide_names(redaction: &mut Redaction, names: &Names) -> io::Result<()> {
    let mut salt = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut salt)?;
    names.iter().for_each(|name| redaction.hide(name, &salt));
    Ok(())
}

/// Free space where the state is; `df` knows more than `/proc`.
fn spaces(state: &Path) -> String {
    let output = Command::new("df").args(["--block-size=1", "--output"]).arg(state).arg("/").stdin(Stdio::null()).output();
    output.map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Files of the state by name, size and age; nothing of what is in them.
fn listing(state: &Path) -> String {
    let mut lines = Vec::new();
    let mut open = vec![state.to_owned()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                open.push(entry.path());
            }
            let modified = meta.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
            let path = entry.path();
            let path = path.strip_prefix(state).unwrap_or(&path).display().to_string();
            lines.push(format!("{path}\t{}\t{}", meta.len(), rfc3339(Timestamp(modified.as_millis() as u64))));
        }
        if lines.len() > MAX_LISTED {
            break;
        }
    }
    lines.sort();
    lines.truncate(MAX_LISTED);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Answer, Names, Redaction, arguments_in, find_names, know_files};

    #[test]
    fn an_argument_that_names_a_secret_takes_the_next_one_along() {
        let mut redaction = Redaction::default();
        let shown = redaction.text(&arguments_in("laminad\0--state-dir\0/s\0--api-token\0plant\0--log\0info\0"));
        assert_eq!(shown.trim_end(), "laminad\n--state-dir\n/s\n--api-token=[removed]\n--log\ninfo");
    }

    #[test]
    fn what_a_secrets_file_holds_is_found_in_other_places() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let file = dir.path().join("t");
        std::fs::write(&file, "planted-in-a-file\n").expect("written");
        let mut redaction = Redaction::default();
        know_files(&mut redaction, &json!({"stores": [{"token_file": file}], "keys": {"api_key": ["planted-in-a-list"]}}), false);
        assert_eq!(redaction.text("a planted-in-a-file b planted-in-a-list c"), "a [removed] b [removed] c");
    }

    #[test]
    fn a_kind_of_names_that_nothing_lists_is_known_to_be_unknown() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let find = |answers: &[(String, Answer)], asked: &[(&str, Answer)], registry: Option<&serde_json::Value>| {
            let mut names = Names::default();
            let unknown = find_names(&mut names, answers, asked, registry, dir.path());
            (names.iter().map(str::to_owned).collect::<Vec<_>>(), unknown)
        };
        let answer = |file: &str, value| (file.to_owned(), Answer::Json(value));
        assert_eq!(find(&[], &[], None).1, ["volumes", "VMs", "schedules", "tokens"]);
        let volumes = |next| json!({"volumes": [{"name": "payroll", "labels": {"customer": "acme"}}], "next": next});
        let answers = [
            answer("volumes.json", volumes(None::<&str>)),
            answer("vms.json", json!({"vms": []})),
            answer("schedules.json", json!({"schedules": [{"name": "nightly"}]})),
        ];
        let asked = [
            ("tokens", Answer::Json(json!({"tokens": [{"name": "grafana"}]}))),
            ("snapshots", Answer::Json(json!({"snapshots": [{"name": "q4"}]}))),
        ];
        let (names, unknown) = find(&answers, &asked, None);
        assert_eq!(unknown, [""; 0]);
        for name in ["payroll", "customer", "acme", "nightly", "grafana", "q4"] {
            assert!(names.contains(&name.to_owned()), "{name}: {names:?}");
        }
        // More than one answer holds.
        assert_eq!(find(&[answer("volumes.json", volumes(Some("p")))], &[], None).1, ["volumes", "VMs", "schedules", "tokens"]);
        // With the daemon down: the registry, and the documents of the other kinds.
        for kind in ["vm", "schedule", "token"] {
            std::fs::create_dir_all(dir.path().join("meta/documents").join(kind)).expect("mkdir");
        }
        std::fs::write(dir.path().join("meta/documents/vm/shop.json"), "{}").expect("written");
        let (names, unknown) = find(&[], &[], Some(&json!({"volumes": [{"name": "payroll"}]})));
        assert!(unknown.is_empty() && names.contains(&"shop".to_owned()) && names.contains(&"payroll".to_owned()), "{unknown:?}");
    }
}
