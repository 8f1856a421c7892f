//! The thread that talks to one peer: it dials, sends windows and waits for their answers, while the
//! owner of the peer's log goes on.
//!
//! Owner: the peer's worker, which gives one order at a time and gets the answer in its queue. What
//! a dial or a window may take is the target's; nothing here has a deadline of its own.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use koltso_instrument::waiting;
use koltso_model::Record;

use crate::keeper::{Dial, Target};
use crate::queue::Item;

/// What the worker wants.
pub(crate) enum Order {
    Dial,
    /// Over the connection of the last dial.
    Send(Vec<Record<Bytes>>),
    HangUp,
}

/// Starts the thread for a peer. It ends when the orders do.
pub(crate) fn start(
    node: usize,
    dial: Arc<dyn Dial>,
    orders: Receiver<Order>,
    answers: Sender<Item>,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("koltso-replay-{node}")).spawn(move || run(node, &*dial, &orders, &answers))
}

fn run(node: usize, dial: &dyn Dial, orders: &Receiver<Order>, answers: &Sender<Item>) {
    let mut target: Option<Box<dyn Target>> = None;
    for order in orders {
        let answer = match order {
            Order::HangUp => {
                target = None;
                continue;
            }
            Order::Dial => {
                // The one that failed ends before another begins.
                target = None;
                let dialled = waiting(&"connection for hints", || dial.dial(node));
                Item::Dialled(dialled.map(|connection| target = Some(connection)))
            }
            Order::Send(records) => {
                let begun = Instant::now();
                let sent = match &mut target {
                    Some(target) => waiting(&"replies to hints", || target.write(&records)),
                    None => Err("there is no connection".to_owned()),
                };
                if sent.is_err() {
                    target = None;
                }
                Item::Answered(sent, begun.elapsed())
            }
        };
        if answers.send(answer).is_err() {
            return;
        }
    }
}
