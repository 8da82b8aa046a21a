//! How many requests one address may send: a bucket each, which refills by the second. Bounded: addresses beyond the most share one bucket.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use parking_lot::Mutex;

/// Addresses with a bucket of their own.
const MAX_ADDRESSES: usize = 4096;

/// What a request costs whose caller nobody knows: guessing is slow.
pub(crate) const UNKNOWN_COST: f64 = 10.0;

/// Requests a second, and at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// A second.
    pub per_second: f64,
    /// At once.
    pub burst: f64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// All buckets.
#[derive(Debug)]
pub(crate) struct Rates {
    rate: Rate,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

impl Rates {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    /// Whether `address` may send one more, which costs `cost`.
    pub(crate) fn admits(&self, address: IpAddr, cost: f64, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        let mut key = network(address);
        if buckets.len() >= MAX_ADDRESSES && !buckets.contains_key(&key) {
            // A full bucket is as none.
            buckets.retain(|_, bucket| self.filled(*bucket, now) < self.rate.burst);
            if buckets.len() >= MAX_ADDRESSES {
                key = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket { left: self.rate.burst, at: now });
        let left = self.filled(*bucket, now);
        let admitted = left >= 1.0;
        *bucket = Bucket { left: if admitted { (left - cost).max(-self.rate.burst) } else { left }, at: now };
        admitted
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.left + seconds * self.rate.per_second).min(self.rate.burst)
    }
}

/// One customer of IPv6 has a /64 of addresses.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => IpAddr::V4(address),
            None => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        },
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{MAX_ADDRESSES, Rate, Rates};

    #[test]
    fn a_flooding_address_is_held_and_its_neighbour_is_not() {
        let rates = Rates::new(Rate { per_second: 2.0, burst: 4.0 });
        let now = Instant::now();
        let (a, b) = ("192.0.2.1".parse().expect("ip"), "192.0.2.2".parse().expect("ip"));
        assert_eq!((0..10).filter(|_| rates.admits(a, 1.0, now)).count(), 4);
        assert!(rates.admits(b, 1.0, now));
        assert_eq!((0..10).filter(|_| rates.admits(a, 1.0, now + Duration::from_secs(1))).count(), 2);
        let (one, other) = ("2001:db8::1".parse().expect("ip"), "2001:db8::2".parse().expect("ip"));
        assert_eq!((0..10).filter(|_| rates.admits(one, 1.0, now) | rates.admits(other, 1.0, now)).count(), 2);
    }

    #[test]
    fn addresses_without_end_use_memory_with_one() {
        let rates = Rates::new(Rate { per_second: 1.0, burst: 1.0 });
        let now = Instant::now();
        let admitted = (0..10_000u32).filter(|n| rates.admits(std::net::Ipv4Addr::from(*n).into(), 1.0, now)).count();
        assert_eq!((admitted, rates.buckets.lock().len()), (MAX_ADDRESSES + 1, MAX_ADDRESSES + 1));
    }
}
