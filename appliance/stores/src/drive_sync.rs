//! Directory syncs that many share.
//!
//! Fragments of several objects come into one directory at about the same time, and each must be durable there. One sync that begins
//! after a name was made covers it, whoever makes it: those who come while one runs wait for the next, which one of them makes for all.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// Syncs by directory, which fail with an `E`. What nobody waits for is forgotten.
#[derive(Debug)]
pub(crate) struct SharedSyncs<E>(Mutex<HashMap<String, Arc<Turns<E>>>>);

#[derive(Debug)]
struct Turns<E> {
    state: Mutex<State<E>>,
    ended: Condvar,
}

#[derive(Debug)]
struct State<E> {
    /// Syncs that have begun, counted.
    begun: u64,
    /// The newest one that has ended.
    done: u64,
    running: bool,
    /// The newest one that failed, and how.
    failed: Option<(u64, E)>,
}

impl<E> Default for SharedSyncs<E> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<E: Copy> SharedSyncs<E> {
    /// Returns once a sync of `directory` that began after this call has ended: `sync`, or somebody else's.
    pub(crate) fn sync(&self, directory: &str, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let turns = Arc::clone(self.0.lock().entry(directory.to_owned()).or_insert_with(|| Arc::new(Turns::new())));
        let outcome = turns.take(sync);
        let mut all = self.0.lock();
        drop(turns);
        // Whoever holds it took it under this lock: one holder, the map, means that nobody waits.
        if all.get(directory).is_some_and(|turns| Arc::strong_count(turns) == 1) {
            all.remove(directory);
        }
        outcome
    }
}

impl<E: Copy> Turns<E> {
    fn new() -> Self {
        Self { state: Mutex::new(State { begun: 0, done: 0, running: false, failed: None }), ended: Condvar::new() }
    }

    fn take(&self, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut state = self.state.lock();
        let mine = state.begun + 1;
        while state.running && state.done < mine {
            self.ended.wait(&mut state);
        }
        if state.done >= mine {
            // A later one that failed says nothing good of this one either.
            return state.failed.filter(|(failed, _)| *failed >= mine).map_or(Ok(()), |(_, error)| Err(error));
        }
        state.running = true;
        state.begun += 1;
        let this = state.begun;
        drop(state);
        let outcome = sync();
        let mut state = self.state.lock();
        state.running = false;
        state.done = this;
        if let Err(error) = outcome {
            state.failed = Some((this, error));
        }
        self.ended.notify_all();
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::SharedSyncs;

    /// Lets one sync run while `waiting` others come; how those ended, and how many syncs they made.
    fn while_one_runs(outcome: Result<(), i32>, waiting: usize) -> (Vec<Result<(), i32>>, u64) {
        let syncs = Arc::new(SharedSyncs::default());
        let (begun, has_begun) = mpsc::channel();
        let (end, may_end) = mpsc::channel();
        let made = Arc::new(AtomicU64::new(0));
        let first = thread::spawn({
            let syncs = Arc::clone(&syncs);
            move || {
                syncs.sync("d", || {
                    begun.send(()).expect("the test waits");
                    may_end.recv().expect("the test says so");
                    Ok(())
                })
            }
        });
        has_begun.recv().expect("it begins");
        let others: Vec<_> = (0..waiting)
            .map(|_| {
                let (syncs, made) = (Arc::clone(&syncs), Arc::clone(&made));
                thread::spawn(move || {
                    syncs.sync("d", || {
                        made.fetch_add(1, Ordering::SeqCst);
                        outcome
                    })
                })
            })
            .collect();
        // Everybody has come: the map holds it, the first, and each of the others.
        while syncs.0.lock().get("d").map_or(0, Arc::strong_count) < waiting + 2 {
            thread::yield_now();
        }
        // Holding it is not yet waiting for it: a few instructions lie between.
        thread::sleep(Duration::from_millis(50));
        assert_eq!(made.load(Ordering::SeqCst), 0, "no second sync begins while one runs");
        end.send(()).expect("it waits");
        assert_eq!(first.join().expect("no panic"), Ok(()));
        let outcomes = others.into_iter().map(|other| other.join().expect("no panic")).collect();
        assert!(syncs.0.lock().is_empty(), "nothing is remembered");
        (outcomes, made.load(Ordering::SeqCst))
    }

    #[test]
    fn those_who_come_while_one_runs_share_the_next_one() {
        assert_eq!(while_one_runs(Ok(()), 8), (vec![Ok(()); 8], 1));
    }

    #[test]
    fn a_shared_sync_that_fails_fails_for_all() {
        assert_eq!(while_one_runs(Err(5), 8), (vec![Err(5); 8], 1));
    }

    #[test]
    fn directories_do_not_wait_for_each_other_and_a_failure_is_not_remembered() {
        let syncs = SharedSyncs::default();
        assert_eq!(syncs.sync("a", || syncs.sync("b", || Err(5))), Err(5));
        assert_eq!(syncs.sync("a", || syncs.sync("b", || Ok(()))), Ok(()));
    }
}
