//! Errors as they travel: problem details (RFC 9457) with one extension, `advice`.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What kind of failure it is, to act on. Each has one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ProblemKind {
    /// The request makes no sense as it is (400).
    #[serde(rename = "urn:lamina:problem:invalid-request")]
    InvalidRequest,
    /// Nobody knows the caller (401).
    #[serde(rename = "urn:lamina:problem:unauthorized")]
    Unauthorized,
    /// The caller's role or scope does not allow it (403).
    #[serde(rename = "urn:lamina:problem:forbidden")]
    Forbidden,
    /// No such volume or route (404).
    #[serde(rename = "urn:lamina:problem:not-found")]
    NotFound,
    /// The route does not do that (405).
    #[serde(rename = "urn:lamina:problem:method-not-allowed")]
    MethodNotAllowed,
    /// The body did not arrive in time (408).
    #[serde(rename = "urn:lamina:problem:timeout")]
    Timeout,
    /// The state of things forbids it: the name is taken, the volume is attached (409).
    #[serde(rename = "urn:lamina:problem:conflict")]
    Conflict,
    /// It has changed since the caller looked: `If-Match` does not hold (412).
    #[serde(rename = "urn:lamina:problem:precondition-failed")]
    PreconditionFailed,
    /// The body is larger than [`crate::MAX_BODY_BYTES`] (413).
    #[serde(rename = "urn:lamina:problem:too-large")]
    TooLarge,
    /// The `Idempotency-Key` belongs to another request (422).
    #[serde(rename = "urn:lamina:problem:key-reused")]
    KeyReused,
    /// More than the interface takes; again after `Retry-After` (429).
    #[serde(rename = "urn:lamina:problem:too-many-requests")]
    TooManyRequests,
    /// The headers are larger than [`crate::MAX_HEADER_BYTES`] (431).
    #[serde(rename = "urn:lamina:problem:headers-too-large")]
    HeadersTooLarge,
    /// It failed inside (500).
    #[serde(rename = "urn:lamina:problem:internal")]
    Internal,
    /// It cannot be done now; it may be tried again (503).
    #[serde(rename = "urn:lamina:problem:unavailable")]
    Unavailable,
}

impl ProblemKind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::InvalidRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Timeout,
        Self::Conflict,
        Self::PreconditionFailed,
        Self::TooLarge,
        Self::KeyReused,
        Self::TooManyRequests,
        Self::HeadersTooLarge,
        Self::Internal,
        Self::Unavailable,
    ];

    /// The HTTP status of this kind.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::Conflict => 409,
            Self::PreconditionFailed => 412,
            Self::TooLarge => 413,
            Self::KeyReused => 422,
            Self::TooManyRequests => 429,
            Self::HeadersTooLarge => 431,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    /// The short text that is the same for every problem of this kind.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::InvalidRequest => "The request is not valid",
            Self::Unauthorized => "Unknown caller",
            Self::Forbidden => "Not allowed",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "Method not allowed",
            Self::Timeout => "The request took too long to arrive",
            Self::Conflict => "The request conflicts with the present state",
            Self::PreconditionFailed => "It has changed meanwhile",
            Self::TooLarge => "The request is too large",
            Self::KeyReused => "The key belongs to another request",
            Self::TooManyRequests => "Too many requests",
            Self::HeadersTooLarge => "The headers are too large",
            Self::Internal => "The appliance failed",
            Self::Unavailable => "Not possible at the moment",
        }
    }
}

/// A failure: what happened, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The kind, as a URN.
    #[serde(rename = "type")]
    pub kind: ProblemKind,
    /// The kind in words.
    pub title: String,
    /// The kind's HTTP status.
    pub status: u16,
    /// What happened this time.
    pub detail: String,
    /// What the caller can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Problem {
    /// The media type of problem details.
    pub const MEDIA_TYPE: &'static str = "application/problem+json";

    /// A failure of `kind`.
    #[must_use]
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self { kind, title: kind.title().to_owned(), status: kind.status(), detail: detail.into(), advice: None }
    }

    /// A failure that has `cause` at its end of the chain: each cause is added to the detail.
    #[must_use]
    pub fn caused(kind: ProblemKind, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut detail = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            detail.push_str(": ");
            detail.push_str(&next.to_string());
            cause = next.source();
        }
        Self::new(kind, detail)
    }

    /// The same with advice.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        self.advice.iter().try_for_each(|advice| write!(f, " ({advice})"))
    }
}

impl std::error::Error for Problem {}

#[cfg(feature = "server")]
impl axum::response::IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        use axum::http::{HeaderValue, StatusCode, header};
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, Self::MEDIA_TYPE)], body).into_response();
        match self.kind {
            ProblemKind::Unauthorized => {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"lamina\""));
            }
            ProblemKind::TooManyRequests => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::{Problem, ProblemKind};

    #[test]
    fn a_problem_is_what_rfc_9457_describes() {
        let problem = Problem::new(ProblemKind::Conflict, "a volume named 'web' exists already").advise("choose another name");
        let json = serde_json::to_value(&problem).expect("json");
        assert_eq!(json["type"], "urn:lamina:problem:conflict");
        assert_eq!((json["status"].as_u64(), json["title"].is_string()), (Some(409), true));
        assert_eq!(serde_json::from_value::<Problem>(json).expect("back"), problem);
    }
}
