//! One grammar of addresses: what is accepted in one place is accepted in all, and what is refused
//! is refused everywhere with what is missing.

use crate::{assert_one_sentence, run};
use koltso_testkit::server::free_port;
use koltso_testkit::{Launch, Server};

/// The places where the program reads the URL of a node, with what stands before it. Nothing is
/// started: `serve` and `local` are given something else that is wrong.
const URLS: [&[&str]; 9] = [
    &["get", "key", "--url"],
    &["put", "key", "value", "--url"],
    &["delete", "key", "--url"],
    &["scan", "--url"],
    &["bench", "-R1", "-d100ms", "-T1ms"],
    &["profile", "--event", "heap"],
    &["serve", "--cluster"],
    &["serve", "--cluster", "http://127.0.0.1:1,http://127.0.0.1:2", "--node"],
    &["local", "--node"],
];
/// Those where it reads an address to listen at.
const LISTENERS: [&[&str]; 3] = [&["serve", "--listen"], &["serve", "--admin-listen"], &["serve", "--replica-listen"]];

fn said(place: &[&str], address: &str) -> String {
    let args: Vec<&str> = place.iter().chain(&[address]).copied().collect();
    let output = run(&args);
    let sentence = assert_one_sentence(&format!("{args:?}"), &output);
    assert!(output.status.code().is_some_and(|code| code != 0), "{args:?}: {sentence}");
    sentence
}

#[test]
fn what_is_missing_in_an_address_is_said_everywhere_in_the_same_words() {
    for (address, why) in [
        ("https://127.0.0.1:1337", "TLS is not built into this version"),
        ("ftp://127.0.0.1:1337", "it begins with http:// or with the host"),
        ("http://127.0.0.1", "its port is missing, as in 127.0.0.1:1337"),
        ("http://localhost/", "its port is missing, as in localhost:1337"),
        ("http://:1337", "its host is missing"),
        ("http://::1:1337", "an IPv6 address stands in brackets"),
        ("http://[::1]", "its port is missing, as in [::1]:1337"),
        ("http://127.0.0.1:70000", "the port 70000 is not a number up to 65535"),
        ("http://127.0.0.1:x", "the port x is not a number"),
        ("http://127.0.0.1:1337/v0/entity", "it has to be without a path"),
        ("http://me:word@127.0.0.1:1337", "it has to be without a user"),
    ] {
        for place in URLS.iter().chain(&LISTENERS) {
            let sentence = said(place, address);
            assert!(sentence.contains(why), "{place:?} {address}: {sentence}");
        }
    }
    // Without a scheme, too; `profile` takes that for the name of a file.
    for (address, why) in [(":1337", "its host is missing"), ("127.0.0.1", "its port is missing"), ("::1", "brackets")]
    {
        for place in URLS.iter().chain(&LISTENERS).filter(|place| place[0] != "profile") {
            let sentence = said(place, address);
            assert!(sentence.contains(why), "{place:?} {address}: {sentence}");
        }
    }
    for place in URLS {
        let sentence = said(place, "http://127.0.0.1:0");
        assert!(sentence.contains("nobody can connect to port 0"), "{place:?}: {sentence}");
    }
}

#[test]
fn one_spelling_of_a_server_is_as_good_as_another() {
    let server = Server::fresh("");
    server.connect().store("key", "value");
    let port = server.port();
    for url in [
        format!("127.0.0.1:{port}"),
        format!("http://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{port}/"),
        format!("HTTP://LocalHost:{port}"),
        format!("localhost:{port}"),
    ] {
        assert_eq!(run(&["get", "key", "--url", &url]).stdout, b"value", "{url}");
        assert!(run(&["scan", "--url", &url]).stdout.starts_with(b"key\t5\n"), "{url}");
        assert_eq!(run(&["bench", "-R20", "-d200ms", "--put", &url]).status.code(), Some(0), "{url}");
        // For `profile`, what has no scheme is a file, and it says so.
        let output = run(&["profile", "--event", "heap", &url]);
        if url.contains("://") {
            assert_eq!(output.status.code(), Some(0), "{url}");
        } else {
            let sentence = assert_one_sentence(&url, &output);
            assert!(sentence.contains("http://HOST:PORT"), "{url}: {sentence}");
        }
    }
}

#[test]
fn a_server_listens_at_any_spelling_of_its_address() {
    let folder = tempfile::tempdir().unwrap();
    for (number, begin) in ["http://127.0.0.1", "localhost", "127.0.0.1"].into_iter().enumerate() {
        let port = free_port();
        let admin = format!("{begin}:{}", free_port());
        let flags = format!("--admin-listen {admin} --threads 1");
        let data = folder.path().join(number.to_string());
        let server = Launch::on(&data).environment("KOLTSO_LISTEN", &format!("{begin}:{port}")).flags(&flags).start();
        server.connect().store("key", "value");
        let admin = format!("http://{}", admin.trim_start_matches("http://"));
        assert_eq!(run(&["profile", "--event", "heap", &admin]).status.code(), Some(0), "{admin}");
    }
}
