//! A member of the cluster that speaks the protocol and lies: it answers about another key than the
//! one it was asked for, or tells of versions from the far future or from no time at all.
//!
//! Unlike the other tests of this folder it uses the project's own crates, to be believed as a
//! member.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use koltso_cluster::placement::Topology;
use koltso_model::{Flags, Found, KeyHash, Outcome, Tombstone, Version};
use koltso_net::replica::frame::{Limits, Parsed, encode_reply, parse_request};
use koltso_net::replica::handshake::{Acceptor, Progress};
use koltso_net::replica::{Features, Identity, Introduction, NoMemory, Reply, Request};
use koltso_testkit::cluster::Quorum;
use koltso_testkit::{Cluster, eventually, wall_ms};

const LIMITS: Limits = Limits { value_max: 32 << 20, features: Features::KNOWN };

/// What a liar says to a request about the key with this hash: the hash of the key that its answer
/// is about, and the answer.
type Lie = fn(KeyHash) -> (KeyHash, Outcome<&'static [u8]>);

/// Shakes hands as the member it claims to be, then lies.
fn lie(mut socket: TcpStream, identity: &Identity, members: &[u16], lie: Lie) {
    let (mut read, mut out, mut buffer) = (Vec::new(), Vec::new(), [0; 4096]);
    let mut acceptor = Acceptor::new(identity, members, &NoMemory, [7; 32]);
    let mut accepted = false;
    loop {
        while !read.is_empty() {
            if accepted {
                let Parsed::Complete { frame, len } = parse_request(&read, LIMITS) else {
                    break;
                };
                let (hash, reply) = match frame.request {
                    Request::Ping { .. } => (KeyHash(0), Reply::Pong { wall_ms: wall_ms(), clock: u64::MAX }),
                    Request::Execute(operation) => {
                        let (hash, outcome) = lie(operation.key().hash());
                        (hash, Reply::Outcome(outcome))
                    }
                };
                encode_reply(&mut out, frame.number, frame.epoch, hash, &reply);
                read.drain(..len);
            } else {
                let consumed = match acceptor.feed(&read, wall_ms(), &mut out).unwrap() {
                    Progress::More { consumed } => consumed,
                    Progress::Done { consumed, .. } => {
                        accepted = true;
                        consumed
                    }
                };
                read.drain(..consumed);
                if consumed == 0 {
                    break;
                }
            }
        }
        if socket.write_all(&out).is_err() {
            return;
        }
        out.clear();
        match socket.read(&mut buffer) {
            Ok(count) if count > 0 => read.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
}

/// A cluster of two, one of them a liar.
fn with_a_liar(told: Lie) -> Cluster {
    let cluster = Cluster::planned(2, |index, launch, _| (index == 0).then_some(launch));
    let urls = [cluster.url(0), cluster.url(1)];
    let topology = Topology::new(&urls, &urls[1]).unwrap();
    let identity = Identity {
        cluster: "koltso".to_owned(),
        topology: topology.id(),
        topology_number: 1,
        node: topology.number(topology.me()),
        introduction: Introduction::default(),
        features: Features::KNOWN,
        secret: Vec::new(),
    };
    let members = topology.numbers().to_vec();
    let listener = TcpListener::bind(cluster.replica_address(1)).unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let (identity, members) = (identity.clone(), members.clone());
            std::thread::spawn(move || lie(socket, &identity, &members, told));
        }
    });
    eventually("the liar is believed", Duration::from_secs(5), || cluster.sees(0, 1));
    cluster
}

/// What is confirmed by such a member is not; the sentence is in the log, once; what can be done
/// without it is done.
fn assert_not_believed(cluster: &Cluster, sentence: &str) {
    let both: Quorum = (2, 2);
    let mut client = cluster.client(0);
    let refused = client.put_of("key", "value", both).expect(504, "PUT 2/2, confirmed by a liar");
    assert!(refused.text().contains(&cluster.url(1)), "{}", refused.text());
    client.put_of("key", "value", (1, 2)).expect(201, "PUT 1/2");
    eventually("it is in the log", Duration::from_secs(5), || cluster.log(0).contains(sentence));
    assert!(cluster.log(0).lines().count() < 30, "a flood of lines:\n{}", cluster.log(0));
    assert_eq!(client.value_of("key", (1, 2)).as_deref(), Some(&b"value"[..]));
    eventually("the write that it never took is kept for it", Duration::from_secs(5), || {
        cluster.hints_pending(0, 1) > 0
    });
    // It is connected again at once, and what was kept is replayed: its word for that is worth no
    // more.
    std::thread::sleep(Duration::from_secs(1));
    assert!(cluster.hints_pending(0, 1) > 0, "a liar was believed that it has what it missed:\n{}", cluster.log(0));
}

fn assert_version_of_now(cluster: &Cluster) {
    let tag = cluster.client(0).get_of("key", (1, 2)).expect(200, "GET 1/2").header("etag").unwrap().to_owned();
    let clock = u64::from_str_radix(&tag[1..17], 16).unwrap();
    assert!((clock >> 16).abs_diff(wall_ms()) < 60_000, "a version from another time: {tag}");
}

#[test]
fn a_member_that_answers_about_another_key_confirms_nothing() {
    let cluster = with_a_liar(|_| (KeyHash(0x1234), Outcome::Applied));
    assert_not_believed(&cluster, "another key");
}

#[test]
fn a_member_from_the_far_future_takes_no_clock_along() {
    let cluster = with_a_liar(|key| (key, Outcome::Superseded(Version::new(u64::MAX - 7, 1))));
    assert_not_believed(&cluster, "more than a year ahead");
    assert_version_of_now(&cluster);
}

#[test]
fn a_value_from_the_far_future_is_neither_answered_nor_taken_over() {
    let cluster = with_a_liar(|key| {
        let (version, flags) = (Version::new(u64::MAX - 7, 1), Flags::new(2));
        let value = Some(&b"lie"[..]);
        let found = Found { version, expires_at_ms: 0, flags, attributes: &[][..], value_len: 3, value };
        (key, Outcome::Found(found))
    });
    assert_not_believed(&cluster, "more than a year ahead");
    cluster.client(0).get_of("key", (2, 2)).expect(504, "GET 2/2, answered by a liar");
    assert_version_of_now(&cluster);
}

#[test]
fn a_tombstone_of_no_time_is_not_taken_over() {
    let cluster = with_a_liar(|key| {
        let tombstone = Tombstone { version: Version::new(0, 1), flags: Flags::new(2) };
        (key, Outcome::Absent(Some(tombstone)))
    });
    // Nothing is here, so that the reader would repair this node with what the other has.
    cluster.client(0).get_of("absent", (2, 2)).expect(504, "GET 2/2, answered by a liar");
    assert_not_believed(&cluster, "clock 0");
    assert_version_of_now(&cluster);
}
