//! Requests of one connection take effect in their order, whatever a peer does meanwhile.

use std::collections::HashMap;
use std::time::Duration;

use koltso_testkit::client::request_bytes;
use koltso_testkit::cluster::entity_of;
use koltso_testkit::{Cluster, Random};

use crate::{PATIENTLY, QUORUM};

const ROUNDS: usize = 12;
const REQUESTS: usize = 80;

#[test]
fn pipelined_requests_of_any_mix_act_in_order_while_a_peer_stalls() {
    let mut random = Random::announced("pipelined_requests_of_any_mix_act_in_order_while_a_peer_stalls");
    // What matters is the order, not how soon.
    let mut cluster = Cluster::with(3, PATIENTLY);
    let keys = ["a", "b", "c"];
    let mut stored: HashMap<&str, Vec<u8>> = HashMap::new();
    for round in 0..ROUNDS {
        // What each request has to be answered with, after all those before it and none behind it.
        let (mut batch, mut expected) = (Vec::new(), Vec::new());
        for number in 0..REQUESTS {
            let key = keys[random.below(keys.len())];
            let target = entity_of(key, QUORUM);
            match random.below(8) {
                0..3 => {
                    // Some leave with their heads, and some are sent by themselves.
                    let mut value = format!("{round}-{number} ").into_bytes();
                    value.resize(value.len() + *random.choose(&[0, 0, 3_000, 40_000]), b'v');
                    batch.extend_from_slice(&request_bytes("PUT", &target, &[], Some(&value)));
                    expected.push(("PUT", key, 201, None));
                    stored.insert(key, value);
                }
                3 => {
                    batch.extend_from_slice(&request_bytes("DELETE", &target, &[], None));
                    expected.push(("DELETE", key, 202, None));
                    stored.remove(key);
                }
                _ => {
                    batch.extend_from_slice(&request_bytes("GET", &target, &[], None));
                    let value = stored.get(key).cloned();
                    expected.push(("GET", key, if value.is_some() { 200 } else { 404 }, value));
                }
            }
        }
        let through = random.below(2);
        let mut client = cluster.client(through);
        std::thread::scope(|scope| {
            // A client that does not read while it sends must not wait for the server, which does.
            let mut sender = client.stream().try_clone().unwrap();
            scope.spawn(move || std::io::Write::write_all(&mut sender, &batch).unwrap());
            std::thread::sleep(Duration::from_micros(random.below(3_000)));
            cluster.pause(2);
            for (number, (method, key, status, value)) in expected.into_iter().enumerate() {
                if number == REQUESTS / 2 {
                    cluster.resume(2);
                }
                let what = format!("round {round}, request {number}: {method} {key} through node {through}");
                let answer = client.read(method).expect(status, &what);
                assert!(value.is_none_or(|value| answer.body == value), "{what}: another value");
            }
        });
    }
}
