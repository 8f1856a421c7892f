//! Keys and values of any bytes: how `get`, `put`, `delete` and `scan` take and show them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output, Stdio};

use crate::{BINARY, assert_one_sentence, run, run_with_input};
use koltso_testkit::{Client, Server};
use serde_json::{Value, json};

/// Keys in their order, each with what `scan` shows of it.
const KEYS: [(&[u8], &str); 9] = [
    (b"\0", "\\x00"),
    (b"\n", "\\n"),
    (b"\x1b[31mred", "\\x1b[31mred"),
    (b"nl", "nl"),
    (b"nl\nkey", "nl\\nkey"),
    (b"nl\\nkey", "nl\\\\nkey"),
    (b"tab\tkey", "tab\\tkey"),
    ("ключ".as_bytes(), "ключ"),
    (b"\xff\xfe", "\\xff\\xfe"),
];

fn store(client: &mut Client, key: &[u8], value: &[u8]) {
    client.store(key, value);
}

fn output_of(args: &[&OsStr]) -> Output {
    Command::new(BINARY).args(args).stdin(Stdio::null()).output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn scan_shows_all_keys_without_a_doubt() {
    let server = Server::fresh("");
    let url = server.url();
    let mut client = server.connect();
    for (key, _) in KEYS {
        store(&mut client, key, b"two\nlines");
    }
    let expected: Vec<String> = KEYS.iter().map(|(_, shown)| format!("{shown}\t9")).collect();
    for args in [&["scan", "--url", &url][..], &["scan", "", "--url", &url]] {
        assert_eq!(lines(&run(args)), expected, "{args:?}");
    }
    let values = lines(&run(&["scan", "--values", "--url", &url]));
    let expected: Vec<String> =
        KEYS.iter().flat_map(|(_, shown)| [(*shown).to_owned(), "two\\nlines".to_owned()]).collect();
    assert_eq!(values, expected);
    let raw = run(&["scan", "--raw", "--values", "--url", &url]).stdout;
    let expected: Vec<u8> = KEYS.iter().flat_map(|(key, _)| [*key, b"\ntwo\nlines\n"].concat()).collect();
    assert!(raw == expected, "{}", String::from_utf8_lossy(&raw));
    // Objects say whether they have text or base64.
    let objects: Vec<Value> = lines(&run(&["scan", "--json", "--url", &url]))
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for ((key, _), object) in KEYS.iter().zip(&objects) {
        let expected = match std::str::from_utf8(key) {
            Ok(text) => json!({"key": text, "size": 9}),
            Err(_) => json!({"key_base64": "//4=", "size": 9}),
        };
        assert_eq!(*object, expected);
    }
    assert_eq!(objects.len(), KEYS.len());
    let last = lines(&run(&["scan", "--json", "--values", "--base64", "//4=", "--url", &url]));
    assert_eq!(last, ["{\"key_base64\":\"//4=\",\"value\":\"two\\nlines\"}"]);
    // Large values come another way through the server.
    let large = vec![b'\n'; 300_000];
    store(&mut client, b"large\nvalue", &large);
    let shown = lines(&run(&["scan", "large", "m", "--url", &url]));
    assert_eq!(shown, ["large\\nvalue\t300000"]);
}

#[test]
fn keys_of_any_bytes_are_stored_read_and_deleted() {
    let server = Server::fresh("");
    let url = OsString::from(server.url());
    let mut client = server.connect();
    for (key, _) in KEYS.iter().filter(|(key, _)| !key.contains(&0)) {
        let key = OsStr::from_bytes(key);
        let with = |args: &[&OsStr]| output_of(&[args, &["--url".as_ref(), &url]].concat());
        assert_eq!(with(&["put".as_ref(), "--".as_ref(), key, "value".as_ref()]).status.code(), Some(2), "after --");
        let args: [&OsStr; 3] = ["put".as_ref(), key, OsStr::from_bytes(b"v\xff")];
        assert_eq!(with(&args).status.code(), Some(0), "{key:?}");
        assert_eq!(client.value(key.as_bytes()).as_deref(), Some(&b"v\xff"[..]), "{key:?}");
        assert_eq!(with(&["get".as_ref(), key]).stdout, b"v\xff", "{key:?}");
        assert_eq!(with(&["delete".as_ref(), key]).status.code(), Some(0), "{key:?}");
        assert_eq!(with(&["get".as_ref(), key]).status.code(), Some(1), "{key:?}");
    }
    // No argument has a NUL in it, so such a key needs base64.
    let url = server.url();
    assert_eq!(run(&["put", "--base64", "AP8=", "value", "--url", &url]).status.code(), Some(0));
    assert_eq!(client.value(&b"\0\xff"[..]).as_deref(), Some(&b"value"[..]));
    assert_eq!(run(&["get", "--base64", "AP8", "--url", &url]).stdout, b"value");
    let wrong = run(&["get", "--base64", "A", "--url", &url]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(assert_one_sentence("no base64", &wrong).contains("is not base64"));
    // A key that looks like a flag.
    assert_eq!(run(&["put", "--url", &url, "--", "-x", "-v"]).status.code(), Some(0));
    assert_eq!(run(&["get", "--url", &url, "--", "-x"]).stdout, b"-v");
}

#[test]
fn values_come_from_files_and_are_bounded() {
    let server = Server::fresh("");
    let url = server.url();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("value");
    let bytes: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    std::fs::write(&path, &bytes).unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(run(&["put", "key", "--file", path, "--url", &url]).status.code(), Some(0));
    assert!(server.connect().value("key").as_deref() == Some(&bytes[..]));
    assert!(run(&["get", "key", "--url", &url]).stdout == bytes);
    let absent = run(&["put", "key", "--file", "/nonexistent/value", "--url", &url]);
    assert_eq!(absent.status.code(), Some(2));
    assert!(assert_one_sentence("no file", &absent).contains("--file /nonexistent/value: No such file"));
    // It is refused when it is too large, not when memory is full.
    let endless = run(&["put", "key", "--file", "/dev/zero", "--url", &url]);
    assert_eq!(endless.status.code(), Some(2));
    assert!(assert_one_sentence("endless", &endless).contains("larger than 32MiB"));
    let endless = run_with_input(&["put", "key", "--url", &url], &vec![0; (32 << 20) + 1]);
    assert!(assert_one_sentence("endless", &endless).contains("larger than 32MiB"));
}

#[test]
fn get_has_an_object_for_programs() {
    let server = Server::fresh("");
    let url = server.url();
    server.connect().store("a\nb", b"v\xff");
    let output = run(&["get", "a\nb", "--json", "--url", &url]);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&object["key"], &object["value_base64"]), (&json!("a\nb"), &json!("dv8=")), "{object}");
    assert_eq!(object["content_type"], "application/octet-stream");
    assert!(object["etag"].as_str().is_some_and(|tag| tag.starts_with('"')), "{object}");
    let absent = run(&["get", "absent", "--json", "--url", &url]);
    assert!(absent.status.code() == Some(1) && absent.stdout.is_empty());
}

/// What a command writes to a terminal, and its exit code.
#[allow(unsafe_code)]
fn on_a_terminal(args: &[&str]) -> (Vec<u8>, Option<i32>) {
    let (mut ours, mut theirs) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: the two numbers live until the call is over, and the other pointers may be null.
    let opened = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, none, none.cast(), none.cast()) };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: both were just opened, and nobody else has them.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    let mut child = Command::new(BINARY).args(args).stdin(Stdio::null()).stdout(theirs).stderr(Stdio::null()).spawn();
    let child = child.as_mut().unwrap();
    let mut text = Vec::new();
    // It fails when the command has ended, and with it the other side of the terminal.
    let _ = File::from(ours).read_to_end(&mut text);
    // The terminal ends lines with a carriage return, too.
    text.retain(|&byte| byte != b'\r');
    (text, child.wait().unwrap().code())
}

#[test]
fn a_value_on_a_terminal_ends_its_line_and_changes_nothing() {
    let server = Server::fresh("");
    let url = server.url();
    let mut client = server.connect();
    for (value, shown) in [("text", "text\n"), ("line\n", "line\n"), ("", "\n"), ("ключ\tи", "ключ\tи\n")] {
        client.store("key", value);
        let (text, code) = on_a_terminal(&["get", "key", "--url", &url]);
        // Terminals show a tab as blanks.
        let text = String::from_utf8(text).unwrap();
        assert_eq!((text.replace("       ", "\t"), code), (shown.to_owned(), Some(0)));
        assert_eq!(run(&["get", "key", "--url", &url]).stdout, value.as_bytes(), "no line end elsewhere");
    }
    for value in [&b"\x1b]0;title\x07"[..], b"\xff\xfe\0"] {
        client.store("key", value);
        let (text, code) = on_a_terminal(&["get", "key", "--url", &url]);
        assert_eq!((text.as_slice(), code), (&b""[..], Some(2)));
        let (text, code) = on_a_terminal(&["get", "key", "--raw", "--url", &url]);
        assert!(code == Some(0) && text == value, "{text:?}");
        let (text, code) = on_a_terminal(&["get", "key", "--json", "--url", &url]);
        assert!(code == Some(0) && text.starts_with(b"{\"key\":\"key\",\"value") && !text.contains(&0x1b), "{text:?}");
    }
}
