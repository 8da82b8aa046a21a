//! How many requests came, by route and by class of the answer, and how long answers took.
//!
//! Bounded: paths count as their pattern, and all that lead nowhere as one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lamina_contract::{Latencies, LatencyHistogram};

use crate::table::ROUTES;

/// `1xx` to `5xx`.
const CLASSES: usize = 5;

/// Requests of all listeners of an interface.
#[derive(Debug)]
pub struct CallCounts {
    /// In the order of the table; one more for what leads nowhere.
    routes: Vec<[AtomicU64; CLASSES]>,
    took: Latencies,
}

/// So many requests of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallCount {
    /// The method, or `any`.
    pub method: String,
    /// The path's pattern, or `none`.
    pub route: &'static str,
    /// First digit of the status.
    pub class: usize,
    /// How many.
    pub count: u64,
}

/// A route's place in the table; answers carry it to where they are counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RouteIndex(pub(crate) usize);

impl CallCounts {
    pub(crate) fn new() -> Self {
        Self { routes: (0..=ROUTES.len()).map(|_| Default::default()).collect(), took: Latencies::new() }
    }

    pub(crate) fn count(&self, route: Option<RouteIndex>, status: u16, took: Duration) {
        let index = route.map_or(ROUTES.len(), |route| route.0);
        let class = usize::from(status / 100).saturating_sub(1);
        if let Some(count) = self.routes.get(index).and_then(|classes| classes.get(class)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.took.count(took);
    }

    /// Those that came at all.
    #[must_use]
    pub fn read(&self) -> Vec<CallCount> {
        let counted = self.routes.iter().enumerate().flat_map(|(index, classes)| {
            let named = ROUTES.get(index).map(|route| (route.method.method().to_string(), route.path));
            let (method, route) = named.unwrap_or_else(|| ("any".to_owned(), "none"));
            let count = move |(class, count): (usize, &AtomicU64)| CallCount {
                method: method.clone(),
                route,
                class: class + 1,
                count: count.load(Ordering::Relaxed),
            };
            classes.iter().enumerate().map(count)
        });
        counted.filter(|one| one.count > 0).collect()
    }

    /// How long answers took, waiting for jobs included.
    #[must_use]
    pub fn took(&self) -> LatencyHistogram {
        self.took.read()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{CallCounts, RouteIndex};
    use crate::table::ROUTES;

    #[test]
    fn requests_count_by_route_and_class_and_those_that_lead_nowhere_as_one() {
        let counts = CallCounts::new();
        let index = ROUTES.iter().position(|route| route.path == crate::paths::STATUS).expect("a route");
        for status in [200, 204, 503] {
            counts.count(Some(RouteIndex(index)), status, Duration::from_millis(1));
        }
        counts.count(None, 404, Duration::from_millis(1));
        counts.count(None, 0, Duration::ZERO);
        let seen: Vec<_> = counts.read().into_iter().map(|one| (one.method, one.route, one.class, one.count)).collect();
        let get = || "GET".to_owned();
        let status = crate::paths::STATUS;
        // A status that HTTP does not know counts as the lowest class.
        assert_eq!(
            seen,
            [(get(), status, 2, 2), (get(), status, 5, 1), ("any".to_owned(), "none", 1, 1), ("any".to_owned(), "none", 4, 1)]
        );
        assert_eq!(counts.took().count(), 5);
    }
}
