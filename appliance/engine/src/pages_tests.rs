//! The cache of map pages: bounds, sharing, failures.

use std::sync::Arc;

use lamina_contract::{Epoch, VolumeId};
use lamina_formats::map::{MapObject, PageId, PageKind, PageRef};

use super::PageCache;

fn page(number: u64, bytes: usize) -> (PageId, PageRef, Arc<[u8]>) {
    let id = PageId { volume: VolumeId(1), kind: PageKind::Leaf, number };
    let object = MapObject { epoch: Epoch(1), number: number / 100 };
    let at = PageRef { ancestor: 0, object, offset: (number % 100) as u32 * 50_000, length: bytes as u32, crc: 0 };
    (id, at, vec![number as u8; bytes].into())
}

fn keep(cache: &PageCache, number: u64, bytes: usize) {
    let (id, at, page) = page(number, bytes);
    cache.keep(id, &at, &page);
}

fn has(cache: &PageCache, number: u64) -> bool {
    let (id, at, _) = page(number, 100);
    cache.get(id, &at).is_some_and(|page| page.first() == Some(&(number as u8)))
}

#[test]
fn memory_stays_under_the_cap_and_what_is_used_stays() {
    for cap in [1 << 20, 32 << 20] {
        let cache = PageCache::new(cap, None);
        for number in 0..20 {
            keep(&cache, number, 2000);
        }
        for number in 20..40_000 {
            keep(&cache, number, 100 + (number as usize * 37) % 20_000);
            assert!(cache.memory_bytes() <= cap);
            assert!(has(&cache, number % 20), "page {} is used all the time", number % 20);
        }
        assert!(cache.memory_bytes() > cap / 4 * 3, "{} of {cap}", cache.memory_bytes());
    }
}

#[test]
fn a_page_that_does_not_fit_is_not_kept_and_pushes_nothing_out() {
    let cache = PageCache::new(100_000, None);
    keep(&cache, 1, 1000);
    keep(&cache, 2, 200_000);
    assert!(has(&cache, 1) && !has(&cache, 2));
    let none = PageCache::new(0, None);
    keep(&none, 1, 10);
    assert_eq!(none.memory_bytes(), 0);
}

#[test]
fn pages_are_told_apart_by_volume_object_and_offset() {
    let cache = PageCache::new(1 << 20, None);
    keep(&cache, 1, 1000);
    let (id, at, _) = page(1, 1000);
    assert!(cache.get(PageId { volume: VolumeId(2), ..id }, &at).is_none());
    assert!(cache.get(id, &PageRef { offset: 0, ..at }).is_none());
    assert!(cache.get(id, &PageRef { object: MapObject { epoch: Epoch(2), ..at.object }, ..at }).is_none());
}
