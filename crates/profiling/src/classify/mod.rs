//! What a capture's numbers were spent on: each sample gets a class, by a program's table of names.
//!
//! The crate knows how to read stacks; which threads and modules there are, and what they count as,
//! is in the program's [`Rules`]. For each sample, the first of these rules that applies decides:
//!
//! 1. the name of its thread, if [`Rules::threads`] gives that a class;
//! 2. for allocations, which do not know their thread: any function of [`Rules::profiler`];
//! 3. the innermost function on the stack whose name contains a module of [`Rules::modules`] with a
//!    class. Kernel frames are skipped, and so are inlined ones: inlined code counts as the
//!    function into which it was inlined. Of several paths in one name (`<A as B>::f`), the first
//!    with a class decides;
//! 4. on a thread of [`CoreRules::threads`], the first function of [`CoreRules::kernel`] that is on
//!    the stack, or [`CoreRules::otherwise`] if there is none;
//! 5. in all other cases [`Rules::rest`].
//!
//! Values of 0 and less are left out, as in folded stacks. Bounds: those of [`Capture`], and
//! [`TOP_MAX`] rows. Deliberately absent: how classes relate to each other, and sockets. Tested in
//! `tests/classify.rs`, and in the program beside its table.

mod names;

use crate::capture::{Capture, Event, Frame, FrameId, FramePlace};
use crate::text::marked;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

pub use names::{NAME_MAX, short};

/// The most rows of [`Top::rows`] and of [`Rooted::others`].
pub const TOP_MAX: usize = 32;

/// What a program knows about the names in its profiles.
#[derive(Debug)]
pub struct Rules {
    /// The name and the meaning of each class, in the order in which they are shown.
    pub classes: &'static [(&'static str, &'static str)],
    /// Threads by the beginning of their names, with their class; for `None`, functions decide.
    pub threads: &'static [(&'static str, Option<&'static str>)],
    /// Modules as in the names of functions, such as `koltso_net::http`, with their class. The
    /// longest one that fits a path counts; if its class is `None` it decides nothing, and the next
    /// path or frame does.
    pub modules: &'static [(&'static str, Option<&'static str>)],
    /// The threads that serve, and the work that they do for all classes together.
    pub cores: CoreRules,
    /// Which functions work for captures.
    pub profiler: ProfilerRules,
    /// The class of samples for which no rule decides.
    pub rest: &'static str,
    /// Crates whose functions are the program's own; they are named as the sites of allocations and
    /// waits.
    pub own: &'static [&'static str],
}

/// The table for rule 4.
#[derive(Debug)]
pub struct CoreRules {
    /// The beginning of the threads' names.
    pub threads: &'static str,
    /// Functions of the kernel, with the class of a stack that contains one; the first in this
    /// order counts.
    pub kernel: &'static [(&'static str, &'static str)],
    /// The class of all other stacks.
    pub otherwise: &'static str,
}

/// The table for rule 2.
#[derive(Debug)]
pub struct ProfilerRules {
    /// The class of what captures cost.
    pub class: &'static str,
    /// Modules and types, and whether they work for captures; the longest one that fits counts.
    pub modules: &'static [(&'static str, bool)],
}

impl Rules {
    /// The class that a function has by its name alone; `None` if the name decides nothing.
    #[must_use]
    pub fn class_of_name(&self, name: &str) -> Option<&'static str> {
        names::paths(name).find_map(|path| names::longest(self.modules, path)?)
    }

    /// The class that a thread has by its name; `None` if functions decide.
    #[must_use]
    pub fn class_of_thread(&self, thread: &str) -> Option<&'static str> {
        self.threads.iter().find(|(begins, _)| thread.starts_with(begins))?.1
    }

    fn is_for_captures(&self, name: &str) -> bool {
        names::longest(self.profiler.modules, names::unwrapped(name)).unwrap_or(false)
    }

    fn is_own(&self, name: &str) -> bool {
        let path = names::self_type(name);
        self.own.iter().any(|own| path.strip_prefix(own).is_some_and(|rest| rest.starts_with("::")))
    }

    /// The function that caused an allocation or a wait: the innermost of the program's own or, if
    /// there is none, the innermost that belongs to no library.
    fn site(&self, frames: &[&Frame]) -> String {
        let names = || frames.iter().filter(|frame| frame.place != FramePlace::Kernel).map(|frame| &*frame.function);
        let others = || names().filter(|name| !names::is_library(name));
        let found = names()
            .find(|name| self.is_own(name))
            .or_else(|| others().find(|name| !names::is_c_library(name)))
            .or_else(|| others().next());
        short(found.unwrap_or("a stack without functions of ours"))
    }
}

/// The part of a capture that belongs to one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The name of the class.
    pub class: &'static str,
    /// The meaning of the class, for people.
    pub meaning: &'static str,
    /// The sum of the samples whose innermost frame is the program's.
    pub user: i64,
    /// The sum of the samples whose innermost frame is the kernel's.
    pub kernel: i64,
}

/// The rows with the largest sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Top {
    /// The name and the sum of each row, the largest first.
    pub rows: Vec<(String, i64)>,
    /// The sum of all rows, including those beyond [`TOP_MAX`].
    pub total: i64,
    /// Not in the rows: what captures themselves cost. (For CPU time it is in the rows.)
    pub profiler: i64,
    /// Not in the rows of time off the CPU: threads that serve nobody and mostly sleep until there
    /// is work.
    pub background: i64,
}

/// How many stacks reach the entry of their thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rooted {
    /// The sum of the stacks that do.
    pub value: i64,
    /// How many different stacks there are in all, compared by the names in them.
    pub stacks: usize,
    /// The largest of those that do not: `thread: outermost … innermost`.
    pub others: Vec<(String, i64)>,
}

/// A capture, divided by class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Division {
    /// The sum of all samples.
    pub total: i64,
    /// The share of each of [`Rules::classes`]; together they are the total.
    pub shares: Vec<Share>,
    /// Functions for CPU time, sites for allocations, waits for the rest.
    pub top: Top,
    /// Whether the stacks are complete.
    pub rooted: Rooted,
}

/// What is known about a frame whatever stack it is in.
#[derive(Clone, Copy)]
struct Known {
    class: Option<&'static str>,
    is_for_captures: bool,
}

/// Divides one value of a capture by class; `value` is an index of [`Capture::types`].
///
/// # Panics
/// If a rule has a class that is not one of [`Rules::classes`].
#[must_use]
pub fn divide(capture: &Capture, value: usize, rules: &Rules) -> Division {
    let known: Vec<Known> = capture.frames().iter().map(|frame| known(rules, frame)).collect();
    let mut shares: Vec<Share> =
        rules.classes.iter().map(|&(class, meaning)| Share { class, meaning, user: 0, kernel: 0 }).collect();
    let hasher = RandomState::new();
    let (mut total, mut top, mut rooted) = (0, Top::default(), Rooted::default());
    let (mut rows, mut others, mut different) = (HashMap::new(), HashMap::new(), HashSet::new());
    for sample in capture.folded() {
        let weight = sample.values[value];
        if weight <= 0 {
            continue;
        }
        total += weight;
        let thread = capture.thread_name(sample.thread);
        let ids = capture.stack_at(sample.stack);
        let frames: Vec<&Frame> = ids.iter().map(|&id| capture.frame_at(id)).collect();
        let stack = Stack { event: capture.event, thread: &thread, ids, frames: &frames };

        let class = stack.class(rules, &known);
        let share = shares.iter_mut().find(|share| share.class == class);
        let share = share.unwrap_or_else(|| panic!("the rules have no class {class}"));
        let is_kernel = frames.first().is_some_and(|frame| frame.place == FramePlace::Kernel);
        *if is_kernel { &mut share.kernel } else { &mut share.user } += weight;

        if capture.event == Event::OffCpu && !thread.starts_with(rules.cores.threads) {
            top.background += weight;
        } else if capture.event != Event::Cpu && class == rules.profiler.class {
            top.profiler += weight;
        } else {
            top.total += weight;
            *rows.entry(stack.what(rules)).or_insert(0) += weight;
        }

        let names: Vec<_> = frames.iter().map(|frame| (&*frame.function, frame.place)).collect();
        different.insert(hasher.hash_one((&thread, names)));
        if names::is_rooted(&frames) {
            rooted.value += weight;
        } else {
            *others.entry(stack.ends()).or_insert(0) += weight;
        }
    }
    (top.rows, rooted.others) = (largest(rows), largest(others));
    rooted.stacks = different.len();
    Division { total, shares, top, rooted }
}

fn known(rules: &Rules, frame: &Frame) -> Known {
    let decides = matches!(frame.place, FramePlace::User | FramePlace::Label);
    Known {
        class: if decides { rules.class_of_name(&frame.function) } else { None },
        is_for_captures: rules.is_for_captures(&frame.function),
    }
}

fn largest(sums: HashMap<String, i64>) -> Vec<(String, i64)> {
    let mut rows: Vec<(String, i64)> = sums.into_iter().collect();
    rows.sort_unstable_by(|(a, of_a), (b, of_b)| of_b.cmp(of_a).then_with(|| a.cmp(b)));
    rows.truncate(TOP_MAX);
    rows
}

struct Stack<'a> {
    event: Event,
    thread: &'a str,
    ids: &'a [FrameId],
    /// The frames, the innermost first.
    frames: &'a [&'a Frame],
}

impl Stack<'_> {
    fn class(&self, rules: &Rules, known: &[Known]) -> &'static str {
        if let Some(class) = rules.class_of_thread(self.thread) {
            return class;
        }
        let known = || self.ids.iter().map(|id| known[id.0 as usize]);
        if matches!(self.event, Event::Allocs | Event::Heap) && known().any(|frame| frame.is_for_captures) {
            return rules.profiler.class;
        }
        if let Some(class) = known().find_map(|frame| frame.class) {
            return class;
        }
        if !self.thread.starts_with(rules.cores.threads) {
            return rules.rest;
        }
        let kernel: BTreeSet<&str> = self.kernel().collect();
        let found = rules.cores.kernel.iter().find(|(function, _)| kernel.contains(function));
        found.map_or(rules.cores.otherwise, |&(_, class)| class)
    }

    fn kernel(&self) -> impl Iterator<Item = &str> {
        self.frames.iter().filter(|frame| frame.place == FramePlace::Kernel).map(|frame| &*frame.function)
    }

    /// The name of the row of [`Top`] to which the stack belongs.
    fn what(&self, rules: &Rules) -> String {
        let Some(leaf) = self.frames.first() else { return "?".to_owned() };
        let name = short(&leaf.function);
        match self.event {
            Event::Allocs | Event::Heap => rules.site(self.frames),
            // The innermost frame is the name of the lock or of the wait.
            Event::Mutex | Event::Block => format!("{name} in {}", rules.site(&self.frames[1..])),
            Event::OffCpu => {
                let kernel: Vec<&str> = self.kernel().collect();
                format!("{}, {}, {}", self.thread, names::reason(&kernel), rules.site(self.frames))
            }
            _ if leaf.place == FramePlace::Kernel => short(&format!("{} (kernel)", leaf.function)),
            _ => name,
        }
    }

    fn ends(&self) -> String {
        let name = |frame: &Frame| marked(frame).replace(char::is_control, "?");
        let ends = match self.frames {
            [] => "no frame".to_owned(),
            [only] => name(only),
            [leaf, .., root] => format!("{} … {}", name(root), name(leaf)),
        };
        format!("{}: {ends}", self.thread.replace(char::is_control, "?"))
    }
}
