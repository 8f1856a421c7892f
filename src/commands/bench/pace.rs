//! When one connection sends: request n is due at `first + n * interval`, whatever became of the
//! earlier ones.
//!
//! The schedule is a function of what it is told; it reads no clock. All times are nanoseconds of
//! the monotonic clock.
//!
//! Invariants:
//! 1. Nothing is sent before it is due, so no latency is negative.
//! 2. Latency counts from `due`, not from sending: a request that waits behind a slow answer is
//!    charged for the wait.
//!
//! Deliberately absent: a bound on how fast a connection catches up. wrk2 has one, twice the pace,
//! counted from when the slow request was sent. From there on it always allows more than is due, so
//! it never takes effect.

/// The schedule of a connection.
pub struct Pace {
    first: u64,
    interval: f64,
    answered: u64,
}

impl Pace {
    /// A schedule whose first request is due at `first`, and the others at intervals of `interval`
    /// ns.
    pub fn new(first: u64, interval: f64) -> Self {
        Self { first, interval, answered: 0 }
    }

    /// When the next request that has no answer yet was or will be due.
    pub fn due(&self) -> u64 {
        self.first + (self.answered as f64 * self.interval) as u64
    }

    /// The request was answered; the next one is scheduled.
    pub fn answered(&mut self) {
        self.answered += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_times_do_not_move_and_fractions_do_not_add_up_to_a_drift() {
        let mut pace = Pace::new(1000, 100.0);
        pace.answered();
        assert_eq!((pace.due(), pace.due()), (1100, 1100));
        let mut pace = Pace::new(0, 1e9 / 3.0);
        (0..3_000_000).for_each(|_| pace.answered());
        assert!(pace.due().abs_diff(1_000_000_000_000_000) <= 1, "{}", pace.due());
    }
}
