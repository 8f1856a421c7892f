//! The connections over which missed writes are replayed: blocking ones, on the threads of the
//! hints' keeper, so that a data core never waits for a file or for a peer that catches up.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use koltso_cluster::plausibility;
use koltso_cluster::skew::SKEW_MAX_MS;
use koltso_hints::{Dial, Keeper, Options, PeerAddress, Target, Verdict};
use koltso_model::{KeyHash, Operation, Record, Standing, VALUE_MAX_LIMIT};
use koltso_net::replica::blocking::{Connection, DialConfig};
use koltso_net::replica::frame::{ReplyFrame, encode_request};
use koltso_net::replica::{Acquaintances, Epoch, Features, Identity, Purpose, Reply, Request};

use super::Cluster;
use super::names::PeerName;
use super::standing::OwnStanding;
use super::urls::UrlsByNumber;
use crate::replica::clock::{elapsed_ms, now_wall, told_ms};

/// How long a peer may take for the handshake, and for the confirmations of a window.
const PATIENCE: Duration = Duration::from_millis(500);

struct Dialer {
    /// By node.
    addresses: Vec<(Arc<PeerName>, u16)>,
    identity: Identity,
    acquaintances: Arc<dyn Acquaintances>,
    /// Is told whom a dial has met; `None` in tests.
    standing: Option<Arc<OwnStanding>>,
    urls: UrlsByNumber,
}

struct Line {
    connection: Connection,
    /// What this node announced: the peer takes nothing else from it.
    features: Features,
    buffer: Vec<u8>,
}

/// How long a hint is kept.
pub(super) fn age_max() -> Duration {
    Options::new(elapsed_ms).age_max
}

/// Starts the keeper of this node's hints.
pub(super) fn start(cluster: &Cluster, data: &Path) -> std::io::Result<Arc<Keeper>> {
    let members = cluster.names.iter().zip(cluster.topology.numbers());
    let addresses = members.map(|(name, number)| (name.clone(), number)).collect();
    let dialer = Dialer {
        addresses,
        identity: cluster.identity(),
        acquaintances: cluster.acquaintances(),
        standing: Some(cluster.acquaintances()),
        urls: cluster.urls_by_number(),
    };
    let peers = cluster.topology.peers();
    let peers =
        peers.map(|node| PeerAddress { node: node.at(), url: cluster.topology.name(node).to_owned() }).collect();
    let options = Options { budget: cluster.budget.clone(), origin: cluster.origin, ..Options::new(elapsed_ms) };
    Keeper::start(&data.join("hints"), peers, Arc::new(dialer), options)
}

impl Dial for Dialer {
    fn dial(&self, node: usize) -> Result<Box<dyn Target>, String> {
        let (name, number) = &self.addresses[node];
        let config = DialConfig {
            address: name.wait(PATIENCE)?,
            identity: &self.identity,
            acquaintances: &*self.acquaintances,
            peer_number: *number,
            purpose: Purpose::Requests,
            value_max: VALUE_MAX_LIMIT,
            wall_ms: told_ms,
            skew_max: Duration::from_millis(SKEW_MAX_MS),
            timeout: PATIENCE,
            stop: None,
        };
        let connection = Connection::dial(&config).map_err(|e| self.urls.translated(&e.to_string()))?;
        if let Some(standing) = &self.standing {
            standing.met(connection.peer());
        }
        Ok(Box::new(Line { connection, features: self.identity.features, buffer: Vec::new() }))
    }

    /// Not those of a folder that is another's or an older copy, which this dial or an earlier one
    /// was told.
    fn are_found_hints_good(&self) -> bool {
        self.standing.as_ref().is_none_or(|standing| standing.standing() != Standing::Rebuilding)
    }
}

impl Target for Line {
    fn write(&mut self, records: &[Record<Bytes>]) -> Result<Vec<Verdict>, String> {
        self.buffer.clear();
        // A hint of a build that knew more is none that this one can pass on.
        let mut confirmed: Vec<_> = records
            .iter()
            .map(|record| (!self.features.cover(record.flags, &record.attributes)).then_some(Verdict::Never))
            .collect();
        let waiting = confirmed.iter().filter(|verdict| verdict.is_none()).count();
        for (number, record) in records.iter().enumerate().filter(|(number, _)| confirmed[*number].is_none()) {
            let write = Request::Execute(Operation::Write(record.borrowed()));
            encode_request(&mut self.buffer, number as u64, Epoch::ANY, &write);
        }
        self.connection.send(&self.buffer).map_err(|e| e.to_string())?;
        // Replies come in any order.
        for _ in 0..waiting {
            let received = self.connection.receive(|frame| {
                let asked = usize::try_from(frame.number).ok().filter(|&at| confirmed.get(at) == Some(&None));
                let at = asked.ok_or("it answered a request that is not waiting for an answer")?;
                confirmed[at] = Some(confirmation(records[at].key.hash(), &frame)?);
                Ok::<(), String>(())
            });
            received.map_err(|e| e.to_string())??;
        }
        Ok(confirmed.into_iter().flatten().collect())
    }
}

/// What a peer says to the write of a key.
fn confirmation(asked: KeyHash, frame: &ReplyFrame<'_>) -> Result<Verdict, String> {
    let outcome = match &frame.reply {
        Reply::Outcome(outcome) => outcome,
        Reply::Pong { .. } => return Err("it answered a write as if it were a ping".to_owned()),
    };
    plausibility::check(asked, frame.key_hash, outcome, now_wall())?;
    Ok(Verdict::of(outcome)?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};

    use koltso_model::{Flags, Key, Outcome, Version};
    use koltso_net::replica::frame::{Limits, Parsed, RequestFrame, encode_reply, parse_request};
    use koltso_net::replica::handshake::{Acceptor, Progress};
    use koltso_net::replica::{Introduction, NoMemory};

    use super::*;
    use crate::replica::clock::now_ms;

    fn identity(node: u16) -> Identity {
        Identity {
            cluster: "ring".to_owned(),
            topology: 1,
            epoch: Epoch::new(1),
            node,
            introduction: Introduction::default(),
            features: Features::KNOWN,
            secrets: Default::default(),
        }
    }

    fn known(address: SocketAddr) -> Arc<PeerName> {
        Arc::new(PeerName::Known(address))
    }

    /// A peer that reads `count` requests, and gives these answers to those with these numbers, in
    /// this order.
    fn peer(count: usize, answers: Vec<(u64, Outcome<&'static [u8]>)>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a dialer");
            let (us, limits) = (identity(2), Limits { value_max: VALUE_MAX_LIMIT, features: Features::KNOWN });
            let mut acceptor = Acceptor::new(&us, &[1, 2], &NoMemory, [7; 32]);
            let (mut read, mut out, mut buffer) = (Vec::new(), Vec::new(), [0; 4096]);
            let (mut accepted, mut hashes) = (false, HashMap::new());
            while hashes.len() < count {
                let n = socket.read(&mut buffer).expect("requests");
                assert!(n > 0, "the end");
                read.extend_from_slice(&buffer[..n]);
                if !accepted {
                    match acceptor.feed(&read, now_ms(), &mut out).expect("a member") {
                        Progress::More { consumed } => drop(read.drain(..consumed)),
                        Progress::Done { consumed, .. } => {
                            accepted = true;
                            drop(read.drain(..consumed));
                        }
                    }
                    socket.write_all(&std::mem::take(&mut out)).expect("a dialer");
                }
                while accepted && let Parsed::Complete { frame, len } = parse_request(&read, limits) {
                    let RequestFrame { number, request: Request::Execute(operation), .. } = frame else {
                        panic!("a write")
                    };
                    hashes.insert(number, operation.key().hash());
                    read.drain(..len);
                }
            }
            for (number, outcome) in answers {
                let hash = hashes.get(&number).copied().unwrap_or(KeyHash(0));
                encode_reply(&mut out, number, 1, hash, &Reply::Outcome(outcome));
            }
            socket.write_all(&out).expect("a dialer");
            // Until the other side goes.
            let _ = socket.read(&mut buffer);
        });
        address
    }

    fn records() -> Vec<Record<Bytes>> {
        ["a", "b", "c"]
            .map(|key| Record {
                key: Key::new(Bytes::from(key)),
                value: Bytes::from("value"),
                version: Version::new(now_ms() << 16, 1),
                expires_at_ms: 0,
                flags: Flags::new(2),
                attributes: Bytes::new(),
            })
            .to_vec()
    }

    fn replayed(answers: Vec<(u64, Outcome<&'static [u8]>)>) -> Result<Vec<Verdict>, String> {
        let records = records();
        let dialer = Dialer {
            addresses: vec![(known(peer(records.len(), answers)), 2)],
            identity: identity(1),
            acquaintances: Arc::new(NoMemory),
            standing: None,
            urls: UrlsByNumber::new([]),
        };
        dialer.dial(0)?.write(&records)
    }

    #[test]
    fn a_hint_that_this_build_does_not_understand_holds_up_no_other() {
        let mut records = records();
        records[1].attributes = Bytes::from_static(&[200, 0]);
        let applied = Outcome::Applied;
        let dialer = Dialer {
            addresses: vec![(known(peer(2, vec![(2, applied), (0, applied)])), 2)],
            identity: identity(1),
            acquaintances: Arc::new(NoMemory),
            standing: None,
            urls: UrlsByNumber::new([]),
        };
        let verdicts = dialer.dial(0).and_then(|mut line| line.write(&records));
        assert_eq!(verdicts, Ok(vec![Verdict::Taken, Verdict::Never, Verdict::Taken]));
    }

    #[test]
    fn answers_of_a_window_come_in_any_order() {
        let refused = Outcome::Refused(koltso_model::Refused::DiskFull);
        let (applied, verdict) =
            (Outcome::Applied, |outcome: &Outcome<&[u8]>| Verdict::of(outcome).expect("a write's"));
        for answers in [
            vec![(0, applied), (1, refused), (2, applied)],
            vec![(2, applied), (1, refused), (0, applied)],
            vec![(1, refused), (2, applied), (0, applied)],
        ] {
            assert_eq!(replayed(answers), Ok([applied, refused, applied].iter().map(verdict).collect()));
        }
        for wrong in [vec![(0, applied), (0, applied)], vec![(3, applied)], vec![(u64::MAX, applied)]] {
            let error = replayed(wrong).expect_err("believed");
            assert!(error.contains("not waiting for an answer"), "{error}");
        }
    }
}
