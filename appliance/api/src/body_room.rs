//! Room for the bodies of a listener's requests, from their first byte until the call has ended, so that they use so much memory and no
//! more. A caller over the network has a share of it: who sends much, or slowly, takes it from nobody else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::MAX_BODY_BYTES;
use crate::problem::{Problem, ProblemKind};

/// How long a body may take to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(15);

/// Bytes of bodies that a listener's requests hold at a time, also those that are still arriving: a body holds what of it has come.
const BODY_ROOM: usize = 96 << 20;
/// Of that for one caller over the network: 24 bodies of 1 MiB.
const CALLER_ROOM: usize = BODY_ROOM / 4;

/// See the file's header.
pub(crate) struct BodyRoom {
    all: Arc<Semaphore>,
    most_of_caller: usize,
    /// Bytes by caller; of those who hold some.
    of_caller: Mutex<HashMap<String, usize>>,
}

/// A body's room, which is free again when this goes.
pub(crate) struct Room {
    of: Arc<BodyRoom>,
    /// Whose share it is of; none for who has all.
    caller: Option<String>,
    held: Option<OwnedSemaphorePermit>,
}

impl BodyRoom {
    pub(crate) fn new() -> Arc<Self> {
        Self::with(BODY_ROOM, CALLER_ROOM)
    }

    fn with(all: usize, most_of_caller: usize) -> Arc<Self> {
        Arc::new(Self { all: Arc::new(Semaphore::new(all)), most_of_caller, of_caller: Mutex::default() })
    }

    /// A body of `caller`, if it has a share, as it arrives; and its room.
    pub(crate) async fn arrive(
        self: &Arc<Self>,
        caller: Option<&str>,
        headers: &HeaderMap,
        mut body: Body,
    ) -> Result<(Bytes, Room), Problem> {
        let too_large = || Problem::new(ProblemKind::TooLarge, format!("a body may have {MAX_BODY_BYTES} bytes"));
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|bytes| bytes > MAX_BODY_BYTES as u64) {
            return Err(too_large());
        }
        let until = tokio::time::Instant::now() + BODY_PATIENCE;
        let mut room = Room { of: Arc::clone(self), caller: caller.map(str::to_owned), held: None };
        let mut bytes = Vec::new();
        loop {
            let frame = match tokio::time::timeout_at(until, body.frame()).await {
                Ok(None) => return Ok((bytes.into(), room)),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(_))) => return Err(Problem::new(ProblemKind::InvalidRequest, "the body broke off")),
                Err(_) => {
                    let detail = format!("the body did not arrive within {} seconds", BODY_PATIENCE.as_secs());
                    return Err(Problem::new(ProblemKind::Timeout, detail));
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > MAX_BODY_BYTES {
                return Err(too_large());
            }
            room.grow(data.len())?;
            bytes.extend_from_slice(&data);
        }
    }
}

impl Room {
    fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let refused = |detail: &str| Problem::new(ProblemKind::TooManyRequests, detail).advise("ask again in a second");
        let no_room = || refused("other requests' bodies have all room that there is");
        // Its share under the lock with the room itself: what `held` says is what a caller's count has of this.
        let mut shares = self.of.of_caller.lock();
        let share = self.caller.as_ref().map(|caller| shares.get(caller).copied().unwrap_or(0) + bytes);
        if share.is_some_and(|share| share > self.of.most_of_caller) {
            return Err(refused("bodies of this caller's other requests have all room that one caller has"));
        }
        let more = u32::try_from(bytes).ok().and_then(|bytes| Arc::clone(&self.of.all).try_acquire_many_owned(bytes).ok());
        let more = more.ok_or_else(no_room)?;
        match &mut self.held {
            Some(held) => held.merge(more),
            none => *none = Some(more),
        }
        if let (Some(caller), Some(share)) = (&self.caller, share) {
            shares.insert(caller.clone(), share);
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let (Some(caller), Some(held)) = (&self.caller, &self.held) else { return };
        let mut shares = self.of.of_caller.lock();
        if let Some(share) = shares.get_mut(caller) {
            *share -= held.num_permits();
            if *share == 0 {
                shares.remove(caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::HeaderMap;

    use super::BodyRoom;
    use crate::problem::ProblemKind;

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime").block_on(test);
    }

    #[test]
    fn bodies_have_room_for_so_many_bytes_in_all_and_no_more() {
        run(async {
            let (none, room) = (HeaderMap::new(), BodyRoom::with(100, 100));
            let (bytes, held) = room.arrive(None, &none, Body::from(vec![1; 60])).await.expect("there is room");
            assert_eq!((bytes.len(), room.all.available_permits()), (60, 40));
            let refused = room.arrive(None, &none, Body::from(vec![1; 41])).await.err().expect("too much");
            assert_eq!((refused.kind, room.all.available_permits()), (ProblemKind::TooManyRequests, 40));
            drop(held);
            assert!(room.arrive(None, &none, Body::from(vec![1; 100])).await.is_ok());
            assert_eq!(room.all.available_permits(), 100);
        });
    }

    #[test]
    fn a_caller_has_a_share_of_the_room_and_others_have_the_rest() {
        run(async {
            let (none, room) = (HeaderMap::new(), BodyRoom::with(100, 50));
            let arrive = async |caller: Option<&str>, bytes: usize| room.arrive(caller, &none, Body::from(vec![1; bytes])).await;
            let first = arrive(Some("token:a"), 30).await.expect("of its share");
            let second = arrive(Some("token:a"), 20).await.expect("the rest of it");
            let refused = arrive(Some("token:a"), 1).await.err().expect("it has its share");
            assert_eq!(refused.kind, ProblemKind::TooManyRequests);
            let other = arrive(Some("token:b"), 40).await.expect("another's share");
            assert!(arrive(Some("token:b"), 11).await.is_err(), "there is no room at all");
            drop(first);
            assert!(arrive(Some("token:a"), 31).await.is_err());
            assert!(arrive(Some("token:a"), 30).await.is_ok());
            assert!(arrive(None, 40).await.is_ok(), "who has no share has all that there is");
            drop((second, other));
            assert!(room.of_caller.lock().is_empty() && room.all.available_permits() == 100);
        });
    }
}
