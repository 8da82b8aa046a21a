//! Bearer tokens: how programs elsewhere say who they are.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::role::Role;

/// Seconds a token lives when nobody says: 90 days.
pub const DEFAULT_LIFE_SECONDS: u64 = 90 * 86_400;
/// Seconds a token lives at most: ten years.
pub const MAX_LIFE_SECONDS: u64 = 3650 * 86_400;

/// A token to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// `[a-z0-9-]{1,63}`; the audit log names it.
    #[schema(pattern = "^[a-z0-9-]{1,63}$")]
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// How long it lives, 90 days when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 315_360_000)]
    pub expires_in_seconds: Option<u64>,
    /// Only volumes whose names begin so, and nothing that is not about volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-z0-9-]{1,63}$")]
    pub scope: Option<String>,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its name.
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// Only volumes whose names begin so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// When it was made.
    #[schema(format = DateTime)]
    pub created: String,
    /// When it ends.
    #[schema(format = DateTime)]
    pub expires: String,
}

/// A token that was just made: the only time its secret is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// What it is.
    pub token: Token,
    /// What its holder sends: `Authorization: Bearer <secret>`.
    pub secret: String,
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewToken").field("token", &self.token).finish_non_exhaustive()
    }
}

/// All tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenList {
    /// By name.
    pub tokens: Vec<Token>,
    /// Cursor of the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
