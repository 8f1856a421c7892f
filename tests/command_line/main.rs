//! SPEC.md section 3 from outside: flags, configuration, exit codes, the commands for people and
//! scripts, and the control plane.
//!
//! "Nothing on disk is touched" is checked by a listing of names, sizes and times before and after.
#![allow(missing_docs, clippy::unwrap_used)]

mod addresses;
mod commands;
mod configuration;
mod control_plane;
mod landing;
mod records;
mod starting;
mod status;
mod strangers;
mod tokens;
mod usage;
mod verify;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use koltso_testkit::files;
use koltso_testkit::server::free_port;

const BINARY: &str = env!("CARGO_BIN_EXE_koltso");

/// Runs the binary to its end, with a deadline.
#[track_caller]
fn run_with_input(args: &[&str], input: &[u8]) -> Output {
    const WITHIN: Duration = Duration::from_secs(30);
    let mut child = Command::new(BINARY)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    // The command may end without reading its input.
    std::thread::spawn(move || drop(stdin.write_all(&input)));
    fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes);
            bytes
        })
    }
    let (stdout, stderr) = (collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap()));
    let deadline = Instant::now() + WITHIN;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{args:?} did not end within {WITHIN:?}: {}", String::from_utf8_lossy(&stderr.join().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

#[track_caller]
fn run(args: &[&str]) -> Output {
    run_with_input(args, b"")
}

#[track_caller]
fn assert_success(output: &Output, what: &str) {
    assert_eq!(output.status.code(), Some(0), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn assert_one_sentence(what: &str, output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let sentence =
        stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{what}: no line end on standard error: {stderr:?}"));
    assert!(!sentence.contains('\n'), "{what}: more than one line on standard error: {stderr:?}");
    assert!((10..=400).contains(&sentence.len()), "{what}: no sentence: {stderr:?}");
    assert!(!sentence.contains('\x1b'), "{what}: colours where no terminal is: {stderr:?}");
    sentence.to_owned()
}

/// Exit code 2, one sentence, and nothing below `watched` touched; the sentence.
#[track_caller]
fn assert_refused(what: &str, args: &[&str], watched: &Path) -> String {
    let before = files::listing(watched);
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{what}: {}; {stderr}", output.status);
    assert!(output.stdout.is_empty(), "{what}: {:?}", String::from_utf8_lossy(&output.stdout));
    let after = files::listing(watched);
    assert_eq!(before, after, "{what}: the disk was touched; {stderr}");
    assert_one_sentence(what, &output)
}

/// Arguments of a `serve` on a port of its own.
fn serve<'a>(listen: &'a str, data: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["serve", "--listen", listen, "--data", data.to_str().unwrap()];
    args.extend_from_slice(more);
    args
}

fn any_listen() -> String {
    format!("127.0.0.1:{}", free_port())
}
