//! What a request below `/debug/pprof/` asks for: checks its parameters, without I/O. Tested below.

use koltso_net::http::query;
use koltso_profiling::capture::Event;

/// The most addresses that `symbol` names at a time.
pub const ADDRESSES_MAX: usize = 4096;

/// The form in which a capture is given.
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
    /// What `perf script` prints.
    PerfScript,
    /// A list of functions.
    Text,
}

/// A request for a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What to capture.
    pub event: Event,
    /// How long to capture, in seconds; `None` asks for everything since the start, or for what is
    /// live now.
    pub seconds: Option<u32>,
    /// Samples for each second of a processor's time; used for CPU only.
    pub hz: u32,
    /// Whether allocations are captured with their times.
    pub timed: bool,
    /// The form in which the capture is given.
    pub format: Format,
    /// Whether to end the oldest capture of this kind if two are running.
    pub force: bool,
}

fn number(name: &str, text: &str, least: u32, most: u32) -> Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits && (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("The parameter {name} is a whole number from {least} to {most}, not `{text}`.")),
    }
}

/// The events that the parameter `event` can name.
const EVENTS: [Event; 7] =
    [Event::Cpu, Event::Allocs, Event::Heap, Event::Mutex, Event::Block, Event::OffCpu, Event::Stalls];

fn event_of(name: &str) -> Option<Event> {
    EVENTS.into_iter().find(|event| event.name() == name)
}

/// Whether the samples of this event have times.
const fn is_timed(event: Event) -> bool {
    matches!(event, Event::Cpu | Event::Allocs)
}

/// What the last part of a path and a query ask for; `None` if there is no such profile.
///
/// # Errors
/// One sentence about the parameter that is wrong.
pub fn parse(profile: &str, text: &str) -> Option<Result<Asked, String>> {
    let (event, format) = match profile {
        "profile" => (Some(Event::Cpu), Format::Pprof),
        "flamegraph" => (None, Format::Html),
        "heatmap" => (None, Format::Heatmap),
        // People read it as a list.
        "stalls" => (Some(Event::Stalls), Format::Text),
        "cpu" => return None, // It is called `profile`.
        name => (Some(event_of(name)?), Format::Pprof),
    };
    Some(parameters(profile, event, format, text))
}

/// The parameters by name, of which each must be known and given once.
fn given<'a>(profile: &str, text: &'a str, known: impl Fn(&str) -> bool) -> Result<Vec<(String, &'a str)>, String> {
    let mut given: Vec<(String, &str)> = Vec::new();
    for (name, value) in query::pairs(text) {
        let name = query::decode(name).map_err(|e| format!("The name of a parameter is wrong: {e}."))?;
        let name = String::from_utf8_lossy(&name);
        // These are two names of one parameter.
        let name = if name == "frequency" { "hz" } else { &name };
        if !known(name) {
            let name: String = name.chars().take(40).flat_map(char::escape_default).collect();
            return Err(format!("/debug/pprof/{profile} knows no parameter {name}."));
        }
        if given.iter().any(|(before, _)| before == name) {
            return Err(format!("The parameter {name} is given more than once."));
        }
        given.push((name.to_owned(), value));
    }
    Ok(given)
}

fn value<'a>(given: &[(String, &'a str)], name: &str) -> Option<&'a str> {
    given.iter().find(|(known, _)| known == name).map(|&(_, value)| value)
}

fn parameters(profile: &str, event: Option<Event>, page: Format, text: &str) -> Result<Asked, String> {
    let given = given(profile, text, |name| match name {
        "seconds" | "force" => true,
        "hz" => matches!(event, Some(Event::Cpu) | None),
        "format" => page != Format::Heatmap,
        "event" => event.is_none(),
        _ => false,
    })?;
    let get = |name: &str| value(&given, name);
    let event = match (event, get("event")) {
        (Some(event), _) => event,
        (None, None) => Event::Cpu,
        (None, Some(name)) => match event_of(name) {
            Some(event) if page != Format::Heatmap || is_timed(event) => event,
            _ if page == Format::Heatmap => {
                return Err(format!("The parameter event is cpu or allocs for a heatmap, not `{name}`."));
            }
            _ => {
                let names = EVENTS.map(Event::name).join(", ");
                return Err(format!("The parameter event is one of {names}, not `{name}`."));
            }
        },
    };
    if event != Event::Cpu && get("hz").is_some() {
        return Err(format!("The parameter hz is for CPU, not for {}.", event.name()));
    }
    if event == Event::Stalls && get("seconds").is_some() {
        return Err("The last stalls are kept without being asked for: there are no seconds to choose.".to_owned());
    }
    let (most, default) = match event {
        _ if page == Format::Heatmap => (300, Some(60)),
        Event::Cpu => (300, Some(30)),
        Event::OffCpu => (60, Some(10)),
        _ => (300, None),
    };
    let seconds = get("seconds").map(|text| number("seconds", text, 1, most)).transpose()?.or(default);
    let hz = get("hz").map_or(Ok(if page == Format::Heatmap { 499 } else { 99 }), |text| number("hz", text, 1, 999))?;
    let format = get("format").map_or(Ok(page), |name| format_of(name, false))?;
    let force = match get("force") {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(format!("The parameter force is true or false, not `{other}`.")),
    };
    Ok(Asked { event, seconds, hz, timed: page == Format::Heatmap, format, force })
}

fn format_of(name: &str, heatmap: bool) -> Result<Format, String> {
    Ok(match name {
        "pprof" => Format::Pprof,
        "html" => Format::Html,
        "svg" => Format::Svg,
        "folded" => Format::Folded,
        "perfscript" => Format::PerfScript,
        "text" => Format::Text,
        "heatmap" if heatmap => Format::Heatmap,
        other => {
            let heatmap = if heatmap { ", heatmap" } else { "" };
            return Err(format!(
                "The parameter format is one of pprof, html, svg, folded, perfscript{heatmap} and text, not `{other}`."
            ));
        }
    })
}

fn id(given: &[(String, &str)], name: &str) -> Result<u64, String> {
    let text = value(given, name).ok_or_else(|| {
        format!("The parameter {name} is missing: the number of a capture; /debug/pprof/captures lists them.")
    })?;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| {
        format!("The parameter {name} is the number of a capture, not `{text}`; /debug/pprof/captures lists them.")
    })
}

/// What `captures?id=N&format=F` asks for.
///
/// # Errors
/// One sentence about the parameter that is wrong.
pub fn parse_again(text: &str) -> Result<(u64, Format), String> {
    let given = given("captures", text, |name| matches!(name, "id" | "format"))?;
    let format = value(&given, "format").map_or(Ok(Format::Html), |name| format_of(name, true))?;
    Ok((id(&given, "id")?, format))
}

/// What `diff?base=N&new=M&format=F` asks for.
///
/// # Errors
/// One sentence about the parameter that is wrong.
pub fn parse_diff(text: &str) -> Result<(u64, u64, Format), String> {
    let given = given("diff", text, |name| matches!(name, "base" | "new" | "format"))?;
    let format = match value(&given, "format") {
        None | Some("html") => Format::Html,
        Some("svg") => Format::Svg,
        Some("folded") => Format::Folded,
        Some(other) => {
            return Err(format!(
                "The parameter format is one of html, svg and folded for a difference, not `{other}`."
            ));
        }
    };
    Ok((id(&given, "base")?, id(&given, "new")?, format))
}

/// Checks that a path that takes no parameters has none.
///
/// # Errors
/// One sentence about the first parameter.
pub fn parse_nothing(profile: &str, text: &str) -> Result<(), String> {
    given(profile, text, |_| false).map(drop)
}

/// The addresses that `symbol` is asked for, written as in Go: `0x4a10+0x4b20`.
///
/// # Errors
/// One sentence about the word that is not an address.
pub fn parse_addresses(text: &str) -> Result<Vec<u64>, String> {
    let words: Vec<&str> = text.split('+').map(str::trim).filter(|word| !word.is_empty()).collect();
    if words.len() > ADDRESSES_MAX {
        return Err(format!("At most {ADDRESSES_MAX} addresses are named at a time, not {}.", words.len()));
    }
    let address = |word: &str| {
        let digits = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")).unwrap_or(word);
        let shown = || word.chars().take(40).collect::<String>();
        u64::from_str_radix(digits, 16)
            .map_err(|_| format!("Addresses are hexadecimal and joined by +, and `{}` is not one.", shown()))
    };
    words.into_iter().map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(profile: &str, query: &str) -> Result<Asked, String> {
        parse(profile, query).expect("a profile")
    }

    #[test]
    fn defaults_are_those_of_go() {
        let all =
            Asked { event: Event::Cpu, seconds: Some(30), hz: 99, timed: false, format: Format::Pprof, force: false };
        assert_eq!(asked("profile", ""), Ok(all));
        assert_eq!(asked("heap", ""), Ok(Asked { event: Event::Heap, seconds: None, ..all }));
        assert_eq!(asked("offcpu", "").map(|a| a.seconds), Ok(Some(10)));
        assert_eq!(asked("heatmap", "").map(|a| (a.seconds, a.hz, a.format)), Ok((Some(60), 499, Format::Heatmap)));
        assert_eq!(
            asked("flamegraph", "event=allocs&format=svg").map(|a| (a.event, a.format)),
            Ok((Event::Allocs, Format::Svg))
        );
        for event in [Event::Mutex, Event::Block, Event::Allocs] {
            assert_eq!(asked(event.name(), ""), Ok(Asked { event, seconds: None, ..all }));
        }
        assert_eq!(asked("stalls", ""), Ok(Asked { event: Event::Stalls, seconds: None, format: Format::Text, ..all }));
        let heat = asked("heatmap", "event=allocs").expect("a heatmap");
        assert!(heat.timed && heat.event == Event::Allocs && heat.seconds == Some(60));
        assert_eq!(asked("profile", "frequency=999&force=true").map(|a| (a.hz, a.force)), Ok((999, true)));
        assert!(parse("nonsense", "").is_none() && parse("cpu", "").is_none());
        assert_eq!(parse_again("id=7"), Ok((7, Format::Html)));
        assert_eq!(parse_again("id=7&format=heatmap"), Ok((7, Format::Heatmap)));
        assert_eq!(parse_diff("base=7&new=9"), Ok((7, 9, Format::Html)));
        assert_eq!(parse_diff("format=svg&base=7&new=9"), Ok((7, 9, Format::Svg)));
        assert_eq!(parse_nothing("cmdline", ""), Ok(()));
        assert_eq!(parse_addresses("0x10+ff"), Ok(vec![16, 255]));
        assert_eq!(parse_addresses(""), Ok(vec![]));
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
            ("heatmap", "event=allocs&hz=9", "hz"),
            ("heatmap", "hz=1000", "1 to 999"),
            ("profile", "hz=0", "1 to 999"),
            ("flamegraph", "event=offcpu&seconds=61", "1 to 60"),
            ("heatmap", "format=svg", "format"),
            ("profile", "format=heatmap", "heatmap"),
            ("mutex", "hz=9", "hz"),
            ("block", "seconds=301", "1 to 300"),
            ("stalls", "seconds=1", "seconds"),
            ("profile", "seconds=", "``"),
            ("profile", "seconds=-1", "`-1`"),
            ("profile", "seconds=4294967297", "1 to 300"),
        ] {
            let sentence = asked(profile, query).expect_err(query);
            assert!(sentence.contains(word), "{profile}?{query}: {sentence}");
        }
        for (query, word) in [
            ("", "missing"),
            ("id=x", "`x`"),
            ("id=1&id=2", "more than once"),
            ("id=1&format=pdf", "pdf"),
            ("id=1&colour=red", "colour"),
        ] {
            let sentence = parse_again(query).expect_err(query);
            assert!(sentence.contains(word), "captures?{query}: {sentence}");
        }
        assert!(parse_nothing("cmdline", "debug=1").is_err_and(|sentence| sentence.contains("cmdline knows no")));
        for (query, word) in [
            ("base=1", "new"),
            ("base=1&new=-1", "`-1`"),
            ("base=1&new=2&format=pprof", "pprof"),
            ("base=1&new=2&base=1", "more than once"),
            ("base=1&new=2&colour=red", "colour"),
        ] {
            let sentence = parse_diff(query).expect_err(query);
            assert!(sentence.contains(word), "diff?{query}: {sentence}");
        }
        for text in ["0x", "0xg", "5 6", "0x10000000000000000", "-1", "5+zz"] {
            assert!(parse_addresses(text).is_err(), "{text}");
        }
        assert!(parse_addresses(&"1+".repeat(ADDRESSES_MAX + 1)).is_err());
    }
}
