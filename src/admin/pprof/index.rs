//! The page at `/debug/pprof/` and the list of captures: what can be captured, what runs, what is
//! kept, and two of those to compare.
//!
//! The page works without its script: links then load until their capture is over. With it, a
//! capture counts down in the page, can be stopped, and says why it was refused.

use koltso_profiling::capture::{Capture, Event};
use koltso_profiling::engine::cpu_engine;
use koltso_profiling::markup::escaped;
use koltso_profiling::text::{amount, moment};

use super::captures::{Captures, KEPT_BYTES_MAX, KEPT_MAX, Kept};

/// The page asks this server for captures, and its form leads to a difference.
pub const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                          base-uri 'self'; form-action 'self'; frame-ancestors 'none'";

/// What a capture is of, for people.
fn what(event: Event) -> &'static str {
    match event {
        Event::Cpu => "CPU",
        Event::Allocs => "Allocations",
        Event::Heap => "Heap in use",
        Event::Mutex => "Contended locks",
        Event::Block => "Locks and waits",
        Event::OffCpu => "Off the CPU",
        Event::Stalls => "Stalls of the cores",
        Event::Other => "Profile",
    }
}

/// Over which time, and how.
fn span(capture: &Capture) -> String {
    let seconds = capture.duration_ns as f64 / 1e9;
    match (capture.event, capture.duration_ns) {
        (Event::Heap, 0) => "now".to_owned(),
        (_, 0) => "since the start".to_owned(),
        (Event::Heap, _) => format!("growth in {seconds:.1} s"),
        (Event::Cpu, _) => match &capture.period {
            Some((_, period)) if *period > 0 => format!("{seconds:.1} s at {:.0} Hz", 1e9 / *period as f64),
            _ => format!("{seconds:.1} s"),
        },
        _ => format!("{seconds:.1} s"),
    }
}

fn samples(capture: &Capture) -> String {
    amount(i64::try_from(capture.sample_count()).unwrap_or(i64::MAX), "count")
}

/// The list of captures for programs, the oldest first: number, event, seconds, samples and when
/// it began, with tabs between.
pub fn list(captures: &Captures) -> String {
    let mut rows = String::new();
    for Kept { id, capture, .. } in captures.kept() {
        let (event, seconds, samples) = (capture.event.name(), capture.duration_ns as f64 / 1e9, capture.samples.len());
        let began = moment(capture.began_unix_ms);
        rows.push_str(&format!("{id}\t{event}\t{seconds:.1} s\t{samples} samples\t{began}\n"));
    }
    rows
}

/// The rows of the table of captures, the newest first. The two newest of one kind are chosen.
fn rows(kept: &[Kept]) -> String {
    let pair = kept.iter().rev().find_map(|new| {
        let of_kind = |base: &&Kept| base.id < new.id && base.capture.event == new.capture.event;
        Some((kept.iter().rev().find(of_kind)?.id, new.id))
    });
    let checked = |chosen: Option<u64>, id: u64| if chosen == Some(id) { " checked" } else { "" };
    let mut rows = String::new();
    for one in kept.iter().rev() {
        let (id, capture) = (one.id, &*one.capture);
        let (event, kind) = (capture.event.name(), what(capture.event));
        let heatmap = if one.has_times() && matches!(capture.event, Event::Cpu | Event::Allocs) {
            format!(" <a href=\"captures?id={id}&amp;format=heatmap\">heatmap</a>")
        } else {
            String::new()
        };
        let (base, new) = (checked(pair.map(|pair| pair.0), id), checked(pair.map(|pair| pair.1), id));
        rows.push_str(&format!(
            "<tr data-event=\"{event}\">\
             <td><input type=\"radio\" name=\"base\" value=\"{id}\" aria-label=\"base: capture {id}\"{base}></td>\
             <td><input type=\"radio\" name=\"new\" value=\"{id}\" aria-label=\"new: capture {id}\"{new}></td>\
             <td class=\"number\">{id}</td><td>{began}</td><td>{kind}, {span}</td><td class=\"number\">{samples}</td>\
             <td><a href=\"captures?id={id}\">flame graph</a>{heatmap} \
             <a href=\"captures?id={id}&amp;format=text\">list</a> \
             <a href=\"captures?id={id}&amp;format=pprof\">profile.proto</a></td></tr>\n",
            began = moment(capture.began_unix_ms),
            span = escaped(&span(capture)),
            samples = samples(capture),
        ));
    }
    rows
}

/// The page.
pub fn page(captures: &Captures) -> String {
    let (_, engine) = cpu_engine();
    let running: Vec<&str> = captures.running().iter().map(|event| event.name()).collect();
    let kept = captures.kept();
    let (rows, hidden) = match &kept[..] {
        [] => ("<tr><td colspan=\"7\">none yet</td></tr>\n".to_owned(), " hidden"),
        kept => (rows(kept), ""),
    };
    format!(
        include_str!("index.html"),
        engine = escaped(&engine),
        running = if running.is_empty() { "none".to_owned() } else { running.join(", ") },
        kept_max = KEPT_MAX,
        kept_mib = KEPT_BYTES_MAX >> 20,
        rows = rows,
        hidden = hidden,
        script = include_str!("index.js"),
    )
}

#[cfg(test)]
mod tests {
    use koltso_profiling::capture::ValueType;

    use super::*;

    fn capture(event: Event, duration_ns: u64) -> Capture {
        let mut capture = Capture::new(event, 1_790_000_000_123, vec![ValueType::new("cpu", "nanoseconds")], 0);
        capture.duration_ns = duration_ns;
        capture
    }

    #[test]
    fn a_capture_is_listed_with_when_and_of_what() {
        let captures = Captures::default();
        let mut cpu = capture(Event::Cpu, 10_000_000_000);
        cpu.period = Some((ValueType::new("cpu", "nanoseconds"), 10_101_010));
        let ids = [cpu.clone(), capture(Event::Heap, 0), cpu, capture(Event::Heap, 5_000_000_000)]
            .map(|capture| captures.keep(capture).id);
        let page = page(&captures);
        for text in
            ["2026-09-21 14:13:20 UTC", "CPU, 10.0 s at 99 Hz", "Heap in use, now", "Heap in use, growth in 5.0 s"]
        {
            assert!(page.contains(text), "{text} is not in\n{page}");
        }
        // The two newest of the newest kind are chosen.
        for (name, id) in [("base", ids[1]), ("new", ids[3])] {
            let chosen = format!("name=\"{name}\" value=\"{id}\" aria-label=\"{name}: capture {id}\" checked>");
            assert!(page.contains(&chosen) && page.matches(" checked").count() == 2, "{page}");
        }
        let list = list(&captures);
        assert_eq!(list.lines().next(), Some(&*format!("{}\tcpu\t10.0 s\t0 samples\t2026-09-21 14:13:20 UTC", ids[0])));
        assert_eq!(list.lines().count(), 4);
    }

    #[test]
    fn without_captures_there_is_nothing_to_compare() {
        let page = page(&Captures::default());
        assert!(page.contains("none yet") && page.contains("<button id=\"compare\" hidden>"), "{page}");
    }
}
