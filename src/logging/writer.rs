//! The thread that writes to standard error.
//!
//! Owner: `koltso-log`, which is nice. It may wait in `write` for as long as it takes; meanwhile the
//! queue fills, and what finds no room in it is lost. A line that standard error refuses (EPIPE,
//! ENOSPC, EIO or whatever else) is lost as well. As soon as a line can be written again, one says
//! how many were lost. A descriptor that does not block (EAGAIN) is waited for.
//!
//! Signals that a write can cause (SIGXFSZ for a file at its limit of size, SIGTTOU for a terminal
//! that belongs to others, SIGPIPE) are blocked in this thread, so that they end or stop nobody.

use std::io;
use std::mem;
use std::os::fd::AsFd as _;
use std::thread;
use std::time::{Duration, Instant};

use koltso_storage::schedule;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::sync::mpsc::Receiver;
use tracing::Level;

use super::lines::Message;
use super::queue::Queue;
use super::{SITES, style};

/// How often at most the writer says what was lost.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// For how long what is left out adds up before the writer says how much it was.
const SUM_UP_AFTER: Duration = Duration::from_secs(5);
/// How long it waits at once for a descriptor that does not block.
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Where lines go; in tests, something else.
trait Sink {
    /// As `write(2)`.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno>;
    /// Waits a moment until more can be written.
    fn wait(&mut self);
}

struct StandardError;

impl Sink for StandardError {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        // Not by the standard library, whose lock somebody else may hold.
        rustix::io::write(io::stderr().as_fd(), bytes)
    }

    fn wait(&mut self) {
        let stderr = io::stderr();
        let _ = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&POLL));
    }
}

/// Blocks the signals that a write can cause, in the calling thread.
#[allow(unsafe_code)]
fn block_signals() {
    // SAFETY: the set is plain data on the stack, made empty before it is used.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGXFSZ, libc::SIGTTOU, libc::SIGPIPE] {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// Lines into a sink, whole or not at all as far as the sink allows.
struct Output<S> {
    sink: S,
    /// A line was cut off in the middle: the next one begins on a new line.
    is_cut: bool,
}

impl<S: Sink> Output<S> {
    /// Whether the line was written.
    fn line(&mut self, line: &str) -> bool {
        if self.is_cut {
            if !self.bytes(b"\n") {
                return false;
            }
            self.is_cut = false;
        }
        self.bytes(line.as_bytes())
    }

    fn bytes(&mut self, mut bytes: &[u8]) -> bool {
        let whole = bytes.len();
        while !bytes.is_empty() {
            match self.sink.write(bytes) {
                Ok(count) if count > 0 => bytes = &bytes[count.min(bytes.len())..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.sink.wait(),
                Ok(_) | Err(_) => {
                    self.is_cut |= bytes.len() < whole;
                    return false;
                }
            }
        }
        true
    }
}

/// The life of the thread: as long as the process.
pub(super) fn run(queue: &'static Queue, lines: Receiver<String>) {
    schedule::be_nice();
    block_signals();
    let output = Output { sink: StandardError, is_cut: false };
    Writer { queue, lines, output, told: 0, told_at: None, unsaid_since: None, works: true }.run();
}

/// See the module.
struct Writer {
    queue: &'static Queue,
    lines: Receiver<String>,
    output: Output<StandardError>,
    /// Of the lines that were lost, those of which a line told.
    told: u64,
    told_at: Option<Instant>,
    /// Since when something was left out of which no line tells.
    unsaid_since: Option<Instant>,
    /// Whether the last line could be written.
    works: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            let is_ending = self.queue.is_ending();
            while let Ok(line) = self.lines.try_recv() {
                self.queue.taken(line.len());
                self.tell_of_the_lost(is_ending);
                self.write(&line);
                self.queue.finished();
            }
            self.sum_up(is_ending);
            if self.works || is_ending {
                self.tell_of_the_lost(is_ending);
            }
            if is_ending {
                // (It goes on for those who have something to say even after the end.)
                self.queue.has_ended();
            }
            if SITES.has_unsaid() || (self.works && self.told < self.queue.lost()) {
                thread::park_timeout(TELL_EVERY);
            } else {
                thread::park();
            }
        }
    }

    fn write(&mut self, line: &str) {
        self.works = self.output.line(line);
        if !self.works {
            self.queue.lose();
        }
    }

    /// Says how many lines were lost, if that has not been said yet. If it cannot be said now, it
    /// will be before the next line.
    fn tell_of_the_lost(&mut self, at_once: bool) {
        let lost = self.queue.lost();
        let is_due = self.told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY);
        if lost == self.told || !(at_once || is_due) {
            return;
        }
        let text = format!("{} lines of the log were lost: standard error was closed, full or stuck", lost - self.told);
        self.works = self.output.line(&style().event(Level::WARN, module_path!(), &Message::plain(text)));
        if self.works {
            (self.told, self.told_at) = (lost, Some(Instant::now()));
        }
    }

    /// Says what was left out, once that has added up.
    fn sum_up(&mut self, at_once: bool) {
        if !SITES.has_unsaid() {
            return;
        }
        let since = *self.unsaid_since.get_or_insert_with(Instant::now);
        if !at_once && since.elapsed() < SUM_UP_AFTER {
            return;
        }
        self.unsaid_since = None;
        for summary in SITES.summaries() {
            self.write(&style().event(summary.level, summary.target, &Message::plain(summary.line)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sink whose answers are given, and what it took.
    struct Scripted {
        answers: Vec<Result<usize, Errno>>,
        taken: Vec<u8>,
        waits: usize,
    }

    impl Sink for Scripted {
        fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
            let answer = if self.answers.is_empty() { Ok(bytes.len()) } else { self.answers.remove(0) };
            if let Ok(count) = answer {
                self.taken.extend_from_slice(&bytes[..count]);
            }
            answer
        }

        fn wait(&mut self) {
            self.waits += 1;
        }
    }

    /// What becomes of two lines if the sink answers so first.
    fn two_lines(answers: &[Result<usize, Errno>]) -> (bool, bool, String, usize) {
        let sink = Scripted { answers: answers.to_vec(), taken: Vec::new(), waits: 0 };
        let mut output = Output { sink, is_cut: false };
        let (first, second) = (output.line("one\n"), output.line("two\n"));
        (first, second, String::from_utf8(output.sink.taken).expect("text"), output.sink.waits)
    }

    #[test]
    fn a_line_that_is_refused_is_lost_and_the_next_one_is_whole() {
        let both = (true, true, "one\ntwo\n".to_owned());
        for (answers, waits) in [
            (&[][..], 0),
            (&[Ok(1), Ok(2)], 0),
            (&[Err(Errno::INTR)], 0),
            (&[Err(Errno::AGAIN), Err(Errno::AGAIN)], 2),
            (&[Ok(3), Err(Errno::AGAIN)], 1),
        ] {
            let (first, second, taken, waited) = two_lines(answers);
            assert_eq!(((first, second, taken), waited), (both.clone(), waits), "{answers:?}");
        }
        for error in [Errno::PIPE, Errno::NOSPC, Errno::IO, Errno::BADF, Errno::FBIG] {
            assert_eq!(two_lines(&[Err(error)]), (false, true, "two\n".to_owned(), 0), "{error}");
            assert_eq!(two_lines(&[Ok(2), Err(error)]), (false, true, "on\ntwo\n".to_owned(), 0), "{error}");
            assert_eq!(two_lines(&[Ok(2), Err(error), Err(error)]).2, "on", "{error}");
        }
        assert!(!two_lines(&[Ok(0)]).0, "what takes nothing is not asked for ever");
    }
}
