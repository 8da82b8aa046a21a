//! A daemon elsewhere: TLS, tokens, certificates, and connections that break.

use std::path::Path;
use std::process::Output;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use tempfile::TempDir;

use crate::daemon::lamina;
use crate::listeners::{Listeners, write_private};

struct Elsewhere {
    listeners: Listeners,
    server: String,
}

impl Elsewhere {
    fn new() -> Self {
        let listeners = Listeners::new();
        let file = |name: &str| listeners.dir.path().join(name);
        std::fs::write(file("ca.pem"), &listeners.authority.pem).expect("written");
        for role in ["viewer", "operator", "admin"] {
            write_private(&file(&format!("{role}.token")), &format!("{role}-secret\n"));
        }
        write_private(&file("bad.token"), "nobody-knows-this\n");
        let server = format!("https://localhost:{}", listeners.address.port());
        Self { listeners, server }
    }

    fn file(&self, name: &str) -> String {
        self.listeners.dir.path().join(name).display().to_string()
    }

    fn lamina(&self, arguments: &[&str]) -> Output {
        let mut command = lamina(self.listeners.dir.path());
        command.args(["--server", &self.server, "--ca-file", &self.file("ca.pem")]).args(arguments);
        command.output().expect("runs")
    }
}

#[track_caller]
fn refused(output: &Output, code: i32, words: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(words), "{stderr}");
}

#[test]
fn a_token_says_who_asks_and_roles_are_exit_code_6() {
    let there = Elsewhere::new();
    let with = |role: &str, arguments: &[&str]| there.lamina(&[&["--token-file", &there.file(role)], arguments].concat());
    let made = with("operator.token", &["volume", "create", "web", "--size", "1GiB", "-o", "json"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    refused(&with("viewer.token", &["volume", "detach", "web"]), 6, "advice: ");
    refused(&with("bad.token", &["volume", "list"]), 6, "advice: ");
    refused(&there.lamina(&["volume", "list"]), 6, "advice: ");
    refused(&with("viewer.token", &["volume", "show", "wbe"]), 3, "did you mean 'web'?");
    refused(&with("nowhere.token", &["volume", "list"]), 2, "the token in");
    refused(&with("viewer.token", &["support-bundle"]), 2, "on the appliance itself");
    // The environment says the same.
    let mut command = lamina(there.listeners.dir.path());
    command.env("LAMINA_SERVER", &there.server).env("LAMINA_CA_FILE", there.file("ca.pem"));
    let listed =
        command.env("LAMINA_TOKEN_FILE", there.file("viewer.token")).args(["volume", "list", "-q"]).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "web\n");
}

#[test]
fn a_certificate_says_who_asks_too() {
    let there = Elsewhere::new();
    let file = |name: &str| there.listeners.dir.path().join(name);
    let sign = |to: &str, signed: crate::listeners::Signed| {
        std::fs::write(file(&format!("{to}.pem")), signed.certificate).expect("written");
        write_private(&file(&format!("{to}.key")), &signed.key);
    };
    sign("viewer", there.listeners.clients.sign("viewer.test", 2100));
    sign("foreign", there.listeners.authority.sign("viewer.test", 2100));
    let with = |name: &str, arguments: &[&str]| {
        let (cert, key) = (there.file(&format!("{name}.pem")), there.file(&format!("{name}.key")));
        there.lamina(&[&["--cert", &cert, "--key", &key], arguments].concat())
    };
    let shown = with("viewer", &["status", "-q"]);
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    refused(&with("viewer", &["token", "list"]), 6, "advice: ");
    refused(&with("foreign", &["status"]), 6, "the server wants a certificate that it trusts");
    refused(&there.lamina(&["--cert", &there.file("viewer.pem"), "status"]), 2, "--cert and --key belong together");
}

#[test]
fn a_server_that_nobody_vouches_for_is_not_asked() {
    let there = Elsewhere::new();
    let mut command = lamina(there.listeners.dir.path());
    std::fs::write(there.file("other.pem"), &there.listeners.clients.pem).expect("written");
    command.args(["--server", &there.server, "--ca-file", &there.file("other.pem"), "status"]);
    refused(&command.output().expect("runs"), 4, "advice: the server's certificate is not trusted");
    // Another name than the certificate's.
    let by_address = there.server.replace("localhost", "127.0.0.1");
    let mut command = lamina(there.listeners.dir.path());
    command.args(["--server", &by_address, "--ca-file", &there.file("ca.pem"), "status"]);
    refused(&command.output().expect("runs"), 4, "not valid for name");
    let mut command = lamina(there.listeners.dir.path());
    command.args(["--server", "https://localhost:1", "--ca-file", &there.file("ca.pem"), "status"]);
    refused(&command.output().expect("runs"), 4, "no daemon answers at https://localhost:1");
    refused(&there.lamina(&["--ca-file", "/nowhere.pem", "status"]), 2, "");
}

#[test]
fn a_post_whose_connection_broke_is_sent_once_more_with_the_same_key() {
    let dir = TempDir::new().expect("tempdir");
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).expect("bind");
    let told = std::thread::spawn(move || {
        let mut keys = Vec::new();
        for number in 0..2 {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a request");
                head.extend(byte);
            }
            let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
            keys.push(head.lines().find_map(|line| line.strip_prefix("idempotency-key: ")).expect("a key").to_owned());
            // The first one is done and not answered.
            if number == 1 {
                let body = r#"{"type":"urn:lamina:problem:conflict","title":"","status":409,"detail":"seen twice"}"#;
                write!(stream, "HTTP/1.1 409 \r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("answered");
            }
        }
        keys
    });
    let output = lamina(dir.path()).arg("--socket").arg(&socket).args(["volume", "attach", "web"]).output().expect("runs");
    refused(&output, 5, "seen twice");
    let keys = told.join().expect("keys");
    assert!(keys[0] == keys[1] && keys[0].len() == 32, "{keys:?}");
}

#[test]
fn a_token_never_stands_on_the_command_line() {
    let output = lamina(Path::new("/")).args(["--token", "x", "status"]).output().expect("runs");
    refused(&output, 2, "--token-file");
}
