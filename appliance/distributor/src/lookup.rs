//! Which stripes of a key exist, and on which targets.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};
use lamina_formats::fragment::StripeId;
use object_store::ListResult;
use object_store::path::Path;

use crate::distributor::Core;
use crate::error::{DistributorError, TargetFault};
use crate::stripe::{Layout, Name};
use crate::target::{Patience, Purpose};
use crate::view::StripeView;

/// Everything the targets that answered have under one key.
#[derive(Debug, Default)]
pub(crate) struct KeyState {
    /// Stripes by id, oldest first. By fragment: who holds it.
    pub(crate) stripes: BTreeMap<StripeId, FoundStripe>,
    /// Marks of deletion and who holds them, oldest first.
    pub(crate) gone: BTreeMap<StripeId, Vec<usize>>,
    /// Targets that did not answer.
    pub(crate) unknown: Vec<usize>,
}

#[derive(Debug, Clone)]
pub(crate) struct FoundStripe {
    pub(crate) layout: Layout,
    pub(crate) holders: Vec<Vec<usize>>,
}

impl FoundStripe {
    pub(crate) fn found(&self) -> usize {
        self.holders.iter().filter(|holders| !holders.is_empty()).count()
    }

    pub(crate) fn is_readable(&self) -> bool {
        self.found() >= self.layout.policy.data()
    }
}

impl KeyState {
    /// Takes in one name found on a target.
    pub(crate) fn add(&mut self, target: usize, name: Name) {
        match name {
            Name::Gone(stripe) => self.gone.entry(stripe).or_default().push(target),
            Name::Fragment { layout, index } => {
                let found = self
                    .stripes
                    .entry(layout.stripe)
                    .or_insert_with(|| FoundStripe { layout, holders: vec![Vec::new(); layout.policy.total()] });
                // Names of one stripe that disagree were not written by us: the first one counts, the headers decide.
                if found.layout == layout
                    && let Some(holders) = found.holders.get_mut(index)
                {
                    holders.push(target);
                }
            }
        }
    }

    /// The stripe that is the object: the newest that has X fragments and was not deleted.
    pub(crate) fn current(&self) -> Option<&FoundStripe> {
        let deleted = self.gone.keys().next_back();
        self.stripes
            .values()
            .rev()
            .take_while(|found| deleted.is_none_or(|gone| found.layout.stripe > *gone))
            .find(|found| found.is_readable())
    }

    /// The newest undeleted stripe, readable or not.
    pub(crate) fn newest(&self) -> Option<&FoundStripe> {
        let deleted = self.gone.keys().next_back();
        self.stripes.values().next_back().filter(|found| deleted.is_none_or(|gone| found.layout.stripe > *gone))
    }

    /// Whether targets that did not answer may hold the rest of an undeleted stripe newer than the current one: then neither the
    /// current one nor "no object" is known to be the truth.
    pub(crate) fn is_undecided(&self) -> bool {
        let deleted = self.gone.keys().next_back();
        self.stripes
            .values()
            .rev()
            .take_while(|found| deleted.is_none_or(|gone| found.layout.stripe > *gone) && !found.is_readable())
            .any(|found| found.found() + self.unknown.len() >= found.layout.policy.data())
    }

    /// The highest order that any stripe or mark has.
    pub(crate) fn highest_order(&self) -> u64 {
        let newest = self.stripes.keys().next_back().map_or(0, |stripe| stripe.order());
        newest.max(self.gone.keys().next_back().map_or(0, |stripe| stripe.order()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.stripes.is_empty() && self.gone.is_empty()
    }
}

/// When a lookup may end before every target has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thoroughness {
    /// A readable stripe, and so few targets outstanding after the hedging time that a newer one would show: for reads.
    Enough,
    /// Every target answers or fails: for puts, deletes, repair.
    All,
}

impl Core {
    /// Asks every target what it has under `key`.
    pub(crate) async fn lookup(self: &Arc<Self>, key: &Path, thoroughness: Thoroughness) -> KeyState {
        let mut state = KeyState::default();
        let mut asked: FuturesUnordered<_> =
            (0..self.targets.len()).map(|at| async move { (at, self.names_on(at, key).await) }).collect();
        let mut outstanding: Vec<usize> = (0..self.targets.len()).collect();
        let hedge = tokio::time::sleep(self.hedge_after());
        tokio::pin!(hedge);
        let mut hasty = false;
        loop {
            let answer = tokio::select! {
                biased;
                answer = asked.next() => answer,
                () = &mut hedge, if thoroughness == Thoroughness::Enough && !hasty => {
                    hasty = true;
                    None
                }
            };
            if let Some((at, names)) = answer {
                outstanding.retain(|other| *other != at);
                match names {
                    Ok(names) => names.into_iter().for_each(|name| state.add(at, name)),
                    Err(_) => state.unknown.push(at),
                }
            }
            let bearable = self.proves_absence(state.unknown.len() + outstanding.len());
            // The newest stripe, not merely one: what is still to come could make a newer one readable.
            let settled =
                || state.current().is_some_and(|found| state.newest().is_some_and(|newest| newest.layout == found.layout));
            if outstanding.is_empty() || (hasty && bearable && settled()) {
                break;
            }
        }
        state.unknown.extend(outstanding);
        state
    }

    async fn names_on(&self, at: usize, key: &Path) -> Result<Vec<Name>, TargetFault> {
        let target = self.targets.get(at).ok_or(TargetFault::Absent)?;
        let patience = Patience::Until(self.options.read_timeout);
        let listed: ListResult =
            target.call(Purpose::Read, patience, |store| async move { store.list_with_delimiter(Some(key)).await }).await?;
        let names = listed.objects.iter().filter_map(|meta| Name::parse(meta.location.filename()?));
        Ok(names.collect())
    }

    /// The object's view: cached, or looked up. `None` when there is no such object.
    pub(crate) async fn view(self: &Arc<Self>, key: &Path) -> Result<Option<Arc<StripeView>>, DistributorError> {
        if let Some(view) = self.views.get(key) {
            return Ok(Some(view));
        }
        self.fresh_view(key).await
    }

    /// Looks the object up again and caches what is found.
    pub(crate) async fn fresh_view(self: &Arc<Self>, key: &Path) -> Result<Option<Arc<StripeView>>, DistributorError> {
        let before = self.changes_of(key);
        let state = self.lookup(key, Thoroughness::Enough).await;
        let bearable = self.proves_absence(state.unknown.len());
        // A put that is under way has acknowledged nothing yet; otherwise the newer stripe may be an object that was.
        let undecided = state.is_undecided() && !self.locks.is_held(key);
        match state.current() {
            Some(_) if undecided => Err(DistributorError::Unknown { unknown: state.unknown.len() }),
            Some(found) => {
                let view = Arc::new(StripeView::new(found.layout, found.holders.clone()));
                // A put or delete that ran meanwhile knows better.
                if bearable && self.changes_of(key) == before {
                    self.views.insert(key, Arc::clone(&view));
                }
                Ok(Some(view))
            }
            None => match state.newest() {
                // A put that is under way has not made the object yet; otherwise this is what is left of one, and never "no object".
                Some(found) if !self.locks.is_held(key) => Ok(Some(Arc::new(StripeView::new(found.layout, found.holders.clone())))),
                _ if bearable => Ok(None),
                _ => Err(DistributorError::Unknown { unknown: state.unknown.len() }),
            },
        }
    }
}
