//! THIRD-PARTY.md names what the binary contains: every crate that is linked, in its version and
//! with its licence, and no other.
//!
//! `cargo deny` decides which licences may be there (deny.toml, run by .ci/run); this needs nothing
//! but cargo.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `NAME VERSION` and the licence of what the binary is built from for a target, the workspace left
/// out.
fn linked(target: &str) -> BTreeMap<String, String> {
    // (`cargo metadata` has also what features of tests and of build scripts would bring in.)
    let arguments = ["tree", "--locked", "--package", "koltso", "--edges", "normal", "--prefix", "none"];
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(arguments).args(["--format", "{p}|{l}", "--target", target]).current_dir(root());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once('|'));
    let theirs = lines.filter(|(package, _)| !package.contains(" (/"));
    theirs
        .map(|(package, licence)| {
            let mut words = package.split(' ');
            let (name, version) = (words.next().unwrap(), words.next().unwrap().trim_start_matches('v'));
            (format!("{name} {version}"), licence.trim_end_matches(" (*)").to_owned())
        })
        .collect()
}

#[test]
fn the_notices_are_of_what_is_linked() {
    let notices = std::fs::read_to_string(root().join("THIRD-PARTY.md")).unwrap();
    let rows = notices.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    let mut listed: BTreeSet<&str> = rows.map(|(package, _)| package).collect();
    assert!(listed.remove("crate"), "the head of the table");
    let linked: BTreeMap<String, String> = TARGETS.iter().flat_map(|target| linked(target)).collect();
    assert!(linked.len() > 50 && linked.keys().any(|package| package.starts_with("inferno ")), "{linked:?}");
    let expected: BTreeSet<&str> = linked.keys().map(|package| &**package).collect();
    let (missing, gone): (Vec<_>, Vec<_>) =
        (expected.difference(&listed).collect(), listed.difference(&expected).collect());
    assert!(
        missing.is_empty() && gone.is_empty(),
        "THIRD-PARTY.md lacks {missing:?} and has {gone:?}, which are not linked: run .ci/notices"
    );
    let texts = notices.lines().filter_map(|line| line.strip_prefix("Of ")?.strip_suffix('.'));
    let with_text: BTreeSet<&str> = texts.flat_map(|packages| packages.split(", ")).collect();
    for package in expected {
        assert!(!linked[package].is_empty(), "{package} has no licence");
        assert!(with_text.contains(package), "THIRD-PARTY.md has no text of a licence of {package}: run .ci/notices");
    }
    assert!(notices.contains("COMMON DEVELOPMENT AND DISTRIBUTION LICENSE"), "the text of inferno's licence");
}
