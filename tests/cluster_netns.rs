//! A cluster over a network that can be cut: each node in a network namespace of its own, all on
//! one bridge.
//!
//! Needs root, `ip` and network namespaces; skipped where they are not to be had. The clients are
//! on the host's side of the bridge. Everything is named `kz<pid>…` and removed by a guard.
#![allow(missing_docs, clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use koltso_testkit::cluster::{Quorum, Records, numbered};
use koltso_testkit::load::{Report, steady};
use koltso_testkit::skip::{self, Remedy, skip};
use koltso_testkit::{Cluster, eventually, volume};
use tempfile::TempDir;

const NODES: usize = 3;
const QUORUM: Quorum = (2, 3);
const TOKEN: &str = "a-token-of-the-tests";

/// A bridge with an end for each node; removed when dropped.
struct Network {
    name: String,
    subnet: [u8; 3],
}

fn run(command: &str) -> Result<(), String> {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{command}: {error}")),
    }
}

impl Network {
    /// None, recorded as skipped, where this is not permitted.
    fn build() -> Option<Network> {
        skip::tool("ip", "iproute2")?;
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let third = u8::try_from((pid * 7 + u32::from(serial)) % 250).unwrap();
        let network = Network { name: format!("kz{pid}{}", char::from(b'a' + serial)), subnet: [10, 213, third] };
        match network.set_up() {
            Ok(()) => Some(network),
            Err(reason) => {
                skip(format!("no network namespaces: {reason}"), Remedy::Root);
                None
            }
        }
    }

    fn set_up(&self) -> Result<(), String> {
        let name = &self.name;
        run(&format!("ip link add {name} type bridge"))?;
        run(&format!("ip addr add {}/24 dev {name}", self.ip(254)))?;
        run(&format!("ip link set {name} up"))?;
        for index in 0..NODES {
            let space = self.space(index);
            run(&format!("ip netns add {space}"))?;
            run(&format!("ip link add {space} type veth peer name eth0 netns {space}"))?;
            run(&format!("ip link set {space} master {name} up"))?;
            let address = self.ip(u8::try_from(index + 1).unwrap());
            run(&format!("ip -n {space} addr add {address}/24 dev eth0"))?;
            run(&format!("ip -n {space} link set eth0 up"))?;
            run(&format!("ip -n {space} link set lo up"))?;
        }
        Ok(())
    }

    fn ip(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(self.subnet[0], self.subnet[1], self.subnet[2], last)
    }

    /// The namespace of a node, and the host's end of its cable.
    fn space(&self, index: usize) -> String {
        format!("{}{index}", self.name)
    }

    fn cut(&self, index: usize) {
        run(&format!("ip link set {} down", self.space(index))).unwrap();
    }

    fn mend(&self, index: usize) {
        run(&format!("ip link set {} up", self.space(index))).unwrap();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for index in 0..NODES {
            // Not all of it may be there. The cable goes first: a namespace may live on for a
            // moment through its sockets.
            let _ = run(&format!("ip link del {}", self.space(index)));
            let _ = run(&format!("ip netns del {}", self.space(index)));
        }
        let _ = run(&format!("ip link del {}", self.name));
    }
}

struct Networked {
    // Ended before the network goes.
    cluster: Cluster,
    network: Network,
    _folder: TempDir,
}

impl Networked {
    fn build() -> Option<Networked> {
        use std::os::unix::fs::PermissionsExt;
        let network = Network::build()?;
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| -> PathBuf {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path
        };
        let secret = file("secret", "a secret that every node of this network knows");
        let token = file("token", TOKEN);
        let flags = format!("--cluster-secret-file {} --admin-token-file {}", secret.display(), token.display());
        let address = |index: usize| SocketAddr::from((network.ip(u8::try_from(index + 1).unwrap()), 1337));
        let mut cluster = Cluster::at(NODES, address, |index, launch, _| {
            Some(launch.flags(&flags).within(&["ip", "netns", "exec", &network.space(index)]))
        });
        cluster.set_token(TOKEN);
        cluster.wait_up();
        Some(Networked { cluster, network, _folder: folder })
    }

    fn addresses_without(&self, index: usize) -> Vec<SocketAddr> {
        self.cluster.others(index).into_iter().map(|other| self.cluster.address(other)).collect()
    }
}

fn assert_fast(what: &str, report: &Report, p99: Duration, longest: Duration) {
    println!("{what}: {}", report.text());
    report.assert_no_failures(what);
    let (p99, longest) = (p99, longest);
    assert!(report.per_mille(990) <= p99, "{what}: p99 over {p99:?}: {}", report.text());
    assert!(report.longest() <= longest, "{what}: the longest over {longest:?}: {}", report.text());
}

#[test]
fn a_node_that_is_cut_off_costs_nothing_and_heals() {
    let Some(setting) = Networked::build() else { return };
    let (cluster, network) = (&setting.cluster, &setting.network);
    let ms = Duration::from_millis;
    let (rate, part) = volume((400, ms(1500)), (2000, ms(10_000)));
    let old = numbered("cut", 100, "old");
    cluster.client(0).store_all_of(&old, (3, 3));
    for cut in [2, 0] {
        let new = numbered("cut", 100, &format!("written without {cut}"));
        let gone = numbered("gone", 20, "value");
        cluster.client(1).store_all_of(&gone, (3, 3));
        let report = steady(&format!("load{cut}-"), &setting.addresses_without(cut), QUORUM, rate, part * 3, || {
            std::thread::sleep(part);
            network.cut(cut);
            let mut client = cluster.client(1);
            client.store_all_of(&new, QUORUM);
            for key in gone.keys() {
                client.delete_of(key, QUORUM).expect(202, "DELETE 2/3 beside a node that is cut off");
            }
            std::thread::sleep(part);
            network.mend(cut);
        });
        let (p99, longest) = volume((ms(250), ms(1500)), (ms(20), ms(500)));
        assert_fast(&format!("node {cut} cut off"), &report, p99, longest);
        cluster.wait_up();
        cluster.wait_records(cut, "cut", &new, Duration::from_secs(10), "writes missed while cut off");
        cluster.wait_records(cut, "gone", &Records::new(), Duration::from_secs(10), "deletes missed while cut off");
    }
}

#[test]
fn a_node_that_is_cut_off_says_504_in_time_and_loses_nothing() {
    let Some(setting) = Networked::build() else { return };
    let (cluster, network) = (&setting.cluster, &setting.network);
    cluster.client(0).put_of("key", "before", (3, 3)).expect(201, "PUT 3/3");
    // The other cables, so that clients still reach node 0 while it reaches nobody.
    network.cut(1);
    network.cut(2);
    let mut client = cluster.client(0);
    for _ in 0..3 {
        let start = Instant::now();
        let answer = client.put_of("key", "alone", QUORUM).expect(504, "PUT 2/3 of a node that reaches nobody");
        assert!(start.elapsed() < Duration::from_millis(2500), "504 after {:?}", start.elapsed());
        for peer in [1, 2] {
            assert!(answer.text().contains(&cluster.url(peer)), "{:?}", answer.text());
        }
        let start = Instant::now();
        client.get_of("key", QUORUM).expect(504, "GET 2/3 of a node that reaches nobody");
        assert!(start.elapsed() < Duration::from_millis(2500), "504 after {:?}", start.elapsed());
        client.get_of("key", (1, 3)).expect(200, "GET 1/3 of a node that reaches nobody");
    }
    network.mend(1);
    network.mend(2);
    cluster.wait_up();
    for index in 0..NODES {
        let value = cluster.client(index).value_of("key", QUORUM);
        // A write that was answered 504 may have taken place; a lost key may not be.
        assert!(value.is_some(), "through node {index}");
    }
    cluster.client(1).put_of("key", "after", (3, 3)).expect(201, "PUT 3/3 after the cut");
    for index in 0..NODES {
        assert_eq!(cluster.client(index).value_of("key", QUORUM).as_deref(), Some(&b"after"[..]));
    }
}

#[test]
fn a_cable_that_is_down_for_a_moment_says_nothing_of_a_clock() {
    let Some(setting) = Networked::build() else { return };
    let (cluster, network) = (&setting.cluster, &setting.network);
    // Pings wait in the kernels meanwhile, and go out together. All nodes have one clock.
    let cuts = volume(9, 18);
    for cut in 0..cuts {
        network.cut(2);
        std::thread::sleep(Duration::from_millis(400 + 2100 * cut / (cuts - 1)));
        network.mend(2);
        std::thread::sleep(Duration::from_millis(300));
    }
    cluster.wait_up();
    for index in 0..NODES {
        let log = cluster.log(index);
        let claims: Vec<&str> = log.lines().filter(|line| line.contains("clock")).collect();
        assert!(claims.is_empty(), "node {index}: {claims:?}");
        for peer in cluster.others(index) {
            let skew = cluster.peer(index, peer)["clock_skew_ms"].as_i64().expect("a skew");
            assert!(skew.abs() < 1_500, "node {index} of {peer}: {skew} ms, more than half of the longest cut");
        }
    }
}

#[test]
fn a_slow_cable_slows_down_nobody_else() {
    let Some(setting) = Networked::build() else { return };
    let (cluster, network) = (&setting.cluster, &setting.network);
    let ms = Duration::from_millis;
    let part = volume(ms(1300), ms(10_000));
    let slow = network.space(2);
    if let Err(reason) = run(&format!("tc qdisc add dev {slow} root netem delay 200ms")) {
        skip(reason, Remedy::Machine("a kernel with sch_netem"));
        return;
    }
    run(&format!("tc qdisc del dev {slow} root")).unwrap();
    let report = steady("slow", &setting.addresses_without(2), QUORUM, volume(400, 2000), part * 3, || {
        std::thread::sleep(part);
        run(&format!("tc qdisc add dev {slow} root netem delay 200ms")).unwrap();
        std::thread::sleep(part);
        run(&format!("tc qdisc del dev {slow} root")).unwrap();
    });
    // Slower than the delay would mean that somebody waited for the slow one.
    let (p99, longest) = volume((ms(120), ms(1500)), (ms(20), ms(500)));
    assert_fast("node 2 behind 200 ms", &report, p99, longest);
    cluster.wait_up();
    cluster.client(0).put_of("after", "value", (3, 3)).expect(201, "PUT 3/3");
}

#[test]
fn a_lossy_cable_loses_no_acknowledged_write() {
    let Some(setting) = Networked::build() else { return };
    let (cluster, network) = (&setting.cluster, &setting.network);
    let lossy = network.space(1);
    if let Err(reason) =
        run(&format!("tc qdisc add dev {lossy} root netem loss 20% duplicate 5% reorder 10% delay 5ms"))
    {
        skip(reason, Remedy::Machine("a kernel with sch_netem"));
        return;
    }
    let records = numbered("lossy", 300, "value");
    cluster.client(0).store_all_of(&records, QUORUM);
    let some = || records.iter().map(|(key, value)| (key, Some(value)));
    cluster.client(2).expect_all_of(some(), QUORUM, "beside a lossy cable");
    run(&format!("tc qdisc del dev {lossy} root")).unwrap();
    cluster.wait_up();
    cluster.wait_records(1, "lossy", &records, Duration::from_secs(10), "after the loss");
    eventually("nothing is pending any more", Duration::from_secs(10), || cluster.hints_pending(0, 1) == 0);
}

#[test]
fn a_cluster_with_a_secret_serves_beyond_loopback() {
    let Some(setting) = Networked::build() else { return };
    for index in 0..NODES {
        let mut client = setting.cluster.client(index);
        client.put_of("key", format!("{index}"), (3, 3)).expect(201, "PUT 3/3");
        for other in 0..NODES {
            let got = setting.cluster.client(other).value_of("key", QUORUM);
            assert_eq!(got, Some(format!("{index}").into_bytes()));
        }
    }
}
