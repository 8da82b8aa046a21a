//! The metrics page: made once a second at most, however many ask, and shared by those who read it. Pages that slow clients still read
//! are few ([`MOST_PAGES`]): a page of a thousand volumes has 24 MiB.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::problem::{Problem, ProblemKind};

/// How long a page is as good as new.
const FRESH: Duration = Duration::from_secs(1);
/// Pages in memory, the newest among them.
const MOST_PAGES: usize = 4;

/// All pages.
pub(crate) struct MetricsPages {
    /// Held while one is made: whoever asks meanwhile gets that one.
    newest: Mutex<Option<(Instant, Bytes)>>,
    places: Arc<Semaphore>,
}

/// A page and its place, which is free when its last reader is gone.
struct Page {
    text: String,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Page {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl MetricsPages {
    pub(crate) fn new() -> Self {
        Self { newest: Mutex::default(), places: Arc::new(Semaphore::new(MOST_PAGES)) }
    }

    /// The page, made by `make` unless there is a fresh one. Blocks.
    pub(crate) fn page(&self, make: impl FnOnce() -> String) -> Result<Bytes, Problem> {
        let mut newest = self.newest.lock();
        if let Some((made, page)) = &*newest
            && made.elapsed() < FRESH
        {
            return Ok(page.clone());
        }
        // Its place is free unless somebody reads it.
        *newest = None;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Problem::new(ProblemKind::TooManyRequests, "earlier metrics pages are still being read, too slowly")
                .advise("ask again in a minute")
        })?;
        let page = Bytes::from_owner(Page { text: make(), _place: place });
        *newest = Some((Instant::now(), page.clone()));
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{FRESH, MOST_PAGES, MetricsPages};

    #[test]
    fn a_page_is_made_once_a_second_and_those_in_memory_are_few() {
        let pages = MetricsPages::new();
        let pause = || std::thread::sleep(FRESH + Duration::from_millis(10));
        let mut read = Vec::new();
        for number in 0..MOST_PAGES {
            read.push(pages.page(|| number.to_string()).expect("made"));
            assert_eq!(pages.page(|| panic!("it is fresh")).expect("shared"), read[number]);
            pause();
        }
        assert!(pages.page(|| panic!("no place")).is_err());
        drop(read.pop());
        assert_eq!(pages.page(|| "next".to_owned()).expect("made"), "next");
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
