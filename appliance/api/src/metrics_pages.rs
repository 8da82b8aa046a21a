//! The metrics page: made once a second at most, however many ask, and shared by those who read it. Pages that slow clients still read
//! are few ([`MOST_PAGES`]): a page of a thousand volumes has 24 MiB. While all those are being read the newest is answered although it is
//! no longer fresh, so that slow readers take it from nobody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::connection::READ_PATIENCE;
use crate::problem::{Problem, ProblemKind};

/// How long a page is as good as new.
const FRESH: Duration = Duration::from_secs(1);
/// Pages in memory, the newest and the one that is being made among them.
const MOST_PAGES: usize = 4;
/// How old a page may become when there is no place for another. Older pages were handed out before this one was made, and whoever has not
/// read an answer within the patience is let go: a place is free by then.
const STALE: Duration = READ_PATIENCE.saturating_add(Duration::from_secs(5));

/// All pages.
pub(crate) struct MetricsPages {
    /// Held while one is made: whoever asks meanwhile gets that one.
    newest: Mutex<Option<(Instant, Arc<Page>)>>,
    places: Arc<Semaphore>,
}

/// A page and its place, which is free when its last reader is gone.
struct Page {
    text: String,
    _place: OwnedSemaphorePermit,
}

/// A reader's share of a page.
struct Share(Arc<Page>);

impl AsRef<[u8]> for Share {
    fn as_ref(&self) -> &[u8] {
        self.0.text.as_bytes()
    }
}

impl MetricsPages {
    pub(crate) fn new() -> Self {
        Self { newest: Mutex::default(), places: Arc::new(Semaphore::new(MOST_PAGES)) }
    }

    /// The page, made by `make` unless there is a fresh one, or an older one and no place. Blocks.
    pub(crate) fn page(&self, make: impl FnOnce() -> String) -> Result<Bytes, Problem> {
        let share = |page: &Arc<Page>| Bytes::from_owner(Share(Arc::clone(page)));
        let mut newest = self.newest.lock();
        if let Some((made, page)) = &*newest
            && made.elapsed() < FRESH
        {
            return Ok(share(page));
        }
        let place = || Arc::clone(&self.places).try_acquire_owned().ok();
        let Some(place) = place().or_else(|| {
            // One that nobody reads makes room; shares are given under this lock only.
            newest.take_if(|(_, page)| Arc::strong_count(page) == 1)?;
            place()
        }) else {
            return match &*newest {
                Some((made, page)) if made.elapsed() < STALE => Ok(share(page)),
                _ => Err(Problem::new(ProblemKind::TooManyRequests, "earlier metrics pages are still being read, too slowly")
                    .advise("ask again in a minute")),
            };
        };
        let page = Arc::new(Page { text: make(), _place: place });
        let shared = share(&page);
        *newest = Some((Instant::now(), page));
        Ok(shared)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{FRESH, MOST_PAGES, MetricsPages};

    #[test]
    fn a_page_is_made_once_a_second_and_slow_readers_of_many_take_the_newest_from_nobody() {
        let pages = MetricsPages::new();
        let pause = || std::thread::sleep(FRESH + Duration::from_millis(10));
        let mut read = Vec::new();
        for number in 0..MOST_PAGES {
            read.push(pages.page(|| number.to_string()).expect("made"));
            assert_eq!(pages.page(|| panic!("it is fresh")).expect("shared"), read[number]);
            pause();
        }
        // Each is being read: the newest is still answered, although it is not fresh.
        assert_eq!(pages.page(|| panic!("no place")).expect("the newest"), read[MOST_PAGES - 1]);
        assert_eq!(pages.places.available_permits(), 0);
        // Nobody reads the newest: the next has its place.
        drop(read.pop());
        assert_eq!(pages.page(|| "next".to_owned()).expect("made"), "next");
        pause();
        drop(read.pop());
        assert_eq!(pages.page(|| "another".to_owned()).expect("made"), "another");
        // A panic in the making costs no place.
        drop(read);
        pause();
        for _ in 0..=MOST_PAGES {
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pages.page(|| panic!("a bug"))));
            assert!(made.is_err());
        }
        assert_eq!(pages.page(|| "after".to_owned()).expect("made"), "after");
    }
}
