//! What people see while a capture runs, and what Ctrl-C does: one line on standard error, rewritten each half second, where that is a
//! terminal; an end with exit code 130 that leaves no temporary file. The node notices that the connection is closed and ends its capture.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

const EVERY: Duration = Duration::from_millis(500);
/// To the beginning of the line, and erase it.
const ERASE: &str = "\r\x1b[K";

/// Ends the process on SIGINT, SIGTERM and SIGHUP with 128 and the signal's number, without the temporary file.
///
/// # Errors
/// Signals cannot be caught.
pub fn end_on_signals(temporary: Option<&Path>) -> Result<(), String> {
    let cannot = |e: io::Error| format!("signals cannot be caught: {e}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    // Before the thread is there, so that none is missed.
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
            // Where it is not there any more, the file is whole.
            let _ = std::fs::remove_file(temporary);
        }
        if io::stderr().is_terminal() {
            eprint!("{ERASE}");
        }
        std::process::exit(128 + kind.as_raw_value());
    };
    thread::Builder::new().name("koltso-signals".to_owned()).spawn(wait).map(drop).map_err(cannot)
}

/// The progress line; it is gone when this is dropped.
pub struct Progress(Option<(mpsc::Sender<()>, JoinHandle<()>)>);

impl Progress {
    /// Begins it, for a capture of so many seconds.
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
        // A capture without a progress line is a capture.
        let thread = thread::Builder::new().name("koltso-progress".to_owned()).spawn(tell);
        Self(thread.ok().map(|thread| (end, thread)))
    }
}

impl Progress {
    /// Ends it: the line is free for what comes next.
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
    // Nobody can be told that nobody can be told.
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
