//! What a request below `/debug/pprof/` asks for: parameters, checked. Pure; tested below.

use koltso_net::http::query;
use koltso_profiling::capture::Event;

/// How a capture is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Gzipped `profile.proto`, for `go tool pprof`, Pyroscope and Parca.
    Pprof,
    /// The interactive flame graph.
    Html,
    /// The heatmap.
    Heatmap,
    /// A flame graph as a picture.
    Svg,
    /// Collapsed stacks.
    Folded,
    /// As `perf script` prints it.
    PerfScript,
    /// A list of functions.
    Text,
}

/// A capture that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Of what.
    pub event: Event,
    /// For how long; `None`: all since the start, or what is live now.
    pub seconds: Option<u32>,
    /// Samples a second of a processor, for CPU.
    pub hz: u32,
    /// How it is given.
    pub format: Format,
    /// If two of the kind run, the oldest is ended.
    pub force: bool,
}

fn number(name: &str, text: &str, least: u32, most: u32) -> Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits && (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("The parameter {name} is a whole number from {least} to {most}, not `{text}`.")),
    }
}

fn event_of(name: &str) -> Option<Event> {
    [Event::Cpu, Event::Allocs, Event::Heap, Event::OffCpu].into_iter().find(|event| event.name() == name)
}

/// What a path's last part and a query ask for. `None`: there is no such profile.
///
/// # Errors
/// One sentence about the parameter that is wrong.
pub fn parse(profile: &str, text: &str) -> Option<Result<Asked, String>> {
    let (event, format) = match profile {
        "profile" => (Some(Event::Cpu), Format::Pprof),
        "allocs" => (Some(Event::Allocs), Format::Pprof),
        "heap" => (Some(Event::Heap), Format::Pprof),
        "offcpu" => (Some(Event::OffCpu), Format::Pprof),
        "flamegraph" => (None, Format::Html),
        "heatmap" => (None, Format::Heatmap),
        _ => return None,
    };
    Some(parameters(profile, event, format, text))
}

fn parameters(profile: &str, event: Option<Event>, format: Format, text: &str) -> Result<Asked, String> {
    let mut given: Vec<(&str, &str)> = Vec::new();
    for (name, value) in query::pairs(text) {
        // Two names of one parameter.
        let name = if name == "frequency" { "hz" } else { name };
        let known = match name {
            "seconds" | "force" => true,
            "hz" => !matches!(event, Some(Event::Allocs | Event::Heap | Event::OffCpu)),
            "format" => format != Format::Heatmap,
            "event" => event.is_none(),
            _ => false,
        };
        if !known {
            return Err(format!("/debug/pprof/{profile} knows no parameter {name}."));
        }
        if given.iter().any(|&(before, _)| before == name) {
            return Err(format!("The parameter {name} is given more than once."));
        }
        given.push((name, value));
    }
    let get = |name: &str| given.iter().find(|(known, _)| *known == name).map(|&(_, value)| value);
    let event = match (event, get("event")) {
        (Some(event), _) => event,
        (None, None) => Event::Cpu,
        (None, Some(name)) => match event_of(name) {
            Some(Event::Cpu) => Event::Cpu,
            Some(Event::Heap | Event::OffCpu) | None if format == Format::Heatmap => {
                return Err(format!("The parameter event is cpu for a heatmap, not `{name}`."));
            }
            Some(Event::Allocs) if format == Format::Heatmap => {
                return Err("A heatmap of allocations is not made yet; event=cpu is.".to_owned());
            }
            Some(event) => event,
            None => return Err(format!("The parameter event is one of cpu, allocs, heap and offcpu, not `{name}`.")),
        },
    };
    if event != Event::Cpu && get("hz").is_some() {
        return Err(format!("The parameter hz is for CPU, not for {}.", event.name()));
    }
    let (most, default) = match event {
        Event::OffCpu => (60, Some(10)),
        Event::Allocs | Event::Heap => (300, None),
        _ if format == Format::Heatmap => (300, Some(60)),
        _ => (300, Some(30)),
    };
    let seconds = get("seconds").map(|text| number("seconds", text, 1, most)).transpose()?.or(default);
    let hz =
        get("hz").map_or(Ok(if format == Format::Heatmap { 499 } else { 99 }), |text| number("hz", text, 1, 999))?;
    let format = match get("format") {
        None => format,
        Some("pprof") => Format::Pprof,
        Some("html") => Format::Html,
        Some("svg") => Format::Svg,
        Some("folded") => Format::Folded,
        Some("perfscript") => Format::PerfScript,
        Some("text") => Format::Text,
        Some(other) => {
            return Err(format!(
                "The parameter format is one of pprof, html, svg, folded, perfscript and text, not `{other}`."
            ));
        }
    };
    let force = match get("force") {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(format!("The parameter force is true or false, not `{other}`.")),
    };
    Ok(Asked { event, seconds, hz, format, force })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(profile: &str, query: &str) -> Result<Asked, String> {
        parse(profile, query).expect("a profile")
    }

    #[test]
    fn defaults_are_those_of_go() {
        let all = Asked { event: Event::Cpu, seconds: Some(30), hz: 99, format: Format::Pprof, force: false };
        assert_eq!(asked("profile", ""), Ok(all));
        assert_eq!(asked("heap", ""), Ok(Asked { event: Event::Heap, seconds: None, ..all }));
        assert_eq!(asked("offcpu", "").map(|a| a.seconds), Ok(Some(10)));
        assert_eq!(asked("heatmap", "").map(|a| (a.seconds, a.hz, a.format)), Ok((Some(60), 499, Format::Heatmap)));
        assert_eq!(
            asked("flamegraph", "event=allocs&format=svg").map(|a| (a.event, a.format)),
            Ok((Event::Allocs, Format::Svg))
        );
        assert_eq!(asked("profile", "frequency=999&force=true").map(|a| (a.hz, a.force)), Ok((999, true)));
        assert!(parse("nonsense", "").is_none());
    }

    #[test]
    fn what_is_out_of_range_unknown_or_twice_is_one_sentence() {
        for (profile, query, word) in [
            ("profile", "seconds=0", "1 to 300"),
            ("profile", "seconds=301", "1 to 300"),
            ("profile", "seconds=x", "`x`"),
            ("profile", "hz=1000", "1 to 999"),
            ("profile", "seconds=1&seconds=2", "more than once"),
            ("profile", "hz=1&frequency=2", "more than once"),
            ("profile", "colour=1", "colour"),
            ("profile", "event=cpu", "event"),
            ("profile", "format=pdf", "pdf"),
            ("profile", "force=maybe", "maybe"),
            ("offcpu", "seconds=61", "1 to 60"),
            ("heap", "hz=9", "hz"),
            ("flamegraph", "event=heap&hz=9", "hz"),
            ("flamegraph", "event=nonsense", "nonsense"),
            ("heatmap", "event=heap", "heatmap"),
        ] {
            let sentence = asked(profile, query).expect_err(query);
            assert!(sentence.contains(word), "{profile}?{query}: {sentence}");
        }
    }
}
