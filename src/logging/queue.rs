//! The lines that wait to be written.
//!
//! Owner: nobody; any thread pushes, the thread `koltso-log` takes. A server starts it before its
//! other threads; elsewhere the first line does, so a command that says nothing has no such thread.
//!
//! Bounds: [`LINES_MAX`] lines, [`BYTES_MAX`] bytes. A line that finds no room is lost and counted.
//! A push is a few atomic operations, an allocation now and then, and a wake-up if the writer
//! sleeps; it takes no lock that the writer holds. (Of the channels at hand, those of the standard
//! library and of crossbeam lock a mutex to wake the other side.)

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

/// The most lines that wait.
const LINES_MAX: usize = 8192;
/// The most bytes of lines that wait.
const BYTES_MAX: usize = 1 << 20;
/// How often somebody who waits for the writer looks.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// See the module.
pub(super) struct Queue {
    /// What the thread does.
    write: fn(&'static Queue, mpsc::Receiver<String>),
    /// `None` if the thread could not be started: every line is lost then.
    running: OnceLock<Option<Running>>,
    bytes: AtomicUsize,
    /// Lines that were pushed and had room.
    pushed: AtomicU64,
    /// Those of them that were written or lost since.
    done: AtomicU64,
    lost: AtomicU64,
    ending: AtomicBool,
    ended: AtomicBool,
}

struct Running {
    sender: mpsc::Sender<String>,
    writer: Thread,
}

impl Queue {
    pub(super) const fn new(write: fn(&'static Queue, mpsc::Receiver<String>)) -> Self {
        Self {
            write,
            running: OnceLock::new(),
            bytes: AtomicUsize::new(0),
            pushed: AtomicU64::new(0),
            done: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            ending: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    fn start(&'static self) -> Option<Running> {
        let (sender, receiver) = mpsc::channel(LINES_MAX);
        let body = move || (self.write)(self, receiver);
        let thread = thread::Builder::new().name("koltso-log".to_owned()).spawn(body).ok()?;
        Some(Running { sender, writer: thread.thread().clone() })
    }

    /// Starts the thread, where it should not wait for the first line.
    pub(super) fn begin(&'static self) {
        let _ = self.running();
    }

    fn running(&'static self) -> Option<&'static Running> {
        self.running.get_or_init(|| self.start()).as_ref()
    }

    /// Hands over a line, with its line end.
    pub(super) fn push(&'static self, line: String) {
        let Some(running) = self.running() else { return self.lose() };
        let length = line.len();
        if self.bytes.fetch_add(length, Ordering::Relaxed) + length > BYTES_MAX {
            self.bytes.fetch_sub(length, Ordering::Relaxed);
            return self.lose();
        }
        self.pushed.fetch_add(1, Ordering::SeqCst);
        if running.sender.try_send(line).is_err() {
            self.bytes.fetch_sub(length, Ordering::Relaxed);
            self.lose();
            self.done.fetch_add(1, Ordering::SeqCst);
        }
        running.writer.unpark();
    }

    /// Wakes the writer before its time.
    pub(super) fn wake(&self) {
        if let Some(Some(running)) = self.running.get() {
            running.writer.unpark();
        }
    }

    /// A line is lost.
    pub(super) fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// A line that had room was written or lost.
    pub(super) fn finished(&self) {
        self.done.fetch_add(1, Ordering::SeqCst);
    }

    /// A line of so many bytes was taken.
    pub(super) fn taken(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The lines that were lost since the start.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether the process is about to end.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// The writer has nothing more to say.
    pub(super) fn has_ended(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Waits until what was pushed so far was written or lost, or until the time is over.
    pub(super) fn flush(&self, within: Duration) {
        let pushed = self.pushed.load(Ordering::SeqCst);
        self.wait(within, || self.done.load(Ordering::SeqCst) >= pushed);
    }

    /// As [`flush`](Self::flush), with what the writer still has to tell.
    pub(super) fn end(&self, within: Duration) {
        self.ending.store(true, Ordering::SeqCst);
        self.wake();
        self.wait(within, || self.ended.load(Ordering::SeqCst));
    }

    fn wait(&self, within: Duration, is_over: impl Fn() -> bool) {
        let Some(Some(running)) = self.running.get() else { return };
        let begun = Instant::now();
        // (A panic of the writer must not wait for itself.)
        while !is_over() && begun.elapsed() < within && thread::current().id() != running.writer.id() {
            thread::sleep(LOOK_EVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue whose writer is stuck.
    fn stuck() -> &'static Queue {
        let never = |_: &'static Queue, _lines: mpsc::Receiver<String>| {
            loop {
                thread::park();
            }
        };
        Box::leak(Box::new(Queue::new(never)))
    }

    #[test]
    fn what_finds_no_room_is_lost_and_counted() {
        let queue = stuck();
        for _ in 0..LINES_MAX + 10 {
            queue.push("x\n".to_owned());
        }
        assert_eq!((queue.lost(), queue.bytes.load(Ordering::Relaxed)), (10, 2 * LINES_MAX));
        let queue = stuck();
        let line = "x".repeat(4096);
        for _ in 0..BYTES_MAX / line.len() + 10 {
            queue.push(line.clone());
        }
        assert_eq!((queue.lost(), queue.bytes.load(Ordering::Relaxed)), (10, BYTES_MAX));
    }

    #[test]
    fn nobody_waits_longer_for_a_writer_that_is_stuck_than_they_said() {
        let queue = stuck();
        let begun = Instant::now();
        // There is no writer yet.
        queue.flush(Duration::from_secs(3600));
        queue.end(Duration::from_secs(3600));
        queue.push("x\n".to_owned());
        queue.flush(Duration::from_millis(20));
        queue.end(Duration::from_millis(20));
        assert!(begun.elapsed() >= Duration::from_millis(40) && queue.lost() == 0);
    }

    #[test]
    fn a_writer_that_takes_all_ends_all_waiting() {
        let all = |queue: &'static Queue, mut lines: mpsc::Receiver<String>| {
            loop {
                while let Ok(line) = lines.try_recv() {
                    queue.taken(line.len());
                    queue.finished();
                }
                if queue.is_ending() {
                    queue.has_ended();
                }
                thread::park();
            }
        };
        let queue: &'static Queue = Box::leak(Box::new(Queue::new(all)));
        thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| (0..1000).for_each(|_| queue.push("a line\n".to_owned())));
            }
        });
        queue.flush(Duration::from_secs(3600));
        assert_eq!((queue.lost(), queue.bytes.load(Ordering::Relaxed)), (0, 0));
        queue.end(Duration::from_secs(3600));
    }
}
