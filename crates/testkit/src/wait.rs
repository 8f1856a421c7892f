//! Waiting for a condition: polled often at first, then every 50 ms. And the wall clock, as versions
//! of records count it.

use std::time::{Duration, Instant, UNIX_EPOCH};

/// How long a test waits for background work that takes milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls `condition` until it holds; panics with `what` after `within`.
///
/// # Panics
/// When `condition` does not hold in time.
#[track_caller]
pub fn eventually(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    while !condition() {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// As [`eventually`], for [`PATIENCE`].
///
/// # Panics
/// When `condition` does not hold in time.
#[track_caller]
pub fn soon(what: &str, condition: impl FnMut() -> bool) {
    eventually(what, PATIENCE, condition);
}

/// Milliseconds since 1970 by the wall clock.
pub fn wall_ms() -> u64 {
    u64::try_from(UNIX_EPOCH.elapsed().expect("a clock after 1970").as_millis()).expect("a clock of this age")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_asked_until_it_holds() {
        let mut asked = 0;
        soon("the third time", || {
            asked += 1;
            asked == 3
        });
        assert_eq!(asked, 3);
    }

    #[test]
    #[should_panic(expected = "not within 5ms")]
    fn what_never_holds_ends_the_test() {
        eventually("never", Duration::from_millis(5), || false);
    }
}
