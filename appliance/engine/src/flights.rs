//! What is being fetched at this moment: whoever misses the same thing meanwhile waits for the first reader instead of asking the store
//! again.
//!
//! The first to come leads and the others follow. However a lead ends (landed, failed, dropped with the reader whose request went away),
//! its followers are told at once, and nothing stays in the table. The table's bound is that of the reads in flight: each names what it
//! misses, once.

use std::collections::HashMap;
use std::hash::Hash;

use futures::FutureExt;
use futures::future::Shared;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Things of one kind that are under way.
pub(crate) struct Flights<K: Eq + Hash, V: Clone> {
    under_way: Mutex<HashMap<K, Shared<oneshot::Receiver<V>>>>,
}

/// Who fetches it.
pub(crate) enum Seat<'a, K: Eq + Hash, V: Clone> {
    /// The caller does.
    Lead(Lead<'a, K, V>),
    /// Another does already.
    Follow(Follow<V>),
}

/// The duty to fetch something that others may be waiting for.
#[must_use = "dropped, it tells those who follow that nothing comes"]
pub(crate) struct Lead<'a, K: Eq + Hash, V: Clone> {
    flights: &'a Flights<K, V>,
    key: K,
    tell: Option<oneshot::Sender<V>>,
}

/// A place behind a lead.
#[must_use = "nothing is waited for until it is awaited"]
pub(crate) struct Follow<V: Clone>(Shared<oneshot::Receiver<V>>);

impl<K: Eq + Hash + Clone, V: Clone> Flights<K, V> {
    pub(crate) fn new() -> Self {
        Self { under_way: Mutex::default() }
    }

    /// Leads, if nobody does.
    pub(crate) fn join(&self, key: &K) -> Seat<'_, K, V> {
        let mut under_way = self.under_way.lock();
        if let Some(lead) = under_way.get(key) {
            return Seat::Follow(Follow(lead.clone()));
        }
        let (tell, told) = oneshot::channel();
        under_way.insert(key.clone(), told.shared());
        Seat::Lead(Lead { flights: self, key: key.clone(), tell: Some(tell) })
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.under_way.lock().len()
    }
}

impl<K: Eq + Hash, V: Clone> Lead<'_, K, V> {
    /// It is there. Whoever asks from now on must find it where its reader has put it.
    pub(crate) fn land(mut self, value: V) {
        if let Some(tell) = self.tell.take() {
            // Nobody may have followed.
            let _ = tell.send(value);
        }
    }
}

impl<K: Eq + Hash, V: Clone> Drop for Lead<'_, K, V> {
    fn drop(&mut self) {
        // Before the sender goes: who follows and tries again must not find this one.
        self.flights.under_way.lock().remove(&self.key);
    }
}

impl<V: Clone> Follow<V> {
    /// What the lead brought; None when it ended without.
    pub(crate) async fn landed(self) -> Option<V> {
        self.0.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::{Flights, Follow, Lead, Seat};

    fn lead<'a>(flights: &'a Flights<u8, u8>, key: u8) -> Lead<'a, u8, u8> {
        match flights.join(&key) {
            Seat::Lead(lead) => lead,
            Seat::Follow(_) => panic!("somebody leads {key}"),
        }
    }

    fn follow(flights: &Flights<u8, u8>, key: u8) -> Follow<u8> {
        match flights.join(&key) {
            Seat::Follow(follow) => follow,
            Seat::Lead(_) => panic!("nobody leads {key}"),
        }
    }

    #[test]
    fn the_first_leads_and_what_it_brings_reaches_all_who_follow() {
        let flights = Flights::new();
        let one = lead(&flights, 1);
        let other = lead(&flights, 2);
        let (first, second) = (follow(&flights, 1), follow(&flights, 1));
        let mut waiting = Box::pin(first.landed());
        assert_eq!(waiting.as_mut().now_or_never(), None);
        one.land(7);
        assert_eq!(waiting.now_or_never(), Some(Some(7)));
        assert_eq!(second.landed().now_or_never(), Some(Some(7)));
        assert_eq!(flights.len(), 1, "the other is under way");
        drop(other);
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn a_lead_that_goes_away_tells_who_follows_and_makes_room_for_the_next() {
        let flights = Flights::new();
        let gone = lead(&flights, 1);
        let waiting = follow(&flights, 1);
        drop(gone);
        assert_eq!(waiting.landed().now_or_never(), Some(None));
        lead(&flights, 1).land(9);
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn who_follows_may_go_away_without_harm() {
        let flights = Flights::new();
        let leading = lead(&flights, 1);
        drop(follow(&flights, 1));
        let stays = follow(&flights, 1);
        leading.land(3);
        assert_eq!(stays.landed().now_or_never(), Some(Some(3)));
    }
}
