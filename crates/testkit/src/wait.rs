//! Waiting for a condition: polled often at first, then every 50 ms, with an end that a busy
//! machine does not reach. And the wall clock, as versions of records count it.

use std::time::{Duration, Instant, UNIX_EPOCH};

/// How long a test waits for what takes milliseconds on an idle machine: long enough for one with
/// twenty times its load.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// `within`, which is meant for a machine that has a processor for each thread that wants one, and
/// in proportion longer on a busier one. No test fails because of what else the machine does.
pub fn allowed(within: Duration) -> Duration {
    within * busyness_now()
}

/// Whether there are more than two threads for each processor, so more than a test itself makes.
/// What it measures is less exact then.
pub fn is_busy() -> bool {
    busyness_now() > 2
}

fn busyness_now() -> u32 {
    busyness(&std::fs::read_to_string("/proc/loadavg").unwrap_or_default(), processors())
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// How many threads there are for each processor: now, or on average of the last minute, whichever
/// is more. At least 1.
fn busyness(loadavg: &str, processors: usize) -> u32 {
    const MOST: usize = 50;
    let mut fields = loadavg.split_whitespace();
    let average = fields.next().and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    let now = fields.nth(2).and_then(|field| field.split('/').next()?.parse::<usize>().ok()).unwrap_or_default();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a load is small and not negative")]
    let threads = now.max(average.ceil() as usize);
    u32::try_from(threads.div_ceil(processors).clamp(1, MOST)).unwrap_or(1)
}

/// Polls `condition` until it holds; panics with `what` after `within`, or what of it is
/// [`allowed`].
///
/// # Panics
/// When `condition` does not hold in time.
#[track_caller]
pub fn eventually(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    while !condition() {
        let late = start.elapsed() >= within && start.elapsed() >= allowed(within);
        assert!(!late, "not within {within:?} (after {:?}): {what}", start.elapsed());
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
    fn a_busy_machine_is_given_more_time() {
        for (loadavg, processors, factor) in [
            ("0.10 9.00 9.00 1/200 1", 2, 1),
            ("0.10 0.00 0.00 9/200 1", 2, 5),
            ("19.50 0.00 0.00 1/200 1", 2, 10),
            ("1.90 0.00 0.00 3/200 1", 4, 1),
            ("9999.00 0.00 0.00 3/200 1", 1, 50),
            ("", 2, 1),
            ("nonsense", 2, 1),
        ] {
            assert_eq!(busyness(loadavg, processors), factor, "{loadavg:?} on {processors}");
        }
        assert!(allowed(PATIENCE) >= PATIENCE);
    }

    #[test]
    #[should_panic(expected = "not within 5ms")]
    fn what_never_holds_ends_the_test() {
        eventually("never", Duration::from_millis(5), || false);
    }
}
