//! A member of the cluster that speaks the protocol and lies: it answers about another key than the
//! one it was asked for, tells of versions from the far future or from no time at all, or makes
//! something up when replicas are compared.
//!
//! Unlike the other tests of this folder it uses the project's own crates, to be believed as a
//! member.
#![allow(missing_docs, clippy::unwrap_used)]

mod comparing;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use koltso_cluster::placement::Topology;
use koltso_model::{ExchangeReply, ExchangeRequest, Flags, Found, KeyHash, Outcome, Refused, Tombstone, Version};
use koltso_net::replica::blocking::{AnswerConfig, Answering};
use koltso_net::replica::frame::exchange::Asked;
use koltso_net::replica::frame::{Limits, Parsed, encode_reply, parse_request};
use koltso_net::replica::handshake::{Acceptor, Progress};
use koltso_net::replica::{
    Epoch, Features, Identity, Introduction, NoMemory, PeerIdentity, Purpose, Reply, Request, Secrets,
};
use koltso_testkit::cluster::Quorum;
use koltso_testkit::{Cluster, eventually, wall_ms};

const LIMITS: Limits = Limits { value_max: 32 << 20, features: Features::KNOWN };

/// What a liar says to a request about the key with this hash: the hash of the key that its answer
/// is about, and the answer.
type Lie = fn(KeyHash) -> (KeyHash, Outcome<&'static [u8]>);

/// What it says when replicas are compared; nothing more for `None`.
pub type Comparing = Arc<dyn Fn(&ExchangeRequest) -> Option<ExchangeReply> + Send + Sync>;

/// A member that is none.
#[derive(Clone)]
pub struct Liar {
    pub identity: Identity,
    members: Vec<u16>,
    lie: Lie,
    comparing: Comparing,
}

/// Answers a connection over which replicas are compared.
fn compare(peer: PeerIdentity, socket: TcpStream, read_so_far: &[u8], liar: &Liar) {
    let stop = Arc::new(AtomicBool::new(false));
    let config = AnswerConfig { identity: &liar.identity, value_max: LIMITS.value_max, stop };
    let mut answering = Answering::new(peer, socket, read_so_far, &config);
    loop {
        let said = match answering.next_request() {
            Err(_) => return,
            Ok(Asked::Ping { clock, .. }) => answering.pong(wall_ms(), clock),
            Ok(Asked::Execute(_)) => answering.answer(&Outcome::Refused(Refused::NotReady)),
            Ok(Asked::Exchange(request)) => match (liar.comparing)(&request) {
                Some(reply) => answering.reply(&reply),
                None => {
                    std::thread::sleep(Duration::from_secs(60));
                    return;
                }
            },
        };
        if said.is_err() {
            return;
        }
    }
}

/// Shakes hands as the member it claims to be, then lies.
fn lie(mut socket: TcpStream, liar: &Liar) {
    let Liar { identity, members, lie, .. } = liar;
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
                    Progress::Done { consumed, peer } if peer.purpose == Purpose::Exchange => {
                        socket.write_all(&out).unwrap();
                        return compare(peer, socket, &read[consumed..], liar);
                    }
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

/// A cluster of two, of which node 1 is a liar. When replicas are compared, it says nothing.
fn with_a_liar(told: Lie) -> Cluster {
    let cluster = Cluster::planned(2, |index, launch, _| (index == 0).then_some(launch));
    let urls = [cluster.url(0), cluster.url(1)];
    let liar = liar(&Topology::new(&urls, &urls[1]).unwrap(), told, Arc::new(|_| None));
    let listener = TcpListener::bind(cluster.replica_address(1)).unwrap();
    lie_at(listener, liar);
    eventually("the liar is believed", Duration::from_secs(5), || cluster.sees(0, 1));
    cluster
}

/// A liar in the place of the node that this topology is seen from.
fn liar(topology: &Topology, lie: Lie, comparing: Comparing) -> Liar {
    let identity = Identity {
        cluster: "koltso".to_owned(),
        topology: topology.id(),
        epoch: Epoch::new(1),
        node: topology.number(topology.me()),
        introduction: Introduction::default(),
        features: Features::KNOWN,
        secrets: Secrets::default(),
    };
    Liar { identity, members: topology.numbers().collect(), lie, comparing }
}

/// Lies to all who connect.
fn lie_at(listener: TcpListener, liar: Liar) {
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let liar = liar.clone();
            std::thread::spawn(move || lie(socket, &liar));
        }
    });
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
