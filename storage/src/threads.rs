//! The engine's own threads: started, called, and stopped together. What they do is in the modules
//! that start them.
//!
//! None is pinned (a thread inherits its maker's affinity: open the store from an unpinned thread).
//! They stop within about 100 ms of being asked.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use koltso_instrument::Mutex;

use crate::env::Env;

/// How often the threads look without being called.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// How a thread shares processors. A nice one cannot go back without privileges, so a task that is
/// in a hurry at times has a thread of each kind, see `Parts::wait_for_turn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Gives way to all others.
    Nice,
    /// As urgent as those that serve requests.
    Prompt,
}

/// See the module.
pub(crate) struct Threads {
    env: Arc<dyn Env>,
    closing: AtomicBool,
    joins: Mutex<Vec<JoinHandle<()>>>,
    provision: Mutex<Option<Thread>>,
    /// One of each kind.
    seal: Mutex<Vec<(Urgency, Thread)>>,
}

impl Threads {
    pub(crate) fn new(env: Arc<dyn Env>) -> Self {
        Self {
            env,
            closing: AtomicBool::new(false),
            joins: Mutex::new(&"storage threads", Vec::new()),
            provision: Mutex::new(&"provisioning thread", None),
            seal: Mutex::new(&"sealing threads", Vec::new()),
        }
    }

    /// Starts a thread.
    pub(crate) fn spawn(
        &self,
        name: &str,
        urgency: Urgency,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<Thread> {
        let env = self.env.clone();
        let join = thread::Builder::new().name(format!("koltso-{name}")).spawn(move || {
            if urgency == Urgency::Nice {
                env.give_way();
            }
            body();
        })?;
        let thread = join.thread().clone();
        self.joins.lock().push(join);
        Ok(thread)
    }

    /// Says whom [`Threads::wake_provisioning`] calls.
    pub(crate) fn provisions(&self, thread: Thread) {
        *self.provision.lock() = Some(thread);
    }

    /// Says whom [`Threads::wake_sealing`] calls.
    pub(crate) fn seals(&self, urgency: Urgency, thread: Thread) {
        self.seal.lock().push((urgency, thread));
    }

    pub(crate) fn wake_provisioning(&self) {
        if let Some(thread) = &*self.provision.lock() {
            thread.unpark();
        }
    }

    /// Calls the sealing thread of this kind.
    pub(crate) fn wake_sealing(&self, urgency: Urgency) {
        for (_, thread) in self.seal.lock().iter().filter(|(of, _)| *of == urgency) {
            thread.unpark();
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Waits a while, or less if the store closes.
    pub(crate) fn pause(&self, mut time: Duration) {
        while !time.is_zero() && !self.is_closing() {
            let step = time.min(TICK);
            thread::park_timeout(step);
            time -= step;
        }
    }

    /// Stops all threads. More than once is fine.
    pub(crate) fn stop(&self) {
        self.closing.store(true, Ordering::SeqCst);
        let joins: Vec<_> = self.joins.lock().drain(..).collect();
        // All at once: on a busy machine each takes a while to be woken.
        joins.iter().for_each(|join| join.thread().unpark());
        for join in joins {
            // In the server a panic ends the process; elsewhere it must not pass unnoticed.
            assert!(join.join().is_ok() || thread::panicking(), "a storage thread had panicked");
        }
    }
}
