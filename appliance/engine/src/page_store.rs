//! The seam below the page cache: map pages on the local disk, so that they need not be fetched from the store again.
//!
//! Everything here is a copy of what the store has, and pages are immutable: an address (volume, object, offset) is never written
//! with other bytes. Nothing is synced; an absent page and a damaged one are the same, since whoever gets a page checks it against
//! its reference. A crash leaves any part of it.

use lamina_contract::VolumeId;
use lamina_formats::map::MapObject;

pub use crate::file_pages::FilePages;
pub use crate::sled_pages::SledPages;

/// All pages of one map object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Whose.
    pub volume: VolumeId,
    /// Which.
    pub object: MapObject,
}

/// The immutable address of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageKey {
    /// The object that holds it.
    pub object: ObjectKey,
    /// First byte within the object.
    pub offset: u32,
}

/// Keeps pages as long as there is room. No call fails: what cannot be kept is not there. Calls may wait for the local disk.
pub trait PageStore: Send + Sync {
    /// `length` bytes that were put for `key`, perhaps damaged since.
    fn get(&self, key: &PageKey, length: u32) -> Option<Vec<u8>>;

    /// Keeps pages of one object.
    fn put_batch(&self, object: &ObjectKey, pages: &[(u32, &[u8])]);

    /// Forgets an object: nothing refers to it any more.
    fn remove(&self, object: &ObjectKey);

    /// Forgets everything.
    fn clear(&self);
}

#[cfg(test)]
#[path = "page_store_tests.rs"]
mod tests;
