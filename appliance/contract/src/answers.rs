//! Answers that one thread gives in a row, told to their guests together: an interrupt costs more than the answer itself.
//!
//! A device that has several answers at hand (a group commit, reads that completed at once) gives them inside [`together`]. A front end
//! makes each visible at once, asks [`announce_later`] whether somebody will remind it, and otherwise interrupts its guest itself.

use std::cell::RefCell;
use std::sync::Arc;

/// What a front end is reminded of: interrupt the guest, if it still wants that.
pub trait Announce: Send + Sync {
    /// Called once at the end of [`together`], however many answers there were.
    fn announce(&self);
}

thread_local! {
    static WAITING: RefCell<Option<Vec<Arc<dyn Announce>>>> = const { RefCell::new(None) };
}

/// Announces what waits when it is dropped, by a panic too.
struct Reminder;

impl Drop for Reminder {
    fn drop(&mut self) {
        let waiting = WAITING.with_borrow_mut(Option::take);
        waiting.into_iter().flatten().for_each(|who| who.announce());
    }
}

/// Runs `work`; guests that it answers are interrupted when it ends. For short work: answers wait for it.
pub fn together<T>(work: impl FnOnce() -> T) -> T {
    let outermost = WAITING.with_borrow_mut(|waiting| waiting.is_none().then(|| *waiting = Some(Vec::new())).is_some());
    let _reminder = outermost.then(|| Reminder);
    work()
}

/// Whether `who` will be told at the end of the [`together`] that this thread is in; false if it is in none.
pub fn announce_later<A: Announce + 'static>(who: &Arc<A>) -> bool {
    WAITING.with_borrow_mut(|waiting| {
        let Some(waiting) = waiting else { return false };
        let same = |other: &Arc<dyn Announce>| std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(who));
        // The newest first: answers for one ring come in a row.
        if !waiting.iter().rev().any(same) {
            waiting.push(who.clone());
        }
        true
    })
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::{Announce, announce_later, together};

    #[derive(Default)]
    struct Bell(AtomicU32);

    impl Announce for Bell {
        fn announce(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn each_is_told_once_at_the_end_of_the_outermost_and_after_a_panic_too() {
        let (one, other) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
        assert!(!announce_later(&one), "nobody would remind it");
        together(|| {
            together(|| {
                for bell in [&one, &other, &one] {
                    assert!(announce_later(bell));
                }
            });
            assert_eq!(one.0.load(Ordering::Relaxed), 0, "not before the outermost ends");
        });
        let rung = |bell: &Bell| bell.0.load(Ordering::Relaxed);
        assert_eq!((rung(&one), rung(&other)), (1, 1));
        let ended = catch_unwind(AssertUnwindSafe(|| {
            together(|| {
                announce_later(&one);
                panic!("a receiver's");
            })
        }));
        assert!(ended.is_err());
        assert_eq!((rung(&one), rung(&other)), (2, 1));
        assert!(!announce_later(&one));
    }
}
