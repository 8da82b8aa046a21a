//! Listeners with bounds: on a Unix socket that only its owner may use, and on a loopback address for `/metrics`.
//!
//! Bounds: connections at a time, header time, header bytes; bodies and calls are bounded by the routes. When descriptors run out
//! accepting pauses and goes on. A crash leaves the socket's file behind; the next bind replaces it.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// Connections at a time: a local command or two, and scrapers.
const MAX_CONNECTIONS: usize = 64;

/// How long a client may take to say what it wants; also how long an idle connection is kept.
const HEADER_PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of headers, and of buffer, a connection may have.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Pause after a failed accept (no descriptors, usually).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Longest path of a Unix socket (`sun_path` is 108 bytes with its terminator).
pub const MAX_SOCKET_PATH: usize = 107;

/// A bound socket that nobody is served on yet. Its file goes when this is dropped.
#[derive(Debug)]
pub struct LocalListener {
    listener: StdUnixListener,
    path: PathBuf,
}

impl LocalListener {
    /// Binds `path` with mode 0600, replacing what a crash left. The caller holds the lock that makes sure no other daemon uses it.
    ///
    /// # Errors
    /// The system's error; `InvalidInput` when the path is longer than [`MAX_SOCKET_PATH`].
    pub fn bind(path: &Path) -> io::Result<Self> {
        // Bound under another name first, so that the socket is never there with other permissions.
        let unready = path.with_extension("new");
        for stale in [path, &unready] {
            match fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let listener = StdUnixListener::bind(&unready)?;
        fs::set_permissions(&unready, fs::Permissions::from_mode(0o600))?;
        fs::rename(&unready, path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves until the future is dropped. Only the daemon's own user and root are heard.
    ///
    /// # Errors
    /// When the socket cannot be handed to the runtime.
    pub async fn serve(self, router: Router) -> io::Result<()> {
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let own = fs::metadata("/proc/self").map(|meta| std::os::unix::fs::MetadataExt::uid(&meta))?;
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
            match listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == 0 || peer.uid() == own => {
                        let router = router.clone();
                        tokio::spawn(async move {
                            connection(stream, router).await;
                            drop(slot);
                        });
                    }
                    Ok(peer) => tracing::warn!(uid = peer.uid(), "a user who is not root called the local socket: refused"),
                    Err(error) => tracing::debug!(%error, "a caller of the local socket could not be identified"),
                },
                Err(error) => {
                    tracing::warn!(%error, "the local socket cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        // Best effort: a file that stays is replaced by the next bind.
        let _ = fs::remove_file(&self.path);
    }
}

/// A bound network address.
#[derive(Debug)]
pub struct NetworkListener {
    listener: StdTcpListener,
}

impl NetworkListener {
    /// Binds `address`, which must be a loopback address: what is served there has no authentication.
    ///
    /// # Errors
    /// `InvalidInput` for any other address; the system's error.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        if !address.ip().is_loopback() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a loopback address"));
        }
        let listener = StdTcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// The address, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// The system's error.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the future is dropped.
    ///
    /// # Errors
    /// When the socket cannot be handed to the runtime.
    pub async fn serve(self, router: Router) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener)?;
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let router = router.clone();
                    tokio::spawn(async move {
                        connection(stream, router).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the metrics address cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the interface ended early");
    }
}
