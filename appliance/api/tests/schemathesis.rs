//! What the interface says of itself (OpenAPI) against what it does: schemathesis sends requests that fit the description and requests that
//! do not. No answer is a 5xx, and every answer is one that is described.
//!
//! schemathesis comes from `tests/install-packages.sh`; without it this test fails.

mod fake_appliance;
mod listeners;

use std::path::{Path, PathBuf};
use std::process::Command;

use listeners::Listeners;

/// Requests of each kind for each operation.
const EXAMPLES: &str = "8";
/// Seconds for all of it; `make test` waits for them.
const BUDGET: &str = "55";

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,ignored_auth,unsupported_method";

fn assets() -> PathBuf {
    std::env::var_os("LAMINA_ASSETS").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.assets"), PathBuf::from)
}

#[test]
fn the_interface_does_what_its_description_says() {
    let program = assets().join("schemathesis/bin/schemathesis");
    assert!(program.exists(), "{} is missing: run tests/install-packages.sh", program.display());
    let served = Listeners::new();
    for body in [r#"{"name":"a","size_bytes":1048576}"#, r#"{"name":"slow","size_bytes":1048576}"#] {
        assert_eq!(served.admin("POST /api/v1/volumes", body).status, 201);
    }
    let root = served.dir.path().join("root.pem");
    std::fs::write(&root, &served.authority.pem).expect("written");
    let output = Command::new(program)
        .arg("run")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"))
        .args(["--url", &format!("https://localhost:{}", served.address.port())])
        .arg("--tls-verify")
        .arg(&root)
        .args(["--header", "Authorization: Bearer admin-secret"])
        .args(["--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--max-time", BUDGET])
        .args(["--request-timeout", "10", "--seed", "1", "--no-shrink", "--no-color", "--suppress-health-check", "all"])
        .current_dir(served.dir.path())
        .env_remove("HTTPS_PROXY")
        .env_remove("https_proxy")
        .output()
        .expect("schemathesis runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(served.fake.audited().len() > 500, "it sent next to nothing:\n{text}");
}
