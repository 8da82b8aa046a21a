//! Calls of the interface, over the local socket or TLS, on connections that are kept while they hold.
//!
//! What is safe to do twice is done once more when the connection breaks: reads, writes of bytes at a place, changes that say how things
//! shall be, and POSTs, which carry an `Idempotency-Key`. A daemon that has too much to do is given a moment.

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use lamina_api::MAX_BODY_BYTES;
use lamina_api::data::{Extent, ExtentList};
use lamina_api::job::{Job, JobList, MAX_WAIT_SECONDS, Outcome};
use lamina_api::name::JobId;
use lamina_api::page::MAX_LIMIT;
use lamina_api::paths;
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::schedule::{Schedule, ScheduleList};
use lamina_api::snapshot::{Snapshot, SnapshotList};
use lamina_api::token::{Token, TokenList};
use lamina_api::vm::{Vm, VmList, VmSnapshot, VmSnapshotList};
use lamina_api::volume::{Volume, VolumeList};
use lamina_contract::VolumeName;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::endpoint::{Endpoint, Server};

/// Longer than the daemon's own patience with a call, so that its answer comes first.
const PATIENCE: Duration = Duration::from_secs(75);
/// How long a server elsewhere may take to take a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Answers may be larger than requests: a thousand volumes with all their labels.
const MAX_ANSWER_BYTES: usize = 16 * MAX_BODY_BYTES;
/// How often a daemon that has too much to do is asked again, a second apart: a minute.
const MAX_PAUSES: u32 = 60;

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nobody answers there.
    #[error("no daemon answers at {at}")]
    Unreachable {
        /// Where.
        at: String,
        /// Whether it is a socket of this machine.
        local: bool,
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
    #[error("{}", problem.detail)]
    Refused {
        /// What it says.
        problem: Problem,
        /// What was asked for, without its query.
        path: String,
    },
}

impl CallError {
    /// The kind of a refusal.
    pub(crate) fn kind(&self) -> Option<ProblemKind> {
        match self {
            Self::Refused { problem, .. } => Some(problem.kind),
            _ => None,
        }
    }
}

/// A list that comes in pages.
pub(crate) trait Paged: DeserializeOwned {
    /// What it is a list of.
    type Entry;

    /// A page's entries, and the next page's cursor.
    fn parts(self) -> (Vec<Self::Entry>, Option<String>);
}

macro_rules! paged {
    ($($list:ident . $field:ident : $entry:ident),* $(,)?) => {
        $(impl Paged for $list {
            type Entry = $entry;

            fn parts(self) -> (Vec<$entry>, Option<String>) {
                (self.$field, self.next)
            }
        })*
    };
}

paged! {
    VolumeList.volumes: Volume,
    SnapshotList.snapshots: Snapshot,
    VmList.vms: Vm,
    VmSnapshotList.snapshots: VmSnapshot,
    ScheduleList.schedules: Schedule,
    JobList.jobs: Job,
    TokenList.tokens: Token,
}

/// One request.
struct Call<'a> {
    method: Method,
    path: &'a str,
    media_type: &'static str,
    body: Bytes,
    key: Option<String>,
    tag: Option<&'a str>,
}

/// One answer.
struct Answer {
    status: StatusCode,
    tag: Option<String>,
    body: Bytes,
}

/// Calls a daemon.
#[derive(Debug)]
pub(crate) struct Client {
    endpoint: Endpoint,
    patience: Duration,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Client {
    /// A client of the daemon there; no call takes longer than `limit`.
    pub(crate) fn new(endpoint: Endpoint, limit: Option<Duration>) -> Self {
        Self { endpoint, patience: limit.map_or(PATIENCE, |limit| limit.min(PATIENCE)), idle: Mutex::new(Vec::new()) }
    }

    /// What is at `path`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        parsed(&self.answer(Call::new(Method::GET, path)).await?)
    }

    /// All pages of the list at `path`, which may have a query.
    pub(crate) async fn all<L: Paged>(&self, path: &str) -> Result<Vec<L::Entry>, CallError> {
        let joint = if path.contains('?') { '&' } else { '?' };
        let (mut all, mut cursor) = (Vec::new(), None);
        loop {
            let behind = cursor.map(|cursor: String| format!("&cursor={cursor}")).unwrap_or_default();
            let (entries, next) = self.get::<L>(&format!("{path}{joint}limit={MAX_LIMIT}{behind}")).await?.parts();
            all.extend(entries);
            if next.is_none() {
                return Ok(all);
            }
            cursor = next;
        }
    }

    /// Has something made or done.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, request: &impl Serialize) -> Result<T, CallError> {
        parsed(&self.answer(Call::post(path, json(request)?)).await?)
    }

    /// Has something done that needs no words.
    pub(crate) async fn tell<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        parsed(&self.answer(Call::post(path, Bytes::new())).await?)
    }

    /// Has something done that a job may do.
    pub(crate) async fn begin<T: DeserializeOwned>(&self, path: &str, request: &impl Serialize) -> Result<Outcome<T>, CallError> {
        let answer = self.answer(Call::post(path, json(request)?)).await?;
        if answer.status == StatusCode::ACCEPTED {
            parsed(&answer).map(|job| Outcome::Job(Box::new(job)))
        } else {
            parsed(&answer).map(Outcome::Done)
        }
    }

    /// Changes what is at `path`, which is `T`, to what `change` makes of it. When somebody else changed it meanwhile, once more.
    pub(crate) async fn change<T, C, E>(&self, path: &str, mut change: impl FnMut(T) -> Result<C, E>) -> Result<T, E>
    where
        T: DeserializeOwned,
        C: Serialize,
        E: From<CallError>,
    {
        let mut again = true;
        loop {
            let seen = self.answer(Call::new(Method::GET, path)).await?;
            let wanted = change(parsed(&seen)?)?;
            let call = Call { body: json(&wanted)?, tag: seen.tag.as_deref(), ..Call::new(Method::PATCH, path) };
            match self.answer(call).await {
                Err(error) if again && error.kind() == Some(ProblemKind::PreconditionFailed) => again = false,
                other => return Ok(parsed(&other?)?),
            }
        }
    }

    /// Says how something shall be, whatever it is now.
    pub(crate) async fn set<T: DeserializeOwned>(&self, path: &str, wanted: &impl Serialize) -> Result<T, CallError> {
        parsed(&self.answer(Call { body: json(wanted)?, ..Call::new(Method::PATCH, path) }).await?)
    }

    /// Deletes what is at `path`.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), CallError> {
        self.answer(Call::new(Method::DELETE, path)).await.map(|_| ())
    }

    /// A job, when it has ended or after `wait`.
    pub(crate) async fn job(&self, id: JobId, wait: Duration) -> Result<Job, CallError> {
        self.get(&format!("{}?wait={}", paths::job(id), wait.as_secs().min(MAX_WAIT_SECONDS))).await
    }

    /// One volume.
    pub(crate) async fn volume(&self, name: &VolumeName) -> Result<Volume, CallError> {
        self.get(&paths::volume(name)).await
    }

    /// Runs of a volume that hold data, all of them.
    pub(crate) async fn extents(&self, name: &VolumeName) -> Result<Vec<Extent>, CallError> {
        let (mut all, mut from) = (Vec::new(), 0);
        loop {
            let path = format!("{}?from={from}&limit={MAX_LIMIT}", paths::of_volume(name, "extents"));
            let list: ExtentList = self.get(&path).await?;
            all.extend(list.extents);
            match list.next_from {
                // A part that does not go on would never end.
                Some(next) if next > from => from = next,
                _ => return Ok(all),
            }
        }
    }

    /// Bytes of a volume that no guest is connected to.
    pub(crate) async fn read(&self, name: &VolumeName, offset: u64, length: u64) -> Result<Bytes, CallError> {
        let path = format!("{}?offset={offset}&length={length}", paths::of_volume(name, "data"));
        let body = self.answer(Call::new(Method::GET, &path)).await?.body;
        if body.len() as u64 == length {
            return Ok(body);
        }
        let short = io::Error::new(io::ErrorKind::UnexpectedEof, format!("{} bytes came instead of {length}", body.len()));
        Err(CallError::Broken(Box::new(short)))
    }

    /// Writes bytes of a volume that no guest is connected to; they are durable when this returns.
    pub(crate) async fn write(&self, name: &VolumeName, offset: u64, bytes: Bytes) -> Result<(), CallError> {
        let path = format!("{}?offset={offset}", paths::of_volume(name, "data"));
        let call = Call { body: bytes, media_type: "application/octet-stream", ..Call::new(Method::PUT, &path) };
        self.answer(call).await.map(|_| ())
    }

    /// Prometheus text.
    pub(crate) async fn metrics(&self) -> Result<String, CallError> {
        let answer = self.answer(Call::new(Method::GET, paths::METRICS)).await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    async fn answer(&self, call: Call<'_>) -> Result<Answer, CallError> {
        let mut pauses = 0;
        loop {
            let answer = match self.once(&call).await {
                // A DELETE that was done would be answered with 404 the second time.
                Err(CallError::Broken(_)) if call.method != Method::DELETE => self.once(&call).await?,
                other => other?,
            };
            if answer.status == StatusCode::TOO_MANY_REQUESTS && pauses < MAX_PAUSES {
                pauses += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            if answer.status.is_success() {
                return Ok(answer);
            }
            let path = call.path.split('?').next().unwrap_or_default().to_owned();
            return Err(match serde_json::from_slice(&answer.body) {
                Ok(problem) => CallError::Refused { problem, path },
                Err(cause) => CallError::Strange { status: answer.status.as_u16(), cause },
            });
        }
    }

    async fn once(&self, call: &Call<'_>) -> Result<Answer, CallError> {
        let answer = tokio::time::timeout(self.patience, self.exchange(call)).await;
        answer.unwrap_or(Err(CallError::Slow { after: self.patience }))
    }

    async fn exchange(&self, call: &Call<'_>) -> Result<Answer, CallError> {
        // A kept connection may have gone while a person was asked; a DELETE is not sent twice, so it gets one of its own.
        let mut sender = if call.method == Method::DELETE { self.connect().await? } else { self.sender().await? };
        let response = sender.send_request(self.request(call)?).await.map_err(broken)?;
        let status = response.status();
        let tag = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(CallError::Broken)?.to_bytes();
        self.idle.lock().push(sender);
        Ok(Answer { status, tag, body })
    }

    fn request(&self, call: &Call<'_>) -> Result<Request<Full<Bytes>>, CallError> {
        let mut request = Request::builder().method(&call.method).uri(call.path).header(header::CONTENT_TYPE, call.media_type);
        match &self.endpoint {
            Endpoint::Local(_) => request = request.header(header::HOST, "lamina"),
            Endpoint::Server(server) => {
                let (host, port) = server.host_and_port();
                request = request.header(header::HOST, format!("{host}:{port}"));
                if let Some(token) = &server.token {
                    request = request.header(header::AUTHORIZATION, token.bearer());
                }
            }
        }
        if let Some(key) = &call.key {
            request = request.header("idempotency-key", key);
        }
        if let Some(tag) = call.tag {
            request = request.header(header::IF_MATCH, tag);
        }
        request.body(Full::new(call.body.clone())).map_err(|error| CallError::Broken(Box::new(error)))
    }

    /// A connection that was kept and still holds, or a new one.
    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>, CallError> {
        loop {
            let kept = self.idle.lock().pop();
            match kept {
                Some(mut kept) => {
                    if kept.ready().await.is_ok() {
                        return Ok(kept);
                    }
                }
                None => return self.connect().await,
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, CallError> {
        match &self.endpoint {
            Endpoint::Local(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(|cause| self.unreachable(cause))?;
                shake(stream).await
            }
            Endpoint::Server(server) => {
                let connected = tokio::time::timeout(CONNECT_PATIENCE, secure(server)).await;
                let stream =
                    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|cause| self.unreachable(cause))?;
                shake(stream).await
            }
        }
    }

    fn unreachable(&self, cause: io::Error) -> CallError {
        CallError::Unreachable { at: self.endpoint.to_string(), local: matches!(self.endpoint, Endpoint::Local(_)), cause }
    }
}

async fn secure(server: &Server) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server.host_and_port()).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(server.tls.clone()).connect(server.name.clone(), stream).await
}

async fn shake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<SendRequest<Full<Bytes>>, CallError> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // What it ends with is seen by whoever sends on it.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

fn broken(error: hyper::Error) -> CallError {
    CallError::Broken(Box::new(error))
}

fn json(body: &impl Serialize) -> Result<Bytes, CallError> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| CallError::Broken(Box::new(error)))
}

fn parsed<T: DeserializeOwned>(answer: &Answer) -> Result<T, CallError> {
    serde_json::from_slice(&answer.body).map_err(|cause| CallError::Strange { status: answer.status.as_u16(), cause })
}

impl<'a> Call<'a> {
    fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, media_type: "application/json", body: Bytes::new(), key: None, tag: None }
    }

    /// With a key of 128 random bits, so that doing it twice is doing it once.
    fn post(path: &'a str, body: Bytes) -> Self {
        Self { body, key: Some(format!("{:032x}", rand::random::<u128>())), ..Self::new(Method::POST, path) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Duration;

    use super::Client;
    use crate::endpoint::Endpoint;

    fn answer(stream: &mut UnixStream, answer: &str) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a request");
            head.extend(byte);
        }
        stream.write_all(answer.as_bytes()).expect("answered");
        String::from_utf8(head).expect("text")
    }

    #[test]
    fn a_delete_has_a_connection_of_its_own_and_others_share_one() {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).expect("bind");
        let server = std::thread::spawn(move || {
            let (mut first, _) = listener.accept().expect("a connection");
            let body = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            answer(&mut first, body);
            answer(&mut first, body);
            let (mut second, _) = listener.accept().expect("another connection");
            answer(&mut second, "HTTP/1.1 204 No Content\r\n\r\n")
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let client = Client::new(Endpoint::Local(socket), Some(Duration::from_secs(5)));
        runtime.block_on(async {
            for _ in 0..2 {
                client.get::<serde_json::Value>("/x").await.expect("an answer");
            }
            client.delete("/x").await.expect("deleted");
        });
        assert!(server.join().expect("served").starts_with("DELETE /x"));
    }
}
