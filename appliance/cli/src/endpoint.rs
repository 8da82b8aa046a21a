//! Which daemon to ask, and how to reach it: the local socket, or a server over TLS with a token or a certificate.
//!
//! A token comes out of a file, never out of the command line or the environment, where other users and logs would see it.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::mistake::Mistake;
use crate::shell::quoted;

const SYSTEM_SOCKET: &str = "/run/lamina/lamina.sock";
/// Where distributions keep the authorities that they trust.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
const DEFAULT_PORT: u16 = 7443;

/// Which daemon to ask.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which daemon")]
pub(crate) struct Connection {
    /// The daemon's state directory, when it was started with --state-dir.
    #[arg(long, global = true, value_name = "DIR", conflicts_with_all = ["socket", "server"], value_hint = clap::ValueHint::DirPath)]
    pub(crate) state_dir: Option<PathBuf>,

    /// The daemon's local socket [env: LAMINA_SOCKET] [default: /run/lamina/lamina.sock].
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "server", value_hint = clap::ValueHint::FilePath)]
    pub(crate) socket: Option<PathBuf>,

    /// A daemon elsewhere, over TLS [env: LAMINA_SERVER].
    #[arg(long, global = true, value_name = "https://HOST[:PORT]")]
    pub(crate) server: Option<ServerAddress>,

    /// File with the token to show to it [env: LAMINA_TOKEN_FILE].
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) token_file: Option<PathBuf>,

    /// File with the authorities whose servers are trusted [env: LAMINA_CA_FILE] [default: the system's].
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) ca_file: Option<PathBuf>,

    /// File with our certificate, instead of a token [env: LAMINA_CERT].
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) cert: Option<PathBuf>,

    /// File with our certificate's key [env: LAMINA_KEY].
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) key: Option<PathBuf>,
}

/// `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerAddress {
    host: String,
    port: u16,
}

/// Why a daemon cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndpointError {
    /// Not `https://host:port`.
    #[error("'{0}' is not a server: write https://host:port")]
    Address(Box<str>),
    /// A token, certificate or key that cannot be read.
    #[error("{what} in {} cannot be read", file.display())]
    File {
        /// What should be there.
        what: &'static str,
        /// Where.
        file: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file without what it should have.
    #[error("{} holds no {what}", file.display())]
    Empty {
        /// What should be there.
        what: &'static str,
        /// Where.
        file: PathBuf,
    },
    /// A certificate or key that cannot be used.
    #[error("the certificate cannot be used")]
    Certificate(#[source] rustls::Error),
    /// Words that do not go together.
    #[error(transparent)]
    Mistake(#[from] Mistake),
}

impl FromStr for ServerAddress {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let bad = || EndpointError::Address(text.chars().take(128).collect());
        let rest = text.strip_prefix("https://").ok_or_else(bad)?.trim_end_matches('/');
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(bad)?;
                (host, port.strip_prefix(':').or(port.is_empty().then_some("")).ok_or_else(bad)?)
            }
            None => rest.split_once(':').unwrap_or((rest, "")),
        };
        ServerName::try_from(host).map_err(|_| bad())?;
        let port = if port.is_empty() { DEFAULT_PORT } else { port.parse().map_err(|_| bad())? };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

/// A bearer token's secret; its `Debug` does not show it.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// What goes into the header.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

/// Where the daemon is, ready to be called.
#[derive(Debug, Clone)]
pub(crate) enum Endpoint {
    /// On this machine.
    Local(PathBuf),
    /// Elsewhere.
    Server(Box<Server>),
}

/// A daemon elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    /// Where.
    pub(crate) address: ServerAddress,
    /// Whose certificate it must show.
    pub(crate) name: ServerName<'static>,
    /// Whom we trust, and who we are.
    pub(crate) tls: Arc<ClientConfig>,
    /// Who we are, in HTTP.
    pub(crate) token: Option<Secret>,
}

impl Server {
    /// What to connect to.
    pub(crate) fn host_and_port(&self) -> (&str, u16) {
        (&self.address.host, self.address.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(socket) => write!(f, "{}", socket.display()),
            Self::Server(server) => write!(f, "{}", server.address),
        }
    }
}

impl Connection {
    /// The options as they were typed, each with a space before it; ready for a shell.
    pub(crate) fn words(&self) -> String {
        let path = |option: &str, path: &Option<PathBuf>| {
            let path = path.as_ref()?;
            Some(format!(" --{option} {}", quoted(&path.to_string_lossy())))
        };
        let words = [
            path("state-dir", &self.state_dir),
            path("socket", &self.socket),
            self.server.as_ref().map(|server| format!(" --server {}", quoted(&server.to_string()))),
            path("token-file", &self.token_file),
            path("ca-file", &self.ca_file),
            path("cert", &self.cert),
            path("key", &self.key),
        ];
        words.into_iter().flatten().collect()
    }

    /// What was meant: the command line before the environment before the default.
    pub(crate) fn endpoint(&self) -> Result<Endpoint, EndpointError> {
        self.resolve(&|name| env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn resolve(&self, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Endpoint, EndpointError> {
        let said = [self.state_dir.is_some(), self.socket.is_some(), self.server.is_some()];
        if said.iter().filter(|said| **said).count() > 1 {
            return Err(Mistake::TwoDaemons.into());
        }
        if let Some(dir) = &self.state_dir {
            return Ok(Endpoint::Local(dir.join("run").join("lamina.sock")));
        }
        if let Some(socket) = &self.socket {
            return Ok(Endpoint::Local(socket.clone()));
        }
        let named = environment("LAMINA_SERVER").map(|text| text.to_string_lossy().parse()).transpose()?;
        let Some(address) = self.server.clone().or(named) else {
            let socket = environment("LAMINA_SOCKET").map_or_else(|| Path::new(SYSTEM_SOCKET).to_owned(), PathBuf::from);
            return Ok(Endpoint::Local(socket));
        };
        let file = |given: &Option<PathBuf>, name: &str| given.clone().or_else(|| environment(name).map(PathBuf::from));
        let token = file(&self.token_file, "LAMINA_TOKEN_FILE").map(|file| read_token(&file)).transpose()?;
        let authorities = file(&self.ca_file, "LAMINA_CA_FILE").unwrap_or_else(|| SYSTEM_AUTHORITIES.into());
        let identity = match (file(&self.cert, "LAMINA_CERT"), file(&self.key, "LAMINA_KEY")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(Mistake::HalfCertificate.into()),
        };
        let tls = Arc::new(tls(&authorities, identity)?);
        let name = ServerName::try_from(address.host.clone()).map_err(|_| EndpointError::Address(address.to_string().into()))?;
        Ok(Endpoint::Server(Box::new(Server { address, name, tls, token })))
    }
}

fn read_token(file: &Path) -> Result<Secret, EndpointError> {
    let unreadable = |cause| EndpointError::File { what: "the token", file: file.to_owned(), cause };
    let text = fs::read_to_string(file).map_err(unreadable)?;
    let open = fs::metadata(file).map_err(unreadable)?.permissions().mode() & 0o004 != 0;
    if open {
        eprintln!("lamina: everybody on this machine can read the token in {}; chmod 600 it", file.display());
    }
    let secret = text.trim();
    if secret.is_empty() || !secret.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(EndpointError::Empty { what: "token", file: file.to_owned() });
    }
    Ok(Secret(secret.to_owned()))
}

fn tls(authorities: &Path, identity: Option<(PathBuf, PathBuf)>) -> Result<ClientConfig, EndpointError> {
    let mut trusted = RootCertStore::empty();
    for authority in certificates("the authorities", authorities)? {
        trusted.add(authority).map_err(EndpointError::Certificate)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = versions.map_err(EndpointError::Certificate)?.with_root_certificates(trusted);
    let Some((cert, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates("our certificate", &cert)?;
    let secret = PrivateKeyDer::from_pem_file(&key).map_err(|error| pem("our key", &key, error))?;
    builder.with_client_auth_cert(chain, secret).map_err(EndpointError::Certificate)
}

fn certificates(what: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, EndpointError> {
    let unreadable = |error| pem(what, file, error);
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).map_err(unreadable)?.collect();
    let found = found.map_err(unreadable)?;
    if found.is_empty() { Err(EndpointError::Empty { what: "certificate", file: file.to_owned() }) } else { Ok(found) }
}

fn pem(what: &'static str, file: &Path, error: rustls::pki_types::pem::Error) -> EndpointError {
    let cause = match error {
        rustls::pki_types::pem::Error::Io(cause) => cause,
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    };
    EndpointError::File { what, file: file.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Connection, Endpoint, ServerAddress};

    #[test]
    fn servers_are_written_with_https_and_a_host() {
        for (text, is) in [
            ("https://san-1.example:9000", "https://san-1.example:9000"),
            ("https://10.0.0.7/", "https://10.0.0.7:7443"),
            ("https://[fd00::1]:9", "https://[fd00::1]:9"),
        ] {
            assert_eq!(text.parse::<ServerAddress>().expect("a server").to_string(), is);
        }
        for bad in
            ["http://a:1", "a:1", "https://", "https://a:b", "https://a:70000", "https://u@a", "https://[::1]x", "https://a/b"]
        {
            assert!(bad.parse::<ServerAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_is_stronger_than_the_environment() {
        let environment = |name: &str| (name == "LAMINA_SERVER" || name == "LAMINA_SOCKET").then(|| "https://elsewhere".into());
        let here = Connection { state_dir: Some("/s".into()), ..Connection::default() };
        let endpoint = here.resolve(&environment).expect("an endpoint");
        assert!(matches!(endpoint, Endpoint::Local(socket) if socket == Path::new("/s/run/lamina.sock")));
        let both = Connection { socket: Some("/s".into()), ..here.clone() };
        assert!(both.resolve(&|_| None).is_err(), "one of them would not be asked");
        let nothing = Connection::default().resolve(&|_| None).expect("an endpoint");
        assert!(matches!(nothing, Endpoint::Local(socket) if socket == Path::new("/run/lamina/lamina.sock")));
    }
}
