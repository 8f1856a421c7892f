//! The connections of a core that have not proved which member they come from, and which of them
//! gives way when there are too many.
//!
//! Whoever comes is let in: a flood of strangers must not keep a member out, and nobody can tell
//! them apart before they have spoken. So somebody who is here gives way: first whoever comes from
//! an address at which no member is, then whoever has not said hello, then whoever came first. A
//! member says hello as soon as it is connected, and from then on no silent stranger displaces it;
//! at an address of its own it is displaced by nobody from elsewhere, either.
//!
//! Owner: one core. Bounds: `max` strangers, a quarter of them from one address at which no member
//! is, and a second for each (`server.rs`). A stranger that repeats a hello that it has overheard
//! counts as one that said hello, until its proof is missing. Tested below and in `tests/replica/`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::connections::Origin;

/// The share of one address at which no member is.
const ADDRESSES: usize = 4;

/// A stranger; `T` ends its connection.
pub(super) struct Stranger<T> {
    origin: Origin,
    is_at_member: bool,
    said_hello: Cell<bool>,
    shown_out: Cell<bool>,
    pub(super) connection: T,
}

impl<T> Stranger<T> {
    /// Notes a hello that fits: what is missing is the proof.
    pub(super) fn said_hello(&self) {
        self.said_hello.set(true);
    }

    /// Whether it gave way.
    pub(super) fn is_shown_out(&self) -> bool {
        self.shown_out.get()
    }
}

/// See the module. In the order in which they came.
pub(super) struct Strangers<T> {
    here: RefCell<Vec<Rc<Stranger<T>>>>,
    max: usize,
}

impl<T> Strangers<T> {
    pub(super) const fn new(max: usize) -> Self {
        Self { here: RefCell::new(Vec::new()), max }
    }

    /// Makes room for somebody from `origin`. Returns who has to go for that.
    ///
    /// # Errors
    /// Nobody may be displaced for somebody from there.
    pub(super) fn make_room(&self, origin: Origin, is_at_member: bool) -> Result<Option<Rc<Stranger<T>>>, ()> {
        let mut here = self.here.borrow_mut();
        let neighbours = || here.iter().filter(|other| !is_at_member && other.origin == origin).count();
        let is_crowd = neighbours() >= (self.max / ADDRESSES).max(1);
        if here.len() < self.max && !is_crowd {
            return Ok(None);
        }
        let may_go = here.iter().enumerate().filter(|(_, other)| match (is_crowd, is_at_member) {
            (true, _) => other.origin == origin && !other.is_at_member,
            (false, is_at_member) => is_at_member || !other.is_at_member,
        });
        let (at, _) = may_go.min_by_key(|(_, other)| (other.is_at_member, other.said_hello.get())).ok_or(())?;
        let gone = here.remove(at);
        gone.shown_out.set(true);
        Ok(Some(gone))
    }

    /// Lets in somebody for whom there is room.
    pub(super) fn enter(&self, origin: Origin, is_at_member: bool, connection: T) -> Rc<Stranger<T>> {
        let (said_hello, shown_out) = (Cell::new(false), Cell::new(false));
        let stranger = Rc::new(Stranger { origin, is_at_member, said_hello, shown_out, connection });
        let mut here = self.here.borrow_mut();
        assert!(here.len() < self.max, "room was made");
        here.push(Rc::clone(&stranger));
        stranger
    }

    /// Forgets somebody who is no stranger any more, or gone.
    pub(super) fn leave(&self, stranger: &Rc<Stranger<T>>) {
        self.here.borrow_mut().retain(|other| !Rc::ptr_eq(other, stranger));
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const fn from(last: u8) -> Origin {
        Origin::V4(Ipv4Addr::new(10, 0, 0, last))
    }

    /// Lets somebody in; who had to go.
    fn enter(strangers: &Strangers<u32>, origin: Origin, is_at_member: bool, who: u32) -> Result<Option<u32>, ()> {
        let gone = strangers.make_room(origin, is_at_member)?;
        strangers.enter(origin, is_at_member, who);
        Ok(gone.map(|gone| gone.connection))
    }

    fn say_hello(strangers: &Strangers<u32>, who: u32) {
        strangers.here.borrow().iter().find(|other| other.connection == who).expect("it is here").said_hello();
    }

    #[test]
    fn a_silent_one_gives_way_before_one_that_said_hello() {
        let strangers = Strangers::new(4);
        for who in 0..4 {
            assert_eq!(enter(&strangers, from(1), true, who), Ok(None));
        }
        say_hello(&strangers, 0);
        for (who, gone) in [(4, 1), (5, 2), (6, 3), (7, 4)] {
            assert_eq!(enter(&strangers, from(1), true, who), Ok(Some(gone)));
        }
        (5..8).for_each(|who| say_hello(&strangers, who));
        assert_eq!(enter(&strangers, from(1), true, 8), Ok(Some(0)), "all said hello: the first one");
    }

    #[test]
    fn nobody_from_elsewhere_displaces_one_from_the_address_of_a_member() {
        let strangers = Strangers::new(4);
        for who in 0..4 {
            assert_eq!(enter(&strangers, from(who as u8), false, who), Ok(None));
        }
        say_hello(&strangers, 0);
        assert_eq!(enter(&strangers, from(9), true, 10), Ok(Some(1)));
        assert_eq!(enter(&strangers, from(7), false, 11), Ok(Some(2)));
        for (who, gone) in [(12, 3), (13, 11), (14, 0)] {
            assert_eq!(enter(&strangers, from(9), true, who), Ok(Some(gone)));
        }
        assert_eq!(enter(&strangers, from(7), false, 15), Err(()), "only members are left");
        assert_eq!(enter(&strangers, from(9), true, 16), Ok(Some(10)));
    }

    #[test]
    fn an_address_without_a_member_has_a_quarter_and_displaces_itself() {
        let strangers = Strangers::new(8);
        for (who, gone) in [(0, None), (1, None), (2, Some(0)), (3, Some(1))] {
            assert_eq!(enter(&strangers, from(1), false, who), Ok(gone));
        }
        assert_eq!(enter(&strangers, from(2), false, 4), Ok(None));
        let leaving = strangers.here.borrow()[0].clone();
        strangers.leave(&leaving);
        assert_eq!(enter(&strangers, from(1), false, 5), Ok(None));
    }
}
