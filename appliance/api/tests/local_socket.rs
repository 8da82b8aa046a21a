//! The interface over a real Unix socket, with a small appliance behind it: what callers are told, and what bad callers cannot do.

mod fake_appliance;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lamina_api::client::{Client, ClientError};
use lamina_api::listener::{LocalListener, MetricsListener};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::routes::{self, Interface};
use lamina_api::volume::CreateVolume;
use lamina_contract::VolumeName;
use tempfile::TempDir;
use tokio::net::TcpSocket;

use fake_appliance::FakeAppliance;

struct Served {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
    _dir: TempDir,
}

fn serve() -> Served {
    let dir = TempDir::new().expect("tempdir");
    let socket = dir.path().join("lamina.sock");
    std::fs::write(&socket, b"left by a crash").expect("write");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let listener = LocalListener::bind(&socket).expect("bind");
    runtime.spawn(listener.serve(routes::router(Arc::new(FakeAppliance::default()))));
    Served { socket, runtime, _dir: dir }
}

/// Sends raw bytes, returns the answer's first line and everything.
fn raw(served: &Served, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(&served.socket).expect("connect");
    // The server may answer and close before everything was sent.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn calls_and_refusals_reach_the_caller() {
    let served = serve();
    let client = Client::new(&served.socket);
    served.runtime.block_on(async {
        let request = CreateVolume { name: "b".to_owned(), size_bytes: 4096, ..CreateVolume::default() };
        assert_eq!(client.create(&request).await.expect("created").name, "b");
        assert_eq!(client.volumes().await.expect("list").volumes.len(), 1);
        assert_eq!(client.metrics().await.expect("metrics"), "lamina_up 1\n");
        client.delete(&VolumeName::new("b").expect("name"), false).await.expect("deleted");
        let missing = client.volume(&VolumeName::new("zz").expect("name")).await;
        assert!(matches!(missing, Err(ClientError::Refused(problem)) if problem.kind == ProblemKind::NotFound));
    });
}

#[test]
fn a_panic_behind_the_interface_is_one_callers_500() {
    let served = serve();
    let client = Client::new(&served.socket);
    served.runtime.block_on(async {
        let failed = client.volume(&VolumeName::new("panic").expect("name")).await;
        assert!(matches!(failed, Err(ClientError::Refused(problem)) if problem.kind == ProblemKind::Internal));
        assert!(client.version().await.is_ok());
    });
}

#[test]
fn the_socket_is_its_owners_only_and_goes_with_the_server() {
    let served = serve();
    let mode = std::fs::metadata(&served.socket).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let Served { socket, runtime, _dir } = served;
    runtime.shutdown_timeout(Duration::from_secs(5));
    assert!(!socket.exists());
}

#[test]
fn bad_requests_are_problems_with_the_right_status() {
    let served = serve();
    let large = format!(
        "POST /api/v1/volumes HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{}",
        2 << 20,
        "x".repeat(2 << 20)
    );
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let post = |body: &str| {
        format!("POST /api/v1/volumes HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let line = |line: &str| format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    for (request, status) in [
        (line("GET /nothing"), "404"),
        (line("PATCH /api/v1/volumes"), "405"),
        (line("GET /api/v1/volumes/NOT%2Fa..name"), "400"),
        (post("{"), "400"),
        (post(r#"{"name":"a","size_bytes":1,"colour":"red"}"#), "400"),
        (post(r#"{"name":"a","size_bytes":-1}"#), "400"),
        (post(&deep), "400"),
        (large, "413"),
        ("nonsense\r\n\r\n".to_owned(), "400"),
        (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(100_000)), "4"),
    ] {
        let answer = raw(&served, request.as_bytes());
        let head: String = request.chars().take(60).collect();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {}", answer.lines().next().unwrap_or_default());
    }
    assert!(raw(&served, post("{").as_bytes()).contains(Problem::MEDIA_TYPE));
}

#[test]
fn silent_callers_keep_others_out_for_seconds_at_most() {
    let served = serve();
    // More than there are slots: the next caller waits until the silent ones are put out.
    let _silent: Vec<_> = (0..70).map(|_| UnixStream::connect(&served.socket).expect("connect")).collect();
    let began = Instant::now();
    served.runtime.block_on(Client::new(&served.socket).version()).expect("answered");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

/// A served metrics address.
struct Metrics {
    address: SocketAddr,
    fake: Arc<FakeAppliance>,
    runtime: tokio::runtime::Runtime,
}

impl Metrics {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let listener = MetricsListener::bind("127.0.0.1:0".parse().expect("address")).expect("bind");
        let (address, fake) = (listener.address().expect("address"), Arc::new(FakeAppliance::default()));
        let guard = runtime.enter();
        runtime.spawn(listener.serve(Interface::new(Arc::clone(&fake) as Arc<_>, None).metrics_router()));
        drop(guard);
        Self { address, fake, runtime }
    }

    /// The whole answer.
    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(15)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// A scraper that has heard that it is answered, has room for little, and reads no further.
    fn slow_scraper(&self) -> TcpStream {
        let stream = self.runtime.block_on(async {
            let socket = TcpSocket::new_v4().expect("socket");
            socket.set_recv_buffer_size(4096).expect("small");
            socket.connect(self.address).await.expect("connect").into_std().expect("a stream")
        });
        stream.set_nonblocking(false).expect("blocks");
        write!(&stream, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").expect("send");
        let mut status = [0; 12];
        (&stream).read_exact(&mut status).expect("an answer");
        assert_eq!(&status, b"HTTP/1.1 200");
        stream
    }
}

#[test]
fn scrapers_that_read_slowly_take_the_metrics_from_nobody() {
    let metrics = Metrics::new();
    // More than the system takes off our hands.
    metrics.fake.metrics_comment.store(16 << 20, Ordering::Relaxed);
    let slow = |_| {
        let stream = metrics.slow_scraper();
        // The next is answered another page.
        std::thread::sleep(Duration::from_millis(1100));
        stream
    };
    let _slow: Vec<_> = (0..6).map(slow).collect();
    assert_eq!(metrics.fake.metrics_made.load(Ordering::Relaxed), 4, "pages in memory are few");
    for _ in 0..3 {
        let answer = metrics.get("/metrics").expect("answered");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.len() > 16 << 20, "{:.80}", answer);
    }
}

#[test]
fn metrics_are_served_on_loopback_addresses_only() {
    assert!(MetricsListener::bind("0.0.0.0:0".parse().expect("address")).is_err());
    let metrics = Metrics::new();
    for (path, status, text) in [("/metrics", "200", "lamina_up 1"), ("/api/v1/volumes", "404", "problem")] {
        let answer = metrics.get(path).expect("answered");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(text), "{answer}");
    }
}

#[test]
fn a_flood_of_scrapes_waits_for_its_turns_and_keeps_no_scraper_out() {
    let metrics = Metrics::new();
    let (over, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    // One of more than the connections that are served at a time; when it is closed it comes anew.
    let connection = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(metrics.address)?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        let mut answer = [0; 4096];
        while !over.load(Ordering::Relaxed) {
            write!(stream, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")?;
            let bytes = loop {
                match stream.read(&mut answer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock && !over.load(Ordering::Relaxed) => {}
                    read => break read?,
                }
            };
            if bytes == 0 {
                break;
            }
            assert!(answer[..bytes].starts_with(b"HTTP/1.1 200"), "nobody is refused");
            answers.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let began = Instant::now();
    let (answer, wait) = std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _ = connection();
                }
            });
        }
        // What it may at once is used up.
        std::thread::sleep(Duration::from_secs(2));
        let asked = Instant::now();
        let answer = (metrics.get("/metrics"), asked.elapsed());
        over.store(true, Ordering::Relaxed);
        answer
    });
    // Those before it are answered in a fifth of a second each.
    let answer = answer.unwrap_or_else(|error| panic!("{error} after {wait:?}"));
    assert!(answer.starts_with("HTTP/1.1 200") && wait < Duration::from_secs(15), "{wait:?}: {answer}");
    let answered = answers.load(Ordering::Relaxed);
    let most = 20 + 5 * (began.elapsed().as_secs() + 1);
    assert!((20..=most).contains(&answered), "{answered} answers, {most} at most");
}
