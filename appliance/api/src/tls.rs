//! TLS of the network listener: TLS 1.3 only, the server's certificate from files that are read again when they change, and clients'
//! certificates as identities.
//!
//! A client may show a certificate of the configured CA; then its names (DNS or URI, RFC 5280 4.2.1.6) are looked up among the configured
//! roles. To be signed by the CA says nothing by itself. Without a certificate a token is needed. Sessions are never resumed, so that each
//! connection shows a certificate that is valid then.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Mutex, RwLock};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::caller::Caller;
use crate::role::Role;

/// Far above any chain.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where certificates and keys are, and who clients are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's chain, PEM, its own certificate first.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The CAs of clients' certificates, PEM; two during a rotation. Without, certificates are not asked for.
    pub client_ca: Option<PathBuf>,
    /// Roles by the names in clients' certificates.
    pub clients: BTreeMap<String, Role>,
}

/// Why TLS cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file has no PEM of the expected kind in it.
    #[error("{} has no {what} in PEM", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// A key that others can read.
    #[error("{} can be read by everybody: give it mode 0600", path.display())]
    Open {
        /// Which.
        path: PathBuf,
    },
    /// They do not fit together.
    #[error("certificate and key cannot be used")]
    Unfit(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What the files were when they were read: times and sizes.
type Stamp = Vec<Option<(SystemTime, u64)>>;

/// The present configuration of TLS.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    present: RwLock<Arc<ServerConfig>>,
    stamp: Mutex<Stamp>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        // Before the files are read: what changes meanwhile is read again.
        let stamp = stamp(&files);
        let present = RwLock::new(Arc::new(server_config(&files)?));
        Ok(Self { files, present, stamp: Mutex::new(stamp) })
    }

    /// For the next connection.
    pub(crate) fn present(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.present.read())
    }

    /// Reads the files again if they have changed; tells whether it did. What was there before stays when they are wrong.
    ///
    /// # Errors
    /// [`TlsError`], once for each change.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        let mut known = self.stamp.lock();
        let found = stamp(&self.files);
        if *known == found {
            return Ok(false);
        }
        *known = found;
        *self.present.write() = Arc::new(server_config(&self.files)?);
        Ok(true)
    }

    /// Who shows this chain, which the handshake has verified.
    pub(crate) fn caller(&self, chain: &[CertificateDer<'_>]) -> Option<Caller> {
        let leaf = webpki::EndEntityCert::try_from(chain.first()?).ok()?;
        let mut names = leaf.valid_dns_names().chain(leaf.valid_uri_names());
        names.find_map(|name| Some(Caller::new(format!("certificate:{name}"), *self.files.clients.get(name)?)))
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    let paths = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
    let look = |path: &PathBuf| fs::metadata(path).and_then(|meta| Ok((meta.modified()?, meta.len()))).ok();
    paths.into_iter().map(|path| path.and_then(look)).collect()
}

fn server_config(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let unfit = |error: rustls::Error| TlsError::Unfit(Box::new(error));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unfit)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(unfit)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated();
            builder.with_client_cert_verifier(verifier.build().map_err(|error| TlsError::Unfit(Box::new(error)))?)
        }
    };
    let mut config = builder.with_single_cert(certificates(&files.certificate)?, key(&files.key)?).map_err(unfit)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = || TlsError::Pem { path: path.to_owned(), what: "certificate" };
    let found: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(|_| bad())?;
    if found.is_empty() { Err(bad()) } else { Ok(found) }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    use std::os::unix::fs::PermissionsExt;
    let open = fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o007 != 0);
    if open {
        return Err(TlsError::Open { path: path.to_owned() });
    }
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|_| TlsError::Pem { path: path.to_owned(), what: "private key" })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes))
        .map_err(|cause| TlsError::Read { path: path.to_owned(), cause })?;
    Ok(bytes)
}
