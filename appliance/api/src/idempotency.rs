//! `Idempotency-Key`: a POST that is sent again is answered again and not done again.

use serde::{Deserialize, Serialize};

/// What is kept of a request with a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptAnswer {
    /// SHA-256 of caller and key, in hexadecimal: nothing of either is kept.
    pub key: String,
    /// SHA-256 of method, path, query and body.
    pub request: String,
    /// When it came, in milliseconds since 1970.
    pub at_ms: u64,
    /// What was answered; absent while that is not known.
    pub answer: Option<Answered>,
}

/// An answer as it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// Its HTTP status.
    pub status: u16,
    /// Its entity tag.
    pub tag: Option<String>,
    /// Its body, when that is kept: JSON, not too large, and no secret.
    pub body: Option<String>,
}
