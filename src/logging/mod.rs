//! The log: lines on standard error, as best effort. A standard error that is closed, full or stuck
//! never stops, slows or ends this process.
//!
//! Whoever has a line hands it to a bounded queue (`queue.rs`) and goes on; a thread of its own,
//! `koltso-log`, writes (`writer.rs`). Everything that this program says goes this way: events of
//! `tracing`, which all crates use; the ready line, refusals and what commands say ([`say`],
//! [`complain`]); panics. Each place that logs has a bounded rate (`sites.rs`), so none needs one of
//! its own. `lines.rs` makes the lines.
//!
//! Invariants:
//! 1. No thread but `koltso-log` ever writes to standard error or waits for it, except for at most
//!    [`END_WITHIN`] at the end of the process and [`PANIC_WITHIN`] in a panic. (The progress of a
//!    capture, on a terminal, is no line.)
//! 2. Handing over a line takes no lock, and no error comes back: a line that cannot be kept or
//!    written is lost and counted.
//! 3. A line is written by one call and is at most [`lines::LINE_MAX`] bytes long, which a pipe
//!    takes as a whole: the nodes of `koltso local` share one, and their lines never mix.
//!
//! Tested in each file and in `tests/logging.rs`.

mod lines;
mod queue;
mod sites;
mod subscriber;
mod writer;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::Level;

pub use lines::Format;
use lines::Style;
use queue::Queue;
use sites::Sites;

/// How long the end of the process waits for the log at most.
const END_WITHIN: Duration = Duration::from_secs(1);
/// How long a panic waits for the log at most.
const PANIC_WITHIN: Duration = Duration::from_millis(250);

/// What a process wants of its log.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Events below this level are left out.
    pub level: Level,
    pub format: Format,
    /// What each line begins with, so that the nodes of `koltso local` can be told apart.
    pub name: Option<String>,
}

static QUEUE: Queue = Queue::new(writer::run);
static SITES: Sites = Sites::new();
/// What was asked for.
static STYLE: OnceLock<Style> = OnceLock::new();
/// What holds before that.
static PLAIN: OnceLock<Style> = OnceLock::new();

fn style() -> &'static Style {
    STYLE.get().unwrap_or_else(|| PLAIN.get_or_init(|| Style::plain(std::io::stderr().is_terminal())))
}

/// Catches events and panics from now on.
pub fn begin() {
    subscriber::install();
    std::panic::set_hook(Box::new(panicked));
}

/// Takes over what was asked for. May be called once; until then lines are text, from the level
/// "info" on.
pub fn configure(settings: &LogSettings) {
    let colours = std::io::stderr().is_terminal();
    let _ = STYLE.set(Style { format: settings.format, name: settings.name.clone(), colours });
    subscriber::set_level(settings.level);
    QUEUE.begin();
}

/// Says a line that has no time and no level in front of it as a text.
pub fn say(line: &str) {
    QUEUE.push(style().said(Level::INFO, line));
}

/// Says what went wrong in one sentence, after the name of the program.
pub fn complain(sentence: &str) {
    let style = style();
    QUEUE.push(match style.format {
        Format::Text => style.said(Level::ERROR, &format!("koltso: {sentence}")),
        Format::Json => style.said(Level::ERROR, sentence),
    });
}

/// Gives the log a moment to write what it has. To be called once, when the process is about to
/// end.
pub fn end() {
    QUEUE.end(END_WITHIN);
}

/// The lines that were lost since the start, because standard error was closed, full or stuck.
pub fn lines_lost() -> u64 {
    QUEUE.lost()
}

/// The lines that were left out since the start, because their place had logged too many.
pub fn lines_left_out() -> u64 {
    SITES.left_out()
}

/// The panic hook: what the standard library prints, through the queue. How the process ends is the
/// same as with the hook of the library.
fn panicked(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let place = info.location().map(|place| format!(" at {place}")).unwrap_or_default();
    let payload = info.payload();
    let message = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let message = message.unwrap_or("no message");
    let style = style();
    QUEUE.push(style.said(Level::ERROR, &format!("thread '{name}' panicked{place}: {message}")));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        for line in backtrace.to_string().lines() {
            QUEUE.push(style.said(Level::ERROR, line));
        }
    }
    QUEUE.flush(PANIC_WITHIN);
}
