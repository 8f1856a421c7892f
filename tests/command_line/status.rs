//! `koltso status`: a line a node, a last line in words, and the exit code.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use koltso_testkit::{Cluster, Launch, Server, eventually};
use serde_json::Value;

use crate::{BINARY, any_listen, assert_one_sentence, run};

/// The text and the exit code.
fn status(args: &[&str]) -> (String, Option<i32>) {
    let output = run(&[&["status"], args].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    (text + &String::from_utf8_lossy(&output.stderr), output.status.code())
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

#[test]
fn a_node_by_itself_is_shown_and_whole() {
    let server = Server::fresh("--threads 1");
    server.connect().store("key", "value");
    let (text, code) = status(&["--url", &server.url()]);
    assert_eq!((code, last_line(&text)), (Some(0), "The node serves."), "{text}");
    let row = text.lines().nth(1).unwrap();
    for part in [&*server.url(), "up", env!("CARGO_PKG_VERSION"), " 1 ", "free)"] {
        assert!(row.contains(part), "{part}: {text}");
    }
    let (text, code) = status(&["--url", &server.url(), "--json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &document["whole"]), (Some(0), &Value::Bool(true)), "{text}");
    assert!(document["nodes"][0]["disk_free_bytes"].as_u64().unwrap() > 0, "{text}");
}

#[test]
fn any_node_leads_to_all_and_a_dead_one_is_named() {
    let mut cluster = Cluster::of(3);
    cluster.wait_up();
    let url = cluster.url(1);
    eventually("the cluster is whole", Duration::from_secs(30), || status(&["--url", &url]).1 == Some(0));
    let (text, _) = status(&["--url", &url]);
    for node in 0..3 {
        let row = text.lines().find(|line| line.starts_with(&cluster.url(node))).unwrap_or_else(|| panic!("{text}"));
        assert!(row.contains(" up "), "{text}");
    }
    assert!(last_line(&text).contains("all 3 nodes"), "{text}");
    cluster.kill(2);
    let dead = cluster.url(2);
    let is_down = || {
        let (text, code) = status(&["--url", &url]);
        code == Some(1) && last_line(&text).contains(&format!("{dead} is down. Start it again"))
    };
    eventually("the dead node is named", Duration::from_secs(30), is_down);
    // The dead one cannot be asked first, and another that is named as well can.
    let (text, code) = status(&["--url", &dead, "--url", &url]);
    assert!(code == Some(1) && text.contains(&dead), "{text}");
    cluster.start(2);
    eventually("the cluster is whole again", Duration::from_secs(30), || status(&["--url", &url]).1 == Some(0));
}

#[test]
fn a_node_that_asks_for_a_token_gets_it() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "correct-horse-battery\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (file, admin) = (file.to_str().unwrap(), any_listen());
    let flags = format!("--threads 1 --admin-token-file {file} --admin-listen {admin}");
    let server = Launch::on(&folder.path().join("data")).flags(&flags).start();
    for url in [server.url(), format!("http://{admin}")] {
        let (text, code) = status(&["--url", &url, "--token-file", file]);
        assert!(code == Some(0) && text.contains(&server.url()), "{text}");
        let output = run(&["status", "--url", &url]);
        let sentence = assert_one_sentence("without a token", &output);
        assert!(output.status.code() == Some(2) && sentence.contains("401"), "{sentence}");
    }
}

#[test]
fn watching_goes_on_and_prints_a_block_a_second_where_there_is_no_terminal() {
    let server = Server::fresh("--threads 1");
    let mut child = Command::new(BINARY)
        .args(["status", "--watch", "--url", &server.url()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let blocks = lines.filter(|line| line == "The node serves.").take(3).count();
    assert_eq!(blocks, 3);
    // Its reader is gone: it ends by itself, quietly.
    let mut ended = None;
    eventually("it ends", Duration::from_secs(10), || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(0));
}
