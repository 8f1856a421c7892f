//! The connections at one entrance of the control plane, and which of them gives way to a new one.
//!
//! Whoever comes is let in. When the entrance is full, somebody who is not worked for is shown out:
//! first those who have their answer and are only being seen off, then those whose request is not
//! complete, then those who take their answer; of these the one that has been at it longest. So
//! silent connections, however many, keep nobody out who asks.
//!
//! Owner: the thread of the control plane. Bound: [`Crowd::new`]. Tested below and in
//! `tests/under_attack/pages.rs`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::Notify;

/// What a connection is at, in the order in which they give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It has its answer, and its end is waited for.
    Leaving,
    /// Its request is not complete.
    Asking,
    /// It takes its answer.
    Taking,
    /// Its answer is being made.
    Served,
}

/// One connection.
#[derive(Debug)]
struct Guest {
    stage: Cell<Stage>,
    since: Cell<Instant>,
    shown_out: Notify,
}

/// All connections of an entrance.
#[derive(Debug)]
pub struct Crowd {
    guests: RefCell<Vec<Rc<Guest>>>,
    max: usize,
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    crowd: Rc<Crowd>,
    guest: Rc<Guest>,
}

/// What became of somebody who came.
#[derive(Debug)]
pub enum Entered {
    /// There was room.
    In(Place),
    /// Somebody else was shown out, whose task must run before its socket is closed.
    Instead(Place),
    /// All who are there are being served.
    Full,
}

impl Crowd {
    pub fn new(max: usize) -> Rc<Self> {
        Rc::new(Self { guests: RefCell::default(), max })
    }

    /// Lets somebody in.
    pub fn enter(self: &Rc<Self>, now: Instant) -> Entered {
        let mut guests = self.guests.borrow_mut();
        let is_full = guests.len() >= self.max;
        if is_full {
            let giving_way = guests.iter().enumerate().filter(|(_, guest)| guest.stage.get() != Stage::Served);
            let Some((at, _)) = giving_way.min_by_key(|(_, guest)| (guest.stage.get(), guest.since.get())) else {
                return Entered::Full;
            };
            guests.swap_remove(at).shown_out.notify_one();
        }
        let (stage, since) = (Cell::new(Stage::Asking), Cell::new(now));
        let guest = Rc::new(Guest { stage, since, shown_out: Notify::new() });
        guests.push(Rc::clone(&guest));
        let place = Place { crowd: Rc::clone(self), guest };
        if is_full { Entered::Instead(place) } else { Entered::In(place) }
    }
}

impl Place {
    /// The connection is at something else from now on.
    pub fn set(&self, stage: Stage) {
        self.guest.stage.set(stage);
        self.guest.since.set(Instant::now());
    }

    /// Waits until the connection has to give way.
    pub async fn shown_out(&self) {
        self.guest.shown_out.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.guests.borrow_mut().retain(|guest| !Rc::ptr_eq(guest, &self.guest));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn place(entered: Entered) -> Place {
        match entered {
            Entered::In(place) | Entered::Instead(place) => place,
            Entered::Full => panic!("no room"),
        }
    }

    fn gives_way(place: &Place) -> bool {
        !place.crowd.guests.borrow().iter().any(|guest| Rc::ptr_eq(guest, &place.guest))
    }

    #[test]
    fn who_is_served_stays_and_who_has_been_silent_longest_gives_way() {
        let (crowd, begun) = (Crowd::new(3), Instant::now());
        let at = |ms| begun + Duration::from_millis(ms);
        let [served, old, young] = [0, 1, 2].map(|ms| place(crowd.enter(at(ms))));
        served.set(Stage::Served);
        let Entered::Instead(taking) = crowd.enter(at(3)) else { panic!("it was full") };
        assert!(gives_way(&old) && !gives_way(&served) && !gives_way(&young));
        taking.set(Stage::Taking);
        // Who asks gives way before who takes an answer, and who leaves before both.
        let leaving = place(crowd.enter(at(4)));
        assert!(gives_way(&young) && !gives_way(&taking));
        leaving.set(Stage::Leaving);
        let last = place(crowd.enter(at(5)));
        assert!(gives_way(&leaving) && !gives_way(&taking));
        last.set(Stage::Served);
        taking.set(Stage::Served);
        assert!(matches!(crowd.enter(at(6)), Entered::Full));
        drop(last);
        assert!(matches!(crowd.enter(at(7)), Entered::In(_)));
    }
}
