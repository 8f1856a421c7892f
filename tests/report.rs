//! SPEC.md section 7, `scripts/report.sh`: one command leaves a whole report, and where it cannot,
//! one sentence and nothing else.
//!
//! The load is `koltso bench` at a small rate for a few seconds: what is tested is that everything
//! is there and belongs together, not the numbers. Skipped where a tool that the script needs is
//! missing.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use koltso_testkit::eventually;
use koltso_testkit::process::send_signal;
use koltso_testkit::server::free_port;
use koltso_testkit::skip::{Remedy, skip, tool, which};
use serde_json::Value;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_koltso");

/// What the script needs, with the Debian packages that have it.
const TOOLS: [(&str, &str); 8] = [
    ("bash", "bash"),
    ("awk", "mawk"),
    ("python3", "python3"),
    ("ss", "iproute2"),
    ("taskset", "util-linux"),
    ("timeout", "coreutils"),
    ("dirname", "coreutils"),
    ("getconf", "libc-bin"),
];
const TWO_PROCESSORS: Remedy = Remedy::Machine("two processors");
/// A run of 5 s, its captures and their formats, on a machine that does other things.
const WITHIN: Duration = Duration::from_secs(180);

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether the script can run here; else it is recorded why not.
fn can_run() -> bool {
    let all_tools = TOOLS.into_iter().filter(|(name, package)| tool(name, package).is_none()).count() == 0;
    let processors = std::thread::available_parallelism().unwrap().get();
    if processors < 2 {
        skip(format!("scripts/report.sh measures with two processors, and here is {processors}"), TWO_PROCESSORS);
    }
    all_tools && processors >= 2
}

/// The script with its folders: where the report goes, and where the data are meanwhile.
struct Script {
    folder: TempDir,
    path: Option<PathBuf>,
}

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Script {
    fn new() -> Script {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        Script { folder, path: None }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("profiles")
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let file = |name| File::create(self.folder.path().join(name)).unwrap();
        let mut command = Command::new(which("bash").unwrap());
        command.arg(repository().join("scripts/report.sh")).arg("--koltso").arg(BINARY);
        command.arg("--out").arg(self.out()).arg("--folder").arg(self.folder.path().join("data"));
        command.args(arguments).stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        command.spawn().unwrap()
    }

    fn said(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    #[track_caller]
    fn finish(&self, mut child: Child) -> Ended {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > WITHIN {
                terminate(&child);
                panic!("not within {WITHIN:?}; it said: {}", self.said("stderr"));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        Ended { code: status.code(), stdout: self.said("stdout"), stderr: self.said("stderr") }
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.finish(self.start(arguments))
    }

    /// Neither a report nor data.
    #[track_caller]
    fn assert_nothing_left(&self, what: &str) {
        assert!(!self.out().exists(), "{what}: {:?} is there", self.out());
        let data: Vec<_> = fs::read_dir(self.folder.path().join("data")).unwrap().collect();
        assert!(data.is_empty(), "{what}: {data:?} is left");
    }
}

/// It ends what it started.
fn terminate(child: &Child) {
    send_signal(child.id(), libc::SIGTERM);
}

fn small<'a>(port: &'a str, runs: &'a str) -> Vec<&'a str> {
    let text = "--tool koltso --duration 5s --rate 500 --connections 8 --threads 2 --keys 1000 --tag test";
    let mut arguments: Vec<&str> = text.split(' ').collect();
    arguments.extend(["--port", port, "--runs", runs]);
    arguments
}

/// The first of three ports in a row that are free, with their replica ports, and that no other
/// test is given.
fn three_ports() -> String {
    static CLAIM: Mutex<()> = Mutex::new(());
    let _claim = CLAIM.lock().unwrap_or_else(PoisonError::into_inner);
    let mut row = vec![free_port()];
    while row.len() < 3 {
        let port = free_port();
        if row.last().is_some_and(|last| last + 1 != port) {
            row.clear();
        }
        row.push(port);
    }
    row[0].to_string()
}

/// Every link and picture of a markdown file that does not lead to another host is there.
#[track_caller]
fn assert_links(file: &Path) -> usize {
    let text = fs::read_to_string(file).unwrap();
    let targets = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    let mut count = 0;
    for target in targets.filter(|target| !target.contains("://")) {
        assert!(file.parent().unwrap().join(target).exists(), "{}: {target} is not there", file.display());
        count += 1;
    }
    count
}

#[track_caller]
fn number(document: &Value, path: &str) -> f64 {
    document.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {document:#}"))
}

/// The figures of the captures are those that the profiles beside them have.
#[track_caller]
fn assert_divided(folder: &Path, document: &Value) {
    let classes = document["classes"]["percent"].as_object().unwrap_or_else(|| panic!("no classes in {document:#}"));
    let sum: f64 = classes.values().map(|share| share.as_f64().unwrap()).sum();
    assert!((99.0..=101.0).contains(&sum), "{classes:?}");
    for (kind, unit) in [("cpu", "nanoseconds"), ("alloc", "bytes"), ("lock", "nanoseconds"), ("offcpu", "nanoseconds")]
    {
        let file = folder.join(format!("{kind}.pb.gz"));
        let top = &document["top"][kind];
        if !file.exists() {
            assert!(top.is_null(), "{kind} was not captured: {top:#}");
            continue;
        }
        let output = Command::new(BINARY).arg("profile").arg(&file).args(["--classes", "--json"]).output().unwrap();
        let divided: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&top["unit"], &top["total"]), (&Value::from(unit), &divided["top"]["total"]), "{kind}");
        let rows = top["rows"].as_array().unwrap();
        assert_eq!(rows[..], divided["top"]["rows"].as_array().unwrap()[..rows.len()], "{kind}");
        if kind == "cpu" {
            assert_eq!(document["classes"]["total"], divided["total"]);
            let storage = &divided["classes"]["storage"];
            let share = 100.0 * (number(storage, "/user") + number(storage, "/kernel")) / number(&divided, "/total");
            assert!((classes["storage"].as_f64().unwrap() - share).abs() < 0.01, "{classes:?}");
        }
    }
}

/// The text, the figures and the files of one run.
#[track_caller]
fn assert_run(folder: &Path, run: &str) {
    let document: Value = serde_json::from_slice(&fs::read(folder.join("run.json")).unwrap()).unwrap();
    let name = folder.file_name().unwrap().to_str().unwrap();
    assert_eq!((&document["run"], &document["name"]), (&Value::from(run), &Value::from(name)));

    // The load is that of the tool's own output, and the machine bears 500 requests a second.
    let load = fs::read_to_string(folder.join("load.txt")).unwrap();
    let requests = number(&document, "/load/requests");
    assert!(load.contains(&format!("  {requests} requests in ")), "{load}");
    assert!((1500.0..=2600.0).contains(&requests), "{requests} requests of 2500");
    assert_eq!(number(&document, "/load/non_2xx"), 0.0);
    let percentiles = ["50", "75", "90", "99", "99.9"].map(|p| document["load"]["percentiles"][p].as_f64().unwrap());
    assert!(percentiles.is_sorted() && percentiles[0] > 0.0, "{percentiles:?}");
    assert!(number(&document, "/load/max") >= percentiles[3], "{document:#}");
    // The node's own count of what it answered while it was captured: the rate, for the seconds of
    // the capture.
    let (window, seconds) = (number(&document, "/window/requests"), number(&document, "/window/seconds"));
    assert!(window > 0.0 && window <= 500.0 * (seconds + 1.5), "{window} requests in {seconds} s");
    assert!(number(&document, "/cpu/user_us") + number(&document, "/cpu/system_us") > 0.0);

    // What is not there is explained, in the text, too.
    let text = fs::read_to_string(folder.join("README.md")).unwrap();
    let captures = document["captures"].as_object().unwrap();
    for (kind, suffixes) in [
        ("cpu", &["html", "svg", "pb.gz"][..]),
        ("alloc", &["html", "svg", "pb.gz"]),
        ("lock", &["html", "svg", "pb.gz"]),
        ("offcpu", &["html", "svg", "pb.gz"]),
        ("heap", &["pb.gz"]),
        ("stalls", &["txt"]),
    ] {
        for suffix in suffixes {
            let file = format!("{kind}.{suffix}");
            let bytes = fs::read(folder.join(&file)).unwrap_or_default();
            if let Some(reason) = captures[kind]["missing"][&file].as_str() {
                assert!(bytes.is_empty() && text.contains(reason) && !reason.trim().is_empty(), "{file}: {reason:?}");
                continue;
            }
            let begins: &[u8] = match *suffix {
                "pb.gz" => b"\x1f\x8b",
                "html" => b"<!doctype html>",
                "svg" => b"<?xml",
                _ => b"",
            };
            assert!(bytes.starts_with(begins) && folder.join(&file).exists(), "{file} is not what it says");
        }
    }
    for always in ["cpu.pb.gz", "heap.pb.gz", "machine.txt"] {
        assert!(folder.join(always).exists(), "{always} is missing");
    }
    assert_divided(folder, &document);

    // Exactly what it lists, and nothing that was only needed to make it.
    let listed: Vec<&str> = document["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    let mut there: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    there.retain(|file| file != "README.md");
    there.sort();
    assert_eq!(there, listed);
    assert!(assert_links(&folder.join("README.md")) >= listed.len());
}

#[test]
fn a_report_has_a_folder_a_run_and_a_page_over_all_of_them() {
    if !can_run() {
        return;
    }
    let script = Script::new();
    let runs = ["put", "get-ack2from3"];
    let ended = script.run(&small(&three_ports(), &runs.join(",")));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
    for line in ended.stderr.lines() {
        assert!(line.starts_with('[') && line.contains(" s] "), "no progress: {line}");
    }

    let out = script.out();
    let mut names: Vec<String> =
        fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names.len(), 4, "{names:?}");
    assert_eq!(names[2..], ["CONCLUSIONS.md", "README.md"]);
    for (name, run) in names.iter().zip(runs) {
        let (moment, rest) = name.split_at("2026-01-31-23-59-59".len());
        let digits = moment.split('-').all(|part| part.parse::<u32>().is_ok());
        assert!(digits && moment.matches('-').count() == 5, "{name}");
        assert_eq!(rest, format!("_test_{run}_t2_c8_R500_d5s"));
        assert_run(&out.join(name), run);
    }
    let page = fs::read_to_string(out.join("README.md")).unwrap();
    for text in ["PUT, one copy", "GET, ack=2 of from=3", "| Java | 3 128 | 25.36 s |", "What follows from it"] {
        assert!(page.contains(text), "no {text:?} in\n{page}");
    }
    assert!(assert_links(&out.join("README.md")) >= 3);
    assert_captions(&page);
    assert_captions(&fs::read_to_string(out.join(&names[0]).join("README.md")).unwrap());
    // What follows comes first, from the numbers and then from people.
    let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("no {text:?} in\n{page}"));
    let parts = [
        "## What follows from it",
        "- **PUT, one copy**: ",
        "- **GET, ack=2 of from=3**: ",
        "CONCLUSIONS.md",
        "## The runs of",
    ];
    assert!(parts.map(at).is_sorted() && at("## ") == at(parts[0]), "{page}");
    let data: Vec<_> = fs::read_dir(script.folder.path().join("data")).unwrap().collect();
    assert!(data.is_empty(), "{data:?}");

    // What people conclude is shown, and stays theirs.
    fs::write(out.join("CONCLUSIONS.md"), "Seven is enough.\n").unwrap();
    let again = Command::new("python3").arg(repository().join("scripts/report.py")).arg("summary").arg(&out).output();
    assert!(again.unwrap().status.success());
    assert_eq!(fs::read_to_string(out.join("CONCLUSIONS.md")).unwrap(), "Seven is enough.\n");
    let shown = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(shown.contains("Seven is enough.") && shown.contains("GET, ack=2 of from=3"), "{shown}");
}

/// Each table has a line above it that says what it shows.
#[track_caller]
fn assert_captions(page: &str) {
    let lines: Vec<&str> = page.lines().collect();
    let tables: Vec<usize> =
        (1..lines.len()).filter(|&at| lines[at].starts_with('|') && !lines[at - 1].starts_with('|')).collect();
    assert!(tables.len() >= 3, "{page}");
    for at in tables {
        let caption = lines[at.saturating_sub(2)];
        let is_caption = caption.len() > 10 && caption.starts_with('*') && caption.ends_with('*');
        assert!(is_caption && lines[at - 1].is_empty(), "no caption above {}", lines[at]);
    }
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_any_load() {
    if !can_run() {
        return;
    }
    for out in ["/proc/x", "/dev/null", "/dev/null/x"] {
        let script = Script::new();
        let begun = Instant::now();
        let ended = script.run(&["--tool", "koltso", "--out", out]);
        assert_eq!(ended.code, Some(2), "{out}: {}", ended.stderr);
        assert!(ended.stderr.lines().count() == 1 && ended.stderr.contains(out), "{out}: {}", ended.stderr);
        assert!(!ended.stderr.contains("starting"), "{out}: {}", ended.stderr);
        script.assert_nothing_left(out);
        println!("{out}: refused after {:?}: {}", begun.elapsed(), ended.stderr.trim());
    }
}

#[test]
fn what_is_wrong_is_one_sentence_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let busy: u16 = three_ports().parse().unwrap();
    let _taken = TcpListener::bind(("127.0.0.1", busy + 1)).unwrap();
    let other: u16 = three_ports().parse().unwrap();
    let _replica_taken = TcpListener::bind(("127.0.0.1", other + 10_002)).unwrap();
    let (first, second) = (busy.to_string(), other.to_string());
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = file.path().to_str().unwrap();
    // What is written at the end cannot be: a folder has its name.
    let odd = tempfile::tempdir().unwrap();
    fs::create_dir(odd.path().join("README.md")).unwrap();
    let odd = odd.path().to_str().unwrap();
    for (arguments, word) in [
        (&["--tool", "ab"][..], "wrk2 or koltso"),
        (&["--runs", "put,post"], "'post'"),
        (&["--runs", "put-ack3from2"], "put-ack3from2"),
        (&["--runs", ""], "--runs"),
        (&["--duration", "soon"], "'soon'"),
        (&["--duration", "3s"], "4s"),
        (&["--rate", "0"], "--rate"),
        (&["--keys", "many"], "'many'"),
        (&["--threads", "9"], "--threads 9"),
        (&["--sync", "never"], "'never'"),
        (&["--tag", "a_b"], "'a_b'"),
        (&["--port", "60000"], "--port"),
        (&["--port", &first], "cannot be used"),
        (&["--port", &second], "cannot be used"),
        (&["--out", file], "--out"),
        (&["--out", &format!("{file}/below")], "--out"),
        (&["--out", "/proc/x"], "--out"),
        (&["--out", "/sys/kernel/x"], "--out"),
        (&["--out", odd], "--out"),
        (&["--keys", "99999999", "--size", "99999999"], "--folder"),
        (&["--koltso", "/nonexistent"], "/nonexistent"),
        (&["--folder", "/nonexistent"], "/nonexistent"),
        (&["--nodes", "3"], "--nodes"),
        (&["--tag"], "--tag needs a value"),
    ] {
        let script = Script::new();
        let mut all = vec!["--tool", "koltso", "--duration", "5s", "--connections", "8"];
        all.extend(arguments);
        let ended = script.run(&all);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.lines().count() == 1 && ended.stderr.contains(word), "{arguments:?}: {}", ended.stderr);
        script.assert_nothing_left(word);
    }
}

#[test]
fn a_tool_that_is_missing_is_named() {
    if !can_run() {
        return;
    }
    for (missing, package) in [("python3", "python3"), ("ss", "iproute2"), ("taskset", "util-linux"), ("wrk2", "wrk2")]
    {
        let mut script = Script::new();
        let path = script.folder.path().join("path");
        fs::create_dir(&path).unwrap();
        for tool in TOOLS.into_iter().map(|(tool, _)| tool).filter(|&tool| tool != missing) {
            symlink(which(tool).unwrap(), path.join(tool)).unwrap();
        }
        script.path = Some(path);
        let tool = if missing == "wrk2" { "wrk2" } else { "koltso" };
        let ended = script.run(&["--tool", tool, "--duration", "15s"]);
        assert_eq!(ended.code, Some(2), "{missing}: {}", ended.stderr);
        let named = format!("{missing} ({package}");
        assert!(ended.stderr.lines().count() == 1 && ended.stderr.contains(&named), "{missing}: {}", ended.stderr);
        script.assert_nothing_left(missing);
    }
}

#[test]
fn an_interrupted_report_leaves_neither_processes_nor_half_a_folder() {
    if !can_run() {
        return;
    }
    let script = Script::new();
    let port = three_ports();
    let mut child = script.start(&small(&port, "put"));
    eventually("the load runs", Duration::from_secs(60), || {
        assert!(child.try_wait().unwrap().is_none(), "it ended: {}", script.said("stderr"));
        script.said("stderr").contains("captures from second")
    });
    terminate(&child);
    let ended = script.finish(child);
    assert_eq!(ended.code, Some(143), "{}", ended.stderr);
    script.assert_nothing_left("an interrupted report");
    let port: u16 = port.parse().unwrap();
    // Connections that were closed a moment ago do not count: a listener with the usual option
    // binds beside them.
    assert!((port..port + 3).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()), "a node is left");
}
