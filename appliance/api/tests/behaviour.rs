//! What holds for every call: problems, tags, keys, pages, waiting, and limits against callers who do not behave.

mod fake_appliance;
mod listeners;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake_appliance::FakeAppliance;
use lamina_api::rate::Rate;
use lamina_api::routes::Limits;
use lamina_api::table::ROUTES;
use listeners::{FREE, Listeners, Via, parse, request};

const ADMIN: &str = "authorization: Bearer admin-secret";
const OPERATOR: &str = "authorization: Bearer operator-secret";

fn with_volumes(names: &[&str]) -> Listeners {
    let served = Listeners::new();
    for name in names {
        assert_eq!(served.admin("POST /api/v1/volumes", &format!(r#"{{"name":"{name}","size_bytes":1048576}}"#)).status, 201);
    }
    served
}

#[test]
fn failures_are_problems_with_the_right_status() {
    let served = with_volumes(&["a"]);
    let deep = format!(r#"{{"name":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for (line, body, status, kind) in [
        ("GET /nothing", "", 404, "not-found"),
        ("GET /api/v1/volumes/b", "", 404, "not-found"),
        ("PUT /api/v1/volumes", "", 405, "method-not-allowed"),
        ("GET /api/v1/volumes/NOT", "", 400, "invalid-request"),
        ("GET /api/v1/volumes/%ff", "", 400, "invalid-request"),
        ("GET /api/v1/volumes?colour=red", "", 400, "invalid-request"),
        ("GET /api/v1/volumes?limit=1001", "", 400, "invalid-request"),
        ("GET /api/v1/volumes?limit=%zz", "", 400, "invalid-request"),
        ("GET /api/v1/volumes?cursor=zz", "", 400, "invalid-request"),
        ("GET /api/v1/jobs/1", "", 400, "invalid-request"),
        ("GET /api/v1/jobs/0000000000000001?wait=31", "", 400, "invalid-request"),
        ("POST /api/v1/volumes", "", 400, "invalid-request"),
        ("POST /api/v1/volumes", "{", 400, "invalid-request"),
        ("POST /api/v1/volumes", r#"{"name":"b","size_bytes":4096,"colour":"red"}"#, 400, "invalid-request"),
        ("POST /api/v1/volumes", r#"{"name":"b","size_bytes":4096,"name":"c"}"#, 400, "invalid-request"),
        ("POST /api/v1/volumes", r#"{"name":"b","size_bytes":-1}"#, 400, "invalid-request"),
        ("POST /api/v1/volumes", r#"{"name":"b","size_bytes":1e400}"#, 400, "invalid-request"),
        ("POST /api/v1/volumes", r#"{"name":"b","size_bytes":18446744073709551615}"#, 400, "invalid-request"),
        ("POST /api/v1/volumes", r#"{"name":"b","size_bytes":4097}"#, 400, "invalid-request"),
        ("POST /api/v1/volumes", deep.as_str(), 400, "invalid-request"),
        ("POST /api/v1/volumes", r#"{"name":"a","size_bytes":4096}"#, 409, "conflict"),
        ("POST /api/v1/volumes/a/attach", "{}", 400, "invalid-request"),
        ("POST /api/v1/volumes/a/rollback", "{}", 400, "invalid-request"),
        ("POST /api/v1/volumes/a/rollback", r#"{"at":"yesterday"}"#, 400, "invalid-request"),
        ("POST /api/v1/volumes/a/clones", r#"{"name":"c-{n}","count":1001}"#, 400, "invalid-request"),
        ("GET /api/v1/volumes/a/data?offset=0&length=1048577", "", 400, "invalid-request"),
        ("GET /api/v1/volumes/a/data?offset=1&length=512", "", 400, "invalid-request"),
        ("GET /api/v1/volumes/a/data?offset=1048576&length=512", "", 400, "invalid-request"),
    ] {
        let reply = served.admin(line, body);
        let head: String = body.chars().take(60).collect();
        assert_eq!((reply.status, reply.problem().as_str()), (status, kind), "{line} {head}");
    }
    let bad = served.ask(Via::Local, "POST /api/v1/volumes", &[], b"{\"name\":\"\xff\xfe\",\"size_bytes\":4096}");
    assert_eq!(bad.problem(), "invalid-request");
    let allowed = served.admin("PUT /api/v1/volumes", "");
    assert_eq!(allowed.headers.get("allow").map(String::as_str), Some("GET,HEAD,POST"));
    let bug = served.admin("GET /api/v1/volumes/panic", "");
    assert_eq!((bug.status, bug.problem().as_str()), (500, "internal"));
}

#[test]
fn a_change_may_ask_for_what_its_caller_saw() {
    let served = with_volumes(&["a"]);
    let tag = served.admin("GET /api/v1/volumes/a", "").tag().to_owned();
    assert!(tag.starts_with('"') && tag.len() == 34, "{tag}");
    let ask = |line: &str, header: &str, body: &str| served.ask(Via::Local, line, &[header], body.as_bytes());
    let mine = format!("if-match: {tag}");
    assert_eq!(ask("GET /api/v1/volumes/a", &format!("if-none-match: {tag}"), "").status, 304);
    let changed = ask("PATCH /api/v1/volumes/a", &mine, r#"{"labels":{"x":"y"}}"#);
    assert_eq!(changed.status, 200);
    assert_ne!(changed.tag(), tag);
    assert_eq!(ask("GET /api/v1/volumes/a", &format!("if-none-match: {tag}"), "").status, 200);
    for line in ["PATCH /api/v1/volumes/a", "DELETE /api/v1/volumes/a"] {
        let body = if line.starts_with("PATCH") { r#"{"labels":{}}"# } else { "" };
        let late = ask(line, &mine, body);
        assert_eq!((late.status, late.problem().as_str()), (412, "precondition-failed"), "{line}");
        assert_eq!(ask(line, "if-match: nonsense", body).status, 400, "{line}");
    }
    assert_eq!(served.admin("GET /api/v1/volumes/a", "").json()["labels"]["x"], "y");
    assert_eq!(ask("POST /api/v1/volumes/a/attach", "if-match: *", "").status, 400);
    assert_eq!(ask("DELETE /api/v1/volumes/a", "if-match: \"other\", *", "").status, 400);
    assert_eq!(ask("DELETE /api/v1/volumes/a", "if-match: *", "").status, 204);
    assert_eq!(ask("DELETE /api/v1/volumes/a", "if-match: *", "").status, 404);
}

#[test]
fn of_many_changes_of_one_state_one_wins() {
    let served = with_volumes(&["a"]);
    let tag = format!("if-match: {}", served.admin("GET /api/v1/volumes/a", "").tag());
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let one = |n: u32| {
            let (served, tag) = (&served, &tag);
            scope.spawn(move || {
                let body = format!(r#"{{"labels":{{"winner":"{n}"}}}}"#);
                served.ask(Via::Local, "PATCH /api/v1/volumes/a", &[tag], body.as_bytes()).status
            })
        };
        let threads: Vec<_> = (0..16).map(one).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 412)), "{statuses:?}");
}

#[test]
fn a_request_with_a_key_is_done_once_and_answered_again() {
    let served = with_volumes(&["a"]);
    let post =
        |key: &str, line: &str, body: &str| served.ask(Via::Local, line, &[&format!("idempotency-key: {key}")], body.as_bytes());
    let snapshot = r#"{"name":"s"}"#;
    let line = "POST /api/v1/volumes/a/snapshots";
    let first = post("k1", line, snapshot);
    let again = post("k1", line, snapshot);
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!((&first.body, first.tag()), (&again.body, again.tag()));
    assert_eq!(again.headers.get("idempotency-replayed").map(String::as_str), Some("true"));
    assert_eq!(post("k2", line, snapshot).status, 409);
    for (line, body) in [(line, r#"{"name":"t"}"#), ("POST /api/v1/volumes/a/detach", "")] {
        let other = post("k1", line, body);
        assert_eq!((other.status, other.problem().as_str()), (422, "key-reused"), "{line}");
    }
    // The key is its caller's own.
    let other = ["authorization: Bearer operator-secret", "idempotency-key: k1"];
    assert_eq!(served.ask(Via::Network, line, &other, br#"{"name":"u"}"#).status, 201);
    // What failed may be done yet.
    assert_eq!(post("k3", "POST /api/v1/volumes/b/attach", "").status, 404);
    assert_eq!(served.admin("POST /api/v1/volumes", r#"{"name":"b","size_bytes":4096}"#).status, 201);
    assert_eq!(post("k3", "POST /api/v1/volumes/b/attach", "").status, 200);
    for bad in ["", "\u{e4}", &"k".repeat(256)] {
        assert_eq!(post(bad, line, snapshot).status, 400, "{bad}");
    }
    // A secret is not kept, and not made twice either.
    let token = r#"{"name":"ci","role":"viewer"}"#;
    assert_eq!(post("k4", "POST /api/v1/tokens", token).status, 201);
    assert_eq!(post("k4", "POST /api/v1/tokens", token).problem(), "conflict");
    assert!(!format!("{:?}", served.fake.answers()).contains("secret"));
}

#[test]
fn keys_outlive_a_restart_and_end_after_a_day() {
    let served = with_volumes(&["a"]);
    let key = ["idempotency-key: k"];
    let line = "POST /api/v1/volumes/a/snapshots";
    let first = served.ask(Via::Local, line, &key, br#"{"name":"s"}"#);
    // Another one that began and was cut off.
    let mut cut = served.fake.answers().pop().expect("kept");
    let body = br#"{"name":"panic","size_bytes":4096}"#;
    let fake = Arc::clone(&served.fake);
    drop(served);
    let served = Listeners::with(Arc::clone(&fake), FREE);
    assert_eq!(served.ask(Via::Local, line, &key, br#"{"name":"s"}"#).body, first.body);
    drop(served);
    cut.answer = None;
    lamina_api::appliance::Access::keep_answer(&*fake, &cut).expect("kept");
    let served = Listeners::with(Arc::clone(&fake), FREE);
    let unknown = served.ask(Via::Local, line, &key, br#"{"name":"s"}"#);
    assert_eq!(unknown.problem(), "conflict");
    assert!(unknown.json()["advice"].as_str().is_some_and(|advice| advice.contains("look at the state")));
    fake.elapsed_ms.store(86_400_000, Ordering::Relaxed);
    assert_eq!(served.ask(Via::Local, line, &key, br#"{"name":"later"}"#).status, 201);
    // A panic is as a cut: nobody knows how far it came.
    assert_eq!(served.ask(Via::Local, "POST /api/v1/volumes", &["idempotency-key: p"], body).status, 201);
    let key = ["idempotency-key: q"];
    assert_eq!(served.ask(Via::Local, "POST /api/v1/volumes/panic/snapshots", &key, br#"{"name":"s"}"#).status, 500);
    let again = served.ask(Via::Local, "POST /api/v1/volumes/panic/snapshots", &key, br#"{"name":"s"}"#);
    assert_eq!(again.problem(), "conflict");
}

#[test]
fn lists_come_in_pages_and_by_label() {
    let served = Listeners::new();
    for n in 0..25 {
        let label = if n % 2 == 0 { "even" } else { "odd" };
        let body = format!(r#"{{"name":"v{n:02}","size_bytes":4096,"labels":{{"parity":"{label}"}}}}"#);
        assert_eq!(served.admin("POST /api/v1/volumes", &body).status, 201);
    }
    assert_eq!(served.admin("PATCH /api/v1/volumes/v03", r#"{"template":true}"#).status, 200);
    let names = |reply: &serde_json::Value| -> Vec<String> {
        let volumes = reply["volumes"].as_array().expect("a list").iter();
        volumes.map(|volume| volume["name"].as_str().expect("a name").to_owned()).collect()
    };
    let (mut all, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = served.admin(&format!("GET /api/v1/volumes?limit=10{cursor}"), "").json();
        all.extend(names(&page));
        pages += 1;
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!((pages, all.len()), (3, 25));
    assert!(all.is_sorted());
    assert_eq!(names(&served.admin("GET /api/v1/volumes?label=parity%3Dodd", "").json()).len(), 12);
    assert_eq!(names(&served.admin("GET /api/v1/volumes?label=parity=odd&template=true", "").json()), ["v03"]);
    assert_eq!(names(&served.admin("GET /api/v1/volumes?label=parity=odd&label=a=b", "").json()).len(), 0);
}

#[test]
fn a_call_waits_for_the_end_of_a_job_and_holds_nobody_up() {
    let served = with_volumes(&["slow"]);
    let job = served.admin("POST /api/v1/volumes/slow/clones", r#"{"name":"c-{n}","count":3}"#).json();
    let line = |wait: u32| format!("GET /api/v1/jobs/{}?wait={wait}", job["id"].as_str().expect("id"));
    let began = Instant::now();
    assert_eq!(served.admin(&line(1), "").json()["state"], "running");
    assert!(began.elapsed() >= Duration::from_secs(1));
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..50).map(|_| scope.spawn(|| served.admin(&line(30), "").json()["state"].clone())).collect();
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(served.admin("GET /api/v1/volumes/slow", "").status, 200);
        served.fake.finish_jobs();
        let ended: Vec<_> = waiting.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        assert!(ended.iter().all(|state| state == "succeeded"), "{ended:?}");
    });
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(served.admin("POST /api/v1/jobs/00000000000000ff/cancel", "").status, 404);
}

#[test]
fn bytes_go_in_and_out_as_they_are() {
    let served = with_volumes(&["a"]);
    let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    assert_eq!(served.ask(Via::Network, "PUT /api/v1/volumes/a/data?offset=0", &[ADMIN], &bytes).status, 204);
    let back = served.ask(Via::Network, "GET /api/v1/volumes/a/data?offset=0&length=1048576", &[ADMIN], b"");
    assert_eq!(back.headers.get("content-type").map(String::as_str), Some("application/octet-stream"));
    assert!(back.body == bytes);
    let extents = served.admin("GET /api/v1/volumes/a/extents?from=8192&limit=1", "").json();
    assert_eq!(extents["extents"], serde_json::json!([{"offset": 8192, "length": (1 << 20) - 8192}]));
    assert_eq!(served.ask(Via::Network, "PUT /api/v1/volumes/a/data?offset=0", &[ADMIN], b"").status, 400);
}

#[test]
fn large_requests_are_refused_on_both_listeners() {
    let served = Listeners::new();
    for via in [Via::Local, Via::Network] {
        let body = vec![b' '; (1 << 20) + 1];
        let reply = served.ask(via, "POST /api/v1/volumes", &[ADMIN], &body);
        assert_eq!((reply.status, reply.problem().as_str()), (413, "too-large"), "{via:?}");
        let chunked = [
            &b"POST /api/v1/volumes HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n"[..],
            ADMIN.as_bytes(),
            b"\r\n\r\n",
            &[&b"10000\r\n"[..], &vec![b' '; 0x10000], b"\r\n"].concat().repeat(20),
            b"0\r\n\r\n",
        ];
        assert_eq!(served.raw(via, &chunked.concat()).expect("answered").status, 413, "{via:?}");
        let header = format!("x-long: {}", "x".repeat(20 << 10));
        let reply = served.ask(via, "GET /api/v1/version", &[ADMIN, &header], b"");
        assert_eq!((reply.status, reply.problem().as_str()), (431, "headers-too-large"), "{via:?}");
        let huge = format!("x-long: {}", "x".repeat(200 << 10));
        assert_eq!(served.ask(via, "GET /api/v1/version", &[ADMIN, &huge], b"").status, 431, "{via:?}");
        let path = format!("GET /api/v1/volumes?cursor={}", "a".repeat(20 << 10));
        assert_eq!(served.ask(via, &path, &[ADMIN], b"").status, 431, "{via:?}");
    }
}

#[test]
fn slow_requests_are_told_that_they_took_too_long() {
    let served = Listeners::new();
    let slow = |bytes: &'static [u8]| {
        let mut stream = UnixStream::connect(&served.socket).expect("connects");
        std::thread::spawn(move || {
            let began = Instant::now();
            stream.write_all(bytes).expect("sent");
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            (parse(&answer), began.elapsed())
        })
    };
    let head = slow(b"GET /api/v1/version HTTP/1.1\r\nhost: x\r\n");
    let body = slow(b"POST /api/v1/volumes HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{");
    let silent = slow(b"");
    for (what, thread) in [("head", head), ("body", body)] {
        let (reply, took) = thread.join().expect("no panic");
        let reply = reply.unwrap_or_else(|| panic!("{what}: no answer"));
        assert_eq!((reply.status, reply.problem().as_str()), (408, "timeout"), "{what}");
        assert!(took < Duration::from_secs(25), "{what}: {took:?}");
    }
    assert!(silent.join().expect("no panic").0.is_none());
}

#[test]
fn a_client_that_does_not_read_is_let_go() {
    let served = with_volumes(&["a"]);
    let mut stream = UnixStream::connect(&served.socket).expect("connects");
    stream.set_write_timeout(Some(Duration::from_secs(60))).expect("timeout");
    let line = b"GET /api/v1/volumes/a/data?offset=0&length=1048576 HTTP/1.1\r\nhost: x\r\n\r\n";
    let began = Instant::now();
    // Its answers fill the socket; then nobody reads these either.
    let stopped = std::iter::repeat_with(|| stream.write_all(line)).find_map(Result::err).expect("it ends");
    let ours = matches!(stopped.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
    assert!(!ours, "the server must give up first: {stopped} after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
}

#[test]
fn a_flood_is_answered_429_and_does_not_keep_others_out() {
    let rate = Rate { per_second: 5.0, burst: 20.0 };
    let served = Listeners::with(Arc::new(FakeAppliance::with_tokens()), Limits { changes: 2, reads: 2, rate, ..FREE });
    let mut flood = (0..400).map(|_| served.ask(Via::Network, "GET /api/v1/version", &[ADMIN], b""));
    let refused = flood.find(|reply| reply.status != 200).expect("one too many");
    assert_eq!((refused.status, refused.problem().as_str()), (429, "too-many-requests"));
    assert_eq!(refused.headers.get("retry-after").map(String::as_str), Some("1"));
    assert_eq!(served.admin("GET /api/v1/version", "").status, 200);
    // Guessing tokens costs more.
    std::thread::sleep(Duration::from_secs(5));
    let began = Instant::now();
    let guesses = (0..20).map(|_| served.ask(Via::Network, "GET /api/v1/version", &["authorization: Bearer guess"], b"").status);
    let heard = guesses.filter(|status| *status == 401).count();
    // A guess costs ten, of five that come back a second; who is refused waits for that too.
    assert!(heard as f64 <= 5.0 + began.elapsed().as_secs_f64() / 2.0, "{heard} guesses in {:?}", began.elapsed());
    assert!(began.elapsed() > Duration::from_millis(400) * (20 - heard as u32), "{:?}", began.elapsed());
}

#[test]
fn bodies_that_are_sent_slowly_hold_no_places() {
    let served = Listeners::with(Arc::new(FakeAppliance::with_tokens()), Limits { changes: 2, reads: 2, ..FREE });
    let hold = |_| {
        let mut stream = UnixStream::connect(&served.socket).expect("connects");
        stream.write_all(b"POST /api/v1/volumes HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").expect("sent");
        stream
    };
    let _held: Vec<_> = (0..40).map(hold).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(served.admin("GET /api/v1/version", "").status, 200);
    assert_eq!(served.admin("POST /api/v1/volumes", r#"{"name":"a","size_bytes":4096}"#).status, 201);
}

#[test]
fn bodies_that_stop_before_their_end_take_the_room_of_their_caller_only() {
    let served = with_volumes(&["a"]);
    let body = vec![b' '; 1 << 20];
    let begin = |_| {
        let mut stream = served.secure(None).expect("connects");
        let bytes = request("PUT /api/v1/volumes/a/data?offset=0", &[ADMIN], &body);
        // All but the last byte.
        stream.write_all(&bytes[..bytes.len() - 1]).and_then(|()| stream.flush()).expect("sent");
        stream
    };
    let _stopped: Vec<_> = (0..24).map(begin).collect();
    std::thread::sleep(Duration::from_millis(500));
    let create = |name: &str| format!(r#"{{"name":"{name}","size_bytes":4096}}"#);
    let ask = |token: &str, name: &str| served.ask(Via::Network, "POST /api/v1/volumes", &[token], create(name).as_bytes());
    assert_eq!(ask(ADMIN, "b").problem(), "too-many-requests");
    assert_eq!(ask(OPERATOR, "b").status, 201, "another caller");
    assert_eq!(served.admin("POST /api/v1/volumes", &create("c")).status, 201, "the local socket");
}

#[test]
fn changes_that_hang_keep_nobody_from_looking() {
    let served = Listeners::with(Arc::new(FakeAppliance::with_tokens()), Limits { changes: 1, reads: 1, ..FREE });
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| served.admin("POST /api/v1/volumes", r#"{"name":"late","size_bytes":4096}"#).status);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(served.admin("POST /api/v1/volumes", r#"{"name":"b","size_bytes":4096}"#).problem(), "too-many-requests");
        for line in ["GET /api/v1/status", "GET /metrics", "GET /api/v1/volumes"] {
            assert_eq!(served.admin(line, "").status, 200, "{line}");
        }
        assert!(!slow.is_finished());
    });
}

#[test]
fn a_change_that_has_not_begun_when_its_caller_is_told_never_does() {
    let limits = Limits { patience: Duration::from_millis(400), ..FREE };
    let served = Listeners::with(Arc::new(FakeAppliance::with_tokens()), limits);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| served.admin("POST /api/v1/volumes", r#"{"name":"late","size_bytes":4096}"#));
        std::thread::sleep(Duration::from_millis(200));
        let key = ["idempotency-key: k"];
        let body = br#"{"name":"queued","size_bytes":4096}"#;
        let queued = served.ask(Via::Local, "POST /api/v1/volumes", &key, body);
        assert_eq!((queued.status, queued.problem().as_str()), (503, "unavailable"));
        assert!(queued.json()["detail"].as_str().is_some_and(|detail| detail.contains("not begun")), "{}", queued.json());
        let first = first.join().expect("no panic");
        assert!(first.json()["detail"].as_str().is_some_and(|detail| detail.contains("goes on without you")), "{}", first.json());
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(served.admin("GET /api/v1/volumes/late", "").status, 200, "it had begun");
        assert_eq!(served.admin("GET /api/v1/volumes/queued", "").status, 404, "it had not");
        assert_eq!(served.ask(Via::Local, "POST /api/v1/volumes", &key, body).status, 201, "and may be asked for again");
        let statuses: Vec<_> = served.fake.audited().iter().map(|line| line.status).collect();
        assert_eq!(statuses, [503, 503, 201]);
    });
}

#[test]
fn a_name_is_the_same_however_it_is_spelled() {
    let served = with_volumes(&["late"]);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for line in ["POST /api/v1/volumes/late/attach", "POST /api/v1/volumes/%6c%61te/attach"] {
            let served = &served;
            scope.spawn(move || assert_eq!(served.admin(line, "").status, 200));
        }
    });
    assert!(began.elapsed() >= Duration::from_secs(2), "one after the other: {:?}", began.elapsed());
    assert!(served.fake.audited().iter().skip(1).all(|line| line.path == "/api/v1/volumes/late/attach"));
    let ask = |line: &str| served.ask(Via::Local, line, &["idempotency-key: k"], br#"{"name":"s"}"#);
    assert_eq!(ask("POST /api/v1/volumes/late/snapshots").status, 201);
    let again = ask("POST /api/v1/volumes/l%61te/snapshots");
    assert_eq!((again.status, again.headers.get("idempotency-replayed").map(String::as_str)), (201, Some("true")));
}

#[test]
fn an_answer_holds_its_place_until_it_was_read() {
    let served = Listeners::with(Arc::new(FakeAppliance::with_tokens()), Limits { reads: 1, ..FREE });
    assert_eq!(served.admin("POST /api/v1/volumes", r#"{"name":"a","size_bytes":1048576}"#).status, 201);
    let mut slow = UnixStream::connect(&served.socket).expect("connects");
    slow.write_all(&request("GET /api/v1/volumes/a/data?offset=0&length=1048576", &[], b"")).expect("sent");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(served.admin("GET /api/v1/version", "").problem(), "too-many-requests");
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).expect("read");
    assert_eq!(parse(&answer).expect("an answer").body.len(), 1 << 20);
    assert_eq!(served.admin("GET /api/v1/version", "").status, 200);
}

#[test]
fn one_metrics_page_is_made_a_second_however_many_ask() {
    let served = Listeners::new();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(served.admin("GET /metrics", "").status, 200));
        }
    });
    let most = began.elapsed().as_secs() + 1;
    assert!(served.fake.metrics_made.load(Ordering::Relaxed) <= most, "more than one a second");
}

#[test]
fn more_connections_than_places_are_turned_away_at_once() {
    let served = Listeners::new();
    let silent: Vec<_> = (0..64).map(|_| UnixStream::connect(&served.socket).expect("connects")).collect();
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    let reply = served.admin("GET /api/v1/version", "");
    assert_eq!((reply.status, reply.problem().as_str()), (429, "too-many-requests"));
    assert!(began.elapsed() < Duration::from_secs(3));
    drop(silent);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(served.admin("GET /api/v1/version", "").status, 200);
    // One address has a share of the network's, and holding them is no reason for others to wait.
    let _silent: Vec<_> = (0..80).map(|_| std::net::TcpStream::connect(served.address).expect("connects")).collect();
    std::thread::sleep(Duration::from_millis(200));
    assert!(served.raw(Via::Network, &request("GET /api/v1/version", &[ADMIN], b"")).is_err());
}

#[test]
fn a_change_is_finished_and_noted_when_its_caller_hangs_up() {
    let served = Listeners::new();
    let mut stream = UnixStream::connect(&served.socket).expect("connects");
    stream.write_all(&request("POST /api/v1/volumes", &[], br#"{"name":"late","size_bytes":4096}"#)).expect("sent");
    // Long enough for the change to begin, too short for its end.
    std::thread::sleep(Duration::from_millis(300));
    assert!(served.fake.audited().is_empty());
    drop(stream);
    let until = Instant::now() + Duration::from_secs(5);
    while served.fake.audited().is_empty() {
        assert!(Instant::now() < until, "nothing was noted");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(served.fake.audited()[0].status, 201);
    assert_eq!(served.admin("GET /api/v1/volumes/late", "").status, 200);
}

#[test]
fn the_interface_describes_itself() {
    let served = Listeners::new();
    let document = served.admin("GET /api/v1/openapi.json", "").json();
    for route in ROUTES {
        let verb = route.method.method().as_str().to_ascii_lowercase();
        assert_eq!(document["paths"][route.path][&verb]["operationId"], route.name);
    }
}
