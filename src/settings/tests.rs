//! Tests of the table and of all that follows from it; no test reads the environment of the
//! process.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use koltso_model::NODES_MAX;
use koltso_net::replica::Secrets;
use koltso_storage::{SyncMode, VALUE_MAX_LIMIT};

use super::check::check;
use super::flags::Texts;
use super::given::Given;
use super::grammar::Allowed as _;
use super::said::variable;
use super::table::{AnySetting, CONFIG, Default, Group, Local, MAX_VALUE, Status, TABLE};
use super::*;
use crate::units::Size;

// --- helpers ---

type Variables = Vec<(OsString, OsString)>;

#[derive(clap::Parser, Debug)]
struct Serve {
    #[command(flatten)]
    flags: Flags,
}

#[derive(clap::Parser, Debug)]
struct OnThisMachine {
    #[command(flatten)]
    flags: SharedFlags,
}

fn with_name<T: Into<OsString>>(args: impl IntoIterator<Item = T>) -> impl Iterator<Item = OsString> {
    std::iter::once(OsString::from("koltso")).chain(args.into_iter().map(Into::into))
}

#[track_caller]
fn parse<T: Into<OsString>>(args: impl IntoIterator<Item = T>) -> Texts {
    <Serve as clap::Parser>::try_parse_from(with_name(args)).unwrap_or_else(|e| panic!("{e}")).flags.0
}

fn given(flags: Texts, variables: Variables) -> Result<Given, String> {
    Given::gather(flags, variables, |_| true)
}

/// Flags with blanks between them, and no variables.
#[track_caller]
fn checked(flags: &str) -> Result<Config, String> {
    given(parse(flags.split_whitespace()), Vec::new()).and_then(|given| check(&given))
}

/// Variables with blanks between them, such as `KOLTSO_SYNC=os`.
fn variables(text: &str) -> Variables {
    let one = |word: &str| word.split_once('=').map(|(name, value)| (name.into(), value.into())).expect(word);
    text.split_whitespace().map(one).collect()
}

#[track_caller]
fn refused(flags: &str, why: &str) {
    let sentence = checked(flags).map(|config| config.cluster).expect_err(flags);
    assert!(sentence.contains(why) && !sentence.contains('\n'), "{flags}: {sentence}");
}

#[track_caller]
fn cluster(flags: &str) -> Cluster {
    checked(flags).expect(flags).cluster.expect("a cluster")
}

fn file_with(content: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), content).expect("written");
    file
}

fn from_file(content: impl AsRef<[u8]>) -> Result<Config, String> {
    let file = file_with(content);
    checked(&format!("--config {}", file.path().display()))
}

/// Everything of a configuration that can be compared, the secret included.
fn everything(config: &Config) -> (String, Option<Secrets>) {
    (format!("{config:?}"), config.cluster.as_ref().map(|cluster| cluster.secrets.clone()))
}

// --- the table ---

/// What surrounds a sample: the flags that it needs.
const IN_CLUSTER: &str = "--cluster http://127.0.0.1:1337,http://127.0.0.1:1338";

/// The name of a setting, what has to be given with it, a value, that value as TOML, and a wrong
/// one.
type Sample = (&'static str, &'static str, &'static str, &'static str, &'static str);

/// One for each setting; `SECRET` stands for a file with a secret that is also a token.
const SAMPLES: &[Sample] = &[
    ("listen", "", "127.0.0.1:9", "\"127.0.0.1:9\"", "nowhere"),
    ("allowed-host", "", "db.example,10.0.0.1", "[\"db.example\", \"10.0.0.1\"]", "db.example:80"),
    ("cors-origin", "", "https://a.example", "\"https://a.example\"", "a.example"),
    ("data", "", "/elsewhere", "\"/elsewhere\"", ""),
    ("threads", "", "7", "7", "257"),
    ("no-pin", "", "true", "true", "perhaps"),
    ("sync", "", "250ms", "\"250ms\"", "10"),
    ("max-value", "", "1500", "1500", "33MiB"),
    ("compaction-rate", "", "1MiB", "\"1MiB\"", "0"),
    ("scrub-interval", "", "48h", "\"48h\"", "59s"),
    ("max-connections", "", "3", "3", "many"),
    ("max-connections-per-address", "", "2", "2", "0"),
    ("request-timeout", "", "1500ms", "\"1500ms\"", "0s"),
    ("idle-timeout", "", "2m", "\"2m\"", "soon"),
    ("max-in-flight", "", "4", "4", "0"),
    ("max-in-flight-bytes", "", "64KiB", "\"64KiB\"", "-1"),
    ("cluster", "--listen 127.0.0.1:1", "127.0.0.1:1,127.0.0.1:2", "[\"127.0.0.1:2\", \"127.0.0.1:1\"]", "http://a"),
    ("node", IN_CLUSTER, "127.0.0.1:1338", "\"127.0.0.1:1338\"", "nowhere"),
    ("replica-listen", IN_CLUSTER, "127.0.0.1:7", "\"127.0.0.1:7\"", "127.0.0.1:65536"),
    ("cluster-secret-file", IN_CLUSTER, "SECRET", "\"SECRET\"", "/nonexistent/secret"),
    ("cluster-name", IN_CLUSTER, "ring", "\"ring\"", "кольцо"),
    ("replica-timeout", IN_CLUSTER, "20ms", "\"20ms\"", "61s"),
    ("repair-rate", IN_CLUSTER, "1MiB", "\"1MiB\"", "63KiB"),
    ("admin-listen", "", "127.0.0.1:8", "\"127.0.0.1:8\"", "127.0.0.1"),
    ("admin-token-file", "", "SECRET", "\"SECRET\"", "/nonexistent/token"),
    ("stall-bound", "", "0", "0", "61s"),
    ("log-level", "", "debug", "\"debug\"", "verbose"),
    ("log-format", "", "json", "\"json\"", "JSON"),
    ("log-name", "", "east", "\"east\"", "кольцо"),
];

/// Every setting but the file itself, which has no value in a [`Config`].
fn samples() -> impl Iterator<Item = (&'static AnySetting, &'static Sample)> {
    let sample = |setting: &'static AnySetting| {
        let sample = SAMPLES.iter().find(|sample| sample.0 == setting.name);
        (setting, sample.unwrap_or_else(|| panic!("SAMPLES has no --{}: add a line", setting.name)))
    };
    TABLE.iter().copied().filter(|setting| setting.name != CONFIG.name).map(sample)
}

#[test]
fn names_are_unique_and_of_one_form() {
    let names: BTreeSet<&str> = TABLE.iter().map(|setting| setting.name).collect();
    let variables: BTreeSet<String> = names.iter().map(|name| variable(name)).collect();
    assert_eq!((names.len(), variables.len()), (TABLE.len(), TABLE.len()));
    let shown = |setting: &&AnySetting| match setting.status {
        Status::Absent => None,
        Status::Value(_) => Some(setting.name.replace('-', "_")),
        Status::Named(name, _) => Some(name.to_owned()),
    };
    let shown: Vec<String> = TABLE.iter().copied().filter_map(|setting| shown(&setting)).collect();
    assert_eq!(shown.iter().collect::<BTreeSet<_>>().len(), shown.len(), "{shown:?}");
    for setting in TABLE {
        let form = |c: char| c.is_ascii_lowercase() || c == '-';
        assert!(setting.name.chars().all(form) && !setting.name.starts_with('-'), "{}", setting.name);
        // `koltso local` has flags of its own, which are no settings.
        assert!(!["nodes", "port", "help", "version", "replica-addresses"].contains(&setting.name), "{}", setting.name);
        assert!(!setting.help.is_empty() && !setting.help.ends_with('.'), "{}", setting.name);
    }
    assert_eq!(variable("max-in-flight-bytes"), "KOLTSO_MAX_IN_FLIGHT_BYTES");
}

#[test]
fn settings_of_a_group_stand_together() {
    let mut groups: Vec<Group> = TABLE.iter().map(|setting| setting.group).collect();
    groups.dedup();
    let headings: BTreeSet<&str> = groups.iter().map(|group| group.heading()).collect();
    assert_eq!(headings.len(), groups.len(), "{groups:?}");
}

#[test]
fn defaults_and_the_ends_of_ranges_are_values() {
    for setting in TABLE {
        let mut values = Vec::new();
        match setting.default {
            Default::Is(text) => values.push(text.to_owned()),
            Default::Computed(_, compute) => values.push(compute()),
            Default::Off | Default::Follows(_) => {}
        }
        let range = setting.grammar.range();
        values.extend(range.iter().flat_map(|range| range.split(" to ")).map(str::to_owned));
        for value in values {
            assert_eq!(setting.grammar.check(OsStr::new(&value)), Ok(()), "--{} {value}", setting.name);
        }
    }
    let range = MAX_VALUE.grammar.range();
    let largest: Option<Size> = range.and_then(|range| range.split(" to ").last()?.parse().ok());
    assert_eq!(largest, Some(Size(VALUE_MAX_LIMIT as u64)), "what the storage takes");
}

#[test]
fn every_setting_reaches_the_configuration_from_each_place() {
    let secret = file_with("a-secret-that-is-a-token");
    let path = secret.path().display().to_string();
    for (_, (name, with, text, toml, _)) in samples() {
        let (text, toml) = (text.replace("SECRET", &path), toml.replace("SECRET", &path));
        let without = checked(with).map(|config| everything(&config));
        let flag = checked(&format!("{with} --{name}={text}")).expect(name);
        assert_ne!(without, Ok(everything(&flag)), "--{name} {text} changes nothing: choose another sample");
        let variables = vec![(variable(name).into(), text.into())];
        let by_variable = given(parse(with.split_whitespace()), variables).and_then(|given| check(&given));
        assert_eq!(everything(&by_variable.expect(name)), everything(&flag), "{}", variable(name));
        for key in [(*name).to_owned(), name.replace('-', "_")] {
            let file = file_with(format!("# a comment\n{key} = {toml}\n"));
            let by_file = checked(&format!("{with} --config {}", file.path().display()));
            assert_eq!(everything(&by_file.expect(name)), everything(&flag), "{key} = {toml}");
        }
    }
}

/// So two settings of one kind cannot be taken for each other: the one that is given is the one
/// that is shown.
#[test]
fn a_setting_changes_what_is_shown_of_it_and_nothing_else() {
    let secret = file_with("a-secret-that-is-a-token");
    let path = secret.path().display().to_string();
    for (setting, (name, with, text, ..)) in samples() {
        let (key, also): (&str, &[&str]) = match (setting.name, &setting.status) {
            ("node", _) => ("listen", &["replica_listen"]),
            // The other one is half of it.
            ("max-connections", _) => ("max_connections", &["max_connections_per_address"]),
            // Without it this node is alone, and shows nothing of a cluster.
            ("cluster", _) => continue,
            (_, Status::Named(key, _)) => (key, &[]),
            _ => (&*name.replace('-', "_").leak(), &[]),
        };
        let was = in_force(&checked(with).expect(name));
        let now = in_force(&checked(&format!("{with} --{name}={}", text.replace("SECRET", &path))).expect(name));
        for (shown, value) in now.as_object().expect("an object") {
            let changes = shown == key || also.contains(&shown.as_str());
            assert_eq!(value != &was[shown], changes, "--{name} {text}: {shown} is {value} after {}", was[shown]);
        }
        let shown = now[key].as_str().map_or_else(|| now[key].to_string(), str::to_owned);
        let expected = match setting.name {
            "admin-token-file" | "cluster-secret-file" => "true",
            // Lists are shown as lists.
            "allowed-host" => "[\"db.example\",\"10.0.0.1\"]",
            "cors-origin" => "[\"https://a.example\"]",
            _ => text,
        };
        assert_eq!(shown, expected, "--{name} {text}");
    }
}

#[test]
fn a_flag_wins_over_a_variable_a_variable_over_the_file_and_the_file_over_the_default() {
    let file = file_with("max_value = 77\nthreads = 3\nsync = \"os\"\nlisten = \"127.0.0.1:9\"\nno-pin = true\n");
    let flags =
        parse(["--config".as_ref(), file.path().as_os_str(), "--threads=1".as_ref(), "--no-pin=false".as_ref()]);
    let environment = variables("KOLTSO_THREADS=2 KOLTSO_SYNC=always KOLTSO_IDLE_TIMEOUT= KOLTSO_NO_PIN=true");
    let config = given(flags, environment).and_then(|given| check(&given)).expect("valid");
    assert_eq!((config.threads, config.sync, config.max_value), (1, SyncMode::Always, 77));
    assert_eq!((config.listen.port(), config.max_connections, config.no_pin), (9, 10_000, false));
    assert_eq!(config.idle_timeout, Duration::from_secs(300), "an empty variable counts as unset");
}

#[test]
fn every_wrong_value_is_refused_with_its_place_and_what_is_allowed() {
    for (setting, (name, with, _, toml, wrong)) in samples() {
        // What a file that cannot be read lacks is no question of grammar.
        let allowed =
            if wrong.starts_with("/nonexistent") { "No such file".to_owned() } else { setting.grammar.allowed() };
        let allowed = if *name == "cluster" { "a URL such as".to_owned() } else { allowed };
        let expect = |place: &str, result: Result<Config, String>| {
            let sentence = result.map(|config| everything(&config)).expect_err(place);
            assert!(sentence.starts_with(place), "{place}: {sentence}");
            assert!(sentence.contains(&allowed), "{allowed}: {sentence}");
            assert!(!sentence.contains('\n') && sentence.len() < 350, "{sentence}");
        };
        let with_flag = parse(with.split_whitespace().map(str::to_owned).chain([format!("--{name}={wrong}")]));
        expect(&format!("--{name} "), given(with_flag, Vec::new()).and_then(|given| check(&given)));
        let with_flags = || parse(with.split_whitespace());
        if !wrong.is_empty() {
            let variables = vec![(variable(name).into(), wrong.into())];
            let place = format!("{}={wrong}", variable(name));
            expect(&place, given(with_flags(), variables).and_then(|given| check(&given)));
        }
        for (line, value) in [(1, format!("{wrong:?}")), (2, "1979-05-27".to_owned()), (3, "{ a = 1 }".to_owned())] {
            let file = file_with(format!("{}{name} = {value}\n", "\n".repeat(line - 1)));
            let place = format!("{}:{line}: {name} = {value}", file.path().display());
            let allowed = if line == 1 { allowed.clone() } else { setting.grammar.allowed() };
            let flags = parse(
                with.split_whitespace().map(str::to_owned).chain([format!("--config={}", file.path().display())]),
            );
            let sentence = given(flags, Vec::new()).and_then(|given| check(&given)).map(|_| ()).expect_err(&place);
            assert!(sentence.starts_with(&place) && sentence.contains(&allowed), "{place}, {allowed}: {sentence}");
        }
        // A value that a flag overrides has to be right, too: nobody finds it on the day when the
        // flag is gone.
        let file = file_with(format!(
            "{name} = {toml}\n{} = \"\\u0000\"\n",
            if *name == "sync" { "stall-bound" } else { "sync" }
        ));
        let overridden = format!("{with} --sync=os --stall-bound=1ms --config {}", file.path().display());
        assert!(checked(&overridden).is_err_and(|sentence| sentence.contains(":2: s")), "{overridden}");
    }
}

// --- the file ---

#[test]
fn errors_of_the_file_name_file_line_key_and_what_is_allowed() {
    let cases: &[(&str, usize, &[&str])] = &[
        ("max-value = true\n", 1, &["max-value = true", "a size from 1 to 32MiB"]),
        ("\nthreads = \"two\"\n", 2, &["threads = \"two\"", "a number from 1 to 256"]),
        ("sync = \"os\"\nlisten: x\n", 2, &["listen", "listen = VALUE", "HOST:PORT"]),
        ("# sizes\n\nmax_value = 1.5\n", 3, &["max_value = 1.5", "KiB, MiB or GiB"]),
        ("idle_timeout = 300\n", 1, &["idle_timeout = 300", "a duration", "ms, s, m, h or d"]),
        ("max-walue = 1\n", 1, &["max-walue", "did you mean max-value?"]),
        ("colour = 1\n", 1, &["colour is not a setting", "koltso serve --help"]),
        ("sync = 3\n", 1, &["sync = 3", "always, os or a duration"]),
        ("threads = -1\n", 1, &["threads = -1", "1 to 256"]),
        ("[storage]\nsegments = 3\n", 1, &["storage is not a setting"]),
        ("[listen]\nhost = 3\n", 1, &["listen", "HOST:PORT"]),
        ("max-value = 1\nmax_value = 2\n", 2, &["max_value is given a second time", ":1"]),
        ("max-value = 1\nmax-value = 2\n", 2, &["max-value"]),
        ("max-value = \"1MiB\nsync = \"os\"\n", 1, &["max-value", "max-value = VALUE"]),
        ("threads = 1\n= 3\n", 2, &["KEY = VALUE"]),
        ("config = \"other.toml\"\n", 1, &["config is a flag and a variable only"]),
        ("cluster = [1, 2]\n", 1, &["cluster = [1, 2]", "a list of URLs"]),
        ("cluster = [\n  \"http://a:1\",\n  2,\n]\n", 1, &["cluster = […", "a list of URLs"]),
        ("[replica-addresses]\na = 1\n", 2, &["a = 1", "[replica-addresses]"]),
        ("replica_addresses = 1\n", 1, &["[replica-addresses]"]),
        ("threads = 1\n\u{feff}x = 1\n", 2, &["KEY = VALUE"]),
        ("data = \"a\u{1b}[31m\"\n", 1, &["data"]),
    ];
    for (text, line, named) in cases {
        let file = file_with(text);
        let path = file.path().display();
        let sentence = checked(&format!("--config {path}")).map(|_| ()).expect_err(text);
        assert!(sentence.starts_with(&format!("{path}:{line}: ")), "{text:?}: {sentence}");
        assert!(named.iter().all(|part| sentence.contains(part)), "{text:?}: {sentence}");
        assert!(!sentence.contains(|c: char| c.is_control()) && sentence.len() < 400, "{text:?}: {sentence}");
    }
    let sentence = from_file(b"sync = \"os\"\n# \xFF\n").map(|_| ()).expect_err("no UTF-8");
    assert!(sentence.contains(":2 is not UTF-8"), "{sentence}");
    let sentence = from_file(vec![b'#'; (1 << 20) + 1]).map(|_| ()).expect_err("large");
    assert!(sentence.contains("larger than 1 MiB"), "{sentence}");
    assert!(from_file(vec![b'#'; 1 << 20]).is_ok());
}

/// Whatever a file has in it, the answer is its settings or one printable line.
#[test]
fn a_harmed_file_is_settings_or_one_line() {
    let mut random = koltso_testkit::Random::announced("a harmed file of settings");
    let settings = samples().map(|(_, (name, _, _, toml, _))| format!("{name} = {toml}\n"));
    let addresses = "[replica-addresses]\n\"http://127.0.0.1:1\" = \"127.0.0.1:7\"\n".to_owned();
    let whole: String = settings.chain([addresses]).collect();
    let file = file_with("");
    let flags = || parse(["--config".as_ref(), file.path().as_os_str()]);
    let (mut read, mut refused) = (0, 0);
    for round in 0..1000 {
        let mut bytes = whole.clone().into_bytes();
        if round % 2 == 0 {
            koltso_testkit::fuzz::mutate(&mut bytes, &mut random);
        } else {
            // One character, so that most of these are TOML still.
            let at = random.below(bytes.len());
            bytes[at] = random.between(b' ', b'~');
        }
        std::fs::write(file.path(), &bytes).expect("written");
        match given(flags(), Vec::new()) {
            Ok(_) => read += 1,
            Err(sentence) => {
                refused += 1;
                let printable = !sentence.is_empty() && !sentence.contains(|c: char| c.is_control());
                assert!(printable && sentence.chars().count() < 600, "{sentence:?} of {bytes:?}");
            }
        }
    }
    assert!(read > 0 && refused > 300, "{read} read, {refused} refused");
}

#[test]
fn the_file_is_named_by_a_flag_or_a_variable() {
    let (one, other) = (file_with("threads = 1\n"), file_with("threads = 2\n"));
    let environment = vec![("KOLTSO_CONFIG".into(), one.path().into())];
    let threads = |flags: Texts| {
        let config = given(flags, environment.clone()).and_then(|given| check(&given)).expect("valid");
        config.threads
    };
    assert_eq!(threads(Texts::new()), 1);
    assert_eq!(threads(parse(["--config".as_ref(), other.path().as_os_str()])), 2);
    for missing in ["/nonexistent/koltso.toml", "/"] {
        refused(&format!("--config {missing}"), &format!("--config {missing}: "));
        let sentence = given(Texts::new(), variables(&format!("KOLTSO_CONFIG={missing}"))).expect_err(missing);
        assert!(sentence.starts_with(&format!("KOLTSO_CONFIG={missing}: ")), "{sentence}");
    }
}

#[test]
fn the_file_has_the_cluster_and_the_replica_addresses() {
    let urls = "cluster = [\"http://127.0.0.1:1337\", \"http://127.0.0.1:60000\"]\n";
    let with = |text: &str| from_file(text).map(|config| config.cluster.expect("a cluster"));
    let addresses = |text: &str| with(&format!("{urls}[replica-addresses]\n{text}"));
    let cluster = addresses("\"http://127.0.0.1:60000/\" = \"127.0.0.1:7\"\n").expect("valid");
    assert_eq!(cluster.nodes[1].replica.to_string(), "127.0.0.1:7");
    assert!(with(urls).expect_err("no port").contains("60000 + 10000 is above 65535"));
    let unknown = addresses("\"http://127.0.0.1:2\" = \"127.0.0.1:7\"\n").expect_err("unknown");
    assert!(unknown.contains(":3: [replica-addresses] http://127.0.0.1:2 is not one of"), "{unknown}");
    for no_address in ["7", "127.0.0.1:0", "127.0.0.1"] {
        let sentence = addresses(&format!("\"http://127.0.0.1:60000\" = \"{no_address}\"\n")).expect_err(no_address);
        assert!(sentence.contains(":3: ") && sentence.contains("is not HOST:PORT"), "{sentence}");
    }
    let twice = "\"127.0.0.1:60000\" = \"127.0.0.1:7\"\n\"http://127.0.0.1:60000\" = \"127.0.0.1:8\"\n";
    let twice = addresses(twice).expect_err("twice");
    assert!(twice.contains("twice") && twice.contains(":4: "), "{twice}");
    let same = addresses("\"http://127.0.0.1:60000\" = \"127.0.0.1:11337\"\n").expect_err("the same");
    assert!(same.contains("one replica address"), "{same}");
    let all = with(
        "cluster = \"127.0.0.1:1, 127.0.0.1:2\"\nnode = \"127.0.0.1:2\"\nreplica_timeout = \"2s\"\nno-pin = true\n",
    );
    assert_eq!(all.map(|cluster| (cluster.me, cluster.replica_timeout.as_secs())), Ok((1, 2)));
    let alone = with("[replica_addresses]\n\"http://a:1\" = \"127.0.0.1:7\"\n").expect_err("alone");
    assert!(alone.contains(":2: [replica-addresses] needs --cluster"), "{alone}");
}

// --- variables ---

#[test]
fn a_variable_that_is_no_setting_is_left_alone_unless_it_looks_misspelt() {
    let with = |text: &str| given(Texts::new(), variables(text)).expect("valid").warnings;
    let others = "KOLTSO_SEED=1 KOLTSO_FUZZ_SECONDS=5 KOLTSO_TEST_LONG=1 KOLTSO_SIM_SECONDS=1 KOLTSO_SIM_LINES=1 \
                  KOLTSO_SCREENSHOTS=/tmp KOLTSO_BENCH_DIR=/tmp KOLTSO_PORT=tcp://10.0.0.1:1337 \
                  KOLTSO_PORT_1337_TCP_ADDR=10.0.0.1 KOLTSO_SERVICE_HOST=10.0.0.1 KOLTSO_=1 PATH=/bin LISTEN=x";
    assert_eq!(with(others), Vec::<String>::new());
    assert_eq!(with("KOLTSO_LISEN=x"), ["KOLTSO_LISEN is not a setting; did you mean KOLTSO_LISTEN?"]);
    assert_eq!(
        with("KOLTSO_MAX_VALUES=1 KOLTSO_LISEN="),
        ["KOLTSO_MAX_VALUES is not a setting; did you mean KOLTSO_MAX_VALUE?"]
    );
}

// --- what needs more than one setting ---

#[test]
fn who_needs_a_cluster_says_where_it_was_given() {
    for (flags, environment, file, place) in [
        ("--node http://a:1", "", "", "--node"),
        ("--replica-listen 127.0.0.1:1", "", "", "--replica-listen"),
        ("--cluster-secret-file /dev/null", "", "", "--cluster-secret-file"),
        ("", "KOLTSO_NODE=http://a:1", "", "KOLTSO_NODE"),
        ("", "", "\nnode = \"http://a:1\"\n", ":2: node"),
    ] {
        let file = file_with(file);
        let flags = parse(flags.split_whitespace().chain(["--config", file.path().to_str().expect("UTF-8")]));
        let sentence =
            given(flags, variables(environment)).and_then(|given| check(&given)).map(|_| ()).expect_err(place);
        assert!(sentence.contains(&format!("{place} needs --cluster")), "{sentence}");
    }
}

#[test]
fn a_cluster_is_the_same_list_whatever_the_order_and_the_spelling() {
    let config =
        checked("--cluster HTTP://LOCALHOST:1339/,http://127.0.0.1:1337,127.0.0.1:01338 --listen 127.0.0.1:1338")
            .expect("valid");
    let cluster = config.cluster.expect("a cluster");
    let urls: Vec<&str> = cluster.nodes.iter().map(|node| node.url.as_str()).collect();
    assert_eq!(urls, ["http://127.0.0.1:1337", "http://127.0.0.1:1338", "http://localhost:1339"]);
    assert_eq!((cluster.me, Some(cluster.replica_listen)), (1, cluster.nodes[1].replica.in_digits()));
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.replica.port).collect();
    assert_eq!(ports, [11337, 11338, 11339]);
    assert_eq!((cluster.name.as_str(), cluster.secrets.clone()), ("koltso", Secrets::default()));
    assert_eq!(cluster.replica_timeout, Duration::from_secs(1));
}

#[test]
fn a_node_knows_itself_by_its_name_or_by_where_it_listens() {
    let nodes = IN_CLUSTER;
    assert_eq!(cluster(nodes).me, 0, "the default of --listen");
    assert_eq!(cluster(&format!("{nodes} --listen localhost:1338")).me, 1, "by where the name leads");
    let named = checked(&format!("{nodes} --node 127.0.0.1:1338/")).expect("valid");
    assert_eq!(named.cluster.map(|cluster| cluster.me), Some(1));
    assert_eq!(named.listen.to_string(), "127.0.0.1:1338", "it listens where its name says");
    let behind = checked(&format!("{nodes} --node http://127.0.0.1:1338 --listen 0.0.0.0:80")).expect("valid");
    assert_eq!((behind.cluster.map(|cluster| cluster.me), behind.listen.port()), (Some(1), 80));
    refused(&format!("{nodes} --listen 127.0.0.1:1339"), "--node");
    refused(&format!("{nodes} --node http://127.0.0.1:1339"), "--node http://127.0.0.1:1339 is not one of");
    refused("--cluster http://127.0.0.1:1,http://127.0.0.1:2", "--listen 127.0.0.1:1337 (the default) is not one of");
}

#[test]
fn a_cluster_of_one_is_checked_and_is_none() {
    assert!(checked("--cluster http://127.0.0.1:1337").expect("valid").cluster.is_none());
    refused("--cluster http://127.0.0.1:1338", "is not one of the nodes");
    assert!(checked("").expect("valid").cluster.is_none());
}

#[test]
fn what_is_wrong_with_a_cluster_is_one_sentence() {
    let two = IN_CLUSTER;
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
    let long = "a".repeat(64);
    refused(&format!("--cluster http://127.0.0.1:1337,http://{long}:1"), "cannot be resolved");
    // Whose name does not resolve now may be back later; only the own address has to be usable.
    let away = checked("--cluster http://127.0.0.1:1337,http://nobody.invalid:1").expect("the peer may be away");
    assert_eq!(away.cluster.expect("a cluster").nodes[1].replica.to_string(), "nobody.invalid:10001");
    refused("--cluster http://127.0.0.1:1337,http://nobody.invalid:1 --node nobody.invalid:1", "cannot be resolved");
    refused("--listen no..host:1", "--listen no..host:1 cannot be resolved");
    refused(&format!("{two} --replica-listen 0.0.0.0:11337"), "give --cluster-secret-file");
    refused(&format!("{two} --replica-listen [::]:11337"), "give --cluster-secret-file");
    refused("--replica-timeout 61s", "10ms to 60s");
    refused("--cluster-name=", "1 to 64");
    refused(&format!("--cluster-name={}", "x".repeat(65)), "1 to 64");
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
    let of = |secrets: &[&[u8]]| Secrets::new(secrets.iter().map(|secret| secret.to_vec()).collect());
    assert_eq!(with(b"0123456789abcde\n\n").expect("16 bytes").secrets, of(&[b"0123456789abcde\n"]));
    assert_eq!(with(&[0xFF; 4096]).expect("any bytes").secrets, of(&[&[0xFF; 4096]]));
    for wrong in [&b"0123456789abcde\n"[..], b"", &[7; 4097]] {
        assert!(with(wrong).expect_err("refused").contains("16 to 4096 bytes"));
    }
    let debug = format!("{:?}", with(b"a secret that nobody prints").expect("valid"));
    assert!(!debug.contains("secret") && !debug.contains("97, 32"), "{debug}");
}

#[test]
fn a_token_is_one_word_of_bounded_length() {
    let token = |content: &[u8]| read_token("--token-file t", file_with(content).path());
    assert_eq!(token(b" horse\n").as_deref(), Ok("horse"));
    assert_eq!(token(&[b't'; 4096]).map(|token| token.len()), Ok(4096));
    for wrong in [&b""[..], b"\n", b"two words", b"caf\xC3\xA9", &[b't'; 4097], &[b't'; 5000]] {
        let sentence = token(wrong).expect_err("refused");
        assert!(sentence.starts_with("--token-file t does not hold one token"), "{sentence}");
    }
}

#[test]
fn a_bound_of_stalls_is_a_time_or_nothing() {
    let bound = |flags: &str| checked(flags).expect(flags).stall_bound;
    assert_eq!(bound(""), Some(Duration::from_millis(5)));
    assert_eq!(bound("--stall-bound 20ms"), Some(Duration::from_millis(20)));
    assert_eq!(bound("--stall-bound 0"), None);
    for unquoted in ["0", "\"0\""] {
        let config = from_file(format!("stall-bound = {unquoted}\n")).expect(unquoted);
        assert_eq!(config.stall_bound, None);
    }
    for wrong in ["5", "0ms", "61s", "-1ms", "soon"] {
        let sentence = checked(&format!("--stall-bound={wrong}")).map(|_| ()).expect_err(wrong);
        assert!(sentence.contains(wrong) && sentence.contains("1ms to 60s"), "{sentence}");
    }
}

// --- koltso local ---

fn shared<T: Into<OsString>>(args: impl IntoIterator<Item = T>) -> Texts {
    <OnThisMachine as clap::Parser>::try_parse_from(with_name(args)).unwrap_or_else(|e| panic!("{e}")).flags.0
}

fn nodes(flags: Texts, environment: Variables, ports: &[u16]) -> Result<(Vec<NodeSettings>, Vec<String>), String> {
    let given = Given::gather(flags, environment, |setting| setting.local != Local::Chosen)?;
    Ok((local::nodes(&given, ports)?, given.warnings))
}

#[test]
fn settings_as_arguments_are_the_same_settings() {
    let every = "--listen=127.0.0.1:1 --allowed-host=a --cors-origin=http://a --data=/d --threads=2 --no-pin=true --sync=250ms --max-value=1500 --compaction-rate=1MB --scrub-interval=7d \
                 --max-connections=3 --max-connections-per-address=2 --request-timeout=1500ms --idle-timeout=2m --max-in-flight=4 \
                 --max-in-flight-bytes=64KiB --cluster=127.0.0.1:1,d:2 --node=127.0.0.1:1 --replica-listen=e:3 \
                 --cluster-secret-file=/s --cluster-name=n --replica-timeout=20ms --repair-rate=1MB \
                 --admin-listen=b:2 --admin-token-file=/t --stall-bound=7ms --log-level=warn --log-format=json --log-name=n";
    let all = given(parse(every.split_whitespace()), Vec::new()).expect("valid");
    let words: Vec<&str> = every.split_whitespace().collect();
    assert_eq!(all.to_args(), words);
    assert_eq!(words.len(), TABLE.len() - 1, "all but --config");
    assert!(given(Texts::new(), Vec::new()).expect("valid").to_args().is_empty());
    // What looks like a flag, has blanks, or is no UTF-8.
    use std::os::unix::ffi::OsStringExt;
    let mut odd = Texts::new();
    odd.insert("data", OsString::from_vec(b"--a b\xFF=".to_vec()));
    odd.insert("cluster-name", "-my = ring".into());
    assert_eq!(parse(given(odd.clone(), Vec::new()).expect("valid").to_args()), odd);
}

#[test]
fn nodes_on_this_machine_differ_in_address_and_folder() {
    let (two, _) = nodes(shared(["--data=/d", "--sync=os"]), Vec::new(), &[5, 6]).expect("valid");
    let expected = [
        "--listen=127.0.0.1:6",
        "--data=/d/node-2",
        "--no-pin=true",
        "--sync=os",
        "--cluster=http://127.0.0.1:5,http://127.0.0.1:6",
        "--node=http://127.0.0.1:6",
        "--log-name=node 2",
    ];
    assert_eq!(two[1].args, expected);
    assert_eq!(two[1].config.data, Path::new("/d/node-2"));
    let (alone, _) = nodes(Texts::new(), Vec::new(), &[5]).expect("valid");
    let expected = ["--listen=127.0.0.1:5", "--data=./koltso-data/node-1", "--no-pin=true", "--log-name=node 1"];
    assert_eq!(alone[0].args, expected);
    let (named, _) = nodes(shared(["--log-name=east"]), Vec::new(), &[5, 6]).expect("valid");
    assert_eq!(named[1].config.log.name.as_deref(), Some("east node 2"));
}

#[test]
fn nodes_on_this_machine_have_what_variables_and_file_say_as_flags() {
    let file = file_with("data = \"/f\"\nmax-value = 2048\nthreads = 2\nno-pin = false\n");
    let flags = shared(["--config".as_ref(), file.path().as_os_str()]);
    let (one, warnings) = nodes(flags, variables("KOLTSO_THREADS=1 KOLTSO_SYNC=os"), &[5]).expect("valid");
    let expected = [
        "--listen=127.0.0.1:5",
        "--data=/f/node-1",
        "--threads=1",
        "--no-pin=false",
        "--sync=os",
        "--max-value=2048",
        "--log-name=node 1",
    ];
    assert_eq!(one[0].args, expected);
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn what_koltso_local_chooses_is_refused_in_flags_and_file_and_ignored_in_variables() {
    for setting in TABLE.iter().filter(|setting| setting.local == Local::Chosen) {
        let (_, (name, _, text, toml, _)) = samples().find(|(other, _)| other.name == setting.name).expect("a sample");
        let refused = |flags: Texts, place: &str| {
            let sentence = nodes(flags, Vec::new(), &[5, 6]).map(|_| ()).expect_err(place);
            assert!(sentence.contains(&format!("{place} is not for koltso local")), "{sentence}");
        };
        refused(shared([format!("--{name}={text}")]), &format!("--{name}"));
        let file = file_with(format!("\n{name} = {toml}\n"));
        refused(shared(["--config".as_ref(), file.path().as_os_str()]), &format!(":2: {name}"));
        for value in [text, "nonsense"] {
            let environment = vec![(variable(name).into(), (*value).into())];
            let (two, warnings) = nodes(Texts::new(), environment, &[5, 6]).expect(name);
            assert_eq!(two[0].config.listen.port(), 5);
            assert_eq!(warnings, [format!("{} is ignored here", variable(name))]);
        }
    }
    let file = file_with("[replica-addresses]\n\"a:1\" = \"b:1\"\n");
    let sentence = nodes(shared(["--config".as_ref(), file.path().as_os_str()]), Vec::new(), &[5]);
    assert!(sentence.map(|_| ()).is_err_and(|sentence| sentence.contains(":2: [replica-addresses] is not for")));
}

#[test]
fn help_has_every_flag_of_serve_and_those_that_local_takes() {
    let help = |command: clap::Command| command.term_width(0).clone().render_long_help().to_string();
    let serve = help(<Serve as clap::CommandFactory>::command());
    let local = help(<OnThisMachine as clap::CommandFactory>::command());
    for setting in TABLE {
        let line = format!("--{}", setting.name);
        let has = |help: &str| help.split_whitespace().any(|word| word.split('[').next() == Some(&line));
        assert!(has(&serve) && serve.contains(&setting.meaning()), "serve --help has no {line}:\n{serve}");
        assert_eq!(has(&local), setting.local != Local::Chosen, "local --help: {line}\n{local}");
    }
}

// --- the README ---

/// The table as the README has it.
fn readme_table() -> String {
    let mut text = "| flag | default | meaning |\n|---|---|---|\n".to_owned();
    let mut group = None;
    for setting in TABLE {
        if group.replace(setting.group) != Some(setting.group) {
            let _ = writeln!(text, "| **{}** | | |", setting.group.heading());
        }
        let flag = match setting.grammar.implied() {
            Some(_) => format!("`--{}`", setting.name),
            None => format!("`--{} {}`", setting.name, setting.value),
        };
        let default = match setting.default {
            Default::Off | Default::Is("false") => String::new(),
            Default::Is(text) => format!("`{text}`"),
            Default::Follows(text) | Default::Computed(text, _) => text.to_owned(),
        };
        let _ = writeln!(text, "| {flag} | {default} | {} |", setting.meaning());
    }
    text.replace("|  |", "| |")
}

#[test]
fn the_readme_has_this_table() {
    let readme = include_str!("../../README.md");
    let table = readme_table();
    assert!(readme.contains(&table), "the README's table of settings differs; it should be:\n\n{table}");
    assert_eq!(readme.matches("| `--max-value ").count(), 1, "the README has two tables of settings");
}
