//! The interface over the local socket, from the caller's side.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use lamina_contract::VolumeName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::problem::Problem;
use crate::status::{Status, Version};
use crate::target::TargetList;
use crate::volume::{CreateVolume, Volume, VolumeList};
use crate::{MAX_BODY_BYTES, paths};

/// Longer than the daemon's own patience with a call, so that its answer comes first.
const PATIENCE: Duration = Duration::from_secs(75);

/// Answers may be larger than requests: ten thousand volumes.
const MAX_ANSWER_BYTES: usize = 8 * MAX_BODY_BYTES;

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("no daemon answers at {}", socket.display())]
    Unreachable {
        /// Where.
        socket: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the daemon broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer in time.
    #[error("the daemon did not answer within {} s", after.as_secs())]
    Slow {
        /// How long was waited.
        after: Duration,
    },
    /// An answer that this release does not understand.
    #[error("the daemon's answer (HTTP {status}) is not understood; do both have the same release?")]
    Strange {
        /// Its HTTP status.
        status: u16,
        /// Why.
        #[source]
        cause: serde_json::Error,
    },
    /// The daemon refused or failed.
    #[error("{}", .0.detail)]
    Refused(Problem),
}

/// Calls a daemon; each call is its own connection.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon that listens at `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Release and interface.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.ask(Method::GET, paths::VERSION, None::<&()>).await
    }

    /// Everything at a glance.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask(Method::GET, paths::STATUS, None::<&()>).await
    }

    /// All volumes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn volumes(&self) -> Result<VolumeList, ClientError> {
        self.ask(Method::GET, paths::VOLUMES, None::<&()>).await
    }

    /// One volume.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn volume(&self, name: &VolumeName) -> Result<Volume, ClientError> {
        self.ask(Method::GET, &paths::volume(name), None::<&()>).await
    }

    /// Makes a volume and attaches it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create(&self, request: &CreateVolume) -> Result<Volume, ClientError> {
        self.ask(Method::POST, paths::VOLUMES, Some(request)).await
    }

    /// Deletes a volume that no guest uses.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete(&self, name: &VolumeName) -> Result<(), ClientError> {
        self.bytes(Method::DELETE, &paths::volume(name), None::<&()>).await.map(|_| ())
    }

    /// Serves a volume on its socket.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn attach(&self, name: &VolumeName) -> Result<Volume, ClientError> {
        self.ask(Method::POST, &paths::volume_attach(name), None::<&()>).await
    }

    /// Stops serving a volume.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn detach(&self, name: &VolumeName) -> Result<Volume, ClientError> {
        self.ask(Method::POST, &paths::volume_detach(name), None::<&()>).await
    }

    /// The members of the store.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn targets(&self) -> Result<TargetList, ClientError> {
        self.ask(Method::GET, paths::TARGETS, None::<&()>).await
    }

    /// Prometheus text.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let (_, bytes) = self.bytes(Method::GET, paths::METRICS, None::<&()>).await?;
        String::from_utf8(bytes.to_vec()).map_err(|error| ClientError::Broken(Box::new(error)))
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<T, ClientError> {
        let (status, bytes) = self.bytes(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|cause| ClientError::Strange { status: status.as_u16(), cause })
    }

    async fn bytes(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<(StatusCode, Bytes), ClientError> {
        let body = match body {
            Some(body) => Bytes::from(serde_json::to_vec(body).map_err(|error| ClientError::Broken(Box::new(error)))?),
            None => Bytes::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "lamina")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Broken(Box::new(error)))?;
        let answer = tokio::time::timeout(PATIENCE, self.exchange(request)).await;
        let (status, bytes) = answer.unwrap_or(Err(ClientError::Slow { after: PATIENCE }))?;
        if status.is_success() {
            return Ok((status, bytes));
        }
        match serde_json::from_slice(&bytes) {
            Ok(problem) => Err(ClientError::Refused(problem)),
            Err(cause) => Err(ClientError::Strange { status: status.as_u16(), cause }),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ClientError> {
        let unreachable = |cause| ClientError::Unreachable { socket: self.socket.clone(), cause };
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let broken = |error: hyper::Error| ClientError::Broken(Box::new(error));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(ClientError::Broken)?.to_bytes();
        driver.abort();
        Ok((status, bytes))
    }
}
