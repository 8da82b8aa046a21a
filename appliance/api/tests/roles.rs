//! Who may do what, on both listeners: every route of the table with every role, tokens, scopes, certificates, and the audit log.

mod fake_appliance;
mod listeners;

use lamina_api::role::{Least, Role};
use lamina_api::route::{Route, Verb};
use lamina_api::table::ROUTES;

use listeners::{Authority, Listeners, Via, request, write_private};

fn line(route: &Route) -> String {
    let path = route.path.replace("{name}", "none").replace("{snapshot}", "none").replace("{id}", "00000000000000ff");
    format!("{} {path}", route.method.method())
}

fn bearer(name: &str) -> String {
    format!("authorization: Bearer {name}-secret")
}

#[test]
fn every_route_asks_for_its_role_on_both_listeners() {
    let served = Listeners::new();
    let mut changes = 0;
    for (route, via) in ROUTES.iter().flat_map(|route| [(route, Via::Local), (route, Via::Network)]) {
        for role in Role::ALL {
            let reply = served.ask(via, &line(route), &[&bearer(role.as_str())], b"");
            let shown = format!("{via:?} {} as {}: {}", route.name, role.as_str(), reply.status);
            if route.least.allows(role) {
                assert!(!matches!(reply.status, 401 | 403 | 405 | 500..), "{shown}");
            } else {
                assert_eq!((reply.status, reply.problem().as_str()), (403, "forbidden"), "{shown}");
            }
            assert_eq!(reply.headers.get("x-request-id").map(String::len), Some(16), "{shown}");
            changes += usize::from(!route.method.is_read());
        }
        for wrong in ["authorization: Bearer wrong", "authorization: Basic YTpi", "authorization: Bearer", "authorization: "] {
            let reply = served.ask(via, &line(route), &[wrong], b"");
            assert_eq!((reply.status, reply.problem().as_str()), (401, "unauthorized"), "{via:?} {} {wrong}", route.name);
            assert!(reply.headers.contains_key("www-authenticate"));
        }
        let without = served.ask(via, &line(route), &[], b"");
        match via {
            Via::Network => assert_eq!(without.status, 401, "{}", route.name),
            Via::Local => {
                assert!(!matches!(without.status, 401 | 403 | 500..), "{}: {}", route.name, without.status);
                changes += usize::from(!route.method.is_read());
            }
        }
    }
    assert_eq!(served.fake.audited().len(), changes);
}

#[test]
fn the_roles_are_the_ones_that_were_promised() {
    let least = |name: &str| ROUTES.iter().find(|route| route.name == name).map(|route| route.least);
    let expect = |names: &[&str], role: Role| {
        for name in names {
            assert_eq!(least(name), Some(Least::Role(role)), "{name}");
        }
    };
    expect(&["list-volumes", "show-status", "list-jobs", "show-snapshot", "list-schedules", "show-metrics"], Role::Viewer);
    expect(&["create-volume", "take-snapshot", "delete-snapshot", "rollback-volume", "clone-vm", "cancel-job"], Role::Operator);
    expect(
        &["delete-volume", "delete-vm", "create-schedule", "change-schedule", "create-token", "list-tokens", "list-audit"],
        Role::Admin,
    );
    let replicated: Vec<_> = ROUTES.iter().filter(|route| route.least.allows(Role::Replicator)).map(|route| route.name).collect();
    assert_eq!(replicated, ["show-version", "show-openapi"]);
}

#[test]
fn only_admins_force() {
    let served = Listeners::new();
    assert_eq!(served.admin("POST /api/v1/volumes", r#"{"name":"a","size_bytes":8192}"#).status, 201);
    let shrink = br#"{"size_bytes":4096,"force":true}"#;
    let operator = served.ask(Via::Network, "PATCH /api/v1/volumes/a", &[&bearer("operator")], shrink);
    assert_eq!(operator.problem(), "forbidden");
    assert_eq!(served.ask(Via::Network, "PATCH /api/v1/volumes/a", &[&bearer("admin")], shrink).status, 200);
}

#[test]
fn a_token_with_a_scope_reaches_its_volumes_and_nothing_else() {
    let served = Listeners::new();
    for name in ["dev-a", "prod-a", "slow-dev"] {
        let body = format!(r#"{{"name":"{name}","size_bytes":4096}}"#);
        assert_eq!(served.admin("POST /api/v1/volumes", &body).status, 201);
        assert_eq!(served.admin(&format!("POST /api/v1/volumes/{name}/clones"), &format!(r#"{{"name":"{name}-c"}}"#)).status, 202);
    }
    // A VM's name is no volume's.
    assert_eq!(
        served
            .admin(
                "POST /api/v1/vms",
                r#"{"name":"dev-vm","machine":{"cpus":1,"memory_bytes":1073741824,"disks":[{"volume":"prod-a"}]}}"#
            )
            .status,
        201
    );
    assert_eq!(served.admin("POST /api/v1/vms/dev-vm/clones", r#"{"name":"dev-vm2"}"#).status, 202);
    served.fake.add_token("dev", Role::Admin, Some("dev-"));
    let ask = |line: &str, body: &str| served.ask(Via::Network, line, &[&bearer("dev")], body.as_bytes());
    let list = ask("GET /api/v1/volumes", "").json();
    let names: Vec<_> = list["volumes"].as_array().expect("list").iter().map(|volume| volume["name"].clone()).collect();
    assert_eq!(names, ["dev-a", "dev-a-c"]);
    let jobs = ask("GET /api/v1/jobs", "").json();
    assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(1));
    assert_eq!(ask("GET /api/v1/volumes/dev-a", "").status, 200);
    assert_eq!(ask("POST /api/v1/volumes", r#"{"name":"dev-b","size_bytes":4096}"#).status, 201);
    assert_eq!(ask("GET /api/v1/version", "").status, 200);
    for (line, body) in [
        ("GET /api/v1/volumes/prod-a", ""),
        ("DELETE /api/v1/volumes/prod-a", ""),
        ("POST /api/v1/volumes", r#"{"name":"prod-b","size_bytes":4096}"#),
        ("POST /api/v1/volumes/dev-a/clones", r#"{"names":["dev-x","prod-x"]}"#),
        ("GET /api/v1/status", ""),
        ("GET /api/v1/vms", ""),
        ("GET /api/v1/tokens", ""),
        ("GET /api/v1/audit", ""),
        ("GET /metrics", ""),
    ] {
        assert_eq!(ask(line, body).status, 403, "{line}");
    }
    let other = served.admin("GET /api/v1/jobs", "").json();
    for job in other["jobs"].as_array().expect("jobs").iter().filter(|job| job["subject"] != "dev-a") {
        let path = format!("/api/v1/jobs/{}", job["id"].as_str().expect("id"));
        for line in [format!("GET {path}"), format!("POST {path}/cancel"), format!("DELETE {path}")] {
            assert_eq!(ask(&line, "").status, 404, "{line} {job}");
        }
    }
}

#[test]
fn a_token_is_shown_once_and_ends_when_it_is_deleted_or_old() {
    let served = Listeners::new();
    let body = r#"{"name":"ci","role":"viewer","expires_in_seconds":60}"#;
    let made = served.admin("POST /api/v1/tokens", body).json();
    let secret = format!("authorization: Bearer {}", made["secret"].as_str().expect("a secret"));
    let look = || served.ask(Via::Network, "GET /api/v1/status", &[&secret], b"").status;
    assert_eq!(look(), 200);
    served.fake.elapsed_ms.store(61_000, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(look(), 401);
    served.fake.elapsed_ms.store(0, std::sync::atomic::Ordering::Relaxed);
    assert!(!String::from_utf8_lossy(&served.admin("GET /api/v1/tokens", "").body).contains("ci-secret"));
    assert_eq!(served.admin("DELETE /api/v1/tokens/ci", "").status, 204);
    assert_eq!(look(), 401);
    for audited in served.fake.audited() {
        assert!(!format!("{audited:?}").contains("secret"), "{audited:?}");
    }
}

#[test]
fn certificates_are_identities_and_not_just_signatures() {
    let served = Listeners::new();
    let get = |line: &str| request(line, &[], b"");
    let status =
        |certificate: &listeners::Signed, line: &str| served.secure_raw(Some(certificate), &get(line)).map(|reply| reply.status);
    let viewer = served.clients.sign("viewer.test", 2100);
    assert_eq!(status(&viewer, "GET /api/v1/volumes").expect("answered"), 200);
    assert_eq!(status(&viewer, "POST /api/v1/volumes").expect("answered"), 403);
    assert_eq!(served.fake.audited().last().map(|line| line.who.clone()), Some("certificate:viewer.test".to_owned()));
    // Of the right CA, and nobody that we know.
    assert_eq!(status(&served.clients.sign("stranger.test", 2100), "GET /api/v1/volumes").expect("answered"), 401);
    // Another CA, an old certificate: there is no connection.
    assert!(status(&Authority::new().sign("admin.test", 2100), "GET /api/v1/version").is_err());
    assert!(status(&served.clients.sign("admin.test", 2021), "GET /api/v1/version").is_err());
    // A certificate is not asked for, but something is; and nothing is spoken without TLS.
    assert_eq!(served.secure_raw(None, &get("GET /api/v1/version")).expect("answered").status, 401);
    let mut plain = std::net::TcpStream::connect(served.address).expect("connected");
    assert!(listeners::exchange(&mut plain, &get("GET /api/v1/version")).is_err());
}

#[test]
fn a_new_certificate_is_used_without_a_restart_and_a_wrong_one_is_not() {
    let served = Listeners::new();
    let serial = || {
        let mut stream = served.secure(None).expect("connects");
        listeners::exchange(&mut stream, &request("GET /api/v1/version", &[], b"")).expect("answered");
        stream.conn.peer_certificates().and_then(|chain| chain.first()).map(|certificate| certificate.to_vec())
    };
    let before = serial();
    let file = |name: &str| served.dir.path().join(name);
    std::fs::write(file("server.pem"), "no certificate").expect("written");
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert_eq!(serial(), before);
    let next = served.authority.sign("localhost", 2100);
    std::fs::write(file("server.pem"), &next.certificate).expect("written");
    write_private(&file("server.key"), &next.key);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while serial() == before {
        assert!(std::time::Instant::now() < until, "the new certificate is not used");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

#[test]
fn the_audit_log_says_who_asked_for_which_change_and_what_came_of_it() {
    let served = Listeners::new();
    let create = served.ask(Via::Network, "POST /api/v1/volumes", &[&bearer("operator")], br#"{"name":"a","size_bytes":4096}"#);
    served.ask(Via::Network, "DELETE /api/v1/volumes/a?snapshots=true", &[&bearer("operator")], b"");
    served.admin("DELETE /api/v1/volumes/a", "");
    served.admin("GET /api/v1/volumes", "");
    let list = served.admin("GET /api/v1/audit?limit=2", "").json();
    let lines = list["lines"].as_array().expect("lines");
    assert_eq!(lines.len(), 2);
    assert_eq!((lines[0]["who"].as_str().map(|who| who.starts_with("uid:")), lines[0]["status"].as_u64()), (Some(true), Some(204)));
    assert_eq!((&lines[1]["status"], &lines[1]["path"]), (&403.into(), &"/api/v1/volumes/a".into()));
    let first = &served.fake.audited()[0];
    assert_eq!((first.who.as_str(), first.role, first.from.as_str()), ("token:operator", Some(Role::Operator), "127.0.0.1"));
    assert_eq!((first.method.as_str(), first.status), (Verb::Post.method().as_str(), 201));
    assert_eq!(create.headers.get("x-request-id"), Some(&first.request_id));
}

#[test]
fn what_an_audit_line_says_of_a_request_is_bounded_and_counts_bytes() {
    let served = Listeners::new();
    assert_eq!(served.admin("POST /api/v1/volumes", r#"{"name":"a","size_bytes":8192}"#).status, 201);
    let junk = format!("DELETE /api/v1/volumes/{}", "%41".repeat(5000));
    assert_eq!(served.ask(Via::Network, &junk, &[&bearer("viewer")], b"").status, 403);
    assert_eq!(served.ask(Via::Network, "PUT /api/v1/volumes/a/data?offset=0", &[&bearer("operator")], &[7; 4096]).status, 204);
    let lines = served.fake.audited();
    let seen: Vec<_> = lines.iter().map(|line| (line.path.as_str(), line.bytes)).collect();
    assert_eq!(seen, [("/api/v1/volumes", None), ("/api/v1/volumes/{name}", None), ("/api/v1/volumes/a/data", Some(4096))]);
}
