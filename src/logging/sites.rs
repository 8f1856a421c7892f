//! The bounded rate of each place that logs.
//!
//! A place is a call of a macro of `tracing`: whatever is logged there, and by however many
//! threads, [`BURST`] lines get through at once and one line in [`EVERY`] from then on. The others
//! are left out and counted; the writer says how many there were, once in some seconds a place. So every present and future place is bounded, also one whose lines strangers can cause.
//!
//! Owner: nobody. Bounds: [`SITES_MAX`] places, more than the program and its libraries have; those
//! beyond it would share the last one's rate. No locks that anybody waits for.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use tracing::{Level, Metadata};

/// The most lines of a place at once. In a cluster of 16 nodes that a network parts, each node has
/// something to say about 15 others.
const BURST: u64 = 32;
/// From then on, one line of a place in this time.
const EVERY: Duration = Duration::from_secs(1);
/// The most places.
const SITES_MAX: usize = 512;
/// The most characters of a line that its summary repeats.
const REPEATED_MAX: usize = 100;

/// One place.
struct Site {
    /// The address of its metadata, which is a static; 0 while it is free.
    id: AtomicUsize,
    rate: Rate,
    left_out: AtomicU64,
    metadata: OnceLock<&'static Metadata<'static>>,
    /// The beginning of the last line that got through. Whoever finds this taken goes on without.
    last: Mutex<String>,
}

/// A rate of [`BURST`] and [`EVERY`].
struct Rate {
    /// When the place will have earned all its lines back, in milliseconds of the caller's clock.
    earned: AtomicU64,
}

impl Rate {
    const fn new() -> Self {
        Self { earned: AtomicU64::new(0) }
    }

    fn allows(&self, now_ms: u64) -> bool {
        let every = EVERY.as_millis() as u64;
        let take = |earned: u64| {
            let earned = earned.max(now_ms) + every;
            (earned - now_ms <= BURST * every).then_some(earned)
        };
        self.earned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// All places.
pub(super) struct Sites {
    sites: [Site; SITES_MAX],
    began: OnceLock<Instant>,
    left_out: AtomicU64,
    /// Whether there may be something to summarise.
    unsaid: AtomicBool,
}

/// What was left out at a place since that was said last.
pub(super) struct Summary {
    pub(super) level: Level,
    pub(super) target: &'static str,
    pub(super) line: String,
}

impl Sites {
    pub(super) const fn new() -> Self {
        Self {
            sites: [const {
                Site {
                    id: AtomicUsize::new(0),
                    rate: Rate::new(),
                    left_out: AtomicU64::new(0),
                    metadata: OnceLock::new(),
                    last: Mutex::new(String::new()),
                }
            }; SITES_MAX],
            began: OnceLock::new(),
            left_out: AtomicU64::new(0),
            unsaid: AtomicBool::new(false),
        }
    }

    fn site(&self, metadata: &'static Metadata<'static>) -> &Site {
        let id = std::ptr::from_ref(metadata) as usize;
        // Statics lie next to each other, so their addresses are as good as a hash of them.
        let begin = id / align_of::<Metadata<'_>>() % SITES_MAX;
        let mut place = begin;
        loop {
            let site = &self.sites[place];
            match site.id.compare_exchange(0, id, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    let _ = site.metadata.set(metadata);
                    return site;
                }
                Err(found) if found == id => return site,
                Err(_) => place = (place + 1) % SITES_MAX,
            }
            if place == begin {
                return &self.sites[begin];
            }
        }
    }

    /// Whether a line of this place may be logged now; one that may not is counted.
    pub(super) fn verdict(&self, metadata: &'static Metadata<'static>) -> Verdict<'_> {
        let began = *self.began.get_or_init(Instant::now);
        let site = self.site(metadata);
        if site.rate.allows(began.elapsed().as_millis() as u64) {
            return Verdict::Log(Logged(site));
        }
        site.left_out.fetch_add(1, Ordering::Relaxed);
        self.left_out.fetch_add(1, Ordering::Relaxed);
        Verdict::LeaveOut { first: !self.unsaid.swap(true, Ordering::Relaxed) }
    }

    /// The lines that were left out since the start.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Whether something was left out since the last summaries.
    pub(super) fn has_unsaid(&self) -> bool {
        self.unsaid.load(Ordering::Relaxed)
    }

    /// What was left out since this was last called.
    pub(super) fn summaries(&self) -> Vec<Summary> {
        self.unsaid.store(false, Ordering::Relaxed);
        let used = self.sites.iter().filter(|site| site.id.load(Ordering::Relaxed) != 0);
        let summary = |site: &Site| {
            let (count, metadata) = (site.left_out.swap(0, Ordering::Relaxed), site.metadata.get()?);
            let last = site.last.try_lock().map(|last| last.clone()).unwrap_or_default();
            let line = format!("… and {count} more like it: {last}");
            (count > 0).then_some(Summary { level: *metadata.level(), target: metadata.target(), line })
        };
        used.filter_map(summary).collect()
    }
}

/// What is to be done with a line.
pub(super) enum Verdict<'a> {
    Log(Logged<'a>),
    /// `first`: nothing else was left out since the last summaries.
    LeaveOut {
        first: bool,
    },
}

/// A place whose line gets through.
pub(super) struct Logged<'a>(&'a Site);

impl Logged<'_> {
    /// Keeps the beginning of the line for a summary.
    pub(super) fn remember(&self, message: &str) {
        if let Ok(mut last) = self.0.last.try_lock() {
            last.clear();
            last.extend(message.chars().take(REPEATED_MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_gets_through_and_then_one_line_a_second() {
        let rate = Rate::new();
        let allowed = |from: u64, to: u64| (from..to).filter(|&ms| rate.allows(ms)).count() as u64;
        assert_eq!(allowed(5000, 5999), BURST);
        assert_eq!(allowed(6000, 16_000), 10);
        // After a rest, the next burst.
        assert_eq!(allowed(1_000_000, 1_000_999), BURST);
        assert!(allowed(u64::from(u32::MAX), u64::from(u32::MAX) + 999) == BURST);
    }

    #[test]
    fn what_is_left_out_is_summarised_once_with_the_line_it_is_like() {
        static METADATA: OnceLock<&'static Metadata<'static>> = OnceLock::new();
        struct Probe;
        impl tracing::Subscriber for Probe {
            fn enabled(&self, _: &Metadata<'_>) -> bool {
                true
            }
            fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
                tracing::span::Id::from_u64(1)
            }
            fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
            fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
            fn event(&self, event: &tracing::Event<'_>) {
                METADATA.get_or_init(|| event.metadata());
            }
            fn enter(&self, _: &tracing::span::Id) {}
            fn exit(&self, _: &tracing::span::Id) {}
        }
        tracing::subscriber::with_default(Probe, || tracing::warn!("a line"));
        let metadata = METADATA.get().expect("an event");
        let sites = Box::leak(Box::new(Sites::new()));
        let mut firsts = 0;
        for number in 0..BURST + 5 {
            match sites.verdict(metadata) {
                Verdict::Log(site) => site.remember(&format!("line {number} {}", "é".repeat(500))),
                Verdict::LeaveOut { first } => firsts += u32::from(first),
            }
        }
        let summaries = sites.summaries();
        assert_eq!((summaries.len(), firsts, sites.left_out()), (1, 1, 5));
        let line = &summaries[0].line;
        assert!(line.starts_with(&format!("… and 5 more like it: line {} éé", BURST - 1)), "{line}");
        assert!(line.chars().count() < REPEATED_MAX + 40 && summaries[0].level == Level::WARN, "{line}");
        assert!(sites.summaries().is_empty() && !sites.has_unsaid());
    }
}
