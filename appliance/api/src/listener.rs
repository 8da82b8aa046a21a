//! Listeners with bounds: a Unix socket that only its owner may use, a network address with TLS, a loopback address for `/metrics`.
//!
//! Bounds: connections at a time, of all and of each address; what one connection may do is said in [`crate::connection`], what requests
//! may do by the routes. A client of the local socket that is one too many is answered 429; on the network its connection is closed, since
//! an answer would cost a handshake; scrapers wait for their turn. When descriptors run out accepting pauses and goes on. A crash leaves the
//! socket's file behind; the next bind replaces it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::middleware;
use axum::response::Response;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::caller::Caller;
use crate::connection::{self, HEADER_PATIENCE};
use crate::rate::{Rate, Rates, network};
use crate::role::Role;
use crate::routes::Peer;
use crate::tls::Tls;

/// Connections of the local socket at a time: some commands.
const MAX_LOCAL: usize = 64;
/// Connections of the metrics address at a time. At 5 answers a second a scraper waits for 6.4 s behind as many; 10 s is its usual patience.
const MAX_SCRAPERS: usize = 32;
/// Clients that are told at a time that they are too many.
const MAX_TURNED_AWAY: usize = 16;
/// Connections of the network address at a time; of one address a quarter.
const MAX_NETWORK: usize = 256;
const MAX_OF_ADDRESS: usize = 64;
/// Connections that an address may begin: each is a handshake, which costs more than most requests.
const CONNECTIONS: Rate = Rate { per_second: 50.0, burst: 200.0 };

/// How often certificates are looked at.
const REFRESH: Duration = Duration::from_secs(5);

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

    /// Serves until the future is dropped. Only the daemon's own user and root are heard; they are admins.
    ///
    /// # Errors
    /// When the socket cannot be handed to the runtime.
    pub async fn serve(self, router: Router) -> io::Result<()> {
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let own = fs::metadata("/proc/self").map(|meta| std::os::unix::fs::MetadataExt::uid(&meta))?;
        let (slots, turned_away) = (Arc::new(Semaphore::new(MAX_LOCAL)), Arc::new(Semaphore::new(MAX_TURNED_AWAY)));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the local socket cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let uid = match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 || peer.uid() == own => peer.uid(),
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid(), "a user who is not root called the local socket: refused");
                    continue;
                }
                Err(error) => {
                    tracing::debug!(%error, "a caller of the local socket could not be identified");
                    continue;
                }
            };
            if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
                let caller = Some(Caller::new(format!("uid:{uid}"), Role::Admin));
                let peer = Peer { from: "local".to_owned(), address: None, caller };
                let router = router.clone();
                tokio::spawn(async move {
                    connection::serve(stream, router, Some(peer)).await;
                    drop(slot);
                });
            } else if let Ok(slot) = Arc::clone(&turned_away).try_acquire_owned() {
                tokio::spawn(async move {
                    connection::turn_away(stream).await;
                    drop(slot);
                });
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

/// A bound address for `/metrics`, which has no authentication.
#[derive(Debug)]
pub struct MetricsListener {
    listener: StdTcpListener,
}

impl MetricsListener {
    /// Binds `address`, which must be a loopback address: what is served there has no authentication.
    ///
    /// # Errors
    /// `InvalidInput` for any other address; the system's error.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        if !address.ip().is_loopback() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a loopback address"));
        }
        Ok(Self { listener: bound(address)? })
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
        let slots = Arc::new(Semaphore::new(MAX_SCRAPERS));
        let open = Arc::clone(&slots);
        // When others wait for a place an answer is a connection's last, so that who stays takes it from nobody.
        let router = router.layer(middleware::map_response(move |mut answer: Response| {
            if open.available_permits() == 0 {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            std::future::ready(answer)
        }));
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let router = router.clone();
                    tokio::spawn(async move {
                        connection::serve(stream, router, None).await;
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

/// A bound network address; it speaks TLS and nothing else.
#[derive(Debug)]
pub struct NetworkListener {
    listener: StdTcpListener,
    tls: Arc<Tls>,
}

impl NetworkListener {
    /// Binds `address`.
    ///
    /// # Errors
    /// The system's error.
    pub fn bind(address: SocketAddr, tls: Tls) -> io::Result<Self> {
        Ok(Self { listener: bound(address)?, tls: Arc::new(tls) })
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
        let slots = Slots::new();
        let mut refresh = tokio::time::interval(REFRESH);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = refresh.tick() => {
                    refreshed(&self.tls);
                    continue;
                }
            };
            match accepted {
                Ok((stream, address)) => {
                    let Some(slot) = slots.take(address.ip()) else {
                        tracing::debug!(%address, "too many connections: closed");
                        continue;
                    };
                    let (tls, router) = (Arc::clone(&self.tls), router.clone());
                    tokio::spawn(async move {
                        secured(stream, address, &tls, router).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the network address cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn bound(address: SocketAddr) -> io::Result<StdTcpListener> {
    let listener = StdTcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn refreshed(tls: &Tls) {
    match tls.refresh() {
        Ok(false) => {}
        Ok(true) => tracing::info!("certificates were read again"),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            tracing::error!(%error, cause, "certificates have changed and cannot be used: the ones from before stay");
        }
    }
}

async fn secured(stream: TcpStream, address: SocketAddr, tls: &Tls, router: Router) {
    let handshake = TlsAcceptor::from(tls.present()).accept(stream);
    let stream = match tokio::time::timeout(HEADER_PATIENCE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%address, %error, "no TLS connection came about");
            return;
        }
        Err(_) => return,
    };
    let caller = stream.get_ref().1.peer_certificates().and_then(|chain| tls.caller(chain));
    let peer = Peer { from: address.ip().to_string(), address: Some(address.ip()), caller };
    connection::serve(stream, router, Some(peer)).await;
}

/// Places for connections, of all and of each address.
struct Slots {
    all: Arc<Semaphore>,
    of_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    rates: Rates,
}

/// A place that is free again when this goes.
struct Slot {
    address: IpAddr,
    of_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    _one: OwnedSemaphorePermit,
}

impl Slots {
    fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(MAX_NETWORK)), of_address: Arc::default(), rates: Rates::new(CONNECTIONS) }
    }

    fn take(&self, address: IpAddr) -> Option<Slot> {
        // As rates are counted: one customer of IPv6 has more addresses than there are connections.
        let address = network(address);
        if !self.rates.admits(address, 1.0, Instant::now()) {
            return None;
        }
        let one = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let mut counts = self.of_address.lock();
        let count = counts.entry(address).or_insert(0);
        if *count >= MAX_OF_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Slot { address, of_address: Arc::clone(&self.of_address), _one: one })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.of_address.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_NETWORK, MAX_OF_ADDRESS, Slots};

    #[test]
    fn one_customer_of_ipv6_has_the_connections_of_one_address() {
        let slots = Slots::new();
        let address = |last: usize| format!("2001:db8:1:2::{last:x}").parse().expect("ip");
        let mut held: Vec<_> = (0..MAX_NETWORK).map_while(|last| slots.take(address(last))).collect();
        assert_eq!(held.len(), MAX_OF_ADDRESS);
        let neighbour = slots.take("2001:db8:1:3::1".parse().expect("ip"));
        assert!(neighbour.is_some() && slots.take(address(1)).is_none());
        held.pop();
        assert!(slots.take(address(1)).is_some());
        drop((held, neighbour));
        assert!(slots.of_address.lock().is_empty());
    }

    #[test]
    fn an_address_that_comes_again_and_again_is_held_to_a_rate() {
        let slots = Slots::new();
        let address = "192.0.2.1".parse().expect("ip");
        let taken = (0..10_000).filter(|_| slots.take(address).is_some()).count();
        // What it may at once, and what comes back to it meanwhile.
        assert!((200..400).contains(&taken), "{taken}");
        assert!(slots.take("192.0.2.2".parse().expect("ip")).is_some());
    }
}
