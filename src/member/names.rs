//! Where peers are: their names, looked up anew at each dial.
//!
//! Looking a name up blocks, for seconds where the name server does not answer. So a name has a
//! thread, which sleeps until somebody dials; data cores and the threads of hints ask it and look
//! whether the answer is there. An address in digits needs no thread.
//!
//! Owner: the process, behind an `Arc`. Bounds: one thread a peer; dials that come while a name is
//! looked up share the next look. An answer is used by those dials that asked for it and by no later
//! one: a member that comes back elsewhere under the same name is found at the next dial.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use koltso_net::replica::Locate;

use crate::settings::HostPort;

/// Looks a name up; blocks.
type LookUp = fn(&HostPort) -> io::Result<SocketAddr>;

/// What was found, or a sentence.
type Found = Result<SocketAddr, String>;

#[derive(Debug)]
struct Looks {
    /// So many looks were asked for.
    asked: u64,
    /// So many of them are answered, all by `found`.
    answered: u64,
    found: Found,
    ended: bool,
}

#[derive(Debug)]
struct Shared {
    looks: Mutex<Looks>,
    changed: Condvar,
}

impl Shared {
    fn looks(&self) -> MutexGuard<'_, Looks> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a peer listens.
#[derive(Debug)]
pub enum PeerName {
    /// At an address.
    Known(SocketAddr),
    /// Where its name leads.
    Named(Named),
}

/// A name and its thread, which ends with it.
#[derive(Debug)]
pub struct Named(Arc<Shared>);

impl Drop for Named {
    fn drop(&mut self) {
        self.0.looks().ended = true;
        self.0.changed.notify_all();
    }
}

impl PeerName {
    /// The place of node number `node`; starts a thread if it has a name.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn of(node: usize, place: &HostPort) -> io::Result<Arc<Self>> {
        Self::found_by(node, place, HostPort::resolve)
    }

    fn found_by(node: usize, place: &HostPort, look_up: LookUp) -> io::Result<Arc<Self>> {
        if let Some(address) = place.in_digits() {
            return Ok(Arc::new(Self::Known(address)));
        }
        let looks = Looks { asked: 0, answered: 0, found: Err("nobody asked".to_owned()), ended: false };
        let shared = Arc::new(Shared { looks: Mutex::new(looks), changed: Condvar::new() });
        let (its, place) = (shared.clone(), place.clone());
        thread::Builder::new()
            .name(format!("koltso-names-{node}"))
            .spawn(move || keep_looking(&its, &place, look_up))?;
        Ok(Arc::new(Self::Named(Named(shared))))
    }

    /// Whether the peer was there when its name was looked up last; never waits for long.
    pub fn is_at(&self, address: IpAddr) -> bool {
        match self {
            Self::Known(known) => known.ip().to_canonical() == address,
            Self::Named(Named(shared)) => {
                shared.looks().found.as_ref().is_ok_and(|found| found.ip().to_canonical() == address)
            }
        }
    }

    /// Looks up where the peer is, and waits for that.
    ///
    /// # Errors
    /// A sentence: the name does not resolve, or not in time.
    pub fn wait(&self, patience: Duration) -> Found {
        let ticket = self.ask();
        let until = Instant::now() + patience;
        let Self::Named(Named(shared)) = self else { return self.found(ticket).expect("it is known") };
        let mut looks = shared.looks();
        while looks.answered < ticket {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("its name was not resolved in time".to_owned());
            }
            looks = shared.changed.wait_timeout(looks, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        looks.found.clone()
    }
}

impl Locate for PeerName {
    fn ask(&self) -> u64 {
        let Self::Named(Named(shared)) = self else { return 0 };
        let mut looks = shared.looks();
        looks.asked += 1;
        shared.changed.notify_all();
        looks.asked
    }

    fn found(&self, ticket: u64) -> Option<Found> {
        match self {
            Self::Known(address) => Some(Ok(*address)),
            Self::Named(Named(shared)) => {
                let looks = shared.looks();
                (looks.answered >= ticket).then(|| looks.found.clone())
            }
        }
    }
}

/// The thread of a name.
fn keep_looking(shared: &Shared, place: &HostPort, look_up: LookUp) {
    let mut looks = shared.looks();
    while !looks.ended {
        if looks.answered == looks.asked {
            looks = shared.changed.wait(looks).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let asked = looks.asked;
        drop(looks);
        let found = look_up(place).map_err(|e| format!("its name {} cannot be resolved: {e}", place.host));
        looks = shared.looks();
        (looks.answered, looks.found) = (asked, found);
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use super::*;

    fn place(text: &str) -> HostPort {
        HostPort::parse(text).expect("a place")
    }

    const SECOND: Duration = Duration::from_secs(10);

    #[test]
    fn a_name_is_looked_up_again_at_each_dial() {
        static LOOKED: AtomicU16 = AtomicU16::new(0);
        let look_up: LookUp = |_| match LOOKED.fetch_add(1, Ordering::SeqCst) {
            1 => Err(io::Error::other("no such name")),
            port => Ok(SocketAddr::from(([127, 0, 0, 1], port))),
        };
        let name = PeerName::found_by(1, &place("somewhere:7"), look_up).expect("a thread");
        assert_eq!(name.wait(SECOND).expect("found").port(), 0);
        let sentence = name.wait(SECOND).expect_err("not found");
        assert_eq!(sentence, "its name somewhere cannot be resolved: no such name");
        assert_eq!(name.wait(SECOND).expect("found").port(), 2);
        assert_eq!(LOOKED.load(Ordering::SeqCst), 3, "and never when nobody dials");
    }

    #[test]
    fn who_asks_never_waits_and_gets_no_older_answer() {
        static LOOKED: AtomicU16 = AtomicU16::new(0);
        static OPEN: AtomicU16 = AtomicU16::new(0);
        let look_up: LookUp = |_| {
            let number = LOOKED.fetch_add(1, Ordering::SeqCst);
            while OPEN.load(Ordering::SeqCst) <= number {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(SocketAddr::from(([127, 0, 0, 1], number)))
        };
        let name = PeerName::found_by(1, &place("slow:7"), look_up).expect("a thread");
        let first = name.ask();
        while LOOKED.load(Ordering::SeqCst) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        // The look has begun, so what it finds may be too old for these.
        let (second, third) = (name.ask(), name.ask());
        assert_eq!(name.found(first), None);
        assert!(name.wait(Duration::from_millis(1)).expect_err("it hangs").contains("in time"));
        OPEN.store(1, Ordering::SeqCst);
        while name.found(first).is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((name.found(second), name.found(third)), (None, None));
        OPEN.store(10, Ordering::SeqCst);
        while name.found(third).is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(name.found(third).map(|found| found.map(|at| at.port())), Some(Ok(1)), "they share one look");
    }

    #[test]
    fn an_address_in_digits_is_never_looked_up() {
        let never: LookUp = |_| panic!("looked up");
        for text in ["127.0.0.1:7", "[::1]:7"] {
            let name = PeerName::found_by(1, &place(text), never).expect("no thread");
            assert_eq!(name.found(name.ask()), Some(Ok(text.parse().expect("an address"))));
        }
    }
}
