//! Reads the names of functions: the paths in them, libraries, entries of threads, reasons to
//! sleep.
//!
//! The names come from `rustc-demangle` and from the kernel's symbols and may be anything: no
//! function here fails on any of them. They are pure functions, tested below.

use crate::capture::{Frame, FramePlace};

/// The most characters of a name that is shown.
pub const NAME_MAX: usize = 110;

/// A name in the form in which it is shown: without the numbers of closures, and cut at
/// [`NAME_MAX`].
#[must_use]
pub fn short(name: &str) -> String {
    let mut text = String::with_capacity(name.len().min(4 * NAME_MAX));
    let mut rest = name;
    while let Some(at) = rest.find("::{") {
        let (before, from) = rest.split_at(at);
        text.push_str(before);
        let mut after = from;
        while let Some(next) = closure(after) {
            after = next;
        }
        if after.len() == from.len() {
            text.push_str("::{");
            rest = &from["::{".len()..];
        } else {
            text.push_str("::{closure}");
            rest = after;
        }
    }
    text.push_str(rest);
    let text = text.replace(char::is_control, "?");
    match text.char_indices().nth(NAME_MAX) {
        None => text,
        Some(_) => text.chars().take(NAME_MAX - 1).chain(['…']).collect(),
    }
}

/// What follows one `::{closure#0}`, `::{{closure}}` or `::{closure}`; `None` if the text does not
/// begin with one.
fn closure(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("::{")?;
    let rest = rest.strip_prefix('{').unwrap_or(rest).strip_prefix("closure")?;
    let rest = match rest.strip_prefix('#') {
        Some(number) => number.trim_start_matches(|char: char| char.is_ascii_digit()),
        None => rest,
    };
    let rest = rest.strip_prefix('}')?;
    let rest = rest.strip_prefix('}').unwrap_or(rest);
    // Some demanglers put the number behind the braces.
    Some(match rest.strip_prefix('#') {
        Some(number) => number.trim_start_matches(|char: char| char.is_ascii_digit()),
        None => rest,
    })
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// For each position at which a path begins, the rest of the name from there on: `<a::B as
/// c::D>::f` has three.
pub(super) fn paths(name: &str) -> impl Iterator<Item = &str> {
    let bytes = name.as_bytes();
    (0..bytes.len()).filter_map(move |at| {
        let begins = is_word(bytes[at]) && (at == 0 || !is_word(bytes[at - 1]) && bytes[at - 1] != b':');
        if begins { name.get(at..) } else { None }
    })
}

/// The value of the longest key with which a path begins; names are compared as a whole.
pub(super) fn longest<T: Copy>(table: &[(&str, T)], path: &str) -> Option<T> {
    let fits = |key: &str| path.strip_prefix(key).is_some_and(|rest| !rest.bytes().next().is_some_and(is_word));
    let found = table.iter().filter(|(key, _)| fits(key)).max_by_key(|(key, _)| key.len());
    found.map(|&(_, value)| value)
}

/// A name without the brackets and references at its beginning.
pub(super) fn unwrapped(name: &str) -> &str {
    name.trim_start_matches(['<', '&'])
}

/// The path of the type to which a method belongs.
pub(super) fn self_type(name: &str) -> &str {
    let path = unwrapped(name);
    ["dyn ", "mut ", "*const ", "*mut "].iter().find_map(|begins| path.strip_prefix(begins)).unwrap_or(path)
}

const LIBRARY_CRATES: [&str; 6] = ["core", "std", "alloc", "hashbrown", "smallvec", "bytes"];
/// Functions of the standard library whose names have lost their beginning on the way here, or that
/// have no path.
const LIBRARY_ENDS: [&str; 9] =
    ["lifecycle", "panic", "panicking", "unwind_safe", "raw_vec", "vec", "boxed", "::call_once", "::new"];

/// Whether a function only acts for the function that called it.
pub(super) fn is_library(name: &str) -> bool {
    let path = unwrapped(name);
    let of_crate = |of: &str| path.strip_prefix(of).is_some_and(|rest| rest.starts_with("::"));
    let cut = |end: &str| name.strip_prefix(end).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    LIBRARY_CRATES.into_iter().any(of_crate)
        || LIBRARY_ENDS.into_iter().any(cut)
        || ["__rust", "alloc<", "[libc", env!("CARGO_CRATE_NAME")].iter().any(|begins| name.starts_with(begins))
        || name.trim_start_matches('_').starts_with("mi_")
        || ["malloc", "calloc", "realloc"].contains(&name)
}

/// Whether a function belongs to the C library, which has no frame pointers: often its name is all
/// that is known of the kernel's caller.
pub(super) fn is_c_library(name: &str) -> bool {
    let bare = name.trim_start_matches('_');
    let all_word = bare.bytes().all(is_word);
    ["syscall", "clock_nanosleep"].contains(&name) || all_word && (bare.starts_with("send") || bare.starts_with("recv"))
}

const PREEMPTED: [&str; 4] =
    ["exit_to_user_mode_loop", "irqentry_exit_to_user_mode", "irqentry_exit", "preempt_schedule_irq"];

/// Why a thread was off the CPU, by its kernel frames, the innermost first: the system call in
/// which it was, or `preempted` if other threads got the processor.
pub(super) fn reason<'a>(kernel: &[&'a str]) -> &'a str {
    if kernel.iter().any(|name| PREEMPTED.contains(name)) {
        return "preempted";
    }
    let call = |name: &&'a str| {
        let begins = ["__x64_sys_", "__arm64_sys_", "__se_sys_"];
        let rest = begins.iter().find_map(|begins| name.strip_prefix(begins))?;
        let end = rest.bytes().position(|byte| !is_word(byte)).unwrap_or(rest.len());
        (end > 0).then(|| &rest[..end])
    };
    kernel.iter().find_map(call).or_else(|| kernel.last().copied()).unwrap_or("blocked")
}

const ENTRIES: [&str; 11] = [
    "clone",
    "clone3",
    "__clone",
    "__clone3",
    "start_thread",
    "_start",
    "main",
    "__libc_start_main",
    "__libc_start_main_impl",
    "__libc_start_call_main",
    "ret_from_fork",
];

/// Whether a stack, the innermost frame first, reaches the entry of its thread. Outermost frames of
/// libraries without symbols, `[libc.so.6]`, are skipped: in a stripped C library they are what
/// calls the entry. A stack that has no other frames does not reach it.
pub(super) fn is_rooted(frames: &[&Frame]) -> bool {
    let is_nameless = |frame: &&&Frame| {
        let name = frame.function.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        matches!(frame.place, FramePlace::User | FramePlace::Label) && name.is_some_and(|name| !name.contains(']'))
    };
    let Some(frame) = frames.iter().rev().find(|frame| !is_nameless(frame)) else { return false };
    let name = &*frame.function;
    ENTRIES.contains(&name)
        || name == "ret_from_fork_asm"
        || ["std::rt::lang_start", "std::rt::lang_start_internal"].contains(&name)
        || name.trim_start_matches('<').starts_with("std::sys::") && is_thread_start(name)
}

/// Whether this is `std::sys::thread::unix::Thread::new::thread_start`, the start of every thread
/// in Rust.
fn is_thread_start(name: &str) -> bool {
    name.strip_suffix("thread_start").is_some_and(|before| !before.bytes().next_back().is_some_and(is_word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_closures_have_no_numbers() {
        for (name, shown) in [
            ("a::b", "a::b"),
            ("a::{{closure}}", "a::{closure}"),
            ("a::{closure#0}::{closure#12}::b", "a::{closure}::b"),
            ("a::{{closure}}::{{closure}}#3", "a::{closure}"),
            ("a::{impl#1}::f::{closure}", "a::{impl#1}::f::{closure}"),
            ("a::{", "a::{"),
            ("a\nb", "a?b"),
        ] {
            assert_eq!(short(name), shown, "{name}");
        }
        let long = short(&"ü".repeat(1000));
        assert_eq!((long.chars().count(), long.chars().last()), (NAME_MAX, Some('…')));
        assert_eq!(short(&"x".repeat(NAME_MAX)).len(), NAME_MAX);
    }

    #[test]
    fn every_path_of_a_name_is_found_and_no_other() {
        let found = |name| paths(name).collect::<Vec<&str>>();
        assert_eq!(found("<a::B as c::D>::f"), ["a::B as c::D>::f", "as c::D>::f", "c::D>::f"]);
        assert_eq!(found("x"), ["x"]);
        assert!(found("").is_empty() && found("é<").is_empty());
        let table = [("a", 1), ("a::b", 2), ("a::b::C", 3)];
        for (path, value) in [
            ("a::c", Some(1)),
            ("a", Some(1)),
            ("ab::c", None),
            ("a::b", Some(2)),
            ("a::b<T>", Some(2)),
            ("a::bc::C", Some(1)),
            ("a::b::C::f", Some(3)),
            ("b::a", None),
        ] {
            assert_eq!(longest(&table, path), value, "{path}");
        }
    }

    #[test]
    fn what_passes_on_is_told_from_what_wants() {
        for library in [
            "alloc::raw_vec::RawVec<T>::grow",
            "<alloc::vec::Vec<T> as core::clone::Clone>::clone",
            "<&mut core::fmt::Formatter as X>::write",
            "__rust_alloc",
            "_mi_malloc_generic",
            "mi_heap_malloc",
            "realloc",
            "[libc.so.6]",
            "raw_vec::finish_grow",
            "koltso_profiling::alloc::sampled",
        ] {
            // `<&mut ` is a reference to a type: only `&` is removed.
            assert_eq!(is_library(library), !library.starts_with("<&mut"), "{library}");
        }
        for other in ["koltso_storage::log::append", "core_affinity::set", "vector::push", "mallocs", "main"] {
            assert!(!is_library(other), "{other}");
        }
        for c in ["syscall", "__send", "sendmsg", "__libc_recv", "clock_nanosleep"] {
            assert_eq!(is_c_library(c), !c.contains("libc"), "{c}");
        }
        assert!(!is_c_library("send::more") && !is_c_library("koltso::send"));
    }

    #[test]
    fn the_reason_for_sleeping_is_the_system_call() {
        for (kernel, expected) in [
            (&["schedule", "futex_wait", "__x64_sys_futex", "do_syscall_64"][..], "futex"),
            (&["schedule", "exit_to_user_mode_loop"], "preempted"),
            (&["schedule", "ret_from_fork"], "ret_from_fork"),
            (&["__x64_sys_"], "__x64_sys_"),
            (&[], "blocked"),
        ] {
            assert_eq!(reason(kernel), expected, "{kernel:?}");
        }
    }

    #[test]
    fn a_stack_is_rooted_if_its_first_name_is_an_entry() {
        let frame = |text: &&str| {
            let (name, place) = match text.strip_suffix("_[k]") {
                Some(name) => (name, FramePlace::Kernel),
                None => (*text, FramePlace::User),
            };
            Frame { function: name.into(), file: None, line: 0, place, address: 0 }
        };
        for (outermost_first, expected) in [
            (&["clone3", "start_thread", "f"][..], true),
            (&["[libc.so.6]", "[libc.so.6]", "std::sys::thread::unix::Thread::new::thread_start", "f"], true),
            (&["<std::sys::pal::unix::thread::Thread>::new::thread_start"], true),
            (&["std::sys::thread_starter"], false),
            (&["std::sys::mythread_start"], false),
            (&["ret_from_fork_asm_[k]", "kthread_[k]"], true),
            (&["std::rt::lang_start"], true),
            (&["std::rt::lang_start_more"], false),
            (&["[libc.so.6]", "f"], false),
            (&["[libc.so.6]"], false),
            (&["[unknown]_[k]", "main"], false),
            (&[], false),
        ] {
            let frames: Vec<Frame> = outermost_first.iter().rev().map(frame).collect();
            assert_eq!(is_rooted(&frames.iter().collect::<Vec<_>>()), expected, "{outermost_first:?}");
        }
    }
}
