//! SPEC.md section 3, settings: flags, environment variables and the file, through real processes.
//!
//! What each setting does with each value is tested without processes, in `src/settings/tests.rs`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use koltso_testkit::json::{json_object, json_string, json_value};
use koltso_testkit::server::free_port;
use koltso_testkit::{Client, Launch, eventually};

const BINARY: &str = env!("CARGO_BIN_EXE_koltso");

/// A process that ends with this guard.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the program says when it refuses these arguments and variables: one line, exit code 2.
#[track_caller]
fn refusal(args: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(BINARY);
    command.args(args).envs(variables.iter().copied()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}; {stderr}", output.status);
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("koltso: ") && stderr.len() < 400, "{args:?}: {stderr}");
    stderr.trim_end().to_owned()
}

/// The configuration in force, and the largest of some values that the server takes.
fn in_force(launch: &Launch) -> (String, Option<usize>, String) {
    let server = launch.start();
    let status = server.status();
    let taken = |&size: &usize| server.connect().put("key", vec![b'v'; size]).status == 201;
    let largest = [2500, 1500, 1000].into_iter().find(taken);
    (json_object(&status, "config").to_owned(), largest, server.log())
}

#[test]
fn variables_win_over_the_file_and_flags_over_variables() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("koltso.toml");
    std::fs::write(&config, "max-value = 2000\nsync = \"os\"\nidle-timeout = \"7m\"\n").unwrap();
    let launch = Launch::on(&folder.path().join("data"))
        .environment("KOLTSO_CONFIG", config.to_str().unwrap())
        .environment("KOLTSO_MAX_VALUE", "1KiB")
        .environment("KOLTSO_SYNC", "")
        .environment("KOLTSO_NO_PIN", "true");
    let (shown, largest, _) = in_force(&launch);
    assert_eq!((largest, json_string(&shown, "max_value")), (Some(1000), "1KiB"), "{shown}");
    assert_eq!(json_string(&shown, "sync"), "os", "an empty variable counts as unset: {shown}");
    assert_eq!(json_string(&shown, "idle_timeout"), "7m", "{shown}");
    assert!(json_value(&shown, "no_pin").starts_with("true"), "{shown}");
    let (shown, largest, _) = in_force(&launch.flags("--max-value 1600 --no-pin=false"));
    assert_eq!(largest, Some(1500), "{shown}");
    assert!(json_value(&shown, "no_pin").starts_with("false"), "{shown}");
}

#[test]
fn a_node_can_be_set_up_by_variables_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("from-a-variable");
    let port = free_port();
    let child = Command::new(BINARY)
        .arg("serve")
        .envs([("KOLTSO_LISTEN", format!("127.0.0.1:{port}")), ("KOLTSO_THREADS", "1".to_owned())])
        .env("KOLTSO_DATA", &data)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _guard = Guard(child.unwrap());
    eventually("the server listens where the variable says", Duration::from_secs(30), || {
        let client = Client::connect(([127, 0, 0, 1], port).into());
        client.is_ok_and(|mut client| client.put("key", "value").status == 201)
    });
    assert!(data.join("FORMAT").exists(), "the data is not where the variable says");
}

#[test]
fn a_variable_that_is_no_setting_has_a_warning_only_if_it_looks_misspelt() {
    let folder = tempfile::tempdir().unwrap();
    let launch = Launch::on(&folder.path().join("data"))
        .environment("KOLTSO_SEED", "1")
        .environment("KOLTSO_SERVICE_HOST", "10.0.0.1")
        .environment("KOLTSO_MAX_VALEU", "1KiB");
    let (shown, largest, log) = in_force(&launch);
    assert_eq!(largest, Some(2500), "{shown}");
    let said: Vec<&str> = log.lines().filter(|line| line.contains("KOLTSO_")).collect();
    assert_eq!(said.len(), 1, "{log}");
    assert!(said[0].contains("KOLTSO_MAX_VALEU") && said[0].contains("did you mean KOLTSO_MAX_VALUE?"), "{log}");
}

#[test]
fn a_wrong_variable_is_one_sentence_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for (name, value, allowed) in [
        ("KOLTSO_LISTEN", "nowhere", "HOST:PORT"),
        ("KOLTSO_THREADS", "two", "a number from 1 to 256"),
        ("KOLTSO_MAX_VALUE", "64MiB", "a size from 1 to 32MiB"),
        ("KOLTSO_REPLICA_TIMEOUT", "10", "a duration from 10ms to 60s"),
        ("KOLTSO_NO_PIN", "perhaps", "true or false"),
        ("KOLTSO_CLUSTER", "a", "a URL such as"),
        ("KOLTSO_CONFIG", "/nonexistent/koltso.toml", "No such file"),
    ] {
        let sentence = refusal(&["serve", "--data", data.to_str().unwrap()], &[(name, value)]);
        assert!(sentence.starts_with(&format!("koltso: {name}={value}")), "{sentence}");
        assert!(sentence.contains(allowed), "{sentence}");
        assert!(!data.exists(), "{name}: the folder was made");
    }
}

#[test]
fn an_error_of_the_file_names_file_line_and_key_and_says_what_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let (config, data) = (folder.path().join("koltso.toml"), folder.path().join("data"));
    for (line, allowed) in [
        ("max-value = true", "max-value = true is not a size from 1 to 32MiB"),
        ("threads = \"two\"", "threads = \"two\" is not a number from 1 to 256"),
        ("listen: x", "a line is listen = VALUE, with HOST:PORT such as 127.0.0.1:1337 as the value"),
        ("max_value = 0", "max_value = 0 is not a size from 1 to 32MiB"),
        ("max-walue = 1", "max-walue is not a setting; did you mean max-value?"),
        ("request-timeout = 10", "request-timeout = 10 is not a duration from 1ms to 365d, with its unit"),
        ("node = \"http://127.0.0.1:1\"", "node needs --cluster"),
        ("admin-token-file = \"/nonexistent/token\"", "admin-token-file = \"/nonexistent/token\": No such file"),
    ] {
        std::fs::write(&config, format!("# koltso\nsync = \"os\"\n{line}\n")).unwrap();
        let path = config.to_str().unwrap();
        let sentence = refusal(&["serve", "--data", data.to_str().unwrap(), "--config", path], &[]);
        assert!(sentence.starts_with(&format!("koltso: {path}:3: ")), "{line}: {sentence}");
        assert!(sentence.contains(allowed), "{line}: {sentence}");
        assert!(!data.exists(), "{line}: the folder was made");
    }
}

#[test]
fn durations_and_sizes_have_one_grammar() {
    let folder = tempfile::tempdir().unwrap();
    let flags = "--request-timeout 1500ms --idle-timeout 1d --max-in-flight-bytes 1GiB --max-value 65536 \
                 --compaction-rate 64KiB";
    let (shown, ..) = in_force(&Launch::on(&folder.path().join("data")).flags(flags));
    for (name, value) in [
        ("request_timeout", "1500ms"),
        ("idle_timeout", "24h"),
        ("max_in_flight_bytes", "1GiB"),
        ("max_value", "64KiB"),
        ("compaction_rate", "64KiB"),
    ] {
        assert_eq!(json_string(&shown, name), value, "{shown}");
    }
    // In a cluster, which a node alone does not show.
    let list = format!("http://127.0.0.1:{0},http://127.0.0.1:{1}", free_port(), free_port());
    let sentence = refusal(&["serve", "--cluster", &list, "--idle-timeout", "10d"], &[]);
    assert!(sentence.contains("is not one of the nodes"), "10d is no duration: {sentence}");
    // The units of the input and of the range, not bytes or milliseconds.
    let sentence = refusal(&["serve", "--max-value", "64MiB"], &[]);
    assert!(sentence.contains("--max-value 64MiB is not a size from 1 to 32MiB"), "{sentence}");
    let sentence = refusal(&["put", "key", "value", "--ttl", "0s"], &[]);
    assert!(sentence.contains("`0s` is too short: the shortest duration is 1ms"), "{sentence}");
}

#[test]
fn a_size_that_is_hardly_meant_in_bytes_is_taken_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("koltso.toml");
    std::fs::write(&config, "max_value = 1\n").unwrap();
    let launch = Launch::on(&folder.path().join("data"));
    let (_, _, log) = in_force(&launch.clone().flags(&format!("--config {}", config.display())));
    let expected = "koltso.toml:1: max_value = 1 is 1 byte: a size without a unit is in bytes";
    assert_eq!(log.lines().filter(|line| line.contains("WARN") && line.contains(expected)).count(), 1, "{log}");
    for flags in ["--max-value 1MiB", "--max-value 65536"] {
        let (_, _, log) = in_force(&launch.clone().flags(flags));
        assert!(!log.contains("without a unit"), "{flags}: {log}");
    }
}

/// What is given in days is refused in days.
#[test]
fn sentences_about_values_have_the_units_in_which_they_were_given() {
    let bench = |flag: &'static str| ["bench", "-R1", flag, "http://127.0.0.1:1"];
    for (args, says) in [
        (bench("-d8d"), "-d 8d is out of range: it is 100ms to 7d"),
        (bench("-d0"), "-d 0 is out of range"),
        (bench("--timeout=2h"), "--timeout 2h is out of range: it is 1ms to 1h"),
        (bench("-c100k"), "-c 100k is out of range"),
        (bench("--size=1GiB"), "--size 1GiB is out of range: it is 0 to 64MiB"),
        (["put", "key", "value", "--ttl=2000000d"], "'2000000d'"),
        (["serve", "--idle-timeout", "400d", "--no-pin"], "--idle-timeout 400d is not a duration from 1ms to 365d"),
        (["serve", "--replica-timeout", "1d", "--no-pin"], "--replica-timeout 1d is not"),
        (["local", "--max-value", "64MiB", "--no-pin"], "--max-value 64MiB is not a size from 1 to 32MiB"),
    ] {
        let sentence = refusal(&args, &[]);
        assert!(sentence.contains(says) && sentence.contains("Usage: koltso "), "{args:?}: {sentence}");
    }
}

#[test]
fn a_wrong_flag_has_the_usage_of_its_command_and_what_was_probably_meant() {
    for (args, parts) in [
        (&["serve", "--lisen", "x"][..], &["--lisen", "did you mean --listen?", "Usage: koltso serve "][..]),
        (&["serve", "--sync"], &["--sync", "Usage: koltso serve ", "koltso serve --help"]),
        (&["serv"], &["serv", "did you mean serve?", "Usage: koltso <COMMAND>"]),
        (&["put"], &["<KEY>", "Usage: koltso put "]),
        (&["bench", "--rate", "x"], &["x", "Usage: koltso bench "]),
        (&["local", "--node", "3"], &["--node"]),
        (&[], &["a command is missing", "koltso --help"]),
    ] {
        let sentence = refusal(args, &[]);
        assert!(parts.iter().all(|part| sentence.contains(part)), "{args:?}: {sentence}");
    }
}
