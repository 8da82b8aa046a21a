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

use crate::job::{Job, MAX_WAIT_SECONDS, Outcome};
use crate::name::JobId;
use crate::page::MAX_LIMIT;
use crate::problem::Problem;
use crate::snapshot::Rollback;
use crate::status::{Status, Version};
use crate::target::TargetList;
use crate::volume::{ChangeVolume, CreateVolume, Volume, VolumeList};
use crate::{MAX_BODY_BYTES, paths};

/// Longer than the daemon's own patience with a call, so that its answer comes first.
const PATIENCE: Duration = Duration::from_secs(75);

/// Before a daemon that has too much to do is asked again, as its `Retry-After` says.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

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

/// A body on its way.
struct Sent {
    media_type: &'static str,
    body: Bytes,
}

impl Sent {
    fn nothing() -> Self {
        Self { media_type: "application/json", body: Bytes::new() }
    }

    fn json(body: &impl Serialize) -> Result<Self, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Broken(Box::new(error)))?;
        Ok(Self { media_type: "application/json", body: Bytes::from(body) })
    }
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
        self.get(paths::VERSION).await
    }

    /// Everything at a glance.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get(paths::STATUS).await
    }

    /// All volumes, however many pages that takes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn volumes(&self) -> Result<VolumeList, ClientError> {
        let mut all = VolumeList { volumes: Vec::new(), next: None };
        loop {
            let page: VolumeList = self.get(&paged(paths::VOLUMES, all.next.as_deref())).await?;
            all.volumes.extend(page.volumes);
            all.next = page.next;
            if all.next.is_none() {
                return Ok(all);
            }
        }
    }

    /// One volume.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn volume(&self, name: &VolumeName) -> Result<Volume, ClientError> {
        self.get(&paths::volume(name)).await
    }

    /// Makes a volume and attaches it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create(&self, request: &CreateVolume) -> Result<Volume, ClientError> {
        self.post(paths::VOLUMES, request).await
    }

    /// Changes a volume.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn change(&self, name: &VolumeName, change: &ChangeVolume) -> Result<Volume, ClientError> {
        self.patch(&paths::volume(name), change).await
    }

    /// Deletes a volume that no guest uses, with its snapshots if `snapshots` says so.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete(&self, name: &VolumeName, snapshots: bool) -> Result<(), ClientError> {
        self.remove(&format!("{}?snapshots={snapshots}", paths::volume(name))).await
    }

    /// Serves a volume on its socket.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn attach(&self, name: &VolumeName) -> Result<Volume, ClientError> {
        self.ask(Method::POST, &paths::of_volume(name, "attach"), None::<&()>).await
    }

    /// Stops serving a volume.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn detach(&self, name: &VolumeName) -> Result<Volume, ClientError> {
        self.ask(Method::POST, &paths::of_volume(name, "detach"), None::<&()>).await
    }

    /// Goes back. `path` is [`paths::of_volume`] or [`paths::of_vm`] with `rollback`; `T` is what is answered at once.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rollback<T: DeserializeOwned>(&self, path: &str, request: &Rollback) -> Result<Outcome<T>, ClientError> {
        let (status, bytes) = self.bytes(Method::POST, path, Sent::json(request)?).await?;
        let strange = |cause| ClientError::Strange { status: status.as_u16(), cause };
        match status {
            StatusCode::ACCEPTED => serde_json::from_slice(&bytes).map(|job| Outcome::Job(Box::new(job))).map_err(strange),
            _ => serde_json::from_slice(&bytes).map(Outcome::Done).map_err(strange),
        }
    }

    /// A job, when it has ended or after `wait`, at most 30 s.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn job(&self, id: JobId, wait: Duration) -> Result<Job, ClientError> {
        self.get(&format!("{}?wait={}", paths::job(id), wait.as_secs().min(MAX_WAIT_SECONDS))).await
    }

    /// Reads bytes of a volume that no guest is connected to, up to [`crate::data::MAX_DATA_BYTES`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn read_data(&self, name: &VolumeName, offset: u64, length: u64) -> Result<Bytes, ClientError> {
        let path = format!("{}?offset={offset}&length={length}", paths::of_volume(name, "data"));
        self.bytes(Method::GET, &path, Sent::nothing()).await.map(|(_, bytes)| bytes)
    }

    /// Writes bytes of a volume that no guest is connected to, up to [`crate::data::MAX_DATA_BYTES`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn write_data(&self, name: &VolumeName, offset: u64, bytes: Bytes) -> Result<(), ClientError> {
        let path = format!("{}?offset={offset}", paths::of_volume(name, "data"));
        let sent = Sent { media_type: "application/octet-stream", body: bytes };
        self.bytes(Method::PUT, &path, sent).await.map(|_| ())
    }

    /// What is at `path`, which may have a query: one thing, or one page of a list.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    /// Makes something, or has something done.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, request: &impl Serialize) -> Result<T, ClientError> {
        self.ask(Method::POST, path, Some(request)).await
    }

    /// Changes something.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn patch<T: DeserializeOwned>(&self, path: &str, change: &impl Serialize) -> Result<T, ClientError> {
        self.ask(Method::PATCH, path, Some(change)).await
    }

    /// Deletes something.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove(&self, path: &str) -> Result<(), ClientError> {
        self.bytes(Method::DELETE, path, Sent::nothing()).await.map(|_| ())
    }

    /// The members of the store.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn targets(&self) -> Result<TargetList, ClientError> {
        self.get(paths::TARGETS).await
    }

    /// Prometheus text.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let (_, bytes) = self.bytes(Method::GET, paths::METRICS, Sent::nothing()).await?;
        String::from_utf8(bytes.to_vec()).map_err(|error| ClientError::Broken(Box::new(error)))
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<T, ClientError> {
        let sent = body.map_or_else(|| Ok(Sent::nothing()), Sent::json)?;
        let (status, bytes) = self.bytes(method, path, sent).await?;
        serde_json::from_slice(&bytes).map_err(|cause| ClientError::Strange { status: status.as_u16(), cause })
    }

    async fn bytes(&self, method: Method, path: &str, sent: Sent) -> Result<(StatusCode, Bytes), ClientError> {
        let patiently = async {
            loop {
                let request = Request::builder()
                    .method(method.clone())
                    .uri(path)
                    .header(header::HOST, "lamina")
                    .header(header::CONTENT_TYPE, sent.media_type)
                    .body(Full::new(sent.body.clone()))
                    .map_err(|error| ClientError::Broken(Box::new(error)))?;
                let answer = self.exchange(request).await;
                // Nothing was done: it may be asked again.
                if !matches!(answer, Ok((StatusCode::TOO_MANY_REQUESTS, _))) {
                    return answer;
                }
                tokio::time::sleep(BUSY_PAUSE).await;
            }
        };
        let answer = tokio::time::timeout(PATIENCE, patiently).await;
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

fn paged(path: &str, cursor: Option<&str>) -> String {
    let cursor = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
    format!("{path}?limit={MAX_LIMIT}{cursor}")
}
