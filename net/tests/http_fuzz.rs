//! The bodies of the fuzz targets `http_head`, `http_path`, `http_host`, `http_range` and
//! `http_conditions`, run for a moment over input that is made of what stands in real heads.
//!
//! `KOLTSO_FUZZ_SECONDS` makes them run longer, and `KOLTSO_SEED` repeats a run. With cargo-fuzz,
//! `fuzz/` guides them by coverage.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../../fuzz/bodies/http.rs"]
mod bodies;

use std::time::Instant;

use koltso_testkit::fuzz::time;
use koltso_testkit::random::{Random, seed_or};

/// Up to `most` of these pieces one after the other, and now and then a byte that is harmed.
fn made_of(pieces: &[&str], most: usize, random: &mut Random) -> Vec<u8> {
    let count = random.below(most + 1);
    let mut bytes: Vec<u8> = (0..count).flat_map(|_| pieces[random.below(pieces.len())].bytes()).collect();
    if !bytes.is_empty() && random.one_in(8) {
        let at = random.below(bytes.len());
        bytes[at] = random.next().to_le_bytes()[0];
    }
    bytes
}

/// Runs a body over and over; says how often, and how many inputs got past its first check, which
/// must be a fair part of them.
fn run(name: &str, body: fn(&[u8]) -> bool, make: impl Fn(&mut Random) -> Vec<u8>) {
    let mut random = Random::seeded(seed_or(name, 1));
    let (begun, mut runs, mut past) = (Instant::now(), 0_u64, 0_u64);
    while begun.elapsed() < time() {
        for _ in 0..100 {
            past += u64::from(body(&make(&mut random)));
            runs += 1;
        }
    }
    println!("{name}: {runs} inputs, {past} past the first check");
    assert!(past * 50 > runs, "{name}: {past} of {runs} inputs were worth it");
}

fn path(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(bodies::path)
}

#[test]
fn any_bytes_of_a_path_mean_one_path() {
    let pieces = [
        "/", "v0", "entity", "%2F", "%65", "%2e", "%", "%%", "%4", "%zz", "%C3%A9", "é", "~", "+", "%25", "a", "0", ".",
    ];
    run("any_bytes_of_a_path_mean_one_path", path, |random| made_of(&pieces, 8, random));
}

#[test]
fn any_bytes_of_a_host_are_valid_as_the_grammar_says() {
    let pieces = [
        "localhost",
        "a",
        "-",
        ".",
        ":",
        "::",
        "[",
        "]",
        "[::1]",
        "1",
        "0",
        "ffff",
        "127.0.0.1",
        "255",
        "256",
        "%41",
        "%",
        ":80",
        ":65535",
        ":65536",
        "@",
        ",",
        "/",
        " ",
        "é",
        "v1.a",
        "_",
        "[1:2:3:4:5:6:7:8]",
        "1:2:3",
        "::ffff:1.2.3.4",
        "=",
        "00",
    ];
    run("any_bytes_of_a_host_are_valid_as_the_grammar_says", bodies::host, |random| {
        if random.one_in(2) {
            let inner = made_of(&pieces, 7, random);
            return [b"[", &inner[..], b"]"].concat();
        }
        made_of(&pieces, 5, random)
    });
}

#[test]
fn any_bytes_of_a_range_select_what_the_rfc_says() {
    let pieces = [
        "0",
        "1",
        "9",
        "-",
        "-",
        "-",
        ",",
        " ",
        "10",
        "999",
        "1000",
        "18446744073709551615",
        "18446744073709551616",
        "\t",
        "\"",
        "x",
    ];
    run("any_bytes_of_a_range_select_what_the_rfc_says", bodies::range, |random| {
        let unit = ["bytes=", "BYTES=", "bytes=", "bytes=", "bytes =", "lines="][random.below(6)];
        let set = if random.one_in(2) {
            made_of(&pieces, 6, random)
        } else {
            let number = |random: &mut Random| made_of(&["0", "1", "9", "12"], 3, random);
            [number(random), b"-".to_vec(), number(random)].concat()
        };
        [unit.as_bytes(), &set].concat()
    });
}

#[test]
fn any_bytes_of_conditions_are_judged_in_their_order() {
    let pieces = [
        "\"0000000000000001-0001\"",
        "W/\"0000000000000001-0001\"",
        "\"x\"",
        "\"a,b\"",
        "\"\"",
        "W/",
        "*",
        ",",
        ",",
        ", ",
        " ",
        "\n0",
        "\n1",
        "\n1 ",
        "x",
        "\"",
        "w/",
        "é",
    ];
    run("any_bytes_of_conditions_are_judged_in_their_order", bodies::conditions, |random| {
        let first = ["0", "1"][random.below(2)];
        [first.as_bytes(), &made_of(&pieces, 7, random)].concat()
    });
}

#[test]
fn any_bytes_of_a_head_can_be_relied_on() {
    let lines = [
        "Host: a\r\n",
        "Host: [::1]:80\r\n",
        "host: localhost\r\n",
        "Range: bytes=0-1\r\n",
        "If-Match: \"x\"\r\n",
        "If-None-Match: *\r\n",
        "Content-Type: text/plain; charset=utf-8\r\n",
        "Content-Type: \r\n",
        "Content-Type:\ta/é \r\n",
        "Content-Encoding: gzip\r\n",
        "Content-Encoding: br,,\r\n",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Expect: 100-continue\r\n",
        "Connection: close, x\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "X: \r\n",
        "X:y\r\n",
        " fold\r\n",
        "\r\n",
    ];
    let targets =
        ["/v0/entity?id=a", "/%76%30?%69d=%00&&x", "*", "http://a:1/b?c", "http://u@h/", "/a#b", "?", "/é?=%"];
    run("any_bytes_of_a_head_can_be_relied_on", bodies::head, |random| {
        let method = ["GET", "PUT", "OPTIONS", "HEAD", "x"][random.below(5)];
        let version = ["1.1", "1.1", "1.0", "2.0"][random.below(4)];
        let first = format!("{method} {} HTTP/{version}\r\n", targets[random.below(targets.len())]);
        let host = if random.one_in(4) { "" } else { "Host: a\r\n" };
        let mut bytes = [first.as_bytes(), host.as_bytes()].concat();
        for _ in 0..random.below(5) {
            bytes.extend_from_slice(lines[random.below(lines.len())].as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        if random.one_in(4) {
            let at = random.below(bytes.len());
            bytes[at] = random.next().to_le_bytes()[0];
        }
        bytes
    });
}
