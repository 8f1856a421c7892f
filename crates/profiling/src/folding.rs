//! Which frames at the root of a stack say nothing: how its thread was started, and the executor
//! that runs tasks on it. Pages leave them out until somebody asks for them.
//!
//! The functions of an executor are also called from tasks (a timer, a waker), so a name alone does
//! not say it. The rule: what is folded ends with the last frame that starts a thread or runs a
//! task, and what of the runtime or Rust's library follows it at once. The last frame of the
//! program is never folded: it says what the runtime itself was doing. Kernel frames and labels are
//! not folded either.
//!
//! Pure. Inlined frames have only the last part of their module in their name; their source file
//! says which crate they belong to. Tested below and, in a real browser, in `tests/browser.rs`.

use crate::capture::{Frame, FramePlace};
use crate::svg::is_standard;

/// Crates that run tasks: as in paths of functions, and as in the folders of their sources.
const RUNTIMES: [(&str, &str); 4] = [
    ("monoio::", "monoio-"),
    ("tokio::", "tokio-"),
    ("tokio_uring::", "tokio-uring-"),
    ("scoped_tls::", "scoped-tls-"),
];

/// How many frames of a stack, from its root on, are folded.
#[must_use]
pub(crate) fn folded<'a>(root_first: impl Iterator<Item = &'a Frame>) -> usize {
    let frames: Vec<&Frame> = root_first.collect();
    let is_program = |frame: &&Frame| matches!(frame.place, FramePlace::User | FramePlace::Inlined);
    let Some(last) = frames.iter().rposition(is_program) else { return 0 };
    let Some(runs) = frames[..=last].iter().rposition(|frame| starts_or_runs(frame)) else { return 0 };
    let filling = frames[runs + 1..=last].iter().take_while(|frame| is_runtime(frame) || is_library(frame)).count();
    (runs + 1 + filling).min(last)
}

fn path(frame: &Frame) -> &str {
    frame.function.trim_start_matches(['<', '&'])
}

/// Whether a frame belongs to a crate that runs tasks.
pub(crate) fn is_runtime(frame: &Frame) -> bool {
    let file = frame.file.as_deref().unwrap_or_default();
    RUNTIMES.iter().any(|(name, folder)| path(frame).starts_with(name) || file.starts_with(folder))
}

/// Whether a frame belongs to Rust's library or to a file of which nothing else is known.
pub(crate) fn is_library(frame: &Frame) -> bool {
    is_standard(&frame.function)
        || frame.file.as_deref().is_some_and(|file| file.starts_with("/rustc/"))
        || frame.function.starts_with('[')
}

/// Whether a frame starts a thread or runs a task on it.
fn starts_or_runs(frame: &Frame) -> bool {
    let name = &*frame.function;
    if matches!(name, "_start" | "clone" | "clone3" | "__clone3" | "start_thread")
        || name.starts_with("__libc_start")
        || name.ends_with("::thread_start")
        || name.contains("__rust_begin_short_backtrace")
        || name.starts_with("std::rt::lang_start")
    {
        return true;
    }
    let file = frame.file.as_deref().unwrap_or_default();
    let is_of = |module: &str| path(frame).contains(&format!("::{module}")) || file.contains(&format!("/{module}"));
    // A task that waits for another one, or for its share, is not run by these.
    let waits = ["join", "Join", "coop"].iter().any(|word| name.contains(word) || file.contains(word));
    is_runtime(frame)
        && !waits
        && ["task", "runtime", "scheduler"].into_iter().any(is_of)
        && matches!(
            name.rsplit("::").next(),
            Some("poll" | "poll_inner" | "poll_future" | "block_on" | "run" | "run_task" | "run_until" | "tick")
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames, root first: `name`, `name_[i] FILE`, `name_[k]`.
    fn stack(names: &[&str]) -> Vec<Frame> {
        let frame = |text: &&str| {
            let (name, file) = text.split_once(" @ ").map_or((*text, None), |(name, file)| (name, Some(file.into())));
            let (name, place) = match (name.strip_suffix("_[k]"), name.strip_suffix("_[i]")) {
                (Some(name), _) => (name, FramePlace::Kernel),
                (_, Some(name)) => (name, FramePlace::Inlined),
                _ if name.starts_with("lock:") => (name, FramePlace::Label),
                _ => (name, FramePlace::User),
            };
            Frame { function: name.into(), file, line: 0, place, address: 0 }
        };
        names.iter().map(frame).collect()
    }

    fn shown(names: &[&str]) -> Vec<String> {
        let frames = stack(names);
        frames[folded(frames.iter())..].iter().map(|frame| frame.function.to_string()).collect()
    }

    const START: [&str; 7] = [
        "[libc.so.6]",
        "<std::sys::thread::unix::Thread>::new::thread_start",
        "lifecycle::{closure#1}_[i] @ /rustc/5980/library/std/src/thread/lifecycle.rs",
        "panic::catch_unwind_[i] @ /rustc/5980/library/std/src/panic.rs",
        "std::sys::backtrace::__rust_begin_short_backtrace",
        "cores::{closure#1}_[i] @ src/commands/serve/cores.rs",
        "cores::run_[i] @ src/commands/serve/cores.rs",
    ];
    const RUNS: [&str; 6] = [
        "runtime::block_on_[i] @ monoio-0.2.4/src/runtime.rs",
        "scoped_tls::set_[i] @ scoped-tls-1.0.1/src/lib.rs",
        "task::run_[i] @ monoio-0.2.4/src/task/mod.rs",
        "monoio::task::raw::poll",
        "core::poll_[i] @ monoio-0.2.4/src/task/core.rs",
        "core::{closure#0}_[i] @ monoio-0.2.4/src/task/core.rs",
    ];

    #[test]
    fn a_stack_starts_at_its_first_useful_frame() {
        let of = |rest: &[&'static str]| shown(&[&START[..], &RUNS, rest].concat());
        let serve = ["koltso_net::server::connection::run", "koltso::front::put", "memcpy"];
        assert_eq!(of(&serve), serve);
        // What a task calls of the runtime is not its beginning.
        let calls =
            ["koltso_net::write", "monoio::driver::uring::submit", "monoio::task::waker::wake_by_val", "syscall"];
        assert_eq!(of(&calls), calls);
        let waits = ["koltso::wait", "<monoio::task::join::JoinHandle<T> as core::future::future::Future>::poll", "f"];
        assert_eq!(of(&waits), waits);
        // A thread that only does one thing.
        let works = [&START[..5], &["koltso_storage::syncing::run", "fdatasync", "entry_SYSCALL_64_[k]"]].concat();
        assert_eq!(shown(&works), ["koltso_storage::syncing::run", "fdatasync", "entry_SYSCALL_64"]);
        let tokio = [
            &START[..5],
            &[
                "koltso::admin::control::spawn::{{closure}}",
                "tokio_uring::runtime::Runtime::block_on",
                "tokio::task::local::LocalSet::tick",
                "std::panicking::try",
                "tokio::runtime::task::harness::Harness<T,S>::poll",
                "koltso::admin::control::serve::{{closure}}",
                "tokio::time::sleep",
                "f",
            ],
        ];
        assert_eq!(shown(&tokio.concat()), ["koltso::admin::control::serve::{{closure}}", "tokio::time::sleep", "f"]);
    }

    #[test]
    fn what_the_runtime_itself_does_keeps_its_last_frame() {
        let park =
            ["driver::park_[i] @ monoio-0.2.4/src/driver/mod.rs", "syscall", "entry_SYSCALL_64_[k]", "schedule_[k]"];
        assert_eq!(shown(&[&START[..], &RUNS[..1], &park].concat()), ["syscall", "entry_SYSCALL_64", "schedule"]);
        assert_eq!(shown(&[&START[..], &RUNS].concat()), ["core::{closure#0}"]);
        assert_eq!(shown(&["start_thread"]), ["start_thread"]);
        assert_eq!(
            shown(&[&START[..5], &["lock:segments"]].concat()).last().map(String::as_str),
            Some("lock:segments")
        );
    }

    #[test]
    fn a_stack_that_nobody_starts_is_whole() {
        for names in [
            &[][..],
            &["main", "run", "serve"],
            &["[no stack]"],
            &["entry_SYSCALL_64_[k]", "tick_[k]"],
            &["core::fmt::write", "f"],
            &["runtime.main", "main.main", "task.run"],
            &["koltso::task::run", "koltso::runtime::poll"],
        ] {
            assert_eq!(shown(names).len(), names.len(), "{names:?}");
        }
    }
}
