//! When one connection sends: request n is due at `first + n * interval`, whatever became of those before it.
//!
//! A function of the time it is told; it reads no clock. All times are nanoseconds of the monotonic clock.
//!
//! Invariants:
//! 1. Nothing is sent before it is due, so no latency is negative.
//! 2. Latency counts from `due`, not from sending: what waits behind a slow answer is charged for the wait.
//! 3. Who is behind catches up at twice the pace and no faster, as wrk2 does: a pause of the server is not followed by
//!    a burst that the rate asked for would never have made.

/// A catching-up connection sends this many times as often.
const CATCH_UP: f64 = 2.0;

/// The schedule of a connection.
pub struct Pace {
    first: u64,
    interval: f64,
    answered: u64,
    behind: Option<Behind>,
}

/// Since when a connection has been catching up.
struct Behind {
    since: u64,
    answered: u64,
}

impl Pace {
    /// The first request is due at `first`, the others each `interval` ns later.
    pub fn new(first: u64, interval: f64) -> Self {
        Self { first, interval, answered: 0, behind: None }
    }

    /// When the request that is not answered yet was due, or will be.
    pub fn due(&self) -> u64 {
        self.first + (self.answered as f64 * self.interval) as u64
    }

    /// When that request may be sent; at once if this is not after `now`.
    pub fn send_at(&mut self, now: u64) -> u64 {
        let due = self.due();
        if due > now {
            self.behind = None;
            return due;
        }
        let behind = self.behind.get_or_insert(Behind { since: now, answered: self.answered });
        let since = (self.answered - behind.answered) as f64;
        behind.since + (since * self.interval / CATCH_UP) as u64
    }

    /// The request was answered; the next one has its turn.
    pub fn answered(&mut self) {
        self.answered += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_time_each_request_goes_when_due() {
        let mut pace = Pace::new(1000, 100.0);
        assert_eq!(pace.send_at(0), 1000);
        for n in 0..5 {
            let due = 1000 + n * 100;
            assert_eq!((pace.due(), pace.send_at(due + 7)), (due, due + 7), "a little late is at once");
            pace.answered();
        }
    }

    #[test]
    fn a_pause_is_caught_up_at_double_pace_and_charged_from_the_due_times() {
        let mut pace = Pace::new(0, 100.0);
        let mut now = 1000; // ten are due
        let mut latencies = Vec::new();
        while pace.due() <= now {
            now = now.max(pace.send_at(now));
            latencies.push(now - pace.due());
            pace.answered();
        }
        assert_eq!(&latencies[..4], [1000, 950, 900, 850]);
        assert_eq!(pace.send_at(now), pace.due(), "caught up: the old schedule again");
        assert_eq!(pace.due() % 100, 0);
    }

    #[test]
    fn fractions_of_a_nanosecond_do_not_add_up_to_a_drift() {
        let mut pace = Pace::new(0, 1e9 / 3.0);
        (0..3_000_000).for_each(|_| pace.answered());
        assert!(pace.due().abs_diff(1_000_000_000_000_000) <= 1, "{}", pace.due());
    }
}
