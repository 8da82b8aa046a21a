//! A small appliance in this process behind a local socket, and the command that asks it.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use lamina_api::listener::LocalListener;
use lamina_api::routes;
use tempfile::TempDir;

use crate::fake_appliance::FakeAppliance;

/// The appliance, its socket, and a home for the command.
pub(crate) struct Daemon {
    pub(crate) fake: Arc<FakeAppliance>,
    pub(crate) dir: TempDir,
    _runtime: tokio::runtime::Runtime,
}

pub(crate) fn daemon() -> Daemon {
    let dir = TempDir::new().expect("tempdir");
    std::fs::create_dir(dir.path().join("run")).expect("mkdir");
    let fake = Arc::new(FakeAppliance::with_tokens());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let _entered = runtime.enter();
    let listener = LocalListener::bind(&dir.path().join("run/lamina.sock")).expect("bind");
    runtime.spawn(listener.serve(routes::router(fake.clone())));
    drop(_entered);
    Daemon { fake, dir, _runtime: runtime }
}

impl Daemon {
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = lamina(self.dir.path());
        command.arg("--state-dir").arg(self.dir.path()).args(arguments);
        command
    }

    pub(crate) fn lamina(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("runs")
    }

    /// Stdout of a command that must succeed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.lamina(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Stderr of a command that must exit with `code` and print nothing on stdout.
    pub(crate) fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.lamina(arguments);
        let stderr = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        stderr
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[arguments, &["-o", "json"]].concat())).expect("json")
    }
}

/// The command with an environment that is the same everywhere.
pub(crate) fn lamina(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lamina"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LAMINA_") || name.starts_with("XDG_")) {
        command.env_remove(name);
    }
    command
        .env_remove("NO_COLOR")
        .env_remove("COLUMNS")
        .env_remove("COMPLETE")
        .env("TZ", "UTC")
        .env("HOME", home)
        .stdin(Stdio::null());
    command
}
