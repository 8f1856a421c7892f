//! Attacks a node for a while, and says what that cost the attackers.
//!
//! `attack HTTP_ADDRESS REPLICA_ADDRESS IDLE DRIBBLING UNREAD STRANGERS_A_SECOND SECONDS`
//!
//! Prints `begun` when most connections are there; `scripts/attack.sh` waits for that.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use koltso_testkit::attack::Attack;
use koltso_testkit::server::raise_descriptor_limit;

/// Processor time of this process so far.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [http, replica, idle, dribbling, unread, strangers, seconds] = &arguments[..] else {
        panic!("HTTP_ADDRESS REPLICA_ADDRESS IDLE DRIBBLING UNREAD STRANGERS_A_SECOND SECONDS");
    };
    raise_descriptor_limit();
    let number = |text: &String| text.parse().expect("a number");
    let attack = Attack {
        idle: number(idle),
        dribbling: number(dribbling),
        unread: number(unread),
        strangers: number(strangers) as u64,
    };
    let attackers = attack.begin(http.parse().unwrap(), Some(replica.parse().unwrap()));
    let wanted = (attack.idle + attack.dribbling + attack.unread) as u64 * 95 / 100;
    let begun = Instant::now();
    while attackers.made().0 < wanted {
        assert!(begun.elapsed() < Duration::from_secs(120), "{:?} of {wanted} connections", attackers.made());
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("begun");
    let (before, made, begun) = (processor_time(), attackers.made(), Instant::now());
    std::thread::sleep(Duration::from_secs(number(seconds) as u64));
    let (after, seconds) = (attackers.made(), begun.elapsed().as_secs_f64());
    println!(
        "{:.0} connections a second, {:.0} strangers a second, {:.0} % of a processor for it",
        (after.0 - made.0) as f64 / seconds,
        (after.1 - made.1) as f64 / seconds,
        (processor_time() - before).as_secs_f64() / seconds * 100.0
    );
}
