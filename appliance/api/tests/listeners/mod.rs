//! An interface over a [`FakeAppliance`] on both its listeners, and a client that sends exactly what it is told.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lamina_api::listener::{LocalListener, NetworkListener};
use lamina_api::rate::Rate;
use lamina_api::role::Role;
use lamina_api::routes::{Interface, Limits};
use lamina_api::tls::{Tls, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;
use tempfile::TempDir;

use crate::fake_appliance::FakeAppliance;

/// Which listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    Local,
    Network,
}

/// A CA that signs what tests need.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key, PEM.
pub struct Signed {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// For `name`, valid from 2020 until `year`.
    pub fn sign(&self, name: &str, year: i32) -> Signed {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("params");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Signed { certificate, key: key.serialize_pem() }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// By name in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The problem's kind, without its prefix.
    pub fn problem(&self) -> String {
        assert_eq!(self.headers.get("content-type").map(String::as_str), Some("application/problem+json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["status"].as_u64(), Some(self.status.into()));
        assert!(json["title"].is_string() && json["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{json}");
        json["type"].as_str().and_then(|kind| kind.strip_prefix("urn:lamina:problem:")).expect("a kind").to_owned()
    }

    pub fn tag(&self) -> &str {
        self.headers.get("etag").map_or("", String::as_str)
    }
}

/// An interface that is served.
pub struct Listeners {
    pub fake: Arc<FakeAppliance>,
    pub socket: PathBuf,
    pub address: SocketAddr,
    pub authority: Authority,
    pub clients: Authority,
    pub dir: TempDir,
    pub runtime: tokio::runtime::Runtime,
}

/// No limit that a test comes near.
pub const FREE: Limits =
    Limits { changes: 48, reads: 48, patience: Duration::from_secs(60), rate: Rate { per_second: 1e6, burst: 1e6 } };

pub fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("mode");
}

impl Listeners {
    pub fn new() -> Self {
        Self::with(Arc::new(FakeAppliance::with_tokens()), FREE)
    }

    pub fn with(fake: Arc<FakeAppliance>, limits: Limits) -> Self {
        let dir = TempDir::new().expect("tempdir");
        let (authority, clients) = (Authority::new(), Authority::new());
        let own = authority.sign("localhost", 2100);
        let file = |name: &str| dir.path().join(name);
        std::fs::write(file("server.pem"), &own.certificate).expect("written");
        write_private(&file("server.key"), &own.key);
        std::fs::write(file("clients.pem"), &clients.pem).expect("written");
        let roles = [("viewer.test", Role::Viewer), ("operator.test", Role::Operator), ("admin.test", Role::Admin)];
        let tls = Tls::load(TlsFiles {
            certificate: file("server.pem"),
            key: file("server.key"),
            client_ca: Some(file("clients.pem")),
            clients: roles.into_iter().map(|(name, role)| (name.to_owned(), role)).collect(),
        });
        let network = NetworkListener::bind("127.0.0.1:0".parse().expect("address"), tls.expect("tls")).expect("bound");
        let address = network.address().expect("address");
        let socket = file("lamina.sock");
        let local = LocalListener::bind(&socket).expect("bound");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let interface = Interface::new(Arc::clone(&fake) as Arc<_>, None);
        runtime.spawn(local.serve(interface.router(limits)));
        runtime.spawn(network.serve(interface.router(limits)));
        Self { fake, socket, address, authority, clients, dir, runtime }
    }

    /// Over TLS, with a client's certificate or without.
    pub fn secure(&self, certificate: Option<&Signed>) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).expect("pem")).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
        let builder = builder.with_root_certificates(roots);
        let config = match certificate {
            None => builder.with_no_client_auth(),
            Some(signed) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(signed.certificate.as_bytes()).expect("pem")],
                    PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).expect("pem"),
                )
                .expect("fits"),
        };
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(StreamOwned::new(connection, stream))
    }

    /// What is answered to exactly these bytes, over TLS with this certificate.
    pub fn secure_raw(&self, certificate: Option<&Signed>, bytes: &[u8]) -> io::Result<Reply> {
        exchange(&mut self.secure(certificate)?, bytes)
    }

    /// What is answered to exactly these bytes.
    pub fn raw(&self, via: Via, bytes: &[u8]) -> io::Result<Reply> {
        match via {
            Via::Network => self.secure_raw(None, bytes),
            Via::Local => exchange(&mut UnixStream::connect(&self.socket)?, bytes),
        }
    }

    /// A request with headers, each a line.
    pub fn ask(&self, via: Via, line: &str, headers: &[&str], body: &[u8]) -> Reply {
        self.raw(via, &request(line, headers, body)).expect("an answer")
    }

    /// As the local socket's admin.
    pub fn admin(&self, line: &str, body: &str) -> Reply {
        self.ask(Via::Local, line, &[], body.as_bytes())
    }
}

/// `line` is method and path.
pub fn request(line: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    if !body.is_empty() {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    [text.as_bytes(), body].concat()
}

/// Sends and reads to the end; the other side may answer and close before it has heard everything.
pub fn exchange(stream: &mut (impl Read + Write), bytes: &[u8]) -> io::Result<Reply> {
    let sent = stream.write_all(bytes).and_then(|()| stream.flush());
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    parse(&answer).ok_or_else(|| sent.err().or(read.err()).unwrap_or_else(|| io::Error::other("no answer")))
}

pub fn parse(answer: &[u8]) -> Option<Reply> {
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    Some(Reply { status, headers: headers.collect(), body: answer[end + 4..].to_vec() })
}
