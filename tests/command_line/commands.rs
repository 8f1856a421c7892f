//! The commands that talk to a node: get, put, delete, scan.

use crate::{assert_one_sentence, assert_success, run, run_with_input};
use koltso_testkit::Server;
use koltso_testkit::server::free_port;

#[test]
fn put_get_and_delete_are_commands() {
    let server = Server::fresh("");
    let url = server.url();
    let mut client = server.connect();
    assert_success(&run(&["put", "key", "value", "--url", &url]), "put KEY VALUE");
    assert_eq!(client.value("key").as_deref(), Some(&b"value"[..]));
    let got = run(&["get", "key", "--url", &url]);
    assert_success(&got, "get KEY");
    assert_eq!(got.stdout, b"value", "the value and nothing else");
    // From standard input, as bytes.
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    assert_success(&run_with_input(&["put", "from-input", "--url", &url], &bytes), "put KEY < INPUT");
    assert_success(&run_with_input(&["put", "from-dash", "-", "--url", &url], &bytes), "put KEY - < INPUT");
    for key in ["from-input", "from-dash"] {
        let got = run(&["get", key, "--url", &url]);
        assert_success(&got, key);
        assert!(got.stdout == bytes, "{key}: {} bytes", got.stdout.len());
    }
    assert_success(&run_with_input(&["put", "empty", "--url", &url], b""), "put KEY < /dev/null");
    assert_eq!(client.value("empty").as_deref(), Some(&b""[..]));
    // Keys are whatever a shell can give.
    for key in ["a b", "a+b", "100%", "%41", "a&b=c?d#e", "ключ", "/path/like", "\"quoted\"", "line\nend"] {
        assert_success(&run(&["put", key, key, "--url", &url]), key);
        assert_eq!(client.value(key).as_deref(), Some(key.as_bytes()), "{key}");
        assert_eq!(run(&["get", key, "--url", &url]).stdout, key.as_bytes(), "{key}");
    }
    assert_success(&run(&["delete", "key", "--url", &url]), "delete KEY");
    assert_eq!(client.value("key"), None);
    assert_success(&run(&["delete", "key", "--url", &url]), "delete of an absent key");
    let absent = run(&["get", "key", "--url", &url]);
    assert_eq!(absent.status.code(), Some(1), "get of an absent key");
    assert!(absent.stdout.is_empty());
}

#[test]
fn commands_say_what_went_wrong() {
    let server = Server::fresh("--max-value 1000");
    let url = server.url();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let refused = [
        (run(&["get", "key", "--url", &nobody]), "nobody listens"),
        (run(&["put", "key", "value", "--url", &nobody]), "nobody listens"),
        (run(&["scan", "a", "--url", &nobody]), "nobody listens"),
        (run(&["get", "key", "--url", "nonsense"]), "no URL"),
        (run(&["get", "", "--url", &url]), "an empty key"),
        (run(&["put", &"k".repeat(4097), "v", "--url", &url]), "a long key"),
        (run_with_input(&["put", "key", "--url", &url], &[b'v'; 1001]), "a large value"),
    ];
    for (output, what) in refused {
        assert!(output.status.code().is_some_and(|code| code != 0), "{what}: {}", output.status);
        assert!(output.stdout.is_empty(), "{what}");
        assert_one_sentence(what, &output);
    }
}

#[test]
fn scan_lists_keys_and_sizes_or_values() {
    let server = Server::fresh("");
    let url = server.url();
    let mut client = server.connect();
    for (key, value) in [("a", "1"), ("b", "22"), ("b b", "333"), ("c", ""), ("d", "55555")] {
        client.store(key, value);
    }
    let scan = |args: &[&str]| {
        let output = run(&[&["scan"], args, &["--url", &url]].concat());
        assert_success(&output, &format!("scan {args:?}"));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(scan(&["a"]), "a\t1\nb\t2\nb b\t3\nc\t0\nd\t5\n");
    assert_eq!(scan(&["b", "d"]), "b\t2\nb b\t3\nc\t0\n");
    assert_eq!(scan(&["b", "--limit", "2"]), "b\t2\nb b\t3\n");
    assert_eq!(scan(&["b", "d", "--limit", "1"]), "b\t2\n");
    assert_eq!(scan(&["b", "d", "--values"]), "b\n22\nb b\n333\nc\n\n");
    assert_eq!(scan(&["x"]), "");
    client.store_all((0..5000).map(|index| (format!("many-{index:04}"), vec![b'v'; index % 100])), 100);
    let many = scan(&["many"]);
    assert_eq!(many.lines().count(), 5000);
    assert!(many.lines().enumerate().all(|(index, line)| line == format!("many-{index:04}\t{}", index % 100)));
}
