//! The audit log: who asked for which change, and what they were answered. Never bodies, never secrets.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::role::Role;

/// One request for a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditLine {
    /// When it was answered.
    #[schema(format = DateTime)]
    pub time: String,
    /// `token:<name>`, `certificate:<name>` or `uid:<number>`. Whom nobody knows asks for nothing that is noted here.
    pub who: String,
    /// What they may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Their address, or `local`.
    pub from: String,
    /// `POST`, `PUT`, `PATCH` or `DELETE`.
    pub method: String,
    /// The path without its query; what is no name stands in it as the route's `{name}`.
    pub path: String,
    /// The answer's HTTP status.
    pub status: u16,
    /// What the answer's `X-Request-Id` says too.
    pub request_id: String,
    /// Bytes that came to be written to a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How many requests this line stands for, of which it shows the last: further ones of the same caller within a minute, either bytes
    /// written to the same path or refused. Absent for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// The newest lines of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditList {
    /// The newest first.
    pub lines: Vec<AuditLine>,
}
