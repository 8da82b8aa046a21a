//! What is known of an object: its stripe, where the fragments are, and their verified headers; and a bounded cache of that.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lamina_formats::fragment::FragmentHeader;
use object_store::path::Path;
use parking_lot::{Mutex, RwLock};

use crate::stripe::Layout;

/// A stripe and the targets that hold its fragments.
#[derive(Debug)]
pub(crate) struct StripeView {
    pub(crate) layout: Layout,
    /// By fragment index: positions of targets that hold it; usually one.
    pub(crate) holders: Vec<Vec<usize>>,
    headers: RwLock<Vec<Option<Arc<FragmentHeader>>>>,
}

impl StripeView {
    pub(crate) fn new(layout: Layout, holders: Vec<Vec<usize>>) -> Self {
        let headers = RwLock::new(vec![None; holders.len()]);
        Self { layout, holders, headers }
    }

    pub(crate) fn found(&self) -> usize {
        self.holders.iter().filter(|holders| !holders.is_empty()).count()
    }

    pub(crate) fn is_readable(&self) -> bool {
        self.found() >= self.layout.policy.data()
    }

    pub(crate) fn header(&self, index: usize) -> Option<Arc<FragmentHeader>> {
        self.headers.read().get(index).cloned().flatten()
    }

    pub(crate) fn learn(&self, index: usize, header: Arc<FragmentHeader>) {
        if let Some(place) = self.headers.write().get_mut(index) {
            *place = Some(header);
        }
    }

    pub(crate) fn forget_header(&self, index: usize) {
        if let Some(place) = self.headers.write().get_mut(index) {
            *place = None;
        }
    }

    /// An upper bound that does not change while it is cached: all headers known, 4 bytes a page.
    fn footprint(&self) -> usize {
        self.holders.len() * (160 + 4 * self.layout.pages() as usize) + 256
    }
}

/// Views by key, at most so many bytes; the one that was not used for longest goes first (second chance).
#[derive(Debug)]
pub(crate) struct ViewCache {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Path, Arc<Entry>>,
    /// Keys in order of arrival; may name keys that are gone.
    queue: VecDeque<(Path, Arc<Entry>)>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    view: Arc<StripeView>,
    used: AtomicBool,
}

impl ViewCache {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, inner: Mutex::default() }
    }

    pub(crate) fn get(&self, key: &Path) -> Option<Arc<StripeView>> {
        let inner = self.inner.lock();
        let entry = inner.entries.get(key)?;
        entry.used.store(true, Ordering::Relaxed);
        Some(Arc::clone(&entry.view))
    }

    pub(crate) fn insert(&self, key: &Path, view: Arc<StripeView>) {
        let mut inner = self.inner.lock();
        inner.remove(key);
        inner.bytes += view.footprint();
        let entry = Arc::new(Entry { view, used: AtomicBool::new(false) });
        inner.entries.insert(key.clone(), Arc::clone(&entry));
        inner.queue.push_back((key.clone(), entry));
        while inner.bytes > self.limit || inner.queue.len() > 2 * inner.entries.len() + 16 {
            let Some((key, entry)) = inner.queue.pop_front() else { break };
            let current = inner.entries.get(&key).is_some_and(|known| Arc::ptr_eq(known, &entry));
            if !current {
                continue;
            }
            if entry.used.swap(false, Ordering::Relaxed) && inner.queue.len() > 1 {
                inner.queue.push_back((key, entry));
            } else {
                inner.remove(&key);
            }
        }
    }

    pub(crate) fn remove(&self, key: &Path) {
        self.inner.lock().remove(key);
    }

    /// Removes the entry for `key` only if it is still this view.
    pub(crate) fn remove_view(&self, key: &Path, view: &Arc<StripeView>) {
        let mut inner = self.inner.lock();
        if inner.entries.get(key).is_some_and(|entry| Arc::ptr_eq(&entry.view, view)) {
            inner.remove(key);
        }
    }
}

impl Inner {
    fn remove(&mut self, key: &Path) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes = self.bytes.saturating_sub(entry.view.footprint());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lamina_formats::fragment::StripeId;
    use object_store::path::Path;

    use super::{StripeView, ViewCache};
    use crate::stripe::Layout;

    fn view(len: u64) -> Arc<StripeView> {
        let layout = Layout { stripe: StripeId::new(1, len), policy: "4+2".parse().expect("a policy"), len };
        Arc::new(StripeView::new(layout, vec![Vec::new(); 6]))
    }

    #[test]
    fn the_cache_stays_within_its_bytes_and_keeps_what_is_used() {
        let one = view(4 << 20).footprint();
        let cache = ViewCache::new(10 * one);
        let favourite = Path::from("favourite");
        cache.insert(&favourite, view(4 << 20));
        for n in 0..1000 {
            assert!(cache.get(&favourite).is_some(), "round {n}");
            cache.insert(&Path::from(format!("k{n}")), view(4 << 20));
            let inner = cache.inner.lock();
            assert!(inner.bytes <= cache.limit && inner.entries.len() <= 10 && inner.queue.len() <= 37);
        }
        assert!(cache.get(&Path::from("k0")).is_none() && cache.get(&Path::from("k999")).is_some());
        cache.remove(&favourite);
        assert!(cache.get(&favourite).is_none());
    }

    #[test]
    fn replacing_one_key_for_ever_does_not_grow() {
        let cache = ViewCache::new(1 << 20);
        for _ in 0..10_000 {
            cache.insert(&Path::from("k"), view(4096));
        }
        let inner = cache.inner.lock();
        assert!(inner.queue.len() < 64 && inner.entries.len() == 1);
    }
}
