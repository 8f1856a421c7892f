//! Stalls of the data cores: passes the turns of their loops (`net`) to the watcher that finds out
//! what held them up (`profiling`).
//!
//! Stalls appear in the log as one line in [`LOG_EVERY`] at most; the others are counted in the
//! next line. It says which of them are the core's own and which are the machine's, that did not
//! give the core the processor. With `--stall-bound 0` none of this exists. Tested below with a server whose service
//! blocks, and in `tests/stalls.rs`.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use koltso_instrument::Mutex;
use koltso_net::turn::{self, Observer};
use koltso_profiling::stalls::{Stall, Stalls, TurnRecorder};
use koltso_profiling::symbols::Symbols;

/// The shortest time between two lines of the log.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The turns of a core that may be watched.
pub type Turn = turn::Turn<Watched>;

/// A core that is watched.
pub struct Watched(TurnRecorder);

impl Observer for Watched {
    #[inline]
    fn began(&self, now: Instant, quiet: bool) {
        self.0.began(now, quiet);
    }

    #[inline]
    fn busy(&self) {
        self.0.busy();
    }

    #[inline]
    fn ended(&self, now: Instant) {
        self.0.ended(now);
    }
}

/// The turns of core number `core`, which is the calling thread.
pub fn turn(stalls: &Stalls, core: usize) -> Rc<Turn> {
    turn::Turn::new(Watched(stalls.join(core)))
}

/// Starts the watcher, which cores join later.
///
/// # Errors
/// If no thread can be started.
pub fn watch(bound: Duration) -> io::Result<Stalls> {
    let logged = Mutex::new(&"log lines about stalls", (None::<Instant>, Unsaid::default()));
    Stalls::watch(bound, move |stall| {
        let mut logged = logged.lock();
        let (last, unsaid) = &mut *logged;
        if last.is_some_and(|last| last.elapsed() < LOG_EVERY) {
            unsaid.all += 1;
            unsaid.kept_waiting += u64::from(stall.was_kept_waiting());
            return;
        }
        *last = Some(Instant::now());
        log(stall, std::mem::take(unsaid));
    })
}

/// Stalls since the last line.
#[derive(Clone, Copy, Default)]
struct Unsaid {
    all: u64,
    /// Those of them in which the core was not given the processor.
    kept_waiting: u64,
}

/// What is said of a stall in which the core spent most of the time at `place`.
fn line(stall: &Stall, place: &str, unsaid: Unsaid) -> String {
    let (core, ms) = (stall.core, stall.duration.as_millis());
    let before = match unsaid {
        Unsaid { all: 0, .. } => String::new(),
        Unsaid { all, kept_waiting: 0 } => format!(", and there were {all} more before"),
        Unsaid { all, kept_waiting } => {
            format!(", and there were {all} more before, {kept_waiting} of them for want of the processor")
        }
    };
    if stall.was_kept_waiting() {
        let waited = stall.waited.as_millis();
        return format!(
            "core {core} stalled for {ms} ms because it was not given the processor for {waited} ms of them: others on \
             this machine used it, or a limit of this process's group was reached{before}; see /debug/pprof/stalls"
        );
    }
    format!("core {core} stalled for {ms} ms in {place}{before}; see /debug/pprof/stalls")
}

/// Logs a stall on a thread of its own, since looking up names of addresses takes as long as many
/// stalls.
fn log(stall: &Arc<Stall>, unsaid: Unsaid) {
    let stall = stall.clone();
    let say = move || {
        // What the machine did not let run has no place, and a busy machine has no time to look it up.
        let place = if stall.was_kept_waiting() { String::new() } else { stall.place(&mut Symbols::new()) };
        tracing::warn!("{}", line(&stall, &place, unsaid));
    };
    // Without a thread there is no line; the stall is counted and kept all the same.
    let _ = std::thread::Builder::new().name("koltso-stalled".to_owned()).spawn(say);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;
    use koltso_net::http::{Head, Reply};
    use koltso_net::server::{self, Admit, Event, Limits, Outcome, Service, Shared};
    use koltso_profiling::stalls;
    use koltso_testkit::wait::soon;
    use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

    use super::*;

    #[test]
    fn a_core_that_was_not_given_the_processor_is_not_said_to_have_stalled_by_itself() {
        let stall = |waited| Stall::of(3, Duration::from_millis(39), Duration::from_millis(waited));
        let none = Unsaid::default();
        let own = line(&stall(4), "memcpy < koltso_storage::log::put", none);
        assert_eq!(own, "core 3 stalled for 39 ms in memcpy < koltso_storage::log::put; see /debug/pprof/stalls");
        let waited = line(&stall(36), "irqentry_exit_to_user_mode_[k]", none);
        assert!(waited.contains("39 ms because it was not given the processor for 36 ms of them"), "{waited}");
        assert!(!waited.contains("irqentry"), "{waited}");
        let more = line(&stall(36), "", Unsaid { all: 9, kept_waiting: 7 });
        assert!(more.contains("and there were 9 more before, 7 of them for want of the processor;"), "{more}");
        let more = line(&stall(0), "f", Unsaid { all: 2, kept_waiting: 0 });
        assert!(more.contains("in f, and there were 2 more before;"), "{more}");
    }

    const BOUND: Duration = Duration::from_millis(50);
    const STALL: Duration = Duration::from_millis(200);

    /// From when to when.
    type Span = (Instant, Instant);

    /// What a core's turns are by this test's own account.
    #[derive(Default)]
    struct Seen {
        is_open: AtomicBool,
        /// The turns that took longer than the bound.
        long: std::sync::Mutex<Vec<Span>>,
    }

    /// A core that is watched, and seen by the test.
    struct SeenCore {
        watched: Watched,
        began: Cell<Instant>,
        seen: Arc<Seen>,
    }

    impl Observer for SeenCore {
        fn began(&self, now: Instant, quiet: bool) {
            self.began.set(now);
            self.seen.is_open.store(true, Ordering::SeqCst);
            self.watched.began(now, quiet);
        }

        fn busy(&self) {
            self.watched.busy();
        }

        fn ended(&self, now: Instant) {
            self.watched.ended(now);
            if now - self.began.get() > BOUND {
                self.seen.long.lock().expect("a lock").push((self.began.get(), now));
            }
            self.seen.is_open.store(false, Ordering::SeqCst);
        }
    }

    /// Answers, and blocks before it does if the path says so.
    struct Blocking(Rc<turn::Turn<SeenCore>>);

    /// When the service really blocked.
    static BLOCKED: Mutex<Vec<Span>> = Mutex::new(&"blocked", Vec::new());

    #[inline(never)]
    fn a_known_stall(path: &str) {
        let begun = Instant::now();
        while path == "/loop" && begun.elapsed() < STALL {
            // (No iterator: its inlined frames would leave no room for this function in a place.)
            let mut n = 0;
            while n < 100_000 {
                n = std::hint::black_box(n + 1);
            }
        }
        if path == "/sleep" {
            std::thread::sleep(STALL);
        }
        if path != "/fast" {
            BLOCKED.lock().push((begun, Instant::now()));
        }
    }

    impl Service for Blocking {
        type Admitted = ();

        fn admit(&self, _: &Head<'_>, _: &mut Reply<'_>) -> Admit<()> {
            Admit::Body(())
        }

        fn call(&self, head: &Head<'_>, _: &[u8], reply: &mut Reply<'_>) -> Outcome {
            a_known_stall(head.path);
            reply.text(200, "done");
            Outcome::Done
        }

        fn call_admitted(&self, (): (), _: Bytes, reply: &mut Reply<'_>) -> Outcome {
            reply.text(200, "done");
            Outcome::Done
        }

        fn finished(&self, _: u16, _: Duration) {}

        fn event(&self, _: Event) {}

        fn resumed(&self, now: Instant) {
            self.0.begin(now);
        }

        fn hand_off(&self, _: TcpStream, _: Vec<u8>) {}
    }

    /// Ends the server, also when the test fails.
    struct Drain(Arc<Shared>);

    impl Drop for Drain {
        fn drop(&mut self) {
            self.0.drain();
        }
    }

    fn serve(stalls: &Stalls, seen: Arc<Seen>, listener: TcpListener, shared: Arc<Shared>, uring: bool) {
        let watched = Watched(stalls.join(7));
        let turn = turn::Turn::new(SeenCore { watched, began: Cell::new(Instant::now()), seen });
        let service = Rc::new(Blocking(turn.clone()));
        let server = turn.run(server::serve(listener, service, Limits::default(), shared));
        let served = if uring {
            let runtime = RuntimeBuilder::<IoUringDriver>::new().enable_timer().build();
            runtime.expect("io_uring is needed for this test").block_on(server)
        } else {
            RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().expect("epoll").block_on(server)
        };
        served.expect("served");
    }

    fn get(client: &mut TcpStream, path: &str) {
        client.write_all(format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes()).expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"done") && !answer.ends_with(b"done\n") {
            let mut buffer = [0; 1024];
            let count = client.read(&mut buffer).expect("read");
            assert!(count > 0, "closed");
            answer.extend_from_slice(&buffer[..count]);
        }
    }

    /// On a busy machine the core may be kept from running in the middle of any turn, which is then
    /// a stall, too. So nothing here has to be quick: what is counted is compared with what the test
    /// has seen of the same turns, and with the time in which the core had something to do.
    #[test]
    fn a_service_that_blocks_its_core_is_a_stall_with_its_name_and_fast_requests_are_none() {
        for uring in [true, false] {
            let watched = watch(BOUND).expect("a thread");
            let seen = Arc::<Seen>::default();
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("an address");
            let shared = Shared::new();
            // When the core had something to do: many requests, then one at a time, then the end.
            let mut asked: Vec<Span> = Vec::new();
            let ending = std::thread::scope(|scope| {
                let _drain = Drain(shared.clone());
                let core = std::thread::Builder::new().name("a-core".to_owned());
                let its = (&watched, seen.clone(), shared.clone());
                core.spawn_scoped(scope, move || serve(its.0, its.1, listener, its.2, uring)).expect("a thread");
                let begun = Instant::now();
                let mut client = TcpStream::connect(address).expect("connected");
                for _ in 0..200 {
                    get(&mut client, "/fast");
                }
                let turn_ends = || soon("the core waits again", || !seen.is_open.load(Ordering::SeqCst));
                turn_ends();
                asked.push((begun, Instant::now()));
                // A core that waits for something to do does not stall.
                std::thread::sleep(2 * BOUND);
                for path in ["/loop", "/sleep"] {
                    let sent = Instant::now();
                    get(&mut client, path);
                    turn_ends();
                    asked.push((sent, Instant::now()));
                }
                Instant::now()
            });
            asked.push((ending, Instant::now()));
            let long = std::mem::take(&mut *seen.long.lock().expect("a lock"));
            soon("the watcher keeps all stalls", || watched.list().len() >= long.len());
            let stalls = watched.list();
            assert_eq!(watched.count(), long.len() as u64);
            assert!(stalls.iter().map(|stall| stall.duration).eq(long.iter().map(|(began, ended)| *ended - *began)));
            let mut symbols = Symbols::new();
            let blocked: Vec<Span> = BLOCKED.lock().drain(..).collect();
            assert_eq!(blocked.len(), 2);
            let is_within = |(from, to): Span, (began, ended): Span| began <= from && to <= ended;
            let mut busy: Duration = asked.iter().map(|(sent, ended)| *ended - *sent).sum();
            for (blocked, asked) in blocked.into_iter().zip(&asked[1..=2]) {
                let its = long.iter().position(|turn| is_within(blocked, *turn)).expect("a stall");
                let lasted = stalls[its].duration;
                assert!(is_within(long[its], *asked), "{lasted:?}, and more than the request is in it");
                assert_eq!((stalls[its].core, &*stalls[its].thread.name), (7, "a-core"));
                let place = stalls[its].place(&mut symbols);
                assert!(place.contains("a_known_stall"), "{place}");
                busy -= lasted;
            }
            // So there is no other stall if the core had less to do than the bound beside these two.
            let others = stalls.len() as u32 - 2;
            assert!(BOUND * others <= busy, "{others} more stalls in {busy:?}");
            let text = stalls::text(&stalls, &mut symbols);
            assert_eq!(text.matches("core 7").count(), stalls.len(), "{text}");
            let capture = stalls::capture(&watched, &mut symbols);
            let rooted = capture.samples.iter().filter(|sample| {
                let names = capture.stack_at(sample.stack).iter().map(|&id| &*capture.frame_at(id).function);
                names.into_iter().any(|name| name.contains("block_on"))
            });
            let (rooted, all) = (rooted.count(), capture.samples.len());
            assert!(all >= 4 && rooted * 10 >= all * 9, "{rooted} of {all} samples reach the loop");
        }
    }
}
