//! Members that are known by a name.

use std::path::Path;
use std::process::Command;

use crate::{CAUGHT_UP_WITHIN, QUORUM, SAID_WITHIN};
use koltso_testkit::server::free_port;
use koltso_testkit::skip::{self, Remedy, skip};
use koltso_testkit::{Launch, Server, eventually};
use serde_json::Value;

/// The host of the node that moves.
const NAME: &str = "wanderer.test";

/// Gives a command `/etc/hosts` and `/etc/nsswitch.conf` of its own, in a mount namespace.
const MOUNTED: &str =
    "mount --bind \"$1\" /etc/hosts && mount --bind \"$2\" /etc/nsswitch.conf && shift 2 && exec \"$@\"";

fn within<'a>(hosts: &'a Path, switch: &'a Path) -> [&'a str; 9] {
    let (hosts, switch) = (hosts.to_str().unwrap(), switch.to_str().unwrap());
    ["unshare", "-m", "sh", "-c", MOUNTED, "sh", hosts, switch, "env"]
}

/// In place: what is mounted is this file, and not its name.
fn hosts(file: &Path, address: Option<&str>) {
    let line = address.map_or(String::new(), |address| format!("{address} {NAME}\n"));
    std::fs::write(file, format!("127.0.0.1 localhost\n{line}")).unwrap();
}

/// What a node says of the one that moves.
fn wanderer(server: &Server) -> Value {
    let status: Value = serde_json::from_str(&server.status()).unwrap();
    let peers = status["cluster"]["peers"].as_array().unwrap().clone();
    peers.into_iter().find(|peer| peer["node"].as_str().unwrap().contains(NAME)).unwrap()
}

#[test]
fn a_member_is_found_wherever_its_name_leads() {
    if skip::tool("unshare", "util-linux").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (theirs, own, switch) = (at("hosts-of-two"), at("hosts-of-one"), at("nsswitch"));
    std::fs::write(&switch, "hosts: files\n").unwrap();
    hosts(&theirs, None);
    hosts(&own, Some("127.0.0.2"));
    let command = within(&own, &switch);
    let looked = Command::new(command[0]).args(&command[1..]).args(["getent", "hosts", NAME]).output().unwrap();
    if !looked.status.success() {
        let reason = String::from_utf8_lossy(&looked.stderr).trim().to_owned();
        return skip(format!("no mount namespaces: {reason}"), Remedy::Root);
    }

    let ports = [free_port(), free_port(), free_port()];
    let list = format!("http://127.0.0.1:{},http://127.0.0.1:{},http://{NAME}:{}", ports[0], ports[1], ports[2]);
    let launch = |index: usize, host: &str, hosts: &Path| {
        let launch = Launch::on(&at(&format!("node{index}"))).host(host).port(ports[index]);
        let launch = launch.flags(&format!("--threads 1 --no-pin --cluster {list}"));
        launch.within(&within(hosts, &switch))
    };
    // A name that leads nowhere keeps nobody from starting.
    let nodes = [0, 1].map(|index| launch(index, "127.0.0.1", &theirs).start());
    for node in &nodes {
        eventually("the name is `down` with a sentence", SAID_WITHIN, || {
            let said = wanderer(node);
            let sentence = said["refused"].as_str().unwrap_or_default().to_owned();
            said["state"] == "down" && sentence.contains(NAME) && sentence.contains("cannot be resolved")
        });
    }
    eventually("the two serve without it", SAID_WITHIN, || {
        nodes[0].connect().put_of("missed", "value", QUORUM).status == 201
    });

    for address in ["127.0.0.2", "127.0.0.3"] {
        hosts(&own, Some(address));
        let launch = launch(2, address, &own).flags(&format!("--node {NAME}:{}", ports[2]));
        let mut moved = launch.start();
        hosts(&theirs, Some(address));
        for node in &nodes {
            eventually(&format!("it is found at {address}"), CAUGHT_UP_WITHIN, || {
                let said = wanderer(node);
                said["state"] == "up" && said["hints_pending"] == 0
            });
        }
        let mut client = nodes[1].connect();
        client.put_of("key", address, (3, 3)).expect(201, "PUT 3/3");
        assert_eq!(moved.connect().value_of("missed", (3, 3)).as_deref(), Some(&b"value"[..]));
        moved.kill();
        client.put_of("missed-again", address, QUORUM).expect(201, "PUT 2/3 while it moves");
    }
}
