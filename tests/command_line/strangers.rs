//! What the commands say when it is no node of Koltso that listens, or nobody, or somebody who
//! never answers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::{assert_one_sentence, run};
use koltso_testkit::Server;
use koltso_testkit::server::free_port;

/// A server that answers every request with these bytes and closes; its URL.
fn stranger(answer: &'static [u8]) -> String {
    serving(move |mut socket| {
        let mut block = [0; 4096];
        // One read has the head; a body that is left makes no difference to what is tested.
        let _ = socket.read(&mut block);
        let _ = socket.write_all(answer);
        // The client reads the answer before a reset could take it back.
        let _ = socket.shutdown(std::net::Shutdown::Write);
        while matches!(socket.read(&mut block), Ok(count) if count > 0) {}
    })
}

fn serving(each: impl Fn(TcpStream) + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let each = each.clone();
            std::thread::spawn(move || each(socket));
        }
    });
    url
}

const PAGE_404: &[u8] = b"HTTP/1.1 404 Not Found\r\nServer: nginx\r\nContent-Type: text/html\r\nContent-Length: 14\r\n\
    Connection: close\r\n\r\n<h1>404</h1>\r\n";
/// What the standard library of Go answers.
const GO_404: &[u8] = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\n\
    X-Content-Type-Options: nosniff\r\nContent-Length: 19\r\nConnection: close\r\n\r\n404 page not found\n";
const PAGE_200: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 12\r\nConnection: close\r\n\r\n<h1>Hi!</h1>";
const PAGE_IN_CHUNKS: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\
    Connection: close\r\n\r\n4\r\nk\nvv\r\n0\r\n\r\n";
const EMPTY_201: &[u8] = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const EMPTY_202: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const PAGE_501: &[u8] = b"HTTP/1.0 501 Unsupported method ('PUT')\r\nContent-Type: text/html\r\n\r\n<p>No.</p>";
const BANNER: &[u8] = b"SSH-2.0-OpenSSH_9.2\r\n";

#[test]
fn an_answer_of_another_server_is_asked_about_with_its_address() {
    for answer in [PAGE_404, GO_404, PAGE_200, PAGE_IN_CHUNKS, EMPTY_201, EMPTY_202, PAGE_501, BANNER] {
        let url = stranger(answer);
        let named = String::from_utf8_lossy(answer).lines().next().unwrap().to_owned();
        for args in [
            &["get", "key", "--url", &url][..],
            &["get", "key", "--json", "--url", &url],
            &["put", "key", "value", "--url", &url],
            &["delete", "key", "--url", &url],
            &["scan", "--url", &url],
            &["profile", "--event", "heap", &url],
            &["status", "--url", &url],
        ] {
            let output = run(args);
            let sentence = assert_one_sentence(&format!("{args:?}"), &output);
            assert_eq!(output.status.code(), Some(2), "{named}: {args:?}: {sentence}");
            assert!(sentence.contains("is this a node of Koltso?"), "{named}: {args:?}: {sentence}");
            assert!(sentence.contains(&url) && output.stdout.is_empty(), "{named}: {args:?}: {sentence}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("a.html");
    let output = run(&["profile", "--event", "heap", "--out", page.to_str().unwrap(), &stranger(PAGE_200)]);
    let sentence = assert_one_sentence("a page for a page", &output);
    assert!(sentence.contains("is this a node of Koltso?") && !page.exists(), "{sentence}");
    for answer in [PAGE_404, BANNER] {
        let url = stranger(answer);
        let output = run(&["bench", "-R20", "-d300ms", &url]);
        let sentence = assert_one_sentence("bench", &output);
        let question = format!("is {url} a node of Koltso?");
        assert!(output.status.code() == Some(1) && sentence.contains(&question), "{sentence}");
    }
}

#[test]
fn a_closed_port_and_a_silent_one_are_plain_sentences_in_time() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let silent = serving(|mut socket| {
        let mut block = [0; 4096];
        while matches!(socket.read(&mut block), Ok(count) if count > 0) {}
    });
    let dribbling = serving(|mut socket| {
        for byte in b"HTTP/1.1 200 OK\r\nServer: one that takes its time and never comes to an end".iter().cycle() {
            std::thread::sleep(Duration::from_millis(50));
            if socket.write_all(&[*byte]).is_err() {
                return;
            }
        }
    });
    let sentence = assert_one_sentence("bench", &run(&["bench", "-R20", "-d300ms", &nobody]));
    assert!(sentence.contains(&format!("does anybody listen at {nobody}?")), "{sentence}");
    let sentence = assert_one_sentence("profile", &run(&["profile", "--event", "heap", &nobody]));
    assert!(sentence.contains(&nobody) && sentence.contains("nobody listens there"), "{sentence}");
    for command in [&["get", "key"][..], &["put", "key", "value"], &["delete", "key"], &["scan"], &["status"]] {
        let args = |url| [command, &["--timeout", "400ms", "--url", url]].concat();
        let sentence = assert_one_sentence("nobody", &run(&args(&nobody)));
        assert!(sentence.contains(&nobody) && sentence.contains("nobody listens there"), "{command:?}: {sentence}");
        for url in [&silent, &dribbling] {
            let begun = Instant::now();
            let output = run(&args(url));
            let sentence = assert_one_sentence("silent", &output);
            assert_eq!(output.status.code(), Some(2), "{command:?}: {sentence}");
            assert!(sentence.contains(&format!("{url} did not answer in time (400ms)")), "{command:?}: {sentence}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{command:?}: {:?}", begun.elapsed());
        }
    }
}

#[test]
fn bench_repeats_what_the_server_says_once_and_counts() {
    let server = Server::fresh("");
    let arguments = |more: &'static str| ["bench", "-R200", "-d500ms", "--query", "ack=2&from=3", more];
    let asked = |more: &'static str| run(&[&arguments(more)[..], &[&server.url()]].concat());
    let output = asked("--put");
    let (stdout, sentence) = (String::from_utf8(output.stdout.clone()).unwrap(), assert_one_sentence("bench", &output));
    assert_eq!(output.status.code(), Some(1), "{sentence}");
    let why = server.ask("GET", "/v0/entity?id=a&ack=2&from=3").expect(400, "GET").text();
    let why = why.trim_end();
    assert!(why.len() > 10 && sentence.contains(why) && sentence.contains("answers had status 400"), "{sentence}");
    assert_eq!(stdout.matches(why).count(), 1, "{stdout}");
    assert!(stdout.contains("Responses by status: 400: "), "{stdout}");
    let document: serde_json::Value = serde_json::from_slice(&asked("--json").stdout).unwrap();
    assert_eq!(document["refusals"]["400"], why, "{document:#}");
    assert!(document["statuses"]["400"].as_u64() > Some(20), "{document:#}");
}
