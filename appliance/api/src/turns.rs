//! Turns at what anybody may ask for: so many a second, in the order of asking. Nobody is refused, so that who floods keeps nobody out: how
//! long others wait is a matter of how many may ask at a time.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::rate::Rate;

/// See the file's header.
pub(crate) struct Turns {
    between: Duration,
    /// How much earlier than its time a turn may be, after a pause.
    early: Duration,
    /// The next one's time. Held by who waits for it; the others stand in line for the lock, which is fair.
    next: Mutex<Instant>,
}

impl Turns {
    pub(crate) fn new(rate: Rate) -> Self {
        let between = Duration::from_secs_f64(1.0 / rate.per_second);
        Self { between, early: between.mul_f64((rate.burst - 1.0).max(0.0)), next: Mutex::new(Instant::now()) }
    }

    /// Waits for a turn. Whoever gives up costs the others none.
    pub(crate) async fn take(&self) {
        let mut next = self.next.lock().await;
        if let Some(earliest) = next.checked_sub(self.early) {
            tokio::time::sleep_until(earliest).await;
        }
        *next = (*next).max(Instant::now()) + self.between;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, timeout};

    use super::Turns;
    use crate::rate::Rate;

    #[test]
    fn a_burst_is_let_through_and_then_so_many_a_second_and_nobody_waits_for_who_gave_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime");
        runtime.block_on(async {
            let turns = Turns::new(Rate { per_second: 5.0, burst: 3.0 });
            let took = async || {
                let began = Instant::now();
                turns.take().await;
                // The clock goes in milliseconds.
                began.elapsed().as_millis() / 10 * 10
            };
            for expected in [0, 0, 0, 200, 200] {
                assert_eq!(took().await, expected);
            }
            assert!(timeout(Duration::from_millis(50), turns.take()).await.is_err());
            assert_eq!(took().await, 150);
            tokio::time::sleep(Duration::from_secs(60)).await;
            for expected in [0, 0, 0, 200] {
                assert_eq!(took().await, expected);
            }
        });
    }
}
