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
    /// `token:<name>`, `certificate:<name>`, `uid:<number>`, or `unknown` for somebody who was refused.
    pub who: String,
    /// What they may do; absent for somebody unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Their address, or `local`.
    pub from: String,
    /// `POST`, `PUT`, `PATCH` or `DELETE`.
    pub method: String,
    /// The path without its query.
    pub path: String,
    /// The answer's HTTP status.
    pub status: u16,
    /// What the answer's `X-Request-Id` says too.
    pub request_id: String,
}

/// The newest lines of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditList {
    /// The newest first.
    pub lines: Vec<AuditLine>,
}
