//! THIRD-PARTY.md names what the binary contains: every crate that is linked, in its version and
//! with its licence, and no other. And each crate that anything here depends on, tests included,
//! has a licence that deny.toml allows.
//!
//! `cargo deny` (run by .ci/run) decides that as well, with more: it reads the texts of licences,
//! and looks at sources and bans. This needs nothing but cargo.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use toml::de::{DeTable, DeValue};

const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `NAME VERSION` and the licence of what the binary is built from for a target, the workspace left
/// out.
fn linked(target: &str) -> BTreeMap<String, String> {
    tree(target, &["--package", "koltso", "--edges", "normal"])
}

/// The same of what some packages have by some kinds of dependency.
fn tree(target: &str, which: &[&str]) -> BTreeMap<String, String> {
    // (`cargo metadata` has also what features that nobody asked for would bring in.)
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--locked", "--prefix", "none"]).args(which);
    cargo.args(["--format", "{p}|{l}", "--target", target]).current_dir(root());
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

/// An SPDX expression of licences, over the names that it has not read yet.
struct Expression<'a, F>(Vec<&'a str>, F);

impl<F: Fn(&str) -> bool> Expression<'_, F> {
    /// Whether it is met if just the licences are allowed that `allows` says yes to. `None` if it is
    /// malformed.
    fn is_met(text: &str, allows: F) -> Option<bool> {
        // Old manifests have a slash for "or".
        let spaced = text.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
        let mut rest = Expression(spaced.split_whitespace().rev().collect(), allows);
        let met = rest.any()?;
        rest.0.is_empty().then_some(met)
    }

    fn next_is(&mut self, word: &str) -> bool {
        self.0.pop_if(|next| *next == word).is_some()
    }

    fn any(&mut self) -> Option<bool> {
        let mut met = self.all()?;
        while self.next_is("OR") {
            met |= self.all()?;
        }
        Some(met)
    }

    fn all(&mut self) -> Option<bool> {
        let mut met = self.one()?;
        while self.next_is("AND") {
            met &= self.one()?;
        }
        Some(met)
    }

    fn one(&mut self) -> Option<bool> {
        if self.next_is("(") {
            let met = self.any()?;
            return self.next_is(")").then_some(met);
        }
        let licence = self.0.pop().filter(|word| !["OR", "AND", "WITH", ")"].contains(word))?;
        if self.next_is("WITH") {
            let exception = self.0.pop()?;
            return Some((self.1)(&format!("{licence} WITH {exception}")));
        }
        Some((self.1)(licence))
    }
}

#[test]
fn each_dependency_has_a_licence_that_is_allowed() {
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    let deny = DeTable::parse(&text).unwrap().into_inner();
    let strings = |list: &DeValue<'_>| -> BTreeSet<String> {
        list.as_array().unwrap().iter().map(|name| name.get_ref().as_str().unwrap().to_owned()).collect()
    };
    let licences = deny["licenses"].get_ref();
    let allowed = strings(licences["allow"].get_ref());
    let exceptions: BTreeMap<&str, BTreeSet<String>> = licences["exceptions"]
        .get_ref()
        .as_array()
        .unwrap()
        .iter()
        .map(|exception| {
            let exception = exception.get_ref();
            (exception["crate"].get_ref().as_str().unwrap(), strings(exception["allow"].get_ref()))
        })
        .collect();
    assert!(allowed.len() > 3 && !exceptions.is_empty(), "{allowed:?} {exceptions:?}");
    let targets = strings(deny["graph"].get_ref()["targets"].get_ref());
    assert_eq!(targets, TARGETS.map(str::to_owned).into());

    let all: BTreeMap<String, String> =
        TARGETS.iter().flat_map(|target| tree(target, &["--workspace", "--edges", "normal,build,dev"])).collect();
    assert!(all.len() > 100, "{all:?}");
    let mut used = BTreeSet::new();
    let refused: Vec<_> = all
        .iter()
        .filter(|(package, licence)| {
            let exception = exceptions.get_key_value(package.split(' ').next().unwrap());
            let met = Expression::is_met(licence, |licence| {
                allowed.contains(licence) || exception.is_some_and(|(_, allowed)| allowed.contains(licence))
            });
            used.extend(exception.map(|(name, _)| *name));
            met != Some(true)
        })
        .collect();
    assert!(refused.is_empty(), "deny.toml does not allow the licences of {refused:?}");
    assert_eq!(used.len(), exceptions.len(), "deny.toml has exceptions for what is not there: {exceptions:?}");
}

#[test]
fn expressions_of_licences_are_understood() {
    let met = |text: &str| Expression::is_met(text, |licence| licence == "MIT" || licence == "Zlib");
    for text in
        ["MIT", "GPL-3.0 OR MIT", "MIT/Apache-2.0", "(GPL-3.0 OR MIT) AND Zlib", "GPL-3.0 AND X OR Zlib AND MIT"]
    {
        assert_eq!(met(text), Some(true), "{text}");
    }
    for text in ["GPL-3.0", "MIT AND GPL-3.0", "MIT WITH an-exception", "(MIT OR GPL-3.0) AND X", "MITX"] {
        assert_eq!(met(text), Some(false), "{text}");
    }
    for text in ["", "MIT OR", "(MIT", "MIT)", "MIT Zlib", "AND MIT", "MIT WITH"] {
        assert_eq!(met(text), None, "{text}");
    }
}
