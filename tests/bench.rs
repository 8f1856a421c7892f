//! SPEC.md section 7, `koltso bench`: a constant rate, latencies from when a request was due,
//! wrk2's layout, and an end in time whatever the server does.
//!
//! Rates are never above what was asked for; latencies are compared only where a fake server makes
//! them certain.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use koltso_testkit::process::send_signal;
use koltso_testkit::{Server, entity};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_koltso");

/// How much longer than the duration and the timeout a run may take: one second is promised, the
/// rest is a busy machine.
const GRACE: Duration = Duration::from_secs(2);

struct Run {
    status: ExitStatus,
    stdout: String,
    stderr: String,
    took: Duration,
}

fn spawn(arguments: &str, urls: &[String]) -> Child {
    let mut command = Command::new(BINARY);
    command.arg("bench").args(arguments.split_whitespace()).args(urls);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child, begun: Instant) -> Run {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr), took: begun.elapsed() }
}

fn bench(arguments: &str, urls: &[String]) -> Run {
    let begun = Instant::now();
    finish(spawn(arguments, urls), begun)
}

impl Run {
    #[track_caller]
    fn expect(self, code: i32) -> Run {
        assert_eq!(self.status.code(), Some(code), "{}\n{}", self.stdout, self.stderr);
        // One sentence for what went wrong, and none without a terminal otherwise.
        assert_eq!(self.stderr.lines().count(), usize::from(code != 0), "{}", self.stderr);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }

    /// What follows a text, up to a blank.
    #[track_caller]
    fn word_after(&self, text: &str) -> &str {
        let (_, rest) = self.stdout.split_once(text).unwrap_or_else(|| panic!("no {text:?} in {}", self.stdout));
        rest.split_whitespace().next().unwrap()
    }
}

#[track_caller]
fn number(document: &Value, path: &str) -> f64 {
    document.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {document:#}"))
}

/// The rate was kept: never more than was asked for, and less only by what a busy machine made too
/// late for the end.
#[track_caller]
fn assert_kept(rate: f64, wanted: f64) {
    assert!(rate <= wanted * 1.01 && rate >= wanted * 0.75, "{rate}, and {wanted} was asked for");
}

/// Answers every connection in a thread of its own, for as long as the test runs.
fn fake(answer: impl Fn(TcpStream) + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            std::thread::spawn(move || answer(socket));
        }
    });
    url
}

/// Reads requests without a body; for each, `answer` is told its number on the connection, until it
/// says no.
fn each_request(mut socket: TcpStream, mut answer: impl FnMut(&mut TcpStream, usize) -> bool) {
    let mut seen = Vec::new();
    let mut block = [0; 4096];
    for number in 0.. {
        while !seen.ends_with(b"\r\n\r\n") {
            match socket.read(&mut block) {
                Ok(count) if count > 0 => seen.extend_from_slice(&block[..count]),
                _ => return,
            }
        }
        seen.clear();
        if !answer(&mut socket, number) {
            return;
        }
    }
}

#[test]
fn a_real_server_is_loaded_at_the_rate_in_the_layout_of_wrk2() {
    let server = Server::fresh("");
    let filled = bench("-t2 -c8 -R2000 -d1s --put --keys 500 --size 32", &[server.url()]).expect(0);
    assert!(!filled.stdout.contains("Non-2xx") && !filled.stdout.contains("errors"), "{}", filled.stdout);
    // The key and the value that scripts/lib.lua has for number 7.
    let value = server.ask("GET", &entity("kkkkkkkk00000007"));
    assert_eq!((value.status, value.text()), (200, format!("{}00000007", "v".repeat(24))));

    let run = bench("-t2 -c8 -R2000 -d2s -L --keys 500", &[server.url()]).expect(0);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines[0], format!("Running 2s test @ {}", server.url()));
    assert_eq!(lines[1], "  2 threads and 8 connections");
    assert_eq!(lines[2], "  Thread Stats   Avg      Stdev     Max   +/- Stdev");
    assert!(lines[3].starts_with("    Latency ") && lines[4].starts_with("    Req/Sec "), "{}", run.stdout);
    assert_eq!(lines[5], "  Latency Distribution (HdrHistogram - Recorded Latency)");
    let percentiles = [" 50.000%", " 75.000%", " 90.000%", " 99.000%", " 99.900%", " 99.990%", " 99.999%", "100.000%"];
    for (line, percentile) in lines[6..14].iter().zip(percentiles) {
        assert!(line.starts_with(percentile) && line.len() == 18, "{line:?}");
    }
    assert_eq!(lines[15], "  Detailed Percentile spectrum:");
    assert_eq!(lines[16], "       Value   Percentile   TotalCount 1/(1-Percentile)");
    assert!(
        run.stdout.contains("\n#[Buckets =           27, SubBuckets     =         2048]\n-------"),
        "{}",
        run.stdout
    );
    let reached: f64 = run.word_after("Requests/sec:").parse().unwrap();
    assert_kept(reached, 2000.0);
    assert!(run.word_after("Transfer/sec:").ends_with("KB"), "{}", run.stdout);
    assert!(!run.stdout.contains("Non-2xx"), "every key was written: {}", run.stdout);
    assert!(run.took < Duration::from_secs(2) + GRACE, "{:?}", run.took);
}

#[test]
fn a_mix_over_several_servers_as_one_json_document() {
    let (one, other) = (Server::fresh(""), Server::fresh(""));
    let run = bench(
        "-t2 -c4 -R1000 -d2s --mix 50:40:10 --keys 100 --query ack=1&from=1 --json --warmup 500ms --seed 9",
        &[one.url(), other.url()],
    )
    .expect(0);
    let document = run.json();
    assert_kept(number(&document, "/requests_per_second"), 1000.0);
    assert_eq!(
        number(&document, "/requests"),
        document["statuses"].as_object().unwrap().values().map(|n| n.as_f64().unwrap()).sum::<f64>()
    );
    let shares = |status: &str| number(&document, &format!("/statuses/{status}")) / number(&document, "/requests");
    assert!((shares("201") - 0.4).abs() < 0.06 && (shares("202") - 0.1).abs() < 0.05, "{document:#}");
    let recorded = number(&document, "/recorded") / number(&document, "/requests");
    assert!((recorded - 0.75).abs() < 0.15, "a quarter of the time is warm-up: {document:#}");
    let latency = |name: &str| document["latency_us"][name].as_f64().unwrap();
    assert!(latency("p50") <= latency("p99") && latency("p99.9") <= latency("p100"), "{document:#}");
    assert!(latency("min") <= latency("p50") && latency("max") <= latency("p100"), "{document:#}");
    assert_eq!((number(&document, "/config/rate"), number(&document, "/config/warmup_s")), (1000.0, 0.5));
    for server in [&one, &other] {
        let listed = server.ask("GET", "/v0/entities?start=kkkkkkkk").text();
        assert!(listed.contains("kkkkkkkk0000"), "both servers were asked");
    }
}

#[test]
fn the_document_goes_to_a_file_beside_the_report() {
    let (server, folder) = (Server::fresh(""), tempfile::tempdir().unwrap());
    let file = folder.path().join("bench.json");
    let arguments = |file: &std::path::Path| format!("-t1 -c2 -R200 -d500ms --put --json-file {}", file.display());
    let run = bench(&arguments(&file), &[server.url()]).expect(0);
    let document: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert!(run.stdout.contains(&format!("  {} requests in ", document["requests"])), "{}\n{document:#}", run.stdout);
    assert!(document["latency_us"]["p99"].as_u64().unwrap() > 0);
    // It is refused before the load.
    let begun = Instant::now();
    let run =
        bench(&arguments(&folder.path().join("none/bench.json")).replace("500ms", "60s"), &[server.url()]).expect(2);
    assert!(run.stderr.contains("--json-file") && begun.elapsed() < Duration::from_secs(30), "{}", run.stderr);
}

#[test]
fn keys_that_nobody_wrote_are_refusals_and_no_success() {
    let server = Server::fresh("");
    let run = bench("-t1 -c2 -R200 -d500ms", &[server.url()]).expect(1);
    assert!(run.word_after("Non-2xx or 3xx responses:").parse::<u32>().unwrap() > 50, "{}", run.stdout);
    assert!(run.stdout.contains("Responses by status: 404: "), "{}", run.stdout);
    assert!(run.stderr.contains("404"), "{}", run.stderr);
}

#[test]
fn a_pause_of_the_server_is_charged_to_all_that_was_due_meanwhile() {
    // One connection, a request every 10 ms, and the 50th is answered half a second late.
    let url = fake(|socket| {
        each_request(socket, |socket, number| {
            std::thread::sleep(Duration::from_millis(if number == 50 { 500 } else { 0 }));
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok()
        });
    });
    let document = bench("-t1 -c1 -R100 -d2s --warmup 0s --json", &[url]).expect(0).json();
    assert!(number(&document, "/latency_us/max") >= 490_000.0, "{document:#}");
    // 50 were due during the pause, each charged for what was left of it.
    assert!(number(&document, "/latency_us/p90") >= 250_000.0, "{document:#}");
    assert_kept(number(&document, "/requests"), 200.0);
}

#[test]
fn closing_after_each_answer_is_no_error_and_chunks_are_read() {
    let url = fake(|socket| {
        each_request(socket, |socket, _| {
            let _ = socket.write_all(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            );
            false
        });
    });
    let document = bench("-t1 -c2 -R100 -d1s --json", &[url]).expect(0).json();
    assert_kept(number(&document, "/requests"), 100.0);
    assert!(number(&document, "/reconnects") >= number(&document, "/requests") - 5.0, "{document:#}");
    assert!(document["errors"].as_object().unwrap().values().all(|count| count == 0), "{document:#}");
}

/// Nothing succeeds, the one kind of error is counted, and the end comes in time.
#[track_caller]
fn fails(url: String, kind: &str) {
    let run = bench("-t2 -c4 -R200 -d1s --timeout 1s --json", &[url]).expect(1);
    let document = run.json();
    for (name, count) in document["errors"].as_object().unwrap() {
        assert_eq!(count.as_u64() > Some(0), name == kind, "{name} of {document:#}");
    }
    assert!(run.took < Duration::from_secs(2) + GRACE, "{:?}", run.took);
    assert!(number(&document, &format!("/errors/{kind}")) >= 4.0, "each connection has tried: {document:#}");
    assert!(run.stderr.contains(kind), "{}", run.stderr);
}

#[test]
fn a_port_that_nobody_listens_to() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    drop(listener);
    fails(format!("http://{address}"), "connect");
}

#[test]
fn a_server_that_never_answers() {
    fails(fake(|socket| each_request(socket, |_, _| true)), "timeout");
}

#[test]
fn a_server_that_answers_too_slowly() {
    fails(
        fake(|socket| {
            each_request(socket, |socket, _| {
                b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".iter().all(|byte| {
                    std::thread::sleep(Duration::from_millis(50));
                    socket.write_all(&[*byte]).is_ok()
                })
            });
        }),
        "timeout",
    );
}

#[test]
fn a_server_that_closes_instead_of_answering() {
    fails(fake(|socket| each_request(socket, |_, _| false)), "closed");
    let halves = fake(|socket| {
        each_request(socket, |socket, _| {
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            false
        });
    });
    fails(halves, "closed");
}

#[test]
fn a_server_that_answers_garbage_or_more_than_was_asked() {
    for garbage in ["SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"] {
        let url = fake(move |socket| each_request(socket, |socket, _| socket.write_all(garbage.as_bytes()).is_ok()));
        fails(url, "malformed");
    }
}

#[test]
fn ctrl_c_ends_early_and_prints_what_there_is() {
    let server = Server::fresh("");
    let begun = Instant::now();
    let child = spawn("-t1 -c2 -R500 -d60s --put --warmup 0s", &[server.url()]);
    std::thread::sleep(Duration::from_secs(1));
    send_signal(child.id(), libc::SIGINT);
    let run = finish(child, begun).expect(0);
    assert!(run.took < Duration::from_secs(1) + GRACE, "{:?}", run.took);
    let reached: f64 = run.word_after("Requests/sec:").parse().unwrap();
    assert_kept(reached, 500.0);
}

#[test]
fn wrong_arguments_are_one_sentence_and_exit_code_2() {
    for (arguments, says) in [
        ("", "-R is missing"),
        ("-R100", "URL is missing"),
        ("-Rmany http://127.0.0.1:1", "many"),
        ("-R0 http://127.0.0.1:1", "-R 0"),
        ("-R100 -t4 -c2 http://127.0.0.1:1", "-c 2"),
        ("-R100 -t0 http://127.0.0.1:1", "-t 0"),
        ("-R100 -d0s http://127.0.0.1:1", "-d"),
        ("-R100 -dlong http://127.0.0.1:1", "long"),
        ("-R100 -d1s --warmup 1s http://127.0.0.1:1", "--warmup 1s"),
        ("-R100 --keys 100000000 http://127.0.0.1:1", "--keys 100000000"),
        ("-R100 --size 1GiB http://127.0.0.1:1", "--size 1GiB"),
        ("-R100 --mix 1:2:3:4 http://127.0.0.1:1", "1:2:3:4"),
        ("-R100 --get --put http://127.0.0.1:1", "--put"),
        ("-R100 --query a#b http://127.0.0.1:1", "a#b"),
        ("-R100 https://127.0.0.1:1", "https://127.0.0.1:1"),
        ("-R100 http://127.0.0.1:1/path", "/path"),
        ("-R100 http://no.such.host.invalid:1", "no.such.host.invalid"),
        ("-R100 --unknown http://127.0.0.1:1", "--unknown"),
    ] {
        let run = bench(arguments, &[]).expect(2);
        assert!(run.stderr.contains(says) && run.stdout.is_empty(), "{arguments}: {}", run.stderr);
        assert!(run.took < Duration::from_secs(5), "{arguments}: {:?}", run.took);
    }
}
