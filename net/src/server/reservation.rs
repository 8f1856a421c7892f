//! A body's share of the memory that a core has for bodies.
//!
//! When there is none left, bodies of which nothing has come for [`STALLED`] give way, the one that
//! has been silent longest first: their connections are answered `503`, and whoever sends does not
//! wait for those who do not. Invariant: the sum of all `held` is the core's count, which each
//! share gives back on drop, however the connection ends.
//!
//! Tested in `tests/bodies_in_memory.rs`.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::core::HttpCore;
use super::deadlines::Phase;
use super::receiving::{STALLED, Why};
use super::service::{Event, Service};
use crate::connections::Seat;

/// See the module.
pub(crate) struct Reservation<S: Service> {
    core: Rc<HttpCore<S>>,
    seat: Rc<Seat<HttpCore<S>>>,
}

impl<S: Service> Reservation<S> {
    /// Of the body that the connection with this seat receives.
    pub(super) fn new(core: &Rc<HttpCore<S>>, seat: &Rc<Seat<HttpCore<S>>>) -> Self {
        debug_assert_eq!(seat.waits().held.get(), 0, "a connection receives one body at a time");
        Self { core: Rc::clone(core), seat: Rc::clone(seat) }
    }

    /// Whether a body of `length` bytes could be received now; nothing is reserved.
    pub(super) fn could_be(&self, length: usize) -> bool {
        self.has_room(length)
    }

    /// Makes the share `bytes`; `false`, and no change, if the core does not have that many left.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let held = &self.seat.waits().held;
        let more = bytes.saturating_sub(held.get());
        if self.seat.has_expired(Phase::Reading) || !self.has_room(more) {
            return false;
        }
        self.core.bodies.add(more);
        held.set(held.get() + more);
        true
    }

    fn has_room(&self, more: usize) -> bool {
        self.core.bodies.has_room(more, self.core.limits.body_bytes_max) || self.make_room(more)
    }

    /// Ends bodies that have stalled until there is room.
    #[cold]
    fn make_room(&self, more: usize) -> bool {
        let (core, now) = (&self.core, Instant::now());
        if !core.bodies.may_look(now) {
            return false;
        }
        let mut stalled: Vec<(Duration, Rc<Seat<HttpCore<S>>>)> = Vec::new();
        core.seats().each(|seat| {
            let quiet = seat.waits().quiet_for(now);
            let is_waiting = seat.phase() == Phase::Reading && !seat.has_expired(Phase::Reading) && !seat.is_cut();
            if is_waiting && seat.waits().held.get() > 0 && quiet >= STALLED && !Rc::ptr_eq(seat, &self.seat) {
                stalled.push((quiet, Rc::clone(seat)));
            }
        });
        stalled.sort_unstable_by_key(|(quiet, _)| std::cmp::Reverse(*quiet));
        for (_, seat) in stalled {
            seat.waits().why.set(Why::GaveWay);
            seat.cut_input();
            core.bodies.give_back(seat.waits().held.take());
            core.service.event(Event::Overloaded);
            if core.bodies.has_room(more, core.limits.body_bytes_max) {
                return true;
            }
        }
        core.bodies.looked_in_vain(now);
        false
    }
}

impl<S: Service> Drop for Reservation<S> {
    fn drop(&mut self) {
        self.core.bodies.give_back(self.seat.waits().held.take());
    }
}
