//! Listing: the union of what the targets list, with each object once.
//!
//! A key counts as an object when one stripe that was not deleted has at least X fragments on the targets that answered. A listing that
//! cannot be whole is an error: when so many targets did not answer that they may hide an object altogether, or hold what a visible
//! remainder lacks. What is left of others is for [`audit`](crate::repair). Memory is that of the keys below the prefix: targets list in no common order.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::stream::{FuturesUnordered, StreamExt};
use object_store::ObjectMeta;
use object_store::path::Path;

use crate::distributor::Core;
use crate::error::{DistributorError, TargetFault};
use crate::lookup::{FoundStripe, KeyState};
use crate::put::e_tag;
use crate::stripe::{Layout, split};

/// Every key below a prefix and what the targets have of it.
pub(crate) struct Listing {
    pub(crate) keys: BTreeMap<Path, KeyState>,
    /// Targets that did not answer, or not to the end.
    pub(crate) unknown: Vec<usize>,
}

/// What the trait says of an object.
pub(crate) fn object_meta(key: &Path, layout: &Layout) -> ObjectMeta {
    // A stripe's order is microseconds of wall time, give or take writers of one key that came within one.
    let last_modified: DateTime<Utc> =
        i64::try_from(layout.stripe.order()).ok().and_then(DateTime::from_timestamp_micros).unwrap_or_default();
    ObjectMeta { location: key.clone(), last_modified, size: layout.len, e_tag: Some(e_tag(layout.stripe)), version: None }
}

impl Core {
    /// What the targets have below `prefix`.
    pub(crate) async fn listing(self: &Arc<Self>, prefix: Option<&Path>) -> Listing {
        let mut listing = Listing { keys: BTreeMap::new(), unknown: Vec::new() };
        let mut asked: FuturesUnordered<_> =
            (0..self.targets.len()).map(|at| async move { (at, self.list_target(at, prefix).await) }).collect();
        while let Some((at, listed)) = asked.next().await {
            match listed {
                Ok(names) => {
                    for (key, name) in names {
                        listing.keys.entry(key).or_default().add(at, name);
                    }
                }
                Err(_) => listing.unknown.push(at),
            }
        }
        for state in listing.keys.values_mut() {
            state.unknown.clone_from(&listing.unknown);
        }
        listing
    }

    async fn list_target(&self, at: usize, prefix: Option<&Path>) -> Result<Vec<(Path, crate::stripe::Name)>, TargetFault> {
        let target = self.targets.get(at).ok_or(TargetFault::Absent)?;
        let mut names = Vec::new();
        // However long it takes as a whole: it has failed when nothing comes for three times what a read may take.
        let take = |meta: ObjectMeta| names.extend(split(&meta.location));
        target.list(prefix, self.options.read_timeout * 3, take).await?;
        Ok(names)
    }

    /// The objects below `prefix`, in order of their keys.
    pub(crate) async fn objects(self: &Arc<Self>, prefix: Option<&Path>) -> Result<Vec<ObjectMeta>, DistributorError> {
        let listing = self.listing(prefix).await;
        let undecided = |(key, state): (&Path, &KeyState)| state.is_undecided() && !self.locks.is_held(key);
        if !self.proves_absence(listing.unknown.len()) || listing.keys.iter().any(undecided) {
            return Err(DistributorError::Unknown { unknown: listing.unknown.len() });
        }
        let current = |(key, state): (&Path, &KeyState)| {
            // The prefix itself is not below it.
            let below = prefix.is_none_or(|prefix| key != prefix);
            state.current().filter(|_| below).map(|found: &FoundStripe| object_meta(key, &found.layout))
        };
        Ok(listing.keys.iter().filter_map(current).collect())
    }
}
