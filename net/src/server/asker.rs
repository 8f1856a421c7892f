//! The requests in flight of one address on a core.
//!
//! Owner: one core; the connections of an address share an [`Asker`]. Bound: an entry for each
//! address that has a connection. A request costs a load and a store. Tested in
//! `tests/addresses.rs`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use crate::connections::Origin;

/// An address, as the core sees it.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(super) requests: Cell<usize>,
    pub(super) requests_max: usize,
}

/// The addresses that have connections to the core.
#[derive(Debug, Default)]
pub(super) struct Askers(RefCell<HashMap<Origin, Rc<Asker>>>);

impl Askers {
    /// The entry of an address, which is made if there is none.
    pub(super) fn enter(&self, origin: Origin, requests_max: usize) -> Rc<Asker> {
        let mut askers = self.0.borrow_mut();
        let asker = askers.entry(origin).or_insert_with(|| Rc::new(Asker { requests: Cell::new(0), requests_max }));
        Rc::clone(asker)
    }

    /// Forgets an address whose last connection ends.
    pub(super) fn leave(&self, origin: Origin, asker: &Rc<Asker>) {
        // One count is the table's, the other the connection's that ends.
        if Rc::strong_count(asker) == 2 {
            self.0.borrow_mut().remove(&origin);
        }
    }
}
