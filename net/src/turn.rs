//! Turns of a core's loop: a turn lasts from the first task that continues to the moment before the
//! core enters its driver again.
//!
//! ```text
//! driver ─▶ a task that was woken: begin ─▶ all other tasks that are ready
//!        ─▶ the future of the runtime: end ─▶ driver
//! ```
//!
//! monoio runs the tasks that are ready, then polls the future given to `block_on` if it was woken,
//! then enters the driver. [`Turn::run`] is that future: beginning a turn wakes it, which costs a
//! store and no place in the queue, and being polled is the end of the turn. Tasks report that they
//! continue, with a reading of the clock that they have made anyway ([`Service::resumed`] and the
//! like); only the first report of a turn counts.
//!
//! Owner: one core, behind an `Rc`. What is done with turns is up to its [`Observer`].
//!
//! Invariants:
//! 1. The observer hears of a begin and an end alternately, first of a begin; a begin while a turn
//!    is open is part of that turn.
//! 2. A turn that has begun ends before the core waits, whatever its tasks wake, spawn or yield. If
//!    tasks keep waking each other, monoio enters the driver after it has run twice as many as
//!    there were: that ends the turn, too.
//! 3. Outside of [`Turn::run`] no turn begins.
//!
//! Deliberately absent: time inside the driver, which sends, receives and waits there in one system
//! call; turns in which no task reports that it continues. Tested below on both drivers.
//!
//! [`Service::resumed`]: crate::server::Service::resumed

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

/// Is told when a core's turns begin and end.
pub trait Observer: 'static {
    /// A turn has begun: the core was idle or in its driver before. In a `quiet` turn there may be
    /// nothing to do: time has passed, or a peer asks whether this node is alive.
    fn began(&self, now: Instant, quiet: bool);

    /// The turn that began quietly has something to do after all.
    fn busy(&self);

    /// The turn has ended; this is called as many times as [`began`](Self::began).
    fn ended(&self, now: Instant);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Outside of [`Turn::run`]: no turn may begin.
    Off,
    /// Between two turns.
    Closed,
    /// In a turn that may have nothing to do.
    Quiet,
    /// In a turn that has something to do.
    Open,
}

/// The turns of one core: see the head of the file.
pub struct Turn<O> {
    observer: O,
    state: Cell<State>,
    /// Wakes the future that the runtime polls last.
    last: RefCell<Option<Waker>>,
}

impl<O: Observer> Turn<O> {
    /// Turns that are not counted until [`run`](Self::run).
    pub fn new(observer: O) -> Rc<Self> {
        Rc::new(Self { observer, state: Cell::new(State::Off), last: RefCell::default() })
    }

    /// A task continues after it has waited for the driver; `now` has just been read.
    #[inline]
    pub fn begin(&self, now: Instant) {
        match self.state.get() {
            State::Closed => self.open(now, State::Open),
            State::Quiet => self.busy(),
            State::Open | State::Off => {}
        }
    }

    /// A task continues, maybe only because time has passed; it calls [`busy`](Self::busy) if it
    /// finds something to do.
    #[inline]
    pub fn begin_quietly(&self, now: Instant) {
        if self.state.get() == State::Closed {
            self.open(now, State::Quiet);
        }
    }

    /// A task has found something to do in a turn that began quietly.
    #[inline]
    pub fn busy(&self) {
        if self.state.get() == State::Quiet {
            self.state.set(State::Open);
            self.observer.busy();
        }
    }

    #[inline]
    fn open(&self, now: Instant, state: State) {
        self.state.set(state);
        self.observer.began(now, state == State::Quiet);
        if let Some(last) = &*self.last.borrow() {
            last.wake_by_ref();
        }
    }

    /// Runs `future`. It must be the future given to `block_on`, since only that one is polled
    /// after all tasks. Work of `future` itself is a turn, too, if it reports it: it is then polled
    /// again at once.
    pub async fn run<F: Future>(self: Rc<Self>, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        let output = poll_fn(|context| {
            // The first poll is before any task has run.
            if matches!(self.state.replace(State::Closed), State::Quiet | State::Open) {
                self.observer.ended(Instant::now());
            }
            let mut last = self.last.borrow_mut();
            if !last.as_ref().is_some_and(|last| last.will_wake(context.waker())) {
                *last = Some(context.waker().clone());
            }
            drop(last);
            future.as_mut().poll(context)
        })
        .await;
        self.state.set(State::Off);
        output
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

    use super::*;

    /// Records the length of each turn and whether it was quiet; panics if a turn begins while
    /// another is open.
    #[derive(Clone, Default)]
    struct Log {
        open: Rc<Cell<Option<(Instant, bool)>>>,
        turns: Rc<RefCell<Vec<(Duration, bool)>>>,
    }

    impl Observer for Log {
        fn began(&self, now: Instant, quiet: bool) {
            assert!(self.open.replace(Some((now, quiet))).is_none(), "invariant 1");
        }

        fn busy(&self) {
            let (began, quiet) = self.open.take().expect("invariant 1");
            assert!(quiet, "busy once");
            self.open.set(Some((began, false)));
        }

        fn ended(&self, now: Instant) {
            let (began, quiet) = self.open.take().expect("invariant 1");
            self.turns.borrow_mut().push((now - began, quiet));
        }
    }

    const WORK: Duration = Duration::from_millis(20);

    async fn pause() {
        monoio::time::sleep(Duration::from_millis(2)).await;
    }

    /// The turns that the scenario made, on each driver.
    fn turns<F: Future<Output = ()> + 'static>(scenario: impl Fn(Rc<Turn<Log>>) -> F) -> [Vec<(Duration, bool)>; 2] {
        [true, false].map(|uring| {
            let log = Log::default();
            let turn = Turn::new(log.clone());
            turn.begin(Instant::now());
            let main = Rc::clone(&turn).run(scenario(Rc::clone(&turn)));
            if uring {
                let runtime = RuntimeBuilder::<IoUringDriver>::new().enable_timer().build();
                runtime.expect("io_uring is needed for this test").block_on(main);
            } else {
                RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().expect("epoll").block_on(main);
            }
            turn.begin(Instant::now());
            assert!(log.open.get().is_none(), "invariant 3, or a turn that did not end");
            log.turns.take()
        })
    }

    #[test]
    fn tasks_of_one_batch_are_one_turn_and_so_is_what_they_wake() {
        for turns in turns(|turn| async move {
            let (second_generation, woken) = (Rc::new(Cell::new(false)), Rc::clone(&turn));
            let seen = Rc::clone(&second_generation);
            for _ in 0..2 {
                let (turn, seen) = (Rc::clone(&turn), Rc::clone(&seen));
                monoio::spawn(async move {
                    // The same tick of the timer wakes both tasks.
                    pause().await;
                    turn.begin(Instant::now());
                    std::thread::sleep(WORK);
                    // This task is queued behind everything that is ready, and reads no clock of
                    // its own.
                    monoio::spawn(async move {
                        std::thread::sleep(WORK);
                        seen.set(true);
                    });
                });
            }
            monoio::time::sleep(WORK).await;
            assert!(second_generation.get());
            woken.begin(Instant::now());
            pause().await;
        }) {
            assert_eq!(turns.len(), 2, "{turns:?}");
            assert!(turns[0].0 >= 4 * WORK, "{turns:?}");
            assert!(turns[1].0 < WORK, "{turns:?}");
        }
    }

    #[test]
    fn the_wait_for_the_driver_is_no_part_of_a_turn() {
        for turns in turns(|turn| async move {
            for _ in 0..3 {
                turn.begin(Instant::now());
                monoio::time::sleep(WORK).await;
            }
            for busy in [false, true] {
                turn.begin_quietly(Instant::now());
                turn.begin_quietly(Instant::now());
                if busy {
                    turn.busy();
                    turn.begin(Instant::now());
                }
                pause().await;
            }
        }) {
            assert_eq!(turns.len(), 5, "{turns:?}");
            assert!(turns.iter().all(|(lasted, _)| *lasted < WORK), "{turns:?}");
            assert_eq!(turns.iter().map(|(_, quiet)| *quiet).collect::<Vec<_>>(), [false, false, false, true, false]);
        }
    }

    #[test]
    fn tasks_that_never_cease_do_not_keep_a_turn_open() {
        for turns in turns(|turn| async move {
            let stop = Rc::new(Cell::new(false));
            let (its, seen) = (Rc::clone(&turn), Rc::clone(&stop));
            let looping = monoio::spawn(async move {
                while !seen.get() {
                    its.begin(Instant::now());
                    std::thread::sleep(Duration::from_millis(1));
                    monoio::spawn(std::future::ready(())).await;
                }
            });
            let began = Instant::now();
            while began.elapsed() < WORK * 5 {
                monoio::spawn(std::future::ready(())).await;
            }
            stop.set(true);
            looping.await;
        }) {
            assert!(turns.len() > 5, "{turns:?}");
            assert!(turns.iter().all(|(lasted, _)| *lasted < WORK * 4), "{turns:?}");
        }
    }
}
