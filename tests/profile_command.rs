//! `koltso profile`: captures of a real node and files that were saved, by the real command.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use koltso_testkit::process::send_signal;
use koltso_testkit::server::free_port;
use koltso_testkit::{Launch, Server, eventually, files, skip};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_koltso");

/// A capture of a second, with its symbols, on a machine that is busy.
const WITHIN: Duration = Duration::from_secs(90);

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("profile").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to the end, within a bound.
#[track_caller]
fn run(args: &[&str]) -> Output {
    let mut child = command(args).spawn().unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let status = wait(&mut child, &format!("koltso profile {args:?}"));
    Output { status, stdout: out.join().unwrap(), stderr: errors.join().unwrap() }
}

#[track_caller]
fn wait(child: &mut Child, what: &str) -> std::process::ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > WITHIN {
            let _ = child.kill();
            panic!("not within {WITHIN:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Exit code 0; the one line on standard error.
#[track_caller]
fn done(args: &[&str]) -> (String, Vec<u8>) {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    assert!(stderr.lines().count() <= 1 && !stderr.contains(['\r', '\x1b']), "{args:?}: {stderr:?}");
    (stderr.trim_end().to_owned(), output.stdout)
}

/// Exit code 2 and one sentence, which has these words.
#[track_caller]
fn refused(args: &[&str], words: &[&str]) {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert!(stderr.starts_with("koltso: ") && stderr.ends_with('\n'), "{args:?}: {stderr:?}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr:?}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: {word} is not in {stderr:?}");
    }
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Whether the node's index page names these captures as running.
fn runs(server: &Server, captures: &str) -> bool {
    let page = server.ask("GET", "/debug/pprof/").expect(200, "the index").text();
    page.contains(&format!("<h2>Running now</h2>\n<p>{captures}</p>"))
}

#[test]
fn each_ending_is_a_form() {
    let (server, folder) = (Server::fresh("--threads 1"), Folder::new());
    let url = server.url();
    let capture = |name: &str, more: &[&str]| {
        let path = folder.file(name);
        let (line, stdout) = done(&[&[&*url, "--seconds", "1", "--out", &path], more].concat());
        assert!(stdout.is_empty());
        assert!(line.starts_with(&format!("{path}: ")), "{line}");
        assert!(line.contains(" samples, capture "), "{line}");
        path
    };
    let page = text(&capture("cpu.html", &[]));
    assert!(page.starts_with("<!doctype html>") && page.contains("\"kind\":\"flame\""));
    assert!(text(&capture("heat.html", &["--heatmap"])).contains("\"kind\":\"heat\""));
    assert!(text(&capture("cpu.svg", &["--hz", "499"])).contains("<svg"));
    let folded = text(&capture("cpu.folded", &["--event", "allocs"]));
    assert!(folded.lines().all(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().is_ok()), "{folded}");
    assert!(text(&capture("cpu.txt", &[])).starts_with("cpu over 1."));
    capture("cpu.perf", &["--hz", "499"]);
    let proto = std::fs::read(capture("cpu.pb.gz", &[])).unwrap();
    assert_eq!(&proto[..2], b"\x1f\x8b");
    let mut names = folder.names();
    names.sort();
    let expected = ["cpu.folded", "cpu.html", "cpu.pb.gz", "cpu.perf", "cpu.svg", "cpu.txt", "heat.html"];
    assert_eq!(names, expected, "nothing temporary is left");

    // What is counted all the time takes no time.
    let begun = Instant::now();
    let (line, stdout) = done(&[&url, "--event", "heap"]);
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert!(line.starts_with("standard output: ") && line.contains("capture "), "{line}");
    let top = String::from_utf8(stdout).unwrap();
    assert!(top.starts_with("heap, ") && top.contains("inuse_space in bytes"), "{top}");
}

#[test]
fn saved_profiles_are_shown_and_compared() {
    let (server, folder) = (Server::fresh("--threads 1"), Folder::new());
    let url = server.url();
    let mut client = server.connect();
    let (base, new) = (folder.file("base.pb.gz"), folder.file("new.pb.gz"));
    done(&[&url, "--event", "allocs", "--out", &base]);
    // Large bodies: each is a sample for sure.
    for turn in 0..20 {
        client.store(format!("large-{turn}"), vec![1; 4 << 20]);
    }
    done(&[&url, "--event", "allocs", "--out", &new]);
    drop(server);

    // No node is asked.
    for (name, word) in
        [("a.html", "\"kind\":\"flame\""), ("a.svg", "<svg"), ("a.folded", "body::"), ("a.txt", "alloc_space in bytes")]
    {
        let path = folder.file(name);
        let (line, _) = done(&[&new, "--out", &path]);
        assert!(line.starts_with(&format!("{path}: ")) && line.contains("samples"), "{line}");
        assert!(text(&path).contains(word), "{name}");
    }
    let html = text(&folder.file("a.html"));
    assert!(html.contains("<title>new.pb.gz: allocs"), "{}", &html[..600]);
    let (line, top) = done(&[&new]);
    let top = String::from_utf8(top).unwrap();
    assert!(line.is_empty() && top.starts_with("allocs, ") && top.contains("sampling allocator"), "{line} {top}");

    let diff = folder.file("diff.html");
    done(&[&base, &new, "--out", &diff]);
    let html = text(&diff);
    assert!(html.contains("\"kind\":\"diff\"") && html.contains("<title>allocs: new.pb.gz against base.pb.gz"));
    let data = html.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    let sides = data["sides"].as_array().unwrap();
    assert_eq!(sides.len(), 2);
    assert!(sides.iter().all(|side| side["began"].as_u64().is_some_and(|began| began > 1_600_000_000_000)));
    assert!(sides[0]["rows"].as_str() != sides[1]["rows"].as_str(), "both captures are in it");
    assert!(data["frames"].to_string().contains("body::"));

    // Without a file, and into one of text: what grew and what shrank.
    let (line, text) = done(&[&base, &new]);
    let shown = String::from_utf8(text).unwrap();
    assert!(
        line.is_empty() && shown.starts_with("allocs: new.pb.gz against base.pb.gz\nbase  allocs"),
        "{line} {shown}"
    );
    assert!(shown.contains("what grew") && shown.lines().any(|line| line.contains("body::")), "{shown}");
    let file = folder.file("diff.txt");
    done(&[&base, &new, "--out", &file]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), shown);
    let (_, same) = done(&[&new, &new]);
    assert!(String::from_utf8(same).unwrap().contains("No function grew."));
    refused(&[&base, &new, "--out", &folder.file("diff.svg")], &["--out FILE.html or FILE.txt"]);

    // Once more through the format: the same.
    let again = folder.file("again.pb.gz");
    done(&[&new, "--out", &again]);
    assert_eq!(done(&[&again]).1, done(&[&new]).1);
}

/// A load of PUTs and its captures: CPU is HTTP's, the storage's and the cores', and JSON says the
/// same as the text.
#[test]
fn saved_profiles_are_divided_by_class() {
    let (server, folder) = (Server::fresh("--threads 1"), Folder::new());
    let (url, cpu, allocs) = (server.url(), folder.file("cpu.pb.gz"), folder.file("allocs.pb.gz"));
    let mut capture = command(&[&url, "--seconds", "2", "--hz", "499", "--out", &cpu]).spawn().unwrap();
    let mut client = server.connect();
    let mut turn = 0;
    // 20 MB at least: tens of samples of allocations.
    while turn < 200 || capture.try_wait().unwrap().is_none() {
        client.store(format!("key-{turn}"), vec![1; 100_000]);
        turn += 1;
    }
    assert!(capture.wait().unwrap().success());
    done(&[&url, "--event", "allocs", "--out", &allocs]);
    drop(server);

    let document = |file: &str| -> serde_json::Value {
        let (line, json) = done(&[file, "--classes", "--json"]);
        assert!(line.is_empty(), "{line}");
        serde_json::from_slice(&json).unwrap()
    };
    let of_cpu = document(&cpu);
    let value = |document: &serde_json::Value, class: &str| {
        let share = &document["classes"][class];
        share["user"].as_i64().unwrap() + share["kernel"].as_i64().unwrap()
    };
    let classes: Vec<String> = of_cpu["classes"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(classes, ["HTTP", "exchange", "coordinator", "storage", "receive", "turn", "profiler", "other"]);
    let sum: i64 = classes.iter().map(|class| value(&of_cpu, class)).sum();
    assert!(sum > 0 && Some(sum) == of_cpu["total"].as_i64(), "{of_cpu:#}");
    assert!(value(&of_cpu, "storage") > 0 && value(&of_cpu, "HTTP") > 0, "{of_cpu:#}");
    assert_eq!((&of_cpu["event"], &of_cpu["unit"]), (&"cpu".into(), &"nanoseconds".into()));
    assert!(of_cpu["engine"].as_str().is_some_and(|said| !said.is_empty()));
    assert!(of_cpu["accounted_ns"].as_u64().unwrap() > 0);
    let rooted = of_cpu["rooted"]["value"].as_i64().unwrap();
    assert!((1..=sum).contains(&rooted), "some stacks are whole: {of_cpu:#}");
    let rows = of_cpu["top"]["rows"].as_array().unwrap();
    assert!(rows.iter().map(|row| row[1].as_i64().unwrap()).is_sorted_by(|a, b| a >= b), "{rows:?}");

    let of_allocs = document(&allocs);
    assert_eq!(of_allocs["unit"], "bytes");
    let bytes: i64 = classes.iter().map(|class| value(&of_allocs, class)).sum();
    assert!(bytes >= 10_000_000 && Some(bytes) == of_allocs["total"].as_i64(), "{of_allocs:#}");
    assert!(of_allocs["top"]["rows"][0][0].as_str().unwrap().contains("koltso"), "{of_allocs:#}");

    let (line, shown) = done(&[&cpu, "--classes"]);
    let shown = String::from_utf8(shown).unwrap();
    assert!(line.is_empty() && shown.starts_with("cpu over "), "{line} {shown}");
    let of_text: f64 = shown
        .lines()
        .find_map(|line| line.split_once("  storage ")?.0.split_whitespace().nth(2)?.parse().ok())
        .unwrap_or_else(|| panic!("no share of the storage in\n{shown}"));
    let of_json = 100.0 * value(&of_cpu, "storage") as f64 / sum as f64;
    assert!((of_text - of_json).abs() < 0.06, "{of_text} and {of_json}");

    refused(&[&url, "--classes"], &["--classes is for one saved profile"]);
    refused(&[&cpu, "--json"], &["required arguments", "--help"]);
}

#[test]
fn what_is_no_profile_is_one_sentence() {
    let folder = Folder::new();
    let (lines, out) = (folder.file("lines.pb.gz"), folder.file("out.html"));
    std::fs::write(&lines, "main;work 17\n").unwrap();
    refused(&[&lines, "--out", &out], &["lines.pb.gz", "no profile.proto"]);
    std::fs::write(&lines, b"\x1f\x8b\x08\x00broken").unwrap();
    refused(&[&lines, "--out", &out], &["lines.pb.gz", "gzip"]);
    refused(&["127.0.0.1:1337"], &["no file 127.0.0.1:1337", "http://HOST:PORT"]);
    refused(&[folder.0.path().to_str().unwrap()], &["cannot be read"]);
    let go = [concat!(env!("CARGO_MANIFEST_DIR"), "/crates/profiling/tests/data/"), "go-"].concat();
    let (cpu, heap) = (format!("{go}cpu.pb.gz"), format!("{go}heap.pb.gz"));
    refused(&[&cpu, &heap, "--out", &out], &["nothing to compare", "samples, cpu", "inuse_space"]);
    refused(&[&cpu, "--out", &folder.file("none/out.html")], &["cannot be written", "No such file"]);
    assert_eq!(folder.names(), ["lines.pb.gz"], "no output");
    let (_, top) = done(&[&cpu]);
    assert!(String::from_utf8(top).unwrap().contains("main.spin"), "a file of Go");
}

#[test]
fn ctrl_c_ends_the_capture_at_the_node() {
    let (server, folder) = (Server::fresh("--threads 1"), Folder::new());
    let path = folder.file("cpu.html");
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let mut child = command(&[&server.url(), "--seconds", "120", "--out", &path]).spawn().unwrap();
        eventually("it runs", WITHIN, || runs(&server, "cpu"));
        assert_eq!(folder.names().len(), 1, "a temporary file: {:?}", folder.names());
        send_signal(child.id(), signal);
        assert_eq!(wait(&mut child, "the end by a signal").code(), Some(code));
        eventually("none runs", Duration::from_secs(10), || runs(&server, "none"));
        assert!(folder.names().is_empty(), "{:?}", folder.names());
    }
}

#[test]
fn what_the_node_refuses_is_said_in_its_words() {
    let (server, folder) = (Server::fresh("--threads 1"), Folder::new());
    let url = server.url();
    let out = folder.file("x.html");
    refused(&[&url, "--event", "offcpu", "--seconds", "61", "--out", &out], &["seconds", "1 to 60", "`61`"]);
    let busy: Vec<Child> = (0..2).map(|_| command(&[&url, "--seconds", "100"]).spawn().unwrap()).collect();
    eventually("two run", WITHIN, || runs(&server, "cpu, cpu"));
    refused(&[&url, "--seconds", "1", "--out", &out], &["koltso: Two captures of this kind run already"]);
    done(&[&url, "--seconds", "1", "--out", &out, "--force"]);
    for mut child in busy {
        let _ = child.kill();
        child.wait().unwrap();
    }
    eventually("none runs", Duration::from_secs(10), || runs(&server, "none"));
    assert_eq!(folder.names(), ["x.html"]);
}

#[test]
fn a_token_is_sent() {
    let folder = Folder::new();
    let (token, wrong, data) = (folder.file("token"), folder.file("wrong"), folder.file("data"));
    files::write_secret(Path::new(&token), "let-me-in-at-once\n");
    files::write_secret(Path::new(&wrong), "let-me-out\n");
    let flags = format!("--threads 1 --admin-token-file {token}");
    let server = Launch::on(Path::new(&data)).host("0.0.0.0").flags(&flags).start();
    let url = format!("http://127.0.0.1:{}", server.port());
    refused(&[&url, "--event", "heap"], &["needs the token"]);
    refused(&[&url, "--event", "heap", "--token-file", &wrong], &["The token is not the one"]);
    refused(&[&url, "--token-file", &folder.file("none")], &["--token-file", "none"]);
    done(&[&url, "--event", "heap", "--token-file", &token]);
}

/// A listener that does something with the first connection, on a thread of its own.
fn listener(serve: impl FnOnce(std::net::TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        if let Ok((socket, _)) = listener.accept() {
            serve(socket);
        }
    });
    url
}

/// Reads a request's head.
fn head(socket: &mut std::net::TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
}

fn answering(answer: &'static [u8]) -> String {
    listener(move |mut socket| {
        head(&mut socket);
        let _ = socket.write_all(answer);
    })
}

#[test]
fn listeners_that_are_no_node_are_found_out() {
    let folder = Folder::new();
    let out = folder.file("x.pb.gz");
    let nobody = format!("http://127.0.0.1:{}", free_port());
    refused(&[&nobody, "--out", &out], &["cannot connect to", &nobody, "nobody listens"]);
    let silent = listener(|mut socket| {
        head(&mut socket);
        // Until the other side has had enough.
        let _ = socket.read(&mut [0]);
    });
    let begun = Instant::now();
    refused(&[&silent, "--event", "heap", "--timeout", "1s", "--out", &out], &[&silent, "did not answer in time"]);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // A byte now and then is no answer either.
    let dribbling = listener(|mut socket| {
        head(&mut socket);
        for byte in b"HTTP/1.1 200 OK\r\nServer: slow".iter().cycle() {
            std::thread::sleep(Duration::from_millis(100));
            if socket.write_all(&[*byte]).is_err() {
                return;
            }
        }
    });
    let begun = Instant::now();
    refused(&[&dribbling, "--event", "heap", "--timeout", "2s", "--out", &out], &["did not answer in time"]);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // It stays open, so that nothing but the first bytes tells.
    let garbage = listener(|mut socket| {
        let _ = socket.write_all(b"SSH-2.0-OpenSSH_9.2");
        let _ = socket.read_to_end(&mut Vec::new());
    });
    refused(&[&garbage, "--out", &out], &[&garbage, "did not answer in HTTP"]);
    let gone = listener(|mut socket| head(&mut socket));
    refused(&[&gone, "--out", &out], &[&gone, "closed the connection before it answered"]);
    for (answer, words) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"[..], &["broke off", "after 4 bytes"][..]),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf", &["broke off"]),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\n", &["broke off"]),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>", &["with a page and not with a profile"]),
        (b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n<html>", &["404", "is this a node of Koltso?"]),
        (b"HTTP/1.1 500 Oh\r\nContent-Type: text/plain\r\n\r\nIt broke.\n", &["answered 500: It broke."]),
        (b"HTTP/1.1 501 No\r\nContent-Type: text/plain\r\n\r\nIt needs CAP_X.\nMore", &["koltso: It needs CAP_X."]),
        (b"HTTP/1.1 banana\r\n\r\n", &["did not answer in HTTP"]),
        (b"HTTP/1.1 200 OK\r\nno header", &["closed the connection"]),
    ] {
        refused(&[&answering(answer), "--out", &out], words);
        assert!(folder.names().is_empty(), "{words:?}: {:?}", folder.names());
    }
    // Chunks of a body that is whole.
    let chunks =
        answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n1;x=y\r\n!\r\n0\r\n\r\n");
    let (line, stdout) = done(&[&chunks, "--event", "heap"]);
    assert_eq!((line.as_str(), &*stdout), ("standard output: 6 bytes", &b"whole!"[..]));
}

#[test]
fn an_output_that_cannot_be_is_said_before_anything_is_asked() {
    let folder = Folder::new();
    // Nobody listens there: who asks gets another sentence.
    let nobody = format!("http://127.0.0.1:{}", free_port());
    refused(&[&nobody, "--out", &folder.file("none/x.html")], &["--out", "cannot be written", "No such file"]);
    let taken = folder.file("x.html");
    std::fs::create_dir(&taken).unwrap();
    refused(&[&nobody, "--out", &taken], &["is a folder"]);
    refused(&[&nobody, "--out", &folder.file("x.pdf")], &[".html, .svg, .pb.gz, .folded, .txt or .perf"]);
    refused(&["http://127.0.0.1:1/debug/pprof"], &["without a path"]);
    refused(&[&nobody, "--event", "nonsense"], &["nonsense", "cpu, allocs, heap"]);
    refused(&[&nobody, "--seconds", "301"], &["1..=300"]);
    refused(&[], &["a node or a file is missing"]);
    refused(&["/proc/self/mem", "--out", &folder.file("x.svg")], &["/proc/self/mem cannot be read"]);
    assert_eq!(folder.names(), ["x.html"]);
}

/// Runs the command below a terminal of its own, by `script` of bsdutils; what the terminal got.
fn in_a_terminal(args: &[&str]) -> Option<String> {
    let line: Vec<String> = [BINARY, "profile"].iter().chain(args).map(|word| format!("'{word}'")).collect();
    let mut command = Command::new("script");
    command.args(["-qec", &line.join(" "), "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::piped());
    skip::tool("script", "bsdutils")?;
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let status = wait(&mut child, "script");
    let shown = String::from_utf8(reader.join().unwrap()).unwrap();
    assert_eq!(status.code(), Some(0), "{shown}");
    Some(shown)
}

#[test]
fn a_terminal_shows_the_seconds_go_by() {
    let (server, folder) = (Server::fresh("--threads 1"), Folder::new());
    let (url, path) = (server.url(), folder.file("cpu.html"));
    let Some(shown) = in_a_terminal(&[&url, "--seconds", "2", "--out", &path]) else { return };
    for line in [
        format!("\r\x1b[Kcapturing cpu of {url}: 0 of 2 s"),
        format!("\r\x1b[Kcapturing cpu of {url}: 1 of 2 s"),
        format!("\r\x1b[K{path}: "),
    ] {
        assert!(shown.contains(&line), "{line:?} is not in {shown:?}");
    }
    let last = shown.trim_end().rsplit("\r\x1b[K").next().unwrap();
    assert!(last.starts_with(&path) && last.contains("capture "), "{shown:?}");
    assert!(PathBuf::from(&path).exists());
    // The line is gone before the list comes.
    let shown = in_a_terminal(&[&url, "--event", "heap"]).unwrap();
    assert!(shown.contains("\r\x1b[Ksymbols…\r\x1b[Kheap, "), "{shown:?}");
}
