//! Tests of `config.rs`.

use super::*;

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "listen = \"127.0.0.1:9\"\nmax_value = 77\nthreads = 3\nsync = \"os\"\n")
        .expect("written");
    let flags = Flags { config: Some(file.path().to_path_buf()), threads: Some(1), ..Flags::default() };
    let config = flags.check().expect("valid");
    assert_eq!((config.threads, config.max_value, config.sync), (1, 77, SyncMode::Os));
    assert_eq!((config.listen.port(), config.max_connections), (9, 10_000));
}

#[test]
fn what_is_wrong_is_said_with_its_range() {
    let wrong = |flags: Flags| flags.check().expect_err("out of range");
    let message = wrong(Flags { threads: Some(0), ..Flags::default() });
    assert!(message.contains("--threads 0") && message.contains("1 to 256"), "{message}");
    assert!(wrong(Flags { sync: Some("soon".into()), ..Flags::default() }).contains("soon"));
    assert!(wrong(Flags { listen: Some("nowhere".into()), ..Flags::default() }).contains("nowhere"));
    assert!(wrong(Flags { max_value: Some(Size(1 << 30)), ..Flags::default() }).contains("33554432"));
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "colour = 1\n").expect("written");
    let message = wrong(Flags { config: Some(file.path().to_path_buf()), ..Flags::default() });
    assert!(message.contains("colour"), "{message}");
}

#[test]
fn a_bound_of_stalls_is_a_time_or_nothing() {
    let bound = |flags: &str| checked(flags).expect(flags).stall_bound;
    assert_eq!(bound(""), Some(Duration::from_millis(5)));
    assert_eq!(bound("--stall-bound 20ms"), Some(Duration::from_millis(20)));
    assert_eq!(bound("--stall-bound 0"), None);
    let file = file_with(b"stall-bound = \"0\"\n");
    assert_eq!(bound(&format!("--config {}", file.path().display())), None);
    for wrong in ["5", "0ms", "61s", "-1ms", "soon"] {
        let sentence = checked(&format!("--stall-bound={wrong}")).expect_err(wrong);
        assert!(sentence.contains(wrong) && sentence.contains("1ms to 60s"), "{sentence}");
    }
}

#[derive(clap::Parser)]
struct Serve {
    #[command(flatten)]
    flags: Flags,
}

fn parse<T: Into<OsString> + Clone>(args: impl IntoIterator<Item = T>) -> Flags {
    let name = OsString::from("serve");
    let args = std::iter::once(name).chain(args.into_iter().map(Into::into));
    <Serve as clap::Parser>::try_parse_from(args).unwrap_or_else(|e| panic!("{e}")).flags
}

/// Flags with blanks between them.
fn checked(flags: &str) -> Result<Config, String> {
    parse(flags.split_whitespace()).check()
}

#[track_caller]
fn refused(flags: &str, why: &str) {
    let sentence = checked(flags).map(|config| config.cluster).expect_err(flags);
    assert!(sentence.contains(why) && !sentence.contains('\n'), "{flags}: {sentence}");
}

fn cluster(flags: &str) -> Cluster {
    checked(flags).expect(flags).cluster.expect("a cluster")
}

fn file_with(content: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), content).expect("written");
    file
}

#[test]
fn a_cluster_is_the_same_list_whatever_the_order_and_the_spelling() {
    let config =
        checked("--cluster HTTP://LOCALHOST:1339/,http://127.0.0.1:1337,127.0.0.1:01338 --listen 127.0.0.1:1338")
            .expect("valid");
    let cluster = config.cluster.expect("a cluster");
    let urls: Vec<&str> = cluster.nodes.iter().map(|node| node.url.as_str()).collect();
    assert_eq!(urls, ["http://127.0.0.1:1337", "http://127.0.0.1:1338", "http://localhost:1339"]);
    assert_eq!((cluster.me, cluster.replica_listen), (1, cluster.nodes[1].replica));
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.replica.port()).collect();
    assert_eq!(ports, [11337, 11338, 11339]);
    assert_eq!((cluster.name.as_str(), cluster.secret.len()), ("koltso", 0));
    assert_eq!(cluster.replica_timeout, Duration::from_secs(1));
    assert_eq!(cluster.tombstone_grace, Duration::from_secs(240 * 3600));
}

#[test]
fn a_node_knows_itself_by_its_name_or_by_where_it_listens() {
    let nodes = "--cluster http://127.0.0.1:1337,http://127.0.0.1:1338";
    assert_eq!(cluster(nodes).me, 0, "the default of --listen");
    assert_eq!(cluster(&format!("{nodes} --listen localhost:1338")).me, 1, "by where the name leads");
    let named = checked(&format!("{nodes} --node 127.0.0.1:1338/")).expect("valid");
    assert_eq!(named.cluster.map(|cluster| cluster.me), Some(1));
    assert_eq!(named.listen.to_string(), "127.0.0.1:1338", "it listens where its name says");
    let behind = checked(&format!("{nodes} --node http://127.0.0.1:1338 --listen 0.0.0.0:80")).expect("valid");
    assert_eq!((behind.cluster.map(|cluster| cluster.me), behind.listen.port()), (Some(1), 80));
    refused(&format!("{nodes} --listen 127.0.0.1:1339"), "--node");
    refused(&format!("{nodes} --node http://127.0.0.1:1339"), "--node http://127.0.0.1:1339 is not one of");
}

#[test]
fn a_cluster_of_one_is_checked_and_is_none() {
    assert!(checked("--cluster http://127.0.0.1:1337").expect("valid").cluster.is_none());
    refused("--cluster http://127.0.0.1:1338", "is not one of the nodes");
    assert!(checked("").expect("valid").cluster.is_none());
}

#[test]
fn what_is_wrong_with_a_cluster_is_one_sentence() {
    let two = "--cluster http://127.0.0.1:1337,http://127.0.0.1:1338";
    refused("--cluster http://127.0.0.1:1337,127.0.0.1:1337/", "twice");
    for no_url in ["https://a:1", "http://a", "a", "http://a:0", "http://a:65536", "http://a:+1", "http://a:1/x"] {
        refused(&format!("--cluster http://127.0.0.1:1337,{no_url}"), &format!("{no_url:?} is not a URL"));
    }
    for no_url in ["http://u@a:1", "http://:1", "http://[::1:1", "http://[a]:1", "http://::1:1", "", "a?b:1"] {
        refused(&format!("--cluster=http://127.0.0.1:1337,{no_url}"), "is not a URL");
    }
    let many: Vec<String> = (1..=65).map(|port| format!("127.0.0.1:{}", 2000 + port)).collect();
    refused(&format!("--cluster {} --listen 127.0.0.1:2001", many.join(",")), "65 nodes");
    let most = cluster(&format!("--cluster {} --listen 127.0.0.1:2001", many[..64].join(",")));
    assert_eq!(most.nodes.len(), NODES_MAX);
    refused("--cluster http://127.0.0.1:1337,http://127.0.0.1:55536", "[replica-addresses]");
    refused("--cluster http://127.0.0.1:1337,http://localhost:1337 --node 127.0.0.1:1337", "one replica address");
    refused("--cluster http://127.0.0.1:1337,http://no..host:1", "cannot be resolved");
    for alone in ["--node http://a:1", "--replica-listen 127.0.0.1:1", "--cluster-secret-file /dev/null"] {
        let flag = alone.split(' ').next().expect("a flag");
        refused(alone, &format!("{flag} needs --cluster"));
    }
    refused(&format!("{two} --replica-listen 0.0.0.0:11337"), "give --cluster-secret-file");
    refused(&format!("{two} --replica-listen [::]:11337"), "give --cluster-secret-file");
    refused(&format!("{two} --replica-listen nowhere"), "--replica-listen nowhere");
    refused(&format!("{two} --replica-timeout 9ms"), "10ms to 1m");
    refused(&format!("{two} --replica-timeout 61s"), "10ms to 1m");
    refused(&format!("{two} --tombstone-grace 999ms"), "1s to");
    refused("--replica-timeout 61s", "10ms to 1m");
    refused("--cluster-name=", "1 to 64");
    refused(&format!("--cluster-name={}", "x".repeat(65)), "1 to 64");
    refused("--cluster-name=кольцо", "1 to 64");
    assert_eq!(cluster(&format!("{two} --cluster-name {}", "x".repeat(64))).name.len(), 64);
}

#[test]
fn the_secret_has_a_least_length_and_loses_one_line_end() {
    let with = |content: &[u8]| {
        let file = file_with(content);
        let path = file.path().display();
        let flags =
            format!("--cluster 127.0.0.1:1337,127.0.0.1:1338 --replica-listen 0.0.0.0:1 --cluster-secret-file {path}");
        checked(&flags).map(|config| config.cluster.expect("a cluster"))
    };
    assert_eq!(with(b"0123456789abcde\n\n").expect("16 bytes").secret, b"0123456789abcde\n");
    assert_eq!(with(&[0xFF; 4096]).expect("any bytes").secret.len(), 4096);
    for wrong in [&b"0123456789abcde\n"[..], b"", &[7; 4097]] {
        assert!(with(wrong).expect_err("refused").contains("16 to 4096 bytes"));
    }
    let debug = format!("{:?}", with(b"a secret that nobody prints").expect("valid"));
    assert!(!debug.contains("secret") && !debug.contains("97, 32"), "{debug}");
    refused("--cluster 127.0.0.1:1337 --cluster-secret-file /nonexistent", "--cluster-secret-file /nonexistent:");
}

#[test]
fn the_file_has_the_cluster_and_the_replica_addresses() {
    let urls = "cluster = [\"http://127.0.0.1:1337\", \"http://127.0.0.1:60000\"]\n";
    let with = |text: &str| {
        let file = file_with(text.as_bytes());
        checked(&format!("--config {}", file.path().display())).map(|config| config.cluster.expect("a cluster"))
    };
    let addresses = |text: &str| with(&format!("{urls}[replica-addresses]\n{text}"));
    let cluster = addresses("\"http://127.0.0.1:60000/\" = \"127.0.0.1:7\"\n").expect("valid");
    assert_eq!(cluster.nodes[1].replica.to_string(), "127.0.0.1:7");
    assert!(with(urls).expect_err("no port").contains("60000 + 10000 is above 65535"));
    let unknown = addresses("\"http://127.0.0.1:2\" = \"127.0.0.1:7\"\n").expect_err("unknown");
    assert!(unknown.contains("http://127.0.0.1:2 is not one of"), "{unknown}");
    assert!(addresses("\"http://127.0.0.1:60000\" = \"7\"\n").expect_err("no address").contains("HOST:PORT"));
    let twice = "\"127.0.0.1:60000\" = \"127.0.0.1:7\"\n\"http://127.0.0.1:60000\" = \"127.0.0.1:8\"\n";
    assert!(addresses(twice).expect_err("twice").contains("twice"));
    let same = addresses("\"http://127.0.0.1:60000\" = \"127.0.0.1:11337\"\n").expect_err("the same");
    assert!(same.contains("one replica address"), "{same}");
    let all = with(
        "cluster = \"127.0.0.1:1, 127.0.0.1:2\"\nnode = \"127.0.0.1:2\"\nreplica_timeout = \"2s\"\nno-pin = true\n",
    );
    assert_eq!(all.map(|cluster| (cluster.me, cluster.replica_timeout.as_secs())), Ok((1, 2)));
    assert!(with("cluster = 3\n").expect_err("a number").contains("a list of URLs"));
    let alone = with("[replica-addresses]\n\"http://a:1\" = \"127.0.0.1:7\"\n").expect_err("alone");
    assert!(alone.contains("needs --cluster"), "{alone}");
}

#[test]
fn flags_as_arguments_are_the_same_flags() {
    let every = "--listen=a:1 --data=/d --threads=2 --sync=250ms --max-value=1500 --max-connections=3 \
                 --request-timeout=1500ms --idle-timeout=2m --max-in-flight=4 --max-in-flight-bytes=64KiB \
                 --admin-listen=b:2 --admin-token-file=/t --compaction-rate=1MB --stall-bound=7ms --no-pin \
                 --cluster=c:1,d:2 --node=c:1 --replica-listen=e:3 --cluster-secret-file=/s --cluster-name=n --replica-timeout=20ms \
                 --tombstone-grace=1h --config=/c";
    let flags = parse(every.split_whitespace());
    assert_eq!(flags.to_args().len(), every.split_whitespace().count());
    assert_eq!(parse(flags.to_args()), flags);
    assert!(Flags::default().to_args().is_empty());
    // What looks like a flag, has blanks, or is no UTF-8.
    use std::os::unix::ffi::OsStringExt;
    let odd = Flags {
        data: Some(OsString::from_vec(b"--a b\xFF=".to_vec()).into()),
        cluster_name: Some("-my = ring".to_owned()),
        ..Flags::default()
    };
    assert_eq!(parse(odd.to_args()), odd);
}

#[test]
fn nodes_on_this_machine_differ_in_address_and_folder() {
    let nodes = parse(["--data=/d", "--sync=os"]).on_this_machine(&[5, 6]).expect("valid");
    let args: Vec<OsString> = nodes[1].to_args();
    let cluster = "--cluster=http://127.0.0.1:5,http://127.0.0.1:6";
    let expected =
        ["--listen=127.0.0.1:6", "--data=/d/node-2", "--sync=os", "--no-pin", cluster, "--node=http://127.0.0.1:6"];
    assert_eq!(args, expected);
    let alone = parse::<&str>([]).on_this_machine(&[5]).expect("valid");
    assert_eq!(alone[0].to_args(), ["--listen=127.0.0.1:5", "--data=koltso-data/node-1", "--no-pin"]);
    let file = file_with(b"data = \"/f\"\n");
    let config = format!("--config={}", file.path().display());
    let nodes = parse([&config]).on_this_machine(&[5]).expect("valid");
    assert!(nodes[0].to_args().contains(&"--data=/f/node-1".into()), "the folder of the file");
    for content in ["listen = \"a:1\"\n", "admin_listen = \"a:1\"\n", "[replica-addresses]\n\"a:1\" = \"b:1\"\n"] {
        std::fs::write(file.path(), content).expect("written");
        let sentence = parse([&config]).on_this_machine(&[5]).expect_err(content);
        assert!(sentence.contains("is not for koltso local"), "{sentence}");
    }
}
