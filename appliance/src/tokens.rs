//! Bearer tokens: 256 random bits that are shown once, kept as SHA-256 in the documents.
//!
//! A guess is compared with every token in constant time: how long that takes says nothing about any secret.

use lamina_api::caller::Caller;
use lamina_api::instant::rfc3339;
use lamina_api::page::{Page, Paged};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::role::Role;
use lamina_api::token::{CreateToken, DEFAULT_LIFE_SECONDS, NewToken, Token, TokenList};
use lamina_contract::Timestamp;
use parking_lot::{Mutex, RwLock};
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::documents::{DocumentError, Documents, Expected, Kind};
use crate::machines::of_document;

/// So that a secret is recognised where it should not be: in a log, in a repository.
const PREFIX: &str = "lamina_";
/// Tokens at most: each is compared with each guess.
const MAX_TOKENS: usize = 1000;

/// A token as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    role: Role,
    scope: Option<String>,
    created_ms: u64,
    expires_ms: u64,
    /// SHA-256 of the secret, in hexadecimal.
    digest: String,
}

#[derive(Debug, Clone)]
struct Known {
    name: String,
    kept: Kept,
    digest: [u8; 32],
}

/// All tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    /// By name; what the documents hold. Every request looks here: never held across I/O.
    known: RwLock<Vec<Known>>,
    /// Held during each change, so that they go one at a time.
    changes: Mutex<()>,
}

impl Tokens {
    /// Those that were kept.
    pub(crate) fn open(documents: &Documents) -> Self {
        let mut known = Vec::new();
        for stored in documents.list::<Kept>(Kind::Token) {
            match unhex(&stored.body.digest) {
                Some(digest) => known.push(Known { name: stored.name, kept: stored.body, digest }),
                None => tracing::error!(token = %stored.name, "a token without a digest: nobody has it"),
            }
        }
        Self { known: RwLock::new(known), changes: Mutex::default() }
    }

    /// Whose secret this is.
    pub(crate) fn identify(&self, secret: &str, now: Timestamp) -> Option<Caller> {
        let digest: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        let mut found = None;
        for known in self.known.read().iter() {
            let same: Choice = known.digest.ct_eq(&digest);
            if bool::from(same) && known.kept.expires_ms > now.0 {
                let who = format!("token:{}", known.name);
                found = Some(Caller { who, role: known.kept.role, scope: known.kept.scope.clone() });
            }
        }
        found
    }

    /// All of them, without secrets.
    pub(crate) fn list(&self, page: &Page) -> TokenList {
        let known = self.known.read();
        let Paged { entries, next } = page.cut(known.iter().map(shown), |token| token.name.clone());
        TokenList { tokens: entries, next }
    }

    /// Makes one.
    pub(crate) fn create(&self, documents: &Documents, request: &CreateToken, now: Timestamp) -> Result<NewToken, Problem> {
        let _changes = self.changes.lock();
        if self.known.read().len() >= MAX_TOKENS {
            return Err(Problem::new(ProblemKind::Conflict, format!("there are {MAX_TOKENS} tokens already"))
                .advise("delete those that nobody uses"));
        }
        let mut bits = [0; 32];
        OsRng
            .try_fill_bytes(&mut bits)
            .map_err(|error| Problem::new(ProblemKind::Internal, format!("the system gives no random bits: {error}")))?;
        let secret = format!("{PREFIX}{}", hex(&bits));
        let digest: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        let life = request.expires_in_seconds.unwrap_or(DEFAULT_LIFE_SECONDS);
        let kept = Kept {
            role: request.role,
            scope: request.scope.clone(),
            created_ms: now.0,
            expires_ms: now.0.saturating_add(life.saturating_mul(1000)),
            digest: hex(&digest),
        };
        documents.put(Kind::Token, &request.name, Expected::Absent, &kept).map_err(|error| match error {
            DocumentError::Changed { .. } => {
                Problem::new(ProblemKind::Conflict, format!("a token named '{}' exists already", request.name))
                    .advise("choose another name")
            }
            error => of_document(&error),
        })?;
        let made = Known { name: request.name.clone(), kept, digest };
        let token = shown(&made);
        let mut known = self.known.write();
        let at = known.partition_point(|other| other.name < made.name);
        known.insert(at, made);
        Ok(NewToken { token, secret })
    }

    /// Deletes one; from this moment nobody has it, whatever becomes of its document.
    pub(crate) fn delete(&self, documents: &Documents, name: &str) -> Result<(), Problem> {
        let _changes = self.changes.lock();
        let mut known = self.known.write();
        let at = known.iter().position(|token| token.name == name);
        let at = at.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("no token '{name}'")))?;
        known.remove(at);
        drop(known);
        documents.delete(Kind::Token, name, Expected::Anything).map_err(|error| {
            Problem::caused(ProblemKind::Internal, &error).advise("a restart may bring it back: delete it again then")
        })
    }
}

fn shown(known: &Known) -> Token {
    Token {
        name: known.name.clone(),
        role: known.kept.role,
        scope: known.kept.scope.clone(),
        created: rfc3339(Timestamp(known.kept.created_ms)),
        expires: rfc3339(Timestamp(known.kept.expires_ms)),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let pairs = text.as_bytes().chunks_exact(2);
    let bytes: Option<Vec<u8>> =
        pairs.map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok())).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lamina_api::page::Page;
    use lamina_api::problem::ProblemKind;
    use lamina_api::role::Role;
    use lamina_api::token::CreateToken;
    use lamina_contract::Timestamp;

    use super::Tokens;
    use crate::documents::Documents;

    fn request(name: &str) -> CreateToken {
        CreateToken { name: name.to_owned(), role: Role::Operator, expires_in_seconds: Some(60), scope: Some("dev-".to_owned()) }
    }

    #[test]
    fn a_token_outlives_a_restart_and_its_secret_is_nowhere() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let documents = Documents::open(&dir.path().join("documents"));
        let tokens = Tokens::open(&documents);
        let made = tokens.create(&documents, &request("ci"), Timestamp(1000)).expect("made");
        assert_eq!(made.secret.len(), "lamina_".len() + 64);
        assert_eq!(tokens.create(&documents, &request("ci"), Timestamp(0)).expect_err("taken").kind, ProblemKind::Conflict);
        let file = std::fs::read_to_string(dir.path().join("documents/token/ci.json")).expect("file");
        assert!(!file.contains(&made.secret["lamina_".len()..]));

        let documents = Documents::open(&dir.path().join("documents"));
        let tokens = Tokens::open(&documents);
        let caller = tokens.identify(&made.secret, Timestamp(60_999)).expect("known");
        assert_eq!((caller.who.as_str(), caller.role, caller.scope.as_deref()), ("token:ci", Role::Operator, Some("dev-")));
        assert!(tokens.identify(&made.secret, Timestamp(61_000)).is_none(), "it is old");
        assert!(tokens.identify(&made.secret.to_uppercase(), Timestamp(0)).is_none());
        assert_eq!(tokens.list(&Page::all()).tokens, [made.token]);
        tokens.delete(&documents, "ci").expect("deleted");
        assert!(tokens.identify(&made.secret, Timestamp(0)).is_none());
        assert_eq!(tokens.delete(&documents, "ci").expect_err("gone").kind, ProblemKind::NotFound);
        assert!(Tokens::open(&documents).list(&Page::all()).tokens.is_empty());
    }

    #[test]
    fn nobody_waits_to_be_known_while_a_change_of_tokens_waits_for_the_disk() {
        let dir = tempfile::TempDir::new().expect("tempdir");
        let documents = Documents::open(&dir.path().join("documents"));
        let tokens = Tokens::open(&documents);
        let [stays, goes] = ["stays", "goes"].map(|name| tokens.create(&documents, &request(name), Timestamp(0)).expect("made"));
        std::thread::scope(|scope| {
            let slow = documents.hold_changes();
            let making = scope.spawn(|| tokens.create(&documents, &request("late"), Timestamp(0)).expect("made"));
            let deleting = scope.spawn(|| tokens.delete(&documents, "goes").expect("deleted"));
            let (told, heard) = std::sync::mpsc::channel();
            let (tokens, stays) = (&tokens, &stays);
            scope.spawn(move || {
                // Long enough for both to have begun.
                std::thread::sleep(Duration::from_millis(200));
                let known = tokens.identify(&stays.secret, Timestamp(0)).is_some();
                told.send((known, tokens.list(&Page::all()).tokens.len())).expect("heard");
            });
            let answered = heard.recv_timeout(Duration::from_secs(5));
            drop(slow);
            let (known, count) = answered.expect("answered while the disk was slow");
            assert!(known && (1..=2).contains(&count), "{count}");
            let late = making.join().expect("no panic");
            deleting.join().expect("no panic");
            assert!(tokens.identify(&late.secret, Timestamp(0)).is_some() && tokens.identify(&goes.secret, Timestamp(0)).is_none());
        });
    }
}
