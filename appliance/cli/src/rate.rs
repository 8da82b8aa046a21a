//! Rates and times left, for people.

use std::time::Duration;

use crate::printer::size;

/// `12 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..=172_799 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// `120 MiB/s`.
pub(crate) fn bytes_a_second(bytes: u64, over: Duration) -> String {
    let rate = if over.is_zero() { 0.0 } else { bytes as f64 / over.as_secs_f64() };
    format!("{}/s", size(rate as u64))
}

/// Seconds that `left` takes at the rate of `done` over `over`; nothing while that cannot be said.
pub(crate) fn seconds_left(done: u64, left: u64, over: Duration) -> Option<u64> {
    if done == 0 || over < Duration::from_secs(1) {
        return None;
    }
    Some((left as f64 / done as f64 * over.as_secs_f64()).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{bytes_a_second, duration, seconds_left};

    #[test]
    fn rates_and_times_are_those_of_a_watch() {
        assert_eq!(
            [duration(59), duration(200), duration(7500), duration(200_000)],
            ["59 s", "3 min 20 s", "2 h 5 min", "2 d 7 h"]
        );
        assert_eq!(bytes_a_second(10 << 20, Duration::from_secs(2)), "5 MiB/s");
        assert_eq!(seconds_left(1 << 20, 3 << 20, Duration::from_secs(4)), Some(12));
        assert_eq!(seconds_left(0, 9, Duration::from_secs(4)), None);
    }
}
