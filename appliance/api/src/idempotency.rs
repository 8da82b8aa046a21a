//! `Idempotency-Key`: a POST that is sent again is answered again and not done again.
//!
//! What is kept, for a day and up to [`MAX_KEPT`] keys, the oldest going first: that a request began, durably before it is done; then its
//! answer, when it was done. So a restart is covered: a request that was done is answered again; one of which that is not known (a kill, a
//! panic) is refused with the advice to look. What failed and changed nothing is forgotten, and done when it is sent again. Not kept are
//! bodies over [`MAX_KEPT_BYTES`] and secrets: such a request is not done again either, but its answer cannot be repeated.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::appliance::Appliance;
use crate::call::{Answer, JSON};
use crate::problem::{Problem, ProblemKind};
use crate::tag::hex;

/// Keys that are remembered.
pub const MAX_KEPT: usize = 4096;
/// Bytes of a body that is kept: 4096 of them are 64 MiB at most.
pub const MAX_KEPT_BYTES: usize = 16 << 10;
/// A day.
const LIFE_MS: u64 = 86_400_000;
/// Characters of a key.
const MAX_KEY: usize = 255;

/// What is kept of a request with a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptAnswer {
    /// SHA-256 of caller and key, its first half in hexadecimal: nothing of either is kept.
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
    /// Its body, when that is kept.
    pub body: Option<String>,
}

/// A request with a key: what makes it the same again.
pub(crate) struct Keyed {
    key: String,
    request: String,
}

impl Keyed {
    /// Of `who`'s request with `key`; `parts` are all that the request is made of.
    pub(crate) fn new(who: &str, key: &str, parts: &[&[u8]]) -> Result<Self, Problem> {
        if key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(|b| b.is_ascii_graphic()) {
            let detail = format!("an Idempotency-Key has 1 to {MAX_KEY} visible ASCII characters");
            return Err(Problem::new(ProblemKind::InvalidRequest, detail));
        }
        let digest = |parts: &[&[u8]]| {
            let mut digest = Sha256::new();
            for part in parts {
                // With its length, so that no two lists of parts read the same.
                digest.update((part.len() as u64).to_le_bytes());
                digest.update(part);
            }
            digest.finalize()
        };
        let mut key = hex(&digest(&[who.as_bytes(), key.as_bytes()]));
        key.truncate(32);
        Ok(Self { key, request: hex(&digest(parts)) })
    }
}

#[derive(Debug)]
enum State {
    Running,
    Known(Answered),
    /// It began, and its end was not seen.
    Unknown,
}

#[derive(Debug)]
struct Entry {
    request: String,
    at_ms: u64,
    state: State,
}

/// All that is kept.
pub(crate) struct Answers {
    appliance: Arc<dyn Appliance>,
    entries: Mutex<BTreeMap<String, Entry>>,
}

impl Answers {
    /// With what an earlier process kept.
    pub(crate) fn new(appliance: Arc<dyn Appliance>) -> Self {
        let entry = |kept: KeptAnswer| {
            let state = kept.answer.map_or(State::Unknown, State::Known);
            (kept.key, Entry { request: kept.request, at_ms: kept.at_ms, state })
        };
        let entries = Mutex::new(appliance.kept_answers().into_iter().map(entry).collect());
        Self { appliance, entries }
    }

    /// Does `act` unless the same was done before; then its answer is given again. The second value says whether it was.
    pub(crate) fn once(
        &self,
        keyed: &Keyed,
        secret: bool,
        act: impl FnOnce() -> Result<Answer, Problem>,
    ) -> Result<(Answer, bool), Problem> {
        let at_ms = self.appliance.now().0;
        if let Some(again) = self.begin(keyed, at_ms)? {
            return Ok((again, true));
        }
        // A panic in `act` leaves the entry running in memory and begun on disk: `Unfinished` turns it into unknown.
        let mut unfinished = Unfinished { answers: self, key: &keyed.key, state: Some(State::Unknown) };
        let kept = |answer| KeptAnswer { key: keyed.key.clone(), request: keyed.request.clone(), at_ms, answer };
        if let Err(problem) = self.appliance.keep_answer(&kept(None)) {
            unfinished.state = None;
            return Err(problem);
        }
        let outcome = act();
        match &outcome {
            Ok(answer) => {
                let fits = !secret && answer.media_type == JSON && answer.body.len() <= MAX_KEPT_BYTES;
                let body = if fits { String::from_utf8(answer.body.to_vec()).ok() } else { None };
                let answered = Answered { status: answer.status, tag: answer.tag.clone(), body };
                if let Err(problem) = self.appliance.keep_answer(&kept(Some(answered.clone()))) {
                    tracing::warn!(%problem, "an answer is not kept: after a restart its request is refused as unknown");
                }
                unfinished.state = Some(State::Known(answered));
            }
            // Inside, anything may have happened.
            Err(problem) if problem.kind == ProblemKind::Internal => {}
            Err(_) => {
                self.appliance.drop_answer(&keyed.key);
                unfinished.state = None;
            }
        }
        drop(unfinished);
        outcome.map(|answer| (answer, false))
    }

    /// Notes that a request begins, or gives the answer that it had.
    fn begin(&self, keyed: &Keyed, now_ms: u64) -> Result<Option<Answer>, Problem> {
        let mut entries = self.entries.lock();
        let mut gone: Vec<String> = Vec::new();
        let old = |entry: &Entry| entry.at_ms.saturating_add(LIFE_MS) <= now_ms && !matches!(entry.state, State::Running);
        gone.extend(entries.iter().filter(|(_, entry)| old(entry)).map(|(key, _)| key.clone()));
        if entries.len() - gone.len() >= MAX_KEPT && !entries.contains_key(&keyed.key) {
            let ended = entries.iter().filter(|(_, entry)| !old(entry) && !matches!(entry.state, State::Running));
            gone.extend(ended.min_by_key(|(_, entry)| entry.at_ms).map(|(key, _)| key.clone()));
        }
        for key in gone {
            entries.remove(&key);
            self.appliance.drop_answer(&key);
        }
        if let Some(entry) = entries.get(&keyed.key) {
            return repeated(entry, keyed).map(Some);
        }
        entries.insert(keyed.key.clone(), Entry { request: keyed.request.clone(), at_ms: now_ms, state: State::Running });
        Ok(None)
    }
}

fn repeated(entry: &Entry, keyed: &Keyed) -> Result<Answer, Problem> {
    if entry.request != keyed.request {
        return Err(Problem::new(ProblemKind::KeyReused, "this Idempotency-Key came with another request before")
            .advise("a new request has a new key"));
    }
    let conflict = |detail: &str, advice: &str| Err(Problem::new(ProblemKind::Conflict, detail).advise(advice));
    match &entry.state {
        State::Running => conflict("the first request with this Idempotency-Key is still being answered", "send it again later"),
        State::Unknown => conflict(
            "the first request with this Idempotency-Key was cut off, and it is not known whether it was done",
            "look at the state; then send it with a new key if it was not",
        ),
        State::Known(Answered { body: None, status, .. }) if *status != 204 => conflict(
            "the first request with this Idempotency-Key was done, and its answer is too large or too secret to be kept",
            "look at the state",
        ),
        State::Known(answered) => Ok(Answer {
            status: answered.status,
            tag: answered.tag.clone(),
            body: answered.body.clone().unwrap_or_default().into(),
            ..Answer::nothing()
        }),
    }
}

/// Sets the entry's state when it goes: `None` forgets it.
struct Unfinished<'a> {
    answers: &'a Answers,
    key: &'a str,
    state: Option<State>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let mut entries = self.answers.entries.lock();
        match self.state.take() {
            Some(state) => {
                if let Some(entry) = entries.get_mut(self.key) {
                    entry.state = state;
                }
            }
            None => {
                entries.remove(self.key);
            }
        }
    }
}
