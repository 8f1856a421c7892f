//! Captures made from a seed: the same on every machine, with whatever formats may stumble over.

#![allow(dead_code, reason = "each test uses its part")]

use koltso_profiling::capture::{
    Capture, Event, Frame, FrameId, FramePlace, Mapping, Sample, Thread, ThreadIndex, ValueType,
};
use koltso_testkit::Random;

/// Names that end scripts, tags, lines and stacks if they are not escaped.
pub(crate) const HOSTILE: [&str; 8] = [
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=alert(1)>",
    "\"quoted\" & 'quoted' \\ back\u{2028}slash",
    "a;b;c 17",
    "line\nfeed\ttab",
    "(anonymous)::f(int)",
    "длинное имя::функция — 漢字 🦀",
    "",
];

/// The nanoseconds of every sample of a CPU capture: 999 Hz.
pub(crate) const PERIOD: i64 = 1_001_001;

pub(crate) fn frame(function: &str, place: FramePlace, address: u64) -> Frame {
    let file = (place == FramePlace::User || place == FramePlace::Inlined).then(|| "src/main.rs".into());
    Frame { function: function.into(), file, line: (address % 1000) as u32, place, address }
}

pub(crate) fn cpu() -> Capture {
    let types = vec![ValueType::new("samples", "count"), ValueType::new("cpu", "nanoseconds")];
    let mut capture = Capture::new(Event::Cpu, 1_790_000_000_000, types, 1);
    capture.duration_ns = 10_000_000_000;
    capture.period = Some((ValueType::new("cpu", "nanoseconds"), PERIOD));
    capture.engine = "perf events on each processor, because the process may use them".to_owned();
    capture.threads = (0..4).map(|n| Thread { tid: 1000 + n, name: format!("koltso-core-{n}").into() }).collect();
    capture.mappings = vec![Mapping {
        start: 0x5000_0000,
        end: 0x6000_0000,
        offset: 0x1000,
        file: "/usr/bin/koltso".into(),
        build_id: "00112233445566778899aabbccddeeff00112233".into(),
    }];
    capture
}

/// Adds a sample on a thread with the stack that these names make, root first. A name may end in
/// `_[k]` or `_[i]`.
pub(crate) fn add(capture: &mut Capture, thread: u16, at_ms: u64, stack: &str, values: [i64; 4]) {
    let mut ids: Vec<FrameId> = Vec::new();
    for name in stack.split(';') {
        let (function, place) = match (name.strip_suffix("_[k]"), name.strip_suffix("_[i]")) {
            (Some(name), _) => (name, FramePlace::Kernel),
            (_, Some(name)) => (name, FramePlace::Inlined),
            _ if name.starts_with("lock:") => (name, FramePlace::Label),
            _ => (name, FramePlace::User),
        };
        let hash = function.bytes().fold(17u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte)) % 0xfff_ffff;
        let base = if place == FramePlace::Kernel { 0xffff_ffff_8000_0000 } else { 0x5000_0000 };
        let address = if place == FramePlace::Label { 0 } else { base + hash };
        ids.push(capture.frame(frame(function, place, address)).expect("room"));
    }
    ids.reverse();
    let stack = capture.stack(&ids).expect("room");
    capture.push(Sample { at_ns: at_ms * 1_000_000, thread: ThreadIndex(thread), cpu: thread, stack, values });
}

/// Ten stacks that can be checked by hand: 100 samples in all, 10 in each of 10 seconds, of which
/// the last two are busy with compaction.
pub(crate) fn small() -> Capture {
    let mut capture = cpu();
    for second in 0..10u64 {
        for n in 0..10u64 {
            let (thread, stack) = match (second, n) {
                (8.., 0..5) => (1, "main;run;compact;copy;memcpy"),
                (_, 0..3) => (0, "main;run;serve;parse_[i];memchr"),
                (_, 3..6) => (0, "main;run;serve;write;entry_SYSCALL_64_[k];tcp_sendmsg_[k]"),
                (_, 6) => (1, "main;run;serve;recurse;recurse;recurse;memcpy"),
                (_, 7) => (1, "main;run;<core::iter::Map as core::iter::Iterator>::next_[i];lookup"),
                (_, 8) => (2, "main;run;lock:segments"),
                _ => (2, "main;idle"),
            };
            add(&mut capture, thread, second * 1000 + n * 20 + 5, stack, [1, PERIOD, 0, 0]);
        }
    }
    capture.samples.sort_by_key(|sample| sample.at_ns);
    capture
}

/// Stacks as those of a core: a thread that is started, an executor that runs a task, and what the
/// task or the executor does. 30 samples in the task, 10 in the executor, 10 that nobody started.
pub(crate) fn served() -> Capture {
    const START: &str = "start_thread;std::sys::backtrace::__rust_begin_short_backtrace;koltso::cores::run;\
                         monoio::runtime::Runtime::block_on";
    let mut capture = cpu();
    for n in 0..50 {
        let stack = match n % 5 {
            0 => format!("{START};monoio::driver::park;syscall;entry_SYSCALL_64_[k]"),
            1 => "orphan;memcpy".to_owned(),
            _ => format!("{START};monoio::task::raw::poll;koltso::front::serve;koltso::store::put"),
        };
        add(&mut capture, 0, n * 10, &stack, [1, PERIOD, 0, 0]);
    }
    capture
}

/// Each hostile name as a frame, a thread, a file and a mapping, and a recursion as deep as a stack
/// can be.
pub(crate) fn hostile() -> Capture {
    let mut capture = cpu();
    capture.engine = HOSTILE[0].to_owned();
    for (n, name) in HOSTILE.iter().enumerate() {
        capture.threads.push(Thread { tid: 5 + n as u32, name: (*name).into() });
        capture.mappings[0].file = (*name).into();
        for place in [FramePlace::User, FramePlace::Inlined, FramePlace::Kernel, FramePlace::Label] {
            let mut odd = frame(name, place, 0x5000_0000 + n as u64);
            odd.file = Some((*name).into());
            let (odd, main) = (capture.frame(odd), capture.frame(frame("main", FramePlace::User, 0x5000_0007)));
            let stack = capture.stack(&[odd.expect("room"), main.expect("room")]).expect("room");
            let thread = ThreadIndex(4 + n as u16);
            let values = [1, PERIOD, 0, 0];
            capture.push(Sample { at_ns: n as u64 * 1_000_000, thread, cpu: u16::MAX, stack, values });
        }
    }
    add(&mut capture, 0, 9999, &vec!["recurse"; 400].join(";"), [1, PERIOD, 0, 0]);
    // Inlined frames without the frame into which they are inlined, and an empty stack.
    add(&mut capture, 0, 9999, "lonely_[i];alone_[i]", [1, PERIOD, 0, 0]);
    let none = capture.stack(&[]).expect("room");
    capture.push(Sample {
        at_ns: 9_999_000_000,
        thread: ThreadIndex(999),
        cpu: 0,
        stack: none,
        values: [1, PERIOD, 0, 0],
    });
    capture
}

/// A capture such as a loaded server makes: many samples, and stacks of about 30 frames that share
/// their root ends.
pub(crate) fn large(samples: u64, seconds: u64) -> Capture {
    let mut capture = cpu();
    capture.duration_ns = seconds * 1_000_000_000;
    let mut random = Random::seeded(0x6b6f_6c74_736f);
    let names: Vec<String> = (0..900)
        .map(|n| match n % 5 {
            0 => format!("koltso_storage::segment::index::Index<K, V>::probe_{n}"),
            1 => format!("koltso_net::http::connection::serve_{n}::{{{{closure}}}}"),
            2 => format!("<core::iter::adapters::map::Map<I, F> as core::iter::Iterator>::next_{n}_[i]"),
            3 => format!("tcp_function_{n}_[k]"),
            _ => format!("monoio::runtime::Runtime<D>::block_on_{n}"),
        })
        .collect();
    for _ in 0..samples {
        let depth = 27 + random.below(7);
        let mut stack = String::from("_start");
        let mut state = 1 + random.below(3);
        for level in 1..depth {
            // It mostly continues in one way and sometimes in another: a tree that is bushy where
            // it is deep.
            let way = if level > 6 && random.below(14) == 0 { random.below(1 + level / 6) } else { 0 };
            state = (state * 31 + way + level) % 900;
            let name = &names[state as usize];
            let name = if level < 20 { name.trim_end_matches("_[k]") } else { name };
            stack.push(';');
            stack.push_str(name);
        }
        // Every seventh second has a rest, and each tenth of a second a burst.
        let mut at = random.below(seconds * 1000);
        if at / 1000 % 7 == 3 && at % 1000 > 400 || at % 100 > 60 {
            at = random.below(seconds * 1000);
        }
        add(&mut capture, random.below(4) as u16, at, &stack, [1, PERIOD, 0, 0]);
    }
    capture.samples.sort_by_key(|sample| sample.at_ns);
    capture
}

/// A heap: four values, and bytes without a common factor.
pub(crate) fn heap() -> Capture {
    let types = ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"];
    let types = types.iter().zip(["count", "bytes"].into_iter().cycle()).map(|(name, unit)| ValueType::new(name, unit));
    let mut capture = Capture::new(Event::Heap, 1_790_000_000_000, types.collect(), 3);
    capture.period = Some((ValueType::new("space", "bytes"), 524_288));
    capture.threads = vec![Thread { tid: 1, name: "koltso-core-0".into() }];
    capture.engine = "a sampling allocator".to_owned();
    add(&mut capture, 0, 0, "main;grow;alloc::alloc::alloc", [10, 1_048_577, 4, 400_001]);
    add(&mut capture, 0, 0, "main;read;alloc::alloc::alloc", [90, 9_000_000, 0, 0]);
    add(&mut capture, 0, 0, "main;shrink;alloc::alloc::alloc", [1, 1, -3, -5_000]);
    capture
}
