//! One writer per key: puts, deletes and repair of the same object take turns. Readers take no lock.

use std::collections::HashMap;
use std::sync::Arc;

use object_store::path::Path;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

type Gate = Arc<tokio::sync::Mutex<()>>;

/// Keys that are being changed, and who waits for them.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyLocks {
    gates: Arc<Mutex<HashMap<Path, Gate>>>,
}

/// The right to change one object; may be handed to another task.
#[derive(Debug)]
pub(crate) struct KeyGuard {
    locks: KeyLocks,
    key: Path,
    guard: Option<OwnedMutexGuard<()>>,
}

impl KeyLocks {
    pub(crate) async fn lock(&self, key: &Path) -> KeyGuard {
        let gate = Arc::clone(self.gates.lock().entry(key.clone()).or_default());
        let guard = gate.lock_owned().await;
        KeyGuard { locks: self.clone(), key: key.clone(), guard: Some(guard) }
    }

    /// Whether somebody changes `key` now.
    pub(crate) fn is_held(&self, key: &Path) -> bool {
        self.gates.lock().get(key).is_some_and(|gate| gate.try_lock().is_err())
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        let mut gates = self.locks.gates.lock();
        self.guard = None;
        // Nobody else holds or awaits it: new ones take the map's lock first. (A waiter that gave up leaves the entry to the next.)
        if gates.get(&self.key).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            gates.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use object_store::path::Path;

    use super::KeyLocks;

    #[tokio::test]
    async fn a_key_has_one_holder_and_leaves_nothing_behind() {
        let locks = KeyLocks::default();
        let key = Path::from("k");
        let first = locks.lock(&key).await;
        assert!(locks.is_held(&key) && !locks.is_held(&Path::from("other")));
        let other = locks.clone();
        let waiting = tokio::spawn(async move { drop(other.lock(&Path::from("k")).await) });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.expect("the waiter gets it");
        assert!(locks.gates.lock().is_empty());
    }
}
