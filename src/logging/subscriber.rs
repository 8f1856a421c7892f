//! From events of `tracing` to lines in the queue. Spans are not used in this project and not
//! shown.

use std::sync::atomic::{AtomicU8, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use super::lines::Message;
use super::sites::Verdict;
use super::{QUEUE, SITES, style};

/// The levels, from the one that says least.
const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

/// The index of the level in force: "info" until another is set.
static LEVEL: AtomicU8 = AtomicU8::new(2);

fn level() -> Level {
    LEVELS[usize::from(LEVEL.load(Ordering::Relaxed))]
}

/// Leaves out what is below a level from now on.
pub(super) fn set_level(level: Level) {
    let index = LEVELS.iter().position(|known| *known == level).unwrap_or_default();
    LEVEL.store(index as u8, Ordering::Relaxed);
    tracing::callsite::rebuild_interest_cache();
}

/// Catches all events of this process from now on; if somebody else does already, nothing changes.
pub(super) fn install() {
    let _ = tracing_subscriber::registry().with(Lines).try_init();
}

struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if *metadata.level() <= level() { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= level()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(level().into())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        match SITES.verdict(metadata) {
            Verdict::Log(site) => {
                let mut message = Message::default();
                event.record(&mut message);
                site.remember(&message.text);
                QUEUE.push(style().event(*metadata.level(), metadata.target(), &message));
            }
            // Whoever sleeps has no time set for the summary yet.
            Verdict::LeaveOut { first: true } => QUEUE.wake(),
            Verdict::LeaveOut { first: false } => {}
        }
    }
}
