//! Lies when replicas are compared, told by the side that is asked and by the one that asks: bounded
//! work, nothing newer overwritten, the connection cut off, and the sentence shown.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use koltso_cluster::placement::Topology;
use koltso_model::{
    ExchangeReply, ExchangeRequest, Flags, Item, Key, KeyHash, LEAVES, Outcome, PARTITIONS, Record, Standing, Told,
    Version,
};
use koltso_net::replica::blocking::{Connection, DialConfig};
use koltso_net::replica::frame::exchange::encode_exchange;
use koltso_net::replica::{LostReason, NoMemory, Purpose};
use koltso_testkit::cluster::{Cluster, Quorum, Records, numbered};
use koltso_testkit::{eventually, files, wall_ms};

use super::{Comparing, Liar, liar, lie_at};

const SOON: Duration = Duration::from_secs(20);
/// One of two.
const ONE: Quorum = (1, 2);
const KEY: &str = "key";

/// As of a node that lacks nothing.
fn told() -> Told {
    Told { standing: Standing::Whole, settled: 0, forgotten: 0, agreed: 0, froms: 0b10 }
}

/// Two nodes, one of which is a liar.
struct Pair {
    cluster: Cluster,
    honest: usize,
    liar: Liar,
}

impl Pair {
    /// The honest one is the one that asks, as long as both say that they are whole.
    fn new(comparing: Comparing) -> Self {
        let honest_of = |urls: &[String]| {
            let number = |index: usize| {
                let topology = Topology::new(urls, &urls[index]).unwrap();
                topology.number(topology.me())
            };
            usize::from(number(1) < number(0))
        };
        let cluster = Cluster::planned(2, |index, launch, urls| (index == honest_of(urls)).then_some(launch));
        let urls = cluster.urls();
        let honest = honest_of(&urls);
        let topology = Topology::new(&urls, &urls[1 - honest]).unwrap();
        let liar = liar(&topology, |hash| (hash, Outcome::Applied), comparing);
        lie_at(TcpListener::bind(cluster.replica_address(1 - honest)).unwrap(), liar.clone());
        eventually("the liar is believed", SOON, || cluster.sees(honest, 1 - honest));
        Self { cluster, honest, liar }
    }

    fn store(&self, value: &str) {
        self.cluster.client(self.honest).put_of(KEY, value, ONE).expect(201, "PUT 1/2");
    }

    /// What the honest node has itself.
    fn records(&self) -> Records {
        let mut records = self.cluster.records(self.honest, "key");
        records.append(&mut self.cluster.records(self.honest, "another"));
        records
    }

    /// What it says about comparing with the liar.
    fn error(&self) -> String {
        let peer = self.cluster.peer(self.honest, 1 - self.honest);
        peer["repair"]["error"].as_str().unwrap_or_default().to_owned()
    }

    fn refused(&self) -> String {
        self.cluster.status(self.honest)["cluster"]["refused"].as_str().unwrap_or_default().to_owned()
    }

    /// A connection of the liar's to the honest node, for comparing.
    fn dial(&self) -> Connection {
        let address: SocketAddr = self.cluster.replica_address(self.honest);
        let urls = self.cluster.urls();
        let of = Topology::new(&urls, &urls[self.honest]).unwrap();
        let config = DialConfig {
            address,
            identity: &self.liar.identity,
            acquaintances: &NoMemory,
            peer_number: of.number(of.me()),
            purpose: Purpose::Exchange,
            value_max: 32 << 20,
            wall_ms,
            skew_max: Duration::from_secs(10),
            timeout: Duration::from_secs(30),
            stop: None,
        };
        Connection::dial(&config).unwrap()
    }
}

fn record(key: &str, value: &str, version: Version) -> Record<Bytes> {
    Record {
        key: Key::new(Bytes::copy_from_slice(key.as_bytes())),
        value: Bytes::copy_from_slice(value.as_bytes()),
        version,
        expires_at_ms: 0,
        flags: Flags::new(2),
        attributes: Bytes::new(),
    }
}

fn version(ms: u64) -> Version {
    Version::new(ms << 16, 1)
}

/// A peer that has one record, of [`KEY`], with such a version, and gives another for it.
fn with_one_item(listed: fn() -> Version, given: impl Fn() -> Record<Bytes> + Send + Sync + 'static) -> Comparing {
    let KeyHash(hash) = KeyHash::of(KEY.as_bytes());
    let partition = KeyHash(hash).partition();
    Arc::new(move |request| {
        Some(match request {
            ExchangeRequest::Roots { from: 2, .. } => {
                let roots = (0..PARTITIONS).map(|at| if at == partition { 0xdead_beef } else { 0 }).collect();
                ExchangeReply::Roots { told: told(), roots }
            }
            ExchangeRequest::Roots { .. } => ExchangeReply::Roots { told: told(), roots: Vec::new() },
            ExchangeRequest::Leaves { partitions, .. } => {
                ExchangeReply::Leaves(vec![0xa5; partitions.len() * LEAVES].into())
            }
            ExchangeRequest::Items(leaves) => ExchangeReply::Items(
                leaves
                    .iter()
                    .map(|(of, _)| {
                        let item = Item { hash: hash as u32, version: listed(), from: 2, absent: false };
                        if usize::from(*of) == partition { vec![item] } else { Vec::new() }
                    })
                    .collect(),
            ),
            ExchangeRequest::Fetch { places, .. } => {
                ExchangeReply::Records(places.iter().map(|_| Some(given())).collect())
            }
            ExchangeRequest::Give(records) => ExchangeReply::Given(vec![true; records.len()]),
            ExchangeRequest::Agreed { .. } => ExchangeReply::Noted,
        })
    })
}

/// A newer version is listed, and this sentence is shown for what is given instead.
fn assert_not_taken(given: impl Fn() -> Record<Bytes> + Send + Sync + 'static, sentence: &str) {
    let pair = Pair::new(with_one_item(|| version(wall_ms() - 60_000), given));
    eventually("the lie is shown", SOON, || pair.error().contains(sentence));
    assert!(pair.records().is_empty(), "it was taken: {:?}", pair.records());
    pair.store("value");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(pair.records().get(KEY.as_bytes()).map(Vec::as_slice), Some(&b"value"[..]));
    assert!(pair.cluster.log(pair.honest).lines().count() < 30, "{}", pair.cluster.log(pair.honest));
}

#[test]
fn a_version_from_the_far_future_is_not_taken() {
    assert_not_taken(|| record(KEY, "lie", Version::new(u64::MAX - 7, 1)), "a version that no write has");
}

#[test]
fn a_version_of_no_time_is_not_taken() {
    assert_not_taken(|| record(KEY, "lie", Version::new(0, 1)), "");
}

#[test]
fn another_record_than_the_listed_one_is_not_taken() {
    assert_not_taken(|| record("another", "lie", version(wall_ms() - 60_000)), "another record");
}

#[test]
fn an_older_version_that_is_said_to_be_newer_replaces_nothing() {
    let given = Arc::new(AtomicU64::new(0));
    let counted = given.clone();
    let pair = Pair::new(with_one_item(
        || version(wall_ms() - 6_000),
        move || {
            counted.fetch_add(1, Ordering::Relaxed);
            record(KEY, "old", version(wall_ms() - 3_600_000))
        },
    ));
    pair.store("value");
    let before = given.load(Ordering::Relaxed);
    eventually("it gave an older one", SOON, || given.load(Ordering::Relaxed) > before);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(pair.records().get(KEY.as_bytes()).map(Vec::as_slice), Some(&b"value"[..]));
}

/// It is asked again at a measured pace, and the data plane knows nothing of it.
#[test]
fn other_roots_than_were_asked_for_are_shown_and_cut_off() {
    let rounds = Arc::new(AtomicU64::new(0));
    let counted = rounds.clone();
    let pair = Pair::new(Arc::new(move |request| {
        let ExchangeRequest::Roots { from, .. } = request else { return None };
        counted.fetch_add(u64::from(*from == 0), Ordering::Relaxed);
        Some(ExchangeReply::Roots { told: told(), roots: vec![1; 7 * usize::from(*from > 0)] })
    }));
    pair.store("value");
    eventually("the lie is shown", SOON, || pair.error().contains("other partitions in common"));
    let before = rounds.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs(5));
    let asked = rounds.load(Ordering::Relaxed) - before;
    assert!((1..=7).contains(&asked), "asked {asked} times in 5 s");
    assert_eq!(pair.cluster.client(pair.honest).value_of(KEY, ONE).as_deref(), Some(&b"value"[..]));
}

#[test]
fn whoever_stops_half_way_is_given_up_and_shown() {
    let pair = Pair::new(Arc::new(|request| match request {
        ExchangeRequest::Roots { from: 0, .. } => Some(ExchangeReply::Roots { told: told(), roots: Vec::new() }),
        _ => None,
    }));
    pair.store("value");
    eventually("the silence is shown", Duration::from_secs(40), || !pair.error().is_empty());
    assert_eq!(pair.cluster.client(pair.honest).value_of(KEY, ONE).as_deref(), Some(&b"value"[..]));
}

/// A thousand records of 1 KB are given again and again to whoever says that it has none of them and
/// takes them all: each time after a longer pause.
#[test]
fn whoever_only_says_that_it_differs_gets_everything_at_a_bounded_pace() {
    let (bytes, seed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(1)));
    let keys = Arc::new(Mutex::new(0_usize));
    let (given, most) = (bytes.clone(), keys.clone());
    let pair = Pair::new(Arc::new(move |request| {
        let other = || seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        Some(match request {
            ExchangeRequest::Roots { from: 2, .. } => {
                ExchangeReply::Roots { told: told(), roots: (0..PARTITIONS).map(|_| other()).collect() }
            }
            ExchangeRequest::Roots { .. } => ExchangeReply::Roots { told: told(), roots: Vec::new() },
            ExchangeRequest::Leaves { partitions, .. } => {
                ExchangeReply::Leaves((0..partitions.len() * LEAVES).map(|_| other() as u8).collect::<Vec<_>>().into())
            }
            ExchangeRequest::Items(leaves) => ExchangeReply::Items(vec![Vec::new(); leaves.len()]),
            ExchangeRequest::Fetch { .. } => ExchangeReply::Records(Vec::new()),
            ExchangeRequest::Give(records) => {
                given.fetch_add(records.iter().map(|record| record.len() as u64).sum(), Ordering::Relaxed);
                let mut most = most.lock().unwrap();
                *most = (*most).max(records.len());
                ExchangeReply::Given(vec![true; records.len()])
            }
            ExchangeRequest::Agreed { .. } => ExchangeReply::Noted,
        })
    }));
    let records = numbered("key-", 1000, &"x".repeat(1000));
    pair.cluster.client(pair.honest).store_all_of(&records, ONE);
    eventually("it is given something", SOON, || bytes.load(Ordering::Relaxed) > 1_000_000);
    let (before, began) = (bytes.load(Ordering::Relaxed), Instant::now());
    std::thread::sleep(Duration::from_secs(20));
    let times = (bytes.load(Ordering::Relaxed) - before) as f64 / 1.04e6;
    assert!(times < 5.0, "{times:.1} times all records in {:?}, {} at once", began.elapsed(), keys.lock().unwrap());
    assert_eq!(pair.records(), records);
}

fn silent() -> Comparing {
    Arc::new(|_| None)
}

/// After this request the connection is closed.
#[track_caller]
fn assert_cut_off(connection: &mut Connection, request: &ExchangeRequest) {
    match connection.exchange(request) {
        Err(LostReason::Timeout) => panic!("nothing is said to {request:?}"),
        Err(_) => {}
        Ok(reply) => panic!("{request:?} is answered: {reply:?}"),
    }
}

#[test]
fn who_asks_for_what_it_was_not_told_is_cut_off_and_shown() {
    let pair = Pair::new(silent());
    pair.store("value");
    let fetch = ExchangeRequest::Fetch { places: vec![0], credit: u32::MAX };
    assert_cut_off(&mut pair.dial(), &fetch);
    eventually("the fetch is shown", SOON, || pair.refused().contains("a list that it was not told"));

    let agreed = ExchangeRequest::Agreed { from: 2, partitions: vec![0, 1] };
    assert_cut_off(&mut pair.dial(), &agreed);
    eventually("the agreement is shown", SOON, || pair.refused().contains("had not looked at"));

    // It looked at another from.
    let mut connection = pair.dial();
    let roots = ExchangeRequest::Roots { told: told(), from: 2 };
    assert!(matches!(connection.exchange(&roots), Ok(ExchangeReply::Roots { .. })));
    assert_cut_off(&mut connection, &ExchangeRequest::Agreed { from: 1, partitions: vec![0] });
}

#[test]
fn who_gives_versions_that_no_write_has_is_cut_off_and_nothing_is_stored() {
    let pair = Pair::new(silent());
    pair.store("value");
    for clock in [u64::MAX - 7, (wall_ms() + 3 * 365 * 86_400_000) << 16] {
        let give = ExchangeRequest::Give(vec![record(KEY, "lie", Version::new(clock, 1))]);
        assert_cut_off(&mut pair.dial(), &give);
        eventually("it is shown", SOON, || pair.refused().contains("a version that no write has"));
    }
    // What is older is there already, in a newer version.
    let give = ExchangeRequest::Give(vec![record(KEY, "old", version(wall_ms() - 3_600_000))]);
    assert!(matches!(pair.dial().exchange(&give), Ok(ExchangeReply::Given(given)) if given == [true]));
    assert_eq!(pair.records().get(KEY.as_bytes()).map(Vec::as_slice), Some(&b"value"[..]));
}

#[test]
fn a_request_that_stops_half_way_is_given_up() {
    let pair = Pair::new(silent());
    pair.store("value");
    let mut frame = Vec::new();
    let give = ExchangeRequest::Give(vec![record(KEY, &"x".repeat(100_000), version(wall_ms()))]);
    encode_exchange(&mut frame, 1, 1, &give);
    let mut connection = pair.dial();
    connection.send(&frame[..frame.len() / 2]).unwrap();
    let began = Instant::now();
    let lost = connection.receive(|_| ()).unwrap_err();
    assert!(!matches!(lost, LostReason::Timeout), "it waits for ever");
    assert!(began.elapsed() < Duration::from_secs(12), "after {:?}: {lost}", began.elapsed());
    // Others are answered meanwhile, and after.
    let roots = ExchangeRequest::Roots { told: told(), from: 2 };
    assert!(matches!(pair.dial().exchange(&roots), Ok(ExchangeReply::Roots { .. })));
    assert_eq!(pair.records().get(KEY.as_bytes()).map(Vec::as_slice), Some(&b"value"[..]));
}

/// Whoever fetches what was found damaged believes no more than others do.
#[test]
fn a_damaged_record_is_not_replaced_by_a_lie() {
    let mut pair =
        Pair::new(with_one_item(|| version(wall_ms()), || record(KEY, "lie", Version::new(u64::MAX - 7, 1))));
    pair.store("a value that will be damaged");
    let honest = pair.honest;
    pair.cluster.terminate(honest);
    for (file, at) in files::find_in_logs(pair.cluster.data(honest), b"a value that will be damaged") {
        files::flip(&file, at + 3, 1);
    }
    pair.cluster.start(honest);
    assert!(pair.records().is_empty(), "a damaged value is served");
    eventually("the lie is shown", SOON, || pair.refused().contains("a version that no write has"));
    assert!(pair.records().is_empty(), "the lie was taken");
    pair.store("another value");
    let tag = pair.cluster.client(honest).get_of(KEY, ONE).expect(200, "GET 1/2").header("etag").unwrap().to_owned();
    let clock = u64::from_str_radix(&tag[1..17], 16).unwrap();
    assert!((clock >> 16).abs_diff(wall_ms()) < 60_000, "a version from another time: {tag}");
}
