//! One connection: HTTP/1.1 with bounds, and an end in good order.
//!
//! Bounds: time to say what is wanted, bytes of headers, time without reading our answer and for reading all of it, age. A request that was
//! begun and not finished in time is answered 408. What a client still sends when we are done is read for a moment, since a socket that is
//! closed on unread bytes takes our answer with it.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use tokio::sync::Semaphore;

use crate::paced::{Deadline, Paced, Patience};
use crate::problem::{Problem, ProblemKind};
use crate::routes::Peer;

/// How long a client may take to say what it wants; also how long an idle connection is kept.
pub(crate) const HEADER_PATIENCE: Duration = Duration::from_secs(10);

/// How long a client may let an answer lie.
const WRITE_PATIENCE: Duration = Duration::from_secs(20);

/// How long a client may take for all of an answer. The largest is the metrics page of a thousand volumes: 24 MiB, 400 KiB/s.
pub(crate) const READ_PATIENCE: Duration = Duration::from_secs(60);

/// How long a connection may live: then whoever it belongs to must show a certificate again.
const MAX_AGE: Duration = Duration::from_secs(600);

/// Bytes of headers that are read before nobody looks at them any more; the routes refuse what is larger than they like with a problem.
const MAX_BUFFER_BYTES: usize = 64 << 10;

/// What is still read from a client when we are done with it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 4 << 20;
/// So much of it at a time, and not more often: nobody is in a hurry any more.
const LINGER_PIECE: usize = 16 << 10;
const LINGER_PAUSE: Duration = Duration::from_millis(20);
/// Connections that are read on at a time; others are closed at once, and may not hear why.
static LINGERING: Semaphore = Semaphore::const_new(16);

/// How long a client that is one too many may take to say what it will not get.
const BUSY_PATIENCE: Duration = Duration::from_secs(1);

/// Serves requests of `peer` until it or we have enough.
pub(crate) async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router, peer: Option<Peer>) {
    serve_with(stream, router, peer, Patience { progress: WRITE_PATIENCE, answer: READ_PATIENCE }).await;
}

async fn serve_with(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    peer: Option<Peer>,
    patience: Patience,
) {
    let deadline = Deadline::default();
    let stream = Paced::new(stream, patience.progress, deadline.clone());
    let routes = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        let (answer, deadline) = (routes.call(request), deadline.clone());
        Box::pin(async move {
            let answer = answer.await;
            deadline.begin(patience.answer);
            answer
        })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_buf_size(MAX_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut old = pin!(tokio::time::sleep(MAX_AGE));
    let ended = poll_fn(|context| {
        if old.as_mut().poll(context).is_ready() {
            // The request that is being answered is the last.
            std::pin::Pin::new(&mut connection).graceful_shutdown();
        }
        connection.poll_without_shutdown(context)
    });
    let ended = aged(ended).await;
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner();
    if let Some(Err(error)) = &ended {
        tracing::debug!(%error, "a connection to the interface ended early");
        if error.is_timeout() && !parts.read_buf.is_empty() {
            let problem = Problem::new(ProblemKind::Timeout, "the request's headers did not arrive in time");
            say(&mut stream, &problem).await;
        }
    }
    linger(&mut stream).await;
}

/// Twice the age is more than any request may take: whatever still hangs then is dropped.
async fn aged<T>(ended: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(MAX_AGE * 2, ended).await.ok()
}

/// Tells a client that is one too many to come again.
pub(crate) async fn turn_away(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut head = Vec::new();
    let heard = async {
        let mut piece = [0; 4096];
        while head.len() < MAX_BUFFER_BYTES && !head.windows(4).any(|end| end == b"\r\n\r\n") {
            match stream.read(&mut piece).await {
                Ok(0) | Err(_) => return false,
                Ok(read) => head.extend_from_slice(piece.get(..read).unwrap_or_default()),
            }
        }
        true
    };
    let heard = tokio::time::timeout(BUSY_PATIENCE, heard).await;
    // Who said nothing is not told anything either.
    if heard == Ok(true) {
        say(&mut stream, &Problem::new(ProblemKind::TooManyRequests, "too many connections").advise("connect again in a second"))
            .await;
    }
    linger(&mut stream).await;
}

/// Writes a problem without the help of HTTP's machinery.
async fn say(stream: &mut (impl AsyncWrite + Unpin), problem: &Problem) {
    let body = serde_json::to_vec(problem).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {} \r\ncontent-type: {}\r\ncontent-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n",
        problem.status,
        Problem::MEDIA_TYPE,
        body.len()
    );
    let said = async {
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await
    };
    // Whoever does not listen is not told.
    let _ = tokio::time::timeout(BUSY_PATIENCE, said).await;
}

async fn linger(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let Ok(_place) = LINGERING.try_acquire() else { return };
    let rest = async {
        stream.shutdown().await?;
        let mut piece = vec![0; LINGER_PIECE];
        let mut left = LINGER_BYTES;
        loop {
            match stream.read(&mut piece).await? {
                0 => return Ok::<(), std::io::Error>(()),
                read => left = left.saturating_sub(read),
            }
            if left == 0 {
                return Ok(());
            }
            tokio::time::sleep(LINGER_PAUSE).await;
        }
    };
    // It is over either way.
    let _ = tokio::time::timeout(LINGER, rest).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use axum::Router;
    use axum::body::{Body, Bytes};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::sync::Semaphore;

    use super::serve_with;
    use crate::answer_body::AnswerBody;
    use crate::paced::Patience;

    const ANSWER_BYTES: usize = 16 << 20;
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    /// Who is let go was so by the second.
    const PATIENCE: Patience = Patience { progress: Duration::from_secs(20), answer: Duration::from_secs(1) };

    /// The other side of a connection with room for little, whose requests are answered while there is one of `places`.
    async fn connected(places: &Arc<Semaphore>) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let socket = TcpSocket::new_v4().expect("socket");
        socket.set_recv_buffer_size(4096).expect("small");
        let client = socket.connect(listener.local_addr().expect("address")).await.expect("connected");
        let (served, _) = listener.accept().await.expect("accepted");
        let places = Arc::clone(places);
        let answer = async move || {
            let place = places.try_acquire_owned().expect("one at a time");
            Body::new(AnswerBody::new(Bytes::from(vec![b'#'; ANSWER_BYTES]), Some(place)))
        };
        let router = Router::new().route("/", axum::routing::get(answer));
        tokio::spawn(serve_with(served, router, None, PATIENCE));
        client
    }

    fn on_a_runtime(test: impl Future<Output = ()>) {
        tokio::runtime::Runtime::new().expect("runtime").block_on(test);
    }

    #[test]
    fn a_trickle_of_reading_does_not_keep_a_place() {
        on_a_runtime(async {
            let places = Arc::new(Semaphore::new(1));
            let mut client = connected(&places).await;
            client.write_all(REQUEST).await.expect("sent");
            let (began, mut piece, mut read) = (Instant::now(), vec![0; 16 << 10], 0);
            while places.available_permits() == 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            while places.available_permits() == 0 && began.elapsed() < Duration::from_secs(10) {
                read += client.read(&mut piece).await.expect("some progress");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}, {read} bytes", began.elapsed());
            assert!(began.elapsed() >= PATIENCE.answer && read > 64 << 10, "it trickled: {:?}, {read} bytes", began.elapsed());
        });
    }

    #[test]
    fn each_answer_of_a_connection_has_its_own_time() {
        on_a_runtime(async {
            let places = Arc::new(Semaphore::new(1));
            let mut client = connected(&places).await;
            for _ in 0..2 {
                client.write_all(REQUEST).await.expect("sent");
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.expect("a head"));
                }
                client.read_exact(&mut vec![0; ANSWER_BYTES]).await.expect("all of it");
                tokio::time::sleep(PATIENCE.answer + Duration::from_millis(100)).await;
            }
        });
    }
}
