//! What a wrong command line is answered with: one line that says what is wrong, what was probably
//! meant and the usage, and exit code 2. And what the help of each command lists.

use crate::{assert_one_sentence, run};

const COMMANDS: [&str; 9] = ["serve", "local", "bench", "get", "put", "delete", "scan", "profile", "status"];

#[test]
fn a_wrong_command_line_says_what_was_meant_and_the_usage_of_the_command() {
    let usage = |command: &str| format!("Usage: koltso {command} [");
    for (args, parts) in [
        (&["put"][..], vec!["not provided: <KEY>".to_owned(), usage("put"), "koltso put --help".to_owned()]),
        (&["get"], vec!["not provided: <KEY>".into(), usage("get")]),
        (&["serve", "--lisen", "x"], vec!["'--lisen'".into(), "did you mean --listen?".into(), usage("serve")]),
        (&["put", "k", "v", "--tl", "1s"], vec!["did you mean --ttl?".into(), usage("put")]),
        (&["serv"], vec!["'serv'".into(), "did you mean serve?".into(), "Usage: koltso <COMMAND>".into()]),
        (&["gte", "a"], vec!["did you mean get?".into(), "Usage: koltso <COMMAND>".into()]),
        (&["set", "a", "b"], vec!["did you mean put?".into()]),
        (&["ls"], vec!["did you mean scan?".into()]),
        (&["help", "serv"], vec!["did you mean serve?".into(), "Usage: koltso <COMMAND>".into()]),
        (
            &["serve", "--log-level", "inof"],
            vec!["--log-level inof".into(), "did you mean info?".into(), usage("serve")],
        ),
        (&["serve", "--log-format=JSON"], vec!["text or json".into(), "did you mean json?".into()]),
        (&["serve", "--sync", "alwais"], vec!["did you mean always?".into(), usage("serve")]),
        (&["local", "--sync", "alwais"], vec!["did you mean always?".into(), usage("local")]),
        (&["profile", "--event", "cpuu", "http://127.0.0.1:1"], vec!["did you mean cpu?".into(), usage("profile")]),
        (&["profile"], vec!["a node or a file is missing".into(), usage("profile")]),
        (&["bench"], vec!["-R is missing".into(), usage("bench")]),
        (&["bench", "-R1"], vec!["a URL is missing".into(), usage("bench")]),
        (&["verify"], vec!["not provided: <DIR>".into(), usage("verify")]),
        (&["verify", "a", "--jsn"], vec!["did you mean --json?".into(), usage("verify")]),
        (&["fsck", "a"], vec!["did you mean verify?".into(), "Usage: koltso <COMMAND>".into()]),
        (&["get", "a", "--ack"], vec!["'--ack <N>'".into(), usage("get")]),
        (&["serve", "--sync"], vec!["'--sync <MODE>'".into(), usage("serve")]),
        (&["get", "a", "--ack", "1", "--ack", "2"], vec!["--ack".into(), "multiple times".into(), usage("get")]),
        (&["get", "a", "b"], vec!["'b'".into(), usage("get")]),
        (&["serve", "extra"], vec!["'extra'".into(), usage("serve")]),
        (&["get", "-x"], vec!["'-x'".into(), "use '-- -x'".into(), usage("get")]),
        (&["local", "--nodes", "0"], vec!["1 to 16".into(), usage("local")]),
        (&["--lisen"], vec!["'--lisen'".into(), "Usage: koltso <COMMAND>".into()]),
        (&[], vec!["a command is missing".into(), "koltso --help".into()]),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let sentence = assert_one_sentence(&format!("{args:?}"), &output);
        assert!(sentence.starts_with("koltso: "), "{args:?}: {sentence}");
        assert!(parts.iter().all(|part| sentence.contains(part)), "{args:?}: {parts:?}: {sentence}");
    }
}

#[test]
fn a_wrong_number_is_told_in_words_and_not_in_those_of_rust() {
    for args in [
        &["get", "a", "--ack", "x"][..],
        &["scan", "--limit", "-1"],
        &["scan", "--limit=1.5"],
        &["local", "--nodes", "three"],
        &["local", "--port", "70000"],
        &["bench", "-R1", "--seed", "x", "http://127.0.0.1:1"],
        &["profile", "--hz", "x", "http://127.0.0.1:1"],
        &["profile", "--seconds", "x", "http://127.0.0.1:1"],
        &["serve", "--threads", "two"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let sentence = assert_one_sentence(&format!("{args:?}"), &output);
        for word in ["invalid digit", "too large to fit", "error:"] {
            assert!(!sentence.contains(word), "{args:?}: {sentence}");
        }
    }
}

/// What the options of a command are in its help: the long names.
fn listed(command: &str) -> Vec<String> {
    let help = run(&[command, "--help"]);
    assert_eq!(help.status.code(), Some(0), "{command} --help");
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(text.contains(&format!("Usage: koltso {command}")), "{text}");
    // At the beginning of a line, perhaps after a short name.
    let of_a_line = |line: &str| {
        let line = line.trim_start();
        let line = if line.starts_with('-') && !line.starts_with("--") { line.get(4..)? } else { line };
        let name = line.strip_prefix("--")?;
        Some(name.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next()?.to_owned())
    };
    text.lines().filter_map(of_a_line).collect()
}

#[test]
fn the_help_of_each_command_lists_what_it_takes_and_nothing_else() {
    let mut all: Vec<String> = COMMANDS.iter().flat_map(|command| listed(command)).collect();
    all.sort();
    all.dedup();
    assert!(all.len() > 50, "{all:?}");
    for command in COMMANDS {
        let own = listed(command);
        assert!(own.len() > 4, "{command}: {own:?}");
        for name in all.iter().filter(|name| *name != "help") {
            // An empty value is wrong for nearly every flag, so that nothing is started.
            let output = run(&[command, &format!("--{name}="), "--no-such-flag"]);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{command} --{name}=: {text}");
            // Those that `local` chooses itself are known to it, to say why they are refused.
            let is_taken = !text.contains(&format!("unexpected argument '--{name}"));
            let is_chosen = command == "local" && !own.contains(name) && is_refused_by_local(name);
            assert_eq!(is_taken, own.contains(name) || is_chosen, "{command} --{name}: {text}");
        }
    }
}

fn is_refused_by_local(name: &str) -> bool {
    let value = match name {
        "listen" | "admin-listen" | "replica-listen" | "node" | "cluster" => "127.0.0.1:1",
        _ => return false,
    };
    let output = run(&["local", &format!("--{name}={value}")]);
    assert_eq!(output.status.code(), Some(2), "local --{name}");
    assert_one_sentence(name, &output).contains(&format!("--{name} is not for koltso local"))
}

#[test]
fn help_is_at_hand_everywhere() {
    for command in COMMANDS {
        for args in [&[command, "-h"][..], &["help", command], &[command, "--help"]] {
            let output = run(args);
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(output.status.code(), Some(0), "{args:?}");
            assert!(text.contains(&format!("Usage: koltso {command}")) && output.stderr.is_empty(), "{args:?}: {text}");
        }
    }
    for args in [&["-h"][..], &["--help"], &["help"], &["--version"], &["-V"]] {
        let output = run(args);
        assert!(output.status.code() == Some(0) && !output.stdout.is_empty(), "{args:?}");
    }
}
