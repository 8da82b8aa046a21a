//! What hostile clients of the management interface cost a guest: the p99 of its requests while they are at it, beside its p99 in peace.
//!
//! They come over the network, without a token, and over the port of the metrics, where nobody needs one. (The local socket is root's, who
//! has simpler ways.) They run on processor time that nobody else wants (`SCHED_IDLE`): what counts is what the daemon spends on them, not what they spend themselves. Peace and war take
//! turns, and the row is the median of the pairs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lamina_contract::units::ByteSize;
use lamina_harness::{Daemon, DaemonOptions, HarnessError, Place, VolumeInfo};
use lamina_journeys::drain;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::load::{self, Load, Order, Way};
use crate::report::{Goal, Report};
use crate::settings::Settings;

/// Bystanders, so that lists and metrics have something to say.
const VOLUMES: usize = 100;
/// Of a second in peace and a second at war.
const PAIRS: usize = 31;
/// How long a client waits for an answer before it comes anew.
const PATIENCE: Duration = Duration::from_secs(2);

/// Something that clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing: what the rest is to be read beside.
    Absent,
    /// Calls as fast as they are answered.
    Flooding,
    /// A byte each 100 ms, on as many connections as there may be.
    Slow,
    /// Heads and bodies without an end.
    Oversized,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Absent, Self::Flooding, Self::Slow, Self::Oversized];

    fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Flooding => "flooding",
            Self::Slow => "slow",
            Self::Oversized => "oversized",
        }
    }

    fn clients(self) -> usize {
        match self {
            Self::Absent => 0,
            Self::Flooding => 16,
            Self::Slow => 120,
            Self::Oversized => 16,
        }
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Where clients go.
#[derive(Clone)]
struct Doors {
    network: SocketAddr,
    metrics: SocketAddr,
    trusting: Arc<ClientConfig>,
}

/// What they do there, and what they got done.
struct Attack<'a> {
    doors: &'a Doors,
    kind: Kind,
    over: AtomicBool,
    /// Calls that were answered, or connections that were ended.
    answers: AtomicU64,
}

impl Attack<'_> {
    fn connect(&self, client: usize) -> std::io::Result<(Box<dyn Stream>, &'static str)> {
        let at = |address: &SocketAddr| {
            let stream = TcpStream::connect_timeout(address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok::<_, std::io::Error>(stream)
        };
        if client.is_multiple_of(2) {
            return Ok((Box::new(at(&self.doors.metrics)?), "/metrics"));
        }
        let stream = at(&self.doors.network)?;
        let name = "localhost".try_into().map_err(std::io::Error::other)?;
        let session = ClientConnection::new(Arc::clone(&self.doors.trusting), name).map_err(std::io::Error::other)?;
        Ok((Box::new(StreamOwned::new(session, stream)), "/api/v1/volumes?limit=1000"))
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// What one client does until it is over; an error is an end of its connection, and it comes anew.
    fn client(&self, client: usize) {
        stand_back();
        while !self.is_over() {
            if self.connection(client).is_err() {
                self.answers.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn connection(&self, client: usize) -> std::io::Result<()> {
        let (mut stream, path) = self.connect(client)?;
        match self.kind {
            Kind::Absent => {}
            Kind::Flooding => {
                let call = format!("GET {path} HTTP/1.1\r\nHost: lamina\r\n\r\n");
                let mut buffer = vec![0; 64 << 10];
                while !self.is_over() {
                    stream.write_all(call.as_bytes())?;
                    // Whole answers or parts: what matters is that it goes on asking.
                    if stream.read(&mut buffer)? == 0 {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                    self.answers.fetch_add(1, Ordering::Relaxed);
                }
            }
            Kind::Slow => {
                let head = format!("POST {path} HTTP/1.1\r\nHost: lamina\r\nContent-Length: 60000\r\n\r\n");
                for byte in head.bytes().chain(std::iter::repeat(b' ')) {
                    if self.is_over() {
                        break;
                    }
                    stream.write_all(&[byte])?;
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
            Kind::Oversized => {
                let head = format!("POST {path} HTTP/1.1\r\nHost: lamina\r\nContent-Length: {}\r\n", 1_u64 << 40);
                stream.write_all(head.as_bytes())?;
                // Half of them never end their head.
                if client.is_multiple_of(4) {
                    stream.write_all(b"\r\n")?;
                }
                let piece = [b'x'; 16 << 10];
                while !self.is_over() {
                    stream.write_all(&piece)?;
                }
            }
        }
        Ok(())
    }
}

impl Doors {
    /// Has a daemon listen to the network, with a certificate of its own, and for scrapers.
    fn of(directory: &Path, options: &mut DaemonOptions) -> Result<Self, HarnessError> {
        let port = || Daemon::free_port().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let (network, metrics) = (port()?, port()?);
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
        let own = own.map_err(|error| HarnessError::file("make a certificate in", directory)(std::io::Error::other(error)))?;
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            let written = std::fs::write(&path, text);
            let kept = written.and_then(|()| std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)));
            kept.map_err(HarnessError::file("write", &path))?;
            Ok::<_, HarnessError>(path.display().to_string())
        };
        let (certificate, key) = (write("server.pem", own.cert.pem())?, write("server.key", own.signing_key.serialize_pem())?);
        let text = format!("api_listen: {network}\napi_certificate: {certificate}\napi_key: {key}\n");
        options.extra.extend(["--config".to_owned(), write("lamina.yaml", text)?]);
        options.extra.extend(["--metrics-listen".to_owned(), metrics.to_string()]);
        let mut roots = RootCertStore::empty();
        let trusted = roots.add(own.cert.der().clone());
        trusted.map_err(|error| HarnessError::file("trust a certificate of", directory)(std::io::Error::other(error)))?;
        let trusting = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Self { network, metrics, trusting: Arc::new(trusting) })
    }
}

/// Only what processor time nobody else wants.
fn stand_back() {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: the calling thread's own policy, with a parameter that lives on the stack.
    #[expect(unsafe_code, reason = "no crate of ours has this call")]
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameter) };
}

pub(crate) fn run(settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    for kind in Kind::ALL {
        for way in [Way::Read, Way::Write] {
            // A place each: a minute of writes are tens of gigabytes.
            row(Place::new()?.path(), (kind, way), settings, report)?;
        }
    }
    Ok(())
}

fn row(directory: &Path, (kind, way): (Kind, Way), settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    let mut options = DaemonOptions::six_drives(directory)?;
    options.journal = Some(ByteSize(1 << 30));
    options.cache = Some(ByteSize(512 << 20));
    options.memory = Some(ByteSize(512 << 20));
    let doors = Doors::of(directory, &mut options)?;
    let daemon = Daemon::start(options)?;
    for number in 0..VOLUMES {
        daemon.create_volume(&format!("bystander-{number}"), ByteSize(64 << 20))?;
    }
    let guest = daemon.create_volume("guest", ByteSize(1 << 30))?;
    // One request after the other: a guest that takes all processors by itself has no latency to lose.
    let load = Load {
        way,
        order: Order::Random,
        bytes: 4096,
        depth: 1,
        set: 128 << 20,
        time: Duration::from_secs(1),
        warm_up: Duration::from_millis(200),
        poll: settings.poll,
    };
    let fill = Load { way: Way::Write, order: Order::Sequential, bytes: 1 << 20, time: Duration::from_secs(3), ..load };
    load::run(&guest.socket, &fill, 1)?;
    drain(&daemon, &["guest"], Duration::from_secs(60))?;
    let war = War { doors: &doors, guest: &guest, kind, pairs: if settings.quick { 1 } else { PAIRS } };
    war.row(if way == Way::Read { "reads" } else { "writes" }, &load, report)
}

/// One kind of client against one kind of guest.
struct War<'a> {
    doors: &'a Doors,
    guest: &'a VolumeInfo,
    kind: Kind,
    pairs: usize,
}

impl War<'_> {
    fn row(&self, what: &str, load: &Load, report: &mut Report) -> Result<(), HarnessError> {
        let mut ratios = Vec::new();
        let mut answers = 0;
        for pair in 0..self.pairs {
            let measure = |seed: usize| load::run(&self.guest.socket, load, seed as u64).map(|m| m.latency.quantile(0.99));
            let (peace, war) = if pair % 2 == 0 {
                let peace = measure(pair)?;
                (peace, self.under_attack(&mut answers, || measure(pair + 100))?)
            } else {
                let war = self.under_attack(&mut answers, || measure(pair + 100))?;
                (measure(pair)?, war)
            };
            ratios.push(war.as_secs_f64() / peace.as_secs_f64());
        }
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (ratios[0], ratios[self.pairs - 1]);
        let note = format!(
            "median of {} pairs, {least:.2} to {most:.2}; {answers} answers to {} clients",
            self.pairs,
            self.kind.clients()
        );
        let name = format!("p99 of a guest's {what}, {} clients / none", self.kind.name());
        let goal = if self.kind == Kind::Absent { Goal::None } else { Goal::AtMost(1.10) };
        report.row(name, ratios[self.pairs / 2], "×", goal, note);
        Ok(())
    }

    fn under_attack<T>(&self, answers: &mut u64, measure: impl FnOnce() -> Result<T, HarnessError>) -> Result<T, HarnessError> {
        let attack = Attack { doors: self.doors, kind: self.kind, over: AtomicBool::new(false), answers: AtomicU64::new(0) };
        let measured = std::thread::scope(|scope| {
            for client in 0..self.kind.clients() {
                let attack = &attack;
                scope.spawn(move || attack.client(client));
            }
            let measured = measure();
            attack.over.store(true, Ordering::Relaxed);
            measured
        });
        *answers += attack.answers.into_inner();
        measured
    }
}
