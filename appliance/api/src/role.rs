//! Roles: who may do what. The table of routes names the least role of each.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Another site: replication and nothing else.
    Replicator,
    /// Sees everything but tokens and the audit log.
    Viewer,
    /// Makes and changes volumes, snapshots and VMs; deletes snapshots.
    Operator,
    /// Everything: deletes, tokens, schedules, force.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Replicator, Self::Viewer, Self::Operator, Self::Admin];

    /// As the interface writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replicator => "replicator",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// The least that a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Least {
    /// Any identity at all.
    Known,
    /// This role, or one that includes it.
    Role(Role),
}

impl Least {
    /// Whether `role` is enough. A replicator is beside the others, not below them.
    #[must_use]
    pub fn allows(self, role: Role) -> bool {
        match (self, role) {
            (Self::Known, _) => true,
            (Self::Role(Role::Replicator), role) => matches!(role, Role::Replicator | Role::Admin),
            (Self::Role(_), Role::Replicator) => false,
            (Self::Role(least), role) => role >= least,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Least, Role};

    #[test]
    fn viewers_are_below_operators_below_admins_and_replicators_are_apart() {
        let allowed = |least: Least| Role::ALL.map(|role| least.allows(role));
        assert_eq!(allowed(Least::Known), [true, true, true, true]);
        assert_eq!(allowed(Least::Role(Role::Viewer)), [false, true, true, true]);
        assert_eq!(allowed(Least::Role(Role::Operator)), [false, false, true, true]);
        assert_eq!(allowed(Least::Role(Role::Admin)), [false, false, false, true]);
        assert_eq!(allowed(Least::Role(Role::Replicator)), [true, false, false, true]);
    }
}
