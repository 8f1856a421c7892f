//! Named waits, through the functions that the program calls.

use std::time::Duration;

use koltso_instrument::waits::{Kind, difference, snapshot};
use koltso_instrument::{waited_for, waiting};

#[test]
fn a_wait_within_a_wait_counts_once_and_a_panic_ends_one() {
    let sleep = |ms| std::thread::sleep(Duration::from_millis(ms));
    let before = snapshot();
    let outer = || {
        waiting(&"inner", || sleep(2));
        sleep(2);
        5
    };
    assert_eq!(waiting(&"outer", outer), 5);
    assert!(std::panic::catch_unwind(|| waiting(&"panics", || panic!("as asked"))).is_err());
    waiting(&"after", || sleep(2));
    waited_for(&"of requests", Duration::from_millis(30), 3);
    waited_for(&"of nobody", Duration::from_millis(30), 0);
    let named = |name| {
        let all = difference(&before, &snapshot());
        let mut all = all.into_iter().filter(|waited| waited.name == Some(name));
        let found = all.next().map(|waited| (waited.kind, waited.count, waited.delay_ns));
        assert!(all.next().is_none(), "{name} has one stack");
        found
    };
    assert!(matches!(named("outer"), Some((Kind::Wait, 1, 4_000_000..))), "{:?}", named("outer"));
    assert_eq!((named("inner"), named("of nobody")), (None, None));
    assert!(matches!(named("after"), Some((Kind::Wait, 1, 2_000_000..))), "{:?}", named("after"));
    assert_eq!(named("of requests"), Some((Kind::Wait, 3, 30_000_000)));
}
