//! What people see while a capture runs, and what Ctrl-C does.
//!
//! If standard error is a terminal, one line on it is rewritten every half second. Ctrl-C ends the
//! process with exit code 130 and leaves no temporary file; the node notices that the connection is
//! closed and ends its capture.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

const EVERY: Duration = Duration::from_millis(500);
/// Moves to the beginning of the line and erases it.
const ERASE: &str = "\r\x1b[K";

/// On SIGINT, SIGTERM and SIGHUP, removes the temporary file and ends the process with 128 plus the
/// signal's number.
///
/// # Errors
/// One sentence if signals cannot be caught.
pub fn end_on_signals(temporary: Option<&Path>) -> Result<(), String> {
    let cannot = |e: io::Error| format!("signals cannot be caught: {e}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    // Before the thread exists, so that no signal is missed.
    let [mut interrupt, mut terminate, mut hangup] = {
        let _entered = runtime.enter();
        let [interrupt, terminate, hangup] = kinds.map(signal);
        [interrupt.map_err(cannot)?, terminate.map_err(cannot)?, hangup.map_err(cannot)?]
    };
    let temporary: Option<PathBuf> = temporary.map(Path::to_owned);
    let wait = move || {
        let kind = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => kinds[0],
                _ = terminate.recv() => kinds[1],
                _ = hangup.recv() => kinds[2],
            }
        });
        if let Some(temporary) = temporary {
            // If the temporary file does not exist any more, the final one is complete.
            let _ = std::fs::remove_file(temporary);
        }
        if io::stderr().is_terminal() {
            show("");
        }
        std::process::exit(128 + kind.as_raw_value());
    };
    thread::Builder::new().name("koltso-signals".to_owned()).spawn(wait).map(drop).map_err(cannot)
}

/// The progress line, which is erased when this is dropped.
pub struct Progress(Option<(mpsc::Sender<()>, JoinHandle<()>)>);

impl Progress {
    /// Starts the line for a capture that takes `seconds`; `None` if it takes no time.
    pub fn begin(event: &str, url: &str, seconds: Option<u32>) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let (end, ended) = mpsc::channel();
        let (what, begun) = (format!("capturing {event} of {url}"), Instant::now());
        let tell = move || {
            loop {
                show(&line(&what, begun.elapsed(), seconds));
                if ended.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return show("");
                }
            }
        };
        // If there is no thread for the progress line, the capture goes on without one.
        let thread = thread::Builder::new().name("koltso-progress".to_owned()).spawn(tell);
        Self(thread.ok().map(|thread| (end, thread)))
    }
}

impl Progress {
    /// Erases the line, so that other output can follow.
    pub fn end(&mut self) {
        if let Some((end, thread)) = self.0.take() {
            drop(end);
            let _ = thread.join();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn show(text: &str) {
    let mut error = io::stderr().lock();
    // If standard error cannot be written to, there is nowhere to report that.
    let _ = write!(error, "{ERASE}{text}").and_then(|()| error.flush());
}

fn line(what: &str, elapsed: Duration, seconds: Option<u32>) -> String {
    match seconds {
        Some(seconds) if elapsed < Duration::from_secs(seconds.into()) => {
            format!("{what}: {} of {seconds} s", elapsed.as_secs())
        }
        _ => "symbols…".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_counts_and_then_waits_for_symbols() {
        let at = |ms: u64, seconds| line("capturing cpu of http://h:1", Duration::from_millis(ms), seconds);
        assert_eq!(at(12_400, Some(30)), "capturing cpu of http://h:1: 12 of 30 s");
        assert_eq!(at(29_999, Some(30)), "capturing cpu of http://h:1: 29 of 30 s");
        assert_eq!((at(30_000, Some(30)), at(0, None)), ("symbols…".to_owned(), "symbols…".to_owned()));
    }
}
