//! `koltso profile`: captures of a running node and files that were saved, for people at a
//! terminal.
//!
//! - `node.rs`: asks a node's `/debug/pprof/`.
//! - `files.rs`: shows profile.proto files as pages, pictures and texts, and their differences.
//! - `division.rs`: divides a file by class, using the table of `admin/classes.rs`.
//! - `output.rs`: where the result goes, and in which form.
//! - `watch.rs`: the progress line, and Ctrl-C.
//!
//! Owner: the main thread; the progress line and the signals have a thread each. The arguments are
//! checked and the output file is created before anything is asked. Exit codes: 0 if it was done, 2
//! for an error, with one sentence, 130 after Ctrl-C. Absent: sampling this process or another one
//! from outside; nodes profile themselves. Tested below and in `tests/profile_command.rs`.

mod division;
mod files;
mod node;
mod output;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::commands::client::Done;
use crate::commands::http_client::Server;
use crate::settings::read_token;
use crate::similar::did_you_mean;
use crate::units::{Span, whole};
use crate::usage;
use node::Ask;
use output::{Form, Output};

/// The events that a node can be asked for.
const EVENTS: [&str; 7] = ["cpu", "allocs", "heap", "mutex", "block", "offcpu", "stalls"];
/// Those of them that are captured for [`SECONDS`] if `--seconds` is not given.
const TIMED: [&str; 2] = ["cpu", "offcpu"];
const SECONDS: u32 = 30;
const HZ: u32 = 99;
/// Higher than [`HZ`], since a cell of a heatmap is only 20 ms.
const HEATMAP_HZ: u32 = 499;
/// Looking up names and making the page take some seconds on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// `koltso profile`
#[derive(Args)]
pub struct Profile {
    /// A node, http://HOST:PORT; or a saved .pb.gz file; or two of these, to see what changed from
    /// the first to the second
    #[arg(value_name = "URL|FILE", num_args = 0..=2)]
    of: Vec<String>,
    /// cpu, allocs, heap, mutex, block, offcpu or stalls [default: cpu]
    #[arg(long, value_name = "EVENT", value_parser = event)]
    event: Option<&'static str>,
    /// How many seconds, such as 30 or 1m [default: 30; for what a node counts all the time, all
    /// since its start]
    #[arg(long, value_name = "N", value_parser = seconds)]
    seconds: Option<u32>,
    /// Samples a second of each processor, for cpu [default: 99, for a heatmap 499]
    #[arg(long, value_name = "N", value_parser = hz)]
    hz: Option<u32>,
    /// Over time, as a page; of cpu or allocs
    #[arg(long)]
    heatmap: bool,
    /// The ending says the form: .html, .svg, .pb.gz, .folded, .txt or .perf [default: the top
    /// functions on standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Divide a saved profile by what its functions are for: HTTP, exchange between nodes, storage,
    /// …
    #[arg(long, conflicts_with = "out")]
    classes: bool,
    /// Print the division as one JSON document
    #[arg(long, requires = "classes")]
    json: bool,
    /// If two captures of this kind are running, end the older one
    #[arg(long)]
    force: bool,
    /// A file with the node's token (its --admin-token-file)
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How long to wait for the answer once the time of the capture is over [default: 60s]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
}

fn event(name: &str) -> Result<&'static str, String> {
    let found = EVENTS.into_iter().find(|&known| known == name);
    found.ok_or_else(|| format!("it is one of {}{}", EVENTS.join(", "), did_you_mean(name, EVENTS.into_iter())))
}

/// A number of seconds, or a duration of whole seconds.
fn seconds(text: &str) -> Result<u32, String> {
    let span = || text.parse::<Span>().ok().map(|span| span.0).filter(|span| span.subsec_nanos() == 0);
    let number = whole(text).ok().or_else(|| span().and_then(|span| u32::try_from(span.as_secs()).ok()));
    number.filter(|number| (1..=300).contains(number)).ok_or_else(|| format!("{text} is not in 1..=300, in seconds"))
}

fn hz(text: &str) -> Result<u32, String> {
    let number = whole(text).ok().filter(|number| (1..=999).contains(number));
    number.ok_or_else(|| format!("{text} is not in 1..=999"))
}

fn token(path: &Path) -> Result<String, String> {
    read_token(&format!("--token-file {}", path.display()), path)
}

/// What to do, after the arguments have been checked.
enum Plan<'a> {
    Node(Ask),
    File(&'a Path),
    Difference(&'a Path, &'a Path),
}

impl Profile {
    /// Does what the arguments say.
    pub fn run(self) -> Result<Done, String> {
        let checked = self.check().map_err(|sentence| usage::after_a_flag::<Self>("profile", &sentence));
        let (plan, form) = checked?;
        let out = self.out.as_deref();
        match plan {
            Plan::Node(mut ask) => {
                ask.token = self.token_file.as_deref().map(token).transpose()?;
                node::capture(&ask, form, Output::open(out)?)
            }
            Plan::File(file) if self.classes => files::divide(file, self.json),
            Plan::File(file) => files::show(file, form, out),
            Plan::Difference(base, new) => files::difference(base, new, form, out),
        }
        .map(|()| Done::Yes)
    }

    fn check(&self) -> Result<(Plan<'_>, Form), String> {
        let form = self.out.as_deref().map_or(Ok(Form::Text), Form::of)?;
        let plan = match &self.of[..] {
            [url] if url.contains("://") => Plan::Node(self.ask(url, form)?),
            [file] => Plan::File(Path::new(file)),
            [base, new] => match [base, new].into_iter().find(|one| one.contains("://")) {
                Some(url) => return Err(format!("a difference needs two files, and {url} is a node")),
                None => Plan::Difference(Path::new(base), Path::new(new)),
            },
            _ => {
                let sentence = "a node or a file is missing, such as http://127.0.0.1:1337";
                return Err(usage::with::<Self>("profile", sentence));
            }
        };
        if self.classes && !matches!(plan, Plan::File(_)) {
            return Err("--classes is for one saved profile: say --out FILE.pb.gz first".to_owned());
        }
        if matches!(plan, Plan::Node(_)) {
            return Ok((plan, form));
        }
        let given = [
            (self.event.is_some(), "--event"),
            (self.seconds.is_some(), "--seconds"),
            (self.hz.is_some(), "--hz"),
            (self.heatmap, "--heatmap"),
            (self.force, "--force"),
            (self.token_file.is_some(), "--token-file"),
            (self.timeout.is_some(), "--timeout"),
        ];
        if let Some((_, flag)) = given.iter().find(|(given, _)| *given) {
            return Err(format!("{flag} is for a node, http://HOST:PORT, and not for a file"));
        }
        match (&plan, form) {
            (Plan::Difference(..), Form::Html | Form::Text) => Ok((plan, form)),
            (Plan::Difference(..), _) => {
                Err("the difference of two files is a page or a text: say --out FILE.html or FILE.txt".to_owned())
            }
            (Plan::File(_), _) if form != Form::PerfScript => Ok((plan, form)),
            _ => Err("a saved profile has no times of samples, which .perf needs: ask a node for it".to_owned()),
        }
    }

    fn ask(&self, url: &str, form: Form) -> Result<Ask, String> {
        let event = self.event.unwrap_or("cpu");
        let server = Server::of(url).map_err(|refusal| format!("{url} {refusal}"))?;
        if self.hz.is_some() && event != "cpu" {
            return Err(format!("--hz is for cpu, not for {event}"));
        }
        if self.heatmap && !["cpu", "allocs"].contains(&event) {
            return Err(format!("--heatmap is for cpu and allocs, not for {event}"));
        }
        if self.heatmap && form != Form::Html {
            return Err("a heatmap is a page: say --out FILE.html".to_owned());
        }
        let timed = self.heatmap || TIMED.contains(&event);
        let hz = self.hz.unwrap_or(if self.heatmap { HEATMAP_HZ } else { HZ });
        Ok(Ask {
            server,
            event,
            seconds: self.seconds.or(timed.then_some(SECONDS)),
            hz: (event == "cpu").then_some(hz),
            heatmap: self.heatmap,
            force: self.force,
            token: None,
            timeout: self.timeout.map_or(TIMEOUT, |span| span.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        profile: Profile,
    }

    fn parsed(arguments: &str) -> Result<Profile, String> {
        let words = std::iter::once("profile").chain(arguments.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.profile).map_err(|e| e.to_string())
    }

    fn path(arguments: &str) -> String {
        let profile = parsed(arguments).expect(arguments);
        match profile.check().expect(arguments) {
            (Plan::Node(ask), form) => ask.path(form),
            _ => panic!("{arguments}: not a node"),
        }
    }

    #[test]
    fn arguments_become_the_path_that_the_node_knows() {
        for (arguments, expected) in [
            ("http://h:1", "profile?format=text&seconds=30&hz=99"),
            ("http://h:1/ --seconds 5 --hz 9 --out a.html", "profile?format=html&seconds=5&hz=9"),
            ("http://h:1 --out x.y.pb.gz --force", "profile?format=pprof&seconds=30&hz=99&force=true"),
            ("http://h:1 --out a.svg --event heap", "heap?format=svg"),
            ("http://h:1 --out a.folded --event allocs --seconds 7", "allocs?format=folded&seconds=7"),
            ("http://h:1 --out a.perf --event offcpu", "offcpu?format=perfscript&seconds=30"),
            ("http://h:1 --out a.txt --event mutex", "mutex?format=text"),
            ("http://h:1 --event block", "block?format=text"),
            ("http://h:1 --event stalls", "stalls?format=text"),
            ("http://h:1 --heatmap --out a.html", "heatmap?event=cpu&seconds=30&hz=499"),
            ("http://h:1 --heatmap --hz 99 --out a.html --seconds 60", "heatmap?event=cpu&seconds=60&hz=99"),
            ("http://h:1 --heatmap --event allocs --out a.html", "heatmap?event=allocs&seconds=30"),
        ] {
            assert_eq!(path(arguments), format!("/debug/pprof/{expected}"), "{arguments}");
        }
        let file = parsed("a.pb.gz --classes --json").expect("a file");
        assert!(matches!(file.check(), Ok((Plan::File(_), _))) && file.classes && file.json);
        let files = parsed("a.pb.gz b.pb.gz --out d.html").expect("two files");
        assert!(matches!(files.check(), Ok((Plan::Difference(..), Form::Html))));
        for arguments in ["a.pb.gz b.pb.gz", "a.pb.gz b.pb.gz --out d.txt"] {
            let files = parsed(arguments).expect("two files");
            assert!(matches!(files.check(), Ok((Plan::Difference(..), Form::Text))), "{arguments}");
        }
        for ending in ["html", "svg", "folded", "txt", "pb.gz"] {
            let file = parsed(&format!("a.pb.gz --out b.{ending}")).expect("a file");
            assert!(matches!(file.check(), Ok((Plan::File(_), _))), "{ending}");
        }
    }

    #[test]
    fn what_does_not_fit_is_one_sentence() {
        for (arguments, word) in [
            ("", "is missing, such as http://"),
            ("http://h:1/debug", "without a path"),
            ("https://h:1", "such as http://"),
            ("http://", "such as http://"),
            ("http://h:1 --out a.pdf", ".html, .svg, .pb.gz, .folded, .txt or .perf"),
            ("http://h:1 --out a.pb", ".pb.gz"),
            ("http://h:1 --out a", ".pb.gz"),
            ("http://h:1 --event heap --hz 9", "--hz is for cpu"),
            ("http://h:1 --event heap --heatmap --out a.html", "--heatmap is for cpu and allocs"),
            ("http://h:1 --heatmap", "--out FILE.html"),
            ("http://h:1 --heatmap --out a.svg", "--out FILE.html"),
            ("http://h:1 b.pb.gz --out d.html", "http://h:1 is a node"),
            ("a.pb.gz b.pb.gz --out d.svg", "--out FILE.html"),
            ("a.pb.gz --out d.perf", "no times"),
            ("a.pb.gz --seconds 1", "--seconds"),
            ("a.pb.gz --event cpu", "--event"),
            ("a.pb.gz --heatmap --out a.html", "--heatmap"),
            ("a.pb.gz --force", "--force"),
            ("http://h:1 --classes", "--out FILE.pb.gz first"),
            ("a.pb.gz b.pb.gz --classes", "one saved profile"),
        ] {
            let sentence = parsed(arguments).expect(arguments).check().map(|_| ()).expect_err(arguments);
            assert!(sentence.contains(word) && !sentence.contains('\n'), "{arguments}: {sentence}");
        }
        for (arguments, word) in [
            ("http://h:1 --seconds 0", "1..=300"),
            ("http://h:1 --seconds 301", "1..=300"),
            ("http://h:1 --hz 1000", "1..=999"),
            ("http://h:1 --event nonsense", "cpu, allocs, heap, mutex, block, offcpu, stalls"),
            ("a b c", "'c'"),
            ("a.pb.gz --json", "--classes"),
            ("a.pb.gz --classes --out a.txt", "cannot be used with"),
        ] {
            let text = parsed(arguments).map(|_| ()).expect_err(arguments);
            assert!(text.contains(word), "{arguments}: {text}");
        }
    }
}
