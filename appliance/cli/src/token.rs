//! `lamina token …`.

use clap::{Subcommand, ValueEnum};
use lamina_api::name::Name;
use lamina_api::paths;
use lamina_api::role::Role;
use lamina_api::token::{CreateToken, NewToken, Token, TokenList};

use crate::complete;
use crate::confirm;
use crate::deleted;
use crate::failure::Failure;
use crate::moment::local;
use crate::printer::{Row, or_dash};
use crate::session::Session;
use crate::span::Span;
use crate::table::{Cell, Column};
use crate::tone::Tone;

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Lists tokens, without their secrets.
    #[command(after_long_help = "\
Examples:
  lamina token list
  lamina token list -o json | jq -r '.[] | select(.role == \"admin\") | .name'")]
    List,
    /// Makes a token and prints its secret, which is never shown again.
    #[command(
        long_about = "Makes a token and prints its secret, which is never shown again. With --quiet it prints nothing else, ready for a file. \
Whoever has the secret may do what the role allows, until it expires or is deleted.\n\n\
Roles: a viewer sees everything but tokens and the audit log; an operator makes and changes volumes, snapshots and VMs; an admin may do \
everything; a replicator is another site.",
        after_long_help = "\
Examples:
  lamina token create grafana --role viewer --expires 365d
  (umask 077; lamina token create ci --role operator --quiet > ci.token)
  lamina token create team-a --role operator --scope team-a-"
    )]
    Create {
        /// Its name; the audit log names it.
        #[arg(value_parser = |text: &str| Name::new(text))]
        name: Name,
        /// What its holder may do.
        #[arg(long, value_enum)]
        role: RoleArgument,
        /// How long it lives, as 12h or 90d [default: 90d].
        #[arg(long, value_name = "TIME")]
        expires: Option<Span>,
        /// Only volumes whose names begin so, and nothing that is not about volumes.
        #[arg(long, value_name = "PREFIX", value_parser = |text: &str| Name::new(text))]
        scope: Option<Name>,
    },
    /// Deletes a token: whoever has it is unknown from then on.
    #[command(after_long_help = "\
Examples:
  lamina token delete ci
  lamina token delete ci --yes")]
    Delete {
        /// Its name.
        #[arg(value_parser = |text: &str| Name::new(text), add = complete::tokens())]
        name: Name,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// Roles that can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleArgument {
    /// Sees.
    Viewer,
    /// Makes and changes.
    Operator,
    /// Everything.
    Admin,
    /// Another site.
    Replicator,
}

impl RoleArgument {
    const fn role(self) -> Role {
        match self {
            Self::Viewer => Role::Viewer,
            Self::Operator => Role::Operator,
            Self::Admin => Role::Admin,
            Self::Replicator => Role::Replicator,
        }
    }
}

/// Does what `verb` says.
pub(crate) async fn run(verb: &TokenVerb, session: &Session) -> Result<(), Failure> {
    let Session { client, printer, .. } = session;
    match verb {
        TokenVerb::List => printer.list(&client.all::<TokenList>(paths::TOKENS).await?),
        TokenVerb::Create { name, role, expires, scope } => {
            let request = CreateToken {
                name: name.to_string(),
                role: role.role(),
                expires_in_seconds: expires.map(|span| span.0),
                scope: scope.as_ref().map(ToString::to_string),
            };
            let made: NewToken = client.post(paths::TOKENS, &request).await?;
            printer.notice("keep the secret now: it is never shown again");
            printer.one(&made, &made.secret, |made| {
                vec![
                    ("name", made.token.name.as_str().into()),
                    ("role", made.token.role.as_str().into()),
                    ("scope", or_dash(made.token.scope.as_deref())),
                    ("expires", local(&made.token.expires).into()),
                    ("secret", Cell::new(made.secret.as_str(), Tone::Bold)),
                ]
            })
        }
        TokenVerb::Delete { name, yes } => {
            if !yes {
                confirm::loss(&format!("deleting token '{name}' locks out whoever has it"), name.as_str(), false)?;
            }
            client.delete(&paths::token(name)).await?;
            deleted::print(session, name.as_str())
        }
    }
}

impl Row for Token {
    const COLUMNS: &'static [Column] =
        &[Column::new("NAME"), Column::new("ROLE"), Column::new("SCOPE"), Column::new("CREATED"), Column::new("EXPIRES")];

    fn cells(&self) -> Vec<Cell> {
        vec![
            self.name.as_str().into(),
            self.role.as_str().into(),
            or_dash(self.scope.as_deref()),
            local(&self.created).into(),
            local(&self.expires).into(),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}
