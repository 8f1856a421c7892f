//! Which class each thread and module of this program counts as in a profile.
//!
//! `koltso profile FILE --classes` divides a capture by this table, and with it do
//! scripts/report.sh and scripts/bench-cluster.sh. How a stack is read is described in
//! `koltso_profiling::classify`; its numbered rules are those in the text of scripts/report.py,
//! which says what the division means and how large its error is.
//!
//! Invariants, checked by the tests below, so that CPU time is never misclassified silently when a
//! module moves:
//!
//! 1. every module and type in the table exists;
//! 2. every crate of the workspace has an entry, or each of its modules has one; the same holds
//!    below a module if a part of it has an entry;
//! 3. every thread that the sources name has an entry, and every entry has a thread;
//! 4. every class that is used is in [`CLASSES`];
//! 5. the rule that load reports show names the classes of modules as the table does.

use koltso_profiling::classify::{CoreRules, ProfilerRules, Rules};

const HTTP: &str = "HTTP";
const EXCHANGE: &str = "exchange";
const COORDINATOR: &str = "coordinator";
const STORAGE: &str = "storage";
const RECEIVE: &str = "receive";
const TURN: &str = "turn";
const PROFILER: &str = "profiler";
const OTHER: &str = "other";

/// The classes: the name of each in `--json`, and its meaning for people.
const CLASSES: &[(&str, &str)] = &[
    (HTTP, "connections to clients: parsing, answers, sends"),
    (EXCHANGE, "between the nodes: links, frames, members, hints"),
    (COORDINATOR, "quorums, placement, health of the members"),
    (STORAGE, "the log and the index, sealing, compaction, syncs"),
    (RECEIVE, "receives through the ring, which HTTP and exchange share"),
    (TURN, "turns of the event loops, the ring and sleep, which they share, too"),
    (PROFILER, "captures like this one"),
    (OTHER, "everything else"),
];

/// The table. The kernel cuts the names of threads off after 15 bytes.
pub const RULES: Rules = Rules {
    classes: CLASSES,
    threads: &[
        ("koltso-seal", Some(STORAGE)),
        ("koltso-compact", Some(STORAGE)),
        ("koltso-scrub", Some(STORAGE)),
        ("koltso-digests", Some(STORAGE)),
        ("koltso-sync", Some(STORAGE)),
        ("koltso-provisio", Some(STORAGE)),
        ("koltso-capture", Some(PROFILER)),
        ("koltso-profiler", Some(PROFILER)),
        ("koltso-core-", None),
        ("koltso-control", None),
        ("koltso-clock", None),
        ("koltso-hints-", None),
        ("koltso-hintsync", None),
        ("koltso-replay-", None),
        ("koltso-standing", None),
        ("koltso-repair-", None),
        ("koltso-answer-", None),
        ("koltso-mend", None),
        ("koltso-names-", None),
        ("koltso-stalls", None),
        ("koltso-stalled", None),
        ("koltso-log", None),
        // Threads of commands other than `serve`.
        ("koltso-bench-", None),
        ("koltso-health", None),
        ("koltso-progress", None),
        ("koltso-signals", None),
        ("koltso-status", None),
    ],
    modules: &[
        ("koltso::front", Some(HTTP)),
        ("koltso::counters", Some(HTTP)),
        ("koltso::member", Some(EXCHANGE)),
        ("koltso::admin", None),
        ("koltso::admin::classes", None),
        ("koltso::admin::control", None),
        ("koltso::admin::crowd", None),
        ("koltso::admin::entrance", None),
        ("koltso::admin::guard", None),
        ("koltso::admin::headers", None),
        ("koltso::admin::home", None),
        ("koltso::admin::metrics", Some(HTTP)),
        ("koltso::admin::pprof", None),
        ("koltso::admin::refusal", None),
        ("koltso::admin::status", Some(HTTP)),
        ("koltso::admin::stream", None),
        ("koltso::node", None),
        // Whoever asks it decides what it is for.
        ("koltso::node::access", None),
        ("koltso::node::dispatch", Some(HTTP)),
        ("koltso::replica", Some(STORAGE)),
        // It makes the versions that nodes exchange.
        ("koltso::replica::clock", Some(EXCHANGE)),
        ("koltso::replica::commit", Some(STORAGE)),
        ("koltso::signals", None),
        ("koltso::stalls", None),
        // `serve` starts all other threads' work and is at the root of their stacks.
        ("koltso::commands", None),
        ("koltso::descriptors", None),
        ("koltso::logging", None),
        ("koltso::settings", None),
        ("koltso::similar", None),
        ("koltso::units", None),
        ("koltso::usage", None),
        // What both protocols do with their connections, which are mostly clients'.
        ("koltso_net::connections", Some(HTTP)),
        ("koltso_net::http", Some(HTTP)),
        ("koltso_net::server", Some(HTTP)),
        ("koltso_net::turn", Some(HTTP)),
        ("koltso_net::replica", Some(EXCHANGE)),
        ("koltso_hints", Some(EXCHANGE)),
        ("koltso_cluster", Some(COORDINATOR)),
        ("koltso_storage", Some(STORAGE)),
        // It works on no core.
        ("koltso_council", None),
        // These work for their callers.
        ("koltso_net::transport", None),
        ("koltso_model", None),
        ("koltso_instrument", None),
        ("koltso_profiling", None),
        ("koltso_testkit", None),
    ],
    cores: CoreRules {
        threads: "koltso-core-",
        kernel: &[
            // Links between nodes send by system calls; only HTTP sends through the ring.
            ("__sys_sendto", EXCHANGE),
            ("__sys_sendmsg", EXCHANGE),
            ("tcp_sendmsg", HTTP),
            ("io_send", HTTP),
            ("io_sendmsg", HTTP),
            ("io_write", HTTP),
            ("tcp_recvmsg", RECEIVE),
            ("io_recv", RECEIVE),
            ("io_recvmsg", RECEIVE),
            ("io_read", RECEIVE),
            ("__sys_recvfrom", RECEIVE),
            ("__sys_recvmsg", RECEIVE),
        ],
        otherwise: TURN,
    },
    profiler: ProfilerRules {
        class: PROFILER,
        modules: &[
            ("koltso_profiling", true),
            // The allocator and the locks take samples in the name of whoever calls them.
            ("koltso_profiling::alloc", false),
            ("koltso_profiling::locks", false),
            ("koltso::admin::pprof", true),
            ("koltso::admin::control", true),
            ("koltso::admin::entrance", true),
            ("koltso::admin::metrics::Scrape", true),
        ],
    },
    rest: OTHER,
    own: &[
        "koltso",
        "koltso_cluster",
        "koltso_council",
        "koltso_hints",
        "koltso_instrument",
        "koltso_model",
        "koltso_net",
        "koltso_storage",
    ],
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use koltso_profiling::capture::{
        Capture, Event, Frame, FrameId, FramePlace, Sample, Thread, ThreadIndex, ValueType,
    };
    use koltso_profiling::classify::divide;

    use super::*;

    fn workspace() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    /// The crates of the workspace by their names in functions, and the folders of their sources.
    fn crates() -> Vec<(String, PathBuf)> {
        let root = workspace();
        let mut crates = vec![("koltso".to_owned(), root.join("src"))];
        let below = fs::read_dir(root.join("crates")).expect("crates").map(|entry| entry.expect("an entry").path());
        for folder in below.chain([root.join("net"), root.join("storage")]) {
            let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
            let name = manifest.lines().find_map(|line| line.strip_prefix("name = \"")).expect("a name");
            crates.push((name.trim_end_matches('"').replace('-', "_"), folder.join("src")));
        }
        assert!(crates.len() > 6 && crates.iter().all(|(_, source)| source.is_dir()), "{crates:?}");
        crates
    }

    fn modules(source: &Path) -> Vec<String> {
        let entries = fs::read_dir(source).expect("a folder").map(|entry| entry.expect("an entry").path());
        let names = entries.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned());
        let is_module = |name: &String| !["main", "lib", "mod"].contains(&&**name) && !name.ends_with("tests");
        names.filter(is_module).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// All Rust files below a folder.
    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                found.extend(files(&path));
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(path);
            }
        }
        found
    }

    /// Whether a module, or a type in one, exists where its path says.
    fn exists(path: &str) -> bool {
        let mut segments = path.split("::");
        let name = segments.next().expect("a crate");
        let Some((_, source)) = crates().into_iter().find(|(known, _)| known == name) else { return false };
        let mut place = source;
        for segment in segments {
            if segment.starts_with(char::is_uppercase) {
                let sources = if place.is_dir() { files(&place) } else { vec![place.with_extension("rs")] };
                let defines = |file: &PathBuf| {
                    let text = fs::read_to_string(file).expect("a file");
                    ["struct", "enum", "trait"].iter().any(|kind| text.contains(&format!("{kind} {segment} ")))
                };
                return sources.iter().any(defines);
            }
            place.push(segment);
            if !place.is_dir() && !place.with_extension("rs").is_file() {
                return false;
            }
        }
        true
    }

    #[test]
    fn every_module_of_the_table_exists() {
        let modules = RULES.modules.iter().map(|(path, _)| path);
        for path in modules.chain(RULES.profiler.modules.iter().map(|(path, _)| path)).chain(RULES.own) {
            assert!(exists(path), "{path} is in src/admin/classes.rs and not in the sources: was it moved?");
        }
        for nowhere in ["koltso::nowhere", "koltso_none", "koltso::admin::metrics::Nothing"] {
            assert!(!exists(nowhere), "{nowhere}");
        }
    }

    #[test]
    fn every_module_of_the_workspace_has_an_entry() {
        let has_entry = |path: &str| {
            RULES.modules.iter().any(|(known, _)| path == *known || path.starts_with(&format!("{known}::")))
        };
        for (name, source) in crates() {
            for module in modules(&source) {
                let path = format!("{name}::{module}");
                assert!(has_entry(&path), "{path} has no entry in src/admin/classes.rs: what is its class?");
                // If one module of a folder has a class of its own, the class of each of them is in
                // the table.
                let below = format!("{path}::");
                if RULES.modules.iter().any(|(known, _)| known.starts_with(&below)) {
                    for module in modules(&source.join(&module)) {
                        let path = format!("{below}{module}");
                        let is_there = RULES.modules.iter().any(|(known, _)| *known == path);
                        assert!(is_there, "{path} has no entry in src/admin/classes.rs: what is its class?");
                    }
                }
            }
            let is_own = RULES.own.contains(&&*name);
            let is_ours = !["koltso_profiling", "koltso_testkit"].contains(&&*name);
            assert_eq!(is_own, is_ours, "{name} and the list `own` in src/admin/classes.rs");
        }
    }

    /// The string literals that are the first argument in calls of a function.
    fn first_literals<'a>(source: &'a str, call: &'a str) -> impl Iterator<Item = &'a str> {
        let calls = source.split(call).skip(1);
        calls.filter_map(|call| call.trim_start().strip_prefix('"')?.split('"').next())
    }

    /// The beginnings of the names that the sources give to threads.
    fn thread_names() -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (_, folder) in crates() {
            let read = |file: PathBuf| fs::read_to_string(file).expect("a file");
            let source: String = files(&folder).into_iter().map(read).collect();
            let calls = [".name(", ".name(format!(", "spawn(", "spawn(format!("];
            let written = calls.iter().flat_map(|call| first_literals(&source, call));
            let begins = written.map(|name| name.split('{').next().unwrap_or_default().to_owned());
            let mut names: Vec<String> = begins.filter(|name| name.starts_with("koltso-")).collect();
            if names.iter().any(|name| name == "koltso-") {
                // The storage starts all its threads by one function, which gets the rest of the
                // name.
                names.retain(|name| name != "koltso-");
                names.extend(first_literals(&source, "spawn(").map(|name| format!("koltso-{name}")));
            }
            found.extend(names.into_iter().map(|name| name.chars().take(15).collect::<String>()));
        }
        found
    }

    #[test]
    fn every_thread_has_an_entry_and_every_entry_a_thread() {
        let table: BTreeSet<String> = RULES.threads.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(thread_names(), table, "left: the sources, right: src/admin/classes.rs");
        assert!(table.contains(RULES.cores.threads));
    }

    /// Scripts read the CPU time of threads from /proc, where classes are not known.
    #[test]
    fn scripts_know_the_threads_of_the_table() {
        let of_class = |class| -> BTreeSet<&str> {
            let threads = RULES.threads.iter().filter(|(_, of)| *of == Some(class));
            threads.map(|(name, _)| name.trim_start_matches("koltso-")).collect()
        };
        for (file, begins, class) in [
            ("capture.py", "PROFILER_THREADS = (", PROFILER),
            ("bench-cluster.sh", "PROFILER_THREADS='\\(koltso-(", PROFILER),
            ("bench-profiling.sh", "STORAGE_THREADS='^koltso-(", STORAGE),
        ] {
            let text = fs::read_to_string(workspace().join("scripts").join(file)).expect("a script");
            let rest = text.lines().find_map(|line| line.strip_prefix(begins));
            let (list, _) = rest.and_then(|rest| rest.split_once(')')).expect(begins);
            let words = list.split(['|', ',']).map(|word| word.trim_matches([' ', '"']));
            let words: BTreeSet<&str> = words.map(|word| word.trim_start_matches("koltso-")).collect();
            assert_eq!(words, of_class(class), "left: scripts/{file}, right: src/admin/classes.rs");
        }
    }

    #[test]
    fn every_class_that_is_used_is_one() {
        let used = RULES.threads.iter().chain(RULES.modules).filter_map(|(_, class)| *class);
        let used = used.chain(RULES.cores.kernel.iter().map(|(_, class)| *class));
        for class in used.chain([RULES.cores.otherwise, RULES.profiler.class, RULES.rest]) {
            assert!(CLASSES.iter().any(|(known, _)| *known == class), "{class}");
        }
    }

    #[test]
    fn the_rule_of_load_reports_says_the_same() {
        let script = fs::read_to_string(workspace().join("scripts/report.py")).expect("a script");
        let (_, rule) = script.split_once("\n2. ").expect("the rule's second point");
        let (list, _) = rule.split_once(". Inlined").expect("the end of its list");
        let mut named = BTreeSet::new();
        for clause in list.split(';') {
            // "`koltso_hints` and `koltso_storage` are CLASS", and what there is to say of that.
            let (paths, class) = clause.rsplit_once("` ").expect(clause);
            let class = class.split_whitespace().nth(1).expect(clause).trim_end_matches(',');
            for path in paths.split('`').skip(1).step_by(2) {
                named.insert((path, class));
            }
        }
        assert!(named.remove(&("koltso_net", HTTP)), "the modules that have no other class");
        let is_such = |(path, class): &(&str, &str)| path.starts_with("koltso_net::") && *class == HTTP;
        let listed = RULES.modules.iter().filter_map(|&(path, class)| Some((path, class?)));
        let listed: BTreeSet<_> = listed.filter(|entry| !is_such(entry)).collect();
        assert_eq!(named, listed, "left: scripts/report.py, right: src/admin/classes.rs");
    }

    /// The class of a stack, `root;…;leaf` with the marks of folded stacks.
    fn class(event: Event, thread: &str, stack: &str) -> &'static str {
        let mut capture = Capture::new(event, 0, vec![ValueType::new("cpu", "nanoseconds")], 0);
        capture.threads.push(Thread { tid: 1, name: thread.into() });
        let ids: Vec<FrameId> = stack
            .split(';')
            .rev()
            .map(|name| {
                let (function, place) = match (name.strip_suffix("_[k]"), name.strip_suffix("_[i]")) {
                    (Some(name), _) => (name, FramePlace::Kernel),
                    (_, Some(name)) => (name, FramePlace::Inlined),
                    _ => (name, FramePlace::User),
                };
                let frame = Frame { function: function.into(), file: None, line: 0, place, address: 1 };
                capture.frame(frame).expect("room")
            })
            .collect();
        let stack = capture.stack(&ids).expect("room");
        capture.push(Sample { at_ns: 0, thread: ThreadIndex(0), cpu: 0, stack, values: [7, 0, 0, 0] });
        let division = divide(&capture, 0, &RULES);
        let found: Vec<_> = division.shares.iter().filter(|share| share.user + share.kernel > 0).collect();
        assert_eq!((division.total, found.len()), (7, 1), "{division:?}");
        found[0].class
    }

    /// These are names of functions as in captures of this program.
    #[test]
    fn stacks_of_real_functions_have_the_class_of_the_work() {
        let core = "start_thread;koltso::commands::serve::cores::run;";
        let handle = "koltso_net::server::requests::<impl koltso_net::server::connection::Connection<S,T>>::handle;\
                      koltso::front::http::Api::entity;";
        let ring = "koltso::commands::serve::cores::run;io_uring::submit::Submitter::submit_and_wait;syscall;\
                    entry_SYSCALL_64_[k];__x64_sys_io_uring_enter_[k];";
        for (thread, stack, expected) in [
            ("koltso-core-0", format!("{core}{handle}core::fmt::write"), HTTP),
            ("koltso-core-1", format!("{core}{handle}koltso_storage::log::Writer::append;__memmove_avx"), STORAGE),
            ("koltso-core-0", format!("{core}{handle}koltso_storage::log::Writer::apply_[i]"), HTTP),
            ("koltso-core-0", format!("{core}{handle}koltso::replica::Replica::read::{{{{closure}}}}"), STORAGE),
            ("koltso-core-0", format!("{core}{handle}koltso::member::driver::MemberDriver::submit"), EXCHANGE),
            (
                "koltso-core-0",
                format!(
                    "{core}{handle}koltso_cluster::coordinator::writes::<impl koltso_cluster::coordinator::Coordinator>::write_on"
                ),
                COORDINATOR,
            ),
            // The first path with a class decides, whatever trait the method belongs to.
            (
                "koltso-core-0",
                format!("{core}<koltso::member::driver::CoreHost as koltso_cluster::member::Host>::execute"),
                EXCHANGE,
            ),
            (
                "koltso-core-0",
                format!("{core}<koltso::front::http::Api as koltso_net::server::service::Service>::finished"),
                HTTP,
            ),
            (
                "koltso-core-0",
                format!(
                    "{core}core::ptr::drop_in_place<koltso_net::server::later::When<koltso::node::dispatch::LaterAnswer,koltso::front::http::Api::serve_entity::{{{{closure}}}}>>"
                ),
                HTTP,
            ),
            (
                "koltso-core-0",
                format!(
                    "{core}core::ptr::drop_in_place<(alloc::sync::Arc<koltso::member::Cluster>,alloc::rc::Rc<koltso::replica::Replica>,core::option::Option<alloc::rc::Rc<koltso_net::turn::Turn<koltso::stalls::Watched>>>)>"
                ),
                EXCHANGE,
            ),
            (
                "koltso-core-0",
                format!(
                    "{core}koltso_net::replica::outbox::Outbox::send_now;__send;__x64_sys_sendto_[k];__sys_sendto_[k];tcp_sendmsg_[k]"
                ),
                EXCHANGE,
            ),
            // Locks count as whoever takes them.
            (
                "koltso-core-0",
                format!("{core}koltso_storage::index::Locked::offer;koltso_instrument::lock::Mutex<T>::lock"),
                STORAGE,
            ),
            // The stack of a direct send may be lost in the C library.
            ("koltso-core-0", "__send;__x64_sys_sendto_[k];__sys_sendto_[k];tcp_sendmsg_[k]".to_owned(), EXCHANGE),
            ("koltso-core-0", format!("{ring}io_send_[k];tcp_sendmsg_[k]"), HTTP),
            ("koltso-core-0", format!("{ring}io_recv_[k];tcp_recvmsg_[k]"), RECEIVE),
            ("koltso-core-0", format!("{ring}io_cqring_wait_[k];schedule_[k]"), TURN),
            ("koltso-seal", "koltso_storage::sealing::seal;msync;__x64_sys_msync_[k]".to_owned(), STORAGE),
            ("koltso-provisio", "clear_page_erms_[k]".to_owned(), STORAGE),
            ("koltso-hints-2", "koltso_hints::worker::Worker::run;write;vfs_write_[k]".to_owned(), EXCHANGE),
            ("koltso-control", "koltso::admin::status::document;serde_json::to_string".to_owned(), HTTP),
            (
                "koltso-control",
                "koltso::admin::entrance::Entrance::serve::{{closure}};tokio::runtime::park".to_owned(),
                OTHER,
            ),
            // (It calls nothing of the kind today.)
            (
                "koltso-capture",
                "koltso::admin::pprof::captures::capture;koltso_net::http::date::Date::refresh".to_owned(),
                PROFILER,
            ),
            ("koltso-profiler", "poll;do_poll_[k]".to_owned(), PROFILER),
            ("koltso-stalls", "koltso_profiling::stalls::watch::Watcher::look".to_owned(), OTHER),
            ("main", "main;epoll_wait;tcp_sendmsg_[k]".to_owned(), OTHER),
        ] {
            assert_eq!(class(Event::Cpu, thread, &stack), expected, "{thread}: {stack}");
        }
        // Allocations do not know their thread.
        for (stack, expected) in [
            (
                "koltso::admin::entrance::Entrance::serve::{{closure}};<koltso::admin::metrics::Scrape as prometheus_client::collector::Collector>::encode;realloc",
                PROFILER,
            ),
            ("koltso_profiling::page::flamegraph;realloc", PROFILER),
            ("koltso_storage::log::Writer::append;koltso_profiling::alloc::sampled_block", STORAGE),
            ("koltso::admin::metrics::counter;realloc", HTTP),
        ] {
            assert_eq!(class(Event::Allocs, "all", stack), expected, "{stack}");
        }
    }
}
